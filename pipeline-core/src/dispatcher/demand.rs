//! A dispatcher that sends each event to the consumer with the largest outstanding demand.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    mem,
};

use super::{Deliveries, Dispatcher, Subscriber};
use crate::{exit::ExitReason, subscription::SubscriptionId};

/// Sends events to the subscriber with the largest demand first; among equals, to the one that has
/// waited longest. The default, as in GenStage.
///
/// ```
/// use pipeline_core::dispatcher::DemandDispatcher;
///
/// // Several producers do not all begin with the same consumer.
/// let dispatcher = DemandDispatcher::new().shuffled();
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct DemandDispatcher {
    /// Largest demand first.
    consumers: Vec<Consumer>,
    /// The total demand. Each subscriber may have asked for `usize::MAX`, so it is wider.
    total: u128,
    /// The largest single ask that was expected.
    expected: Option<usize>,
    /// Whether the consumers are to be shuffled before the first delivery.
    shuffle: bool,
    /// Whether events that come together are spread over the consumers.
    spread: bool,
}

#[derive(Clone, Copy, Debug)]
struct Consumer {
    id: SubscriptionId,
    demand: usize,
}

impl DemandDispatcher {
    /// A dispatcher without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The largest single ask that is expected; by default the first one. A larger ask is logged as
    /// a warning, because a consumer that asks for much more than the others gets most of the
    /// events.
    pub fn max_demand(mut self, events: usize) -> Self {
        self.expected = Some(events);
        self
    }

    /// Serves the consumers in a random order the first time, so that several producers do not all
    /// begin with the same consumer.
    pub fn shuffled(mut self) -> Self {
        self.shuffle = true;
        self
    }

    /// Spreads events that come together over the consumers, as if they came one by one: each consumer
    /// gets its share in one message, and those with the largest demand get most. By default the first
    /// gets as many as it has asked for. So a few events that take long are in work at once.
    pub fn spread(mut self) -> Self {
        self.spread = true;
        self
    }

    /// The total demand.
    pub(super) fn total(&self) -> u128 {
        self.total
    }

    /// Places a consumer behind all others with as much demand or more.
    fn insert(&mut self, consumer: Consumer) {
        let place = self.consumers.partition_point(|other| other.demand >= consumer.demand);
        self.consumers.insert(place, consumer);
    }

    fn remove(&mut self, id: SubscriptionId) -> Option<Consumer> {
        let place = self.consumers.iter().position(|consumer| consumer.id == id)?;
        Some(self.consumers.remove(place))
    }

    /// Shuffles the consumers with demand, in front of those without.
    fn shuffle(&mut self) {
        let random = RandomState::new();
        self.consumers
            .sort_by_cached_key(|consumer| (consumer.demand == 0, random.hash_one(consumer.id)));
    }
}

impl DemandDispatcher {
    /// Sends fewer events than were asked for, so that the demands of their receivers are as equal as they
    /// can be.
    fn dispatch_evenly<E>(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        let count = events.len() as u128;
        // The first of them whose demand beyond that of the next one is enough.
        let (mut receivers, mut sum) = (0_usize, 0_u128);
        for (place, consumer) in self.consumers.iter().enumerate() {
            let (demand, seen) = (consumer.demand as u128, place as u128);
            if sum >= count + seen * demand && place > 0 {
                break;
            }
            (receivers, sum) = (place + 1, sum + demand);
        }
        let left = sum - count;
        let (each, more) = (left / receivers as u128, left % receivers as u128);
        // Fewer than there are receivers.
        let fewer = receivers - usize::try_from(more).unwrap_or(receivers);
        for (place, consumer) in self.consumers[..receivers].iter_mut().enumerate() {
            // At most the demand, which is a `usize`.
            let kept = usize::try_from(each + u128::from(place >= fewer)).unwrap_or(usize::MAX);
            let taken = consumer.demand.saturating_sub(kept);
            consumer.demand -= taken;
            if taken > 0 {
                out.send(consumer.id, take_front(events, taken));
            }
        }
        // The others have no more demand than what is left to each receiver. Those with as much have waited
        // longer. The order is made by rotations, since there may be thousands of consumers.
        let waiting =
            self.consumers[receivers..].partition_point(|consumer| consumer.demand as u128 >= each);
        self.consumers[..receivers].rotate_left(fewer);
        let more = receivers - fewer;
        self.consumers[more..receivers + waiting].rotate_left(fewer);
        self.total -= count;
    }
}

impl<E> Dispatcher<E> for DemandDispatcher {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.insert(Consumer { id: subscriber.id, demand: 0 });
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, _out: &mut Deliveries<E>) {
        if let Some(consumer) = self.remove(id) {
            self.total -= consumer.demand as u128;
        }
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        let expected = *self.expected.get_or_insert(demand);
        if demand > expected {
            out.warn(format!(
                "a consumer asked for {demand} events at once, expected at most {expected}: \
                 consumers of one producer should have the same max_demand"
            ));
        }
        match &mut self.consumers[..] {
            // A single consumer is already in its place.
            [only] if only.id == id => {
                only.demand = only.demand.saturating_add(demand);
                self.total = only.demand as u128;
            }
            _ => {
                if let Some(consumer) = self.remove(id) {
                    let demand = consumer.demand.saturating_add(demand);
                    self.total += (demand - consumer.demand) as u128;
                    self.insert(Consumer { demand, ..consumer });
                }
            }
        }
    }

    fn unmet(&self) -> usize {
        usize::try_from(self.total).unwrap_or(usize::MAX)
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        if let [only] = &mut self.consumers[..] {
            if only.demand > 0 && !events.is_empty() {
                self.shuffle = false;
                let taken = take_front(events, only.demand);
                only.demand -= taken.len();
                self.total = only.demand as u128;
                out.send(only.id, taken);
            }
            return;
        }
        let has_demand = self.consumers.first().is_some_and(|first| first.demand > 0);
        let shuffled = has_demand && !events.is_empty() && mem::take(&mut self.shuffle);
        if shuffled {
            self.shuffle();
        }
        if self.spread && has_demand && (events.len() as u128) < self.total {
            if shuffled {
                // Random among equals.
                self.consumers.sort_by_key(|consumer| Reverse(consumer.demand));
            }
            if !events.is_empty() {
                self.dispatch_evenly(events, out);
            }
            return;
        }
        while !events.is_empty() {
            match self.consumers.first() {
                Some(first) if first.demand > 0 => {}
                _ => break,
            }
            let Consumer { id: to, demand } = self.consumers.remove(0);
            let taken = take_front(events, demand);
            self.total -= taken.len() as u128;
            self.insert(Consumer { id: to, demand: demand - taken.len() });
            out.send(to, taken);
        }
        if shuffled {
            self.consumers.sort_by_key(|consumer| Reverse(consumer.demand));
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.consumers.iter().find(|consumer| consumer.id == id).map_or(0, |found| found.demand)
    }
}

/// Takes up to `count` events from the front; all of them without copying.
pub(super) fn take_front<E>(events: &mut VecDeque<E>, count: usize) -> Vec<E> {
    if count >= events.len() { mem::take(events).into() } else { events.drain(..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatcher::Delivery,
        subscription::{StageId, SubscribeOptions},
    };

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
            let options = SubscribeOptions::new();
            let subscriber = Subscriber::new(SubscriptionId::new(id), StageId::new(id), &options);
            Dispatcher::<u32>::subscribe(&mut dispatcher, subscriber).unwrap();
        }
        for &(id, demand) in asks {
            Dispatcher::<u32>::ask(
                &mut dispatcher,
                SubscriptionId::new(id),
                demand,
                &mut Deliveries::new(),
            );
        }
        Case { dispatcher, left: VecDeque::new() }
    }

    impl Case {
        /// Emits a range of events; returns which subscriber received which.
        fn emit(&mut self, events: std::ops::RangeInclusive<u32>) -> Vec<(u64, Vec<u32>)> {
            let mut out = Deliveries::new();
            self.left = events.collect();
            self.dispatcher.dispatch(&mut self.left, &mut out);
            let number = |id: SubscriptionId| {
                [A, B, C].into_iter().find(|&n| SubscriptionId::new(n) == id).unwrap()
            };
            sent(&mut out).into_iter().map(|(to, events)| (number(to), events)).collect()
        }

        fn unmet(&self) -> usize {
            Dispatcher::<u32>::unmet(&self.dispatcher)
        }
    }

    fn sent(out: &mut Deliveries<u32>) -> Vec<(SubscriptionId, Vec<u32>)> {
        let events = |delivery| match delivery {
            Delivery::Events { to, events } => (to, events),
            Delivery::Info(_) => panic!("unexpected marker"),
        };
        out.drain().map(events).collect()
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
    fn events_that_come_together_are_spread_as_if_they_came_one_by_one() {
        fn spread(asks: &[(u64, usize)]) -> Case {
            let mut case = asked(asks);
            case.dispatcher = mem::take(&mut case.dispatcher).spread();
            case
        }
        let numbers = |sent: Vec<(u64, Vec<u32>)>| {
            sent.into_iter().map(|(to, events)| (to, events.len())).collect::<Vec<_>>()
        };
        let all = [(A, 10), (B, 10), (C, 10)];
        assert_eq!(spread(&all).emit(1..=3), [(A, vec![1]), (B, vec![2]), (C, vec![3])]);
        assert_eq!(numbers(spread(&all).emit(1..=8)), [(A, 3), (B, 3), (C, 2)]);
        assert_eq!(numbers(spread(&all).emit(1..=2)), [(A, 1), (B, 1)]);
        let mut case = spread(&[(A, 9), (B, 5), (C, 1)]);
        assert_eq!(numbers(case.emit(1..=3)), [(A, 3)]);
        assert_eq!(numbers(case.emit(1..=3)), [(A, 2), (B, 1)]);
        assert_eq!(case.unmet(), 9);
        assert_eq!(numbers(case.emit(1..=20)).iter().map(|(_, count)| count).sum::<usize>(), 9);
        assert_eq!((case.unmet(), case.left.len()), (0, 11));
        let mut case = spread(&[(A, usize::MAX), (B, usize::MAX), (C, 1)]);
        assert_eq!(numbers(case.emit(1..=4)), [(A, 2), (B, 2)]);
    }

    proptest::proptest! {
        /// The same numbers as one by one, whatever was asked for.
        #[test]
        fn spreading_is_the_same_as_one_by_one(
            asks in proptest::collection::vec((1_u64..=3, 1_usize..20), 1..9), count in 1_u32..60
        ) {
            let mut together = asked(&asks);
            together.dispatcher = mem::take(&mut together.dispatcher).spread();
            let mut one_by_one = asked(&asks);
            let mut shares = [[0_usize; 4]; 2];
            for (to, events) in together.emit(1..=count) {
                shares[0][usize::try_from(to).unwrap()] += events.len();
            }
            for event in 1..=count {
                for (to, events) in one_by_one.emit(event..=event) {
                    shares[1][usize::try_from(to).unwrap()] += events.len();
                }
            }
            // Among equals the order may differ, so the demands that are left are the same, not whose.
            let left = |case: &Case| {
                let mut left: Vec<usize> =
                    case.dispatcher.consumers.iter().map(|consumer| consumer.demand).collect();
                left.sort_unstable();
                left
            };
            proptest::prop_assert_eq!(left(&together), left(&one_by_one));
            proptest::prop_assert_eq!(together.unmet(), one_by_one.unmet());
            proptest::prop_assert_eq!(shares[0].iter().sum::<usize>(), shares[1].iter().sum::<usize>());
            let consumers = &together.dispatcher.consumers;
            proptest::prop_assert!(consumers.is_sorted_by_key(|one| Reverse(one.demand)));
            let total: usize = consumers.iter().map(|one| one.demand).sum();
            proptest::prop_assert_eq!(total, together.unmet());
        }
    }

    #[test]
    fn after_a_random_beginning_the_largest_demand_is_served_first_again() {
        for _ in 0..100 {
            let mut case = asked(&[]);
            case.dispatcher = mem::take(&mut case.dispatcher).shuffled();
            for (id, demand) in [(A, 8), (B, 5), (C, 2)] {
                let id = SubscriptionId::new(id);
                Dispatcher::<u32>::ask(&mut case.dispatcher, id, demand, &mut Deliveries::new());
            }
            case.emit(1..=1);
            // The order of the others has not changed.
            let served: Vec<u64> = case.emit(2..=15).into_iter().map(|(to, _)| to).collect();
            assert_eq!(served, [A, B, C]);
        }
    }

    #[test]
    fn an_ask_for_usize_max_can_be_repeated_and_added_to() {
        let mut case = asked(&[(A, usize::MAX), (A, usize::MAX), (B, usize::MAX), (B, 1)]);
        assert_eq!(case.unmet(), usize::MAX);
        assert_eq!(case.emit(1..=2), [(A, vec![1, 2])]);
        assert_eq!(case.unmet(), usize::MAX);
        for id in [A, B] {
            let (id, mut out) = (SubscriptionId::new(id), Deliveries::new());
            Dispatcher::<u32>::cancel(&mut case.dispatcher, id, &mut out);
        }
        assert_eq!(case.unmet(), 0);
    }

    #[test]
    fn cancelling_withdraws_the_demand() {
        let mut case = asked(&[(A, 3), (B, 2)]);
        Dispatcher::<u32>::cancel(
            &mut case.dispatcher,
            SubscriptionId::new(A),
            &mut Deliveries::new(),
        );
        assert_eq!(case.unmet(), 2);
        assert_eq!(case.emit(1..=3), [(B, vec![1, 2])]);
    }
}
