//! A counter with one writer.

use crate::sync::{AtomicU64, Ordering::Relaxed};

/// A counter that one task adds to and any task may read.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    /// Not for two tasks at a time: one could overwrite the update of the other.
    #[inline]
    pub(crate) fn add(&self, events: usize) {
        self.0.store(self.get().saturating_add(events as u64), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The writer and its readers interleave in every order, up to a number of preemptions. The writer
/// is the first task: loom tries fewer orders when the readers are.
#[cfg(all(test, interleavings))]
mod interleavings {
    use loom::{model::Builder, sync::Arc, thread};

    use super::*;

    #[test]
    fn a_reader_never_sees_a_count_that_was_not_or_that_goes_back() {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let tally = Arc::new(Tally::default());
            let readers = [(); 2].map(|()| {
                let tally = tally.clone();
                thread::spawn(move || {
                    let read = [tally.get(), tally.get(), tally.get()];
                    assert!(read.is_sorted(), "{read:?}");
                    assert!(read.iter().all(|count| [0, 2, 5].contains(count)), "{read:?}");
                })
            });
            tally.add(2);
            tally.add(3);
            for reader in readers {
                reader.join().expect("the reader does not panic");
            }
            assert_eq!(tally.get(), 5);
        });
    }
}
