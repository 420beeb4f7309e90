//! The kind of a frame: whether it may be dropped. Pure.

use std::{hash::BuildHasher, num::NonZeroU64, sync::LazyLock};

use foldhash::quality::RandomState;

/// Whether a frame may be dropped when its receiver is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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
        // Never 0, so that `Kind` takes no more memory than its key.
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
        assert_eq!(size_of::<Kind>(), 16);
    }
}
