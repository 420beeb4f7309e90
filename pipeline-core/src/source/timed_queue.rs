//! Queues of timed items: they record when each item leaves.

use std::{fmt, future::Future, hash::Hash, ops::Deref, time::Duration};

use super::{
    Closed, FairQueue, FairQueueOptions, FairQueueProducer, Queue, QueueOptions, QueueProducer,
    TryPushError, ends::MaxAge, fair_queue, queue,
};
use crate::timed::Timed;

/// Creates a bounded queue of timed items: a [`queue`] that records when each item leaves it, for
/// [`Timed::timeline`].
///
/// A plain queue accepts timed items too, but does not record when they leave.
///
/// # Panics
///
/// If the capacity is 0.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, timed_queue},
///     step::for_each,
///     subscription::SubscribeOptions,
///     timed::Timed,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = timed_queue(QueueOptions::new());
/// let print = for_each(async |line: Timed<&str>| {
///     println!("{} was in the queue for {:?}", *line, line.timeline().queue_time());
/// });
/// let mut pipeline = Pipeline::builder("print")
///     .producer(producer)
///     .consumer(print, SubscribeOptions::new())
///     .start()?;
/// queue.push_timed("hello").await?;
/// # drop(queue);
/// # assert_eq!(pipeline.join().await.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn timed_queue<T: Send + 'static>(
    options: QueueOptions,
) -> (TimedQueue<T>, QueueProducer<Timed<T>>) {
    let (queue, mut producer) = queue(options);
    producer.end.stamp = Some(Timed::dequeued);
    (TimedQueue { queue }, producer)
}

/// Creates a bounded queue of timed items that is fair between keys: a [`fair_queue`] that records
/// when each item leaves it, as a [`timed_queue`] does.
///
/// # Panics
///
/// If a capacity or the quantum is 0.
///
/// ```
/// use pipeline_core::source::{FairQueueOptions, timed_fair_queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = timed_fair_queue(FairQueueOptions::new());
/// queue.push_timed("Ada", "hello").await?;
/// assert_eq!(queue.len_of(&"Ada"), 1);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn timed_fair_queue<K, T>(
    options: FairQueueOptions<K, Timed<T>>,
) -> (TimedFairQueue<K, T>, FairQueueProducer<K, Timed<T>>)
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    let (queue, mut producer) = fair_queue(options);
    producer.end.stamp = Some(Timed::dequeued);
    (TimedFairQueue { queue }, producer)
}

/// The pushing end of a queue of timed items, made by [`timed_queue`]. Cheap to clone; any task may
/// hold one.
///
/// It derefs to the [`Queue`], which takes items that are timed already:
///
/// ```
/// use pipeline_core::{
///     source::{QueueOptions, timed_queue},
///     timed::{Timed, TraceContext},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = timed_queue(QueueOptions::new());
/// queue.push_timed("hello").await?;
/// queue.try_push(Timed::now("hello").with_trace(TraceContext::random()))?;
/// assert_eq!(queue.len(), 2);
/// # Ok(())
/// # }
/// ```
pub struct TimedQueue<T> {
    queue: Queue<Timed<T>>,
}

/// The pushing end of a fair queue of timed items, made by [`timed_fair_queue`]. Cheap to clone;
/// any task may hold one.
///
/// It derefs to the [`FairQueue`], which takes items that are timed already.
pub struct TimedFairQueue<K, T> {
    queue: FairQueue<K, Timed<T>>,
}

impl<T: Send + 'static> TimedQueue<T> {
    /// Pushes an item with the current time, waiting for room if there is none.
    ///
    /// The time is taken by the call itself, before the first poll, so that the time spent waiting
    /// for room is included.
    ///
    /// # Errors
    ///
    /// As for [`Queue::push`].
    ///
    /// # Cancel safety
    ///
    /// As for [`Queue::push`].
    pub fn push_timed(
        &self,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<Timed<T>>>> + Send + use<T> {
        self.queue.push(Timed::now(item))
    }

    /// Pushes an item with the current time if there is room, without waiting.
    ///
    /// # Errors
    ///
    /// As for [`Queue::try_push`].
    ///
    /// ```
    /// use pipeline_core::source::{QueueOptions, timed_queue};
    ///
    /// let (queue, _producer) = timed_queue(QueueOptions::new().capacity(1));
    /// assert!(queue.try_push_timed("hello").is_ok());
    /// assert!(queue.try_push_timed("full").is_err());
    /// ```
    pub fn try_push_timed(&self, item: T) -> Result<(), TryPushError<Timed<T>>> {
        self.queue.try_push(Timed::now(item))
    }
}

impl<K, T> TimedFairQueue<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    /// Pushes an item with the current time, waiting for room if there is none.
    ///
    /// The time is taken by the call itself, before the first poll, so that the time spent waiting
    /// for room is included.
    ///
    /// # Errors
    ///
    /// As for [`FairQueue::push`].
    ///
    /// # Cancel safety
    ///
    /// As for [`FairQueue::push`].
    pub fn push_timed(
        &self,
        key: K,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<Timed<T>>>> + Send + use<K, T> {
        self.queue.push(key, Timed::now(item))
    }

    /// Pushes an item with the current time if there is room, without waiting.
    ///
    /// # Errors
    ///
    /// As for [`FairQueue::try_push`].
    pub fn try_push_timed(&self, key: K, item: T) -> Result<(), TryPushError<Timed<T>>> {
        self.queue.try_push(key, Timed::now(item))
    }
}

impl<T: Send + 'static> QueueProducer<Timed<T>> {
    /// Discards items that have waited for longer than `age` when they would leave the queue. By
    /// default there is no limit.
    ///
    /// Under lasting overload a full queue delivers everything late: each item waits for as long as
    /// it takes to process the whole queue. With a limit, the delivered items are fresh, and the
    /// others are counted: in [`Queue::discarded`], and in `pipeline.events_discarded` with the
    /// reason `too_old`. The age counts from [`Timed::now`], including the time spent waiting for
    /// room.
    ///
    /// Events that a stage has asked for have left the queue and have no limit. So give the stages
    /// between the queue and the slow part of the pipeline a small
    /// [`max_demand`](crate::subscription::SubscribeOptions::max_demand): by default, each asks for
    /// 1,000 events.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::source::{QueueOptions, timed_queue};
    ///
    /// let (queue, producer) = timed_queue::<&str>(QueueOptions::new());
    /// let producer = producer.max_age(Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.end.max_age = Some(MaxAge { age, enqueued_at: Timed::enqueued_at });
        self
    }
}

impl<K, T> FairQueueProducer<K, Timed<T>>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    /// Discards items that have waited for longer than `age` when they would leave the queue, as
    /// [`QueueProducer::max_age`] does. By default there is no limit.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.end.max_age = Some(MaxAge { age, enqueued_at: Timed::enqueued_at });
        self
    }
}

impl<T> Deref for TimedQueue<T> {
    type Target = Queue<Timed<T>>;

    fn deref(&self) -> &Queue<Timed<T>> {
        &self.queue
    }
}

impl<K, T> Deref for TimedFairQueue<K, T> {
    type Target = FairQueue<K, Timed<T>>;

    fn deref(&self) -> &FairQueue<K, Timed<T>> {
        &self.queue
    }
}

impl<T> Clone for TimedQueue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<K, T> Clone for TimedFairQueue<K, T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T> fmt::Debug for TimedQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TimedQueue").field(&self.queue).finish()
    }
}

impl<K, T> fmt::Debug for TimedFairQueue<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TimedFairQueue").field(&self.queue).finish()
    }
}
