//! What is kept for each subscription.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::SubscriptionId;

/// A map by subscription, for those who look something up with every message.
pub(crate) type SubscriptionMap<V> = HashMap<SubscriptionId, V, BuildHasherDefault<IdHasher>>;

/// Spreads ids, which are counted by the program itself, so that nobody can choose them to collide.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    /// The map looks at the highest bits as well as at the lowest.
    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn ids_that_follow_each_other_are_spread_over_the_lowest_and_the_highest_bits() {
        let hash = |n| BuildHasherDefault::<IdHasher>::default().hash_one(SubscriptionId::new(n));
        let hashes: Vec<u64> = (0..128).map(hash).collect();
        let distinct =
            |bits: fn(&u64) -> u64| hashes.iter().map(bits).collect::<HashSet<_>>().len();
        assert_eq!(distinct(|hash| *hash), 128);
        assert!(distinct(|hash| hash & 127) > 64);
        assert!(distinct(|hash| hash >> 57) > 64);
    }
}
