//! A recorder for tests that checks whether a lock is held while it records.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use parking_lot::Mutex;

/// Records nothing, and checks each time whether a lock is held.
#[derive(Clone, Default)]
pub(crate) struct LockProbe {
    is_locked: Arc<OnceLock<Box<dyn Fn() -> bool + Send + Sync>>>,
    /// The metrics that were recorded, and whether the lock was held then.
    seen: Arc<Mutex<BTreeSet<(String, bool)>>>,
}

/// A metric, by name and label values.
struct Watched(String, LockProbe);

impl LockProbe {
    /// Sets the check.
    pub(crate) fn watch(&self, is_locked: impl Fn() -> bool + Send + Sync + 'static) {
        assert!(self.is_locked.set(Box::new(is_locked)).is_ok(), "the check is already set");
    }

    /// The names of the metrics that were recorded.
    ///
    /// # Panics
    ///
    /// If the lock was held when one of them was.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let seen = self.seen.lock();
        let locked: Vec<_> = seen.iter().filter(|(_, is_locked)| *is_locked).collect();
        assert!(locked.is_empty(), "{locked:?}");
        seen.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Watched {
    fn look(&self) {
        let Self(name, LockProbe { is_locked, seen }) = self;
        if let Some(is_locked) = is_locked.get() {
            let is_locked = is_locked();
            seen.lock().insert((name.clone(), is_locked));
        }
    }
}

impl CounterFn for Watched {
    fn increment(&self, _: u64) {
        self.look();
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Watched {
    fn increment(&self, _: f64) {
        self.look();
    }

    fn decrement(&self, _: f64) {
        self.look();
    }

    fn set(&self, _: f64) {
        self.look();
    }
}

impl HistogramFn for Watched {
    fn record(&self, _: f64) {
        self.look();
    }
}

impl Recorder for LockProbe {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels = key.labels().map(|label| format!(" {}", label.value()));
        let name = key.name().to_owned() + &labels.collect::<String>();
        Counter::from_arc(Arc::new(Watched(name, self.clone())))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Watched(key.name().to_owned(), self.clone())))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Watched(key.name().to_owned(), self.clone())))
    }
}
