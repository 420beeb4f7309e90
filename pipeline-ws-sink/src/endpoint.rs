//! Where sockets are mounted, and from where anyone can broadcast.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use pipeline_core::Telemetry;
use thiserror::Error;
use tokio::time::{self, Instant};
use tower_service::Service;

use crate::{
    end::SocketEnd,
    hub::Hub,
    mount::Mount,
    payload::{IntoPayload, PayloadError},
    protocol::message::Broadcast,
    socket::Socket,
    telemetry::Attempts,
    topic::PatternError,
    transport::handshake::{Answer, Mounted, status},
};

/// The server side of the channel protocol: sockets at their paths, and the topics they listen to.
///
/// Cheap to clone; all clones are the same endpoint. When the last one is gone, its sockets are
/// closed.
///
/// It is a tower service, which any server that supports HTTP upgrades can run. With axum, it is the
/// fallback of a router, or the service of the one path that it answers:
///
/// ```
/// # use pipeline_ws_sink::{Endpoint, BuildError};
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
/// for it.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    mounts: Vec<(String, Arc<dyn ErasedMount>)>,
    hub: Arc<Hub>,
}

/// A kind of socket in its place, without its type.
#[async_trait]
trait ErasedMount: Send + Sync {
    async fn accept(self: Arc<Self>, hub: Arc<Hub>, request: Request<()>) -> Answer;
}

#[async_trait]
impl<S: Socket> ErasedMount for Mounted<S> {
    async fn accept(self: Arc<Self>, hub: Arc<Hub>, request: Request<()>) -> Answer {
        Mounted::accept(self, hub, request).await
    }
}

impl Endpoint {
    /// Begins an endpoint.
    pub fn builder() -> EndpointBuilder {
        EndpointBuilder { telemetry: Telemetry::global(), mounts: Vec::new() }
    }

    /// Sends an event to everyone on a topic.
    ///
    /// The payload is encoded once, however many there are. It never waits for any of them: what a
    /// client cannot take at once waits for it, and a client that falls too far behind is
    /// disconnected; see [`Mount::max_outbox`].
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is no JSON object; nobody gets it then.
    ///
    /// ```
    /// # use pipeline_ws_sink::Endpoint;
    /// # use serde_json::json;
    /// # fn announce(endpoint: &Endpoint) -> Result<(), pipeline_ws_sink::PayloadError> {
    /// endpoint.broadcast("user:42", "greeting", json!({ "text": "hello" }))
    /// # }
    /// ```
    pub fn broadcast(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), PayloadError> {
        self.send(topic, event, payload, None)
    }

    /// Sends an event to everyone on a topic, and times it.
    ///
    /// For each socket the time from `enqueued_at` until the operating system has taken the last
    /// byte of the frame is recorded as `pipeline.push_delivered`, in milliseconds. The payload is
    /// still encoded once. See [`Timed`](pipeline_core::Timed) for where the moment comes from.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is no JSON object; nobody gets it then.
    pub fn broadcast_timed(
        &self,
        enqueued_at: Instant,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), PayloadError> {
        self.send(topic, event, payload, Some(enqueued_at))
    }

    fn send(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
        since: Option<Instant>,
    ) -> Result<(), PayloadError> {
        let broadcast = Broadcast::encode(topic, event, payload)?;
        self.inner.hub.pubsub.broadcast(topic, event, &broadcast, None, since);
        Ok(())
    }

    /// Closes every socket with this id, with a code that makes the official client connect again.
    /// Returns how many there were.
    ///
    /// To keep a user out, have `connect` refuse it first. See [`Socket::id`].
    ///
    /// ```
    /// # fn sign_out(endpoint: &pipeline_ws_sink::Endpoint) {
    /// let devices = endpoint.disconnect("users_socket:42");
    /// println!("signed out on {devices} devices");
    /// # }
    /// ```
    #[expect(clippy::must_use_candidate, reason = "the number is for those who care")]
    pub fn disconnect(&self, id: &str) -> usize {
        self.inner.hub.sockets.disconnect(id)
    }

    /// How many sockets are open.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.inner.hub.sockets.len()
    }

    /// Lets no more clients connect, and closes the sockets with code 1012, so that clients connect
    /// again: to another server, or to this one when it is back. It closes them in batches: see
    /// [`Drainer`](crate::Drainer).
    ///
    /// Sockets that are not closed when the time is up are cut off, with their channels, and the
    /// report says how many. The channels are given five seconds to end.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the sockets go on closing, all at once, and none is cut off.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn stop(endpoint: &pipeline_ws_sink::Endpoint) {
    /// let report = endpoint.drain(Duration::from_secs(5)).await;
    /// println!("{report}");
    /// # }
    /// ```
    pub async fn drain(&self, within: Duration) -> EndpointReport {
        let hub = &self.inner.hub;
        let draining = hub.sockets.drain();
        let sockets = draining.sockets();
        hub.tasks.close();
        let closing = async {
            draining.run().await;
            hub.tasks.wait().await;
        };
        let closed = time::timeout(within, closing).await;
        let cut_off = if closed.is_ok() { 0 } else { hub.tasks.len() };
        if cut_off > 0 {
            hub.cut_off.cancel();
            hub.tasks.wait().await;
        }
        EndpointReport { closed: sockets.saturating_sub(cut_off), cut_off }
    }

    /// Answers a request: a client that wants to connect, or something else.
    fn answer<B>(&self, request: Request<B>) -> impl Future<Output = Answer> + Send + use<B> {
        let path = request.uri().path();
        let mount = self.inner.mounts.iter().find(|(mounted, _)| mounted == path);
        let accept = mount.map(|(_, mount)| {
            let (hub, request) = (self.inner.hub.clone(), request.map(|_body| ()));
            mount.clone().accept(hub, request)
        });
        async {
            match accept {
                Some(accept) => accept.await,
                None => status(StatusCode::NOT_FOUND, ""),
            }
        }
    }
}

impl<B> Service<Request<B>> for Endpoint
where
    B: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.answer(request);
        Box::pin(async { Ok(answer.await) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.hub.sockets.end_all(SocketEnd::Disconnected);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.inner.mounts.iter().map(|(path, _)| path).collect();
        f.debug_struct("Endpoint")
            .field("paths", &paths)
            .field("open_sockets", &self.open_sockets())
            .finish()
    }
}

/// How an endpoint was drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// Sockets that were closed in good order.
    pub closed: usize,
    /// Sockets that were not closed in time.
    pub cut_off: usize,
}

impl fmt::Display for EndpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sockets closed, {} cut off", self.closed, self.cut_off)
    }
}

/// Builds an [`Endpoint`].
#[must_use]
pub struct EndpointBuilder {
    telemetry: Telemetry,
    mounts: Vec<(String, Build)>,
}

/// Registers a mount's metrics and puts it in its place.
type Build = Box<dyn FnOnce(&Telemetry) -> Result<Arc<dyn ErasedMount>, PatternError> + Send>;

impl EndpointBuilder {
    /// Serves a kind of socket below this path: at `/socket/websocket`, if the path is `/socket`.
    pub fn mount<S: Socket>(mut self, path: &str, mount: Mount<S>) -> Self {
        let path = format!("/{}/websocket", path.trim_matches('/'));
        let build: Build = Box::new(move |telemetry| {
            let options = mount.options;
            let (socket, routes) = mount.into_routes(telemetry)?;
            let attempts = Attempts::connects(telemetry, socket.name());
            let (socket, routes) = (Arc::new(socket), Arc::new(routes));
            let drainer = Arc::new(options.drainer);
            Ok(Arc::new(Mounted { socket, routes, options, attempts, drainer }))
        });
        self.mounts.push((path, build));
        self
    }

    /// Where the endpoint records its metrics. Default [`Telemetry::global`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Makes the endpoint.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if a topic pattern makes no sense, or if two sockets are mounted at one path.
    pub fn build(self) -> Result<Endpoint, BuildError> {
        let mut mounts: Vec<(String, Arc<dyn ErasedMount>)> = Vec::new();
        for (path, build) in self.mounts {
            if mounts.iter().any(|(taken, _)| *taken == path) {
                return Err(BuildError::PathTaken { path });
            }
            mounts.push((path, build(&self.telemetry)?));
        }
        let hub = Arc::new(Hub::new(&self.telemetry));
        Ok(Endpoint { inner: Arc::new(Inner { mounts, hub }) })
    }
}

impl fmt::Debug for EndpointBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.mounts.iter().map(|(path, _)| path).collect();
        f.debug_struct("EndpointBuilder").field("paths", &paths).finish_non_exhaustive()
    }
}

/// Why an endpoint cannot be built.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A route's pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Two sockets are mounted at one path.
    #[error("two sockets are mounted at {path}")]
    PathTaken {
        /// The path, transport and all.
        path: String,
    },
}
