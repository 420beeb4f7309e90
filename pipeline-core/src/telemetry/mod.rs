//! Metrics: the recorder of a component, and the metrics of stages and supervisors.

mod handle;
mod stage;

use std::{fmt, sync::Arc, time::Duration};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};

use self::handle::Handle;
pub(crate) use self::stage::{
    BatchTimer, Discard, GivenUp, Refusal, StageMetrics, StageSamples, WorkerMetrics,
};

/// The metrics recorder of a component: the global recorder, or an explicit one.
///
/// Components register their metrics once, when they start, and keep the handles. So a global
/// recorder has to be installed before that.
///
/// A panic of the recorder is caught and logged: the value is not recorded, and nothing else happens.
///
/// ```
/// use metrics::NoopRecorder;
/// use pipeline_core::{Pipeline, telemetry::Telemetry};
///
/// let builder = Pipeline::builder("silent").telemetry(Telemetry::with_recorder(NoopRecorder));
/// ```
#[derive(Clone, Default)]
pub struct Telemetry {
    recorder: Option<Arc<dyn Recorder + Send + Sync>>,
}

impl Telemetry {
    /// The global recorder of the process. Without one, metrics are dropped.
    #[must_use]
    pub fn global() -> Self {
        Self::default()
    }

    /// An explicit recorder, independent of the global one.
    #[must_use]
    pub fn with_recorder(recorder: impl Recorder + Send + Sync + 'static) -> Self {
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
        self.register(name, |recorder| {
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
        self.register(name, |recorder| {
            recorder.describe_gauge(name.into(), Some(Unit::Count), description.into());
            recorder.register_gauge(&key, &METADATA)
        })
    }

    /// Registers a histogram of times, in [milliseconds].
    pub fn timer(
        &self,
        name: &'static str,
        description: &'static str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Histogram {
        let key = key(name, labels);
        self.register(name, |recorder| {
            recorder.describe_histogram(name.into(), Some(Unit::Milliseconds), description.into());
            recorder.register_histogram(&key, &METADATA)
        })
    }

    fn register<H: Handle>(
        &self,
        name: &'static str,
        register: impl FnOnce(&dyn Recorder) -> H,
    ) -> H {
        handle::register(name, || match &self.recorder {
            Some(recorder) => register(&**recorder),
            None => metrics::with_recorder(register),
        })
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

/// A time as the sample of a [timer](Telemetry::timer): in milliseconds, with fractions.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn key(name: &'static str, labels: impl IntoIterator<Item = (&'static str, String)>) -> Key {
    let labels: Vec<Label> =
        labels.into_iter().map(|(key, value)| Label::new(key, value)).collect();
    Key::from_parts(name, labels)
}

/// The labels of a stage's metrics. They are names chosen by the program, so their number is
/// bounded.
pub(crate) type StageLabels = [(&'static str, String); 2];

pub(crate) fn stage_labels(pipeline: &str, stage: &str) -> StageLabels {
    [("pipeline", pipeline.to_owned()), ("stage", stage.to_owned())]
}
