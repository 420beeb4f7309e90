//! Times as brokers have them: in milliseconds since 1970.

use std::time::{Duration, SystemTime};

#[cfg(feature = "sqlite")]
use crate::clock::now;

/// The time now.
#[cfg(feature = "sqlite")]
pub(crate) fn now_ms() -> i64 {
    to_ms(now())
}

#[cfg(feature = "sqlite")]
fn to_ms(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => ms(after),
        Err(before) => -ms(before.duration()),
    }
}

pub(crate) fn from_ms(ms: i64) -> Option<SystemTime> {
    let distance = Duration::from_millis(ms.unsigned_abs());
    if ms < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

/// A duration in milliseconds, as far as they can be counted.
pub(crate) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
