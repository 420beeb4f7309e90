//! The stage that starts one supervised child per event.

mod behaviour;
mod brevity;
mod calls;
mod started;
mod tries;
mod turns;

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

pub use self::tries::TooManyRestarts;
pub(crate) use self::{behaviour::AsSupervisor, started::started_at};
use self::{brevity::Brevity, started::Running, tries::Tries, turns::Turns};
use super::{
    Caller, ChildContext, Phase, Reserved, StageHandle, Start, Worker, contained, contained_now,
    gauges::Gauges,
    random,
    restart::{Restart, RestartBudget},
};
use crate::{
    adaptive::{Adaptive, AdaptiveLimit, Piece},
    backoff::Backoff,
    deadline::Deadline,
    demand::Slots,
    exit::ExitReason,
    shown::shown,
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
/// # When a child fails
///
/// By default its event is tried again in the same slot, after a short while, and
/// [given up](Self::on_given_up) when it has failed three times; all others go on. How often is said by
/// [`tries`](Self::tries), how long a while is by [`backoff`](Self::backoff). What is given up is counted
/// in the metric `pipeline.worker.given_up` and in the [report](crate::StageReport::given_up).
///
/// GenStage's rule is another: a child is started again at once, and as often as need be, but when there
/// are more restarts in a time than [`max_restarts`](Self::max_restarts) allows, the supervisor ends,
/// because something is wrong that restarting doesn't mend. That is a failure of the stage,
/// [`TooManyRestarts`], and with it of its pipeline, unless it is started again as
/// [`Stage::restarting`](crate::Stage::restarting) says. Its producers are told
/// [`ExitReason::Shutdown`].
///
/// When its producer ends with [`ExitReason::Normal`], the supervisor lets its children finish and
/// ends too. When it has to stop, its children are told so
/// ([`ChildContext::stopping`]) and are dropped once [`shutdown`](Self::shutdown) is over.
///
/// The semantics are those of GenStage's `ConsumerSupervisor`, except for the gentle end, for what
/// becomes of an event whose child fails, that it asks at `min_demand` like any other consumer, and the
/// default of that.
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
///     .tries(5)
///     .on_given_up(|image, reason| eprintln!("{} bytes: {reason}", image.len()))
///     .shutdown(Duration::from_secs(30));
/// ```
#[must_use]
pub struct ConsumerSupervisor<E, W> {
    shared: Arc<Shared<W>>,
    restart: Restart,
    tries: Tries,
    /// How many restarts all children together may have, if that is limited.
    budget: Option<RestartBudget>,
    on_given_up: Option<OnGivenUp<E>>,
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
    /// Whether the worker reserves something for its children, so that they wait for each other.
    reserves: bool,
    /// Whether there is room for more children, which have to wait for their turn.
    pauses: Pause,
    next_child: u64,
    /// How many of the children were started by hand.
    by_hand: usize,
    slots: foldhash::HashMap<SubscriptionId, (Subscription, Slots)>,
    /// The [spare](ChildContext::spare) children.
    spare: usize,
    /// Children that have failed, by when they are started again, with how often they have failed.
    restarting: BTreeMap<(Deadline, ChildId), (E, u32)>,
    /// Events that wait for a place among `max_children`.
    waiting: Turns<E>,
    stopping: Stopping,
    stage: Arc<str>,
    gauges: Arc<Gauges>,
    unfinished: usize,
    given_up: usize,
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

/// What is told of an event that is given up. The lock is never waited for: it makes the supervisor
/// `Sync`, whatever the function is.
type OnGivenUp<E> = Mutex<Box<dyn FnMut(E, ExitReason) + Send>>;

/// What all children share: one handle for each, because to count more costs as much as a brief child.
struct Shared<W> {
    worker: W,
    metrics: WorkerMetrics,
}

impl<W> Shared<W> {
    /// Whether all children have come to what was reserved for them.
    fn poll_reserved<E>(&self, cx: &mut Context<'_>) -> Poll<()>
    where
        W: Worker<E>,
    {
        // A worker that panics is not waited for.
        contained_now(|| Ok(self.worker.poll_reserved(cx))).unwrap_or(Poll::Ready(()))
    }
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

/// Why a supervisor starts no child although there is room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    No,
    /// The children have not all come to what was reserved for them.
    Reserved,
    /// It gives way to other tasks.
    Spell,
}

impl Pause {
    /// Waits until children can be started again. For ever, if they can.
    async fn is_over<E, W: Worker<E>>(self, shared: &Shared<W>) {
        match self {
            Self::No => pending().await,
            Self::Reserved => poll_fn(|cx| shared.poll_reserved::<E>(cx)).await,
            Self::Spell => yield_now().await,
        }
    }
}

/// For so long a supervisor runs children itself, one after the other, before it gives the next ones
/// tasks, which other cores may run. Children that keep an order would wait for each other there: they
/// wait for the supervisor's next turn instead.
const SPELL: Duration = Duration::from_millis(1);

impl<E, W: Worker<E>> ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
{
    /// Supervises children of this worker: transient, with three tries for each event, and 5 seconds to
    /// stop.
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
            brevity: Brevity::new(),
            always_spawn: false,
            reserves: false,
            pauses: Pause::No,
            next_child: 0,
            by_hand: 0,
            slots: foldhash::HashMap::default(),
            spare: usize::MAX,
            restarting: BTreeMap::new(),
            waiting: Turns::new(),
            stopping: Stopping::default(),
            stage: "".into(),
            gauges: Arc::new(Gauges::new(StageKind::ConsumerSupervisor, None)),
            unfinished: 0,
            given_up: 0,
        }
    }

    /// What happens to a child that fails. Default [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How often an event is tried before it is given up, the first time included. Default 3, and no
    /// bound with [`max_restarts`](Self::max_restarts).
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn tries(mut self, tries: u32) -> Self {
        assert!(tries > 0, "an event is tried at least once");
        self.tries.most = Some(tries);
        self
    }

    /// How long an event waits before it is tried again; it keeps its slot meanwhile. Default from 100
    /// milliseconds to 5 seconds with [`Jitter::Equal`](crate::Jitter::Equal), and no wait with
    /// [`max_restarts`](Self::max_restarts).
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.tries.backoff = Some(backoff);
        self
    }

    /// Calls this with each event that is given up and why its worker failed the last time: the place to
    /// put it where somebody sees it. Called between two messages of the supervisor, so it should not
    /// block.
    ///
    /// An event is given up when it has failed so often as [`tries`](Self::tries) says, and when its
    /// worker refuses to start with an error. It is logged and counted in any case.
    ///
    /// A queue that such events are put into has a pipeline of its own. Drain that one after this one: this
    /// one may give up events until it has ended.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Closed, ConsumerSupervisor, ExitReason, Pipeline, QueueOptions, SubscribeOptions, from_iter,
    ///     queue,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // What could not be handled waits for somebody to look at it.
    /// let (failed, _to_look_at) = queue(QueueOptions::new().capacity(1000));
    /// # let counted = failed.clone();
    /// let halve = async |n: &u64| match n % 2 {
    ///     0 => Ok(println!("{}", n / 2)),
    ///     _ => Err(ExitReason::failed("odd")),
    /// };
    /// let supervisor = ConsumerSupervisor::new(halve).on_given_up(move |n, reason| {
    ///     eprintln!("{n}: {reason}");
    ///     // The queue takes nothing more once its own pipeline drains.
    ///     if let Err(Closed(n)) = failed.offer(n) {
    ///         eprintln!("{n} is not put aside");
    ///     }
    /// });
    /// let mut pipeline = Pipeline::builder("halves")
    ///     .producer(from_iter(0..10))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new())
    ///     .start()?;
    /// let report = pipeline.ended().await;
    /// assert!(report.is_clean());
    /// assert_eq!(report.stages[1].given_up, 5);
    /// # assert_eq!(counted.len(), 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_given_up(mut self, tell: impl FnMut(E, ExitReason) + Send + 'static) -> Self {
        self.on_given_up = Some(Mutex::new(Box::new(tell)));
        self
    }

    /// GenStage's rule for children that fail: they are started again at once, and more than so many
    /// restarts of all children together within the time end the supervisor with [`TooManyRestarts`].
    /// GenStage's own numbers are 3 within 5 seconds. By default there is no such bound, because one event
    /// that cannot be handled would end the pipeline.
    ///
    /// [`tries`](Self::tries) and [`backoff`](Self::backoff) can be given as well.
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = Some(RestartBudget::new(restarts, within));
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
        // When it began to run children itself, and what time it is.
        let mut spell: Option<(Instant, Instant)> = None;
        while self.children.len() - self.by_hand < self.limit() && !self.waiting.is_empty() {
            let brief = self.is_brief();
            let is_over = spell.is_some_and(|(begun, now)| now - begun >= SPELL);
            self.pauses = if brief { self.pause(is_over) } else { Pause::No };
            if self.pauses != Pause::No {
                break;
            }
            let Some((event, from)) = self.waiting.pop() else { break };
            // For the report, if the worker never comes back.
            self.gauges.runs_itself(1, self.waiting.len());
            if brief && !is_over {
                let (begun, now) = spell.unwrap_or_else(|| {
                    let now = Instant::now();
                    (now, now)
                });
                spell = Some((begun, self.begin_here(event, from, now)));
            } else {
                self.begin(event, Some(from));
            }
        }
        self.gauges.runs_itself(0, self.waiting.len());
    }

    /// Whether the supervisor runs the next child itself.
    fn is_brief(&self) -> bool {
        // How many children do best is not learned from those that are done already.
        self.brevity.is_likely() && !self.always_spawn && self.adaptive.is_none()
    }

    /// Whether children that the supervisor runs itself have to wait, and what for.
    fn pause(&self, spell_is_over: bool) -> Pause {
        match self.shared.poll_reserved(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Pause::Reserved,
            Poll::Ready(()) if spell_is_over && self.reserves => Pause::Spell,
            Poll::Ready(()) => Pause::No,
        }
    }

    /// Starts the children that had to wait for their turn.
    fn resume(&mut self) {
        if mem::replace(&mut self.pauses, Pause::No) != Pause::No {
            self.fill();
        }
    }

    /// Starts a child for an event. An event whose child does not start is done with.
    fn begin(&mut self, event: E, subscription: Option<SubscriptionId>) -> Option<ChildId> {
        let (event, context) = self.take_on(event, subscription)?;
        let reserved = context.reserved.clone();
        let job = self.job(event, context, None);
        Some(self.spawn_new(subscription, reserved, job))
    }

    /// Starts a child that is likely to be done at once. Only one that is not gets a task. Returns
    /// what time it is then.
    fn begin_here(&mut self, event: E, from: SubscriptionId, now: Instant) -> Instant {
        let Some((event, context)) = self.take_on(event, Some(from)) else { return now };
        let reserved = context.reserved.clone();
        let reserves = reserved.is_some();
        let mut job = Box::pin(self.job(event, context, Some(now)));
        // Its task polls it anew, with a waker of its own.
        let polled = job.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(done) = polled else {
            let then = Instant::now();
            // Known now, and not only when it is done: the next one is about to be begun.
            self.brevity.guessed_wrong(then - now, self.behind());
            self.spawn_new(Some(from), reserved, job);
            return then;
        };
        // The clock is not read for each child; it was read when this one was done.
        let now = now.checked_add(done.took).unwrap_or(now);
        if done.outcome.as_ref().err().is_none_or(ExitReason::is_graceful) {
            if reserves {
                self.brevity.learn_reserved(false, done.took, self.behind());
            } else {
                self.brevity.learn(done.at_once, done.took, self.behind());
            }
            self.free(Some(from));
        } else {
            // One that has failed goes the way of all children.
            self.spawn_new(Some(from), reserved, async { done });
        }
        now
    }

    /// What the child is given if the worker takes the event on. If not, it is done with.
    fn take_on(
        &mut self,
        event: E,
        subscription: Option<SubscriptionId>,
    ) -> Option<(E, ChildContext)> {
        let mut context = self.context(0);
        let outcome = self.attempt(&event, &context).and_then(|start| {
            if start == Start::Run {
                context.reserved = contained_now(|| Ok(self.shared.worker.reserve(&event)))?;
                self.reserves |= context.reserved.is_some();
            }
            Ok(start)
        });
        match outcome {
            Ok(Start::Run) => return Some((event, context)),
            Ok(Start::Ignore) => {}
            Err(reason) => {
                self.count_failure();
                tracing::error!(stage = %self.stage, reason = shown(&reason), "a worker did not start, its event is given up");
                self.give_up(event, reason);
            }
        }
        self.free(subscription);
        None
    }

    /// Tells of an event that is not tried again.
    fn give_up(&mut self, event: E, reason: ExitReason) {
        self.shared.metrics.given_up.increment(1);
        self.gauges.given_up.add(1);
        self.given_up += 1;
        let Some(tell) = &mut self.on_given_up else { return };
        let told = contained_now(|| {
            tell.get_mut()(event, reason);
            Ok(())
        });
        if let Err(reason) = told {
            tracing::error!(stage = %self.stage, reason = shown(&reason), "what is told of events that are given up failed");
        }
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
        let stopping = self.stopping.0.clone();
        let spare = self.spare.min(self.limit().saturating_sub(1));
        ChildContext { stopping, restarts, reserved: None, spare }
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
            if self.reserves {
                self.brevity.learn_reserved(true, *took, others);
            } else {
                self.brevity.learn(*at_once, *took, others);
            }
            let failed = outcome.as_ref().is_err_and(|reason| !reason.is_graceful());
            if counts {
                self.learn(*took, failed);
            }
        }
        let terminated = self.children.get(&id).is_some_and(|child| !child.terminated.is_empty());
        match ended {
            Ok((_, Done { event, restarts, outcome: Err(reason), .. }))
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
                        "a worker failed, its event is given up"
                    );
                }
                return self.after_failure(id, event, failed, reason);
            }
            Err(error) if error.is_panic() => {
                // A destructor has panicked, and the event went with the task.
                self.count_failure();
                self.unfinished += 1;
                tracing::error!(stage = %self.stage, "a worker's task panicked, its event is lost");
            }
            _ => {}
        }
        self.done(id);
        Ok(())
    }

    /// Tries an event again whose worker has failed, later or at once, or gives it up. `failed` says how
    /// often it has failed by now.
    fn after_failure(
        &mut self,
        id: ChildId,
        event: E,
        failed: u32,
        reason: ExitReason,
    ) -> Result<(), ExitReason> {
        if !self.may_try_again(failed) {
            self.give_up(event, reason);
            self.done(id);
            return Ok(());
        }
        let now = Instant::now();
        if self.budget.as_mut().is_some_and(|budget| !budget.spend(now)) {
            // The event is in hand and is not tried again.
            self.unfinished += 1;
            self.forget(id);
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

    /// When the next child is to be started again.
    fn next_restart(&self) -> Deadline {
        self.restarting.first_key_value().map_or(Deadline::NEVER, |((at, _), _)| *at)
    }

    /// Starts the children again whose time has come.
    fn start_again(&mut self) -> Result<(), ExitReason> {
        let now = Instant::now();
        // One that does not start has its turn the next time, with no delay too.
        for _ in 0..self.restarting.len() {
            if !self.next_restart().has_passed(now) {
                break;
            }
            let Some(((_, id), (event, failed))) = self.restarting.pop_first() else { break };
            self.start_one_again(id, event, failed)?;
        }
        Ok(())
    }

    fn start_one_again(&mut self, id: ChildId, event: E, failed: u32) -> Result<(), ExitReason> {
        self.shared.metrics.restarted.increment(1);
        let mut context = self.context(failed);
        context.reserved = self.children.get(&id).and_then(|child| child.reserved.clone());
        match self.attempt(&event, &context) {
            Ok(Start::Run) => {
                let job = self.job(event, context, None);
                self.spawn(id, job);
            }
            Ok(Start::Ignore) => self.done(id),
            Err(reason) => {
                self.count_failure();
                let failed = failed.saturating_add(1);
                if self.may_try_again(failed) {
                    tracing::error!(stage = %self.stage, reason = shown(&reason), "a worker did not start again");
                } else {
                    tracing::error!(stage = %self.stage, reason = shown(&reason), tries = failed, "a worker did not start again, its event is given up");
                }
                return self.after_failure(id, event, failed, reason);
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

    /// Takes note that a subscription has come or gone.
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
        // Those that have failed are not tried again: what is reserved for them would keep others waiting.
        for (_, id) in self.restarting.keys() {
            if let Some(child) = self.children.get_mut(id) {
                child.reserved = None;
            }
        }
        while let Some(ended) = self.ended.pop_front() {
            self.count_unfinished(&ended);
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
        let task = match ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let child = self.by_task.remove(&task).and_then(|id| self.children.get_mut(&id));
        if let Some(child) = child {
            // It is not tried again.
            child.reserved = None;
        }
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
