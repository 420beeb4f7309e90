//! A channel's timers.

use std::{cmp::Ordering, collections::BinaryHeap, fmt};

use pipeline_core::Deadline;
use thiserror::Error;
use tokio::time::Instant;

use super::handle::BoxedMessage;

/// How many timers a channel may have. If a client can make a channel set one timer, it can make it
/// set many.
const CAPACITY: usize = 1024;

/// A channel's timers. They end with it.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BinaryHeap<Timer>,
    /// The number of timers ever set: timers that are due at the same time fire in the order of
    /// this number.
    set: u64,
}

struct Timer {
    at: Deadline,
    nth: u64,
    message: BoxedMessage,
}

impl Timers {
    pub(super) fn set(&mut self, at: Deadline, message: BoxedMessage) -> Result<(), TooManyTimers> {
        if self.waiting.len() >= CAPACITY {
            return Err(TooManyTimers);
        }
        self.waiting.push(Timer { at, nth: self.set, message });
        self.set += 1;
        Ok(())
    }

    /// When the next timer is due.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.waiting.peek().map(|timer| timer.at)
    }

    /// Removes a timer that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<BoxedMessage> {
        if !self.next()?.has_passed(now) {
            return None;
        }
        let due = self.waiting.pop()?;
        if self.waiting.is_empty() {
            // A channel without timers keeps no memory for them.
            self.waiting = BinaryHeap::new();
        }
        Some(due.message)
    }
}

/// The timer that is due first is the greatest.
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.nth).cmp(&(self.at, self.nth))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timer {}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("waiting", &self.waiting.len()).finish()
    }
}

/// The channel has 1024 timers, the maximum.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::channel::{ChannelContext, HandleMessage, Reply, Stop};
///
/// /// Refuses a client that asks for more reminders.
/// fn remind<C: HandleMessage<String>>(cx: &ChannelContext<C>, of: String) -> Result<Reply, Stop> {
///     match cx.send_after(Duration::from_secs(60), of) {
///         Ok(()) => Ok(Reply::ok()),
///         Err(too_many) => Ok(Reply::error().with(too_many.to_string())),
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the channel has too many timers: the maximum is 1024")]
pub struct TooManyTimers;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(timers: &mut Timers, now: Instant) -> Vec<u32> {
        let due = std::iter::from_fn(|| timers.due(now));
        due.map(|message| *message.downcast().unwrap()).collect()
    }

    #[test]
    fn timers_fire_when_due_in_the_order_in_which_they_were_set() {
        let mut timers = Timers::default();
        let start = Instant::now();
        let at = |ms| Deadline::after(start, Duration::from_millis(ms));
        let until = |ms| start + Duration::from_millis(ms);
        for (ms, n) in [(20, 1u32), (10, 2), (20, 3), (30, 4)] {
            timers.set(at(ms), Box::new(n)).unwrap();
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert!(taken(&mut timers, until(9)).is_empty());
        assert_eq!(taken(&mut timers, until(20)), [2, 1, 3]);
        assert_eq!(timers.next(), Some(at(30)));
        assert_eq!(taken(&mut timers, until(30)), [4]);
        assert_eq!((timers.next(), timers.waiting.capacity()), (None, 0));
    }

    #[test]
    fn a_timer_that_is_never_due_does_not_block_others() {
        let mut timers = Timers::default();
        let now = Instant::now();
        timers.set(Deadline::after(now, Duration::MAX), Box::new(1u32)).unwrap();
        timers.set(Deadline::after(now, Duration::ZERO), Box::new(2u32)).unwrap();
        assert_eq!(taken(&mut timers, now), [2]);
        assert_eq!(timers.next(), Some(Deadline::NEVER));
    }

    #[test]
    fn the_number_of_timers_is_bounded() {
        let mut timers = Timers::default();
        for _ in 0..CAPACITY {
            timers.set(Deadline::NEVER, Box::new(())).unwrap();
        }
        assert_eq!(timers.set(Deadline::NEVER, Box::new(())), Err(TooManyTimers));
        timers.waiting.pop();
        assert_eq!(timers.set(Deadline::NEVER, Box::new(())), Ok(()));
    }
}
