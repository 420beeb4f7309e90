//! What becomes of an item that is brought to a queue.

use std::fmt;

use thiserror::Error;

/// What became of an item that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Offer {
    /// There was room for it.
    Kept,
    /// It was put in, and the oldest item was discarded for it: of a
    /// [`FairQueue`](crate::FairQueue), the oldest of one key.
    DisplacedOldest,
    /// It was discarded.
    Discarded,
}

/// The queue takes nothing any more; here is the item.
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[error("the queue is closed")]
pub struct Closed<T>(pub T);

/// Why an item was not taken in; it is in the error.
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryPushError<T> {
    /// There is no room now.
    #[error("the queue is full")]
    Full(T),
    /// There is no room now for the item's key. Only a [`FairQueue`](crate::FairQueue) has keys.
    #[error("the queue is full for this key")]
    KeyFull(T),
    /// The queue takes nothing any more.
    #[error("the queue is closed")]
    Closed(T),
}

// By hand, so that the errors can be used with items that have no `Debug`.
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
