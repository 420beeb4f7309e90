//! Pure: which items of a partition are done, and the offset that may be committed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tokio::time::Instant;

use crate::broker::Ahead;

/// What identifies a delivery: the item's place, the time for which its partition is assigned, and which
/// delivery it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KafkaReceipt {
    /// The partition of the item.
    pub(super) partition: i32,
    /// Its offset there.
    pub(super) offset: i64,
    /// Another one each time the partition is assigned.
    pub(super) generation: u64,
    /// Another one each time the item is delivered.
    pub(super) delivery: u32,
}

/// An item that is to be handled.
#[derive(Debug)]
pub(super) struct Taken<T> {
    pub(super) receipt: KafkaReceipt,
    /// How often it was delivered, this time included, since the partition was assigned.
    pub(super) deliveries: u32,
    /// How often it has failed since then.
    pub(super) failures: u32,
    pub(super) item: T,
}

/// What becomes of an item that was delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Next {
    /// The item is done.
    Done,
    /// The item is delivered again at this time, and has failed so often.
    At(Instant, u32),
    /// The item is delivered again at once, as if it had not been.
    Released,
    /// The same, at this time.
    ReleasedAt(Instant),
}

/// An offset that may be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) partition: i32,
    pub(super) generation: u64,
    pub(super) offset: i64,
}

/// The items of the assigned partitions that were read and are not committed.
#[derive(Debug)]
pub(super) struct Tracker<T> {
    partitions: BTreeMap<i32, Partition<T>>,
    /// When failed items are delivered again: time, partition, offset and generation.
    delayed: BTreeSet<(Instant, i32, i64, u64)>,
    /// How many items wait to be taken.
    ready: usize,
    /// The partition from which an item was taken last.
    turn: i32,
    generations: u64,
    /// Whether one item of a key is in work at a time.
    ordered: bool,
}

#[derive(Debug)]
struct Partition<T> {
    generation: u64,
    /// The items by offset, from the first one that is not done.
    entries: BTreeMap<i64, Entry<T>>,
    /// The items that wait to be taken.
    ready: BTreeSet<i64>,
    /// The items of each key that are not done, if one of them is in work at a time.
    keys: HashMap<Arc<str>, BTreeSet<i64>>,
    /// How many were taken and have no outcome.
    in_work: usize,
    /// Those that are neither in work nor done. Counted, as there may be very many.
    ahead: Ahead,
    /// The bytes of those that are not done.
    bytes: usize,
    /// The offset after the last one that was read.
    next: Option<i64>,
    /// The offset that is committed, as far as it is known.
    committed: Option<i64>,
    revoked: bool,
}

#[derive(Debug)]
struct Entry<T> {
    /// `None` when it is done.
    item: Option<T>,
    key: Option<Arc<str>>,
    bytes: usize,
    stage: Stage,
    /// Which delivery was the last.
    delivery: u32,
    /// How many of them count.
    deliveries: u32,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The item waits to be taken, for its time, or for another one of its key.
    Waiting,
    InWork,
    Done,
}

impl<T: Clone> Tracker<T> {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            partitions: BTreeMap::new(),
            delayed: BTreeSet::new(),
            ready: 0,
            turn: 0,
            generations: 0,
            ordered,
        }
    }

    /// A partition was assigned. What was known of it is forgotten.
    pub(super) fn assign(&mut self, partition: i32) {
        self.remove(partition);
        self.generations += 1;
        let assigned = Partition {
            generation: self.generations,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            keys: HashMap::new(),
            in_work: 0,
            ahead: Ahead::default(),
            bytes: 0,
            next: None,
            committed: None,
            revoked: false,
        };
        self.partitions.insert(partition, assigned);
    }

    /// A partition is to be given up: no more of its items are taken.
    pub(super) fn revoke(&mut self, partition: i32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.revoked = true;
            self.ready -= std::mem::take(&mut partition.ready).len();
        }
    }

    /// A partition was given up.
    pub(super) fn remove(&mut self, partition: i32) {
        if let Some(removed) = self.partitions.remove(&partition) {
            self.ready -= removed.ready.len();
            self.delayed.retain(|(_, of, _, _)| *of != partition);
        }
    }

    /// The partitions that are assigned.
    pub(super) fn assigned(&self) -> impl Iterator<Item = i32> {
        self.partitions.keys().copied()
    }

    /// Whether items of a partition are in work.
    pub(super) fn is_in_work(&self, partition: i32) -> bool {
        self.partitions.get(&partition).is_some_and(|partition| partition.in_work > 0)
    }

    /// Whether another item of a partition may be read: fewer than so many were read and not committed, and
    /// those that are not done have fewer bytes.
    pub(super) fn has_room(&self, partition: i32, items: usize, bytes: usize) -> bool {
        let partition = self.partitions.get(&partition);
        partition.is_some_and(|it| !it.revoked && it.entries.len() < items && it.bytes < bytes)
    }

    /// An item was read.
    pub(super) fn receive(
        &mut self,
        partition: i32,
        offset: i64,
        key: Option<Arc<str>>,
        item: T,
        bytes: usize,
    ) {
        let Some(state) = self.partitions.get(&partition) else { return };
        if state.revoked {
            return;
        }
        // The log has begun anew, or lost its end: what was known of these offsets is wrong.
        if state.next.is_some_and(|next| offset < next) {
            self.assign(partition);
        }
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.next = Some(offset.saturating_add(1));
        state.committed.get_or_insert(offset);
        let key = key.filter(|_| self.ordered);
        let entry = Entry {
            item: Some(item),
            key: key.clone(),
            bytes,
            stage: Stage::Waiting,
            delivery: 0,
            deliveries: 0,
            failures: 0,
        };
        state.bytes += bytes;
        state.waits(bytes);
        state.entries.insert(offset, entry);
        let is_first = key.is_none_or(|key| {
            let others = state.keys.entry(key).or_default();
            others.insert(offset);
            others.len() == 1
        });
        if is_first {
            state.ready.insert(offset);
            self.ready += 1;
        }
    }

    /// Lets the failed items wait to be taken whose time has come.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, partition, offset, generation)) = self.delayed.first().copied() {
            if at > now {
                return;
            }
            self.delayed.pop_first();
            let Some(state) = self.partitions.get_mut(&partition) else { continue };
            if state.generation == generation && !state.revoked && state.ready.insert(offset) {
                self.ready += 1;
            }
        }
    }

    /// When the next failed item is delivered again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, ..)| *at)
    }

    /// The items that were read and are not in work: they wait to be taken, for their time, or for another one of their key.
    pub(super) fn ahead(&self) -> Ahead {
        self.partitions.values().fold(Ahead::default(), |all, it| Ahead {
            items: all.items + it.ahead.items,
            bytes: all.bytes.saturating_add(it.ahead.bytes),
        })
    }

    /// How many items wait to be taken.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Takes up to `max` items, from all partitions in turn, and of each in the order of the offsets.
    pub(super) fn take(&mut self, max: usize) -> Vec<Taken<T>> {
        let mut taken = Vec::with_capacity(max.min(self.ready));
        while taken.len() < max && self.ready > 0 {
            let after = (std::ops::Bound::Excluded(self.turn), std::ops::Bound::Unbounded);
            let next = self.partitions.range(after).find(|(_, it)| !it.ready.is_empty());
            let first = || self.partitions.iter().find(|(_, it)| !it.ready.is_empty());
            let Some(number) = next.or_else(first).map(|(number, _)| *number) else { break };
            self.turn = number;
            taken.extend(self.take_from(number));
        }
        taken
    }

    fn take_from(&mut self, number: i32) -> Option<Taken<T>> {
        let partition = self.partitions.get_mut(&number)?;
        let offset = partition.ready.pop_first()?;
        self.ready -= 1;
        let entry = partition.entries.get_mut(&offset)?;
        let item = entry.item.clone()?;
        entry.stage = Stage::InWork;
        entry.delivery = entry.delivery.saturating_add(1);
        entry.deliveries = entry.deliveries.saturating_add(1);
        let (deliveries, failures) = (entry.deliveries, entry.failures);
        let (bytes, delivery) = (entry.bytes, entry.delivery);
        partition.in_work += 1;
        partition.ahead.items -= 1;
        partition.ahead.bytes = partition.ahead.bytes.saturating_sub(bytes);
        let receipt =
            KafkaReceipt { partition: number, offset, generation: partition.generation, delivery };
        Some(Taken { receipt, deliveries, failures, item })
    }

    /// The item of a delivery that is in work, and how often it was delivered.
    pub(super) fn in_work(&self, receipt: &KafkaReceipt) -> Option<(T, u32)> {
        let partition = self.partitions.get(&receipt.partition)?;
        let entry = partition.entries.get(&receipt.offset)?;
        if !is_of(partition, entry, receipt) {
            return None;
        }
        entry.item.clone().map(|item| (item, entry.deliveries))
    }

    /// What becomes of a delivery. One that is not in work, or of an earlier assignment, changes nothing.
    pub(super) fn settle(&mut self, receipt: &KafkaReceipt, next: Next) {
        let &KafkaReceipt { partition: number, offset, generation, .. } = receipt;
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        let Some(entry) = partition.entries.get_mut(&offset) else { return };
        if entry.stage != Stage::InWork
            || entry.delivery != receipt.delivery
            || partition.generation != generation
        {
            return;
        }
        partition.in_work -= 1;
        match next {
            Next::Done => {
                entry.stage = Stage::Done;
                entry.item = None;
                partition.bytes -= entry.bytes;
                let freed = entry.key.take().and_then(|key| partition.done(&key, offset));
                if let Some(freed) = freed.filter(|_| !partition.revoked) {
                    self.ready += usize::from(partition.ready.insert(freed));
                }
                partition.forget_done();
            }
            Next::At(at, _) | Next::ReleasedAt(at) => {
                entry.stage = Stage::Waiting;
                if let Next::At(_, failures) = next {
                    entry.failures = failures;
                } else {
                    entry.deliveries = entry.deliveries.saturating_sub(1);
                }
                let bytes = entry.bytes;
                partition.waits(bytes);
                self.delayed.insert((at, number, offset, generation));
            }
            Next::Released => {
                entry.stage = Stage::Waiting;
                entry.deliveries = entry.deliveries.saturating_sub(1);
                let bytes = entry.bytes;
                partition.waits(bytes);
                if !partition.revoked {
                    self.ready += usize::from(partition.ready.insert(offset));
                }
            }
        }
    }

    /// The offsets that may be committed and are not, of these partitions.
    pub(super) fn to_commit(&self) -> Vec<Commit> {
        let commits = self.partitions.iter().filter_map(|(number, partition)| {
            let offset = partition.committable()?;
            let commit = Commit { partition: *number, generation: partition.generation, offset };
            (partition.committed < Some(offset)).then_some(commit)
        });
        commits.collect()
    }

    /// An offset was committed.
    pub(super) fn committed(&mut self, commit: &Commit) {
        if let Some(partition) = self.partitions.get_mut(&commit.partition)
            && partition.generation == commit.generation
        {
            partition.committed = partition.committed.max(Some(commit.offset));
        }
    }

    /// Whether an offset is still to be committed.
    pub(super) fn is_owed(&self, commit: &Commit) -> bool {
        self.partitions.get(&commit.partition).is_some_and(|partition| {
            partition.generation == commit.generation && partition.committed < Some(commit.offset)
        })
    }

    /// The first item of each partition that is not done.
    pub(super) fn oldest(&self) -> impl Iterator<Item = &T> {
        let entries = self.partitions.values().filter_map(|it| it.entries.values().next());
        entries.filter_map(|entry| entry.item.as_ref())
    }
}

impl<T> Partition<T> {
    /// The first offset that is not done: everything before it is.
    fn committable(&self) -> Option<i64> {
        self.entries.first_key_value().map(|(offset, _)| *offset).or(self.next)
    }

    /// An item of so many bytes waits to be taken, for its time, or for another one of its key.
    fn waits(&mut self, bytes: usize) {
        self.ahead.items += 1;
        self.ahead.bytes = self.ahead.bytes.saturating_add(bytes);
    }

    /// Removes the items that are done and have nothing undone before them.
    fn forget_done(&mut self) {
        while let Some(first) = self.entries.first_entry()
            && first.get().stage == Stage::Done
        {
            first.remove();
        }
    }

    /// An item of a key is done. Returns the next one of it.
    fn done(&mut self, key: &Arc<str>, offset: i64) -> Option<i64> {
        let others = self.keys.get_mut(key)?;
        others.remove(&offset);
        let next = others.first().copied();
        if next.is_none() {
            self.keys.remove(key);
        }
        next
    }
}

fn is_of<T>(partition: &Partition<T>, entry: &Entry<T>, receipt: &KafkaReceipt) -> bool {
    entry.stage == Stage::InWork
        && entry.delivery == receipt.delivery
        && partition.generation == receipt.generation
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
