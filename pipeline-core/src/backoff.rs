//! Delays between attempts. Pure: callers pass in the random number.

use std::time::Duration;

/// Delays between attempts that grow by a factor, up to the longest one.
///
/// Clients that fail together should not retry together, so each delay is shortened at random, as
/// [`Jitter`] says. The semantics are those of "Exponential Backoff And Jitter" (Marc Brooker, AWS
/// Architecture Blog, 2015).
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::backoff::{Backoff, Jitter};
///
/// // At most 0.1 s, then 0.3 s, 0.9 s and so on, and from then on 30 s.
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30))
///     .factor(3.0)
///     .jitter(Jitter::Full);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Backoff {
    first: Duration,
    max: Duration,
    factor: f64,
    jitter: Jitter,
}

/// The random share of a [`Backoff`]'s delay.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::backoff::{Backoff, Jitter};
///
/// let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
/// assert_eq!(backoff, backoff.jitter(Jitter::Equal));
///
/// // There is only one client, so retries cannot collide.
/// let alone = backoff.jitter(Jitter::None);
/// # assert_ne!(alone, backoff);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Jitter {
    /// No jitter: every delay is waited in full.
    None,
    /// Half of the delay is random: at least half of it is waited. The default.
    #[default]
    Equal,
    /// The whole delay is random: anything from zero to all of it. Spreads many clients best.
    Full,
}

impl Backoff {
    /// A backoff with the first delay and the longest. Each delay is twice the one before, with
    /// [`Jitter::Equal`].
    ///
    /// # Panics
    ///
    /// If `first` is 0, which would stay 0 forever, or longer than `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        assert!(!first.is_zero(), "the first delay of a back-off must be longer than 0");
        assert!(first <= max, "the first delay of a back-off must not exceed the longest");
        Self { first, max, factor: 2.0, jitter: Jitter::Equal }
    }

    /// The ratio of a delay to the one before. Default 2.
    ///
    /// # Panics
    ///
    /// If it is less than 1 or not finite.
    pub fn factor(mut self, factor: f64) -> Self {
        assert!(
            factor >= 1.0 && factor.is_finite(),
            "the factor of a back-off must be finite and at least 1"
        );
        self.factor = factor;
        self
    }

    /// The random share of each delay. Default [`Jitter::Equal`].
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }
}

impl Backoff {
    /// The delay after the `n`th failure, counted from 1. `random` is between 0 and 1.
    #[must_use]
    pub fn nth_delay(self, n: u32, random: f64) -> Duration {
        let steps = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
        let next = times(self.first, self.factor.powi(steps), self.max);
        BackoffState { backoff: self, next }.next_delay(random)
    }
}

/// The state of a [`Backoff`] between attempts.
#[derive(Debug)]
pub(crate) struct BackoffState {
    backoff: Backoff,
    /// The next delay, before jitter.
    next: Duration,
}

impl BackoffState {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, next: backoff.first }
    }

    /// The delay before the next attempt. `random` is between 0 and 1 and drawn anew for each call;
    /// NaN counts as 1.
    pub(crate) fn next_delay(&mut self, random: f64) -> Duration {
        let Backoff { max, factor, jitter, .. } = self.backoff;
        let whole = self.next;
        self.next = times(whole, factor, max);
        let sure = match jitter {
            Jitter::None => whole,
            Jitter::Equal => whole / 2,
            Jitter::Full => Duration::ZERO,
        };
        let left = whole.saturating_sub(sure);
        sure.saturating_add(times(left, random.clamp(0.0, 1.0), left))
    }

    /// Resets to the first delay, after an attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.backoff.first;
    }
}

/// The product, or `most` if it is longer than that or not representable.
fn times(duration: Duration, factor: f64, most: Duration) -> Duration {
    let product = Duration::try_from_secs_f64(duration.as_secs_f64() * factor);
    product.map_or(most, |product| product.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn delays(backoff: Backoff, randoms: &[f64]) -> Vec<Duration> {
        let mut state = BackoffState::new(backoff);
        randoms.iter().map(|&random| state.next_delay(random)).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::new(ms(100), ms(1000)).jitter(Jitter::None);
        assert_eq!(delays(backoff, &[0.0; 6]), [100, 200, 400, 800, 1000, 1000].map(ms));
    }

    #[test]
    fn another_factor_takes_other_steps() {
        let backoff = Backoff::new(ms(100), ms(1000)).jitter(Jitter::None);
        assert_eq!(delays(backoff.factor(3.0), &[0.0; 4]), [100, 300, 900, 1000].map(ms));
        assert_eq!(delays(backoff.factor(1.0), &[0.0; 3]), [100, 100, 100].map(ms));
    }

    #[test]
    fn full_jitter_randomizes_the_whole_delay() {
        let backoff = Backoff::new(ms(100), ms(1000)).jitter(Jitter::Full);
        assert_eq!(delays(backoff, &[0.0, 0.5, 1.0, 0.25]), [0, 100, 400, 200].map(ms));
    }

    #[test]
    fn equal_jitter_randomizes_half_the_delay_and_is_the_default() {
        let backoff = Backoff::new(ms(100), ms(1000));
        assert_eq!(delays(backoff, &[0.0, 0.5, 1.0, 0.25]), [50, 150, 400, 500].map(ms));
        assert_eq!(backoff, backoff.jitter(Jitter::default()));
    }

    #[test]
    fn jitter_does_not_change_how_delays_grow() {
        let backoff = Backoff::new(ms(100), ms(1000));
        let last = |randoms: &[f64]| delays(backoff, randoms).pop().unwrap();
        assert_eq!(last(&[0.0, 0.0, 1.0]), last(&[1.0, 1.0, 1.0]));
    }

    #[test]
    fn a_delay_follows_from_the_number_of_failures_alone() {
        let backoff = Backoff::new(ms(100), ms(1000)).jitter(Jitter::None).factor(3.0);
        assert_eq!(
            [1, 2, 3, 4, u32::MAX].map(|n| backoff.nth_delay(n, 0.0)),
            [100, 300, 900, 1000, 1000].map(ms)
        );
    }

    #[test]
    fn a_success_resets_the_delay() {
        let mut state = BackoffState::new(Backoff::new(ms(100), ms(1000)));
        assert_eq!([state.next_delay(1.0), state.next_delay(1.0)], [ms(100), ms(200)]);
        state.reset();
        assert_eq!([state.next_delay(1.0), state.next_delay(1.0)], [ms(100), ms(200)]);
    }

    #[test]
    fn a_random_number_out_of_range_counts_as_the_nearest() {
        let backoff = Backoff::new(ms(100), ms(100)).jitter(Jitter::Full);
        assert_eq!(delays(backoff, &[-1.0, 7.0, f64::NAN]), [0, 100, 100].map(ms));
    }

    #[test]
    #[should_panic(expected = "longer than 0")]
    fn a_first_delay_of_0_is_refused() {
        let _ = Backoff::new(Duration::ZERO, ms(1));
    }

    #[test]
    #[should_panic(expected = "must not exceed the longest")]
    fn a_first_delay_longer_than_the_longest_is_refused() {
        let _ = Backoff::new(ms(2), ms(1));
    }

    #[test]
    fn a_factor_that_does_not_grow_is_refused() {
        for factor in [0.99, -2.0, f64::NAN, f64::INFINITY] {
            let refused =
                std::panic::catch_unwind(|| Backoff::new(ms(1), ms(2)).factor(factor)).is_err();
            assert!(refused, "{factor}");
        }
    }

    proptest! {
        /// Any inputs, including the limits of a duration: no delay is longer than the whole one,
        /// none is shorter than its jitter allows, and the whole ones grow.
        #[test]
        fn delays_keep_to_their_bounds(
            durations: (Duration, Duration),
            factor in prop_oneof![1.0..4.0, 1.0..f64::MAX],
            randoms in prop::collection::vec(0.0..=1.0, 1..80)
        ) {
            let first = durations.0.min(durations.1).max(Duration::from_nanos(1));
            let max = durations.0.max(first);
            let backoff = Backoff::new(first, max).factor(factor);
            let whole = delays(backoff.jitter(Jitter::None), &randoms);
            let equal = delays(backoff.jitter(Jitter::Equal), &randoms);
            let full = delays(backoff.jitter(Jitter::Full), &randoms);
            prop_assert_eq!(whole[0], first);
            prop_assert!(whole.is_sorted() && whole.iter().all(|&delay| delay <= max));
            for ((whole, equal), full) in whole.into_iter().zip(equal).zip(full) {
                prop_assert!(whole / 2 <= equal && equal <= whole, "{equal:?} of {whole:?}");
                prop_assert!(full <= whole, "{full:?} of {whole:?}");
            }
        }

        /// From any number of failures, the longest delay is reached and stays.
        #[test]
        fn delays_reach_the_longest(first in 1u64..1000, max in 1u64..100_000, factor in 1.1..9.0) {
            let backoff = Backoff::new(ms(first.min(max)), ms(max)).factor(factor);
            let delays = delays(backoff, &[1.0; 200]);
            prop_assert_eq!(delays.last(), Some(&ms(max)));
        }
    }
}
