//! Events that wait for a child, in an order for each key if there are keys. Pure.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
};

use super::{ChildId, KeyIsFull, round_robin::RoundRobin};
use crate::{exit::ExitReason, stage::catch_panic_now, subscription::SubscriptionId};

/// The key of an event, of which only so many are in work at a time.
pub(super) type Key = u64;

/// Finds the key of an event.
pub(super) type KeyOf<E> = Box<dyn Fn(&E) -> Key + Send + Sync>;

/// What waits for a child's place.
#[derive(Debug, PartialEq)]
pub(super) enum Waits<E> {
    /// An event.
    Event(E),
    /// A child that has left its place and is to be restarted.
    Child(ChildId),
}

/// Events that wait for a child: for one of `max_children` places, or for an event with the same key.
pub(super) struct Waiting<E> {
    /// Events without keys that could begin.
    plain: RoundRobin<Waits<E>>,
    keyed: Option<ByKey<E>>,
    /// How many of them are children.
    children: usize,
}

/// Events of which at most `at_once` of each key are in work at a time.
struct ByKey<E> {
    key_of: KeyOf<E>,
    at_once: usize,
    /// How many of each key may wait.
    most_waiting: usize,
    /// A key for each event that could begin. It stands where the event's subscription has its turn, and the first
    /// event of the key begins in its place.
    startable: RoundRobin<Key>,
    /// The keys with an event that waits or is in work.
    keys: HashMap<Key, OfKey<E>, foldhash::fast::RandomState>,
    /// The number of events that wait.
    len: usize,
}

/// The events of a key.
struct OfKey<E> {
    in_work: usize,
    /// How many of those that wait could begin.
    startable: usize,
    /// In the order of their arrival.
    waiting: VecDeque<(Waits<E>, SubscriptionId)>,
}

impl<E> Waiting<E> {
    /// With keys, `at_once` events of each may be in work at a time, at least one, and `most_waiting` may wait.
    pub(super) fn new(key_of: Option<KeyOf<E>>, at_once: usize, most_waiting: usize) -> Self {
        let keyed = key_of.map(|key_of| ByKey {
            key_of,
            at_once,
            most_waiting,
            startable: RoundRobin::new(),
            keys: HashMap::default(),
            len: 0,
        });
        Self { plain: RoundRobin::new(), keyed, children: 0 }
    }

    /// Adds events behind those of the same subscription, and of the same key. Returns those whose key
    /// cannot be found, because the function panics, and those of which too many of their key wait.
    pub(super) fn extend(&mut self, from: SubscriptionId, events: Vec<E>) -> Vec<(E, ExitReason)> {
        match &mut self.keyed {
            None => {
                self.plain.extend(from, events.into_iter().map(Waits::Event).collect());
                Vec::new()
            }
            Some(keyed) => {
                events.into_iter().filter_map(|event| keyed.push(from, event).err()).collect()
            }
        }
    }

    /// Adds a child that is to be restarted, behind the events of the same subscription and of its key.
    pub(super) fn add_child(&mut self, from: SubscriptionId, key: Option<Key>, id: ChildId) {
        self.children += 1;
        match (&mut self.keyed, key) {
            (Some(keyed), Some(key)) => keyed.push_of(key, from, Waits::Child(id)),
            _ => self.plain.extend(from, vec![Waits::Child(id)]),
        }
    }

    /// Takes the next that may begin, with its key.
    pub(super) fn pop(&mut self) -> Option<(Waits<E>, SubscriptionId, Option<Key>)> {
        let next = match &mut self.keyed {
            None => self.plain.pop().map(|(next, from)| (next, from, None)),
            Some(keyed) => keyed.pop().map(|(next, from, key)| (next, from, Some(key))),
        };
        self.children -= usize::from(matches!(next, Some((Waits::Child(_), ..))));
        next
    }

    /// The event of a key is done: the next one of that key may begin.
    #[inline]
    pub(super) fn done(&mut self, key: Option<Key>) {
        if let (Some(keyed), Some(key)) = (&mut self.keyed, key) {
            keyed.done(key);
        }
    }

    /// All events, without the children.
    pub(super) fn len(&self) -> usize {
        let all = match &self.keyed {
            None => self.plain.len(),
            Some(keyed) => keyed.len,
        };
        all - self.children
    }

    /// The events and children that could begin.
    pub(super) fn startable(&self) -> usize {
        match &self.keyed {
            None => self.plain.len(),
            Some(keyed) => keyed.startable.len(),
        }
    }
}

impl<E> ByKey<E> {
    fn push(&mut self, from: SubscriptionId, event: E) -> Result<(), (E, ExitReason)> {
        let key = match catch_panic_now(|| Ok((self.key_of)(&event))) {
            Ok(key) => key,
            Err(panicked) => return Err((event, panicked)),
        };
        if let Some(of_key) = self.keys.get(&key)
            && !of_key.has_room(self.at_once)
            && of_key.waiting_events() >= self.most_waiting
        {
            return Err((event, ExitReason::failed(KeyIsFull { waiting: self.most_waiting })));
        }
        self.push_of(key, from, Waits::Event(event));
        Ok(())
    }

    fn push_of(&mut self, key: Key, from: SubscriptionId, waits: Waits<E>) {
        let of_key = self.keys.entry(key).or_insert_with(|| OfKey {
            in_work: 0,
            startable: 0,
            waiting: VecDeque::new(),
        });
        of_key.waiting.push_back((waits, from));
        self.len += 1;
        self.startable.extend(from, of_key.start(self.at_once, key));
    }

    fn pop(&mut self) -> Option<(Waits<E>, SubscriptionId, Key)> {
        let (key, _) = self.startable.pop()?;
        let of_key = self.keys.get_mut(&key)?;
        let (next, from) = of_key.waiting.pop_front()?;
        of_key.startable -= 1;
        of_key.in_work += 1;
        self.len -= 1;
        Some((next, from, key))
    }

    fn done(&mut self, key: Key) {
        let Entry::Occupied(mut entry) = self.keys.entry(key) else { return };
        let of_key = entry.get_mut();
        of_key.in_work = of_key.in_work.saturating_sub(1);
        if let Some((_, from)) = of_key.waiting.get(of_key.startable) {
            self.startable.extend(*from, of_key.start(self.at_once, key));
        } else if of_key.in_work == 0 && of_key.waiting.is_empty() {
            entry.remove();
        }
    }
}

impl<E> OfKey<E> {
    /// Those that wait, without those that could begin: they take the places of the key's children.
    fn waiting_events(&self) -> usize {
        self.waiting.len().saturating_sub(self.startable)
    }

    /// Whether one more could begin.
    fn has_room(&self, at_once: usize) -> bool {
        self.in_work + self.startable < at_once
    }

    /// Lets the next event that waits begin if there is room for it. Returns the key if so.
    fn start(&mut self, at_once: usize, key: Key) -> Vec<Key> {
        if self.startable == self.waiting.len() || !self.has_room(at_once) {
            return Vec::new();
        }
        self.startable += 1;
        vec![key]
    }
}

impl<E> fmt::Debug for Waiting<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_tens() -> Waiting<u64> {
        Waiting::new(Some(Box::new(|event| event / 10)), 1, usize::MAX)
    }

    #[test]
    fn events_beyond_those_of_a_key_that_may_wait_are_returned() {
        let from = SubscriptionId::new(1);
        let mut waiting = Waiting::new(Some(Box::new(|event: &u64| event / 10)), 1, 2);
        let returned = waiting.extend(from, vec![10, 11, 20, 12, 13, 21]);
        assert_eq!(returned.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [13]);
        assert_eq!(returned[0].1.to_string(), "failed: 2 events of its key wait already");
        assert_eq!(waiting.pop(), Some((Waits::Event(10), from, Some(1))));
        assert_eq!(waiting.extend(from, vec![14]).len(), 1, "one is in work, and two wait");
        waiting.done(Some(1));
        assert_eq!(waiting.extend(from, vec![15]).len(), 0);
    }

    #[test]
    fn an_event_waits_until_the_one_before_it_of_its_key_is_done() {
        let [one, other] = [1, 2].map(SubscriptionId::new);
        let mut waiting = by_tens();
        waiting.extend(one, vec![10, 11, 20]);
        waiting.extend(other, vec![12, 30]);
        assert_eq!((waiting.len(), waiting.startable()), (5, 3));
        let begun: Vec<_> = std::iter::from_fn(|| waiting.pop()).collect();
        let first = [(10, one, Some(1)), (30, other, Some(3)), (20, one, Some(2))];
        assert_eq!(begun, first.map(|(event, from, key)| (Waits::Event(event), from, key)));
        assert_eq!((waiting.len(), waiting.startable()), (2, 0));
        waiting.add_child(one, Some(1), ChildId(7));
        assert_eq!((waiting.len(), waiting.startable()), (2, 0), "a child is no event");
        let events = [(11, one), (12, other)];
        let next = events.map(|(event, from)| (Waits::Event(event), from, Some(1)));
        for next in next.into_iter().chain([(Waits::Child(ChildId(7)), one, Some(1))]) {
            waiting.done(Some(1));
            assert_eq!((waiting.pop(), waiting.pop()), (Some(next), None));
        }
        for key in [1, 2, 3] {
            waiting.done(Some(key));
        }
        assert_eq!(waiting.len(), 0);
        assert!(waiting.keyed.unwrap().keys.is_empty(), "keys that are not used take no memory");
    }

    proptest! {
        #[test]
        fn only_so_many_events_of_a_key_are_begun_and_in_the_order_of_arrival(
            at_once in 1..4usize,
            most_waiting in prop_oneof![0..3usize, Just(usize::MAX)],
            steps in prop::collection::vec((0..3u8, 0..4u64, 0..3u64), 1..200),
        ) {
            let mut waiting: Waiting<(u64, usize)> = Waiting::new(Some(Box::new(|(key, _)| *key)), at_once, most_waiting);
            let mut arrived = HashMap::<u64, VecDeque<usize>>::new();
            let mut in_work = Vec::new();
            let count = |in_work: &[u64], key| in_work.iter().filter(|it| **it == key).count();
            for (number, (what, key, from)) in (0usize..).zip(steps) {
                match what {
                    0 => {
                        let of_key = arrived.entry(key).or_default();
                        // Those that have a place and have not begun yet do not wait.
                        let most = most_waiting.saturating_add(at_once - count(&in_work, key));
                        let fits = of_key.len() < most;
                        let returned = waiting.extend(SubscriptionId::new(from), vec![(key, number)]);
                        prop_assert_eq!(returned.len(), usize::from(!fits));
                        if fits {
                            of_key.push_back(number);
                        }
                    }
                    1 => if let Some((Waits::Event((key, number)), _, of)) = waiting.pop() {
                        prop_assert_eq!(of, Some(key));
                        prop_assert_eq!(arrived.get_mut(&key).unwrap().pop_front(), Some(number));
                        prop_assert!(count(&in_work, key) < at_once);
                        in_work.push(key);
                    },
                    _ => if !in_work.is_empty() {
                        waiting.done(Some(in_work.remove(number % in_work.len())));
                    }
                }
                let left = arrived.values().map(VecDeque::len).sum::<usize>();
                prop_assert_eq!(waiting.len(), left);
                // As many of each key could begin as are not in work.
                let idle = arrived.iter().map(|(key, events)| events.len().min(at_once - count(&in_work, *key)));
                prop_assert_eq!(waiting.startable(), idle.sum::<usize>());
            }
        }
    }
}
