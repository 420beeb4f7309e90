//! What the stages measure, and where it goes.

use std::{fmt, sync::Arc};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};

/// Where a component records its metrics: the process's recorder, or one given explicitly.
///
/// Components register their handles once, when they are started, and record through them from then
/// on. So a global recorder has to be installed before that.
///
/// ```
/// use metrics::NoopRecorder;
/// use pipeline_core::{Pipeline, Telemetry};
///
/// let builder = Pipeline::builder("silent").telemetry(Telemetry::to(NoopRecorder));
/// ```
#[derive(Clone, Default)]
pub struct Telemetry {
    recorder: Option<Arc<dyn Recorder + Send + Sync>>,
}

impl Telemetry {
    /// The recorder that is installed for the process, or nowhere.
    #[must_use]
    pub fn global() -> Self {
        Self::default()
    }

    /// This recorder, whatever is installed for the process.
    #[must_use]
    pub fn to(recorder: impl Recorder + Send + Sync + 'static) -> Self {
        Self { recorder: Some(Arc::new(recorder)) }
    }

    /// Registers a counter.
    pub fn counter(
        &self,
        name: &'static str,
        description: &'static str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Counter {
        let key = key(name, labels);
        self.with(|recorder| {
            recorder.describe_counter(name.into(), Some(Unit::Count), description.into());
            recorder.register_counter(&key, &METADATA)
        })
    }

    /// Registers a gauge.
    pub fn gauge(
        &self,
        name: &'static str,
        description: &'static str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Gauge {
        let key = key(name, labels);
        self.with(|recorder| {
            recorder.describe_gauge(name.into(), Some(Unit::Count), description.into());
            recorder.register_gauge(&key, &METADATA)
        })
    }

    /// Registers a histogram of times, in milliseconds with fractions.
    pub fn milliseconds(
        &self,
        name: &'static str,
        description: &'static str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Histogram {
        let key = key(name, labels);
        self.with(|recorder| {
            recorder.describe_histogram(name.into(), Some(Unit::Milliseconds), description.into());
            recorder.register_histogram(&key, &METADATA)
        })
    }

    fn with<T>(&self, register: impl FnOnce(&dyn Recorder) -> T) -> T {
        match &self.recorder {
            Some(recorder) => register(&**recorder),
            None => metrics::with_recorder(register),
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.recorder.is_some() {
            "Telemetry(explicit)"
        } else {
            "Telemetry(global)"
        })
    }
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn key(name: &'static str, labels: impl IntoIterator<Item = (&'static str, String)>) -> Key {
    let labels: Vec<Label> =
        labels.into_iter().map(|(key, value)| Label::new(key, value)).collect();
    Key::from_parts(name, labels)
}

/// Why events were discarded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Discard {
    /// More were emitted without demand than the stage's buffer holds.
    BufferFull,
    /// More were offered than the queue holds.
    QueueFull,
    /// Nobody was subscribed, and the stage keeps no events for later.
    Unsubscribed,
    /// The dispatcher knows that nobody wants them.
    Filtered,
    /// The dispatcher does not know where they belong.
    Unroutable,
}

/// The labels of a stage's metrics: names that the program chose, so a closed set.
pub(crate) type StageLabels = [(&'static str, String); 2];

/// The handles of one stage.
#[derive(Clone, Debug)]
pub(crate) struct StageMetrics {
    pub(crate) events_in: Counter,
    pub(crate) events_out: Counter,
    buffer_full: Counter,
    queue_full: Counter,
    unsubscribed: Counter,
    filtered: Counter,
    unroutable: Counter,
}

impl StageMetrics {
    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let discarded = |reason: &str| {
            telemetry.counter(
                "pipeline.events_discarded",
                "Events thrown away because there was no room, by reason",
                labels.iter().cloned().chain([("reason", reason.to_owned())]),
            )
        };
        let events = |name, description| telemetry.counter(name, description, labels.clone());
        Self {
            events_in: events("pipeline.events_in", "Events that arrived at a stage"),
            events_out: events("pipeline.events_out", "Events that a stage sent to its consumers"),
            buffer_full: discarded("buffer_full"),
            queue_full: discarded("queue_full"),
            unsubscribed: discarded("unsubscribed"),
            filtered: discarded("filtered"),
            unroutable: discarded("unroutable"),
        }
    }

    pub(crate) fn discarded(&self, why: Discard, events: u64) {
        let counter = match why {
            Discard::BufferFull => &self.buffer_full,
            Discard::QueueFull => &self.queue_full,
            Discard::Unsubscribed => &self.unsubscribed,
            Discard::Filtered => &self.filtered,
            Discard::Unroutable => &self.unroutable,
        };
        counter.increment(events);
    }
}

/// The handles of one consumer supervisor.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    /// From the start of a worker to its end, every attempt on its own.
    pub(crate) process_time: Histogram,
    pub(crate) failed: Counter,
    pub(crate) restarted: Counter,
    /// How many may run at once, where that is found by the supervisor itself.
    pub(crate) limit: Gauge,
}

impl WorkerMetrics {
    /// Records nothing.
    pub(crate) fn none() -> Self {
        let nothing = Counter::noop();
        Self {
            process_time: Histogram::noop(),
            failed: nothing.clone(),
            restarted: nothing,
            limit: Gauge::noop(),
        }
    }

    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        Self {
            process_time: telemetry.milliseconds(
                "pipeline.worker.process_time",
                "From the start of a worker to its end",
                labels.clone(),
            ),
            failed: telemetry.counter(
                "pipeline.worker.failed",
                "Workers that ended with an error or a panic",
                labels.clone(),
            ),
            restarted: telemetry.counter(
                "pipeline.worker.restarted",
                "Workers started again with the same event",
                labels.clone(),
            ),
            limit: telemetry.gauge(
                "pipeline.worker.limit",
                "How many workers an adaptive supervisor lets run at once",
                labels.clone(),
            ),
        }
    }
}
