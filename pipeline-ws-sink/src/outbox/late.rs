//! Deadlines that are noticed late. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline that is noticed this much later means that the process was suspended meanwhile.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// How long a process that was suspended has to read and write pending data.
pub(crate) const RECOVERY: Duration = Duration::from_secs(5);

/// Whether the process was suspended when this deadline passed, if it is noticed now: then the
/// deadline says nothing about a client.
///
/// This holds only if the caller has waited for the deadline. A deadline that had passed before the
/// wait began is late without a suspension.
pub(crate) fn is_late(deadline: Instant, now: Instant) -> bool {
    now.saturating_duration_since(deadline) >= LATE
}
