//! Whether broadcasts follow each other closely: those of a topic, or those of a thread.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::outbox::Way;

/// About how long it takes to write one small frame to one socket.
const WRITE: Duration = Duration::from_micros(3);

/// A rush is over when there has been time to write a frame to everyone so many times over. A thread
/// that does not get its turn for a moment ends none.
const OVER: u64 = 4;

/// Nobody writes for longer than this without letting others have a turn.
const LONGEST: Duration = Duration::from_millis(8);

/// A topic that has been broadcast to within this time is expected to be so again before a sweeper
/// that is pressed comes to its sockets.
const SOON: Duration = Duration::from_millis(25);

/// When a topic was last broadcast to, as time since some moment that is always the same.
///
/// A frame that is written by the task that broadcasts it is on its way at once, and costs a write. A
/// frame that waits for the sweeper is a little later, and shares its write with those that come
/// meanwhile. So the second way is better when the next broadcast can be expected before the first
/// way has come to its end.
#[derive(Debug, Default)]
pub(super) struct Rush {
    /// Nanoseconds; 0 if never.
    last: AtomicU64,
    /// The last broadcast was swept.
    swept: AtomicBool,
}

impl Rush {
    /// The better way for a broadcast that begins now, to so many.
    ///
    /// A thread that broadcasts to [one topic after the other](is_one_of_many) rushes as well. The
    /// time that the writes would take is better spent on the next of them, if a socket can be
    /// expected to get more than one frame meanwhile.
    pub(super) fn way(&self, now: Duration, listeners: usize, one_of_many: bool) -> Way {
        let last = self.last.load(Relaxed);
        let swept = self.swept.load(Relaxed);
        let writing = nanos(WRITE).saturating_mul(listeners as u64);
        let longest = if swept { writing.saturating_mul(OVER) } else { writing };
        let pause = nanos(now).checked_sub(last).filter(|_| last > 0);
        let recently = |time: u64| pause.is_some_and(|pause| pause < time);
        if one_of_many && recently(nanos(SOON)) {
            return Way::Swept;
        }
        let rush = writing > nanos(LONGEST) || recently(longest);
        if rush != swept {
            self.swept.store(rush, Relaxed);
        }
        if rush { Way::Swept } else { Way::Direct }
    }

    /// Takes note that a broadcast has been handed to everyone.
    pub(super) fn handed_out(&self, now: Duration) {
        self.last.store(nanos(now).max(1), Relaxed);
    }
}

/// Whoever broadcasts again within this time is expected to do so once more.
const AGAIN: Duration = Duration::from_micros(20);

thread_local! {
    /// When the last broadcast of this thread had been handed out, whatever its topic.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether this thread has broadcast just before, as one does that sends to one user after the other.
pub(super) fn is_one_of_many(now: Instant) -> bool {
    LAST.get().is_some_and(|last| now.saturating_duration_since(last) < AGAIN)
}

/// Takes note that this thread has handed out a broadcast.
pub(super) fn was_handed_out(now: Instant) {
    LAST.set(Some(now));
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_at_once_unless_the_next_broadcast_can_be_expected_before_all_are() {
        let us = Duration::from_micros;
        let way = |pause, listeners| {
            let rush = Rush::default();
            assert_eq!(rush.way(us(5), listeners, false), Way::Direct, "nothing is known yet");
            rush.handed_out(us(10_000));
            rush.way(us(10_000) + pause, listeners, false)
        };
        assert_eq!(way(us(100), 1000), Way::Swept);
        assert_eq!(way(us(2_999), 1000), Way::Swept);
        assert_eq!(way(us(3_000), 1000), Way::Direct);
        assert_eq!(way(us(100), 10), Way::Direct, "few are written to quickly");
        assert_eq!(Rush::default().way(us(5), 2_666, false), Way::Direct);
        assert_eq!(
            Rush::default().way(us(5), 2_667, false),
            Way::Swept,
            "others would wait for too long"
        );
        assert_eq!(way(Duration::ZERO, 0), Way::Direct);
    }

    #[test]
    fn one_of_many_is_swept_if_its_topic_can_be_expected_to_get_more_soon() {
        let ms = Duration::from_millis;
        let rush = Rush::default();
        assert_eq!(rush.way(ms(5), 1, true), Way::Direct, "nothing is known yet");
        rush.handed_out(ms(5));
        assert_eq!(rush.way(ms(29), 1, true), Way::Swept);
        assert_eq!(rush.way(ms(29), 1, false), Way::Direct, "it is alone");
        assert_eq!(rush.way(ms(30), 1, true), Way::Direct, "its turn comes seldom");
    }

    #[test]
    fn whoever_broadcasts_again_at_once_on_the_same_thread_does_so_once_more() {
        let now = Instant::now();
        assert!(!is_one_of_many(now), "it is the first");
        was_handed_out(now);
        assert!(is_one_of_many(now + Duration::from_micros(19)));
        assert!(!is_one_of_many(now + Duration::from_micros(20)));
        let another = std::thread::spawn(move || is_one_of_many(now));
        assert!(!another.join().unwrap(), "on another thread nobody has broadcast");
    }

    #[test]
    fn a_rush_outlasts_a_moment_without_broadcasts() {
        let us = Duration::from_micros;
        let rush = Rush::default();
        rush.handed_out(us(10_000));
        assert_eq!(rush.way(us(10_100), 1000, false), Way::Swept);
        rush.handed_out(us(10_200));
        assert_eq!(rush.way(us(22_100), 1000, false), Way::Swept);
        rush.handed_out(us(22_200));
        assert_eq!(rush.way(us(34_200), 1000, false), Way::Direct);
        rush.handed_out(us(34_300));
        assert_eq!(rush.way(us(38_000), 1000, false), Way::Direct, "it is over");
    }
}
