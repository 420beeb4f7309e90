//! Metrics that a stage records itself.

use metrics::Counter;

use super::{StageLabels, Telemetry};

/// Why events were discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// The stage's buffer was full.
    BufferFull,
    /// The queue was full.
    QueueFull,
    /// The items waited in the queue for longer than its `max_age`.
    TooOld,
    /// There were no subscribers, and the stage keeps no events for later.
    Unsubscribed,
    /// The dispatcher found no subscriber that wants them.
    Filtered,
    /// The dispatcher does not know their destination.
    Unroutable,
}

impl Discard {
    /// A reason's number is its index here.
    pub(crate) const ALL: [Self; 6] = [
        Self::BufferFull,
        Self::QueueFull,
        Self::TooOld,
        Self::Unsubscribed,
        Self::Filtered,
        Self::Unroutable,
    ];

    /// The reasons that a stage's report counts: the others are no loss of accepted events, or the
    /// queue's own.
    pub(crate) const REPORTED: [Self; 3] = [Self::BufferFull, Self::Unsubscribed, Self::Unroutable];

    /// The name of the reason in metrics and snapshots.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::QueueFull => "queue_full",
            Self::TooOld => "too_old",
            Self::Unsubscribed => "unsubscribed",
            Self::Filtered => "filtered",
            Self::Unroutable => "unroutable",
        }
    }
}

/// The metrics of one stage.
#[derive(Clone, Debug)]
pub(crate) struct StageMetrics {
    pub(crate) events_in: Counter,
    pub(crate) events_out: Counter,
    /// By reason.
    discarded: [Counter; Discard::ALL.len()],
}

impl StageMetrics {
    pub(crate) fn register(telemetry: &Telemetry, labels: &StageLabels) -> Self {
        let discarded = |why: Discard| {
            telemetry.counter(
                "pipeline.events_discarded",
                "Events thrown away, by reason",
                labels.iter().cloned().chain([("reason", why.reason().to_owned())]),
            )
        };
        let events = |name, description| telemetry.counter(name, description, labels.clone());
        Self {
            events_in: events("pipeline.events_in", "Events that arrived at a stage"),
            events_out: events("pipeline.events_out", "Events that a stage sent to its consumers"),
            discarded: Discard::ALL.map(discarded),
        }
    }

    pub(crate) fn discarded(&self, why: Discard, events: u64) {
        self.discarded[why as usize].increment(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_number() {
        for why in Discard::ALL {
            assert_eq!(Discard::ALL[why as usize], why);
        }
    }
}
