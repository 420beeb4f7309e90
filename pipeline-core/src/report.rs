//! The final report of a pipeline and its stages.

use std::{collections::HashMap, fmt, sync::Arc};

use thiserror::Error;

use crate::exit::ExitReason;

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
    /// example because the log's subscriber panicked, there is one more entry with the pipeline's
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
    /// [`UncleanPipeline`].
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
    pub fn into_result(self) -> Result<Self, UncleanPipeline> {
        if self.is_clean() { Ok(self) } else { Err(UncleanPipeline(self)) }
    }
}

/// A pipeline that failed or has unprocessed events: the error of [`PipelineReport::into_result`].
#[derive(Clone, Error)]
#[error("{0}")]
pub struct UncleanPipeline(PipelineReport);

impl UncleanPipeline {
    /// The final report.
    #[must_use]
    pub fn report(&self) -> &PipelineReport {
        &self.0
    }
}

/// Prints the text of the report, because a `main` that returns the error prints its `Debug` form.
impl fmt::Debug for UncleanPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Many stages with numbered names that ended in the same way are one entry.
impl fmt::Display for PipelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = if self.completed { "" } else { " after its deadline" };
        write!(f, "pipeline {} ended{late}, ", self.pipeline)?;
        match self.unprocessed() {
            0 => f.write_str("no unprocessed events")?,
            1 => f.write_str("1 unprocessed event")?,
            n => write!(f, "{n} unprocessed events")?,
        }
        for Alike { stage, numbered } in alike(&self.stages) {
            match numbered {
                Some((base, count)) if count > FEW => {
                    write!(f, "; {count} stages {base}_*{}", Ended(stage))?;
                }
                _ => write!(f, "; {stage}")?,
            }
        }
        Ok(())
    }
}

/// How many stages with numbered names are reported one by one.
const FEW: usize = 8;

/// A stage, and the name without its number and how many such there are if there are many that ended as it
/// did.
struct Alike<'a> {
    stage: &'a StageReport,
    numbered: Option<(&'a str, usize)>,
}

/// The stages, but of many numbered ones that ended in the same way the first.
fn alike(stages: &[StageReport]) -> Vec<Alike<'_>> {
    let mut listed: Vec<Alike<'_>> = Vec::with_capacity(stages.len());
    let keyed = |stage: &StageReport| format!("{}", Ended(stage));
    let mut places = HashMap::<(&str, String), Vec<usize>>::new();
    for stage in stages {
        let base = base(&stage.stage);
        if let Some(base) = base {
            places.entry((base, keyed(stage))).or_default().push(listed.len());
        }
        listed.push(Alike { stage, numbered: base.map(|base| (base, 1)) });
    }
    let mut is_shown = vec![true; listed.len()];
    for same in places.into_values().filter(|same| same.len() > FEW) {
        for (nth, place) in same.iter().enumerate() {
            is_shown[*place] = nth == 0;
            if let Some((_, count)) = &mut listed[*place].numbered {
                *count = same.len();
            }
        }
    }
    listed.into_iter().zip(is_shown).filter_map(|(one, shown)| shown.then_some(one)).collect()
}

/// The name without its number, if it has one.
fn base(name: &str) -> Option<&str> {
    let (base, number) = name.rsplit_once('_')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !base.is_empty()).then_some(base)
}

/// How a stage ended, and the events it left unprocessed. Part of a
/// [`PipelineReport`].
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
        write!(f, "{}{}", self.stage, Ended(self))
    }
}

/// The text about a stage that follows its name.
struct Ended<'a>(&'a StageReport);

impl fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(stage) = self;
        write!(f, " ended ({})", stage.reason)?;
        for (count, what) in [
            (stage.pending, "pending"),
            (stage.in_progress, "in progress"),
            (stage.discarded, "discarded"),
            (stage.given_up, "given up"),
        ] {
            if count > 0 {
                let events = if count == 1 { "event" } else { "events" };
                write!(f, ", {count} {events} {what}")?;
            }
        }
        if let Some(failure) = &stage.last_failure {
            let times = if stage.restarts == 1 { "once" } else { "times" };
            let count =
                if stage.restarts == 1 { String::new() } else { format!("{} ", stage.restarts) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_numbered_stages_that_ended_alike_are_one_entry() {
        let mut report = PipelineReport::new("push".into());
        let add = |report: &mut PipelineReport, name: String, reason: ExitReason| {
            report.stages.push(StageReport::new(name.into(), reason));
        };
        add(&mut report, "source_0".into(), ExitReason::Normal);
        (0..200).for_each(|n| add(&mut report, format!("processor_{n}"), ExitReason::Normal));
        report.stages[7].pending = 2;
        add(&mut report, "processor_200".into(), ExitReason::Killed);
        (0..3).for_each(|n| add(&mut report, format!("few_{n}"), ExitReason::Normal));
        let text = report.to_string();
        assert_eq!(
            text,
            "pipeline push ended, 2 unprocessed events; source_0 ended (normal); \
             199 stages processor_* ended (normal); processor_6 ended (normal), 2 events pending; \
             processor_200 ended (killed); few_0 ended (normal); few_1 ended (normal); \
             few_2 ended (normal)"
        );
    }
}
