//! Consumer supervisors: a child for each event, and how many at once.

mod adaptive;
mod calls;
mod children;
mod inline;
mod inline_estimate;
mod reused;
mod round_robin;
mod slots;
mod started;
mod supervision;
mod tries;
mod waiting;
pub(crate) mod worker;

use std::{
    convert::Infallible,
    fmt,
    hash::{BuildHasher, Hash},
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;

pub(crate) use self::started::started_at;
pub use self::{
    adaptive::Adaptive,
    supervision::Supervision,
    tries::{KeyIsFull, TimedOut, TooManyRestarts},
    worker::{Admission, ChildContext, Reserved, Worker},
};
use self::{tries::Tries, waiting::KeyOf};
use crate::{backoff::Backoff, exit::ExitReason, stage::StageHandle};

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
    worker: W,
    options: Options<E>,
}

/// The options of a supervisor.
struct Options<E> {
    restart: Restart,
    tries: Tries,
    /// The limit on restarts of all children together, if there is one.
    max_restarts: Option<(usize, Duration)>,
    on_given_up: Option<OnGivenUp<E>>,
    shutdown: Duration,
    /// How long a run of a worker may take.
    run_within: Duration,
    max_children: usize,
    adaptive: Option<Adaptive>,
    /// Whether each child gets a task, however brief children are.
    always_spawn: bool,
    /// Whether children have places that they can leave.
    may_leave: bool,
    /// The key of an event, if only so many of each key are in work.
    key_of: Option<KeyOf<E>>,
    /// How many of each key.
    at_most_per_key: usize,
    /// How many of each key may wait.
    max_waiting_per_key: usize,
}

impl<E> Options<E> {
    /// Whether an event is tried again after `failed` failures, the last one for this reason.
    fn may_try_again(&self, failed: u32, reason: &ExitReason) -> bool {
        self.restart == Restart::Transient
            && !reason.is_final()
            && self.tries.allow_another(failed, self.max_restarts.is_some())
    }

    /// The delay before the next try.
    fn delay(&self, failed: u32, random: f64) -> Duration {
        self.tries.delay(failed, self.max_restarts.is_some(), random)
    }
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
pub type SupervisorHandle<E, W> = StageHandle<Supervision<E, W>, E, Infallible>;

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

/// The user's callback for given-up events. The lock is never contended: it only makes the
/// supervisor `Sync`, whatever the function is.
type OnGivenUp<E> = Mutex<Box<dyn FnMut(E, ExitReason) + Send>>;

impl<E, W: Worker<E>> ConsumerSupervisor<E, W>
where
    E: Send + Sync + 'static,
{
    /// A supervisor of children that run this worker: transient, with three tries for each event,
    /// and 5 seconds to stop.
    pub fn new(worker: W) -> Self {
        Self {
            worker,
            options: Options {
                restart: Restart::default(),
                tries: Tries::default(),
                max_restarts: None,
                on_given_up: None,
                shutdown: Duration::from_secs(5),
                run_within: Duration::MAX,
                max_children: usize::MAX,
                adaptive: None,
                always_spawn: false,
                may_leave: false,
                key_of: None,
                at_most_per_key: 1,
                max_waiting_per_key: usize::MAX,
            },
        }
    }

    /// What happens to a child that fails. Default [`Restart::Transient`].
    pub fn restart(mut self, restart: Restart) -> Self {
        self.options.restart = restart;
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
        self.options.tries.most = Some(tries);
        self
    }

    /// The delay before an event is tried again; it keeps its slot meanwhile. Default from 100
    /// milliseconds to 5 seconds with [`Jitter::Equal`](crate::backoff::Jitter::Equal), and no
    /// delay with [`max_restarts`](Self::max_restarts).
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.options.tries.backoff = Some(backoff);
        self
    }

    /// Calls `callback` with each given-up event and the last failure of its worker, for example to
    /// store the event in a dead-letter queue. It is called between two messages of the supervisor,
    /// so it should not block.
    ///
    /// An event is given up when it has failed as often as [`tries`](Self::tries) allows, when its worker has
    /// ended with [`ExitReason::give_up`], when its worker's `admit` returns an error, when the function of its key
    /// panics, and when [too many of its key wait](Self::max_waiting_per_key). It is counted in any case, in
    /// `pipeline.worker.given_up` by reason, and logged: after the first hundred lines, ten a second at most.
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
        self.options.on_given_up = Some(Mutex::new(Box::new(callback)));
        self
    }

    /// Uses GenStage's rule for children that fail: they are restarted at once, and more than
    /// `restarts` restarts of all children together within the time end the supervisor with
    /// [`TooManyRestarts`]. GenStage's own numbers are 3 within 5 seconds. By default there is no
    /// such limit, because one event that cannot be handled would end the pipeline.
    ///
    /// It can be combined with [`tries`](Self::tries) and [`backoff`](Self::backoff).
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.options.max_restarts = Some((restarts, within));
        self
    }

    /// How long children have to end after they were notified to stop. Default 5 seconds; with
    /// [`Duration::ZERO`] they are dropped at once without a notification, with [`Duration::MAX`]
    /// there is no limit. These are an Elixir supervisor's `brutal_kill` and `infinity`.
    pub fn shutdown(mut self, within: Duration) -> Self {
        self.options.shutdown = within;
        self
    }

    /// How long a run of the worker may take, from its first poll. Then its future is dropped, and the run has
    /// failed with [`TimedOut`]: its event is tried again like that of any other failure, each time with this limit,
    /// and given up after the last. Default no limit.
    ///
    /// A worker that has left its [place](ChildContext::place) has the same limit. Its wait for a turn is [not
    /// counted](crate::stage::Place::without_limit). One that blocks its thread is not interrupted.
    ///
    /// ```
    /// use std::{future::pending, time::Duration};
    ///
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, subscription::SubscribeOptions,
    ///     supervisor::{ConsumerSupervisor, TimedOut},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ask = async |_: &u64| pending().await; // a service that does not answer
    /// let supervisor = ConsumerSupervisor::new(ask)
    ///     .run_within(Duration::from_secs(10))
    ///     .on_given_up(|n, reason| {
    ///         let late = reason.source().is_some_and(|error| error.is::<TimedOut>());
    ///         println!("{n} is given up: {reason}");
    /// #       assert!(late);
    ///     });
    /// let mut pipeline = Pipeline::builder("questions")
    ///     .producer(from_iter(0..10))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new())
    ///     .start()?;
    /// assert_eq!(pipeline.join().await.stages[1].given_up, 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_within(mut self, limit: Duration) -> Self {
        self.options.run_within = limit;
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
        self.options.max_children = children;
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
        self.options.adaptive = Some(limit);
        self
    }

    /// Keeps the order of events with the same key: one of them is in work at a time, and the next
    /// begins when it is done: handled, ignored or given up. So a child that fails and is restarted
    /// holds up its key until then, and no other. One that [leaves its place](Self::may_leave) holds it up no
    /// more: when it is restarted, later events of its key may have been done. By default children run in no
    /// order.
    ///
    /// Events arrive in the order in which their producer emits them, and over several subscriptions
    /// in the order of their messages. Events that wait for their key wait in the supervisor and take
    /// their slots, so there are never more than were asked for. If all of them wait behind one event,
    /// nothing else is in work: a `max_demand` well above the wanted number of children, and
    /// [`max_children`](Self::max_children) for that number, let a busy key hold up others less.
    /// Children that are started by hand do not wait.
    ///
    /// If the function panics, its event is given up.
    ///
    /// In a pipeline of messages,
    /// [`Processors::partition_by`](crate::processing::Processors::partition_by) keeps such an order:
    /// there, keys share a number of partitions, and each waits for the others of its partition. Here
    /// each key waits for itself alone. An order that a supervisor of other workers before this one has
    /// lost does not come back.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let notify = async |(user, text): &(u64, &str)| Ok(println!("{user}: {text}"));
    /// let supervisor = ConsumerSupervisor::new(notify)
    ///     .ordered_by_key(|(user, _): &(u64, &str)| *user)
    ///     .max_children(100);
    /// let mut pipeline = Pipeline::builder("notices")
    ///     .producer(from_iter([(1, "first"), (1, "second"), (2, "for another")]))
    ///     .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(1000))
    ///     .start()?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ordered_by_key<K: Hash>(self, key: impl Fn(&E) -> K + Send + Sync + 'static) -> Self {
        self.at_most_per_key(1, key)
    }

    /// Bounds how many events with the same key are in work at a time: `children` of them. They begin in the
    /// order of their arrival. A user whose events are slow so holds that many children, and the others have the rest,
    /// as long as fewer of that user's events wait than the demand has room for: set
    /// [`max_waiting_per_key`](Self::max_waiting_per_key) where a user may have more. With one, it is
    /// [`ordered_by_key`](Self::ordered_by_key), which says how events wait; with more, events of a key may end
    /// in another order.
    ///
    /// # Panics
    ///
    /// If `children` is 0.
    ///
    /// ```
    /// use pipeline_core::supervisor::ConsumerSupervisor;
    ///
    /// let export = async |(tenant, table): &(u64, &str)| Ok(println!("{tenant}: {table}"));
    /// // 20 exports at once, of which no tenant has more than 3.
    /// let supervisor = ConsumerSupervisor::new(export)
    ///     .at_most_per_key(3, |(tenant, _): &(u64, &str)| *tenant)
    ///     .max_children(20);
    /// # drop(supervisor);
    /// ```
    #[track_caller]
    pub fn at_most_per_key<K: Hash>(
        mut self,
        children: usize,
        key: impl Fn(&E) -> K + Send + Sync + 'static,
    ) -> Self {
        assert!(children > 0, "at most 0 children per key, expected at least 1");
        // Two keys with the same hash share their children, which changes no order.
        let hasher = foldhash::quality::RandomState::default();
        self.options.key_of = Some(Box::new(move |event| hasher.hash_one(key(event))));
        self.options.at_most_per_key = children;
        self
    }

    /// Bounds how many events of a key wait for those before them: `events` of them. Further ones are given up at once,
    /// with the reason [`KeyIsFull`]: they are counted in `pipeline.worker.given_up`, and
    /// [`on_given_up`](Self::on_given_up) receives them. By default there is no bound, and all events of a key that wait
    /// are part of the demand: a user whose events are slow, and who has more of them than `max_demand`, holds up all users.
    ///
    /// # Panics
    ///
    /// If there is no key yet: call [`ordered_by_key`](Self::ordered_by_key) or
    /// [`at_most_per_key`](Self::at_most_per_key) before.
    ///
    /// ```
    /// use pipeline_core::supervisor::ConsumerSupervisor;
    ///
    /// let notify = async |(user, text): &(u64, &str)| Ok(println!("{user}: {text}"));
    /// let supervisor = ConsumerSupervisor::new(notify)
    ///     .ordered_by_key(|(user, _): &(u64, &str)| *user)
    ///     .max_waiting_per_key(100)
    ///     .on_given_up(|(user, _), reason| eprintln!("user {user} missed a notice: {reason}"));
    /// # drop(supervisor);
    /// ```
    #[track_caller]
    pub fn max_waiting_per_key(mut self, events: usize) -> Self {
        assert!(
            self.options.key_of.is_some(),
            "max_waiting_per_key without a key, expected ordered_by_key or at_most_per_key before it"
        );
        self.options.max_waiting_per_key = events;
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
        self.options.always_spawn = true;
        self
    }

    /// Gives each child a [place](ChildContext::place) that it can leave while it only waits. Then the
    /// next event is asked for and begins. By default a child occupies its slot until it ends.
    ///
    /// A child that has left, fails and is restarted waits for a slot and for its key again, behind the events
    /// that wait already. One with a [reservation](Worker::reserve) does not, because others may wait for that: it
    /// is restarted at once, without a slot and its key.
    ///
    /// The supervisor does not bound how many children have left their places. The worker has to.
    pub fn may_leave(mut self) -> Self {
        self.options.may_leave = true;
        self
    }
}

impl<E, W> fmt::Debug for ConsumerSupervisor<E, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerSupervisor").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<E> fmt::Debug for Options<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("restart", &self.restart)
            .field("shutdown", &self.shutdown)
            .field("run_within", &self.run_within)
            .field("max_children", &self.max_children)
            .finish_non_exhaustive()
    }
}
