//! The final report of a pipeline.

use std::{fmt, sync::Arc};

use thiserror::Error;

use crate::exit::ExitReason;
pub use crate::stage::report::StageReport;

/// The final report of a pipeline: how it ended, and its unprocessed events.
///
/// Items that its queues discarded are not included:
/// [`Queue::discarded`](crate::source::Queue::discarded) and the metric `pipeline.events_discarded`
/// count them.
///
/// ```
/// use pipeline_core::{
///     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let parse = for_each(async |text: &str| text.parse::<u64>().map(|n| println!("{n}")));
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(["1", "2", "three", "4"]))
///     .consumer(parse, SubscribeOptions::new().max_demand(1))
///     .start()?;
///
/// let report = pipeline.join().await;
/// let failure = report.failure().ok_or("all went well")?;
/// assert_eq!(&*failure.stage, "consumer");
/// assert_eq!(failure.reason.to_string(), "failed: invalid digit found in string");
/// // The event that it failed on.
/// assert_eq!(report.unprocessed(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipelineReport {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The stages in the order of their ends, each once. If the pipeline's own task failed, for
    /// example because a metrics recorder panicked, there is one more entry with the pipeline's
    /// name.
    pub stages: Vec<StageReport>,
    /// Whether all stages ran to their end, `terminate` included. False if a deadline passed first,
    /// or the pipeline's own task failed.
    pub completed: bool,
}

impl PipelineReport {
    pub(crate) fn new(pipeline: Arc<str>) -> Self {
        Self { pipeline, stages: Vec::new(), completed: true }
    }

    /// Records a failure of the pipeline itself, not of a stage.
    pub(crate) fn fail_as_a_whole(&mut self, reason: ExitReason) {
        self.completed = false;
        self.stages.push(StageReport::new(self.pipeline.clone(), reason));
    }

    /// The number of events that were accepted and not processed to the end.
    #[must_use]
    pub fn unprocessed(&self) -> usize {
        self.stages.iter().map(StageReport::unprocessed).sum()
    }

    /// The first stage that did not end gracefully, if any. A stage that failed, was restarted and
    /// then ended gracefully does not count.
    #[must_use]
    pub fn failure(&self) -> Option<&StageReport> {
        self.stages.iter().find(|stage| !stage.reason.is_graceful())
    }

    /// Whether every event was processed and every stage ended gracefully. Discarded and given-up
    /// events do not count against it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unprocessed() == 0 && self.failure().is_none()
    }

    /// Returns the report itself if it [is clean](Self::is_clean), else an error with the same
    /// text: a `main` that returns it with `?` exits with a failure.
    ///
    /// # Errors
    ///
    /// [`NotClean`].
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(from_iter(0..10))
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// println!("{}", pipeline.join().await.into_result()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_result(self) -> Result<Self, NotClean> {
        if self.is_clean() { Ok(self) } else { Err(NotClean(self)) }
    }
}

/// A pipeline that failed or has unprocessed events: the error of [`PipelineReport::into_result`].
///
/// ```
/// use pipeline_core::{
///     ExitReason, Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fail = for_each(async |_: u64| Err::<(), _>(ExitReason::failed("no route")));
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..1))
///     .consumer(fail, SubscribeOptions::new())
///     .start()?;
/// let error = pipeline.join().await.into_result().unwrap_err();
/// assert!(error.to_string().contains("consumer ended (failed: no route)"));
/// assert_eq!(error.report().unprocessed(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Error)]
#[error("{0}")]
pub struct NotClean(PipelineReport);

impl NotClean {
    /// The final report.
    #[must_use]
    pub fn report(&self) -> &PipelineReport {
        &self.0
    }
}

/// Prints the text of the report, because a `main` that returns the error prints its `Debug` form.
impl fmt::Debug for NotClean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PipelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = if self.completed { "" } else { " after its deadline" };
        write!(f, "pipeline {} ended{late}, ", self.pipeline)?;
        match self.unprocessed() {
            0 => f.write_str("no unprocessed events")?,
            1 => f.write_str("1 unprocessed event")?,
            n => write!(f, "{n} unprocessed events")?,
        }
        for stage in &self.stages {
            write!(f, "; {stage}")?;
        }
        Ok(())
    }
}
