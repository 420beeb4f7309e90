//! Measurements between two changes of the limit.

use std::time::Duration;

/// The measurements since the limit was last adjusted.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) samples: usize,
    failed: usize,
    /// The number of pieces found overdue. They are not among the samples.
    overdue: usize,
    /// The sum of the logarithms of latencies in seconds, because ratios matter. A straggler weighs
    /// little.
    sum: f64,
    /// The largest number in flight.
    pub(super) peak: usize,
}

impl Round {
    pub(super) fn add(&mut self, latency: Duration, in_flight: usize, failed: bool) {
        self.samples += 1;
        self.peak = self.peak.max(in_flight);
        if failed {
            // The latency of a failure says nothing about load.
            self.failed += 1;
        } else {
            self.sum += latency.max(Duration::from_nanos(1)).as_secs_f64().ln();
        }
    }

    /// Counts pieces of work that are still in flight and overdue.
    pub(super) fn add_overdue(&mut self, pieces: usize) {
        self.overdue += pieces;
    }

    /// The mean of the logarithms, if any work has succeeded.
    pub(super) fn latency(&self) -> Option<f64> {
        let succeeded = self.samples - self.failed;
        (succeeded > 0).then(|| self.sum / succeeded as f64)
    }

    /// The logarithm of the throughput per second: by Little's law, the number in flight divided by
    /// its latency.
    pub(super) fn done(&self, latency: f64) -> f64 {
        (self.peak.max(1) as f64).ln() - latency
    }

    /// The share that failed or is overdue.
    pub(super) fn bad(&self) -> f64 {
        (self.failed + self.overdue) as f64 / self.all()
    }

    /// How far a share may deviate upwards by chance.
    pub(super) fn chance(&self, share: f64) -> f64 {
        2.0 * (share * (1.0 - share) / self.all()).sqrt()
    }

    fn all(&self) -> f64 {
        (self.samples + self.overdue).max(1) as f64
    }
}
