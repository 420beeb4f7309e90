//! When a source connects again. Pure.

use std::time::Duration;

use pipeline_core::backoff::Backoff;

/// A session that has lived for so long, and twice as long as the delay before it, was a good one: the next
/// delay is the first again. What is set aside, and may end the session, is not tried before. So a source
/// whose broker fails only for some outcomes is connected most of the time.
const GOOD_SESSION: Duration = Duration::from_secs(1);

/// The longest delay after a session that has worked. An outage before it is over.
const LONGEST_AFTER_WORK: Duration = Duration::from_secs(3);

/// The delays before a source connects again.
///
/// While the broker is away they become longer and longer. A session that works ends that, and those that work
/// and end soon, one after the other, have delays of their own, which are shorter.
#[derive(Debug)]
pub(crate) struct Reconnects {
    backoff: Backoff,
    /// Failures to connect, and sessions that were of no use, in a row.
    failures: u32,
    /// Sessions in a row that have worked and ended soon.
    short: u32,
    /// The delay before the latest session.
    delay: Duration,
}

impl Reconnects {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, short: 0, delay: Duration::ZERO }
    }

    /// How long the next session has to live to be a good one, however little it does.
    pub(crate) fn good(&self) -> Duration {
        GOOD_SESSION.max(self.delay.saturating_mul(2))
    }

    /// The delay after a failure to connect.
    pub(crate) fn not_connected(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.delay = self.backoff.nth_delay(self.failures, random);
        self.delay
    }

    /// The delay after a session that has lived for so long, and has worked or not.
    pub(crate) fn ended(&mut self, lived: Duration, has_worked: bool, random: f64) -> Duration {
        if lived >= self.good() {
            (self.failures, self.short) = (0, 0);
        }
        if !has_worked {
            return self.not_connected(random);
        }
        self.failures = 0;
        if lived >= GOOD_SESSION.max(self.after_work(random).saturating_mul(2)) {
            self.short = 0;
        }
        self.short = self.short.saturating_add(1);
        self.delay = self.after_work(random);
        self.delay
    }

    fn after_work(&self, random: f64) -> Duration {
        let first = self.backoff.nth_delay(1, random);
        let nth = self.backoff.nth_delay(self.short.max(1), random);
        nth.min(LONGEST_AFTER_WORK.max(first))
    }
}

#[cfg(test)]
mod tests {
    use pipeline_core::backoff::Jitter;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn reconnects() -> Reconnects {
        Reconnects::new(Backoff::new(100 * MS, 30_000 * MS).jitter(Jitter::None))
    }

    fn after_an_outage() -> Reconnects {
        let mut reconnects = reconnects();
        let mut delay = Duration::ZERO;
        for _ in 0..8 {
            delay = reconnects.not_connected(0.0);
        }
        assert!(delay > 10_000 * MS, "{delay:?}");
        reconnects
    }

    #[test]
    fn an_outage_is_forgotten_after_a_session_that_has_worked() {
        let mut reconnects = after_an_outage();
        assert_eq!(reconnects.ended(3000 * MS, true, 0.0), 100 * MS);
        // A failure after that is the first one.
        assert_eq!(reconnects.not_connected(0.0), 100 * MS);
        assert_eq!(reconnects.not_connected(0.0), 200 * MS);
    }

    #[test]
    fn an_outage_is_not_forgotten_after_a_session_of_no_use_unless_it_lives_for_long() {
        let mut reconnects = after_an_outage();
        let delay = reconnects.delay;
        assert!(reconnects.ended(3000 * MS, false, 0.0) > delay);
        assert_eq!(reconnects.ended(60_000 * MS, false, 0.0), 100 * MS);
    }

    #[test]
    fn sessions_that_work_and_end_at_once_are_some_seconds_apart() {
        let mut reconnects = reconnects();
        let delays: Vec<_> = (0..8).map(|_| reconnects.ended(5 * MS, true, 0.0)).collect();
        let ms = [100, 200, 400, 800, 1600, 3000, 3000, 3000];
        assert_eq!(delays, ms.map(|ms| ms * MS));
        // One that lives for twice as long was a good one.
        assert_eq!(reconnects.ended(5000 * MS, true, 0.0), 3000 * MS);
        assert_eq!(reconnects.ended(6000 * MS, true, 0.0), 100 * MS);
    }

    #[test]
    fn no_delay_is_shorter_than_the_program_says() {
        let minute = 60_000 * MS;
        let mut reconnects = Reconnects::new(Backoff::new(minute, minute).jitter(Jitter::None));
        for lived in [5 * MS, 3000 * MS, 600_000 * MS] {
            assert_eq!(reconnects.ended(lived, true, 0.0), minute);
            assert_eq!(reconnects.ended(lived, false, 0.0), minute);
        }
    }
}
