//! Circular lists of lanes in one table. Pure.

use super::lane::{LaneId, SPARE};

/// The predecessor and successor of each lane. A lane is in one list at most; a list is identified
/// by its first lane.
///
/// So removing a lane from any position is O(1), and moving it to another list does not allocate.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: LaneId,
    after: LaneId,
}

impl Links {
    pub(super) fn after(&self, lane: LaneId) -> LaneId {
        self.links[lane].after
    }

    /// Appends a lane to a list.
    pub(super) fn push(&mut self, first: &mut Option<LaneId>, lane: LaneId) {
        if self.links.len() <= lane {
            self.links.resize(lane + 1, Link::default());
        }
        let after = *first.get_or_insert(lane);
        let before = if after == lane { lane } else { self.links[after].before };
        self.links[lane] = Link { before, after };
        self.links[before].after = lane;
        self.links[after].before = lane;
    }

    /// Removes a lane from its list.
    pub(super) fn remove(&mut self, first: &mut Option<LaneId>, lane: LaneId) {
        let Link { before, after } = self.links[lane];
        self.links[before].after = after;
        self.links[after].before = before;
        if *first == Some(lane) {
            *first = (after != lane).then_some(after);
        }
    }

    /// Removes all lists.
    pub(super) fn clear(&mut self) {
        self.links.clear();
        self.links.shrink_to(SPARE);
    }
}

#[cfg(test)]
impl Links {
    /// The number of lanes that memory is allocated for.
    pub(super) fn room(&self) -> usize {
        self.links.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(links: &Links, first: Option<LaneId>) -> Vec<LaneId> {
        let mut lanes: Vec<LaneId> = first.into_iter().collect();
        while let Some(&last) = lanes.last().filter(|last| Some(links.after(**last)) != first) {
            lanes.push(links.after(last));
        }
        lanes
    }

    proptest! {
        #[test]
        fn two_lists_in_one_table_are_as_two_vectors(
            steps in prop::collection::vec((0usize..2, 0usize..8), 0..60)
        ) {
            let mut links = Links::default();
            let mut firsts = [None; 2];
            let mut model: [Vec<LaneId>; 2] = [vec![], vec![]];
            for (to, lane) in steps {
                for (first, model) in firsts.iter_mut().zip(&mut model) {
                    if model.contains(&lane) {
                        links.remove(first, lane);
                        model.retain(|other| *other != lane);
                    }
                }
                links.push(&mut firsts[to], lane);
                model[to].push(lane);
                prop_assert_eq!(list(&links, firsts[0]), &*model[0]);
                prop_assert_eq!(list(&links, firsts[1]), &*model[1]);
            }
        }
    }
}
