//! What is seen between two changes of the limit.

use std::time::Duration;

/// What was seen since the last conclusion.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) samples: usize,
    failed: usize,
    /// Pieces that were found to take much too long. They are not among the samples.
    overdue: usize,
    /// Of the logarithms of latencies in seconds: what counts is how many times as long. A straggler
    /// weighs little.
    sum: f64,
    /// The most that were in flight.
    pub(super) peak: usize,
}

impl Round {
    pub(super) fn add(&mut self, latency: Duration, in_flight: usize, failed: bool) {
        self.samples += 1;
        self.peak = self.peak.max(in_flight);
        if failed {
            // How long a failure takes says nothing about load.
            self.failed += 1;
        } else {
            self.sum += latency.max(Duration::from_nanos(1)).as_secs_f64().ln();
        }
    }

    /// So many pieces of work are still in flight and take much too long.
    pub(super) fn add_overdue(&mut self, pieces: usize) {
        self.overdue += pieces;
    }

    /// The mean of the logarithms, if anything has succeeded.
    pub(super) fn latency(&self) -> Option<f64> {
        let succeeded = self.samples - self.failed;
        (succeeded > 0).then(|| self.sum / succeeded as f64)
    }

    /// The logarithm of what was done per second. By Little's law, that is what was in flight over
    /// its latency.
    pub(super) fn done(&self, latency: f64) -> f64 {
        (self.peak.max(1) as f64).ln() - latency
    }

    /// The share that failed, or takes much too long.
    pub(super) fn bad(&self) -> f64 {
        (self.failed + self.overdue) as f64 / self.all()
    }

    /// How much a share of so much may be more by chance.
    pub(super) fn chance(&self, share: f64) -> f64 {
        2.0 * (share * (1.0 - share) / self.all()).sqrt()
    }

    fn all(&self) -> f64 {
        (self.samples + self.overdue).max(1) as f64
    }
}
