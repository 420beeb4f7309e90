//! Decides when discarded events and failed workers are logged. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Tracks whether a full buffer is discarding events, so that the log has one line when it begins
/// and one when it ends, not one per event.
///
/// It ends when a good part of the room is free and nothing was discarded for a while. Room alone
/// is not enough, because an overloaded queue has room for a moment after every take.
#[derive(Debug, Default)]
pub(crate) struct Discarding {
    /// The number of events discarded since it began; 0 while nothing is discarded.
    count: usize,
    /// Whether any were discarded since [`over`](Self::over) was last called.
    lately: bool,
}

impl Discarding {
    /// Counts discarded events, at least one. Returns whether discarding begins with them.
    pub(crate) fn add(&mut self, count: usize) -> bool {
        let begins = self.count == 0;
        self.count = self.count.saturating_add(count);
        self.lately = true;
        begins
    }

    /// Called when something has left. Returns how many events were discarded if that ends it, else
    /// 0.
    pub(crate) fn over(&mut self, has_room: bool) -> usize {
        let quiet = !std::mem::take(&mut self.lately);
        if has_room && quiet { self.end() } else { 0 }
    }

    /// Ends the discarding for good. Returns how many events were discarded.
    pub(crate) fn end(&mut self) -> usize {
        std::mem::take(&mut self.count)
    }
}

/// Selects which of many repeated events are logged: the first, the second, the fourth, the eighth
/// and so on.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    count: usize,
}

impl Seldom {
    /// Counts occurrences. Returns the total if it is to be logged now.
    pub(crate) fn log(&mut self, count: usize) -> Option<usize> {
        let before = self.count;
        self.count = before.saturating_add(count);
        (self.count.checked_ilog2() > before.checked_ilog2()).then_some(self.count)
    }
}

/// How long nothing is refused before refusing has ended. A queue that is full for one key may have room at every look.
const QUIET: Duration = Duration::from_secs(10);

/// Tracks whether a queue refuses items, so that the log has one line when it begins and one when it ends.
#[derive(Debug, Default)]
pub(crate) struct Refusing {
    count: u64,
    last: Option<Instant>,
}

impl Refusing {
    /// Counts a refused item. Returns whether refusing begins with it.
    pub(crate) fn add(&mut self, now: Instant) -> bool {
        self.count = self.count.saturating_add(1);
        self.last.replace(now).is_none()
    }

    /// Called when something has left. Returns how many items were refused if that has ended, else 0.
    pub(crate) fn over(&mut self, now: Instant, has_room: bool) -> u64 {
        let is_quiet = |last| now.saturating_duration_since(last) >= QUIET;
        if has_room && self.last.is_some_and(is_quiet) {
            self.last = None;
            return std::mem::take(&mut self.count);
        }
        0
    }
}

/// The time after which one more line may be written.
const LINE_EVERY: Duration = Duration::from_millis(100);

/// The time that 99 lines take up: one more is the hundredth.
const FULL: Duration = Duration::from_millis(9_900);

/// The rate limit of log lines of a kind: a hundred at once, and ten a second after that. The others are counted.
#[derive(Debug, Default)]
pub(crate) struct LineLimit {
    /// The time at which all lines written so far are forgotten.
    clear_at: Option<Instant>,
    left_out: u64,
}

impl LineLimit {
    /// Whether another line may be written now, and how many were left out before it. Counts the line if not.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        let clear_at = self.clear_at.map_or(now, |at| at.max(now));
        if clear_at.saturating_duration_since(now) > FULL {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.clear_at = clear_at.checked_add(LINE_EVERY);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusing_ends_when_there_is_room_and_nothing_was_refused_for_a_while() {
        let (mut refusing, begun) = (Refusing::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(refusing.over(at(0), true), 0, "not begun");
        assert_eq!([refusing.add(at(0)), refusing.add(at(5))], [true, false]);
        assert_eq!(refusing.over(at(6), true), 0, "a moment ago");
        assert_eq!(refusing.over(at(15), false), 0, "no room");
        assert_eq!(refusing.over(at(15), true), 2);
        assert_eq!(refusing.over(at(30), true), 0, "said once");
        assert!(refusing.add(at(30)));
    }

    #[test]
    fn a_hundred_lines_are_written_at_once_and_then_ten_a_second() {
        let (mut lines, begun) = (LineLimit::default(), Instant::now());
        let mut write = |millis, count| -> Vec<u64> {
            let now = begun + Duration::from_millis(millis);
            (0..count).filter_map(|_| lines.admit(now)).collect()
        };
        assert_eq!(write(0, 1000), [0; 100]);
        assert_eq!(write(99, 10), [0; 0]);
        assert_eq!(write(350, 10), [910, 0, 0]);
        assert_eq!(write(60_000, 1000)[..2], [7, 0]);
        assert_eq!(write(120_000, 1000).len(), 100, "the quiet time gives no more than the burst");
    }

    #[test]
    fn discarding_begins_once_and_is_over_when_there_is_room_and_nothing_more_was_discarded() {
        let mut discarding = Discarding::default();
        assert_eq!(discarding.over(true), 0, "not begun");
        assert_eq!([discarding.add(1), discarding.add(2)], [true, false]);
        assert_eq!(discarding.over(true), 0, "discarded a moment ago");
        assert!(!discarding.add(1));
        assert_eq!(discarding.over(true), 0);
        assert_eq!(discarding.over(false), 0, "no room");
        assert_eq!(discarding.over(true), 4);
        assert_eq!(discarding.over(true), 0, "reported once");
        assert!(discarding.add(1));
        assert_eq!(discarding.end(), 1);
    }

    #[test]
    fn repeated_events_are_logged_rarely() {
        let mut seldom = Seldom::default();
        let logged: Vec<usize> = (0..1000).filter_map(|_| seldom.log(1)).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!((seldom.log(10), seldom.log(14)), (None, Some(1024)));
        assert_eq!(seldom.log(0), None);
    }
}
