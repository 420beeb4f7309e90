//! Which channels a node subscribes to, and when. Pure.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::channels::Channel;

/// The channels whose topics have subscribers on this node.
///
/// A channel is subscribed to when its first topic gets a subscriber, and unsubscribed from when it has
/// had none for a while, so that a user who comes back soon costs nothing.
#[derive(Debug)]
pub(crate) struct Interest {
    linger: Duration,
    topics: HashSet<Arc<str>>,
    channels: HashMap<Channel, Wanted>,
    /// Channels that are to be subscribed to.
    missing: VecDeque<Channel>,
    /// Channels that have no topic, and since when: each at most once, however often it gets and loses one.
    idle: BTreeSet<(Instant, Channel)>,
    subscribed: usize,
}

#[derive(Debug)]
struct Wanted {
    topics: usize,
    /// When it has lost its last topic.
    idle_since: Option<Instant>,
    is_subscribed: bool,
}

impl Interest {
    /// Unsubscribes from channels that have had no topic for this long.
    pub(crate) fn new(linger: Duration) -> Self {
        Self {
            linger,
            topics: HashSet::new(),
            channels: HashMap::new(),
            missing: VecDeque::new(),
            idle: BTreeSet::new(),
            subscribed: 0,
        }
    }

    /// A topic has subscribers now, or has none.
    pub(crate) fn change(&mut self, topic: &Arc<str>, has_subscribers: bool, now: Instant) {
        let channel = Channel::of_topic(topic);
        if has_subscribers {
            if !self.topics.insert(topic.clone()) {
                return;
            }
            let wanted = self.channels.entry(channel).or_insert_with(|| {
                self.missing.push_back(channel);
                Wanted { topics: 0, idle_since: None, is_subscribed: false }
            });
            wanted.topics += 1;
            if let Some(since) = wanted.idle_since.take() {
                self.idle.remove(&(since, channel));
            }
        } else if self.topics.remove(topic)
            && let Some(wanted) = self.channels.get_mut(&channel)
        {
            wanted.topics -= 1;
            if wanted.topics == 0 {
                wanted.idle_since = Some(now);
                self.idle.insert((now, channel));
            }
        }
    }

    /// At most this many channels that are to be subscribed to. They count as subscribed.
    pub(crate) fn take_missing(&mut self, max: usize) -> Vec<Channel> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(channel) = self.missing.pop_front()
        {
            if let Some(wanted) = self.channels.get_mut(&channel)
                && !wanted.is_subscribed
            {
                wanted.is_subscribed = true;
                self.subscribed += 1;
                taken.push(channel);
            }
        }
        taken
    }

    /// At most this many channels that are to be unsubscribed from. They are forgotten.
    pub(crate) fn take_idle(&mut self, now: Instant, max: usize) -> Vec<Channel> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((since, channel)) = self.idle.first().copied()
            && now.saturating_duration_since(since) >= self.linger
        {
            self.idle.pop_first();
            if self.channels.remove(&channel).is_some_and(|wanted| wanted.is_subscribed) {
                taken.push(channel);
                self.subscribed -= 1;
            }
        }
        taken
    }

    /// Whether a channel that was taken as idle is wanted again. It is still subscribed to.
    pub(crate) fn keep(&mut self, channel: Channel) -> bool {
        let Some(wanted) = self.channels.get_mut(&channel) else { return false };
        if !std::mem::replace(&mut wanted.is_subscribed, true) {
            self.subscribed += 1;
        }
        true
    }

    /// When the next channel may be unsubscribed from.
    pub(crate) fn next_idle(&self) -> Option<Instant> {
        let (since, _) = self.idle.first()?;
        since.checked_add(self.linger)
    }

    /// The number of subscribed channels.
    pub(crate) fn subscribed(&self) -> usize {
        self.subscribed
    }

    /// The connection is new: all channels are to be subscribed to again.
    pub(crate) fn reset(&mut self) {
        self.missing = self.channels.keys().copied().collect();
        for wanted in self.channels.values_mut() {
            wanted.is_subscribed = false;
        }
        self.subscribed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_secs(10);

    fn topic(n: usize) -> Arc<str> {
        format!("user:{n}").into()
    }

    #[test]
    fn a_user_who_comes_back_soon_costs_nothing() {
        let (mut interest, start) = (Interest::new(LINGER), Instant::now());
        let (user, channel) = (topic(1), Channel::of_topic("user:1"));
        interest.change(&user, true, start);
        assert_eq!(interest.take_missing(9), [channel]);
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            interest.change(&user, false, now);
            interest.change(&user, true, now + LINGER / 2);
            assert_eq!(interest.take_missing(9), []);
            assert_eq!(interest.take_idle(now + LINGER / 2, 9), []);
        }
        let last = start + Duration::from_secs(200);
        assert_eq!(interest.take_idle(last, 9), [], "it has a subscriber");
        interest.change(&user, false, last);
        assert_eq!(interest.next_idle(), Some(last + LINGER));
        assert_eq!(interest.take_idle(last + LINGER, 9), [channel]);
        assert_eq!(interest.next_idle(), None);
        interest.change(&user, true, last + LINGER);
        assert_eq!(interest.take_missing(9), [channel]);
    }

    #[test]
    fn a_channel_that_is_never_left_takes_the_same_memory_however_often_its_topic_is_joined() {
        let (mut interest, start) = (Interest::new(Duration::MAX), Instant::now());
        let years = Duration::from_secs(100 * 365 * 86_400);
        for second in 0..10_000 {
            let now = start + Duration::from_secs(second);
            interest.change(&topic(1), true, now);
            interest.change(&topic(1), false, now);
        }
        assert_eq!((interest.idle.len(), interest.next_idle()), (1, None));
        assert_eq!(interest.take_missing(9).len(), 1);
        assert_eq!(interest.take_idle(start + years, 9), []);
        interest.change(&topic(1), true, start + years);
        assert_eq!((interest.idle.len(), interest.subscribed()), (0, 1));
    }

    #[test]
    fn a_channel_is_kept_while_one_of_its_topics_has_subscribers() {
        // The first two topics that share a channel.
        let mut seen = HashMap::new();
        let (one, other) = (0..)
            .find_map(|n| seen.insert(Channel::of_topic(&topic(n)), n).map(|it| (it, n)))
            .map(|(one, other)| (topic(one), topic(other)))
            .unwrap();
        let (mut interest, start) = (Interest::new(LINGER), Instant::now());
        interest.change(&one, true, start);
        interest.change(&other, true, start);
        assert_eq!(interest.take_missing(9).len(), 1);
        interest.change(&one, false, start);
        interest.change(&one, false, start);
        assert_eq!(interest.take_idle(start + 2 * LINGER, 9), []);
        interest.change(&other, false, start + LINGER);
        assert_eq!(interest.take_idle(start + 2 * LINGER, 9).len(), 1);
    }

    #[test]
    fn a_channel_that_is_wanted_again_before_it_is_unsubscribed_from_is_kept() {
        let (mut interest, start) = (Interest::new(LINGER), Instant::now());
        let (user, channel) = (topic(1), Channel::of_topic("user:1"));
        interest.change(&user, true, start);
        assert_eq!(interest.take_missing(9), [channel]);
        interest.change(&user, false, start);
        assert_eq!(interest.take_idle(start + LINGER, 9), [channel]);
        assert!(!interest.keep(channel));
        interest.change(&user, true, start + LINGER);
        assert!(interest.keep(channel));
        assert_eq!((interest.take_missing(9), interest.subscribed()), (vec![], 1));
    }

    #[test]
    fn a_new_connection_subscribes_to_everything_again() {
        let (mut interest, start) = (Interest::new(LINGER), Instant::now());
        (0..100).for_each(|n| interest.change(&topic(n), true, start));
        assert_eq!((interest.take_missing(60).len(), interest.take_missing(60).len()), (60, 40));
        interest.change(&topic(0), false, start);
        interest.reset();
        assert_eq!(interest.take_idle(start + LINGER, 9), [], "it was not subscribed to again");
        assert_eq!(interest.take_missing(200).len(), 99);
        assert_eq!(interest.subscribed(), 99);
    }
}
