//! The handshake: from an HTTP request to a WebSocket, or a refusal.

pub(crate) mod connect_info;
mod leaves;
pub(crate) mod origin;
pub(crate) mod params;
pub(crate) mod path;
pub(crate) mod query;
pub(crate) mod refusal;
pub(crate) mod subprotocol;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use pipeline_core::ExitReason;
use serde_json::Value;
use tokio::time::{self, Instant};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use self::{
    connect_info::ConnectInfo,
    origin::{CheckOrigin, Origin, OwnHost},
    params::Params,
    path::BadSegment,
};
use crate::{
    endpoint::{
        arrivals::TooMany,
        drainer::MountDrainer,
        mount::{CompressWhen, MountOptions, Routes},
        snapshot::{MountSnapshot, RouteSnapshot},
        sockets::Entrant,
        state::EndpointState,
    },
    outbox::Outbox,
    protocol::{deflate::negotiate, version::Version},
    session::{Connection, Session, SessionEvents, expiry::Expiry, inbox::Inbox},
    socket::{ConnectError, Socket, TEXT},
    telemetry::{
        ContainedSpan, InSpan, MountMetrics, Outcome, described, limited, log, log_line, shown,
    },
    transport::{answer_body::AnswerBody, io::Io, longpoll_sessions::LongPollSessions, websocket},
};

/// The transport's name in the log.
pub(crate) const WEBSOCKET: &str = "websocket";

/// How long a client may take to read the answer that upgrades its connection.
const UPGRADED_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take once the endpoint drains.
const LAST_UPGRADES: Duration = Duration::from_secs(1);

/// An endpoint's answer to a request.
pub(crate) type Answer = Response<AnswerBody>;

/// The variables of a request's path.
pub(crate) type Variables = Result<Vec<(String, String)>, BadSegment>;

/// A client's identity and its connection.
pub(crate) struct Identity<S: Socket> {
    pub(crate) assigns: S::Assigns,
    pub(crate) id: Option<String>,
    pub(crate) expiry: Expiry,
    pub(crate) version: Version,
    pub(crate) transport: &'static str,
}

/// What a client that may connect has been given.
pub(crate) struct Connected<S: Socket> {
    pub(crate) assigns: S::Assigns,
    pub(crate) id: Option<String>,
    pub(crate) expiry: Expiry,
}

impl<S: Socket> Connected<S> {
    pub(crate) fn by(self, transport: &'static str, version: Version) -> Identity<S> {
        let Self { assigns, id, expiry } = self;
        Identity { assigns, id, expiry, version, transport }
    }
}

/// A mounted kind of socket.
pub(crate) struct Mounted<S> {
    /// The full path, including the transport.
    pub(crate) path: String,
    pub(crate) socket: Arc<S>,
    pub(crate) routes: Arc<Routes<S>>,
    pub(crate) options: MountOptions,
    pub(crate) handshake: Handshake,
    /// The long-polling sessions, if long polling is served.
    pub(crate) polled: Option<LongPollSessions>,
    pub(crate) metrics: MountMetrics,
    pub(crate) drainer: Arc<MountDrainer>,
}

/// The checks before the socket's `connect` is called.
pub(crate) struct Handshake {
    pub(crate) check_origin: CheckOrigin,
    /// The public host of the endpoint.
    pub(crate) host: Option<String>,
    /// The supported subprotocols. If the list is empty, offers are ignored.
    pub(crate) subprotocols: Vec<String>,
    pub(crate) auth_token: bool,
    pub(crate) compress_when: Option<CompressWhen>,
}

/// The result of the negotiation between client and server.
struct Agreed {
    version: Version,
    subprotocol: Option<HeaderValue>,
    token: Option<String>,
}

impl<S: Socket> Mounted<S> {
    /// Accepts or refuses a client. The first check that fails determines the answer.
    pub(crate) async fn accept(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        mut request: Request<()>,
        variables: Variables,
    ) -> Answer {
        if request.method() != Method::GET {
            return status(StatusCode::BAD_REQUEST, "");
        }
        let headers = request.headers();
        if let Some(fault) = fault(&request).or_else(|| body(headers)).or_else(|| doubled(headers))
        {
            return status(StatusCode::BAD_REQUEST, fault);
        }
        if state.sockets.are_closed() {
            return status(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let Some(admission) = state.admissions.admit() else { return too_many() };
        let socket = self.socket.name();
        let query = request.uri().query().unwrap_or_default();
        let params = match variables.map(|variables| Params::decode(query, variables)) {
            Ok(Ok(params)) => params,
            Ok(Err(error)) => {
                let lines = &self.metrics.handshake_lines;
                limited!(lines, INFO, socket, ?error, "refused a query that cannot be decoded");
                return status(StatusCode::BAD_REQUEST, "");
            }
            Err(BadSegment) => return status(StatusCode::BAD_REQUEST, ""),
        };
        let Some(Agreed { version, subprotocol, token }) =
            self.handshake.agree(&self.metrics, &mut request, &params)
        else {
            return status(StatusCode::FORBIDDEN, "");
        };
        select_websocket(request.headers_mut());
        let mut switching =
            match create_response_with_body(&request, || AnswerBody::from(Bytes::new())) {
                Ok(response) => response,
                Err(error) => return status(StatusCode::BAD_REQUEST, &error.to_string()),
            };
        if let Some(subprotocol) = subprotocol {
            switching.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        let mut info = ConnectInfo::of(&request);
        info.auth_token = token;
        let span = log::socket_span(socket, &self.path, &info);
        if let Err(TooMany) = state.connects.connect(&info).await {
            return too_many();
        }
        if state.sockets.are_closed() {
            return status(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let entrant = state.sockets.enter();
        let connected = match self.connect(&params, &info, WEBSOCKET, version, &span).await {
            Ok(connected) => connected,
            Err(error) => {
                let refusal = state.refusals.of(&error);
                let Some(refusal) = refusal else {
                    return error.into_answer().map(AnswerBody::from);
                };
                drop(entrant);
                let upgrading = hyper::upgrade::on(request);
                let tasks = state.tasks.clone();
                tasks.spawn(async move {
                    refusal.tell(&state, upgrading, &self.options).await;
                    drop(admission);
                });
                return switching;
            }
        };
        let compresses = self.options.compress && self.handshake.compresses(&info);
        let extension = compresses.then(|| extension(&request)).flatten();
        let compresses = extension.is_some();
        if let Some(extension) = extension {
            switching.headers_mut().insert(SEC_WEBSOCKET_EXTENSIONS, extension);
        }
        let (tasks, abort) = (state.tasks.clone(), state.abort.clone());
        // Taken out of the request, so that the request is not kept as long as the socket.
        let upgrading = hyper::upgrade::on(request);
        let identity = connected.by(WEBSOCKET, version);
        let living = async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = self.upgrade(state, upgrading, entrant, identity, compresses) => {}
            }
            drop(admission);
        };
        // Most sockets are idle most of the time, so their size matters.
        if span.is_disabled() {
            tasks.spawn(living);
        } else {
            tasks.spawn(InSpan::new(span, living));
        }
        switching
    }

    /// Calls the socket's `connect`, `id` and `expires_at`, and records the result in the socket's span.
    pub(crate) async fn connect(
        &self,
        params: &Params,
        info: &ConnectInfo,
        transport: &'static str,
        version: Version,
        span: &ContainedSpan,
    ) -> Result<Connected<S>, ConnectError> {
        let (begun, connect) = (Instant::now(), log::connect_span(span));
        let connecting = async {
            let assigns = self.socket.connect(params, info).await?;
            let id = self.socket.id(&assigns)?;
            let end = self.socket.expires_at(&assigns);
            let expiry = Expiry::new(end, self.options.expiry_warning);
            if expiry.remaining().is_some_and(|left| left.is_zero()) {
                return Err(ConnectError::because("the socket's end has passed"));
            }
            Ok(Connected { assigns, id, expiry })
        };
        let outcome = InSpan::new(&connect, AssertUnwindSafe(connecting).catch_unwind()).await;
        let took = begun.elapsed();
        let went = match &outcome {
            Ok(Ok(_)) => Outcome::Ok,
            Ok(Err(_)) => Outcome::Rejected,
            Err(_) => Outcome::Panicked,
        };
        connect.record("result", went.status());
        let MountMetrics { socket, connects, connect_time, filter, .. } = &self.metrics;
        connects.count(went == Outcome::Ok);
        connect_time.record(went, took);
        let connected = outcome.unwrap_or_else(|payload| {
            let panicked = ExitReason::from_panic(&*payload);
            Err(ConnectError::because(panicked.to_string()))
        });
        let client = log::Connecting { socket, transport, version, params, filter, took };
        match &connected {
            Ok(Connected { id, .. }) => {
                if let Some(id) = id {
                    span.record("id", shown(id));
                }
                let lines = &self.metrics.connected_lines;
                span.in_scope(|| client.connected(id.as_deref(), lines));
            }
            Err(error) => {
                let lines = self.metrics.connect_lines.of(went == Outcome::Panicked);
                span.in_scope(|| client.refused(error, lines));
            }
        }
        connected
    }

    /// Waits until the connection becomes a WebSocket, and serves it.
    async fn upgrade(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        upgrading: OnUpgrade,
        entrant: Entrant,
        identity: Identity<S>,
        compresses: bool,
    ) {
        let io = match Box::pin(in_time(&state, upgrading)).await {
            None => {
                let socket = self.socket.name();
                let lines = &self.metrics.handshake_lines;
                limited!(
                    lines,
                    INFO,
                    socket,
                    "upgrade timed out: the client did not read the answer"
                );
                return;
            }
            Some(Ok(upgraded)) => Io::of(upgraded),
            Some(Err(error)) => {
                let error = described(&error);
                log_line!(DEBUG, error, "the client disconnected before the upgrade");
                return;
            }
        };
        self.serve(state, io, entrant, identity, compresses).await;
    }

    /// Serves a connection until its end.
    pub(crate) async fn serve(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        io: Io,
        entrant: Entrant,
        identity: Identity<S>,
        compresses: bool,
    ) {
        let outbox = Outbox::new(io.writer, self.options.outbox, state.metrics.clone())
            .among(&state.outboxes)
            .when_full(self.options.when_full)
            .send_timeout(self.options.send_timeout)
            .flushed_by(state.flusher.slot())
            .compressing(compresses);
        let outbox = Arc::new(outbox);
        let open = self.metrics.open.hold();
        let registration = entrant.register(&outbox, identity.id.as_deref(), &self.drainer);
        state.begin();
        let session = self.session(&state, &outbox, identity);
        registration.answered_by(session.questioned());
        let Io { reader, received, .. } = io;
        let live =
            websocket::live(reader, received, session, &outbox, &self.options, &state.endings);
        if !live.await {
            state.unclosed.fetch_add(1, Relaxed);
        }
        drop(registration);
        drop(open);
    }

    /// The session of a new client.
    pub(crate) fn session(
        &self,
        state: &EndpointState,
        outbox: &Arc<Outbox>,
        identity: Identity<S>,
    ) -> Session<S> {
        let Identity { assigns, id, expiry, version, transport } = identity;
        let connection = Arc::new(Connection {
            socket: self.socket.clone(),
            assigns,
            id,
            version,
            transport,
            outbox: outbox.clone(),
            inbox: Arc::new(Inbox::new(self.options.inbox, state.inboxes.clone())),
            pubsub: state.pubsub.clone(),
            events: SessionEvents::default(),
            expiry,
            metrics: state.metrics.clone(),
        });
        Session::new(connection, self.routes.clone())
    }

    /// Snapshots of its sockets and their channels.
    pub(crate) fn snapshot(&self) -> (MountSnapshot, Vec<RouteSnapshot>) {
        let MountMetrics { socket, connects, open, .. } = &self.metrics;
        let sockets = MountSnapshot {
            path: self.path.clone(),
            socket: (*socket).into(),
            open: open.get(),
            connected: connects.succeeded(),
            refused: connects.failed(),
            messages_refused: self.routes.limited.refused(),
        };
        (sockets, self.routes.snapshots(&self.path).collect())
    }
}

impl Handshake {
    /// Checks the origin, and selects the subprotocol and the version. `None` is a refusal, which
    /// has been logged.
    ///
    /// Takes the token out of the request's headers.
    fn agree(
        &self,
        metrics: &MountMetrics,
        request: &mut Request<()>,
        params: &Params,
    ) -> Option<Agreed> {
        let socket = metrics.socket;
        if !self.allows(metrics, request) {
            return None;
        }
        let mut offered = offered(request.headers());
        let mut token = None;
        if let (true, Some(header)) = (self.auth_token, &offered) {
            let Ok(without) = subprotocol::take_token(header) else {
                let lines = &metrics.handshake_lines;
                limited!(lines, WARN, socket, "refused an auth token: not base64 of UTF-8 text");
                return None;
            };
            (token, offered) = (without.token, without.header);
            if token.is_some() {
                let left = offered.as_deref().and_then(|left| HeaderValue::from_str(left).ok());
                match left {
                    Some(left) => request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, left),
                    None => request.headers_mut().remove(SEC_WEBSOCKET_PROTOCOL),
                };
            }
        }
        let Ok(spoken) = subprotocol::select(&self.subprotocols, offered.as_deref()) else {
            let (lines, supported) = (&metrics.handshake_lines, &self.subprotocols);
            limited!(
                lines,
                WARN,
                socket,
                ?supported,
                "refused a client: no supported subprotocol offered"
            );
            return None;
        };
        let version = version(metrics, params)?;
        // Checked to be a valid header value when the endpoint was built.
        let subprotocol = spoken.and_then(|spoken| HeaderValue::from_str(spoken).ok());
        Some(Agreed { version, subprotocol, token })
    }

    /// Whether the request's origin is allowed. A refusal is logged.
    pub(crate) fn allows(&self, metrics: &MountMetrics, request: &Request<()>) -> bool {
        let checked = self.check_origin(request);
        if let Err(Refused { origin, expected }) = &checked {
            let (lines, socket) = (&metrics.handshake_lines, metrics.socket);
            limited!(
                lines,
                ERROR,
                socket,
                origin = shown(origin),
                expected = shown(expected),
                "refused a page from another origin"
            );
        }
        checked.is_ok()
    }

    /// Whether messages are compressed for this client, if it offers compression.
    fn compresses(&self, info: &ConnectInfo) -> bool {
        // The user's function may panic.
        self.compress_when.as_ref().is_none_or(|CompressWhen(when)| {
            catch_unwind(AssertUnwindSafe(|| when(info))).unwrap_or(false)
        })
    }

    fn check_origin(&self, request: &Request<()>) -> Result<(), Refused> {
        let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
        let origin = Origin::parse(&String::from_utf8_lossy(origin.as_bytes()));
        let uri = connect_info::uri(request);
        let authority = uri.authority().map(http::uri::Authority::as_str);
        let own = OwnHost::new(self.host.as_deref(), uri.scheme_str().unwrap_or("http"), authority);
        // The user's function may panic.
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_origin.check(&origin, &own)));
        let expected = match checked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(expected)) => expected,
            Err(payload) => ExitReason::from_panic(&*payload).to_string(),
        };
        Err(Refused { origin: origin.to_string(), expected })
    }
}

/// The result of an upgrade, or `None` when the client takes too long. The client has to read the
/// answer first, and possibly earlier answers of the server.
async fn in_time(
    state: &EndpointState,
    upgrading: OnUpgrade,
) -> Option<Result<Upgraded, hyper::Error>> {
    let late = async {
        tokio::select! {
            () = time::sleep(UPGRADED_WITHIN) => {}
            () = async {
                state.sockets.closed().await;
                time::sleep(LAST_UPGRADES).await;
            } => {}
        }
    };
    tokio::select! {
        biased;
        upgraded = upgrading => Some(upgraded),
        () = late => None,
    }
}

/// A fault in a request that makes its host or its origin ambiguous: a proxy in front may have
/// interpreted it differently.
pub(crate) fn fault(request: &Request<()>) -> Option<&'static str> {
    let headers = request.headers();
    let several = |name| headers.get_all(name).iter().nth(1).is_some();
    if several(HOST) {
        Some("more than one host header")
    } else if several(ORIGIN) {
        Some("more than one origin header")
    } else if !headers.contains_key(HOST) && request.uri().authority().is_none() {
        Some("no host header")
    } else {
        None
    }
}

/// A fault in an upgrade request that has a body, which would be taken for the first bytes of the
/// WebSocket.
fn body(headers: &HeaderMap) -> Option<&'static str> {
    let empty = headers.get_all(CONTENT_LENGTH).iter().all(|length| length == "0");
    let has_body = !empty || headers.contains_key(TRANSFER_ENCODING);
    has_body.then_some("an upgrade request must not have a body")
}

/// A header of an upgrade request that must not be there more than once (RFC 6455, 11.3).
fn doubled(headers: &HeaderMap) -> Option<&'static str> {
    let several = |name| headers.get_all(name).iter().nth(1).is_some();
    if several(SEC_WEBSOCKET_KEY) {
        Some("more than one sec-websocket-key header")
    } else if several(SEC_WEBSOCKET_VERSION) {
        Some("more than one sec-websocket-version header")
    } else {
        None
    }
}

/// Selects `websocket` from a list of protocols that the client would upgrade to (RFC 9110, 7.8).
fn select_websocket(headers: &mut HeaderMap) {
    let listed = headers.get_all(UPGRADE).iter().filter_map(|value| value.to_str().ok());
    let mut protocols = listed.flat_map(|list| list.split(',').map(str::trim));
    if protocols.any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// The subprotocols that a client offers, in any number of headers.
fn offered(headers: &HeaderMap) -> Option<String> {
    let mut offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let mut all = offers.next()?.to_str().unwrap_or_default().to_owned();
    for offer in offers {
        all.push_str(", ");
        all.push_str(offer.to_str().unwrap_or_default());
    }
    Some(all)
}

/// The protocol version that a client requests. `None` is a refusal, which has been logged.
pub(crate) fn version(metrics: &MountMetrics, params: &Params) -> Option<Version> {
    let vsn = params.as_map().get("vsn");
    let version = match vsn {
        None => Version::negotiate(None),
        Some(Value::String(vsn)) => Version::negotiate(Some(vsn)),
        Some(_) => None,
    };
    if version.is_none() {
        let (lines, socket) = (&metrics.handshake_lines, metrics.socket);
        limited!(
            lines,
            WARN,
            socket,
            vsn = vsn.map(shown),
            "refused a client: unsupported protocol version"
        );
    }
    version
}

/// A refused origin, and what was expected.
struct Refused {
    origin: String,
    expected: String,
}

/// The answer to the extensions that a client offers, if any.
fn extension(request: &Request<()>) -> Option<HeaderValue> {
    let offers = request.headers().get_all(SEC_WEBSOCKET_EXTENSIONS);
    let answer = negotiate(offers.iter().filter_map(|value| value.to_str().ok()))?;
    HeaderValue::from_str(&answer).ok()
}

/// Refuses a client because the maximum of open sockets is reached.
pub(crate) fn too_many() -> Answer {
    let mut answer = status(StatusCode::SERVICE_UNAVAILABLE, "too many connections");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    answer
}

pub(crate) fn status(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Bytes::copy_from_slice(text.as_bytes()).into());
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
    }
    response
}
