//! The stage that starts one supervised child per event.

mod behaviour;
mod brevity;
mod calls;
mod started;
mod turns;

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{self, Instant},
};
use tracing::{Instrument, Span};

pub(crate) use self::{behaviour::AsSupervisor, started::started_at};
use self::{brevity::Brevity, started::Running, turns::Turns};
use super::{
    Caller, ChildContext, Phase, Reserved, StageHandle, Start, Worker, contained, contained_now,
    gauges::Gauges,
    restart::{Restart, RestartBudget},
};
use crate::{
    adaptive::{Adaptive, AdaptiveLimit, Piece},
    demand::Slots,
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Subscription, SubscriptionId},
    telemetry::WorkerMetrics,
};

/// A stage that runs a [`Worker`] for each event, each in a task of its own, if it is worth one.
///
/// `max_demand` of its subscription is the number of children alive at once, exactly: an event
/// takes a slot when it arrives, and the slot is free again when the child is done with the event.
/// When no more than `min_demand` children are running, more events are asked for. The default is
/// `max_demand - 1`, which keeps all slots busy; with less, slots are asked for several at a time. With
/// several subscriptions, each has slots of its own; [`max_children`](Self::max_children) bounds them
/// all together.
///
/// A child that fails is restarted, by default. More than [`max_restarts`](Self::max_restarts)
/// within the given time end the supervisor with [`ExitReason::Shutdown`], because something is
/// wrong that restarting doesn't mend.
///
/// When its producer ends with [`ExitReason::Normal`], the supervisor lets its children finish and
/// ends too. When it has to stop, its children are told so
/// ([`ChildContext::stopping`]) and are dropped once [`shutdown`](Self::shutdown) is over.
///
/// The semantics are those of GenStage's `ConsumerSupervisor`, except for the gentle end, that it asks
/// at `min_demand` like any other consumer, and the default of that.
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
    shared: Arc<Shared<W>>,
    restart: Restart,
    budget: RestartBudget,
    shutdown: Duration,
    max_children: usize,
    /// Finds out how many children do best, if that is not fixed.
    adaptive: Option<AdaptiveLimit>,
    /// The children's tasks. A task owns its event, and hands it back with the outcome.
    tasks: JoinSet<Done<E>>,
    /// Tasks that have ended and were not looked at yet.
    ended: VecDeque<Ended<E>>,
    children: foldhash::HashMap<ChildId, Child>,
    /// Which child a task is, for those that end without saying so themselves.
    by_task: foldhash::HashMap<Id, ChildId>,
    /// Whether the next child is likely to need no task.
    brevity: Brevity,
    /// Whether each gets one all the same.
    always_spawn: bool,
    next_child: u64,
    /// How many of the children were started by hand.
    by_hand: usize,
    slots: foldhash::HashMap<SubscriptionId, (Subscription, Slots)>,
    /// Children that could not be started again yet; they are tried again at once.
    restarting: VecDeque<(ChildId, E, u32)>,
    /// Events that wait for a place among `max_children`.
    waiting: Turns<E>,
    stopping: Stopping,
    stage: Arc<str>,
    gauges: Arc<Gauges>,
    unfinished: usize,
}

/// The handle of a [`ConsumerSupervisor`].
///
/// ```
/// use pipeline_core::{CallError, SupervisorHandle, Worker};
/// # use pipeline_core::{ConsumerSupervisor, Graph};
///
/// /// Whether nothing is being worked on.
/// async fn is_idle<W: Worker<u64>>(jobs: &SupervisorHandle<u64, W>) -> Result<bool, CallError> {
///     Ok(jobs.count_children().await?.workers == 0)
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("jobs");
/// # let work = async |_: &u64| Ok(());
/// # let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
/// # let _pipeline = graph.start()?;
/// assert!(is_idle(&jobs).await?);
/// # Ok(())
/// # }
/// ```
pub type SupervisorHandle<E, W> = StageHandle<ConsumerSupervisor<E, W>, E, Infallible>;

/// Names a child of a supervisor. A child that is restarted keeps its name.
///
/// ```
/// use pipeline_core::{ChildState, ConsumerSupervisor, Graph};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("jobs");
/// # let work = async |_: &u64| std::future::pending().await;
/// let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
/// let _pipeline = graph.start()?;
///
/// let first = jobs.start_child(7).await?.ok_or("not taken on")?;
/// let second = jobs.start_child(8).await?.ok_or("not taken on")?;
/// jobs.terminate_child(first).await?;
/// assert_eq!(jobs.which_children().await?, [(second, ChildState::Running)]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(u64);

/// What a child of a supervisor is doing.
///
/// ```
/// use pipeline_core::{ChildState, ConsumerSupervisor, Graph};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("jobs");
/// # let work = async |_: &u64| std::future::pending().await;
/// # let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
/// # let _pipeline = graph.start()?;
/// # jobs.start_child(7).await?;
/// for (child, state) in jobs.which_children().await? {
///     match state {
///         ChildState::Running => println!("{child:?} runs"),
///         ChildState::Restarting => panic!("nothing has failed"),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
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
///
/// ```
/// use pipeline_core::{ConsumerSupervisor, Graph};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("jobs");
/// # let work = async |_: &u64| std::future::pending().await;
/// # let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
/// # let _pipeline = graph.start()?;
/// jobs.start_child(7).await?;
/// jobs.start_child(8).await?;
/// let count = jobs.count_children().await?;
/// assert_eq!((count.active, count.workers), (2, 2));
/// # Ok(())
/// # }
/// ```
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
///
/// ```
/// use pipeline_core::{ConsumerSupervisor, ExitReason, Graph, TerminateError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("jobs");
/// # let work = async |_: &u64| std::future::pending().await;
/// # let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work));
/// # let _pipeline = graph.start()?;
/// let child = jobs.start_child(7).await?.ok_or("not taken on")?;
/// jobs.terminate_child(child).await?;
/// assert_eq!(jobs.terminate_child(child).await, Err(TerminateError::NotFound));
///
/// jobs.stop(ExitReason::Shutdown).await;
/// assert_eq!(jobs.terminate_child(child).await, Err(TerminateError::NoProcess));
/// # Ok(())
/// # }
/// ```
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
    subscription: Option<SubscriptionId>,
    /// What the worker has reserved for it, to be dropped when the event is done with.
    reserved: Option<Reserved>,
    task: Option<AbortHandle>,
    /// What it is to the adaptive limit, if there is one.
    piece: Option<Piece>,
    /// Those who wait for its end, having asked for it.
    terminated: Vec<Caller<Result<(), TerminateError>>>,
}

/// What all children share: one handle for each, because to count more costs as much as a brief child.
struct Shared<W> {
    worker: W,
    metrics: WorkerMetrics,
}

/// How a child's task ended.
type Ended<E> = Result<(Id, Done<E>), JoinError>;

/// What a child's task ends with.
struct Done<E> {
    event: E,
    restarts: u32,
    outcome: Result<(), ExitReason>,
    took: Duration,
    /// Whether it waited for nothing.
    at_once: bool,
}

/// Tells the children that they are to end soon. They are told, too, when the supervisor is gone.
#[derive(Debug, Default)]
struct Stopping(Arc<watch::Sender<bool>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// For so long a supervisor runs children itself, one after the other, before it gives the next ones
/// tasks, which other cores may run.
const SPELL: Duration = Duration::from_millis(1);

impl<E, W: Worker<E>> ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
{
    /// Supervises children of this worker: transient, at most 3 restarts in 5 seconds, and 5
    /// seconds to stop.
    pub fn new(worker: W) -> Self {
        Self {
            shared: Arc::new(Shared { worker, metrics: WorkerMetrics::none() }),
            restart: Restart::default(),
            budget: RestartBudget::new(3, Duration::from_secs(5)),
            shutdown: Duration::from_secs(5),
            max_children: usize::MAX,
            adaptive: None,
            tasks: JoinSet::new(),
            ended: VecDeque::new(),
            children: foldhash::HashMap::default(),
            by_task: foldhash::HashMap::default(),
            brevity: Brevity::new(),
            always_spawn: false,
            next_child: 0,
            by_hand: 0,
            slots: foldhash::HashMap::default(),
            restarting: VecDeque::new(),
            waiting: Turns::new(),
            stopping: Stopping::default(),
            stage: "".into(),
            gauges: Arc::new(Gauges::new(StageKind::ConsumerSupervisor, None)),
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
    /// excepted. Events beyond wait in the supervisor, no more than were asked for; subscriptions take
    /// turns, so that one with many events does not keep another waiting. Default no bound but the
    /// subscriptions' own.
    ///
    /// # Panics
    ///
    /// If it is 0.
    ///
    /// ```
    /// use pipeline_core::{ConsumerSupervisor, Graph, SubscribeOptions, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("jobs");
    /// let urgent = graph.producer("urgent", from_iter(0..10));
    /// let other = graph.producer("other", from_iter(10..20));
    /// // Up to five for each source, up to eight altogether.
    /// let work = async |job: &u64| Ok(println!("{job}"));
    /// let jobs = graph.consumer_supervisor("jobs", ConsumerSupervisor::new(work).max_children(8));
    /// graph.subscribe(&jobs, &urgent, SubscribeOptions::new().max_demand(5));
    /// graph.subscribe(&jobs, &other, SubscribeOptions::new().max_demand(5));
    /// # let pipeline = graph.start()?;
    /// # assert!(jobs.count_children().await?.workers <= 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_children(mut self, children: usize) -> Self {
        assert!(children > 0, "a supervisor needs at least one child to work");
        self.max_children = children;
        self
    }

    /// Lets the supervisor find out how many children should run at once, between a floor and a
    /// ceiling: more as long as they take no longer for it, fewer when they do or fail.
    ///
    /// The subscriptions' `max_demand` should be the ceiling. Events for which no child runs yet wait
    /// in the supervisor. The metric `pipeline.worker.limit` shows what it has come to. By default the
    /// number is fixed.
    ///
    /// ```
    /// use pipeline_core::{Adaptive, ConsumerSupervisor, Pipeline, SubscribeOptions, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fetch = async |page: &u64| Ok(println!("{page}"));
    /// let supervisor = ConsumerSupervisor::new(fetch).adaptive(Adaptive::between(2, 200));
    /// let mut pipeline = Pipeline::builder("pages")
    ///     .producer(from_iter(0..100))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(200))
    ///     .start()?;
    /// assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn adaptive(mut self, limit: Adaptive) -> Self {
        self.adaptive = Some(AdaptiveLimit::new(limit));
        self
    }

    /// Gives each child a task of its own, however brief its children are.
    ///
    /// By default the supervisor runs children itself once they have proven to be brief
    /// ([`Worker`] says when). That is faster, but a child that blocks its thread all of a sudden holds up
    /// the supervisor and all other children. If some of yours may block, call this.
    ///
    /// ```
    /// use pipeline_core::ConsumerSupervisor;
    ///
    /// // Mostly it is in the cache. If not, it comes from the disk.
    /// let load = async |path: &String| Ok(drop(std::fs::read(path)?));
    /// let supervisor = ConsumerSupervisor::new(load).always_spawn();
    /// ```
    pub fn always_spawn(mut self) -> Self {
        self.always_spawn = true;
        self
    }

    /// How many children may run now.
    fn limit(&self) -> usize {
        let adaptive = self.adaptive.as_ref().map_or(usize::MAX, AdaptiveLimit::limit);
        self.max_children.min(adaptive)
    }

    /// Learns from a child that has ended.
    fn learn(&mut self, latency: Duration, failed: bool) {
        let in_flight = self.children.len() - self.by_hand;
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.record(latency, in_flight, failed, Instant::now());
            #[expect(clippy::cast_precision_loss, reason = "there are not so many children")]
            self.shared.metrics.limit.set(adaptive.limit() as f64);
        }
    }

    /// Starts children for events that have waited, as far as there is room.
    fn fill(&mut self) {
        let mut spell = None;
        while self.children.len() - self.by_hand < self.limit()
            && let Some((event, from)) = self.waiting.pop()
        {
            // How many children do best is not learned from those that are done already.
            if self.brevity.is_likely() && !self.always_spawn && self.adaptive.is_none() {
                let (begun, now) = *spell.get_or_insert_with(|| (Instant::now(), Instant::now()));
                if now - begun < SPELL {
                    spell = Some((begun, self.begin_here(event, from, now)));
                    continue;
                }
            }
            self.begin(event, Some(from));
        }
    }

    /// Starts a child for an event. An event whose child does not start is done with.
    fn begin(&mut self, event: E, subscription: Option<SubscriptionId>) -> Option<ChildId> {
        let context = self.take_on(&event, subscription)?;
        let reserved = context.reserved.clone();
        let job = self.job(event, context, None);
        Some(self.spawn_new(subscription, reserved, job))
    }

    /// Starts a child that is likely to be done at once. Only one that is not gets a task. Returns
    /// what time it is then.
    fn begin_here(&mut self, event: E, from: SubscriptionId, now: Instant) -> Instant {
        let Some(context) = self.take_on(&event, Some(from)) else { return now };
        let reserved = context.reserved.clone();
        let mut job = Box::pin(self.job(event, context, Some(now)));
        // Its task polls it anew, with a waker of its own.
        let Poll::Ready(done) = job.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            let then = Instant::now();
            // Known now, and not only when it is done: the next one is about to be begun.
            self.brevity.guessed_wrong(then - now, self.behind());
            self.spawn_new(Some(from), reserved, job);
            return then;
        };
        let now = now + done.took;
        if done.outcome.as_ref().err().is_none_or(ExitReason::is_graceful) {
            self.brevity.learn(done.at_once, done.took, self.behind());
            self.free(Some(from));
        } else {
            // One that has failed goes the way of all children.
            self.spawn_new(Some(from), reserved, async { done });
        }
        now
    }

    /// What the child is given if the worker takes the event on. If not, it is done with.
    fn take_on(&mut self, event: &E, subscription: Option<SubscriptionId>) -> Option<ChildContext> {
        let mut context = self.context(0);
        let outcome = self.attempt(event, &context).and_then(|start| {
            if start == Start::Run {
                context.reserved = contained_now(|| Ok(self.shared.worker.reserve(event)))?;
            }
            Ok(start)
        });
        if matches!(outcome, Ok(Start::Run)) {
            return Some(context);
        }
        if let Err(reason) = outcome {
            self.count_failure();
            tracing::error!(stage = %self.stage, %reason, "a worker did not start");
        }
        self.free(subscription);
        None
    }

    fn count_failure(&self) {
        self.shared.metrics.failed.increment(1);
        self.gauges.worker_failures.add(1);
    }

    /// How many children have to wait until the supervisor is done with one that it runs itself.
    fn behind(&self) -> usize {
        let free = self.limit().saturating_sub(self.children.len() - self.by_hand);
        self.waiting.len().min(free)
    }

    /// Asks the worker whether it takes the event on.
    fn attempt(&self, event: &E, context: &ChildContext) -> Result<Start, ExitReason> {
        contained_now(|| self.shared.worker.start(event, context))
    }

    fn context(&self, restarts: u32) -> ChildContext {
        ChildContext { stopping: self.stopping.0.clone(), restarts, reserved: None }
    }

    /// What a child does, from `started` on, or from when it is polled for the first time.
    fn job(
        &self,
        event: E,
        context: ChildContext,
        started: Option<Instant>,
    ) -> impl Future<Output = Done<E>> + Send + use<E, W> {
        let (shared, restarts) = (self.shared.clone(), context.restarts);
        async move {
            let Shared { worker, metrics } = &*shared;
            let started = started.unwrap_or_else(Instant::now);
            let mut polls = 0u64;
            let outcome = {
                let mut run = pin!(contained(async { worker.run(&event, context).await }));
                poll_fn(|context| {
                    polls += 1;
                    let _running = Running::since(started);
                    run.as_mut().poll(context)
                })
                .await
            };
            let took = started.elapsed();
            metrics.process_time.record(took.as_secs_f64() * 1e3);
            Done { event, restarts, outcome, took, at_once: polls == 1 }
        }
    }

    /// Makes a child of a job.
    fn spawn_new(
        &mut self,
        subscription: Option<SubscriptionId>,
        reserved: Option<Reserved>,
        job: impl Future<Output = Done<E>> + Send + 'static,
    ) -> ChildId {
        let id = ChildId(self.next_child);
        self.next_child += 1;
        self.by_hand += usize::from(subscription.is_none());
        self.children.insert(
            id,
            Child { subscription, reserved, task: None, piece: None, terminated: Vec::new() },
        );
        self.gauges.workers.store(self.children.len(), Relaxed);
        self.spawn(id, job);
        id
    }

    fn spawn(&mut self, id: ChildId, job: impl Future<Output = Done<E>> + Send + 'static) {
        let span = Span::current();
        // Without the span, it is a smaller future.
        let task = if span.is_disabled() {
            self.tasks.spawn(job)
        } else {
            self.tasks.spawn(job.instrument(span))
        };
        self.by_task.insert(task.id(), id);
        if let Some(child) = self.children.get_mut(&id) {
            child.task = Some(task);
            child.piece = self.adaptive.as_mut().map(|limit| limit.begin(Instant::now()));
        }
    }

    /// Frees the slot of a child that is done, or starts it again.
    fn child_ended(&mut self, ended: Ended<E>) -> Result<(), ExitReason> {
        let task = match &ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = self.by_task.remove(&task) else { return Ok(()) };
        let piece = self.children.get_mut(&id).and_then(|child| child.piece.take());
        let counts = match (&mut self.adaptive, piece) {
            (Some(limit), Some(piece)) => limit.end(piece),
            _ => true,
        };
        if let Ok((_, Done { took, outcome, at_once, .. })) = &ended {
            // Without a task, it would have held up the others.
            let others = self.children.len().saturating_sub(1);
            self.brevity.learn(*at_once, *took, others);
            let failed = outcome.as_ref().is_err_and(|reason| !reason.is_graceful());
            if counts {
                self.learn(*took, failed);
            }
        }
        let terminated = self.children.get(&id).is_some_and(|child| !child.terminated.is_empty());
        if let Ok((_, Done { event, restarts, outcome: Err(reason), .. })) = ended
            && !reason.is_graceful()
            && !terminated
        {
            self.count_failure();
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
        self.shared.metrics.restarted.increment(1);
        let mut context = self.context(restarts);
        context.reserved = self.children.get(&id).and_then(|child| child.reserved.clone());
        match self.attempt(&event, &context) {
            Ok(Start::Run) => {
                let job = self.job(event, context, None);
                self.spawn(id, job);
            }
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
        self.gauges.workers.store(self.children.len(), Relaxed);
        self.by_hand -= usize::from(child.subscription.is_none());
        Some(child)
    }

    /// Forgets a child that is done with its event.
    fn done(&mut self, id: ChildId) {
        let Some(child) = self.forget(id) else { return };
        for mut caller in child.terminated {
            caller.reply(Ok(()));
        }
        self.free(child.subscription);
        self.fill();
    }

    /// Frees a slot.
    fn free(&mut self, subscription: Option<SubscriptionId>) {
        if let Some(subscription) = subscription
            && let Some((_, slots)) = self.slots.get_mut(&subscription)
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
        self.stopping.0.send_replace(true);
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
    }

    /// Takes note of a child that ended while the supervisor was stopping.
    fn count_unfinished(&mut self, ended: &Ended<E>) {
        if !matches!(ended, Ok((_, Done { outcome: Ok(()), .. }))) {
            self.unfinished += 1;
        }
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
