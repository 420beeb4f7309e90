//! The items of a session that are not acknowledged, and how many more the server may deliver. Pure.
//!
//! The server delivers to a consumer as long as fewer of its items are not acknowledged than its prefetch says,
//! which is fixed when the consumer is opened. So a consumer that stays open has a prefetch of as many items
//! as may be in work: each acknowledgement lets the next item come.
//!
//! A server of RabbitMQ has no limit of bytes: it refuses a `prefetch_size`. So the prefetch is as large as the
//! items that came last were small, and it is lowered when they become larger.

use std::{
    collections::BTreeMap,
    mem::{replace, take},
    time::Duration,
};

use tokio::time::Instant;

use crate::broker::Ahead;

/// How long more items are asked for than may be delivered before the consumer is replaced, so that demand which
/// grows in small steps does not replace it at each of them.
const SHORT: Duration = Duration::from_millis(50);

/// The time in which a prefetch has to be of use, or it is lowered.
const USE: Duration = Duration::from_secs(10);

/// How many items there may be for a moment beyond those that are asked for, when a consumer is replaced.
const BEYOND: usize = 100;

/// The size of an item before any has arrived, in bytes.
pub(super) const UNKNOWN: usize = 64 * 1024;

/// The part of a new size in the mean.
const WEIGHT: usize = 32;

/// The most that a session has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) items: u16,
    pub(super) bytes: usize,
}

/// The items that a source needs to have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// How many are to be in work.
    pub(super) in_work: usize,
    /// How many it has besides that cannot be acknowledged now, because the server refuses their outcomes.
    pub(super) set_aside: usize,
}

/// An item that is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Unacknowledged {
    bytes: usize,
    /// Whether no fetch has returned it.
    is_ahead: bool,
}

/// The items of a session, and the prefetch of its consumer.
#[derive(Debug)]
pub(super) struct Flow {
    /// The items that are not acknowledged, by their tags.
    items: BTreeMap<u64, Unacknowledged>,
    bytes: usize,
    ahead: Ahead,
    limits: Limits,
    /// The mean size of the latest items.
    mean: usize,
    prefetch: usize,
    /// The tag after which the items are those of the open consumer, and how many of these there are.
    before: u64,
    of_consumer: usize,
    /// The tag of the last item.
    last: u64,
    /// Since when more items are asked for than may be delivered.
    short_since: Option<Instant>,
    /// The most items that the consumer was to have at one time since then.
    most: usize,
    since: Instant,
    /// The least prefetch of the next consumer.
    least: usize,
}

impl Flow {
    /// The flow of a session that has nothing yet.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            items: BTreeMap::new(),
            bytes: 0,
            ahead: Ahead::default(),
            limits,
            mean: UNKNOWN,
            prefetch: 0,
            before: 0,
            of_consumer: 0,
            last: 0,
            short_since: None,
            most: 0,
            since: now,
            least: 0,
        }
    }

    /// Items of this mean size are expected.
    pub(super) fn expecting(mut self, mean: usize) -> Self {
        self.mean = mean;
        self
    }

    /// The mean size of the latest items.
    pub(super) fn mean(&self) -> usize {
        self.mean
    }

    /// Opens a consumer that delivers the needed items, if the limits allow it. Returns its prefetch. The consumer
    /// before it has delivered all that it will, and those of its items that are not acknowledged count.
    pub(super) fn open(&mut self, need: Need, now: Instant) -> u16 {
        let in_work = need.in_work.max(take(&mut self.least));
        let set_aside = need.set_aside.min(self.items.len());
        let target = self.target(Need { in_work, set_aside });
        let most_beyond = BEYOND.min(self.limits.items.into());
        // Those that are set aside are of earlier consumers, and take no place of this one.
        let beyond = (self.items.len() - set_aside).saturating_sub(most_beyond);
        let prefetch = target.saturating_sub(set_aside).saturating_sub(beyond);
        let prefetch = prefetch.min(self.room()).max(1);
        self.open_with(u16::try_from(prefetch).unwrap_or(u16::MAX), now)
    }

    /// Opens a consumer with this prefetch.
    pub(super) fn open_with(&mut self, prefetch: u16, now: Instant) -> u16 {
        self.prefetch = prefetch.into();
        self.before = self.last;
        self.of_consumer = 0;
        self.short_since = None;
        self.most = 0;
        self.since = now;
        prefetch
    }

    /// The server has delivered an item of so many bytes. The tags of a channel grow.
    pub(super) fn delivered(&mut self, tag: u64, bytes: usize) {
        let item = Unacknowledged { bytes, is_ahead: true };
        if self.items.insert(tag, item).is_some() {
            return;
        }
        self.last = tag;
        self.of_consumer += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.ahead.items += 1;
        self.ahead.bytes = self.ahead.bytes.saturating_add(bytes);
        if bytes > self.mean {
            self.mean = self.mean.saturating_add((bytes - self.mean).div_ceil(WEIGHT));
        } else {
            self.mean -= (self.mean - bytes) / WEIGHT;
        }
    }

    /// A fetch returns an item.
    pub(super) fn returned(&mut self, tag: u64) {
        let Some(item) = self.items.get_mut(&tag) else { return };
        if replace(&mut item.is_ahead, false) {
            self.ahead.items -= 1;
            self.ahead.bytes = self.ahead.bytes.saturating_sub(item.bytes);
        }
    }

    /// The items that no fetch has returned.
    pub(super) fn ahead(&self) -> Ahead {
        self.ahead
    }

    /// How many items fetches have returned that are not acknowledged.
    pub(super) fn held(&self) -> usize {
        self.items.len().saturating_sub(self.ahead.items)
    }

    /// An item is given back.
    pub(super) fn forget(&mut self, tag: u64) {
        self.returned(tag);
        let Some(item) = self.items.remove(&tag) else { return };
        self.bytes = self.bytes.saturating_sub(item.bytes);
        self.of_consumer -= usize::from(tag > self.before);
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

    /// Whether another consumer may be opened.
    pub(super) fn may_open(&self) -> bool {
        let has_room = self.items.is_empty() || self.room() > 0;
        has_room && self.items.len() < self.limits.items.into()
    }

    /// Whether the items have become so large that the consumer has to deliver fewer.
    pub(super) fn is_too_large(&self) -> bool {
        let most = self.most_by_size();
        let limit = self.limits.bytes;
        self.prefetch > 1
            && (self.prefetch > most + most / 4 || self.bytes > limit.saturating_add(limit / 4))
    }

    /// Whether the consumer is replaced by one with another prefetch, because its own is too small for the needed
    /// items, or much too large.
    pub(super) fn replaces(&mut self, need: Need, now: Instant) -> bool {
        let target = self.target(need);
        let of_others = self.items.len() - self.of_consumer;
        self.most = self.most.max(target.saturating_sub(need.set_aside.min(of_others)));
        if self.is_too_large() {
            return true;
        }
        // No consumer gets more than there is room for.
        let target = target.min(self.items.len().saturating_add(self.room()));
        // The items of the consumers before it count, for as long as they are there.
        let possible = self.prefetch.saturating_add(of_others);
        if target > possible && self.may_open() {
            let since = *self.short_since.get_or_insert(now);
            return target / 2 >= possible || now.duration_since(since) >= SHORT;
        }
        self.short_since = None;
        if now.duration_since(self.since) < USE {
            return false;
        }
        self.since = now;
        let most = take(&mut self.most);
        let is_lowered = most <= self.prefetch / 2;
        if is_lowered {
            self.least = most;
        }
        is_lowered
    }

    /// How many items there are when all that are needed are there, as far as the limits allow it.
    fn target(&self, Need { in_work, set_aside }: Need) -> usize {
        let all = in_work.min(self.most_by_size()).saturating_add(set_aside);
        all.min(self.limits.items.into()).max(1)
    }

    /// How many items of the mean size there may be.
    fn most_by_size(&self) -> usize {
        (self.limits.bytes / self.mean.max(1)).max(1)
    }

    /// How many more items of the mean size there may be.
    fn room(&self) -> usize {
        self.limits.bytes.saturating_sub(self.bytes) / self.mean.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;
    const LIMITS: Limits = Limits { items: u16::MAX, bytes: 256 * MIB };

    /// A flow with an open consumer.
    fn flow(prefetch: u16) -> (Flow, Instant) {
        let now = Instant::now();
        let mut flow = Flow::new(LIMITS, now);
        flow.open_with(prefetch, now);
        (flow, now)
    }

    /// So many items are to be in work, and none is set aside.
    fn work(in_work: usize) -> Need {
        Need { in_work, ..Need::default() }
    }

    fn deliver(flow: &mut Flow, tags: impl IntoIterator<Item = u64>, bytes: usize) {
        tags.into_iter().for_each(|tag| flow.delivered(tag, bytes));
    }

    fn done(flow: &mut Flow, tags: impl IntoIterator<Item = u64>) {
        flow.acknowledge(tags.into_iter().collect());
    }

    #[test]
    fn a_run_from_the_oldest_item_on_is_acknowledged_at_once() {
        let (mut flow, _) = flow(10);
        deliver(&mut flow, 1..=8, 1);
        assert_eq!(flow.acknowledge(vec![3, 1, 2, 5]), [(5, false), (3, true)]);
        assert_eq!(flow.acknowledge(vec![6, 7]), [(6, false), (7, false)]);
        assert_eq!(flow.acknowledge(vec![4]), [(4, true)]);
        assert!(flow.acknowledge(vec![4]).is_empty());
        flow.forget(8);
        assert!(flow.items.is_empty() && flow.of_consumer == 0 && flow.bytes == 0);
    }

    #[test]
    fn a_consumer_is_full_until_one_of_its_own_items_is_acknowledged() {
        let (mut flow, now) = flow(2);
        deliver(&mut flow, 1..=2, 1);
        assert!(flow.is_full());
        done(&mut flow, [1]);
        assert!(!flow.is_full());
        flow.open_with(1, now);
        flow.delivered(3, 1);
        assert!(flow.is_full());
        // It was delivered to the consumer before.
        done(&mut flow, [2]);
        assert!(flow.is_full());
        done(&mut flow, [3]);
        assert!(!flow.is_full());
    }

    #[test]
    fn items_are_ahead_until_a_fetch_returns_them_or_they_are_given_back() {
        let (mut flow, _) = flow(10);
        deliver(&mut flow, 1..=4, 100);
        assert_eq!((flow.ahead(), flow.held()), (Ahead { items: 4, bytes: 400 }, 0));
        flow.returned(1);
        flow.returned(1);
        flow.forget(4);
        assert_eq!((flow.ahead(), flow.held()), (Ahead { items: 2, bytes: 200 }, 1));
        done(&mut flow, [1]);
        assert_eq!(
            (flow.ahead(), flow.held(), flow.bytes),
            (Ahead { items: 2, bytes: 200 }, 0, 200)
        );
    }

    #[test]
    fn items_that_are_done_and_not_acknowledged_do_not_raise_the_prefetch() {
        let (mut flow, now) = flow(10);
        deliver(&mut flow, 1..=10, 1);
        // Six of them are done, and six more are asked for.
        assert!(!flow.replaces(work(4 + 6), now));
        assert!(!flow.replaces(work(4 + 6), now + USE));
    }

    #[test]
    fn the_prefetch_is_raised_when_more_is_asked_for_although_items_are_acknowledged_all_the_time()
    {
        let (mut flow, now) = flow(10);
        deliver(&mut flow, 1..=10, 1);
        assert!(!flow.replaces(work(15), now));
        for n in 1..=5 {
            done(&mut flow, [n]);
            flow.delivered(10 + n, 1);
            assert!(!flow.replaces(work(15), now + SHORT / 2));
        }
        assert!(flow.replaces(work(15), now + SHORT));
        // It is much too small.
        let (mut flow, now) = self::flow(10);
        assert!(!flow.replaces(work(19), now) && flow.replaces(work(20), now));
        // No more is asked for.
        assert!(!flow.replaces(work(10), now + SHORT) && !flow.replaces(work(11), now + SHORT));
    }

    #[test]
    fn a_raise_leaves_no_more_items_than_are_asked_for_and_a_hundred() {
        let (mut flow, now) = flow(1000);
        deliver(&mut flow, 1..=1000, 1);
        assert!(flow.replaces(work(2000), now));
        assert_eq!(flow.open(work(2000), now), 1100);
        deliver(&mut flow, 1001..=2100, 1);
        assert!(!flow.replaces(work(2000), now + SHORT));
        // When the items of the consumer before are gone, there are too few.
        done(&mut flow, 1..=1000);
        assert!(
            !flow.replaces(work(2000), now + SHORT) && flow.replaces(work(2000), now + 2 * SHORT)
        );
        let (mut flow, now) = self::flow(50);
        deliver(&mut flow, 1..=50, 1);
        assert!(flow.replaces(work(100), now));
        assert_eq!(flow.open(work(100), now), 100);
        deliver(&mut flow, 51..=150, 1);
        done(&mut flow, 1..=50);
        assert!(
            !flow.replaces(work(100), now + SHORT) && !flow.replaces(work(100), now + 2 * SHORT)
        );
    }

    #[test]
    fn a_prefetch_that_was_not_needed_for_a_while_is_lowered() {
        let (mut flow, now) = flow(100);
        assert!(!flow.replaces(work(80), now));
        assert!(!flow.replaces(work(4), now + USE));
        assert!(!flow.replaces(work(6), now + USE));
        assert!(flow.replaces(work(4), now + USE * 2));
        assert_eq!(flow.open(work(1), now + USE * 2), 6);
    }

    #[test]
    fn the_largest_prefetch_is_kept_to() {
        let now = Instant::now();
        let mut flow = Flow::new(Limits { items: 10, ..LIMITS }, now);
        assert_eq!(flow.open(work(4), now), 4);
        deliver(&mut flow, 1..=4, 1);
        assert!(flow.replaces(work(100), now));
        assert_eq!(flow.open(work(100), now), 10);
        deliver(&mut flow, 5..=14, 1);
        assert!(!flow.may_open() && !flow.replaces(work(100), now + SHORT));
        done(&mut flow, 1..=5);
        assert!(flow.may_open());
        assert!(!flow.replaces(work(100), now + 2 * SHORT), "it is as large as it may be");
        let now = Instant::now();
        assert_eq!(
            Flow::new(LIMITS, now).open(work(usize::MAX), now),
            4096,
            "of a size that is not known"
        );
    }

    #[test]
    fn the_prefetch_falls_when_items_are_large_and_rises_when_they_are_small_again() {
        let now = Instant::now();
        let mut flow = Flow::new(Limits { items: 1000, bytes: 10 * MIB }, now);
        assert_eq!(flow.open(work(1000), now), 160);
        let mut tag = 0;
        let mut pass = |flow: &mut Flow, count: u64, bytes| {
            for _ in 0..count {
                tag += 1;
                flow.delivered(tag, bytes);
                done(flow, [tag]);
            }
        };
        pass(&mut flow, 500, 1000);
        assert!(flow.replaces(work(1000), now + SHORT));
        assert_eq!(flow.open(work(1000), now), 1000);
        assert!(!flow.is_too_large());
        pass(&mut flow, 50, MIB);
        assert!(flow.is_too_large() && flow.replaces(work(1000), now));
        let prefetch = flow.open(work(1000), now);
        assert!((10..=16).contains(&prefetch), "{prefetch}");
        pass(&mut flow, 50, 100 * MIB);
        assert!(flow.is_too_large());
        assert_eq!(flow.open(work(1000), now), 1);
        assert!(!flow.is_too_large(), "one item may have any size");
        pass(&mut flow, 1000, 1000);
        assert!(flow.replaces(work(1000), now));
        assert!(flow.open(work(1000), now) > 500);
    }

    #[test]
    fn items_that_are_set_aside_take_no_places_of_others() {
        let (mut flow, now) = flow(10);
        deliver(&mut flow, 1..=10, 1);
        let need = |set_aside| Need { in_work: 10, set_aside };
        // Six of them are done, and are acknowledged soon.
        assert!(!flow.replaces(need(0), now));
        // All of them are refused, one after the other.
        assert!(!flow.replaces(need(5), now) && flow.replaces(need(5), now + SHORT));
        assert!(flow.replaces(need(10), now + SHORT));
        assert_eq!(flow.open(need(10), now), 10, "no more than are asked for");
        deliver(&mut flow, 11..=20, 1);
        assert!(!flow.replaces(need(10), now + SHORT));
        assert!(!flow.replaces(need(20), now) && flow.replaces(need(20), now + SHORT));
        assert_eq!(flow.open(need(20), now), 10);
        deliver(&mut flow, 21..=30, 1);
        // They are stored at last.
        done(&mut flow, 1..=20);
        assert!(!flow.replaces(need(0), now + SHORT) && !flow.replaces(need(0), now + USE * 2));
    }

    #[test]
    fn a_prefetch_is_lowered_although_items_of_earlier_consumers_are_set_aside() {
        let (mut flow, now) = flow(60);
        deliver(&mut flow, 1..=60, 1);
        let need = |in_work| Need { in_work, set_aside: 60 };
        assert!(flow.replaces(need(100), now));
        assert_eq!(flow.open(need(100), now), 100);
        assert!(!flow.replaces(need(4), now + SHORT) && flow.replaces(need(4), now + USE));
        assert_eq!(flow.open(need(1), now), 4);
    }

    #[test]
    fn items_that_are_set_aside_count_for_the_largest_prefetch() {
        let now = Instant::now();
        let mut flow = Flow::new(Limits { items: 25, ..LIMITS }, now);
        let need = |set_aside| Need { in_work: 10, set_aside };
        assert_eq!(flow.open(need(0), now), 10);
        deliver(&mut flow, 1..=10, 1);
        assert!(flow.replaces(need(10), now));
        assert_eq!(flow.open(need(10), now), 10);
        deliver(&mut flow, 11..=20, 1);
        assert!(!flow.replaces(need(20), now) && flow.replaces(need(20), now + SHORT));
        assert_eq!(flow.open(need(20), now), 5);
        deliver(&mut flow, 21..=25, 1);
        assert!(!flow.replaces(need(25), now + USE) && !flow.may_open());
    }

    #[test]
    fn no_consumer_is_opened_before_there_is_room_for_an_item() {
        let now = Instant::now();
        let mut flow = Flow::new(Limits { items: 1000, bytes: 10 * MIB }, now);
        assert_eq!(flow.open(work(100), now), 100);
        deliver(&mut flow, 1..=13, MIB);
        assert!(flow.is_too_large() && !flow.may_open());
        done(&mut flow, 1..=5);
        assert!(flow.may_open());
        let prefetch = flow.open(work(100), now);
        assert!((2..=8).contains(&prefetch), "{prefetch}");
        // An item that is larger than all may be is delivered alone.
        done(&mut flow, 6..=13);
        flow.delivered(14, 1000 * MIB);
        assert!(!flow.may_open());
        done(&mut flow, [14]);
        assert!(flow.may_open());
        assert_eq!(flow.open(work(100), now), 1);
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
                    flow.delivered(next, 10);
                    if random % 3 == 0 {
                        flow.returned(next);
                    }
                    server.insert(next);
                }
                if opens {
                    flow.open_with(5, now);
                }
                let chosen = |tag: &u64| (random >> (tag % 64)) & 1 == 1;
                let chosen: Vec<_> = server.iter().copied().filter(chosen).collect();
                let expected: BTreeSet<_> =
                    server.iter().copied().filter(|tag| !chosen.contains(tag)).collect();
                for (tag, all_before) in flow.acknowledge(chosen) {
                    server.retain(|it| if all_before { *it > tag } else { *it != tag });
                }
                prop_assert_eq!(&server, &expected);
                prop_assert!(flow.items.keys().eq(server.iter()));
                prop_assert_eq!(flow.bytes, server.len() * 10);
                prop_assert_eq!(flow.ahead.items + flow.held(), server.len());
                prop_assert_eq!(flow.ahead.bytes, flow.ahead.items * 10);
                let own = server.iter().filter(|tag| **tag > flow.before).count();
                prop_assert_eq!(flow.of_consumer, own);
            }
        }

        /// A server that delivers at once all that the prefetch allows, and refuses the outcomes of some items, and a
        /// source that replaces its consumer as the flow says.
        #[test]
        fn what_is_asked_for_is_delivered_although_items_are_set_aside_and_not_much_more(
            limit in 1u16..200,
            steps in proptest::collection::vec((any::<u64>(), any::<u64>(), 1usize..150), 1..20),
        ) {
            let mut now = Instant::now();
            let mut flow = Flow::new(Limits { items: limit, ..LIMITS }, now);
            let limit = usize::from(limit);
            let (mut open, mut next, mut most) = (false, 0, 0);
            let mut set_aside: BTreeSet<u64> = BTreeSet::new();
            for (done, refused, wanted) in steps {
                let chosen = |random: u64, tag: &u64| (random >> (tag % 64)) & 1 == 1;
                let all: Vec<u64> = flow.items.keys().copied().collect();
                let acked: Vec<_> = all.iter().copied().filter(|tag| chosen(done, tag)).collect();
                set_aside.extend(all.iter().filter(|tag| chosen(refused, tag)));
                acked.iter().for_each(|tag| { set_aside.remove(tag); });
                flow.acknowledge(acked);
                let need = Need { in_work: wanted, set_aside: set_aside.len() };
                for _ in 0..6 {
                    now += SHORT;
                    if open && flow.replaces(need, now) {
                        open = false;
                    }
                    if !open && flow.may_open() {
                        flow.open(need, now);
                        open = true;
                    }
                    while open && !flow.is_full() {
                        next += 1;
                        flow.delivered(next, 1);
                    }
                }
                let others = flow.items.len() - set_aside.len();
                let least = wanted.min(limit.saturating_sub(set_aside.len()));
                prop_assert!(others >= least, "{} of {}, {:?}", others, least, flow);
                prop_assert!(flow.items.len() <= limit + BEYOND.min(limit));
                // Those that were delivered when more were asked for may still be there.
                most = wanted.max(most);
                prop_assert!(others <= most + BEYOND.min(limit), "{} {:?}", others, flow);
            }
        }

        /// A server that delivers at once all that the prefetch allows, and a source that replaces its consumer as
        /// the flow says.
        #[test]
        fn no_more_is_delivered_than_the_bounds_allow(
            items in 1u16..2000,
            mib in 1usize..64,
            steps in proptest::collection::vec((any::<u64>(), 0usize..3000, 1usize..MIB), 1..60),
        ) {
            let mut now = Instant::now();
            let limits = Limits { items, bytes: mib * MIB };
            let mut flow = Flow::new(limits, now);
            let (mut open, mut next) = (false, 0);
            for (random, wanted, size) in steps {
                now += SHORT;
                if open && flow.replaces(work(wanted), now) {
                    open = false;
                }
                if !open && flow.may_open() {
                    let (before, bytes, mean) = (flow.items.len(), flow.bytes, flow.mean);
                    let least = flow.least;
                    let prefetch = usize::from(flow.open(work(wanted), now));
                    open = true;
                    let all = before + prefetch;
                    let target = wanted.max(least).min(items.into()).max(1);
                    prop_assert!(all <= target.max(before) + BEYOND.min(items.into()).max(1));
                    prop_assert!(prefetch == 1 || bytes + prefetch * mean <= limits.bytes);
                }
                // Sizes of one step are alike.
                while open && !flow.is_full() {
                    next += 1;
                    flow.delivered(next, size);
                }
                let chosen = |tag: &u64| (random >> (tag % 64)) & 1 == 1;
                let chosen = flow.items.keys().copied().filter(chosen).collect();
                flow.acknowledge(chosen);
            }
        }
    }
}
