//! What a stage records itself, as it happens.

use metrics::Counter;

use super::{StageLabels, Telemetry};

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
