//! What is served besides the sockets: the page, its tokens, and the intake.

use std::{
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
use pipeline::{Queue, Timed, TraceContext, TryPushError, ws::Signer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::{Mutex, Notify, Semaphore, SemaphorePermit},
    task::coop::consume_budget,
    time::{sleep, timeout},
};

use crate::{
    client::{self, PhoenixClient, javascript},
    lines::{LineCutter, PushLine},
    push::{Fault, MAX_BYTES, Push},
};

/// How large the body of a request may be, in bytes. It is never held as a whole.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long a client may take to send a body.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// How long to read what is left of a body, before it is answered.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// How many requests to push are read at once. Each holds one line, and what has just arrived.
const MAX_AT_ONCE: usize = 256;

/// How long a request waits for a place. It is longer than [`PAUSE`]: others may have just begun to pause.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// How long a client may send nothing before its request can be told to make room for another.
const PAUSE: Duration = Duration::from_millis(500);

/// How many faults an answer tells. The others are counted.
const MAX_ERRORS: usize = 20;

/// How long the text of a fault may be, in characters: it may name what the client has sent.
const MAX_ERROR: usize = 200;

/// The colours, which other examples have too, and the page's own.
const STYLE: &str = concat!(include_str!("page/colors.css"), include_str!("page/style.css"));

const NDJSON: &str = "application/x-ndjson";

#[derive(Clone)]
struct App {
    pushes: Queue<Timed<Push>>,
    signer: Signer,
    client: Option<PhoenixClient>,
    room: Arc<Room>,
}

/// Room for requests that are read at once.
struct Room {
    places: Semaphore,
    /// One request at a time asks for a place, so that no more than one makes room for it.
    turn: Mutex<()>,
    /// Whether a request asks for a place now.
    asked: AtomicBool,
    /// Wakes the request that has paused longest. A request makes room only if `asked` says so: a wake-up
    /// may come after the other request has got its place.
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

    /// Gets a place. If there is none, the request that has paused longest gives up its own, so that clients
    /// that send half a request do not shut out clients that send a whole one. A request whose pieces keep
    /// coming keeps its place, however many others arrive.
    async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        timeout(ROOM_WITHIN, self.ask()).await.ok()?
    }

    async fn ask(&self) -> Option<SemaphorePermit<'_>> {
        let _turn = self.turn.lock().await;
        // A place may have become free while this request waited for its turn.
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        let _asking = Asking::begin(self);
        self.places.acquire().await.ok()
    }

    /// Waits for the next piece of a body, unless the request has paused and another one needs its place, or
    /// the queue is closed. `None` is the end of the body.
    async fn piece(
        &self,
        body: &mut Body,
        pushes: &Queue<Timed<Push>>,
    ) -> Result<Option<Bytes>, Stop> {
        tokio::select! {
            biased;
            frame = body.frame() => match frame {
                Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
                Some(Err(error)) => Err(has_not_arrived(&error)),
                None => Ok(None),
            },
            error = self.is_over(pushes) => Err(Stop::new(StatusCode::SERVICE_UNAVAILABLE, error)),
        }
    }

    /// Waits until a request that has paused is to be answered, and says why.
    async fn is_over(&self, pushes: &Queue<Timed<Push>>) -> &'static str {
        sleep(PAUSE).await;
        loop {
            // Requests are woken in the order in which they began to wait here.
            let mut crowded = pin!(self.crowded.notified());
            // The server has a few seconds to end: the client is told what was accepted before that.
            while timeout(PAUSE, crowded.as_mut()).await.is_err() {
                if pushes.is_closed() {
                    return "the server is shutting down";
                }
            }
            if self.asked.swap(false, AcqRel) {
                return "too many requests at once, and this one had paused";
            }
        }
    }
}

/// A request asks for a place. It no longer does once this is dropped.
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

pub fn router(pushes: Queue<Timed<Push>>, signer: Signer, client: Option<PhoenixClient>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/app.js", get(script))
        .route("/style.css", get(style))
        .route("/phoenix.mjs", get(phoenix))
        .route("/token", get(token))
        .route("/push", post(push))
        .with_state(App { pushes, signer, client, room: Room::new(MAX_AT_ONCE) })
}

async fn page() -> impl IntoResponse {
    // Isolated from other sites, the page may read a clock of microseconds.
    let isolation = [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
    ];
    (isolation, Html(include_str!("page/index.html")))
}

async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

async fn script() -> Response {
    javascript(include_str!("page/app.js").to_owned())
}

async fn phoenix(State(app): State<App>) -> Response {
    client::serve(app.client)
}

#[derive(Deserialize)]
struct SignIn {
    user: u64,
}

/// Signs a user in, without asking for a password: this is an example.
async fn token(State(app): State<App>, Query(SignIn { user }): Query<SignIn>) -> Response {
    match app.signer.sign(&user, SystemTime::now()) {
        Ok(token) => Json(json!({ "user": user, "token": token })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What became of the pushes of a request.
#[derive(Default, Serialize)]
struct Outcome {
    accepted: usize,
    /// The first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
    /// How many more there were.
    #[serde(skip_serializing_if = "is_zero")]
    more_errors: usize,
    /// The last line that was taken in or refused.
    #[serde(skip)]
    last_line: usize,
}

/// Why a request was not looked at to its end.
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

    /// The answer, if nothing after the last line was taken in.
    fn stop(mut self, Stop { status, error }: Stop) -> Response {
        let line = self.last_line + 1;
        // The reason for the end is told in any case.
        let error = format!("{error}, nothing from here on was accepted");
        self.errors.push(LineError { line, error });
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Takes in one push as JSON, or many as NDJSON. They belong to the trace of the request, if it has one:
/// `RUST_LOG=trace` shows where they are, each line with the `trace_id`.
async fn push(State(app): State<App>, headers: HeaderMap, mut body: Body) -> Response {
    let Some(place) = app.room.enter().await else {
        let stop = Stop::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once");
        return Outcome::default().stop(stop);
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let many = content_type.is_some_and(|value| value.starts_with(NDJSON));
    let trace = trace(&headers);
    if let Some(trace) = trace {
        tracing::debug!(trace_id = %trace.trace_id(), "a request to push");
    }
    // It outlives the time for the body: a client is told what was accepted, and does not push it again.
    let mut outcome = Outcome::default();
    let taking = async {
        if many {
            take_lines(&app, trace, &mut body, &mut outcome).await
        } else {
            take_one(&app, trace, &mut body, &mut outcome).await
        }
    };
    let taken = timeout(BODY_WITHIN, taking).await.unwrap_or_else(|_| {
        Err(Stop::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"))
    });
    // What is left is not held.
    drop(place);
    // A server that ends cuts off connections whose requests are not answered soon.
    let rest_within = if app.pushes.is_closed() { PAUSE } else { REST_WITHIN };
    let _ = timeout(rest_within, skip_rest(&mut body)).await;
    match taken {
        Ok(()) => answer(outcome),
        Err(stop) => outcome.stop(stop),
    }
}

/// Takes in each line as it arrives.
async fn take_lines(
    app: &App,
    trace: Option<TraceContext>,
    body: &mut Body,
    outcome: &mut Outcome,
) -> Result<(), Stop> {
    let (mut lines, mut received) = (LineCutter::default(), 0);
    while let Some(piece) = app.room.piece(body, &app.pushes).await? {
        received += piece.len();
        if received > MAX_BODY {
            let error = format!("the body is longer than {MAX_BODY} bytes");
            return Err(Stop::new(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        let mut rest = &*piece;
        while let Some(line) = lines.next(&mut rest) {
            take(&app.pushes, trace, line, outcome)?;
            consume_budget().await;
        }
    }
    lines.end().map_or(Ok(()), |line| take(&app.pushes, trace, line, outcome))
}

fn has_not_arrived(error: &axum::Error) -> Stop {
    Stop::new(StatusCode::BAD_REQUEST, format!("the body has not arrived: {error}"))
}

/// Takes in a body that is one push.
async fn take_one(
    app: &App,
    trace: Option<TraceContext>,
    body: &mut Body,
    outcome: &mut Outcome,
) -> Result<(), Stop> {
    let mut json = Vec::new();
    while let Some(piece) = app.room.piece(body, &app.pushes).await? {
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
        outcome.refuse(1, &hint);
        return Ok(());
    }
    take(&app.pushes, trace, PushLine { number: 1, push }, outcome)
}

/// Reads what is left of a body, up to a bound. A client that is still sending when the connection is
/// closed may not see the answer.
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

/// Puts a push into the queue, or notes what is wrong with it. Stops if there is no room for it.
fn take(
    pushes: &Queue<Timed<Push>>,
    trace: Option<TraceContext>,
    PushLine { number, push }: PushLine,
    outcome: &mut Outcome,
) -> Result<(), Stop> {
    let push = match push {
        Ok(push) => push,
        Err(fault) => {
            outcome.refuse(number, &fault.to_string());
            outcome.last_line = number;
            return Ok(());
        }
    };
    let push = match trace {
        Some(trace) => push.with_trace(trace),
        None => push,
    };
    let full = match pushes.try_push(push) {
        Ok(()) => {
            outcome.accepted += 1;
            outcome.last_line = number;
            return Ok(());
        }
        Err(TryPushError::Closed(_)) => "the server is shutting down",
        Err(_) => "the buffer is full",
    };
    // Lines that are blank are not taken in, and have their numbers.
    outcome.last_line = number.saturating_sub(1);
    Err(Stop::new(StatusCode::SERVICE_UNAVAILABLE, full))
}

fn answer(outcome: Outcome) -> Response {
    let status =
        if outcome.errors.is_empty() { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST };
    (status, Json(outcome)).into_response()
}

/// The trace that a request belongs to. One that cannot be read is ignored, and another begun, as W3C's
/// Trace Context wants it.
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let header = headers.get("traceparent")?;
    let trace = header.to_str().ok().and_then(|header| header.parse().ok());
    Some(trace.unwrap_or_else(TraceContext::random))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures::{StreamExt, stream};
    use pipeline::{QueueOptions, queue};
    use serde_json::Value;

    use super::*;

    const LINE: &str = r#"{"user_id":1,"event":"push_timed","data":{}}"#;

    fn app(pushes: &Queue<Timed<Push>>, places: usize) -> App {
        App {
            pushes: pushes.clone().timed(),
            signer: Signer::new("twenty bytes at least, and secret", "user socket").unwrap(),
            client: None,
            room: Room::new(places),
        }
    }

    /// A body that begins like this, and never comes to its end.
    fn unfinished(beginning: String) -> Body {
        let begun = stream::once(ready(Ok::<_, Infallible>(Bytes::from(beginning))));
        Body::from_stream(begun.chain(stream::pending()))
    }

    async fn post(app: App, body: Body) -> (StatusCode, Value) {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(NDJSON))]);
        let answer = push(State(app), headers, body).await;
        let status = answer.status();
        let told = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&told).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_half_sent_make_room_for_one_that_is_whole() {
        let (pushes, _producer) = queue(QueueOptions::new());
        let app = app(&pushes, 3);
        let mut slow = Vec::new();
        for _ in 0..3 {
            let half = unfinished(format!("{LINE}\n{LINE}"));
            slow.push(tokio::spawn(post(app.clone(), half)));
            tokio::task::yield_now().await;
        }
        let began = tokio::time::Instant::now();
        for _ in 0..2 {
            let (status, told) = post(app.clone(), Body::from(LINE)).await;
            assert_eq!((status, &told["accepted"]), (StatusCode::ACCEPTED, &json!(1)));
        }
        assert_eq!(began.elapsed(), PAUSE);
        // The first of them made room, and is told what was accepted.
        let (status, told) = slow.remove(0).await.unwrap();
        assert_eq!((status, &told["accepted"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(1)));
        let error = "too many requests at once, and this one had paused, \
                     nothing from here on was accepted";
        assert_eq!(told["errors"], json!([{ "line": 2, "error": error }]));
        for other in slow {
            let (status, _) = other.await.unwrap();
            assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "there was room for it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_paused_is_told_what_was_accepted_when_the_server_ends() {
        let (pushes, _producer) = queue(QueueOptions::new());
        let body = unfinished(format!("{LINE}\n{LINE}\n{{"));
        let paused = tokio::spawn(post(app(&pushes, 1), body));
        sleep(PAUSE / 2).await;
        pushes.close();
        sleep(PAUSE * 3).await;
        assert!(paused.is_finished());
        let (status, told) = paused.await.unwrap();
        assert_eq!((status, &told["accepted"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_whose_pieces_keep_coming_keep_their_places_however_many_others_arrive() {
        const PIECES: usize = 50;
        let (pushes, _producer) = queue(QueueOptions::new());
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
            let (status, told) = post(app.clone(), Body::from(LINE)).await;
            assert_eq!((status, &told["accepted"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(0)));
        }
        for request in steady {
            let (status, told) = request.await.unwrap();
            assert_eq!((status, &told["accepted"]), (StatusCode::ACCEPTED, &json!(PIECES)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_asked_for_a_place_asks_no_more_once_it_is_answered() {
        let (pushes, _producer) = queue(QueueOptions::new());
        let app = app(&pushes, 1);
        // The place is held by a request that does not wait for its client.
        let held = app.room.enter().await.unwrap();
        assert!(app.room.enter().await.is_none(), "there is no place in time");
        let (entered, ()) = tokio::join!(app.room.enter(), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        drop(entered.expect("the place is free"));
        // This one is alone now, and may take its time.
        let late = stream::once(async {
            sleep(BODY_WITHIN / 2).await;
            Ok::<_, Infallible>(LINE)
        });
        let (status, told) = post(app, Body::from_stream(late)).await;
        assert_eq!((status, &told["accepted"]), (StatusCode::ACCEPTED, &json!(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_answered_with_what_was_accepted() {
        let (pushes, _producer) = queue(QueueOptions::new());
        let body = unfinished(format!("{LINE}\n\n{LINE}\n{LINE}"));
        let (status, told) = post(app(&pushes, 1), body).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(told["accepted"], 2);
        let error = "the body took too long to arrive, nothing from here on was accepted";
        assert_eq!(told["errors"], json!([{ "line": 4, "error": error }]));
    }
}
