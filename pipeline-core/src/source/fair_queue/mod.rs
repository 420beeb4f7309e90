//! A producer with a queue that is fair between keys.

mod lane;
mod lengths;
#[cfg(test)]
mod model;
mod options;
mod rounds;
mod state;

use std::{fmt, future::Future, hash::Hash, sync::Arc};

pub use self::options::FairQueueOptions;
use self::{options::Rules, state::State};
use super::{
    Closed, OfferOutcome, TryPushError,
    ends::{PushEnd, TakeEnd, ends},
    store::Bounded,
};
use crate::{
    exit::ExitReason,
    stage::{Emitter, Producer, ProducerHandle, StageContext},
};

/// Creates a bounded queue that is fair between keys: the handle to push items with, and the
/// producer for a pipeline.
///
/// Each key has a queue of its own, and the keys with items take turns. So a user with a million
/// items delays others by no more than a fair share: the first item of a key that had none leaves
/// after every other key has had one turn, however many items they have. The items of one key leave
/// in order. A key without items and without waiting pushers is removed; when the queue is empty,
/// the memory that its tables took for many keys is released.
///
/// The turns follow deficit round robin (M. Shreedhar and G. Varghese, "Efficient Fair Queuing
/// using Deficit Round Robin", 1996). The work for an item grows with the logarithm of the number of
/// keys.
///
/// Items that consumers have asked for have left the queue, and come before all items that are
/// still in it. So keep demand low: workers of a
/// [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor) ask for as many items as they can
/// start at once; for another consumer, choose a small
/// [`max_demand`](crate::subscription::SubscribeOptions::max_demand).
///
/// The queue ends, and its pipeline with it, once it is closed or every handle is dropped, and all
/// its items have been taken.
///
/// # Panics
///
/// If a capacity or the quantum is 0.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::{FairQueueOptions, fair_queue},
///     subscription::SubscribeOptions,
///     supervisor::ConsumerSupervisor,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = fair_queue(FairQueueOptions::new().key_capacity(3));
/// for item in ["Ada's first", "Ada's second", "Ada's third"] {
///     queue.push("Ada", item).await?;
/// }
/// // Joe's item leaves second.
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
/// assert_eq!(pipeline.join().await.unprocessed(), 0);
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
/// use pipeline_core::source::{FairQueueOptions, OfferOutcome, TryPushError, fair_queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = fair_queue(FairQueueOptions::new().capacity(3).key_capacity(2));
/// queue.push("Ada", "waits if it has to").await?;
/// queue.try_push("Ada", "or not at all")?;
/// assert_eq!(queue.try_push("Ada", "no room"), Err(TryPushError::KeyFull("no room")));
/// queue.try_push("Joe", "has room")?;
/// assert_eq!(queue.try_push("Eve", "no room"), Err(TryPushError::Full("no room")));
/// // Ada has the most items, so her oldest makes room.
/// assert_eq!(queue.offer("Eve", "at all costs")?, OfferOutcome::DisplacedOldest);
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
    /// Pushes an item, waiting for room in its key and in the whole queue.
    ///
    /// Waiting callers of one key are served in the order of their arrival and do not block other
    /// keys. An item does not leave later because it had to wait for room that other keys take up:
    /// its key keeps its turn, and the item then leaves directly. Room that becomes free is given
    /// to the keys in turn, one place each, regardless of how many callers wait.
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
    pub fn push(
        &self,
        key: K,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<T>>> + Send + use<K, T> {
        self.end.push(self.rules.entry(key, item))
    }

    /// Pushes an item if there is room.
    ///
    /// Refused items are counted and logged as those of a [`Queue`](super::Queue::try_push) are.
    ///
    /// # Errors
    ///
    /// [`TryPushError`] returns the item when its key has no room
    /// ([`KeyFull`](TryPushError::KeyFull)), when the queue has none
    /// ([`Full`](TryPushError::Full)), or when the queue is closed.
    pub fn try_push(&self, key: K, item: T) -> Result<(), TryPushError<T>> {
        self.end.try_push(self.rules.entry(key, item))
    }

    /// Pushes an item at once, discarding one if there is no room, as [`FairQueueOptions::keep`]
    /// says:
    ///
    /// - [`BufferKeep::First`](crate::stage::BufferKeep::First): discards the new item.
    /// - [`BufferKeep::Last`](crate::stage::BufferKeep::Last), if the key is full: discards the
    ///   oldest item of that key.
    /// - [`BufferKeep::Last`](crate::stage::BufferKeep::Last), if the whole queue is full: discards
    ///   the oldest item of the key with the most items, which is this key unless another has more.
    ///   So the key that floods the queue loses items.
    ///
    /// It never waits, so it overtakes waiting callers of [`push`](Self::push).
    ///
    /// Discarded items are counted ([`discarded`](Self::discarded), and the metric
    /// `pipeline.events_discarded`). The log has one line when discarding begins and one when it
    /// ends, which is when half of the room is free again, in every key and in the whole queue.
    ///
    /// # Errors
    ///
    /// [`Closed`] returns the item if the queue is closed.
    pub fn offer(&self, key: K, item: T) -> Result<OfferOutcome, Closed<T>> {
        self.end.offer(self.rules.entry(key, item))
    }

    /// The number of items in the queue, of all keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end.with(Bounded::len)
    }

    /// The number of items of one key in the queue.
    #[must_use]
    pub fn len_of(&self, key: &K) -> usize {
        self.end.with(|state| state.len_of(key))
    }

    /// Whether the queue is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The capacity of the queue, for all keys together.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.end.with(Bounded::capacity)
    }

    /// The capacity for each key.
    #[must_use]
    pub fn key_capacity(&self) -> usize {
        self.end.with(State::key_capacity)
    }

    /// The number of discarded items, of all keys: offered items without room, and items that were
    /// too old. They are not in the [`PipelineReport`](crate::report::PipelineReport).
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.end.discarded()
    }

    /// Closes the queue: it takes no more items. The items in it are still delivered.
    ///
    /// Callers that wait for room get their items back.
    pub fn close(&self) {
        self.end.close();
    }

    /// Whether the queue is closed: by [`close`](Self::close), or because its pipeline drains or
    /// has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end.with(Bounded::is_closed)
    }

    /// Completes when the queue [is closed](Self::is_closed), at once if it already is. It is like
    /// [`Queue::closed`](crate::source::Queue::closed).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<K, T> {
        self.end.closed()
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

/// The taking end of a fair queue: a [`Producer`] that emits the pushed items without their keys,
/// key by key in turn, as fast as there is demand.
pub struct FairQueueProducer<K, T> {
    pub(super) end: TakeEnd<State<K, T>>,
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

    fn pending(&self) -> usize {
        self.end.pending()
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        // Counts the items that were discarded since the last demand.
        self.end.count_discarded();
    }
}

impl<K, T> fmt::Debug for FairQueueProducer<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt_as("FairQueueProducer", f)
    }
}
