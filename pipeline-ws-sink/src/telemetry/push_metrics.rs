//! What becomes of the messages that a pipeline pushes.

use metrics::{Counter, Gauge};
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
    /// Given back before their push, because too many of their topic wait.
    pub(crate) given_back: Counter,
    /// Given back before their push, because their clients are on other nodes.
    pub(crate) elsewhere: Counter,
    /// Pushes that wait in their work places, because too many wait elsewhere.
    pub(crate) crowded: Counter,
    waiting: Gauge,
    waiting_bytes: Gauge,
}

impl PushMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
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
            given_back: counter("given_back"),
            elsewhere: counter("elsewhere"),
            crowded: telemetry.counter(
                "socket.messages_crowded",
                "Pushes of messages that wait in their work places, because the room for others is full",
                [],
            ),
            waiting: telemetry.gauge(
                "socket.messages_waiting",
                "Pushes of messages that have left their work places, and wait for their outcome or their turn",
                [],
            ),
            waiting_bytes: telemetry.gauge(
                "socket.messages_waiting_bytes",
                "Bytes of the pushes of messages that wait",
                [],
            ),
        }
    }

    /// Counts a push that begins to wait.
    pub(crate) fn waits(&self, bytes: usize) {
        self.waiting.increment(1.0);
        self.waiting_bytes.increment(bytes as f64);
    }

    /// Counts a push that waits no more.
    pub(crate) fn waits_no_more(&self, bytes: usize) {
        self.waiting.decrement(1.0);
        self.waiting_bytes.decrement(bytes as f64);
    }
}

/// Messages that are kept until a client joins their topic.
#[derive(Clone)]
pub(crate) struct WakeMetrics {
    /// Delivered again because a client has joined it.
    pub(crate) woken: Counter,
    /// Not woken by a join any more, because too many are kept.
    pub(crate) forgotten: Counter,
}

impl WakeMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let counter = |outcome: &str| {
            telemetry.counter(
                "socket.kept_messages",
                "Messages kept for a topic that a join has woken, or wakes no more",
                [("outcome", outcome.to_owned())],
            )
        };
        Self { woken: counter("woken"), forgotten: counter("forgotten") }
    }
}
