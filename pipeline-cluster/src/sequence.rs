//! Numbers of what was sent in a channel, and the gaps among those that arrive. Pure.
//!
//! A node receives only some channels, so each channel has numbers of its own: a node that receives a
//! channel receives all of its numbers, and sees when one is missing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::{Duration, Instant};

use crate::channels::{BuildChannelHasher, Channel};

/// How many nodes may have been sent to with numbers. What is sent to more of them has none.
const NODES: usize = 65_536;

/// How many origins are remembered. When there are more, the one that has been silent for longest is
/// forgotten.
const ORIGINS: usize = 1_024;

/// How many numbers that are not new may follow each other before the lower ones count as those of a node
/// that counts anew. What is sent again after a lost connection is never more.
pub(crate) const REPEATED: u32 = 512;

/// For how long numbers may be those of before. What is sent again comes within moments.
const STALE: Duration = Duration::from_secs(10);

/// How many that are late it takes.
const FEW: u32 = 3;

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
    last: HashMap<Channel, u64, BuildChannelHasher>,
    /// The channels whose latest numbers were not new.
    repeated: HashMap<Channel, Run, BuildChannelHasher>,
    /// The number of its last arrival.
    at: u64,
}

/// Numbers that follow each other and are not new.
#[derive(Debug)]
struct Run {
    count: u32,
    since: Instant,
}

impl Run {
    /// Whether they cannot be copies of what has arrived.
    fn is_a_new_count(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        self.count > REPEATED || (self.count >= FEW && age >= STALE)
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
                origin.last.remove(&channel);
                origin.repeated.remove(&channel);
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
        now: Instant,
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
            // The rest of what a node sent before it was started again.
            return Arrival::Expected;
        }
        if epoch > origin.epoch {
            origin.epoch = epoch;
            origin.last.clear();
            origin.repeated.clear();
        }
        let Some(last) = origin.last.get_mut(&channel) else {
            origin.last.insert(channel, number);
            return Arrival::Expected;
        };
        if number <= *last {
            let run = origin.repeated.entry(channel).or_insert(Run { count: 0, since: now });
            run.count += 1;
            if !run.is_a_new_count(now) {
                return Arrival::Repeated;
            }
            origin.repeated.remove(&channel);
            *last = number;
            return Arrival::CountsAnew(origin.name.clone());
        }
        let missing = number - *last - 1;
        if missing > JUMP {
            return Arrival::Unbelievable;
        }
        *last = number;
        if !origin.repeated.is_empty() {
            origin.repeated.remove(&channel);
        }
        if missing == 0 { Arrival::Expected } else { Arrival::After(missing, origin.name.clone()) }
    }

    /// The first frame of an origin that is not remembered.
    fn first_of(&mut self, origin: &str, epoch: u64, channel: Channel, number: u64) {
        if self.origins.len() == ORIGINS {
            self.forget_one();
        }
        let (name, at): (Arc<str>, _) = (origin.into(), self.count);
        let (last, repeated) = (HashMap::from_iter([(channel, number)]), HashMap::default());
        let new = Origin { name: name.clone(), epoch, last, repeated, at };
        self.origins.insert(name, new);
    }

    fn forget_one(&mut self) {
        let silent = self.origins.iter().min_by_key(|(_, origin)| origin.at);
        if let Some(name) = silent.map(|(name, _)| name.clone()) {
            self.origins.remove(&name);
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
        let (mut arrived, now) = (Arrived::default(), Instant::now());
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number, now);
        assert_eq!(arrive(1, 7), Arrival::Expected, "the channel is not followed");
        arrived.follow(ONE);
        let mut arrive = |epoch, number| arrived.arrive("left", epoch, ONE, number, now);
        assert_eq!(arrive(1, 9), Arrival::Expected, "the first number is unknown");
        assert_eq!(arrive(1, 10), Arrival::Expected);
        assert_eq!(arrive(1, 13), Arrival::After(2, "left".into()));
        assert_eq!((arrive(1, 13), arrive(1, 12)), (Arrival::Repeated, Arrival::Repeated));
        assert_eq!(arrive(2, 1), Arrival::Expected, "the node was started again");
        assert_eq!(arrive(1, 14), Arrival::Expected, "a late frame of its former life");
        assert_eq!(arrive(2, 2), Arrival::Expected);
        assert_eq!(arrive(2, 0), Arrival::Expected, "it has no number");
        arrived.unfollow(ONE);
        arrived.follow(ONE);
        let first = arrived.arrive("left", 2, ONE, 90, now);
        assert_eq!(first, Arrival::Expected, "it was not followed");
    }

    #[test]
    fn a_false_number_silences_a_node_for_a_while_only() {
        let (mut arrived, start) = (Arrived::default(), Instant::now());
        arrived.follow(ONE);
        let mut arrive = |number, seconds| {
            let now = start + Duration::from_secs(seconds);
            arrived.arrive("left", 1, ONE, number, now)
        };
        let anew = Arrival::CountsAnew("left".into());
        assert_eq!(arrive(7, 0), Arrival::Expected);
        assert_eq!(arrive(1 << 63, 0), Arrival::Unbelievable);
        assert_eq!(
            arrive(8, 0),
            Arrival::Expected,
            "a number that is not believed changes nothing"
        );
        // A busy channel: as many as may be copies.
        assert_eq!(arrive(1_000_009, 0), Arrival::After(1_000_000, "left".into()));
        for number in 9..9 + u64::from(REPEATED) {
            assert_eq!(arrive(number, 0), Arrival::Repeated, "{number}");
        }
        assert_eq!(arrive(521, 0), anew);
        assert_eq!(arrive(522, 0), Arrival::Expected);
        // A quiet one.
        assert_eq!(arrive(1_000, 100), Arrival::After(477, "left".into()));
        assert_eq!((arrive(523, 100), arrive(524, 109)), (Arrival::Repeated, Arrival::Repeated));
        assert_eq!(arrive(525, 110), anew);
        assert_eq!(arrive(526, 110), Arrival::Expected);
        // Copies, now and then: a new number is between them.
        for number in 527..600 {
            assert_eq!(arrive(number, 9 * number), Arrival::Expected);
            assert_eq!(arrive(number, 9 * number), Arrival::Repeated);
        }
    }

    #[test]
    fn origins_are_bounded_and_the_most_silent_is_forgotten() {
        let (mut arrived, now) = (Arrived::default(), Instant::now());
        arrived.follow(ONE);
        for n in 0..ORIGINS {
            arrived.arrive(&format!("node {n}"), 1, ONE, 1, now);
        }
        arrived.arrive("node 0", 1, ONE, 2, now);
        arrived.arrive("one more", 1, ONE, 1, now);
        assert_eq!(arrived.origins.len(), ORIGINS);
        let next = |arrived: &mut Arrived, name| arrived.arrive(name, 1, ONE, 9, now);
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

    proptest! {
        /// Whatever is lost or repeated on the way: what arrived and what is missing add up.
        #[test]
        fn arrived_and_missing_are_all(fate in prop::collection::vec(0..3u8, 1..200)) {
            let (mut sent, mut arrived) = (Sent::default(), Arrived::default());
            let now = Instant::now();
            arrived.follow(ONE);
            let (mut received, mut missing, mut lost_since) = (0u64, 0u64, 0u64);
            let mut is_first = true;
            for fate in fate {
                let number = sent.next(ONE);
                for copy in 0..fate {
                    match arrived.arrive("left", 1, ONE, number, now) {
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
