//! Read-only access to a pipeline.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::sync::watch;

use crate::{
    snapshot::{PipelinePhase, PipelineSnapshot},
    stage::{Observed, Phase},
};

/// A read-only observer of a pipeline, which also works after its end. Cheap to clone.
///
/// It keeps neither the pipeline nor its stages alive.
///
/// ```
/// use pipeline_core::{Pipeline, PipelinePhase, SubscribeOptions, for_each, from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..10))
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let observer = pipeline.observer();
/// pipeline.join().await;
/// drop(pipeline);
///
/// let seen = observer.snapshot();
/// assert_eq!((observer.name(), seen.phase), ("numbers", PipelinePhase::Ended));
/// assert_eq!(seen.stages[1].events_in, 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PipelineObserver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    /// Closed when the pipeline has ended.
    phase: watch::Receiver<Phase>,
    /// Set as soon as a stage has failed for good.
    failed: Arc<AtomicBool>,
    stages: Vec<Observed>,
}

impl PipelineObserver {
    pub(crate) fn new(
        name: Arc<str>,
        phase: watch::Receiver<Phase>,
        failed: Arc<AtomicBool>,
        stages: Vec<Observed>,
    ) -> Self {
        Self(Arc::new(Inner { name, phase, failed, stages }))
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The current state of the stages, without stopping them. After the end, their final state.
    #[must_use]
    pub fn snapshot(&self) -> PipelineSnapshot {
        PipelineSnapshot {
            pipeline: self.0.name.clone(),
            phase: self.phase(),
            failed: self.0.failed.load(Relaxed),
            stages: self.stages().iter().map(Observed::snapshot).collect(),
        }
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.0.name.clone()
    }

    pub(crate) fn stages(&self) -> &[Observed] {
        &self.0.stages
    }

    fn phase(&self) -> PipelinePhase {
        let told = *self.0.phase.borrow();
        if self.0.phase.has_changed().is_err() {
            PipelinePhase::Ended
        } else if told >= Phase::Drain {
            PipelinePhase::Draining
        } else if self.stages().iter().all(Observed::has_begun) {
            PipelinePhase::Running
        } else {
            PipelinePhase::Starting
        }
    }
}
