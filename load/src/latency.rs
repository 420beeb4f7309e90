//! Percentiles of delivery times. Pure.

/// Sorted times in microseconds.
#[derive(Debug)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    /// The percentiles of these times.
    #[must_use]
    pub fn new(mut micros: Vec<u64>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }

    /// The percentile in milliseconds, given in thousandths.
    #[must_use]
    pub fn at(&self, permille: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * permille / 1000).map_or(f64::NAN, |micros| *micros as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_read_from_sorted_times() {
        let latencies = Latencies::new((0..=100).rev().map(|n| n * 1000).collect());
        assert_eq!(
            [0, 500, 990, 1000].map(|permille| latencies.at(permille)),
            [0.0, 50.0, 99.0, 100.0]
        );
        assert!(Latencies::new(Vec::new()).at(500).is_nan());
    }
}
