//! The store of recorded values: aggregated, or one line per value.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key};

use crate::aggregate::Aggregate;
use crate::common::Common;
use crate::name::within_bounds;
use crate::per_event::PerEvent;

/// The two stores. Handles and flushes branch on it; recording a value does not.
#[derive(Debug)]
pub(crate) enum Store {
    Aggregate(Aggregate),
    PerEvent(PerEvent),
}

/// The reason of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A value was recorded.
    Event,
    /// The interval is over, or a flush was requested.
    Due,
}

/// The values without a line after a drain.
#[derive(Debug)]
pub(crate) struct Drained {
    pub(crate) samples_skipped: u64,
    pub(crate) events_dropped: u64,
}

impl Store {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Aggregate(aggregate) => aggregate.common(),
            Self::PerEvent(per_event) => per_event.common(),
        }
    }

    // A refused series has a handle without effect. Names and labels are truncated before they are
    // stored.

    pub(crate) fn counter(&self, key: &Key) -> Counter {
        let key = &*within_bounds(key);
        match self {
            Self::Aggregate(store) => store.counter(key).map(Counter::from_arc),
            Self::PerEvent(store) => store.counter(key).map(Counter::from_arc),
        }
        .unwrap_or(Counter::noop())
    }

    pub(crate) fn gauge(&self, key: &Key) -> Gauge {
        let key = &*within_bounds(key);
        match self {
            Self::Aggregate(store) => store.gauge(key).map(Gauge::from_arc),
            Self::PerEvent(store) => store.gauge(key).map(Gauge::from_arc),
        }
        .unwrap_or(Gauge::noop())
    }

    pub(crate) fn histogram(&self, key: &Key) -> Histogram {
        let key = &*within_bounds(key);
        match self {
            Self::Aggregate(store) => store.histogram(key).map(Histogram::from_arc),
            Self::PerEvent(store) => store.histogram(key).map(Histogram::from_arc),
        }
        .unwrap_or(Histogram::noop())
    }

    /// Writes pending values into `line`, passes it to `emit`, and removes idle series when due. `now`
    /// is the time since the recorder was created.
    pub(crate) fn drain(
        &self,
        occasion: Occasion,
        now: Duration,
        line: &mut String,
        emit: impl FnMut(&str),
    ) -> Drained {
        match self {
            Self::Aggregate(aggregate) => {
                let samples_skipped = aggregate.drain(now, line, emit);
                Drained { samples_skipped, events_dropped: 0 }
            }
            Self::PerEvent(per_event) => {
                let (samples_skipped, events_dropped) = per_event.drain(line, emit);
                if occasion == Occasion::Due {
                    per_event.sweep(now);
                }
                Drained { samples_skipped, events_dropped }
            }
        }
    }
}
