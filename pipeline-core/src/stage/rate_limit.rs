//! A limit of events per interval. Pure: callers pass the time in.

use std::time::Duration;

use tokio::time::Instant;

/// A limit of events per interval.
///
/// The intervals are fixed and contiguous, as in Broadway; they do not slide. So around the
/// boundary of two intervals, up to twice as many events may pass in quick succession. The unused
/// part of an interval is lost: idle time does not accumulate.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::stage::RateLimit;
///
/// // The limit of a remote service.
/// let limit = RateLimit::new(300, Duration::from_secs(60));
/// assert_eq!(limit.events(), 300);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RateLimit {
    events: usize,
    interval: Duration,
}

impl RateLimit {
    /// A limit of `events` per interval. An interval too long for the clock to represent never
    /// ends.
    ///
    /// # Panics
    ///
    /// If `events` is 0, with which no event would ever pass, or if `interval` is 0.
    #[must_use]
    pub const fn new(events: usize, interval: Duration) -> Self {
        assert!(events > 0, "a rate limit must allow at least one event");
        assert!(!interval.is_zero(), "the interval of a rate limit must be longer than 0");
        Self { events, interval }
    }

    /// The number of events that may pass in an interval.
    #[must_use]
    pub const fn events(&self) -> usize {
        self.events
    }

    /// The length of an interval.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }
}

/// The counter of a [`RateLimit`]. All users of the limit share one.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// The limit from the next refill on. It already applies unless it was changed since the last
    /// refill.
    limit: RateLimit,
    left: usize,
    /// The limit of the current interval.
    granted: usize,
    /// The number of the interval.
    interval: u64,
    /// When the interval ends, if it ever does.
    refill: Option<Instant>,
}

/// What was taken from a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) events: usize,
    /// The number of the interval.
    pub(crate) interval: u64,
}

impl RateLimiter {
    /// A limiter whose first interval begins now.
    pub(crate) fn new(limit: RateLimit, now: Instant) -> Self {
        let refill = now.checked_add(limit.interval);
        Self { limit, left: limit.events, granted: limit.events, interval: 1, refill }
    }

    /// How many events may pass now.
    pub(crate) fn left(&mut self, now: Instant) -> usize {
        self.refill_if_due(now);
        self.left
    }

    /// Takes up to this many of the events that may pass now, so that no other user of the limit has
    /// them.
    pub(crate) fn take(&mut self, wanted: usize, now: Instant) -> Taken {
        let events = self.left(now).min(wanted);
        self.left -= events;
        Taken { events, interval: self.interval }
    }

    /// Gives back events that were [taken](Self::take) and did not pass, if their interval has not
    /// ended.
    pub(crate) fn give_back(&mut self, taken: Taken) {
        if taken.interval == self.interval {
            self.left = self.left.saturating_add(taken.events).min(self.granted);
        }
    }

    /// The limit from the next refill on.
    pub(crate) fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Changes the limit at once: a new interval begins now.
    pub(crate) fn reset(&mut self, limit: RateLimit, now: Instant) {
        let interval = self.interval.wrapping_add(1);
        *self = Self { interval, ..Self::new(limit, now) };
    }

    /// When the interval ends, if it ever does.
    pub(crate) fn refill(&self) -> Option<Instant> {
        self.refill
    }

    /// Changes the limit from the next refill on.
    pub(crate) fn update(&mut self, limit: RateLimit, now: Instant) {
        self.refill_if_due(now);
        self.limit = limit;
    }

    fn refill_if_due(&mut self, now: Instant) {
        let Some(refill) = self.refill.filter(|&refill| refill <= now) else {
            return;
        };
        self.left = self.limit.events;
        self.granted = self.limit.events;
        self.interval = self.interval.wrapping_add(1);
        // The intervals are contiguous, also while the limiter is not used.
        let since = now.duration_since(refill).as_nanos() % self.limit.interval.as_nanos();
        // Saturates after 584 years.
        let since = Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX));
        self.refill = now.checked_add(self.limit.interval.saturating_sub(since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Passes up to `events` events; returns how many passed.
    fn pass(limiter: &mut RateLimiter, events: usize, now: Instant) -> usize {
        limiter.take(events, now).events
    }

    /// When the next events may pass, if none may pass now.
    fn next_refill(limiter: &mut RateLimiter, now: Instant) -> Option<Instant> {
        if limiter.left(now) == 0 { limiter.refill() } else { None }
    }

    #[test]
    fn a_full_interval_passes_at_once_and_the_rest_after_each_refill() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(2, ms(200)), start);
        assert_eq!(next_refill(&mut limiter, start), None, "there is something left");
        assert_eq!(pass(&mut limiter, 5, start), 2);
        assert_eq!(next_refill(&mut limiter, start), Some(start + ms(200)));
        assert_eq!(pass(&mut limiter, 3, start + ms(199)), 0);
        assert_eq!(pass(&mut limiter, 3, start + ms(200)), 2);
        assert_eq!(next_refill(&mut limiter, start + ms(200)), Some(start + ms(400)));
        assert_eq!(pass(&mut limiter, 1, start + ms(400)), 1);
        assert_eq!(next_refill(&mut limiter, start + ms(400)), None);
    }

    #[test]
    fn users_of_a_limiter_share_its_remaining_events() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(4, ms(300)), start);
        assert_eq!([pass(&mut limiter, 3, start), pass(&mut limiter, 3, start)], [3, 1]);
        assert_eq!(pass(&mut limiter, 2, start + ms(300)), 2);
    }

    #[test]
    fn a_change_applies_from_the_next_refill() {
        let start = Instant::now();
        let at = |milliseconds| start + ms(milliseconds);
        let mut limiter = RateLimiter::new(RateLimit::new(1, ms(5000)), start);
        assert_eq!(pass(&mut limiter, 5, at(0)), 1);
        limiter.update(RateLimit::new(5, ms(1000)), at(200));
        assert_eq!(limiter.limit, RateLimit::new(5, ms(1000)));
        assert_eq!(pass(&mut limiter, 1, at(200)), 0);
        assert_eq!(next_refill(&mut limiter, at(200)), Some(at(5000)), "the old interval");
        assert_eq!(pass(&mut limiter, 9, at(5000)), 5);
        assert_eq!(next_refill(&mut limiter, at(5000)), Some(at(6000)), "the new interval");
    }

    #[test]
    fn a_change_after_the_end_of_an_interval_waits_for_the_next_one() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(1, ms(100)), start);
        limiter.update(RateLimit::new(9, ms(100)), start + ms(150));
        assert_eq!(limiter.left(start + ms(150)), 1, "the refill was before the change");
        assert_eq!(limiter.left(start + ms(200)), 9);
    }

    #[test]
    fn idle_time_does_not_accumulate_and_does_not_move_the_intervals() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(2, ms(100)), start);
        let later = start + ms(1_000_030);
        assert_eq!(pass(&mut limiter, 9, later), 2);
        assert_eq!(next_refill(&mut limiter, later), Some(start + ms(1_000_100)));
    }

    #[test]
    fn events_that_did_not_pass_are_given_back_to_their_own_interval() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(4, ms(100)), start);
        let taken = limiter.take(3, start);
        limiter.give_back(Taken { events: 2, ..taken });
        assert_eq!(limiter.left(start), 3);
        // The limit of the next interval is no bound for this one.
        limiter.update(RateLimit::new(1, ms(100)), start);
        let taken = limiter.take(3, start);
        limiter.give_back(taken);
        assert_eq!(limiter.left(start), 3);
        let taken = limiter.take(3, start);
        assert_eq!(limiter.left(start + ms(100)), 1);
        assert_eq!(limiter.take(1, start + ms(100)).events, 1);
        limiter.give_back(taken);
        assert_eq!(limiter.left(start + ms(100)), 0);
        let taken = limiter.take(1, start + ms(200));
        limiter.reset(RateLimit::new(2, ms(100)), start + ms(200));
        assert_eq!(limiter.take(1, start + ms(200)).events, 1);
        limiter.give_back(taken);
        assert_eq!(limiter.left(start + ms(200)), 1);
    }

    #[test]
    fn a_reset_begins_an_interval_at_once() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(1, ms(5000)), start);
        assert_eq!(pass(&mut limiter, 5, start), 1);
        limiter.reset(RateLimit::new(3, ms(1000)), start + ms(200));
        assert_eq!(pass(&mut limiter, 5, start + ms(200)), 3);
        assert_eq!(next_refill(&mut limiter, start + ms(200)), Some(start + ms(1200)));
    }

    #[test]
    fn an_interval_too_long_for_the_clock_never_ends() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::new(1, Duration::MAX), start);
        assert_eq!(pass(&mut limiter, 1, start), 1);
        assert_eq!(next_refill(&mut limiter, start + ms(1 << 40)), None);
    }

    #[test]
    #[should_panic(expected = "must be longer than 0")]
    fn an_interval_of_0_is_refused() {
        let _ = RateLimit::new(1, Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "at least one event")]
    fn a_limit_of_0_events_is_refused() {
        let _ = RateLimit::new(0, ms(1));
    }

    proptest! {
        /// Steps of any length: the limiter equals a clock that ticks, and refills on the tick.
        #[test]
        fn a_limiter_is_the_same_as_a_clock_that_ticks(
            events in 1usize..6, interval in 1u64..20,
            steps in prop::collection::vec(
                (0u64..50, 0usize..8, prop::option::weighted(0.2, (1usize..6, 1u64..20))),
                0..60,
            )
        ) {
            let start = Instant::now();
            let limit = |(events, interval)| RateLimit::new(events, ms(interval));
            let mut limiter = RateLimiter::new(limit((events, interval)), start);
            let (mut time, mut next) = (0, (events, interval));
            let (mut left, mut refill) = (events, interval);
            for (wait, wanted, change) in steps {
                for _ in 0..wait {
                    time += 1;
                    if time == refill {
                        (left, refill) = (next.0, time + next.1);
                    }
                }
                let now = start + ms(time);
                let passed = left.min(wanted);
                prop_assert_eq!(pass(&mut limiter, wanted, now), passed);
                left -= passed;
                if let Some(change) = change {
                    next = change;
                    limiter.update(limit(next), now);
                }
                prop_assert_eq!(limiter.left(now), left);
                let expected = (left == 0).then_some(start + ms(refill));
                prop_assert_eq!(next_refill(&mut limiter, now), expected);
            }
        }

        /// The guarantee for an interval that begins at any moment.
        #[test]
        fn no_stretch_of_one_interval_sees_more_than_two_of_them_pass(
            events in 1usize..6, interval in 1u64..20,
            steps in prop::collection::vec((0u64..30, 0usize..9), 0..60)
        ) {
            let start = Instant::now();
            let mut limiter = RateLimiter::new(RateLimit::new(events, ms(interval)), start);
            let (mut time, mut passed) = (0, vec![]);
            for (wait, wanted) in steps {
                time += wait;
                passed.push((time, pass(&mut limiter, wanted, start + ms(time))));
            }
            for &(from, _) in &passed {
                let within = passed.iter().filter(|(at, _)| (from..from + interval).contains(at));
                prop_assert!(within.map(|(_, count)| count).sum::<usize>() <= 2 * events);
            }
        }
    }
}
