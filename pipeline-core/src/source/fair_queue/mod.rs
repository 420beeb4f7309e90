//! A queue that is fair between keys, as a producer.

mod lane;
mod lengths;
mod links;
#[cfg(test)]
mod model;
mod options;
mod rounds;
mod state;

use std::{fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

pub use self::options::FairQueueOptions;
use self::{options::Rules, state::State};
use super::{
    end::{MaxAge, PushEnd, TakeEnd, ends},
    outcome::{Closed, Offer, TryPushError},
    store::Bounded,
};
use crate::{
    exit::ExitReason,
    stage::{Emitter, Producer, ProducerHandle, StageContext},
    timed::Timed,
};

/// Makes a bounded queue that is fair between keys: the handle that items are pushed with, and the
/// producer that a pipeline takes them from.
///
/// Each key has a queue of its own, and the keys that have items take turns. So a user with a
/// million items delays others by no more than their fair share: the first item of a key that had
/// none comes out when every other key has had one turn, however much they have. The items of one
/// key come out in order. A key that has nothing in the queue, and nobody who waits for room, is
/// forgotten; what the tables grew to for many keys is given back when the queue is empty.
///
/// The turns are those of deficit round robin (M. Shreedhar and G. Varghese, "Efficient Fair
/// Queuing using Deficit Round Robin", 1996). The work for an item does not grow with the number of
/// keys.
///
/// What consumers have asked for has left the queue, and comes before what is still in it. So ask
/// for little: workers of a [`ConsumerSupervisor`](crate::ConsumerSupervisor) ask for what they can
/// begin at once; for another consumer, choose a small
/// [`max_demand`](crate::SubscribeOptions::max_demand).
///
/// The queue ends, and its pipeline with it, when it is closed or every handle is dropped, and what
/// it holds has been taken.
///
/// # Panics
///
/// If a capacity or the quantum is 0.
///
/// ```
/// use pipeline_core::{
///     ConsumerSupervisor, FairQueueOptions, Pipeline, SubscribeOptions, fair_queue,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = fair_queue(FairQueueOptions::new().key_capacity(3));
/// for item in ["Ada's first", "Ada's second", "Ada's third"] {
///     queue.push("Ada", item).await?;
/// }
/// // It comes out second.
/// queue.push("Joe", "Joe's only").await?;
///
/// let print = async |line: &&str| {
///     println!("{line}");
///     Ok(())
/// };
/// let mut pipeline = Pipeline::builder("print")
///     .producer(producer)
///     .consumer_supervisor(ConsumerSupervisor::new(print), SubscribeOptions::new().max_demand(1))
///     .start()?;
/// drop(queue);
/// assert_eq!(pipeline.ended().await.left_undone(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn fair_queue<K, T>(
    options: FairQueueOptions<K, T>,
) -> (FairQueue<K, T>, FairQueueProducer<K, T>)
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    let (limits, rules) = options.into_parts();
    let (push, take) = ends(State::new(limits));
    (FairQueue { end: push, rules: Arc::new(rules) }, FairQueueProducer { end: take })
}

/// The pushing end of a fair queue. Cheap to clone; any task may hold one.
///
/// ```
/// use pipeline_core::{FairQueueOptions, Offer, TryPushError, fair_queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = fair_queue(FairQueueOptions::new().capacity(3).key_capacity(2));
/// queue.push("Ada", "waits if it has to").await?;
/// queue.try_push("Ada", "or not at all")?;
/// assert_eq!(queue.try_push("Ada", "no room"), Err(TryPushError::KeyFull("no room")));
/// queue.try_push("Joe", "has room")?;
/// assert_eq!(queue.try_push("Eve", "no room"), Err(TryPushError::Full("no room")));
/// // Ada holds the most, so it is her oldest that makes room.
/// assert_eq!(queue.offer("Eve", "at all costs")?, Offer::DisplacedOldest);
/// assert_eq!((queue.len_of(&"Ada"), queue.len_of(&"Joe"), queue.len_of(&"Eve")), (1, 1, 1));
/// # Ok(())
/// # }
/// ```
pub struct FairQueue<K, T> {
    end: PushEnd<State<K, T>>,
    rules: Arc<Rules<K, T>>,
}

impl<K, T> FairQueue<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    /// Puts an item in, waiting for room if there is none: of its key, and of all.
    ///
    /// Waiting callers of one key are served in the order in which they came, and hold up none of
    /// another key. Nor does it make an item late that it has to wait for room because others take
    /// up all there is: its key has its turn all the same, and the item then goes straight out.
    /// Room that becomes free is given to the keys in turn, one place each, whoever has more
    /// callers waiting.
    ///
    /// # Errors
    ///
    /// [`Closed`] gives the item back when the queue takes nothing any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future while the item waits for room drops the item, and nothing else is lost.
    /// An item that has moved into the queue already, because room came up for it, stays there, even
    /// if the future had not said so yet.
    pub fn push(
        &self,
        key: K,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<T>>> + Send + use<K, T> {
        self.end.push(self.rules.entry(key, item))
    }

    /// Puts an item in if there is room.
    ///
    /// # Errors
    ///
    /// [`TryPushError`] gives the item back when its key has no room
    /// ([`KeyFull`](TryPushError::KeyFull)), when there is none at all
    /// ([`Full`](TryPushError::Full)), or when the queue is closed.
    pub fn try_push(&self, key: K, item: T) -> Result<(), TryPushError<T>> {
        self.end.try_push(self.rules.entry(key, item))
    }

    /// Puts an item in at once, discarding one if there is no room, as [`FairQueueOptions::keep`]
    /// says:
    ///
    /// - [`BufferKeep::First`](crate::BufferKeep::First): this one is discarded.
    /// - [`BufferKeep::Last`](crate::BufferKeep::Last), and its key has no room: the oldest item of
    ///   its key is.
    /// - [`BufferKeep::Last`](crate::BufferKeep::Last), and there is no room at all: the oldest
    ///   item of the key that holds the most items is; that is this key, unless another holds more.
    ///   So it is who floods the queue that pays for it.
    ///
    /// It never waits, so it gets ahead of callers of [`push`](Self::push) that do.
    ///
    /// What is discarded is counted ([`discarded`](Self::discarded), and the metric
    /// `pipeline.events_discarded`). The log tells when discarding begins, and when it is over, which
    /// is when half of the room is free again, of every key and of all.
    ///
    /// # Errors
    ///
    /// [`Closed`] gives the item back when the queue takes nothing any more.
    pub fn offer(&self, key: K, item: T) -> Result<Offer, Closed<T>> {
        self.end.offer(self.rules.entry(key, item))
    }

    /// How many items wait in the queue, of all keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end.with(Bounded::len)
    }

    /// How many items of one key wait in the queue.
    #[must_use]
    pub fn len_of(&self, key: &K) -> usize {
        self.end.with(|state| state.len_of(key))
    }

    /// Whether no item waits in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items the queue holds at most, of all keys.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.end.with(Bounded::capacity)
    }

    /// How many items of one key the queue holds at most.
    #[must_use]
    pub fn key_capacity(&self) -> usize {
        self.end.with(State::key_capacity)
    }

    /// How many items were discarded, of all keys: offered ones for want of room, and those that were too
    /// old. They are not in the [`PipelineReport`](crate::PipelineReport).
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.end.discarded()
    }

    /// Takes nothing in from now on. What the queue holds still flows out.
    ///
    /// Callers that wait for room get their items back.
    pub fn close(&self) {
        self.end.close();
    }

    /// Whether the queue takes nothing any more: it was closed, or its pipeline drains or has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end.with(Bounded::is_closed)
    }
}

impl<K, T> FairQueue<K, Timed<T>>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
    /// Has items learn when they leave the queue, for [`Timed::timeline`].
    ///
    /// [`push_timed`](Self::push_timed) does so too. It is for queues that timed items are pushed to by
    /// other functions, and to be called before, once, on any handle.
    #[must_use]
    pub fn timed(self) -> Self {
        self.end.stamp(Timed::demanded);
        self
    }

    /// Discards items that have waited for longer than this when they leave the queue, instead of
    /// emitting them. Without it an item waits for as long as it takes.
    ///
    /// Under lasting overload a full queue delivers everything late: each item waits for as long as it
    /// takes to work through the whole queue. With a limit, what leaves the queue is fresh, and the rest is
    /// counted: in [`discarded`](Self::discarded), and in `pipeline.events_discarded` with the reason
    /// `too_old`. The age counts from [`Timed::now`], the time in line for room included. To be
    /// called once, on any handle; the first limit stays.
    ///
    /// Events that a stage has asked for have left the queue, and wait there for as long as it takes. So
    /// give the stages between the queue and the slow part of the pipeline a small
    /// [`max_demand`](crate::SubscribeOptions::max_demand): by default, each asks for 1,000 events.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{FairQueueOptions, Timed, fair_queue};
    ///
    /// let (queue, _producer) = fair_queue::<u64, Timed<&str>>(FairQueueOptions::new());
    /// let queue = queue.max_age(Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        self.end.max_age(MaxAge { age, enqueued_at: Timed::enqueued_at });
        self
    }

    /// Stamps an item with this moment and puts it in, waiting for room if there is none.
    ///
    /// The stamp is taken by the call itself, before anything is awaited, so that the time an item
    /// waits for room is part of its way.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    ///
    /// # Cancel safety
    ///
    /// As for [`push`](Self::push).
    ///
    /// ```
    /// use pipeline_core::{FairQueueOptions, Timed, fair_queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, _producer) = fair_queue::<&str, Timed<&str>>(FairQueueOptions::new());
    /// queue.push_timed("Ada", "hello").await?;
    /// assert_eq!(queue.len_of(&"Ada"), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn push_timed(
        &self,
        key: K,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<Timed<T>>>> + Send + use<K, T> {
        self.end.stamp(Timed::demanded);
        self.push(key, Timed::now(item))
    }
}

impl<K, T> Clone for FairQueue<K, T> {
    fn clone(&self) -> Self {
        Self { end: self.end.clone(), rules: self.rules.clone() }
    }
}

impl<K, T> fmt::Debug for FairQueue<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("FairQueue", f)
    }
}

/// The taking end of a fair queue: a [`Producer`] that emits what was pushed, without the keys, key
/// by key in turn, as fast as there is demand.
///
/// ```
/// use futures::TryStreamExt;
/// use pipeline_core::{
///     Cancel, FairQueueOptions, FairQueueProducer, Pipeline, SubscribeOptions, fair_queue,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = fair_queue(FairQueueOptions::new());
/// for n in [1, 2, 3] {
///     queue.push("Ada", n).await?;
/// }
/// queue.push("Joe", 4).await?;
/// queue.close();
///
/// let producer: FairQueueProducer<&str, u64> = producer;
/// let options = SubscribeOptions::new().cancel(Cancel::Transient);
/// let (_pipeline, numbers) = Pipeline::builder("turns").producer(producer).into_stream(options)?;
/// assert_eq!(numbers.try_collect::<Vec<_>>().await?, [1, 4, 2, 3]);
/// # Ok(())
/// # }
/// ```
pub struct FairQueueProducer<K, T> {
    end: TakeEnd<State<K, T>>,
}

#[diagnostic::do_not_recommend]
impl<K, T> Producer for FairQueueProducer<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + 'static,
{
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

    fn held(&self) -> usize {
        self.end.held()
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        // What was discarded since the last demand.
        self.end.count_discarded();
    }
}

impl<K, T> fmt::Debug for FairQueueProducer<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("FairQueueProducer", f)
    }
}
