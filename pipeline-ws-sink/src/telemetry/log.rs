//! Log lines about clients that connect, join and send events.
//!
//! These lines correspond to the events `socket_connected`, `channel_joined`, `channel_handled_in`
//! and `socket_drain` of Phoenix, and are written at the same moments. Each kind has a target of
//! its own, so that a filter can leave it out. The lines are written in the spans of their socket and
//! channel, whose fields they repeat only where a filter leaves out the spans.

use std::time::Duration;

use pipeline_core::shown::{shown, with_causes};

use super::{
    ContainedSpan, LineLimit, ParamFilter, RouteMetrics,
    contained::{Empty, Level, contained_span, debug, span_enabled},
    limited, log_enabled, log_line,
};
use crate::{
    handshake::{connect_info::ConnectInfo, params::Params},
    payload::Payload,
    protocol::{reference::Ref, version::Version},
    pubsub::topic::Topic,
    socket::ConnectError,
};

/// The target of the spans of sockets and channels.
const SPAN: &str = "pipeline_ws_sink::span";
const CONNECT: &str = "pipeline_ws_sink::connect";
const JOIN: &str = "pipeline_ws_sink::join";
const HANDLE_IN: &str = "pipeline_ws_sink::handle_in";
const DRAIN: &str = "pipeline_ws_sink::drain";

/// A client whose `connect` has been called.
pub(crate) struct Connecting<'a> {
    pub(crate) socket: &'static str,
    pub(crate) transport: &'static str,
    pub(crate) version: Version,
    pub(crate) params: &'a Params,
    pub(crate) filter: &'a ParamFilter,
    pub(crate) took: Duration,
}

/// A client's join or event, with its payload if that is logged.
pub(crate) struct MessageLog {
    params: Option<String>,
}

/// A batch of sockets that are closed because the endpoint drains.
pub(crate) struct DrainBatch {
    pub(crate) socket: &'static str,
    /// The number of their channels.
    pub(crate) count: usize,
    /// The number of all channels of the mount.
    pub(crate) total: usize,
    /// The number of the batch, from 1, and the total.
    pub(crate) index: usize,
    pub(crate) rounds: usize,
    pub(crate) interval: Duration,
}

impl Connecting<'_> {
    /// At level `DEBUG`, each client is logged.
    pub(crate) fn connected(&self, id: Option<&str>, lines: &LineLimit) {
        let Self { socket, transport, version, filter, took, .. } = self;
        let (is_alone, params) = (is_alone(), || filter.params(self.params.as_map()));
        let (socket, id) = (is_alone.then_some(*socket), id.filter(|_| is_alone));
        if log_enabled!(target: CONNECT, Level::DEBUG) {
            log_line!(
                target: CONNECT, INFO, socket, id = id.map(shown), transport, ?version, params = params(), ?took,
                "connected"
            );
        } else {
            limited!(
                lines, target: CONNECT, INFO, socket, id = id.map(shown), transport, ?version, params = params(),
                ?took, "connected"
            );
        }
    }

    pub(crate) fn refused(&self, error: &ConnectError, lines: &LineLimit) {
        let Self { socket, transport, version, filter, took, .. } = self;
        let socket = is_alone().then_some(*socket);
        limited!(
            lines, target: CONNECT, INFO, socket, transport, ?version,
            params = filter.params(self.params.as_map()), ?took,
            error = with_causes(error, error.cause().and_then(std::error::Error::source)),
            "refused a connection"
        );
    }
}

/// Whether a line is without the spans of its socket and its channel: a filter leaves them out, or it is written for
/// the `log` crate.
fn is_alone() -> bool {
    !span_enabled!(target: SPAN, Level::INFO)
}

/// The channel and the topic of a line, if it has to say them.
fn of_channel<'a>(channel: &'static str, topic: &'a Topic) -> Option<(&'static str, &'a Topic)> {
    is_alone().then_some((channel, topic))
}

/// The span of a socket.
pub(crate) fn socket_span(socket: &'static str, path: &str, info: &ConnectInfo) -> ContainedSpan {
    let peer = info.peer_addr.map(debug);
    contained_span!(target: SPAN, Level::INFO, "socket", socket, path, peer, id = Empty)
}

/// The span of a socket's `connect`.
pub(crate) fn connect_span(socket: &ContainedSpan) -> ContainedSpan {
    contained_span!(
        target: CONNECT, parent: socket.as_parent(), Level::INFO, "connect", result = Empty
    )
}

/// The span of a channel.
pub(crate) fn channel_span(channel: &'static str, topic: &str) -> ContainedSpan {
    contained_span!(target: SPAN, Level::INFO, "channel", channel, topic = shown(topic))
}

/// The span of a channel's `join`.
pub(crate) fn join_span() -> ContainedSpan {
    contained_span!(target: JOIN, Level::DEBUG, "join", result = Empty)
}

/// The span of a channel's `handle_in`.
pub(crate) fn handle_in_span(event: &str, reference: &Ref) -> ContainedSpan {
    contained_span!(
        target: HANDLE_IN, Level::DEBUG, "handle_in", event = shown(event),
        "ref" = shown(reference.plain()), result = Empty
    )
}

/// Whether log lines of events, or their spans, are enabled.
pub(crate) fn events_are_seen() -> bool {
    log_enabled!(target: HANDLE_IN, Level::DEBUG)
}

impl MessageLog {
    /// A join. Its payload is logged at level `DEBUG` only.
    pub(crate) fn join(payload: &Payload, filter: &ParamFilter) -> Self {
        let seen = log_enabled!(target: JOIN, Level::DEBUG);
        Self { params: seen.then(|| filter.payload(payload)) }
    }

    pub(crate) fn event(topic: &Topic, payload: &Payload, filter: &ParamFilter) -> Self {
        let seen = is_logged(topic) && events_are_seen();
        Self { params: seen.then(|| filter.payload(payload)) }
    }

    /// At level `DEBUG`, each join is logged.
    pub(crate) fn joined(&self, metrics: &RouteMetrics, topic: &Topic, took: Duration) {
        let params = &self.params;
        if !is_logged(topic) {
            return;
        }
        let (channel, topic) = of_channel(metrics.channel, topic).unzip();
        if params.is_some() {
            log_line!(target: JOIN, INFO, channel, topic = topic.map(shown), params, ?took, "joined");
        } else {
            let lines = &metrics.joined_lines;
            limited!(lines, target: JOIN, INFO, channel, topic = topic.map(shown), params, ?took, "joined");
        }
    }

    pub(crate) fn refused(&self, metrics: &RouteMetrics, topic: &Topic, took: Duration) {
        if is_logged(topic) {
            let (lines, params) = (&metrics.join_lines, &self.params);
            let (channel, topic) = of_channel(metrics.channel, topic).unzip();
            limited!(lines, target: JOIN, INFO, channel, topic = topic.map(shown), params, ?took, "refused a join");
        }
    }

    pub(crate) fn handled(
        &self,
        channel: &'static str,
        topic: &Topic,
        (event, reference): (&str, &Ref),
        took: Duration,
    ) {
        if let Some(params) = &self.params {
            let (channel, topic) = of_channel(channel, topic).unzip();
            log_line!(
                target: HANDLE_IN, DEBUG, channel, topic = topic.map(shown), event = shown(event),
                "ref" = shown(reference.plain()), params, ?took, "handled"
            );
        }
    }
}

/// Whether a topic is logged. Lines about the server's own topics would only show that the log is
/// being watched.
fn is_logged(topic: &Topic) -> bool {
    !topic.as_str().starts_with("phoenix")
}

impl DrainBatch {
    pub(crate) fn drains(&self) {
        let Self { socket, count, total, index, rounds, interval } = self;
        log_line!(target: DRAIN, INFO, socket, count, total, index, rounds, ?interval, "draining batch");
    }
}
