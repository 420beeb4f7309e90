//! A running pipeline, and what it leaves behind.

use std::{
    any::Any,
    collections::HashMap,
    fmt, mem,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{self, Instant, MissedTickBehavior},
};

use tracing::{Instrument, Span, info_span};

use crate::{
    deadline::Deadline,
    exit::ExitReason,
    observer::PipelineObserver,
    shown::shown,
    snapshot::{PipelineSnapshot, StageKind},
    stage::{Observed, Phase, Planned, Prepared, StageHandle, StageReport, Whole, contained_now},
    telemetry::{StageSamples, stage_labels},
};

/// How long stages have to report after they were told that the time is up. A stage that is still
/// in a callback by then is aborted in it.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long aborted stages have to say what they left undone. A stage that blocks its thread does not
/// even notice that it was aborted.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// How often what the stages show of themselves is recorded.
const LOOK: Duration = Duration::from_secs(1);

/// A running pipeline: it owns the tasks of its stages.
///
/// Dropping it ends them all at once, and what they held is lost. The stages' `terminate` callbacks
/// do not run then, so a sink that closes something in `terminate` does not close it. To end the
/// pipeline in good order, use [`drain`](Self::drain).
///
/// If a stage fails for good, the others are stopped too, while its `terminate` runs: [`ended`](Self::ended) completes and says
/// why. The stages of a [`Graph`](crate::Graph) are stopped only when a stage that is
/// [`restarting`](crate::Stage::restarting) has failed too often; any failure for good is told at once
/// by the [`snapshot`](Self::snapshot).
///
/// ```
/// # use pipeline_core::{ConsumerSupervisor, Pipeline, QueueOptions, SubscribeOptions, queue};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (queue, producer) = queue(QueueOptions::new());
/// # let worker = async |_: &u64| Ok(());
/// let pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
///     .start()?;
/// queue.push(7).await?;
///
/// let report = pipeline.drain(Duration::from_secs(10)).await;
/// if report.left_undone() > 0 {
///     eprintln!("{report}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a pipeline ends when it is dropped"]
pub struct Pipeline {
    observer: PipelineObserver,
    commands: mpsc::Sender<Command>,
    supervisor: JoinHandle<PipelineReport>,
    report: Option<PipelineReport>,
    slots: HashMap<Arc<str>, Arc<dyn Any + Send + Sync>>,
}

#[derive(Debug)]
enum Command {
    Drain { within: Duration },
}

impl Pipeline {
    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.observer.name()
    }

    /// The handle of the stage with this name, if there is one and it is of this type.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ConsumerHandle, Pipeline, ProducerHandle, QueueOptions, QueueProducer, SubscribeOptions,
    ///     for_each, queue,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue::<u64>(QueueOptions::new());
    /// let pipeline = Pipeline::builder("numbers")
    ///     .producer(producer)
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// let source: ProducerHandle<QueueProducer<u64>> = pipeline.stage("producer").unwrap();
    /// source.pause();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stage<S, In, Out>(&self, name: &str) -> Option<StageHandle<S, In, Out>>
    where
        S: Send + 'static,
        In: Send + 'static,
        Out: Send + 'static,
    {
        let slot = self.slots.get(name)?.clone().downcast().ok()?;
        Some(StageHandle { slot })
    }

    /// What the stages are doing now, without stopping them.
    ///
    /// ```
    /// # use pipeline_core::{Pipeline, QueueOptions, SubscribeOptions, for_each, queue};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_queue, producer) = queue::<u64>(QueueOptions::new());
    /// let pipeline = Pipeline::builder("numbers")
    ///     .producer(producer)
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// let snapshot = pipeline.snapshot();
    /// let names: Vec<&str> = snapshot.stages.iter().map(|stage| &*stage.stage).collect();
    /// assert_eq!(names, ["producer", "consumer"]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> PipelineSnapshot {
        self.observer.snapshot()
    }

    /// Somebody who sees what the stages are doing, and may be given away: to a page that shows it,
    /// or to a check of whether all is well.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use pipeline_core::{Pipeline, QueueOptions, SubscribeOptions, for_each, queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_queue, producer) = queue::<u64>(QueueOptions::new());
    /// let pipeline = Pipeline::builder("numbers")
    ///     .producer(producer)
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// let observer = pipeline.observer();
    /// tokio::spawn(async move {
    ///     loop {
    ///         let waiting: usize = observer.snapshot().stages.iter().map(|s| s.queued).sum();
    ///         println!("{waiting} in the queue");
    ///         tokio::time::sleep(Duration::from_secs(10)).await;
    ///     }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn observer(&self) -> PipelineObserver {
        self.observer.clone()
    }

    /// Waits until the pipeline has ended by itself: its source came to an end and everything was
    /// handled, or a stage failed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Called again after the end, it gives the same report.
    ///
    /// ```
    /// # use pipeline_core::{Pipeline, QueueOptions, SubscribeOptions, for_each, queue};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_queue, producer) = queue::<u64>(QueueOptions::new());
    /// # let told_to_stop = async {};
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(producer)
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// let report = tokio::select! {
    ///     report = pipeline.ended() => report,
    ///     () = told_to_stop => pipeline.drain(Duration::from_secs(10)).await,
    /// };
    /// assert!(report.failure().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ended(&mut self) -> PipelineReport {
        if let Some(report) = &self.report {
            return report.clone();
        }
        let ended = (&mut self.supervisor).await;
        let report = ended.unwrap_or_else(|error| self.lost(error));
        self.report = Some(report.clone());
        report
    }

    /// What there is to say when the task that sees to the stages is gone, because the runtime is
    /// shutting down. That is a failure, and the stages have shown what they held.
    fn lost(&self, error: JoinError) -> PipelineReport {
        let reason = reason_of(error);
        let mut report = PipelineReport::new(self.observer.shared_name());
        report.stages.extend(self.observer.stages().iter().map(Observed::left));
        report.fail_as_a_whole(reason);
        report
    }

    /// Ends the pipeline in good order: its source takes nothing more, what was accepted flows out,
    /// and the stages end one after the other.
    ///
    /// What is not done when the time is up is stopped where it is, and the report says how much
    /// that was. The call returns about a second later at the latest, even if a callback blocks its
    /// thread: the report then has what its stage has shown of itself, and the thread goes on until
    /// the callback returns. With [`Duration::MAX`] there is no limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the pipeline, which ends it at once.
    pub async fn drain(mut self, within: Duration) -> PipelineReport {
        // If nobody receives it, the pipeline has ended already.
        let _ = self.commands.send(Command::Drain { within }).await;
        self.ended().await
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// How a pipeline ended, and what it left undone.
///
/// What its queues discarded is not in it: [`Queue::discarded`](crate::Queue::discarded) counts that, and the
/// metric `pipeline.events_discarded`.
///
/// ```
/// use pipeline_core::{Pipeline, SubscribeOptions, for_each, from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let parse = for_each(async |text: &str| text.parse::<u64>().map(|n| println!("{n}")));
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(["1", "2", "three", "4"]))
///     .consumer(parse, SubscribeOptions::new().max_demand(1))
///     .start()?;
///
/// let report = pipeline.ended().await;
/// let failure = report.failure().ok_or("all went well")?;
/// assert_eq!(&*failure.stage, "consumer");
/// assert_eq!(failure.reason.to_string(), "failed: invalid digit found in string");
/// // The one that it failed at.
/// assert_eq!(report.left_undone(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipelineReport {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// Its stages, in the order in which they ended, each once. If the pipeline's own task failed,
    /// which a metrics recorder that panics may cause, there is one more entry with the pipeline's
    /// name.
    pub stages: Vec<StageReport>,
    /// Whether it came to its end by itself, before any deadline.
    pub in_time: bool,
}

impl PipelineReport {
    fn new(pipeline: Arc<str>) -> Self {
        Self { pipeline, stages: Vec::new(), in_time: true }
    }

    /// The pipeline itself has failed, and not a stage of it.
    fn fail_as_a_whole(&mut self, reason: ExitReason) {
        self.in_time = false;
        self.stages.push(StageReport::new(self.pipeline.clone(), reason));
    }

    /// Events that were accepted and not brought to an end.
    #[must_use]
    pub fn left_undone(&self) -> usize {
        self.stages.iter().map(StageReport::left_undone).sum()
    }

    /// The first stage that did not end gracefully, if any. A stage that failed, was started again
    /// and ended gracefully is none.
    #[must_use]
    pub fn failure(&self) -> Option<&StageReport> {
        self.stages.iter().find(|stage| !stage.reason.is_graceful())
    }

    /// Whether nothing was left undone and every stage ended gracefully. Events that were discarded
    /// or given up do not count against it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.left_undone() == 0 && self.failure().is_none()
    }

    /// The report itself if it [is clean](Self::is_clean), and an error with the same text if not:
    /// a program whose `main` returns it by `?` ends with a failure.
    ///
    /// # Errors
    ///
    /// [`NotClean`].
    ///
    /// ```
    /// use pipeline_core::{Pipeline, SubscribeOptions, for_each, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(from_iter(0..10))
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// println!("{}", pipeline.ended().await.into_result()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_result(self) -> Result<Self, NotClean> {
        if self.is_clean() { Ok(self) } else { Err(NotClean(self)) }
    }
}

/// A pipeline failed, or left something undone: the error of [`PipelineReport::into_result`].
///
/// ```
/// use pipeline_core::{ExitReason, Pipeline, SubscribeOptions, for_each, from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fail = for_each(async |_: u64| Err::<(), _>(ExitReason::failed("no route")));
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..1))
///     .consumer(fail, SubscribeOptions::new())
///     .start()?;
/// let error = pipeline.ended().await.into_result().unwrap_err();
/// assert!(error.to_string().contains("consumer ended (failed: no route)"));
/// assert_eq!(error.report().left_undone(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Error)]
#[error("{0}")]
pub struct NotClean(PipelineReport);

impl NotClean {
    /// How the pipeline ended.
    #[must_use]
    pub fn report(&self) -> &PipelineReport {
        &self.0
    }
}

/// The text of the report, because that is what a `main` prints that returns it.
impl fmt::Debug for NotClean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PipelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_time = if self.in_time { "" } else { " when its time was up" };
        match self.left_undone() {
            0 => write!(f, "pipeline {} ended{in_time}, nothing left undone", self.pipeline)?,
            1 => write!(f, "pipeline {} ended{in_time}, 1 event left undone", self.pipeline)?,
            n => write!(f, "pipeline {} ended{in_time}, {n} events left undone", self.pipeline)?,
        }
        for stage in &self.stages {
            write!(f, "; {stage}")?;
        }
        Ok(())
    }
}

/// The stages of a pipeline, and their tasks.
pub(crate) struct Stages {
    whole: Whole,
    /// Whether the end of one is the end of all.
    together: bool,
    stages: Vec<Running>,
    tasks: JoinSet<StageReport>,
    /// Which stage a task runs, and what it says of it.
    by_task: HashMap<Id, Told>,
    samples: Vec<(Observed, StageSamples)>,
    /// Whether a stage has failed for good.
    failed: Arc<AtomicBool>,
    /// How long the workers of the most patient supervisor have on top of that.
    workers_stop_within: Duration,
    /// By when the phase that the pipeline is in has to be over.
    deadline: Deadline,
    report: PipelineReport,
    /// What is logged in the pipeline's task, and in those of its stages.
    span: Span,
}

/// What the task of a stage tells beside its result.
struct Told {
    stage: usize,
    /// Why the stage fails, if its `terminate` takes its time.
    failing: Arc<OnceLock<ExitReason>>,
    /// The report, if the task was aborted.
    last_words: Arc<OnceLock<StageReport>>,
}

/// A stage, and what has become of it.
struct Running {
    planned: Box<dyn Planned>,
    /// What the incarnations before this one have left behind.
    earlier: Option<StageReport>,
    /// Whether it is known that it has failed for good.
    failed: bool,
    /// Whether it has ended for good.
    ended: bool,
}

impl Stages {
    pub(crate) fn new(whole: Whole, together: bool) -> Self {
        let span = info_span!("pipeline", pipeline = %whole.pipeline);
        let report = PipelineReport::new(whole.pipeline.clone());
        Self {
            whole,
            together,
            stages: Vec::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            samples: Vec::new(),
            failed: Arc::default(),
            workers_stop_within: Duration::ZERO,
            deadline: Deadline::NEVER,
            report,
            span,
        }
    }

    /// Adds a stage, and lets it run.
    pub(crate) fn add(&mut self, planned: Box<dyn Planned>, prepared: Prepared) {
        self.stages.push(Running { planned, earlier: None, failed: false, ended: false });
        self.spawn(self.stages.len() - 1, prepared);
    }

    /// Sees to the stages from now on, in a task of its own.
    pub(crate) fn run(mut self) -> Pipeline {
        let (commands, receiver) = mpsc::channel(1);
        let name = self.whole.pipeline.clone();
        let planned = || self.stages.iter().map(|stage| &stage.planned);
        let slots = planned().map(|stage| (stage.name().clone(), stage.slot())).collect();
        let observed: Vec<_> = planned().map(|stage| stage.observed()).collect();
        self.samples =
            observed.iter().map(|stage| (stage.clone(), self.samples_of(stage))).collect();
        let phase = self.whole.phase.subscribe();
        let observer = PipelineObserver::new(name, phase, self.failed.clone(), observed);
        let span = self.span.clone();
        let supervisor = tokio::spawn(self.supervise(receiver).instrument(span));
        Pipeline { observer, commands, supervisor, report: None, slots }
    }

    fn spawn(&mut self, stage: usize, prepared: Prepared) {
        let Prepared { task, handle, failing, last_words, workers_stop_within } = prepared;
        self.workers_stop_within = self.workers_stop_within.max(workers_stop_within);
        let planned = &self.stages[stage].planned;
        let (name, kind) = (planned.name(), planned.kind().name());
        let pipeline = &self.whole.pipeline;
        let span = info_span!(parent: &self.span, "stage", %pipeline, stage = %name, kind);
        let task = self.tasks.spawn(task.instrument(span));
        self.by_task.insert(task.id(), Told { stage, failing, last_words });
        // A new incarnation has a new handle.
        let _ = handle.set(task);
    }

    /// Sees all stages to their end. A panic on the way ends them at once, and is a failure: a
    /// metrics recorder may panic, for one.
    async fn supervise(mut self, mut commands: mpsc::Receiver<Command>) -> PipelineReport {
        let seen = AssertUnwindSafe(self.see_to_the_end(&mut commands)).catch_unwind().await;
        if let Err(panic) = seen {
            let reason = ExitReason::from_panic(&*panic);
            tracing::error!(pipeline = %self.whole.pipeline, reason = shown(&reason), "the pipeline's own task failed, ending its stages");
            self.failed.store(true, Relaxed);
            self.enter(Phase::Kill);
            self.abort().await;
            self.report.fail_as_a_whole(reason);
        }
        self.look_once_more();
        // Before the phase's end is seen, which is when `self` goes.
        self.failed.fetch_or(self.report.failure().is_some(), Relaxed);
        self.report.clone()
    }

    async fn see_to_the_end(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failing = self.whole.failing.clone();
        while !self.tasks.is_empty() {
            let deadline = self.deadline;
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = failing.notified() => self.look_for_failures(),
                Some(Command::Drain { within }) = commands.recv() => {
                    self.deadline = self.deadline.min(Deadline::from_now(within));
                    self.enter(Phase::Drain);
                    // Also those whose stage has no turn, because another blocks its thread.
                    self.stages.iter().for_each(|stage| stage.planned.observed().close_queue());
                }
                _ = look.tick() => self.look(),
                () = deadline.passed() => {
                    self.report.in_time = false;
                    if *self.whole.phase.borrow() == Phase::Kill {
                        return self.abort().await;
                    }
                    self.enter(Phase::Kill);
                    self.deadline = Deadline::from_now(LAST_CALL);
                }
            }
        }
    }

    /// Aborts the stages that are left. Of one that does not even notice, the report has what the
    /// stage has shown of itself; its task ends when it can.
    async fn abort(&mut self) {
        self.tasks.abort_all();
        let deadline = Deadline::from_now(LAST_WORDS);
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = deadline.passed() => break,
            }
        }
        for (_, Told { stage, last_words, .. }) in mem::take(&mut self.by_task) {
            let running = &self.stages[stage];
            let known = || {
                let mut left = running.planned.observed().left();
                // The stage shows those of its earlier incarnations, too.
                let earlier = running.earlier.as_ref().map_or(0, |earlier| earlier.given_up);
                left.given_up = left.given_up.saturating_sub(earlier);
                left
            };
            let left = last_words.get().cloned().unwrap_or_else(known);
            self.stage_ended(stage, left);
        }
    }

    fn samples_of(&self, stage: &Observed) -> StageSamples {
        let labels = stage_labels(&self.whole.pipeline, stage.name());
        StageSamples::register(&self.whole.telemetry, &labels, &stage.snapshot())
    }

    /// Records what the stages show of themselves.
    fn look(&mut self) {
        for (stage, samples) in &mut self.samples {
            samples.record(&stage.snapshot());
        }
    }

    /// The same, when the end must not depend on whether the recorder panics.
    fn look_once_more(&mut self) {
        let _ = contained_now(|| {
            self.look();
            Ok(())
        });
    }

    /// Finds stages that have failed, and have their `terminate` still to run. The others need not wait
    /// for the `terminate` of one that is not started again.
    fn look_for_failures(&mut self) {
        let failing = |told: &Told| Some((told.stage, told.failing.get()?.clone()));
        let failing: Vec<_> = self.by_task.values().filter_map(failing).collect();
        for (stage, reason) in failing {
            let planned = &mut self.stages[stage].planned;
            if *self.whole.phase.borrow() < Phase::Stop && !planned.would_restart(Instant::now()) {
                self.failed_for_good(stage, &reason);
            }
        }
    }

    /// Tells of a failure after which the stage is not started again. The stages of a row end together,
    /// and those of a graph when one of them was to be started again and no longer is.
    fn failed_for_good(&mut self, stage: usize, reason: &ExitReason) {
        let running = &mut self.stages[stage];
        if mem::replace(&mut running.failed, true) {
            return;
        }
        let observed = running.planned.observed();
        // One that is killed with all others has not failed by itself.
        if *self.whole.phase.borrow() < Phase::Kill {
            observed.failed();
            tracing::error!(pipeline = %self.whole.pipeline, stage = %observed.name(), reason = shown(reason), "a stage failed for good");
        }
        observed.failed_for_good(reason);
        self.failed.store(true, Relaxed);
        let restarts = running.planned.restarts();
        self.look_once_more();
        if self.together || restarts {
            self.enter(Phase::Stop);
        }
    }

    fn task_ended(&mut self, ended: Result<(Id, StageReport), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(Told { stage, last_words, .. }) = self.by_task.remove(&id) else { return };
        let ended = match ended {
            Ok((_, ended)) => ended,
            Err(error) => self.report_of(stage, &last_words, error),
        };
        self.stage_ended(stage, ended);
    }

    /// Starts a stage again that has failed, or decides what its end means for the others.
    fn stage_ended(&mut self, stage: usize, ended: StageReport) {
        let phase = *self.whole.phase.borrow();
        let running = &mut self.stages[stage];
        let ended = ended.after(running.earlier.take());
        tracing::debug!(pipeline = %self.whole.pipeline, stage = %ended.stage, reason = shown(&ended.reason), "stage ended");
        let failed = !ended.reason.is_graceful();
        self.report.in_time &= ended.in_time;
        if failed && phase < Phase::Stop && running.planned.may_restart(Instant::now()) {
            running.planned.vacate(true);
            tracing::error!(pipeline = %self.whole.pipeline, stage = %ended.stage, reason = shown(&ended.reason), "a stage failed, starting it again");
            match running.planned.prepare(&self.whole) {
                Ok(prepared) => {
                    running.planned.observed().failed();
                    running.earlier = Some(ended);
                    return self.spawn(stage, prepared);
                }
                Err(error) => {
                    tracing::error!(pipeline = %self.whole.pipeline, error = shown(&error), "a stage did not start again");
                }
            }
        }
        running.planned.vacate(false);
        running.ended = true;
        let expected = running.planned.kind().emits() && matches!(ended.reason, ExitReason::Normal);
        if failed {
            self.failed_for_good(stage, &ended.reason);
        }
        self.report.stages.push(ended);
        if self.together && !expected {
            self.enter(Phase::Stop);
        } else if self.together && self.sources_have_ended() {
            // Whatever still waits for a source, waits for nothing.
            self.enter(Phase::SourcesEnded);
        }
    }

    /// Whether no stage is left that events come from.
    fn sources_have_ended(&self) -> bool {
        let is_source = |stage: &&Running| stage.planned.kind() == StageKind::Producer;
        self.stages.iter().filter(is_source).all(|stage| stage.ended)
    }

    /// Goes on to a later phase; never back.
    fn enter(&mut self, next: Phase) {
        let is_later = self.whole.phase.send_if_modified(|phase| {
            let later = next > *phase;
            if later {
                *phase = next;
            }
            later
        });
        if is_later && next == Phase::Stop {
            let within = self.whole.stop_within.saturating_add(self.workers_stop_within);
            self.deadline = self.deadline.min(Deadline::from_now(within));
        }
    }

    /// What there is to say of a stage that could not report itself: it was aborted in a callback,
    /// or something that is not a callback panicked, such as a destructor.
    fn report_of(
        &self,
        stage: usize,
        last_words: &OnceLock<StageReport>,
        error: JoinError,
    ) -> StageReport {
        let known = || self.stages[stage].planned.observed().left();
        let left = last_words.get().cloned().unwrap_or_else(known);
        StageReport { reason: reason_of(error), ..left }
    }
}

/// Whoever asks for a stage of a pipeline that is gone finds nobody.
impl Drop for Stages {
    fn drop(&mut self) {
        self.stages.iter().for_each(|stage| stage.planned.vacate(false));
    }
}

/// Why a task ended that has not said so itself.
fn reason_of(error: JoinError) -> ExitReason {
    match error.try_into_panic() {
        Ok(payload) => ExitReason::from_panic(&*payload),
        Err(_) => ExitReason::Killed,
    }
}
