//! The time that callbacks and writes take.

use std::{cell::Cell, time::Duration};

use metrics::Histogram;
use pipeline_core::telemetry::{Telemetry, milliseconds};
use tokio::time::Instant;

/// The outcome of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// The callback refused, or stopped for a reason that is not graceful.
    Rejected,
    Panicked,
}

/// Histograms of a callback's time, by outcome.
pub(crate) struct CallbackTimes([Histogram; 3]);

impl Outcome {
    const ALL: [Self; 3] = [Self::Ok, Self::Rejected, Self::Panicked];

    /// The value of the tag `status`, the same as for the counters.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Ok => "success",
            Self::Rejected => "fail",
            Self::Panicked => "crash",
        }
    }
}

impl CallbackTimes {
    pub(super) fn register(
        telemetry: &Telemetry,
        name: &'static str,
        description: &'static str,
        (kind, of): (&'static str, &str),
    ) -> Self {
        Self(Outcome::ALL.map(|outcome| {
            let labels = [("status", outcome.status().to_owned()), (kind, of.to_owned())];
            telemetry.timer(name, description, labels)
        }))
    }

    pub(crate) fn record(&self, outcome: Outcome, took: Duration) {
        self.0[outcome as usize].record(milliseconds(took));
    }
}

/// One event in sixteen is timed, like [writes](WriteTime). Returns the start time, if this
/// one is.
pub(crate) fn begin_event() -> Option<Instant> {
    thread_local! {
        static EVENTS: Cell<u32> = const { Cell::new(0) };
    }
    let number = EVENTS.replace(EVENTS.get().wrapping_add(1));
    is_timed(number).then(Instant::now)
}

/// One in this number of a thread's writes is timed: reading the clock before each would cost one
/// per cent of a small write.
const ONE_IN: u32 = 16;

/// A histogram of the time that the system takes for a write.
pub(crate) struct WriteTime(Histogram);

impl WriteTime {
    /// Called when a write begins. Returns the start time, if it is timed.
    pub(crate) fn begin(&self) -> Option<Instant> {
        thread_local! {
            static WRITES: Cell<u32> = const { Cell::new(0) };
        }
        let number = WRITES.replace(WRITES.get().wrapping_add(1));
        is_timed(number).then(Instant::now)
    }

    /// Records a write that has ended.
    pub(crate) fn end(&self, begun: Option<Instant>, now: Instant) {
        if let Some(begun) = begun {
            self.0.record(milliseconds(now.saturating_duration_since(begun)));
        }
    }
}

impl From<Histogram> for WriteTime {
    fn from(histogram: Histogram) -> Self {
        Self(histogram)
    }
}

/// Whether the write of this number is timed.
///
/// Not every sixteenth: for sixteen sockets in turn, that would always be the same one. Multiples
/// of the golden ratio are distributed evenly, for any step.
pub(super) fn is_timed(number: u32) -> bool {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    number.wrapping_mul(GOLDEN_RATIO) < u32::MAX / ONE_IN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_in_sixteen_is_timed_evenly_over_all_sockets() {
        assert!(is_timed(0), "the first is timed, so that there is always a sample");
        for sockets in [1, 2, 3, 16, 17, 100] {
            for socket in 0..sockets {
                let writes = (0..16_000).map(|round| socket + round * sockets);
                let timed = writes.filter(|number| is_timed(*number)).count();
                assert!((900..1100).contains(&timed), "{timed} of socket {socket} of {sockets}");
            }
        }
    }
}
