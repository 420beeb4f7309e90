//! What becomes of the messages that a pipeline pushes.

use metrics::Counter;
use pipeline_core::telemetry::Telemetry;

/// Messages that a pipeline has pushed, by outcome.
pub(crate) struct PushMetrics {
    /// Done as soon as they were taken over.
    pub(crate) taken_over: Counter,
    /// Done when they were handed to all outboxes.
    pub(crate) handled: Counter,
    /// Done when all sockets had taken them.
    pub(crate) written: Counter,
    /// Done when a client had confirmed them.
    pub(crate) confirmed: Counter,
    /// Done because no client had joined their topic.
    pub(crate) absent: Counter,
    /// Kept until a client joins their topic.
    pub(crate) kept: Counter,
    /// Kept for so long that their time is over.
    pub(crate) expired: Counter,
    /// Failed because a socket has dropped them or did not take them in time.
    pub(crate) stuck: Counter,
    /// Failed because no client has confirmed them.
    pub(crate) unconfirmed: Counter,
}

impl PushMetrics {
    pub(super) fn register(telemetry: &Telemetry) -> Self {
        let counter = |outcome: &str| {
            telemetry.counter(
                "socket.messages_pushed",
                "Messages that a pipeline has pushed, by outcome",
                [("outcome", outcome.to_owned())],
            )
        };
        Self {
            taken_over: counter("taken_over"),
            handled: counter("handled"),
            written: counter("written"),
            confirmed: counter("confirmed"),
            absent: counter("absent"),
            kept: counter("kept"),
            expired: counter("expired"),
            stuck: counter("stuck"),
            unconfirmed: counter("unconfirmed"),
        }
    }
}
