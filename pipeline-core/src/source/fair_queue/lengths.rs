//! The lanes by length. Pure.

use super::{
    lane::{LaneId, SPARE},
    links::Links,
};

/// The lanes by the number of their items. O(1), because lanes grow and shrink by one.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    links: Links,
    /// Indexed by lane; missing lanes are empty.
    lengths: Vec<usize>,
    /// Indexed by length: the first lane of the list with that length.
    lists: Vec<Option<LaneId>>,
    max: usize,
}

impl Lengths {
    /// Records the length of a lane.
    pub(super) fn set(&mut self, lane: LaneId, length: usize) {
        let old = self.of(lane);
        if length == old {
            return;
        }
        if old > 0 {
            self.links.remove(&mut self.lists[old], lane);
        }
        if self.lengths.len() <= lane {
            self.lengths.resize(lane + 1, 0);
        }
        self.lengths[lane] = length;
        if length > 0 {
            if self.lists.len() <= length {
                self.lists.resize(length + 1, None);
            }
            self.links.push(&mut self.lists[length], lane);
        }
        self.max = self.max.max(length);
        while self.max > 0 && self.lists[self.max].is_none() {
            self.max -= 1;
        }
    }

    pub(super) fn of(&self, lane: LaneId) -> usize {
        self.lengths.get(lane).copied().unwrap_or(0)
    }

    /// The length of the longest lane.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The lane with the most items; of several, the one that has had that length for the longest
    /// time.
    pub(super) fn longest(&self) -> Option<LaneId> {
        self.lists.get(self.max).copied().flatten()
    }

    /// Removes all lanes.
    pub(super) fn clear(&mut self) {
        self.links.clear();
        self.lengths.clear();
        self.lengths.shrink_to(SPARE);
        self.lists.clear();
        self.lists.shrink_to(SPARE);
        self.max = 0;
    }
}

#[cfg(test)]
impl Lengths {
    /// The number of lanes and lengths that memory is allocated for.
    pub(super) fn room(&self) -> usize {
        self.lengths.capacity().max(self.lists.capacity()).max(self.links.room())
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
        lengths.clear();
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
