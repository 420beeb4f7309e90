//! A kind of socket with its channels and its limits, to be mounted at a path.

use std::{fmt, sync::Arc, time::Duration};

use pipeline_core::{shown::shown, telemetry::Telemetry};

use super::{drainer::Drainer, longpoll::LongPoll, snapshot::RouteSnapshot};
use crate::{
    channel::{Channel, ChannelRoute, ErasedChannel, Route},
    handshake::{connect_info::ConnectInfo, origin::CheckOrigin},
    outbox::{OutboxLimits, WhenFull},
    protocol::connection::FrameLimits,
    pubsub::topic::{PatternError, Topic, TopicPattern, is_reserved},
    session::{self, rate_limit::MessageRateLimit},
    socket::Socket,
    telemetry::{LimitMetrics, ParamFilter, RouteMetrics, log_line},
};

/// The default of [`Mount::receive_timeout`]: a little more than two heartbeats of the official
/// client.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(65);

/// The default of [`Mount::expiry_warning`].
const EXPIRY_WARNING: Duration = Duration::from_secs(60);

/// A [`Socket`] with the channels that can be joined on it.
///
/// Topics are tried against the patterns in the order in which they were given; the first that
/// matches wins.
///
/// ```
/// # use pipeline_ws_sink::{
/// #     Channel, Endpoint, Mount, Payload, Socket, Topic,
/// #     channel::{JoinContext, JoinError},
/// #     endpoint::BuildError,
/// #     socket::{ConnectError, ConnectInfo, Params},
/// # };
/// # struct UserSocket;
/// # impl Socket for UserSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
/// # struct UserChannel;
/// # impl Channel for UserChannel {
/// #     type Socket = UserSocket;
/// #     type Config = ();
/// #     async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
/// #         Ok(UserChannel)
/// #     }
/// # }
/// let mount = Mount::new(UserSocket).channel::<UserChannel>("user:*");
/// let endpoint = Endpoint::builder().mount("/socket", mount).build()?;
/// # Ok::<(), BuildError>(())
/// ```
#[must_use]
pub struct Mount<S> {
    pub(crate) socket: S,
    pub(crate) options: MountOptions,
    pub(crate) handshake: HandshakeOptions,
    pub(crate) filter: Arc<ParamFilter>,
    routes: Vec<Route<S>>,
    refused: Option<PatternError>,
}

/// The options of a kind of socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountOptions {
    pub(crate) limits: FrameLimits,
    pub(crate) outbox: OutboxLimits,
    /// In bytes.
    pub(crate) inbox: usize,
    pub(crate) when_full: WhenFull,
    pub(crate) send_timeout: Duration,
    pub(crate) compress: bool,
    pub(crate) idle_timeout: Duration,
    receive_timeout: Option<Duration>,
    /// How many frames of a client are read per second.
    pub(crate) frame_rate_limit: u32,
    pub(crate) drainer: Drainer,
    /// How long before a socket's end its client is warned.
    pub(crate) expiry_warning: Duration,
    message_rate_limit: Option<MessageRateLimit>,
    topic_message_rate_limit: Option<MessageRateLimit>,
    max_channels: usize,
}

impl MountOptions {
    /// The limit of the client's own silence.
    pub(crate) fn receive_timeout(&self) -> Duration {
        self.receive_timeout.unwrap_or_else(|| self.idle_timeout.max(RECEIVE_TIMEOUT))
    }
}

/// The handshake options of a kind of socket.
#[derive(Clone, Debug)]
pub(crate) struct HandshakeOptions {
    /// The path of the WebSocket below the mount.
    pub(crate) path: String,
    /// The options of long polling, if it is served.
    pub(crate) longpoll: Option<LongPoll>,
    /// The mount's origin check, in place of the endpoint's.
    pub(crate) check_origin: Option<CheckOrigin>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) auth_token: bool,
    /// Selects the clients with compressed messages; without it, all clients that offer it.
    pub(crate) compress_when: Option<CompressWhen>,
}

/// Decides for which clients messages are compressed.
#[derive(Clone)]
pub(crate) struct CompressWhen(pub(crate) Arc<dyn Fn(&ConnectInfo) -> bool + Send + Sync>);

impl fmt::Debug for CompressWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CompressWhen(..)")
    }
}

impl<S: Socket> Mount<S> {
    /// Creates a mount without channels.
    pub fn new(socket: S) -> Self {
        let options = MountOptions {
            limits: FrameLimits { frame: usize::MAX, message: 1 << 20 },
            outbox: OutboxLimits { frames: 16_384, bytes: 4 << 20 },
            inbox: 4 << 20,
            when_full: WhenFull::Disconnect,
            send_timeout: Duration::from_secs(30),
            compress: false,
            idle_timeout: Duration::from_secs(60),
            receive_timeout: None,
            frame_rate_limit: 2000,
            drainer: Drainer::new(),
            expiry_warning: EXPIRY_WARNING,
            message_rate_limit: None,
            topic_message_rate_limit: None,
            max_channels: 100,
        };
        let handshake = HandshakeOptions {
            path: "websocket".to_owned(),
            longpoll: None,
            check_origin: None,
            subprotocols: Vec::new(),
            auth_token: false,
            compress_when: None,
        };
        let filter = Arc::default();
        Self { socket, options, handshake, filter, routes: Vec::new(), refused: None }
    }

    /// Routes topics to a kind of channel. A pattern is a topic, or a prefix followed by `*`.
    ///
    /// A `*` anywhere else, a variable such as `{id}`, and a pattern that this mount already has
    /// are errors of [`EndpointBuilder::build`](crate::endpoint::EndpointBuilder::build). A pattern
    /// that is never reached, because an earlier one matches all of its topics, is logged at WARN.
    pub fn channel<C>(self, pattern: &str) -> Self
    where
        C: Channel<Socket = S, Config = ()>,
    {
        self.channel_with::<C>(pattern, ())
    }

    /// Routes topics to a kind of channel, with a configuration that every join receives.
    pub fn channel_with<C>(mut self, pattern: &str, config: C::Config) -> Self
    where
        C: Channel<Socket = S>,
    {
        let patterns = self.routes.iter().map(|route| &route.pattern);
        match TopicPattern::parse(pattern).and_then(|pattern| pattern.once_among(patterns)) {
            Ok(pattern) => {
                let channel = Arc::new(ChannelRoute::<C>::new(config));
                self.routes.push(Route { pattern, channel });
            }
            Err(error) => self.refused = self.refused.or(Some(error)),
        }
        self
    }

    /// The path of the WebSocket, below the path of the mount. Default `/websocket`, where the
    /// official client looks for it.
    ///
    /// The path may have variables; see
    /// [`EndpointBuilder::mount`](crate::endpoint::EndpointBuilder::mount). This is the option
    /// `:path` of `Phoenix.Endpoint.socket/3`.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Endpoint, Mount, Socket, endpoint::BuildError};
    /// # fn mount<S: Socket>(mount: Mount<S>) -> Result<Endpoint, BuildError> {
    /// // Served at `/tenant/acme/live/fast`, for instance.
    /// Endpoint::builder().mount("/tenant/:tenant", mount.path("/live/:lane")).build()
    /// # }
    /// ```
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.handshake.path);
        self
    }

    /// Serves long polling in addition to the WebSocket: see [`LongPoll`]. Off by default.
    ///
    /// This is the option `:longpoll` of `Phoenix.Endpoint.socket/3`.
    pub fn longpoll(mut self, options: LongPoll) -> Self {
        self.handshake.longpoll = Some(options);
        self
    }

    /// Which pages may connect. Default: the endpoint's
    /// [`check_origin`](crate::endpoint::EndpointBuilder::check_origin).
    pub fn check_origin(mut self, check: CheckOrigin) -> Self {
        self.handshake.check_origin = Some(check);
        self
    }

    /// The subprotocols of this socket, the preferred ones first. None by default.
    ///
    /// A client that offers subprotocols is answered with the first in this list that it offers, or
    /// refused with 403 if it offers none of them. A client that offers nothing may connect. With
    /// an empty list, offers are ignored; a browser that made one then gives up. A name that is not
    /// a valid header token is an error of
    /// [`EndpointBuilder::build`](crate::endpoint::EndpointBuilder::build).
    ///
    /// This is the option `:subprotocols` of `Phoenix.Endpoint.socket/3`.
    pub fn subprotocols<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.handshake.subprotocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// Whether to extract a token from the offered subprotocols, where the official client puts its
    /// `authToken`: a browser lets a page write no other header, and queries end up in logs.
    /// Default `false`.
    ///
    /// The token is in [`ConnectInfo::auth_token`](crate::socket::ConnectInfo::auth_token). `connect`
    /// decides whether it is required and valid; only a token that is not the base64 of a text is
    /// refused before, with 403. The subprotocol `phoenix`, which the client offers along with the
    /// token, is supported in addition to [`subprotocols`](Self::subprotocols). A long-polling
    /// client sends its token unencoded in the header `x-phoenix-authtoken`.
    ///
    /// This is the option `:auth_token` of `Phoenix.Endpoint.socket/3`, since Phoenix 1.8.
    ///
    /// ```
    /// use pipeline_ws_sink::{Mount, Socket, socket::{ConnectError, ConnectInfo, Params}};
    ///
    /// struct UserSocket;
    ///
    /// impl Socket for UserSocket {
    ///     type Assigns = String;
    ///
    ///     async fn connect(&self, _: &Params, info: &ConnectInfo) -> Result<String, ConnectError> {
    ///         info.auth_token.clone().ok_or_else(ConnectError::refused)
    ///     }
    /// }
    ///
    /// let mount = Mount::new(UserSocket).auth_token(true);
    /// ```
    pub fn auth_token(mut self, expected: bool) -> Self {
        self.handshake.auth_token = expected;
        self
    }

    /// The maximum number of channels of a client. Default 100; further joins are refused.
    ///
    /// # Panics
    ///
    /// If it is zero: no client could join anything.
    pub fn max_channels(mut self, channels: usize) -> Self {
        assert!(channels > 0, "max_channels must be at least 1");
        self.options.max_channels = channels;
        self
    }

    /// The rate limit of a client's messages on all topics together: events, on joined topics and
    /// others, and joins. By default there is no limit.
    ///
    /// Heartbeats and leaves are never limited. A join over the limit is refused like an event, and
    /// the official client tries again by itself. The limit applies to the socket: a client that
    /// connects again starts afresh. Limit the rate of connections in [`Socket::connect`].
    ///
    /// Messages over the limit are counted in `socket.messages_refused`.
    pub fn message_rate_limit(mut self, limit: MessageRateLimit) -> Self {
        self.options.message_rate_limit = Some(limit);
        self
    }

    /// The rate limit of a client's events on each joined topic. By default there is no limit.
    ///
    /// If both limits are set, an event has to be within this limit and that of the
    /// [socket](Self::message_rate_limit); an event that is refused counts for neither. Joins count
    /// for the socket only. Leaving and joining a topic again does not reset its limit: it is
    /// remembered as long as it makes a difference, for twice as many topics as may be
    /// [joined](Self::max_channels). Events on further topics are over the limit meanwhile.
    pub fn topic_message_rate_limit(mut self, limit: MessageRateLimit) -> Self {
        self.options.topic_message_rate_limit = Some(limit);
        self
    }

    /// The maximum size of a client's message in bytes: all its fragments together, after
    /// decompression. Default 1 MiB; a client that sends more is closed with 1009. For a
    /// [long-polling](Self::longpoll) client it is the maximum size of a request's body; a larger
    /// one is answered with 400.
    ///
    /// Memory for a message is allocated as its bytes arrive, not as its header announces them.
    /// With [`usize::MAX`], only memory bounds the size of a message.
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "max_message_size must be at least 1");
        self.options.limits.message = bytes;
        self
    }

    /// The maximum size of a client's frame in bytes, with its header and its mask: with 1024, the
    /// longest text in one frame has 1016 bytes. By default only the limit of
    /// [messages](Self::max_message_size) applies; a client that sends a larger frame is closed
    /// with 1009.
    ///
    /// This is `max_frame_size` of Phoenix's WebSocket transport. A message of several frames may
    /// be larger than this.
    ///
    /// # Panics
    ///
    /// If it is less than 7: the header and the mask of a frame alone take 6 bytes.
    pub fn max_frame_size(mut self, bytes: usize) -> Self {
        assert!(bytes > 6, "max_frame_size must be at least 7: header and mask take 6 bytes");
        self.options.limits.frame = bytes;
        self
    }

    /// Whether messages are compressed in both directions, for clients that offer it:
    /// permessage-deflate, RFC 7692. Default `false`; offers are then ignored.
    ///
    /// Compression takes about as much time as everything else together and saves bytes: use it for
    /// large payloads and narrow connections. Each message is compressed separately, and a
    /// broadcast once for all clients with compression. Messages that are small or do not shrink
    /// are sent uncompressed. Do not put a secret and attacker-chosen text into the same message:
    /// its length tells whether they are alike.
    pub fn compress(mut self, compress: bool) -> Self {
        self.options.compress = compress;
        self
    }

    /// Compresses messages as [`compress`](Self::compress) does, but only for clients for which
    /// this returns true. It excludes clients that offer compression and implement it wrongly: some
    /// versions of Safari keep the window of their compressor from one message to the next although
    /// the negotiation forbids it, and are closed with 1002.
    ///
    /// The function runs for every client that connects, so it should be quick. A panic counts as
    /// `false`.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Mount, Socket};
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.compress_when(|info| {
    ///     let agent = info.user_agent.as_deref().unwrap_or_default();
    ///     !agent.contains("Safari/") || agent.contains("Chrome/")
    /// })
    /// # }
    /// ```
    pub fn compress_when(
        mut self,
        when: impl Fn(&ConnectInfo) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.handshake.compress_when = Some(CompressWhen(Arc::new(when)));
        self.compress(true)
    }

    /// How long a connection may be silent in both directions. Default 60 seconds; then it is
    /// closed with 1002. The official client sends a heartbeat every 30 seconds. With
    /// [`Duration::MAX`] there is no limit. For a long-polling client, [`LongPoll::window`] applies
    /// instead.
    ///
    /// Frames that the server sends count too, so a client that has gone is detected by
    /// [`receive_timeout`](Self::receive_timeout).
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed at once.
    pub fn idle_timeout(mut self, silence: Duration) -> Self {
        assert!(!silence.is_zero(), "idle_timeout must be longer than zero");
        self.options.idle_timeout = silence;
        self
    }

    /// How long the client itself may be silent, regardless of the frames sent to it. Default 65
    /// seconds, or [`idle_timeout`](Self::idle_timeout) if that is longer; then it is closed with
    /// 1002.
    ///
    /// Frames for a client that has gone, such as a phone without a network, are taken by the
    /// operating system for many minutes. Only received frames show that a client is there; the
    /// official client sends a heartbeat every 30 seconds. Clients without heartbeats need a longer
    /// time, or [`Duration::MAX`], which sets no limit.
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed at once.
    pub fn receive_timeout(mut self, silence: Duration) -> Self {
        assert!(!silence.is_zero(), "receive_timeout must be longer than zero");
        self.options.receive_timeout = Some(silence);
        self
    }

    /// How long before a socket's [end](Socket::expires_at) its client is warned,
    /// by [`Channel::handle_expiring`]. Default 60 seconds; with zero, it is not.
    ///
    /// It is warned once for each end, and not before half of the time that the socket has from when
    /// the end is set: with a token that is valid for one more minute, 30 seconds before its end. A
    /// long-polling client gets the event with its next poll, as it gets all events.
    pub fn expiry_warning(mut self, before: Duration) -> Self {
        self.options.expiry_warning = before;
        self
    }

    /// How many frames of one client are read per second, on average. Default 2,000. A client that
    /// sends more is not read from until it is within its rate: it is slowed down and loses
    /// nothing.
    ///
    /// All frames count, including heartbeats, leaves, pings and fragments. A frame costs 1, and 1 more for each
    /// 8 KiB of its size after decompression. A compressed frame also costs 1 for each deflate block and each 512
    /// compressed bytes, and at least 1 for each step of its decompression, which is 32 KiB of output at most. A
    /// client may be ahead by ten seconds' worth of frames. Frames that arrive after the server has closed the
    /// socket are read at the same rate.
    ///
    /// For a [long-polling](Self::longpoll) client, each message counts as a frame does. A client
    /// that is slowed down for longer than a [window](LongPoll::window) is answered that the rest
    /// was not accepted.
    ///
    /// Clients that behave well never reach this limit; it bounds the work that one client can
    /// cause. Pauses are counted in `socket.reads_paused`, with the reason `rate`. With `u32::MAX`
    /// there is practically no limit.
    ///
    /// # Panics
    ///
    /// If it is zero: no client would be read from.
    pub fn frame_rate_limit(mut self, per_second: u32) -> Self {
        assert!(per_second > 0, "frame_rate_limit must be at least 1");
        self.options.frame_rate_limit = per_second;
        self
    }

    /// The maximum number of bytes received from one client and not yet handled: messages that wait
    /// for its channels or are being handled, plus 256 bytes for each message. Default 4 MiB. A
    /// client with an empty inbox may always send a message, of any size.
    ///
    /// Events for a busy channel wait here, while other channels, heartbeats and leaves are
    /// handled. When the inbox is full, the client is not read from, for five seconds at most. Then
    /// its events and joins are answered with an error, `{"reason": "too many messages are
    /// waiting"}`, until there is room; so heartbeats are answered, and a client that has gone is
    /// noticed, however long a channel takes. Refused messages are counted in
    /// `socket.messages_refused`, with the reason `inbox`.
    ///
    /// Messages that are sent during a join of their topic wait here too, but no more than 256 of
    /// them and 128 KiB, for all topics of a client together. Beyond that the same happens, with the
    /// reason `join`, to messages on topics that are being joined.
    ///
    /// [`EndpointBuilder::max_inboxes`](crate::endpoint::EndpointBuilder::max_inboxes) bounds the
    /// inboxes of all sockets of an endpoint.
    pub fn max_inbox(mut self, bytes: usize) -> Self {
        self.options.inbox = bytes;
        self
    }

    /// The maximum size of one client's outbox. Default 16,384 frames and 4 MiB;
    /// [`when_full`](Self::when_full) decides what happens beyond that.
    ///
    /// A frame waits in the outbox only if the client's socket does not take it: a sender that
    /// finds no room first writes the pending frames, so any number of events can be sent in a loop
    /// to a client that reads. The limits apply to the frames behind the message that is being
    /// written, and no message counts for more than half of the bytes, so no message is too large
    /// to be sent. Replies, and other messages that the client waits for, may take twice as much. A
    /// message for one client alone counts for its memory, about 500 bytes at least, and a
    /// broadcast for its length. (For the endpoint's limit, both count for their memory.)
    ///
    /// A loop that does not yield keeps a client on the same thread from reading, and a
    /// long-polling client from fetching. Only the system's buffers and the outbox then take its
    /// events. Over TLS the same is true when all threads of the runtime are busy, or when it has
    /// only one: the stream's readiness is then as old as the runtime's last poll. To wait for
    /// clients in a loop, use
    /// [`PubSub::broadcast_when_ready`](crate::PubSub::broadcast_when_ready).
    ///
    /// [`EndpointBuilder::max_outboxes`](crate::endpoint::EndpointBuilder::max_outboxes) bounds the
    /// outboxes of all sockets of an endpoint.
    pub fn max_outbox(mut self, frames: usize, bytes: usize) -> Self {
        self.options.outbox = OutboxLimits { frames, bytes };
        self
    }

    /// What happens when a client falls further behind than [`max_outbox`](Self::max_outbox)
    /// allows: its outbox is full and its socket takes no more. By default the client is closed
    /// with 1011, and the official client connects again. Its pending frames are dropped and
    /// counted in `socket.frames_dropped`.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.options.when_full = when_full;
        self
    }

    /// How long a client may take no byte of its pending frames. Default 30 seconds; with
    /// [`Duration::MAX`] there is no limit.
    ///
    /// What counts is what the operating system takes for it. While that makes its buffer larger, for a client that reads
    /// nothing, the time begins anew, three times at most. A client that reads less than a third of that buffer in four
    /// times this long is closed too.
    ///
    /// Such a client is closed with 1011, and counted in `socket.closed_slow`. With
    /// [`WhenFull::Block`] it is also closed when its outbox has been full for this long without
    /// being half empty in between: otherwise senders, which wait for one push after the other,
    /// would wait without end for a client that is always a little too slow.
    ///
    /// The time in which the whole process is stopped (`docker pause`, a suspended machine) counts,
    /// so a stop should be short compared to this time. Only if the deadline passes during the stop,
    /// and the stop ends more than a second after it, is the client given more time: five seconds to
    /// take something, and with [`WhenFull::Block`] the whole time again until its outbox has to be
    /// half empty.
    pub fn send_timeout(mut self, send_timeout: Duration) -> Self {
        self.options.send_timeout = send_timeout;
        self
    }

    /// The batches in which sockets are closed when the endpoint [drains](crate::Endpoint::drain).
    /// Default 10,000 channels every two seconds.
    pub fn drainer(mut self, drainer: Drainer) -> Self {
        self.options.drainer = drainer;
        self
    }

    /// Which parameters of clients may be logged. By default, all but parameters whose names
    /// suggest a secret, such as `password` and `token`: [`ParamFilter`] has the list.
    ///
    /// The parameters of `connect` are logged at level `INFO`, those of joins and events at
    /// `DEBUG`.
    pub fn filter_params(mut self, filter: ParamFilter) -> Self {
        self.filter = Arc::new(filter);
        self
    }

    /// Registers the metrics of all channels, and builds the routing table.
    pub(crate) fn into_routes(self, telemetry: &Telemetry) -> Result<(S, Routes<S>), PatternError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let patterns: Vec<_> = self.routes.iter().map(|route| &route.pattern).collect();
        for (at, pattern) in patterns.iter().enumerate() {
            if let Some(before) = patterns[..at].iter().find(|before| before.covers(pattern)) {
                let socket = self.socket.name();
                log_line!(
                    WARN,
                    socket,
                    pattern = shown(pattern),
                    before = shown(before),
                    "topic pattern is never reached: an earlier pattern matches its topics"
                );
            }
        }
        let register = |Route { pattern, channel }| {
            let channel: Arc<dyn ErasedChannel<S>> = channel;
            let metrics = Arc::new(channel.register(telemetry, &self.filter));
            RegisteredRoute { pattern, channel, metrics }
        };
        let routes = self.routes.into_iter().map(register).collect();
        let limited = LimitMetrics::register(telemetry, self.socket.name());
        let MountOptions { message_rate_limit, topic_message_rate_limit, max_channels, .. } =
            self.options;
        let limits = session::RateLimits {
            socket: message_rate_limit.map(Into::into),
            topic: topic_message_rate_limit.map(Into::into),
            topics: max_channels.saturating_mul(2).max(1),
        };
        Ok((self.socket, Routes { routes, limits, limited, max_channels }))
    }
}

impl<S> fmt::Debug for Mount<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<_> = self.routes.iter().map(|route| &route.pattern).collect();
        f.debug_struct("Mount")
            .field("options", &self.options)
            .field("handshake", &self.handshake)
            .field("patterns", &patterns)
            .finish_non_exhaustive()
    }
}

/// The channels of a kind of socket.
pub(crate) struct Routes<S> {
    routes: Vec<RegisteredRoute<S>>,
    limits: session::RateLimits,
    pub(crate) limited: LimitMetrics,
    max_channels: usize,
}

/// A route with its metrics.
pub(crate) struct RegisteredRoute<S> {
    pattern: TopicPattern,
    pub(crate) channel: Arc<dyn ErasedChannel<S>>,
    pub(crate) metrics: Arc<RouteMetrics>,
}

impl<S> Routes<S> {
    /// The first route that matches, and the topic as that route sees it.
    pub(crate) fn find(&self, topic: &str) -> Option<(Topic, &RegisteredRoute<S>)> {
        if is_reserved(topic) {
            return None; // topics of node-to-node messages are closed to clients
        }
        self.routes.iter().find_map(|route| Some((route.pattern.matches(topic)?, route)))
    }

    pub(crate) fn patterns(&self) -> impl Iterator<Item = TopicPattern> + '_ {
        self.routes.iter().map(|route| route.pattern.clone())
    }

    /// Snapshots of the channels of each route, at the mount of this path.
    pub(crate) fn snapshots<'a>(
        &'a self,
        path: &'a str,
    ) -> impl Iterator<Item = RouteSnapshot> + 'a {
        self.routes.iter().map(|RegisteredRoute { pattern, metrics, .. }| RouteSnapshot {
            path: path.to_owned(),
            pattern: pattern.to_string(),
            channel: metrics.channel.into(),
            open: metrics.open(),
            topics: metrics.topics(),
            joined: metrics.joins.succeeded(),
            refused: metrics.joins.failed(),
        })
    }

    /// The rate limits of clients, if there are any.
    pub(crate) fn limits(&self) -> Option<&session::RateLimits> {
        let limits = &self.limits;
        (limits.socket.is_some() || limits.topic.is_some()).then_some(limits)
    }

    pub(crate) fn max_channels(&self) -> usize {
        self.max_channels
    }
}
