//! A kind of socket with its channels and its limits, to be mounted at a path.

use std::{fmt, sync::Arc, time::Duration};

use pipeline_core::{Telemetry, shown::shown};

use crate::{
    channel::{Channel, ChannelRoute, ErasedChannel, Route},
    connect_info::ConnectInfo,
    drainer::Drainer,
    event_limit::EventLimit,
    longpoll::LongPoll,
    origin::CheckOrigin,
    outbox::{OutboxLimits, WhenFull},
    protocol::connection::Limits,
    session,
    snapshot::RouteSnapshot,
    socket::Socket,
    telemetry::{LimitMeter, ParamFilter, RouteMeter},
    topic::{PatternError, Topic, TopicPattern},
    tracker::TRACKERS,
};

/// How long a client may be silent itself, unless something else is set: a little more than two heartbeats
/// of the official client.
const HEARD_WITHIN: Duration = Duration::from_secs(65);

/// A [`Socket`] with the channels that can be joined on it.
///
/// Topics are tried against the patterns in the order in which they were given; the first that
/// matches wins.
///
/// ```
/// # use pipeline_ws_sink::*;
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

/// What can be set for a kind of socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountOptions {
    pub(crate) limits: Limits,
    pub(crate) outbox: OutboxLimits,
    /// In bytes.
    pub(crate) inbox: usize,
    pub(crate) when_full: WhenFull,
    pub(crate) max_behind: Duration,
    pub(crate) compress: bool,
    pub(crate) timeout: Duration,
    heard_within: Option<Duration>,
    /// How many frames of a client are read in a second.
    pub(crate) max_frames: u32,
    pub(crate) drainer: Drainer,
    event_limit: Option<EventLimit>,
    topic_event_limit: Option<EventLimit>,
    max_channels: usize,
}

impl MountOptions {
    /// How long a client may be silent itself.
    pub(crate) fn heard_within(&self) -> Duration {
        self.heard_within.unwrap_or_else(|| self.timeout.max(HEARD_WITHIN))
    }
}

/// What can be set for how a kind of socket is connected to.
#[derive(Clone, Debug)]
pub(crate) struct HandshakeOptions {
    /// Where the WebSocket is, below the mount.
    pub(crate) path: String,
    /// Where those are served that poll, if they are.
    pub(crate) longpoll: Option<LongPoll>,
    /// The endpoint's, if none is set.
    pub(crate) check_origin: Option<CheckOrigin>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) auth_token: bool,
    /// For which clients messages are compressed, if not for all who offer it.
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
    /// A kind of socket without channels.
    pub fn new(socket: S) -> Self {
        let options = MountOptions {
            limits: Limits { frame: usize::MAX, message: 1 << 20 },
            outbox: OutboxLimits { frames: 16_384, bytes: 4 << 20 },
            inbox: 4 << 20,
            when_full: WhenFull::Disconnect,
            max_behind: Duration::from_secs(30),
            compress: false,
            timeout: Duration::from_secs(60),
            heard_within: None,
            max_frames: 2000,
            drainer: Drainer::new(),
            event_limit: None,
            topic_event_limit: None,
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

    /// Routes topics to a kind of channel. A pattern is a topic, or the beginning of one and a `*`.
    ///
    /// A `*` anywhere else is an error of
    /// [`EndpointBuilder::build`](crate::EndpointBuilder::build), and so are a variable such as `{id}` and a
    /// pattern that this mount has already. A pattern that is never reached, because one before it matches
    /// all of its topics, is told in a line of the log (WARN).
    pub fn channel<C>(self, pattern: &str) -> Self
    where
        C: Channel<Socket = S, Config = ()>,
    {
        self.channel_with::<C>(pattern, ())
    }

    /// Routes topics to a kind of channel, and gives this to every join.
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

    /// Where the WebSocket is, below the path that this is mounted at. Default `/websocket`, where
    /// the official client looks for it.
    ///
    /// It may have variables, as that path may; see
    /// [`EndpointBuilder::mount`](crate::EndpointBuilder::mount). This is the option `:path` of
    /// `Phoenix.Endpoint.socket/3`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn mount<S: Socket>(mount: Mount<S>) -> Result<Endpoint, BuildError> {
    /// // Served at `/tenant/acme/live/fast`, for instance.
    /// Endpoint::builder().mount("/tenant/:tenant", mount.path("/live/:lane")).build()
    /// # }
    /// ```
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.handshake.path);
        self
    }

    /// Serves clients that poll too, beside the WebSocket: see [`LongPoll`]. By default none are.
    ///
    /// This is the option `:longpoll` of `Phoenix.Endpoint.socket/3`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # use std::time::Duration;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.longpoll(LongPoll::new().window(Duration::from_secs(5)))
    /// # }
    /// ```
    pub fn longpoll(mut self, options: LongPoll) -> Self {
        self.handshake.longpoll = Some(options);
        self
    }

    /// Which pages may connect. Default: what
    /// [`EndpointBuilder::check_origin`](crate::EndpointBuilder::check_origin) says.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.check_origin(CheckOrigin::list(["https://example.com", "//localhost"]))
    /// # }
    /// ```
    pub fn check_origin(mut self, check: CheckOrigin) -> Self {
        self.handshake.check_origin = Some(check);
        self
    }

    /// The subprotocols that are spoken on this socket, the preferred ones first. None by default.
    ///
    /// A client that offers some is answered with the first of these that it offers, or refused with
    /// 403 if there is none. A client that offers nothing is let in. With an empty list, offers are
    /// ignored; a browser that made one then gives up. A name that cannot stand in a header is an
    /// error of [`EndpointBuilder::build`](crate::EndpointBuilder::build).
    ///
    /// This is the option `:subprotocols` of `Phoenix.Endpoint.socket/3`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.subprotocols(["sip", "mqtt"])
    /// # }
    /// ```
    pub fn subprotocols<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.handshake.subprotocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// Whether to take a token out of the offered subprotocols, which is where the official client
    /// puts its `authToken`: there is no other header that a browser lets a page write, and a query
    /// ends up in logs. Default no.
    ///
    /// The token is in [`ConnectInfo::auth_token`](crate::ConnectInfo::auth_token). Whether it is
    /// there and any good is for `connect` to say; only a token that is not base64 of a text is
    /// refused here, with 403. The subprotocol `phoenix`, which the client offers beside it, is spoken
    /// in addition to [`subprotocols`](Self::subprotocols). A client that polls sends its token in the
    /// header `x-phoenix-authtoken`, as it is.
    ///
    /// This is the option `:auth_token` of `Phoenix.Endpoint.socket/3`, since Phoenix 1.8.
    ///
    /// ```
    /// use pipeline_ws_sink::{ConnectError, ConnectInfo, Mount, Params, Socket};
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

    /// How many channels a client may have at once. Default 100; a join beyond it is refused.
    ///
    /// # Panics
    ///
    /// If it is zero: no client could join anything.
    pub fn max_channels(mut self, channels: usize) -> Self {
        assert!(channels > 0, "a client that may have no channels can join nothing");
        self.options.max_channels = channels;
        self
    }

    /// How much a client may say, on all topics together: events, whether anybody has joined their
    /// topic or not, and joins. By default there is no limit.
    ///
    /// Heartbeats and leaves are never too many. A join that is too many is refused like an event, and
    /// the official client tries again by itself. It is the socket that is limited: who connects again
    /// begins anew, and how often somebody may connect is for [`Socket::connect`] to say.
    ///
    /// What was too many is counted in `socket.events_limited`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.event_limit(EventLimit::per_second(50).burst(100))
    /// # }
    /// ```
    pub fn event_limit(mut self, limit: EventLimit) -> Self {
        self.options.event_limit = Some(limit);
        self
    }

    /// How much a client may say on each topic that it has joined. By default there is no limit.
    ///
    /// An event has to be within this limit and that of the [socket](Self::event_limit), if both are
    /// set; one that is refused counts for neither. Joins count for the socket only. A topic that is
    /// left and joined again has said what it has said: it is remembered for as long as that makes a
    /// difference, for twice as many topics as may be [joined](Self::max_channels). What is said on
    /// others meanwhile is too much.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.topic_event_limit(EventLimit::per_second(10).on_excess(OnExcess::Close))
    /// # }
    /// ```
    pub fn topic_event_limit(mut self, limit: EventLimit) -> Self {
        self.options.topic_event_limit = Some(limit);
        self
    }

    /// How large a message of a client may be, in bytes: all its fragments together, after it has
    /// been decompressed. Default 1 MiB; a client that sends more is closed with 1009. For a client that
    /// [polls](Self::longpoll) it is how much it may send in one request; one with more is answered with
    /// 400.
    ///
    /// Memory for a message is taken as its bytes come, and not as its header announces them. So with
    /// [`usize::MAX`] it is what clients really send that is bounded by nothing but memory.
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a client that may send messages of no bytes can say nothing");
        self.options.limits.message = bytes;
        self
    }

    /// How large a frame of a client may be, in bytes, with its header and its mask: with 1024, the
    /// longest text in one frame has 1016. By default there is no limit but that of
    /// [messages](Self::max_message_size); a client that sends more is closed with 1009.
    ///
    /// This is `max_frame_size` of Phoenix's WebSocket transport. A message may come in several
    /// frames, and be larger than this.
    ///
    /// # Panics
    ///
    /// If it is less than 7: the header and the mask of a frame alone take 6 bytes.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # struct UserSocket;
    /// # impl Socket for UserSocket {
    /// #     type Assigns = ();
    /// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
    /// # }
    /// let mount = Mount::new(UserSocket).max_frame_size(64 << 10).max_message_size(256 << 10);
    /// ```
    pub fn max_frame_size(mut self, bytes: usize) -> Self {
        assert!(bytes > 6, "a client's frame has 7 bytes at least, with its header and its mask");
        self.options.limits.frame = bytes;
        self
    }

    /// Whether messages are compressed, both ways, for clients that offer it: permessage-deflate,
    /// RFC 7692. Default `false`; offers are ignored then.
    ///
    /// It takes time to compress, about as much as everything else together, and saves bytes: it is
    /// for large payloads and narrow lines. Each message is compressed on its own, and a broadcast
    /// once for all who want it so. What is small, or does not shrink, is sent as it is. A secret and
    /// text that an attacker chooses should not stand in the same message, because its length tells
    /// whether they are alike.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # struct UserSocket;
    /// # impl Socket for UserSocket {
    /// #     type Assigns = ();
    /// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
    /// # }
    /// let mount = Mount::new(UserSocket).compress(true);
    /// ```
    pub fn compress(mut self, compress: bool) -> Self {
        self.options.compress = compress;
        self
    }

    /// Compresses messages as [`compress`](Self::compress) does, but only for clients for which this
    /// returns true. For clients that offer compression and get it wrong: some versions of Safari keep
    /// the window of their compressor from one message to the next although they are told not to, and
    /// are closed with 1002.
    ///
    /// It runs for every client that connects, so it should be quick. A panic means no.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
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

    /// How long a connection may be silent, both ways. Default 60 seconds; then it is closed with
    /// 1002. The official client sends a heartbeat every 30 seconds. With [`Duration::MAX`], it may be for
    /// ever. For a client that polls, it is [`LongPoll::window`] that counts.
    ///
    /// What the server sends counts here, so a client that has gone is found by
    /// [`heard_within`](Self::heard_within).
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed at once.
    pub fn timeout(mut self, silence: Duration) -> Self {
        assert!(!silence.is_zero(), "a client that may not be silent at all is closed at once");
        self.options.timeout = silence;
        self
    }

    /// How long the client itself may be silent, whatever it is sent. Default 65 seconds, or
    /// [`timeout`](Self::timeout) if that is longer; then it is closed with 1002.
    ///
    /// What the server sends to a client that has gone, such as a phone without a network, is taken by the
    /// operating system for many minutes. Only what is heard shows that a client is there; the official one
    /// sends a heartbeat every 30 seconds. Clients that send none need a longer time, or
    /// [`Duration::MAX`], with which they may be silent for ever.
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be closed at once.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # use std::time::Duration;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.heard_within(Duration::from_secs(40))
    /// # }
    /// ```
    pub fn heard_within(mut self, silence: Duration) -> Self {
        assert!(!silence.is_zero(), "a client that may not be silent at all is closed at once");
        self.options.heard_within = Some(silence);
        self
    }

    /// How many frames of one client are read in a second, in the long run. Default 2,000. A client that
    /// sends more is not read from until it is within its rate, so it is slowed down and loses nothing.
    ///
    /// All frames count, heartbeats, leaves, pings and fragments too, and each counts for one more for every
    /// 8 KiB that it has after it has been decompressed. A compressed one counts for one more, or for as many
    /// more as it has blocks and times 512 bytes before it is decompressed, or times 32 KiB after. A client
    /// may be ahead by what it may send in ten seconds. What it sends after the server has closed the socket
    /// is read no faster.
    ///
    /// For a client that [polls](Self::longpoll), each message counts as a frame does. One that is slowed down
    /// for longer than a [window](LongPoll::window) is told that the rest was not taken.
    ///
    /// Clients that behave well never meet this limit; it bounds the work that one client can cause. How often one was not read from is counted in `socket.reads_paused`, with the reason `rate`.
    /// With `u32::MAX` there is hardly a limit.
    ///
    /// # Panics
    ///
    /// If it is zero: no client would be read from.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.max_frames(200)
    /// # }
    /// ```
    pub fn max_frames(mut self, a_second: u32) -> Self {
        assert!(a_second > 0, "a client of which no frames are read can say nothing");
        self.options.max_frames = a_second;
        self
    }

    /// How many bytes of one client may have been received and not handled: what waits for its channels and
    /// what they are handling, with 256 bytes more for each message. Default 4 MiB. A client that has
    /// nothing waiting may always send a message, however large.
    ///
    /// Events for a channel that is busy wait here, while other channels, heartbeats and leaves go on. When
    /// it is full, the client is not read from, for five seconds at most. Then its events and joins are
    /// answered with an error, `{"reason": "too many messages are waiting"}`, until there is room; so
    /// heartbeats are answered, and a client that has gone is noticed, however long a channel takes. They
    /// are counted in `socket.events_limited`, with the reason `inbox`.
    ///
    /// What all sockets of an endpoint hold is bounded by
    /// [`EndpointBuilder::max_inboxes`](crate::EndpointBuilder::max_inboxes).
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.max_inbox(1 << 20)
    /// # }
    /// ```
    pub fn max_inbox(mut self, bytes: usize) -> Self {
        self.options.inbox = bytes;
        self
    }

    /// How much may wait to be written to one client. Default 16,384 frames and 4 MiB; what happens
    /// beyond that is for [`when_full`](Self::when_full) to say.
    ///
    /// Only what the client's socket does not take waits: a sender that finds no room writes what
    /// waits first, so a client that reads can be sent any number of events in a loop. The limits are
    /// for what waits behind the message that is being written, and no message counts for more than
    /// half of the bytes: so none is too large to be sent. Replies, and what else the client waits
    /// for, may take twice as much. A message for one client alone counts for the memory that it takes,
    /// which is about 500 bytes at least, and a broadcast for its length. (For the endpoint, both count
    /// for their memory.)
    ///
    /// A loop that does not yield keeps a client from reading that lives on the same thread, and one
    /// that polls from fetching. Then what the system's buffers do not hold is all that is left. Over
    /// TLS the same holds when all threads of the runtime are busy, or when it has only the one: what
    /// the stream says of its socket is what the runtime has last heard of it. To wait for clients in a
    /// loop, use [`PubSub::send`](crate::PubSub::send).
    ///
    /// What waits for all sockets of an endpoint is bounded by
    /// [`EndpointBuilder::max_outboxes`](crate::EndpointBuilder::max_outboxes).
    pub fn max_outbox(mut self, frames: usize, bytes: usize) -> Self {
        self.options.outbox = OutboxLimits { frames, bytes };
        self
    }

    /// What happens when a client falls further behind than [`max_outbox`](Self::max_outbox) allows:
    /// when that much waits, and its socket takes no more.
    /// By default it is closed with 1011, and the official client connects again. What waited for it
    /// is dropped, and counted in `socket.frames_dropped`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # struct UserSocket;
    /// # impl Socket for UserSocket {
    /// #     type Assigns = ();
    /// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
    /// # }
    /// let mount = Mount::new(UserSocket).when_full(WhenFull::DropOldest);
    /// ```
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.options.when_full = when_full;
        self
    }

    /// How long a client may be behind. Default 30 seconds; with [`Duration::MAX`] there is no limit.
    ///
    /// A client is closed with 1011, and counted in `socket.closed_slow`, when frames wait for it and
    /// its socket has taken nothing for so long. And with [`WhenFull::Wait`], when its outbox has been
    /// full for so long, and has not been half empty in between: senders wait for one push after the
    /// other, and would wait for ever for a client that is always a little too slow.
    ///
    /// The time in which the whole process is stopped (`docker pause`, a suspended machine) is not held
    /// against clients if the deadline passes during the stop, and the stop ends more than a second after it.
    /// Any other stop counts: it should be short beside this time.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # use std::time::Duration;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.max_behind(Duration::from_secs(10))
    /// # }
    /// ```
    pub fn max_behind(mut self, max_behind: Duration) -> Self {
        self.options.max_behind = max_behind;
        self
    }

    /// In which steps the sockets are closed when the endpoint
    /// [drains](crate::Endpoint::drain). Default 10,000 channels every two seconds.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # struct UserSocket;
    /// # impl Socket for UserSocket {
    /// #     type Assigns = ();
    /// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
    /// # }
    /// let mount = Mount::new(UserSocket).drainer(Drainer::new().batch_size(1_000));
    /// ```
    pub fn drainer(mut self, drainer: Drainer) -> Self {
        self.options.drainer = drainer;
        self
    }

    /// Which parameters of clients may stand in the log. By default, all but those whose names tell
    /// of a secret, such as `password` and `token`: [`ParamFilter`] has the list.
    ///
    /// Those of `connect` are logged at level `INFO`, those of joins and events at `DEBUG`.
    ///
    /// ```
    /// # use pipeline_ws_sink::*;
    /// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
    /// mount.filter_params(ParamFilter::keep(["vsn", "page"]))
    /// # }
    /// ```
    pub fn filter_params(mut self, filter: ParamFilter) -> Self {
        self.filter = Arc::new(filter);
        self
    }

    /// Registers the metrics of all channels, and closes the table.
    pub(crate) fn into_routes(self, telemetry: &Telemetry) -> Result<(S, Routes<S>), PatternError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let patterns: Vec<_> = self.routes.iter().map(|route| &route.pattern).collect();
        for (at, pattern) in patterns.iter().enumerate() {
            if let Some(before) = patterns[..at].iter().find(|before| before.covers(pattern)) {
                let socket = self.socket.name();
                tracing::warn!(
                    socket,
                    pattern = shown(pattern),
                    before = shown(before),
                    "a channel's topic pattern is never reached"
                );
            }
        }
        let register = |Route { pattern, channel }| {
            let channel: Arc<dyn ErasedChannel<S>> = channel;
            let meter = Arc::new(channel.register(telemetry, &self.filter));
            RegisteredRoute { pattern, channel, meter }
        };
        let routes = self.routes.into_iter().map(register).collect();
        let limited = LimitMeter::register(telemetry, self.socket.name());
        let MountOptions { event_limit, topic_event_limit, max_channels, .. } = self.options;
        let limits = session::Limits {
            socket: event_limit.map(Into::into),
            topic: topic_event_limit.map(Into::into),
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
    limits: session::Limits,
    pub(crate) limited: LimitMeter,
    max_channels: usize,
}

/// A route whose joins are counted.
pub(crate) struct RegisteredRoute<S> {
    pattern: TopicPattern,
    pub(crate) channel: Arc<dyn ErasedChannel<S>>,
    pub(crate) meter: Arc<RouteMeter>,
}

impl<S> Routes<S> {
    /// The first route that matches, and the topic as it sees it.
    pub(crate) fn find(&self, topic: &str) -> Option<(Topic, &RegisteredRoute<S>)> {
        if topic.starts_with(TRACKERS) {
            return None; // what nodes say to each other is not for clients
        }
        self.routes.iter().find_map(|route| Some((route.pattern.matches(topic)?, route)))
    }

    /// What the channels of each route do, at the mount of this path.
    pub(crate) fn snapshots<'a>(
        &'a self,
        path: &'a str,
    ) -> impl Iterator<Item = RouteSnapshot> + 'a {
        self.routes.iter().map(|RegisteredRoute { pattern, meter, .. }| RouteSnapshot {
            path: path.to_owned(),
            pattern: pattern.to_string(),
            channel: meter.channel,
            open: meter.open(),
            topics: meter.topics(),
            joined: meter.joins.succeeded(),
            refused: meter.joins.failed(),
        })
    }

    /// What clients may say, if that is limited.
    pub(crate) fn limits(&self) -> Option<&session::Limits> {
        let limits = &self.limits;
        (limits.socket.is_some() || limits.topic.is_some()).then_some(limits)
    }

    pub(crate) fn max_channels(&self) -> usize {
        self.max_channels
    }
}
