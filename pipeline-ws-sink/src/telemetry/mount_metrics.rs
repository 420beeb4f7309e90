//! The metrics of each mount, and of each of its routes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use pipeline_core::telemetry::Telemetry;

use super::{
    filter::ParamFilter,
    line_limit::{CrashLines, LineLimit},
    tally::{Level, Tally},
    timers::CallbackTimes,
};
use crate::session::Scope;

/// The metrics of a mounted kind of socket.
pub(crate) struct MountMetrics {
    pub(crate) socket: &'static str,
    pub(crate) connects: Attempts,
    pub(crate) connect_time: CallbackTimes,
    pub(crate) open: Level,
    /// Long-polling clients that were refused because there were too many sessions.
    pub(crate) longpoll_refused: Tally,
    /// The rate limit of lines about requests that the handshake refuses.
    pub(crate) handshake_lines: LineLimit,
    /// The rate limit of lines about clients that have connected.
    pub(crate) connected_lines: LineLimit,
    /// The rate limit of lines about clients that the socket refuses.
    pub(crate) connect_lines: CrashLines,
    /// The rate limit of lines about answers to long-polling clients.
    pub(crate) polled_lines: LineLimit,
    /// The filter of its clients' parameters in the log.
    pub(crate) filter: Arc<ParamFilter>,
}

/// The metrics of a kind of channel on its route.
pub(crate) struct RouteMetrics {
    pub(crate) channel: &'static str,
    pub(crate) joins: Attempts,
    pub(crate) join_time: CallbackTimes,
    /// One event in sixteen is timed.
    pub(crate) handle_in_time: CallbackTimes,
    open: Level,
    topics: AtomicUsize,
    /// The rate limit of lines about clients that have joined.
    pub(crate) joined_lines: LineLimit,
    /// The rate limit of lines about joins that are refused.
    pub(crate) join_lines: LineLimit,
    /// The rate limit of lines about joins that crash. Clients can cause them at will, so these lines
    /// have a limit of their own.
    pub(crate) join_crash_lines: CrashLines,
    /// The rate limit of lines about channels that crash.
    pub(crate) crash_lines: CrashLines,
    /// The rate limit of lines about a `terminate` that crashes or takes too long.
    pub(crate) terminate_lines: LineLimit,
    /// The filter of its clients' parameters in the log.
    pub(crate) filter: Arc<ParamFilter>,
}

/// The metrics of a mount's rate limits.
pub(crate) struct LimitMetrics {
    /// The rate limit of lines about sockets that end with pending messages, or because of their
    /// clients' messages.
    pub(crate) lines: LineLimit,
    socket: Tally,
    topic: Tally,
    inbox: Tally,
    join: Tally,
}

/// Counters of attempts, by status.
pub(crate) struct Attempts {
    success: Tally,
    fail: Tally,
}

impl MountMetrics {
    pub(crate) fn register(
        telemetry: &Telemetry,
        socket: &'static str,
        filter: &Arc<ParamFilter>,
    ) -> Self {
        let of = ("socket", socket);
        let description = "Connections, by result";
        Self {
            socket,
            connects: Attempts::register(telemetry, "socket_connect", description, of),
            connect_time: CallbackTimes::register(
                telemetry,
                "socket.connect_time",
                "Time that a socket's connect took",
                of,
            ),
            open: telemetry
                .gauge("socket.open", "Open sockets", [("socket", socket.to_owned())])
                .into(),
            longpoll_refused: telemetry
                .counter(
                    "socket.longpoll_refused",
                    "Long-polling clients refused because of too many sessions",
                    [("socket", socket.to_owned())],
                )
                .into(),
            handshake_lines: LineLimit::new(),
            connected_lines: LineLimit::new(),
            connect_lines: CrashLines::new(),
            polled_lines: LineLimit::new(),
            filter: filter.clone(),
        }
    }
}

impl RouteMetrics {
    pub(crate) fn register(
        telemetry: &Telemetry,
        channel: &'static str,
        filter: &Arc<ParamFilter>,
    ) -> Self {
        let of = ("channel", channel);
        let description = "Joins, by result";
        Self {
            channel,
            joins: Attempts::register(telemetry, "channel_join", description, of),
            join_time: CallbackTimes::register(
                telemetry,
                "channel.join_time",
                "Time that a channel's join took",
                of,
            ),
            handle_in_time: CallbackTimes::register(
                telemetry,
                "channel.handle_in_time",
                "Time that a channel took for a client's event; one in sixteen is timed",
                of,
            ),
            open: telemetry
                .gauge("channel.open", "Joined channels", [("channel", channel.to_owned())])
                .into(),
            topics: AtomicUsize::new(0),
            joined_lines: LineLimit::new(),
            join_lines: LineLimit::new(),
            join_crash_lines: CrashLines::new(),
            crash_lines: CrashLines::new(),
            terminate_lines: LineLimit::new(),
            filter: filter.clone(),
        }
    }

    /// Records a join, and whether it is the first of this route on its topic.
    pub(crate) fn joined(&self, is_first: bool) {
        self.topics.fetch_add(usize::from(is_first), Relaxed);
        self.open.up();
    }

    /// Records a channel's end, and whether it was the last of this route on its topic.
    pub(crate) fn left(&self, was_last: bool) {
        self.topics.fetch_sub(usize::from(was_last), Relaxed);
        self.open.down();
    }

    /// The number of joined channels.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// The number of topics that they are joined on.
    pub(crate) fn topics(&self) -> usize {
        self.topics.load(Relaxed)
    }
}

impl LimitMetrics {
    pub(crate) fn register(telemetry: &Telemetry, socket: &'static str) -> Self {
        let counter = |scope: Scope| {
            let labels = [("reason", scope.name().to_owned()), ("socket", socket.to_owned())];
            let description = "Events and joins over a limit, by limit";
            telemetry.counter("socket.messages_refused", description, labels).into()
        };
        let [socket, topic, inbox, join] =
            [Scope::Socket, Scope::Topic, Scope::Inbox, Scope::Join].map(counter);
        Self { lines: LineLimit::new(), socket, topic, inbox, join }
    }

    pub(crate) fn count(&self, scope: Scope) {
        match scope {
            Scope::Socket => &self.socket,
            Scope::Topic => &self.topic,
            Scope::Inbox => &self.inbox,
            Scope::Join => &self.join,
        }
        .increment(1);
    }

    pub(crate) fn refused(&self) -> u64 {
        self.socket.get() + self.topic.get() + self.inbox.get() + self.join.get()
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
