//! The times that a stage spent on its activities.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

use crate::{
    snapshot::Activity,
    sync::{
        AtomicU8, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
        fence, yield_now,
    },
};

/// The current activity of a stage, its start, and the total time of each activity.
///
/// The stage writes several times for each message, and never waits for readers; a reader that
/// overlaps with a write reads again.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The origin of all times, which are counted in nanoseconds.
    origin: OnceLock<Instant>,
    /// Odd during a write.
    version: AtomicU64,
    activity: AtomicU8,
    since: AtomicU64,
    /// By activity.
    spent: [AtomicU64; ALL.len()],
}

/// The values to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) activity: Activity,
    pub(super) busy: Duration,
    pub(super) waiting_for_events: Duration,
    pub(super) waiting_for_demand: Duration,
}

/// An activity's number is its index here.
const ALL: [Activity; 6] = [
    Activity::Starting,
    Activity::Busy,
    Activity::WaitingForEvents,
    Activity::WaitingForDemand,
    Activity::Paused,
    Activity::Ended,
];

impl Times {
    /// Records a new activity.
    pub(super) fn enter(&self, activity: Activity, now: Instant) {
        let before = self.activity.load(Relaxed);
        if before == activity as u8 {
            return;
        }
        let now = self.nanoseconds(now);
        let passed = now.saturating_sub(self.since.load(Relaxed));
        let spent = &self.spent[usize::from(before)];
        let version = self.version.load(Relaxed) | 1;
        self.version.store(version, Relaxed);
        fence(Release);
        spent.store(spent.load(Relaxed) + passed, Relaxed);
        self.since.store(now, Relaxed);
        self.activity.store(activity as u8, Relaxed);
        self.version.store(version + 1, Release);
    }

    /// The activity at this time, and the total times.
    pub(super) fn at(&self, now: Instant) -> Spent {
        let now = self.nanoseconds(now);
        loop {
            let version = self.version.load(Acquire);
            let spent = self.read(now);
            fence(Acquire);
            if version.is_multiple_of(2) && version == self.version.load(Relaxed) {
                return spent;
            }
            // The writer will finish soon: it was preempted between two lines.
            yield_now();
        }
    }

    fn read(&self, now: u64) -> Spent {
        let activity = ALL[usize::from(self.activity.load(Relaxed))];
        let passed = now.saturating_sub(self.since.load(Relaxed));
        let spent = |of: Activity| {
            let before = self.spent[of as usize].load(Relaxed);
            Duration::from_nanos(before + if of == activity { passed } else { 0 })
        };
        Spent {
            activity,
            busy: spent(Activity::Busy),
            waiting_for_events: spent(Activity::WaitingForEvents),
            waiting_for_demand: spent(Activity::WaitingForDemand),
        }
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        let origin = *self.origin.get_or_init(|| at);
        u64::try_from(at.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(all(test, not(interleavings)))]
mod tests {
    use std::thread;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_period_counts_for_its_activity() {
        let (times, start) = (Times::default(), Instant::now());
        times.enter(Activity::Busy, start);
        times.enter(Activity::WaitingForEvents, start + SECOND);
        times.enter(Activity::Busy, start + 3 * SECOND);
        times.enter(Activity::Busy, start + 4 * SECOND);
        times.enter(Activity::WaitingForDemand, start + 7 * SECOND);
        let expected = Spent {
            activity: Activity::WaitingForDemand,
            busy: 5 * SECOND,
            waiting_for_events: 2 * SECOND,
            waiting_for_demand: 8 * SECOND,
        };
        assert_eq!(times.at(start + 15 * SECOND), expected);
        // Reading changes nothing.
        assert_eq!(times.at(start + 15 * SECOND), expected);
    }

    #[test]
    fn the_current_activity_is_counted_before_the_next() {
        let (times, start) = (Times::default(), Instant::now());
        assert_eq!(times.at(start), Spent::default());
        times.enter(Activity::Busy, start);
        assert_eq!(times.at(start + SECOND).busy, SECOND);
        times.enter(Activity::Ended, start + SECOND);
        let ended = times.at(start + 9 * SECOND);
        assert_eq!((ended.activity, ended.busy), (Activity::Ended, SECOND));
    }

    #[test]
    fn an_activity_is_found_by_its_number() {
        for activity in ALL {
            assert_eq!(ALL[activity as usize], activity);
        }
    }

    #[test]
    fn no_reader_sees_a_partial_write() {
        let (times, start) = (Times::default(), Instant::now());
        times.enter(Activity::Busy, start);
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for n in 1..100_000u32 {
                    let activity =
                        if n % 2 == 0 { Activity::Busy } else { Activity::WaitingForEvents };
                    times.enter(activity, start + n * SECOND);
                }
            });
            while !writing.is_finished() {
                // The whole elapsed time is counted, and none of it twice.
                let spent = times.at(start + 100_000 * SECOND);
                assert_eq!(spent.busy + spent.waiting_for_events, 100_000 * SECOND);
            }
        });
    }
}

/// The stage and its readers interleave in every order, up to a number of preemptions, and loads
/// return every value that the memory model allows. The stage is the first task: loom tries fewer
/// orders when a reader is.
#[cfg(all(test, interleavings))]
mod interleavings {
    use loom::{model::Builder, sync::Arc, thread};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The states of a stage after nine seconds, before and after each of its steps.
    const STATES: [Spent; 3] = [
        state(Activity::Busy, 9, 0),
        state(Activity::WaitingForEvents, 1, 8),
        state(Activity::Busy, 7, 2),
    ];

    const fn state(activity: Activity, busy: u64, waiting_for_events: u64) -> Spent {
        Spent {
            activity,
            busy: Duration::from_secs(busy),
            waiting_for_events: Duration::from_secs(waiting_for_events),
            waiting_for_demand: Duration::ZERO,
        }
    }

    #[test]
    fn a_reader_sees_the_state_before_or_after_a_step_and_never_an_earlier_one_later() {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(|| {
            let (times, start) = (Arc::new(Times::default()), Instant::now());
            let state = move |times: &Times| {
                let spent = times.at(start + 9 * SECOND);
                let at = STATES.iter().position(|state| *state == spent);
                at.unwrap_or_else(|| panic!("{spent:?} never was"))
            };
            times.enter(Activity::Busy, start);
            let reader = {
                let times = times.clone();
                thread::spawn(move || {
                    let (first, second) = (state(&times), state(&times));
                    assert!(first <= second, "state {second} after {first}");
                })
            };
            times.enter(Activity::WaitingForEvents, start + SECOND);
            times.enter(Activity::Busy, start + 3 * SECOND);
            reader.join().expect("the reader does not panic");
            assert_eq!(state(&times), 2, "the last state");
        });
    }
}
