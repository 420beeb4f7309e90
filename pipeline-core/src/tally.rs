//! A counter with one writer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter that one task adds to and any task may read.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    /// Not for two tasks at a time: one could overwrite the update of the other.
    #[inline]
    pub(crate) fn add(&self, events: usize) {
        self.0.store(self.get().saturating_add(events as u64), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
