//! The receiving half of a stage: its subscriptions, and its queue of received inputs. Pure.

use std::collections::VecDeque;

use crate::{
    dispatcher::Marker,
    stage::demand::Window,
    subscription::{Cancellation, Subscription, SubscriptionId},
};

/// An input of a stage, handled in order.
#[derive(Debug)]
pub(crate) enum Input<E> {
    Events {
        from: SubscriptionId,
        events: Vec<E>,
    },
    /// The end of a subscription, behind its last event.
    Ended {
        from: SubscriptionId,
        how: Cancellation,
    },
    /// A marker, behind all earlier inputs.
    Info(Marker),
}

impl<E> Input<E> {
    /// The number of events.
    fn events(&self) -> usize {
        match self {
            Self::Events { events, .. } => events.len(),
            Self::Ended { .. } | Self::Info(_) => 0,
        }
    }
}

/// The queue of a stage's inputs. `T` is the stage's own data for each subscription.
#[derive(Debug)]
pub(crate) struct Inlet<E, T> {
    upstreams: Vec<Upstream<T>>,
    queue: VecDeque<Input<E>>,
    /// Events in the queue.
    event_count: usize,
}

/// A subscription at its consumer's end.
#[derive(Debug)]
pub(crate) struct Upstream<T> {
    pub(crate) subscription: Subscription,
    /// None while the consumer asks for events manually.
    pub(crate) window: Option<Window>,
    pub(crate) paused: bool,
    pub(crate) state: T,
}

impl<E, T> Inlet<E, T> {
    pub(crate) fn new() -> Self {
        Self { upstreams: Vec::new(), queue: VecDeque::new(), event_count: 0 }
    }

    pub(crate) fn add(&mut self, upstream: Upstream<T>) {
        upstream.subscription.set_at_consumer(true);
        self.upstreams.push(upstream);
    }

    pub(crate) fn get(&mut self, id: SubscriptionId) -> Option<&mut Upstream<T>> {
        self.upstreams.iter_mut().find(|upstream| upstream.subscription.id() == id)
    }

    pub(crate) fn remove(&mut self, id: SubscriptionId) -> Option<Upstream<T>> {
        let place = self.upstreams.iter().position(|upstream| upstream.subscription.id() == id)?;
        let upstream = self.upstreams.remove(place);
        upstream.subscription.set_at_consumer(false);
        Some(upstream)
    }

    pub(crate) fn upstreams(&self) -> &[Upstream<T>] {
        &self.upstreams
    }

    pub(crate) fn upstreams_mut(&mut self) -> &mut [Upstream<T>] {
        &mut self.upstreams
    }

    pub(crate) fn queue(&mut self, input: Input<E>) {
        self.event_count += input.events();
        self.queue.push_back(input);
    }

    /// Takes the next input. Events only if they `may` be handled now and their subscription is not
    /// paused; inputs behind such events on other subscriptions may overtake them, but not a
    /// marker.
    pub(crate) fn next(&mut self, may: bool) -> Option<Input<E>> {
        let mut place = 0;
        while let Some(input) = self.queue.get(place) {
            let ready = match input {
                Input::Info(_) => place == 0,
                Input::Events { from, .. } | Input::Ended { from, .. } if self.is_paused(*from) => {
                    place += 1;
                    continue;
                }
                Input::Events { .. } => may,
                Input::Ended { .. } => true,
            };
            if !ready {
                return None;
            }
            let input = match place {
                0 => self.queue.pop_front(),
                _ => self.queue.remove(place),
            };
            self.event_count -= input.as_ref().map_or(0, Input::events);
            return input;
        }
        None
    }

    /// Ends all pauses.
    pub(crate) fn resume(&mut self) {
        self.upstreams.iter_mut().for_each(|upstream| upstream.paused = false);
    }

    fn is_paused(&self, id: SubscriptionId) -> bool {
        let of = |upstream: &&Upstream<T>| upstream.subscription.id() == id;
        self.upstreams.iter().find(of).is_some_and(|upstream| upstream.paused)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The number of received events in the queue.
    pub(crate) fn event_count(&self) -> usize {
        self.event_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_count_is_the_number_of_queued_events() {
        let mut inlet = Inlet::<u32, ()>::new();
        let from = SubscriptionId::new(1);
        inlet.queue(Input::Events { from, events: vec![1, 2] });
        inlet.queue(Input::Info(Marker::new(1)));
        inlet.queue(Input::Events { from, events: vec![3] });
        assert_eq!(inlet.event_count(), 3);
        assert!(inlet.next(false).is_none());
        assert_eq!(inlet.event_count(), 3);
        assert!(matches!(inlet.next(true), Some(Input::Events { events, .. }) if events == [1, 2]));
        assert!(matches!(inlet.next(true), Some(Input::Info(_))));
        assert_eq!(inlet.event_count(), 1);
        assert!(inlet.next(true).is_some());
        assert_eq!((inlet.event_count(), inlet.is_empty()), (0, true));
    }
}
