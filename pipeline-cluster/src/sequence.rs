//! Numbers of what was sent in a channel, and the gaps among those that arrive. Pure.
//!
//! A node receives only some channels, so each channel has numbers of its own: a node that receives a
//! channel receives all of its numbers, and sees when one is missing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::channels::{BuildChannelHasher, Channel};

/// How many nodes may have been sent to with numbers. What is sent to more of them has none.
const NODES: usize = 65_536;

/// How many origins are remembered. When there are more, the one that has been silent for longest is
/// forgotten.
const ORIGINS: usize = 1_024;

/// The most frames of all channels that are on the way to the server at once. More of them in a row of a former life
/// of a node are no rest of it.
pub(crate) const ON_THE_WAY: u32 = 4_096;

/// The most frames of a channel that are on the way to the server at once, and are sent again after a lost
/// connection. More of them in a row that only grow are no copies.
pub(crate) const REPEATED: u32 = 512;

/// How many in a row it takes of numbers that have not arrived before.
const FEW: u32 = 3;

/// How many ranges of numbers that have arrived are kept above a count that was taken.
const RANGES: usize = 8;

/// After how many numbers above it a gap is a true one, and is forgotten.
const CERTAIN: u64 = 1_024;

/// The furthest that a number may be from the last one. More are not sent while a node lives.
const JUMP: u64 = 1 << 40;

/// The last number that was sent in each channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    last: HashMap<Channel, u64, BuildChannelHasher>,
    nodes: usize,
}

impl Sent {
    /// The number of the next frame in a channel; 0 if it has none.
    pub(crate) fn next(&mut self, channel: Channel) -> u64 {
        if matches!(channel, Channel::Node(_)) && !self.last.contains_key(&channel) {
            if self.nodes == NODES {
                return 0;
            }
            self.nodes += 1;
        }
        let last = self.last.entry(channel).or_default();
        *last += 1;
        *last
    }
}

/// The last number that has arrived from each origin in each channel.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    origins: HashMap<Arc<str>, Origin>,
    followed: HashSet<Channel, BuildChannelHasher>,
    /// Counts arrivals, to know which origin has been silent for longest.
    count: u64,
}

#[derive(Debug)]
struct Origin {
    name: Arc<str>,
    epoch: u64,
    numbers: Numbers,
    /// A lower epoch, and how many frames of it there were since the last one of this epoch.
    former: (u64, u32),
    /// The life before this epoch, while its rest may arrive.
    before: Option<Before>,
    /// The number of its last arrival.
    at: u64,
}

/// A former life of a node.
#[derive(Debug)]
struct Before {
    epoch: u64,
    numbers: Numbers,
    /// How many frames have arrived since it ended.
    since: u32,
}

/// The last numbers of a life of a node.
#[derive(Debug, Default)]
struct Numbers {
    last: HashMap<Channel, u64, BuildChannelHasher>,
    /// The channels whose last number may be a false one.
    doubts: HashMap<Channel, Doubt, BuildChannelHasher>,
}

/// What there is to know about a channel whose last number may be a false one.
///
/// A copy has a number that has arrived. So those in a gap are no copies, however late they are, and a
/// few of them show that the number behind the gap was false. Time shows nothing: a slow server may pass
/// on a frame again and again, minutes later.
#[derive(Debug, Default)]
struct Doubt {
    /// The latest gap: the last number before it, and the first one after it.
    gap: (u64, u64),
    /// The first and the last numbers of those that have arrived, although they are greater than the last
    /// one of the count that was taken. They ascend, and do not touch.
    above: Vec<(u64, u64)>,
    /// The last number that was not new.
    late: u64,
    /// How many of those in a row have grown, and how many of them in the gap.
    grown: u32,
    in_gap: u32,
}

impl Doubt {
    /// A number arrives that is not new. Returns whether it is one of a node that counts anew.
    fn is_a_new_count(&mut self, number: u64) -> bool {
        if number <= self.late {
            // Copies begin again at a number that was there.
            (self.grown, self.in_gap) = (0, 0);
        }
        self.late = number;
        self.grown += 1;
        let (before, behind) = self.gap;
        self.in_gap = if number > before && number < behind { self.in_gap + 1 } else { 0 };
        self.in_gap >= FEW || self.grown > REPEATED
    }

    /// The count of a number is taken instead of the one up to `last`.
    fn take(&mut self, number: u64, last: u64) {
        let (before, behind) = self.gap;
        let is_in_gap = number > before && number < behind;
        let mut above = Vec::new();
        if is_in_gap {
            above.push((behind, last));
            // Nothing of what had arrived before an earlier count was taken may arrive again.
            for (first, end) in std::mem::take(&mut self.above) {
                let is_full = above.len() == RANGES;
                match above.last_mut() {
                    // Of more ranges the last ones are one. What is missing among them counts as arrived.
                    Some((_, last)) if is_full || first <= last.saturating_add(1) => {
                        *last = end.max(*last);
                    }
                    _ => above.push((first, end)),
                }
            }
        }
        *self = Self { above, ..Self::default() };
    }

    /// The last number is a greater one than before. Returns whether it has arrived already, and how many
    /// are missing before it.
    fn rise(&mut self, number: u64, before: u64) -> (bool, u64) {
        (self.late, self.grown, self.in_gap) = (0, 0, 0);
        if self.above.iter().any(|(first, end)| (*first..=*end).contains(&number)) {
            return (true, 0);
        }
        let (mut missing, mut since) = (number - before - 1, before);
        self.above.retain(|(first, end)| {
            let is_passed = *end < number;
            if is_passed && *end > before {
                missing -= *end + 1 - (*first).max(before + 1);
                since = *end;
            }
            !is_passed
        });
        if number > since + 1 {
            self.gap = (since, number);
        } else if number.saturating_sub(self.gap.1) > CERTAIN {
            self.gap = (0, 0);
        }
        (false, missing)
    }

    fn is_over(&self) -> bool {
        self.gap == (0, 0) && self.above.is_empty()
    }
}

/// What a number says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Nothing is missing, as far as is known.
    Expected,
    /// This many are missing before it.
    After(u64, Arc<str>),
    /// The frame has arrived before, or a later one has.
    Repeated,
    /// The first frame of a lower count: what arrived before it had a false number, and it is not
    /// known how many are missing.
    CountsAnew(Arc<str>),
    /// The number is too far from the last one to be true.
    Unbelievable,
}

impl Arrived {
    /// This node receives a channel from now on.
    pub(crate) fn follow(&mut self, channel: Channel) {
        self.followed.insert(channel);
    }

    /// This node does not receive a channel any more, and cannot know what is missing.
    pub(crate) fn unfollow(&mut self, channel: Channel) {
        if self.followed.remove(&channel) {
            for origin in self.origins.values_mut() {
                let before = origin.before.as_mut().map(|before| &mut before.numbers);
                for numbers in [Some(&mut origin.numbers), before].into_iter().flatten() {
                    numbers.last.remove(&channel);
                    numbers.doubts.remove(&channel);
                }
            }
        }
    }

    pub(crate) fn follows(&self, channel: Channel) -> bool {
        self.followed.contains(&channel)
    }

    /// A frame has arrived.
    pub(crate) fn arrive(
        &mut self,
        origin: &str,
        epoch: u64,
        channel: Channel,
        number: u64,
    ) -> Arrival {
        // The last frames of a channel arrive after it was unsubscribed from.
        if number == 0 || !self.follows(channel) {
            return Arrival::Expected;
        }
        self.count += 1;
        let at = self.count;
        let Some(origin) = self.origins.get_mut(origin) else {
            self.first_of(origin, epoch, channel, number);
            return Arrival::Expected;
        };
        origin.at = at;
        if epoch < origin.epoch {
            if !origin.is_of_now(epoch) {
                return origin.rest(epoch, channel, number);
            }
            origin.begin(epoch);
            origin.numbers.last.insert(channel, number);
            return Arrival::CountsAnew(origin.name.clone());
        }
        if epoch > origin.epoch {
            origin.begin(epoch);
        }
        origin.former.1 = 0;
        if let Some(before) = &mut origin.before {
            before.since += 1;
            if before.since > ON_THE_WAY {
                origin.before = None;
            }
        }
        origin.numbers.arrive(channel, number, &origin.name)
    }

    /// The first frame of an origin that is not remembered.
    fn first_of(&mut self, origin: &str, epoch: u64, channel: Channel, number: u64) {
        if self.origins.len() == ORIGINS {
            self.forget_one();
        }
        let (name, at): (Arc<str>, _) = (origin.into(), self.count);
        let last = HashMap::from_iter([(channel, number)]);
        let numbers = Numbers { last, doubts: HashMap::default() };
        let new = Origin { name: name.clone(), epoch, numbers, former: (0, 0), before: None, at };
        self.origins.insert(name, new);
    }

    fn forget_one(&mut self) {
        let silent = self.origins.iter().min_by_key(|(_, origin)| origin.at);
        if let Some(name) = silent.map(|(name, _)| name.clone()) {
            self.origins.remove(&name);
        }
    }
}

impl Origin {
    /// A frame of a lower epoch has arrived. Returns whether the node lives in it: it sends more than its
    /// former life can have left, and nothing comes of the higher one, which was that of a clock that was
    /// ahead, or a false one.
    fn is_of_now(&mut self, epoch: u64) -> bool {
        let (former, frames) = &mut self.former;
        *frames = if *former == epoch { *frames + 1 } else { 1 };
        *former = epoch;
        *frames > ON_THE_WAY
    }

    fn begin(&mut self, epoch: u64) {
        let numbers = std::mem::take(&mut self.numbers);
        self.before = Some(Before { epoch: self.epoch, numbers, since: 0 });
        self.epoch = epoch;
        self.former = (0, 0);
    }

    /// The rest of what a node sent before it was started again arrives. Something of it may be missing or repeated too.
    fn rest(&mut self, epoch: u64, channel: Channel, number: u64) -> Arrival {
        match self.before.as_mut().filter(|before| before.epoch == epoch) {
            Some(before) => before.numbers.arrive(channel, number, &self.name),
            None => Arrival::Expected,
        }
    }
}

impl Numbers {
    /// A frame of this life has arrived from the node of this name.
    fn arrive(&mut self, channel: Channel, number: u64, origin: &Arc<str>) -> Arrival {
        let Some(last) = self.last.get_mut(&channel) else {
            self.last.insert(channel, number);
            return Arrival::Expected;
        };
        if number <= *last {
            let doubt = self.doubts.entry(channel).or_default();
            if !doubt.is_a_new_count(number) {
                return Arrival::Repeated;
            }
            doubt.take(number, *last);
            *last = number;
            return Arrival::CountsAnew(origin.clone());
        }
        let missing = number - *last - 1;
        if missing > JUMP {
            return Arrival::Unbelievable;
        }
        let before = std::mem::replace(last, number);
        if missing == 0 && self.doubts.is_empty() {
            return Arrival::Expected;
        }
        let doubt = match self.doubts.get_mut(&channel) {
            None if missing == 0 => return Arrival::Expected,
            Some(doubt) => doubt,
            None => self.doubts.entry(channel).or_default(),
        };
        let (is_copy, missing) = doubt.rise(number, before);
        if doubt.is_over() {
            self.doubts.remove(&channel);
        }
        match missing {
            _ if is_copy => Arrival::Repeated,
            0 => Arrival::Expected,
            missing => Arrival::After(missing, origin.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Channel = Channel::Topic(1);

    #[test]
    fn each_channel_has_numbers_of_its_own() {
        let mut sent = Sent::default();
        let channels = [ONE, ONE, Channel::All, ONE, Channel::Node(1), Channel::All];
        assert_eq!(channels.map(|channel| sent.next(channel)), [1, 2, 1, 3, 1, 2]);
    }

    #[test]
    fn a_gap_is_seen_in_a_channel_that_is_followed() {
        let mut arrived = Arrived::default();
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number);
        assert_eq!(arrive(1, 7), Arrival::Expected, "the channel is not followed");
        arrived.follow(ONE);
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number);
        assert_eq!(arrive(1, 9), Arrival::Expected, "the first number is unknown");
        assert_eq!(arrive(1, 10), Arrival::Expected);
        assert_eq!(arrive(1, 13), Arrival::After(2, "left".into()));
        assert_eq!((arrive(1, 13), arrive(1, 12)), (Arrival::Repeated, Arrival::Repeated));
        assert_eq!(arrive(2, 1), Arrival::Expected, "the node was started again");
        assert_eq!(arrive(1, 14), Arrival::Expected, "a late frame of its former life");
        assert_eq!(arrive(1, 12), Arrival::Repeated, "a copy, as far as is known");
        assert_eq!(arrive(2, 2), Arrival::Expected);
        assert_eq!(arrive(2, 0), Arrival::Expected, "it has no number");
        arrived.unfollow(ONE);
        arrived.follow(ONE);
        let first = arrived.arrive("left", 2, ONE, 90);
        assert_eq!(first, Arrival::Expected, "it was not followed");
    }

    #[test]
    fn a_false_number_silences_a_node_for_a_few_broadcasts_only() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |number| arrived.arrive("left", 1, ONE, number);
        let anew = Arrival::CountsAnew("left".into());
        assert_eq!(arrive(7), Arrival::Expected);
        assert_eq!(arrive(1 << 63), Arrival::Unbelievable);
        assert_eq!(arrive(8), Arrival::Expected, "a number that is not believed changes nothing");
        assert_eq!(arrive(20), Arrival::After(11, "left".into()), "a false one");
        assert_eq!((arrive(9), arrive(10)), (Arrival::Repeated, Arrival::Repeated));
        assert_eq!((arrive(11), arrive(12)), (anew.clone(), Arrival::Expected));
        assert_eq!(arrive(20), Arrival::Repeated, "a copy of the false one");
        // A false one of which no gap is known: the first one.
        arrived.unfollow(ONE);
        arrived.follow(ONE);
        let mut arrive = |number| arrived.arrive("left", 1, ONE, number);
        assert_eq!(arrive(1_000_000), Arrival::Expected);
        for number in 13..13 + u64::from(REPEATED) {
            assert_eq!(arrive(number), Arrival::Repeated, "{number}");
        }
        assert_eq!((arrive(525), arrive(526)), (anew, Arrival::Expected));
    }

    #[test]
    fn copies_are_dropped_however_often_and_late_they_come() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |number| arrived.arrive("left", 1, ONE, number);
        // Before a gap, and behind it.
        for (first, last) in [(1, u64::from(REPEATED)), (601, 603), (1_000, 1_001)] {
            assert_ne!(arrive(first), Arrival::Repeated);
            (first + 1..=last).for_each(|it| assert_eq!(arrive(it), Arrival::Expected));
            for number in (0..100).flat_map(|_| first..=last) {
                assert_eq!(arrive(number), Arrival::Repeated, "{number}");
            }
        }
        assert_eq!(arrive(1_002), Arrival::Expected);
    }

    #[test]
    fn an_epoch_that_is_ahead_holds_for_a_while_only() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number);
        assert_eq!(arrive(9, 70), Arrival::Expected);
        // What is left of a former life is not more than this, and ends when the present one is heard.
        for _ in 0..2 {
            for number in 1..=u64::from(ON_THE_WAY) {
                assert_eq!(arrive(8, number), Arrival::Expected);
            }
            assert_eq!(arrive(9, 70), Arrival::Repeated);
        }
        for number in 1..=u64::from(ON_THE_WAY) {
            assert_eq!(arrive(8, number), Arrival::Expected);
        }
        assert_eq!(arrive(8, 4_097), Arrival::CountsAnew("left".into()));
        assert_eq!(arrive(8, 4_097), Arrival::Repeated, "its numbers are looked at");
        assert_eq!(arrive(8, 4_100), Arrival::After(2, "left".into()));
    }

    #[test]
    fn a_copy_in_the_rest_of_a_former_life_is_dropped() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number);
        for (epoch, number) in [(1, 1), (1, 2), (1, 3), (2, 1), (1, 4)] {
            assert_eq!(arrive(epoch, number), Arrival::Expected, "{number} of {epoch}");
        }
        // It had no answer when it was killed, and had sent them a second time.
        for number in 1..=4 {
            assert_eq!(arrive(1, number), Arrival::Repeated, "{number}");
        }
        assert_eq!((arrive(1, 5), arrive(2, 2)), (Arrival::Expected, Arrival::Expected));
    }

    #[test]
    fn a_copy_is_dropped_whose_like_had_come_before_the_new_life_or_behind_a_gap() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        arrived.follow(Channel::All);
        let mut arrive = |epoch, channel, number| arrived.arrive("left", epoch, channel, number);
        for number in [1, 2, 3] {
            assert_eq!(arrive(1, ONE, number), Arrival::Expected);
        }
        assert_eq!(arrive(1, ONE, 1), Arrival::Repeated, "the first of those that are sent again");
        assert_eq!(arrive(2, ONE, 1), Arrival::Expected, "it is killed and started again");
        for number in [2, 3] {
            assert_eq!(arrive(1, ONE, number), Arrival::Repeated, "{number}");
        }
        assert_eq!(arrive(1, ONE, 9), Arrival::After(5, "left".into()));
        for number in [1, 2, 3, 9] {
            assert_eq!(arrive(1, ONE, number), Arrival::Repeated, "{number} behind the gap");
        }
        // A channel of which nothing had come before the new life.
        assert_eq!(arrive(1, Channel::All, 7), Arrival::Expected);
        assert_eq!(arrive(1, Channel::All, 7), Arrival::Repeated);
        assert_eq!((arrive(1, ONE, 10), arrive(2, ONE, 2)), (Arrival::Expected, Arrival::Expected));
    }

    #[test]
    fn a_gap_in_the_rest_of_a_former_life_is_seen() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        arrived.follow(Channel::All);
        let mut arrive = |epoch, channel, number| arrived.arrive("left", epoch, channel, number);
        assert_eq!(arrive(1, ONE, 16), Arrival::Expected);
        // Its next life is heard on another way, before the rest of it.
        assert_eq!(arrive(2, Channel::All, 1), Arrival::Expected);
        assert_eq!(arrive(1, ONE, 21), Arrival::After(4, "left".into()));
        assert_eq!(arrive(1, ONE, 22), Arrival::Expected);
        assert_eq!(arrive(2, ONE, 1), Arrival::Expected);
        // Nothing more of it comes after so many.
        for number in 2..=u64::from(ON_THE_WAY) {
            assert_eq!(arrive(2, ONE, number), Arrival::Expected);
        }
        assert_eq!(arrive(1, ONE, 30), Arrival::Expected);
        assert!(arrived.origins["left"].before.is_none());
    }

    #[test]
    fn origins_are_bounded_and_the_most_silent_is_forgotten() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        for n in 0..ORIGINS {
            arrived.arrive(&format!("node {n}"), 1, ONE, 1);
        }
        arrived.arrive("node 0", 1, ONE, 2);
        arrived.arrive("one more", 1, ONE, 1);
        assert_eq!(arrived.origins.len(), ORIGINS);
        let next = |arrived: &mut Arrived, name| arrived.arrive(name, 1, ONE, 9);
        assert_eq!(next(&mut arrived, "node 0"), Arrival::After(6, "node 0".into()));
        assert_eq!(next(&mut arrived, "node 1"), Arrival::Expected, "it was forgotten");
    }

    #[test]
    fn nodes_that_are_sent_to_are_bounded() {
        let mut sent = Sent::default();
        let nodes = NODES as u64;
        assert!((0..nodes).all(|n| sent.next(Channel::Node(n)) == 1));
        assert_eq!((sent.next(Channel::Node(nodes)), sent.next(Channel::Node(0))), (0, 2));
    }

    #[test]
    fn copies_are_dropped_after_a_count_was_taken_twice() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |number| arrived.arrive("left", 1, ONE, number);
        let anew = || Arrival::CountsAnew("left".into());
        for number in [1, 2, 10, 11, 12, 13, 14, 15] {
            assert_ne!(arrive(number), Arrival::Repeated);
        }
        assert_eq!([3, 4, 5].map(&mut arrive)[2], anew(), "three in the gap before 10");
        assert_eq!(arrive(9), Arrival::After(3, "left".into()));
        assert_eq!([6, 7, 8].map(&mut arrive)[2], anew(), "three in the gap before 9");
        for copy in [15, 9, 12, 10] {
            assert_eq!(arrive(copy), Arrival::Repeated, "{copy}");
        }
        assert_eq!(arrive(16), Arrival::Expected);
    }

    #[test]
    fn what_lies_between_two_counts_that_were_taken_has_not_arrived() {
        let mut arrived = Arrived::default();
        arrived.follow(ONE);
        let mut arrive = |number| arrived.arrive("left", 1, ONE, number);
        for number in [1, 2].into_iter().chain(20..=30) {
            assert_ne!(arrive(number), Arrival::Repeated);
        }
        assert_eq!([3, 4, 5].map(&mut arrive)[2], Arrival::CountsAnew("left".into()));
        assert_eq!(arrive(10), Arrival::After(4, "left".into()));
        assert_eq!([6, 7, 8].map(&mut arrive)[2], Arrival::CountsAnew("left".into()));
        assert_eq!((arrive(9), arrive(10)), (Arrival::Expected, Arrival::Repeated));
        for number in 11..=19 {
            assert_eq!(arrive(number), Arrival::Expected, "{number}");
        }
        for copy in 20..=30 {
            assert_eq!(arrive(copy), Arrival::Repeated, "{copy}");
        }
        assert_eq!(arrive(33), Arrival::After(2, "left".into()));
    }

    proptest! {
        /// Whatever was lost, and however late and often what was sent before is sent again, also after the node was
        /// started again.
        #[test]
        fn nothing_arrives_twice(
            steps in prop::collection::vec((0..4u8, 1..6u64, 0..20u64), 1..100),
            restart in 0..100usize,
        ) {
            let (mut next, mut arrived, mut heard) = (1u64, Arrived::default(), HashSet::new());
            arrived.follow(ONE);
            let mut is_restarted = false;
            for (at, (kind, count, back)) in steps.into_iter().enumerate() {
                // Of a former life of which nothing has been heard, nothing is known.
                if at >= restart && !is_restarted && !heard.is_empty() {
                    is_restarted = true;
                    prop_assert_eq!(arrived.arrive("left", 2, ONE, 1), Arrival::Expected);
                }
                let batch = if kind < 2 {
                    next += count;
                    next - count..next
                } else {
                    let first = next.saturating_sub(back).max(1);
                    first..(first + count).min(next)
                };
                // Some are lost.
                if kind != 1 {
                    for number in batch {
                        let arrival = arrived.arrive("left", 1, ONE, number);
                        let is_new = arrival == Arrival::Repeated || heard.insert(number);
                        prop_assert!(is_new, "{number} arrives twice");
                    }
                }
            }
        }

        /// Whatever is lost or repeated on the way: what arrived and what is missing add up.
        #[test]
        fn arrived_and_missing_are_all(fate in prop::collection::vec(0..3u8, 1..200)) {
            let (mut sent, mut arrived) = (Sent::default(), Arrived::default());
            arrived.follow(ONE);
            let (mut received, mut missing, mut lost_since) = (0u64, 0u64, 0u64);
            let mut is_first = true;
            for fate in fate {
                let number = sent.next(ONE);
                for copy in 0..fate {
                    match arrived.arrive("left", 1, ONE, number) {
                        Arrival::Expected => received += 1,
                        Arrival::After(gap, _) => {
                            received += 1;
                            missing += gap;
                        }
                        Arrival::Repeated => prop_assert!(copy > 0),
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                if fate > 0 {
                    is_first = false;
                    lost_since = 0;
                } else if is_first {
                    // What is lost before the first arrival is unknown.
                    missing += 1;
                } else {
                    lost_since += 1;
                }
            }
            let all = sent.next(ONE) - 1;
            prop_assert_eq!(received + missing + lost_since, all);
        }
    }
}
