//! The time units of histograms.

use std::collections::HashMap;

use metrics::{KeyName, Unit};
use parking_lot::RwLock;

use crate::line::SampleKind;

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
