//! The state of a replica: its own changes, to be sent to the others, and copies of the others'
//! entries. Pure.
//!
//! An add-wins observed-remove set. Each change of a replica, an entry added or removed, has a
//! number, its clock; an entry is identified by the change that added it, a new one each time. Only
//! the replica itself changes its entries, so an entry that is missing from a seen interval of
//! changes has been removed: no tombstones are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Meta,
    message::{Delta, ReplicaRef, Value},
    seen::Seen,
    store::Place,
};

/// The changes of this replica.
pub(super) struct Own {
    of: ReplicaRef,
    values: BTreeMap<u64, Value>,
    /// The changes that have not been sent yet.
    news: Delta,
    /// The last sent changes, from the smallest delta to the largest.
    generations: Vec<Delta>,
    sizes: Vec<usize>,
}

impl Own {
    pub(super) fn new(of: ReplicaRef, mut sizes: Vec<usize>) -> Self {
        sizes.sort_unstable();
        let nothing = Delta::after(&of, 0);
        let generations = vec![nothing.clone(); sizes.len()];
        Self { of, values: BTreeMap::new(), news: nothing, generations, sizes }
    }

    pub(super) fn of(&self) -> &ReplicaRef {
        &self.of
    }

    /// The last change that has been sent.
    pub(super) fn told(&self) -> u64 {
        self.news.after
    }

    pub(super) fn added(&mut self, topic: &Arc<str>, key: &Arc<str>, meta: &Meta) -> u64 {
        let value = Value { topic: topic.clone(), key: key.clone(), meta: meta.clone() };
        self.news.upto += 1;
        self.news.values.insert(self.news.upto, value.clone());
        self.values.insert(self.news.upto, value);
        self.news.upto
    }

    pub(super) fn removed(&mut self, clock: u64) {
        self.values.remove(&clock);
        self.news.upto += 1;
        self.news.remove(clock);
    }

    /// Takes the changes that have not been sent; they then count as sent.
    pub(super) fn take_news(&mut self) -> Option<Delta> {
        if self.news.after == self.news.upto {
            return None;
        }
        let rest = Delta::after(&self.of, self.news.upto);
        let news = std::mem::replace(&mut self.news, rest);
        for (generation, size) in self.generations.iter_mut().zip(&self.sizes) {
            generation.extend(&news);
            if generation.size() > *size {
                let fits = news.size() <= *size;
                *generation = if fits { news.clone() } else { Delta::after(&self.of, news.upto) };
            }
        }
        Some(news)
    }

    /// The changes after this clock: the smallest generation that reaches back far enough, or the
    /// whole state.
    pub(super) fn since(&self, clock: u64) -> Delta {
        let covering = self.generations.iter().find(|delta| delta.after <= clock);
        covering.cloned().unwrap_or_else(|| Delta {
            upto: self.news.upto,
            values: self.values.clone(),
            ..Delta::after(&self.of, 0)
        })
    }

    /// The number of changes kept for others, in all generations.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.generations.iter().map(Delta::size).sum::<usize>() + self.news.size()
    }
}

impl Delta {
    /// An empty interval after this change.
    pub(super) fn after(of: &ReplicaRef, clock: u64) -> Self {
        let (removed, values) = (BTreeSet::new(), BTreeMap::new());
        Self { of: of.clone(), after: clock, upto: clock, removed, values }
    }

    /// Appends the interval that follows.
    fn extend(&mut self, next: &Self) {
        for clock in &next.removed {
            self.remove(*clock);
        }
        self.values.extend(next.values.iter().map(|(clock, value)| (*clock, value.clone())));
        self.upto = next.upto;
    }

    fn remove(&mut self, clock: u64) {
        if clock > self.after {
            self.values.remove(&clock);
        } else {
            self.removed.insert(clock);
        }
    }

    fn size(&self) -> usize {
        self.values.len() + self.removed.len()
    }
}

/// The copy of another replica's entries, as far as known.
#[derive(Debug, Default)]
pub(super) struct Copy {
    pub(super) seen: Seen,
    pub(super) values: BTreeMap<u64, Held>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) value: Value,
    /// Its place in the list, if it is listed.
    pub(super) place: Option<Place>,
}

/// The changes of a merge.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// By the change that added the entry.
    pub(super) joins: Vec<u64>,
    pub(super) leaves: Vec<Held>,
}

impl Copy {
    /// Merges the new changes of an interval. Intervals may arrive in any order and repeatedly; the
    /// copy is the same once all have arrived.
    pub(super) fn merge(&mut self, delta: Delta) -> Merged {
        let mut merged = Merged::default();
        if !self.seen.has_room(delta.after) {
            return merged;
        }
        let Delta { after, upto, removed, values, .. } = delta;
        let in_row = self.values.range(after + 1..upto + 1).map(|(clock, _)| *clock);
        let gone = in_row.filter(|clock| !values.contains_key(clock));
        let gone: Vec<u64> = gone.chain(removed.iter().copied()).collect();
        merged.leaves = gone.iter().filter_map(|clock| self.values.remove(clock)).collect();
        for (clock, value) in values {
            if !self.seen.contains(clock) {
                self.values.insert(clock, Held { value, place: None });
                merged.joins.push(clock);
            }
        }
        self.seen.insert(after, upto);
        for clock in removed {
            // Marks its addition as seen.
            self.seen.insert(clock - 1, clock);
        }
        merged
    }

    /// All known changes, without a gap.
    pub(super) fn all(&self, of: &ReplicaRef) -> Delta {
        let upto = self.seen.context();
        let values = self.values.range(..=upto);
        let values = values.map(|(clock, held)| (*clock, held.value.clone())).collect();
        Delta { upto, values, ..Delta::after(of, 0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own(sizes: &[usize]) -> Own {
        Own::new(ReplicaRef { node: "ann".into(), version: 1 }, sizes.to_vec())
    }

    fn add(own: &mut Own) -> u64 {
        own.added(&"room:1".into(), &"user:1".into(), &Meta::default())
    }

    fn clocks(copy: &Copy) -> Vec<u64> {
        copy.values.keys().copied().collect()
    }

    #[test]
    fn a_readded_entry_stays_when_the_earlier_removal_arrives_later() {
        let mut own = own(&[]);
        let first = add(&mut own);
        let old = own.take_news().unwrap();
        own.removed(first);
        let removal = own.take_news().unwrap();
        let second = add(&mut own);
        let addition = own.take_news().unwrap();
        let mut copy = Copy::default();
        for delta in [addition, removal, old.clone(), old] {
            copy.merge(delta);
        }
        assert_eq!(clocks(&copy), [second]);
    }

    #[test]
    fn an_entry_added_and_removed_between_two_messages_is_not_sent() {
        let mut own = own(&[10]);
        let gone = add(&mut own);
        own.removed(gone);
        let news = own.take_news().unwrap();
        assert_eq!((news.size(), news.upto), (0, 2));
        assert_eq!(own.take_news(), None);
    }

    #[test]
    fn a_replica_that_missed_little_is_sent_little() {
        let mut own = own(&[1, 3]);
        for _ in 0..5 {
            add(&mut own);
            own.take_news();
        }
        let sent = |clock| own.since(clock).values.into_keys().collect::<Vec<_>>();
        assert_eq!(sent(4), [5], "the smallest generation");
        assert_eq!(sent(3), [4, 5], "the next one");
        assert_eq!(sent(2), [1, 2, 3, 4, 5], "more than is kept");
    }

    #[test]
    fn a_change_without_room_for_its_gap_is_requested_later() {
        let (mut own, mut copy) = (own(&[]), Copy::default());
        for _ in 0..5_000 {
            add(&mut own);
            let news = own.take_news().unwrap();
            if news.upto % 2 == 0 {
                copy.merge(news);
            }
        }
        assert_eq!((copy.seen.gaps(), copy.values.len()), (1_000, 1_000));
        copy.merge(own.since(0));
        assert_eq!((copy.seen.gaps(), copy.values.len()), (0, 5_000));
    }

    /// A replica's actions: add an entry, remove one, or send to the others.
    fn history() -> impl Strategy<Value = Vec<(u8, prop::sample::Index)>> {
        prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 0..60)
    }

    /// All deltas of this replica: its new changes, and its answers to replicas that missed some.
    fn told(history: &[(u8, prop::sample::Index)]) -> (Own, Vec<Delta>) {
        let (mut own, mut told) = (own(&[2, 5]), Vec::new());
        for (what, which) in history {
            let known: Vec<u64> = own.values.keys().copied().collect();
            match what {
                0 | 1 => _ = add(&mut own),
                2 if !known.is_empty() => own.removed(*which.get(&known)),
                2 | 3 => told.extend(own.take_news()),
                _ => told.push(own.since(which.index(usize::MAX) as u64 % (own.told() + 1))),
            }
        }
        told.extend(own.take_news());
        (own, told)
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            history in history(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
            at in any::<prop::sample::Index>(),
        ) {
            let (_, told) = told(&history);
            prop_assume!(!told.is_empty());
            let some: Vec<&Delta> = order.iter().map(|index| index.get(&told)).collect();
            let (mut one, mut other, mut twice) = <(Copy, Copy, Copy)>::default();
            some.iter().for_each(|delta| _ = one.merge((*delta).clone()));
            some.iter().rev().for_each(|delta| _ = other.merge((*delta).clone()));
            for delta in some.iter().chain(&some) {
                twice.merge((*delta).clone());
            }
            prop_assert_eq!((clocks(&one), &one.seen), (clocks(&other), &other.seen));
            prop_assert_eq!((clocks(&one), &one.seen), (clocks(&twice), &twice.seen));
            // Relayed by a third replica, which has received the first of them, and then the rest.
            let (first, rest) = some.split_at(at.index(some.len() + 1));
            let (mut third, mut last) = <(Copy, Copy)>::default();
            first.iter().for_each(|delta| _ = third.merge((*delta).clone()));
            rest.iter().for_each(|delta| _ = last.merge((*delta).clone()));
            last.merge(third.all(&ReplicaRef { node: "ann".into(), version: 1 }));
            first.iter().for_each(|delta| _ = last.merge((*delta).clone()));
            prop_assert_eq!((clocks(&one), &one.seen), (clocks(&last), &last.seen));
        }

        #[test]
        fn a_copy_with_all_deltas_is_complete_and_each_change_is_reported_once(
            history in history(), seed in any::<prop::sample::Index>()
        ) {
            let (own, mut told) = told(&history);
            let by = seed.index(told.len().max(1));
            let by = by.min(told.len());
            told.rotate_left(by);
            let (mut copy, mut joined) = (Copy::default(), BTreeSet::new());
            let mut left = 0;
            for delta in told {
                let merged = copy.merge(delta);
                left += merged.leaves.len();
                for clock in merged.joins {
                    prop_assert!(joined.insert(clock), "{} has joined twice", clock);
                }
            }
            prop_assert_eq!(clocks(&copy), own.values.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(joined.len(), left + own.values.len());
            prop_assert_eq!(copy.seen.gaps(), 0);
        }
    }
}
