//! A token bucket: an average rate and a burst. Pure: the caller passes the time.

use std::time::Duration;

/// The maximum in nanoseconds: 292 years. Twice that still fits.
const LONGEST: u64 = 1 << 63;

/// A rate: one event per interval on average, and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// The interval of one event.
    gap: u64,
    /// How far events may be ahead of the average.
    ahead: u64,
}

/// The recent events. The bucket of tokens is kept as the time at which it is full again, as in the
/// generic cell rate algorithm: one number, which needs no refilling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    full_at: u64,
}

impl Rate {
    /// At most this number of events per interval on average, and `burst` at once. None of these is
    /// 0.
    ///
    /// Rounded towards fewer events. A burst that would last for more than 292 years is cut.
    pub(crate) fn new(events: u32, interval: Duration, burst: u32) -> Self {
        let gap = interval.as_nanos().div_ceil(events.max(1).into());
        let gap = u64::try_from(gap).unwrap_or(LONGEST).clamp(1, LONGEST);
        let burst = u64::from(burst).clamp(1, LONGEST / gap);
        Self { gap, ahead: gap * (burst - 1) }
    }
}

impl Bucket {
    /// How long until an event is allowed; `None` if it is allowed now. Times are since any fixed
    /// moment.
    pub(crate) fn wait(&self, rate: Rate, now: Duration) -> Option<Duration> {
        let ahead = self.full_at.saturating_sub(nanos(now));
        let wait = ahead.saturating_sub(rate.ahead);
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    /// Counts an event that does not have to [wait](Self::wait).
    pub(crate) fn take(&mut self, rate: Rate, now: Duration) {
        self.full_at = self.full_at.max(nanos(now)).saturating_add(rate.gap);
    }

    /// Counts this number of events, whether they had to [wait](Self::wait) or not. Later events
    /// wait until these have been worked off.
    pub(crate) fn take_many(&mut self, events: u64, rate: Rate, now: Duration) {
        self.full_at = self.full_at.max(nanos(now)).saturating_add(rate.gap.saturating_mul(events));
    }

    /// How long until the bucket is full again.
    pub(crate) fn until_full(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.full_at.saturating_sub(nanos(now)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LONGEST).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NANO: Duration = Duration::from_nanos(1);

    /// The times at which an event is allowed.
    fn passed(rate: Rate, times: &[Duration]) -> Vec<Duration> {
        let mut bucket = Bucket::default();
        let mut passes = |now: &Duration| {
            let passes = bucket.wait(rate, *now).is_none();
            if passes {
                bucket.take(rate, *now);
            }
            passes
        };
        times.iter().copied().filter(|now| passes(now)).collect()
    }

    #[test]
    fn a_burst_passes_and_then_one_by_one() {
        let rate = Rate::new(10, Duration::from_secs(1), 3);
        let ms = Duration::from_millis;
        let times = [0, 0, 0, 0, 99, 100, 100, 200, 500, 500, 500, 500].map(ms);
        assert_eq!(passed(rate, &times), [0, 0, 0, 100, 200, 500, 500, 500].map(ms));
    }

    #[test]
    fn any_number_of_events_is_worked_off() {
        let rate = Rate::new(10, Duration::from_secs(1), 3);
        let (ms, mut bucket) = (Duration::from_millis, Bucket::default());
        bucket.take_many(2, rate, ms(0));
        assert_eq!(bucket.wait(rate, ms(0)), None);
        bucket.take_many(3, rate, ms(0));
        assert_eq!(bucket.wait(rate, ms(0)), Some(ms(300)));
        bucket.take_many(1000, rate, ms(0));
        assert_eq!(bucket.wait(rate, ms(0)), Some(ms(100_300)));
        assert_eq!(bucket.wait(rate, ms(100_000)), Some(ms(300)));
        bucket.take_many(u64::MAX, rate, ms(0));
        assert!(bucket.wait(rate, ms(0)).is_some(), "the time does not wrap around");
    }

    #[test]
    fn fractions_are_rounded_towards_fewer_events() {
        let rate = Rate::new(3, NANO * 10, 1);
        let times: Vec<_> = (0..=12).map(|at| NANO * at).collect();
        assert_eq!(passed(rate, &times), [0, 4, 8, 12].map(|at| NANO * at));
    }

    #[test]
    fn extreme_values_still_limit() {
        let ever = Rate::new(1, Duration::MAX, u32::MAX);
        let mut bucket = Bucket::default();
        bucket.take(ever, Duration::ZERO);
        assert!(bucket.wait(ever, Duration::from_secs(1 << 30)).is_some());
        let every_nano = Rate::new(u32::MAX, NANO, 1);
        assert_eq!(passed(every_nano, &[NANO; 3]), [NANO; 1]);
        let (minute, many) =
            (Duration::from_secs(60), Rate::new(1, Duration::from_secs(60), u32::MAX));
        let mut bucket = Bucket::default();
        for _ in 0..100_000 {
            assert_eq!(bucket.wait(many, minute), None);
            bucket.take(many, minute);
        }
        assert_eq!(bucket.until_full(minute), minute * 100_000);
    }

    prop_compose! {
        fn any_rate()(
            events in 1u32..2000, interval in 1u64..10_000_000_000, burst in 1u32..50
        ) -> (u32, Duration, u32) {
            (events, Duration::from_nanos(interval), burst)
        }
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_burst_plus_its_share_of_the_rate(
            (events, interval, burst) in any_rate(),
            steps in prop::collection::vec((0usize..3, 0u64..2_000_000_000), 1..200),
        ) {
            let mut now = Duration::ZERO;
            let times: Vec<_> = steps.iter().map(|(kind, step)| {
                // Some close together, some at once.
                now += Duration::from_nanos([0, step / 1000, *step][*kind]);
                now
            }).collect();
            let passed = passed(Rate::new(events, interval, burst), &times);
            for (at, from) in passed.iter().enumerate() {
                for (count, to) in (1u128..).zip(&passed[at..]) {
                    let allowed = (*to - *from).as_nanos() * u128::from(events) / interval.as_nanos();
                    prop_assert!(count <= u128::from(burst) + allowed, "{count} in {:?}", *to - *from);
                }
            }
        }

        #[test]
        fn an_event_passes_when_it_has_waited_and_not_before(
            (events, interval, burst) in any_rate(), before in 0u32..60, idle in 0u64..1_000_000_000
        ) {
            let rate = Rate::new(events, interval, burst);
            let now = Duration::from_nanos(idle);
            let mut bucket = Bucket::default();
            for _ in 0..before {
                if bucket.wait(rate, now).is_none() {
                    bucket.take(rate, now);
                }
            }
            let wait = bucket.wait(rate, now);
            prop_assert_eq!(wait.is_some(), before >= burst, "the burst passes at once");
            if let Some(wait) = wait {
                prop_assert_eq!(bucket.wait(rate, now + wait), None);
                prop_assert_eq!(bucket.wait(rate, now + wait - NANO), Some(NANO));
            }
            let full = now + bucket.until_full(now);
            prop_assert_eq!(passed(rate, &vec![full; 60]).len(), burst.min(60) as usize);
        }
    }
}
