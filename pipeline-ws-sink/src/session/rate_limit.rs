//! Rate limits of a client's messages, in total and on each topic. Pure: the caller passes the time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::token_bucket::{Bucket, Rate};

/// A rate limit of a client's messages: an average rate, and a burst.
///
/// It is a token bucket. A message takes a token, and is over the limit if there is none; the bucket
/// holds `burst` tokens and is refilled evenly at the rate. A message over the limit takes no token,
/// so a client that keeps sending gets through at the rate.
///
/// Used by [`Mount::message_rate_limit`](crate::Mount::message_rate_limit) and
/// [`Mount::topic_message_rate_limit`](crate::Mount::topic_message_rate_limit).
///
/// ```
/// use pipeline_ws_sink::mount::{MessageRateLimit, OnLimit};
///
/// let limit = MessageRateLimit::per_second(50).burst(100).on_limit(OnLimit::Close);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct MessageRateLimit {
    messages: u32,
    interval: Duration,
    burst: u32,
    on_limit: OnLimit,
}

/// What happens to a message over the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLimit {
    /// The channel does not receive it, and the client is answered with an error: `{"reason": "rate
    /// limited", "retry_after": 250}`, in milliseconds. After that time, one message passes. One
    /// without a reference is dropped.
    #[default]
    Reply,
    /// The socket is closed with 1008, and its channels end. The official client connects again,
    /// with its usual delays, and then has a full bucket. A long-polling client finds its session
    /// gone.
    Close,
}

impl MessageRateLimit {
    /// This number of messages per second on average, and as many at once, unless
    /// [`burst`](Self::burst) sets another number.
    ///
    /// # Panics
    ///
    /// If it is 0: no message would pass.
    pub const fn per_second(messages: u32) -> Self {
        Self::every(messages, Duration::from_secs(1))
    }

    /// This number of messages per minute on average, and as many at once, unless
    /// [`burst`](Self::burst) sets another number.
    ///
    /// # Panics
    ///
    /// If it is 0: no message would pass.
    pub const fn per_minute(messages: u32) -> Self {
        Self::every(messages, Duration::from_secs(60))
    }

    const fn every(messages: u32, interval: Duration) -> Self {
        assert!(messages > 0, "a message rate limit must allow at least one message");
        Self { messages, interval, burst: messages, on_limit: OnLimit::Reply }
    }

    /// How many messages may come at once, after a silence.
    ///
    /// # Panics
    ///
    /// If it is 0: no message would pass.
    pub const fn burst(mut self, messages: u32) -> Self {
        assert!(messages > 0, "a message rate limit must allow at least one message");
        self.burst = messages;
        self
    }

    /// What happens to messages over the limit. Default [`OnLimit::Reply`].
    pub const fn on_limit(mut self, on_limit: OnLimit) -> Self {
        self.on_limit = on_limit;
        self
    }

    pub(crate) fn rate(&self) -> Rate {
        Rate::new(self.messages, self.interval, self.burst)
    }

    pub(crate) fn action(&self) -> OnLimit {
        self.on_limit
    }
}

/// The rate limits of a mount's clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimits {
    pub(crate) socket: Option<Limit>,
    pub(crate) topic: Option<Limit>,
    /// How many topics are remembered.
    pub(crate) topics: usize,
}

/// A limit in the form that is computed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    rate: Rate,
    on_limit: OnLimit,
}

/// The recent messages of a client.
///
/// A topic is remembered for as long as that makes a difference, joined or not: a client that
/// leaves and joins again finds its bucket as it was. When there is no room to remember one more
/// topic, events on other topics are over the limit until there is.
#[derive(Debug)]
pub(super) struct RateState {
    since: Instant,
    socket: Bucket,
    topics: HashMap<Arc<str>, Bucket>,
}

/// A message over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) of: Scope,
    pub(super) retry_after: Duration,
    pub(super) on_limit: OnLimit,
}

/// The limit that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Socket,
    Topic,
    /// Bytes received and not handled: see [`Inbox`](crate::session::inbox::Inbox).
    Inbox,
    /// Messages that wait for a join: see [`Behind`](crate::session::waiting::Behind).
    Join,
}

impl Scope {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Topic => "topic",
            Self::Inbox => "inbox",
            Self::Join => "join",
        }
    }
}

impl From<MessageRateLimit> for Limit {
    fn from(limit: MessageRateLimit) -> Self {
        Self { rate: limit.rate(), on_limit: limit.action() }
    }
}

impl RateState {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, socket: Bucket::default(), topics: HashMap::new() }
    }

    /// Counts a message, on a joined topic or otherwise. If it is over either limit, it counts for
    /// neither.
    pub(super) fn admit(
        &mut self,
        limits: &RateLimits,
        topic: Option<&Arc<str>>,
        now: Instant,
    ) -> Result<(), Excess> {
        let now = now.saturating_duration_since(self.since);
        let of_topic = limits.topic.zip(topic);
        let socket =
            limits.socket.and_then(|limit| Some((limit, self.socket.wait(limit.rate, now)?)));
        let topic = of_topic
            .and_then(|(limit, topic)| Some((limit, self.wait(limit, topic, limits.topics, now)?)));
        let retry_after = socket.map(|(_, wait)| wait).max(topic.map(|(_, wait)| wait));
        if let Some(retry_after) = retry_after {
            let refused = [socket, topic].into_iter().flatten();
            let closes = refused.map(|(limit, _)| limit.on_limit).find(|on| *on == OnLimit::Close);
            let of = if socket.is_some() { Scope::Socket } else { Scope::Topic };
            return Err(Excess { of, retry_after, on_limit: closes.unwrap_or_default() });
        }
        if let Some(limit) = limits.socket {
            self.socket.take(limit.rate, now);
        }
        if let Some((limit, topic)) = of_topic {
            self.topics.entry(topic.clone()).or_default().take(limit.rate, now);
        }
        Ok(())
    }

    /// How long until a message on a topic is allowed; `None` if it is allowed now.
    fn wait(
        &mut self,
        limit: Limit,
        topic: &Arc<str>,
        room: usize,
        now: Duration,
    ) -> Option<Duration> {
        if let Some(bucket) = self.topics.get(topic) {
            return bucket.wait(limit.rate, now);
        }
        // Cleaned up before the map grows, so that it grows no larger than necessary.
        if self.topics.len() >= room.min(self.topics.capacity()) {
            self.topics.retain(|_, bucket| !bucket.until_full(now).is_zero());
        }
        if self.topics.len() < room {
            return None;
        }
        self.topics.values().map(|bucket| bucket.until_full(now)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(socket: Option<MessageRateLimit>, topic: Option<MessageRateLimit>) -> RateLimits {
        RateLimits { socket: socket.map(Limit::from), topic: topic.map(Limit::from), topics: 4 }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn topic(number: usize) -> Arc<str> {
        format!("room:{number}").into()
    }

    #[test]
    fn a_message_that_one_limit_refuses_does_not_count_for_the_other() {
        let limits = limits(
            Some(MessageRateLimit::per_second(1).burst(2)),
            Some(MessageRateLimit::per_second(1)),
        );
        let now = Instant::now();
        let (mut spent, [lobby, other]) = (RateState::new(now), [1, 2].map(topic));
        assert_eq!(spent.admit(&limits, Some(&lobby), now), Ok(()));
        let refused = spent.admit(&limits, Some(&lobby), now).unwrap_err();
        assert_eq!((refused.of, refused.retry_after), (Scope::Topic, ms(1000)));
        assert_eq!(
            spent.admit(&limits, Some(&other), now),
            Ok(()),
            "the socket has one token left"
        );
        let refused = spent.admit(&limits, Some(&topic(3)), now).unwrap_err();
        assert_eq!((refused.of, refused.retry_after), (Scope::Socket, ms(1000)));
        let later = now + ms(1000);
        assert_eq!(
            spent.admit(&limits, Some(&topic(3)), later),
            Ok(()),
            "its topic has a bucket of its own"
        );
    }

    #[test]
    fn the_longer_wait_counts_and_either_limit_may_close() {
        let limits = limits(
            Some(MessageRateLimit::per_minute(60).burst(1)),
            Some(MessageRateLimit::per_minute(6).burst(1).on_limit(OnLimit::Close)),
        );
        let now = Instant::now();
        let (mut spent, lobby) = (RateState::new(now), topic(1));
        assert_eq!(spent.admit(&limits, Some(&lobby), now), Ok(()));
        let excess =
            Excess { of: Scope::Socket, retry_after: ms(10_000), on_limit: OnLimit::Close };
        assert_eq!(spent.admit(&limits, Some(&lobby), now), Err(excess));
        let without = Excess { retry_after: ms(1000), on_limit: OnLimit::Reply, ..excess };
        assert_eq!(spent.admit(&limits, None, now), Err(without));
        assert_eq!(spent.admit(&limits, Some(&lobby), now + ms(10_000)), Ok(()));
    }

    #[test]
    fn no_more_topics_are_remembered_than_there_is_room_for() {
        let limits = limits(None, Some(MessageRateLimit::per_second(1).burst(2)));
        let now = Instant::now();
        let mut spent = RateState::new(now);
        for number in 0..4 {
            let at = now + ms(100) * u32::try_from(number).unwrap();
            assert_eq!(spent.admit(&limits, Some(&topic(number)), at), Ok(()));
        }
        let (at, one_more) = (now + ms(400), topic(4));
        let refused = spent.admit(&limits, Some(&one_more), at).unwrap_err();
        assert_eq!((refused.of, refused.retry_after), (Scope::Topic, ms(600)));
        assert_eq!(spent.admit(&limits, Some(&topic(0)), at), Ok(()), "the topic is remembered");
        // This event extends the time for which it is remembered.
        let refused = spent.admit(&limits, Some(&one_more), at).unwrap_err();
        assert_eq!(refused.retry_after, ms(700));
        assert!(spent.admit(&limits, Some(&one_more), at + ms(699)).is_err());
        assert_eq!(spent.admit(&limits, Some(&one_more), at + ms(700)), Ok(()));
        assert_eq!(spent.topics.len(), 4);
    }

    #[test]
    fn topics_with_full_buckets_are_forgotten() {
        let mut limits = limits(None, Some(MessageRateLimit::per_second(10)));
        limits.topics = 1000;
        let mut now = Instant::now();
        let mut spent = RateState::new(now);
        for number in 0..1000 {
            now += ms(60);
            assert_eq!(spent.admit(&limits, Some(&topic(number)), now), Ok(()));
        }
        assert!(spent.topics.capacity() < 8, "{}", spent.topics.capacity());
    }
}
