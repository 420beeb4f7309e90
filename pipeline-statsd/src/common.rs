//! Configuration that all series share, in both stores.

use std::sync::Arc;

use std::time::Duration;

use metrics::{KeyName, Unit};

use crate::name::{self, Naming};
use crate::sample_rate::SampleRates;
use crate::table::{Room, Table};
use crate::time_unit::TimeUnits;

/// Configuration that all series of a recorder share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) naming: Naming,
    pub(crate) limits: Limits,
    pub(crate) room: Arc<Room>,
    pub(crate) rates: SampleRates,
    /// Maximum size of a line with several samples, in bytes. None if each sample has a line of its own.
    pub(crate) packed: Option<usize>,
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

impl Common {
    pub(crate) fn new(naming: Naming, limits: Limits, rates: SampleRates) -> Self {
        let room = Arc::new(Room::new(limits.max_series, limits.max_series_per_name));
        let time_units = TimeUnits::new(limits.max_series);
        Self { naming, limits, room, rates, packed: None, time_units }
    }

    /// Puts several samples of a histogram into a line of at most `bytes`.
    pub(crate) fn packed(mut self, bytes: usize) -> Self {
        self.packed = Some(bytes);
        self
    }

    /// A table for series of one kind. All tables share the limits.
    pub(crate) fn table<S>(&self) -> Table<S> {
        Table::new(Arc::clone(&self.room))
    }

    pub(crate) fn describe_histogram(&self, name: KeyName, unit: Unit) {
        let is_long = name.as_str().len() > name::MAX_TEXT;
        let name = if is_long { name::cut(name.as_str()).into() } else { name };
        self.time_units.describe(name, unit);
    }
}
