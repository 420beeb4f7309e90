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
    context::CausalContext,
    message::{Delta, ReplicaRef, Value},
    store::Position,
};

/// The changes of this replica.
pub(super) struct LocalReplica {
    of: ReplicaRef,
    values: BTreeMap<u64, Value>,
    /// The changes that have not been sent yet.
    pending: Delta,
    /// The last sent changes, from the smallest delta to the largest.
    generations: Vec<Delta>,
    sizes: Vec<usize>,
}

impl LocalReplica {
    pub(super) fn new(of: ReplicaRef, mut sizes: Vec<usize>) -> Self {
        sizes.sort_unstable();
        let nothing = Delta::after(&of, 0);
        let generations = vec![nothing.clone(); sizes.len()];
        Self { of, values: BTreeMap::new(), pending: nothing, generations, sizes }
    }

    pub(super) fn of(&self) -> &ReplicaRef {
        &self.of
    }

    /// The last change that has been sent.
    pub(super) fn sent_upto(&self) -> u64 {
        self.pending.after
    }

    pub(super) fn added(&mut self, topic: &Arc<str>, key: &Arc<str>, meta: &Meta) -> u64 {
        let value = Value { topic: topic.clone(), key: key.clone(), meta: meta.clone() };
        self.pending.upto += 1;
        self.pending.values.insert(self.pending.upto, value.clone());
        self.values.insert(self.pending.upto, value);
        self.pending.upto
    }

    pub(super) fn removed(&mut self, clock: u64) {
        self.values.remove(&clock);
        self.pending.upto += 1;
        self.pending.remove(clock);
    }

    /// Takes the changes that have not been sent; they then count as sent.
    pub(super) fn take_pending_delta(&mut self) -> Option<Delta> {
        if self.pending.after == self.pending.upto {
            return None;
        }
        let rest = Delta::after(&self.of, self.pending.upto);
        let delta = std::mem::replace(&mut self.pending, rest);
        for (generation, size) in self.generations.iter_mut().zip(&self.sizes) {
            generation.extend(&delta);
            if generation.size() > *size {
                let fits = delta.size() <= *size;
                *generation = if fits { delta.clone() } else { Delta::after(&self.of, delta.upto) };
            }
        }
        Some(delta)
    }

    /// The changes after this clock: the smallest generation that reaches back far enough, or the
    /// whole state.
    pub(super) fn since(&self, clock: u64) -> Delta {
        let covering = self.generations.iter().find(|delta| delta.after <= clock);
        covering.cloned().unwrap_or_else(|| Delta {
            upto: self.pending.upto,
            values: self.values.clone(),
            ..Delta::after(&self.of, 0)
        })
    }

    /// The number of changes kept for others, in all generations.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.generations.iter().map(Delta::size).sum::<usize>() + self.pending.size()
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
}

/// The copy of another replica's entries, as far as known.
#[derive(Debug, Default)]
pub(super) struct RemoteReplica {
    pub(super) context: CausalContext,
    pub(super) values: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Value,
    /// Its position in the list, if it is listed.
    pub(super) position: Option<Position>,
}

/// The changes of a merge.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// By the change that added the entry.
    pub(super) joins: Vec<u64>,
    pub(super) leaves: Vec<Entry>,
}

impl RemoteReplica {
    /// Merges the new changes of an interval. Intervals may arrive in any order and repeatedly; the
    /// copy is the same once all have arrived.
    pub(super) fn merge(&mut self, delta: Delta) -> Merged {
        let mut merged = Merged::default();
        if !self.context.has_room(delta.after) {
            return merged;
        }
        let Delta { after, upto, removed, values, .. } = delta;
        let in_row = self.values.range(after + 1..upto + 1).map(|(clock, _)| *clock);
        let gone = in_row.filter(|clock| !values.contains_key(clock));
        let gone: Vec<u64> = gone.chain(removed.iter().copied()).collect();
        merged.leaves = gone.iter().filter_map(|clock| self.values.remove(clock)).collect();
        for (clock, value) in values {
            if !self.context.contains(clock) {
                self.values.insert(clock, Entry { value, position: None });
                merged.joins.push(clock);
            }
        }
        self.context.insert(after, upto);
        for clock in removed {
            // Marks its addition as seen.
            self.context.insert(clock - 1, clock);
        }
        merged
    }

    /// All known changes, without a gap.
    pub(super) fn all(&self, of: &ReplicaRef) -> Delta {
        let upto = self.context.base();
        let values = self.values.range(..=upto);
        let values = values.map(|(clock, entry)| (*clock, entry.value.clone())).collect();
        Delta { upto, values, ..Delta::after(of, 0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::presence::tracker::message::Message;

    fn local(sizes: &[usize]) -> LocalReplica {
        LocalReplica::new(ReplicaRef { node: "ann".into(), version: 1 }, sizes.to_vec())
    }

    fn add(local: &mut LocalReplica) -> u64 {
        local.added(&"room:1".into(), &"user:1".into(), &Meta::default())
    }

    fn clocks(remote: &RemoteReplica) -> Vec<u64> {
        remote.values.keys().copied().collect()
    }

    #[test]
    fn a_readded_entry_stays_when_the_earlier_removal_arrives_later() {
        let mut local = local(&[]);
        let first = add(&mut local);
        let old = local.take_pending_delta().unwrap();
        local.removed(first);
        let removal = local.take_pending_delta().unwrap();
        let second = add(&mut local);
        let addition = local.take_pending_delta().unwrap();
        let mut remote = RemoteReplica::default();
        for delta in [addition, removal, old.clone(), old] {
            remote.merge(delta);
        }
        assert_eq!(clocks(&remote), [second]);
    }

    #[test]
    fn an_entry_added_and_removed_between_two_messages_is_not_sent() {
        let mut local = local(&[10]);
        let gone = add(&mut local);
        local.removed(gone);
        let delta = local.take_pending_delta().unwrap();
        assert_eq!((delta.size(), delta.upto), (0, 2));
        assert_eq!(local.take_pending_delta(), None);
    }

    #[test]
    fn a_replica_that_missed_little_is_sent_little() {
        let mut local = local(&[1, 3]);
        for _ in 0..5 {
            add(&mut local);
            local.take_pending_delta();
        }
        let sent = |clock| local.since(clock).values.into_keys().collect::<Vec<_>>();
        assert_eq!(sent(4), [5], "the smallest generation");
        assert_eq!(sent(3), [4, 5], "the next one");
        assert_eq!(sent(2), [1, 2, 3, 4, 5], "more than is kept");
    }

    #[test]
    fn a_change_without_room_for_its_gap_is_requested_later() {
        let (mut local, mut remote) = (local(&[]), RemoteReplica::default());
        for _ in 0..5_000 {
            add(&mut local);
            let delta = local.take_pending_delta().unwrap();
            if delta.upto % 2 == 0 {
                remote.merge(delta);
            }
        }
        assert_eq!((remote.context.gaps(), remote.values.len()), (1_000, 1_000));
        remote.merge(local.since(0));
        assert_eq!((remote.context.gaps(), remote.values.len()), (0, 5_000));
    }

    /// A replica's actions: add an entry, remove one, or send to the others.
    fn history() -> impl Strategy<Value = Vec<(u8, prop::sample::Index)>> {
        prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 0..60)
    }

    /// All deltas of this replica: its new changes, and its answers to replicas that missed some.
    fn sent(history: &[(u8, prop::sample::Index)]) -> (LocalReplica, Vec<Delta>) {
        let (mut local, mut deltas) = (local(&[2, 5]), Vec::new());
        for (what, which) in history {
            let known: Vec<u64> = local.values.keys().copied().collect();
            match what {
                0 | 1 => _ = add(&mut local),
                2 if !known.is_empty() => local.removed(*which.get(&known)),
                2 | 3 => deltas.extend(local.take_pending_delta()),
                _ => deltas
                    .push(local.since(which.index(usize::MAX) as u64 % (local.sent_upto() + 1))),
            }
        }
        deltas.extend(local.take_pending_delta());
        (local, deltas)
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            history in history(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
            at in any::<prop::sample::Index>(),
        ) {
            let (_, deltas) = sent(&history);
            prop_assume!(!deltas.is_empty());
            let some: Vec<&Delta> = order.iter().map(|index| index.get(&deltas)).collect();
            let (mut one, mut other, mut twice) = <(RemoteReplica, RemoteReplica, RemoteReplica)>::default();
            some.iter().for_each(|delta| _ = one.merge((*delta).clone()));
            some.iter().rev().for_each(|delta| _ = other.merge((*delta).clone()));
            for delta in some.iter().chain(&some) {
                twice.merge((*delta).clone());
            }
            prop_assert_eq!((clocks(&one), &one.context), (clocks(&other), &other.context));
            prop_assert_eq!((clocks(&one), &one.context), (clocks(&twice), &twice.context));
            // Relayed by a third replica, which has received the first of them, and then the rest.
            let (first, rest) = some.split_at(at.index(some.len() + 1));
            let (mut third, mut last) = <(RemoteReplica, RemoteReplica)>::default();
            first.iter().for_each(|delta| _ = third.merge((*delta).clone()));
            rest.iter().for_each(|delta| _ = last.merge((*delta).clone()));
            last.merge(third.all(&ReplicaRef { node: "ann".into(), version: 1 }));
            first.iter().for_each(|delta| _ = last.merge((*delta).clone()));
            prop_assert_eq!((clocks(&one), &one.context), (clocks(&last), &last.context));
        }

        #[test]
        fn the_parts_of_a_message_have_its_effect_in_any_order(
            history in history(), most in 1_usize..5, by in any::<prop::sample::Index>()
        ) {
            let (_, deltas) = sent(&history);
            let (mut whole, mut parts) = <(RemoteReplica, RemoteReplica)>::default();
            for delta in deltas {
                let from = delta.of.clone();
                whole.merge(delta.clone());
                let size = delta.size();
                let message = Message::TransferAck { from, deltas: vec![delta] };
                let mut split = message.split(most);
                prop_assert!(split.iter().all(|part| part.size() <= most));
                prop_assert_eq!(split.iter().map(Message::size).sum::<usize>(), size);
                let by = by.index(split.len());
                split.rotate_left(by);
                for part in split {
                    let read = Message::from_payload(&part.to_payload().unwrap()).unwrap();
                    let Message::TransferAck { deltas, .. } = read else { unreachable!() };
                    deltas.into_iter().for_each(|delta| _ = parts.merge(delta));
                }
                prop_assert_eq!((clocks(&whole), &whole.context), (clocks(&parts), &parts.context));
            }
        }

        #[test]
        fn a_remote_replica_with_all_deltas_is_complete_and_each_change_is_reported_once(
            history in history(), seed in any::<prop::sample::Index>()
        ) {
            let (local, mut deltas) = sent(&history);
            let by = seed.index(deltas.len().max(1));
            let by = by.min(deltas.len());
            deltas.rotate_left(by);
            let (mut remote, mut joined) = (RemoteReplica::default(), BTreeSet::new());
            let mut left = 0;
            for delta in deltas {
                let merged = remote.merge(delta);
                left += merged.leaves.len();
                for clock in merged.joins {
                    prop_assert!(joined.insert(clock), "{} has joined twice", clock);
                }
            }
            prop_assert_eq!(clocks(&remote), local.values.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(joined.len(), left + local.values.len());
            prop_assert_eq!(remote.context.gaps(), 0);
        }
    }
}
