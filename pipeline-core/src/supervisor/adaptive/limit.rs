//! The limit, and how it changes from round to round.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{Adaptive, baseline::Baseline, round::Round};

/// The minimum number of samples in a round. With fewer, chance outweighs load.
const LEAST_SAMPLES: usize = 32;

/// The lower bound of a gradient, so that one bad round does not undo many good ones.
const STEEPEST: f64 = 0.5;

/// The share of the earlier throughput that counts as equal throughput.
const AS_MUCH: f64 = 0.9;

/// The current limit of an [`Adaptive`].
#[derive(Debug)]
pub(crate) struct AdaptiveLimit {
    options: Adaptive,
    /// Between floor and ceiling. The fraction is kept between rounds.
    limit: f64,
    /// The highest limit since the latency last matched the baseline.
    reach: f64,
    /// Whether it has never shrunk.
    starting: bool,
    /// Set while the limit is lowered for a measuring round: the throughput of the round before.
    probe: Option<f64>,
    baseline: Option<Baseline>,
    round: Round,
    /// When the limit last changed.
    changed: Option<Instant>,
    /// When each piece of work in flight began.
    in_flight: BTreeMap<Piece, Instant>,
    /// The next piece of work.
    next: Piece,
    /// This piece and all later ones have not been found overdue.
    on_time: Piece,
}

/// The id of a piece of work, in the order of their starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece(u64);

impl AdaptiveLimit {
    pub(crate) fn new(options: Adaptive) -> Self {
        let limit = options.initial as f64;
        Self {
            options,
            limit,
            reach: limit,
            starting: true,
            probe: None,
            baseline: None,
            round: Round::default(),
            changed: None,
            in_flight: BTreeMap::new(),
            next: Piece::default(),
            on_time: Piece::default(),
        }
    }

    /// Registers a new piece of work.
    pub(crate) fn begin(&mut self, now: Instant) -> Piece {
        let piece = self.next;
        self.next = Piece(piece.0 + 1);
        self.in_flight.insert(piece, now);
        piece
    }

    /// Ends a piece of work. Returns false if it has already been counted as overdue.
    pub(crate) fn end(&mut self, piece: Piece) -> bool {
        self.in_flight.remove(&piece);
        piece >= self.on_time
    }

    /// Finds work that is overdue, each piece once. Its outcome need not be awaited: it counts as
    /// failed.
    fn find_overdue(&mut self, now: Instant) {
        let Some(baseline) = &self.baseline else { return };
        let overdue = Duration::try_from_secs_f64(baseline.overdue()).unwrap_or(Duration::MAX);
        let found = self.in_flight.range(self.on_time..);
        let found = found.take_while(|(_, began)| now.saturating_duration_since(**began) > overdue);
        let (count, last) =
            found.fold((0, None), |(count, _), (piece, _)| (count + 1, Some(*piece)));
        self.round.add_overdue(count);
        if let Some(Piece(last)) = last {
            self.on_time = Piece(last + 1);
        }
    }

    /// The number of pieces that may be in flight at once.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, truncation is intended, and the cast saturates"
    )]
    pub(crate) fn limit(&self) -> usize {
        let limit = if self.probe.is_some() { self.lowered(self.limit) } else { self.limit };
        (limit as usize).clamp(self.options.floor, self.options.ceiling)
    }

    /// Records a piece of work that ended `now`: how long it took by the same clock, how many were
    /// in flight, itself included, and whether it failed in a way that load may explain.
    pub(crate) fn record(
        &mut self,
        latency: Duration,
        in_flight: usize,
        failed: bool,
        now: Instant,
    ) {
        // A success under another limit says nothing about this one. A failure does: the limit may
        // have changed many times before the failure was known.
        if !failed && now.checked_sub(latency) < self.changed {
            return;
        }
        let before = self.limit();
        self.round.add(latency, in_flight, failed);
        if self.round.samples >= before.max(LEAST_SAMPLES) {
            self.find_overdue(now);
            let round = std::mem::take(&mut self.round);
            self.conclude(&round);
            if self.limit() != before {
                self.changed = Some(now);
            }
        }
    }

    /// Adjusts the limit after a round.
    fn conclude(&mut self, round: &Round) {
        let before = self.probe.take();
        let Some(latency) = round.latency() else {
            return self.shrink(STEEPEST);
        };
        let calm = before.is_some() || round.peak as f64 <= self.lowered(self.reach);
        let tolerance = self.options.tolerance;
        let baseline = self.baseline.get_or_insert_with(|| Baseline::new(latency, tolerance));
        if calm {
            baseline.measure(latency, round);
        } else {
            baseline.compare(latency, round);
        }
        let (confirmed, doubtful) = (baseline.is_confirmed(), baseline.is_doubtful());
        let (gradient, excess) = (baseline.gradient(latency), baseline.excess(round));
        let done = round.done(latency);
        if let Some(before) = before {
            if done - before >= AS_MUCH.ln() {
                self.stay_lowered(latency, done);
            }
        } else {
            self.step(gradient, excess, round);
            self.probe = doubtful.then_some(done);
        }
        self.reach = if confirmed { self.limit } else { self.reach.max(self.limit) };
    }

    fn step(&mut self, gradient: f64, excess: f64, round: &Round) {
        if excess > 0.0 || gradient < 1.0 {
            self.shrink(gradient.min(1.0 - excess));
        } else if round.peak >= self.limit().div_ceil(2) {
            let part = if self.starting { 1.0 } else { self.options.smoothing };
            let gradient = gradient.min(self.options.tolerance);
            let more = self.limit * (gradient - 1.0) + self.limit.sqrt();
            self.limit = (self.limit + part * more).min(self.options.ceiling as f64);
        }
    }

    fn shrink(&mut self, gradient: f64) {
        self.starting = false;
        let less = self.limit * (1.0 - gradient.max(STEEPEST));
        self.limit = (self.limit - self.options.smoothing * less).max(self.options.floor as f64);
    }

    /// Keeps the lowered limit, because the throughput stayed the same: all work above it was
    /// queueing.
    fn stay_lowered(&mut self, latency: f64, done: f64) {
        (self.limit, self.starting) = (self.lowered(self.limit), false);
        if let Some(baseline) = &mut self.baseline {
            baseline.replace(latency);
        }
        // It may still be too high.
        self.probe = (self.limit() > self.options.floor).then_some(done);
    }

    /// The limit at which work no longer queues if its latency is just tolerated under this limit:
    /// half of the number that can be worked on without queueing. The floor if that is higher.
    fn lowered(&self, limit: f64) -> f64 {
        (limit / (2.0 * self.options.tolerance)).max(self.options.floor as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A limit that is fed whole rounds.
    struct Rounds {
        limit: AdaptiveLimit,
        now: Instant,
    }

    impl Rounds {
        fn new(options: Adaptive) -> Self {
            Self { limit: AdaptiveLimit::new(options), now: Instant::now() }
        }

        /// Begins at 100, with a settled baseline of 10 ms.
        fn at_100() -> Self {
            let mut rounds = Self::new(Adaptive::between(1, 1000).initial(100));
            for _ in 0..10 {
                assert_eq!(rounds.round(ms(10), 10), 100);
            }
            rounds
        }

        /// Returns the limit after the round.
        fn round(&mut self, latency: Duration, in_flight: usize) -> usize {
            self.round_with(latency, in_flight, |_| false)
        }

        fn round_with(
            &mut self,
            latency: Duration,
            in_flight: usize,
            fails: impl Fn(usize) -> bool,
        ) -> usize {
            for sample in 0..self.limit.limit().max(32) {
                self.now += latency;
                self.limit.record(latency, in_flight, fails(sample), self.now);
            }
            self.limit.limit()
        }

        /// A round with as many in flight as the limit allows.
        fn full_round(&mut self, latency: Duration) -> usize {
            self.round(latency, self.limit.limit())
        }
    }

    #[test]
    fn it_grows_to_the_ceiling_and_stays_there_when_nothing_waits() {
        let mut rounds = Rounds::new(Adaptive::between(1, 500));
        let limits: Vec<usize> = (0..20).map(|_| rounds.full_round(ms(10))).collect();
        assert!(limits.is_sorted() && limits[19] == 500, "{limits:?}");
        assert!((0..200).all(|_| rounds.full_round(ms(10)) == 500));
    }

    #[test]
    fn it_grows_only_if_half_of_it_is_in_use() {
        let mut rounds = Rounds::at_100();
        assert_eq!(rounds.round(ms(10), 49), 100);
        assert!(rounds.round(ms(10), 50) > 100);
    }

    #[test]
    fn it_follows_the_gradient() {
        let after = |latency| Rounds::at_100().full_round(latency);
        assert_eq!(after(ms(10)), 135, "tolerance, and a square root");
        assert_eq!(after(ms(12)), 114, "less than the tolerance");
        assert_eq!(after(ms(16)), 95, "a fifth of the way to 78");
        assert_eq!(after(ms(25)), 90, "a fifth of the way to 50");
        assert_eq!(after(ms(900)), 90, "and no further");
    }

    #[test]
    fn it_grows_in_smaller_steps_once_it_has_shrunk() {
        let mut rounds = Rounds::at_100();
        assert_eq!(rounds.full_round(ms(25)), 90);
        assert_eq!(rounds.full_round(ms(10)), 96);
    }

    #[test]
    fn it_shrinks_while_work_waits_and_recovers_when_it_does_not() {
        let mut rounds = Rounds::at_100();
        let falling: Vec<usize> = (0..5).map(|_| rounds.full_round(ms(30))).collect();
        assert!(falling.is_sorted_by(|before, after| before > after), "{falling:?}");
        let rising: Vec<usize> = (0..10).map(|_| rounds.full_round(ms(10))).collect();
        assert!(rising.is_sorted() && rising[9] > 100, "{rising:?}");
    }

    #[test]
    fn smoothing_is_the_share_of_the_step_that_is_taken() {
        let after = |smoothing| {
            let options = Adaptive::between(1, 1000).initial(100).smoothing(smoothing);
            let mut rounds = Rounds::new(options);
            rounds.round(ms(10), 10);
            rounds.full_round(ms(100))
        };
        assert_eq!([0.1, 0.5, 1.0].map(after), [95, 75, 50]);
    }

    #[test]
    fn tolerance_is_a_factor_on_the_baseline() {
        let after = |tolerance| {
            let options = Adaptive::between(1, 1000).initial(100).tolerance(tolerance);
            let mut rounds = Rounds::new(options);
            rounds.round(ms(10), 10);
            rounds.full_round(ms(20)) > 100
        };
        assert_eq!([1.0, 1.9, 2.1].map(after), [false, false, true]);
    }

    #[test]
    fn successes_that_began_under_another_limit_do_not_count() {
        let mut rounds = Rounds::at_100();
        rounds.full_round(ms(10));
        let (changed, limit) = (rounds.now, rounds.limit.limit());
        for n in 1..1000 {
            rounds.limit.record(ms(n + 1), limit, false, changed + ms(n));
        }
        assert_eq!(rounds.limit.limit(), limit);
        for n in 1..1000 {
            rounds.limit.record(ms(n), limit, false, changed + ms(n));
        }
        assert!(rounds.limit.limit() < limit);
    }

    #[test]
    fn it_shrinks_by_the_share_of_work_that_failed() {
        let mut rounds = Rounds::at_100();
        assert_eq!(rounds.round_with(ms(10), 100, |_| true), 90);
        assert_eq!(rounds.round_with(ms(10), 90, |_| true), 81);
        let fifth = |sample| sample % 5 == 0;
        assert_eq!(Rounds::at_100().round_with(ms(10), 100, fifth), 96);
    }

    #[test]
    fn the_latency_of_failures_does_not_count() {
        let mut rounds = Rounds::at_100();
        for sample in 0..100 {
            let (latency, failed) = if sample % 2 == 0 { (ms(0), true) } else { (ms(10), false) };
            rounds.now += latency;
            rounds.limit.record(latency, 100, failed, rounds.now);
        }
        assert_eq!(rounds.limit.limit(), 90);
        assert!(rounds.full_round(ms(10)) > 90, "10 ms is what it takes");
    }

    #[test]
    fn one_straggler_does_not_shrink_it() {
        let mut rounds = Rounds::at_100();
        for sample in 0..100 {
            let latency = if sample == 0 { ms(10_000) } else { ms(10) };
            rounds.now += latency;
            rounds.limit.record(latency, 100, false, rounds.now);
        }
        assert!(rounds.limit.limit() > 100);
    }

    #[test]
    fn a_calm_round_moves_the_baseline_halfway() {
        let after = |latency| {
            let mut rounds = Rounds::at_100();
            let before = rounds.round(ms(20), 10);
            rounds.full_round(latency) > before
        };
        assert_eq!([17, 19].map(ms).map(after), [true, false], "14.1 ms, and a quarter more");
    }

    #[test]
    fn a_latency_below_the_baseline_pulls_it_down_by_a_part() {
        let after = |microseconds| {
            let mut rounds = Rounds::at_100();
            let before = rounds.full_round(ms(7));
            rounds.full_round(Duration::from_micros(microseconds)) > before
        };
        assert_eq!([11_300, 12_100].map(after), [true, false], "9.3 ms, and a quarter more");
    }

    #[test]
    fn a_round_of_failures_leaves_the_baseline_alone() {
        let mut rounds = Rounds::at_100();
        assert_eq!(rounds.round_with(ms(10), 10, |_| true), 90);
        assert_eq!(rounds.full_round(ms(25)), 81);
    }

    /// The limits of rounds in which `capacity` pieces can be worked on at once, in 10 ms each.
    fn limits_with(capacity: usize, options: Adaptive, count: usize) -> Vec<usize> {
        let mut rounds = Rounds::new(options);
        let mut round = || {
            let in_flight = rounds.limit.limit();
            let micros = 10_000 * in_flight.max(capacity) / capacity;
            rounds.round(Duration::from_micros(micros as u64), in_flight)
        };
        std::iter::repeat_with(&mut round).take(count).collect()
    }

    #[test]
    fn a_baseline_that_was_found_under_load_is_measured_at_once() {
        let limits = limits_with(10, Adaptive::between(1, 100).initial(100), 20);
        assert_eq!(limits[..4], [40, 16, 6, 16], "lowered as long as that costs nothing");
        assert!(limits[6..].iter().all(|&limit| limit <= 16), "{limits:?}");
    }

    #[test]
    fn a_limit_that_was_lowered_grows_again_in_small_steps() {
        let limits = limits_with(42, Adaptive::between(1, 100).initial(100), 4);
        assert_eq!(limits, [40, 16, 40, 43]);
        let limits = limits_with(42, Adaptive::between(40, 100).initial(100), 3);
        assert_eq!(limits, [40, 40, 43], "there is nothing below the floor to try");
    }

    #[test]
    fn slower_work_is_accepted_before_the_limit_is_at_the_floor() {
        let mut rounds = Rounds::at_100();
        let limits: Vec<usize> = (0..60).map(|_| rounds.full_round(ms(20))).collect();
        let least = limits.iter().min().unwrap();
        assert!((10..40).contains(least), "{limits:?}");
        assert!(limits[59] > 100, "{limits:?}");
    }

    #[test]
    fn much_faster_work_has_its_baseline_measured_soon() {
        let mut rounds = Rounds::at_100();
        let limits: Vec<usize> = (0..5).map(|_| rounds.full_round(ms(4))).collect();
        assert!(limits[..3].is_sorted(), "{limits:?}");
        assert!(limits[3] < limits[2] && limits[4] > limits[2], "{limits:?}");
    }

    #[test]
    fn a_doubtful_baseline_is_measured_in_single_rounds_and_rarely() {
        let mut rounds = Rounds::new(Adaptive::between(1, 100).initial(100));
        for _ in 0..10 {
            rounds.round(ms(20), 10);
        }
        // At 24 ms it is tolerated, but not near.
        let mut round = |_| {
            let in_flight = rounds.limit.limit();
            rounds.round(if in_flight < 100 { ms(20) } else { ms(24) }, in_flight)
        };
        let limits: Vec<usize> = (0..400).map(&mut round).collect();
        let lowered: Vec<usize> = (0..400).filter(|&round| limits[round] < 100).collect();
        assert!((2..=8).contains(&lowered.len()), "{lowered:?}");
        assert!(lowered.windows(2).all(|rounds| rounds[1] - rounds[0] > 30), "{lowered:?}");
        assert!(lowered.iter().all(|&round| limits[round] == 40));
    }

    proptest! {
        /// Any latencies, with any options.
        #[test]
        fn it_keeps_to_its_bounds(
            floor in 1usize..50, more in 0usize..100, initial: usize,
            tolerance in prop_oneof![1.0..3.0, 1.0..f64::MAX], smoothing in 0.001..=1.0,
            work in prop::collection::vec(
                (prop_oneof![(0u64..100).prop_map(ms), any::<Duration>()], any::<usize>(), any::<bool>(), 1usize..99),
                0..100,
            )
        ) {
            let ceiling = floor + more;
            let options = Adaptive::between(floor, ceiling).initial(initial);
            let options = options.tolerance(tolerance).smoothing(smoothing);
            let mut limit = AdaptiveLimit::new(options);
            let start = Instant::now();
            let mut now = start;
            for (latency, in_flight, failed, times) in work {
                for _ in 0..times {
                    now = now.checked_add(latency).unwrap_or(start);
                    limit.record(latency, in_flight, failed, now);
                    prop_assert!((floor..=ceiling).contains(&limit.limit()));
                }
            }
        }
    }
}
