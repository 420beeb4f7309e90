//! How long the way to the sockets took.

use std::{
    cell::Cell,
    num::NonZeroUsize,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
};

use metrics::Histogram;

use crate::latencies::{self, BUCKETS, Latencies};

/// No more parts than this, however many processors there are: each takes eight kilobytes.
const MOST: usize = 16;

/// A histogram that can be read.
///
/// Every frame that is timed is recorded here, by all threads that write, and of those that are
/// written together most belong into the same few buckets. So there is a part for every thread that
/// can run at once.
pub(crate) struct Deliveries {
    histogram: Histogram,
    parts: Box<[Part]>,
}

/// What some of the threads have recorded. By itself in its cache lines.
#[repr(align(128))]
struct Part([AtomicU64; BUCKETS]);

impl Deliveries {
    pub(crate) fn record(&self, milliseconds: f64) {
        let part = &self.parts[thread_number() % self.parts.len()];
        part.0[latencies::bucket(milliseconds)].fetch_add(1, Relaxed);
        self.histogram.record(milliseconds);
    }

    pub(crate) fn get(&self) -> Latencies {
        let sum = |bucket: usize| self.parts.iter().map(|part| part.0[bucket].load(Relaxed)).sum();
        Latencies::of_buckets((0..BUCKETS).map(sum))
    }
}

impl From<Histogram> for Deliveries {
    fn from(histogram: Histogram) -> Self {
        let parts = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST);
        let part = |_| Part(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { histogram, parts: (0..parts).map(part).collect() }
    }
}

/// A number for the thread. Those that are started one after the other have different ones.
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_all_threads_have_recorded_is_seen_together() {
        let deliveries = Deliveries::from(Histogram::noop());
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (1..=100).for_each(|ms| deliveries.record(f64::from(ms))));
            }
        });
        let seen = deliveries.get();
        let expected: Latencies =
            (0..20).flat_map(|_| (1..=100).map(Duration::from_millis)).collect();
        assert_eq!(seen, expected);
    }
}
