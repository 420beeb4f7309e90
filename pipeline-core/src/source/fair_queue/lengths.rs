//! The lanes by length. Pure.

use std::{cmp::Reverse, collections::BTreeSet};

use super::lane::{LaneId, SPARE};

/// A length, and when a lane got it: of equal lengths, the older one is greater.
type Rank = (usize, Reverse<u64>);

/// The lanes by the number of their items.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    /// The lanes that are not empty.
    sorted: BTreeSet<(Rank, LaneId)>,
    /// Indexed by lane; missing lanes are empty.
    ranks: Vec<Rank>,
    changes: u64,
}

impl Lengths {
    /// Records the length of a lane.
    pub(super) fn set(&mut self, lane: LaneId, length: usize) {
        if length == self.of(lane) {
            return;
        }
        if self.ranks.len() <= lane {
            self.ranks.resize(lane + 1, Rank::default());
        }
        self.changes += 1;
        self.sorted.remove(&(self.ranks[lane], lane));
        self.ranks[lane] = (length, Reverse(self.changes));
        if length > 0 {
            self.sorted.insert((self.ranks[lane], lane));
        }
    }

    pub(super) fn of(&self, lane: LaneId) -> usize {
        self.ranks.get(lane).map_or(0, |(length, _)| *length)
    }

    /// The length of the longest lane.
    pub(super) fn max(&self) -> usize {
        self.sorted.last().map_or(0, |((length, _), _)| *length)
    }

    /// The lane with the most items; of several, the one that has had that length for the longest
    /// time.
    pub(super) fn longest(&self) -> Option<LaneId> {
        self.sorted.last().map(|(_, lane)| *lane)
    }

    /// Frees the memory of many lanes once all are empty. The set keeps the memory of a few.
    pub(super) fn shrink(&mut self) {
        debug_assert!(self.sorted.is_empty(), "lanes have items");
        self.ranks.clear();
        self.ranks.shrink_to(SPARE);
    }
}

#[cfg(test)]
impl Lengths {
    /// The number of lanes that memory is allocated for.
    pub(super) fn room(&self) -> usize {
        self.ranks.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn among_equal_lengths_the_oldest_is_the_longest() {
        let mut lengths = Lengths::default();
        assert_eq!(lengths.longest(), None);
        lengths.set(5, 1);
        lengths.set(2, 1);
        assert_eq!(lengths.longest(), Some(5));
        lengths.set(2, 2);
        assert_eq!(lengths.longest(), Some(2));
        lengths.set(2, 1);
        assert_eq!(lengths.longest(), Some(5));
        lengths.set(5, 0);
        lengths.set(2, 0);
        lengths.shrink();
        assert_eq!((lengths.longest(), lengths.of(5)), (None, 0));
    }

    proptest! {
        #[test]
        fn the_longest_is_the_longest_whatever_grows_and_shrinks(
            steps in prop::collection::vec((0usize..6, 0usize..6), 0..80)
        ) {
            let mut lengths = Lengths::default();
            let mut model = [0; 6];
            for (lane, length) in steps {
                lengths.set(lane, length);
                model[lane] = length;
                let max = model.into_iter().max().unwrap_or(0);
                prop_assert_eq!(lengths.max(), max);
                prop_assert_eq!(lengths.longest().map_or(0, |lane| model[lane]), max);
                prop_assert!((0..6).all(|lane| lengths.of(lane) == model[lane]));
            }
        }
    }
}
