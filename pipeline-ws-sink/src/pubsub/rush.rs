//! Whether the broadcasts of a topic follow each other closely. Pure.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::outbox::Way;

/// About how long it takes to write one small frame to one socket.
const WRITE: Duration = Duration::from_micros(3);

/// When a topic was last broadcast to, as time since some moment that is always the same.
///
/// A frame that is written by the task that broadcasts it is on its way at once, and costs a write. A
/// frame that waits for its socket's task is a little later, and shares its write with those that come
/// meanwhile. So the second way is better when the next broadcast can be expected before the first
/// way has come to its end.
#[derive(Debug, Default)]
pub(super) struct Rush {
    /// Nanoseconds; 0 if never.
    last: AtomicU64,
}

impl Rush {
    /// The better way for a broadcast that begins now, to so many.
    pub(super) fn way(&self, now: Duration, listeners: usize) -> Way {
        let last = self.last.load(Relaxed);
        let Some(pause) = nanos(now).checked_sub(last).filter(|_| last > 0) else {
            return Way::Direct;
        };
        let writing = nanos(WRITE).saturating_mul(listeners as u64);
        if pause < writing { Way::Queued } else { Way::Direct }
    }

    /// Takes note that a broadcast has been handed to everyone.
    pub(super) fn handed_out(&self, now: Duration) {
        self.last.store(nanos(now).max(1), Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_at_once_unless_the_next_broadcast_can_be_expected_before_all_are() {
        let rush = Rush::default();
        let us = Duration::from_micros;
        assert_eq!(rush.way(us(5), 1000), Way::Direct, "nothing is known yet");
        rush.handed_out(us(10_000));
        assert_eq!(rush.way(us(10_100), 1000), Way::Queued);
        assert_eq!(rush.way(us(12_999), 1000), Way::Queued);
        assert_eq!(rush.way(us(13_000), 1000), Way::Direct);
        assert_eq!(rush.way(us(10_100), 10), Way::Direct, "few are written to quickly");
        assert_eq!(rush.way(us(9_000), 1000), Way::Direct, "another task has been faster");
    }
}
