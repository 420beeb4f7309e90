//! Deadlines that are noticed late. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A deadline that is noticed so much later than it was means that the process was stopped meanwhile.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// How long a process that was stopped has to read and write what has come about meanwhile.
pub(crate) const RECOVERY: Duration = Duration::from_secs(5);

/// Whether the process was stopped when this deadline passed, if it is noticed now: then it says nothing
/// about a client.
///
/// This holds only if the caller has waited for the deadline. One that had passed before the wait began is
/// late without a stop.
pub(crate) fn is_late(deadline: Instant, now: Instant) -> bool {
    now.saturating_duration_since(deadline) >= LATE
}
