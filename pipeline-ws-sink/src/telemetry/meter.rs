//! What is counted for each mount, and for each of its routes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use pipeline_core::Telemetry;

use super::{
    filter::ParamFilter,
    line_limit::LineLimit,
    tally::{Level, Tally},
    times::Times,
};
use crate::session::Scope;

/// What is counted for a kind of socket in its place.
pub(crate) struct MountMeter {
    pub(crate) socket: &'static str,
    pub(crate) connects: Attempts,
    pub(crate) connect_time: Times,
    pub(crate) open: Level,
    /// Clients that wanted to poll while too many others did.
    pub(crate) polled_refused: Tally,
    /// Lines about requests that the handshake refuses.
    pub(crate) handshake_lines: LineLimit,
    /// Lines about clients that the socket refuses.
    pub(crate) connect_lines: LineLimit,
    /// Lines about answers to clients that poll.
    pub(crate) polled_lines: LineLimit,
    /// What of its clients' parameters is logged.
    pub(crate) filter: Arc<ParamFilter>,
}

/// What is counted for a kind of channel on its route.
pub(crate) struct RouteMeter {
    pub(crate) channel: &'static str,
    pub(crate) joins: Attempts,
    pub(crate) join_time: Times,
    /// One event in sixteen.
    pub(crate) handle_in_time: Times,
    open: Level,
    topics: AtomicUsize,
    /// Lines about joins that are refused.
    pub(crate) join_lines: LineLimit,
    /// Lines about joins that crash. Clients can cause them as often as they like, so they have a limit of
    /// their own.
    pub(crate) join_crash_lines: LineLimit,
    /// Lines about channels that crash.
    pub(crate) crash_lines: LineLimit,
    /// Lines about a `terminate` that crashes or takes too long.
    pub(crate) terminate_lines: LineLimit,
    /// What of its clients' parameters is logged.
    pub(crate) filter: Arc<ParamFilter>,
}

/// What clients of a mount said beyond its limits.
pub(crate) struct LimitMeter {
    /// Lines about sockets that end with something unhandled, or because of what their clients say.
    pub(crate) lines: LineLimit,
    socket: Tally,
    topic: Tally,
    inbox: Tally,
}

/// How often something was tried, by how it went.
pub(crate) struct Attempts {
    success: Tally,
    fail: Tally,
}

impl MountMeter {
    pub(crate) fn register(
        telemetry: &Telemetry,
        socket: &'static str,
        filter: &Arc<ParamFilter>,
    ) -> Self {
        let of = ("socket", socket);
        let description = "Connections, by how they went";
        Self {
            socket,
            connects: Attempts::register(telemetry, "socket_connect", description, of),
            connect_time: Times::register(
                telemetry,
                "socket.connect_time",
                "How long a socket took to say who a client is",
                of,
            ),
            open: telemetry
                .gauge("socket.open", "Sockets that are open", [("socket", socket.to_owned())])
                .into(),
            polled_refused: telemetry
                .counter(
                    "socket.polled_refused",
                    "Clients that were refused because too many poll",
                    [("socket", socket.to_owned())],
                )
                .into(),
            handshake_lines: LineLimit::new(),
            connect_lines: LineLimit::new(),
            polled_lines: LineLimit::new(),
            filter: filter.clone(),
        }
    }
}

impl RouteMeter {
    pub(crate) fn register(
        telemetry: &Telemetry,
        channel: &'static str,
        filter: &Arc<ParamFilter>,
    ) -> Self {
        let of = ("channel", channel);
        let description = "Joins, by how they went";
        Self {
            channel,
            joins: Attempts::register(telemetry, "channel_join", description, of),
            join_time: Times::register(
                telemetry,
                "channel.join_time",
                "How long a channel took to say whether a client may join",
                of,
            ),
            handle_in_time: Times::register(
                telemetry,
                "channel.handle_in_time",
                "How long a channel took for an event of its client; one in sixteen is timed",
                of,
            ),
            open: telemetry
                .gauge(
                    "channel.open",
                    "Channels that are joined",
                    [("channel", channel.to_owned())],
                )
                .into(),
            topics: AtomicUsize::new(0),
            join_lines: LineLimit::new(),
            join_crash_lines: LineLimit::new(),
            crash_lines: LineLimit::new(),
            terminate_lines: LineLimit::new(),
            filter: filter.clone(),
        }
    }

    /// A channel has been let in; the first of this route on its topic, or not.
    pub(crate) fn joined(&self, is_first: bool) {
        self.topics.fetch_add(usize::from(is_first), Relaxed);
        self.open.up();
    }

    /// A channel has ended; the last of this route on its topic, or not.
    pub(crate) fn left(&self, was_last: bool) {
        self.topics.fetch_sub(usize::from(was_last), Relaxed);
        self.open.down();
    }

    /// How many channels are joined.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// How many topics they are joined on.
    pub(crate) fn topics(&self) -> usize {
        self.topics.load(Relaxed)
    }
}

impl LimitMeter {
    pub(crate) fn register(telemetry: &Telemetry, socket: &'static str) -> Self {
        let counter = |scope: Scope| {
            let labels = [("reason", scope.name().to_owned()), ("socket", socket.to_owned())];
            let description = "Events and joins beyond a limit, by which one";
            telemetry.counter("socket.events_limited", description, labels).into()
        };
        let [socket, topic, inbox] = [Scope::Socket, Scope::Topic, Scope::Inbox].map(counter);
        Self { lines: LineLimit::new(), socket, topic, inbox }
    }

    pub(crate) fn count(&self, scope: Scope) {
        match scope {
            Scope::Socket => &self.socket,
            Scope::Topic => &self.topic,
            Scope::Inbox => &self.inbox,
        }
        .increment(1);
    }

    pub(crate) fn limited(&self) -> u64 {
        self.socket.get() + self.topic.get() + self.inbox.get()
    }
}

impl Attempts {
    fn register(
        telemetry: &Telemetry,
        name: &'static str,
        description: &'static str,
        (kind, of): (&'static str, &str),
    ) -> Self {
        let counter = |status: &str| {
            let labels = [("status", status.to_owned()), (kind, of.to_owned())];
            telemetry.counter(name, description, labels).into()
        };
        Self { success: counter("success"), fail: counter("fail") }
    }

    pub(crate) fn count(&self, success: bool) {
        if success { &self.success } else { &self.fail }.increment(1);
    }

    pub(crate) fn succeeded(&self) -> u64 {
        self.success.get()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.fail.get()
    }
}
