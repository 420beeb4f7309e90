//! Runs everything until the process is asked to stop, then stops it in the right order.

use std::{
    error::Error,
    fmt,
    future::{Future, IntoFuture},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    time::Duration,
};

use axum::Router;
use futures::future::select_all;
use pipeline_core::{
    Deadline, ExitReason, Pipeline, report::PipelineReport, shown::shown, telemetry::Telemetry,
};
use pipeline_ws_sink::{Endpoint, endpoint::EndpointReport};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    health::Health,
    listener::{self, Limits, Metrics, Phase},
    signal::{Signals, StopSignal},
};

/// Serves a router until the process is asked to stop, then stops everything in order.
///
/// The server speaks HTTP/1.1 and upgrades connections to WebSockets. Each request carries its client's
/// address: handlers read it as axum's `ConnectInfo<SocketAddr>`, sockets as `ConnectInfo::peer_addr`.
///
/// # Shutdown
///
/// Ctrl-C, SIGTERM or SIGHUP starts the shutdown. A second Ctrl-C or SIGTERM skips the rest of it:
/// stages and sockets are stopped at once, and the report counts their work;
/// SIGHUP never does, because a terminal sends it more than once when it is closed. If a pipeline ends
/// by itself, or one of its stages fails for good, everything else is stopped too, and the first signal after
/// that is only logged. This also holds for a stage of a `Graph` whose other stages could run on. By default, an item whose worker fails does not end a pipeline. The order is:
///
/// 1. [`Health`] reports that the process is not ready, and answers carry `connection: close`, so that
///    load balancers and clients switch to another server. Connections are still accepted for the time
///    set with [`linger`](Serve::linger).
/// 2. The pipelines drain, one after the other, in the order in which they were given to
///    [`pipeline`](Serve::pipeline). Connections are still accepted, so that polling clients can fetch
///    the last messages.
/// 3. No more connections are accepted, and the endpoint's sockets are closed, so that clients reconnect
///    to another server.
/// 4. Each connection closes when its current request is answered. After six seconds all are closed.
/// 5. The function given to [`after_shutdown`](Serve::after_shutdown) is called.
///
/// A callback that blocks its thread cannot be stopped. The runtime waits for that thread when it is
/// dropped, at the end of `main`. A program that has to exit anyway calls [`std::process::exit`] once
/// this has returned.
///
/// The [`ShutdownReport`] lists unprocessed items and aborted sockets. [`ShutdownReport::into_result`]
/// turns an unclean shutdown into an error, so that the program exits with a failure.
///
/// # Limits
///
/// The server disconnects clients that are silent or too slow, and refuses clients above the limit of
/// connections.
///
/// | limit | default | beyond it |
/// | --- | --- | --- |
/// | [`max_connections`](Serve::max_connections) | 10,000 | 503, with `retry-after: 1` |
/// | [`header_timeout`](Serve::header_timeout) | 10 s | the connection ends |
/// | [`keep_alive_timeout`](Serve::keep_alive_timeout) | 75 s | the connection ends |
/// | [`body_timeout`](Serve::body_timeout) | 30 s | reading the body fails |
/// | [`write_timeout`](Serve::write_timeout) | 30 s | the connection ends |
/// | the head of a request | 64 KiB | 431 |
///
/// The metrics `http.connections_refused` and `http.connections_timed_out` count these cases.
///
/// # Your own server
///
/// An [`Endpoint`] is a `tower` service and runs in any server. Such a server needs the same limits: a
/// timeout for the head of a request that includes the time before its first byte (hyper's
/// `http1::Builder::header_read_timeout` does, once a `timer` is set; `axum::serve` sets none, and the
/// connections of `hyper_util::server::conn::auto` wait for their first bytes without a timeout), a
/// timeout for bodies, a limit of connections, a pause after errors of `accept`, and a deadline for open
/// connections at shutdown.
///
/// ```no_run
/// use axum::Router;
/// use pipeline::{Pipeline, ws::Endpoint};
///
/// # async fn run(pipeline: Pipeline, endpoint: Endpoint) -> std::io::Result<()> {
/// let listener = pipeline::ws::listen("0.0.0.0:4000").await?;
/// let app = Router::new().fallback_service(endpoint.clone());
/// let report = pipeline::serve(listener, app).pipeline(pipeline).endpoint(endpoint).await?;
/// println!("{}", report.into_result()?);
/// # Ok(())
/// # }
/// ```
pub fn serve(listener: TcpListener, app: Router) -> Serve {
    Serve {
        listener,
        app,
        pipelines: Vec::new(),
        endpoint: None,
        health: None,
        admin: None,
        flush: None,
        telemetry: Telemetry::global(),
        limits: Limits::default(),
        linger: Duration::ZERO,
        drain_within: Duration::from_secs(10),
        close_within: Duration::from_secs(30),
        stop: None,
    }
}

/// The server that [`serve`] returns: set its options, then await it.
#[must_use = "nothing is served until it is awaited"]
pub struct Serve {
    listener: TcpListener,
    app: Router,
    pipelines: Vec<Pipeline>,
    endpoint: Option<Endpoint>,
    health: Option<Health>,
    admin: Option<(TcpListener, Router)>,
    flush: Option<Box<dyn FnOnce() + Send>>,
    telemetry: Telemetry,
    limits: Limits,
    linger: Duration,
    drain_within: Duration,
    close_within: Duration,
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// How long pending requests have to be answered after everything else has stopped.
const ANSWERING: Duration = Duration::from_secs(6);

/// How long polling clients have to fetch the last messages.
const FETCHING: Duration = Duration::from_secs(2);

/// How long sockets have to close after a second signal.
const HURRIED: Duration = Duration::from_millis(250);

/// How often to check whether they have.
const LOOK: Duration = Duration::from_millis(20);

impl Serve {
    /// Drains this pipeline at shutdown. May be called for several pipelines.
    ///
    /// Pipelines drain one after the other, in the order in which they are given. Give a pipeline before
    /// the one that it feeds: the second queue accepts items until the first pipeline has ended. A
    /// pipeline that receives items from [`ConsumerSupervisor::on_given_up`] is given after the pipeline
    /// whose workers fail. [`drain_within`](Self::drain_within) limits all of them together.
    ///
    /// ```no_run
    /// use pipeline::{
    ///     ExitReason, Pipeline, serve,
    ///     source::{QueueOptions, queue},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    ///     ws::listen,
    /// };
    ///
    /// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let (failed, failed_source) = queue(QueueOptions::new());
    /// let (orders, source) = queue(QueueOptions::new());
    /// let confirm = async |order: &u64| match order {
    ///     0 => Err(ExitReason::failed("there is no such order")),
    ///     _ => Ok(println!("{order} is confirmed")),
    /// };
    /// let confirm = ConsumerSupervisor::new(confirm).on_given_up(move |order, reason| {
    ///     if let Err(error) = failed.offer(order) {
    ///         eprintln!("order {order} is lost ({error}): {reason}");
    ///     }
    /// });
    /// let confirmed = Pipeline::builder("orders")
    ///     .producer(source)
    ///     .consumer_supervisor(confirm, SubscribeOptions::new())
    ///     .start()?;
    /// let put_aside = Pipeline::builder("failed orders")
    ///     .producer(failed_source)
    ///     .consumer(for_each(async |order| println!("{order}")), SubscribeOptions::new())
    ///     .start()?;
    /// # drop(orders);
    /// serve(listen("0.0.0.0:4000").await?, app).pipeline(confirmed).pipeline(put_aside).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`ConsumerSupervisor::on_given_up`]: pipeline_core::supervisor::ConsumerSupervisor::on_given_up
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Closes this endpoint's sockets at shutdown, after the pipelines have drained.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Marks this [`Health`] as stopping as soon as the shutdown begins, so that the process is not
    /// ready any more.
    ///
    /// Serve its router with [`admin`](Self::admin): the public listener accepts no more connections
    /// once the pipelines have drained.
    pub fn health(mut self, health: &Health) -> Self {
        self.health = Some(health.clone());
        self
    }

    /// Serves another router on another listener until everything has stopped, for monitoring that has
    /// to see the shutdown, too.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use pipeline::{
    ///     Pipeline,
    ///     health::Health,
    ///     serve,
    ///     ws::{Endpoint, listen},
    /// };
    ///
    /// # async fn run(pipeline: Pipeline, endpoint: Endpoint, app: Router) -> std::io::Result<()> {
    /// let health = Health::new().pipeline(pipeline.observer()).endpoint(endpoint.observer());
    /// serve(listen("0.0.0.0:4000").await?, app)
    ///     .pipeline(pipeline)
    ///     .endpoint(endpoint)
    ///     .health(&health)
    ///     .admin(listen("127.0.0.1:4001").await?, health.router())
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn admin(mut self, listener: TcpListener, router: Router) -> Self {
        self.admin = Some((listener, router));
        self
    }

    /// Calls this after everything has stopped, for instance to drop a `StatsdFlusher`, which flushes
    /// it. A panic in it is logged, and the report is returned all the same.
    pub fn after_shutdown(mut self, flush: impl FnOnce() + Send + 'static) -> Self {
        self.flush = Some(Box::new(flush));
        self
    }

    /// How long to keep serving as not ready once the shutdown begins, so that load balancers see it in
    /// [`Health`] and send no more clients. Default: no time.
    ///
    /// Kubernetes removes a pod from its services when it sends SIGTERM, and needs a moment to propagate
    /// that; 5 seconds are usual there. A balancer that requests `/readyz` every two seconds and acts on
    /// the third failure needs 6.
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    /// Maximum number of open connections that have not become WebSockets. Default 10,000.
    ///
    /// Clients above it are answered with 503 and `retry-after: 1`. No more than a quarter of them may be clients
    /// that wait for their turn to connect to the [`endpoint`](Self::endpoint), where it has a rate.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_connections(mut self, connections: usize) -> Self {
        assert!(connections > 0, "max_connections has to be above zero");
        self.limits.connections = connections;
        self
    }

    /// How long the head of a connection's first request may take, including the time before its first
    /// byte. Default 10 seconds.
    ///
    /// # Panics
    ///
    /// If it is zero: every connection would end at once.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "header_timeout has to be above zero");
        self.limits.head = timeout;
        self
    }

    /// How long a connection may take from one answer to the end of the next request's head. Default 75
    /// seconds, which is longer than load balancers keep an idle connection, so that they close it
    /// first.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle = timeout;
        self
    }

    /// How long the body of a request may pause. Default 30 seconds.
    ///
    /// After that, reading the body fails in the handler. The size of a body and its total time are for
    /// handlers to limit.
    ///
    /// # Panics
    ///
    /// If it is zero: every request with a body would fail.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "body_timeout has to be above zero");
        self.limits.body = timeout;
        self
    }

    /// How long a client may leave a pending answer unread. Default 30 seconds.
    ///
    /// The operating system enforces it (`TCP_USER_TIMEOUT`), on Linux and Android only. It no longer
    /// applies once a connection becomes a WebSocket: from then on the mount's `send_timeout` does.
    ///
    /// # Panics
    ///
    /// If it is zero: a single pending write would close its connection.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "write_timeout has to be above zero");
        self.limits.write = timeout;
        self
    }

    /// Where to record the metrics of connections. Default: the process's recorder.
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// How long the pipelines have to drain, all of them together. Default 10 seconds; with
    /// [`Duration::MAX`] there is no limit. A pipeline that has not begun to drain when the time is up
    /// is stopped at once.
    pub fn drain_within(mut self, deadline: Duration) -> Self {
        self.drain_within = deadline;
        self
    }

    /// How long the endpoint's sockets have to close. Default 30 seconds, as in Phoenix.
    ///
    /// Sockets are closed in batches, as set by their mounts' `Drainer`: by default 10,000 channels
    /// every two seconds, which is 150,000 in the default time. The last fifth of the time, at most a
    /// second, is for the batches that do not fit: all of their sockets are then closed at once, and a
    /// warning is logged. Each WebSocket is closed with 1012, so that its client reconnects. A socket
    /// that has not closed when the time is over is aborted, and its client sees the connection break:
    /// the client did not read, or the socket's task was busy. The report contains the number of aborted
    /// sockets.
    ///
    /// SIGKILL has to follow SIGTERM by more than the sum of [`linger`](Self::linger),
    /// [`drain_within`](Self::drain_within), this, and 20 seconds: one second for stages to end, two for
    /// polling clients to fetch the last messages, one for sockets to be aborted, six for requests to be
    /// answered, and at most ten for StatsD, for a flush that has begun and the last one. Each pipeline
    /// after the first adds a second. With the defaults that is 60 seconds; Kubernetes waits for 30 by
    /// default.
    pub fn close_within(mut self, deadline: Duration) -> Self {
        self.close_within = deadline;
        self
    }

    /// Starts the shutdown when this future completes, instead of at a signal. Until then, signals keep
    /// their default effect; after that, the first one is only logged, and the second one skips the rest
    /// of the shutdown.
    pub fn until(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Some(Box::pin(stop));
        self
    }

    async fn run(mut self) -> io::Result<ShutdownReport> {
        // With `until`, signals keep their default effect until the shutdown begins.
        let mut signals = self.stop.is_none().then(Signals::listen).transpose()?;
        let metrics = Metrics::new(&self.telemetry);
        let start = |listener, app, phase| {
            let mut server = JoinSet::new();
            let (accepts, refuses) = oneshot::channel();
            let serving =
                listener::run(listener, app, self.limits, metrics.clone(), phase, accepts);
            server.spawn(serving);
            (server, refuses)
        };
        // A client that waits for its turn has a connection. Polls and other requests need some too.
        if let Some(endpoint) = &self.endpoint {
            endpoint.limit_waiting((self.limits.connections / 4).max(1));
        }
        // Both servers end when their sets are dropped.
        tracing::info!(address = %self.listener.local_addr()?, "listening");
        let (phase, public) = watch::channel(Phase::Serving);
        let (mut server, refuses) = start(self.listener, self.app, public);
        let (_serving, private) = watch::channel(Phase::Serving);
        let mut admin = JoinSet::new();
        if let Some((listener, router)) = self.admin.take() {
            tracing::info!(address = %listener.local_addr()?, "listening for the admin router");
            (admin, _) = start(listener, router, private);
        }

        let until = self.stop.take();
        // Returns whether a signal that counts caused it.
        let stop = async {
            if let Some(signals) = &mut signals {
                return signals.stop().await == StopSignal::Requested;
            }
            if let Some(until) = until {
                until.await;
            }
            false
        };
        let mut is_signalled = false;
        tokio::select! {
            by_signal = stop => {
                is_signalled = by_signal;
                tracing::info!("stopping");
            }
            () = first_to_end(&self.pipelines) => {
                tracing::error!("a pipeline ended, or a stage failed for good, stopping");
            }
            Some(ended) = server.join_next() => return Err(why_it_ended(ended)),
            Some(ended) = admin.join_next() => return Err(why_it_ended(ended)),
        }
        let signals = match signals {
            Some(signals) => signals,
            None => Signals::listen()?,
        };
        if let Some(health) = &self.health {
            health.stop();
        }
        phase.send_replace(Phase::Leaving);
        let (hurry, hurried) = watch::channel(false);
        let draining = async {
            if !self.linger.is_zero() {
                tracing::info!(time = ?self.linger, "reporting not ready, still accepting connections");
                unless(&hurried, Deadline::from_now(self.linger).passed()).await;
            }
            let until = Deadline::from_now(self.drain_within);
            let mut pipelines = Vec::new();
            // One after the other: an earlier pipeline may feed a later one until its end.
            for pipeline in self.pipelines {
                pipelines.push(drain(pipeline, until, &hurried).await);
            }
            // After the pipelines: their last items went to these sockets.
            let endpoint = match self.endpoint {
                Some(endpoint) => {
                    let fetching = timeout(FETCHING, all_is_fetched(&endpoint));
                    if unless(&hurried, fetching).await.is_some_and(|fetched| fetched.is_err()) {
                        let frames = endpoint.snapshot().frames_waiting;
                        tracing::warn!(frames, "clients have not taken their last messages");
                    }
                    phase.send_replace(Phase::Closed);
                    // A client whose socket is closed connects again at once, and not to this server.
                    let _ = unless(&hurried, refuses).await;
                    Some(close(&endpoint, self.close_within, &hurried).await)
                }
                None => None,
            };
            phase.send_replace(Phase::Ending);
            let answering = timeout(ANSWERING, server.join_next());
            if unless(&hurried, answering).await.is_some_and(|answered| answered.is_err()) {
                tracing::warn!("closing connections: requests were not answered in time");
            }
            ShutdownReport { pipelines, endpoint, interrupted: false }
        };
        let mut draining = Box::pin(draining);
        let report = tokio::select! {
            report = &mut draining => report,
            () = second_signal(signals, is_signalled) => {
                tracing::warn!("second stop signal, stopping without waiting");
                hurry.send_replace(true);
                // Aborted stages and sockets still report their work.
                ShutdownReport { interrupted: true, ..draining.as_mut().await }
            }
        };
        drop(draining);
        // Remaining connections are closed.
        server.shutdown().await;
        if let Some(flush) = self.flush
            && let Err(panic) = catch_unwind(AssertUnwindSafe(flush))
        {
            let reason = ExitReason::from_panic(&*panic);
            tracing::error!(reason = shown(&reason), "after_shutdown callback panicked");
        }
        Ok(report)
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<ShutdownReport>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Fails if the signal handlers cannot be installed, or a listener has no address.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("pipelines", &self.pipelines)
            .field("endpoint", &self.endpoint)
            .field("health", &self.health)
            .field("admin", &self.admin.as_ref().map(|(listener, _)| listener))
            .field("limits", &self.limits)
            .field("linger", &self.linger)
            .field("drain_within", &self.drain_within)
            .field("close_within", &self.close_within)
            .finish_non_exhaustive()
    }
}

/// Waits for the signal that skips the rest of the shutdown: the second one that counts. If a signal
/// started the shutdown, that was the first one; otherwise the first one is still to come.
async fn second_signal(mut signals: Signals, mut is_signalled: bool) {
    loop {
        if signals.stop().await == StopSignal::HangUp {
            continue;
        }
        if is_signalled {
            return;
        }
        is_signalled = true;
        tracing::info!(
            "stop signal received, already stopping; the next signal exits without waiting"
        );
    }
}

/// Waits for this, unless the shutdown is in a hurry or gets into one: then it is `None`.
async fn unless<T>(hurried: &watch::Receiver<bool>, waiting: impl Future<Output = T>) -> Option<T> {
    let mut hurried = hurried.clone();
    tokio::select! {
        biased;
        waited = waiting => Some(waited),
        Ok(_) = hurried.wait_for(|hurried| *hurried) => None,
    }
}

/// Drains a pipeline. In a hurry, its stages are stopped at once, and the report counts what is left.
async fn drain(
    mut pipeline: Pipeline,
    until: Deadline,
    hurried: &watch::Receiver<bool>,
) -> PipelineReport {
    pipeline.begin_drain(until.remaining(Instant::now()));
    if let Some(report) = unless(hurried, pipeline.join()).await {
        return report;
    }
    pipeline.begin_drain(Duration::ZERO);
    pipeline.join().await
}

/// Closes an endpoint's sockets, in a hurry all at once.
async fn close(
    endpoint: &Endpoint,
    within: Duration,
    hurried: &watch::Receiver<bool>,
) -> EndpointReport {
    if let Some(report) = unless(hurried, endpoint.drain(within)).await {
        return report;
    }
    // The report has the sockets of the first drain too.
    endpoint.drain(HURRIED).await
}

/// A server ends only if it panics.
fn why_it_ended(ended: Result<(), JoinError>) -> io::Error {
    match ended {
        Ok(()) => io::Error::other("the server task ended unexpectedly"),
        Err(error) => io::Error::other(error),
    }
}

/// Waits until no frames are pending for a client.
async fn all_is_fetched(endpoint: &Endpoint) {
    while endpoint.snapshot().frames_waiting > 0 {
        sleep(LOOK).await;
    }
}

/// Waits until a pipeline ends by itself, or a stage of one has failed for good; forever if there is no
/// pipeline. The other stages of a graph may run on without the failed one, and the process may not.
async fn first_to_end(pipelines: &[Pipeline]) {
    if pipelines.is_empty() {
        std::future::pending::<()>().await;
    }
    let ended = |pipeline: &Pipeline| {
        let observer = pipeline.observer();
        Box::pin(async move { observer.failed().await })
    };
    select_all(pipelines.iter().map(ended)).await;
}

/// The result of a shutdown: how each part stopped, and what was left unprocessed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The pipelines, in the order in which they were given.
    pub pipelines: Vec<PipelineReport>,
    /// The endpoint, if there was one.
    pub endpoint: Option<EndpointReport>,
    /// Whether a second signal interrupted the shutdown. The reports then count the items and sockets
    /// that were left.
    pub interrupted: bool,
}

impl ShutdownReport {
    /// Whether all accepted items were processed and every stage ended gracefully. Discarded and
    /// given-up items are counted in the report; they do not make a shutdown unclean.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.interrupted && self.pipelines.iter().all(PipelineReport::is_clean)
    }

    /// Returns the report if it [is clean](Self::is_clean), and otherwise an error with the same text.
    ///
    /// # Errors
    ///
    /// [`UncleanShutdown`], which also converts into an [`io::Error`], so that `?` accepts it where
    /// [`serve`] is awaited.
    pub fn into_result(self) -> Result<Self, UncleanShutdown> {
        if self.is_clean() { Ok(self) } else { Err(UncleanShutdown(self)) }
    }
}

/// The error of [`ShutdownReport::into_result`]: a stage failed or items were left unprocessed.
#[derive(Clone)]
pub struct UncleanShutdown(ShutdownReport);

impl UncleanShutdown {
    /// The report of the shutdown.
    #[must_use]
    pub fn report(&self) -> &ShutdownReport {
        &self.0
    }
}

impl fmt::Display for UncleanShutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text of the report, because a `main` that returns the error prints it with `Debug`.
impl fmt::Debug for UncleanShutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for UncleanShutdown {}

impl From<UncleanShutdown> for io::Error {
    fn from(error: UncleanShutdown) -> Self {
        Self::other(error)
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hurried = self.interrupted.then(|| "stopped without waiting".to_owned());
        let pipelines = self.pipelines.iter().map(ToString::to_string);
        let endpoint = self.endpoint.map(|report| report.to_string());
        let lines: Vec<_> = hurried.into_iter().chain(pipelines).chain(endpoint).collect();
        f.write_str(&lines.join("\n"))
    }
}
