//! A running pipeline.

use std::{
    any::Any,
    collections::HashMap,
    mem,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{self, Instant, MissedTickBehavior},
};
use tracing::{Instrument, Span, info_span};

use crate::{
    deadline::Deadline,
    exit::ExitReason,
    operator::PipelineOperator,
    report::{PipelineReport, StageReport},
    shown::shown,
    snapshot::{PipelineObserver, PipelineSnapshot, StageKind},
    stage::{Observed, Phase, PipelineShared, Prepared, StageHandle, StageSpec},
    telemetry::{StageSamples, stage_labels},
};

/// How long stages have to report after the deadline. A stage that is still in a callback by then
/// is aborted.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long aborted stages have to report their unprocessed events. A stage that blocks its thread
/// does not notice the abort.
const ABORT_TIMEOUT: Duration = Duration::from_millis(250);

/// The interval at which the stages' gauges are recorded.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// A running pipeline. It owns the tasks of its stages.
///
/// Dropping it ends all stages at once, and the events they hold are lost. The stages' `terminate`
/// callbacks do not run then, so a sink that closes a resource in `terminate` does not close it. To
/// end the pipeline gracefully, use [`drain`](Self::drain).
///
/// If a stage fails for good, the others are stopped too, while its `terminate` runs, and
/// [`join`](Self::join) completes with the reason. The stages of a [`Graph`](crate::Graph) are
/// stopped only when a [`restarting`](crate::stage::Stage::restarting) stage has failed too often;
/// any failure for good shows at once in the [`snapshot`](Self::snapshot), and completes
/// [`PipelineObserver::failed`].
///
/// ```
/// # use pipeline_core::{
/// #     Pipeline,
/// #     source::{QueueOptions, queue},
/// #     subscription::SubscribeOptions,
/// #     supervisor::ConsumerSupervisor,
/// # };
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
/// if report.unprocessed() > 0 {
///     eprintln!("{report}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a pipeline ends when it is dropped"]
pub struct Pipeline {
    observer: PipelineObserver,
    /// The deadline of the drain, once it has begun.
    drain: watch::Sender<Option<Deadline>>,
    supervisor: JoinHandle<PipelineReport>,
    report: Option<PipelineReport>,
    slots: HashMap<Arc<str>, Arc<dyn Any + Send + Sync>>,
    operator: PipelineOperator,
}

impl Pipeline {
    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.observer.name()
    }

    /// The handle of the stage with this name, if it exists and has this type.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline,
    ///     source::{QueueOptions, QueueProducer, queue},
    ///     stage::{ConsumerHandle, ProducerHandle},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
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

    /// The current state of the stages, without stopping them.
    #[must_use]
    pub fn snapshot(&self) -> PipelineSnapshot {
        self.observer.snapshot()
    }

    /// A cloneable read-only observer, for dashboards and health checks.
    #[must_use]
    pub fn observer(&self) -> PipelineObserver {
        self.observer.clone()
    }

    /// Kills single stages by their names: see [`PipelineOperator`].
    #[must_use]
    pub fn operator(&self) -> PipelineOperator {
        self.operator.clone()
    }

    /// Waits until the pipeline has ended by itself: its source came to an end and all events were
    /// handled, or a stage failed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Called again after the end, it returns the same report.
    ///
    /// ```
    /// # use pipeline_core::{
    /// #     Pipeline,
    /// #     source::{QueueOptions, queue},
    /// #     step::for_each,
    /// #     subscription::SubscribeOptions,
    /// # };
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_queue, producer) = queue::<u64>(QueueOptions::new());
    /// # let stop_requested = async {};
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(producer)
    ///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    ///     .start()?;
    /// let report = tokio::select! {
    ///     report = pipeline.join() => report,
    ///     () = stop_requested => pipeline.drain(Duration::from_secs(10)).await,
    /// };
    /// assert!(report.failure().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn join(&mut self) -> PipelineReport {
        if let Some(report) = &self.report {
            return report.clone();
        }
        let ended = (&mut self.supervisor).await;
        let report = ended.unwrap_or_else(|error| self.report_of_lost_task(error));
        self.report = Some(report.clone());
        report
    }

    /// The report if the pipeline task is gone because the runtime is shutting down. That is a
    /// failure; the gauges of the stages show their unprocessed events.
    fn report_of_lost_task(&self, error: JoinError) -> PipelineReport {
        let reason = reason_of(error);
        let mut report = PipelineReport::new(self.observer.shared_name());
        report.stages.extend(self.observer.stages().iter().map(Observed::report));
        report.fail_as_a_whole(reason);
        report
    }

    /// Ends the pipeline gracefully: its source takes no new items, accepted events are processed,
    /// and the stages end one after the other.
    ///
    /// Work that is not done at the deadline is stopped, and the report counts it. The call returns
    /// at most about a second after the deadline, even if a callback blocks its thread: the report
    /// then has the last gauges of its stage, and the thread continues until the callback returns.
    /// With [`Duration::MAX`] there is no limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the pipeline, which ends it at once.
    pub async fn drain(mut self, within: Duration) -> PipelineReport {
        self.begin_drain(within);
        self.join().await
    }

    /// Begins to end the pipeline as [`drain`](Self::drain) does, and does not wait for the end:
    /// [`join`](Self::join) does.
    ///
    /// Called again, it can only shorten the time. So a drain can be cut short, and its report still
    /// counts the events that were left:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pipeline_core::{Pipeline, report::PipelineReport};
    /// async fn stop(mut pipeline: Pipeline, hurry: impl Future<Output = ()>) -> PipelineReport {
    ///     pipeline.begin_drain(Duration::from_secs(60));
    ///     tokio::select! {
    ///         report = pipeline.join() => return report,
    ///         () = hurry => pipeline.begin_drain(Duration::ZERO),
    ///     }
    ///     pipeline.join().await
    /// }
    /// ```
    pub fn begin_drain(&self, within: Duration) {
        let deadline = Deadline::from_now(within);
        self.drain.send_modify(|drain| {
            *drain = Some(drain.map_or(deadline, |earlier| earlier.min(deadline)));
        });
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// What the end of one stage means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Nothing but what their subscriptions say.
    Apart,
    /// All stop, unless it is a source that has finished.
    Together,
    /// When all sources have ended, the others end once they have handled everything. A
    /// failure for good stops all.
    AfterSources,
}

/// The stages of a pipeline, and their tasks.
pub(crate) struct Stages {
    shared: PipelineShared,
    ends: Ends,
    stages: Vec<RunningStage>,
    tasks: JoinSet<StageReport>,
    /// The stage of each task, and the task's channels.
    by_task: HashMap<Id, TaskChannels>,
    samples: Vec<(Observed, StageSamples)>,
    /// Whether a stage has failed for good.
    failed: watch::Sender<bool>,
    /// The longest time that a supervisor gives its workers, which is added to the stop deadline.
    workers_stop_within: Duration,
    /// The deadline of the pipeline's current phase.
    deadline: Deadline,
    report: PipelineReport,
    /// The span of the pipeline's task and of its stages' tasks.
    span: Span,
}

/// The data that a stage's task reports besides its result.
struct TaskChannels {
    stage: usize,
    /// Why the stage fails, while its `terminate` still runs.
    failing: Arc<OnceLock<ExitReason>>,
    /// The report, if the task was aborted.
    final_report: Arc<OnceLock<StageReport>>,
}

/// A stage and its state.
struct RunningStage {
    spec: Box<dyn StageSpec>,
    /// The report of the earlier incarnations.
    earlier: Option<StageReport>,
    /// Whether its final failure has been recorded.
    failed: bool,
    /// Whether it has ended for good.
    ended: bool,
}

impl Stages {
    pub(crate) fn new(shared: PipelineShared, ends: Ends) -> Self {
        let span = info_span!("pipeline", pipeline = %shared.pipeline);
        let report = PipelineReport::new(shared.pipeline.clone());
        Self {
            shared,
            ends,
            stages: Vec::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            samples: Vec::new(),
            failed: watch::Sender::new(false),
            workers_stop_within: Duration::ZERO,
            deadline: Deadline::NEVER,
            report,
            span,
        }
    }

    /// Adds a stage and starts it.
    pub(crate) fn add(&mut self, spec: Box<dyn StageSpec>, prepared: Prepared) {
        self.stages.push(RunningStage { spec, earlier: None, failed: false, ended: false });
        self.spawn(self.stages.len() - 1, prepared);
    }

    /// Supervises the stages from now on, in a task of its own.
    pub(crate) fn run(mut self) -> Pipeline {
        let (drain, draining) = watch::channel(None);
        let name = self.shared.pipeline.clone();
        let specs = || self.stages.iter().map(|stage| &stage.spec);
        let slots = specs().map(|stage| (stage.name().clone(), stage.slot())).collect();
        let killable = specs().map(|stage| (stage.name().clone(), stage.killable())).collect();
        let operator = PipelineOperator::new(name.clone(), killable);
        let observed: Vec<_> = specs().map(|stage| stage.observed()).collect();
        self.samples =
            observed.iter().map(|stage| (stage.clone(), self.samples_of(stage))).collect();
        let phase = self.shared.phase.subscribe();
        let observer = PipelineObserver::new(name, phase, self.failed.subscribe(), observed);
        let span = self.span.clone();
        let supervisor = tokio::spawn(self.supervise(draining).instrument(span));
        Pipeline { observer, drain, supervisor, report: None, slots, operator }
    }

    fn spawn(&mut self, stage: usize, prepared: Prepared) {
        let Prepared { task, handle, failing, final_report, workers_stop_within } = prepared;
        self.workers_stop_within = self.workers_stop_within.max(workers_stop_within);
        let spec = &self.stages[stage].spec;
        let (name, kind) = (spec.name(), spec.kind().name());
        let pipeline = &self.shared.pipeline;
        let span = info_span!(parent: &self.span, "stage", %pipeline, stage = %name, kind);
        let task = self.tasks.spawn(task.instrument(span));
        self.by_task.insert(task.id(), TaskChannels { stage, failing, final_report });
        // A new incarnation has a new handle.
        let _ = handle.set(task);
    }

    /// Supervises all stages until they have ended. A panic on the way, for example in the log's
    /// subscriber, kills them and is a failure.
    async fn supervise(mut self, mut drain: watch::Receiver<Option<Deadline>>) -> PipelineReport {
        let seen = AssertUnwindSafe(self.run_stages(&mut drain)).catch_unwind().await;
        if let Err(panic) = seen {
            let reason = ExitReason::from_panic(&*panic);
            tracing::error!(pipeline = %self.shared.pipeline, reason = shown(&reason), "the pipeline task panicked, killing its stages");
            self.failed.send_replace(true);
            self.enter(Phase::Kill);
            self.abort().await;
            self.report.fail_as_a_whole(reason);
        }
        self.settle(&mut drain).await;
        self.record_gauges();
        // Set before the phase channel closes, which happens when `self` is dropped.
        if self.report.failure().is_some() {
            self.failed.send_replace(true);
        }
        self.report.clone()
    }

    /// Waits until the sources have stored what was acknowledged to them: after a graceful end without a
    /// limit, else until the deadline, and at least as long as stages have to report.
    async fn settle(&mut self, drain: &mut watch::Receiver<Option<Deadline>>) {
        let settling = mem::take(&mut *self.shared.settling.lock());
        if settling.is_empty() {
            return;
        }
        let sources = settling.len();
        let settled = settling.into_iter().map(|settled| AssertUnwindSafe(settled).catch_unwind());
        let settled = join_all(settled);
        let overdue = async {
            // After a failure, this is the time that the stages had to stop.
            let mut deadline = self.deadline;
            let least = Deadline::from_now(KILL_TIMEOUT);
            loop {
                tokio::select! {
                    () = deadline.max(least).passed() => return,
                    Ok(()) = drain.changed() => {
                        let within = drain.borrow_and_update().unwrap_or(Deadline::NEVER);
                        deadline = deadline.min(within);
                    }
                }
            }
        };
        tokio::select! {
            settled = settled => for panic in settled.into_iter().filter_map(Result::err) {
                let reason = ExitReason::from_panic(&*panic);
                tracing::error!(pipeline = %self.shared.pipeline, reason = shown(&reason), "a source panicked while it stored acknowledgements");
                self.report.fail_as_a_whole(reason);
            },
            () = overdue => {
                self.report.completed = false;
                tracing::warn!(pipeline = %self.shared.pipeline, sources, "the sources did not store all acknowledgements in time, their events may be delivered again");
            }
        }
    }

    async fn run_stages(&mut self, drain: &mut watch::Receiver<Option<Deadline>>) {
        let mut sample = time::interval(SAMPLE_INTERVAL);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failing = self.shared.failing.clone();
        while !self.tasks.is_empty() {
            let deadline = self.deadline;
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = failing.notified() => self.check_for_failures(),
                Ok(()) = drain.changed() => {
                    let Some(within) = *drain.borrow_and_update() else { continue };
                    self.deadline = self.deadline.min(within);
                    self.enter(Phase::Drain);
                    // This includes stages that are not polled because another one blocks their
                    // thread.
                    self.stages.iter().for_each(|stage| stage.spec.observed().close_queue());
                }
                _ = sample.tick() => self.record_gauges(),
                () = deadline.passed() => {
                    self.report.completed = false;
                    if *self.shared.phase.borrow() == Phase::Kill {
                        return self.abort().await;
                    }
                    self.enter(Phase::Kill);
                    self.deadline = Deadline::from_now(KILL_TIMEOUT);
                }
            }
        }
    }

    /// Aborts the remaining stages. For a stage that does not notice, the report has its last
    /// gauges; its task ends when it can.
    async fn abort(&mut self) {
        self.tasks.abort_all();
        let deadline = Deadline::from_now(ABORT_TIMEOUT);
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = deadline.passed() => break,
            }
        }
        for (_, TaskChannels { stage, final_report, .. }) in mem::take(&mut self.by_task) {
            let left = final_report.get().cloned().unwrap_or_else(|| self.last_report(stage));
            self.stage_ended(stage, left);
        }
    }

    fn samples_of(&self, stage: &Observed) -> StageSamples {
        let labels = stage_labels(&self.shared.pipeline, stage.name());
        StageSamples::register(&self.shared.telemetry, &labels, &stage.snapshot())
    }

    /// Records the gauges of the stages.
    fn record_gauges(&mut self) {
        for (stage, samples) in &mut self.samples {
            samples.record(&stage.snapshot());
        }
    }

    /// Finds stages that have failed and still run their `terminate`. If such a stage is not
    /// restarted, the others do not wait for its `terminate`.
    fn check_for_failures(&mut self) {
        let failing =
            |channels: &TaskChannels| Some((channels.stage, channels.failing.get()?.clone()));
        let failing: Vec<_> = self.by_task.values().filter_map(failing).collect();
        for (stage, reason) in failing {
            let spec = &mut self.stages[stage].spec;
            if *self.shared.phase.borrow() < Phase::Stop && !spec.would_restart(Instant::now()) {
                self.failed_for_good(stage, &reason);
            }
        }
    }

    /// Records a failure after which the stage is not restarted. The stages of a linear pipeline
    /// end together, and those of a graph when a restarting stage has failed too often.
    fn failed_for_good(&mut self, stage: usize, reason: &ExitReason) {
        let running = &mut self.stages[stage];
        if mem::replace(&mut running.failed, true) {
            return;
        }
        let observed = running.spec.observed();
        // A stage that is killed together with all others has not failed itself.
        if *self.shared.phase.borrow() < Phase::Kill {
            observed.failed();
            tracing::error!(pipeline = %self.shared.pipeline, stage = %observed.name(), reason = shown(reason), "a stage failed, not restarting it");
        }
        observed.failed_for_good(reason);
        self.failed.send_replace(true);
        let restarts = running.spec.restarts();
        self.record_gauges();
        if self.ends != Ends::Apart || restarts {
            self.enter(Phase::Stop);
        }
    }

    fn task_ended(&mut self, ended: Result<(Id, StageReport), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(TaskChannels { stage, final_report, .. }) = self.by_task.remove(&id) else {
            return;
        };
        let ended = match ended {
            Ok((_, ended)) => ended,
            Err(error) => self.report_of(stage, &final_report, error),
        };
        self.stage_ended(stage, ended);
    }

    /// Restarts a failed stage, or decides what its end means for the others.
    fn stage_ended(&mut self, stage: usize, ended: StageReport) {
        let phase = *self.shared.phase.borrow();
        let running = &mut self.stages[stage];
        let ended = ended.after(running.earlier.take());
        tracing::debug!(pipeline = %self.shared.pipeline, stage = %ended.stage, reason = shown(&ended.reason), "stage ended");
        let failed = !ended.reason.is_graceful();
        self.report.completed &= ended.terminated;
        if failed && phase < Phase::Stop && running.spec.may_restart(Instant::now()) {
            running.spec.vacate(true);
            tracing::error!(pipeline = %self.shared.pipeline, stage = %ended.stage, reason = shown(&ended.reason), "a stage failed, restarting it");
            match running.spec.prepare(&self.shared, None) {
                Ok(prepared) => {
                    running.spec.observed().failed();
                    running.earlier = Some(ended);
                    return self.spawn(stage, prepared);
                }
                Err(error) => {
                    tracing::error!(pipeline = %self.shared.pipeline, error = shown(&error), "a stage failed to restart");
                }
            }
        }
        running.spec.vacate(false);
        running.ended = true;
        let expected = running.spec.kind().emits() && matches!(ended.reason, ExitReason::Normal);
        if failed {
            self.failed_for_good(stage, &ended.reason);
        }
        self.report.stages.push(ended);
        if self.ends == Ends::Together && !expected {
            self.enter(Phase::Stop);
        } else if self.ends != Ends::Apart && self.sources_have_ended() {
            // Stages that still wait for a source no longer need to.
            self.enter(Phase::SourcesEnded);
        }
    }

    /// Whether all producers have ended.
    fn sources_have_ended(&self) -> bool {
        let is_source = |stage: &&RunningStage| stage.spec.kind() == StageKind::Producer;
        self.stages.iter().filter(is_source).all(|stage| stage.ended)
    }

    /// Enters a later phase. Earlier phases are ignored.
    fn enter(&mut self, next: Phase) {
        let is_later = self.shared.phase.send_if_modified(|phase| {
            let later = next > *phase;
            if later {
                *phase = next;
            }
            later
        });
        if is_later && next == Phase::Stop {
            let within = self.shared.stop_within.saturating_add(self.workers_stop_within);
            self.deadline = self.deadline.min(Deadline::from_now(within));
        }
    }

    /// The report of a stage's last incarnation, as far as its gauges have it.
    fn last_report(&self, stage: usize) -> StageReport {
        let running = &self.stages[stage];
        let mut left = running.spec.observed().report();
        // The gauges include the stage's earlier incarnations.
        if let Some(earlier) = &running.earlier {
            left.given_up = left.given_up.saturating_sub(earlier.given_up);
            left.discarded = left.discarded.saturating_sub(earlier.discarded);
        }
        left
    }

    /// The report of a stage that could not report itself: it was aborted in a callback, or code
    /// that is not a callback panicked, such as a destructor.
    fn report_of(
        &self,
        stage: usize,
        final_report: &OnceLock<StageReport>,
        error: JoinError,
    ) -> StageReport {
        let left = final_report.get().cloned().unwrap_or_else(|| self.last_report(stage));
        StageReport { reason: reason_of(error), ..left }
    }
}

/// Handles of a dropped pipeline's stages report that the stage is not running.
impl Drop for Stages {
    fn drop(&mut self) {
        self.stages.iter().for_each(|stage| stage.spec.vacate(false));
    }
}

/// The reason of a task that ended without a report.
fn reason_of(error: JoinError) -> ExitReason {
    match error.try_into_panic() {
        Ok(payload) => ExitReason::from_panic(&*payload),
        Err(_) => ExitReason::Killed,
    }
}
