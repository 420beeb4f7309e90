//! One counter, one gauge: what a handle of the facade writes to and a flush reads.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::atomics::AtomicU64;
use metrics::{CounterFn, GaugeFn};
use parking_lot::Mutex;

use crate::idle::Idle;
use crate::name::SeriesName;

/// A counter. What has been taken over all flushes always adds up to a value the counter had.
#[derive(Debug)]
pub(crate) struct CounterSeries {
    name: SeriesName,
    total: AtomicU64,
    /// How much of the total has been taken. Behind a lock so that of two flushes at once neither
    /// can take a part twice; recording never touches it.
    taken: Mutex<u64>,
    /// Whether it was ever told a total. The next total means nothing without the last one.
    told_totals: AtomicBool,
    idle: Idle,
}

impl CounterSeries {
    pub(crate) fn new(name: SeriesName) -> Self {
        Self {
            name,
            total: AtomicU64::new(0),
            taken: Mutex::new(0),
            told_totals: AtomicBool::new(false),
            idle: Idle::default(),
        }
    }

    pub(crate) fn name(&self) -> &SeriesName {
        &self.name
    }

    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Whether nothing would be lost, and nothing sent twice, if it began anew.
    pub(crate) fn may_leave(&self) -> bool {
        let taken = *self.taken.lock();
        !self.told_totals.load(Ordering::Relaxed) && self.total.load(Ordering::Relaxed) == taken
    }

    /// What the counter grew by since the last call.
    pub(crate) fn take(&self) -> u64 {
        let mut taken = self.taken.lock();
        let total = self.total.load(Ordering::Relaxed);
        // The total wraps around like any atomic; the difference is right across the seam.
        let grown = total.wrapping_sub(*taken);
        *taken = total;
        grown
    }
}

// Relaxed throughout: a series publishes no other memory, and a read-modify-write loses nothing.
impl CounterFn for CounterSeries {
    fn increment(&self, value: u64) {
        self.total.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.told_totals.store(true, Ordering::Relaxed);
        self.total.fetch_max(value, Ordering::Relaxed);
    }
}

/// A gauge, without a value until it is first changed.
#[derive(Debug)]
pub(crate) struct GaugeSeries {
    name: SeriesName,
    /// The bits of an `f64`; [`UNSET`] before the first change, and finite ever after.
    bits: AtomicU64,
    /// Whether it was changed since the last look, be it to the value that it had.
    touched: AtomicBool,
    /// Whether it was ever counted up or down. The next step means nothing without the level.
    told_steps: AtomicBool,
    idle: Idle,
}

const UNSET: f64 = f64::NAN;

impl GaugeSeries {
    pub(crate) fn new(name: SeriesName) -> Self {
        Self {
            name,
            bits: AtomicU64::new(UNSET.to_bits()),
            touched: AtomicBool::new(false),
            told_steps: AtomicBool::new(false),
            idle: Idle::default(),
        }
    }

    pub(crate) fn name(&self) -> &SeriesName {
        &self.name
    }

    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Whether it was changed since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// Whether it was only ever set, and never counted up or down.
    pub(crate) fn is_only_set(&self) -> bool {
        !self.told_steps.load(Ordering::Relaxed)
    }

    /// Whether nothing would be lost if it began anew: the first step of a gauge starts from zero.
    pub(crate) fn may_leave(&self) -> bool {
        let is_base = self.told_steps.load(Ordering::Relaxed)
            && self.value().is_some_and(|value| value != 0.0);
        !is_base && !self.touched.load(Ordering::Relaxed)
    }

    pub(crate) fn value(&self) -> Option<f64> {
        let value = f64::from_bits(self.bits.load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value)
    }

    fn add(&self, change: f64) {
        // The closure declines a sum that is not finite, and the gauge keeps its value: one bad
        // change must not spoil every later one.
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let now = f64::from_bits(bits);
            let next = if now.is_nan() { change } else { now + change };
            next.is_finite().then_some(next.to_bits())
        });
        self.told_steps.store(true, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }
}

impl GaugeFn for GaugeSeries {
    fn increment(&self, value: f64) {
        self.add(value);
    }

    fn decrement(&self, value: f64) {
        self.add(-value);
    }

    fn set(&self, value: f64) {
        if value.is_finite() {
            self.bits.store(value.to_bits(), Ordering::Relaxed);
            self.touched.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use crate::name::Naming;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn name() -> SeriesName {
        Naming::new(Dialect::DogStatsD, "", &[]).series("n", [])
    }

    #[test]
    fn a_counter_gives_each_increment_once() {
        let counter = CounterSeries::new(name());
        counter.increment(2);
        counter.increment(3);
        assert_eq!(counter.take(), 5);
        assert_eq!(counter.take(), 0);
        counter.increment(1);
        assert_eq!(counter.take(), 1);
    }

    #[test]
    fn an_absolute_counter_gives_the_difference_and_never_goes_back() {
        let counter = CounterSeries::new(name());
        counter.absolute(10);
        assert_eq!(counter.take(), 10);
        counter.absolute(7); // an older reading that arrived late
        assert_eq!(counter.take(), 0);
        counter.absolute(12);
        counter.increment(1);
        assert_eq!(counter.take(), 3);
    }

    #[test]
    fn a_counter_survives_the_end_of_its_range() {
        let counter = CounterSeries::new(name());
        counter.absolute(u64::MAX);
        assert_eq!(counter.take(), u64::MAX);
        counter.increment(5);
        assert_eq!(counter.take(), 5);
    }

    #[test]
    fn takes_at_the_same_time_give_each_increment_once() {
        const WRITERS: u64 = 3;
        const EACH: u64 = 500_000;
        let counter = CounterSeries::new(name());
        let done = AtomicBool::new(false);
        let taken = AtomicU64::new(0);
        thread::scope(|scope| {
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        while !done.load(Ordering::Acquire) {
                            let grown = counter.take();
                            // What was taken twice would come back as a negative difference, and
                            // the sum would still be right.
                            assert!(grown <= WRITERS * EACH);
                            taken.fetch_add(grown, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| scope.spawn(|| (0..EACH).for_each(|_| counter.increment(1))))
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, Ordering::Release);
            takers.into_iter().for_each(|taker| taker.join().unwrap());
        });
        assert_eq!(taken.into_inner() + counter.take(), WRITERS * EACH);
    }

    #[test]
    fn a_counter_may_leave_when_all_is_taken_unless_it_was_told_a_total() {
        let counter = CounterSeries::new(name());
        assert!(counter.may_leave());
        counter.increment(1);
        assert!(!counter.may_leave());
        counter.take();
        assert!(counter.may_leave());
        counter.absolute(1);
        counter.take();
        assert!(!counter.may_leave());
    }

    #[test]
    fn a_gauge_may_leave_unless_it_was_just_changed_or_the_next_step_needs_its_level() {
        let gauge = GaugeSeries::new(name());
        assert!(gauge.may_leave());
        gauge.set(5.0);
        assert!(!gauge.may_leave());
        assert!(gauge.take_touched() && gauge.may_leave());
        gauge.set(5.0);
        assert!(gauge.take_touched(), "the same value anew is a change, too");
        gauge.decrement(1.0);
        assert!(gauge.take_touched() && !gauge.may_leave());
        gauge.decrement(4.0);
        assert!(gauge.take_touched() && gauge.may_leave());
    }

    #[test]
    fn a_gauge_has_no_value_until_it_is_changed() {
        let gauge = GaugeSeries::new(name());
        assert_eq!(gauge.value(), None);
        gauge.increment(2.0);
        gauge.decrement(0.5);
        assert_eq!(gauge.value(), Some(1.5));
        gauge.set(-3.0);
        assert_eq!(gauge.value(), Some(-3.0));
    }

    #[test]
    fn a_gauge_ignores_what_is_not_finite() {
        let gauge = GaugeSeries::new(name());
        gauge.set(f64::NAN);
        gauge.increment(f64::INFINITY);
        assert_eq!(gauge.value(), None);
        gauge.set(1.0);
        gauge.set(f64::NEG_INFINITY);
        gauge.increment(f64::NAN);
        assert_eq!(gauge.value(), Some(1.0));
        gauge.set(f64::MAX);
        gauge.increment(f64::MAX);
        assert_eq!(gauge.value(), Some(f64::MAX));
    }

    proptest! {
        #[test]
        fn what_was_taken_adds_up_to_the_value(
            steps in prop::collection::vec((0..3_u8, 0..1000_u64), 0..60),
        ) {
            let counter = CounterSeries::new(name());
            let (mut value, mut taken) = (0_u64, 0_u64);
            for (step, amount) in steps {
                match step {
                    0 => { counter.increment(amount); value += amount; }
                    1 => { counter.absolute(amount * 10); value = value.max(amount * 10); }
                    _ => taken += counter.take(),
                }
                prop_assert!(taken <= value);
            }
            prop_assert_eq!(taken + counter.take(), value);
        }
    }
}
