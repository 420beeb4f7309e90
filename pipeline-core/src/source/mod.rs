//! Sources: queues that any task may push to, and ready-made producers.

mod ends;
mod fair_queue;
#[cfg(all(test, interleavings))]
mod interleavings;
mod iter;
mod poll;
mod queue;
mod store;
mod stream;
mod timed_queue;
mod wait_list;

use std::fmt;

use thiserror::Error;

pub use self::{
    fair_queue::{FairQueue, FairQueueOptions, FairQueueProducer, fair_queue},
    iter::{FromIter, from_iter},
    poll::{FromPoll, from_poll},
    queue::{Queue, QueueOptions, QueueProducer, queue},
    stream::{FromStream, from_stream},
    timed_queue::{TimedFairQueue, TimedQueue, timed_fair_queue, timed_queue},
};
use crate::exit::ExitReason;

/// What happened to an offered item.
///
/// ```
/// use pipeline_core::{
///     source::{OfferOutcome, QueueOptions, queue},
///     stage::BufferKeep,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (newest, _producer) = queue(QueueOptions::new().capacity(1).keep(BufferKeep::Last));
/// assert_eq!(newest.offer(1)?, OfferOutcome::Kept);
/// assert_eq!(newest.offer(2)?, OfferOutcome::DisplacedOldest);
///
/// let (oldest, _producer) = queue(QueueOptions::new().capacity(1).keep(BufferKeep::First));
/// assert_eq!(oldest.offer(1)?, OfferOutcome::Kept);
/// assert_eq!(oldest.offer(2)?, OfferOutcome::Discarded);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum OfferOutcome {
    /// The item was put into the queue.
    Kept,
    /// The item was put into the queue, and the oldest item was discarded for it: in a
    /// [`FairQueue`], the oldest of one key.
    DisplacedOldest,
    /// The item was discarded.
    Discarded,
}

/// The error of a closed queue, with the item.
///
/// ```
/// use pipeline_core::source::{Closed, QueueOptions, queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (queue, producer) = queue(QueueOptions::new());
/// // The pipeline is gone, and with it the taking end.
/// drop(producer);
/// let Closed(order) = queue.push("an order").await.unwrap_err();
/// assert_eq!(order, "an order");
/// # }
/// ```
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[error("the queue is closed")]
pub struct Closed<T>(pub T);

/// Why an item was not pushed. The error contains the item.
///
/// ```
/// use pipeline_core::source::{QueueOptions, TryPushError, queue};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = queue(QueueOptions::new().capacity(1));
/// queue.try_push("first")?;
/// match queue.try_push("second") {
///     Err(TryPushError::Full(order)) => assert_eq!(order, "second"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryPushError<T> {
    /// The queue is full.
    #[error("the queue is full")]
    Full(T),
    /// The queue is full for the item's key. Only a [`FairQueue`] has
    /// keys.
    #[error("the queue is full for this key")]
    KeyFull(T),
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed(T),
}

// Not derived, so that the errors can be used with items that do not implement `Debug`.
impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

impl<T> fmt::Debug for TryPushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::KeyFull(_) => "KeyFull(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// The number of a source's consumers, and whether the source ends without any.
#[derive(Debug, Default)]
pub(super) struct ConsumerCount {
    consumers: usize,
    needed: bool,
}

impl ConsumerCount {
    /// Makes the source end when its last consumer leaves.
    pub(super) fn needed(&mut self) {
        self.needed = true;
    }

    pub(super) fn joined(&mut self) {
        self.consumers += 1;
    }

    pub(super) fn left(&mut self) -> Result<(), ExitReason> {
        self.consumers -= 1;
        if self.needed && self.consumers == 0 { Err(ExitReason::Normal) } else { Ok(()) }
    }
}
