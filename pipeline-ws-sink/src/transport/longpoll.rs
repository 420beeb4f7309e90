//! The requests of long-polling clients, in the order of the specification's section 23.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::{Buf, BufMut, Bytes};
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_TYPE,
    },
};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use pipeline_core::Deadline;
use tokio::{task::coop::consume_budget, time::Instant};

use super::longpoll_sessions::{self, LongPollSessions, SessionHandle};
use crate::{
    endpoint::state::EndpointState,
    handshake::{
        self, Answer, Identity, Mounted, Variables, connect_info::ConnectInfo, params::Params,
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
            Method::GET => match find(polled, &request) {
                Some((token, session)) => fetch(polled, &self.metrics, &session, &token).await,
                None => self.clone().open(polled, state, &request, &params).await,
            },
            Method::POST => match find(polled, &request) {
                Some((_, session)) => self.take(polled, &session, &request, body).await,
                None => respond(result_body(Status::Gone)),
            },
            _ => status(StatusCode::BAD_REQUEST, ""),
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
        let entrant = state.sockets.enter();
        let connected = self.connect(params, &info, LONGPOLL, version, &span).await;
        let Ok((assigns, id)) = connected else { return respond(result_body(Status::Refused)) };
        let outbox = Outbox::new(Writer::Fetched, self.options.outbox, state.metrics.clone())
            .among(&state.outboxes)
            .when_full(self.options.when_full)
            .send_timeout(self.options.send_timeout);
        let outbox = Arc::new(outbox);
        let bodies = Arc::new(Inbox::new(self.options.inbox, state.inboxes.clone()));
        let (token, inbox) = polled.enter(&outbox, bodies, Instant::now());
        let registration = entrant.register(&outbox, id.as_deref(), &self.drainer);
        state.begin();
        let transport = "longpoll";
        let session = self.session(&state, &outbox, Identity { assigns, id, version, transport });
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
            Err(Unread::Broken) => return status(StatusCode::BAD_REQUEST, ""),
            Err(Unread::Late) => return respond(result_body(Status::NotTaken)),
            Err(Unread::NoRoom) => {
                self.routes.limited.count(Scope::Inbox);
                return respond(result_body(Status::NotTaken));
            }
        };
        let content_type = header(request.headers(), CONTENT_TYPE.as_str());
        let until = Deadline::from_now(polled.window);
        for received in Batch::new(content_type, bytes) {
            let Ok(received) = received else { return respond(result_body(Status::Unreadable)) };
            match until.limit(session.post(received)).await {
                Ok(Ok(())) => {}
                Ok(Err(longpoll_sessions::NotTaken)) | Err(_) => {
                    return respond(result_body(Status::NotTaken));
                }
            }
        }
        respond(result_body(Status::Ok))
    }
}

/// Waits for messages.
async fn fetch(
    polled: &LongPollSessions,
    metrics: &MountMetrics,
    session: &SessionHandle,
    token: &str,
) -> Answer {
    let fetched = session.poll(polled.window).await;
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
    let became = if frames.is_empty() { Status::Nothing } else { Status::Ok };
    let body = protocol::messages_body(became, token, frames);
    respond(session.counted(fetched, body))
}

/// The session of a request, and its token.
fn find(polled: &LongPollSessions, request: &Request<()>) -> Option<(String, SessionHandle)> {
    let token = match header(request.headers(), TOKEN_HEADER) {
        Some(token) => token.to_owned(),
        None => {
            let query = query::decode(request.uri().query().unwrap_or_default()).ok()?;
            query.get("token")?.as_str()?.to_owned()
        }
    };
    let session = polled.find(&token, Instant::now())?;
    Some((token, session))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An answer with this body.
fn respond(body: Bytes) -> Answer {
    let mut answer = Response::new(Full::from(body));
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
