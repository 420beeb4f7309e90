//! Rate limits of a client's messages. Pure.

use std::time::Duration;

use crate::token_bucket::Rate;

/// A rate limit of a client's events: an average rate, and a burst.
///
/// It is a token bucket. An event takes a token, and is over the limit if there is none; the bucket
/// holds `burst` tokens and is refilled evenly at the rate. An event over the limit takes no token,
/// so a client that keeps sending gets through at the rate.
///
/// Used by [`Mount::event_limit`](crate::Mount::event_limit) and
/// [`Mount::topic_event_limit`](crate::Mount::topic_event_limit).
///
/// ```
/// use pipeline_ws_sink::{EventLimit, OnExcess};
///
/// let limit = EventLimit::per_second(50).burst(100).on_excess(OnExcess::Close);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct EventLimit {
    events: u32,
    interval: Duration,
    burst: u32,
    on_excess: OnExcess,
}

/// What happens to an event over the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExcess {
    /// The channel does not receive it, and the client is answered with an error: `{"reason": "rate
    /// limited", "retry_after": 250}`, in milliseconds. After that time, one event passes. An event
    /// without a reference is dropped.
    #[default]
    Reply,
    /// The socket is closed with 1008, and its channels end. The official client connects again,
    /// with its usual delays, and then has a full bucket. A long-polling client finds its session
    /// gone.
    Close,
}

impl EventLimit {
    /// This number of events per second on average, and as many at once, unless
    /// [`burst`](Self::burst) sets another number.
    ///
    /// # Panics
    ///
    /// If it is 0: no event would pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// assert_eq!(EventLimit::per_second(50), EventLimit::per_second(50).burst(50));
    /// ```
    pub const fn per_second(events: u32) -> Self {
        Self::every(events, Duration::from_secs(1))
    }

    /// This number of events per minute on average, and as many at once, unless
    /// [`burst`](Self::burst) sets another number.
    ///
    /// # Panics
    ///
    /// If it is 0: no event would pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// let chat = EventLimit::per_minute(30).burst(5);
    /// ```
    pub const fn per_minute(events: u32) -> Self {
        Self::every(events, Duration::from_secs(60))
    }

    const fn every(events: u32, interval: Duration) -> Self {
        assert!(events > 0, "an event limit must allow at least one event");
        Self { events, interval, burst: events, on_excess: OnExcess::Reply }
    }

    /// How many events may come at once, after a silence.
    ///
    /// # Panics
    ///
    /// If it is 0: no event would pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// // Typing is fast now and then, and slow on average.
    /// let typing = EventLimit::per_second(5).burst(40);
    /// ```
    pub const fn burst(mut self, events: u32) -> Self {
        assert!(events > 0, "an event limit must allow at least one event");
        self.burst = events;
        self
    }

    /// What happens to events over the limit. Default [`OnExcess::Reply`].
    ///
    /// ```
    /// # use pipeline_ws_sink::{EventLimit, OnExcess};
    /// let strict = EventLimit::per_second(100).on_excess(OnExcess::Close);
    /// ```
    pub const fn on_excess(mut self, on_excess: OnExcess) -> Self {
        self.on_excess = on_excess;
        self
    }

    pub(crate) fn rate(&self) -> Rate {
        Rate::new(self.events, self.interval, self.burst)
    }

    pub(crate) fn when_exceeded(&self) -> OnExcess {
        self.on_excess
    }
}
