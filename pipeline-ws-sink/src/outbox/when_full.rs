//! What happens when a client is behind. Pure.

use std::time::Duration;

/// What happens when more waits for a client than may, and its socket takes no more: see
/// [`Mount::max_outbox`](crate::Mount::max_outbox).
///
/// It never matters how much is sent at once: a sender that finds no room writes what waits first. By
/// default the client is closed. The other policies drop pushes and broadcasts, frame by frame, or
/// have the sender wait. The answers to a client's messages, and what tells it that a channel has
/// ended, are never dropped: they make room for themselves, and may take twice the limits when nothing
/// is left to make way. Beyond that, the client is closed with 1011. What remains keeps its order.
///
/// Phoenix has no such policies, and no limit either. Whatever is dropped is counted in
/// `socket.frames_dropped`, and clients that are closed in `socket.closed_slow`.
///
/// ```
/// # use pipeline_ws_sink::*;
/// # struct PriceSocket;
/// # impl Socket for PriceSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
/// // Of prices, a client that is behind wants the last ones.
/// let mount = Mount::new(PriceSocket).when_full(WhenFull::KeepLatest);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// The client is closed with 1011. The official client connects again and joins its topics anew.
    #[default]
    Disconnect,
    /// Those that have waited longest are dropped, as many as it takes.
    DropOldest,
    /// The new one is dropped. An answer makes room by dropping those that have waited shortest.
    DropNewest,
    /// The new one takes the place of all that wait with the same topic and event, so that only the
    /// latest is left. It goes behind everything that waits, because a client must not get it before
    /// what was said before it. When that makes no room, those that have waited longest are dropped.
    ///
    /// As long as there is room, nothing is replaced. To find what a new one replaces, all that waits is
    /// looked at: where the latest of very many events are kept for a client, fewer frames should wait, by
    /// [`Mount::max_outbox`](crate::Mount::max_outbox).
    KeepLatest,
    /// A sender waits for room, if it can wait, and for each push for so long at most; then the client is
    /// closed with 1011. A client that reads nothing may be waited for with two pushes or more, because the
    /// operating system can take a few frames at the last moment. A channel's broadcast never waits for
    /// another client: what it sends may take twice the limits, and then the client is closed.
    ///
    /// It suits topics of one user each. On a topic of many, a client that never reads holds up all
    /// of them for so long, and again when it has connected anew. A [`Pusher`](crate::Pusher)
    /// of several topics lets no more than a few workers wait for one: see
    /// [`Pusher::max_waiting`](crate::Pusher::max_waiting). Workers of one's own that call
    /// [`PubSub::send`](crate::PubSub::send) have no such bound: one client that never reads can keep all of
    /// them waiting, and holds up all that the pipeline pushes. How long a client may be full in all is
    /// limited by [`Mount::max_behind`](crate::Mount::max_behind).
    Wait {
        /// How long who sends waits for one client, for each push; [`Duration::MAX`] is as long as it
        /// takes. Sensible is what a client needs to come out of a tunnel, and no more than the
        /// sender can afford: see [`wait`](Self::wait).
        up_to: Duration,
    },
}

impl WhenFull {
    /// [`Wait`](Self::Wait), for five seconds at most.
    ///
    /// ```
    /// # use pipeline_ws_sink::WhenFull;
    /// # use std::time::Duration;
    /// assert_eq!(WhenFull::wait(), WhenFull::Wait { up_to: Duration::from_secs(5) });
    /// ```
    #[must_use]
    pub const fn wait() -> Self {
        Self::Wait { up_to: Duration::from_secs(5) }
    }
}
