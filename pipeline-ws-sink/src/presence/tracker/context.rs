//! The seen changes of a replica: its causal context. Pure.

use std::collections::BTreeMap;

/// The maximum number of gaps. A change that would need another gap is not accepted, and is
/// requested later.
const MAX_GAPS: usize = 1_000;

/// The seen changes of a replica: all up to one, the base, and some beyond it, the cloud, which
/// becomes part of the base when the gaps close.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CausalContext {
    base: u64,
    /// Intervals of changes: the change before each, and its last. They neither touch nor overlap.
    cloud: BTreeMap<u64, u64>,
}

impl CausalContext {
    /// The last change before the first gap.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The number of intervals beyond the first gap.
    #[cfg(test)]
    pub(super) fn gaps(&self) -> usize {
        self.cloud.len()
    }

    pub(super) fn contains(&self, clock: u64) -> bool {
        let within = |(_, upto): (&u64, &u64)| clock <= *upto;
        clock <= self.base || self.cloud.range(..clock).next_back().is_some_and(within)
    }

    /// Whether there is room for this interval.
    pub(super) fn has_room(&self, after: u64) -> bool {
        after <= self.base || self.cloud.len() < MAX_GAPS
    }

    /// Adds the changes after the first number up to the second.
    pub(super) fn insert(&mut self, after: u64, upto: u64) {
        if after >= upto {
            return;
        }
        let (mut after, mut upto) = (after, upto);
        // Merges all intervals that touch the new one.
        while let Some((&other, &end)) = self.cloud.range(..=upto).next_back() {
            if end < after {
                break;
            }
            self.cloud.remove(&other);
            (after, upto) = (after.min(other), upto.max(end));
        }
        if after <= self.base {
            self.base = self.base.max(upto);
        } else {
            self.cloud.insert(after, upto);
        }
        // The base may have passed the remaining intervals.
        while let Some((&other, &end)) = self.cloud.first_key_value() {
            if other > self.base {
                break;
            }
            self.cloud.remove(&other);
            self.base = self.base.max(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cloud_becomes_part_of_the_base_when_the_gaps_close() {
        let mut context = CausalContext::default();
        context.insert(3, 5);
        context.insert(7, 8);
        assert_eq!((context.base(), context.gaps()), (0, 2));
        context.insert(5, 7);
        assert_eq!((context.base(), context.gaps()), (0, 1));
        context.insert(0, 3);
        assert_eq!((context.base(), context.gaps()), (8, 0));
    }

    proptest! {
        #[test]
        fn exactly_the_inserted_changes_are_seen_in_any_order(
            rows in prop::collection::vec((0u64..30, 0u64..6), 0..20)
        ) {
            let (mut context, mut model) = (CausalContext::default(), BTreeSet::new());
            for (after, length) in rows {
                context.insert(after, after + length);
                model.extend(after + 1..=after + length);
            }
            for clock in 1..40 {
                prop_assert_eq!(context.contains(clock), model.contains(&clock), "{}", clock);
            }
            let base = (1..).take_while(|clock| model.contains(clock)).count();
            prop_assert_eq!(context.base(), base as u64);
            let begin = |clock: &&u64| **clock > context.base() && !model.contains(&(**clock - 1));
            prop_assert_eq!(context.gaps(), model.iter().filter(begin).count(), "compact");
        }
    }
}
