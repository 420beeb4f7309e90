//! A hash for keys that nobody can choose to collide: those that the program makes itself, and those
//! that are looked up in a map of its own. Pure.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map of keys that the program has chosen, for those who look something up with every message or
/// event.
pub(crate) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// Multiplies and folds, a word at a time.
#[derive(Debug, Default)]
pub(crate) struct QuickHasher(u64);

/// A number is one word, not its bytes.
macro_rules! write_words {
    ($($write:ident($number:ty),)*) => {$(
        fn $write(&mut self, number: $number) {
            self.write_u64(number.into());
        }
    )*};
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for &byte in rest {
            self.write_u8(byte);
        }
    }

    write_words! { write_u8(u8), write_u16(u16), write_u32(u32), }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The map looks at the highest bits as well as at the lowest.
        self.0 = product ^ (product >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        hash::{BuildHasher, Hash},
    };

    use super::*;

    fn hash(key: impl Hash) -> u64 {
        BuildHasherDefault::<QuickHasher>::default().hash_one(key)
    }

    #[test]
    fn keys_that_resemble_each_other_are_spread_over_the_lowest_and_the_highest_bits() {
        let numbers: Vec<u64> = (0..128u64).map(hash).collect();
        let names: Vec<u64> = (0..128).map(|n| hash(format!("partition {n}"))).collect();
        for hashes in [numbers, names] {
            let distinct =
                |bits: fn(&u64) -> u64| hashes.iter().map(bits).collect::<HashSet<_>>().len();
            assert_eq!(distinct(|hash| *hash), 128);
            assert!(distinct(|hash| hash & 127) > 64);
            assert!(distinct(|hash| hash >> 57) > 64);
        }
    }
}
