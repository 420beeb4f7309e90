//! What a stage knows about where it runs.

use std::sync::Arc;

use crate::telemetry::{StageLabels, Telemetry};

/// What a stage knows about where it runs, from before its first event on. `H` is the stage's own
/// handle.
#[derive(Clone, Debug)]
pub struct StageContext<H> {
    pub(crate) pipeline: Arc<str>,
    pub(crate) stage: Arc<str>,
    pub(crate) telemetry: Telemetry,
    pub(crate) handle: H,
}

impl<H> StageContext<H> {
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

    /// The stage's own handle, to send itself messages with, or to give away.
    ///
    /// A call to oneself waits for ever: a stage does one thing at a time.
    #[must_use]
    pub fn handle(&self) -> &H {
        &self.handle
    }

    /// The labels of this stage's metrics.
    pub(crate) fn labels(&self) -> StageLabels {
        [("pipeline", self.pipeline.to_string()), ("stage", self.stage.to_string())]
    }
}
