//! The queue of values from recording threads to the flush thread, which it also wakes.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::per_event::EventSeries;

/// Capacity of the queue. Further values are dropped and counted.
pub(crate) const MAX_EVENTS: usize = 10_000;

/// A bounded queue that drops the newest value. Pushing never blocks.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    dropped: u64,
    is_closed: bool,
}

/// One recorded value.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) series: Arc<EventSeries>,
    pub(crate) value: Value,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// An increment of a counter, recorded `weight` times.
    Growth { by: u64, weight: u64 },
    /// The new value of a gauge.
    Level(f64),
    /// A sample of a histogram, recorded `weight` times.
    Sample { value: f64, weight: u64 },
}

/// Why the thread woke up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// A value was recorded.
    Event,
    /// The time is over.
    Due,
    /// The queue was closed.
    Closed,
}

impl EventQueue {
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.state.lock();
        if state.is_closed {
            return; // the flush thread has ended
        }
        if state.events.len() >= MAX_EVENTS {
            state.dropped += 1;
            return;
        }
        state.events.push_back(event);
        drop(state);
        self.changed.notify_one();
    }

    /// The queued values, and the number of values dropped since the last call.
    pub(crate) fn take(&self) -> (VecDeque<Event>, u64) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.events), std::mem::take(&mut state.dropped))
    }

    /// Drops further values, and ends the wait.
    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for a value, the close of the queue, or this instant; without an instant, for ever.
    pub(crate) fn wait(&self, until: Option<Instant>) -> Woken {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return Woken::Closed;
            }
            if !state.events.is_empty() {
                return Woken::Event;
            }
            match until {
                Some(until) if self.changed.wait_until(&mut state, until).timed_out() => {
                    return Woken::Due;
                }
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
    }
}
