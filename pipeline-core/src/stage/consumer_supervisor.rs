//! The stage that starts one supervised child per event.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::watch,
    task::{self, AbortHandle, Id, JoinError, JoinSet},
    time::{self, Instant},
};

use super::{
    CallError, Caller, ChildContext, Emitter, HandleCall, Phase, StageContext, StageHandle,
    StageReport, Start, Worker,
    behaviour::{Behaviour, HandleOf, Kind},
    contained, contained_now,
    restart::{Restart, RestartBudget},
};
use crate::{
    demand::Slots,
    exit::ExitReason,
    subscription::{Asking, Cancellation, SubscribeOptions, Subscription, SubscriptionId},
    telemetry::{Telemetry, WorkerMetrics},
};

/// A stage that runs a [`Worker`] for each event, each in a task of its own.
///
/// `max_demand` of its subscription is the number of children alive at once, exactly: an event
/// takes a slot when it arrives, and the slot is free again when the child is done with the event.
/// When no more than `min_demand` children are running, more events are asked for. To keep all
/// slots busy, set `min_demand` to `max_demand - 1`. With several subscriptions, each has slots of
/// its own; [`max_children`](Self::max_children) bounds them all together.
///
/// A child that fails is restarted, by default. More than [`max_restarts`](Self::max_restarts)
/// within the given time end the supervisor with [`ExitReason::Shutdown`], because something is
/// wrong that restarting doesn't mend.
///
/// When its producer ends with [`ExitReason::Normal`], the supervisor lets its children finish and
/// ends too. When it has to stop, its children are told so
/// ([`ChildContext::stopping`]) and are dropped once [`shutdown`](Self::shutdown) is over.
///
/// The semantics are those of GenStage's `ConsumerSupervisor`, except for the gentle end, and that
/// it asks at `min_demand` like any other consumer.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{ConsumerSupervisor, ExitReason};
///
/// let resize = async |image: &Vec<u8>| {
///     if image.is_empty() {
///         return Err(ExitReason::failed("an empty image"));
///     }
///     Ok(())
/// };
/// let supervisor = ConsumerSupervisor::new(resize)
///     .max_restarts(10, Duration::from_secs(60))
///     .shutdown(Duration::from_secs(30));
/// ```
#[must_use]
pub struct ConsumerSupervisor<E, W> {
    worker: Arc<W>,
    restart: Restart,
    budget: RestartBudget,
    shutdown: Duration,
    max_children: usize,
    /// The children's tasks. A task owns its event, and hands it back with the outcome.
    tasks: JoinSet<Done<E>>,
    /// Tasks that have ended and were not looked at yet.
    ended: VecDeque<Ended<E>>,
    children: HashMap<ChildId, Child>,
    /// Which child a task is, for those that end without saying so themselves.
    by_task: HashMap<Id, ChildId>,
    next_child: u64,
    /// How many of the children were started by hand.
    by_hand: usize,
    slots: HashMap<SubscriptionId, (Subscription, Slots)>,
    /// Children that could not be started again yet; they are tried again at once.
    restarting: VecDeque<(ChildId, E, u32)>,
    /// Events that wait for a place among `max_children`.
    waiting: VecDeque<(E, Subscription)>,
    stopping: watch::Sender<bool>,
    metrics: Arc<WorkerMetrics>,
    stage: Arc<str>,
    unfinished: usize,
}

/// The handle of a [`ConsumerSupervisor`].
pub type SupervisorHandle<E, W> = StageHandle<ConsumerSupervisor<E, W>, E, Infallible>;

/// Names a child of a supervisor. A child that is restarted keeps its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(u64);

/// What a child of a supervisor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChildState {
    /// It runs.
    Running,
    /// It failed, and could not be started again yet.
    Restarting,
}

/// How many children a supervisor has. The names are those of an Elixir supervisor's
/// `count_children`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChildCount {
    /// Kinds of child: always 1, the [`Worker`].
    pub specs: usize,
    /// Those that run.
    pub active: usize,
    /// All of them, those that are being restarted included.
    pub workers: usize,
    /// Those that are supervisors themselves: always 0, a child is a task.
    pub supervisors: usize,
}

/// Why a child was not terminated.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TerminateError {
    /// There is no such child any more.
    #[error("there is no such child")]
    NotFound,
    /// The supervisor does not run.
    #[error("the supervisor does not run")]
    NoProcess,
}

/// What a supervisor knows of a child.
struct Child {
    /// None for one that was started by hand: it takes no slot.
    subscription: Option<Subscription>,
    task: Option<AbortHandle>,
    /// Those who wait for its end, having asked for it.
    terminated: Vec<Caller<Result<(), TerminateError>>>,
}

/// How a child's task ended.
type Ended<E> = Result<(Id, Done<E>), JoinError>;

/// What a child's task ends with.
struct Done<E> {
    event: E,
    restarts: u32,
    outcome: Result<(), ExitReason>,
}

impl<E, W: Worker<E>> ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
{
    /// Supervises children of this worker: transient, at most 3 restarts in 5 seconds, and 5
    /// seconds to stop.
    pub fn new(worker: W) -> Self {
        Self {
            worker: Arc::new(worker),
            restart: Restart::default(),
            budget: RestartBudget::new(3, Duration::from_secs(5)),
            shutdown: Duration::from_secs(5),
            max_children: usize::MAX,
            tasks: JoinSet::new(),
            ended: VecDeque::new(),
            children: HashMap::new(),
            by_task: HashMap::new(),
            next_child: 0,
            by_hand: 0,
            slots: HashMap::new(),
            restarting: VecDeque::new(),
            waiting: VecDeque::new(),
            stopping: watch::Sender::new(false),
            metrics: Arc::new(WorkerMetrics::none()),
            stage: "".into(),
            unfinished: 0,
        }
    }

    /// What happens to a child that fails. Default [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How many restarts within which time are too many by one. Default 3 within 5 seconds.
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = RestartBudget::new(restarts, within);
        self
    }

    /// How long children have to end after they were told to stop. Default 5 seconds; with
    /// [`Duration::ZERO`] they are not told but dropped at once, with [`Duration::MAX`] they are waited
    /// for. These are a supervisor's `brutal_kill` and `infinity`.
    pub fn shutdown(mut self, within: Duration) -> Self {
        self.shutdown = within;
        self
    }

    /// How many children may be alive over all subscriptions together, those started by hand
    /// excepted. Events beyond wait in the supervisor, no more than were asked for. Default no bound
    /// but the subscriptions' own.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_children(mut self, children: usize) -> Self {
        assert!(children > 0, "a supervisor needs at least one child to work");
        self.max_children = children;
        self
    }

    /// Starts children for events that have waited, as far as there is room.
    fn fill(&mut self) {
        while self.children.len() - self.by_hand < self.max_children
            && let Some((event, from)) = self.waiting.pop_front()
        {
            self.begin(event, Some(from));
        }
    }

    /// Starts a child for an event. An event whose child does not start is done with.
    fn begin(&mut self, event: E, subscription: Option<Subscription>) -> Option<ChildId> {
        let id = ChildId(self.next_child);
        self.next_child += 1;
        match self.attempt(&event, 0) {
            Ok(Start::Run) => {
                self.by_hand += usize::from(subscription.is_none());
                self.children
                    .insert(id, Child { subscription, task: None, terminated: Vec::new() });
                self.spawn(id, event, 0);
                Some(id)
            }
            outcome => {
                if let Err(reason) = outcome {
                    self.metrics.failed.increment(1);
                    tracing::error!(stage = %self.stage, %reason, "a worker did not start");
                }
                self.free(subscription.as_ref());
                None
            }
        }
    }

    /// Asks the worker whether it takes the event on.
    fn attempt(&self, event: &E, restarts: u32) -> Result<Start, ExitReason> {
        let context = self.context(restarts);
        contained_now(|| self.worker.start(event, &context))
    }

    fn context(&self, restarts: u32) -> ChildContext {
        ChildContext { stopping: self.stopping.subscribe(), restarts }
    }

    fn spawn(&mut self, id: ChildId, event: E, restarts: u32) {
        let context = self.context(restarts);
        let (worker, metrics) = (self.worker.clone(), self.metrics.clone());
        let task = self.tasks.spawn(async move {
            let started = Instant::now();
            let outcome = contained(async { worker.run(&event, context).await }).await;
            metrics.process_time.record(started.elapsed().as_secs_f64() * 1e3);
            Done { event, restarts, outcome }
        });
        self.by_task.insert(task.id(), id);
        if let Some(child) = self.children.get_mut(&id) {
            child.task = Some(task);
        }
    }

    /// Frees the slot of a child that is done, or starts it again.
    fn child_ended(&mut self, ended: Ended<E>) -> Result<(), ExitReason> {
        let task = match &ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = self.by_task.remove(&task) else { return Ok(()) };
        let terminated = self.children.get(&id).is_some_and(|child| !child.terminated.is_empty());
        if let Ok((_, Done { event, restarts, outcome: Err(reason), .. })) = ended
            && !reason.is_graceful()
            && !terminated
        {
            self.metrics.failed.increment(1);
            let restart = self.restart == Restart::Transient;
            tracing::error!(stage = %self.stage, %reason, restart, "a worker failed");
            if restart {
                return self.start_again(id, event, restarts + 1);
            }
        }
        self.done(id);
        Ok(())
    }

    fn start_again(&mut self, id: ChildId, event: E, restarts: u32) -> Result<(), ExitReason> {
        if !self.budget.spend(Instant::now()) {
            // The event is in hand and nobody will finish it.
            self.unfinished += 1;
            self.forget(id);
            tracing::error!(stage = %self.stage, "too many restarts, stopping");
            return Err(ExitReason::Shutdown);
        }
        self.metrics.restarted.increment(1);
        match self.attempt(&event, restarts) {
            Ok(Start::Run) => self.spawn(id, event, restarts),
            Ok(Start::Ignore) => self.done(id),
            Err(reason) => {
                tracing::error!(stage = %self.stage, %reason, "a worker did not start again");
                if let Some(child) = self.children.get_mut(&id) {
                    child.task = None;
                }
                self.restarting.push_back((id, event, restarts));
            }
        }
        Ok(())
    }

    fn forget(&mut self, id: ChildId) -> Option<Child> {
        let child = self.children.remove(&id)?;
        self.by_hand -= usize::from(child.subscription.is_none());
        Some(child)
    }

    /// Forgets a child that is done with its event.
    fn done(&mut self, id: ChildId) {
        let Some(child) = self.forget(id) else { return };
        for mut caller in child.terminated {
            caller.reply(Ok(()));
        }
        self.free(child.subscription.as_ref());
        self.fill();
    }

    /// Frees a slot.
    fn free(&mut self, subscription: Option<&Subscription>) {
        if let Some(subscription) = subscription
            && let Some((_, slots)) = self.slots.get_mut(&subscription.id())
        {
            slots.free();
        }
    }

    /// Asks for more events where it is worth it. Comes last in a callback, so that slots that are
    /// freed together are asked for together, and none by a supervisor that is about to stop.
    fn ask(&mut self) {
        for (subscription, slots) in self.slots.values_mut() {
            subscription.ask(slots.ask());
        }
    }

    /// Tells the children to stop, and gives them their time.
    async fn stop_children(&mut self, phase: &mut watch::Receiver<Phase>) {
        self.stopping.send_replace(true);
        if self.shutdown.is_zero() {
            return;
        }
        let deadline = time::sleep(self.shutdown);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase == Phase::Kill) => return,
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => self.count_unfinished(&ended),
                    None => return,
                },
                () = &mut deadline => return,
            }
        }
    }

    /// Drops the children that are left, wherever they are.
    async fn kill_children(&mut self) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.count_unfinished(&ended);
        }
        for ended in std::mem::take(&mut self.ended) {
            self.count_unfinished(&ended);
        }
        self.unfinished += self.restarting.len();
    }

    /// Takes note of a child that ended while the supervisor was stopping.
    fn count_unfinished(&mut self, ended: &Ended<E>) {
        if !matches!(ended, Ok((_, Done { outcome: Ok(()), .. }))) {
            self.unfinished += 1;
        }
    }
}

impl<E, W> StageHandle<ConsumerSupervisor<E, W>, E, Infallible>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    /// Starts a child by hand. It takes no slot, and its end asks for no event. None if the worker
    /// did not take the event on.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor does not run.
    pub async fn start_child(&self, event: E) -> Result<Option<ChildId>, CallError> {
        self.call(StartChild(event)).await
    }

    /// Ends a child wherever it is, and frees its slot. Returns when it has ended.
    ///
    /// # Errors
    ///
    /// [`TerminateError`] if there is no such child, or no supervisor.
    pub async fn terminate_child(&self, child: ChildId) -> Result<(), TerminateError> {
        self.call(TerminateChild(child)).await.unwrap_or(Err(TerminateError::NoProcess))
    }

    /// The children, and what they are doing.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor does not run.
    pub async fn which_children(&self) -> Result<Vec<(ChildId, ChildState)>, CallError> {
        self.call(WhichChildren).await
    }

    /// How many children there are.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the supervisor does not run.
    pub async fn count_children(&self) -> Result<ChildCount, CallError> {
        let children = self.which_children().await?;
        let running = |(_, state): &&(ChildId, ChildState)| *state == ChildState::Running;
        let active = children.iter().filter(running).count();
        Ok(ChildCount { specs: 1, active, workers: children.len(), supervisors: 0 })
    }
}

/// Start a child by hand.
#[doc(hidden)]
#[derive(Debug)]
pub struct StartChild<E>(E);

/// End a child.
#[doc(hidden)]
#[derive(Debug)]
pub struct TerminateChild(ChildId);

/// List the children.
#[doc(hidden)]
#[derive(Debug)]
pub struct WhichChildren;

impl<E, W> HandleCall<StartChild<E>> for ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Option<ChildId>;

    async fn handle_call(
        &mut self,
        StartChild(event): StartChild<E>,
        caller: &mut Caller<Option<ChildId>>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        caller.reply(self.begin(event, None));
        Ok(())
    }
}

impl<E, W> HandleCall<TerminateChild> for ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Result<(), TerminateError>;

    async fn handle_call(
        &mut self,
        TerminateChild(id): TerminateChild,
        caller: &mut Caller<Self::Reply>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        match self.children.get_mut(&id) {
            None => caller.reply(Err(TerminateError::NotFound)),
            Some(child) => {
                child.terminated.push(caller.later());
                match &child.task {
                    // Its slot is free when it has really ended.
                    Some(task) => task.abort(),
                    None => {
                        self.restarting.retain(|(other, ..)| *other != id);
                        self.done(id);
                        self.ask();
                    }
                }
            }
        }
        Ok(())
    }
}

impl<E, W> HandleCall<WhichChildren> for ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Reply = Vec<(ChildId, ChildState)>;

    async fn handle_call(
        &mut self,
        _: WhichChildren,
        caller: &mut Caller<Self::Reply>,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        let state = |child: &Child| match child.task {
            Some(_) => ChildState::Running,
            None => ChildState::Restarting,
        };
        let mut children: Vec<_> =
            self.children.iter().map(|(id, child)| (*id, state(child))).collect();
        children.sort_unstable_by_key(|(id, _)| *id);
        caller.reply(children);
        Ok(())
    }
}

impl<E, W> fmt::Debug for ConsumerSupervisor<E, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerSupervisor")
            .field("restart", &self.restart)
            .field("shutdown", &self.shutdown)
            .field("children", &self.children.len())
            .finish_non_exhaustive()
    }
}

/// A consumer supervisor, as the runtime sees it.
pub(crate) struct AsSupervisor<E, W>(pub(crate) ConsumerSupervisor<E, W>);

impl<E, W> Behaviour for AsSupervisor<E, W>
where
    E: Send + Sync + 'static,
    W: Worker<E>,
{
    type Stage = ConsumerSupervisor<E, W>;
    type In = E;
    type Out = Infallible;

    const KIND: Kind = Kind::Supervisor;

    fn stage(&mut self) -> &mut ConsumerSupervisor<E, W> {
        &mut self.0
    }

    fn init(&mut self, context: &StageContext<HandleOf<Self>>) -> Result<(), ExitReason> {
        let telemetry: &Telemetry = &context.telemetry;
        self.0.metrics = Arc::new(WorkerMetrics::register(telemetry, &context.labels()));
        self.0.stage = context.stage.clone();
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<Asking, ExitReason> {
        self.0.slots.insert(from.id(), (from.clone(), Slots::new(options)));
        from.ask(options.max());
        Ok(Asking::Manual)
    }

    async fn handle_events(
        &mut self,
        events: Vec<E>,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        self.0.waiting.extend(events.into_iter().map(|event| (event, from.clone())));
        self.0.fill();
        self.0.ask();
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        // Its children go on, and their ends ask nobody.
        self.0.slots.remove(&from.id());
        Ok(())
    }

    fn waits(&self, _owed: usize) -> bool {
        self.is_busy()
    }

    async fn ready(&mut self) {
        let supervisor = &mut self.0;
        if supervisor.restarting.is_empty() && supervisor.ended.is_empty() {
            // What has ended is kept for `handle_ready`, so nothing is lost when this is dropped.
            match supervisor.tasks.join_next_with_id().await {
                Some(ended) => supervisor.ended.push_back(ended),
                None => std::future::pending().await,
            }
        }
    }

    async fn handle_ready(&mut self, _out: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
        let supervisor = &mut self.0;
        if !supervisor.restarting.is_empty() {
            // It is tried again at once, but not without letting others have a turn.
            task::yield_now().await;
        }
        if let Some((id, event, restarts)) = supervisor.restarting.pop_front() {
            supervisor.start_again(id, event, restarts + 1)?;
        }
        while let Some(ended) =
            supervisor.ended.pop_front().or_else(|| supervisor.tasks.try_join_next_with_id())
        {
            supervisor.child_ended(ended)?;
        }
        supervisor.ask();
        Ok(())
    }

    fn is_busy(&self) -> bool {
        !self.0.children.is_empty() || !self.0.waiting.is_empty()
    }

    async fn terminate(&mut self, reason: &ExitReason, phase: &mut watch::Receiver<Phase>) {
        let supervisor = &mut self.0;
        if !matches!(reason, ExitReason::Killed) {
            supervisor.stop_children(phase).await;
        }
        supervisor.kill_children().await;
    }

    fn report(&self, report: &mut StageReport) {
        report.unfinished += self.0.unfinished;
        report.held += self.0.waiting.len();
    }
}
