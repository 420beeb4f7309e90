//! The sending half of a stage: its dispatcher, its buffer, and the ledger between demand and
//! events. Pure.

use std::collections::VecDeque;

use crate::{
    buffer::Buffer,
    dispatcher::{Delivery, Dispatcher},
    subscription::SubscriptionId,
};

/// Where a stage's events leave it.
///
/// Three numbers are kept: the demand that the dispatcher could serve now, the events in the
/// buffer, and what is *owed*: demand that was handed to the producer and not yet answered by
/// events. After every change, buffered events are delivered as far as there is demand, oldest
/// first, and only demand beyond what is owed is handed out. A subscriber that leaves takes its
/// demand along; what the producer still owes goes to whoever asks next.
#[derive(Debug)]
pub(crate) struct Outlet<E, D> {
    dispatcher: D,
    buffer: Buffer<E>,
    owed: usize,
}

impl<E, D: Dispatcher<E>> Outlet<E, D> {
    pub(crate) fn new(dispatcher: D, buffer: Buffer<E>) -> Self {
        Self { dispatcher, buffer, owed: 0 }
    }

    pub(crate) fn subscribe(&mut self, id: SubscriptionId) {
        self.dispatcher.subscribe(id);
    }

    pub(crate) fn cancel(&mut self, id: SubscriptionId) {
        self.dispatcher.cancel(id);
    }

    pub(crate) fn ask(&mut self, id: SubscriptionId, demand: usize) {
        self.dispatcher.ask(id, demand);
    }

    /// Takes what a callback emitted: to the subscribers, the rest to the buffer. Empties `events`.
    /// Returns how many events were discarded because the buffer was full.
    pub(crate) fn emit(&mut self, events: &mut VecDeque<E>, out: &mut Vec<Delivery<E>>) -> usize {
        self.owed = self.owed.saturating_sub(events.len());
        if self.buffer.is_empty() {
            self.dispatcher.dispatch(events, out);
        }
        if events.is_empty() { 0 } else { self.buffer.store(events) }
    }

    /// Delivers buffered events as far as there is demand. Returns the demand that is new to the
    /// producer, which owes it from now on.
    pub(crate) fn settle(&mut self, out: &mut Vec<Delivery<E>>) -> usize {
        while !self.buffer.is_empty() && self.dispatcher.unmet() > 0 {
            let before = self.buffer.len();
            self.dispatcher.dispatch(self.buffer.events(), out);
            if self.buffer.len() == before {
                break;
            }
        }
        let new = self.dispatcher.unmet().saturating_sub(self.owed);
        self.owed += new;
        new
    }

    /// Demand the producer was told of and has not answered.
    pub(crate) fn owed(&self) -> usize {
        self.owed
    }

    /// Events waiting for demand.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{buffer::BufferKeep, dispatcher::DemandDispatcher};
    use proptest::prelude::*;

    const A: SubscriptionId = SubscriptionId::new(1);
    const B: SubscriptionId = SubscriptionId::new(2);

    /// An outlet driven by hand; each step answers with what was delivered and the new demand.
    struct Hand(Outlet<u32, DemandDispatcher>);

    impl Hand {
        fn new(limit: usize) -> Self {
            let buffer = Buffer::new(limit, BufferKeep::Last);
            Self(Outlet::new(DemandDispatcher::default(), buffer))
        }

        fn settle(&mut self, mut out: Vec<Delivery<u32>>) -> (Vec<Vec<u32>>, usize) {
            let demand = self.0.settle(&mut out);
            (out.into_iter().map(|delivery| delivery.events).collect(), demand)
        }

        fn ask(&mut self, id: SubscriptionId, demand: usize) -> (Vec<Vec<u32>>, usize) {
            self.0.ask(id, demand);
            self.settle(vec![])
        }

        fn emit(&mut self, events: std::ops::RangeInclusive<u32>) -> (Vec<Vec<u32>>, usize) {
            let mut out = vec![];
            self.0.emit(&mut events.collect(), &mut out);
            self.settle(out)
        }
    }

    #[test]
    fn demand_is_handed_out_once() {
        let mut hand = Hand::new(10);
        hand.0.subscribe(A);
        assert_eq!(hand.ask(A, 5), (vec![], 5));
        assert_eq!(hand.emit(1..=2), (vec![vec![1, 2]], 0));
        assert_eq!(hand.ask(A, 1), (vec![], 1));
        assert_eq!(hand.0.owed(), 4);
    }

    #[test]
    fn buffered_events_are_served_before_new_demand_is_handed_out() {
        let mut hand = Hand::new(10);
        hand.0.subscribe(A);
        assert_eq!(hand.emit(1..=3), (vec![], 0));
        assert_eq!(hand.0.buffered(), 3);
        assert_eq!(hand.ask(A, 5), (vec![vec![1, 2, 3]], 2));
    }

    #[test]
    fn what_is_owed_for_a_leaver_goes_to_the_next_that_asks() {
        let mut hand = Hand::new(10);
        hand.0.subscribe(A);
        assert_eq!(hand.ask(A, 10), (vec![], 10));
        hand.0.cancel(A);
        hand.0.subscribe(B);
        assert_eq!(hand.emit(1..=4), (vec![], 0));
        assert_eq!(hand.ask(B, 3), (vec![vec![1, 2, 3]], 0), "6 are still owed");
        assert_eq!(hand.emit(5..=6), (vec![], 0), "they wait behind 4");
        assert_eq!(hand.ask(B, 10), (vec![vec![4, 5, 6]], 3), "owed 4, unmet 7");
    }

    /// Sends one event per call, whatever the demand is.
    struct OneByOne(DemandDispatcher);

    impl Dispatcher<u32> for OneByOne {
        fn subscribe(&mut self, id: SubscriptionId) {
            Dispatcher::<u32>::subscribe(&mut self.0, id);
        }

        fn cancel(&mut self, id: SubscriptionId) {
            Dispatcher::<u32>::cancel(&mut self.0, id);
        }

        fn ask(&mut self, id: SubscriptionId, demand: usize) {
            Dispatcher::<u32>::ask(&mut self.0, id, demand);
        }

        fn unmet(&self) -> usize {
            Dispatcher::<u32>::unmet(&self.0)
        }

        fn dispatch(&mut self, events: &mut VecDeque<u32>, out: &mut Vec<Delivery<u32>>) {
            let mut one: VecDeque<u32> = events.drain(..1).collect();
            self.0.dispatch(&mut one, out);
            if let Some(left) = one.pop_front() {
                events.push_front(left);
            }
        }
    }

    #[test]
    fn a_dispatcher_that_sends_little_at_once_is_called_until_demand_or_events_are_used_up() {
        let buffer = Buffer::new(10, BufferKeep::Last);
        let mut outlet = Outlet::new(OneByOne(DemandDispatcher::default()), buffer);
        outlet.subscribe(A);
        outlet.emit(&mut (1..=5).collect(), &mut vec![]);
        let mut asked = |demand| {
            outlet.ask(A, demand);
            let mut out = vec![];
            let new = outlet.settle(&mut out);
            (out.into_iter().flat_map(|delivery| delivery.events).collect::<Vec<_>>(), new)
        };
        assert_eq!(asked(2), (vec![1, 2], 0));
        assert_eq!(asked(4), (vec![3, 4, 5], 1));
    }

    proptest! {
        /// Emitted = delivered + buffered + discarded, in order, and never more than was asked.
        #[test]
        fn events_are_conserved_and_never_sent_unasked(
            limit in 0usize..6, steps in prop::collection::vec((0usize..5, 0u32..7), 1..50)
        ) {
            let mut hand = Hand::new(limit);
            hand.0.subscribe(A);
            let (mut asked, mut emitted, mut delivered, mut discarded) = (0, 0, vec![], 0);
            for (demand, events) in steps {
                let mut out = vec![];
                if demand > 0 {
                    asked += demand;
                    hand.0.ask(A, demand);
                }
                let mut batch: VecDeque<u32> = (emitted + 1..=emitted + events).collect();
                emitted += events;
                discarded += hand.0.emit(&mut batch, &mut out);
                hand.0.settle(&mut out);
                delivered.extend(out.into_iter().flat_map(|delivery| delivery.events));
                prop_assert!(delivered.len() <= asked);
                prop_assert!(delivered.is_sorted());
                prop_assert!(hand.0.buffered() <= limit);
                prop_assert_eq!(emitted as usize, delivered.len() + hand.0.buffered() + discarded);
            }
        }
    }
}
