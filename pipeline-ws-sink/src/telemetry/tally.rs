//! Counters that go to the recorder, and can be read here as well.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use metrics::{Counter, Gauge};

/// A counter that can be read.
pub(crate) struct Tally {
    counter: Counter,
    count: AtomicU64,
}

/// A gauge that can be read.
pub(crate) struct Level {
    gauge: Gauge,
    count: AtomicUsize,
}

/// One unit of a [`Level`], until it is dropped.
pub(crate) struct LevelGuard<'a>(&'a Level);

impl Tally {
    pub(crate) fn increment(&self, by: u64) {
        self.count.fetch_add(by, Relaxed);
        self.counter.increment(by);
    }

    pub(crate) fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

impl From<Counter> for Tally {
    fn from(counter: Counter) -> Self {
        Self { counter, count: AtomicU64::new(0) }
    }
}

impl Level {
    /// Adds one, until the value is dropped.
    pub(crate) fn hold(&self) -> LevelGuard<'_> {
        self.up();
        LevelGuard(self)
    }

    pub(crate) fn up(&self) {
        self.count.fetch_add(1, Relaxed);
        // Incremented and not set: others may have a handle of the same series, and set it in any order.
        self.gauge.increment(1.0);
    }

    /// Subtracts one. Each call comes after its own [`up`](Self::up).
    pub(crate) fn down(&self) {
        self.count.fetch_sub(1, Relaxed);
        self.gauge.decrement(1.0);
    }

    /// Sets the number, if the caller is the only one to count.
    pub(crate) fn set(&self, count: usize) {
        let before = self.count.swap(count, Relaxed);
        self.gauge.increment(count as f64 - before as f64);
    }

    pub(crate) fn get(&self) -> usize {
        self.count.load(Relaxed)
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        // Other handles of the series may remain.
        self.gauge.decrement(self.get() as f64);
    }
}

impl From<Gauge> for Level {
    fn from(gauge: Gauge) -> Self {
        Self { gauge, count: AtomicUsize::new(0) }
    }
}

impl Drop for LevelGuard<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}
