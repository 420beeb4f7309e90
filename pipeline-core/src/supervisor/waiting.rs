//! Events that wait for a child, in an order for each key if there are keys. Pure.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
};

use super::ChildId;
use super::round_robin::RoundRobin;
use crate::{exit::ExitReason, stage::catch_panic_now, subscription::SubscriptionId};

/// The key of an event, of which one is in work at a time.
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

/// Events of which one of each key is in work at a time.
struct ByKey<E> {
    key_of: KeyOf<E>,
    /// The first of each key that is not in work. No two have the same key.
    first: RoundRobin<(Key, Waits<E>)>,
    /// The keys with an event that is in work or could begin, each with the events behind it, in the
    /// order of their arrival.
    keys: HashMap<Key, VecDeque<(Waits<E>, SubscriptionId)>, foldhash::fast::RandomState>,
    /// The number of events behind others.
    behind: usize,
}

impl<E> Waiting<E> {
    pub(super) fn new(key_of: Option<KeyOf<E>>) -> Self {
        let keyed = key_of.map(|key_of| ByKey {
            key_of,
            first: RoundRobin::new(),
            keys: HashMap::default(),
            behind: 0,
        });
        Self { plain: RoundRobin::new(), keyed, children: 0 }
    }

    /// Adds events behind those of the same subscription, and of the same key. Returns those whose key
    /// cannot be found, because the function panics.
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
            Some(keyed) => keyed.first.pop().map(|((key, next), from)| (next, from, Some(key))),
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
            Some(keyed) => keyed.first.len() + keyed.behind,
        };
        all - self.children
    }

    /// The events and children that could begin.
    pub(super) fn startable(&self) -> usize {
        match &self.keyed {
            None => self.plain.len(),
            Some(keyed) => keyed.first.len(),
        }
    }
}

impl<E> ByKey<E> {
    fn push(&mut self, from: SubscriptionId, event: E) -> Result<(), (E, ExitReason)> {
        let key = match catch_panic_now(|| Ok((self.key_of)(&event))) {
            Ok(key) => key,
            Err(panicked) => return Err((event, panicked)),
        };
        self.push_of(key, from, Waits::Event(event));
        Ok(())
    }

    fn push_of(&mut self, key: Key, from: SubscriptionId, waits: Waits<E>) {
        match self.keys.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(VecDeque::new());
                self.first.extend(from, vec![(key, waits)]);
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().push_back((waits, from));
                self.behind += 1;
            }
        }
    }

    fn done(&mut self, key: Key) {
        let Entry::Occupied(mut entry) = self.keys.entry(key) else { return };
        match entry.get_mut().pop_front() {
            Some((waits, from)) => {
                self.behind -= 1;
                self.first.extend(from, vec![(key, waits)]);
            }
            None => drop(entry.remove()),
        }
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
        Waiting::new(Some(Box::new(|event| event / 10)))
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
        fn events_of_a_key_are_begun_one_at_a_time_in_the_order_of_arrival(
            steps in prop::collection::vec((0..3u8, 0..4u64, 0..3u64), 1..200),
        ) {
            let mut waiting: Waiting<(u64, usize)> = Waiting::new(Some(Box::new(|(key, _)| *key)));
            let mut arrived = HashMap::<u64, VecDeque<usize>>::new();
            let mut in_work = Vec::new();
            for (number, (what, key, from)) in (0usize..).zip(steps) {
                match what {
                    0 => {
                        arrived.entry(key).or_default().push_back(number);
                        waiting.extend(SubscriptionId::new(from), vec![(key, number)]);
                    }
                    1 => if let Some((Waits::Event((key, number)), _, of)) = waiting.pop() {
                        prop_assert_eq!(of, Some(key));
                        prop_assert_eq!(arrived.get_mut(&key).unwrap().pop_front(), Some(number));
                        prop_assert!(!in_work.contains(&key));
                        in_work.push(key);
                    },
                    _ => if !in_work.is_empty() {
                        waiting.done(Some(in_work.remove(number % in_work.len())));
                    }
                }
                let left = arrived.values().map(VecDeque::len).sum::<usize>();
                prop_assert_eq!(waiting.len(), left);
                // As many keys as are not in work could begin.
                let idle = arrived.iter().filter(|(key, events)| !events.is_empty() && !in_work.contains(key));
                prop_assert_eq!(waiting.startable(), idle.count());
            }
        }
    }
}
