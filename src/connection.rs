//! One HTTP connection: it answers requests and enforces the timeouts of heads, bodies and writes.
#![expect(clippy::disallowed_types, reason = "hyper's timers take std's Instant")]

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant as StdInstant},
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request},
    http::{HeaderValue, StatusCode, header::CONNECTION},
    response::Response,
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    rt::{Sleep, Timer},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Counter;
use pipeline_core::{Deadline, shown::described};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    task::coop::consume_budget,
};
use tower_service::Service as _;

use crate::listener::{Limits, Metrics, Phase, TimedOut};

/// Maximum size of a request's head in bytes, blanks included. Longer heads are answered with 431.
const MAX_HEAD: usize = 64 * 1024;

/// Units of tokio's cooperative budget, 128 per poll of a task, that one request uses.
const REQUEST: usize = 8;

/// Uses up some of the task's cooperative budget, and yields once nothing is left of it.
pub(crate) async fn pay(units: usize) {
    for _ in 0..units {
        consume_budget().await;
    }
}

/// Answers a connection's requests until it closes or is upgraded to a WebSocket.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    app: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut phase: watch::Receiver<Phase>,
) {
    let _open = Open::new(&metrics, place);
    // Whether a request has arrived.
    let heard = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let (heard, metrics, phase) = (heard.clone(), metrics.clone(), phase.clone());
        move |request| {
            heard.store(true, Relaxed);
            answer(app.clone(), request, peer, limits.body, &metrics, phase.clone())
        }
    });
    let mut http = http1::Builder::new();
    // The buffer's limit alone is checked only when more of a head has to be read.
    http.max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        // `HeadTimer` chooses the duration.
        .header_read_timeout(Duration::ZERO)
        .timer(HeadTimer { first: limits.head, later: limits.idle, heard: heard.clone() });
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = Phase::Ending.reached(&mut phase) => {
            if !heard.load(Relaxed) {
                // No request is pending.
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match served {
        Err(error) if error.is_timeout() => {
            let TimedOut { head, idle, .. } = &metrics.timed_out;
            if heard.load(Relaxed) { idle } else { head }.increment(1);
        }
        Err(error) => {
            if is_write_timeout(&error) {
                metrics.timed_out.write.increment(1);
            }
            tracing::debug!(%peer, error = described(&error), "HTTP connection failed");
        }
        Ok(()) => {}
    }
}

/// Whether the system closed the connection because the client did not read pending data in time.
fn is_write_timeout(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

/// Counts the connection as open, and holds its permit, until it is dropped.
struct Open<'a> {
    metrics: &'a Metrics,
    place: Option<OwnedSemaphorePermit>,
}

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics, place: OwnedSemaphorePermit) -> Self {
        metrics.open.increment(1);
        Self { metrics, place: Some(place) }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // The permit first: when the gauge shows room, there is room.
        self.place = None;
        self.metrics.open.decrement(1);
    }
}

fn answer(
    mut app: Router,
    request: Request<Incoming>,
    peer: SocketAddr,
    within: Duration,
    metrics: &Metrics,
    phase: watch::Receiver<Phase>,
) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
    let mut request = request.map(|body| {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Arriving {
            body,
            within,
            waiting: None,
            over: false,
            timed_out: metrics.timed_out.body.clone(),
        })
    });
    request.extensions_mut().insert(ConnectInfo(peer));
    async move {
        // Many answers never yield, and a client may pipeline many requests.
        pay(REQUEST).await;
        let mut response = app.call(request).await?;
        let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if *phase.borrow() > Phase::Serving && !upgrades {
            // The client sends its next request to another server.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Timer for a request's head. hyper starts a sleep whenever it begins to wait for a head, before the
/// head's first byte.
struct HeadTimer {
    first: Duration,
    later: Duration,
    heard: Arc<AtomicBool>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep(duration)
    }

    /// Sleeps for the limit and ignores hyper's deadline.
    fn sleep_until(&self, _: StdInstant) -> Pin<Box<dyn Sleep>> {
        let within = if self.heard.load(Relaxed) { self.later } else { self.first };
        match Deadline::from_now(within).instant() {
            Some(at) => TokioTimer::new().sleep_until(at.into_std()),
            None => Box::pin(Never),
        }
    }

    fn now(&self) -> StdInstant {
        TokioTimer::new().now()
    }
}

/// A sleep that never completes.
struct Never;

impl Future for Never {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Sleep for Never {}

/// A request's body that fails when the time between two pieces exceeds the limit.
struct Arriving {
    body: Incoming,
    within: Duration,
    /// Completes when the next piece is overdue. Set only while a piece is awaited.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whether the body has failed. No more pieces follow.
    over: bool,
    timed_out: Counter,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let within = this.within;
        let waiting =
            this.waiting.get_or_insert_with(|| Box::pin(Deadline::from_now(within).passed()));
        ready!(waiting.as_mut().poll(cx));
        this.over = true;
        this.timed_out.increment(1);
        let error = io::Error::new(io::ErrorKind::TimedOut, "the body of the request is too slow");
        Poll::Ready(Some(Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
