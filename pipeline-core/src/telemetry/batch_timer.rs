//! Sampled timing of a stage's batches.

use std::time::Duration;

use metrics::Histogram;
use tokio::time::Instant;

use super::{StageLabels, Telemetry};

/// A batch that takes less is short: reading the clock twice would be a large part of it.
const SHORT: Duration = Duration::from_micros(20);

/// How many batches are not timed after a short one.
const SKIP: usize = 15;

/// Times batches: all of them while they are long, and one in 16 while they are short, which then
/// counts for the untimed ones as well.
#[derive(Debug)]
pub(crate) struct BatchTimer {
    time: Histogram,
    /// How many batches have not been timed since the last timed one.
    untimed: usize,
    /// How many are to be skipped.
    skip: usize,
}

impl BatchTimer {
    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let time = telemetry.timer(
            "pipeline.stage.handle_time",
            "How long a stage took for a batch of events, or for a demand",
            labels.clone(),
        );
        Self { time, untimed: 0, skip: 0 }
    }

    /// A timer that times nothing.
    pub(crate) fn none() -> Self {
        Self { time: Histogram::noop(), untimed: 0, skip: usize::MAX }
    }

    /// Begins a batch. The result has to be passed to [`end`](Self::end).
    #[inline]
    pub(crate) fn begin(&mut self) -> Option<Instant> {
        if self.untimed < self.skip {
            self.untimed += 1;
            return None;
        }
        Some(Instant::now())
    }

    /// Ends a batch.
    #[inline]
    pub(crate) fn end(&mut self, begun: Option<Instant>) {
        if let Some(begun) = begun {
            self.record(begun.elapsed());
        }
    }

    fn record(&mut self, took: Duration) {
        self.time.record_many(took.as_secs_f64() * 1e3, 1 + self.untimed);
        self.untimed = 0;
        self.skip = if took < SHORT { SKIP } else { 0 };
    }
}
