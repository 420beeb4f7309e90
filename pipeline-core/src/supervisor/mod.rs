//! Consumer supervisors: a child for each event, and how many at once.

mod adaptive;
mod behaviour;
mod calls;
mod inline_estimate;
mod reused;
mod round_robin;
mod started;
mod tries;
pub(crate) mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    sync::watch,
    task::{AbortHandle, Id, JoinError, JoinSet, yield_now},
    time::{self, Instant},
};
use tracing::{Instrument, Span};

pub use self::{
    adaptive::Adaptive,
    tries::TooManyRestarts,
    worker::{Admission, ChildContext, Reserved, Worker},
};
use self::{
    adaptive::{AdaptiveLimit, Piece},
    inline_estimate::InlineEstimate,
    reused::Reused,
    round_robin::RoundRobin,
    started::Running,
    tries::Tries,
};
pub(crate) use self::{behaviour::AsSupervisor, started::started_at};
use crate::{
    backoff::Backoff,
    deadline::Deadline,
    exit::ExitReason,
    shown::shown,
    snapshot::StageKind,
    stage::demand::Slots,
    stage::{
        Caller, Gauges, Phase, RestartBudget, StageHandle, catch_panic_now, poll_contained, random,
    },
    subscription::{Subscription, SubscriptionId},
    telemetry::WorkerMetrics,
};

/// A stage that runs a [`Worker`] for each event, each in a task of its own unless it is too brief
/// for one. One run of the worker for one event, with its restarts, is a child; its metrics and
/// GenStage's counts call it a worker.
///
/// The `max_demand` of its subscription is exactly the maximum number of children alive at once: an
/// event takes a slot when it arrives, and the slot is free again when the child is done with the
/// event. When no more than `min_demand` children are running, it asks for more events. The default
/// is `max_demand - 1`, which keeps all slots busy; a lower value asks for several slots at a time.
/// With several subscriptions, each has slots of its own; [`max_children`](Self::max_children)
/// bounds them all together.
///
/// # When a child fails
///
/// By default its event is tried again in the same slot, after a delay, and [given
/// up](Self::on_given_up) when it has failed three times; all others continue.
/// [`tries`](Self::tries) sets the number of tries and [`backoff`](Self::backoff) the delay.
/// Given-up events are counted in the metric `pipeline.worker.given_up` and in the
/// [report](crate::report::StageReport::given_up).
///
/// GenStage's rule is different: a child is restarted at once and without limit, but when there are
/// more restarts within a time than [`max_restarts`](Self::max_restarts) allows, the supervisor
/// ends, because restarting does not fix the problem. That is a failure of the stage,
/// [`TooManyRestarts`], and with it of its pipeline, unless
/// [`Stage::restarting`](crate::stage::Stage::restarting) restarts it. Its producers receive
/// [`ExitReason::Shutdown`].
///
/// When its producer ends with [`ExitReason::Normal`], the supervisor lets its children finish and
/// then ends too. When it has to stop, its children are notified ([`ChildContext::stopping`]) and
/// are dropped when [`shutdown`](Self::shutdown) has elapsed.
///
/// The semantics are those of GenStage's `ConsumerSupervisor`, with these exceptions: the graceful
/// end; the handling of an event whose child fails; and it asks at `min_demand` like any other
/// consumer, with a different default.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{ExitReason, supervisor::ConsumerSupervisor};
///
/// let resize = async |image: &Vec<u8>| {
///     if image.is_empty() {
///         return Err(ExitReason::failed("an empty image"));
///     }
///     Ok(())
/// };
/// let supervisor = ConsumerSupervisor::new(resize)
///     .tries(5)
///     .on_given_up(|image, reason| eprintln!("{} bytes: {reason}", image.len()))
///     .shutdown(Duration::from_secs(30));
/// ```
#[must_use]
pub struct ConsumerSupervisor<E, W> {
    shared: Arc<Shared<W>>,
    restart: Restart,
    tries: Tries,
    /// The limit on restarts of all children together, if there is one.
    budget: Option<RestartBudget>,
    on_given_up: Option<OnGivenUp<E>>,
    shutdown: Duration,
    max_children: usize,
    /// The adaptive limit on children, if there is one.
    adaptive: Option<AdaptiveLimit>,
    /// The children's tasks. A task owns its event, and returns it with the outcome.
    tasks: JoinSet<Finished<E>>,
    /// Tasks that have ended and are not processed yet.
    ended: VecDeque<Ended<E>>,
    children: foldhash::HashMap<ChildId, Child>,
    /// The child of each task, for tasks that end without a result.
    by_task: foldhash::HashMap<Id, ChildId>,
    /// Predicts whether the next child needs a task.
    inline_estimate: InlineEstimate,
    /// Whether each child gets a task regardless.
    always_spawn: bool,
    /// Whether the worker reserves something for its children, so that they wait for each other.
    reserves: bool,
    /// Why children wait although there is room, if they do.
    pauses: Pause,
    next_child: u64,
    /// The number of children started by hand.
    manual: usize,
    slots: foldhash::HashMap<SubscriptionId, (Subscription, Slots)>,
    /// The [spare](ChildContext::spare) children.
    spare: usize,
    /// Children that have failed, by the time of their restart, with the number of failures.
    restarting: BTreeMap<(Deadline, ChildId), (E, u32)>,
    /// Events that wait for one of `max_children` places.
    waiting: RoundRobin<E>,
    stopping: Stopping,
    stage: Arc<str>,
    gauges: Arc<Gauges>,
    in_progress: usize,
    given_up: usize,
}

/// The handle of a [`ConsumerSupervisor`].
///
/// ```
/// use pipeline_core::{
///     stage::CallError,
///     supervisor::{SupervisorHandle, Worker},
/// };
/// # use pipeline_core::{Graph, supervisor::ConsumerSupervisor};
///
/// /// Whether the supervisor has no children.
/// async fn is_idle<W: Worker<u64>>(jobs: &SupervisorHandle<u64, W>) -> Result<bool, CallError> {
///     Ok(jobs.child_count().await?.workers == 0)
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

/// The id of a supervisor's child. A restarted child keeps its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(u64);

/// What happens to a child that ends.
///
/// ```
/// use pipeline_core::supervisor::{ConsumerSupervisor, Restart};
///
/// let once = async |_: &u64| Ok(());
/// let supervisor = ConsumerSupervisor::<u64, _>::new(once).restart(Restart::Temporary);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// A child that fails is restarted with the same event, in the same slot, as often as
    /// [`ConsumerSupervisor::tries`](crate::supervisor::ConsumerSupervisor::tries) allows; after a
    /// graceful end it is done. The default.
    #[default]
    Transient,
    /// A child is done after any end; if it fails, its event is given up.
    Temporary,
}

/// The state of a supervisor's child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChildState {
    /// The child is running.
    Running,
    /// The child failed and waits to be restarted.
    Restarting,
}

/// The number of children of a supervisor. The names are those of an Elixir supervisor's
/// `count_children`, without `specs` and `supervisors`, which would always be 1 and 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChildCount {
    /// The running children.
    pub active: usize,
    /// All children: the running ones and those that wait to be restarted.
    pub workers: usize,
}

/// Why a child was not terminated.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TerminateError {
    /// The child does not exist or no longer exists.
    #[error("no such child")]
    NotFound,
    /// The supervisor is not running.
    #[error("the supervisor is not running")]
    NotRunning,
}

/// The supervisor's data of a child.
struct Child {
    /// None for a child started by hand, which takes no slot.
    subscription: Option<SubscriptionId>,
    /// The worker's reservation for it, dropped when its event is done.
    reserved: Option<Reserved>,
    task: Option<AbortHandle>,
    /// The child's id in the adaptive limit, if there is one.
    piece: Option<Piece>,
    /// The callers that wait for its termination.
    terminated: Vec<Caller<Result<(), TerminateError>>>,
}

/// The user's callback for given-up events. The lock is never contended: it only makes the
/// supervisor `Sync`, whatever the function is.
type OnGivenUp<E> = Mutex<Box<dyn FnMut(E, ExitReason) + Send>>;

/// The state that all children share: one handle for each, because counting more references costs
/// as much as a brief child.
struct Shared<W> {
    worker: W,
    metrics: WorkerMetrics,
}

impl<W> Shared<W> {
    /// Ready when all children have used their reservations.
    fn poll_reserved<E>(&self, cx: &mut Context<'_>) -> Poll<()>
    where
        W: Worker<E>,
    {
        // A worker that panics is not waited for.
        catch_panic_now(|| Ok(self.worker.poll_reserved(cx))).unwrap_or(Poll::Ready(()))
    }
}

/// How a child's task ended.
type Ended<E> = Result<(Id, Finished<E>), JoinError>;

/// The result of a child's task.
struct Finished<E> {
    event: E,
    restarts: u32,
    outcome: Result<(), ExitReason>,
    took: Duration,
    /// Whether it completed in its first poll.
    at_once: bool,
}

/// Notifies the children that they are to end soon. Dropping the supervisor notifies them, too.
#[derive(Debug, Default)]
struct Stopping(Arc<watch::Sender<bool>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Why a supervisor starts no child although there is room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    No,
    /// Some children have not used their reservations yet.
    Reserved,
    /// The supervisor yields to other tasks.
    Yield,
}

impl Pause {
    /// Waits until children can be started again. Never completes if there is no pause.
    async fn is_over<E, W: Worker<E>>(self, shared: &Shared<W>) {
        match self {
            Self::No => pending().await,
            Self::Reserved => poll_fn(|cx| shared.poll_reserved::<E>(cx)).await,
            Self::Yield => yield_now().await,
        }
    }
}

/// How long a supervisor runs children itself, one after the other, before it spawns tasks for the
/// next ones, which other cores may run. Children that keep an order would wait for each other
/// there: they wait until the supervisor is scheduled again.
const INLINE_TIME: Duration = Duration::from_millis(1);

impl<E, W: Worker<E>> ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
{
    /// A supervisor of children that run this worker: transient, with three tries for each event,
    /// and 5 seconds to stop.
    pub fn new(worker: W) -> Self {
        Self {
            shared: Arc::new(Shared { worker, metrics: WorkerMetrics::none() }),
            restart: Restart::default(),
            tries: Tries::default(),
            budget: None,
            on_given_up: None,
            shutdown: Duration::from_secs(5),
            max_children: usize::MAX,
            adaptive: None,
            tasks: JoinSet::new(),
            ended: VecDeque::new(),
            children: foldhash::HashMap::default(),
            by_task: foldhash::HashMap::default(),
            inline_estimate: InlineEstimate::new(),
            always_spawn: false,
            reserves: false,
            pauses: Pause::No,
            next_child: 0,
            manual: 0,
            slots: foldhash::HashMap::default(),
            spare: usize::MAX,
            restarting: BTreeMap::new(),
            waiting: RoundRobin::new(),
            stopping: Stopping::default(),
            stage: "".into(),
            gauges: Arc::new(Gauges::new(StageKind::ConsumerSupervisor, None)),
            in_progress: 0,
            given_up: 0,
        }
    }

    /// What happens to a child that fails. Default [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How often an event is tried before it is given up, including the first time. Default 3, and
    /// unlimited with [`max_restarts`](Self::max_restarts).
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn tries(mut self, tries: u32) -> Self {
        assert!(tries > 0, "an event must be tried at least once");
        self.tries.most = Some(tries);
        self
    }

    /// The delay before an event is tried again; it keeps its slot meanwhile. Default from 100
    /// milliseconds to 5 seconds with [`Jitter::Equal`](crate::backoff::Jitter::Equal), and no
    /// delay with [`max_restarts`](Self::max_restarts).
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.tries.backoff = Some(backoff);
        self
    }

    /// Calls `callback` with each given-up event and the last failure of its worker, for example to
    /// store the event in a dead-letter queue. It is called between two messages of the supervisor,
    /// so it should not block.
    ///
    /// An event is given up when it has failed as often as [`tries`](Self::tries) allows, and when
    /// its worker's `admit` returns an error. It is logged and counted in any case.
    ///
    /// A queue for such events has a pipeline of its own. Drain that pipeline after this one, which
    /// may give up events until it has ended.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ExitReason, Pipeline,
    ///     source::{Closed, QueueOptions, from_iter, queue},
    ///     subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Failed events are kept for inspection.
    /// let (failed, _to_look_at) = queue(QueueOptions::new().capacity(1000));
    /// # let counted = failed.clone();
    /// let halve = async |n: &u64| match n % 2 {
    ///     0 => Ok(println!("{}", n / 2)),
    ///     _ => Err(ExitReason::failed("odd")),
    /// };
    /// let supervisor = ConsumerSupervisor::new(halve).on_given_up(move |n, reason| {
    ///     eprintln!("{n}: {reason}");
    ///     // The queue is closed once its own pipeline drains.
    ///     if let Err(Closed(n)) = failed.offer(n) {
    ///         eprintln!("{n} is not put aside");
    ///     }
    /// });
    /// let mut pipeline = Pipeline::builder("halves")
    ///     .producer(from_iter(0..10))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new())
    ///     .start()?;
    /// let report = pipeline.join().await;
    /// assert!(report.is_clean());
    /// assert_eq!(report.stages[1].given_up, 5);
    /// # assert_eq!(counted.len(), 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_given_up(mut self, callback: impl FnMut(E, ExitReason) + Send + 'static) -> Self {
        self.on_given_up = Some(Mutex::new(Box::new(callback)));
        self
    }

    /// Uses GenStage's rule for children that fail: they are restarted at once, and more than
    /// `restarts` restarts of all children together within the time end the supervisor with
    /// [`TooManyRestarts`]. GenStage's own numbers are 3 within 5 seconds. By default there is no
    /// such limit, because one event that cannot be handled would end the pipeline.
    ///
    /// It can be combined with [`tries`](Self::tries) and [`backoff`](Self::backoff).
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = Some(RestartBudget::new(restarts, within));
        self
    }

    /// How long children have to end after they were notified to stop. Default 5 seconds; with
    /// [`Duration::ZERO`] they are dropped at once without a notification, with [`Duration::MAX`]
    /// there is no limit. These are an Elixir supervisor's `brutal_kill` and `infinity`.
    pub fn shutdown(mut self, within: Duration) -> Self {
        self.shutdown = within;
        self
    }

    /// The maximum number of children over all subscriptions together, except those started by
    /// hand. Further events wait in the supervisor, never more than were asked for; subscriptions
    /// take turns, so that one with many events does not delay another. By default only the
    /// subscriptions' own limits apply.
    ///
    /// # Panics
    ///
    /// If it is 0.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph, source::from_iter, subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    /// };
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
    /// # assert!(jobs.child_count().await?.workers <= 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_children(mut self, children: usize) -> Self {
        assert!(children > 0, "the maximum number of children must be at least 1");
        self.max_children = children;
        self
    }

    /// Adapts the number of children that run at once, between a floor and a ceiling: it grows
    /// while their latency stays low, and shrinks when it rises or when they fail.
    ///
    /// The subscriptions' `max_demand` should be the ceiling. Events without a running child wait
    /// in the supervisor. The metric `pipeline.worker.limit` shows the current limit. By default
    /// the number is fixed.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline,
    ///     source::from_iter,
    ///     subscription::SubscribeOptions,
    ///     supervisor::{Adaptive, ConsumerSupervisor},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fetch = async |page: &u64| Ok(println!("{page}"));
    /// let supervisor = ConsumerSupervisor::new(fetch).adaptive(Adaptive::between(2, 200));
    /// let mut pipeline = Pipeline::builder("pages")
    ///     .producer(from_iter(0..100))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(200))
    ///     .start()?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn adaptive(mut self, limit: Adaptive) -> Self {
        self.adaptive = Some(AdaptiveLimit::new(limit));
        self
    }

    /// Runs each child in a task of its own, however brief the children are.
    ///
    /// By default the supervisor runs children itself once they have proven to be brief ([`Worker`]
    /// describes when). That is faster, but a child that suddenly blocks its thread holds up the
    /// supervisor and all other children. If your workers may block, call this.
    ///
    /// ```
    /// use pipeline_core::supervisor::ConsumerSupervisor;
    ///
    /// // Usually the value is cached. If not, it is read from disk.
    /// let load = async |path: &String| Ok(drop(std::fs::read(path)?));
    /// let supervisor = ConsumerSupervisor::new(load).always_spawn();
    /// ```
    pub fn always_spawn(mut self) -> Self {
        self.always_spawn = true;
        self
    }

    /// The number of children that may run now.
    fn limit(&self) -> usize {
        let adaptive = self.adaptive.as_ref().map_or(usize::MAX, AdaptiveLimit::limit);
        self.max_children.min(adaptive)
    }

    /// Passes the latency of an ended child to the adaptive limit.
    fn record_latency(&mut self, latency: Duration, failed: bool) {
        let in_flight = self.children.len() - self.manual;
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.record(latency, in_flight, failed, Instant::now());
            #[expect(
                clippy::cast_precision_loss,
                reason = "the number of children is far below the limit of a f64"
            )]
            self.shared.metrics.limit.set(adaptive.limit() as f64);
        }
    }

    /// Starts children for waiting events, as far as there is room.
    fn start_waiting(&mut self) {
        // When it began to run children itself, and the current time.
        let mut burst: Option<(Instant, Instant)> = None;
        let mut reused = Reused::new();
        while self.children.len() - self.manual < self.limit() && !self.waiting.is_empty() {
            let brief = self.runs_inline();
            let is_over = burst.is_some_and(|(begun, now)| now - begun >= INLINE_TIME);
            self.pauses = if brief { self.pause(is_over) } else { Pause::No };
            if self.pauses != Pause::No {
                break;
            }
            let Some((event, from)) = self.waiting.pop() else { break };
            // For the report, if the worker never returns.
            self.gauges.set_inline(1, self.waiting.len());
            if !brief || is_over {
                self.start(event, Some(from));
                continue;
            }
            let (begun, now) = burst.unwrap_or_else(|| {
                let now = Instant::now();
                (now, now)
            });
            let Some((event, context)) = self.admit(event, Some(from)) else { continue };
            let reserved = context.reserved.clone();
            // A child that waits gets a task, which polls it again with a waker of its own.
            let now = match reused.poll_once(self.job(event, context, Some(now))) {
                Ok(done) => self.ran_here(done, from, reserved, now),
                Err(job) => {
                    let then = Instant::now();
                    // Recorded now and not when it is done: the next child is about to be started.
                    self.inline_estimate.record_wrong_guess(then - now, self.behind());
                    self.spawn_new(Some(from), reserved, job);
                    then
                }
            };
            burst = Some((begun, now));
        }
        self.gauges.set_inline(0, self.waiting.len());
    }

    /// Whether the supervisor runs the next child itself.
    fn runs_inline(&self) -> bool {
        // The adaptive limit cannot learn from children that complete at once.
        self.inline_estimate.is_likely() && !self.always_spawn && self.adaptive.is_none()
    }

    /// Whether children that the supervisor runs itself have to wait, and for what.
    fn pause(&self, time_is_up: bool) -> Pause {
        if !self.reserves {
            return Pause::No;
        }
        match self.shared.poll_reserved(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Pause::Reserved,
            Poll::Ready(()) if time_is_up => Pause::Yield,
            Poll::Ready(()) => Pause::No,
        }
    }

    /// Starts the children that had to wait.
    fn resume(&mut self) {
        if mem::replace(&mut self.pauses, Pause::No) != Pause::No {
            self.start_waiting();
        }
    }

    /// Starts a child for an event. If the child does not start, the event is done.
    fn start(&mut self, event: E, subscription: Option<SubscriptionId>) -> Option<ChildId> {
        let (event, context) = self.admit(event, subscription)?;
        let reserved = context.reserved.clone();
        let job = self.job(event, context, None);
        Some(self.spawn_new(subscription, reserved, job))
    }

    /// Handles the end of a child that the supervisor has run itself since `started`. Returns the
    /// current time.
    fn ran_here(
        &mut self,
        done: Finished<E>,
        from: SubscriptionId,
        reserved: Option<Reserved>,
        started: Instant,
    ) -> Instant {
        // The clock is not read for each child: the end of this one is the start of the next.
        let now = started.checked_add(done.took).unwrap_or(started);
        if done.outcome.as_ref().err().is_none_or(ExitReason::is_graceful) {
            if reserved.is_some() {
                self.inline_estimate.record_reserved(false, done.took, self.behind());
            } else {
                self.inline_estimate.record(done.at_once, done.took, self.behind());
            }
            self.free(Some(from));
        } else {
            // A child that has failed takes the usual path.
            self.spawn_new(Some(from), reserved, async { done });
        }
        now
    }

    /// The event and the context of a child, if the worker accepts the event. If not, the event is
    /// done.
    fn admit(
        &mut self,
        event: E,
        subscription: Option<SubscriptionId>,
    ) -> Option<(E, ChildContext)> {
        let mut context = self.context(0);
        let worker = &self.shared.worker;
        let accepted = catch_panic_now(|| {
            Ok(match worker.admit(&event, &context)? {
                Admission::Run => Some(worker.reserve(&event)),
                Admission::Ignore => None,
            })
        });
        match accepted {
            Ok(Some(reserved)) => {
                self.reserves |= reserved.is_some();
                context.reserved = reserved;
                return Some((event, context));
            }
            Ok(None) => {}
            Err(reason) => {
                self.count_failure();
                tracing::error!(stage = %self.stage, reason = shown(&reason), "a worker failed to start, giving up its event");
                self.give_up(event, reason);
            }
        }
        self.free(subscription);
        None
    }

    /// Counts a given-up event and passes it to the callback.
    fn give_up(&mut self, event: E, reason: ExitReason) {
        self.shared.metrics.given_up.increment(1);
        self.gauges.given_up.add(1);
        self.given_up += 1;
        let Some(callback) = &mut self.on_given_up else { return };
        let outcome = catch_panic_now(|| {
            callback.get_mut()(event, reason);
            Ok(())
        });
        if let Err(reason) = outcome {
            tracing::error!(stage = %self.stage, reason = shown(&reason), "the on_given_up callback panicked");
        }
    }

    fn count_failure(&self) {
        self.shared.metrics.failed.increment(1);
        self.gauges.worker_failures.add(1);
    }

    /// How many children have to wait for one that the supervisor runs itself.
    fn behind(&self) -> usize {
        let free = self.limit().saturating_sub(self.children.len() - self.manual);
        self.waiting.len().min(free)
    }

    /// Calls the worker's `admit`.
    fn call_admit(&self, event: &E, context: &ChildContext) -> Result<Admission, ExitReason> {
        catch_panic_now(|| self.shared.worker.admit(event, context))
    }

    fn context(&self, restarts: u32) -> ChildContext {
        let stopping = self.stopping.0.clone();
        let spare = self.spare.min(self.limit().saturating_sub(1));
        ChildContext { stopping, restarts, reserved: None, spare }
    }

    /// The future of a child. It is timed from `started` on, or from its first poll.
    fn job(
        &self,
        event: E,
        context: ChildContext,
        started: Option<Instant>,
    ) -> impl Future<Output = Finished<E>> + Send + use<E, W> {
        let (shared, restarts) = (self.shared.clone(), context.restarts);
        async move {
            let Shared { worker, metrics } = &*shared;
            let started = started.unwrap_or_else(Instant::now);
            let mut polls = 0u64;
            let outcome = {
                let run = catch_panic_now(|| {
                    let _running = Running::since(started);
                    Ok(worker.run(&event, context))
                });
                match run {
                    Ok(run) => {
                        let mut run = pin!(run);
                        poll_fn(|context| {
                            polls += 1;
                            let _running = Running::since(started);
                            poll_contained(run.as_mut(), context)
                        })
                        .await
                    }
                    Err(panicked) => Err(panicked),
                }
            };
            let took = started.elapsed();
            metrics.process_time.record(took.as_secs_f64() * 1e3);
            Finished { event, restarts, outcome, took, at_once: polls <= 1 }
        }
    }

    /// Spawns a job as a new child.
    fn spawn_new(
        &mut self,
        subscription: Option<SubscriptionId>,
        reserved: Option<Reserved>,
        job: impl Future<Output = Finished<E>> + Send + 'static,
    ) -> ChildId {
        let id = ChildId(self.next_child);
        self.next_child += 1;
        self.manual += usize::from(subscription.is_none());
        self.children.insert(
            id,
            Child { subscription, reserved, task: None, piece: None, terminated: Vec::new() },
        );
        self.gauges.workers.store(self.children.len(), Relaxed);
        self.spawn(id, job);
        id
    }

    fn spawn(&mut self, id: ChildId, job: impl Future<Output = Finished<E>> + Send + 'static) {
        let span = Span::current();
        // Without the span, the future is smaller.
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

    /// Frees the slot of a child that is done, or restarts it.
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
        if let Ok((_, Finished { took, outcome, at_once, .. })) = &ended {
            // Without a task, it would have held up the others.
            let others = self.children.len().saturating_sub(1);
            if self.reserves {
                self.inline_estimate.record_reserved(true, *took, others);
            } else {
                self.inline_estimate.record(*at_once, *took, others);
            }
            let failed = outcome.as_ref().is_err_and(|reason| !reason.is_graceful());
            if counts {
                self.record_latency(*took, failed);
            }
        }
        let terminated = self.children.get(&id).is_some_and(|child| !child.terminated.is_empty());
        match ended {
            Ok((_, Finished { event, restarts, outcome: Err(reason), .. }))
                if !reason.is_graceful() && !terminated =>
            {
                self.count_failure();
                let failed = restarts.saturating_add(1);
                let restart = self.may_try_again(failed);
                let (stage, tries) = (&self.stage, failed);
                if restart {
                    tracing::error!(%stage, reason = shown(&reason), restart, tries, "a worker failed");
                } else {
                    tracing::error!(
                        %stage, reason = shown(&reason), restart, tries,
                        "a worker failed, giving up its event"
                    );
                }
                return self.after_failure(id, event, failed, reason);
            }
            Err(error) if error.is_panic() => {
                // A destructor has panicked, and the event was dropped with the task.
                self.count_failure();
                self.in_progress += 1;
                tracing::error!(stage = %self.stage, "a worker's task panicked, its event is lost");
            }
            _ => {}
        }
        self.child_done(id);
        Ok(())
    }

    /// Retries an event whose worker has failed, later or at once, or gives it up. `failed` is the
    /// number of failures so far.
    fn after_failure(
        &mut self,
        id: ChildId,
        event: E,
        failed: u32,
        reason: ExitReason,
    ) -> Result<(), ExitReason> {
        if !self.may_try_again(failed) {
            self.give_up(event, reason);
            self.child_done(id);
            return Ok(());
        }
        let now = Instant::now();
        if self.budget.as_mut().is_some_and(|budget| !budget.spend(now)) {
            // The event was being processed and is not retried.
            self.in_progress += 1;
            self.remove_child(id);
            tracing::error!(stage = %self.stage, "too many restarts, stopping");
            return Err(TooManyRestarts::new(reason).into());
        }
        if let Some(child) = self.children.get_mut(&id) {
            child.task = None;
        }
        let delay = self.tries.delay(failed, self.budget.is_some(), random());
        self.restarting.insert((Deadline::after(now, delay), id), (event, failed));
        Ok(())
    }

    fn may_try_again(&self, failed: u32) -> bool {
        self.restart == Restart::Transient
            && self.tries.allow_another(failed, self.budget.is_some())
    }

    /// The time of the next restart.
    fn next_restart(&self) -> Deadline {
        self.restarting.first_key_value().map_or(Deadline::NEVER, |((at, _), _)| *at)
    }

    /// Restarts the children whose delay has passed.
    fn restart_due(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        // A child that fails to start is retried in the next call, even without a delay.
        for _ in 0..self.restarting.len() {
            if !self.next_restart().has_passed(now) {
                break;
            }
            let Some(((_, id), (event, failed))) = self.restarting.pop_first() else { break };
            self.restart_child(id, event, failed)?;
        }
        Ok(())
    }

    fn restart_child(&mut self, id: ChildId, event: E, failed: u32) -> Result<(), ExitReason> {
        self.shared.metrics.restarted.increment(1);
        let mut context = self.context(failed);
        context.reserved = self.children.get(&id).and_then(|child| child.reserved.clone());
        match self.call_admit(&event, &context) {
            Ok(Admission::Run) => {
                let job = self.job(event, context, None);
                self.spawn(id, job);
            }
            Ok(Admission::Ignore) => self.child_done(id),
            Err(reason) => {
                self.count_failure();
                let failed = failed.saturating_add(1);
                if self.may_try_again(failed) {
                    tracing::error!(stage = %self.stage, reason = shown(&reason), "a worker failed to restart");
                } else {
                    tracing::error!(stage = %self.stage, reason = shown(&reason), tries = failed, "a worker failed to restart, giving up its event");
                }
                return self.after_failure(id, event, failed, reason);
            }
        }
        Ok(())
    }

    fn remove_child(&mut self, id: ChildId) -> Option<Child> {
        let child = self.children.remove(&id)?;
        self.gauges.workers.store(self.children.len(), Relaxed);
        self.manual -= usize::from(child.subscription.is_none());
        Some(child)
    }

    /// Removes a child that is done with its event.
    fn child_done(&mut self, id: ChildId) {
        let Some(child) = self.remove_child(id) else { return };
        for mut caller in child.terminated {
            caller.reply(Ok(()));
        }
        self.free(child.subscription);
        self.start_waiting();
    }

    /// Updates the number of spare children after a subscription was added or removed.
    fn count_spare(&mut self) {
        self.spare =
            self.slots.values().map(|(_, slots)| slots.spare()).min().unwrap_or(usize::MAX);
    }

    /// Frees a slot.
    fn free(&mut self, subscription: Option<SubscriptionId>) {
        if let Some(subscription) = subscription
            && let Some((_, slots)) = self.slots.get_mut(&subscription)
        {
            slots.free();
        }
    }

    /// Sends demand for free slots. Called last in a callback, so that slots that are freed
    /// together are asked for together, and a supervisor that is about to stop asks for none.
    fn ask(&mut self) {
        for (subscription, slots) in self.slots.values_mut() {
            subscription.ask(slots.ask());
        }
    }

    /// Notifies the children to stop, and waits for them until the deadline.
    async fn stop_children(&mut self, phase: &mut watch::Receiver<Phase>) {
        self.stopping.0.send_replace(true);
        // Failed children are not retried: their reservations would block others.
        for (_, id) in self.restarting.keys() {
            if let Some(child) = self.children.get_mut(id) {
                child.reserved = None;
            }
        }
        while let Some(ended) = self.ended.pop_front() {
            self.count_interrupted(&ended);
        }
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
                    Some(ended) => self.count_interrupted(&ended),
                    None => return,
                },
                () = &mut deadline => return,
            }
        }
    }

    /// Drops the remaining children in any state.
    async fn kill_children(&mut self) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.count_interrupted(&ended);
        }
    }

    /// Counts a child that ended while the supervisor was stopping.
    fn count_interrupted(&mut self, ended: &Ended<E>) {
        let task = match ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let child = self.by_task.remove(&task).and_then(|id| self.children.get_mut(&id));
        if let Some(child) = child {
            // It is not retried.
            child.reserved = None;
        }
        if !matches!(ended, Ok((_, Finished { outcome: Ok(()), .. }))) {
            self.in_progress += 1;
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
