//! Items that wait since a time that is still to come: a clock that was ahead has set it, or the clock is behind now.

use std::time::Duration;

use tokio::time::Instant;

/// By how much two readings of the clock may differ from the time between them, in milliseconds.
const AHEAD: i64 = 1000;

/// What this process knows of the wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// When it was read the last time, in milliseconds since 1970, and the instant of that.
    last: (i64, Instant),
    /// When it was set back the last time, or read the first time. What is in the file with a later time was put
    /// there before.
    back: Instant,
}

impl Clock {
    pub(super) fn new(wall: i64, now: Instant) -> Self {
        Self { last: (wall, now), back: now }
    }

    /// Takes note of what it shows.
    pub(super) fn read(&mut self, wall: i64, now: Instant) {
        let (before, then) = self.last;
        let expected = before.saturating_add(ms(now.saturating_duration_since(then)));
        if wall.saturating_add(AHEAD) < expected {
            self.back = now;
        }
        self.last = (wall, now);
    }

    /// Whether an item has waited long enough that is to wait until `at` since a time that is still to come.
    ///
    /// If the clock was ahead then, the item has to wait no longer than from when it was set back. If it is
    /// behind now, the item waits since before that, so nothing is too early. When the clock is right, its time
    /// is what it was.
    pub(super) fn is_over(&self, at: i64, since: i64) -> bool {
        let (wall, now) = self.last;
        let wait = at.checked_sub(since).filter(|wait| *wait >= 0);
        // A program of an older version may have set the first alone.
        since > wall.saturating_add(AHEAD)
            && wait.is_some_and(|wait| wait <= ms(now.saturating_duration_since(self.back)))
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1000;
    const DAY: i64 = 24 * 3600 * SECOND;

    /// A clock that is off by `off`, looked at once a second. The true time begins with 1,000 days.
    struct Time {
        begin: Instant,
        passed: i64,
        off: i64,
        clock: Clock,
    }

    impl Time {
        fn new(off: i64) -> Self {
            let begin = Instant::now();
            Self { begin, passed: 0, off, clock: Clock::new(1000 * DAY + off, begin) }
        }

        fn wall(&self) -> i64 {
            1000 * DAY + self.passed + self.off
        }

        fn read(&mut self) {
            let passed = Duration::from_millis(self.passed.try_into().unwrap());
            self.clock.read(self.wall(), self.begin + passed);
        }

        fn wait(&mut self, ms: i64) {
            let until = self.passed + ms;
            while self.passed < until {
                self.passed = until.min(self.passed + SECOND);
                self.read();
            }
        }

        fn set(&mut self, off: i64) {
            self.off = off;
            self.read();
        }

        fn restart(&mut self) {
            let passed = Duration::from_millis(self.passed.try_into().unwrap());
            self.clock = Clock::new(self.wall(), self.begin + passed);
        }

        /// Whether an item is delivered that waits for so long since a time.
        fn is_due(&self, (at, since): (i64, i64)) -> bool {
            at <= self.wall() || self.clock.is_over(at, since)
        }

        fn postponed(&self, wait: i64) -> (i64, i64) {
            (self.wall() + wait, self.wall())
        }
    }

    #[test]
    fn what_a_clock_ahead_has_postponed_waits_from_when_it_is_right() {
        let mut time = Time::new(20 * DAY);
        let item = time.postponed(60 * SECOND);
        time.wait(5 * SECOND);
        assert!(!time.is_due(item));
        time.set(0);
        time.wait(59 * SECOND);
        assert!(!time.is_due(item));
        time.wait(SECOND);
        assert!(time.is_due(item));

        // A process that starts when it is right.
        let mut time = Time::new(20 * DAY);
        let item = time.postponed(60 * SECOND);
        time.off = 0;
        time.restart();
        assert!(!time.is_due(item));
        time.wait(60 * SECOND);
        assert!(time.is_due(item));
    }

    #[test]
    fn a_clock_that_is_behind_makes_nothing_due_when_it_is_right() {
        let mut time = Time::new(0);
        let (tomorrow, soon) = (time.postponed(DAY), time.postponed(60 * SECOND));
        // The machine starts without a clock, and learns the time later.
        time.off = -2 * DAY;
        time.restart();
        time.wait(30 * SECOND);
        assert!(!time.is_due(tomorrow) && !time.is_due(soon));
        time.set(0);
        assert!(!time.is_due(tomorrow) && !time.is_due(soon));
        time.wait(30 * SECOND);
        assert!(!time.is_due(tomorrow) && time.is_due(soon));
        time.passed += DAY;
        assert!(time.is_due(tomorrow));
    }

    #[test]
    fn a_clock_that_stays_behind_delays_an_item_no_longer_than_it_was_to_wait() {
        let mut time = Time::new(0);
        let item = time.postponed(60 * SECOND);
        time.set(-2 * DAY);
        time.wait(59 * SECOND);
        assert!(!time.is_due(item));
        time.wait(SECOND);
        assert!(time.is_due(item));
    }

    proptest! {
        /// The clock is set and the process is restarted at any moments, as long as it never shows more than
        /// it has to: nothing is due before it has waited.
        #[test]
        fn nothing_is_due_too_early_while_no_clock_is_set_forward_too_far(
            steps in prop::collection::vec((0..3, -3 * DAY..=0, 0..600_i64), 0..20),
            wait in 2..1200_i64,
        ) {
            let mut time = Time::new(0);
            let item = time.postponed(wait * SECOND);
            for (step, off, seconds) in steps {
                match step {
                    0 => time.set(off),
                    1 => time.restart(),
                    _ => time.wait(seconds * SECOND),
                }
                if time.passed < wait * SECOND {
                    prop_assert!(!time.is_due(item));
                }
            }
            // It is taken in the end, also if the clock stays wrong.
            let begun = time.passed;
            while !time.is_due(item) {
                prop_assert!(time.passed - begun <= (2 * wait + 5) * SECOND);
                time.wait(SECOND);
            }
        }
    }
}
