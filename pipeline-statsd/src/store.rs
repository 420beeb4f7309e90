//! Where values go when they are recorded: added up, or each by itself.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key};

use crate::aggregate::Aggregate;
use crate::common::Common;
use crate::name::within_bounds;
use crate::per_event::PerEvent;

/// One of the two. Which one is asked when a handle is made, and by flushes, and not when a value
/// is recorded.
#[derive(Debug)]
pub(crate) enum Store {
    Aggregate(Aggregate),
    PerEvent(PerEvent),
}

/// Why there is a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Something was recorded.
    Event,
    /// It is time, or somebody asked for it.
    Due,
}

/// What came of values that there is no line for.
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

    // A series that there is no room for records nowhere. A name or a label that is too long is cut
    // before anything keeps it.

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

    /// Hands what there is to say to `emit`, in `line`, and lets idle series go when it is due. `now` is
    /// how long ago the recorder began.
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
