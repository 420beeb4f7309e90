//! What series are made and sent with, whether values are added up or sent each by itself.

use std::sync::Arc;

use std::time::Duration;

use metrics::{KeyName, Unit};

use crate::name::{self, Naming};
use crate::sample_rate::SampleRates;
use crate::table::{Room, Table};
use crate::time_unit::TimeUnits;

/// What all series of a recorder have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) naming: Naming,
    pub(crate) limits: Limits,
    pub(crate) room: Arc<Room>,
    pub(crate) rates: SampleRates,
    /// How many bytes a line of several samples may have. Nothing if each has a line of its own.
    pub(crate) packed: Option<usize>,
    /// Looked up at each flush, so that a description counts whether it comes before or after the
    /// first handle.
    pub(crate) time_units: TimeUnits,
}

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Series of all kinds together.
    pub(crate) max_series: usize,
    /// Those of one name, whatever their labels.
    pub(crate) max_series_per_name: usize,
    /// Values of a histogram between two flushes.
    pub(crate) histogram_samples: usize,
    /// How long a series stays that has no handle and is not recorded into.
    pub(crate) idle_after: Duration,
}

impl Common {
    pub(crate) fn new(naming: Naming, limits: Limits, rates: SampleRates) -> Self {
        let room = Arc::new(Room::new(limits.max_series, limits.max_series_per_name));
        let time_units = TimeUnits::new(limits.max_series);
        Self { naming, limits, room, rates, packed: None, time_units }
    }

    /// Several samples of a histogram share a line of at most so many bytes.
    pub(crate) fn packed(mut self, bytes: usize) -> Self {
        self.packed = Some(bytes);
        self
    }

    /// For series of one kind. All tables share the room.
    pub(crate) fn table<S>(&self) -> Table<S> {
        Table::new(Arc::clone(&self.room))
    }

    pub(crate) fn describe_histogram(&self, name: KeyName, unit: Unit) {
        let is_long = name.as_str().len() > name::MAX_TEXT;
        let name = if is_long { name::cut(name.as_str()).into() } else { name };
        self.time_units.describe(name, unit);
    }
}
