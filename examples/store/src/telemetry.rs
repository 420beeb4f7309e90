//! The shop's own metrics.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use pipeline::telemetry::{Telemetry, milliseconds};

/// The metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Sales of one item: there was one.
    pub sold: Counter,
    /// There was none.
    pub out: Counter,
    /// The database has failed.
    pub failed: Counter,
    checkout_time: Histogram,
    level_told: Histogram,
    /// Carts that hear of an item that is gone, or there again: one per item.
    pub alerts: Counter,
    /// Loads that found the copy different from the database.
    pub copy_reloads: Counter,
    /// Changes of other nodes.
    pub replicated: Counter,
    /// Open cart channels.
    pub carts: Gauge,
    clock_ahead: Gauge,
    /// Passwords of admins that were wrong.
    pub wrong_passwords: Counter,
    /// Tries to sign in that were refused because there were too many wrong ones.
    pub refused_tries: Counter,
}

impl Metrics {
    /// Registers them.
    #[must_use]
    pub fn new(telemetry: &Telemetry) -> Self {
        let sale = |result: &str| {
            let labels = [("result", result.to_owned())];
            telemetry.counter("store.sale", "sales of one item", labels)
        };
        let counter = |name, description| telemetry.counter(name, description, []);
        Self {
            sold: sale("ok"),
            out: sale("out"),
            failed: sale("failed"),
            checkout_time: telemetry.timer(
                "store.checkout_time",
                "time of a checkout in the database",
                [],
            ),
            level_told: telemetry.timer(
                "store.level_told",
                "from the commit until the broadcast",
                [],
            ),
            alerts: counter("store.alerts", "items whose carts were alerted"),
            copy_reloads: counter("store.copy_reloads", "loads that changed the copy"),
            replicated: counter("store.replicated", "changes of other nodes that were received"),
            carts: telemetry.gauge("store.carts", "open carts", []),
            clock_ahead: telemetry.gauge(
                "store.clock_ahead",
                "milliseconds by which the shop's clock is ahead of the system's",
                [],
            ),
            wrong_passwords: counter("store.wrong_passwords", "wrong passwords of admins"),
            refused_tries: counter("store.refused_tries", "tries to sign in that were refused"),
        }
    }

    /// Records by how much the clock is ahead of the system's.
    pub fn clock_is_ahead(&self, by: Duration) {
        self.clock_ahead.set(milliseconds(by));
    }

    /// Records the time of a checkout.
    pub fn checkout_took(&self, time: Duration) {
        self.checkout_time.record(milliseconds(time));
    }

    /// Records the time from a commit to its broadcast.
    pub fn level_was_told_after(&self, time: Duration) {
        self.level_told.record(milliseconds(time));
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
