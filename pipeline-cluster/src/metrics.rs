//! The metrics of a node of a cluster.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram};
use pipeline_core::telemetry::{Telemetry, milliseconds};
use pipeline_ws_sink::pubsub::AdapterSnapshot;

use crate::clock::micros;

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Too much waited to be sent.
    QueueFull,
    /// The node was not connected to the server: too much waited, or it was part of a client's request, which does not wait.
    NotConnected,
    /// Longer than the form of frames or the server allows, or than the way to the server takes in time.
    TooLong,
    /// The server has refused it.
    Refused,
    /// What has arrived waited to be delivered, and too much did.
    Overrun,
    /// What has arrived is no frame, or its payload is no payload.
    Malformed,
    /// A frame that has arrived before.
    Repeated,
}

/// A counter that can be read.
#[derive(Debug)]
pub(crate) struct Tally {
    recorded: Counter,
    count: AtomicU64,
}

impl Tally {
    pub(crate) fn increment(&self, by: u64) {
        self.recorded.increment(by);
        self.count.fetch_add(by, Relaxed);
    }

    fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

impl From<Counter> for Tally {
    fn from(recorded: Counter) -> Self {
        Self { recorded, count: AtomicU64::new(0) }
    }
}

/// The metrics of a node of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterMetrics {
    pub(crate) sent: Tally,
    pub(crate) sent_bytes: Tally,
    pub(crate) received: Tally,
    pub(crate) received_bytes: Tally,
    pub(crate) gaps: Tally,
    pub(crate) lost: Tally,
    pub(crate) connects: Counter,
    pub(crate) connection_errors: Counter,
    pub(crate) joins_early: Counter,
    join_waited: Histogram,
    lag: Histogram,
    push_lag: Histogram,
    /// The sum of the recorded lags, in microseconds.
    lag_micros: AtomicU64,
    pub(crate) connected: Gauge,
    pub(crate) nodes: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) channels: Gauge,
    queue_full: Tally,
    not_connected: Tally,
    too_long: Tally,
    refused: Tally,
    overrun: Tally,
    malformed: Tally,
    repeated: Tally,
}

impl ClusterMetrics {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let plain = |name, what| telemetry.counter(name, what, []);
        let counter = |name, what| Tally::from(plain(name, what));
        let gauge = |name, what| telemetry.gauge(name, what, []);
        let dropped = |reason: &str| {
            let dropped = telemetry.counter(
                "pipeline.cluster.dropped",
                "Broadcasts that were not sent to other nodes, or not delivered here",
                [("reason", reason.to_owned())],
            );
            Tally::from(dropped)
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
            connects: plain(
                "pipeline.cluster.connects",
                "Connections to the server of the cluster",
            ),
            connection_errors: plain(
                "pipeline.cluster.connection_errors",
                "How often the server could not be connected to, or a connection was lost",
            ),
            joins_early: plain(
                "pipeline.cluster.joins_early",
                "Joins that were answered before this node received their topic",
            ),
            join_waited: telemetry.timer(
                "pipeline.cluster.join_waited",
                "Time that joins waited until this node received their topic",
                [],
            ),
            lag: telemetry.timer(
                "pipeline.cluster.lag",
                "Time from a broadcast on another node to its delivery on this one",
                [],
            ),
            push_lag: telemetry.timer(
                "pipeline.cluster.push_lag",
                "Time from the broadcast of a timed push on another node to its delivery on this one",
                [],
            ),
            lag_micros: AtomicU64::new(0),
            connected: gauge("pipeline.cluster.connected", "1 while the node is connected, else 0"),
            nodes: gauge(
                "pipeline.cluster.nodes",
                "Nodes that are connected to the server, where it tells",
            ),
            waiting: gauge("pipeline.cluster.waiting", "Broadcasts that wait to be sent"),
            channels: gauge(
                "pipeline.cluster.channels",
                "Channels of topics that are subscribed to",
            ),
            queue_full: dropped("queue_full"),
            not_connected: dropped("not_connected"),
            too_long: dropped("too_long"),
            refused: dropped("refused"),
            overrun: dropped("overrun"),
            malformed: dropped("malformed"),
            repeated: dropped("repeated"),
        }
    }

    pub(crate) fn dropped(&self, reason: Reason, count: usize) {
        match reason {
            Reason::QueueFull => &self.queue_full,
            Reason::NotConnected => &self.not_connected,
            Reason::TooLong => &self.too_long,
            Reason::Refused => &self.refused,
            Reason::Overrun => &self.overrun,
            Reason::Malformed => &self.malformed,
            Reason::Repeated => &self.repeated,
        }
        .increment(count as u64);
    }

    /// A join has waited this long until this node received its topic.
    pub(crate) fn join_waited(&self, time: Duration) {
        self.join_waited.record(milliseconds(time));
    }

    /// A broadcast of another node, which may be a timed push, was delivered this long after it.
    pub(crate) fn delivered(&self, lag: Duration, is_timed: bool) {
        self.lag.record(milliseconds(lag));
        if is_timed {
            self.push_lag.record(milliseconds(lag));
        }
        self.lag_micros.fetch_add(micros(lag), Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn snapshot(&self) -> AdapterSnapshot {
        let dropped = [
            &self.queue_full,
            &self.not_connected,
            &self.too_long,
            &self.refused,
            &self.overrun,
            &self.malformed,
            &self.repeated,
        ];
        let mut snapshot = AdapterSnapshot::default();
        snapshot.sent = self.sent.get();
        snapshot.sent_bytes = self.sent_bytes.get();
        snapshot.received = self.received.get();
        snapshot.received_bytes = self.received_bytes.get();
        snapshot.lag_micros = self.lag_micros.load(Relaxed);
        snapshot.gaps = self.gaps.get();
        snapshot.lost = self.lost.get();
        snapshot.dropped = dropped.into_iter().map(Tally::get).sum();
        snapshot
    }
}
