//! How much a fair queue holds, and what is fair.

use std::fmt;

use super::state::{Entry, Limits};
use crate::buffer::BufferKeep;

/// How many items a fair queue holds unless told otherwise.
const DEFAULT_CAPACITY: usize = 10_000;

/// How many items of one key it holds unless told otherwise.
const DEFAULT_KEY_CAPACITY: usize = 100;

/// How much a fair queue holds, what each key's share is, and what happens when there is no room.
///
/// ```
/// use pipeline_core::{FairQueueOptions, fair_queue};
///
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct User {
///     id: u64,
///     pays: bool,
/// }
///
/// // Users share the bandwidth, and those who pay get three times as much.
/// let options = FairQueueOptions::new()
///     .weight(|user: &User| if user.pays { 3 } else { 1 })
///     .cost(|frame: &Vec<u8>| u32::try_from(frame.len()).unwrap_or(u32::MAX))
///     .quantum(64 * 1024);
/// let (queue, producer) = fair_queue(options);
/// ```
#[must_use]
pub struct FairQueueOptions<K, T> {
    capacity: usize,
    key_capacity: usize,
    keep: BufferKeep,
    quantum: u32,
    rules: Rules<K, T>,
}

/// A number that something stands for, as the program says.
type Measure<V> = Box<dyn Fn(&V) -> u32 + Send + Sync>;

/// What a key's share is, and how much of it an item takes.
pub(super) struct Rules<K, T> {
    weight: Option<Measure<K>>,
    cost: Option<Measure<T>>,
}

impl<K, T> FairQueueOptions<K, T> {
    /// Room for 10,000 items, 100 of each key; all keys and all items count the same; keeps the
    /// last when more are offered.
    pub fn new() -> Self {
        Self {
            capacity: DEFAULT_CAPACITY,
            key_capacity: DEFAULT_KEY_CAPACITY,
            keep: BufferKeep::Last,
            quantum: 1,
            rules: Rules { weight: None, cost: None },
        }
    }

    /// How many items the queue holds of all keys together. Default 10,000.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items;
        self
    }

    /// How many items the queue holds of one key. Default 100.
    ///
    /// It is what one key can take away from others of the room for all, so it should be a small
    /// part of that. How soon an item of another key comes out does not depend on it.
    pub fn key_capacity(mut self, items: usize) -> Self {
        self.key_capacity = items;
        self
    }

    /// What [`FairQueue::offer`](super::FairQueue::offer) keeps when there is no room. Default
    /// [`BufferKeep::Last`].
    pub fn keep(mut self, keep: BufferKeep) -> Self {
        self.keep = keep;
        self
    }

    /// What a key's share is, beside that of others: one with weight 3 gets three times as much out
    /// as one with weight 1, while both have items. Default 1 for all; 0 counts as 1.
    ///
    /// It is asked at every push, and the last answer counts. It is called outside the queue's
    /// lock.
    pub fn weight(mut self, weight: impl Fn(&K) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.weight = Some(Box::new(weight));
        self
    }

    /// How much of its key's share an item takes, for example its size in bytes. Default 1 for all;
    /// 0 counts as 1.
    ///
    /// It is asked once for each item, when it is pushed, outside the queue's lock. The bounds do
    /// not know it: they count items. With it goes a [`quantum`](Self::quantum).
    pub fn cost(mut self, cost: impl Fn(&T) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.cost = Some(Box::new(cost));
        self
    }

    /// How much a key gets out in one turn, for each unit of its weight: in items, or in what
    /// [`cost`](Self::cost) counts. Default 1.
    ///
    /// The smaller it is, the shorter are the turns, and the sooner a key that was idle has its
    /// own. It should not be less than what an item usually costs at most: what costs more is
    /// saved up for over several turns, which stays fair, but takes time in proportion to the
    /// number of keys.
    pub fn quantum(mut self, quantum: u32) -> Self {
        self.quantum = quantum;
        self
    }

    /// What the state has to know, and what the handles have to.
    pub(super) fn into_parts(self) -> (Limits, Rules<K, T>) {
        assert!(self.capacity > 0, "a queue needs room for at least one item");
        assert!(self.key_capacity > 0, "a key needs room for at least one item");
        assert!(self.quantum > 0, "a turn without a quantum never lets anything out");
        let Self { capacity, key_capacity, keep, quantum, rules } = self;
        (Limits { capacity, key_capacity, keep, quantum }, rules)
    }
}

impl<K, T> Rules<K, T> {
    pub(super) fn entry(&self, key: K, item: T) -> Entry<K, T> {
        let weight = self.weight.as_ref().map_or(1, |weight| weight(&key).max(1));
        let cost = self.cost.as_ref().map_or(1, |cost| cost(&item).max(1));
        Entry { key, weight, item, cost }
    }
}

impl<K, T> Default for FairQueueOptions<K, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, T> fmt::Debug for FairQueueOptions<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FairQueueOptions")
            .field("capacity", &self.capacity)
            .field("key_capacity", &self.key_capacity)
            .field("keep", &self.keep)
            .field("quantum", &self.quantum)
            .finish_non_exhaustive()
    }
}
