//! A queue that any task may push to, as a producer.

mod push;
mod state;

use std::{
    fmt,
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use thiserror::Error;

use self::{
    push::Push,
    state::{Offered, Refused, State},
};
use crate::{
    buffer::BufferKeep,
    exit::ExitReason,
    stage::{Emitter, Producer, ProducerHandle, StageContext},
    telemetry::{Discard, StageMetrics},
    timed::Timed,
};

/// How many items a queue holds unless told otherwise.
const DEFAULT_CAPACITY: usize = 10_000;

/// Makes a bounded queue: the handle that items are pushed with, and the producer that a pipeline
/// takes them from.
///
/// The queue ends, and its pipeline with it, when it is closed or every handle is dropped, and what
/// it holds has been taken.
///
/// # Panics
///
/// If the capacity is 0.
///
/// ```
/// use pipeline_core::{ConsumerSupervisor, Pipeline, QueueOptions, SubscribeOptions, queue};
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
/// assert_eq!(pipeline.ended().await.left_undone(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn queue<T: Send + 'static>(options: QueueOptions) -> (Queue<T>, QueueProducer<T>) {
    assert!(options.capacity > 0, "a queue needs room for at least one item");
    let shared = Arc::new(Shared {
        state: Mutex::new(State::new(options.capacity, options.keep)),
        discarded: AtomicU64::new(0),
    });
    let queue = Queue { handle: Arc::new(CloseOnDrop(shared.clone())) };
    (queue, QueueProducer { handle: CloseOnDrop(shared), metrics: None })
}

/// How much a queue holds, and what happens when it is full.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct QueueOptions {
    capacity: usize,
    keep: BufferKeep,
}

impl QueueOptions {
    /// Room for 10,000 items; keeps the last when more are offered.
    pub fn new() -> Self {
        Self { capacity: DEFAULT_CAPACITY, keep: BufferKeep::Last }
    }

    /// How many items the queue holds. Default 10,000.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items;
        self
    }

    /// What [`Queue::offer`] keeps when the queue is full. Default [`BufferKeep::Last`].
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
/// use pipeline_core::{BufferKeep, Offer, QueueOptions, TryPushError, queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, _producer) = queue(QueueOptions::new().capacity(2).keep(BufferKeep::First));
/// queue.push("waits if it has to").await?;
/// queue.try_push("or not at all")?;
/// assert_eq!(queue.try_push("full"), Err(TryPushError::Full("full")));
/// assert_eq!(queue.offer("full, and never mind")?, Offer::Discarded);
/// # Ok(())
/// # }
/// ```
pub struct Queue<T> {
    handle: Arc<CloseOnDrop<T>>,
}

impl<T: Send + 'static> Queue<T> {
    /// Puts an item in, waiting for room if there is none.
    ///
    /// Waiting callers are served in the order in which they came.
    ///
    /// # Errors
    ///
    /// [`Closed`] gives the item back when the queue takes nothing any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before it is done drops the item, and the queue is as it was.
    pub fn push(&self, item: T) -> impl Future<Output = Result<(), Closed<T>>> + Send + use<T> {
        Push::new(self.shared().clone(), item)
    }

    /// Puts an item in if there is room.
    ///
    /// # Errors
    ///
    /// [`TryPushError`] gives the item back when the queue is full or closed.
    pub fn try_push(&self, item: T) -> Result<(), TryPushError<T>> {
        let outcome = self.shared().state.lock().try_push(item);
        match outcome {
            Ok(taker) => {
                if let Some(taker) = taker {
                    taker.wake();
                }
                Ok(())
            }
            Err(Refused::Full(item)) => Err(TryPushError::Full(item)),
            Err(Refused::Closed(item)) => Err(TryPushError::Closed(item)),
        }
    }

    /// Puts an item in at once, discarding one if the queue is full: this one, or the oldest, as
    /// [`QueueOptions::keep`] says.
    ///
    /// It never waits, so it gets ahead of callers of [`push`](Self::push) that do.
    ///
    /// What is discarded is counted ([`discarded`](Self::discarded), and the metric
    /// `pipeline.events_discarded`). The log tells when discarding begins and when it is over.
    ///
    /// # Errors
    ///
    /// [`Closed`] gives the item back when the queue takes nothing any more.
    pub fn offer(&self, item: T) -> Result<Offer, Closed<T>> {
        let shared = self.shared();
        let (offered, taker, began) = {
            let mut state = shared.state.lock();
            let (offered, taker) = state.offer(item).map_err(Closed)?;
            (offered, taker, state.began_discarding())
        };
        if let Some(taker) = taker {
            taker.wake();
        }
        let offer = match offered {
            Offered::Kept => return Ok(Offer::Kept),
            Offered::Displaced(_) => Offer::DisplacedOldest,
            Offered::Refused(_) => Offer::Discarded,
        };
        shared.discarded.fetch_add(1, Ordering::Relaxed);
        if began {
            tracing::warn!("the queue is full, discarding");
        }
        Ok(offer)
    }

    /// How many items wait in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared().state.lock().len()
    }

    /// Whether no item waits in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items the queue holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared().state.lock().capacity()
    }

    /// How many offered items were discarded.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.shared().discarded.load(Ordering::Relaxed)
    }

    /// Takes nothing in from now on. What the queue holds still flows out.
    ///
    /// Callers that wait for room get their items back.
    pub fn close(&self) {
        self.handle.close();
    }

    /// Whether the queue takes nothing any more: it was closed, or its pipeline drains or has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared().state.lock().is_closed()
    }

    fn shared(&self) -> &Arc<Shared<T>> {
        &self.handle.0
    }
}

impl<T: Send + 'static> Queue<Timed<T>> {
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
    pub fn push_timed(
        &self,
        item: T,
    ) -> impl Future<Output = Result<(), Closed<Timed<T>>>> + Send + use<T> {
        self.push(Timed::now(item))
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone() }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.0.fmt_as("Queue", f)
    }
}

/// The taking end of a queue: a [`Producer`] that emits what was pushed, in order, as fast as there
/// is demand.
pub struct QueueProducer<T> {
    handle: CloseOnDrop<T>,
    metrics: Option<DiscardCounter>,
}

/// Carries what the handles discard into the stage's counter.
struct DiscardCounter {
    metrics: StageMetrics,
    reported: u64,
}

impl<T: Send + 'static> QueueProducer<T> {
    fn take(&mut self, out: &mut Emitter<'_, T>) {
        let shared = &self.handle.0;
        let (taken, at_end) = {
            let mut state = shared.state.lock();
            let owed = out.owed();
            let taken = state.take(owed, out.staged());
            (taken, state.is_closed() && state.len() == 0)
        };
        taken.wake.into_iter().for_each(std::task::Waker::wake);
        if taken.discarded > 0 {
            let discarded = taken.discarded;
            tracing::warn!(discarded, "the queue has room again");
        }
        self.count_discarded();
        if at_end {
            out.finish();
        }
    }

    fn count_discarded(&mut self) {
        if let Some(counter) = &mut self.metrics {
            let discarded = self.handle.0.discarded.load(Ordering::Relaxed);
            let new = discarded - counter.reported;
            if new > 0 {
                counter.reported = discarded;
                counter.metrics.discarded(Discard::QueueFull, new);
            }
        }
    }
}

impl<T: Send + 'static> Producer for QueueProducer<T> {
    type Event = T;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        let metrics = StageMetrics::register(context.telemetry(), &context.labels());
        self.metrics = Some(DiscardCounter { metrics, reported: 0 });
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        out: &mut Emitter<'_, T>,
    ) -> Result<(), ExitReason> {
        self.take(out);
        Ok(())
    }

    async fn ready(&mut self) {
        poll_fn(|cx| self.handle.0.state.lock().poll_ready(cx.waker())).await;
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        self.take(out);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, T>) -> Result<(), ExitReason> {
        self.handle.close();
        self.take(out);
        Ok(())
    }

    fn held(&self) -> usize {
        self.handle.0.state.lock().len()
    }

    async fn terminate(&mut self, _reason: &ExitReason) {
        // What was discarded since the last demand.
        self.count_discarded();
    }
}

impl<T> fmt::Debug for QueueProducer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.0.fmt_as("QueueProducer", f)
    }
}

/// What both ends share.
struct Shared<T> {
    state: Mutex<State<T>>,
    discarded: AtomicU64,
}

impl<T> Shared<T> {
    fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct(name)
            .field("len", &state.len())
            .field("capacity", &state.capacity())
            .field("closed", &state.is_closed())
            .finish()
    }
}

/// One end of the queue. When it is gone, so is the queue, for the other.
struct CloseOnDrop<T>(Arc<Shared<T>>);

impl<T> CloseOnDrop<T> {
    fn close(&self) {
        let wake = self.0.state.lock().close();
        wake.into_iter().for_each(std::task::Waker::wake);
    }
}

impl<T> Drop for CloseOnDrop<T> {
    fn drop(&mut self) {
        self.close();
    }
}

/// What became of an item that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Offer {
    /// There was room for it.
    Kept,
    /// It was put in, and the oldest item was discarded for it.
    DisplacedOldest,
    /// It was discarded.
    Discarded,
}

/// The queue takes nothing any more; here is the item.
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[error("the queue is closed")]
pub struct Closed<T>(pub T);

/// Why an item was not taken in; it is in the error.
#[derive(Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryPushError<T> {
    /// There is no room now.
    #[error("the queue is full")]
    Full(T),
    /// The queue takes nothing any more.
    #[error("the queue is closed")]
    Closed(T),
}

// By hand, so that the errors can be used with items that have no `Debug`.
impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

impl<T> fmt::Debug for TryPushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}
