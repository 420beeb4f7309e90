//! The first layer: each message is handled alone.

use std::{future::Future, hash::Hash, marker::PhantomData, sync::Arc, thread, time::Duration};

use super::{
    failure::{Failure, Redelivery},
    message::Message,
};
use crate::{backoff::Backoff, dispatcher::partition_number, subscription::SubscribeOptions};

/// Handles messages one by one. It is shared by all processors of a pipeline.
///
/// Most need only a function: see [`Processors::from_fn`]. The callbacks are those of `Broadway`.
///
/// ```
/// use pipeline_core::processing::{Failure, Message, Processor};
///
/// /// Converts prices.
/// struct Convert {
///     rate: f64,
/// }
///
/// impl Processor<f64> for Convert {
///     type Output = f64;
///
///     async fn handle_message(&self, price: &mut Message<f64>) -> Result<f64, Failure> {
///         if **price < 0.0 {
///             return Err(Failure::new("a negative price").give_up());
///         }
///         Ok(**price * self.rate)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a processor of messages with `{T}`",
    label = "does not implement `Processor<{T}>`",
    note = "`Processors::from_fn(async |message: &mut Message<Data>| {{ .. Ok(output) }})` makes one of a function"
)]
pub trait Processor<T>: Send + Sync + 'static {
    /// What it makes of a message, for the batchers.
    type Output: Send + 'static;

    /// Whether each processor asks a source for one message at a time, whatever
    /// [`Processors::max_demand`] says: for work that may wait for long, such as for a client. No message
    /// waits behind another then while a processor is free. By default it is left to the options.
    const ONE_AT_A_TIME: bool = false;

    /// Called with each chunk of messages before they are handled one by one, for example to fetch
    /// what all of them need with one query. It may fail single messages, which are handled all the
    /// same; [`handle_message`](Self::handle_message) may [recover](Message::recover) them.
    ///
    /// # Errors
    ///
    /// An error or a panic fails all messages of the chunk, and none of them is handled.
    fn prepare_messages(
        &self,
        messages: &mut [Message<T>],
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = messages;
        async { Ok(()) }
    }

    /// Handles a message.
    ///
    /// # Errors
    ///
    /// An error or a panic fails this message only. It is tried again if the processors have
    /// [`tries`](Processors::tries).
    fn handle_message(
        &self,
        message: &mut Message<T>,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;

    /// Called once with the failed messages of a chunk, before they are acknowledged. It may change
    /// their [failures](Message::fail); that they have failed stays. A panic changes nothing.
    fn handle_failed(&self, messages: &mut [Message<T>]) -> impl Future<Output = ()> + Send {
        let _ = messages;
        async {}
    }
}

/// A function of a borrowed value whose future may borrow it too.
///
/// It is implemented for every such `FnOnce`, including async closures.
pub trait AsyncMut<'a, V: 'a, R>: FnOnce(&'a mut V) -> Self::Future {
    /// The future.
    type Future: Future<Output = Result<R, Failure>> + Send + 'a;
}

impl<'a, V, R, F, Fut> AsyncMut<'a, V, R> for F
where
    V: 'a,
    F: FnOnce(&'a mut V) -> Fut,
    Fut: Future<Output = Result<R, Failure>> + Send + 'a,
{
    type Future = Fut;
}

/// A processor made of a function.
#[derive(Debug)]
pub struct FnProcessor<F, T, U> {
    function: F,
    types: PhantomData<fn(T) -> U>,
}

/// Each message gets a clone of the closure, because an async closure lends its captures to its
/// future: capture values that are cheap to clone.
impl<F, T, U> Processor<T> for FnProcessor<F, T, U>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Message<T>, U> + Clone + Send + Sync + 'static,
{
    type Output = U;

    fn handle_message(
        &self,
        message: &mut Message<T>,
    ) -> impl Future<Output = Result<U, Failure>> + Send {
        self.function.clone()(message)
    }
}

/// The processors of a pipeline, with their options.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{
///     backoff::Backoff,
///     processing::{Message, Processors},
/// };
///
/// let processors = Processors::from_fn(async |url: &mut Message<String>| {
///     // Fetch it.
///     Ok(url.len())
/// })
/// .concurrency(20)
/// .tries(3, Backoff::new(Duration::from_millis(100), Duration::from_secs(5)));
/// # let _: Processors<String, _> = processors;
/// ```
#[must_use]
pub struct Processors<T, P> {
    pub(super) processor: P,
    pub(super) concurrency: usize,
    pub(super) demand: SubscribeOptions,
    pub(super) tries: Tries,
    pub(super) partition_by: Option<PartitionBy<T>>,
}

/// Which partition a message belongs to, before the modulo.
pub(super) type PartitionBy<T> = Arc<dyn Fn(&Message<T>) -> u64 + Send + Sync>;

/// Numbers messages by this key.
pub(super) fn partition_of<T, K: Hash>(
    key: impl Fn(&Message<T>) -> K + Send + Sync + 'static,
) -> PartitionBy<T> {
    Arc::new(move |message| partition_number(&key(message)))
}

/// How often a processor handles a message that fails, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) most: u32,
    pub(super) backoff: Option<Backoff>,
    /// The limit of each try.
    pub(super) within: Duration,
}

impl Tries {
    /// Whether another try follows if the one after so many failures fails.
    pub(super) fn is_followed(&self, failures: u32) -> bool {
        self.backoff.is_some() && failures.saturating_add(1) < self.most
    }

    /// The delays before the next try, if there is one after so many failures, the last of which is
    /// this.
    pub(super) fn backoff_after(&self, failures: u32, failure: &Failure) -> Option<Backoff> {
        let is_left_to_it = failure.redelivery() == Redelivery::Usual;
        self.backoff.filter(|_| failures < self.most && is_left_to_it)
    }
}

impl<T, F, U> Processors<T, FnProcessor<F, T, U>>
where
    T: Send + 'static,
    U: Send + 'static,
    F: for<'a> AsyncMut<'a, Message<T>, U> + Clone + Send + Sync + 'static,
{
    /// Processors that call a function with each message.
    pub fn from_fn(function: F) -> Self {
        Self::new(FnProcessor { function, types: PhantomData })
    }
}

impl<T, P: Processor<T>> Processors<T, P> {
    /// Processors of this kind.
    pub fn new(processor: P) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            processor,
            concurrency: cores.saturating_mul(2),
            demand: SubscribeOptions::new().max_demand(10),
            tries: Tries { most: 1, backoff: None, within: Duration::MAX },
            partition_by: None,
        }
    }

    /// How many processors there are. Each is a stage in a task of its own, and handles one message at
    /// a time. Default two for each core.
    ///
    /// A processor that is free does not take over what another one has asked for: see
    /// [`max_demand`](Self::max_demand).
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn concurrency(mut self, processors: usize) -> Self {
        assert!(processors > 0, "a pipeline needs at least one processor");
        self.concurrency = processors;
        self
    }

    /// How many messages a processor asks each source for. Default 10; always 1 for a processor that works
    /// on [one at a time](Processor::ONE_AT_A_TIME).
    ///
    /// What a source emits together goes to the processors that have asked for most, as evenly as it can be
    /// divided, so a short backlog is in work at once. But what a processor has got waits for it, one after
    /// the other, also when other processors have nothing to do by then, and is acknowledged chunk by chunk.
    /// With 1, as many messages are in work as there are processors, and none waits behind a slow one. More
    /// suits work that is quick.
    ///
    /// With several sources it may hold as many of each.
    pub fn max_demand(mut self, messages: usize) -> Self {
        self.demand = self.demand.max_demand(messages);
        self
    }

    /// The number of outstanding messages at which a processor asks for more. Default half of
    /// [`max_demand`](Self::max_demand). It handles chunks of up to the difference.
    pub fn min_demand(mut self, messages: usize) -> Self {
        self.demand = self.demand.min_demand(messages);
        self
    }

    /// How often a message is handled that fails, and the delays in between. Default once: trying
    /// again is left to the source.
    ///
    /// Meanwhile the processor handles no other message, so that the order of its messages stays. Only a
    /// message that has [left its place](crate::stage::Place) waits outside, and takes a place of its layer
    /// again for the next try: others may overtake it. A failure that says what the source should do with the message ends the tries.
    ///
    /// # Panics
    ///
    /// If `tries` is 0.
    pub fn tries(mut self, tries: u32, backoff: Backoff) -> Self {
        assert!(tries > 0, "a message must be tried at least once");
        self.tries = Tries { most: tries, backoff: Some(backoff), ..self.tries };
        self
    }

    /// How long a try may take, and `prepare_messages` and `handle_failed`. Then their future is dropped,
    /// and the messages have failed. Default no limit.
    ///
    /// The time for which a try waits for its turn is [not counted](crate::stage::Place::without_limit).
    pub fn handle_within(mut self, limit: Duration) -> Self {
        self.tries.within = limit;
        self
    }

    /// Messages with the same key are handled by the same processor, in the order in which a source
    /// emits them. By default every message goes to a processor that has asked for it.
    ///
    /// The processor is the key modulo the [`concurrency`](Self::concurrency), if the key is a number, and
    /// the hash of any other key modulo it. That hash is the same in every process. A processor that is
    /// stuck eventually stops the source, as in a
    /// [`PartitionDispatcher`](crate::dispatcher::PartitionDispatcher). If the function panics, its
    /// message fails.
    pub fn partition_by<K: Hash>(
        mut self,
        key: impl Fn(&Message<T>) -> K + Send + Sync + 'static,
    ) -> Self {
        self.partition_by = Some(partition_of(key));
        self
    }
}

impl<T, P> std::fmt::Debug for Processors<T, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processors")
            .field("concurrency", &self.concurrency)
            .field("demand", &self.demand)
            .finish_non_exhaustive()
    }
}
