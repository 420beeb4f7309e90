//! The accept loop: it limits the number of connections, refuses those above the limit, and ends them
//! all.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use metrics::{Counter, Gauge};
use pipeline_core::{shown::shown, telemetry::Telemetry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::connection::{self, pay};

/// Timeouts of a connection, and the maximum number of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    /// For the first request's head, including the time before its first byte.
    pub(crate) head: Duration,
    /// For a later request's head, including the time since the previous answer.
    pub(crate) idle: Duration,
    /// Between two pieces of a request's body.
    pub(crate) body: Duration,
    /// For a client to read more of the pending data, where the system supports it.
    pub(crate) write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(30),
            write: Duration::from_secs(30),
        }
    }
}

/// The phases of a server's shutdown. A server only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Connections are accepted and kept.
    Serving,
    /// Connections are accepted, and each closes after its next answer.
    Leaving,
    /// No more connections are accepted; open ones are still served.
    Closed,
    /// Connections close: at once, or when their current request is answered.
    Ending,
}

impl Phase {
    /// Waits until the server has reached this phase. Never completes if it does not.
    pub(crate) async fn reached(self, phase: &mut watch::Receiver<Self>) {
        if phase.wait_for(|phase| *phase >= self).await.is_err() {
            // The sender is dropped with the server.
            std::future::pending::<()>().await;
        }
    }
}

/// Metrics of connections.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) open: Gauge,
    refused: Counter,
    failed: Counter,
    pub(crate) timed_out: TimedOut,
}

/// Counters of connections that timed out, one for each timeout.
#[derive(Clone, Debug)]
pub(crate) struct TimedOut {
    pub(crate) head: Counter,
    pub(crate) idle: Counter,
    pub(crate) body: Counter,
    pub(crate) write: Counter,
}

impl Metrics {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let timed_out = |reason: &str| {
            telemetry.counter(
                "http.connections_timed_out",
                "connections that were closed because the client was too slow",
                [("reason", reason.to_owned())],
            )
        };
        Self {
            open: telemetry.gauge(
                "http.connections",
                "open HTTP connections that are not WebSockets",
                [],
            ),
            refused: telemetry.counter(
                "http.connections_refused",
                "connections that were refused because of max_connections",
                [],
            ),
            failed: telemetry.counter(
                "http.accept_errors",
                "connections that could not be accepted",
                [],
            ),
            timed_out: TimedOut {
                head: timed_out("head"),
                idle: timed_out("idle"),
                body: timed_out("body"),
                write: timed_out("write"),
            },
        }
    }
}

/// The answer to a client above the limit of connections.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 21\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    too many connections\n";

/// How many refusals may be sent at the same time. Further clients are disconnected without an answer.
const REFUSALS: usize = 256;

/// How long a refused client may take to read the answer.
const REFUSING: Duration = Duration::from_secs(1);

/// Units of tokio's cooperative budget, 128 per poll of a task, that one connection uses. With only
/// one for each, the task would add more tasks between two looks at the system's events than are
/// run in that time, and the runtime's queue would grow until other clients wait in it for long.
const CONNECTION: usize = 16;

/// How often finished tasks are removed while no client connects. Until then they hold memory.
const SWEEP: Duration = Duration::from_secs(1);

/// How long to wait before accepting again after an error such as "too many open files".
const BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// Serves until the phase is `Ending` and all connections have closed. Dropping the future closes all
/// connections; those that have become WebSockets belong to the endpoint. `accepts` is dropped as soon as
/// the system refuses further connections.
pub(crate) async fn run(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    metrics: Metrics,
    mut phase: watch::Receiver<Phase>,
    accepts: oneshot::Sender<()>,
) {
    let mut connections = JoinSet::new();
    let accepting = Accepting { app, limits, metrics: Arc::new(metrics), phase: phase.clone() };
    tokio::select! {
        () = Phase::Closed.reached(&mut phase) => {}
        () = accepting.run(listener, &mut connections) => {}
    }
    // The listener has been dropped: the system refuses further connections.
    drop(accepts);
    while connections.join_next().await.is_some() {}
}

/// Decides which failures to accept are logged. Each new one is, but no more than one in
/// [`LINES_APART`]: descriptors that come and go would fill the log.
#[derive(Debug, Default)]
struct FailureLines {
    is_failing: bool,
    /// The last line, and whether it is about the current failure.
    logged: Option<Instant>,
    is_logged: bool,
    left_out: u64,
}

/// The time between two lines about failures to accept.
const LINES_APART: Duration = Duration::from_secs(10);

impl FailureLines {
    /// Records a failure. If it is to be logged, returns the number of those left out before it.
    fn failed(&mut self, now: Instant) -> Option<u64> {
        if std::mem::replace(&mut self.is_failing, true) {
            return None;
        }
        let is_early = |logged| now.saturating_duration_since(logged) < LINES_APART;
        self.is_logged = !self.logged.is_some_and(is_early);
        if !self.is_logged {
            self.left_out += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }

    /// Records that a connection was accepted. Returns whether that ends a logged failure.
    fn accepted(&mut self) -> bool {
        std::mem::take(&mut self.is_failing) && self.is_logged
    }
}

struct Accepting {
    app: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
}

impl Accepting {
    async fn run(self, listener: TcpListener, connections: &mut JoinSet<()>) {
        let mut refusals = JoinSet::new();
        let places = Arc::new(Semaphore::new(self.limits.connections.min(Semaphore::MAX_PERMITS)));
        let mut back_off = BACK_OFF;
        let mut lines = FailureLines::default();
        loop {
            let serves_none = connections.is_empty() && refusals.is_empty();
            let accepted = tokio::select! {
                accepted = listener.accept() => Some(accepted),
                () = sleep(SWEEP), if !serves_none => None,
            };
            // Finished tasks are removed now, and do not wake this task: each of its polls accepts
            // several connections, so under a storm of them the queue would grow.
            while connections.try_join_next().is_some() {}
            while refusals.try_join_next().is_some() {}
            let Some(accepted) = accepted else { continue };
            match accepted {
                Ok((stream, peer)) => {
                    pay(CONNECTION).await;
                    if lines.accepted() {
                        tracing::info!("accepting connections again");
                    }
                    back_off = BACK_OFF;
                    if let Ok(place) = places.clone().try_acquire_owned() {
                        connections.spawn(self.serve(stream, peer, place));
                        continue;
                    }
                    self.metrics.refused.increment(1);
                    if refusals.len() < REFUSALS {
                        refusals.spawn(async {
                            let _ = timeout(REFUSING, refuse(stream)).await;
                        });
                    }
                }
                Err(error) if is_the_clients(&error) => self.metrics.failed.increment(1),
                Err(error) => {
                    self.metrics.failed.increment(1);
                    if let Some(left_out) = lines.failed(Instant::now()) {
                        let left_out = (left_out > 0).then_some(left_out);
                        tracing::error!(
                            error = shown(&error),
                            left_out,
                            "cannot accept connections"
                        );
                    }
                    sleep(back_off).await;
                    back_off = back_off.saturating_mul(2).min(LONGEST_BACK_OFF);
                }
            }
        }
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<> {
        // A small answer leaves at once with this; without it, only a little later.
        let _ = stream.set_nodelay(true);
        limit_writes(&stream, self.limits.write);
        let (app, metrics, phase) = (self.app.clone(), self.metrics.clone(), self.phase.clone());
        connection::serve(stream, peer, place, app, self.limits, metrics, phase)
    }
}

/// Has the system close the connection when the client reads none of the pending data for this long. A
/// pending write holds the answer and the connection's permit; HTTP has no limit for it.
#[cfg(any(target_os = "android", target_os = "linux"))]
fn limit_writes(stream: &TcpStream, within: Duration) {
    // Zero would mean the system's default, which is hours.
    let within = within.max(Duration::from_millis(1));
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(within));
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
fn limit_writes(_: &TcpStream, _: Duration) {}

/// Whether the error is about one client that has already disconnected, and not about the listener.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers that there are too many connections. The client's request is read and discarded: closing a
/// socket with unread bytes resets it, and the answer might not arrive.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_to_accept_that_come_and_go_are_logged_once_in_ten_seconds() {
        let (mut lines, mut written) = (FailureLines::default(), Vec::new());
        let began = Instant::now();
        // Each failure has three tries, and is over before the next one begins.
        for n in 0..100 {
            for _ in 0..3 {
                let failed = lines.failed(Instant::now());
                written.extend(failed.map(|left_out| (began.elapsed().as_secs(), left_out)));
            }
            let is_last = written.last().map(|(at, _)| *at) == Some(began.elapsed().as_secs());
            assert_eq!(lines.accepted(), is_last, "the end of failure {n}");
            assert!(!lines.accepted(), "failure {n} has ended already");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let expected: Vec<_> = (0..10).map(|n| (10 * n, if n == 0 { 0 } else { 9 })).collect();
        assert_eq!(written, expected, "the second of each line, and the number left out before it");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_have_ended_hold_no_memory_while_no_other_client_connects() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for _ in 0..5 {
            std::net::TcpStream::connect(address).unwrap();
        }
        let accepting = Accepting {
            app: Router::new(),
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new(&Telemetry::default())),
            phase: watch::channel(Phase::Serving).1,
        };
        let mut connections = JoinSet::new();
        let ran = timeout(10 * SWEEP, accepting.run(listener, &mut connections)).await;
        assert!(ran.is_err(), "it accepts connections until it is dropped");
        assert_eq!(connections.len(), 0);
    }
}
