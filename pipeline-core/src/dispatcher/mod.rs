//! Dispatchers: which consumer gets which event. Pure.

mod broadcast;
#[cfg(test)]
mod cases;
mod demand;
mod partition;

use std::{borrow::Cow, collections::VecDeque, fmt};

use thiserror::Error;

pub(crate) use self::partition::partition_number;
pub use self::{
    broadcast::BroadcastDispatcher, demand::DemandDispatcher, partition::PartitionDispatcher,
};
use crate::{
    exit::ExitReason,
    subscription::{StageId, SubscribeError, SubscribeOptions, SubscriptionId},
};

/// A stage's strategy for distributing its events among its subscribers.
///
/// A dispatcher is plain state inside a stage: it never waits and never runs concurrently with a
/// callback. Demand goes in through [`ask`](Self::ask), events through
/// [`dispatch`](Self::dispatch). After every call the stage reads [`unmet`](Self::unmet), offers
/// buffered events while there is unmet demand, and asks its source for the rest. No call returns
/// demand, so none can be counted twice.
///
/// # Contract
///
/// 1. On one subscription, no more events are sent than were asked for.
/// 2. Every event given to `dispatch` is sent, left in place, kept in a queue of the dispatcher's
///    own, or discarded on purpose: exactly one of these.
/// 3. On one subscription, events keep their order. Events left in place keep their order too.
/// 4. Demand is conserved: asked = served + outstanding + withdrawn by `cancel`. A discarded event
///    costs no demand. Unmet demand never exceeds the outstanding demand beyond the queued events.
/// 5. A subscriber's mistake affects that subscriber only.
/// 6. No empty message is sent.
/// 7. `cancel` may raise the unmet demand: the subscriber that left may have blocked the others.
///
/// `testkit::check_dispatcher` (feature `test-kit`) checks an implementation against this contract.
/// User code inside a dispatcher, such as a closure, runs in the task of the stage.
///
/// The contract is that of GenStage's dispatchers, except that those return demand from their
/// calls.
///
/// ```
/// use std::collections::VecDeque;
///
/// use pipeline_core::{
///     ExitReason,
///     dispatcher::{Deliveries, Dispatcher, Subscriber},
///     subscription::SubscriptionId,
/// };
///
/// /// Sends everything to the first subscriber.
/// #[derive(Default)]
/// struct First(Vec<(SubscriptionId, usize)>);
///
/// impl<E> Dispatcher<E> for First {
///     fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
///         self.0.push((subscriber.id, 0));
///         Ok(())
///     }
///
///     fn cancel(&mut self, id: SubscriptionId, _out: &mut Deliveries<E>) {
///         self.0.retain(|(other, _)| *other != id);
///     }
///
///     fn ask(&mut self, id: SubscriptionId, demand: usize, _out: &mut Deliveries<E>) {
///         if let Some((_, outstanding)) = self.0.iter_mut().find(|(other, _)| *other == id) {
///             *outstanding += demand;
///         }
///     }
///
///     fn unmet(&self) -> usize {
///         self.0.first().map_or(0, |(_, outstanding)| *outstanding)
///     }
///
///     fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
///         let Some((id, outstanding)) = self.0.first_mut() else { return };
///         let count = events.len().min(*outstanding);
///         *outstanding -= count;
///         out.send(*id, events.drain(..count).collect());
///     }
///
///     fn outstanding(&self, id: SubscriptionId) -> usize {
///         self.0.iter().find(|(other, _)| *other == id).map_or(0, |(_, outstanding)| *outstanding)
///     }
/// }
///
/// # #[cfg(feature = "test-kit")]
/// pipeline_core::testkit::check_dispatcher(First::default);
/// ```
#[diagnostic::on_unimplemented(message = "`{Self}` does not dispatch events of type `{E}`")]
pub trait Dispatcher<E>: Send + 'static {
    /// Checks the subscriptions that the stage's pipeline has planned, before any stage runs: what is wrong
    /// with them is an error of [`start`](crate::Graph::start). Others may come later. Returned warnings are
    /// logged. It is not called again when the stage is restarted. The default finds nothing wrong.
    ///
    /// # Errors
    ///
    /// [`Refusal`] names a subscription that [`subscribe`](Self::subscribe) would refuse.
    fn check(&self, planned: &[&SubscribeOptions]) -> Result<Vec<Cow<'static, str>>, Refusal> {
        let _ = planned;
        Ok(Vec::new())
    }

    /// Registers a subscriber, with no demand.
    ///
    /// # Errors
    ///
    /// A refusal: the subscription is cancelled with this reason, and `cancel` is not called for
    /// it.
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason>;

    /// Removes a subscriber and its demand. Called once for each subscriber that was not refused.
    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>);

    /// Adds to the demand of a known subscriber; `demand` is at least 1.
    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>);

    /// The number of events that `dispatch` could take now if each of them costs demand.
    ///
    /// While there is unmet demand, `dispatch` takes at least one of the events it is given. While
    /// there is none, it takes an event only to discard it.
    fn unmet(&self) -> usize;

    /// Sends events from the front of `events` as far as possible, and leaves the rest. Also called
    /// when there are no subscribers.
    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>);

    /// Passes the marker to `out` once no event queued in the dispatcher precedes it. The default
    /// queues nothing, and does so at once.
    fn info(&mut self, marker: Marker, out: &mut Deliveries<E>) {
        out.info(marker);
    }

    /// The outstanding demand of a subscriber; 0 for one that is not known.
    fn outstanding(&self, id: SubscriptionId) -> usize;

    /// The number of events in queues of the dispatcher's own. The default has none.
    fn queued(&self) -> usize {
        0
    }
}

/// A planned subscription that a [`Dispatcher`] would refuse.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("planned subscription {place} would be refused")]
#[non_exhaustive]
pub struct Refusal {
    /// Its place among the planned ones.
    pub place: usize,
    /// Why it would be refused.
    #[source]
    pub source: SubscribeError,
}

impl Refusal {
    /// A refusal of the subscription at this place.
    #[must_use]
    pub const fn new(place: usize, source: SubscribeError) -> Self {
        Self { place, source }
    }
}

/// A new subscriber, as a [`Dispatcher`] sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Subscriber<'a> {
    /// The subscription.
    pub id: SubscriptionId,
    /// The stage that subscribes. It may hold several subscriptions.
    pub stage: StageId,
    /// The options of the subscription.
    pub options: &'a SubscribeOptions,
}

impl<'a> Subscriber<'a> {
    /// A subscriber, for a test of a dispatcher.
    #[must_use]
    pub fn new(id: SubscriptionId, stage: StageId, options: &'a SubscribeOptions) -> Self {
        Self { id, stage, options }
    }
}

/// A message of a stage to itself, placed among its events. It comes back to the stage when all
/// events before it have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker(u64);

impl Marker {
    /// The `n`th marker of a stage.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// The messages that a [`Dispatcher`] has decided to send, in order.
///
/// ```
/// use pipeline_core::{
///     dispatcher::{Deliveries, Delivery},
///     subscription::SubscriptionId,
/// };
///
/// let mut out = Deliveries::new();
/// let to = SubscriptionId::new(1);
/// out.send(to, vec!["a", "b"]);
/// out.send(to, vec![]);
/// out.filtered(3);
///
/// // What the stage does with them.
/// let sent: Vec<Delivery<&str>> = out.drain().collect();
/// assert_eq!(sent, [Delivery::Events { to, events: vec!["a", "b"] }]);
/// assert_eq!(out.take_discarded(), (3, 0));
/// ```
pub struct Deliveries<E> {
    deliveries: VecDeque<Delivery<E>>,
    filtered: usize,
    unroutable: usize,
    warnings: Vec<Cow<'static, str>>,
}

/// One thing that a dispatcher sends.
///
/// ```
/// use std::collections::VecDeque;
///
/// use pipeline_core::{
///     dispatcher::{Deliveries, Delivery, DemandDispatcher, Dispatcher, Subscriber},
///     subscription::{StageId, SubscribeOptions, SubscriptionId},
/// };
///
/// # fn main() -> Result<(), pipeline_core::ExitReason> {
/// // A test of a dispatcher.
/// let (to, options) = (SubscriptionId::new(1), SubscribeOptions::new());
/// let (mut dispatcher, mut out) = (DemandDispatcher::new(), Deliveries::new());
/// Dispatcher::<u64>::subscribe(&mut dispatcher, Subscriber::new(to, StageId::new(1), &options))?;
/// dispatcher.ask(to, 2, &mut out);
/// dispatcher.dispatch(&mut VecDeque::from([7, 8, 9]), &mut out);
/// let sent: Vec<Delivery<u64>> = out.drain().collect();
/// assert_eq!(sent, [Delivery::Events { to, events: vec![7, 8] }]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<E> {
    /// Events to a subscriber; never none.
    Events {
        /// The receiving subscription.
        to: SubscriptionId,
        /// The events, in order.
        events: Vec<E>,
    },
    /// A marker, back to the stage.
    Info(Marker),
}

impl<E> Deliveries<E> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { deliveries: VecDeque::new(), filtered: 0, unroutable: 0, warnings: Vec::new() }
    }

    /// Sends events to a subscriber. An empty `Vec` is ignored.
    pub fn send(&mut self, to: SubscriptionId, events: Vec<E>) {
        if !events.is_empty() {
            self.deliveries.push_back(Delivery::Events { to, events });
        }
    }

    /// Returns a marker to the stage.
    pub fn info(&mut self, marker: Marker) {
        self.deliveries.push_back(Delivery::Info(marker));
    }

    /// Counts events that were discarded because no subscriber wants them.
    pub fn filtered(&mut self, events: usize) {
        self.filtered += events;
    }

    /// Counts events that were discarded because their destination is unknown. The stage logs them.
    pub fn unroutable(&mut self, events: usize) {
        self.unroutable += events;
    }

    /// Adds a warning about the stage's configuration. The stage logs it.
    pub fn warn(&mut self, warning: impl Into<Cow<'static, str>>) {
        self.warnings.push(warning.into());
    }

    /// Takes the messages to send, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Delivery<E>> + '_ {
        self.deliveries.drain(..)
    }

    /// Takes the next message to send.
    pub(crate) fn pop(&mut self) -> Option<Delivery<E>> {
        self.deliveries.pop_front()
    }

    /// The number of messages to send.
    pub(crate) fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// The number of events in the messages from this one on.
    pub(crate) fn events_from(&self, place: usize) -> usize {
        let events = |delivery: &Delivery<E>| match delivery {
            Delivery::Events { events, .. } => events.len(),
            Delivery::Info(_) => 0,
        };
        self.deliveries.iter().skip(place).map(events).sum()
    }

    /// Whether the dispatcher has added nothing at all.
    pub(crate) fn is_untouched(&self) -> bool {
        self.deliveries.is_empty()
            && self.filtered == 0
            && self.unroutable == 0
            && self.warnings.is_empty()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Takes the numbers of discarded events: those without a receiver, and those without a known
    /// destination.
    pub fn take_discarded(&mut self) -> (usize, usize) {
        (std::mem::take(&mut self.filtered), std::mem::take(&mut self.unroutable))
    }

    /// Takes the warnings.
    pub fn take_warnings(&mut self) -> Vec<Cow<'static, str>> {
        std::mem::take(&mut self.warnings)
    }
}

impl<E> Default for Deliveries<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for Deliveries<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliveries")
            .field("deliveries", &self.deliveries.len())
            .field("filtered", &self.filtered)
            .field("unroutable", &self.unroutable)
            .finish()
    }
}
