//! For how many flushes nobody has needed a series.

use std::sync::atomic::{AtomicU32, Ordering};

/// Counts flushes. Only flushes touch it, and only one at a time.
#[derive(Debug, Default)]
pub(crate) struct Idle(AtomicU32);

impl Idle {
    /// One more flush, and whether anybody held the series or recorded into it.
    pub(crate) fn note(&self, in_use: bool) {
        let flushes = if in_use { 0 } else { self.flushes().saturating_add(1) };
        self.0.store(flushes, Ordering::Relaxed);
    }

    pub(crate) fn flushes(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
