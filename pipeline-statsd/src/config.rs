//! Options that all series of a recorder share: names, limits, sample rates and time units.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::{KeyName, Unit};
use parking_lot::RwLock;

use crate::{
    line::SampleKind,
    name::{self, Naming},
    table::{SeriesLimit, Table},
};

/// Configuration that all series of a recorder share.
#[derive(Debug)]
pub(crate) struct SharedConfig {
    pub(crate) naming: Naming,
    pub(crate) limits: Limits,
    pub(crate) limit: Arc<SeriesLimit>,
    pub(crate) rates: SampleRates,
    /// Maximum size of a line with several samples, in bytes. None if each sample has a line of its own.
    pub(crate) packed: Option<usize>,
    /// Whether a flush sends every gauge, and not only those that were changed.
    pub(crate) repeats_gauges: bool,
    /// Looked up at each flush, so that a description applies whether it comes before or after the first
    /// handle.
    pub(crate) time_units: TimeUnits,
}

/// Limits of a recorder's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Maximum number of series, of all kinds together.
    pub(crate) max_series: usize,
    /// Maximum number of series of one name, over all labels.
    pub(crate) max_series_per_name: usize,
    /// Maximum number of values of a histogram between two flushes.
    pub(crate) histogram_samples: usize,
    /// The time after which an unused series without a handle is removed.
    pub(crate) idle_after: Duration,
}

impl SharedConfig {
    pub(crate) fn new(naming: Naming, limits: Limits, rates: SampleRates) -> Self {
        let limit = Arc::new(SeriesLimit::new(limits.max_series, limits.max_series_per_name));
        let time_units = TimeUnits::new(limits.max_series);
        Self { naming, limits, limit, rates, packed: None, repeats_gauges: true, time_units }
    }

    /// Puts several samples of a histogram into a line of at most `bytes`.
    pub(crate) fn packed(mut self, bytes: usize) -> Self {
        self.packed = Some(bytes);
        self
    }

    /// A table for series of one kind. All tables share the limits.
    pub(crate) fn table<S>(&self) -> Table<S> {
        Table::new(Arc::clone(&self.limit))
    }

    pub(crate) fn describe_histogram(&self, name: KeyName, unit: Unit) {
        let is_long = name.as_str().len() > name::MAX_TEXT;
        let name = if is_long { name::cut(name.as_str()).into() } else { name };
        self.time_units.describe(name, unit);
    }
}

/// Sample rates by name. A rate is stored as the whole number N of one in N, because receivers convert
/// it so.
#[derive(Clone, Debug)]
pub(crate) struct SampleRates {
    general: u64,
    by_name: HashMap<String, u64>,
}

impl SampleRates {
    /// None if a rate is not above 0 and at most 1.
    pub(crate) fn new(general: f64, by_name: &[(String, f64)]) -> Option<Self> {
        let by_name = by_name.iter().map(|(name, rate)| Some((name.clone(), one_in(*rate)?)));
        Some(Self { general: one_in(general)?, by_name: by_name.collect::<Option<_>>()? })
    }

    /// N, where one in N values of this name is sent.
    pub(crate) fn one_in(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(self.general)
    }
}

/// The lowest rate from which receivers can compute an exact count.
const MIN_RATE: f64 = 1e-9;

fn one_in(rate: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 1 and a thousand million"
    )]
    let one_in = |rate: f64| rate.max(MIN_RATE).recip().round() as u64;
    (rate > 0.0 && rate <= 1.0).then(|| one_in(rate))
}

/// Histograms that were described with a time unit.
#[derive(Debug)]
pub(crate) struct TimeUnits {
    units: RwLock<HashMap<KeyName, TimeUnit>>,
    max: usize,
}

impl TimeUnits {
    /// For at most `max` names, the maximum number of series.
    pub(crate) fn new(max: usize) -> Self {
        Self { units: RwLock::default(), max }
    }

    pub(crate) fn describe(&self, name: KeyName, unit: Unit) {
        let mut units = self.units.write();
        match TimeUnit::of(unit) {
            Some(unit) if units.len() < self.max => {
                units.insert(name, unit);
            }
            Some(unit) => {
                units.entry(name).and_modify(|known| *known = unit);
            }
            None => {
                units.remove(&name);
            }
        }
    }

    /// None if the histogram does not measure time.
    pub(crate) fn of(&self, name: &str) -> Option<TimeUnit> {
        self.units.read().get(name).copied()
    }
}

/// The unit of a histogram of times.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TimeUnit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl TimeUnit {
    fn of(unit: Unit) -> Option<Self> {
        match unit {
            Unit::Seconds => Some(Self::Seconds),
            Unit::Milliseconds => Some(Self::Milliseconds),
            Unit::Microseconds => Some(Self::Microseconds),
            Unit::Nanoseconds => Some(Self::Nanoseconds),
            _ => None,
        }
    }

    /// The kind of a sample, and its value as it is sent.
    pub(crate) fn sent(unit: Option<Self>, value: f64) -> (SampleKind, f64) {
        (Self::kind(unit), unit.map_or(value, |unit| unit.to_millis(value)))
    }

    /// The kind of a histogram's samples.
    pub(crate) fn kind(unit: Option<Self>) -> SampleKind {
        if unit.is_some() { SampleKind::Timing } else { SampleKind::Plain }
    }

    fn to_millis(self, value: f64) -> f64 {
        match self {
            Self::Seconds => value * 1e3,
            Self::Milliseconds => value,
            Self::Microseconds => value / 1e3,
            Self::Nanoseconds => value / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_one_divided_by_a_whole_number() {
        let table = [(1.0, 1), (0.7, 1), (0.5, 2), (0.3, 3), (0.1, 10), (1e-9, 1_000_000_000)];
        for (rate, whole) in table {
            assert_eq!(one_in(rate), Some(whole), "{rate}");
        }
        assert_eq!(one_in(f64::MIN_POSITIVE), Some(1_000_000_000));
        for rate in [0.0, -0.5, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(one_in(rate), None, "{rate}");
        }
    }

    #[test]
    fn a_name_can_have_its_own_rate() {
        let rates = SampleRates::new(0.5, &[("a".into(), 0.1), ("b".into(), 1.0)]).unwrap();
        assert_eq!(["a", "b", "c"].map(|name| rates.one_in(name)), [10, 1, 2]);
        assert!(SampleRates::new(0.5, &[("a".into(), 2.0)]).is_none());
    }
}
