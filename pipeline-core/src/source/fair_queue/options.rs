//! The options of a fair queue.

use std::fmt;

use super::state::{Entry, Limits};
use crate::stage::BufferKeep;

/// The default capacity of a fair queue.
const DEFAULT_CAPACITY: usize = 10_000;

/// The default capacity of each key.
const DEFAULT_KEY_CAPACITY: usize = 100;

/// The options of a fair queue: its capacity, the share of each key, and what happens when it is
/// full.
///
/// ```
/// use pipeline_core::source::{FairQueueOptions, fair_queue};
///
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct User {
///     id: u64,
///     pays: bool,
/// }
///
/// // Users share the bandwidth; paying users get three times as much.
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

/// A user function that measures a value.
type Measure<V> = Box<dyn Fn(&V) -> u32 + Send + Sync>;

/// The functions for the share of a key and the cost of an item.
pub(super) struct Rules<K, T> {
    weight: Option<Measure<K>>,
    cost: Option<Measure<T>>,
}

impl<K, T> FairQueueOptions<K, T> {
    /// A capacity of 10,000 items, 100 per key; equal weights and costs; keeps the last items when
    /// more are offered.
    pub fn new() -> Self {
        Self {
            capacity: DEFAULT_CAPACITY,
            key_capacity: DEFAULT_KEY_CAPACITY,
            keep: BufferKeep::Last,
            quantum: 1,
            rules: Rules { weight: None, cost: None },
        }
    }

    /// The capacity of the queue for all keys together. Default 10,000.
    pub fn capacity(mut self, items: usize) -> Self {
        self.capacity = items;
        self
    }

    /// The capacity for each key. Default 100.
    ///
    /// One key can take up this much of the whole capacity, so it should be a small part of that.
    /// The delay of other keys' items does not depend on it.
    pub fn key_capacity(mut self, items: usize) -> Self {
        self.key_capacity = items;
        self
    }

    /// Which items [`FairQueue::offer`](super::FairQueue::offer) keeps when there is no room.
    /// Default [`BufferKeep::Last`].
    pub fn keep(mut self, keep: BufferKeep) -> Self {
        self.keep = keep;
        self
    }

    /// The weight of a key relative to the others: a key with weight 3 has three times the
    /// throughput of one with weight 1, while both have items. Default 1 for all; 0 counts as 1.
    ///
    /// It is called at every push, outside the queue's lock, and the last result applies.
    pub fn weight(mut self, weight: impl Fn(&K) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.weight = Some(Box::new(weight));
        self
    }

    /// The part of its key's share that an item takes, for example its size in bytes. Default 1 for
    /// all; 0 counts as 1.
    ///
    /// It is called once for each item, when it is pushed, outside the queue's lock. The capacities
    /// count items regardless of their cost. Set a matching [`quantum`](Self::quantum).
    pub fn cost(mut self, cost: impl Fn(&T) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.cost = Some(Box::new(cost));
        self
    }

    /// The share of a key in one turn, for each unit of its weight: in items, or in the units of
    /// [`cost`](Self::cost). Default 1.
    ///
    /// A smaller quantum makes turns shorter, so a key that was idle is served sooner. It should
    /// be at least the usual maximum cost of an item: a more expensive item is saved up for over
    /// several turns, which stays fair, but takes time in proportion to the number of keys.
    pub fn quantum(mut self, quantum: u32) -> Self {
        self.quantum = quantum;
        self
    }

    /// Splits the options into those for the state and those for the handles.
    pub(super) fn into_parts(self) -> (Limits, Rules<K, T>) {
        assert!(self.capacity > 0, "the capacity of a queue must be at least 1");
        assert!(self.key_capacity > 0, "the capacity of a key must be at least 1");
        assert!(self.quantum > 0, "the quantum of a fair queue must be at least 1");
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
