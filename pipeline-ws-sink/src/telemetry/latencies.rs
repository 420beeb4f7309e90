//! A histogram of durations. Pure.

use std::{fmt, time::Duration};

use pipeline_core::telemetry::milliseconds;

/// The number of buckets for each doubling of the time, as a power of two.
const PRECISION: u32 = 5;

/// The bits of an `f64` below those that select the bucket.
const BELOW: u32 = f64::MANTISSA_DIGITS - 1 - PRECISION;

/// The lower bound of the second bucket: about a microsecond. The first bucket has all shorter
/// times.
const SMALLEST: f64 = 1.0 / 1024.0;

/// Covers a little more than an hour; the last bucket has all longer times.
const DOUBLINGS: usize = 32;

/// The number of buckets.
pub(crate) const BUCKETS: usize = DOUBLINGS << PRECISION;

/// A histogram of durations.
///
/// Times are counted in buckets, 32 for each doubling, so its results are within 1.6 % of a
/// measured time, between a microsecond and an hour. It takes eight kilobytes at most, for any
/// number of samples.
///
/// It is cumulative. The samples between two snapshots are the later one [since](Self::since) the
/// earlier.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::endpoint::Latencies;
///
/// let earlier: Latencies = (1..=100).map(Duration::from_millis).collect();
/// let mut later = earlier.clone();
/// later.extend([Duration::from_secs(3)]);
///
/// assert_eq!((earlier.count(), later.count()), (100, 101));
/// let median = earlier.quantile(0.5).expect("there are samples");
/// assert!(median.abs_diff(Duration::from_millis(50)) < Duration::from_millis(1));
/// let newest = later.since(&earlier);
/// assert_eq!((newest.count(), newest.quantile(0.5)), (1, later.max()));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Without the empty buckets at the end.
    buckets: Vec<u64>,
    count: u64,
}

impl Latencies {
    /// The number of samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time that this part of the samples did not exceed: the median for 0.5, the 99th
    /// percentile for 0.99. `None` without samples.
    ///
    /// A value below 0 counts as 0, the shortest time; above 1 as 1, the longest.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let mut left = (part.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0);
        for (bucket, &count) in self.buckets.iter().enumerate() {
            left -= count as f64;
            if left <= 0.0 {
                return Some(middle(bucket));
            }
        }
        // Reached only with more samples than an `f64` can count exactly.
        self.max()
    }

    /// The longest time. `None` without samples.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        Some(middle(self.buckets.len().checked_sub(1)?))
    }

    /// The samples that are not in an earlier snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().chain(std::iter::repeat(&0));
        let counts = self.buckets.iter().zip(before);
        Self::of_buckets(counts.map(|(now, before)| now.saturating_sub(*before)))
    }

    /// Adds the samples of another histogram.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.count += other.count;
    }

    /// From the counts of the buckets, from the first on.
    pub(crate) fn of_buckets(counts: impl Iterator<Item = u64>) -> Self {
        let mut buckets: Vec<u64> = counts.collect();
        let used = buckets.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        buckets.truncate(used);
        let count = buckets.iter().sum();
        Self { buckets, count }
    }
}

impl Extend<Duration> for Latencies {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, samples: T) {
        for sample in samples {
            let bucket = bucket(milliseconds(sample));
            if self.buckets.len() <= bucket {
                self.buckets.resize(bucket + 1, 0);
            }
            self.buckets[bucket] += 1;
            self.count += 1;
        }
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<T: IntoIterator<Item = Duration>>(samples: T) -> Self {
        let mut latencies = Self::default();
        latencies.extend(samples);
        latencies
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

/// The bucket of a time in milliseconds.
///
/// The bits of a positive `f64` grow with it, and the upper ones are its exponent and the first
/// digits of its mantissa: they number the buckets directly.
pub(crate) fn bucket(milliseconds: f64) -> usize {
    let beyond = (milliseconds.to_bits() >> BELOW).saturating_sub(SMALLEST.to_bits() >> BELOW);
    usize::try_from(beyond).map_or(BUCKETS - 1, |beyond| beyond.min(BUCKETS - 1))
}

/// The middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let edge =
        |bucket: usize| f64::from_bits(((SMALLEST.to_bits() >> BELOW) + bucket as u64) << BELOW);
    Duration::from_secs_f64((edge(bucket) + edge(bucket + 1)) / 2e3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn off_by(reported: Duration, real: Duration) -> f64 {
        reported.abs_diff(real).as_secs_f64() / real.as_secs_f64()
    }

    #[test]
    fn quantiles_are_those_of_the_samples_within_the_stated_error() {
        let latencies: Latencies = (1..=1000).map(Duration::from_micros).collect();
        for (part, micros) in
            [(0.0, 1), (0.001, 1), (0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)]
        {
            let reported = latencies.quantile(part).unwrap();
            // A sample stands in the middle of its bucket, and the next one may share it.
            assert!(
                off_by(reported, Duration::from_micros(micros)) < 1.0 / 32.0,
                "{part}: {reported:?}"
            );
        }
        assert_eq!(latencies.max(), latencies.quantile(1.0));
        assert_eq!(latencies.quantile(-1.0), latencies.quantile(0.0));
        assert_eq!(latencies.quantile(7.0), latencies.max());
        assert_eq!((Latencies::default().quantile(0.5), Latencies::default().max()), (None, None));
    }

    #[test]
    fn times_out_of_range_count_in_the_outermost_buckets() {
        let times =
            [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 40), Duration::MAX];
        let latencies: Latencies = times.into_iter().collect();
        assert_eq!(latencies.count(), 4);
        assert_eq!(latencies.quantile(0.5), latencies.quantile(0.0));
        assert!(latencies.quantile(0.5).unwrap() < Duration::from_micros(2));
        assert!(latencies.max().unwrap() > Duration::from_secs(3600));
        assert_eq!(latencies.buckets.len(), BUCKETS);
    }

    proptest! {
        #[test]
        fn a_sample_is_read_within_a_sixty_fourth(nanos in 1_000u64..3_600_000_000_000) {
            let real = Duration::from_nanos(nanos);
            let latencies: Latencies = [real].into_iter().collect();
            prop_assert!(off_by(latencies.max().unwrap(), real) <= 1.0 / 64.0);
        }

        #[test]
        fn samples_since_a_snapshot_are_those_added(
            earlier in prop::collection::vec(0u64..10_000_000_000, 0..30),
            later in prop::collection::vec(0u64..10_000_000_000, 0..30),
        ) {
            let of = |nanos: &[u64]| nanos.iter().copied().map(Duration::from_nanos).collect::<Latencies>();
            let (earlier, later) = (of(&earlier), of(&later));
            let mut both = earlier.clone();
            both.merge(&later);
            prop_assert_eq!(both.count(), earlier.count() + later.count());
            prop_assert_eq!(&both.since(&earlier), &later);
            prop_assert_eq!(both.since(&both), Latencies::default());
        }
    }
}
