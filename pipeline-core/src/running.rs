//! A running pipeline, and what it leaves behind.

use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{self, Instant},
};

use crate::{
    exit::ExitReason,
    stage::{Phase, StageReport},
};

/// How long stages have to report after they were told that the time is up. A stage that is still
/// in a callback by then is aborted in it.
const LAST_CALL: Duration = Duration::from_secs(1);

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
    name: Arc<str>,
    commands: mpsc::Sender<Command>,
    supervisor: JoinHandle<PipelineReport>,
    report: Option<PipelineReport>,
}

#[derive(Debug)]
enum Command {
    Drain { within: Duration },
}

impl Pipeline {
    pub(crate) fn supervise(name: Arc<str>, stages: Stages) -> Self {
        let (commands, receiver) = mpsc::channel(1);
        let supervisor = tokio::spawn(stages.supervise(name.clone(), receiver));
        Self { name, commands, supervisor, report: None }
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the pipeline has ended by itself: its source came to an end and everything was
    /// handled, or a stage failed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Called again after the end, it gives the same report.
    pub async fn ended(&mut self) -> PipelineReport {
        if let Some(report) = &self.report {
            return report.clone();
        }
        let report = (&mut self.supervisor).await.unwrap_or_else(|_| PipelineReport {
            // The runtime is shutting down: nobody is left to say more.
            pipeline: self.name.clone(),
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

/// What the end of a stage means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// When it ends normally, its consumers learn of it and finish.
    Producer,
    /// When it ends, nobody takes the events any more.
    Consumer,
}

/// The tasks of the stages.
pub(crate) struct Stages {
    phase: watch::Sender<Phase>,
    tasks: JoinSet<StageReport>,
    known: HashMap<Id, (Arc<str>, Role)>,
}

impl Stages {
    pub(crate) fn new(phase: watch::Sender<Phase>) -> Self {
        Self { phase, tasks: JoinSet::new(), known: HashMap::new() }
    }

    pub(crate) fn spawn(
        &mut self,
        stage: Arc<str>,
        role: Role,
        task: Pin<Box<dyn Future<Output = StageReport> + Send>>,
    ) {
        let id = self.tasks.spawn(task).id();
        self.known.insert(id, (stage, role));
    }

    /// Sees all stages to their end.
    async fn supervise(
        mut self,
        pipeline: Arc<str>,
        mut commands: mpsc::Receiver<Command>,
    ) -> PipelineReport {
        let mut report = PipelineReport { pipeline, stages: Vec::new(), in_time: true };
        let mut deadline = None;
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, stage) = match ended {
                        Ok(ended) => ended,
                        Err(error) => (error.id(), self.report_of(error)),
                    };
                    self.follow_from(id, &stage);
                    tracing::debug!(pipeline = %report.pipeline, stage = %stage.stage, reason = %stage.reason, "stage ended");
                    report.stages.push(stage);
                }
                Some(Command::Drain { within }) = commands.recv() => {
                    deadline = Some(Instant::now() + within);
                    self.enter(Phase::Drain);
                }
                () = until(deadline) => {
                    report.in_time = false;
                    if *self.phase.borrow() == Phase::Kill {
                        self.tasks.abort_all();
                        deadline = None;
                    } else {
                        self.enter(Phase::Kill);
                        deadline = Some(Instant::now() + LAST_CALL);
                    }
                }
            }
        }
        report
    }

    /// Decides what the end of one stage means for the others.
    fn follow_from(&self, id: Id, report: &StageReport) {
        let role = self.known.get(&id).map(|(_, role)| *role);
        let expected = role == Some(Role::Producer) && matches!(report.reason, ExitReason::Normal);
        if !expected {
            self.enter(Phase::Stop);
        }
    }

    /// Goes on to a later phase; never back.
    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = next > *phase;
            if later {
                *phase = next;
            }
            later
        });
    }

    /// What there is to say of a stage that could not report itself: it was aborted in a callback,
    /// or something that is not a callback panicked, such as a destructor.
    fn report_of(&self, error: JoinError) -> StageReport {
        let known = self.known.get(&error.id());
        let name = known.map_or_else(|| "stage".into(), |(name, _)| name.clone());
        let reason = match error.try_into_panic() {
            Ok(payload) => ExitReason::from_panic(&*payload),
            Err(_) => ExitReason::Killed,
        };
        StageReport::new(name, reason)
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
