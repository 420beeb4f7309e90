//! The synchronization primitives of queues, mailboxes and gauges.
//!
//! A test with `--cfg interleavings` uses loom's primitives instead, which try every interleaving
//! of tasks.

#[cfg(not(all(test, interleavings)))]
pub(crate) use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering, fence},
    },
    thread::yield_now,
};

#[cfg(all(test, interleavings))]
pub(crate) use loom::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering, fence},
    },
    thread::yield_now,
};
#[cfg(not(all(test, interleavings)))]
pub(crate) use parking_lot::Mutex;

#[cfg(all(test, interleavings))]
pub(crate) use self::modelled::Mutex;

#[cfg(all(test, interleavings))]
mod modelled {
    use loom::sync::MutexGuard;

    /// Loom's, with `parking_lot`'s methods.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a panic fails the test")
        }
    }
}
