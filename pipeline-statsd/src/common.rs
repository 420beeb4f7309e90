//! What series are made and sent with, whether values are added up or sent each by itself.

use std::sync::Arc;

use metrics::{KeyName, Unit};

use crate::name::Naming;
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
    /// Looked up at each flush, so that a description counts whether it comes before or after the
    /// first handle.
    pub(crate) time_units: TimeUnits,
}

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Series of all kinds together.
    pub(crate) max_series: usize,
    /// Values of a histogram between two flushes.
    pub(crate) histogram_samples: usize,
    /// Flushes after which a series leaves that nobody holds or records into.
    pub(crate) idle_after: u32,
}

impl Common {
    pub(crate) fn new(naming: Naming, limits: Limits, rates: SampleRates) -> Self {
        let room = Arc::new(Room::new(limits.max_series));
        let time_units = TimeUnits::new(limits.max_series);
        Self { naming, limits, room, rates, time_units }
    }

    /// For series of one kind. All tables share the room.
    pub(crate) fn table<S>(&self) -> Table<S> {
        Table::new(Arc::clone(&self.room))
    }

    pub(crate) fn describe_histogram(&self, name: KeyName, unit: Unit) {
        self.time_units.describe(name, unit);
    }
}
