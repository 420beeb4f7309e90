//! A kind of socket with its channels and its limits, to be mounted at a path.

use std::{sync::Arc, time::Duration};

use pipeline_core::Telemetry;

use crate::{
    channel::{Channel, ChannelRoute, ErasedChannel, Route},
    drainer::Drainer,
    outbox::{OutboxLimits, WhenFull},
    protocol::connection::Limits,
    socket::Socket,
    telemetry::Attempts,
    topic::{PatternError, Topic, TopicPattern},
};

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
    routes: Vec<Route<S>>,
    refused: Option<PatternError>,
}

/// What can be set for a kind of socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountOptions {
    pub(crate) limits: Limits,
    pub(crate) outbox: OutboxLimits,
    pub(crate) when_full: WhenFull,
    pub(crate) compress: bool,
    pub(crate) timeout: Duration,
    pub(crate) drainer: Drainer,
    max_channels: usize,
}

impl<S: Socket> Mount<S> {
    /// A kind of socket without channels.
    pub fn new(socket: S) -> Self {
        let options = MountOptions {
            limits: Limits { frame: usize::MAX, message: 1 << 20 },
            outbox: OutboxLimits { frames: 1024, bytes: 4 << 20 },
            when_full: WhenFull::Disconnect,
            compress: false,
            timeout: Duration::from_secs(60),
            drainer: Drainer::new(),
            max_channels: 100,
        };
        Self { socket, options, routes: Vec::new(), refused: None }
    }

    /// Routes topics to a kind of channel. A pattern is a topic, or the beginning of one and a `*`.
    ///
    /// A `*` anywhere else is an error of
    /// [`EndpointBuilder::build`](crate::EndpointBuilder::build).
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
        match TopicPattern::parse(pattern) {
            Ok(pattern) => {
                let channel = Arc::new(ChannelRoute::<C>::new(config));
                self.routes.push(Route { pattern, channel });
            }
            Err(error) => self.refused = self.refused.or(Some(error)),
        }
        self
    }

    /// How many channels a client may have at once. Default 100; a join beyond it is refused.
    pub fn max_channels(mut self, channels: usize) -> Self {
        self.options.max_channels = channels;
        self
    }

    /// How large a message of a client may be, in bytes: all its fragments together, after it has
    /// been decompressed. Default 1 MiB; a client that sends more is closed with 1009.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
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

    /// How long a connection may be silent, both ways. Default 60 seconds; then it is closed with
    /// 1002. The official client sends a heartbeat every 30 seconds.
    pub fn timeout(mut self, silence: Duration) -> Self {
        self.options.timeout = silence;
        self
    }

    /// How much may wait to be written to one client. Default 1024 frames and 4 MiB; what happens
    /// when a client falls further behind is for [`when_full`](Self::when_full) to say.
    pub fn max_outbox(mut self, frames: usize, bytes: usize) -> Self {
        self.options.outbox = OutboxLimits { frames, bytes };
        self
    }

    /// What happens when a client falls further behind than [`max_outbox`](Self::max_outbox) allows.
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

    /// Registers the metrics of all channels, and closes the table.
    pub(crate) fn into_routes(self, telemetry: &Telemetry) -> Result<(S, Routes<S>), PatternError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let register = |Route { pattern, channel }| {
            let channel: Arc<dyn ErasedChannel<S>> = channel;
            let attempts = channel.register(telemetry);
            RegisteredRoute { pattern, channel, attempts }
        };
        let routes = self.routes.into_iter().map(register).collect();
        Ok((self.socket, Routes { routes, max_channels: self.options.max_channels }))
    }
}

impl<S> std::fmt::Debug for Mount<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let patterns: Vec<_> = self.routes.iter().map(|route| &route.pattern).collect();
        f.debug_struct("Mount")
            .field("options", &self.options)
            .field("patterns", &patterns)
            .finish_non_exhaustive()
    }
}

/// The channels of a kind of socket.
pub(crate) struct Routes<S> {
    routes: Vec<RegisteredRoute<S>>,
    max_channels: usize,
}

/// A route whose joins are counted.
pub(crate) struct RegisteredRoute<S> {
    pattern: TopicPattern,
    pub(crate) channel: Arc<dyn ErasedChannel<S>>,
    pub(crate) attempts: Attempts,
}

impl<S> Routes<S> {
    /// The first route that matches, and the topic as it sees it.
    pub(crate) fn find(&self, topic: &str) -> Option<(Topic, &RegisteredRoute<S>)> {
        self.routes.iter().find_map(|route| Some((route.pattern.matches(topic)?, route)))
    }

    pub(crate) fn max_channels(&self) -> usize {
        self.max_channels
    }
}
