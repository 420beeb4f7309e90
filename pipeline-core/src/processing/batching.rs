//! The open batches of a batcher. Pure: callers pass the time in.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    mem,
    time::Duration,
};

use tokio::time::Instant;

use crate::deadline::Deadline;

/// The reason for which a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BatchTrigger {
    /// The batch was full.
    Size,
    /// The time of the batch was over.
    Timeout,
    /// A message in it said so, or the pipeline ended.
    Flush,
    /// The open batches had no space for another message, and it was the oldest.
    Space,
}

impl BatchTrigger {
    /// The trigger as the value of a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Timeout => "timeout",
            Self::Flush => "flush",
            Self::Space => "space",
        }
    }
}

/// When batches are full, and how long they may be open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) size: usize,
    pub(super) weight: usize,
    pub(super) within: Duration,
    /// How many items may wait in all open batches, and how much weight.
    pub(super) open: usize,
    pub(super) open_weight: usize,
}

/// The open batches, by their keys.
#[derive(Debug)]
pub(super) struct Batching<K, I> {
    bounds: Bounds,
    open: HashMap<K, OpenBatch<I>>,
    /// The open batches by age, the oldest first. As all have the same time, this is also the order in
    /// which their times end. A batch that was closed is removed later.
    ages: VecDeque<(u64, K)>,
    /// The number of the next batch.
    next: u64,
    /// How many items wait, and their weight.
    items: usize,
    weight: usize,
    /// The keys of batches that are closed at the end of the chunk.
    flushed: Vec<K>,
}

#[derive(Debug)]
struct OpenBatch<I> {
    number: u64,
    items: Vec<I>,
    weight: usize,
    due: Deadline,
    flushed: bool,
}

/// A batch that is to be handled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed<K, I> {
    pub(super) key: K,
    pub(super) items: Vec<I>,
    pub(super) trigger: BatchTrigger,
}

impl<K: Eq + Hash + Clone, I> Batching<K, I> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (open, ages, flushed) = Default::default();
        Self { bounds, open, ages, next: 0, items: 0, weight: 0, flushed }
    }

    /// The number of items in open batches.
    pub(super) fn len(&self) -> usize {
        self.items
    }

    /// Adds an item, and returns the batch that is full now, or those that had to make room.
    pub(super) fn add(
        &mut self,
        key: K,
        item: I,
        weight: usize,
        flush: bool,
        now: Instant,
    ) -> Vec<Closed<K, I>> {
        let batch = self.open.entry(key.clone()).or_insert_with(|| {
            let number = self.next;
            self.next += 1;
            self.ages.push_back((number, key.clone()));
            let due = Deadline::after(now, self.bounds.within);
            OpenBatch { number, items: Vec::new(), weight: 0, due, flushed: false }
        });
        batch.items.push(item);
        batch.weight = batch.weight.saturating_add(weight);
        self.items += 1;
        self.weight = self.weight.saturating_add(weight);
        if batch.items.len() >= self.bounds.size || batch.weight >= self.bounds.weight {
            return self.close(&key, BatchTrigger::Size).into_iter().collect();
        }
        if flush && !mem::replace(&mut batch.flushed, true) {
            self.flushed.push(key);
        }
        let mut closed = Vec::new();
        while self.items > self.bounds.open || self.weight > self.bounds.open_weight {
            closed.extend(self.close_oldest(BatchTrigger::Space));
        }
        closed
    }

    /// Closes the batches that messages of this chunk have flushed. Those that were full before are
    /// already closed.
    pub(super) fn end_of_chunk(&mut self) -> Vec<Closed<K, I>> {
        let flushed = mem::take(&mut self.flushed);
        let is_flushed = |batch: &OpenBatch<I>| batch.flushed;
        let flushed = flushed.iter().filter_map(|key| {
            // The batch that was flushed may be closed, and there may be another one of its key.
            self.open
                .get(key)
                .is_some_and(is_flushed)
                .then(|| self.close(key, BatchTrigger::Flush))?
        });
        flushed.collect()
    }

    /// When the time of the oldest batch is over.
    pub(super) fn next_due(&mut self) -> Deadline {
        self.oldest().map_or(Deadline::NEVER, |key| self.open[&key].due)
    }

    /// Closes a batch whose time is over.
    pub(super) fn close_due(&mut self, now: Instant) -> Option<Closed<K, I>> {
        let is_due = self.next_due().has_passed(now);
        if is_due { self.close_oldest(BatchTrigger::Timeout) } else { None }
    }

    /// Closes the oldest batch.
    pub(super) fn close_oldest(&mut self, trigger: BatchTrigger) -> Option<Closed<K, I>> {
        let oldest = self.oldest()?;
        self.close(&oldest, trigger)
    }

    /// The key of the oldest open batch.
    fn oldest(&mut self) -> Option<K> {
        while let Some((number, key)) = self.ages.front() {
            if self.open.get(key).is_some_and(|batch| batch.number == *number) {
                return Some(key.clone());
            }
            self.ages.pop_front();
        }
        None
    }

    fn close(&mut self, key: &K, trigger: BatchTrigger) -> Option<Closed<K, I>> {
        let OpenBatch { items, weight, .. } = self.open.remove(key)?;
        self.items -= items.len();
        self.weight = self.weight.saturating_sub(weight);
        // The ages of closed batches must not outgrow those of the open ones.
        if self.ages.len() > 2 * self.open.len() + 16 {
            let open = &self.open;
            self.ages
                .retain(|(number, key)| open.get(key).is_some_and(|batch| batch.number == *number));
        }
        Some(Closed { key: key.clone(), items, trigger })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const BOUNDS: Bounds = Bounds {
        size: 3,
        weight: usize::MAX,
        within: ms(100),
        open: usize::MAX,
        open_weight: usize::MAX,
    };

    fn closed<const N: usize>(
        key: char,
        items: [u32; N],
        trigger: BatchTrigger,
    ) -> Closed<char, u32> {
        Closed { key, items: items.to_vec(), trigger }
    }

    #[test]
    fn a_batch_is_closed_when_it_is_full() {
        let now = Instant::now();
        let mut batches = Batching::new(BOUNDS);
        assert_eq!(batches.add('a', 1, 1, false, now), []);
        assert_eq!(batches.add('b', 2, 1, false, now), []);
        assert_eq!(batches.add('a', 3, 1, false, now), []);
        let full = closed('a', [1, 3, 4], BatchTrigger::Size);
        assert_eq!(batches.add('a', 4, 1, false, now), [full]);
        assert_eq!(batches.len(), 1);
    }

    #[test]
    fn a_batch_is_closed_by_its_weight_with_the_item_that_reached_it() {
        let now = Instant::now();
        let mut batches = Batching::new(Bounds { size: 100, weight: 10, ..BOUNDS });
        let add = |weight| batches.add('a', weight, weight, false, now).pop();
        let closed = [4, 4, 4, 9, 1, 3].map(add).map(|closed| closed.map(|closed| closed.items));
        assert_eq!(closed, [None, None, Some(vec![4, 4, 4]), None, Some(vec![9, 1]), None]);
    }

    #[test]
    fn the_first_item_starts_the_time_of_a_batch() {
        let start = Instant::now();
        let mut batches = Batching::new(BOUNDS);
        batches.add('a', 1, 1, false, start);
        batches.add('b', 2, 1, false, start + ms(50));
        batches.add('a', 3, 1, false, start + ms(60));
        assert_eq!(batches.next_due().instant(), Some(start + ms(100)));
        assert_eq!(batches.close_due(start + ms(99)), None);
        let due = closed('a', [1, 3], BatchTrigger::Timeout);
        assert_eq!(batches.close_due(start + ms(100)), Some(due));
        assert_eq!(batches.close_due(start + ms(100)), None);
        assert_eq!(batches.next_due().instant(), Some(start + ms(150)));
    }

    #[test]
    fn a_flush_closes_its_batch_at_the_end_of_the_chunk() {
        let now = Instant::now();
        let mut batches = Batching::new(BOUNDS);
        batches.add('a', 1, 1, true, now);
        batches.add('b', 2, 1, false, now);
        batches.add('a', 3, 1, false, now);
        assert_eq!(batches.end_of_chunk(), [closed('a', [1, 3], BatchTrigger::Flush)]);
        assert_eq!(batches.end_of_chunk(), []);
    }

    #[test]
    fn a_full_batch_completes_its_flush() {
        let now = Instant::now();
        let mut batches = Batching::new(Bounds { size: 2, ..BOUNDS });
        batches.add('a', 1, 1, true, now);
        batches.add('a', 2, 1, false, now);
        batches.add('a', 3, 1, false, now);
        assert_eq!(batches.end_of_chunk(), []);
        assert_eq!(batches.len(), 1);
    }

    #[test]
    fn the_oldest_batch_makes_room_for_others() {
        let now = Instant::now();
        let mut batches = Batching::new(Bounds { open: 2, ..BOUNDS });
        batches.add('a', 1, 1, false, now);
        batches.add('b', 2, 1, false, now);
        let oldest = closed('a', [1], BatchTrigger::Space);
        assert_eq!(batches.add('c', 3, 1, false, now), [oldest]);
        assert_eq!(batches.len(), 2);
    }

    #[test]
    fn keys_that_never_come_back_leave_nothing() {
        let now = Instant::now();
        let mut batches = Batching::new(Bounds { size: 1, ..BOUNDS });
        for key in 0..10_000 {
            batches.add(key, (), 1, false, now);
        }
        assert!(batches.open.is_empty() && batches.ages.len() <= 16);
    }

    proptest! {
        /// Each item leaves once, in the order of its key, and no bound is exceeded.
        #[test]
        fn items_are_conserved_in_order(
            size in 1usize..5, open in 1usize..10,
            steps in prop::collection::vec((0u8..4, 1usize..4, any::<bool>(), 0u64..60), 0..80),
        ) {
            let mut now = Instant::now();
            let mut batches = Batching::new(Bounds { size, weight: 6, within: ms(100), open, open_weight: 9 });
            let mut left = Vec::new();
            let mut added = Vec::new();
            for (n, (key, weight, flush, wait)) in steps.into_iter().enumerate() {
                now += ms(wait);
                while let Some(due) = batches.close_due(now) {
                    left.push(due);
                }
                added.push((key, n));
                left.extend(batches.add(key, n, weight, flush, now));
                prop_assert!(batches.len() <= open && batches.weight <= 9);
                if wait % 3 == 0 {
                    left.extend(batches.end_of_chunk());
                }
            }
            while let Some(rest) = batches.close_oldest(BatchTrigger::Flush) {
                left.push(rest);
            }
            prop_assert_eq!(batches.len(), 0);
            prop_assert!(left.iter().all(|batch| (1..=size).contains(&batch.items.len())));
            for key in added.iter().map(|(key, _)| key).collect::<HashSet<_>>() {
                let of_key = added.iter().filter(|(other, _)| other == key).map(|(_, n)| *n);
                let batches = left.iter().filter(|batch| batch.key == *key);
                let out: Vec<_> = batches.flat_map(|batch| batch.items.clone()).collect();
                prop_assert_eq!(out, of_key.collect::<Vec<_>>());
            }
        }
    }
}
