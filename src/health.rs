//! Whether the process is alive, and whether it should be sent work.

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
use pipeline_core::{PipelineObserver, PipelinePhase, StageSnapshot};
use pipeline_ws_sink::EndpointObserver;

/// Answers whether the process is alive, and whether it is ready to be sent work, for a load balancer
/// or an orchestrator such as Kubernetes.
///
/// Cheap to clone; all clones are the same.
///
/// - **Ready** it is when every pipeline runs, and nothing is being stopped. So it is not while stages
///   start, and as soon as it drains. A queue that is full counts only with
///   [`overloaded_at`](Self::overloaded_at).
/// - **Alive** it is unless a stage of a pipeline has failed for good, which shows as soon as it has. It
///   is alive while it starts, is overloaded or drains, and while a stage is started again: to restart it
///   then would lose what it holds.
///
/// Both are looked up when they are asked for, and tell of that moment.
///
/// ```
/// use axum::Router;
/// use pipeline::{Health, Pipeline, QueueOptions, SubscribeOptions, for_each, queue};
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
    stopping: Arc<AtomicBool>,
}

/// Something is not as it should be, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    state: &'static str,
    because: Vec<String>,
}

impl Health {
    /// With nothing to look at: alive, and ready until it is [stopped](Self::stop).
    pub fn new() -> Self {
        Self {
            pipelines: Vec::new(),
            endpoints: Vec::new(),
            overloaded_at: None,
            stopping: Arc::default(),
        }
    }

    /// Looks at this pipeline, too.
    pub fn pipeline(mut self, pipeline: PipelineObserver) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Looks at this endpoint, too.
    pub fn endpoint(mut self, endpoint: EndpointObserver) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Says that the process is not ready while one of its queues is so full: 0.8 is at four fifths, and
    /// at 1 the next push would have to wait or be refused. Default: a full queue changes nothing.
    ///
    /// It moves load from one process to others, and is of use where they are unevenly loaded. When all are
    /// overloaded, all of them leave the balancer together, and nobody is served; the last ones to leave
    /// get the load of the first. A full queue refuses by itself what is too much, process by process. So
    /// leave it out where load comes to all of them alike. Smooth it where you use it, as Kubernetes does
    /// by `failureThreshold`.
    ///
    /// # Panics
    ///
    /// If it is not above 0 and at most 1.
    pub fn overloaded_at(mut self, share: f64) -> Self {
        assert!(
            share > 0.0 && share <= 1.0,
            "a share of a queue is above 0 and at most 1: {share}"
        );
        self.overloaded_at = Some(share);
        self
    }

    /// Says that the process is about to end: from now on it is not ready, and it stays alive.
    /// [`Serve::health`](crate::Serve::health) does so by itself.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Whether the process should be sent work now.
    ///
    /// # Errors
    ///
    /// [`Unhealthy`] says all that stands against it.
    pub fn readiness(&self) -> Result<(), Unhealthy> {
        let mut because = Vec::new();
        if self.stopping.load(Relaxed) {
            because.push("the process is stopping".to_owned());
        }
        for pipeline in self.pipelines.iter().map(PipelineObserver::snapshot) {
            let name = &pipeline.pipeline;
            match pipeline.phase {
                PipelinePhase::Running => {}
                PipelinePhase::Starting => because.push(format!("pipeline {name} is starting")),
                PipelinePhase::Draining => because.push(format!("pipeline {name} is draining")),
                _ => because.push(format!("pipeline {name} has ended")),
            }
            let full = pipeline.stages.iter().filter(|stage| self.is_full(stage));
            because.extend(full.map(|stage| {
                let (stage, queued) = (&stage.stage, stage.queued);
                format!("pipeline {name} is overloaded: {queued} items wait in the queue of stage {stage}")
            }));
        }
        for endpoint in &self.endpoints {
            match endpoint.snapshot() {
                Some(seen) if seen.draining => because.push("the endpoint is draining".to_owned()),
                Some(_) => {}
                None => because.push("the endpoint is gone".to_owned()),
            }
        }
        Unhealthy::unless_empty("not ready", because)
    }

    /// Whether the process does what it is there for, or has to be started again.
    ///
    /// # Errors
    ///
    /// [`Unhealthy`] says which pipelines have failed, at which stage and why.
    pub fn liveness(&self) -> Result<(), Unhealthy> {
        let snapshots = self.pipelines.iter().map(PipelineObserver::snapshot);
        let because = snapshots.filter(|pipeline| pipeline.failed).map(|pipeline| {
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
        Unhealthy::unless_empty("not alive", because.collect())
    }

    /// The handlers: `GET /livez` and `GET /readyz` answer with 200, or with 503 and the reasons as text.
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
    /// What stands against it, a sentence each.
    #[must_use]
    pub fn because(&self) -> &[String] {
        &self.because
    }

    fn unless_empty(state: &'static str, because: Vec<String>) -> Result<(), Self> {
        if because.is_empty() { Ok(()) } else { Err(Self { state, because }) }
    }
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.state, self.because.join("; "))
    }
}

impl std::error::Error for Unhealthy {}

fn answer(result: Result<(), Unhealthy>, good: &'static str) -> impl IntoResponse {
    let (status, text) = match result {
        Ok(()) => (StatusCode::OK, format!("{good}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    // It is true of this moment, and of no other.
    (status, [(header::CACHE_CONTROL, "no-store")], text)
}
