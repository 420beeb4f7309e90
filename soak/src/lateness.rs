//! How late a tick comes: it tells a run on a disturbed machine from a fault of the server.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

/// The time from one tick to the next.
const TICK: Duration = Duration::from_millis(100);

/// For how long single ticks are kept.
const KEPT: Duration = Duration::from_secs(60);

/// Each bucket is as wide as this many microseconds, and the last one has all that came later.
const BUCKET_MICROS: u64 = 100;
const BUCKETS: usize = 20_000;

/// The lateness of a process's ticks.
#[derive(Clone, Debug)]
pub(crate) struct Ticks(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When the next tick is due.
    due: Instant,
    /// When the recent ticks were due, and how late they came.
    recent: VecDeque<(Instant, Duration)>,
    buckets: Vec<u32>,
    count: u64,
    most: Duration,
}

/// The lateness of all ticks in milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Lateness {
    pub(crate) ticks: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

impl Ticks {
    /// Ticks in a task of its own, as long as the runtime lives.
    pub(crate) fn start() -> Self {
        let ticks = Self::from(Instant::now());
        let state = ticks.0.clone();
        tokio::spawn(async move {
            loop {
                let due = state.lock().due;
                sleep_until(due).await;
                state.lock().came(Instant::now());
            }
        });
        ticks
    }

    fn from(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            due: now + TICK,
            recent: VecDeque::new(),
            buckets: vec![0; BUCKETS],
            count: 0,
            most: Duration::ZERO,
        })))
    }

    /// How late a tick has been at most in the last time, at most a minute. A tick that is due and has not come counts.
    pub(crate) fn worst_within(&self, last: Duration) -> Duration {
        self.0.lock().worst_within(Instant::now(), last)
    }

    pub(crate) fn lateness(&self) -> Lateness {
        self.0.lock().lateness()
    }
}

impl State {
    fn came(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.due);
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let bucket = usize::try_from(micros / BUCKET_MICROS).unwrap_or(usize::MAX);
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.most = self.most.max(late);
        self.recent.push_back((self.due, late));
        while self.recent.front().is_some_and(|(due, late)| *due + *late + KEPT < now) {
            self.recent.pop_front();
        }
        self.due = now + TICK;
    }

    fn worst_within(&self, now: Instant, last: Duration) -> Duration {
        let recent = self.recent.iter().filter(|(due, late)| *due + *late + last >= now);
        let worst = recent.map(|(_, late)| *late).max().unwrap_or_default();
        worst.max(now.saturating_duration_since(self.due))
    }

    fn lateness(&self) -> Lateness {
        let most = self.most.as_secs_f64() * 1000.0;
        let at = |part: f64| {
            let (mut seen, wanted) = (0, self.count as f64 * part);
            for (bucket, count) in self.buckets.iter().enumerate() {
                seen += u64::from(*count);
                if seen as f64 >= wanted && bucket + 1 < BUCKETS {
                    return ((bucket as u64 + 1) * BUCKET_MICROS) as f64 / 1000.0;
                }
            }
            most
        };
        Lateness { ticks: self.count, p50: at(0.5).min(most), p99: at(0.99).min(most), most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_tick_of_the_last_time_and_the_percentiles_of_all_are_known() {
        let mut now = Instant::now();
        let ticks = Ticks::from(now);
        let mut state = ticks.0.lock();
        for tick in 0..200 {
            let late = if tick == 100 {
                5000
            } else if tick % 10 == 0 {
                30
            } else {
                1
            };
            now += TICK + Duration::from_millis(late);
            state.came(now);
        }
        let within = |seconds| state.worst_within(now, Duration::from_secs(seconds));
        assert_eq!(within(5), Duration::from_millis(30));
        assert_eq!(within(20), Duration::from_secs(5));
        let pending = now + TICK + Duration::from_secs(7);
        let worst = state.worst_within(pending, Duration::from_secs(1));
        assert_eq!(worst, Duration::from_secs(7), "it is due and has not come");
        let Lateness { ticks, p50, p99, most } = state.lateness();
        assert_eq!((ticks, most), (200, 5000.0));
        assert!((1.0..1.2).contains(&p50), "{p50}");
        assert!((30.0..30.2).contains(&p99), "{p99}");
    }
}
