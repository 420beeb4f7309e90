//! Random numbers for delays.

use std::hash::{BuildHasher, RandomState};

/// A random number from 0 to 1, so that sources that fail together do not retry together.
pub(crate) fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

/// A random number that identifies a lease.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn random_i64() -> i64 {
    RandomState::new().hash_one(()).cast_signed()
}
