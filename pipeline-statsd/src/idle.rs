//! How long a series has been unused. Pure, except for the atomic: the time is an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The time of a series' last use, as a duration since the recorder was created. Only flushes access it,
/// one at a time.
#[derive(Debug)]
pub(crate) struct Idle(AtomicU64);

/// No flush has seen the series yet.
const NEVER: u64 = u64::MAX;

impl Idle {
    /// Records whether the series is held or was recorded into. The first call counts as a use.
    pub(crate) fn note(&self, in_use: bool, now: Duration) {
        if in_use || self.0.load(Ordering::Relaxed) == NEVER {
            self.0.store(nanos(now), Ordering::Relaxed);
        }
    }

    /// How long the series has been unused.
    pub(crate) fn time(&self, now: Duration) -> Duration {
        let since = self.0.load(Ordering::Relaxed);
        Duration::from_nanos(nanos(now).saturating_sub(since))
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self(AtomicU64::new(NEVER))
    }
}

/// Enough for five hundred years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_starts_at_the_last_use_and_the_first_call_is_one() {
        let (idle, at) = (Idle::default(), Duration::from_secs);
        assert_eq!(idle.time(at(100)), Duration::ZERO);
        idle.note(false, at(100));
        idle.note(false, at(130));
        assert_eq!(idle.time(at(130)), at(30));
        idle.note(true, at(150));
        assert_eq!(idle.time(at(160)), at(10));
    }
}
