//! A running pipeline, and what it leaves behind.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{self, Instant, MissedTickBehavior},
};

use tracing::{Instrument, Span, info_span};

use crate::{
    exit::ExitReason,
    observer::PipelineObserver,
    snapshot::PipelineSnapshot,
    stage::{Observed, Phase, Planned, Prepared, StageHandle, StageReport, Whole},
    telemetry::{StageSamples, stage_labels},
};

/// How long stages have to report after they were told that the time is up. A stage that is still
/// in a callback by then is aborted in it.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How often what the stages show of themselves is recorded.
const LOOK: Duration = Duration::from_secs(1);

/// A running pipeline: it owns the tasks of its stages.
///
/// Dropping it ends them all at once, and what they held is lost. To end it in good order, use
/// [`drain`](Self::drain).
///
/// If a stage fails, the others are stopped too: [`ended`](Self::ended) completes and says why.
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
        let report = (&mut self.supervisor).await.unwrap_or_else(|_| PipelineReport {
            // The runtime is shutting down: nobody is left to say more.
            pipeline: self.observer.shared_name(),
            stages: Vec::new(),
            in_time: false,
        });
        self.report = Some(report.clone());
        report
    }

    /// Ends the pipeline in good order: its source takes nothing more, what was accepted flows out,
    /// and the stages end one after the other.
    ///
    /// What is not done when the time is up is stopped where it is, and the report says how much
    /// that was. The call returns about a second later at the latest.
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
    /// Its stages, in the order in which they ended.
    pub stages: Vec<StageReport>,
    /// Whether it came to its end by itself, before any deadline.
    pub in_time: bool,
}

impl PipelineReport {
    /// Events that were accepted and not brought to an end.
    #[must_use]
    pub fn left_undone(&self) -> usize {
        self.stages.iter().map(StageReport::left_undone).sum()
    }

    /// The first stage that did not end gracefully, if any.
    #[must_use]
    pub fn failure(&self) -> Option<&StageReport> {
        self.stages.iter().find(|stage| !stage.reason.is_graceful())
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
    stages: Vec<Box<dyn Planned>>,
    tasks: JoinSet<StageReport>,
    /// Which stage a task runs, and where its report is found if it is aborted.
    by_task: HashMap<Id, (usize, Arc<OnceLock<StageReport>>)>,
    samples: Vec<(Observed, StageSamples)>,
    /// Whether a stage has failed, for those who look after the end.
    failed: Arc<AtomicBool>,
    /// What is logged in the pipeline's task, and in those of its stages.
    span: Span,
}

impl Stages {
    pub(crate) fn new(whole: Whole, together: bool) -> Self {
        let span = info_span!("pipeline", pipeline = %whole.pipeline);
        Self {
            whole,
            together,
            stages: Vec::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            samples: Vec::new(),
            failed: Arc::default(),
            span,
        }
    }

    /// Adds a stage, and lets it run.
    pub(crate) fn add(&mut self, planned: Box<dyn Planned>, prepared: Prepared) {
        self.stages.push(planned);
        self.spawn(self.stages.len() - 1, prepared);
    }

    /// Sees to the stages from now on, in a task of its own.
    pub(crate) fn run(mut self) -> Pipeline {
        let (commands, receiver) = mpsc::channel(1);
        let name = self.whole.pipeline.clone();
        let slots = self.stages.iter().map(|stage| (stage.name().clone(), stage.slot())).collect();
        let observed: Vec<_> = self.stages.iter().map(|stage| stage.observed()).collect();
        self.samples =
            observed.iter().map(|stage| (stage.clone(), self.samples_of(stage))).collect();
        let phase = self.whole.phase.subscribe();
        let observer = PipelineObserver::new(name, phase, self.failed.clone(), observed);
        let span = self.span.clone();
        let supervisor = tokio::spawn(self.supervise(receiver).instrument(span));
        Pipeline { observer, commands, supervisor, report: None, slots }
    }

    fn spawn(&mut self, stage: usize, prepared: Prepared) {
        let Prepared { task, handle, last_words } = prepared;
        let (name, kind) = (self.stages[stage].name(), self.stages[stage].kind().name());
        let pipeline = &self.whole.pipeline;
        let span = info_span!(parent: &self.span, "stage", %pipeline, stage = %name, kind);
        let task = self.tasks.spawn(task.instrument(span));
        self.by_task.insert(task.id(), (stage, last_words));
        // A new incarnation has a new handle.
        let _ = handle.set(task);
    }

    /// Sees all stages to their end.
    async fn supervise(mut self, mut commands: mpsc::Receiver<Command>) -> PipelineReport {
        let pipeline = self.whole.pipeline.clone();
        let mut report = PipelineReport { pipeline, stages: Vec::new(), in_time: true };
        let mut deadline = None;
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => {
                    let id = match &ended {
                        Ok((id, _)) => *id,
                        Err(error) => error.id(),
                    };
                    let Some((stage, last_words)) = self.by_task.remove(&id) else { continue };
                    let ended = match ended {
                        Ok((_, ended)) => ended,
                        Err(error) => self.report_of(stage, &last_words, error),
                    };
                    self.follow_from(stage, &ended);
                    tracing::debug!(pipeline = %report.pipeline, stage = %ended.stage, reason = %ended.reason, "stage ended");
                    report.stages.push(ended);
                }
                Some(Command::Drain { within }) = commands.recv() => {
                    deadline = Some(Instant::now() + within);
                    self.enter(Phase::Drain);
                }
                _ = look.tick() => self.look(),
                () = until(deadline) => {
                    report.in_time = false;
                    if *self.whole.phase.borrow() == Phase::Kill {
                        self.tasks.abort_all();
                        deadline = None;
                    } else {
                        self.enter(Phase::Kill);
                        deadline = Some(Instant::now() + LAST_CALL);
                    }
                }
            }
        }
        self.look();
        // Before the phase's end is seen, which is when `self` goes.
        self.failed.store(report.failure().is_some(), Relaxed);
        report
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

    /// Starts a stage again that has failed, or decides what its end means for the others.
    fn follow_from(&mut self, stage: usize, report: &StageReport) {
        let planned = &mut self.stages[stage];
        let running = *self.whole.phase.borrow() == Phase::Run;
        let failed = !report.reason.is_graceful();
        if failed && running && planned.may_restart(Instant::now()) {
            planned.vacate(true);
            tracing::error!(pipeline = %self.whole.pipeline, stage = %report.stage, reason = %report.reason, "a stage failed, starting it again");
            match planned.prepare(&self.whole) {
                Ok(prepared) => self.spawn(stage, prepared),
                Err(error) => {
                    tracing::error!(pipeline = %self.whole.pipeline, %error, "a stage did not start again");
                    planned.vacate(false);
                    self.enter(Phase::Stop);
                }
            }
            return;
        }
        planned.vacate(false);
        let expected = planned.kind().emits() && matches!(report.reason, ExitReason::Normal);
        let gives_up = failed && planned.restarts();
        if (self.together && !expected) || gives_up {
            self.enter(Phase::Stop);
        }
    }

    /// Goes on to a later phase; never back.
    fn enter(&self, next: Phase) {
        self.whole.phase.send_if_modified(|phase| {
            let later = next > *phase;
            if later {
                *phase = next;
            }
            later
        });
    }

    /// What there is to say of a stage that could not report itself: it was aborted in a callback,
    /// or something that is not a callback panicked, such as a destructor.
    fn report_of(
        &self,
        stage: usize,
        last_words: &OnceLock<StageReport>,
        error: JoinError,
    ) -> StageReport {
        let reason = match error.try_into_panic() {
            Ok(payload) => ExitReason::from_panic(&*payload),
            Err(_) => ExitReason::Killed,
        };
        let nothing = || StageReport::new(self.stages[stage].name().clone(), ExitReason::Killed);
        StageReport { reason, ..last_words.get().cloned().unwrap_or_else(nothing) }
    }
}

/// Whoever asks for a stage of a pipeline that is gone finds nobody.
impl Drop for Stages {
    fn drop(&mut self) {
        self.stages.iter().for_each(|stage| stage.vacate(false));
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
