//! The requests of long-polling clients, in the order of the specification's section 23.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_TYPE,
    },
};
use http_body_util::BodyExt;
use hyper::body::Body;
use pipeline_core::Deadline;
use tokio::{task::coop::consume_budget, time::Instant};

use super::{
    answer_body::AnswerBody,
    longpoll_relay::{self as relay, Asked, Asking, Relayed},
    longpoll_sessions::{self, LongPollSessions, SessionHandle},
};
use crate::{
    endpoint::{arrivals::TooMany, state::EndpointState},
    handshake::{
        self, Answer, Mounted, Variables, connect_info::ConnectInfo, params::Params,
        path::BadSegment, query, status,
    },
    outbox::{Outbox, Writer},
    protocol::longpoll::{
        self as protocol, AUTH_HEADER, Batch, Status, TOKEN_HEADER, result_body, unsendable,
    },
    session::{Scope, inbox::Inbox},
    socket::Socket,
    telemetry::{InSpan, MountMetrics, limited, log},
};

/// The transport's name in the log.
const LONGPOLL: &str = "longpoll";

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const ANYWHERE: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("get, post, options");
const AN_HOUR: HeaderValue = HeaderValue::from_static("3600");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Reads a request's body up to a maximum size, until a deadline, as there is room.
pub(crate) type ReadBody = Box<
    dyn FnOnce(
            usize,
            Deadline,
            longpoll_sessions::BodyPermit,
        ) -> BoxFuture<'static, Result<Whole, Unread>>
        + Send,
>;

/// A complete body, counted until this is dropped.
pub(crate) struct Whole {
    bytes: Bytes,
    _permit: longpoll_sessions::BodyPermit,
}

/// A body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The body was too large, or incomplete.
    Broken,
    /// The body did not arrive in time.
    Late,
    /// There was no room for it.
    NoRoom,
}

/// A body that is read on demand.
pub(crate) fn read_body<B>(body: B) -> ReadBody
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    Box::new(move |limit, until: Deadline, mut permit: longpoll_sessions::BodyPermit| {
        Box::pin(async move {
            // Bodies have errors of any type; only the fact of an error is needed.
            let mut body = std::pin::pin!(body.map_err(|_| Unread::Broken));
            let mut whole = Vec::new();
            loop {
                let room = until.limit(permit.room()).await;
                room.map_err(|_| Unread::NoRoom)?;
                let frame = until.limit(body.frame()).await.map_err(|_| Unread::Late)?;
                let Some(frame) = frame else { break };
                let Ok(data) = frame?.into_data() else { continue };
                if data.remaining() > limit.saturating_sub(whole.len()) {
                    return Err(Unread::Broken);
                }
                // Copied, because the server's chunk may be a slice of a larger buffer.
                whole.put(data);
                permit.held.resize(whole.capacity());
                consume_budget().await;
            }
            whole.shrink_to_fit();
            permit.held.resize(whole.len());
            Ok(Whole { bytes: whole.into(), _permit: permit })
        })
    })
}

impl<S: Socket> Mounted<S> {
    /// Answers a long-polling client. The first check that fails determines the answer.
    pub(crate) async fn answer_poll(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
        body: ReadBody,
    ) -> Answer {
        let mut answer = match &self.polled {
            Some(polled) => self.clone().poll(polled, state, request, variables, body).await,
            None => status(StatusCode::NOT_FOUND, ""),
        };
        answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYWHERE);
        answer
    }

    async fn poll(
        self: Arc<Self>,
        polled: &LongPollSessions,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
        body: ReadBody,
    ) -> Answer {
        if let Some(fault) = handshake::fault(&request) {
            return status(StatusCode::BAD_REQUEST, fault);
        }
        let query = request.uri().query().unwrap_or_default();
        let params = match variables.map(|variables| Params::decode(query, variables)) {
            Ok(Ok(params)) => params,
            Ok(Err(error)) => {
                let (lines, socket) = (&self.metrics.handshake_lines, self.metrics.socket);
                limited!(lines, INFO, socket, ?error, "refused a query that cannot be decoded");
                return status(StatusCode::BAD_REQUEST, "");
            }
            Err(BadSegment) => return status(StatusCode::BAD_REQUEST, ""),
        };
        if !self.handshake.allows(&self.metrics, &request) {
            return respond(result_body(Status::Refused));
        }
        match *request.method() {
            Method::OPTIONS => preflight(request.headers()),
            Method::GET => match find(polled, &state, &request) {
                Found::Here(token, session) if session.has_read_all().await => {
                    respond(fetch(&self.metrics, &session, &token, polled.window).await.0)
                }
                Found::At(node, token) => {
                    match self.relay_poll(polled, &state, &node, &token).await {
                        Some(answer) => answer,
                        None => self.clone().open(polled, state, &request, &params).await,
                    }
                }
                Found::Here(..) | Found::Nowhere => {
                    self.clone().open(polled, state, &request, &params).await
                }
            },
            Method::POST => match find(polled, &state, &request) {
                Found::Here(_, session) => self.take(polled, &session, &request, body).await,
                Found::At(node, token) => {
                    self.pass_on(polled, &state, (&node, &token), &request, body).await
                }
                Found::Nowhere => respond(result_body(Status::Gone)),
            },
            _ => status(StatusCode::BAD_REQUEST, ""),
        }
    }

    /// Reserves what a request of this session needs to be passed on, or refuses it.
    fn passing(
        &self,
        polled: &LongPollSessions,
        state: &EndpointState,
        token: &str,
    ) -> Result<relay::Passing, StatusCode> {
        let Some(room) = polled.reserve_relay() else {
            self.metrics.longpoll_refused.increment(1);
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        };
        let passing = state.relay.begin(token, room);
        passing.ok_or_else(|| {
            self.routes.limited.count(Scope::Inbox);
            StatusCode::TOO_MANY_REQUESTS
        })
    }

    /// Lets the node of a session answer a poll. None if the client needs a new session.
    async fn relay_poll(
        &self,
        polled: &LongPollSessions,
        state: &EndpointState,
        node: &str,
        token: &str,
    ) -> Option<Answer> {
        loop {
            let passing = match self.passing(polled, state, token) {
                Ok(passing) => passing,
                Err(refused) => return Some(status(refused, "too many requests at once")),
            };
            let (path, window, request) = (&*self.path, polled.window, Asked::Poll);
            let asking = Asking { node, path, token, request, window };
            let relayed = tokio::select! {
                biased;
                relayed = state.relay.ask(&state.pubsub, asking, passing) => relayed,
                // This node ends soon. The session lives, and the next poll meets another one.
                () = state.sockets.closed() => {
                    return Some(respond(protocol::messages_body(Status::Nothing, token, &[])));
                }
            };
            return match relayed {
                // The client waits until there is a message, and the other node for some time.
                Relayed::Answered(StatusCode::OK, _, false) if window == Duration::MAX => continue,
                Relayed::Answered(StatusCode::OK, body, _) => Some(respond(body)),
                Relayed::Answered(code, ..) => Some(status(code, "")),
                Relayed::Gone | Relayed::Lost => None,
            };
        }
    }

    /// Passes the client's messages to the node of its session.
    async fn pass_on(
        &self,
        polled: &LongPollSessions,
        state: &EndpointState,
        (node, token): (&str, &str),
        request: &Request<()>,
        body: ReadBody,
    ) -> Answer {
        let passing = match self.passing(polled, state, token) {
            Ok(passing) => passing,
            Err(refused) => return status(refused, "too many requests at once"),
        };
        // The session's node limits its requests, and this one the bytes of each.
        let inbox = Arc::new(Inbox::new(self.options.inbox, state.inboxes.clone()));
        let permit = longpoll_sessions::BodyPermit::alone(&inbox);
        let until = Deadline::from_now(polled.window);
        let Whole { bytes, _permit } = match body(self.options.limits.message, until, permit).await
        {
            Ok(whole) => whole,
            Err(unread) => return self.unread(unread),
        };
        let content_type = header(request.headers(), CONTENT_TYPE.as_str()).map(str::to_owned);
        let (path, window) = (&*self.path, polled.window);
        let request = Asked::Post { content_type, body: bytes };
        let asking = Asking { node, path, token, request, window };
        match state.relay.ask(&state.pubsub, asking, passing).await {
            Relayed::Answered(StatusCode::OK, body, _) => respond(body),
            Relayed::Answered(code, ..) => status(code, ""),
            Relayed::Gone => respond(result_body(Status::Gone)),
            // Its messages may have been taken; the client cannot know, and begins anew.
            Relayed::Lost => respond(result_body(Status::NotTaken)),
        }
    }

    /// The session with this token.
    pub(crate) fn session_of(&self, token: &str) -> Option<SessionHandle> {
        self.polled.as_ref()?.find(relay::of_session(token), Instant::now())
    }

    /// Answers the request of a client that another node has passed on. None if the session has ended
    /// meanwhile.
    pub(crate) async fn answer_relayed(
        self: Arc<Self>,
        session: SessionHandle,
        token: String,
        request: relay::Request,
    ) -> Option<relay::Answered> {
        let polled = self.polled.as_ref()?;
        let result = |status, body| Some(relay::Answered { status, body, unread: None });
        match request {
            relay::Request::Poll { within } => {
                if !session.has_read_all().await {
                    return None;
                }
                let (body, has_messages) = tokio::select! {
                    biased;
                    fetched = fetch(&self.metrics, &session, &token, within.min(polled.window)) => fetched,
                    // The client need not wait for a node that is about to end: the other one opens a session.
                    () = session.drained() => return None,
                };
                let unread = has_messages.then(|| session.unread());
                Some(relay::Answered { status: StatusCode::OK, body, unread })
            }
            relay::Request::Post { content_type, length, within, body } => {
                if length > self.options.limits.message {
                    return result(StatusCode::BAD_REQUEST, Bytes::new());
                }
                let Some(mut permit) = session.body() else {
                    self.routes.limited.count(Scope::Inbox);
                    return result(StatusCode::TOO_MANY_REQUESTS, Bytes::new());
                };
                let until = Deadline::from_now(within.min(polled.window));
                // Counted before it comes, and it does not come before there is room.
                permit.held.resize(length);
                let body = tokio::select! {
                    biased;
                    // The body need not come if no session accepts it.
                    () = session.closed() => return result(StatusCode::OK, result_body(Status::NotTaken)),
                    body = async {
                        until.limit(permit.room()).await.ok()?;
                        Some(body.await)
                    } => body,
                };
                let Some(body) = body else {
                    self.routes.limited.count(Scope::Inbox);
                    return result(StatusCode::OK, result_body(Status::NotTaken));
                };
                let became = post(&session, content_type.as_deref(), body?, until).await;
                result(StatusCode::OK, result_body(became))
            }
        }
    }

    /// Connects a client, or refuses it.
    async fn open(
        self: Arc<Self>,
        polled: &LongPollSessions,
        state: Arc<EndpointState>,
        request: &Request<()>,
        params: &Params,
    ) -> Answer {
        if state.sockets.are_closed() {
            return status(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let Some(room) = polled.reserve() else {
            self.metrics.longpoll_refused.increment(1);
            return status(StatusCode::SERVICE_UNAVAILABLE, "too many sessions");
        };
        let Some(admission) = state.admissions.admit() else { return handshake::too_many() };
        let socket = self.socket.name();
        let Some(version) = handshake::version(&self.metrics, params) else {
            return respond(result_body(Status::Refused));
        };
        let mut info = ConnectInfo::of(request);
        if self.handshake.auth_token {
            info.auth_token = header(request.headers(), AUTH_HEADER).map(str::to_owned);
        }
        let span = log::socket_span(socket, &self.path, &info);
        if let Err(TooMany) = state.connects.connect(&info).await {
            return handshake::too_many();
        }
        if state.sockets.are_closed() {
            return status(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let entrant = state.sockets.enter();
        let connected = self.connect(params, &info, LONGPOLL, version, &span).await;
        let Ok(connected) = connected else { return respond(result_body(Status::Refused)) };
        let outbox = Outbox::new(Writer::Fetched, self.options.outbox, state.metrics.clone())
            .among(&state.outboxes)
            .when_full(self.options.when_full)
            .send_timeout(self.options.send_timeout);
        let outbox = Arc::new(outbox);
        let bodies = Arc::new(Inbox::new(self.options.inbox, state.inboxes.clone()));
        let (signed, inbox) = polled.enter(&outbox, bodies, Instant::now());
        let token = state.relay.at_node(signed, state.pubsub.node_name());
        let registration = entrant.register(&outbox, connected.id.as_deref(), &self.drainer);
        state.begin();
        let session = self.session(&state, &outbox, connected.by(LONGPOLL, version));
        registration.answered_by(session.questioned());
        let (window, frame_rate_limit) = (polled.window, self.options.frame_rate_limit);
        let (mounted, tasks) = (self.clone(), state.tasks.clone());
        let living = async move {
            let open = mounted.metrics.open.hold();
            let live = longpoll_sessions::live(
                session,
                inbox,
                &outbox,
                window,
                frame_rate_limit,
                &state.endings,
            );
            tokio::select! {
                biased;
                () = state.abort.cancelled() => {}
                is_taken = live => if !is_taken {
                    state.unclosed.fetch_add(1, Relaxed);
                }
            }
            drop(registration);
            drop(open);
            drop(room);
            drop(admission);
        };
        tasks.spawn(InSpan::new(span, living));
        respond(protocol::messages_body(Status::Gone, &token, &[]))
    }

    /// Passes the client's messages to the session.
    async fn take(
        &self,
        polled: &LongPollSessions,
        session: &SessionHandle,
        request: &Request<()>,
        body: ReadBody,
    ) -> Answer {
        let Some(permit) = session.body() else {
            self.routes.limited.count(Scope::Inbox);
            return status(StatusCode::TOO_MANY_REQUESTS, "too many requests at once");
        };
        let until = Deadline::from_now(polled.window);
        let whole = tokio::select! {
            biased;
            whole = body(self.options.limits.message, until, permit) => whole,
            // The body need not be read if no session accepts it.
            () = session.closed() => return respond(result_body(Status::NotTaken)),
        };
        let Whole { bytes, _permit } = match whole {
            Ok(whole) => whole,
            Err(unread) => return self.unread(unread),
        };
        let content_type = header(request.headers(), CONTENT_TYPE.as_str());
        let until = Deadline::from_now(polled.window);
        respond(result_body(post(session, content_type, bytes, until).await))
    }

    /// The answer to a request whose body was not read.
    fn unread(&self, unread: Unread) -> Answer {
        match unread {
            Unread::Broken => status(StatusCode::BAD_REQUEST, ""),
            Unread::Late => respond(result_body(Status::NotTaken)),
            Unread::NoRoom => {
                self.routes.limited.count(Scope::Inbox);
                respond(result_body(Status::NotTaken))
            }
        }
    }
}

/// Passes the messages in a body to a session.
async fn post(
    session: &SessionHandle,
    content_type: Option<&str>,
    body: Bytes,
    until: Deadline,
) -> Status {
    for received in Batch::new(content_type, body) {
        let Ok(received) = received else { return Status::Unreadable };
        // After a time in which the process stood still, the client does not wait any more.
        if until.has_passed(Instant::now()) {
            return Status::NotTaken;
        }
        match until.limit(session.post(received)).await {
            Ok(Ok(())) => {}
            Ok(Err(longpoll_sessions::NotTaken)) | Err(_) => return Status::NotTaken,
        }
    }
    Status::Ok
}

/// Waits for messages. Returns whether there are some, too.
async fn fetch(
    metrics: &MountMetrics,
    session: &SessionHandle,
    token: &str,
    within: Duration,
) -> (Bytes, bool) {
    let fetched = session.poll(within).await;
    let frames = &*fetched.frames;
    let dropped = unsendable(frames);
    if dropped > 0 {
        let (lines, socket) = (&metrics.polled_lines, metrics.socket);
        limited!(
            lines,
            WARN,
            socket,
            dropped,
            "dropped binary frames: unsupported by long polling"
        );
    }
    let has_messages = !frames.is_empty();
    let became = if has_messages { Status::Ok } else { Status::Nothing };
    let body = protocol::messages_body(became, token, frames);
    (session.counted(fetched, body), has_messages)
}

/// Where the session of a request is.
enum Found {
    /// Here: its token, and the session.
    Here(String, SessionHandle),
    /// At another node, whose name this is, with the token.
    At(String, String),
    Nowhere,
}

/// Where the session of a request is.
fn find(polled: &LongPollSessions, state: &EndpointState, request: &Request<()>) -> Found {
    let token = token(request).filter(|token| token.len() <= relay::LONGEST_TOKEN);
    let Some(token) = token else { return Found::Nowhere };
    match (state.relay.node_of(&token), state.pubsub.node_name()) {
        (Some(node), Some(own)) if node != own => Found::At(node, token),
        _ => match polled.find(relay::of_session(&token), Instant::now()) {
            Some(session) => Found::Here(token, session),
            None => Found::Nowhere,
        },
    }
}

/// The token of a request.
fn token(request: &Request<()>) -> Option<String> {
    match header(request.headers(), TOKEN_HEADER) {
        Some(token) => Some(token.to_owned()),
        None => {
            let query = query::decode(request.uri().query().unwrap_or_default()).ok()?;
            Some(query.get("token")?.as_str()?.to_owned())
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An answer with this body.
fn respond(body: impl Into<AnswerBody>) -> Answer {
    let mut answer = Response::new(body.into());
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    answer
}

/// Answers the preflight request of a browser for a page of another origin.
fn preflight(asked: &HeaderMap) -> Answer {
    let mut answer = status(StatusCode::OK, "");
    let headers = answer.headers_mut();
    for wanted in asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.append(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, AN_HOUR);
    answer
}
