//! The metrics of processors and batch processors.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::{batching::BatchTrigger, failure::FailureKind};
use crate::telemetry::{StageLabels, Telemetry, milliseconds};

/// The kinds of failures that a metric tells apart.
const KINDS: [FailureKind; 4] =
    [FailureKind::Failed, FailureKind::Panicked, FailureKind::NoBatcher, FailureKind::Postponed];

/// The reasons for which a batch is closed.
const TRIGGERS: [BatchTrigger; 4] =
    [BatchTrigger::Size, BatchTrigger::Timeout, BatchTrigger::Flush, BatchTrigger::Space];

/// What becomes of messages in one layer. All stages of the layer share the series.
#[derive(Clone)]
pub(super) struct MessageMetrics {
    handle_time: Histogram,
    pub(super) retries: Counter,
    done: Counter,
    failed: [(FailureKind, Counter); KINDS.len()],
}

impl MessageMetrics {
    pub(super) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let failed = |kind: FailureKind| {
            let label = [("reason", kind.name().to_owned())];
            let counter = telemetry.counter(
                "pipeline.message.failures",
                "Messages that have failed, by reason",
                labels.iter().cloned().chain(label),
            );
            (kind, counter)
        };
        Self {
            handle_time: telemetry.timer(
                "pipeline.message.handle_time",
                "How long a processor took for a try of a message",
                labels.clone(),
            ),
            retries: telemetry.counter(
                "pipeline.message.retries",
                "How often a processor tried a message again",
                labels.clone(),
            ),
            done: telemetry.counter(
                "pipeline.message.done",
                "Messages that were handled to the end",
                labels.clone(),
            ),
            failed: KINDS.map(failed),
        }
    }

    pub(super) fn handled(&self, took: Duration) {
        self.handle_time.record(milliseconds(took));
    }

    pub(super) fn done(&self, messages: usize) {
        self.done.increment(messages as u64);
    }

    pub(super) fn failed(&self, kind: FailureKind) {
        if let Some((_, counter)) = self.failed.iter().find(|(other, _)| *other == kind) {
            counter.increment(1);
        }
    }
}

/// The batches of one batcher.
#[derive(Clone)]
pub(super) struct BatchMetrics {
    handle_time: Histogram,
    closed: [(BatchTrigger, Counter); TRIGGERS.len()],
    messages: Counter,
}

impl BatchMetrics {
    pub(super) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let closed = |trigger: BatchTrigger| {
            let label = [("trigger", trigger.name().to_owned())];
            let counter = telemetry.counter(
                "pipeline.batch.closed",
                "Batches that were closed, by trigger",
                labels.iter().cloned().chain(label),
            );
            (trigger, counter)
        };
        Self {
            handle_time: telemetry.timer(
                "pipeline.batch.handle_time",
                "How long a batch processor took for a batch",
                labels.clone(),
            ),
            closed: TRIGGERS.map(closed),
            messages: telemetry.counter(
                "pipeline.batch.messages",
                "Messages in batches that were closed",
                labels.clone(),
            ),
        }
    }

    pub(super) fn handled(&self, took: Duration) {
        self.handle_time.record(milliseconds(took));
    }

    pub(super) fn closed(&self, trigger: BatchTrigger, messages: usize) {
        if let Some((_, counter)) = self.closed.iter().find(|(other, _)| *other == trigger) {
            counter.increment(1);
        }
        self.messages.increment(messages as u64);
    }
}
