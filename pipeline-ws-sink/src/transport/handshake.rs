//! From an HTTP request to a WebSocket, or a refusal.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::SEC_WEBSOCKET_EXTENSIONS};
use http_body_util::Full;
use pipeline_core::ExitReason;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::{io::Io, websocket};
use crate::{
    drainer::Drainer,
    hub::Hub,
    mount::{MountOptions, Routes},
    outbox::Outbox,
    protocol::{deflate::negotiate, version::Version},
    session::{Connection, Session, SessionEvents},
    socket::{ConnectError, ConnectInfo, Params, Socket},
    telemetry::Attempts,
};

/// What an endpoint answers to a request.
pub(crate) type Answer = Response<Full<Bytes>>;

/// A kind of socket in its place.
pub(crate) struct Mounted<S> {
    pub(crate) socket: Arc<S>,
    pub(crate) routes: Arc<Routes<S>>,
    pub(crate) options: MountOptions,
    pub(crate) attempts: Attempts,
    /// Of its own, because it tells this mount's sockets from those of others.
    pub(crate) drainer: Arc<Drainer>,
}

impl<S: Socket> Mounted<S> {
    /// Lets a client connect, or refuses it. The first check that fails answers.
    pub(crate) async fn accept(self: Arc<Self>, hub: Arc<Hub>, request: Request<()>) -> Answer {
        if request.method() != Method::GET {
            return status(StatusCode::BAD_REQUEST, "");
        }
        if hub.sockets.is_draining() {
            return status(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let params = Params::decode(request.uri().query().unwrap_or_default());
        let socket = self.socket.name();
        let version = Version::negotiate(params.get("vsn"));
        if version != Some(Version::V2) {
            tracing::warn!(socket, vsn = params.get("vsn"), "refused a version of the protocol");
            return status(StatusCode::FORBIDDEN, "");
        }
        let mut switching = match create_response_with_body(&request, Full::default) {
            Ok(response) => response,
            Err(error) => return status(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let connected = self.connect(&params, &request).await;
        self.attempts.count(connected.is_ok());
        let (assigns, id) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                tracing::info!(socket, %error, "refused a connection");
                return status(StatusCode::FORBIDDEN, "");
            }
        };
        let extension = self.options.compress.then(|| extension(&request)).flatten();
        let compresses = extension.is_some();
        if let Some(extension) = extension {
            switching.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, extension);
        }
        tracing::debug!(socket, id, "connected");
        let (tasks, cut_off) = (hub.tasks.clone(), hub.cut_off.clone());
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cut_off.cancelled() => {}
                () = self.upgrade(hub, request, assigns, id, compresses) => {}
            }
        });
        switching
    }

    /// Asks the socket who this is.
    async fn connect(
        &self,
        params: &Params,
        request: &Request<()>,
    ) -> Result<(S::Assigns, Option<String>), ConnectError> {
        let info = ConnectInfo::of(request);
        let connecting = async {
            let assigns = self.socket.connect(params, &info).await?;
            let id = self.socket.id(&assigns)?;
            Ok((assigns, id))
        };
        let outcome = AssertUnwindSafe(connecting).catch_unwind().await;
        outcome.unwrap_or_else(|payload| {
            let panicked = ExitReason::from_panic(&*payload);
            Err(ConnectError::because(panicked.to_string()))
        })
    }

    /// Waits for the connection to become a WebSocket, and lives on it.
    async fn upgrade(
        self: Arc<Self>,
        hub: Arc<Hub>,
        request: Request<()>,
        assigns: S::Assigns,
        id: Option<String>,
        compresses: bool,
    ) {
        let io = match hyper::upgrade::on(request).await {
            Ok(upgraded) => Io::of(upgraded),
            Err(error) => {
                tracing::debug!(%error, "a client was gone before its connection was upgraded");
                return;
            }
        };
        self.serve(hub, io, assigns, id, compresses).await;
    }

    /// Lives on a connection to its end.
    pub(crate) async fn serve(
        self: Arc<Self>,
        hub: Arc<Hub>,
        io: Io,
        assigns: S::Assigns,
        id: Option<String>,
        compresses: bool,
    ) {
        let outbox = Outbox::new(io.writer, self.options.outbox, hub.metrics.clone())
            .when_full(self.options.when_full)
            .compressing(compresses);
        let outbox = Arc::new(outbox);
        let registration = hub.sockets.register(&outbox, id.as_deref(), &self.drainer);
        let connection = Arc::new(Connection {
            socket: self.socket.clone(),
            assigns,
            id,
            outbox: outbox.clone(),
            pubsub: hub.pubsub.clone(),
            events: SessionEvents::default(),
            metrics: hub.metrics.clone(),
        });
        let session = Session::new(connection, self.routes.clone());
        websocket::live(io.reader, io.received, session, &outbox, &self.options).await;
        drop(registration);
    }
}

/// What is answered to the extensions that a client offers, if anything.
fn extension(request: &Request<()>) -> Option<HeaderValue> {
    let offers = request.headers().get_all(SEC_WEBSOCKET_EXTENSIONS);
    let answer = negotiate(offers.iter().filter_map(|value| value.to_str().ok()))?;
    HeaderValue::from_str(&answer).ok()
}

pub(crate) fn status(status: StatusCode, body: &str) -> Answer {
    let body = Full::from(Bytes::copy_from_slice(body.as_bytes()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
