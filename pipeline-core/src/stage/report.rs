//! What a stage left behind when it ended.

use std::{fmt, sync::Arc};

use crate::exit::ExitReason;

/// How a stage ended, and what it had not done by then. Part of a
/// [`PipelineReport`](crate::PipelineReport).
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// use pipeline_core::{ConsumerSupervisor, Pipeline, QueueOptions, SubscribeOptions, queue};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = queue(QueueOptions::new());
/// let stuck = ConsumerSupervisor::new(async |_: &u64| pending().await);
/// let pipeline = Pipeline::builder("jobs")
///     .producer(producer)
///     .consumer_supervisor(stuck, SubscribeOptions::new().max_demand(1))
///     .start()?;
/// queue.push(1).await?;
/// queue.push(2).await?;
///
/// let mut report = pipeline.drain(Duration::from_secs(1)).await;
/// report.stages.sort_by(|a, b| a.stage.cmp(&b.stage));
/// let [supervisor, producer] = &report.stages[..] else { panic!("there are two stages") };
/// assert_eq!((supervisor.unfinished, producer.held), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage's name.
    pub stage: Arc<str>,
    /// Why it ended.
    pub reason: ExitReason,
    /// Events it had accepted and neither passed on nor begun: queued, buffered, or just received.
    pub held: usize,
    /// Events that were begun and not finished: in the hands of a worker that was stopped, or of a
    /// callback that failed.
    pub unfinished: usize,
    /// Events it discarded while it ran, because a buffer was full.
    pub discarded: usize,
}

impl StageReport {
    pub(crate) fn new(stage: Arc<str>, reason: ExitReason) -> Self {
        Self { stage, reason, held: 0, unfinished: 0, discarded: 0 }
    }

    /// Events that were accepted and not brought to an end: held and unfinished.
    #[must_use]
    pub fn left_undone(&self) -> usize {
        self.held + self.unfinished
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, reason, held, unfinished, discarded } = self;
        write!(f, "{stage} ended ({reason})")?;
        for (count, what) in
            [(held, "held"), (unfinished, "begun and not finished"), (discarded, "discarded")]
        {
            if *count > 0 {
                let events = if *count == 1 { "event" } else { "events" };
                write!(f, ", {count} {events} {what}")?;
            }
        }
        Ok(())
    }
}
