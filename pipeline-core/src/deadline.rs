//! A moment by which something has to be done, or never.

use std::{
    cmp::Ordering,
    future::{self, Future},
    time::Duration,
};

use tokio::time::{self, Instant, error::Elapsed};

/// The moment by which something has to be done, or never.
///
/// [`Duration::MAX`], and any other duration too long for the clock to count, means that there is no
/// deadline. A plain `Instant + Duration` panics there, which is why clippy's `arithmetic_side_effects`
/// refuses it in this project.
///
/// Deadlines are ordered by time; "never" is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A deadline that never passes.
    pub const NEVER: Self = Self(None);

    /// The deadline `within` after `start`.
    #[must_use]
    pub fn after(start: Instant, within: Duration) -> Self {
        Self(start.checked_add(within))
    }

    /// The deadline `within` from now.
    #[must_use]
    pub fn from_now(within: Duration) -> Self {
        Self::after(Instant::now(), within)
    }

    /// The moment, unless the deadline never passes.
    #[must_use]
    pub const fn instant(self) -> Option<Instant> {
        self.0
    }

    /// The same deadline, later by this time.
    #[must_use]
    pub(crate) fn later(self, by: Duration) -> Self {
        Self(self.0.and_then(|at| at.checked_add(by)))
    }

    /// Whether the deadline has passed at `now`. At the moment itself it has.
    #[must_use]
    pub fn has_passed(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }

    /// The time from `now` until the deadline: zero once it has passed, and [`Duration::MAX`] if it
    /// never does.
    #[must_use]
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }

    /// Awaits a future until the deadline has passed.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] if the deadline has passed first.
    ///
    /// # Cancel safety
    ///
    /// As that of the future, which is dropped when the deadline has passed.
    pub async fn limit<F: Future>(self, future: F) -> Result<F::Output, Elapsed> {
        match self.0 {
            Some(at) => time::timeout_at(at, future).await,
            None => Ok(future.await),
        }
    }

    /// Waits until the deadline has passed.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    pub async fn passed(self) {
        match self.0 {
            Some(at) => time::sleep_until(at).await,
            None => future::pending().await,
        }
    }
}

impl Ord for Deadline {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0, other.0) {
            (Some(one), Some(other)) => one.cmp(&other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }
}

impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_duration_means_no_deadline() {
        let now = Instant::now();
        let never = Deadline::after(now, Duration::MAX);
        assert_eq!(never, Deadline::NEVER);
        assert!(!never.has_passed(now));
        assert_eq!(never.remaining(now), Duration::MAX);
    }

    #[test]
    fn a_deadline_has_passed_at_its_moment_and_never_comes_last() {
        let now = Instant::now();
        let [at_once, soon] =
            [Duration::ZERO, Duration::from_secs(1)].map(|within| Deadline::after(now, within));
        assert!(at_once.has_passed(now));
        assert!(!soon.has_passed(now));
        assert_eq!(soon.remaining(now), Duration::from_secs(1));
        assert!(at_once < soon && soon < Deadline::NEVER);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_deadline_ends_when_it_has_passed() {
        let deadline = Deadline::from_now(Duration::from_secs(3));
        let never = Deadline::NEVER;
        tokio::select! {
            () = never.passed() => panic!("never passed"),
            () = deadline.passed() => assert!(deadline.has_passed(Instant::now())),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_is_awaited_until_the_deadline() {
        let soon = || Deadline::from_now(Duration::from_secs(3));
        assert!(soon().limit(time::sleep(Duration::from_secs(2))).await.is_ok());
        assert!(soon().limit(future::pending::<()>()).await.is_err());
        assert!(Deadline::NEVER.limit(time::sleep(Duration::from_secs(99))).await.is_ok());
    }
}
