//! What the server has delivered in a session and was told nothing of, and how much more it may deliver. Pure.
//!
//! The server delivers to a consumer as long as fewer of its items are not acknowledged than its prefetch says,
//! which is fixed when the consumer is opened. So a consumer that stays open has a prefetch of as many items
//! as may be in work: each acknowledgement lets the next item come.

use std::{collections::BTreeMap, mem::take, time::Duration};

use tokio::time::Instant;

/// How long more items are asked for than the prefetch allows before it is raised. Shorter, they may be those
/// whose outcomes are on their way.
const SHORT: Duration = Duration::from_millis(50);

/// The time in which a prefetch has to be of use, or it is lowered.
const USE: Duration = Duration::from_secs(10);

/// The items of a session, and the prefetch of its consumer.
#[derive(Debug)]
pub(super) struct Flow {
    /// The items that the server was told nothing of, by their tags, and whether they have no outcome.
    items: BTreeMap<u64, bool>,
    max_prefetch: u16,
    /// How many of them have no outcome.
    in_work: usize,
    /// Whether outcomes are being stored. More may wait behind them, and more seems to be in work then than is.
    pub(super) is_settling: bool,
    prefetch: usize,
    /// The tag after which the items are those of the open consumer, and how many of these there are.
    before: u64,
    of_consumer: usize,
    /// The tag of the last item.
    last: u64,
    /// Since when more items are asked for than the prefetch allows.
    short_since: Option<Instant>,
    /// The most items that were to be in work since this time.
    most: usize,
    since: Instant,
}

impl Flow {
    /// The flow of a session that has nothing yet.
    pub(super) fn new(max_prefetch: u16, now: Instant) -> Self {
        Self {
            items: BTreeMap::new(),
            max_prefetch,
            in_work: 0,
            is_settling: false,
            prefetch: 0,
            before: 0,
            of_consumer: 0,
            last: 0,
            short_since: None,
            most: 0,
            since: now,
        }
    }

    /// A consumer is opened. The one before it has delivered all that it will.
    pub(super) fn opened(&mut self, prefetch: u16, now: Instant) {
        self.prefetch = prefetch.into();
        self.before = self.last;
        self.of_consumer = 0;
        self.short_since = None;
        self.most = 0;
        self.since = now;
    }

    /// The server has delivered an item. The tags of a channel grow.
    pub(super) fn delivered(&mut self, tag: u64) {
        self.last = tag;
        self.of_consumer += 1;
        self.in_work += usize::from(self.items.insert(tag, true).is_none());
    }

    /// The outcome of an item is known.
    pub(super) fn has_outcome(&mut self, tag: u64) {
        if let Some(is_in_work) = self.items.get_mut(&tag) {
            self.in_work -= usize::from(take(is_in_work));
        }
    }

    /// An item is given back.
    pub(super) fn forget(&mut self, tag: u64) {
        self.has_outcome(tag);
        if self.items.remove(&tag).is_some() && tag > self.before {
            self.of_consumer -= 1;
        }
    }

    /// The acknowledgements of these items: the tag of each, and whether it is for all items before it too.
    pub(super) fn acknowledge(&mut self, mut tags: Vec<u64>) -> Vec<(u64, bool)> {
        tags.sort_unstable();
        let (mut acknowledgements, mut all_before) = (Vec::new(), None);
        for tag in tags {
            let is_first = self.items.first_key_value().is_some_and(|(first, _)| *first == tag);
            if is_first {
                all_before = Some((tag, true));
            } else if self.items.contains_key(&tag) {
                acknowledgements.push((tag, false));
            }
            self.forget(tag);
        }
        acknowledgements.extend(all_before);
        acknowledgements
    }

    /// Whether the server delivers nothing more before something is acknowledged.
    pub(super) fn is_full(&self) -> bool {
        self.of_consumer >= self.prefetch
    }

    /// Whether another consumer may be opened. Its prefetch does not count the items of those before it, so there
    /// are less than twice as many items as the largest prefetch.
    pub(super) fn may_open(&self) -> bool {
        self.items.len() < self.max_prefetch.into()
    }

    /// Whether a consumer that delivers nothing more before something is acknowledged is replaced: more items
    /// than its prefetch are asked for, and no acknowledgement is on its way.
    pub(super) fn is_too_small(&self, more: usize) -> bool {
        !self.is_settling && self.may_open() && usize::from(self.prefetch_for(more)) > self.prefetch
    }

    /// The prefetch with which so many more items can be in work.
    pub(super) fn prefetch_for(&self, more: usize) -> u16 {
        let asked = u16::try_from(self.in_work.saturating_add(more)).unwrap_or(u16::MAX);
        asked.clamp(1, self.max_prefetch)
    }

    /// So many more items are asked for. Returns another prefetch if that of the open consumer is too small
    /// or much too large.
    pub(super) fn better_prefetch(&mut self, more: usize, now: Instant) -> Option<u16> {
        if self.is_settling || !self.may_open() {
            return None;
        }
        let asked = self.prefetch_for(more);
        let needed = usize::from(asked);
        self.most = self.most.max(needed);
        if needed > self.prefetch {
            let since = *self.short_since.get_or_insert(now);
            let is_raised = needed / 2 >= self.prefetch || now.duration_since(since) >= SHORT;
            return is_raised.then_some(asked);
        }
        self.short_since = None;
        if now.duration_since(self.since) < USE {
            return None;
        }
        self.since = now;
        let most = take(&mut self.most);
        (most <= self.prefetch / 2).then(|| u16::try_from(most).unwrap_or(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn flow(prefetch: u16) -> (Flow, Instant) {
        let now = Instant::now();
        let mut flow = Flow::new(u16::MAX, now);
        flow.opened(prefetch, now);
        (flow, now)
    }

    fn done(flow: &mut Flow, tags: impl IntoIterator<Item = u64>) {
        let tags: Vec<_> = tags.into_iter().collect();
        tags.iter().for_each(|tag| flow.has_outcome(*tag));
        flow.acknowledge(tags);
    }

    #[test]
    fn a_run_from_the_oldest_item_on_is_acknowledged_at_once() {
        let (mut flow, _) = flow(10);
        (1..=8).for_each(|tag| flow.delivered(tag));
        assert_eq!(flow.acknowledge(vec![3, 1, 2, 5]), [(5, false), (3, true)]);
        assert_eq!(flow.acknowledge(vec![6, 7]), [(6, false), (7, false)]);
        assert_eq!(flow.acknowledge(vec![4]), [(4, true)]);
        assert!(flow.acknowledge(vec![4]).is_empty());
        flow.forget(8);
        assert!(flow.items.is_empty() && flow.of_consumer == 0);
    }

    #[test]
    fn a_consumer_is_full_until_one_of_its_own_items_is_acknowledged() {
        let (mut flow, now) = flow(2);
        (1..=2).for_each(|tag| flow.delivered(tag));
        assert!(flow.is_full());
        done(&mut flow, [1]);
        assert!(!flow.is_full());
        flow.opened(1, now);
        flow.delivered(3);
        assert!(flow.is_full());
        // It was delivered to the consumer before.
        done(&mut flow, [2]);
        assert!(flow.is_full());
        done(&mut flow, [3]);
        assert!(!flow.is_full());
    }

    #[test]
    fn the_prefetch_is_raised_when_it_is_too_small_and_not_for_outcomes_on_their_way() {
        let (mut flow, now) = flow(10);
        (1..=10).for_each(|tag| flow.delivered(tag));
        assert_eq!(flow.better_prefetch(5, now), None);
        assert_eq!(flow.better_prefetch(5, now + SHORT), Some(15));
        // They have an outcome now.
        (1..=5).for_each(|tag| flow.has_outcome(tag));
        assert_eq!(flow.better_prefetch(5, now + SHORT), None);
        (6..=7).for_each(|tag| flow.has_outcome(tag));
        assert_eq!(flow.better_prefetch(8, now + SHORT), None);
        assert_eq!(flow.better_prefetch(8, now + SHORT + SHORT / 2), None);
        // It is much too small.
        assert_eq!(flow.better_prefetch(17, now + SHORT), Some(20));
        flow.is_settling = true;
        assert_eq!(flow.better_prefetch(17, now + SHORT), None);
    }

    #[test]
    fn a_prefetch_that_was_not_needed_for_a_while_is_lowered() {
        let (mut flow, now) = flow(100);
        flow.delivered(1);
        assert_eq!(flow.better_prefetch(79, now), None);
        assert_eq!(flow.better_prefetch(3, now + USE), None);
        assert_eq!(flow.better_prefetch(5, now + USE), None);
        assert_eq!(flow.better_prefetch(3, now + USE * 2), Some(6));
        let most = usize::from(u16::MAX);
        assert_eq!(flow.better_prefetch(most, now), Some(u16::MAX));
        flow.opened(u16::MAX, now);
        assert_eq!(flow.better_prefetch(2 * most, now + USE), None);
    }

    #[test]
    fn the_largest_prefetch_is_kept_to() {
        let now = Instant::now();
        let mut flow = Flow::new(10, now);
        assert_eq!(flow.prefetch_for(100), 10);
        flow.opened(4, now);
        (1..=4).for_each(|tag| flow.delivered(tag));
        assert!(flow.is_too_small(1) && !flow.is_too_small(0));
        assert_eq!(flow.better_prefetch(100, now), Some(10));
        flow.is_settling = true;
        assert!(!flow.is_too_small(1));
        flow.is_settling = false;
        flow.opened(10, now);
        // Those of the consumer before are not in its prefetch.
        (5..=14).for_each(|tag| flow.delivered(tag));
        assert!(!flow.may_open() && !flow.is_too_small(100));
        done(&mut flow, 1..=5);
        assert!(flow.may_open());
        assert!(!flow.is_too_small(100), "it is as large as it may be");
    }

    proptest! {
        #[test]
        fn exactly_what_is_done_is_acknowledged(
            steps in proptest::collection::vec((any::<u64>(), 0u64..6, any::<bool>()), 0..200),
        ) {
            let (mut flow, now) = flow(5);
            let (mut server, mut next) = (BTreeSet::new(), 0);
            for (random, count, opens) in steps {
                for _ in 0..count {
                    next += 1;
                    flow.delivered(next);
                    server.insert(next);
                }
                if opens {
                    flow.opened(5, now);
                }
                let chosen = |tag: &u64| (random >> (tag % 64)) & 1 == 1;
                let chosen: Vec<_> = server.iter().copied().filter(chosen).collect();
                let expected: BTreeSet<_> =
                    server.iter().copied().filter(|tag| !chosen.contains(tag)).collect();
                chosen.iter().for_each(|tag| flow.has_outcome(*tag));
                for (tag, all_before) in flow.acknowledge(chosen) {
                    server.retain(|it| if all_before { *it > tag } else { *it != tag });
                }
                prop_assert_eq!(&server, &expected);
                prop_assert!(flow.items.keys().eq(server.iter()));
                prop_assert_eq!(flow.in_work, server.len());
                let own = server.iter().filter(|tag| **tag > flow.before).count();
                prop_assert_eq!(flow.of_consumer, own);
            }
        }
    }
}
