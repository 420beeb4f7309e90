//! Running everything until it is told to stop, and stopping it in the right order.

use std::{
    fmt,
    future::{Future, IntoFuture},
    io,
    net::SocketAddr,
    pin::Pin,
    time::Duration,
};

use axum::{Router, serve::ListenerExt};
use futures::future::{join_all, select_all};
use pipeline_core::{Pipeline, PipelineReport};
use pipeline_ws_sink::{Endpoint, EndpointReport};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinError, JoinSet},
    time::timeout,
};

use crate::{health::Health, signal::shutdown_signal};

/// Serves a router until the process is told to stop, then stops everything in order.
///
/// The order is: no new connections; the pipelines, which hand on what they have accepted; the
/// endpoint's sockets, which are closed so that clients connect again elsewhere; and last whatever
/// is to be flushed. What was left undone is in the [`ShutdownReport`].
///
/// The address that a client connects from is in its requests: handlers find it as axum's
/// `ConnectInfo<SocketAddr>`, sockets as `ConnectInfo::peer_addr`.
///
/// The process is told to stop by Ctrl-C or SIGTERM. A second signal cuts the draining short. If a
/// pipeline ends by itself, because a stage failed, everything else is stopped too.
///
/// ```no_run
/// use axum::Router;
/// use pipeline::{Pipeline, ws::Endpoint};
///
/// # async fn run(pipeline: Pipeline, endpoint: Endpoint) -> std::io::Result<()> {
/// let listener = pipeline::ws::listen("0.0.0.0:4000").await?;
/// let app = Router::new().fallback_service(endpoint.clone());
/// let report = pipeline::serve(listener, app).pipeline(pipeline).endpoint(endpoint).await?;
/// println!("{report}");
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
    drain_within: Duration,
    close_within: Duration,
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// How long requests have to be answered, when everything else has been stopped.
const ANSWERING: Duration = Duration::from_secs(6);

impl Serve {
    /// Drains this pipeline at the end. May be called for several.
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
    /// Its handlers are for a router of their own, at [`admin`](Self::admin): this one takes no more
    /// connections by then.
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

    /// How long the pipelines have to hand on what they have accepted. Default 10 seconds.
    pub fn drain_within(mut self, deadline: Duration) -> Self {
        self.drain_within = deadline;
        self
    }

    /// How long the endpoint's sockets have to close. Default 30 seconds, as in Phoenix.
    ///
    /// They are closed in batches, as their mounts' `Drainer`s say: by default 10,000 channels every two
    /// seconds, which is 150,000 in the default time. Those that are open when it is over are cut off:
    /// their clients see the connection break, and no 1012. The report says how many there were.
    ///
    /// Whoever sends SIGTERM has to wait for longer than this and [`drain_within`](Self::drain_within)
    /// together before sending SIGKILL; Kubernetes waits for 30 seconds unless it is told otherwise.
    pub fn close_within(mut self, deadline: Duration) -> Self {
        self.close_within = deadline;
        self
    }

    /// Stops when this completes, instead of at a signal.
    pub fn until(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Some(Box::pin(stop));
        self
    }

    async fn run(mut self) -> io::Result<ShutdownReport> {
        let stop = match self.stop.take() {
            Some(stop) => stop,
            None => Box::pin(shutdown_signal()?),
        };
        let (close, closing) = oneshot::channel::<()>();
        // A small answer is to leave at once; if that cannot be set, it leaves a little later.
        let listener = self.listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let app = self.app.into_make_service_with_connect_info::<SocketAddr>();
        let server = axum::serve(listener, app).with_graceful_shutdown(async {
            let _ = closing.await;
        });
        let mut server = tokio::spawn(server.into_future());
        let mut admin = JoinSet::new();
        if let Some((listener, router)) = self.admin.take() {
            // It ends with the set.
            admin.spawn(axum::serve(listener, router).into_future());
        }

        tokio::select! {
            () = stop => tracing::info!("stopping"),
            () = first_to_end(&mut self.pipelines) => tracing::error!("a pipeline ended, stopping"),
            // They end only if they cannot serve.
            served = &mut server => return Err(why_it_ended(served)),
            Some(served) = admin.join_next() => return Err(why_it_ended(served)),
        }
        if let Some(health) = &self.health {
            health.stop();
        }
        let _ = close.send(());
        let draining = async {
            let drained = self.pipelines.into_iter().map(|it| it.drain(self.drain_within));
            let pipelines = join_all(drained).await;
            // Only now: what the pipelines still held went to these sockets.
            let endpoint = match self.endpoint {
                Some(endpoint) => Some(endpoint.drain(self.close_within).await),
                None => None,
            };
            ShutdownReport { pipelines, endpoint, interrupted: false }
        };
        let report = tokio::select! {
            report = draining => report,
            () = shutdown_signal()? => {
                tracing::warn!("told to stop again, not waiting any longer");
                ShutdownReport { pipelines: Vec::new(), endpoint: None, interrupted: true }
            }
        };
        if timeout(ANSWERING, &mut server).await.is_err() {
            server.abort();
        }
        if let Some(flush) = self.flush {
            flush();
        }
        Ok(report)
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<ShutdownReport>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Fails if the signals cannot be listened for, or the server cannot serve.
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
            .field("drain_within", &self.drain_within)
            .field("close_within", &self.close_within)
            .finish_non_exhaustive()
    }
}

fn why_it_ended(served: Result<io::Result<()>, JoinError>) -> io::Error {
    let served = served.unwrap_or_else(|error| Err(io::Error::other(error)));
    served.err().unwrap_or_else(|| io::Error::other("the server ended by itself"))
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
    /// Whether everything that was accepted was handed on, and every stage ended gracefully.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let clean =
            |report: &PipelineReport| report.left_undone() == 0 && report.failure().is_none();
        !self.interrupted && self.pipelines.iter().all(clean)
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
