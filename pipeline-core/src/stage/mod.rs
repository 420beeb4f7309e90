//! The kinds of stage: what a user implements, and the task that runs it.

mod consumer;
mod consumer_supervisor;
mod link;
mod producer;
mod report;
mod restart;
mod worker;

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;

pub use self::{
    consumer::Consumer,
    consumer_supervisor::ConsumerSupervisor,
    producer::{Emitter, Producer},
    report::StageReport,
    restart::Restart,
    worker::{ChildContext, Worker},
};
pub(crate) use self::{
    consumer::ConsumerTask,
    consumer_supervisor::SupervisorTask,
    link::{Link, Phase, ToConsumer, ToProducer},
    producer::ProducerTask,
};
use crate::{
    exit::ExitReason,
    telemetry::{StageLabels, Telemetry},
};

/// What a stage knows about where it runs, from before its first event on.
#[derive(Clone, Debug)]
pub struct StageContext {
    pub(crate) pipeline: Arc<str>,
    pub(crate) stage: Arc<str>,
    pub(crate) telemetry: Telemetry,
}

impl StageContext {
    /// The name of the pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The name of this stage.
    #[must_use]
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// Where the stage records its metrics.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The labels of this stage's metrics.
    pub(crate) fn labels(&self) -> StageLabels {
        [("pipeline", self.pipeline.to_string()), ("stage", self.stage.to_string())]
    }
}

/// Runs a callback to its end; a panic in it becomes an [`ExitReason`].
///
/// The stage or worker that panicked is not called again, but for its `terminate`, so nobody sees
/// state that the panic left half-changed.
pub(crate) async fn contained<F>(callback: F) -> Result<(), ExitReason>
where
    F: Future<Output = Result<(), ExitReason>>,
{
    let outcome = AssertUnwindSafe(callback).catch_unwind().await;
    outcome.unwrap_or_else(|payload| Err(ExitReason::from_panic(&*payload)))
}
