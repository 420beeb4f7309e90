//! A stage of a pipeline that can be started and restarted.

use std::{
    any::Any,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{
    Phase, Stage, StageContext, StageHandle,
    behaviour::Behaviour,
    catch_panic_now,
    gauges::Gauges,
    options::StageOptions,
    restart::RestartBudget,
    runtime::{Downstreams, StageTask},
    slot::{Kill, Occupant, PlannedSubscription, Slot, Subscribing},
};
use crate::{
    builder::StartError,
    dispatcher::Refusal,
    exit::ExitReason,
    report::StageReport,
    shown::shown,
    snapshot::{StageKind, StageSnapshot},
    subscription::{Cancel, SubscribeOptions},
    telemetry::Telemetry,
};

/// The state that a stage shares with the others of its pipeline.
#[derive(Clone)]
pub(crate) struct PipelineShared {
    pub(crate) pipeline: Arc<str>,
    pub(crate) telemetry: Telemetry,
    pub(crate) phase: watch::Sender<Phase>,
    /// Notifies the pipeline that a stage is failing.
    pub(crate) failing: Arc<Notify>,
    /// How long stages have for their callbacks when they are to stop.
    pub(crate) stop_within: Duration,
    /// What the pipeline awaits when all stages have ended.
    pub(crate) settling: Settling,
}

/// Futures that complete when sources have stored what was acknowledged to them.
pub(crate) type Settling = Arc<Mutex<Vec<BoxFuture<'static, ()>>>>;

/// A subscription that a stage makes when it starts.
pub(crate) struct Planned {
    /// The subscribing stage.
    pub(crate) stage: Arc<str>,
    /// The stage that it subscribes to, of the same pipeline.
    pub(crate) producer: Arc<str>,
    pub(crate) options: SubscribeOptions,
}

/// A stage of a pipeline, of any type.
pub(crate) trait StageSpec: Send {
    fn name(&self) -> &Arc<str>;

    /// The kind of stage.
    fn kind(&self) -> StageKind;

    /// The subscriptions to stages of its own pipeline that it makes when it starts.
    fn planned(&self) -> Vec<Planned>;

    /// Runs the stage's `init`, and makes the task that runs the stage. At the start of the pipeline, its
    /// dispatcher checks the subscriptions that are `planned`, those to this stage among them.
    fn prepare(
        &mut self,
        shared: &PipelineShared,
        planned: Option<&[Planned]>,
    ) -> Result<Prepared, StartError>;

    /// Checks the options of its subscriptions.
    fn check_options(&self) -> Result<(), StartError>;

    /// Checks that its producers exist, now that all stages do.
    fn check_producers(&self) -> Result<(), StartError>;

    /// Whether it would be restarted if it failed now.
    fn would_restart(&mut self, now: Instant) -> bool;

    /// Whether it may be restarted. If so, the restart is counted.
    fn may_restart(&mut self, now: Instant) -> bool;

    /// Whether it is a restarting stage.
    fn restarts(&self) -> bool;

    /// Its slot, for callers that know its type.
    fn slot(&self) -> Arc<dyn Any + Send + Sync>;

    /// Its slot, for callers that do not know its type.
    fn killable(&self) -> Weak<dyn Kill>;

    /// Its observable state.
    fn observed(&self) -> Observed;

    /// Empties its slot, temporarily or for good.
    fn vacate(&self, restarting: bool);

    /// Records that it will never be started, if it has not been. No consumer waits for it then.
    fn abandon(&self);
}

/// The observable state of a stage, whether it runs or not.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    stage: Arc<str>,
    gauges: Arc<Gauges>,
}

impl Observed {
    pub(crate) fn name(&self) -> &str {
        &self.stage
    }

    /// Whether it has been ready for events since the pipeline was started.
    pub(crate) fn has_begun(&self) -> bool {
        self.gauges.has_begun()
    }

    pub(crate) fn snapshot(&self) -> StageSnapshot {
        self.gauges.snapshot(self.stage.clone())
    }

    /// The report of a stage that is ended now, from its gauges. Closes its queue, because items
    /// pushed later would be in no report.
    pub(crate) fn report(&self) -> StageReport {
        self.close_queue();
        let seen = self.snapshot();
        let mut report = StageReport::new(self.stage.clone(), ExitReason::Killed);
        report.pending = seen.queued + seen.waiting + seen.buffered;
        report.in_progress = seen.workers.unwrap_or_default() + self.gauges.in_callback();
        report.discarded = self.gauges.reported_discards();
        report.given_up = usize::try_from(seen.given_up).unwrap_or(usize::MAX);
        report
    }

    /// Closes the stage's queue, if it has one.
    pub(crate) fn close_queue(&self) {
        self.gauges.close_queue();
    }

    /// Counts a failure of an incarnation.
    pub(crate) fn failed(&self) {
        self.gauges.failures.add(1);
    }

    /// Records that the stage has failed and is not restarted.
    pub(crate) fn failed_for_good(&self, reason: &ExitReason) {
        self.gauges.failed_for_good(reason);
    }
}

/// A stage that is ready to be spawned.
pub(crate) struct Prepared {
    pub(crate) task: Pin<Box<dyn Future<Output = StageReport> + Send>>,
    /// Receives the handle of the spawned task.
    pub(crate) handle: Arc<OnceLock<AbortHandle>>,
    /// Why the stage fails, while its `terminate` still runs.
    pub(crate) failing: Arc<OnceLock<ExitReason>>,
    /// The report of a task that did not return one.
    pub(crate) final_report: Arc<OnceLock<StageReport>>,
    /// How long its workers have to stop.
    pub(crate) workers_stop_within: Duration,
}

/// A stage of a pipeline.
pub(crate) struct TypedStageSpec<B: Behaviour> {
    slot: Arc<Slot<B::Stage, B::In, B::Out>>,
    make: Box<dyn FnMut() -> Option<B> + Send>,
    budget: RestartBudget,
    options: StageOptions<B::Out>,
}

impl<B: Behaviour> TypedStageSpec<B> {
    /// Plans a stage in this slot.
    pub(crate) fn new(stage: Stage<B, B::Out>, slot: Arc<Slot<B::Stage, B::In, B::Out>>) -> Self {
        let Stage { make, budget, options, .. } = stage;
        Self { slot, make, budget, options }
    }
}

impl<B: Behaviour> StageSpec for TypedStageSpec<B> {
    fn name(&self) -> &Arc<str> {
        &self.slot.name
    }

    fn kind(&self) -> StageKind {
        B::KIND
    }

    fn planned(&self) -> Vec<Planned> {
        let subscriptions = self.slot.subscriptions.lock();
        let own = subscriptions.iter().filter(|it| it.target.pipeline() == self.slot.pipeline);
        own.map(|planned| Planned {
            stage: self.slot.name.clone(),
            producer: planned.target.name().clone(),
            options: planned.options.clone(),
        })
        .collect()
    }

    fn prepare(
        &mut self,
        shared: &PipelineShared,
        planned: Option<&[Planned]>,
    ) -> Result<Prepared, StartError> {
        let name = self.slot.name.clone();
        let is_here = |planned: &&Planned| planned.producer == name;
        let planned: Option<Vec<_>> = planned.map(|all| all.iter().filter(is_here).collect());
        let context = StageContext {
            pipeline: shared.pipeline.clone(),
            stage: self.slot.name.clone(),
            telemetry: shared.telemetry.clone(),
            handle: StageHandle { slot: self.slot.clone() },
            gauges: self.slot.gauges.clone(),
            phase: shared.phase.subscribe(),
        };
        // Before `init`, so that the stage can send messages to itself.
        let address = self.slot.occupy();
        let made = catch_panic_now(|| {
            let mut behaviour =
                (self.make)().expect("a stage without a constructor has no restarts");
            behaviour.init(&context)?;
            let mut settling = shared.settling.lock();
            // Those of earlier incarnations are removed when they have completed.
            settling.retain_mut(|settled| settled.now_or_never().is_none());
            settling.extend(behaviour.settled());
            drop(settling);
            // This calls the program's constructor of a dispatcher, and that dispatcher.
            let outlet = self.options.outlet(B::KIND);
            let checked = planned.as_ref().map(|all| {
                let options: Vec<_> = all.iter().map(|planned| &planned.options).collect();
                outlet.check(&options)
            });
            Ok((behaviour, outlet, checked))
        });
        let (behaviour, outlet, checked) = made.map_err(|reason| {
            self.vacate(false);
            StartError::Init { stage: self.slot.name.clone(), reason }
        })?;
        match checked.transpose() {
            Ok(warnings) => {
                for warning in warnings.into_iter().flatten() {
                    tracing::warn!(pipeline = %shared.pipeline, stage = %self.slot.name, warning = shown(&warning), "dispatcher warning");
                }
            }
            Err(Refusal { place, source }) => {
                self.vacate(false);
                // A dispatcher of the program may name a place that there is not.
                let consumer = planned.and_then(|all| all.get(place).map(|it| it.stage.clone()));
                let stage = consumer.unwrap_or_else(|| self.slot.name.clone());
                return Err(StartError::Subscribe { stage, source });
            }
        }
        let workers_stop_within = behaviour.workers_stop_within();
        let mut phase = shared.phase.subscribe();
        if *phase.borrow() != Phase::Run {
            // An incarnation that starts while the pipeline drains has to drain, too.
            phase.mark_changed();
        }
        self.slot.gauges.started();
        let downstreams = Downstreams::new(outlet, self.options.rate_limit.as_ref());
        let task = StageTask::new(behaviour, downstreams, &self.slot, address, phase, &context);
        let subscribing = |planned: &PlannedSubscription<B::In>| {
            let (target, options) = (planned.target.clone(), planned.options.clone());
            Subscribing { target, options, origin: planned.origin, replaces: None, answer: None }
        };
        let subscriptions = self.slot.subscriptions.lock().iter().map(subscribing).collect();
        let (handle, final_report) = (task.task(), task.final_report());
        let failing = Arc::<OnceLock<_>>::default();
        let (reason, pipeline) = (failing.clone(), shared.failing.clone());
        let fails = move |why: &ExitReason| {
            let _ = reason.set(why.clone());
            pipeline.notify_one();
        };
        let stop_within = shared.stop_within.saturating_add(workers_stop_within);
        let task = Box::pin(task.run(subscriptions, fails, stop_within));
        Ok(Prepared { handle, final_report, task, failing, workers_stop_within })
    }

    fn check_options(&self) -> Result<(), StartError> {
        for planned in &*self.slot.subscriptions.lock() {
            let stage = self.slot.name.clone();
            planned.options.check().map_err(|source| StartError::Subscribe { stage, source })?;
        }
        Ok(())
    }

    fn check_producers(&self) -> Result<(), StartError> {
        for planned in &*self.slot.subscriptions.lock() {
            let missing =
                matches!(planned.target.occupant(), Occupant::Vacant | Occupant::Ended(_));
            if missing && matches!(planned.options.mode(), Cancel::Permanent | Cancel::Transient) {
                let (stage, producer) = (self.slot.name.clone(), planned.target.name().clone());
                return Err(StartError::NotRunning { stage, producer });
            }
        }
        Ok(())
    }

    fn would_restart(&mut self, now: Instant) -> bool {
        self.budget.allows(now)
    }

    fn may_restart(&mut self, now: Instant) -> bool {
        self.budget.spend(now)
    }

    fn restarts(&self) -> bool {
        self.budget.restarts() > 0
    }

    fn slot(&self) -> Arc<dyn Any + Send + Sync> {
        self.slot.clone()
    }

    fn killable(&self) -> Weak<dyn Kill> {
        let slot: Weak<Slot<B::Stage, B::In, B::Out>> = Arc::downgrade(&self.slot);
        slot
    }

    fn observed(&self) -> Observed {
        Observed { stage: self.slot.name.clone(), gauges: self.slot.gauges.clone() }
    }

    fn vacate(&self, restarting: bool) {
        self.slot.gauges.vacated(restarting);
        self.slot.vacate(restarting);
    }

    fn abandon(&self) {
        self.slot.abandon();
    }
}
