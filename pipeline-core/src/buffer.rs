//! Events that were emitted and that nobody can take yet. Pure.

use std::collections::VecDeque;

/// Which events a full buffer keeps.
///
/// ```
/// use pipeline_core::{BufferKeep, QueueOptions};
///
/// // Of prices, only the newest matter.
/// let prices = QueueOptions::new().capacity(100).keep(BufferKeep::Last);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferKeep {
    /// The ones it has: what comes in is discarded.
    First,
    /// The newest: the oldest one makes room. GenStage's default, and ours.
    #[default]
    Last,
}

/// A bounded first-in-first-out store with a policy for when it is full.
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    events: VecDeque<E>,
    limit: usize,
    keep: BufferKeep,
}

impl<E> Buffer<E> {
    pub(crate) fn new(limit: usize, keep: BufferKeep) -> Self {
        Self { events: VecDeque::new(), limit, keep }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events, oldest first, for a dispatcher to take from the front.
    pub(crate) fn events(&mut self) -> &mut VecDeque<E> {
        &mut self.events
    }

    /// Appends events one by one and empties `incoming`. Returns how many were discarded.
    pub(crate) fn store(&mut self, incoming: &mut VecDeque<E>) -> usize {
        let excess = (self.events.len() + incoming.len()).saturating_sub(self.limit);
        match self.keep {
            BufferKeep::First => incoming.truncate(incoming.len() - excess),
            BufferKeep::Last => {
                let old = excess.min(self.events.len());
                self.events.drain(..old);
                incoming.drain(..excess - old);
            }
        }
        self.events.append(incoming);
        excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(limit: usize, keep: BufferKeep, batches: &[&[u32]]) -> (Vec<u32>, Vec<usize>) {
        let mut buffer = Buffer::new(limit, keep);
        let store = |batch: &&[u32]| buffer.store(&mut batch.iter().copied().collect());
        let discarded = batches.iter().map(store).collect();
        (buffer.events.into(), discarded)
    }

    #[test]
    fn keeping_the_last_drops_the_oldest() {
        let (kept, discarded) = stored(5, BufferKeep::Last, &[&[1, 2, 3, 4, 5], &[6, 7, 8]]);
        assert_eq!((kept, discarded), (vec![4, 5, 6, 7, 8], vec![0, 3]));
    }

    #[test]
    fn keeping_the_first_drops_what_comes_in() {
        let (kept, discarded) = stored(5, BufferKeep::First, &[&[1, 2, 3, 4, 5], &[6, 7, 8]]);
        assert_eq!((kept, discarded), (vec![1, 2, 3, 4, 5], vec![0, 3]));
    }

    #[test]
    fn a_batch_larger_than_the_buffer_keeps_its_tail_or_its_head() {
        let batch: Vec<u32> = (1..=10).collect();
        assert_eq!(stored(3, BufferKeep::Last, &[&batch]), (vec![8, 9, 10], vec![7]));
        assert_eq!(stored(3, BufferKeep::First, &[&batch]), (vec![1, 2, 3], vec![7]));
    }

    #[test]
    fn a_buffer_without_room_keeps_nothing() {
        assert_eq!(stored(0, BufferKeep::Last, &[&[1, 2]]), (vec![], vec![2]));
        assert_eq!(stored(0, BufferKeep::First, &[&[1, 2]]), (vec![], vec![2]));
    }

    proptest! {
        /// The bulk arithmetic is the same as taking the events one at a time.
        #[test]
        fn storing_a_batch_equals_storing_its_events_one_by_one(
            limit in 0usize..8, last: bool, batches in prop::collection::vec(prop::collection::vec(0u32..99, 0..12), 0..8)
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut expected = VecDeque::new();
            let mut dropped = 0;
            for &event in batches.iter().flatten() {
                expected.push_back(event);
                if expected.len() > limit {
                    dropped += 1;
                    if last { expected.pop_front(); } else { expected.pop_back(); }
                }
            }
            let slices: Vec<&[u32]> = batches.iter().map(Vec::as_slice).collect();
            let (kept, discarded) = stored(limit, keep, &slices);
            prop_assert_eq!(kept, Vec::from(expected));
            prop_assert_eq!(discarded.iter().sum::<usize>(), dropped);
        }
    }
}
