//! The wall clock, which is read here and nowhere else in this crate.
//!
//! An operator, or a time server, may set it to any time while the program runs. So it is read once,
//! at the start, and no timer depends on it. Tokens that other programs read are dated by their
//! callers. The end of a socket is such a date too: the clock is read when the end is set, and what
//! remains is counted without it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The time until a moment, by the wall clock as it is set now; zero if the moment has passed.
pub(crate) fn remaining(moment: SystemTime) -> Duration {
    moment.duration_since(SystemTime::now()).unwrap_or_default()
}

/// The time since a moment, by the wall clock as it is set now; zero if the moment is still to come. For a moment
/// that another program has read of its own clock a moment ago, of which a clock that continues from the start of
/// this process would be off by as much as the wall clock was set since.
pub(crate) fn elapsed(moment: SystemTime) -> Duration {
    SystemTime::now().duration_since(moment).unwrap_or_default()
}

/// The bits of a version that are random. As nanoseconds they are a millisecond.
const RANDOM: u64 = (1 << 20) - 1;

/// A clock that is never set: it continues from the wall clock's time at its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// The time since 1970, by the wall clock, at the start.
    since_1970: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self::start_at(SystemTime::now())
    }

    /// A clock that starts at this time. A time before 1970 counts as 1970.
    fn start_at(now: SystemTime) -> Self {
        let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), since_1970 }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The time since 1970. It never decreases.
    pub(crate) fn since_1970(&self) -> Duration {
        self.since_1970.saturating_add(self.started.elapsed())
    }

    /// The time since a moment of the wall clock; zero if that is in the future.
    pub(crate) fn since(&self, moment: SystemTime) -> Duration {
        let at = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_1970().saturating_sub(at)
    }

    /// The time until a moment of the wall clock; zero if that has passed.
    pub(crate) fn until(&self, moment: SystemTime) -> Duration {
        let at = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        at.saturating_sub(self.since_1970())
    }

    /// A version for a replica that starts with this clock. It is greater than those of earlier
    /// starts, unless the wall clock was set back, and different from them in any case.
    pub(crate) fn version(&self) -> u64 {
        let mut random = [0; 8];
        // Without random bits, versions differ by the time alone.
        let _ = getrandom::fill(&mut random);
        version(self.since_1970, u64::from_ne_bytes(random))
    }
}

/// The time in nanoseconds, the last millisecond of it replaced by random bits.
fn version(since_1970: Duration, random: u64) -> u64 {
    let time = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
    time & !RANDOM | random & RANDOM
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test(start_paused = true)]
    async fn a_clock_continues_from_its_start() {
        let clock = Clock::start_at(UNIX_EPOCH + DAY);
        assert_eq!(clock.since_1970(), DAY);
        tokio::time::advance(DAY).await;
        assert_eq!(clock.since_1970(), 2 * DAY);
        let early = Clock::start_at(UNIX_EPOCH - DAY);
        assert_eq!(clock.since(UNIX_EPOCH + DAY / 2), 3 * DAY / 2);
        assert_eq!(clock.since(UNIX_EPOCH + 3 * DAY), Duration::ZERO);
        assert_eq!(clock.until(UNIX_EPOCH + 3 * DAY), DAY);
        assert_eq!(clock.until(UNIX_EPOCH + DAY), Duration::ZERO);
        assert_eq!(early.since_1970(), Duration::ZERO, "a time before 1970 counts as 1970");
    }

    #[test]
    fn versions_increase_with_the_time() {
        let millisecond = Duration::from_nanos(RANDOM + 1);
        for time in [Duration::ZERO, DAY, 20_000 * DAY] {
            let (early, late) = (version(time, u64::MAX), version(time + millisecond, 0));
            assert!(early < late, "{early} at {time:?}, {late} a millisecond later");
        }
        assert_eq!(version(Duration::MAX, u64::MAX), u64::MAX, "no time is too late");
    }

    #[tokio::test]
    async fn starts_at_the_same_time_have_different_versions() {
        for time in [UNIX_EPOCH - DAY, UNIX_EPOCH + 20_000 * DAY] {
            let clock = Clock::start_at(time);
            let versions: HashSet<_> = (0..5).map(|_| clock.version()).collect();
            assert!(versions.len() > 1, "{versions:?} at {time:?}");
        }
    }
}
