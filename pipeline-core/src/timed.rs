//! An item and the moment it was enqueued.

use std::ops::Deref;

use tokio::time::Instant;

/// An item with the moment it entered the pipeline, so that its way can be timed to the end.
///
/// It derefs to the item.
///
/// ```
/// use pipeline_core::Timed;
///
/// let timed = Timed::now("hello");
/// assert_eq!(timed.len(), 5);
/// println!("{} has waited {:?}", *timed, timed.enqueued_at().elapsed());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed<T> {
    item: T,
    enqueued_at: Instant,
}

impl<T> Timed<T> {
    /// Stamps an item with this moment.
    #[must_use]
    pub fn now(item: T) -> Self {
        Self { item, enqueued_at: Instant::now() }
    }

    /// When the item was enqueued.
    #[must_use]
    pub fn enqueued_at(&self) -> Instant {
        self.enqueued_at
    }

    /// The item.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.item
    }
}

impl<T> Deref for Timed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}
