//! The only reader of the wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The shop's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Option<(SystemTime, Instant)>);

impl Clock {
    /// The wall clock.
    #[must_use]
    pub const fn wall() -> Self {
        Self(None)
    }

    /// A clock that runs with tokio's, from this time on. Tests pause it.
    #[must_use]
    pub fn running_from(time: SystemTime) -> Self {
        Self(Some((time, Instant::now())))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        match self.0 {
            None => SystemTime::now(),
            Some((start, at)) => start.checked_add(at.elapsed()).unwrap_or(start),
        }
    }

    /// The time in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        since.as_millis().try_into().unwrap_or(i64::MAX)
    }
}
