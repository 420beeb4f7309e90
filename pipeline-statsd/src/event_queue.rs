//! Values on their way from those who record them to the thread that sends them, and what wakes
//! that thread.
#![expect(clippy::disallowed_types, reason = "a thread of its own knows no runtime's clock")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::per_event::EventSeries;

/// How many values may wait. The next one is dropped, and counted.
pub(crate) const MAX_EVENTS: usize = 10_000;

/// A bounded queue that drops the newest. Nobody who records ever waits.
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

/// One value that was recorded.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) series: Arc<EventSeries>,
    pub(crate) value: Value,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// A counter grew by this, as often as the weight says.
    Growth { by: u64, weight: u64 },
    /// A gauge is here now.
    Level(f64),
    /// A histogram was given this, as often as the weight says.
    Sample { value: f64, weight: u64 },
}

/// Why the thread goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Something was recorded.
    Event,
    /// It is time.
    Due,
    /// It is to end.
    Closed,
}

impl EventQueue {
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.state.lock();
        if state.is_closed {
            return; // nobody will send it
        }
        if state.events.len() >= MAX_EVENTS {
            state.dropped += 1;
            return;
        }
        state.events.push_back(event);
        drop(state);
        self.changed.notify_one();
    }

    /// What waits, and how many were dropped since the last call.
    pub(crate) fn take(&self) -> (VecDeque<Event>, u64) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.events), std::mem::take(&mut state.dropped))
    }

    /// Takes in nothing from now on, and ends the wait.
    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for an event, the end or this moment; forever if there is no such moment.
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
