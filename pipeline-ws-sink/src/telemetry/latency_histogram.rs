//! A histogram of latencies that can be read.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use metrics::Histogram;

use super::latencies::{self, BUCKETS, Latencies};

/// How many threads have a part of their own, of eight kilobytes each.
const OWN: usize = 16;

/// A histogram that can be read.
///
/// Every timed frame is recorded here, by all threads that write, and most frames that are written
/// together fall into the same few buckets. So the first threads that record have a part of their
/// own: with a single writer, an addition is a load and a store, a third of the cost of an atomic
/// addition.
pub(crate) struct LatencyHistogram {
    histogram: Histogram,
    own: [OnceLock<Box<Part>>; OWN],
    /// The samples of all other threads.
    others: Box<Part>,
}

/// The samples of one thread, in cache lines of their own.
#[repr(align(128))]
struct Part([AtomicU64; BUCKETS]);

impl LatencyHistogram {
    pub(crate) fn record(&self, milliseconds: f64) {
        let bucket = latencies::bucket(milliseconds);
        if let Some(own) = self.own.get(thread_number()) {
            let count = &own.get_or_init(Box::default).0[bucket];
            count.store(count.load(Relaxed) + 1, Relaxed);
        } else {
            self.others.0[bucket].fetch_add(1, Relaxed);
        }
        self.histogram.record(milliseconds);
    }

    pub(crate) fn get(&self) -> Latencies {
        let parts: Vec<&Part> =
            self.own.iter().filter_map(OnceLock::get).map(|own| &**own).collect();
        let sum = |bucket: usize| {
            let own: u64 = parts.iter().map(|part| part.0[bucket].load(Relaxed)).sum();
            own + self.others.0[bucket].load(Relaxed)
        };
        Latencies::of_buckets((0..BUCKETS).map(sum))
    }
}

impl Default for Part {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl From<Histogram> for LatencyHistogram {
    fn from(histogram: Histogram) -> Self {
        let own = std::array::from_fn(|_| OnceLock::new());
        Self { histogram, own, others: Box::default() }
    }
}

/// The unique number of this thread, among those that have ever recorded.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    NUMBER.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Relaxed);
        NUMBER.set(Some(number));
        number
    })
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn samples_of_all_threads_are_read_together() {
        let histogram = LatencyHistogram::from(Histogram::noop());
        thread::scope(|scope| {
            // Some of them have no part of their own.
            for _ in 0..2 * OWN {
                scope.spawn(|| (1..=100).for_each(|ms| histogram.record(f64::from(ms))));
            }
        });
        let seen = histogram.get();
        let expected: Latencies =
            (0..2 * OWN).flat_map(|_| (1..=100).map(Duration::from_millis)).collect();
        assert_eq!(seen, expected);
    }
}
