//! The worker that a consumer supervisor runs for each event.

use std::{
    any::Any,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::watch;

use crate::{exit::ExitReason, stage::Place};

/// A handler of single events, each in a task of its own.
///
/// Children that complete faster than a task can be spawned, about 5 microseconds of all cores, get
/// no task. When the children so far have completed in their first poll, and fast enough on
/// average, the supervisor runs the next ones itself. A child that waits after all gets its task
/// and continues there: its future is polled again. A child that computes or blocks for long delays
/// those after it once; then children have tasks again until as much time was saved as was lost,
/// including the time of the delayed ones; a minute lost takes some millions of children. So
/// children that compute share the cores, and usually nothing has to be configured; but a worker
/// should not depend on the task in which it begins. If a child sometimes blocks its thread,
/// [`always_spawn`](crate::supervisor::ConsumerSupervisor::always_spawn) gives each a task.
///
/// A worker is shared by all its children, so it holds their common resources: a connection pool,
/// an endpoint to broadcast with. It borrows its event, which stays with the supervisor: if the
/// child fails and is restarted, it gets the same event again.
///
/// An async closure or function that takes the event by reference is a worker:
///
/// ```
/// use pipeline_core::{ExitReason, supervisor::ConsumerSupervisor};
///
/// let prefix = String::from("got");
/// let supervisor = ConsumerSupervisor::new(async move |event: &u64| {
///     println!("{prefix} {event}");
///     Ok(())
/// });
/// # let _: ConsumerSupervisor<u64, _> = supervisor;
/// ```
///
/// Implement the trait for a worker that uses its [`ChildContext`], or that needs a named type:
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     supervisor::{ChildContext, Worker},
/// };
///
/// struct Fetch;
///
/// impl Worker<String> for Fetch {
///     async fn run(&self, url: &String, context: ChildContext) -> Result<(), ExitReason> {
///         tokio::select! {
///             () = context.stopping() => Err(ExitReason::Shutdown),
///             () = async { /* fetch url */ } => Ok(()),
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a worker for `{E}`",
    label = "neither an async closure that takes `&{E}`, nor a type that implements `Worker<{E}>`",
    note = "a worker is an async closure `async move |event: &Event| {{ .. Ok(()) }}` that is `Clone + Send + Sync`, \
            whose future is `Send` and returns `Result<(), ExitReason>`, or a type that implements `Worker`"
)]
pub trait Worker<E>: Send + Sync + 'static {
    /// Decides whether to accept an event, before a child is started for it and again before it is
    /// restarted. The default accepts all.
    ///
    /// # Errors
    ///
    /// The event is given up; see
    /// [`ConsumerSupervisor::on_given_up`](crate::supervisor::ConsumerSupervisor::on_given_up). On
    /// a restart, it counts as one more failed try.
    fn admit(&self, event: &E, context: &ChildContext) -> Result<Admission, ExitReason> {
        let _ = (event, context);
        Ok(Admission::Run)
    }

    /// Reserves something for the child from the moment its event arrives, such as a place in a
    /// queue. The default reserves nothing.
    ///
    /// It is called once for each accepted event, in the order of the events, and before the child
    /// is started. Children run concurrently and in no order, so work that has to follow the order
    /// of their events can depend on the reservation. The child finds it in
    /// [`ChildContext::reserved`], also after a restart, and it is dropped when the supervisor is
    /// done with the event.
    ///
    /// ```
    /// use std::sync::{
    ///     Arc,
    ///     atomic::{AtomicU64, Ordering},
    /// };
    ///
    /// use pipeline_core::{
    ///     ExitReason,
    ///     supervisor::{ChildContext, Reserved, Worker},
    /// };
    ///
    /// /// Numbers the orders in the order of their arrival.
    /// #[derive(Default)]
    /// struct Ship(AtomicU64);
    ///
    /// impl Worker<String> for Ship {
    ///     fn reserve(&self, _: &String) -> Option<Reserved> {
    ///         Some(Arc::new(self.0.fetch_add(1, Ordering::Relaxed)))
    ///     }
    ///
    ///     async fn run(&self, order: &String, context: ChildContext) -> Result<(), ExitReason> {
    ///         let number = context.reserved::<u64>();
    ///         println!("{number:?}: {order}");
    ///         Ok(())
    ///     }
    /// }
    /// ```
    fn reserve(&self, event: &E) -> Option<Reserved> {
        let _ = event;
        None
    }

    /// Waits until all children have used their reservations, such as reached their place in a
    /// queue. The default does not wait.
    ///
    /// A child that would have to wait for others before it is not worth running without a task: a
    /// supervisor that runs brief children itself waits for this before the next one. Only
    /// reservations held by children count, so it does not wait for work that outlives them.
    fn poll_reserved(&self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Ready(())
    }

    /// Handles the event. The child ends when the future completes.
    ///
    /// # Cancel safety
    ///
    /// When the pipeline runs out of time, the future is dropped at one of its `.await`s, and the
    /// event is counted as in progress.
    fn run(
        &self,
        event: &E,
        context: ChildContext,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;
}

/// Whether a worker accepts an event.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     supervisor::{Admission, ChildContext, Worker},
/// };
/// # use pipeline_core::{Graph, supervisor::ConsumerSupervisor};
///
/// struct Fetch;
///
/// impl Worker<String> for Fetch {
///     fn admit(&self, url: &String, _context: &ChildContext) -> Result<Admission, ExitReason> {
///         Ok(if url.starts_with("https:") { Admission::Run } else { Admission::Ignore })
///     }
///
///     async fn run(&self, url: &String, _context: ChildContext) -> Result<(), ExitReason> {
///         println!("fetching {url}");
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut graph = Graph::new("fetch");
/// # let fetch = graph.consumer_supervisor("fetch", ConsumerSupervisor::new(Fetch));
/// # let _pipeline = graph.start()?;
/// assert!(fetch.spawn_child("https://example.org".to_owned()).await?.is_some());
/// assert!(fetch.spawn_child("mailto:ada@example.org".to_owned()).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// A child is started for it. The default.
    #[default]
    Run,
    /// The event is done without a child.
    Ignore,
}

/// The context of a consumer supervisor's child. [`Worker`] has an example.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     supervisor::{ChildContext, Worker},
/// };
/// # use pipeline_core::{
/// #     Pipeline, source::from_iter, subscription::SubscribeOptions,
/// #     supervisor::ConsumerSupervisor,
/// # };
///
/// /// Fails the first time.
/// struct Unlucky;
///
/// impl Worker<u64> for Unlucky {
///     async fn run(&self, n: &u64, context: ChildContext) -> Result<(), ExitReason> {
///         match context.restarts() {
///             0 => Err(ExitReason::failed("not yet")),
///             _ => Ok(println!("{n}")),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter([7]))
///     .consumer_supervisor(ConsumerSupervisor::new(Unlucky), SubscribeOptions::new())
///     .start()?;
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ChildContext {
    pub(super) stopping: Arc<watch::Sender<bool>>,
    pub(super) restarts: u32,
    pub(super) reserved: Option<Reserved>,
    pub(super) spare: usize,
    pub(super) place: Place,
}

/// The worker's reservation for a child: see [`Worker::reserve`].
pub type Reserved = Arc<dyn Any + Send + Sync>;

impl ChildContext {
    /// How often a child has failed with this event before.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The worker's [reservation](Worker::reserve) for this event, if it has this type.
    #[must_use]
    pub fn reserved<T: Any>(&self) -> Option<&T> {
        self.reserved.as_deref()?.downcast_ref()
    }

    /// How many children of the supervisor may take long at the same time without delaying the
    /// events of the others: the smallest `min_demand` of its subscriptions, and less than
    /// [`max_children`](crate::supervisor::ConsumerSupervisor::max_children). With one more, it
    /// asks for no events until one of them is done. Without a subscription it is `usize::MAX`.
    ///
    /// ```
    /// use pipeline_core::{ExitReason, supervisor::ChildContext};
    ///
    /// /// Limits how many workers wait for a service that does not answer.
    /// fn may_wait(context: &ChildContext) -> usize {
    ///     context.spare() / 2
    /// }
    /// ```
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare
    }

    /// The place that the child occupies of the supervisor's slots, to be left while it only waits.
    ///
    /// A child that has left it is still a child, but it occupies no slot, and the next event of its
    /// [key](crate::supervisor::ConsumerSupervisor::ordered_by_key) begins. It is a place that cannot be left unless
    /// [`ConsumerSupervisor::may_leave`](crate::supervisor::ConsumerSupervisor::may_leave) says so.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Completes when the supervisor wants its children to end soon.
    ///
    /// A child may ignore it. It is then dropped after
    /// [`ConsumerSupervisor::shutdown`](crate::supervisor::ConsumerSupervisor::shutdown).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopping(&self) {
        // It cannot fail: the sender is alive.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

/// A function of a borrowed event whose future may borrow it too. It is implemented for every
/// `FnOnce(&E)` that returns such a future, including async closures of `&E`, and makes closures
/// [`Worker`]s.
pub trait Job<'a, E: 'a>: FnOnce(&'a E) -> Self::Future {
    /// The future it returns.
    type Future: Future<Output = Result<(), ExitReason>> + Send + 'a;
}

impl<'a, E, F, Fut> Job<'a, E> for F
where
    E: 'a,
    F: FnOnce(&'a E) -> Fut,
    Fut: Future<Output = Result<(), ExitReason>> + Send + 'a,
{
    type Future = Fut;
}

/// Each child gets a clone of the closure, because an async closure lends its captures to its
/// future: capture values that are cheap to clone.
impl<E, F> Worker<E> for F
where
    E: Send + Sync + 'static,
    F: for<'a> Job<'a, E> + Clone + Send + Sync + 'static,
{
    fn run(
        &self,
        event: &E,
        _context: ChildContext,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.clone()(event)
    }
}
