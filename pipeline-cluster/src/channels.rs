//! The channels of the server through which nodes send. Pure.

use std::hash::{BuildHasherDefault, Hasher};

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
        // One for each message: the formatting of the standard library would cost more than the rest.
        let mut name = String::with_capacity(prefix.len() + 24);
        name.push_str(prefix);
        let (kind, number, digits) = match self {
            Self::All => (".1.all", 0, 0),
            Self::Topic(number) => (".1.t.", u64::from(number), 5),
            Self::Node(hash) => (".1.n.", hash, 16),
        };
        name.push_str(kind);
        for digit in (0..digits).rev() {
            let digit = u32::try_from(number >> (4 * digit) & 0xf).unwrap_or_default();
            name.extend(char::from_digit(digit, 16));
        }
        name
    }
}

/// Hashes channels, which are hashes already.
pub(crate) type BuildChannelHasher = BuildHasherDefault<ChannelHasher>;

/// Mixes what it is given. There are few channels, and no way to choose them so that many collide.
#[derive(Debug, Default)]
pub(crate) struct ChannelHasher(u64);

impl Hasher for ChannelHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, variant: isize) {
        self.write_u64(variant.cast_unsigned() as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
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
