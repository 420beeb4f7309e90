//! A hash that is the same in every process and every version.

use std::hash::{Hash, Hasher};

/// The hash of a value: FNV-1a over the bytes that the value's `Hash` writes, then mixed so that
/// the remainder of a division depends on every bit.
///
/// It has no random key. Numbers are written in little-endian order, and pointer-sized ones as 64
/// bits, so that all machines agree. It is as stable as the value's `Hash`, and does not protect
/// against keys chosen to collide.
pub(super) fn stable_hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = StableHasher(OFFSET_BASIS);
    value.hash(&mut hasher);
    hasher.finish()
}

/// The number of the partition that a key belongs to, before the division by how many there are. A number
/// is its own: so 0, 1, 2 and so on are spread evenly, in this order. Any other key has its stable hash.
pub(crate) fn partition_number<K: Hash + ?Sized>(key: &K) -> u64 {
    let mut hasher = NumberHasher { written: Written::Nothing, hash: StableHasher(OFFSET_BASIS) };
    key.hash(&mut hasher);
    hasher.finish()
}

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

struct StableHasher(u64);

/// The default implementation writes a number in native byte order.
macro_rules! write_little_endian {
    ($($write:ident($number:ty),)*) => {$(
        fn $write(&mut self, number: $number) {
            self.write(&number.to_le_bytes());
        }
    )*};
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    write_little_endian! {
        write_u16(u16), write_u32(u32), write_u64(u64), write_u128(u128),
        write_i16(i16), write_i32(i32), write_i64(i64), write_i128(i128),
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_i64(number as i64);
    }

    /// FNV's lowest bit is only the parity of the lowest bits of the input, so keys that are all
    /// even would share one of two partitions.
    fn finish(&self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// What a key's `Hash` has written.
#[derive(Clone, Copy)]
enum Written {
    Nothing,
    /// A number, and nothing else.
    Number(u64),
    Other,
}

/// Recognizes a key that is a number.
struct NumberHasher {
    written: Written,
    hash: StableHasher,
}

impl NumberHasher {
    fn wrote(&mut self, number: u64) {
        self.written = match self.written {
            Written::Nothing => Written::Number(number),
            Written::Number(_) | Written::Other => Written::Other,
        };
    }
}

macro_rules! write_number {
    ($($write:ident($number:ident: $type:ty) => $wide:expr,)*) => {$(
        fn $write(&mut self, $number: $type) {
            self.wrote($wide);
            self.hash.$write($number);
        }
    )*};
}

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.written = Written::Other;
        self.hash.write(bytes);
    }

    write_number! {
        write_u8(number: u8) => number.into(),
        write_u16(number: u16) => number.into(),
        write_u32(number: u32) => number.into(),
        write_u64(number: u64) => number,
        write_usize(number: usize) => number as u64,
        write_i8(number: i8) => i64::from(number).cast_unsigned(),
        write_i16(number: i16) => i64::from(number).cast_unsigned(),
        write_i32(number: i32) => i64::from(number).cast_unsigned(),
        write_i64(number: i64) => number.cast_unsigned(),
        write_isize(number: isize) => (number as i64).cast_unsigned(),
    }

    fn finish(&self) -> u64 {
        match self.written {
            Written::Number(number) => number,
            Written::Nothing | Written::Other => self.hash.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Hash)]
    enum Key {
        User(u32),
        Anonymous,
    }

    /// These values must never change: programs that run at the same time have to agree.
    #[test]
    fn the_hash_of_a_value_is_the_same_for_ever() {
        assert_eq!(stable_hash(&0u64), 0x813f_0174_a236_7c13);
        assert_eq!(stable_hash(&1u64), 0x5ca6_bbcb_b1e8_5355);
        assert_eq!(stable_hash("user:1"), 0x2951_3488_e2ec_bcee);
        assert_eq!(stable_hash(&(7u16, -1isize)), 0x8cb8_7f60_7730_211f);
        assert_eq!(stable_hash(&Key::User(9)), 0x8fd7_edb5_6bc2_957c);
        assert_eq!(stable_hash(&[1usize, 2][..]), 0xcedd_5d02_bb83_80ce);
        assert_ne!(stable_hash(&Key::Anonymous), stable_hash(&Key::User(0)));
    }

    #[test]
    fn the_partition_number_of_a_number_is_itself_and_of_other_keys_their_hash() {
        assert_eq!([0u64, 7, u64::MAX].map(|n| partition_number(&n)), [0, 7, u64::MAX]);
        assert_eq!((partition_number(&7u8), partition_number(&7i32)), (7, 7));
        assert_eq!((partition_number(&7usize), partition_number(&true)), (7, 1));
        assert_eq!(partition_number("user:1"), stable_hash("user:1"));
        assert_eq!(partition_number(&"user:1".to_owned()), stable_hash("user:1"));
        assert_eq!(partition_number(&(7u64, 9u64)), stable_hash(&(7u64, 9u64)));
        assert_eq!(partition_number(&Key::User(9)), stable_hash(&Key::User(9)));
        assert_eq!(partition_number(&()), stable_hash(&()));
    }

    #[test]
    fn numbers_of_the_size_of_a_pointer_are_hashed_as_64_bits() {
        assert_eq!(stable_hash(&5usize), stable_hash(&5u64));
        assert_eq!(stable_hash(&-5isize), stable_hash(&-5i64));
    }

    #[test]
    fn keys_are_spread_evenly_whatever_their_step() {
        for step in [1u64, 2, 8, 1000, 1 << 20, 1 << 40] {
            for partitions in [2usize, 3, 8, 10] {
                let mut counts = vec![0u32; partitions];
                for n in 0..10_000 {
                    let hash = stable_hash(&(n * step));
                    counts[usize::try_from(hash % partitions as u64).unwrap()] += 1;
                }
                let expected = 10_000 / u32::try_from(partitions).unwrap();
                let even = (expected * 8 / 10)..(expected * 12 / 10);
                assert!(
                    counts.iter().all(|count| even.contains(count)),
                    "step {step}, {partitions} partitions: {counts:?}"
                );
            }
        }
    }
}
