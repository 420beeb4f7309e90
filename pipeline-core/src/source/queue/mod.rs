//! A producer with a queue that any task may push to.

mod state;

use std::{fmt, future::Future};

use self::state::State;
use super::{
    Closed, OfferOutcome, TryPushError,
    ends::{PushEnd, TakeEnd, ends},
    store::Bounded,
};
use crate::{
    exit::ExitReason,
    stage::{BufferKeep, Emitter, Producer, ProducerHandle, StageContext},
};

/// The default capacity of a queue.
const DEFAULT_CAPACITY: usize = 10_000;

/// Creates a bounded queue: the handle to push items with, and the producer for a pipeline.
///
/// The queue ends, and its pipeline with it, once it is closed or every handle is dropped, and all
/// its items have been taken.
///
/// # Panics
///
/// If the capacity is 0.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, queue},
///     subscription::SubscribeOptions,
///     supervisor::ConsumerSupervisor,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = queue(QueueOptions::new());
/// let print = async |line: &String| {
///     println!("{line}");
///     Ok(())
/// };
/// let mut pipeline = Pipeline::builder("print")
///     .producer(producer)
///     .consumer_supervisor(ConsumerSupervisor::new(print), SubscribeOptions::new().max_demand(10))
///     .start()?;
///
/// queue.push("hello".to_owned()).await?;
/// drop(queue);
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn queue<T: Send + 'static>(options: QueueOptions) -> (Queue<T>, QueueProducer<T>) {
    assert!(options.capacity > 0, "the capacity of a queue must be at least 1");
    let (push, take) = ends(State::new(options.capacity, options.keep));
    (Queue { end: push }, QueueProducer { end: take })
}

/// The options of a queue: its capacity, and what happens when it is full.
///
/// ```
/// use pipeline_core::{
///     source::{OfferOutcome, QueueOptions, queue},
///     stage::BufferKeep,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Only the newest hundred readings are kept.
/// let options = QueueOptions::new().capacity(100).keep(BufferKeep::Last);
/// let (readings, _producer) = queue(options);
/// for reading in 0..100 {
///     assert_eq!(readings.offer(reading)?, OfferOutcome::Kept);
/// }
/// assert_eq!(readings.offer(100)?, OfferOutcome::DisplacedOldest);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct QueueOptions {
    capacity: usize,
    keep: BufferKeep,
}

impl QueueOptions {
    /// A capacity of 10,000 items; keeps the last items when more are offered.
    pub fn new() -> Self {
        Self { capacity: DEFAULT_CAPACITY, keep: BufferKeep::Last }
    }

    /// The capacity of the queue. Default 10,000.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items;
        self
    }

    /// Which items [`Queue::offer`] keeps when the queue is full. Default [`BufferKeep::Last`].
    pub fn keep(mut self, keep: BufferKeep) -> Self {
        self.keep = keep;
        self
    }
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The pushing end of a queue. Cheap to clone; any task may hold one.
///
/// ```
/// use pipeline_core::{
///     source::{OfferOutcome, QueueOptions, TryPushError, queue},
///     stage::BufferKeep,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = queue(QueueOptions::new().capacity(2).keep(BufferKeep::First));
/// queue.push("waits if it has to").await?;
/// queue.try_push("or not at all")?;
/// assert_eq!(queue.try_push("full"), Err(TryPushError::Full("full")));
/// assert_eq!(queue.offer("full, and never mind")?, OfferOutcome::Discarded);
/// # Ok(())
/// # }
/// ```
pub struct Queue<T> {
    end: PushEnd<State<T>>,
}

impl<T: Send + 'static> Queue<T> {
    /// Pushes an item, waiting for room if there is none.
    ///
    /// Waiting callers are served in the order of their arrival.
    ///
    /// # Errors
    ///
    /// [`Closed`] returns the item if the queue is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future while the item waits for room drops the item and has no other effect. An
    /// item that has already moved into the queue, because room became free, stays there, even if
    /// the future has not completed.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::source::{QueueOptions, queue};
    /// use tokio::time::timeout;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, _producer) = queue(QueueOptions::new().capacity(1));
    /// queue.push("first").await?;
    ///
    /// // There is no room, and no stage takes items.
    /// let second = timeout(Duration::from_secs(1), queue.push("second")).await;
    /// assert!(second.is_err());
    /// assert_eq!(queue.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn push(&self, item: T) -> impl Future<Output = Result<(), Closed<T>>> + Send + use<T> {
        self.end.push(item)
    }

    /// Pushes an item if there is room.
    ///
    /// Refused items are counted (the metric `pipeline.events_refused`), and so are those of dropped calls of
    /// [`push`](Self::push) that waited for room. The log has one line when refusing begins, and one when it has ended: an item is
    /// taken ten seconds or more after the last refusal, and half of the queue is free.
    ///
    /// # Errors
    ///
    /// [`TryPushError`] returns the item when the queue is full or closed.
    pub fn try_push(&self, item: T) -> Result<(), TryPushError<T>> {
        self.end.try_push(item)
    }

    /// Pushes an item at once, discarding one if the queue is full: this one, or the oldest, as
    /// [`QueueOptions::keep`] says.
    ///
    /// It never waits, so it overtakes waiting callers of [`push`](Self::push).
    ///
    /// Discarded items are counted ([`discarded`](Self::discarded), and the metric
    /// `pipeline.events_discarded`). The log has one line when discarding begins and one when it
    /// ends.
    ///
    /// # Errors
    ///
    /// [`Closed`] returns the item if the queue is closed.
    pub fn offer(&self, item: T) -> Result<OfferOutcome, Closed<T>> {
        self.end.offer(item)
    }

    /// The number of items in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end.with(Bounded::len)
    }

    /// Whether the queue is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The capacity of the queue.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.end.with(Bounded::capacity)
    }

    /// The number of discarded items: offered items without room, and items that were too old. They
    /// are not in the [`PipelineReport`](crate::report::PipelineReport).
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.end.discarded()
    }

    /// Closes the queue: it takes no more items. The items in it are still delivered.
    ///
    /// Callers that wait for room get their items back.
    ///
    /// ```
    /// use pipeline_core::source::{Closed, QueueOptions, queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, _producer) = queue(QueueOptions::new());
    /// queue.push("in time").await?;
    /// queue.close();
    /// assert_eq!(queue.push("late").await, Err(Closed("late")));
    /// assert_eq!(queue.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self) {
        self.end.close();
    }

    /// Whether the queue is closed: by [`close`](Self::close), or because its pipeline drains or
    /// has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end.with(Bounded::is_closed)
    }

    /// Completes when the queue [is closed](Self::is_closed), at once if it already is.
    ///
    /// The future is no handle: the queue is also closed when all handles are dropped, however many
    /// tasks wait for that.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// ```
    /// use pipeline_core::source::{QueueOptions, queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue::<u64>(QueueOptions::new());
    /// let closed = tokio::spawn(queue.closed());
    /// // As when its pipeline ends.
    /// drop(producer);
    /// closed.await?;
    /// assert!(queue.is_closed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<T> {
        self.end.closed()
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { end: self.end.clone() }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("Queue", f)
    }
}

/// The taking end of a queue: a [`Producer`] that emits the pushed items, in order, as fast as
/// there is demand.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, QueueProducer, queue},
///     stage::ProducerHandle,
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
///
/// // The type is needed to look up the stage.
/// let source: ProducerHandle<QueueProducer<u64>> = pipeline.stage("producer").ok_or("no source")?;
/// assert!(source.is_running());
/// # Ok(())
/// # }
/// ```
pub struct QueueProducer<T> {
    pub(super) end: TakeEnd<State<T>>,
}

#[diagnostic::do_not_recommend]
impl<T: Send + 'static> Producer for QueueProducer<T> {
    type Event = T;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        self.end.init(context);
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        self.end.take(out);
        Ok(())
    }

    async fn ready(&mut self) {
        self.end.ready().await;
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        self.end.take(out);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        self.end.drain(out);
        Ok(())
    }

    fn close(&mut self) {
        self.end.close();
    }

    fn pending(&self) -> usize {
        self.end.pending()
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        // Counts the items that were discarded since the last demand.
        self.end.count_discarded();
    }
}

impl<T> fmt::Debug for QueueProducer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("QueueProducer", f)
    }
}
