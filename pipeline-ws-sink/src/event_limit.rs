//! How much a client may say. Pure.

use std::time::Duration;

use crate::token_bucket::Rate;

/// How many events a client may send: so many in the long run, and so many at once.
///
/// It is a bucket of tokens. An event takes one, and is too many if there is none; the bucket holds
/// `burst` of them, and is refilled evenly at the rate. What is too many costs nothing, so a client that
/// goes on sending is let through at the rate.
///
/// It is given to [`Mount::event_limit`](crate::Mount::event_limit) and
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

/// What becomes of an event that is too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExcess {
    /// Its channel does not see it, and the client is answered with an error:
    /// `{"reason": "rate limited", "retry_after": 250}`, in milliseconds. After these, one event passes.
    /// An event that asks for no answer is dropped.
    #[default]
    Reply,
    /// The socket is closed with 1008, and its channels end. The official client connects again, with
    /// its usual delays, and has a full bucket then. One that polls finds its session gone.
    Close,
}

impl EventLimit {
    /// So many events a second in the long run, and as many at once, unless [`burst`](Self::burst)
    /// says otherwise.
    ///
    /// # Panics
    ///
    /// If it is 0, with which nothing would ever pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// assert_eq!(EventLimit::per_second(50), EventLimit::per_second(50).burst(50));
    /// ```
    pub const fn per_second(events: u32) -> Self {
        Self::every(events, Duration::from_secs(1))
    }

    /// So many events a minute in the long run, and as many at once, unless [`burst`](Self::burst)
    /// says otherwise.
    ///
    /// # Panics
    ///
    /// If it is 0, with which nothing would ever pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// let chat = EventLimit::per_minute(30).burst(5);
    /// ```
    pub const fn per_minute(events: u32) -> Self {
        Self::every(events, Duration::from_secs(60))
    }

    const fn every(events: u32, interval: Duration) -> Self {
        assert!(events > 0, "a limit lets at least one event pass");
        Self { events, interval, burst: events, on_excess: OnExcess::Reply }
    }

    /// How many may come at once, after a silence.
    ///
    /// # Panics
    ///
    /// If it is 0, with which nothing would ever pass.
    ///
    /// ```
    /// # use pipeline_ws_sink::EventLimit;
    /// // Typing is fast now and then, and slow on average.
    /// let typing = EventLimit::per_second(5).burst(40);
    /// ```
    pub const fn burst(mut self, events: u32) -> Self {
        assert!(events > 0, "a limit lets at least one event pass");
        self.burst = events;
        self
    }

    /// What becomes of events that are too many. Default [`OnExcess::Reply`].
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
