//! Running everything until it is told to stop, and stopping it in the right order.

use std::{
    error::Error,
    fmt,
    future::{Future, IntoFuture},
    io,
    pin::Pin,
    time::Duration,
};

use axum::Router;
use futures::future::select_all;
use pipeline_core::{Deadline, Pipeline, PipelineReport, Telemetry};
use pipeline_ws_sink::{Endpoint, EndpointReport};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    health::Health,
    listener::{self, Limits, Metrics, Phase},
    signal::{Signals, Told},
};

/// Serves a router until the process is told to stop, then stops everything in order.
///
/// The server speaks HTTP/1.1, and upgrades to WebSockets. The address that a client connects from is in
/// its requests: handlers find it as axum's `ConnectInfo<SocketAddr>`, sockets as
/// `ConnectInfo::peer_addr`.
///
/// # The end
///
/// The process is told to stop by Ctrl-C, SIGTERM or SIGHUP. Ctrl-C or SIGTERM for the second time cuts
/// everything short; SIGHUP never does, because a terminal that is closed sends it more than once. If a
/// pipeline ends by itself, because a stage failed for good, everything else is stopped too, and the first
/// signal after that is only noted; an item that a worker fails at ends nothing by default. The order is:
///
/// 1. [`Health`] says that the process is not ready, and answers carry `connection: close`, so that
///    load balancers and clients move on. Connections are accepted as before, for as long as
///    [`linger`](Serve::linger) says.
/// 2. The pipelines hand on what they have accepted, one after the other, in the order in which they were
///    given to [`pipeline`](Serve::pipeline). Connections are still accepted, so that clients that poll
///    can fetch what is sent to them now.
/// 3. No more connections are accepted, and the endpoint's sockets are closed, so that clients connect
///    again elsewhere.
/// 4. Connections end when the request that they are at is answered, and are cut off after six seconds.
/// 5. What is given to [`and_then`](Serve::and_then) is called.
///
/// A callback that blocks its thread cannot be ended, and keeps a runtime that is dropped waiting for it,
/// which is what happens at the end of `main`. A program that has to exit all the same calls
/// [`std::process::exit`] once this has returned.
///
/// What was left undone is in the [`ShutdownReport`], and [`ShutdownReport::into_result`] makes a program
/// end with a failure if something was.
///
/// # Limits
///
/// A client that is silent, or too slow to say what it wants, is disconnected. A client that is one too
/// many is refused.
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
/// `http.connections_refused` and `http.connections_timed_out` count how often it came to that.
///
/// # Your own server
///
/// An [`Endpoint`] is a `tower` service and runs in any server. Set there what is set here: a timeout for
/// the head of a request that covers the time before its first byte (`header_read_timeout` of hyper's
/// `http1::Builder` does, once it has a `timer`; `axum::serve` sets none, and the connections of
/// `hyper_util::server::conn::auto` wait for their first bytes without one), a timeout for bodies, a
/// bound of connections, a pause after errors of `accept`, and at the end a deadline for connections.
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

/// What [`serve`] returns: set what is to be stopped, then await it.
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

/// How long requests have to be answered, when everything else has been stopped.
const ANSWERING: Duration = Duration::from_secs(6);

/// How long clients that poll have to fetch what the pipelines sent them last.
const FETCHING: Duration = Duration::from_secs(2);

/// How often to look whether they have.
const LOOK: Duration = Duration::from_millis(20);

impl Serve {
    /// Drains this pipeline at the end. May be called for several.
    ///
    /// They are drained one after the other, in the order in which they are given here. So a pipeline that
    /// feeds another one is given first: the queue of the second takes items in until the first has ended.
    /// One that takes what [`ConsumerSupervisor::on_given_up`] puts aside is given after the one whose
    /// workers fail. [`drain_within`](Self::drain_within) is for all of them together.
    ///
    /// ```no_run
    /// use pipeline::{
    ///     ConsumerSupervisor, ExitReason, Pipeline, QueueOptions, SubscribeOptions, for_each, queue,
    ///     serve, ws::listen,
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
    /// [`ConsumerSupervisor::on_given_up`]: pipeline_core::ConsumerSupervisor::on_given_up
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Closes this endpoint's sockets at the end, after the pipelines have drained.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Tells this when it begins to stop, so that it says at once that the process is not ready.
    ///
    /// Its handlers are best in a router of their own, at [`admin`](Self::admin): this one accepts no
    /// more connections once the pipelines have drained.
    pub fn health(mut self, health: &Health) -> Self {
        self.health = Some(health.clone());
        self
    }

    /// Serves another router on another listener until everything has stopped: for those who watch, and
    /// want to watch the end, too.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use pipeline::{Health, Pipeline, serve, ws::{Endpoint, listen}};
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

    /// Calls this last of all, for instance to drop a `StatsdFlusher`, which flushes it.
    pub fn and_then(mut self, flush: impl FnOnce() + Send + 'static) -> Self {
        self.flush = Some(Box::new(flush));
        self
    }

    /// How long to go on as before, but for not being ready, once the process is told to stop: so long
    /// that a load balancer has looked at [`Health`] and sends no more clients. Default: not at all.
    ///
    /// Kubernetes takes a pod out of its services when it sends SIGTERM, and needs a moment to tell
    /// everybody; 5 seconds are usual there. A balancer that asks `/readyz` every two seconds and
    /// believes the third answer needs 6.
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    /// How many connections may be open that have not become WebSockets. Default 10,000.
    ///
    /// A client that is one too many is answered with 503 and `retry-after: 1`.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_connections(mut self, connections: usize) -> Self {
        assert!(connections > 0, "a server without connections serves nobody");
        self.limits.connections = connections;
        self
    }

    /// How long the head of a connection's first request may take, the time before its first byte
    /// included. Default 10 seconds.
    ///
    /// # Panics
    ///
    /// If it is zero: every connection would end at once.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a head that may take no time cannot be read");
        self.limits.head = timeout;
        self
    }

    /// How long a connection may take from one answer to the end of the next request's head. Default 75
    /// seconds, which is longer than load balancers keep a connection that they do not use: it is for
    /// them to close it first.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle = timeout;
        self
    }

    /// How long the body of a request may pause. Default 30 seconds.
    ///
    /// A handler that reads the body is then told of an error. How large a body may be, and how long it
    /// may take in all, is for handlers to say.
    ///
    /// # Panics
    ///
    /// If it is zero: every request with a body would fail.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a body that may not pause at all cannot be read");
        self.limits.body = timeout;
        self
    }

    /// How long a client may take nothing of an answer that waits for it. Default 30 seconds.
    ///
    /// The operating system watches it (`TCP_USER_TIMEOUT`), on Linux and Android only. It ends when a
    /// connection becomes a WebSocket: from then on the mount's `max_behind` counts.
    ///
    /// # Panics
    ///
    /// If it is zero: an answer that waits at all would end its connection.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "an answer that may take no time cannot be written");
        self.limits.write = timeout;
        self
    }

    /// Where to record what is measured of connections. Default: the process's recorder.
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// How long the pipelines have to hand on what they have accepted, all of them together. Default 10
    /// seconds; with [`Duration::MAX`] there is no limit. A pipeline whose turn comes when the time is up
    /// is stopped at once.
    pub fn drain_within(mut self, deadline: Duration) -> Self {
        self.drain_within = deadline;
        self
    }

    /// How long the endpoint's sockets have to close. Default 30 seconds, as in Phoenix.
    ///
    /// They are closed in batches, as their mounts' `Drainer`s say: by default 10,000 channels every two
    /// seconds, which is 150,000 in the default time. The last fifth of the time, at most a second, is
    /// for the batches that do not fit: all of their sockets are then closed at once, and the log has a
    /// warning. Each WebSocket is closed with 1012, so that its client connects again. A socket that has
    /// not ended when the time is over is cut off: its client took nothing, or its task was busy. The
    /// client then sees the connection break. The report says how many sockets were cut off.
    ///
    /// SIGKILL has to come later than SIGTERM by more than [`linger`](Self::linger),
    /// [`drain_within`](Self::drain_within) and this together, and 15 seconds: stages have one to end,
    /// clients that poll two to fetch what they are sent last, requests six to be answered, and a flush
    /// of StatsD takes five at most. Each pipeline after the first adds a second. With the defaults that is
    /// 55 seconds; Kubernetes waits for 30 unless it is told otherwise.
    pub fn close_within(mut self, deadline: Duration) -> Self {
        self.close_within = deadline;
        self
    }

    /// Stops when this completes, instead of at a signal. Signals are left alone until then; after that,
    /// the first one is only noted, and the second one cuts the end short.
    pub fn until(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Some(Box::pin(stop));
        self
    }

    async fn run(mut self) -> io::Result<ShutdownReport> {
        // With `until`, signals end the process as ever, until it stops.
        let mut signals = self.stop.is_none().then(Signals::listen).transpose()?;
        let metrics = Metrics::new(&self.telemetry);
        let start = |listener, app, phase| {
            let mut server = JoinSet::new();
            server.spawn(listener::run(listener, app, self.limits, metrics.clone(), phase));
            server
        };
        // Both end with their sets.
        tracing::info!(address = %self.listener.local_addr()?, "listening");
        let (phase, public) = watch::channel(Phase::Serving);
        let mut server = start(self.listener, self.app, public);
        let (_serving, private) = watch::channel(Phase::Serving);
        let mut admin = JoinSet::new();
        if let Some((listener, router)) = self.admin.take() {
            tracing::info!(address = %listener.local_addr()?, "listening for the admin router");
            admin = start(listener, router, private);
        }

        let until = self.stop.take();
        // Says whether that was a signal which counts.
        let stop = async {
            if let Some(signals) = &mut signals {
                return signals.stop().await == Told::Meant;
            }
            if let Some(until) = until {
                until.await;
            }
            false
        };
        let mut told = false;
        tokio::select! {
            by_signal = stop => {
                told = by_signal;
                tracing::info!("stopping");
            }
            () = first_to_end(&mut self.pipelines) => tracing::error!("a pipeline ended, stopping"),
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
        let draining = async {
            if !self.linger.is_zero() {
                tracing::info!(time = ?self.linger, "not ready any more, and still accepting");
                Deadline::from_now(self.linger).passed().await;
            }
            let until = Deadline::from_now(self.drain_within);
            let mut pipelines = Vec::new();
            // One after the other: a later one may be fed by an earlier one to its end.
            for pipeline in self.pipelines {
                pipelines.push(pipeline.drain(until.remaining(Instant::now())).await);
            }
            // Only now: what the pipelines still held went to these sockets.
            let endpoint = match self.endpoint {
                Some(endpoint) => {
                    if timeout(FETCHING, all_is_fetched(&endpoint)).await.is_err() {
                        let frames = endpoint.snapshot().frames_waiting;
                        tracing::warn!(frames, "clients have not taken what was sent to them last");
                    }
                    phase.send_replace(Phase::Closed);
                    Some(endpoint.drain(self.close_within).await)
                }
                None => None,
            };
            phase.send_replace(Phase::Ending);
            if timeout(ANSWERING, server.join_next()).await.is_err() {
                tracing::warn!("connections are cut off, their requests were not answered in time");
            }
            ShutdownReport { pipelines, endpoint, interrupted: false }
        };
        let report = tokio::select! {
            report = draining => report,
            () = told_again(signals, told) => {
                tracing::warn!("told to stop again, not waiting any longer");
                ShutdownReport { pipelines: Vec::new(), endpoint: None, interrupted: true }
            }
        };
        // What is still at it is cut off.
        server.shutdown().await;
        if let Some(flush) = self.flush {
            flush();
        }
        Ok(report)
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<ShutdownReport>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Fails if the signals cannot be listened for, or a listener has no address.
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

/// Waits for a signal after which nothing is waited for: the second one that counts. The first may have
/// been what the server stops for; if it stops for another reason, it is still to come.
async fn told_again(mut signals: Signals, mut told: bool) {
    loop {
        if signals.stop().await == Told::HungUp {
            continue;
        }
        if told {
            return;
        }
        told = true;
        tracing::info!("told to stop, already stopping; the next signal cuts it short");
    }
}

/// A server ends only if it panics.
fn why_it_ended(ended: Result<(), JoinError>) -> io::Error {
    match ended {
        Ok(()) => io::Error::other("the server ended by itself"),
        Err(error) => io::Error::other(error),
    }
}

/// Waits until nothing waits for a client any more.
async fn all_is_fetched(endpoint: &Endpoint) {
    while endpoint.snapshot().frames_waiting > 0 {
        sleep(LOOK).await;
    }
}

/// Waits until a pipeline ends by itself; for ever, if there is none.
async fn first_to_end(pipelines: &mut [Pipeline]) {
    if pipelines.is_empty() {
        std::future::pending::<()>().await;
    }
    select_all(pipelines.iter_mut().map(|pipeline| Box::pin(pipeline.ended()))).await;
}

/// How everything was stopped, and what was left undone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The pipelines, in the order in which they were given.
    pub pipelines: Vec<PipelineReport>,
    /// The endpoint, if there was one.
    pub endpoint: Option<EndpointReport>,
    /// Whether a second signal cut it short. Then it is not known what was left.
    pub interrupted: bool,
}

impl ShutdownReport {
    /// Whether everything that was accepted was handed on, and every stage ended gracefully. Items that
    /// were discarded or given up are counted, and do not count against it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.interrupted && self.pipelines.iter().all(PipelineReport::is_clean)
    }

    /// The report itself if it [is clean](Self::is_clean), and an error with the same text if not.
    ///
    /// # Errors
    ///
    /// [`UncleanShutdown`]; it converts into an [`io::Error`], too, so that `?` takes it where
    /// [`serve`] is awaited.
    pub fn into_result(self) -> Result<Self, UncleanShutdown> {
        if self.is_clean() { Ok(self) } else { Err(UncleanShutdown(self)) }
    }
}

/// Something failed or was left undone: the error of [`ShutdownReport::into_result`].
#[derive(Clone)]
pub struct UncleanShutdown(ShutdownReport);

impl UncleanShutdown {
    /// How everything was stopped.
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

/// The text of the report, because that is what a `main` prints that returns it.
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
        if self.interrupted {
            return f.write_str("stopped without waiting; what was left undone is not known");
        }
        let pipelines = self.pipelines.iter().map(ToString::to_string);
        let lines: Vec<_> =
            pipelines.chain(self.endpoint.map(|report| report.to_string())).collect();
        f.write_str(&lines.join("\n"))
    }
}
