//! Rate limits of a client's messages. Pure.

use std::time::Duration;

use super::token_bucket::Rate;

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
    ///
    /// ```
    /// # use pipeline_ws_sink::mount::MessageRateLimit;
    /// assert_eq!(MessageRateLimit::per_second(50), MessageRateLimit::per_second(50).burst(50));
    /// ```
    pub const fn per_second(messages: u32) -> Self {
        Self::every(messages, Duration::from_secs(1))
    }

    /// This number of messages per minute on average, and as many at once, unless
    /// [`burst`](Self::burst) sets another number.
    ///
    /// # Panics
    ///
    /// If it is 0: no message would pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::mount::MessageRateLimit;
    /// let chat = MessageRateLimit::per_minute(30).burst(5);
    /// ```
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
    ///
    /// ```
    /// # use pipeline_ws_sink::mount::MessageRateLimit;
    /// // Typing is fast now and then, and slow on average.
    /// let typing = MessageRateLimit::per_second(5).burst(40);
    /// ```
    pub const fn burst(mut self, messages: u32) -> Self {
        assert!(messages > 0, "a message rate limit must allow at least one message");
        self.burst = messages;
        self
    }

    /// What happens to messages over the limit. Default [`OnLimit::Reply`].
    ///
    /// ```
    /// # use pipeline_ws_sink::mount::{MessageRateLimit, OnLimit};
    /// let strict = MessageRateLimit::per_second(100).on_limit(OnLimit::Close);
    /// ```
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
