//! The number of tries of an event and the delays between them. Pure.

use std::{fmt, time::Duration};

use thiserror::Error;

use crate::{
    backoff::{Backoff, Jitter},
    exit::ExitReason,
};

/// The default number of tries.
const MOST: u32 = 3;

/// The number of tries of an event and the delays between them. The defaults depend on whether the
/// restarts of all children together are limited, which is GenStage's rule.
#[derive(Debug, Default)]
pub(super) struct Tries {
    pub(super) most: Option<u32>,
    pub(super) backoff: Option<Backoff>,
}

impl Tries {
    /// Whether an event with this many failures is tried again.
    pub(super) fn allow_another(&self, failed: u32, limited: bool) -> bool {
        let usual = if limited { u32::MAX } else { MOST };
        failed < self.most.unwrap_or(usual)
    }

    /// The delay before an event with this many failures is tried again. `random` is between 0 and
    /// 1.
    pub(super) fn delay(&self, failed: u32, limited: bool, random: f64) -> Duration {
        match self.backoff {
            None if limited => Duration::ZERO,
            backoff => backoff.unwrap_or_else(usual).nth_delay(failed, random),
        }
    }
}

fn usual() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).jitter(Jitter::Equal)
}

/// The reason for which a [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor) ended whose
/// children failed more often than its
/// [`max_restarts`](crate::supervisor::ConsumerSupervisor::max_restarts) allow. It is the error of
/// an [`ExitReason::Failed`]. Its source is the error of the last child.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{
///     ExitReason, Pipeline,
///     source::from_iter,
///     subscription::SubscribeOptions,
///     supervisor::{ConsumerSupervisor, TooManyRestarts},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fail = async |_: &u64| Err(ExitReason::failed("no route"));
/// let supervisor = ConsumerSupervisor::new(fail).max_restarts(3, Duration::from_secs(5));
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..1))
///     .consumer_supervisor(supervisor, SubscribeOptions::new())
///     .start()?;
/// let report = pipeline.join().await;
/// let failure = report.failure().ok_or("all went well")?;
/// let error = failure.reason.source().and_then(|error| error.downcast_ref::<TooManyRestarts>());
/// assert_eq!(error.unwrap().last().to_string(), "failed: no route");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TooManyRestarts {
    last: ExitReason,
}

impl TooManyRestarts {
    pub(super) fn new(last: ExitReason) -> Self {
        Self { last }
    }

    /// Why the last child ended.
    #[must_use]
    pub fn last(&self) -> &ExitReason {
        &self.last
    }
}

impl fmt::Display for TooManyRestarts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many restarts of workers, the last one {}", self.last)
    }
}

/// The reason for giving up an event of which too many of its key wait:
/// [`ConsumerSupervisor::max_waiting_per_key`](super::ConsumerSupervisor::max_waiting_per_key). It is the source of the
/// [`ExitReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} events of its key wait already")]
#[non_exhaustive]
pub struct KeyIsFull {
    /// How many wait, which is the bound.
    pub waiting: usize,
}

impl std::error::Error for TooManyRestarts {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.last.source()
    }
}

/// The reason for which a worker has failed that took longer than
/// [`run_within`](crate::supervisor::ConsumerSupervisor::run_within). It is the error of an
/// [`ExitReason::Failed`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a worker took longer than {within:?}")]
pub struct TimedOut {
    within: Duration,
}

impl TimedOut {
    pub(super) fn new(within: Duration) -> Self {
        Self { within }
    }

    /// The limit.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_tried_three_times_by_default() {
        let usual = Tries::default();
        assert_eq!([1, 2, 3].map(|failed| usual.allow_another(failed, false)), [true, true, false]);
        assert!(
            usual.allow_another(1_000_000, true),
            "the supervisor's limit on restarts applies instead"
        );
        let once = Tries { most: Some(1), backoff: None };
        assert!(!once.allow_another(1, false) && !once.allow_another(1, true));
    }

    #[test]
    fn the_delay_grows_with_each_failure() {
        let ms = Duration::from_millis;
        let usual = Tries::default();
        assert_eq!(
            [1, 2, 3].map(|failed| usual.delay(failed, false, 1.0)),
            [100, 200, 400].map(ms)
        );
        assert_eq!(usual.delay(u32::MAX, false, 1.0), ms(5000));
        assert_eq!(usual.delay(1, true, 1.0), Duration::ZERO);
        let backoff = Backoff::new(ms(1), ms(2)).jitter(Jitter::None);
        let own = Tries { most: None, backoff: Some(backoff) };
        assert_eq!([1, 2, 3].map(|failed| own.delay(failed, true, 0.0)), [1, 2, 2].map(ms));
    }
}
