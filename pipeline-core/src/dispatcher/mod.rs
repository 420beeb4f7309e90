//! Which consumer gets which event. Pure.

mod broadcast;
#[cfg(test)]
mod cases;
mod demand;
mod partition;

use std::{borrow::Cow, collections::VecDeque, fmt};

pub use self::{
    broadcast::BroadcastDispatcher, demand::DemandDispatcher, partition::PartitionDispatcher,
};
use crate::{
    exit::ExitReason,
    subscription::{StageId, SubscribeOptions, SubscriptionId},
};

/// The strategy of a stage for handing its events to its subscribers.
///
/// A dispatcher is plain state inside a stage: it never waits and never runs beside a callback.
/// Demand goes in by [`ask`](Self::ask), events by [`dispatch`](Self::dispatch). After every call
/// the stage reads [`unmet`](Self::unmet), offers what it has buffered as long as there is unmet
/// demand, and asks its source for the rest. No call returns demand, so none can be counted twice.
///
/// # Contract
///
/// 1. On one subscription, no more events are sent than were asked for.
/// 2. Every event given to `dispatch` is sent, left in place, kept in a queue of the dispatcher's
///    own, or discarded on purpose: exactly one of these.
/// 3. On one subscription, events keep their order. What is left in place keeps its order too.
/// 4. Demand is conserved: asked = served + outstanding + withdrawn by `cancel`. An event that is
///    discarded costs no demand. There is never more unmet than is outstanding beyond what is queued.
/// 5. A subscriber's mistake affects that subscriber only.
/// 6. No empty message is sent.
/// 7. `cancel` may raise the unmet demand: the one that left may have held up the others.
///
/// `testkit::check_dispatcher` (feature `test-kit`) checks an implementation against it. What runs
/// inside a dispatcher, like a closure of the user's, runs in the task of the stage.
///
/// The contract is that of GenStage's dispatchers, but for the demand, which those return from
/// their calls.
///
/// ```
/// use std::collections::VecDeque;
///
/// use pipeline_core::{Deliveries, Dispatcher, ExitReason, Subscriber, SubscriptionId};
///
/// /// Sends everything to whoever subscribed first.
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
    /// Registers a subscriber, with no demand.
    ///
    /// # Errors
    ///
    /// A refusal: that subscription is cancelled with the reason, and `cancel` is not called for it.
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason>;

    /// Forgets a subscriber and its demand. Called once for each that was not refused.
    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>);

    /// Adds to the demand of a known subscriber; `demand` is at least 1.
    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>);

    /// How many events could be taken by `dispatch` now, if each of them costs demand.
    ///
    /// While there is unmet demand, `dispatch` takes at least one of the events it is given. While
    /// there is none, it takes none, but to discard it.
    fn unmet(&self) -> usize;

    /// Sends what can be sent from the front of `events`, and leaves the rest. Called also when
    /// nobody has subscribed.
    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>);

    /// Gives the marker to `out` once nothing that the dispatcher has queued precedes it. The
    /// default has queued nothing, and does so at once.
    fn info(&mut self, marker: Marker, out: &mut Deliveries<E>) {
        out.info(marker);
    }

    /// What a subscriber has asked for and not been sent; 0 for one that is not known.
    fn outstanding(&self, id: SubscriptionId) -> usize;

    /// How many events wait in queues of the dispatcher's own. The default has none.
    fn queued(&self) -> usize {
        0
    }
}

/// Who subscribes, as a [`Dispatcher`] sees it.
///
/// ```
/// use pipeline_core::{StageId, SubscribeOptions, Subscriber, SubscriptionId};
///
/// struct Region(&'static str);
///
/// let options = SubscribeOptions::new().with(Region("eu"));
/// let subscriber = Subscriber::new(SubscriptionId::new(1), StageId::new(7), &options);
///
/// // In a dispatcher's `subscribe`:
/// let region = subscriber.options.get::<Region>();
/// assert_eq!(region.map(|region| region.0), Some("eu"));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Subscriber<'a> {
    /// The subscription.
    pub id: SubscriptionId,
    /// The stage that subscribes. It may hold several subscriptions.
    pub stage: StageId,
    /// What it subscribed with.
    pub options: &'a SubscribeOptions,
}

impl<'a> Subscriber<'a> {
    /// A subscriber, for a test of a dispatcher.
    #[must_use]
    pub fn new(id: SubscriptionId, stage: StageId, options: &'a SubscribeOptions) -> Self {
        Self { id, stage, options }
    }
}

/// A message of a stage to itself that waits among its events. It is handed back to the stage when
/// all that was before it has been sent.
///
/// ```
/// use pipeline_core::{Deliveries, Delivery, DemandDispatcher, Dispatcher, Marker};
///
/// let mut dispatcher = DemandDispatcher::new();
/// let mut out = Deliveries::<u64>::new();
///
/// // It has queued nothing that could precede the marker.
/// dispatcher.info(Marker::new(1), &mut out);
/// let sent: Vec<Delivery<u64>> = out.drain().collect();
/// assert_eq!(sent, [Delivery::Info(Marker::new(1))]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker(u64);

impl Marker {
    /// The `n`th marker of a stage.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }
}

/// What a [`Dispatcher`] has decided to send, in order.
///
/// ```
/// use pipeline_core::{Deliveries, Delivery, SubscriptionId};
///
/// let mut out = Deliveries::new();
/// let to = SubscriptionId::new(1);
/// out.send(to, vec!["a", "b"]);
/// out.send(to, vec![]);
/// out.filtered(3);
///
/// // What the stage makes of it.
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
///     Deliveries, Delivery, DemandDispatcher, Dispatcher, StageId, SubscribeOptions, Subscriber,
///     SubscriptionId,
/// };
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        /// The subscription they go out on.
        to: SubscriptionId,
        /// The events, in order.
        events: Vec<E>,
    },
    /// A marker, back to the stage.
    Info(Marker),
}

impl<E> Deliveries<E> {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { deliveries: VecDeque::new(), filtered: 0, unroutable: 0, warnings: Vec::new() }
    }

    /// Sends events to a subscriber. Sending none does nothing.
    pub fn send(&mut self, to: SubscriptionId, events: Vec<E>) {
        if !events.is_empty() {
            self.deliveries.push_back(Delivery::Events { to, events });
        }
    }

    /// Gives a marker back to the stage.
    pub fn info(&mut self, marker: Marker) {
        self.deliveries.push_back(Delivery::Info(marker));
    }

    /// Says that so many events were taken and thrown away because nobody wants them.
    pub fn filtered(&mut self, events: usize) {
        self.filtered += events;
    }

    /// Says that so many events were taken and thrown away because nobody knows where they belong.
    /// The stage reports them.
    pub fn unroutable(&mut self, events: usize) {
        self.unroutable += events;
    }

    /// Says something that whoever set the stage up should know. The stage logs it.
    pub fn warn(&mut self, warning: impl Into<Cow<'static, str>>) {
        self.warnings.push(warning.into());
    }

    /// Takes what there is to send, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Delivery<E>> + '_ {
        self.deliveries.drain(..)
    }

    /// Takes the next thing to send.
    pub(crate) fn pop(&mut self) -> Option<Delivery<E>> {
        self.deliveries.pop_front()
    }

    /// Whether a dispatcher has put nothing at all here.
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

    /// Takes the numbers of events thrown away: those nobody wants, those nobody knows where to
    /// send.
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
