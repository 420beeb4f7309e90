//! The queue of one key. Pure.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    ops::{Index, IndexMut},
};

use slab::Slab;

use crate::source::wait_list::WaitList;

/// The index of a lane in all tables. It is reused for another key once the lane is closed.
pub(super) type LaneId = usize;

/// How many entries an empty table keeps allocated, so that a queue with little load does not
/// allocate for each item.
pub(super) const SPARE: usize = 64;

/// The lanes of all keys that hold items or have waiting pushers. Other keys take no memory.
#[derive(Debug)]
pub(super) struct Lanes<K, T> {
    ids: HashMap<K, LaneId>,
    lanes: Slab<Lane<K, T>>,
}

/// One key's own queue.
#[derive(Debug)]
pub(super) struct Lane<K, T> {
    key: K,
    pub(super) weight: u32,
    /// Oldest first.
    pub(super) items: VecDeque<Parcel<T>>,
    pub(super) wait_list: WaitList<Parcel<T>>,
}

/// An item and its cost.
#[derive(Debug)]
pub(super) struct Parcel<T> {
    pub(super) item: T,
    pub(super) cost: u32,
}

impl<K, T> Lane<K, T> {
    /// Whether the lane can be dropped without losing anything.
    pub(super) fn is_idle(&self) -> bool {
        self.items.is_empty() && self.wait_list.is_empty()
    }

    /// The cost of the item that leaves next.
    pub(super) fn cost(&self) -> u32 {
        let next = self.items.front().or_else(|| self.wait_list.first());
        next.map_or(1, |parcel| parcel.cost)
    }
}

impl<K, T> Lanes<K, T> {
    pub(super) fn new() -> Self {
        Self { ids: HashMap::new(), lanes: Slab::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub(super) fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane<K, T>> {
        self.lanes.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LaneId, &Lane<K, T>)> {
        self.lanes.iter()
    }
}

impl<K: Hash + Eq + Clone, T> Lanes<K, T> {
    pub(super) fn find(&self, key: &K) -> Option<&Lane<K, T>> {
        self.ids.get(key).and_then(|id| self.lanes.get(*id))
    }

    /// The lane of a key. Creates it if necessary.
    pub(super) fn open(&mut self, key: K, weight: u32) -> LaneId {
        match self.ids.entry(key) {
            Entry::Occupied(entry) => {
                let id = *entry.get();
                self.lanes[id].weight = weight;
                id
            }
            Entry::Vacant(entry) => {
                let key = entry.key().clone();
                let (items, wait_list) = (VecDeque::new(), WaitList::new());
                *entry.insert(self.lanes.insert(Lane { key, weight, items, wait_list }))
            }
        }
    }

    /// Removes a key.
    pub(super) fn close(&mut self, id: LaneId) {
        let lane = self.lanes.remove(id);
        self.ids.remove(&lane.key);
    }

    /// Releases the memory of many lanes when none is left.
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.ids.shrink_to(SPARE);
        self.lanes.clear();
        if self.lanes.capacity() > SPARE {
            self.lanes = Slab::new();
        }
    }
}

impl<K, T> Index<LaneId> for Lanes<K, T> {
    type Output = Lane<K, T>;

    fn index(&self, id: LaneId) -> &Lane<K, T> {
        &self.lanes[id]
    }
}

impl<K, T> IndexMut<LaneId> for Lanes<K, T> {
    fn index_mut(&mut self, id: LaneId) -> &mut Lane<K, T> {
        &mut self.lanes[id]
    }
}

#[cfg(test)]
impl<K, T> Lanes<K, T> {
    /// The number of lanes that memory is allocated for.
    pub(super) fn room(&self) -> usize {
        self.ids.capacity().max(self.lanes.capacity())
    }
}
