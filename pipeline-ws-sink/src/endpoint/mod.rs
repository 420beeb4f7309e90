//! The endpoint: it serves the mounted sockets, and broadcasts to their topics.

mod admission;
pub(crate) mod arrivals;
pub(crate) mod drainer;
mod entrants;
pub(crate) mod erased_mount;
pub(crate) mod listen;
pub(crate) mod longpoll;
pub(crate) mod mount;
mod operator;
mod sampler;
#[cfg(test)]
mod schedules;
mod shed;
pub(crate) mod snapshot;
pub(crate) mod sockets;
pub(crate) mod state;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderName, Request, StatusCode};
use hyper::body::Body;
use pipeline_core::{telemetry::Telemetry, timed::Timeline};
use thiserror::Error;
use tokio::time;
use tower_service::Service;

pub use self::{
    arrivals::ArrivalRate,
    listen::listen,
    operator::{EndpointOperator, FoundSockets, SocketSnapshot},
    shed::Shed,
    snapshot::{EndpointObserver, EndpointSnapshot, MountSnapshot, PushLegs, RouteSnapshot},
};
use self::{
    arrivals::Arrivals,
    drainer::MountDrainer,
    erased_mount::ErasedMount,
    mount::{HandshakeOptions, Mount},
    state::{EndpointLimits, EndpointState},
};
pub use crate::{
    handshake::path::PathError, pubsub::topic::PatternError, telemetry::latencies::Latencies,
    transport::answer_body::AnswerBody,
};
use crate::{
    handshake::{
        Answer, Handshake, Mounted,
        origin::{self, CheckOrigin, OriginError},
        path::MountPath,
        status, subprotocol,
    },
    payload::IntoPayload,
    presence::{
        Presence,
        tracker::{TrackerOptions, TrackerOptionsError},
    },
    pubsub::{Adapter, BroadcastError, Contained, PubSub, SubscriberId, TopicSubscription},
    session::{end::SocketEnd, pay},
    socket::Socket,
    telemetry::{MountMetrics, log_line},
    token::{SharedKey, SignerError},
    transport::{longpoll::read_body, longpoll_sessions::LongPollSessions},
};

/// The cost of a request, in the 128 units of tokio's budget for one poll of a task.
const REQUEST: u64 = 8;

/// How many pushes may wait to be confirmed, by default.
pub(crate) const CONFIRMATIONS: usize = 10_000;

/// The server side of the channel protocol: sockets mounted at paths, and their topics.
///
/// Cheap to clone; all clones are the same endpoint. When the last clone is dropped, its sockets
/// are closed.
///
/// It is a tower service, which any server that supports HTTP upgrades can run. With axum, use it
/// as a router's fallback, or as the service of its one path:
///
/// ```
/// # use pipeline_ws_sink::{Endpoint, endpoint::BuildError};
/// # fn main() -> Result<(), BuildError> {
/// let endpoint = Endpoint::builder().build()?;
/// let app: axum::Router = axum::Router::new()
///     .route("/", axum::routing::get(async || "hello"))
///     .fallback_service(endpoint.clone());
/// # Ok(())
/// # }
/// ```
///
/// A socket mounted at `/socket` is served at `/socket/websocket`, where the official client looks
/// for it; with [`Mount::longpoll`], long polling is served at `/socket/longpoll`. Any other path
/// is answered with 404. Under a nested router the router's prefix comes first: with
/// `Router::new().nest_service("/api", endpoint)` the path is `/api/socket/websocket`.
#[derive(Clone)]
pub struct Endpoint {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) mounts: Vec<Arc<dyn ErasedMount>>,
    pub(crate) mount_points: Vec<MountPoint>,
    pub(crate) state: Arc<EndpointState>,
}

/// A mount with its path and transport.
pub(crate) struct MountPoint {
    pub(crate) path: MountPath,
    transport: Transport,
    pub(crate) mount: Arc<dyn ErasedMount>,
}

/// The transport of a client.
#[derive(Clone, Copy)]
enum Transport {
    WebSocket,
    LongPoll,
}

impl Endpoint {
    /// Starts building an endpoint.
    pub fn builder() -> EndpointBuilder {
        EndpointBuilder {
            telemetry: Telemetry::global(),
            host: None,
            check_origin: CheckOrigin::host(),
            mounts: Vec::new(),
            adapter: None,
            cluster_secret: None,
            presences: Vec::new(),
            synced_subscriptions: None,
            limits: EndpointLimits {
                sockets: 1 << 16,
                inboxes: 256 << 20,
                outboxes: 256 << 20,
                confirmations: CONFIRMATIONS,
                tell_refused: None,
                connects: None,
                joins: None,
            },
        }
    }

    /// The endpoint's [`PubSub`], for code that only broadcasts and subscribes.
    #[must_use]
    pub fn pubsub(&self) -> &PubSub {
        &self.inner.state.pubsub
    }

    /// Sends an event to all subscribers of a topic.
    ///
    /// The payload is encoded once, for any number of subscribers. The call never waits for a
    /// client: frames that a client cannot take at once wait in its outbox, and
    /// [`Mount::when_full`] decides what happens to a client that falls too far behind.
    ///
    /// # Errors
    ///
    /// [`BroadcastError`] if the payload is neither a JSON object nor binary, or if the other nodes
    /// cannot be reached; the event is then delivered to no one.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Endpoint, pubsub::BroadcastError};
    /// # use serde_json::json;
    /// # fn announce(endpoint: &Endpoint) -> Result<(), BroadcastError> {
    /// endpoint.broadcast("user:42", "greeting", json!({ "text": "hello" }))
    /// # }
    /// ```
    pub fn broadcast(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.pubsub().broadcast(topic, event, payload)
    }

    /// Sends an event to all subscribers of a topic, and records its timing.
    ///
    /// Each known part of the push's time is recorded in milliseconds. The last part is recorded
    /// for each socket, when the operating system has taken the last byte of the frame: see
    /// [`PubSub::broadcast_timed`]. The payload is still encoded once.
    ///
    /// # Errors
    ///
    /// Those of [`broadcast`](Self::broadcast).
    pub fn broadcast_timed(
        &self,
        timeline: impl Into<Timeline>,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.pubsub().broadcast_timed(timeline, topic, event, payload)
    }

    /// Sends an event to all subscribers of a topic except one: see [`PubSub::broadcast_from`].
    ///
    /// # Errors
    ///
    /// Those of [`broadcast`](Self::broadcast).
    pub fn broadcast_from(
        &self,
        from: SubscriberId,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.pubsub().broadcast_from(from, topic, event, payload)
    }

    /// Sends an event to all subscribers of a topic on this node: see [`PubSub::local_broadcast`].
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Payload`] if the payload is not a JSON object or binary.
    pub fn local_broadcast(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.pubsub().local_broadcast(topic, event, payload)
    }

    /// Sends an event to all subscribers of a topic on this node, and records its timing: see
    /// [`PubSub::local_broadcast_timed`].
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Payload`] if the payload is not a JSON object or binary.
    pub fn local_broadcast_timed(
        &self,
        timeline: impl Into<Timeline>,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.pubsub().local_broadcast_timed(timeline, topic, event, payload)
    }

    /// Subscribes to a topic, until the returned value is dropped: see [`PubSub::subscribe`].
    #[must_use]
    pub fn subscribe(&self, topic: &str) -> TopicSubscription {
        self.pubsub().subscribe(topic)
    }

    /// Whether a route of a mount matches this topic, so that clients can join it: see [`PubSub::knows_topic`].
    #[must_use]
    pub fn knows_topic(&self, topic: &str) -> bool {
        self.pubsub().knows_topic(topic)
    }

    /// Closes every socket with this id, with a code that makes the official client connect again.
    /// Returns the number of sockets closed on this node.
    ///
    /// To keep a user out, make `connect` refuse it first. See [`Socket::id`].
    #[expect(clippy::must_use_candidate, reason = "the count is optional information")]
    pub fn disconnect(&self, id: &str) -> usize {
        self.pubsub().disconnect(id)
    }

    /// The number of open sockets.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.inner.state.sockets.len()
    }

    /// A snapshot of the sockets and their channels at this moment.
    ///
    /// Counters are read at once. Only outboxes are looked up socket by socket: with ten thousand
    /// sockets that takes about a millisecond, and no socket is blocked for long.
    ///
    /// ```
    /// # use pipeline_ws_sink::Endpoint;
    /// # fn print(endpoint: &Endpoint) {
    /// let seen = endpoint.snapshot();
    /// for mount in &seen.sockets {
    ///     println!("{}: {} sockets open, {} refused", mount.path, mount.open, mount.refused);
    /// }
    /// for route in &seen.channels {
    ///     println!("{}: {} channels on {} topics", route.pattern, route.open, route.topics);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> EndpointSnapshot {
        self.inner.snapshot()
    }

    /// A read-only handle that does not keep the endpoint alive: see [`EndpointObserver`].
    #[must_use]
    pub fn observer(&self) -> EndpointObserver {
        EndpointObserver::of(&self.inner)
    }

    /// A handle that looks up the sockets of a user, and ends them and their channels: see
    /// [`EndpointOperator`].
    #[must_use]
    pub fn operator(&self) -> EndpointOperator {
        EndpointOperator::of(&self.inner)
    }

    /// Lowers how many clients may wait to connect: see [`ArrivalRate::max_waiting`].
    ///
    /// For servers that limit their connections, since each client that waits has one. `serve` sets a quarter
    /// of its limit.
    ///
    /// ```
    /// # fn limit(endpoint: &pipeline_ws_sink::Endpoint, max_connections: usize) {
    /// endpoint.limit_waiting(max_connections / 4);
    /// # }
    /// ```
    pub fn limit_waiting(&self, clients: usize) {
        self.inner.state.connects.limit_waiting(clients);
    }

    /// Stops accepting clients, and closes the sockets with code 1012, so that clients connect
    /// again: to another server, or to this one after its restart. Sockets are closed in batches:
    /// see [`Drainer`](crate::mount::Drainer).
    ///
    /// A client that uses [long polling](Mount::longpoll) has no connection to close: its session
    /// ends, and its next request is answered so that it connects again. Frames that it has not
    /// fetched by then are dropped and counted in `socket.frames_dropped`, except frames that were
    /// fetched by a request that the client had given up: these are already in `socket.frames_out`.
    ///
    /// When a fifth of the time is left, or one second if that is less, all sockets of the
    /// remaining batches are closed at once, and a WARN log line gives their number: the batches
    /// take longer than the time allows.
    ///
    /// Sockets that are not closed when the time is up are aborted, with their channels, and the
    /// report counts them. The channels get five seconds to end. A socket whose channel blocks its
    /// thread cannot be aborted; the drain waits one more second for it, and no longer.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, all remaining sockets are closed at once, and none is aborted. A later
    /// drain reports the sockets of the earlier ones too.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn stop(endpoint: &pipeline_ws_sink::Endpoint) {
    /// let report = endpoint.drain(Duration::from_secs(5)).await;
    /// println!("{report}");
    /// # }
    /// ```
    pub async fn drain(&self, within: Duration) -> EndpointReport {
        let state = &self.inner.state;
        let before = *state.unclosed_before.get_or_init(|| state.unclosed.load(Relaxed));
        let draining = state.sockets.drain();
        let sockets = draining.sockets();
        state.tasks.close();
        let closing = async {
            let for_the_last = (within / 5).min(GOODBYE);
            if time::timeout(within.saturating_sub(for_the_last), draining.run()).await.is_err() {
                let sockets = draining.left();
                log_line!(
                    WARN,
                    sockets,
                    ?within,
                    "drain batches exceed the time limit: closing the remaining sockets at once"
                );
            }
            // Signals the remaining sockets to end.
            drop(draining);
            state.tasks.wait().await;
        };
        let closed = time::timeout(within, closing).await;
        let left = if closed.is_ok() { 0 } else { state.tasks.len() };
        let aborted = left + state.unclosed.fetch_add(left, Relaxed) - before;
        if left > 0 {
            state.abort.cancel();
            // An aborted task ends where it next waits. A task that never waits keeps running.
            let _ = time::timeout(ABORT_TIMEOUT, state.tasks.wait()).await;
        }
        // All sockets of this node have left by now.
        state.end();
        EndpointReport { closed: sockets.saturating_sub(aborted), aborted }
    }

    /// Closes a part of the sockets with code 1012, slowly, so that their clients connect again, and a
    /// load balancer gives them to other nodes: for a node that has been added, or after a restart of all.
    /// Returns how many were closed; `socket.shed` counts them.
    ///
    /// The endpoint accepts clients as before; a balancer that counts connections gives the next ones to
    /// nodes that have fewer. A long-polling client's session ends as in a [drain](Self::drain). The
    /// oldest sockets are closed first. It ends early when the endpoint drains.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no more sockets are closed.
    ///
    /// ```
    /// use pipeline_ws_sink::{Endpoint, endpoint::Shed};
    ///
    /// /// Gives other nodes their part: the mean is known from the inspector, or from metrics.
    /// async fn balance(endpoint: &Endpoint, mean: usize) -> usize {
    ///     endpoint.shed(Shed::down_to(mean).per_second(200)).await
    /// }
    /// ```
    pub async fn shed(&self, shed: Shed) -> usize {
        shed.run(&self.inner.state.sockets, &self.inner.state.metrics.shed).await
    }

    /// Answers a request: a client that connects, or any other request.
    fn answer<B>(&self, request: Request<B>) -> impl Future<Output = Answer> + Send + use<B>
    where
        B: Body + Send + 'static,
        B::Data: Send,
    {
        let path = request.uri().path();
        let found = self.inner.mount_points.iter().find_map(|mount_point| {
            let variables = mount_point.path.matches(path)?;
            Some((mount_point.transport, mount_point.mount.clone(), variables.map(owned)))
        });
        let accept = found.map(|(transport, mount, variables)| {
            let state = self.inner.state.clone();
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, ());
            match transport {
                Transport::WebSocket => mount.accept(state, request, variables),
                Transport::LongPoll => {
                    mount.answer_poll(state, request, variables, read_body(body))
                }
            }
        });
        async {
            match accept {
                Some(accept) => accept.await,
                None => status(StatusCode::NOT_FOUND, ""),
            }
        }
    }
}

fn owned(variables: Vec<(&str, String)>) -> Vec<(String, String)> {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl<B> Service<Request<B>> for Endpoint
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.answer(request);
        Box::pin(async {
            // Most answers are ready at once, and a client may send many requests at once.
            pay(REQUEST).await;
            Ok(answer.await)
        })
    }
}

impl Inner {
    pub(crate) fn snapshot(&self) -> EndpointSnapshot {
        let (mut sockets, mut channels) = (Vec::new(), Vec::new());
        for mount in &self.mounts {
            let (mount, routes) = mount.snapshot();
            sockets.push(mount);
            channels.extend(routes);
        }
        let metrics = &self.state.metrics;
        let waiting = self.state.sockets.waiting();
        let dropped = metrics.dropped().into_iter().filter(|(_, frames)| *frames > 0);
        let dropped = dropped.map(|(reason, frames)| (reason.into(), frames));
        EndpointSnapshot {
            draining: self.state.sockets.are_closed(),
            sockets,
            channels,
            topics: self.state.pubsub.table().topics(),
            broadcasts: metrics.broadcasts.get(),
            connections_refused: self.state.admissions.refused(),
            frames_in: metrics.frames_in.get(),
            frames_out: metrics.frames_out.get(),
            frames_waiting: waiting.frames,
            bytes_waiting: waiting.bytes,
            inbox_bytes: self.state.inboxes.bytes(),
            outbox_bytes: self.state.outboxes.bytes(),
            dropped: dropped.collect(),
            closed_slow: metrics.closed_slow.get(),
            relayed: self.state.relay.answered(),
            adapter: self.state.pubsub.adapter_snapshot(),
            delivered: metrics.push_times.delivered.get(),
            legs: PushLegs {
                queued: metrics.push_times.queued.get(),
                waited: metrics.push_times.waited.get(),
                worked: metrics.push_times.worked.get(),
                written: metrics.push_times.written.get(),
            },
        }
    }
}

/// The longest delay of [`EndpointBuilder::tell_refused`].
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// The longest time before the end of a drain when all remaining sockets are closed.
const GOODBYE: Duration = Duration::from_secs(1);

/// The time that aborted tasks get to end.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Drop for Inner {
    fn drop(&mut self) {
        self.state.sockets.end_all(SocketEnd::Disconnected);
        self.state.end();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self
            .inner
            .mount_points
            .iter()
            .map(|mount_point| mount_point.path.to_string())
            .collect();
        f.debug_struct("Endpoint")
            .field("paths", &paths)
            .field("open_sockets", &self.open_sockets())
            .finish()
    }
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// Sockets that were closed cleanly.
    pub closed: usize,
    /// Sockets that were not closed in time. This includes sockets whose client did not take its
    /// pending frames within the five seconds that closing may take, and
    /// [long-polling](Mount::longpoll) clients that had not fetched theirs.
    pub aborted: usize,
}

impl fmt::Display for EndpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sockets closed, {} aborted", self.closed, self.aborted)
    }
}

/// Builds an [`Endpoint`].
#[must_use]
pub struct EndpointBuilder {
    telemetry: Telemetry,
    host: Option<String>,
    check_origin: CheckOrigin,
    mounts: Vec<(Vec<RequestedPath>, Build)>,
    adapter: Option<Arc<dyn Adapter>>,
    cluster_secret: Option<String>,
    presences: Vec<Presence>,
    synced_subscriptions: Option<TrackerOptions>,
    limits: EndpointLimits,
}

/// The transport and the path of a mount that is still to be built.
type RequestedPath = (Transport, Result<MountPath, PathError>);

/// Registers a mount's metrics and builds the mount.
type Build = Box<dyn FnOnce(&Shared) -> Result<Arc<dyn ErasedMount>, BuildError> + Send>;

/// The endpoint's settings that all mounts share.
struct Shared {
    telemetry: Telemetry,
    host: Option<String>,
    check_origin: CheckOrigin,
}

impl EndpointBuilder {
    /// Serves a kind of socket below this path: at `/socket/websocket`, if the path is `/socket`.
    ///
    /// A segment that begins with a `:` is a variable: it matches any one segment, whose value is
    /// added to the [`Params`](crate::socket::Params) and replaces a parameter of the same name. If
    /// the name begins with `_`, the segment only matches. The first mount that matches wins.
    /// Leading and trailing slashes are ignored. An invalid path, such as `/socket?x=1`, is an
    /// error of [`build`](Self::build). These are the rules of `Phoenix.Endpoint.socket/3`.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Endpoint, Mount, Socket, endpoint::BuildError};
    /// # fn mount<S: Socket>(mount: Mount<S>) -> Result<Endpoint, BuildError> {
    /// // Served at `/tenant/acme/socket/websocket`, for instance.
    /// Endpoint::builder().mount("/tenant/:tenant/socket", mount).build()
    /// # }
    /// ```
    pub fn mount<S: Socket>(mut self, path: &str, mount: Mount<S>) -> Self {
        let websocket = MountPath::parse(path, &mount.handshake.path);
        let served_at = websocket.as_ref().map(MountPath::to_string).unwrap_or_default();
        let longpoll = mount.handshake.longpoll.as_ref();
        let longpoll = longpoll.map(|options| MountPath::parse(path, &options.path));
        let mut paths = vec![(Transport::WebSocket, websocket)];
        paths.extend(longpoll.map(|path| (Transport::LongPoll, path)));
        let build: Build = Box::new(move |shared| {
            let options = mount.options;
            let polled = mount.handshake.longpoll.as_ref().map(LongPollSessions::new).transpose();
            let polled = polled.map_err(|_| BuildError::NoRandomness)?;
            let handshake = handshake(mount.handshake.clone(), shared)?;
            let filter = mount.filter.clone();
            let (socket, routes) = mount.into_routes(&shared.telemetry)?;
            let metrics = MountMetrics::register(&shared.telemetry, socket.name(), &filter);
            let (socket, routes) = (Arc::new(socket), Arc::new(routes));
            let drainer = MountDrainer { socket: socket.name(), drainer: options.drainer };
            let drainer = Arc::new(drainer);
            let path = served_at;
            Ok(Arc::new(Mounted {
                path,
                socket,
                routes,
                options,
                handshake,
                polled,
                metrics,
                drainer,
            }))
        });
        self.mounts.push((paths, build));
        self
    }

    /// The public host of the endpoint, which [`CheckOrigin::host`] compares with: `example.com`,
    /// without scheme and port. This is `url: [host: ..]` of `Phoenix.Endpoint`.
    ///
    /// A server that browsers reach by a name needs it. Without it, a page's host has to equal the
    /// `host` header of its own request, and only `localhost` and IP addresses are accepted: see
    /// [`CheckOrigin::host`].
    ///
    /// An invalid host is an error of [`build`](Self::build).
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Which pages may connect to mounts without a [`Mount::check_origin`] of their own. Default
    /// [`CheckOrigin::host`].
    pub fn check_origin(mut self, check: CheckOrigin) -> Self {
        self.check_origin = check;
        self
    }

    /// The maximum number of bytes received and not yet handled, for all sockets together. Default
    /// 256 MiB.
    ///
    /// The limit counts messages that wait for channels ([`Mount::max_inbox`] bounds these for each
    /// socket), incomplete messages and messages that are being decompressed, and the request
    /// bodies of [long-polling](Mount::longpoll) clients. The first 16 KiB of each socket are not
    /// counted and are always received, so clients that fill the limit do not stop the others.
    /// Beyond these, when the limit is reached, a socket is not read from for up to five seconds.
    /// Then its events and joins are answered with an error, as when its own inbox is full; an
    /// incomplete message closes its socket with 1013, and a request body is answered with status
    /// 408 after the mount's [window](crate::mount::LongPoll::window).
    ///
    /// The gauge `socket.inbox_bytes` shows the counted bytes.
    pub fn max_inboxes(mut self, bytes: usize) -> Self {
        self.limits.inboxes = bytes;
        self
    }

    /// The maximum number of bytes of memory that wait to be written, for all sockets together.
    /// Default 256 MiB.
    ///
    /// [`Mount::max_outbox`] bounds the pending bytes of each socket. A broadcast counts once, for
    /// any number of sockets. The first 16 KiB of memory of each socket, about 30 small messages,
    /// are not counted. When the limit is reached, a socket may hold these 16 KiB and the message
    /// that is being written: beyond that its outbox is full, and [`Mount::when_full`] decides what
    /// happens to its events. Replies may take twice as much; a client that does not read even
    /// those is closed.
    ///
    /// The gauge `socket.outbox_bytes` shows the counted bytes.
    pub fn max_outboxes(mut self, bytes: usize) -> Self {
        self.limits.outboxes = bytes;
        self
    }

    /// The maximum number of open sockets, WebSockets and [long-polling](Mount::longpoll) sessions
    /// together. Default 65,536.
    ///
    /// At the limit, a new client is answered with 503 and `retry-after`, before
    /// [`Socket::connect`] is called; the official client tries again by itself. Such clients are
    /// counted in `socket.connections_refused`. The operating system has limits of its own: a process
    /// often may have no more than 1,024 open files.
    ///
    /// # Panics
    ///
    /// If it is zero: every client would be refused.
    pub fn max_sockets(mut self, sockets: usize) -> Self {
        assert!(sockets > 0, "max_sockets must be at least 1");
        self.limits.sockets = sockets;
        self
    }

    /// Whether clients that [`Socket::connect`] refuses learn why. By default they do not: they are
    /// answered with 403, or with the response of the [`ConnectError`](crate::socket::ConnectError), and
    /// a page sees a connection that failed, with the code 1006.
    ///
    /// With this option the connection becomes a WebSocket, which is closed after this delay with the
    /// code and the reason of [`ConnectError::close_with`](crate::socket::ConnectError::close_with), or
    /// with 1008. It has no channels, and what its client sends is not handled. An error that has a
    /// response and no close frame is answered by its response as before, and so are all other refusals:
    /// by the origin, by a limit, and of a long-polling client, which gets the status 403.
    ///
    /// The official client connects again after any refusal. But its back-off begins anew once a
    /// connection is open: a client that learns why comes back at once, again and again. So the page
    /// should look at the code and disconnect, and the delay bounds how often all others come: with a second,
    /// once a second.
    ///
    /// ```js
    /// socket.onClose(({code}) => { if (code == 4403) socket.disconnect() })
    /// ```
    ///
    /// A client that is to learn why counts as a socket in [`max_sockets`](Self::max_sockets), for the delay and
    /// five seconds at most, and until it leaves; once the endpoint drains, for a second. At most 1,000 do so at
    /// the same time, and no more than an eighth of `max_sockets`; beyond that they are answered with their
    /// status. All are counted in `socket.refusals`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pipeline_ws_sink::{Endpoint, Mount, Socket, endpoint::BuildError};
    /// # fn mount<S: Socket>(mount: Mount<S>) -> Result<Endpoint, BuildError> {
    /// Endpoint::builder().mount("/socket", mount).tell_refused(Duration::from_secs(1)).build()
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If the delay is longer than a minute.
    pub fn tell_refused(mut self, delay: Duration) -> Self {
        assert!(delay <= LONGEST_DELAY, "tell_refused must be at most a minute: {delay:?}");
        self.limits.tell_refused = Some(delay);
        self
    }

    /// How many clients may connect in a second. Default: no limit.
    ///
    /// The others wait for their turn, before [`Socket::connect`] is called. A client that waits for too
    /// long, or for which there is no room, is answered with 503 and `retry-after`, and counted in
    /// `socket.connects_over_rate`; the official client tries again by itself.
    ///
    /// Each that waits has a connection, which counts in the `max_connections` of `serve`. So no more than
    /// [`ArrivalRate::max_waiting`] wait, which has to be well below that number.
    pub fn connect_rate(mut self, rate: ArrivalRate) -> Self {
        self.limits.connects = Some(rate);
        self
    }

    /// How many channels may be joined in a second, by all clients together. Default: no limit.
    ///
    /// The others wait for their turn, before [`Channel::join`](crate::Channel::join) is called. A join that
    /// waits for too long, or for which there is no room, is answered with the error
    /// `{"reason": "too many joins"}`, and counted in `channel.joins_over_rate`; the official client joins
    /// again by itself. A join of a topic that the client has joined ends the former channel in any case.
    pub fn join_rate(mut self, rate: ArrivalRate) -> Self {
        self.limits.joins = Some(rate);
        self
    }

    /// The maximum number of pushes that wait to be [confirmed](crate::PubSub::confirmation) by a
    /// client. Default 10,000. Each takes some 200 bytes, and is removed when its client has confirmed
    /// it, when the last client has left its topic, or when its time is over.
    ///
    /// The gauge `socket.confirmations_waiting` shows their number.
    pub fn max_confirmations(mut self, pushes: usize) -> Self {
        self.limits.confirmations = pushes;
        self
    }

    /// Where the endpoint records its metrics. Default [`Telemetry::global`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// How broadcasts reach the other nodes of a cluster. Without an adapter, the node is alone.
    pub fn adapter(mut self, adapter: impl Adapter) -> Self {
        self.adapter = Some(Arc::new(Contained(adapter)));
        self
    }

    /// A secret that all nodes of the cluster have, of at least 20 bytes. With it, a request of a
    /// [long-polling](Mount::longpoll) client may reach any node: see
    /// [`LongPoll`](crate::mount::LongPoll). Without it, such a client needs the node of its session.
    ///
    /// Tokens of these clients are signed with it, so that no client makes a node ask another one.
    pub fn cluster_secret(mut self, secret: &str) -> Self {
        self.cluster_secret = Some(secret.to_owned());
        self
    }

    /// Makes the nodes of a cluster share which topics have subscribers, so that
    /// [`PubSub::has_subscribers`](crate::PubSub::has_subscribers) covers all nodes. Changes are
    /// shared within one broadcast period. All nodes have to enable it. Without an
    /// [`adapter`](Self::adapter) it has no effect.
    ///
    /// A node that shuts down cleanly always announces it, regardless of
    /// [`permdown_on_shutdown`](crate::presence::TrackerOptions::permdown_on_shutdown): its topics
    /// have no subscribers there any more. While a node is silent without having announced its
    /// shutdown, every topic counts as one with subscribers, for as long as
    /// [`permdown_period`](crate::presence::TrackerOptions::permdown_period).
    pub fn sync_subscriptions(mut self, options: TrackerOptions) -> Self {
        self.synced_subscriptions = Some(options);
        self
    }

    /// Attaches a presence to this endpoint.
    pub fn presence(mut self, presence: &Presence) -> Self {
        self.presences.push(presence.clone());
        self
    }

    /// Builds the endpoint.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if a topic pattern, a path, a host, an origin or a subprotocol is invalid, or
    /// if two sockets are mounted at one path.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Endpoint, endpoint::BuildError, mount::CheckOrigin};
    /// let builder = Endpoint::builder().check_origin(CheckOrigin::list(["example.com"]));
    /// assert!(matches!(builder.build(), Err(BuildError::Origin(_))), "write `//example.com`");
    /// ```
    pub fn build(self) -> Result<Endpoint, BuildError> {
        let host = match self.host {
            Some(host) => match origin::parse_host(&host) {
                Some(parsed) => Some(parsed),
                None => return Err(BuildError::Host { host }),
            },
            None => None,
        };
        self.check_origin.checked()?;
        let secret = self.cluster_secret.as_deref();
        let cluster_key = secret.map(|secret| SharedKey::derive(secret, "longpoll nodes"));
        let cluster_key = cluster_key.transpose().map_err(BuildError::ClusterSecret)?;
        let Self { telemetry, check_origin, .. } = self;
        let shared = Shared { telemetry, host, check_origin };
        let (mut mounts, mut mount_points) = (Vec::new(), Vec::<MountPoint>::new());
        for (paths, build) in self.mounts {
            let mut parsed = Vec::new();
            for (transport, path) in paths {
                let path = path?;
                let taken = mount_points.iter().map(|mount_point| &mount_point.path);
                let mut taken = taken.chain(parsed.iter().map(|(_, path)| path));
                if taken.any(|taken| taken.is_same(&path)) {
                    return Err(BuildError::PathTaken { path: path.to_string() });
                }
                parsed.push((transport, path));
            }
            let mount = build(&shared)?;
            let mount_point =
                |(transport, path)| MountPoint { path, transport, mount: mount.clone() };
            mount_points.extend(parsed.into_iter().map(mount_point));
            mounts.push(mount);
        }
        self.synced_subscriptions.as_ref().map_or(Ok(()), TrackerOptions::check)?;
        let presences = self.presences;
        for (at, presence) in presences.iter().enumerate() {
            presence.checked()?;
            if presences[..at].iter().any(|other| other.name() == presence.name()) {
                return Err(BuildError::PresenceName { name: presence.name().to_owned() });
            }
            // Checked before any presence is attached, so that an error attaches none.
            if presence.is_attached() {
                return Err(BuildError::PresenceTaken { name: presence.name().to_owned() });
            }
        }
        let state = Arc::new(EndpointState::new(
            &shared.telemetry,
            self.adapter,
            self.synced_subscriptions,
            presences,
            self.limits,
            cluster_key,
        ));
        state.pubsub.set_joins(Arrivals::joins(self.limits.joins, &shared.telemetry));
        for presence in &state.presences {
            if !presence.attach(&state.pubsub) {
                return Err(BuildError::PresenceTaken { name: presence.name().to_owned() });
            }
        }
        state.pubsub.set_served(mounts.iter().flat_map(|mount| mount.patterns()).collect());
        let inner = Arc::new(Inner { mounts, mount_points, state });
        let relayed = Arc::downgrade(&inner);
        inner.state.pubsub.on_relayed(Box::new(move |message| {
            if let Some(Inner { mounts, state, .. }) = relayed.upgrade().as_deref() {
                state.relay.receive(&state.pubsub, mounts, message);
            }
        }));
        // Starts replication, so that other nodes are known before clients connect.
        inner.state.begin_replication();
        Ok(Endpoint { inner })
    }
}

/// The checks that a mount makes before a client connects.
fn handshake(options: HandshakeOptions, shared: &Shared) -> Result<Handshake, BuildError> {
    let HandshakeOptions { check_origin, mut subprotocols, auth_token, compress_when, .. } =
        options;
    let check_origin = check_origin.unwrap_or_else(|| shared.check_origin.clone());
    check_origin.checked()?;
    // Subprotocol names are tokens, like header names, except that their case counts.
    let is_token = |name: &&String| HeaderName::from_bytes(name.as_bytes()).is_ok();
    if let Some(name) = subprotocols.iter().find(|name| !is_token(name)) {
        return Err(BuildError::Subprotocol { name: name.clone() });
    }
    if auth_token {
        subprotocols.insert(0, subprotocol::PHOENIX.to_owned());
    }
    let host = shared.host.clone();
    Ok(Handshake { check_origin, host, subprotocols, auth_token, compress_when })
}

impl fmt::Debug for EndpointBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.mounts.iter().flat_map(|(paths, _)| paths);
        let paths = paths.filter_map(|(_, path)| path.as_ref().ok());
        let paths: Vec<_> = paths.map(MountPath::to_string).collect();
        f.debug_struct("EndpointBuilder").field("paths", &paths).finish_non_exhaustive()
    }
}

/// Why an endpoint cannot be built.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A topic pattern of a route is invalid.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A path is invalid.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An entry in a list of origins is invalid.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The public host is invalid.
    #[error(
        "invalid host {host:?}: expected a host such as \"example.com\", without scheme and port"
    )]
    Host {
        /// The host that was given.
        host: String,
    },
    /// A subprotocol's name is not a valid header token.
    #[error("invalid subprotocol {name:?}: it has characters that are not allowed in a header")]
    Subprotocol {
        /// The name.
        name: String,
    },
    /// The system's random number generator failed. Long-polling tokens are signed with its
    /// numbers.
    #[error("the system's random number generator failed")]
    NoRandomness,
    /// The secret of the cluster is too short.
    #[error("the secret of the cluster cannot be used: {0}")]
    ClusterSecret(#[source] SignerError),
    /// Two presences have the same name.
    #[error("two presences have the name {name:?}: give one of them another name")]
    PresenceName {
        /// The name.
        name: String,
    },
    /// A presence is attached to another endpoint.
    #[error("the presence {name:?} is already attached to another endpoint")]
    PresenceTaken {
        /// The presence's name.
        name: String,
    },
    /// The periods of a presence's tracker contradict each other.
    #[error(transparent)]
    Tracker(#[from] TrackerOptionsError),
    /// Two sockets are mounted at one path.
    #[error("two sockets are mounted at {path}")]
    PathTaken {
        /// The path, with its transport.
        path: String,
    },
}
