//! Detects bursts: broadcasts that follow each other closely, on a topic or on a thread.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::outbox::WriteMode;

/// Approximate time to write one small frame to one socket.
const WRITE: Duration = Duration::from_micros(3);

/// A burst is over after the time that this many writes to all subscribers take. A thread that is
/// not scheduled for a moment does not end a burst.
const OVER: u64 = 4;

/// The longest time that a task writes without yielding.
const LONGEST: Duration = Duration::from_millis(8);

/// A topic that was broadcast to within this time is expected to be broadcast to again before a
/// busy flusher reaches its sockets.
const SOON: Duration = Duration::from_millis(25);

/// The time of a topic's last broadcast, since a fixed moment.
///
/// A frame that the broadcasting task writes inline leaves at once, and costs a write. A frame
/// that waits for the flusher leaves a little later, and shares its write with the frames that
/// arrive meanwhile. So the flusher is better if the next broadcast can be expected before the
/// inline writes are done.
#[derive(Debug, Default)]
pub(super) struct BurstDetector {
    /// In nanoseconds; 0 if never.
    last: AtomicU64,
    /// Whether the last broadcast was deferred.
    deferred: AtomicBool,
}

impl BurstDetector {
    /// The better mode for a broadcast to this many listeners that begins now.
    ///
    /// A thread that broadcasts to [one topic after the other](is_one_of_many) is in a burst as
    /// well. It better spends the time of the writes on the next broadcasts, if a socket can be
    /// expected to receive more than one frame meanwhile.
    pub(super) fn mode(&self, now: Duration, listeners: usize, one_of_many: bool) -> WriteMode {
        let last = self.last.load(Relaxed);
        let deferred = self.deferred.load(Relaxed);
        let writing = nanos(WRITE).saturating_mul(listeners as u64);
        let longest = if deferred { writing.saturating_mul(OVER) } else { writing };
        let pause = nanos(now).checked_sub(last).filter(|_| last > 0);
        let recently = |time: u64| pause.is_some_and(|pause| pause < time);
        if one_of_many && recently(nanos(SOON)) {
            return WriteMode::Deferred;
        }
        let is_burst = writing > nanos(LONGEST) || recently(longest);
        if is_burst != deferred {
            self.deferred.store(is_burst, Relaxed);
        }
        if is_burst { WriteMode::Deferred } else { WriteMode::Inline }
    }

    /// Records that a broadcast has been dispatched to all subscribers.
    pub(super) fn dispatched(&self, now: Duration) {
        self.last.store(nanos(now).max(1), Relaxed);
    }
}

/// A thread that broadcasts again within this time is expected to do so once more.
const AGAIN: Duration = Duration::from_micros(20);

thread_local! {
    /// The time of this thread's last broadcast, on any topic.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether this thread has just broadcast, as a thread does that sends to one user after the other.
pub(super) fn is_one_of_many(now: Instant) -> bool {
    LAST.get().is_some_and(|last| now.saturating_duration_since(last) < AGAIN)
}

/// Records that this thread has dispatched a broadcast.
pub(super) fn note_dispatch(now: Instant) {
    LAST.set(Some(now));
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_inline_unless_the_next_broadcast_is_expected_before_that_is_done() {
        let us = Duration::from_micros;
        let mode = |pause, listeners| {
            let detector = BurstDetector::default();
            assert_eq!(
                detector.mode(us(5), listeners, false),
                WriteMode::Inline,
                "no broadcast yet"
            );
            detector.dispatched(us(10_000));
            detector.mode(us(10_000) + pause, listeners, false)
        };
        assert_eq!(mode(us(100), 1000), WriteMode::Deferred);
        assert_eq!(mode(us(2_999), 1000), WriteMode::Deferred);
        assert_eq!(mode(us(3_000), 1000), WriteMode::Inline);
        assert_eq!(mode(us(100), 10), WriteMode::Inline, "a few writes are quick");
        assert_eq!(BurstDetector::default().mode(us(5), 2_666, false), WriteMode::Inline);
        assert_eq!(
            BurstDetector::default().mode(us(5), 2_667, false),
            WriteMode::Deferred,
            "the writes would take too long"
        );
        assert_eq!(mode(Duration::ZERO, 0), WriteMode::Inline);
    }

    #[test]
    fn one_of_many_is_deferred_if_its_topic_is_expected_to_receive_more_soon() {
        let ms = Duration::from_millis;
        let detector = BurstDetector::default();
        assert_eq!(detector.mode(ms(5), 1, true), WriteMode::Inline, "no broadcast yet");
        detector.dispatched(ms(5));
        assert_eq!(detector.mode(ms(29), 1, true), WriteMode::Deferred);
        assert_eq!(detector.mode(ms(29), 1, false), WriteMode::Inline, "a single broadcast");
        assert_eq!(
            detector.mode(ms(30), 1, true),
            WriteMode::Inline,
            "its topic has few broadcasts"
        );
    }

    #[test]
    fn a_second_broadcast_at_once_on_the_same_thread_starts_a_burst() {
        let now = Instant::now();
        assert!(!is_one_of_many(now), "the first broadcast");
        note_dispatch(now);
        assert!(is_one_of_many(now + Duration::from_micros(19)));
        assert!(!is_one_of_many(now + Duration::from_micros(20)));
        let another = std::thread::spawn(move || is_one_of_many(now));
        assert!(!another.join().unwrap(), "the other thread has not broadcast");
    }

    #[test]
    fn a_burst_outlasts_a_moment_without_broadcasts() {
        let us = Duration::from_micros;
        let detector = BurstDetector::default();
        detector.dispatched(us(10_000));
        assert_eq!(detector.mode(us(10_100), 1000, false), WriteMode::Deferred);
        detector.dispatched(us(10_200));
        assert_eq!(detector.mode(us(22_100), 1000, false), WriteMode::Deferred);
        detector.dispatched(us(22_200));
        assert_eq!(detector.mode(us(34_200), 1000, false), WriteMode::Inline);
        detector.dispatched(us(34_300));
        assert_eq!(detector.mode(us(38_000), 1000, false), WriteMode::Inline, "the burst is over");
    }
}
