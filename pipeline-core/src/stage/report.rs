//! The final report of a stage.

use std::{fmt, sync::Arc};

use crate::exit::ExitReason;

/// How a stage ended, and the events it left unprocessed. Part of a
/// [`PipelineReport`](crate::report::PipelineReport).
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, queue},
///     subscription::SubscribeOptions,
///     supervisor::ConsumerSupervisor,
/// };
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
/// assert_eq!((supervisor.in_progress, producer.pending), (1, 1));
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
    /// Accepted events that were neither passed on nor begun: queued, buffered, or just received.
    pub pending: usize,
    /// Events whose processing was interrupted: in a worker that was stopped, or in a callback that
    /// failed.
    pub in_progress: usize,
    /// Events it discarded while it ran: its buffer was full, there were no subscribers, or their
    /// partition did not exist.
    ///
    /// Items that a queue discarded are not included: items that were too old, and items that were
    /// offered when it was full, never reached the stage.
    /// [`Queue::discarded`](crate::source::Queue::discarded) and
    /// [`StageSnapshot::discarded`](crate::snapshot::StageSnapshot::discarded) count them.
    pub discarded: usize,
    /// Events that were given up because their workers failed too often; see
    /// [`ConsumerSupervisor::tries`](crate::supervisor::ConsumerSupervisor::tries). They do not
    /// count as unprocessed.
    pub given_up: usize,
    /// How often the stage was restarted. The other numbers include its earlier incarnations.
    pub restarts: usize,
    /// Why it was last restarted.
    pub last_failure: Option<ExitReason>,
    /// Whether its `terminate` completed.
    pub(crate) terminated: bool,
}

impl StageReport {
    pub(crate) fn new(stage: Arc<str>, reason: ExitReason) -> Self {
        Self {
            stage,
            reason,
            pending: 0,
            in_progress: 0,
            discarded: 0,
            given_up: 0,
            restarts: 0,
            last_failure: None,
            terminated: true,
        }
    }

    /// The report of the whole stage, with the reports of its earlier incarnations.
    pub(crate) fn after(self, earlier: Option<Self>) -> Self {
        let Some(earlier) = earlier else { return self };
        Self {
            pending: self.pending + earlier.pending,
            in_progress: self.in_progress + earlier.in_progress,
            discarded: self.discarded + earlier.discarded,
            given_up: self.given_up + earlier.given_up,
            restarts: earlier.restarts + 1,
            last_failure: Some(earlier.reason),
            terminated: self.terminated && earlier.terminated,
            ..self
        }
    }

    /// The number of events that were accepted and not processed to the end, pending or in
    /// progress.
    #[must_use]
    pub fn unprocessed(&self) -> usize {
        self.pending + self.in_progress
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended ({})", self.stage, self.reason)?;
        for (count, what) in [
            (self.pending, "pending"),
            (self.in_progress, "in progress"),
            (self.discarded, "discarded"),
            (self.given_up, "given up"),
        ] {
            if count > 0 {
                let events = if count == 1 { "event" } else { "events" };
                write!(f, ", {count} {events} {what}")?;
            }
        }
        if let Some(failure) = &self.last_failure {
            let times = if self.restarts == 1 { "once" } else { "times" };
            let count =
                if self.restarts == 1 { String::new() } else { format!("{} ", self.restarts) };
            write!(f, ", restarted {count}{times}, the last time because it {}", Because(failure))?;
        }
        Ok(())
    }
}

/// A reason, formatted as the end of a sentence about a stage.
struct Because<'a>(&'a ExitReason);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ExitReason::Killed => f.write_str("was killed"),
            ExitReason::NotRunning => f.write_str("needed a stage that did not run"),
            reason => reason.fmt(f),
        }
    }
}

/// The events that a callback received and has not finished.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unprocessed {
    /// Events that were not begun.
    pub pending: usize,
    /// Events that were begun.
    pub in_progress: usize,
}
