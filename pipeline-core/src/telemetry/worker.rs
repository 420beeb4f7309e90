//! What a consumer supervisor records.

use metrics::{Counter, Gauge, Histogram};

use super::{StageLabels, Telemetry};

/// The handles of one consumer supervisor.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    /// From the start of a worker to its end, every attempt on its own.
    pub(crate) process_time: Histogram,
    pub(crate) failed: Counter,
    pub(crate) restarted: Counter,
    pub(crate) given_up: Counter,
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
            restarted: nothing.clone(),
            given_up: nothing,
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
