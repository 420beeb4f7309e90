//! The only reader of the wall clock.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The shop's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Option<(SystemTime, Instant, Duration)>);

impl Clock {
    /// The wall clock, except that it does not step back while the program runs. Tokens that are dated in the future are not
    /// valid, so a clock that is set back would take all carts away until it has caught up. Instead it goes at half the speed
    /// until then. One that is set back by more than two hours is followed, because its dates were wrong.
    #[must_use]
    pub const fn wall() -> Self {
        Self(None)
    }

    /// A clock that runs with tokio's, from this time on. Tests pause it.
    #[must_use]
    pub fn running_from(time: SystemTime) -> Self {
        Self(Some((time, Instant::now(), Duration::ZERO)))
    }

    /// The same after the system's clock was set back by so much, for tests: it stays ahead.
    #[must_use]
    pub fn set_back(self, by: Duration) -> Self {
        Self(self.0.map(|(start, at, ahead)| (start, at, ahead.saturating_add(by))))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        match self.0 {
            None => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                let now = WALL.at(wall, START.elapsed());
                UNIX_EPOCH.checked_add(now).unwrap_or(UNIX_EPOCH)
            }
            Some((start, at, _)) => start.checked_add(at.elapsed()).unwrap_or(start),
        }
    }

    /// The time of the system's clock in milliseconds since 1970, which may step back. It is for what is done once, such as a
    /// release: a clock that was wrong and is set right is believed there at once.
    #[must_use]
    pub fn system_ms(&self) -> i64 {
        match self.0 {
            None => in_ms(SystemTime::now()),
            Some((.., ahead)) => in_ms(self.now()).saturating_sub(millis(ahead)),
        }
    }

    /// By how much it is ahead of the system's clock, which was set back: as of the last time that it was read.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        self.0.map_or_else(|| WALL.ahead(), |(_, _, ahead)| ahead)
    }

    /// The time in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        in_ms(self.now())
    }
}

fn millis(time: Duration) -> i64 {
    time.as_millis().try_into().unwrap_or(i64::MAX)
}

fn in_ms(time: SystemTime) -> i64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

static WALL: Steady = Steady::new();

/// The most by which the shop's clock may be ahead of the system's. Tokens are dated by it, and other nodes take none that is
/// dated a minute ahead, so a system's clock that was wrong by more than this is believed when it is set right.
const MOST_AHEAD: i64 = 2 * 3_600 * 1_000_000_000;

/// A step of the system's clock that is worth a line in the log, in nanoseconds.
const STEP: i64 = 10 * 1_000_000_000;

/// A time that does not step back, made of one that may, and of one that only runs. Where the first is set back, it runs on
/// at half the speed until both are the same. Where the first is set back by more than [`MOST_AHEAD`], it is followed.
#[derive(Debug)]
struct Steady(Mutex<State>);

#[derive(Debug)]
struct State {
    /// By how much it is ahead of the time that only runs, in nanoseconds. `None` until it was first read.
    ahead: Option<i64>,
    /// The time that only runs, when it was last read.
    running: i64,
    /// By how much it was ahead of the system's clock then.
    of_system: i64,
}

impl Steady {
    const fn new() -> Self {
        Self(Mutex::new(State { ahead: None, running: 0, of_system: 0 }))
    }

    fn at(&self, wall: Duration, running: Duration) -> Duration {
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let running = nanoseconds(running);
        let now_ahead = nanoseconds(wall).saturating_sub(running);
        let mut state = self.0.lock();
        // Threads may come here in another order than they have read the clocks.
        let passed = running.saturating_sub(state.running).max(0);
        state.running = state.running.max(running);
        let before = state.ahead.unwrap_or(now_ahead);
        let too_far = before.saturating_sub(now_ahead);
        let ahead = if too_far > MOST_AHEAD {
            let seconds = too_far / 1_000_000_000;
            tracing::warn!(
                seconds,
                "the clock of the system was set back so far that it is followed"
            );
            now_ahead
        } else if too_far > 0 {
            before.saturating_sub(passed / 2).max(now_ahead)
        } else {
            if now_ahead.saturating_sub(before) > STEP {
                let seconds = now_ahead.saturating_sub(before) / 1_000_000_000;
                tracing::warn!(
                    seconds,
                    "the clock of the system was set forward, or the machine slept"
                );
            }
            now_ahead
        };
        if state.of_system <= STEP && too_far > STEP && too_far <= MOST_AHEAD {
            let seconds = too_far / 1_000_000_000;
            tracing::warn!(
                seconds,
                "the clock of the system was set back, and the shop's goes slower until both agree"
            );
        }
        state.ahead = Some(ahead);
        state.of_system = ahead.saturating_sub(now_ahead);
        Duration::from_nanos(u64::try_from(running.saturating_add(ahead)).unwrap_or_default())
    }

    /// By how much it was ahead of the first when it was last read.
    fn ahead(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.lock().of_system).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also shows A-144: a clock that is set back while a node runs.
    #[test]
    fn a_clock_that_is_set_back_runs_on_and_one_that_is_set_forward_is_followed() {
        let clock = Steady::new();
        let at = |wall: u64, running: u64| {
            clock.at(Duration::from_secs(wall), Duration::from_secs(running)).as_secs()
        };
        assert_eq!((at(10_000, 0), at(10_010, 10)), (10_010 - 10, 10_010));
        // Set back by an hour: it runs on, at half the speed.
        assert_eq!((at(6_420, 20), at(6_430, 30)), (10_015, 10_020));
        assert_eq!(clock.ahead().as_secs(), 10_020 - 6_430);
        // It is right again, and then set forward.
        assert_eq!((at(10_031, 31), at(20_000, 40)), (10_031, 20_000));
        assert_eq!(clock.ahead(), Duration::ZERO);
        // A machine that slept: its running time stood still.
        assert_eq!(at(30_000, 41), 30_000);
    }

    #[test]
    fn a_clock_that_was_ahead_is_the_systems_again_after_a_while() {
        let clock = Steady::new();
        let at = |wall: u64, running: u64| {
            clock.at(Duration::from_secs(wall), Duration::from_secs(running)).as_secs()
        };
        assert_eq!((at(100_000, 0), at(103_600, 0)), (100_000, 103_600));
        let mut last = 0;
        for second in 0..=7_200 {
            let now = at(100_000 + second, second);
            assert!(now >= last, "it does not step back");
            last = now;
        }
        assert_eq!((last, at(107_300, 7_300)), (107_200, 107_300));
        // A year ahead, and right again: what was dated meanwhile was wrong.
        assert_eq!((at(31_643_300, 7_300), at(107_301, 7_301)), (31_643_300, 107_301));
        // Just as far as it may be ahead.
        assert_eq!((at(114_502, 7_302), at(107_302, 7_302)), (114_502, 114_502));
    }

    #[test]
    fn the_wall_clock_is_near_the_systems() {
        let system = SystemTime::now();
        let clock = Clock::wall().now();
        let apart = clock.duration_since(system).or_else(|error| Ok::<_, ()>(error.duration()));
        assert!(apart.unwrap() < Duration::from_secs(60));
    }
}
