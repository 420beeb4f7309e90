//! One consumer's link to one producer: its identity and its options. Pure.

mod error;

use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use self::error::{BadPartition, SubscribeError};
use crate::{backoff::Backoff, exit::ExitReason, tally::Tally};

/// Names one subscription of a pipeline: a consumer may hold several, and a pair of stages may
/// share several.
///
/// ```
/// use std::collections::HashMap;
///
/// use pipeline_core::{Consumer, ExitReason, Subscription, SubscriptionId};
///
/// /// How many events have come from where.
/// struct Tally(HashMap<SubscriptionId, usize>);
///
/// impl Consumer for Tally {
///     type Event = u64;
///
///     async fn handle_events(
///         &mut self,
///         events: Vec<u64>,
///         from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         *self.0.entry(from.id()).or_default() += events.len();
///         Ok(())
///     }
/// }
/// # use pipeline_core::{Pipeline, SubscribeOptions, from_iter};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut pipeline = Pipeline::builder("tally")
/// #     .producer(from_iter(0..10))
/// #     .consumer(Tally(HashMap::new()), SubscribeOptions::new())
/// #     .start()?;
/// # assert_eq!(pipeline.ended().await.left_undone(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

impl SubscriptionId {
    /// The `n`th subscription of a pipeline. Of use to whoever tests a dispatcher.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// Names one stage of a pipeline. A stage that is restarted keeps its name and gets a new id.
///
/// ```
/// use pipeline_core::{
///     BroadcastDispatcher, Dispatcher, StageId, SubscribeOptions, Subscriber, SubscriptionId,
/// };
///
/// // A test of a dispatcher that takes each stage once.
/// let (stage, options) = (StageId::new(7), SubscribeOptions::new());
/// let mut dispatcher = BroadcastDispatcher::<u64>::new();
/// let first = Subscriber::new(SubscriptionId::new(1), stage, &options);
/// let second = Subscriber::new(SubscriptionId::new(2), stage, &options);
/// assert!(dispatcher.subscribe(first).is_ok());
/// assert!(dispatcher.subscribe(second).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageId(u64);

impl StageId {
    /// The `n`th stage of a pipeline. Of use to whoever tests a dispatcher.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// What happens to a consumer when one of its subscriptions ends. The first three modes are
/// GenStage's.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::{Backoff, Cancel, SubscribeOptions};
///
/// let options = SubscribeOptions::new().cancel(Cancel::Transient);
///
/// // Comes back when the producer does.
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// let patient = SubscribeOptions::new().cancel(Cancel::Reconnect(backoff));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Cancel {
    /// It stops with the same reason. The default.
    #[default]
    Permanent,
    /// It goes on after a graceful end and stops with the same reason after any other.
    Transient,
    /// It goes on.
    Temporary,
    /// It goes on, and subscribes again after a while, and again after a longer while, until the
    /// producer is back. When the producer has ended for good, this is like `Transient`.
    Reconnect(Backoff),
}

impl Cancel {
    /// Whether a consumer goes on when a subscription ended for this reason.
    pub(crate) fn survives(self, reason: &ExitReason) -> bool {
        match self {
            Self::Permanent => SubscribeError::is_already_subscribed(reason),
            Self::Transient | Self::Reconnect(_) => {
                reason.is_graceful() || SubscribeError::is_already_subscribed(reason)
            }
            Self::Temporary => true,
        }
    }
}

/// How a subscription ended: as one end wished, or because the other end is gone.
///
/// ```
/// use pipeline_core::{Cancellation, Consumer, ExitReason, Subscription};
///
/// struct Log;
///
/// impl Consumer for Log {
/// #     type Event = u64;
///     async fn handle_cancel(
///         &mut self,
///         ended: &Cancellation,
///         _from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         match ended {
///             Cancellation::Down(reason) if !reason.is_graceful() => eprintln!("lost: {reason}"),
///             _ => println!("{ended}"),
///         }
///         Ok(())
///     }
/// #     async fn handle_events(
/// #         &mut self,
/// #         _: Vec<u64>,
/// #         _: &Subscription,
/// #     ) -> Result<(), ExitReason> {
/// #         Ok(())
/// #     }
/// }
/// # assert_eq!(Cancellation::Down(ExitReason::Normal).to_string(), "down (normal)");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Cancellation {
    /// One of the two cancelled it.
    Cancel(ExitReason),
    /// The other stage has ended.
    Down(ExitReason),
}

impl Cancellation {
    /// Why.
    #[must_use]
    pub fn reason(&self) -> &ExitReason {
        match self {
            Self::Cancel(reason) | Self::Down(reason) => reason,
        }
    }
}

impl fmt::Display for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancel(reason) => write!(f, "cancelled ({reason})"),
            Self::Down(reason) => write!(f, "down ({reason})"),
        }
    }
}

/// Who decides when a subscription asks for events.
///
/// ```
/// # use pipeline_core::{Consumer, ExitReason};
/// use pipeline_core::{Asking, SubscribeOptions, Subscription};
///
/// /// Asks for a night's work when the night comes, and for other work as usual.
/// struct Backups {
///     nightly: Vec<Subscription>,
/// }
///
/// /// An option of its own.
/// struct Nightly;
///
/// impl Consumer for Backups {
/// #     type Event = u64;
///     async fn handle_subscribe(
///         &mut self,
///         options: &SubscribeOptions,
///         from: &Subscription,
///     ) -> Result<Asking, ExitReason> {
///         if options.get::<Nightly>().is_none() {
///             return Ok(Asking::Automatic);
///         }
///         self.nightly.push(from.clone());
///         Ok(Asking::Manual)
///     }
/// #     async fn handle_events(
/// #         &mut self,
/// #         _: Vec<u64>,
/// #         _: &Subscription,
/// #     ) -> Result<(), ExitReason> {
/// #         Ok(())
/// #     }
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asking {
    /// The stage, by `max_demand` and `min_demand`. The default.
    #[default]
    Automatic,
    /// The consumer, by [`Subscription::ask`].
    Manual,
}

/// One consumer's link to one producer, as both ends see it. Cheap to clone, and it may be kept and
/// used from any task.
///
/// ```
/// use pipeline_core::{Asking, Consumer, ExitReason, SubscribeOptions, Subscription};
///
/// /// Takes one event after the other, whatever its subscription says.
/// struct OneByOne;
///
/// impl Consumer for OneByOne {
///     type Event = u64;
///
///     async fn handle_subscribe(
///         &mut self,
///         _options: &SubscribeOptions,
///         from: &Subscription,
///     ) -> Result<Asking, ExitReason> {
///         from.ask(1);
///         Ok(Asking::Manual)
///     }
///
///     async fn handle_events(
///         &mut self,
///         events: Vec<u64>,
///         from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         println!("{events:?}");
///         from.ask(1);
///         Ok(())
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Subscription(Arc<Inner>);

struct Inner {
    id: SubscriptionId,
    max_demand: usize,
    min_demand: usize,
    /// For those who look. The producer's dispatcher keeps the number that counts.
    ledger: Apart<Ledger>,
    /// Whether the producer has accepted it, and not forgotten it.
    at_producer: AtomicBool,
    /// Whether the consumer expects its events.
    at_consumer: AtomicBool,
    link: Box<dyn Link>,
}

/// How many events were asked for over a subscription so far, and how many were sent. Its producer
/// writes both.
#[derive(Default)]
struct Ledger {
    asked: Tally,
    sent: Tally,
}

/// Something that one end writes for every message, in a cache line of its own: the rest is read as
/// often, by the other.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// The two mailboxes that a subscription connects, whatever events it carries.
pub(crate) trait Link: Send + Sync {
    /// Asks; of a producer that may not know the subscription, with whom to tell so.
    fn ask(&self, id: SubscriptionId, demand: usize, known: bool);
    fn cancel(&self, id: SubscriptionId, reason: ExitReason);
    fn down(&self, id: SubscriptionId, reason: ExitReason);
    fn pause(&self, id: SubscriptionId, paused: bool);
}

impl Subscription {
    pub(crate) fn new(
        id: SubscriptionId,
        options: &SubscribeOptions,
        link: impl Link + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            id,
            max_demand: options.max(),
            min_demand: options.min(),
            ledger: Apart::default(),
            at_producer: AtomicBool::new(false),
            at_consumer: AtomicBool::new(false),
            link: Box::new(link),
        }))
    }

    /// Its name within the program.
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.0.id
    }

    /// The `max_demand` of the options it was made with.
    ///
    /// The stage keeps to it if it asks by itself. For a consumer that asks for events itself
    /// ([`Asking::Manual`]) it is a wish, which the consumer may follow.
    ///
    /// ```
    /// use pipeline_core::{Asking, Consumer, ExitReason, SubscribeOptions, Subscription};
    ///
    /// /// Asks for a new event whenever it is done with one.
    /// struct Steady;
    ///
    /// impl Consumer for Steady {
    ///     type Event = u64;
    ///
    ///     async fn handle_subscribe(
    ///         &mut self,
    ///         _options: &SubscribeOptions,
    ///         from: &Subscription,
    ///     ) -> Result<Asking, ExitReason> {
    ///         from.ask(from.max_demand());
    ///         Ok(Asking::Manual)
    ///     }
    ///
    ///     async fn handle_events(
    ///         &mut self,
    ///         events: Vec<u64>,
    ///         from: &Subscription,
    ///     ) -> Result<(), ExitReason> {
    ///         assert!(events.len() <= from.max_demand());
    ///         from.ask(events.len());
    ///         Ok(())
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut pipeline = pipeline_core::Pipeline::builder("numbers")
    /// #     .producer(pipeline_core::from_iter(0..10))
    /// #     .consumer(Steady, SubscribeOptions::new().max_demand(3))
    /// #     .start()?;
    /// # assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_demand(&self) -> usize {
        self.0.max_demand
    }

    /// The `min_demand` of the options it was made with. If they name none, half of `max_demand`, or one
    /// less than `max_demand` for a [`ConsumerSupervisor`](crate::ConsumerSupervisor).
    /// A wish, like [`max_demand`](Self::max_demand).
    ///
    /// ```
    /// use pipeline_core::{Graph, SubscribeOptions, for_each, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut graph = Graph::new("numbers");
    /// # let numbers = graph.producer("numbers", from_iter(0..10));
    /// # let print = graph.consumer("print", for_each(async |n| println!("{n}")));
    /// # let _pipeline = graph.start()?;
    /// let options = SubscribeOptions::new().max_demand(50);
    /// let subscription = print.subscribe(&numbers, options).await?;
    /// assert_eq!((subscription.max_demand(), subscription.min_demand()), (50, 25));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn min_demand(&self) -> usize {
        self.0.min_demand
    }

    pub(crate) fn pending(&self) -> usize {
        let Ledger { asked, sent } = &self.0.ledger.0;
        let pending = asked.get().saturating_sub(sent.get());
        usize::try_from(pending).unwrap_or(usize::MAX)
    }

    /// How many events were sent over it so far.
    pub(crate) fn total_sent(&self) -> u64 {
        self.0.ledger.0.sent.get()
    }

    /// The producer knows it from now on, or does not any more. Until a consumer sees that, it may ask
    /// without saying whom to tell; but then the end of the subscription is on its way.
    pub(crate) fn set_at_producer(&self, known: bool) {
        self.0.at_producer.store(known, Ordering::Relaxed);
    }

    /// The consumer expects its events from now on, or does not any more. It does until the last of
    /// them has come.
    pub(crate) fn set_at_consumer(&self, known: bool) {
        self.0.at_consumer.store(known, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_at_consumer(&self) -> bool {
        self.0.at_consumer.load(Ordering::Relaxed)
    }

    /// The producer was asked for more. Only the producer itself counts.
    #[inline]
    pub(crate) fn asked(&self, events: usize) {
        self.0.ledger.0.asked.add(events);
    }

    /// The producer has sent some.
    #[inline]
    pub(crate) fn sent(&self, events: usize) {
        self.0.ledger.0.sent.add(events);
    }

    /// Asks the producer for so many more events; asking for 0 does nothing.
    ///
    /// For a subscription that is [`Asking::Manual`]. On an automatic one it asks for events beyond
    /// `max_demand`. A subscription that has ended takes no notice.
    pub fn ask(&self, demand: usize) {
        if demand > 0 {
            self.0.link.ask(self.0.id, demand, self.0.at_producer.load(Ordering::Relaxed));
        }
    }

    /// Ends the subscription. Both ends see it by their `handle_cancel`; the consumer when it has
    /// handled what was on its way. A [`Cancel::Permanent`] consumer stops with the reason.
    ///
    /// ```
    /// use pipeline_core::{Cancel, ExitReason, Graph, SubscribeOptions, for_each, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", from_iter(0..));
    /// let print = graph.consumer("print", for_each(async |n: u64| println!("{n}")));
    /// let pipeline = graph.start()?;
    ///
    /// let options = SubscribeOptions::new().max_demand(10).cancel(Cancel::Temporary);
    /// let subscription = print.subscribe(&numbers, options).await?;
    /// subscription.cancel(ExitReason::Normal);
    ///
    /// // The producer has forgotten it when it comes to the next message.
    /// numbers.estimate_buffered_count().await?;
    /// assert!(pipeline.snapshot().stages[0].subscriptions.is_empty());
    /// assert!(print.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&self, reason: ExitReason) {
        self.0.link.cancel(self.0.id, reason);
    }

    /// Tells the producer that the consumer has ended.
    pub(crate) fn down(&self, reason: ExitReason) {
        self.0.link.down(self.0.id, reason);
    }

    /// Lets the consumer handle nothing from this subscription for a while. What it has asked for
    /// may still arrive, and waits.
    ///
    /// ```
    /// use pipeline_core::{Graph, QueueOptions, SubscribeOptions, for_each, queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue::<u64>(QueueOptions::new());
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", producer);
    /// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
    /// let mut pipeline = graph.start()?;
    /// let subscription = print.subscribe(&numbers, SubscribeOptions::new()).await?;
    ///
    /// subscription.pause();
    /// queue.push(7).await?;
    /// // It is printed now, and not before.
    /// subscription.resume();
    /// queue.close();
    /// assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.0.link.pause(self.0.id, true);
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.0.link.pause(self.0.id, false);
    }
}

impl PartialEq for Subscription {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Subscription {}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.id().0).finish()
    }
}

/// How a consumer subscribes to a producer: how many events it takes, and when it asks for more.
///
/// A consumer asks for `max_demand` events when it subscribes, and again, up to `max_demand`, each
/// time no more than `min_demand` are still to come. For a
/// [`ConsumerSupervisor`](crate::ConsumerSupervisor), `max_demand` is the number of workers alive
/// at once.
///
/// ```
/// use pipeline_core::SubscribeOptions;
///
/// let options = SubscribeOptions::new().max_demand(50).min_demand(40);
/// assert!(options.check().is_ok());
///
/// let wrong = SubscribeOptions::new().max_demand(10).min_demand(10);
/// assert_eq!(
///     wrong.check().unwrap_err().to_string(),
///     "min_demand is 10, expected at most 9 with a max_demand of 10"
/// );
/// ```
#[derive(Clone)]
#[must_use]
pub struct SubscribeOptions {
    max_demand: usize,
    min_demand: Option<usize>,
    cancel: Cancel,
    /// What is meant for the producer and its dispatcher, by type.
    extras: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { max_demand: 1000, min_demand: None, cancel: Cancel::Permanent, extras: Vec::new() }
    }
}

impl SubscribeOptions {
    /// The defaults: `max_demand` 1000, [`min_demand`](Self::min_demand) half of it, permanent.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most events that may be on their way or in hand at once. Default 1000; at least 1.
    pub fn max_demand(mut self, events: usize) -> Self {
        self.max_demand = events;
        self
    }

    /// How few events may be left before more are asked for; less than `max_demand`. Default half of
    /// `max_demand`, rounded down.
    ///
    /// For a [`ConsumerSupervisor`](crate::ConsumerSupervisor) the default is `max_demand - 1`: it asks
    /// for an event as soon as a worker is free. Workers that become free together are asked for
    /// together.
    pub fn min_demand(mut self, events: usize) -> Self {
        self.min_demand = Some(events);
        self
    }

    /// What happens to the consumer when the subscription ends. Default [`Cancel::Permanent`].
    pub fn cancel(mut self, mode: Cancel) -> Self {
        self.cancel = mode;
        self
    }

    /// Adds something for the producer's `handle_subscribe` or for its dispatcher. There is one of
    /// each type; a second replaces the first.
    ///
    /// ```
    /// use pipeline_core::SubscribeOptions;
    ///
    /// struct Region(&'static str);
    ///
    /// let options = SubscribeOptions::new().with(Region("eu"));
    /// assert_eq!(options.get::<Region>().unwrap().0, "eu");
    /// ```
    pub fn with<T: Send + Sync + 'static>(mut self, extra: T) -> Self {
        self.extras.retain(|other| !other.is::<T>());
        self.extras.push(Arc::new(extra));
        self
    }

    /// What was added of this type, if anything.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extras.iter().find_map(|extra| extra.downcast_ref())
    }

    /// Whether the options can be subscribed with.
    ///
    /// # Errors
    ///
    /// [`SubscribeError`] says which value is wrong and what it may be.
    pub fn check(&self) -> Result<(), SubscribeError> {
        let (max, min) = (self.max_demand, self.min());
        if max == 0 {
            return Err(SubscribeError::MaxDemand);
        }
        if min >= max {
            return Err(SubscribeError::MinDemand { min, max });
        }
        Ok(())
    }

    pub(crate) fn max(&self) -> usize {
        self.max_demand
    }

    pub(crate) fn min(&self) -> usize {
        self.min_demand.unwrap_or(self.max_demand / 2)
    }

    /// The same, for a consumer whose events each take a slot: unless something else is said, no slot
    /// that is free waits for others.
    pub(crate) fn for_slots(mut self) -> Self {
        self.min_demand.get_or_insert(self.max_demand.saturating_sub(1));
        self
    }

    pub(crate) fn mode(&self) -> Cancel {
        self.cancel
    }
}

impl fmt::Debug for SubscribeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscribeOptions")
            .field("max_demand", &self.max_demand)
            .field("min_demand", &self.min())
            .field("cancel", &self.cancel)
            .field("extras", &self.extras.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_demand_is_half_of_max_demand_unless_given() {
        let min = |max| SubscribeOptions::new().max_demand(max).min();
        assert_eq!([1, 5, 7, 1000].map(min), [0, 2, 3, 500]);
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_the_limit() {
        let error = |options: SubscribeOptions| options.check().unwrap_err().to_string();
        assert_eq!(
            error(SubscribeOptions::new().max_demand(0)),
            "max_demand is 0, expected at least 1"
        );
        assert_eq!(
            error(SubscribeOptions::new().min_demand(2000)),
            "min_demand is 2000, expected at most 999 with a max_demand of 1000"
        );
    }
}
