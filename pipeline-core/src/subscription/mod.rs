//! Subscriptions: a consumer's link to a producer, with its id and its options. Pure.

mod error;

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

pub use self::error::{BadPartition, SubscribeError};
use crate::{backoff::Backoff, exit::ExitReason, tally::Tally};

/// The id of a subscription in a pipeline: a consumer may hold several, and a pair of stages may
/// share several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

impl SubscriptionId {
    /// The `n`th subscription of a pipeline, for tests of dispatchers.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// The number of a subscription through all its makes, each of which has a [`SubscriptionId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineId(u64);

impl LineId {
    pub(crate) fn new(n: u64) -> Self {
        Self(n)
    }
}

/// The id of a stage in a pipeline. A restarted stage keeps its name and gets a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageId(u64);

impl StageId {
    /// The `n`th stage of a pipeline, for tests of dispatchers.
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
/// use pipeline_core::{
///     backoff::Backoff,
///     subscription::{Cancel, SubscribeOptions},
/// };
///
/// let options = SubscribeOptions::new().cancel(Cancel::Transient);
///
/// // Subscribes again when the producer is back.
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// let patient = SubscribeOptions::new().cancel(Cancel::Reconnect(backoff));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Cancel {
    /// The consumer stops with the same reason. The default.
    #[default]
    Permanent,
    /// The consumer continues after a graceful end and stops with the same reason after any other.
    Transient,
    /// The consumer continues.
    Temporary,
    /// The consumer continues, and subscribes again after growing delays until the producer is
    /// back. When the producer has ended for good, or its graph was dropped before the start, this is
    /// like `Transient` from the next try on, and the reason of an earlier cancel counts.
    Reconnect(Backoff),
}

impl Cancel {
    /// Whether a consumer continues when a subscription ended for this reason.
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

/// How a subscription ended: one end cancelled it, or the other end is gone.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::Consumer,
///     subscription::{Cancellation, Subscription},
/// };
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
    /// One of the two stages cancelled it.
    Cancel(ExitReason),
    /// The other stage has ended.
    Down(ExitReason),
}

impl Cancellation {
    /// The reason.
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

/// The sender of a subscription's demand.
///
/// ```
/// # use pipeline_core::{ExitReason, stage::Consumer};
/// use pipeline_core::subscription::{DemandControl, SubscribeOptions, Subscription};
///
/// /// Asks for one kind of work at night, and for other work automatically.
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
///     ) -> Result<DemandControl, ExitReason> {
///         if options.get_extension::<Nightly>().is_none() {
///             return Ok(DemandControl::Automatic);
///         }
///         self.nightly.push(from.clone());
///         Ok(DemandControl::Manual)
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
pub enum DemandControl {
    /// The stage, by `max_demand` and `min_demand`. The default.
    #[default]
    Automatic,
    /// The consumer, by [`Subscription::ask`].
    Manual,
}

/// A consumer's link to a producer, as seen by both ends. Cheap to clone; it can be kept and used
/// in any task.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::Consumer,
///     subscription::{DemandControl, SubscribeOptions, Subscription},
/// };
///
/// /// Takes one event after the other, whatever its options are.
/// struct OneByOne;
///
/// impl Consumer for OneByOne {
///     type Event = u64;
///
///     async fn handle_subscribe(
///         &mut self,
///         _options: &SubscribeOptions,
///         from: &Subscription,
///     ) -> Result<DemandControl, ExitReason> {
///         from.ask(1);
///         Ok(DemandControl::Manual)
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
    /// For observers. The dispatcher of the producer has the authoritative count.
    ledger: CachePadded<Ledger>,
    /// Whether the producer has accepted it, and not removed it.
    at_producer: AtomicBool,
    /// Whether the consumer expects its events.
    at_consumer: AtomicBool,
    link: Box<dyn Link>,
}

/// The total numbers of events that were asked for and sent. Only the producer writes them.
#[derive(Default)]
struct Ledger {
    asked: Tally,
    sent: Tally,
}

/// A value that one end writes for every message, in a cache line of its own: the other fields are
/// read as often by the other end.
#[derive(Default)]
#[repr(align(128))]
struct CachePadded<T>(T);

/// The two mailboxes that a subscription connects, for any event type.
pub(crate) trait Link: Send + Sync {
    /// Sends demand. If the producer may not know the subscription, the consumer's port is included
    /// for the refusal.
    fn ask(&self, id: SubscriptionId, demand: usize, known: bool);
    fn cancel(&self, id: SubscriptionId, reason: ExitReason);
    fn down(&self, id: SubscriptionId, reason: ExitReason);
    fn pause(&self, id: SubscriptionId, paused: bool);
    /// Where the consumer makes the subscription again, if it does.
    fn line(&self) -> Option<&Line>;
}

/// What all makes of a subscription have in common.
pub(crate) struct Line {
    pub(crate) id: LineId,
    pub(crate) consumer: Weak<dyn Home>,
}

/// The slot of a consumer, which persists across its restarts.
pub(crate) trait Home: Send + Sync {
    /// Cancels the latest make of a subscription, or withdraws it if it waits to be made.
    fn cancel(&self, line: LineId, reason: ExitReason);
    fn pause(&self, line: LineId, paused: bool);
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
            ledger: CachePadded::default(),
            at_producer: AtomicBool::new(false),
            at_consumer: AtomicBool::new(false),
            link: Box::new(link),
        }))
    }

    /// The id of the subscription, unique in the program.
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.0.id
    }

    /// The `max_demand` of its options.
    ///
    /// An automatic subscription keeps to it. For a manual one ([`DemandControl::Manual`]) it is a
    /// hint, which the consumer may follow.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ExitReason,
    ///     stage::Consumer,
    ///     subscription::{DemandControl, SubscribeOptions, Subscription},
    /// };
    ///
    /// /// Asks for a new event whenever it has finished one.
    /// struct Steady;
    ///
    /// impl Consumer for Steady {
    ///     type Event = u64;
    ///
    ///     async fn handle_subscribe(
    ///         &mut self,
    ///         _options: &SubscribeOptions,
    ///         from: &Subscription,
    ///     ) -> Result<DemandControl, ExitReason> {
    ///         from.ask(from.max_demand());
    ///         Ok(DemandControl::Manual)
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
    /// #     .producer(pipeline_core::source::from_iter(0..10))
    /// #     .consumer(Steady, SubscribeOptions::new().max_demand(3))
    /// #     .start()?;
    /// # assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_demand(&self) -> usize {
        self.0.max_demand
    }

    /// The `min_demand` of its options. If they have none, half of `max_demand`, or one less than
    /// `max_demand` for a [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor). A hint,
    /// like [`max_demand`](Self::max_demand).
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph, source::from_iter, step::for_each, subscription::SubscribeOptions,
    /// };
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

    pub(crate) fn pending_demand(&self) -> usize {
        let Ledger { asked, sent } = &self.0.ledger.0;
        let pending = asked.get().saturating_sub(sent.get());
        usize::try_from(pending).unwrap_or(usize::MAX)
    }

    /// The total number of events sent.
    pub(crate) fn total_sent(&self) -> u64 {
        self.0.ledger.0.sent.get()
    }

    /// Records whether the producer knows it. Until a consumer sees a change, it may send demand
    /// without its port; but then the end of the subscription is already in transit.
    pub(crate) fn set_at_producer(&self, known: bool) {
        self.0.at_producer.store(known, Ordering::Relaxed);
    }

    /// Records whether the consumer expects its events. It does until the last of them has arrived,
    /// and never if there was no producer.
    pub(crate) fn set_at_consumer(&self, known: bool) {
        self.0.at_consumer.store(known, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_at_consumer(&self) -> bool {
        self.0.at_consumer.load(Ordering::Relaxed)
    }

    /// Counts demand that the producer received. Called by the producer only.
    #[inline]
    pub(crate) fn asked(&self, events: usize) {
        self.0.ledger.0.asked.add(events);
    }

    /// Counts events that the producer has sent.
    #[inline]
    pub(crate) fn sent(&self, events: usize) {
        self.0.ledger.0.sent.add(events);
    }

    /// Asks the producer for `demand` more events; 0 does nothing.
    ///
    /// For a manual subscription ([`DemandControl::Manual`]). On an automatic one it asks for
    /// events beyond `max_demand`. A subscription that has ended ignores it.
    pub fn ask(&self, demand: usize) {
        if demand > 0 {
            self.0.link.ask(self.0.id, demand, self.0.at_producer.load(Ordering::Relaxed));
        }
    }

    pub(crate) fn line(&self) -> Option<LineId> {
        self.0.link.line().map(|line| line.id)
    }

    /// The line, if this is not the latest make, or was never made.
    fn renewed(&self) -> Option<(LineId, Arc<dyn Home>)> {
        if self.is_at_consumer() {
            return None;
        }
        let line = self.0.link.line()?;
        Some((line.id, line.consumer.upgrade()?))
    }

    /// Cancels the subscription. Both ends are notified by their `handle_cancel`, the consumer
    /// after it has handled the events in transit. A [`Cancel::Permanent`] consumer stops with the
    /// reason. If the producer has ended before, the subscription ends with the producer's reason.
    ///
    /// A [`Cancel::Reconnect`] subscription is made again, unless it waits for its producer just then:
    /// then it is withdrawn, without a `handle_cancel`, and the consumer continues after a graceful
    /// reason. A subscription that was made again, also by a restarted consumer, has a new id, but is
    /// still cancelled, paused and replaced by this one.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ExitReason, Graph,
    ///     source::from_iter,
    ///     step::for_each,
    ///     subscription::{Cancel, SubscribeOptions},
    /// };
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
    /// // The producer removes it before it handles the next message.
    /// numbers.estimate_buffered_count().await?;
    /// assert!(pipeline.snapshot().stages[0].subscriptions.is_empty());
    /// assert!(print.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&self, reason: ExitReason) {
        match self.renewed() {
            Some((line, consumer)) => consumer.cancel(line, reason),
            None => self.cancel_made(reason),
        }
    }

    /// Cancels this make of the subscription.
    pub(crate) fn cancel_made(&self, reason: ExitReason) {
        self.0.link.cancel(self.0.id, reason);
    }

    /// Notifies the producer that the consumer has ended.
    pub(crate) fn down(&self, reason: ExitReason) {
        self.0.link.down(self.0.id, reason);
    }

    /// Pauses the handling of events from this subscription. Events that were asked for may still
    /// arrive, and wait.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Graph,
    ///     source::{QueueOptions, queue},
    ///     step::for_each,
    ///     subscription::SubscribeOptions,
    /// };
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
    /// // The event is printed now, not earlier.
    /// subscription.resume();
    /// queue.close();
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        match self.renewed() {
            Some((line, consumer)) => consumer.pause(line, paused),
            None => self.0.link.pause(self.0.id, paused),
        }
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

/// The options of a subscription: how many events the consumer takes, and when it asks for more.
///
/// A consumer asks for `max_demand` events when it subscribes, and again, up to `max_demand`,
/// whenever no more than `min_demand` are outstanding. For a
/// [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor), `max_demand` is the number of
/// workers alive at once.
///
/// ```
/// use pipeline_core::subscription::SubscribeOptions;
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
    /// Values for the producer and its dispatcher, by type.
    extensions: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            max_demand: 1000,
            min_demand: None,
            cancel: Cancel::Permanent,
            extensions: Vec::new(),
        }
    }
}

impl SubscribeOptions {
    /// The defaults: `max_demand` 1000, [`min_demand`](Self::min_demand) half of it, permanent.
    pub fn new() -> Self {
        Self::default()
    }

    /// The maximum number of events in transit or being handled. Default 1000; at least 1.
    pub fn max_demand(mut self, events: usize) -> Self {
        self.max_demand = events;
        self
    }

    /// The number of outstanding events at which more are asked for; less than `max_demand`.
    /// Default half of `max_demand`, rounded down.
    ///
    /// For a [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor) the default is
    /// `max_demand - 1`: it asks for an event as soon as a worker is free. Demand for workers that
    /// become free together is sent together.
    pub fn min_demand(mut self, events: usize) -> Self {
        self.min_demand = Some(events);
        self
    }

    /// What happens to the consumer when the subscription ends. Default [`Cancel::Permanent`].
    pub fn cancel(mut self, mode: Cancel) -> Self {
        self.cancel = mode;
        self
    }

    /// Adds an extension: a value for the producer's `handle_subscribe` or for its dispatcher.
    /// There is one of each type; a second replaces the first.
    ///
    /// ```
    /// use pipeline_core::subscription::SubscribeOptions;
    ///
    /// struct Region(&'static str);
    ///
    /// let options = SubscribeOptions::new().extension(Region("eu"));
    /// assert_eq!(options.get_extension::<Region>().unwrap().0, "eu");
    /// ```
    pub fn extension<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.retain(|other| !other.is::<T>());
        self.extensions.push(Arc::new(value));
        self
    }

    /// The extension of this type, if there is one.
    #[must_use]
    pub fn get_extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.iter().find_map(|value| value.downcast_ref())
    }

    /// Checks whether the options are valid.
    ///
    /// # Errors
    ///
    /// [`SubscribeError`] names the invalid value and its limit.
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

    /// The same for a consumer whose events each take a slot: by default, a free slot is asked for
    /// at once.
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
            .field("extensions", &self.extensions.len())
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
    fn invalid_options_are_refused_with_the_limit() {
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
