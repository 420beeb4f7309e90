//! Liveness and readiness of the process.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use pipeline_core::snapshot::{PipelineObserver, PipelinePhase, StageSnapshot};
use pipeline_ws_sink::endpoint::EndpointObserver;

/// Liveness and readiness checks of the process, for a load balancer or an orchestrator such as
/// Kubernetes.
///
/// Cheap to clone; all clones share their state.
///
/// - **Ready**: every pipeline is running and nothing is being stopped. The process is not ready while
///   stages start, and from the moment it begins to drain. A full queue affects readiness only with
///   [`overloaded_at`](Self::overloaded_at).
/// - **Alive**: no stage of a pipeline has failed for good. The process stays alive while it starts, is
///   overloaded or drains, and while a stage restarts: restarting the process then would lose the items
///   that it holds.
///
/// Both are computed when they are requested, and describe that moment.
///
/// ```
/// use axum::Router;
/// use pipeline::{
///     Pipeline,
///     health::Health,
///     source::{QueueOptions, queue},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let health = Health::new().pipeline(pipeline.observer());
/// let app: Router = Router::new().merge(health.router()); // at `/livez` and `/readyz`
/// # drop(app);
///
/// assert!(health.liveness().is_ok());
/// # while health.readiness().is_err() { tokio::task::yield_now().await; }
/// pipeline.drain(std::time::Duration::from_secs(1)).await;
/// let why = health.readiness().unwrap_err();
/// assert_eq!(why.to_string(), "not ready: pipeline numbers has ended");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Health {
    pipelines: Vec<PipelineObserver>,
    endpoints: Vec<EndpointObserver>,
    overloaded_at: Option<f64>,
    required: Vec<Required>,
    stopping: Arc<AtomicBool>,
}

/// Something that the process needs to be ready.
#[derive(Clone)]
struct Required {
    name: String,
    is_there: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Required {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The reasons why a check fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    state: &'static str,
    reasons: Vec<String>,
}

impl Health {
    /// A health check without pipelines or an endpoint: alive, and ready until it is
    /// [stopped](Self::stop).
    pub fn new() -> Self {
        Self {
            pipelines: Vec::new(),
            endpoints: Vec::new(),
            overloaded_at: None,
            required: Vec::new(),
            stopping: Arc::default(),
        }
    }

    /// Adds a pipeline to the checks.
    pub fn pipeline(mut self, pipeline: PipelineObserver) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Adds an endpoint to the checks.
    pub fn endpoint(mut self, endpoint: EndpointObserver) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Sets the fill level of a queue from which the process counts as not ready: 0.8 is four fifths,
    /// and at 1 the next push would have to wait or be refused. Default: queues do not affect readiness.
    ///
    /// Use it where processes are unevenly loaded: it moves load from one process to others. When all of
    /// them are overloaded, all of them leave the balancer together and no requests are served; those
    /// that leave later receive the load of those that left earlier. A full queue already refuses excess
    /// items, process by process, so do not set this where all processes receive the same load. Smooth
    /// short spikes in the consumer of the check, for instance with Kubernetes' `failureThreshold`.
    ///
    /// # Panics
    ///
    /// If `share` is not above 0 and at most 1.
    pub fn overloaded_at(mut self, share: f64) -> Self {
        assert!(
            share > 0.0 && share <= 1.0,
            "the share has to be above 0 and at most 1, not {share}"
        );
        self.overloaded_at = Some(share);
        self
    }

    /// Makes the process ready only while something is there, such as a connection to the other nodes of
    /// a cluster: `health.requires("redis", move || cluster.is_connected())`. The function is called at
    /// each check, and answers at once.
    ///
    /// Where all processes need the same server, its failure takes all of them out of the balancer
    /// together. A node without the others still serves its own clients.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering::Relaxed}};
    ///
    /// use pipeline::health::Health;
    ///
    /// let connected = Arc::new(AtomicBool::new(false));
    /// let seen = connected.clone();
    /// let health = Health::new().requires("redis", move || seen.load(Relaxed));
    /// assert_eq!(health.readiness().unwrap_err().to_string(), "not ready: redis is not there");
    /// connected.store(true, Relaxed);
    /// assert!(health.readiness().is_ok());
    /// ```
    pub fn requires(
        mut self,
        name: impl Into<String>,
        is_there: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        self.required.push(Required { name: name.into(), is_there: Arc::new(is_there) });
        self
    }

    /// Marks the process as stopping: it stays alive and is not ready from now on.
    /// [`Serve::health`](crate::serve::Serve::health) calls this by itself.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Whether the process should receive work now.
    ///
    /// # Errors
    ///
    /// [`Unhealthy`] lists all reasons.
    pub fn readiness(&self) -> Result<(), Unhealthy> {
        let mut reasons = Vec::new();
        if self.stopping.load(Relaxed) {
            reasons.push("the process is stopping".to_owned());
        }
        let missing = self.required.iter().filter(|required| !(required.is_there)());
        reasons.extend(missing.map(|required| format!("{} is not there", required.name)));
        for pipeline in self.pipelines.iter().map(PipelineObserver::snapshot) {
            let name = &pipeline.pipeline;
            match pipeline.phase {
                PipelinePhase::Running => {}
                PipelinePhase::Starting => reasons.push(format!("pipeline {name} is starting")),
                PipelinePhase::Draining => reasons.push(format!("pipeline {name} is draining")),
                _ => reasons.push(format!("pipeline {name} has ended")),
            }
            let full = pipeline.stages.iter().filter(|stage| self.is_full(stage));
            reasons.extend(full.map(|stage| {
                let (stage, queued) = (&stage.stage, stage.queued);
                format!("pipeline {name} is overloaded: {queued} items wait in the queue of stage {stage}")
            }));
        }
        for endpoint in &self.endpoints {
            match endpoint.snapshot() {
                Some(seen) if seen.draining => reasons.push("the endpoint is draining".to_owned()),
                Some(_) => {}
                None => reasons.push("the endpoint is gone".to_owned()),
            }
        }
        Unhealthy::unless_empty("not ready", reasons)
    }

    /// Whether the process works, or has to be restarted.
    ///
    /// # Errors
    ///
    /// [`Unhealthy`] lists the failed pipelines, each with the failed stage and the reason.
    pub fn liveness(&self) -> Result<(), Unhealthy> {
        let snapshots = self.pipelines.iter().map(PipelineObserver::snapshot);
        let reasons = snapshots.filter(|pipeline| pipeline.failed).map(|pipeline| {
            let name = &pipeline.pipeline;
            let failure =
                |stage: &StageSnapshot| Some((stage.stage.clone(), stage.failure.clone()?));
            match pipeline.stages.iter().find_map(failure) {
                Some((stage, reason)) => {
                    format!("pipeline {name} has failed: stage {stage} ended ({reason})")
                }
                None => format!("pipeline {name} has failed"),
            }
        });
        Unhealthy::unless_empty("not alive", reasons.collect())
    }

    /// A router with `GET /livez` and `GET /readyz`, which answer with 200, or with 503 and the reasons
    /// as text.
    pub fn router(&self) -> Router {
        let (live, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/livez", get(async move || answer(live.liveness(), "alive")))
            .route("/readyz", get(async move || answer(ready.readiness(), "ready")))
    }

    fn is_full(&self, stage: &StageSnapshot) -> bool {
        let (Some(share), Some(capacity)) = (self.overloaded_at, stage.queue_capacity) else {
            return false;
        };
        stage.queued as f64 >= capacity as f64 * share
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Unhealthy {
    /// The reasons, one sentence each.
    #[must_use]
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    fn unless_empty(state: &'static str, reasons: Vec<String>) -> Result<(), Self> {
        if reasons.is_empty() { Ok(()) } else { Err(Self { state, reasons }) }
    }
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.state, self.reasons.join("; "))
    }
}

impl std::error::Error for Unhealthy {}

fn answer(result: Result<(), Unhealthy>, good: &'static str) -> impl IntoResponse {
    let (status, text) = match result {
        Ok(()) => (StatusCode::OK, format!("{good}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    // The answer is valid only for this moment.
    (status, [(header::CACHE_CONTROL, "no-store")], text)
}
