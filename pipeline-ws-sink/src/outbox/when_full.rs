//! The policies of a full outbox, and the kinds of frames that they tell apart. Pure.

use std::{hash::BuildHasher, num::NonZeroU64, sync::LazyLock, time::Duration};

use foldhash::quality::RandomState;

/// The policy when a client's outbox is full and its socket takes no more: see
/// [`Mount::max_outbox`](crate::Mount::max_outbox).
///
/// The number of events sent at once never matters: a sender that finds no room first writes the
/// pending frames. By default the client is closed. The other policies drop pushes and broadcasts,
/// frame by frame, or block the sender. Answers to a client's messages, and announcements of a
/// channel's end, are never dropped: other frames are dropped for them, and when no droppable frame
/// is left they may take twice the limits. Beyond that, the client is closed with 1011. The
/// remaining frames keep their order.
///
/// Phoenix has no such policies, and no limit either. Dropped frames are counted in
/// `socket.frames_dropped`, and closed clients in `socket.closed_slow`.
///
/// ```
/// # use pipeline_ws_sink::{
/// #     Mount, Socket,
/// #     mount::WhenFull,
/// #     socket::{ConnectError, ConnectInfo, Params},
/// # };
/// # struct PriceSocket;
/// # impl Socket for PriceSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
/// // A client that is behind needs only the latest prices.
/// let mount = Mount::new(PriceSocket).when_full(WhenFull::KeepLatest);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// The client is closed with 1011. The official client connects again and joins its topics anew.
    #[default]
    Disconnect,
    /// Drops the oldest waiting events, as many as necessary.
    DropOldest,
    /// Drops the new event. An answer makes room by dropping the newest waiting events.
    DropNewest,
    /// Replaces all waiting events with the same topic and event by the new one, so that only the
    /// latest is left. It goes behind all waiting frames, because a client must not receive it
    /// before earlier ones. If that makes no room, the oldest waiting events are dropped.
    ///
    /// As long as there is room, nothing is replaced. Finding the events to replace takes a pass
    /// over all waiting frames: to keep the latest of very many events for a client, allow fewer
    /// waiting frames with [`Mount::max_outbox`](crate::Mount::max_outbox).
    KeepLatest,
    /// Makes senders that can wait do so, for a limited time for each broadcast; then the client is
    /// closed with 1011. A client that reads nothing may delay two broadcasts or more, because the
    /// operating system can take a few frames at the last moment. A channel's broadcast never waits
    /// for another client: its events may take twice the limits, and then the client is closed.
    ///
    /// It suits topics of one user each. On a topic of many clients, one that never reads delays
    /// all of them for this time, and again when it has connected again. A
    /// [`BroadcastWorker`](crate::pubsub::BroadcastWorker) of several topics lets only a few
    /// workers wait for one client: see
    /// [`BroadcastWorker::max_waiting`](crate::pubsub::BroadcastWorker::max_waiting). Workers of
    /// your own that call [`PubSub::broadcast_when_ready`](crate::PubSub::broadcast_when_ready)
    /// have no such limit: one client that never reads can keep all of them waiting, and delay all
    /// pushes of the pipeline. [`Mount::send_timeout`](crate::Mount::send_timeout) limits how long
    /// a client may be full in total.
    Block {
        /// How long a sender waits for one client, for each broadcast; [`Duration::MAX`] sets no
        /// limit. Choose the time that a client needs to come out of a tunnel, and no more than the
        /// sender can afford: see [`block`](Self::block).
        timeout: Duration,
    },
}

impl WhenFull {
    /// [`Block`](Self::Block), for five seconds at most.
    #[must_use]
    pub const fn block() -> Self {
        Self::Block { timeout: Duration::from_secs(5) }
    }
}

/// Whether a frame may be dropped when its receiver is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A reply, a channel's end, a control frame: the client waits for it.
    Essential,
    /// A push or a broadcast, with the key that a later one supersedes it by.
    Event(EventKey),
}

/// Identifies a topic and an event: equal for equal pairs, and different for others.
///
/// A hash of 128 bits, so that it is made once and compared without memory. A collision is
/// practically impossible, and would cost a client one event that could be dropped anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventKey(NonZeroU64, u64);

impl EventKey {
    pub(crate) fn new(topic: &str, event: &str) -> Self {
        static HASHERS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        let [first, second] = HASHERS.each_ref().map(|hasher| hasher.hash_one((topic, event)));
        // Never 0, so that `FrameKind` takes no more memory than its key.
        Self(NonZeroU64::MIN.saturating_add(first), second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_for_the_same_topic_and_event_only() {
        let key = EventKey::new("room:1", "news");
        assert_eq!(key, EventKey::new("room:1", "news"));
        for (topic, event) in [("room:2", "news"), ("room:1", "new"), ("room:", "1news"), ("", "")]
        {
            assert_ne!(key, EventKey::new(topic, event));
        }
        assert_eq!(size_of::<FrameKind>(), 16);
    }
}
