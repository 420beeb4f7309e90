//! Killing a stage of a running pipeline by its name.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::stage::Kill;

/// Kills single stages of a pipeline by their names: for an operator, or a drill that shows what users notice of a stage
/// that fails. Made by [`Pipeline::operator`](crate::Pipeline::operator); cheap to clone, and it does not keep the
/// pipeline alive.
///
/// A stage that is not [restarting](crate::stage::Stage::restarting) is gone for good, and a linear pipeline ends with it.
/// So protect whatever gives access to it.
///
/// ```
/// use pipeline_core::{
///     ExitReason, Pipeline,
///     source::{QueueOptions, queue},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let operator = pipeline.operator();
/// assert!(operator.kill("consumer"));
/// let report = pipeline.join().await;
/// assert!(report.stages.iter().any(|stage| matches!(stage.reason, ExitReason::Killed)), "{report:?}");
/// assert!(!operator.kill("consumer"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PipelineOperator(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    stages: Vec<(Arc<str>, Weak<dyn Kill>)>,
}

impl PipelineOperator {
    pub(crate) fn new(name: Arc<str>, stages: Vec<(Arc<str>, Weak<dyn Kill>)>) -> Self {
        Self(Arc::new(Inner { name, stages }))
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The names of the stages, in the order of the pipeline's snapshots.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.0.stages.iter().map(|(stage, _)| &**stage)
    }

    /// Kills the stage with this name, as [`StageHandle::kill`](crate::stage::StageHandle::kill) does, and logs it at WARN.
    /// Returns false if there is no such stage, or it does not run. A restarting stage is started again and counts as failed,
    /// as after any other failure.
    pub fn kill(&self, stage: &str) -> bool {
        let named = self.0.stages.iter().find(|(name, _)| **name == *stage);
        let killed = named.and_then(|(_, slot)| slot.upgrade()).is_some_and(|slot| slot.kill());
        if killed {
            tracing::warn!(pipeline = %self.0.name, stage, "an operator has killed a stage");
        }
        killed
    }
}

impl fmt::Debug for PipelineOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineOperator").field("name", &self.0.name).finish_non_exhaustive()
    }
}
