//! Each event goes to one consumer: the one with the largest outstanding demand.

use std::{collections::VecDeque, mem};

use super::{Delivery, Dispatcher};
use crate::subscription::SubscriptionId;

/// Serves the subscriber with the largest demand first; among equals, the one that has waited
/// longest. GenStage's default dispatcher.
#[derive(Debug, Default)]
pub(crate) struct DemandDispatcher {
    /// Largest demand first.
    consumers: Vec<Consumer>,
}

#[derive(Clone, Copy, Debug)]
struct Consumer {
    id: SubscriptionId,
    demand: usize,
}

impl DemandDispatcher {
    /// Places a consumer behind all others with as much demand or more.
    fn insert(&mut self, consumer: Consumer) {
        let place = self.consumers.partition_point(|other| other.demand >= consumer.demand);
        self.consumers.insert(place, consumer);
    }

    fn remove(&mut self, id: SubscriptionId) -> Option<Consumer> {
        let place = self.consumers.iter().position(|consumer| consumer.id == id)?;
        Some(self.consumers.remove(place))
    }
}

impl<E: Send + 'static> Dispatcher<E> for DemandDispatcher {
    fn subscribe(&mut self, id: SubscriptionId) {
        self.insert(Consumer { id, demand: 0 });
    }

    fn cancel(&mut self, id: SubscriptionId) {
        self.remove(id);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize) {
        if let Some(consumer) = self.remove(id) {
            self.insert(Consumer { demand: consumer.demand + demand, ..consumer });
        }
    }

    fn unmet(&self) -> usize {
        self.consumers.iter().map(|consumer| consumer.demand).sum()
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Vec<Delivery<E>>) {
        while !events.is_empty() {
            let Some(&Consumer { id: to, demand }) = self.consumers.first() else {
                return;
            };
            if demand == 0 {
                return;
            }
            let taken = take_front(events, demand);
            self.consumers.remove(0);
            self.insert(Consumer { id: to, demand: demand - taken.len() });
            out.push(Delivery { to, events: taken });
        }
    }
}

/// Takes up to `count` events from the front; all of them without copying.
fn take_front<E>(events: &mut VecDeque<E>, count: usize) -> Vec<E> {
    if count >= events.len() { mem::take(events).into() } else { events.drain(..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: u64 = 1;
    const B: u64 = 2;
    const C: u64 = 3;

    struct Case {
        dispatcher: DemandDispatcher,
        left: VecDeque<u32>,
    }

    /// A dispatcher whose subscribers have asked for these amounts, in this order.
    fn asked(asks: &[(u64, usize)]) -> Case {
        let mut dispatcher = DemandDispatcher::default();
        for id in [A, B, C] {
            Dispatcher::<u32>::subscribe(&mut dispatcher, SubscriptionId::new(id));
        }
        for &(id, demand) in asks {
            Dispatcher::<u32>::ask(&mut dispatcher, SubscriptionId::new(id), demand);
        }
        Case { dispatcher, left: VecDeque::new() }
    }

    impl Case {
        /// Emits a range of events; returns who got what.
        fn emit(&mut self, events: std::ops::RangeInclusive<u32>) -> Vec<(u64, Vec<u32>)> {
            let mut out = vec![];
            self.left = events.collect();
            self.dispatcher.dispatch(&mut self.left, &mut out);
            let number = |id: SubscriptionId| {
                [A, B, C].into_iter().find(|&n| SubscriptionId::new(n) == id).unwrap()
            };
            out.into_iter().map(|delivery| (number(delivery.to), delivery.events)).collect()
        }

        fn unmet(&self) -> usize {
            Dispatcher::<u32>::unmet(&self.dispatcher)
        }
    }

    fn range(events: std::ops::RangeInclusive<u32>) -> Vec<u32> {
        events.collect()
    }

    #[test]
    fn the_largest_demand_is_served_first() {
        let mut case = asked(&[(A, 4), (B, 2), (C, 3), (C, 2), (B, 4)]);
        assert_eq!(case.emit(1..=15), [(B, range(1..=6)), (C, range(7..=11)), (A, range(12..=15))]);
        assert_eq!((case.unmet(), case.left.len()), (0, 0));
    }

    #[test]
    fn equal_demands_take_turns() {
        let mut case = asked(&[(A, 3), (B, 3)]);
        assert_eq!(case.emit(1..=2), [(A, vec![1, 2])]);
        assert_eq!(case.emit(3..=4), [(B, vec![3, 4])]);
        assert_eq!(case.emit(5..=7), [(A, vec![5]), (B, vec![6])]);
        assert_eq!(case.left, [7]);
    }

    #[test]
    fn events_beyond_the_demand_are_left_in_order() {
        let mut case = asked(&[(A, 3), (B, 2)]);
        assert_eq!(case.emit(1..=5), [(A, vec![1, 2, 3]), (B, vec![4, 5])]);
        assert_eq!(case.emit(6..=8), []);
        assert_eq!(case.left, [6, 7, 8]);
    }

    #[test]
    fn a_leaver_takes_its_demand_along() {
        let mut case = asked(&[(A, 3), (B, 2)]);
        Dispatcher::<u32>::cancel(&mut case.dispatcher, SubscriptionId::new(A));
        assert_eq!(case.unmet(), 2);
        assert_eq!(case.emit(1..=3), [(B, vec![1, 2])]);
    }

    proptest! {
        /// Nothing lost, nothing sent without demand, order kept, demand conserved.
        #[test]
        fn the_contract_holds_for_any_sequence(
            steps in prop::collection::vec((0u64..3, 0usize..6, 0usize..8), 1..40)
        ) {
            let mut case = asked(&[]);
            let (mut asked, mut served) = ([0usize; 4], [0usize; 4]);
            let mut backlog = VecDeque::new();
            let (mut next, mut last_seen) = (0u32, [None; 4]);
            for (who, demand, emitted) in steps {
                let id = who + 1;
                if demand > 0 {
                    Dispatcher::<u32>::ask(&mut case.dispatcher, SubscriptionId::new(id), demand);
                    asked[usize::try_from(id).unwrap()] += demand;
                }
                backlog.extend((0..emitted).map(|_| { next += 1; next }));
                let before: Vec<u32> = backlog.iter().copied().collect();
                let mut out = vec![];
                case.dispatcher.dispatch(&mut backlog, &mut out);
                let mut after: Vec<u32> = out.iter().flat_map(|d| d.events.clone()).collect();
                after.extend(&backlog);
                prop_assert_eq!(after, before);
                for delivery in out {
                    prop_assert!(!delivery.events.is_empty());
                    let to = (1..4).find(|&n| SubscriptionId::new(n as u64) == delivery.to).unwrap();
                    served[to] += delivery.events.len();
                    for event in delivery.events {
                        prop_assert!(last_seen[to] < Some(event));
                        last_seen[to] = Some(event);
                    }
                }
                prop_assert!((1..4).all(|n| served[n] <= asked[n]));
                let outstanding = asked.iter().sum::<usize>() - served.iter().sum::<usize>();
                prop_assert_eq!(case.unmet(), outstanding);
            }
        }
    }
}
