//! What is served besides the sockets: the page, its tokens, and the intake.

use std::{io::BufReader, time::SystemTime};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{Html, IntoResponse, Json, Response},
    routing::{get, post},
};
use pipeline::{Queue, Timed, TraceContext, TryPushError, ws::Signer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    client::{self, PhoenixClient, javascript},
    lines::{PushLine, PushLines},
    push::Push,
};

/// How large the body of a request may be, in bytes.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// The colours, which other examples have too, and the page's own.
const STYLE: &str = concat!(include_str!("page/colors.css"), include_str!("page/style.css"));

const NDJSON: &str = "application/x-ndjson";

#[derive(Clone)]
struct App {
    pushes: Queue<Timed<Push>>,
    signer: Signer,
    client: Option<PhoenixClient>,
}

pub fn router(pushes: Queue<Timed<Push>>, signer: Signer, client: Option<PhoenixClient>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/app.js", get(script))
        .route("/style.css", get(style))
        .route("/phoenix.mjs", get(phoenix))
        .route("/token", get(token))
        .route("/push", post(push).layer(DefaultBodyLimit::max(MAX_BODY)))
        .with_state(App { pushes, signer, client })
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
}

#[derive(Serialize)]
struct LineError {
    line: usize,
    error: String,
}

/// Takes in one push as JSON, or many as NDJSON. They belong to the trace of the request, if it has one:
/// `RUST_LOG=trace` shows where they are, each line with the `trace_id`.
async fn push(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let many = content_type.is_some_and(|value| value.starts_with(NDJSON));
    let lines: Vec<PushLine> = if many {
        // Reading from memory cannot fail.
        PushLines::new(BufReader::new(&*body)).filter_map(Result::ok).collect()
    } else {
        vec![PushLine { number: 1, push: Push::parse(&body) }]
    };
    let trace = trace(&headers);
    if let Some(trace) = trace {
        tracing::debug!(trace_id = %trace.trace_id(), pushes = lines.len(), "a request to push");
    }
    let mut outcome = Outcome::default();
    for PushLine { number: line, push } in lines {
        let traced = |push: Timed<Push>| match trace {
            Some(trace) => push.with_trace(trace),
            None => push,
        };
        let push = match push {
            Ok(push) => traced(push),
            Err(fault) => {
                outcome.errors.push(LineError { line, error: fault.to_string() });
                continue;
            }
        };
        let Err(refused) = app.pushes.try_push(push) else {
            outcome.accepted += 1;
            continue;
        };
        let error = match refused {
            TryPushError::Closed(_) => "the server is shutting down",
            _ => "the buffer is full",
        };
        let error = format!("{error}, nothing from here on was accepted");
        outcome.errors.push(LineError { line, error });
        let retry = [(RETRY_AFTER, HeaderValue::from_static("1"))];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, Json(outcome)).into_response();
    }
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
