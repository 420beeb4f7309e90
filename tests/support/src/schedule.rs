//! Tests that run a case many times on several threads, each time with other random pauses.

use std::{future::Future, hint, ops::RangeBounds, thread};

use fastrand::Rng;
use futures::{FutureExt, StreamExt, stream};
use tokio::{runtime, time::timeout};

use crate::PATIENCE;

/// How many threads run the cases. More than a small machine has cores, so that the system suspends
/// some of them at any place.
const THREADS: usize = 6;

/// How many cases run at the same time.
const CASES: usize = 16;

/// The random choices of one task: what it does, and where it pauses.
#[derive(Debug)]
pub struct Schedule(Rng);

impl Schedule {
    /// The choices of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// The choices of another task.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.0.fork())
    }

    /// A number of the range.
    pub fn pick(&mut self, range: impl RangeBounds<usize>) -> usize {
        self.0.usize(range)
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.pick(..all.len())]
    }

    /// True once in this number of calls, on average.
    pub fn once_in(&mut self, calls: usize) -> bool {
        self.pick(..calls) == 0
    }

    /// A place where other tasks may run first.
    pub async fn pause(&mut self) {
        match self.pick(..10) {
            0 => tokio::task::yield_now().await,
            _ => self.hesitate(),
        }
    }

    /// A place where other threads may run first.
    pub fn hesitate(&mut self) {
        match self.pick(..10) {
            0 => thread::yield_now(),
            1 => (0..self.pick(..2_000)).for_each(|_| hint::spin_loop()),
            _ => {}
        }
    }
}

/// Runs a case once for each seed, several at a time, on several threads. The environment variable
/// `SCHEDULES` multiplies the number of seeds.
///
/// # Panics
///
/// If a case does, or does not end within twice the [`PATIENCE`]: with the seed. A seed does not repeat how the
/// system scheduled the threads, so it may take several runs to fail again.
pub fn on_any_schedule<F>(seeds: u64, case: impl Fn(u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let times = std::env::var("SCHEDULES").map_or(1, |times| times.parse().unwrap());
    let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    runtime.unwrap().block_on(async {
        let mut cases = stream::iter(0..seeds * times)
            .map(|seed| tokio::spawn(timeout(2 * PATIENCE, case(seed))).map(move |end| (seed, end)))
            .buffer_unordered(CASES);
        while let Some((seed, end)) = cases.next().await {
            match end {
                Ok(Ok(())) => {}
                Ok(Err(_)) => panic!("the schedule of seed {seed} does not end"),
                Err(error) => panic!("the schedule of seed {seed} fails: {error}"),
            }
        }
    });
}
