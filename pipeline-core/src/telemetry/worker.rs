//! Metrics of a consumer supervisor.

use metrics::{Counter, Gauge, Histogram};

use super::{StageLabels, Telemetry};

/// The metrics of one consumer supervisor.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    /// The time from the start of a worker to its end, separately for each attempt.
    pub(crate) process_time: Histogram,
    pub(crate) failed: Counter,
    pub(crate) restarted: Counter,
    pub(crate) given_up: Counter,
    /// The current limit of children, for an adaptive supervisor.
    pub(crate) limit: Gauge,
}

impl WorkerMetrics {
    /// Records nothing.
    pub(crate) fn none() -> Self {
        let nothing = Counter::noop();
        Self {
            process_time: Histogram::noop(),
            failed: nothing.clone(),
            restarted: nothing.clone(),
            given_up: nothing,
            limit: Gauge::noop(),
        }
    }

    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        Self {
            process_time: telemetry.timer(
                "pipeline.worker.process_time",
                "From the start of a worker to its end",
                labels.clone(),
            ),
            failed: telemetry.counter(
                "pipeline.worker.failures",
                "Workers that ended with an error or a panic",
                labels.clone(),
            ),
            restarted: telemetry.counter(
                "pipeline.worker.restarts",
                "Workers started again with the same event",
                labels.clone(),
            ),
            given_up: telemetry.counter(
                "pipeline.worker.given_up",
                "Events that were given up because their workers failed too often",
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
