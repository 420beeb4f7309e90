//! The channels of the server through which nodes send. Pure.

use std::fmt::Write;

/// The number of channels for topics. With fewer, a node would receive more topics that it has no
/// subscribers of; with more, the numbers of what was sent would take more memory.
const TOPICS: u64 = 1 << 20;

/// A channel of the server: a channel of Redis, or a subject of NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Channel {
    /// The topics with this hash.
    Topic(u32),
    /// What is for every node.
    All,
    /// What is for one node, whose name has this hash.
    Node(u64),
}

impl Channel {
    /// The channel of a topic.
    pub(crate) fn of_topic(topic: &str) -> Self {
        let number = hash(topic.as_bytes()) % TOPICS;
        Self::Topic(u32::try_from(number).unwrap_or_default())
    }

    /// The channel of a node.
    pub(crate) fn of_node(name: &str) -> Self {
        Self::Node(hash(name.as_bytes()))
    }

    /// The name of the channel. It has the version of the frames in it.
    pub(crate) fn name(self, prefix: &str) -> String {
        let mut name = format!("{prefix}.1.");
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Topic(number) => write!(name, "t.{number:05x}"),
            Self::All => write!(name, "all"),
            Self::Node(hash) => write!(name, "n.{hash:016x}"),
        };
        name
    }
}

/// FNV-1a, and a mix of its bits. Every node and every version has to compute the same.
fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_those_of_all_versions() {
        assert_eq!(Channel::of_topic("room:lobby").name("shop"), "shop.1.t.ca25d");
        assert_eq!(Channel::All.name("shop"), "shop.1.all");
        assert_eq!(Channel::of_node("left").name("shop"), "shop.1.n.f63c4b73b74b7197");
    }

    #[test]
    fn topics_are_spread_over_the_channels() {
        let topics = 100_000;
        let channels: HashSet<_> =
            (0..topics).map(|n| Channel::of_topic(&format!("user:{n}"))).collect();
        // With 1,048,576 channels, 95,300 are expected.
        assert!((95_000..95_600).contains(&channels.len()), "{}", channels.len());
    }
}
