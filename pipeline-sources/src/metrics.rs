//! The metrics of a source.

use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use pipeline_core::stage::{SourceReport, StageContext};
#[cfg(any(
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
use pipeline_core::telemetry::Telemetry;
use tokio::time::Instant;

use crate::broker::{Ahead, Backlog, Outcome};

/// The metrics of a source.
#[derive(Debug)]
pub(crate) struct SourceMetrics {
    fetched: Counter,
    redelivered: Counter,
    connection_errors: Counter,
    done: Counter,
    retried: Counter,
    released: Counter,
    given_up: Counter,
    connected: Gauge,
    held: Gauge,
    held_bytes: Gauge,
    ahead: Gauge,
    ahead_bytes: Gauge,
    set_aside: Gauge,
    outcome_errors: Counter,
    backlog_errors: Counter,
    brought_forward: Counter,
    wakes_lost: Counter,
    stalled: Gauge,
    backlog: Gauge,
    oldest_age: Gauge,
    dead_letters: Gauge,
    /// The age of the oldest item, and when it was that.
    oldest: Mutex<Option<(Duration, Instant)>>,
    /// The same numbers for snapshots.
    report: SourceReport,
}

impl SourceMetrics {
    /// Those of a source of this broker.
    pub(crate) fn register<H>(context: &StageContext<H>, broker: &str) -> Self {
        let telemetry = context.telemetry();
        let (pipeline, stage) = (context.pipeline(), context.stage());
        let labels = || [("pipeline", pipeline.to_owned()), ("stage", stage.to_owned())];
        let report = context.source_report();
        report.update(|source| source.broker = broker.into());
        let counter = |name, what| telemetry.counter(name, what, labels());
        let gauge = |name, what| telemetry.gauge(name, what, labels());
        Self {
            fetched: counter("pipeline.source.fetched", "Items that a source has fetched"),
            redelivered: counter(
                "pipeline.source.redelivered",
                "Fetched items that had been delivered before",
            ),
            connection_errors: counter(
                "pipeline.source.connection_errors",
                "How often a source could not connect, or a call of its broker failed",
            ),
            done: counter("pipeline.source.done", "Items that were stored as handled"),
            retried: counter("pipeline.source.retried", "Items that are to be delivered again"),
            released: counter(
                "pipeline.source.released",
                "Items that were given back, and count as not delivered",
            ),
            given_up: counter("pipeline.source.given_up", "Items that were given up"),
            connected: gauge("pipeline.source.connected", "1 while a source is connected, else 0"),
            held: gauge(
                "pipeline.source.held",
                "Items that a source has fetched and whose outcome is not stored yet",
            ),
            held_bytes: gauge("pipeline.source.held_bytes", "The bytes of those items"),
            ahead: gauge(
                "pipeline.source.ahead",
                "Items that the server of a source has sent before they were asked for",
            ),
            ahead_bytes: gauge("pipeline.source.ahead_bytes", "The bytes of those items"),
            set_aside: gauge(
                "pipeline.source.set_aside",
                "Items whose outcome the broker has refused, and that are tried again alone",
            ),
            outcome_errors: counter(
                "pipeline.source.outcome_errors",
                "How often a broker has refused the outcome of an item",
            ),
            backlog_errors: counter(
                "pipeline.source.backlog_errors",
                "How often a source could not count its backlog",
            ),
            brought_forward: counter(
                "pipeline.source.brought_forward",
                "Items that wait no longer for a time which a clock that was ahead had set",
            ),
            wakes_lost: counter(
                "pipeline.source.wakes_lost",
                "Postponed items whose delay was to be ended and has to end by itself",
            ),
            stalled: gauge(
                "pipeline.source.stalled",
                "1 while the server delivers no more items because too many are in work or postponed, else 0",
            ),
            backlog: gauge("pipeline.source.backlog", "Items at the broker that are not done"),
            oldest_age: gauge(
                "pipeline.source.oldest_age",
                "The age of the oldest item that is not done, in seconds",
            ),
            dead_letters: gauge(
                "pipeline.source.dead_letters",
                "Items that were given up and kept",
            ),
            oldest: Mutex::default(),
            report,
        }
    }

    pub(crate) fn fetched(&self, redelivered: bool) {
        self.fetched.increment(1);
        self.redelivered.increment(redelivered.into());
        self.report.update(|source| {
            source.fetched += 1;
            source.redelivered += u64::from(redelivered);
        });
    }

    /// Records that the broker could not be connected to, or a call of it has failed.
    pub(crate) fn failed(&self, error: &str) {
        self.connection_errors.increment(1);
        self.report.update(|source| {
            source.connection_errors += 1;
            source.last_error = Some(error.into());
        });
        self.backlog_is_unknown();
    }

    pub(crate) fn held(&self, held: usize, bytes: usize) {
        self.held.set(held as f64);
        self.held_bytes.set(bytes as f64);
        self.report.update(|source| source.held = held as u64);
    }

    pub(crate) fn ahead(&self, ahead: Ahead) {
        self.ahead.set(ahead.items as f64);
        self.ahead_bytes.set(ahead.bytes as f64);
    }

    /// Records that the broker has refused an outcome.
    pub(crate) fn not_stored(&self) {
        self.outcome_errors.increment(1);
    }

    /// The counter of items whose delays were to be ended and are not.
    pub(crate) fn wakes_lost(&self) -> &Counter {
        &self.wakes_lost
    }

    pub(crate) fn set_aside(&self, items: usize) {
        self.set_aside.set(items as f64);
        self.report.update(|source| source.set_aside = items as u64);
    }

    pub(crate) fn backlog_failed(&self) {
        self.backlog_errors.increment(1);
        self.backlog_is_unknown();
    }

    /// Records whether the server has delivered nothing new for a while, although something waits.
    pub(crate) fn stalled(&self, stalled: bool) {
        self.stalled.set(f64::from(u8::from(stalled)));
    }

    /// Shows that the backlog is not known now. A gauge cannot say so, and keeps its value; the age grows.
    fn backlog_is_unknown(&self) {
        self.stalled(false);
        self.report.update(|source| {
            (source.backlog, source.oldest_age, source.dead_letters) = (None, None, None);
        });
        if let Some((age, since)) = *self.oldest.lock() {
            self.oldest_age.set(age.saturating_add(since.elapsed()).as_secs_f64());
        }
    }

    pub(crate) fn settled(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Done => self.report.update(|source| source.done += 1),
            Outcome::GiveUp { .. } => self.report.update(|source| source.given_up += 1),
            Outcome::Retry { .. } => self.report.update(|source| source.retried += 1),
            Outcome::Release { .. } => self.report.update(|source| source.released += 1),
        }
        match outcome {
            Outcome::Done => &self.done,
            Outcome::Retry { .. } => &self.retried,
            Outcome::Release { .. } => &self.released,
            Outcome::GiveUp { .. } => &self.given_up,
        }
        .increment(1);
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.connected.set(f64::from(u8::from(connected)));
        self.stalled(false);
        self.report.update(|source| source.connected = connected);
    }

    pub(crate) fn backlog(&self, backlog: &Backlog, now: SystemTime) {
        self.brought_forward.increment(backlog.brought_forward);
        let age = oldest_age(backlog, now);
        self.report.update(|source| {
            source.backlog = backlog.items;
            source.oldest_age = age;
            source.dead_letters = backlog.dead_letters;
        });
        let count = |gauge: &Gauge, count: Option<u64>| {
            if let Some(count) = count {
                gauge.set(count as f64);
            }
        };
        count(&self.backlog, backlog.items);
        count(&self.dead_letters, backlog.dead_letters);
        *self.oldest.lock() = age.map(|age| (age, Instant::now()));
        // An age that the broker cannot tell is not shown as none.
        let shown = age.or_else(|| (backlog.items == Some(0)).then_some(Duration::ZERO));
        if let Some(age) = shown {
            self.oldest_age.set(age.as_secs_f64());
        }
    }
}

/// The counters of items that the process could not add to a queue.
#[derive(Clone, Debug)]
#[cfg(any(
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
pub(crate) struct Refusals {
    full: Counter,
    failed: Counter,
    #[cfg(feature = "sqlite")]
    replaced: Counter,
}

#[cfg(any(
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
impl Refusals {
    /// Those of a queue of this broker, at the recorder of the process: who adds items has no pipeline.
    pub(crate) fn register(broker: &str, queue: &str) -> Self {
        Self::at(&Telemetry::global(), broker, queue)
    }

    /// Those of a queue of this broker, at a recorder.
    pub(crate) fn at(telemetry: &Telemetry, broker: &str, queue: &str) -> Self {
        let counter = |reason: &str| {
            telemetry.counter(
                "pipeline.source.refused",
                "Items that could not be added to a queue",
                [
                    ("broker", broker.to_owned()),
                    ("queue", queue.to_owned()),
                    ("reason", reason.to_owned()),
                ],
            )
        };
        Self {
            full: counter("full"),
            failed: counter("failed"),
            #[cfg(feature = "sqlite")]
            replaced: counter("replaced"),
        }
    }

    /// Counts items that were not added, because there is no room for them or for another reason.
    pub(crate) fn count(&self, items: usize, is_full: bool) {
        let counter = if is_full { &self.full } else { &self.failed };
        counter.increment(items as u64);
    }

    /// Counts items that were not added because the file is not at its path any more.
    #[cfg(feature = "sqlite")]
    pub(crate) fn count_replaced(&self, items: usize) {
        self.replaced.increment(items as u64);
    }
}

/// The age of the oldest item, if there is one and the broker tells when it was added.
fn oldest_age(backlog: &Backlog, now: SystemTime) -> Option<Duration> {
    let oldest = backlog.oldest.filter(|_| backlog.items != Some(0))?;
    // One that was added later than now, by another clock, is new.
    Some(now.duration_since(oldest).unwrap_or_default())
}
