//! Which consumer gets which event. Pure.
//!
//! A dispatcher is plain state inside a stage: it never waits and never runs beside a callback.
//! Demand goes in by [`ask`](Dispatcher::ask), events by [`dispatch`](Dispatcher::dispatch), and
//! after every operation the stage reads [`unmet`](Dispatcher::unmet) and settles its ledger.

mod demand;

use std::collections::VecDeque;

pub(crate) use self::demand::DemandDispatcher;
use crate::subscription::SubscriptionId;

/// The strategy of a stage for handing its events to its subscribers.
///
/// What every dispatcher upholds:
///
/// 1. on one subscription, no more events are sent than were asked for;
/// 2. every event given to `dispatch` is sent or left in place, exactly one of the two;
/// 3. on one subscription, events keep their order, and what is left keeps its order too;
/// 4. demand is conserved: asked = served + unmet + withdrawn by `cancel`;
/// 5. no empty message is sent.
pub(crate) trait Dispatcher<E>: Send + 'static {
    /// Registers a subscriber, with no demand.
    fn subscribe(&mut self, id: SubscriptionId);

    /// Forgets a subscriber and its demand.
    fn cancel(&mut self, id: SubscriptionId);

    /// Adds to the demand of a known subscriber.
    fn ask(&mut self, id: SubscriptionId, demand: usize);

    /// The demand that could be served now.
    fn unmet(&self) -> usize;

    /// Sends what can be sent from the front of `events` and leaves the rest.
    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Vec<Delivery<E>>);
}

/// Events on their way to one subscriber. Never empty.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivery<E> {
    pub(crate) to: SubscriptionId,
    pub(crate) events: Vec<E>,
}
