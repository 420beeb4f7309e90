//! The time that callbacks take, by outcome.

use std::{cell::Cell, time::Duration};

use metrics::Histogram;
use pipeline_core::Telemetry;
use tokio::time::Instant;

use super::write_time::is_timed;

/// The outcome of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    Well,
    /// It refused, or stopped for a reason that is not graceful.
    Badly,
    Crashed,
}

/// Histograms of a callback's time, by outcome.
pub(crate) struct Times([Histogram; 3]);

impl Went {
    const ALL: [Self; 3] = [Self::Well, Self::Badly, Self::Crashed];

    /// The value of the tag `status`, the same as for the counters.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Well => "success",
            Self::Badly => "fail",
            Self::Crashed => "crash",
        }
    }
}

impl Times {
    pub(super) fn register(
        telemetry: &Telemetry,
        name: &'static str,
        description: &'static str,
        (kind, of): (&'static str, &str),
    ) -> Self {
        Self(Went::ALL.map(|went| {
            let labels = [("status", went.status().to_owned()), (kind, of.to_owned())];
            telemetry.milliseconds(name, description, labels)
        }))
    }

    pub(crate) fn record(&self, went: Went, took: Duration) {
        self.0[went as usize].record(took.as_secs_f64() * 1e3);
    }
}

/// One event in sixteen is timed, like [writes](super::write_time). Returns the start time, if this
/// one is.
pub(crate) fn begin_event() -> Option<Instant> {
    thread_local! {
        static EVENTS: Cell<u32> = const { Cell::new(0) };
    }
    let number = EVENTS.replace(EVENTS.get().wrapping_add(1));
    is_timed(number).then(Instant::now)
}
