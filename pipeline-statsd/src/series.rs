//! Counters and gauges: handles of the facade write to them, flushes read them.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{CounterFn, GaugeFn, atomics::AtomicU64};
use parking_lot::Mutex;

use crate::{name::SeriesName, table::Idle};

/// A counter. The sum of all takes is always a value that the counter had.
#[derive(Debug)]
pub(crate) struct CounterSeries {
    name: SeriesName,
    total: AtomicU64,
    /// The part of the total that has been taken. The lock prevents two concurrent flushes from taking a
    /// part twice; recording never locks it.
    taken: Mutex<u64>,
    /// Whether the counter was ever set to a total. The next total has no meaning without the last one.
    was_set: AtomicBool,
    idle: Idle,
}

impl CounterSeries {
    pub(crate) fn new(name: SeriesName) -> Self {
        Self {
            name,
            total: AtomicU64::new(0),
            taken: Mutex::new(0),
            was_set: AtomicBool::new(false),
            idle: Idle::default(),
        }
    }

    pub(crate) fn name(&self) -> &SeriesName {
        &self.name
    }

    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Whether removing the series would lose nothing and repeat nothing.
    pub(crate) fn may_leave(&self) -> bool {
        let taken = *self.taken.lock();
        !self.was_set.load(Ordering::Relaxed) && self.total.load(Ordering::Relaxed) == taken
    }

    /// The increase since the last call.
    pub(crate) fn take(&self) -> u64 {
        let mut taken = self.taken.lock();
        let total = self.total.load(Ordering::Relaxed);
        // The total wraps around like any atomic; the wrapping difference stays right.
        let grown = total.wrapping_sub(*taken);
        *taken = total;
        grown
    }
}

// Relaxed ordering: a series publishes no other memory, and a read-modify-write loses nothing.
impl CounterFn for CounterSeries {
    fn increment(&self, value: u64) {
        self.total.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.was_set.store(true, Ordering::Relaxed);
        self.total.fetch_max(value, Ordering::Relaxed);
    }
}

/// A gauge, without a value until it is first changed.
#[derive(Debug)]
pub(crate) struct GaugeSeries {
    name: SeriesName,
    /// The bits of an `f64`; [`UNSET`] before the first change, and finite afterwards.
    bits: AtomicU64,
    /// Whether the gauge was changed since the last call, even to the same value.
    touched: AtomicBool,
    /// Whether the gauge was ever incremented or decremented. The next step has no meaning without the
    /// value.
    was_stepped: AtomicBool,
    idle: Idle,
}

const UNSET: f64 = f64::NAN;

impl GaugeSeries {
    pub(crate) fn new(name: SeriesName) -> Self {
        Self {
            name,
            bits: AtomicU64::new(UNSET.to_bits()),
            touched: AtomicBool::new(false),
            was_stepped: AtomicBool::new(false),
            idle: Idle::default(),
        }
    }

    pub(crate) fn name(&self) -> &SeriesName {
        &self.name
    }

    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Whether the gauge was changed since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// Whether the gauge was only ever set, never incremented or decremented.
    pub(crate) fn is_only_set(&self) -> bool {
        !self.was_stepped.load(Ordering::Relaxed)
    }

    /// Whether removing the series would lose nothing: the first step of a new gauge starts from zero.
    pub(crate) fn may_leave(&self) -> bool {
        let is_base = self.was_stepped.load(Ordering::Relaxed)
            && self.value().is_some_and(|value| value != 0.0);
        !is_base && !self.touched.load(Ordering::Relaxed)
    }

    pub(crate) fn value(&self) -> Option<f64> {
        let value = f64::from_bits(self.bits.load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value)
    }

    fn add(&self, change: f64) {
        // The closure rejects a sum that is not finite, and the gauge keeps its value: one bad change
        // must not spoil every later one.
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let now = f64::from_bits(bits);
            let next = if now.is_nan() { change } else { now + change };
            next.is_finite().then_some(next.to_bits())
        });
        self.was_stepped.store(true, Ordering::Relaxed);
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
    use crate::{line::Dialect, name::Naming};
    use proptest::prelude::*;
    use std::{sync::atomic::AtomicBool, thread};

    fn name() -> SeriesName {
        Naming::new(Dialect::DogStatsD, "", &[]).series("n", [])
    }

    #[test]
    fn a_counter_returns_each_increment_once() {
        let counter = CounterSeries::new(name());
        counter.increment(2);
        counter.increment(3);
        assert_eq!(counter.take(), 5);
        assert_eq!(counter.take(), 0);
        counter.increment(1);
        assert_eq!(counter.take(), 1);
    }

    #[test]
    fn an_absolute_counter_returns_the_difference_and_never_decreases() {
        let counter = CounterSeries::new(name());
        counter.absolute(10);
        assert_eq!(counter.take(), 10);
        counter.absolute(7); // an older reading that arrives late
        assert_eq!(counter.take(), 0);
        counter.absolute(12);
        counter.increment(1);
        assert_eq!(counter.take(), 3);
    }

    #[test]
    fn a_counter_survives_an_overflow() {
        let counter = CounterSeries::new(name());
        counter.absolute(u64::MAX);
        assert_eq!(counter.take(), u64::MAX);
        counter.increment(5);
        assert_eq!(counter.take(), 5);
    }

    #[test]
    fn concurrent_takes_return_each_increment_once() {
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
                            // An increment taken twice would come back as a negative difference, and the
                            // sum would still be right.
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
    fn a_counter_can_be_removed_once_taken_unless_it_was_set_to_a_total() {
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
    fn a_gauge_can_be_removed_unless_just_changed_or_needed_by_the_next_step() {
        let gauge = GaugeSeries::new(name());
        assert!(gauge.may_leave());
        gauge.set(5.0);
        assert!(!gauge.may_leave());
        assert!(gauge.take_touched() && gauge.may_leave());
        gauge.set(5.0);
        assert!(gauge.take_touched(), "setting the same value counts as a change");
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
    fn a_gauge_ignores_values_that_are_not_finite() {
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
        fn the_takes_add_up_to_the_value(
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
