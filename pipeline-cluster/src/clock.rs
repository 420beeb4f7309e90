//! The only reader of the wall clock: the time that the nodes share.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// A clock that the nodes share as well as they can: the server's, if it tells its time, and otherwise
/// each node's wall clock.
#[derive(Debug)]
pub(crate) struct SharedClock {
    started: Instant,
    /// The microseconds since 1970 when it was started.
    base: AtomicU64,
    /// The shortest way to the server and back, which grows a little with each answer.
    shortest: Mutex<Option<Duration>>,
}

impl SharedClock {
    pub(crate) fn start() -> Self {
        let base = AtomicU64::new(wall());
        Self { started: Instant::now(), base, shortest: Mutex::new(None) }
    }

    /// The microseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// The microseconds since 1970 at this moment.
    pub(crate) fn at(&self, moment: Instant) -> u64 {
        self.base.load(Relaxed).saturating_add(self.elapsed(moment))
    }

    /// The server's time, which it read at some moment between these two. An answer that took much
    /// longer than others says little, and is left out.
    pub(crate) fn server_says(&self, time: u64, asked: Instant, answered: Instant) {
        let took = answered.saturating_duration_since(asked);
        {
            let mut shortest = self.shortest.lock();
            let known = shortest.map_or(took, |it| it.mul_f64(1.1).min(took));
            *shortest = Some(known);
            if took > known.saturating_mul(2) {
                return;
            }
        }
        let middle = asked.checked_add(took / 2).unwrap_or(asked);
        self.base.store(time.saturating_sub(self.elapsed(middle)), Relaxed);
    }

    /// The server tells no time: follows the wall clock, which may have been set.
    pub(crate) fn follow_wall(&self) {
        self.base.store(wall().saturating_sub(self.elapsed(Instant::now())), Relaxed);
    }

    fn elapsed(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.started))
    }
}

/// The microseconds since 1970 by the wall clock.
fn wall() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn the_servers_time_counts_unless_its_answer_took_long() {
        let clock = SharedClock::start();
        let wall = clock.now();
        let asked = Instant::now();
        clock.server_says(5_000_000, asked, asked + 2 * MS);
        assert_eq!(clock.now(), 4_999_000, "it was read half way, a millisecond from now");
        clock.server_says(9_000_000, asked, asked + 50 * MS);
        assert_eq!(clock.now(), 4_999_000, "the answer took 50 ms");
        tokio::time::advance(1_000 * MS).await;
        assert_eq!(clock.now(), 5_999_000);
        clock.follow_wall();
        assert!(clock.now() >= wall);
    }
}
