//! The timers of a stage: the messages that it is to receive later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::message::{CallError, UserMessage};
use crate::deadline::Deadline;

/// How many timers a stage may have. An event may set one, so many events would set many.
const MAX_TIMERS: usize = 1024;

/// The shortest time between two messages of an interval, which is the resolution of tokio's clock.
const SHORTEST: Duration = Duration::from_millis(1);

/// A message to a stage of type `S`, which emits events of type `E`.
pub(crate) type BoxedMessage<S, E> = Box<dyn UserMessage<S, E>>;

/// What a timer sends.
pub(crate) enum Timed<S, E> {
    Once(BoxedMessage<S, E>),
    /// A copy of a message in every period.
    Every(Duration, Box<dyn Fn() -> BoxedMessage<S, E> + Send>),
}

/// The timers of one incarnation of a stage. They end with it.
pub(crate) struct Timers<S, E> {
    state: Mutex<State<S, E>>,
    /// The number of timers that are set. A stage without timers takes no lock.
    set: AtomicUsize,
}

struct State<S, E> {
    /// The timers by their number. That of an interval whose message is being made has none to send.
    timers: BTreeMap<u64, (Deadline, Option<Timed<S, E>>)>,
    /// The same, the one that is due first in front. Those that are due at the same time are in the order in
    /// which they were set.
    due: BTreeSet<(Deadline, u64)>,
    next: u64,
    /// Whether the stage is to look at its timers again, and has a message about that in its mailbox.
    notified: bool,
    ended: bool,
}

impl<S, E> Timers<S, E> {
    pub(crate) fn new() -> Self {
        let (timers, due) = (BTreeMap::new(), BTreeSet::new());
        let state = State { timers, due, next: 0, notified: false, ended: false };
        Self { state: Mutex::new(state), set: AtomicUsize::new(0) }
    }

    /// Sets a timer, and returns its number.
    pub(crate) fn set(&self, after: Duration, timed: Timed<S, E>) -> Result<u64, CallError> {
        // What is refused is dropped after the lock is released: its `drop` is the program's.
        let mut refused = None;
        let mut state = self.state.lock();
        let set = if state.ended {
            refused = Some(timed);
            Err(CallError::NotRunning)
        } else if state.timers.len() >= MAX_TIMERS {
            refused = Some(timed);
            Err(CallError::Full)
        } else {
            let (at, id) = (Deadline::from_now(after), state.next);
            state.next += 1;
            state.timers.insert(id, (at, Some(timed)));
            state.due.insert((at, id));
            self.set.store(state.timers.len(), Relaxed);
            Ok(id)
        };
        drop(state);
        drop(refused);
        set
    }

    /// Whether the stage needs a message, so that it looks at its timers again.
    pub(crate) fn must_notify(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().notified, true)
    }

    /// The stage has received that message.
    pub(crate) fn notified(&self) {
        self.state.lock().notified = false;
    }

    #[inline]
    pub(crate) fn are_set(&self) -> bool {
        // A timer of another task is set before the message about it is sent.
        self.set.load(Relaxed) > 0
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        if !self.are_set() {
            return None;
        }
        self.state.lock().due.first().and_then(|(at, _)| at.instant())
    }

    /// Whether the next timer is due.
    pub(crate) fn are_due(&self) -> bool {
        self.next().is_some_and(|at| at <= Instant::now())
    }

    /// The message of a timer that is due. That of an interval is set again, at the next of its times that is
    /// not over.
    pub(crate) fn take_due(&self, now: Instant) -> Option<BoxedMessage<S, E>> {
        if !self.are_set() {
            return None;
        }
        let mut state = self.state.lock();
        let (at, id) = *state.due.first()?;
        if !at.has_passed(now) {
            return None;
        }
        state.due.remove(&(at, id));
        let timed = match state.timers.get_mut(&id)?.1.take()? {
            Timed::Once(message) => {
                state.timers.remove(&id);
                self.set.store(state.timers.len(), Relaxed);
                return Some(message);
            }
            timed @ Timed::Every(..) => timed,
        };
        drop(state);
        let Timed::Every(period, message) = &timed else { return None };
        // The program's `clone` runs without the lock.
        let (next, message) = (next_time(at, *period, now), message());
        let mut state = self.state.lock();
        if let Some(timer) = state.timers.get_mut(&id) {
            *timer = (next, Some(timed));
            state.due.insert((next, id));
        } else {
            // It was cancelled meanwhile.
            drop(state);
            drop(timed);
        }
        Some(message)
    }

    /// Removes all timers, and refuses others.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.due.clear();
        let timers = std::mem::take(&mut state.timers);
        self.set.store(0, Relaxed);
        drop(state);
        drop(timers);
    }
}

/// The first time of an interval after `now`. Times that are over are left out.
fn next_time(at: Deadline, period: Duration, now: Instant) -> Deadline {
    let period = period.max(SHORTEST);
    let late = at.instant().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
    let since = u64::try_from(late.as_nanos() % period.as_nanos()).unwrap_or(u64::MAX);
    Deadline::after(now, period.saturating_sub(Duration::from_nanos(since)))
}

/// Removes timers of a stage of any type.
trait Cancel: Send + Sync {
    /// Whether the timer was there.
    fn cancel(&self, id: u64) -> bool;
}

impl<S: 'static, E: 'static> Cancel for Timers<S, E> {
    fn cancel(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        let Some((at, timed)) = state.timers.remove(&id) else { return false };
        state.due.remove(&(at, id));
        self.set.store(state.timers.len(), Relaxed);
        drop(state);
        drop(timed);
        true
    }
}

/// A timer of a stage, which [`StageContext::send_after`](crate::stage::StageContext::send_after) or
/// [`send_interval`](crate::stage::StageContext::send_interval) has set. Dropping it leaves the timer set.
#[derive(Clone)]
pub struct StageTimer {
    timers: Weak<dyn Cancel>,
    id: u64,
}

impl StageTimer {
    pub(crate) fn new<S: 'static, E: 'static>(timers: Weak<Timers<S, E>>, id: u64) -> Self {
        Self { timers, id }
    }

    /// Cancels the timer. Returns whether it was set: not if its message was handled or is being handled,
    /// if it was cancelled before, or if the stage has ended. An interval stays set until it is cancelled, also
    /// while its message is handled.
    ///
    /// After this, the stage receives no more messages of the timer, even if one was due.
    #[expect(clippy::must_use_candidate, reason = "most callers only want it gone")]
    pub fn cancel(&self) -> bool {
        self.timers.upgrade().is_some_and(|timers| timers.cancel(self.id))
    }
}

impl fmt::Debug for StageTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StageTimer").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_interval_keeps_its_times_and_leaves_out_those_that_are_over() {
        let start = Instant::now();
        let next = |late, period| {
            let next = next_time(Deadline::after(start, ms(0)), period, start + late);
            next.instant().map(|at| at - start)
        };
        assert_eq!(next(ms(0), ms(10)), Some(ms(10)));
        assert_eq!(next(ms(1), ms(10)), Some(ms(10)));
        assert_eq!(next(ms(10), ms(10)), Some(ms(20)));
        assert_eq!(next(ms(99), ms(10)), Some(ms(100)));
        assert_eq!(next(ms(5), Duration::ZERO), Some(ms(6)), "not without a pause");
        assert_eq!(next(ms(5), Duration::MAX), None);
    }
}
