//! The metrics of a node of a cluster.

use metrics::{Counter, Gauge, Histogram};
use pipeline_core::telemetry::Telemetry;

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Too much waited to be sent.
    QueueFull,
    /// Longer than the form of frames or the server allows.
    TooLong,
    /// The server has refused it.
    Refused,
    /// What has arrived is no frame, or its payload is no payload.
    Malformed,
    /// A frame that has arrived before.
    Repeated,
}

/// The metrics of a node of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterMetrics {
    pub(crate) sent: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) received: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) gaps: Counter,
    pub(crate) lost: Counter,
    pub(crate) connects: Counter,
    pub(crate) connection_errors: Counter,
    pub(crate) lag: Histogram,
    pub(crate) connected: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) channels: Gauge,
    queue_full: Counter,
    too_long: Counter,
    refused: Counter,
    malformed: Counter,
    repeated: Counter,
}

impl ClusterMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let counter = |name, what| telemetry.counter(name, what, []);
        let gauge = |name, what| telemetry.gauge(name, what, []);
        let dropped = |reason: &str| {
            telemetry.counter(
                "pipeline.cluster.dropped",
                "Broadcasts that were not sent to other nodes, or not delivered here",
                [("reason", reason.to_owned())],
            )
        };
        Self {
            sent: counter("pipeline.cluster.sent", "Broadcasts that were sent to other nodes"),
            sent_bytes: counter(
                "pipeline.cluster.sent_bytes",
                "Bytes of broadcasts to other nodes",
            ),
            received: counter("pipeline.cluster.received", "Broadcasts of other nodes"),
            received_bytes: counter(
                "pipeline.cluster.received_bytes",
                "Bytes of broadcasts of other nodes",
            ),
            gaps: counter(
                "pipeline.cluster.gaps",
                "How often broadcasts of another node were missing",
            ),
            lost: counter(
                "pipeline.cluster.lost",
                "Broadcasts of other nodes that are known to be missing",
            ),
            connects: counter(
                "pipeline.cluster.connects",
                "Connections to the server of the cluster",
            ),
            connection_errors: counter(
                "pipeline.cluster.connection_errors",
                "How often the server could not be connected to, or a connection was lost",
            ),
            lag: telemetry.timer(
                "pipeline.cluster.lag",
                "Time from a broadcast on another node to its delivery on this one",
                [],
            ),
            connected: gauge("pipeline.cluster.connected", "1 while the node is connected, else 0"),
            waiting: gauge("pipeline.cluster.waiting", "Broadcasts that wait to be sent"),
            channels: gauge(
                "pipeline.cluster.channels",
                "Channels of topics that are subscribed to",
            ),
            queue_full: dropped("queue_full"),
            too_long: dropped("too_long"),
            refused: dropped("refused"),
            malformed: dropped("malformed"),
            repeated: dropped("repeated"),
        }
    }

    pub(crate) fn dropped(&self, reason: Reason, count: usize) {
        match reason {
            Reason::QueueFull => &self.queue_full,
            Reason::TooLong => &self.too_long,
            Reason::Refused => &self.refused,
            Reason::Malformed => &self.malformed,
            Reason::Repeated => &self.repeated,
        }
        .increment(count as u64);
    }
}
