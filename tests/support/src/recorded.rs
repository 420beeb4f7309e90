//! A recorder of metrics for tests.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use parking_lot::Mutex;
use pipeline_core::telemetry::Telemetry;

/// Counters and samples recorded since the last call.
#[derive(Debug)]
pub struct Recorded {
    snapshotter: Snapshotter,
    seen: Mutex<Seen>,
    faults: Arc<Faults>,
}

/// A series of a metric.
#[derive(Debug)]
pub struct Series {
    /// `counter`, `gauge` or, for a histogram of times, `ms`.
    pub kind: String,
    /// The metric's name.
    pub name: String,
    /// The labels with their values.
    pub labels: Vec<(String, String)>,
}

/// Values from earlier snapshots that were not requested: a snapshot takes all values.
#[derive(Debug, Default)]
struct Seen {
    counters: HashMap<String, HashMap<String, u64>>,
    samples: HashMap<String, Vec<f64>>,
    sample_counts: HashMap<String, HashMap<String, usize>>,
    gauges: HashMap<String, HashMap<String, f64>>,
    levels: HashMap<String, HashMap<String, f64>>,
}

impl Recorded {
    /// A telemetry with a recorder, and its reader.
    #[must_use]
    pub fn new() -> (Telemetry, Self) {
        let (recorder, faults) = (DebuggingRecorder::new(), Arc::<Faults>::default());
        let snapshotter = recorder.snapshotter();
        let telemetry = Telemetry::with_recorder(Faulty { recorder, faults: faults.clone() });
        (telemetry, Self { snapshotter, seen: Mutex::default(), faults })
    }

    /// From now on, the recorder panics instead of recording a metric whose name begins with this.
    pub fn panic_at(&self, name: &'static str) {
        *self.faults.at.lock() = Some(name);
    }

    /// How often the recorder has panicked.
    #[must_use]
    pub fn panics(&self) -> usize {
        self.faults.panics.load(Relaxed)
    }

    /// The increase of each series of a counter since the last call: its labels, as `name=value` ordered
    /// by name, and the number. Unchanged series are omitted.
    #[must_use]
    pub fn counters(&self, name: &str) -> Vec<(String, u64)> {
        self.look();
        let series = self.seen.lock().counters.remove(name).unwrap_or_default();
        let mut series: Vec<_> = series.into_iter().collect();
        series.sort();
        series
    }

    /// The samples of a histogram since the last call, of all its series.
    #[must_use]
    pub fn samples(&self, name: &str) -> Vec<f64> {
        self.look();
        self.seen.lock().samples.remove(name).unwrap_or_default()
    }

    /// The number of samples of each series of a histogram: its labels, as for counters, and the number.
    /// Series without samples are omitted.
    #[must_use]
    pub fn sample_counts(&self, name: &str) -> Vec<(String, usize)> {
        self.look();
        let seen = self.seen.lock();
        let series = seen.sample_counts.get(name).into_iter().flatten();
        let mut series: Vec<_> = series.map(|(labels, count)| (labels.clone(), *count)).collect();
        series.sort();
        series
    }

    /// The value of each series of a gauge in the last snapshot, if it was set since the one before, and
    /// otherwise zero: its labels, as for counters, and the value. Reading counters or samples takes a
    /// snapshot.
    #[must_use]
    pub fn gauges(&self, name: &str) -> Vec<(String, f64)> {
        let mut series: Vec<_> = self
            .seen
            .lock()
            .gauges
            .get(name)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), *v))
            .collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        series
    }

    /// The value of each series of a gauge that is only incremented and decremented: its labels, as for
    /// counters, and the value.
    #[must_use]
    pub fn levels(&self, name: &str) -> Vec<(String, f64)> {
        self.look();
        let seen = self.seen.lock();
        let series = seen.levels.get(name).into_iter().flatten();
        let mut series: Vec<_> = series.map(|(labels, level)| (labels.clone(), *level)).collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        series
    }

    /// All registered series, with or without values.
    #[must_use]
    pub fn series(&self) -> Vec<Series> {
        let series = self.snapshotter.snapshot().into_vec().into_iter();
        series
            .map(|(key, .., value)| {
                let kind = match value {
                    DebugValue::Counter(_) => "counter",
                    DebugValue::Gauge(_) => "gauge",
                    DebugValue::Histogram(_) => "ms",
                };
                let key = key.key();
                let labels = key.labels().map(|l| (l.key().to_owned(), l.value().to_owned()));
                Series {
                    kind: kind.to_owned(),
                    name: key.name().to_owned(),
                    labels: labels.collect(),
                }
            })
            .collect()
    }

    /// Takes a snapshot.
    pub fn look(&self) {
        let mut seen = self.seen.lock();
        for (key, .., value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let name = key.name().to_owned();
            match value {
                DebugValue::Counter(0) => {}
                DebugValue::Counter(count) => {
                    *seen.counters.entry(name).or_default().entry(labels(key)).or_default() +=
                        count;
                }
                DebugValue::Gauge(value) => {
                    let levels = seen.levels.entry(name.clone()).or_default();
                    *levels.entry(labels(key)).or_default() += value.into_inner();
                    seen.gauges.entry(name).or_default().insert(labels(key), value.into_inner());
                }
                DebugValue::Histogram(samples) if samples.is_empty() => {}
                DebugValue::Histogram(samples) => {
                    let counts = seen.sample_counts.entry(name.clone()).or_default();
                    *counts.entry(labels(key)).or_default() += samples.len();
                    let samples = samples.into_iter().map(f64::from);
                    seen.samples.entry(name).or_default().extend(samples);
                }
            }
        }
    }
}

/// The labels as `name=value`, ordered by name.
fn labels(key: &Key) -> String {
    let mut labels: Vec<_> =
        key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
    labels.sort();
    labels.join(",")
}

/// When the recorder panics.
#[derive(Debug, Default)]
struct Faults {
    at: Mutex<Option<&'static str>>,
    panics: AtomicUsize,
}

/// A recorder that may panic.
struct Faulty<R> {
    recorder: R,
    faults: Arc<Faults>,
}

/// A metric of it.
struct Metric<H> {
    handle: H,
    name: KeyName,
    faults: Arc<Faults>,
}

impl<R> Faulty<R> {
    fn metric<H>(&self, key: &Key, handle: H) -> Arc<Metric<H>> {
        let name = key.name().to_owned().into();
        Arc::new(Metric { handle, name, faults: self.faults.clone() })
    }
}

impl<H> Metric<H> {
    fn handle(&self) -> &H {
        let at = *self.faults.at.lock();
        if at.is_some_and(|at| self.name.as_str().starts_with(at)) {
            self.faults.panics.fetch_add(1, Relaxed);
            panic!("the recorder panics at {}", self.name.as_str());
        }
        &self.handle
    }
}

impl<R: Recorder> Recorder for Faulty<R> {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_counter(name, unit, description);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_gauge(name, unit, description);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.recorder.describe_histogram(name, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.metric(key, self.recorder.register_counter(key, metadata)))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.metric(key, self.recorder.register_gauge(key, metadata)))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.metric(key, self.recorder.register_histogram(key, metadata)))
    }
}

impl CounterFn for Metric<Counter> {
    fn increment(&self, value: u64) {
        self.handle().increment(value);
    }

    fn absolute(&self, value: u64) {
        self.handle().absolute(value);
    }
}

impl GaugeFn for Metric<Gauge> {
    fn increment(&self, value: f64) {
        self.handle().increment(value);
    }

    fn decrement(&self, value: f64) {
        self.handle().decrement(value);
    }

    fn set(&self, value: f64) {
        self.handle().set(value);
    }
}

impl HistogramFn for Metric<Histogram> {
    fn record(&self, value: f64) {
        self.handle().record(value);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.handle().record_many(value, count);
    }
}
