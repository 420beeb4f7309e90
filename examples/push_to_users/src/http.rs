//! The HTTP routes: the page, its tokens, and the intake of pushes.

use std::{
    mem,
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{Html, IntoResponse, Json, Response},
    routing::{get, post},
};
use http_body_util::BodyExt;
use pipeline::{
    timed::{Timed, TraceContext},
    ws::token::Signer,
};
use pipeline_example_support::{COLORS, PhoenixClient, javascript};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::{Mutex, Notify, Semaphore, SemaphorePermit},
    task::coop::consume_budget,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    intake::Intake,
    lines::{LineCutter, PushLine},
    push::{Fault, MAX_BYTES, Push},
};

/// Maximum size of a request's body in bytes. It is never held as a whole.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long a client may take to send a body.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// How long to read the rest of a body before answering.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// Maximum number of push requests that are read concurrently. Each holds one line and the latest piece.
const MAX_AT_ONCE: usize = 256;

/// How long a request waits for a permit. Longer than [`PAUSE`]: other requests may have just begun to
/// pause.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// How long a request may pause before it can be aborted in favour of another.
const PAUSE: Duration = Duration::from_millis(500);

/// Maximum number of errors in an answer. Further ones are counted.
const MAX_ERRORS: usize = 20;

/// Maximum length of an error's text in characters: it may quote the client's input.
const MAX_ERROR: usize = 200;

const NDJSON: &str = "application/x-ndjson";

#[derive(Clone)]
struct App {
    intake: Intake,
    signer: Signer,
    client: PhoenixClient,
    room: Arc<Room>,
}

/// Permits for requests that are read concurrently.
struct Room {
    places: Semaphore,
    /// One request at a time waits for a permit, so that at most one is aborted for it.
    turn: Mutex<()>,
    /// Whether a request waits for a permit now.
    asked: AtomicBool,
    /// Wakes the request that has paused longest. It gives up its permit only if `asked` is set: the
    /// other request may have received a permit in the meantime.
    crowded: Notify,
}

impl Room {
    fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Semaphore::new(places),
            turn: Mutex::default(),
            asked: AtomicBool::new(false),
            crowded: Notify::new(),
        })
    }

    /// Acquires a permit. If there is none, the request that has paused longest gives up its own, so
    /// that clients that send half a request do not block clients that send a whole one. A request whose
    /// pieces keep arriving keeps its permit, however many others arrive.
    async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        timeout(ROOM_WITHIN, self.ask()).await.ok()?
    }

    async fn ask(&self) -> Option<SemaphorePermit<'_>> {
        let _turn = self.turn.lock().await;
        // A permit may have been released while this request waited for the lock.
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        let _asking = Asking::begin(self);
        self.places.acquire().await.ok()
    }

    /// Waits for the next piece of a body, unless the request has paused and another one needs its permit,
    /// or the queue is closed. `None` at the end of the body.
    async fn piece(
        &self,
        body: &mut Body,
        intake: &Intake,
        until: Instant,
    ) -> Result<Option<Bytes>, Stop> {
        tokio::select! {
            biased;
            frame = body.frame() => match frame {
                Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
                Some(Err(error)) => Err(has_not_arrived(&error)),
                None => Ok(None),
            },
            error = self.is_over(intake) => Err(Stop::new(StatusCode::SERVICE_UNAVAILABLE, error)),
            () = sleep_until(until) => {
                Err(Stop::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"))
            }
        }
    }

    /// Waits until a paused request has to be answered. Returns the reason.
    async fn is_over(&self, intake: &Intake) -> &'static str {
        sleep(PAUSE).await;
        let mut closed = pin!(intake.closed());
        loop {
            tokio::select! {
                biased;
                // Requests are woken in the order in which they began to wait here.
                () = self.crowded.notified() => {}
                // The server stops within a few seconds: the client receives the accepted lines
                // before that.
                () = &mut closed => return "the server is shutting down",
            }
            if self.asked.swap(false, AcqRel) {
                return "too many requests at once, and this one had paused";
            }
        }
    }
}

/// Marks that a request waits for a permit, until it is dropped.
struct Asking<'a>(&'a Room);

impl<'a> Asking<'a> {
    fn begin(room: &'a Room) -> Self {
        room.asked.store(true, Release);
        room.crowded.notify_one();
        Self(room)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asked.store(false, Release);
    }
}

pub fn router(intake: Intake, signer: Signer, client: PhoenixClient) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/app.js", get(script))
        .route("/style.css", get(style))
        .route("/phoenix.mjs", get(phoenix))
        .route("/token", get(token))
        .route("/queue", get(queue))
        .route("/push", post(push))
        .with_state(App { intake, signer, client, room: Room::new(MAX_AT_ONCE) })
}

async fn page() -> impl IntoResponse {
    // A cross-origin isolated page gets a clock with microsecond resolution.
    let isolation = [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
    ];
    (isolation, Html(include_str!("page/index.html")))
}

async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], [COLORS, include_str!("page/style.css")].concat())
}

async fn script() -> Response {
    javascript(include_str!("page/app.js").to_owned())
}

async fn phoenix(State(app): State<App>) -> Response {
    app.client.respond().await
}

#[derive(Deserialize)]
struct SignIn {
    user: u64,
}

/// Issues a token without asking for a password: this is an example.
async fn token(State(app): State<App>, Query(SignIn { user }): Query<SignIn>) -> Response {
    match app.signer.sign(&user, SystemTime::now()) {
        Ok(token) => Json(json!({ "user": user, "token": token })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The state of the durable queue for the page, or null without one. The inspector shows more.
async fn queue(State(app): State<App>) -> Response {
    let shown = app.intake.queue().map(|queue| {
        json!({
            "connected": queue.connected,
            "backlog": queue.backlog,
            "oldest_seconds": queue.oldest_age.map(|age| age.as_secs_f64()),
            "redelivered": queue.redelivered,
            "retried": queue.retried,
            "released": queue.released,
            "set_aside": queue.set_aside,
            "dead_letters": queue.dead_letters,
        })
    });
    Json(shown).into_response()
}

/// The result of a push request.
#[derive(Default, Serialize)]
struct Outcome {
    accepted: usize,
    /// The first errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
    /// The number of further errors.
    #[serde(skip_serializing_if = "is_zero")]
    more_errors: usize,
    /// The last line that was accepted or refused.
    #[serde(skip)]
    last_line: usize,
}

/// Why the rest of a request was not processed.
struct Stop {
    status: StatusCode,
    error: String,
}

impl Stop {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

#[derive(Serialize)]
struct LineError {
    line: usize,
    error: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Outcome {
    fn refuse(&mut self, line: usize, error: &str) {
        if self.errors.len() == MAX_ERRORS {
            self.more_errors += 1;
            return;
        }
        let mut text: String = error.chars().take(MAX_ERROR).collect();
        if text.len() < error.len() {
            text.push('…');
        }
        self.errors.push(LineError { line, error: text });
    }

    /// The answer to a request that was stopped after the last line.
    fn stop(mut self, Stop { status, error }: Stop) -> Response {
        let line = self.last_line + 1;
        // The reason of the stop is always reported.
        let error = format!("{error}, nothing from here on was accepted");
        self.errors.push(LineError { line, error });
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Accepts one push as JSON, or many as NDJSON. They belong to the request's trace, if there is one:
/// `RUST_LOG=trace` logs their progress, each line with the `trace_id`.
///
/// It asks for no password, and pages of other origins may send it requests through their visitor's
/// browser: where others can reach it, it needs both a password and a check of the origin.
async fn push(State(app): State<App>, headers: HeaderMap, mut body: Body) -> Response {
    let Some(place) = app.room.enter().await else {
        let stop = Stop::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once");
        return Outcome::default().stop(stop);
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let many = content_type.is_some_and(is_ndjson);
    let trace = trace(&headers);
    if let Some(trace) = trace {
        tracing::debug!(trace_id = %trace.trace_id(), "a request to push");
    }
    // Whatever stops the request, the client learns which lines were accepted, and does not push them
    // again: unless it has closed its side of the connection, and so does not wait for an answer.
    let mut taking = Taking::new(&app, trace);
    let taken = if many { taking.lines(&mut body).await } else { taking.one(&mut body).await };
    let outcome = taking.outcome;
    // The rest of the body is skipped without a permit.
    drop(place);
    // A stopping server closes connections with requests that are not answered soon.
    let rest_within = if app.intake.is_closed() { PAUSE } else { REST_WITHIN };
    let _ = timeout(rest_within, skip_rest(&mut body)).await;
    match taken {
        Ok(()) => answer(outcome),
        Err(stop) => outcome.stop(stop),
    }
}

/// A request whose pushes are being accepted.
struct Taking<'a> {
    app: &'a App,
    trace: Option<TraceContext>,
    /// When the body must have arrived.
    until: Instant,
    outcome: Outcome,
    /// Pushes that are accepted together.
    group: Vec<Timed<Push>>,
    /// The line of the first of them, and of the last.
    lines: (usize, usize),
}

impl<'a> Taking<'a> {
    fn new(app: &'a App, trace: Option<TraceContext>) -> Self {
        let (outcome, group, lines) = Default::default();
        Self { app, trace, until: Instant::now() + BODY_WITHIN, outcome, group, lines }
    }

    /// The next piece of the body.
    async fn piece(&self, body: &mut Body) -> Result<Option<Bytes>, Stop> {
        self.app.room.piece(body, &self.app.intake, self.until).await
    }

    /// Accepts each line as it arrives.
    async fn lines(&mut self, body: &mut Body) -> Result<(), Stop> {
        let (mut lines, mut received) = (LineCutter::default(), 0);
        while let Some(piece) = self.piece(body).await? {
            received += piece.len();
            if received > MAX_BODY {
                let error = format!("the body is longer than {MAX_BODY} bytes");
                return Err(Stop::new(StatusCode::PAYLOAD_TOO_LARGE, error));
            }
            let mut rest = &*piece;
            while let Some(line) = lines.next(&mut rest) {
                self.take(line).await?;
                consume_budget().await;
            }
            self.accept().await?;
        }
        if let Some(line) = lines.end() {
            self.take(line).await?;
        }
        self.accept().await
    }

    /// Accepts a body that is one push.
    async fn one(&mut self, body: &mut Body) -> Result<(), Stop> {
        let mut json = Vec::new();
        while let Some(piece) = self.piece(body).await? {
            json.extend_from_slice(&piece);
            if json.len() > MAX_BYTES {
                break;
            }
        }
        let push = Push::parse(&json);
        if let Err(fault @ (Fault::Json { .. } | Fault::TooLong)) = &push
            && json.trim_ascii().contains(&b'\n')
        {
            let hint = format!("{fault} (many pushes, one a line, need the content-type {NDJSON})");
            self.outcome.refuse(1, &hint);
            return Ok(());
        }
        self.take(PushLine { number: 1, push }).await?;
        self.accept().await
    }

    /// Adds a push to the group, or records the error.
    async fn take(&mut self, PushLine { number, push }: PushLine) -> Result<(), Stop> {
        let push = match push {
            Ok(push) => push,
            Err(fault) => {
                self.accept().await?;
                self.outcome.refuse(number, &fault.to_string());
                self.outcome.last_line = number;
                return Ok(());
            }
        };
        if self.group.is_empty() {
            self.lines.0 = number;
        }
        self.lines.1 = number;
        self.group.push(match self.trace {
            Some(trace) => push.with_trace(trace),
            None => push,
        });
        if self.group.len() >= self.app.intake.at_once() {
            self.accept().await?;
        }
        Ok(())
    }

    /// Accepts the group. Stops the request if it is refused.
    async fn accept(&mut self) -> Result<(), Stop> {
        if self.group.is_empty() {
            return Ok(());
        }
        let pushes = mem::take(&mut self.group);
        let count = pushes.len();
        match self.app.intake.accept(pushes).await {
            Ok(()) => {
                self.outcome.accepted += count;
                self.outcome.last_line = self.lines.1;
                Ok(())
            }
            Err(refusal) => {
                // Blank lines are skipped, but count.
                self.outcome.last_line = self.lines.0.saturating_sub(1);
                Err(Stop::new(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()))
            }
        }
    }
}

fn has_not_arrived(error: &axum::Error) -> Stop {
    Stop::new(StatusCode::BAD_REQUEST, format!("the body has not arrived: {error}"))
}

/// Reads the rest of a body, up to a limit. A client that is still sending when the connection closes
/// may not see the answer.
async fn skip_rest(body: &mut Body) {
    let mut skipped = 0;
    while let Some(Ok(frame)) = body.frame().await {
        skipped += frame.data_ref().map_or(0, Bytes::len);
        if skipped > MAX_BODY {
            return;
        }
        consume_budget().await;
    }
}

fn answer(outcome: Outcome) -> Response {
    let status =
        if outcome.errors.is_empty() { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST };
    (status, Json(outcome)).into_response()
}

/// Whether a content type is that of NDJSON, with or without parameters.
fn is_ndjson(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(NDJSON)
}

/// The trace of a request. An invalid header is ignored, and a new trace begun, as W3C's Trace Context
/// requires.
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let header = headers.get("traceparent")?;
    let trace = header.to_str().ok().and_then(|header| header.parse().ok());
    Some(trace.unwrap_or_else(TraceContext::random))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures::{StreamExt, stream};
    use pipeline::source::{QueueOptions, TimedQueue, timed_queue};
    use serde_json::Value;

    use super::*;

    const LINE: &str = r#"{"user_id":1,"event":"push_timed","data":{}}"#;

    fn app(pushes: &TimedQueue<Push>, places: usize) -> App {
        App {
            intake: Intake::Memory(pushes.clone()),
            signer: Signer::new("twenty bytes at least, and secret", "user socket").unwrap(),
            client: PhoenixClient::missing(),
            room: Room::new(places),
        }
    }

    /// A body that begins like this and never ends.
    fn unfinished(beginning: String) -> Body {
        let begun = stream::once(ready(Ok::<_, Infallible>(Bytes::from(beginning))));
        Body::from_stream(begun.chain(stream::pending()))
    }

    async fn post(app: App, body: Body) -> (StatusCode, Value) {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(NDJSON))]);
        let answer = push(State(app), headers, body).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn a_media_type_is_compared_as_a_whole_and_without_case() {
        for (content_type, expected) in [
            ("application/x-ndjson", true),
            ("Application/X-NDJSON", true),
            ("application/x-ndjson; charset=utf-8", true),
            ("application/x-ndjson ;charset=utf-8", true),
            ("application/x-ndjsonfoo", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_ndjson(content_type), expected, "{content_type:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_sent_requests_give_up_their_permit_for_a_whole_one() {
        let (pushes, _producer) = timed_queue(QueueOptions::new());
        let app = app(&pushes, 3);
        let mut slow = Vec::new();
        for _ in 0..3 {
            let half = unfinished(format!("{LINE}\n{LINE}"));
            slow.push(tokio::spawn(post(app.clone(), half)));
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        for _ in 0..2 {
            let (status, response) = post(app.clone(), Body::from(LINE)).await;
            assert_eq!((status, &response["accepted"]), (StatusCode::ACCEPTED, &json!(1)));
        }
        assert_eq!(began.elapsed(), PAUSE);
        // The first of them gave up its permit; its answer reports the accepted lines.
        let (status, response) = slow.remove(0).await.unwrap();
        assert_eq!((status, &response["accepted"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(1)));
        let error = "too many requests at once, and this one had paused, \
                     nothing from here on was accepted";
        assert_eq!(response["errors"], json!([{ "line": 2, "error": error }]));
        for other in slow {
            let (status, _) = other.await.unwrap();
            assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "it had a permit");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_request_is_answered_with_the_accepted_lines_when_the_server_stops() {
        let (pushes, _producer) = timed_queue(QueueOptions::new());
        let body = unfinished(format!("{LINE}\n{LINE}\n{{"));
        let paused = tokio::spawn(post(app(&pushes, 1), body));
        sleep(PAUSE / 2).await;
        pushes.close();
        sleep(PAUSE * 3).await;
        assert!(paused.is_finished());
        let (status, response) = paused.await.unwrap();
        assert_eq!((status, &response["accepted"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_whose_pieces_keep_arriving_keep_their_permits() {
        const PIECES: usize = 50;
        let (pushes, _producer) = timed_queue(QueueOptions::new());
        let app = app(&pushes, 2);
        let steady = |_| {
            let pieces = stream::iter(0..PIECES).then(async |_| {
                sleep(PAUSE * 9 / 10).await;
                Ok::<_, Infallible>(Bytes::from(format!("{LINE}\n")))
            });
            tokio::spawn(post(app.clone(), Body::from_stream(pieces)))
        };
        let steady: Vec<_> = (0..2).map(steady).collect();
        tokio::task::yield_now().await;
        for _ in 0..10 {
            let (status, response) = post(app.clone(), Body::from(LINE)).await;
            assert_eq!(
                (status, &response["accepted"]),
                (StatusCode::SERVICE_UNAVAILABLE, &json!(0))
            );
        }
        for request in steady {
            let (status, response) = request.await.unwrap();
            assert_eq!((status, &response["accepted"]), (StatusCode::ACCEPTED, &json!(PIECES)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answered_request_no_longer_waits_for_a_permit() {
        let (pushes, _producer) = timed_queue(QueueOptions::new());
        let app = app(&pushes, 1);
        // The permit is held by a request that does not wait for its client.
        let held = app.room.enter().await.unwrap();
        assert!(app.room.enter().await.is_none(), "no permit in time");
        let (entered, ()) = tokio::join!(app.room.enter(), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        drop(entered.expect("a permit is free"));
        // This request is alone now, and may pause.
        let late = stream::once(async {
            sleep(BODY_WITHIN / 2).await;
            Ok::<_, Infallible>(LINE)
        });
        let (status, response) = post(app, Body::from_stream(late)).await;
        assert_eq!((status, &response["accepted"]), (StatusCode::ACCEPTED, &json!(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_answered_with_the_accepted_lines() {
        let (pushes, _producer) = timed_queue(QueueOptions::new());
        let body = unfinished(format!("{LINE}\n\n{LINE}\n{LINE}"));
        let (status, response) = post(app(&pushes, 1), body).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(response["accepted"], 2);
        let error = "the body took too long to arrive, nothing from here on was accepted";
        assert_eq!(response["errors"], json!([{ "line": 4, "error": error }]));
    }
}
