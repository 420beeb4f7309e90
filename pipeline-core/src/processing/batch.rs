//! The second layer: messages are handled in batches.

use std::{
    any::Any, fmt, future::Future, hash::Hash, marker::PhantomData, ops, slice, sync::Arc,
    time::Duration,
};

use super::{
    batching::BatchTrigger,
    failure::Failure,
    message::Message,
    processor::{AsyncMut, PartitionBy, partition_of},
};

/// A message that its processor has handled, and what the processor made of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Processed<T, U> {
    /// The message.
    pub message: Message<T>,
    /// What the processor made of it.
    pub output: U,
}

/// Messages that are handled together. It derefs to a slice of them.
///
/// ```
/// use pipeline_core::processing::{Batch, Batcher};
///
/// let insert = Batcher::from_fn(async |batch: &mut Batch<String, usize>| {
///     for row in batch.iter_mut() {
///         if row.output == 0 {
///             // Fails this message; the others go on.
///             row.message.fail(pipeline_core::processing::Failure::new("an empty line"));
///         }
///     }
///     Ok(())
/// });
/// ```
#[derive(Debug)]
pub struct Batch<T, U> {
    messages: Vec<Processed<T, U>>,
    info: BatchInfo,
}

/// How a batch came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchInfo {
    /// The name of its batcher.
    pub batcher: Arc<str>,
    /// The number of messages.
    pub size: usize,
    /// Why it was closed.
    pub trigger: BatchTrigger,
    /// Which batch processor its messages belong to, with a
    /// [`partition_by`](Batcher::partition_by).
    pub partition: Option<usize>,
    key: Arc<dyn Any + Send + Sync>,
}

impl BatchInfo {
    /// The key that its messages share, by the batcher's [`key_by`](Batcher::key_by). `None` if it has
    /// another type.
    #[must_use]
    pub fn key<K: Any>(&self) -> Option<&K> {
        self.key.downcast_ref()
    }
}

impl<T, U> Batch<T, U> {
    pub(super) fn new(messages: Vec<Processed<T, U>>, info: BatchInfo) -> Self {
        Self { messages, info }
    }

    /// How it came about.
    #[must_use]
    pub fn info(&self) -> &BatchInfo {
        &self.info
    }

    /// What the processors made of the messages.
    #[must_use]
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = &U> {
        self.messages.iter().map(|processed| &processed.output)
    }

    /// The messages and the outputs apart.
    pub(super) fn into_parts(self) -> (Vec<Message<T>>, Vec<U>) {
        let parts = |Processed { message, output }| (message, output);
        self.messages.into_iter().map(parts).unzip()
    }
}

impl<T, U> ops::Deref for Batch<T, U> {
    type Target = [Processed<T, U>];

    fn deref(&self) -> &[Processed<T, U>] {
        &self.messages
    }
}

impl<T, U> ops::DerefMut for Batch<T, U> {
    fn deref_mut(&mut self) -> &mut [Processed<T, U>] {
        &mut self.messages
    }
}

impl<'a, T, U> IntoIterator for &'a Batch<T, U> {
    type Item = &'a Processed<T, U>;
    type IntoIter = slice::Iter<'a, Processed<T, U>>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter()
    }
}

impl<'a, T, U> IntoIterator for &'a mut Batch<T, U> {
    type Item = &'a mut Processed<T, U>;
    type IntoIter = slice::IterMut<'a, Processed<T, U>>;

    fn into_iter(self) -> Self::IntoIter {
        self.messages.iter_mut()
    }
}

/// Handles batches of messages. It is shared by all batch processors of a batcher.
///
/// Most need only a function: see [`Batcher::from_fn`]. The callbacks are those of `Broadway`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a processor of batches with `{T}` and `{U}`",
    label = "does not implement `BatchProcessor<{T}, {U}>`",
    note = "`Batcher::from_fn(async |batch: &mut Batch<Data, Output>| {{ .. Ok(()) }})` makes one of a function"
)]
pub trait BatchProcessor<T, U>: Send + Sync + 'static {
    /// Handles a batch. Single messages are failed with [`Message::fail`]; they stay in the batch.
    ///
    /// # Errors
    ///
    /// An error or a panic fails all its messages.
    fn handle_batch(
        &self,
        batch: &mut Batch<T, U>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Called once with the failed messages of a batch, before they are acknowledged. It may change
    /// their [failures](Message::fail); that they have failed stays. A panic changes nothing.
    fn handle_failed(&self, messages: &mut [Message<T>]) -> impl Future<Output = ()> + Send {
        let _ = messages;
        async {}
    }
}

/// A processor of batches made of a function.
#[derive(Debug)]
pub struct FnBatchProcessor<F, T, U> {
    function: F,
    types: PhantomData<fn(T, U)>,
}

/// Each batch gets a clone of the closure, because an async closure lends its captures to its
/// future: capture values that are cheap to clone.
impl<F, T, U> BatchProcessor<T, U> for FnBatchProcessor<F, T, U>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Batch<T, U>, ()> + Clone + Send + Sync + 'static,
{
    fn handle_batch(
        &self,
        batch: &mut Batch<T, U>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        self.function.clone()(batch)
    }
}

/// A batcher and its batch processors, with their options.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::processing::{Batch, Batcher};
///
/// let write = Batcher::from_fn(async |batch: &mut Batch<String, usize>| {
///     println!("{} lines of {} bytes", batch.len(), batch.outputs().sum::<usize>());
///     Ok(())
/// })
/// .size(500)
/// .within(Duration::from_millis(200))
/// .concurrency(4);
/// # let _: Batcher<String, usize, _, ()> = write;
/// ```
#[must_use]
pub struct Batcher<T, U, B, K = ()> {
    pub(super) processor: B,
    pub(super) concurrency: usize,
    pub(super) limits: Limits<T, U>,
    pub(super) max_demand: Option<usize>,
    pub(super) key: Arc<KeyBy<T, U, K>>,
    pub(super) partition_by: Option<PartitionBy<T>>,
    /// The limit of a batch processor's callbacks.
    pub(super) within: Duration,
}

/// The key of a message's batch.
pub(super) type KeyBy<T, U, K> = dyn Fn(&Processed<T, U>) -> K + Send + Sync;

/// When a batch is full, and how long it may stay open.
pub(super) struct Limits<T, U> {
    pub(super) size: usize,
    /// The size of a message in another unit, and the size at which a batch is full.
    pub(super) weight: Option<(usize, Arc<WeightOf<T, U>>)>,
    pub(super) within: Duration,
    /// How many messages may wait in open batches, and how much weight.
    pub(super) open: usize,
    pub(super) open_weight: usize,
}

/// The size of a message in a unit of the program's.
type WeightOf<T, U> = dyn Fn(&Processed<T, U>) -> usize + Send + Sync;

impl<T, U> Clone for Limits<T, U> {
    fn clone(&self) -> Self {
        let Self { size, weight, within, open, open_weight } = self;
        let (size, within, open, open_weight) = (*size, *within, *open, *open_weight);
        Self { size, weight: weight.clone(), within, open, open_weight }
    }
}

impl<T, U, F> Batcher<T, U, FnBatchProcessor<F, T, U>>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Batch<T, U>, ()> + Clone + Send + Sync + 'static,
{
    /// A batcher whose batch processors call a function with each batch.
    pub fn from_fn(function: F) -> Self {
        Self::new(FnBatchProcessor { function, types: PhantomData })
    }
}

impl<T, U, B: BatchProcessor<T, U>> Batcher<T, U, B> {
    /// A batcher with batch processors of this kind.
    pub fn new(processor: B) -> Self {
        let within = Duration::from_secs(1);
        Self {
            processor,
            concurrency: 1,
            limits: Limits {
                size: 100,
                weight: None,
                within,
                open: 10_000,
                open_weight: usize::MAX,
            },
            max_demand: None,
            key: Arc::new(|_| ()),
            partition_by: None,
            within: Duration::MAX,
        }
    }
}

impl<T, U, B: BatchProcessor<T, U>, K> Batcher<T, U, B, K> {
    /// How many batch processors there are: so many batches are handled at once. Each is a stage in a
    /// task of its own. Default 1.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn concurrency(mut self, batch_processors: usize) -> Self {
        assert!(batch_processors > 0, "a batcher needs at least one batch processor");
        self.concurrency = batch_processors;
        self
    }

    /// The number of messages at which a batch is full. Default 100.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn size(mut self, messages: usize) -> Self {
        assert!(messages > 0, "the size of a batch must be at least 1");
        self.limits.size = messages;
        self
    }

    /// A batch is also full when the sum of its messages' weights reaches `limit`; the message that
    /// reaches it is in it. The weight may be a number of bytes.
    ///
    /// ```
    /// use pipeline_core::processing::{Batch, Batcher};
    ///
    /// let send = Batcher::from_fn(async |_: &mut Batch<(), String>| Ok(()));
    /// // At most 500 lines, and no more after the first mebibyte.
    /// let send = send.size(500).weight(1 << 20, |line| line.output.len());
    /// ```
    ///
    /// # Panics
    ///
    /// If the limit is 0.
    pub fn weight(
        mut self,
        limit: usize,
        of: impl Fn(&Processed<T, U>) -> usize + Send + Sync + 'static,
    ) -> Self {
        assert!(limit > 0, "the weight of a batch must be at least 1");
        self.limits.weight = Some((limit, Arc::new(of)));
        self
    }

    /// How long after its first message a batch is closed although it is not full. Default one second;
    /// with [`Duration::MAX`] only the size counts.
    pub fn within(mut self, time: Duration) -> Self {
        self.limits.within = time;
        self
    }

    /// How many messages may wait in open batches, of all keys and partitions. Beyond it the oldest
    /// batch is closed early, with [`BatchTrigger::Space`]. Default 10,000, and at least the
    /// [`size`](Self::size).
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_open(mut self, messages: usize) -> Self {
        assert!(messages > 0, "a batcher must be able to hold a message");
        self.limits.open = messages;
        self
    }

    /// How much [`weight`](Self::weight) may wait in open batches, of all keys and partitions. Beyond it
    /// the oldest batch is closed early. Default no limit. A batch that is not full has always space.
    pub fn max_open_weight(mut self, limit: usize) -> Self {
        self.limits.open_weight = limit;
        self
    }

    /// How long `handle_batch` and `handle_failed` may take. Then their future is dropped, and the
    /// messages have failed. Default no limit.
    pub fn handle_within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// How many messages the batcher asks each processor for, and for more at half of it. Default the
    /// [`size`](Self::size) of a batch.
    pub fn max_demand(mut self, messages: usize) -> Self {
        self.max_demand = Some(messages);
        self
    }

    /// Messages with the same key are in the same batches and handled by the same batch processor,
    /// in their order. By default every batch goes to a batch processor that is free.
    ///
    /// If the function panics, its message fails.
    pub fn partition_by<P: Hash>(
        mut self,
        key: impl Fn(&Message<T>) -> P + Send + Sync + 'static,
    ) -> Self {
        self.partition_by = Some(partition_of(key));
        self
    }

    /// Messages with different keys are in different batches. If the function panics, its message
    /// fails.
    ///
    /// ```
    /// use pipeline_core::processing::{Batch, Batcher};
    ///
    /// let write = Batcher::from_fn(async |batch: &mut Batch<(), (u8, String)>| {
    ///     println!("for the region {:?}: {} rows", batch.info().key::<u8>(), batch.len());
    ///     Ok(())
    /// });
    /// let write = write.key_by(|row| row.output.0);
    /// ```
    pub fn key_by<Q: Eq + Hash + Clone + Send + Sync + 'static>(
        self,
        key: impl Fn(&Processed<T, U>) -> Q + Send + Sync + 'static,
    ) -> Batcher<T, U, B, Q> {
        let Self { processor, concurrency, limits, max_demand, partition_by, within, .. } = self;
        let key = Arc::new(key);
        Batcher { processor, concurrency, limits, max_demand, partition_by, key, within }
    }
}

impl BatchInfo {
    pub(super) fn new<K: Send + Sync + 'static>(
        batcher: Arc<str>,
        key: K,
        partition: Option<usize>,
        size: usize,
        trigger: BatchTrigger,
    ) -> Self {
        Self { batcher, key: Arc::new(key), partition, size, trigger }
    }
}

impl<T, U, B, K> fmt::Debug for Batcher<T, U, B, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher")
            .field("concurrency", &self.concurrency)
            .field("size", &self.limits.size)
            .field("within", &self.limits.within)
            .finish_non_exhaustive()
    }
}
