//! Handles of metrics whose panics are caught.
//!
//! A recorder is code of the application, and metrics are recorded where a panic would do harm: between two steps of
//! a delivery, or while a value is dropped. A panic there during another panic would abort the process.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn};

use crate::{exit::ExitReason, shown::shown};

/// A kind of handle.
pub(super) trait Handle: Sized {
    /// A handle that records nothing.
    fn none() -> Self;

    /// A handle that records to this one, and catches its panics.
    fn catch_panics(self, name: &'static str) -> Self;
}

/// A handle whose panics are caught. Such a value is lost, and nothing else.
struct CatchPanics<H> {
    handle: H,
    /// The metric's name, for the log.
    name: &'static str,
    panics: AtomicU64,
}

/// Registers a metric. If the recorder panics, the metric is not recorded.
pub(super) fn register<H: Handle>(name: &'static str, register: impl FnOnce() -> H) -> H {
    match catch_unwind(AssertUnwindSafe(register)) {
        Ok(handle) => handle.catch_panics(name),
        Err(payload) => {
            log(name, 1, payload);
            H::none()
        }
    }
}

impl<H> CatchPanics<H> {
    fn new(handle: H, name: &'static str) -> Arc<Self> {
        Arc::new(Self { handle, name, panics: AtomicU64::new(0) })
    }

    #[inline]
    fn call(&self, record: impl FnOnce(&H)) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| record(&self.handle))) {
            self.panicked(payload);
        }
    }

    /// Logs the first panic, the second, the fourth, the eighth and so on: clients can cause them.
    #[cold]
    fn panicked(&self, payload: Box<dyn Any + Send>) {
        let panics = self.panics.fetch_add(1, Relaxed).saturating_add(1);
        if panics.is_power_of_two() {
            log(self.name, panics, payload);
        }
    }
}

fn log(metric: &str, panics: u64, payload: Box<dyn Any + Send>) {
    // The log's subscriber is code of the application, too. The panic hook has been run in any case.
    let _ = catch_unwind(AssertUnwindSafe(move || {
        let reason = ExitReason::from_panic(&*payload);
        tracing::error!(metric, panics, reason = shown(&reason), "the metrics recorder panicked");
    }));
}

impl CounterFn for CatchPanics<Counter> {
    fn increment(&self, value: u64) {
        self.call(|counter| counter.increment(value));
    }

    fn absolute(&self, value: u64) {
        self.call(|counter| counter.absolute(value));
    }
}

impl GaugeFn for CatchPanics<Gauge> {
    fn increment(&self, value: f64) {
        self.call(|gauge| gauge.increment(value));
    }

    fn decrement(&self, value: f64) {
        self.call(|gauge| gauge.decrement(value));
    }

    fn set(&self, value: f64) {
        self.call(|gauge| gauge.set(value));
    }
}

impl HistogramFn for CatchPanics<Histogram> {
    fn record(&self, value: f64) {
        self.call(|histogram| histogram.record(value));
    }

    fn record_many(&self, value: f64, count: usize) {
        self.call(|histogram| histogram.record_many(value, count));
    }
}

impl Handle for Counter {
    fn none() -> Self {
        Self::noop()
    }

    fn catch_panics(self, name: &'static str) -> Self {
        Self::from_arc(CatchPanics::new(self, name))
    }
}

impl Handle for Gauge {
    fn none() -> Self {
        Self::noop()
    }

    fn catch_panics(self, name: &'static str) -> Self {
        Self::from_arc(CatchPanics::new(self, name))
    }
}

impl Handle for Histogram {
    fn none() -> Self {
        Self::noop()
    }

    fn catch_panics(self, name: &'static str) -> Self {
        Self::from_arc(CatchPanics::new(self, name))
    }
}
