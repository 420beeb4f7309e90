//! A concurrency limit that adapts to the observed latency. Pure: callers pass the time in.

mod baseline;
mod limit;
mod round;

pub(crate) use self::limit::{AdaptiveLimit, Piece};

/// A concurrency limit that adapts between a floor and a ceiling.
///
/// It grows while the latency of the work stays near its minimum. It shrinks when the latency
/// rises: then work queues inside a resource that it uses, such as a processor or a database, and
/// more concurrency would only lengthen that queue. It also shrinks when more of the work fails
/// than usual. Work that takes more than ten times as long as it should counts as failed at once,
/// so timeouts are noticed before they expire.
///
/// The work is measured in rounds of as many pieces as the limit allows, but at least 32. Pieces
/// that began under another limit count only if they failed. The latency of a round is the
/// geometric mean, in which a straggler weighs little, and the limit follows from it:
///
/// ```text
/// gradient = tolerance × baseline / latency   at least 0.5, at most the tolerance
/// gradient = 1 − excess of failures           if there is one
///
/// limit → limit × gradient + √limit               if the gradient is at least 1
/// limit → limit × gradient                        if it is less
/// ```
///
/// Each round moves the limit by the share of that step that [`smoothing`](Self::smoothing) sets;
/// by the whole step until it shrinks for the first time. It does not grow while less than half of
/// it is in use.
///
/// The baseline is the latency of work that does not queue, and the share of it that fails: up to a
/// seventh, failures unrelated to load are considered usual. It is measured whenever little is in
/// flight; and when rounds have deviated from the baseline for some time, the limit is lowered to
/// less than half for one round to measure it. This distinguishes work that has become slower,
/// which is accepted, from work that queues. If the throughput is the same under the lowered limit,
/// the limit stays there.
///
/// The idea is that of TCP Vegas (Brakmo and Peterson, 1995). The gradient is that of Netflix's
/// concurrency-limits ("Performance Under Load", 2018) and of Envoy's adaptive concurrency filter,
/// which also lowers the limit to measure. Applying headroom only for growth is our own addition:
/// with it the limit settles at `tolerance` times the concurrency that is possible without
/// queueing, not above.
///
/// ```
/// use pipeline_core::supervisor::Adaptive;
///
/// // Calls to a service of unknown capacity.
/// let workers = Adaptive::between(2, 200).initial(10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Adaptive {
    floor: usize,
    ceiling: usize,
    initial: usize,
    tolerance: f64,
    smoothing: f64,
}

impl Adaptive {
    /// A limit of at least `floor` and at most `ceiling`. It begins at the floor.
    ///
    /// # Panics
    ///
    /// If `floor` is 0 or more than `ceiling`.
    pub fn between(floor: usize, ceiling: usize) -> Self {
        assert!(floor > 0, "the floor of an adaptive limit must be at least 1");
        assert!(floor <= ceiling, "the floor of an adaptive limit must not exceed its ceiling");
        Self { floor, ceiling, initial: floor, tolerance: 1.25, smoothing: 0.2 }
    }

    /// The initial limit. Default the floor. A value out of bounds is clamped.
    pub fn initial(mut self, limit: usize) -> Self {
        self.initial = limit.clamp(self.floor, self.ceiling);
        self
    }

    /// The ratio of latency to baseline above which the limit shrinks. Default 1.25.
    ///
    /// A higher value makes better use of a resource whose latency varies by itself, and lets more
    /// work queue there.
    ///
    /// # Panics
    ///
    /// If it is less than 1 or not finite.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        let fits = tolerance >= 1.0 && tolerance.is_finite();
        assert!(fits, "the tolerance of an adaptive limit must be finite and at least 1");
        self.tolerance = tolerance;
        self
    }

    /// The share of the step to its next value that the limit takes per round. Default 0.2.
    ///
    /// A lower value is steadier, a higher one reacts faster. At the default, ten rounds that all
    /// fail lower the limit to a third.
    ///
    /// # Panics
    ///
    /// If it is not more than 0 and at most 1.
    pub fn smoothing(mut self, smoothing: f64) -> Self {
        let fits = smoothing > 0.0 && smoothing <= 1.0;
        assert!(fits, "the smoothing of an adaptive limit must be more than 0 and at most 1");
        self.smoothing = smoothing;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cmp::Reverse,
        collections::{BinaryHeap, HashSet},
        time::Duration,
    };

    use super::*;
    use proptest::prelude::*;
    use tokio::time::Instant;

    /// A server that works on `capacity` requests at once and queues the others. It always has
    /// work.
    struct Server {
        base: f64,
        capacity: f64,
        /// How much latency varies by itself: the standard deviation of its logarithm.
        spread: f64,
        random: u64,
        start: Instant,
        now: Duration,
        /// When each request in flight ends, and when it began.
        in_flight: BinaryHeap<Reverse<(Duration, Duration, Piece, u64)>>,
        /// Every nth request fails, after this time.
        failures: Option<(u64, Duration)>,
        /// Requests beyond the capacity get no answer and fail after this time.
        timeout: Option<Duration>,
        /// The requests that fail.
        failing: HashSet<u64>,
        begun: u64,
    }

    impl Server {
        fn new(capacity: f64, spread: f64, random: u64) -> Self {
            let (start, now) = (Instant::now(), Duration::ZERO);
            let in_flight = BinaryHeap::new();
            Self {
                base: 0.1,
                capacity,
                spread,
                random,
                start,
                now,
                in_flight,
                failures: None,
                timeout: None,
                failing: HashSet::new(),
                begun: 0,
            }
        }

        /// Completes `count` requests. Returns the limit after each.
        fn run(&mut self, limit: &mut AdaptiveLimit, count: usize) -> Vec<usize> {
            let mut limits = vec![];
            for _ in 0..count {
                while self.in_flight.len() < limit.limit() {
                    let load = (self.in_flight.len() + 1) as f64 / self.capacity;
                    let varies = (self.spread * self.normal()).exp();
                    let waits = if self.timeout.is_some() { 1.0 } else { load.max(1.0) };
                    let mut latency = Duration::from_secs_f64(self.base * waits * varies);
                    self.begun += 1;
                    let fails =
                        self.failures.filter(|(every, _)| self.begun.is_multiple_of(*every));
                    let fails = fails.map(|(_, after)| after);
                    if let Some(after) = fails.or(self.timeout.filter(|_| load > 1.0)) {
                        latency = after;
                        self.failing.insert(self.begun);
                    }
                    let piece = limit.begin(self.start + self.now);
                    let piece = (self.now + latency, self.now, piece, self.begun);
                    self.in_flight.push(Reverse(piece));
                }
                let in_flight = self.in_flight.len();
                let Reverse((end, began, piece, n)) = self.in_flight.pop().unwrap();
                self.now = end;
                let failed = self.failing.remove(&n);
                if limit.end(piece) {
                    limit.record(end - began, in_flight, failed, self.start + end);
                }
                limits.push(limit.limit());
            }
            limits
        }

        /// The share of the next `count` requests that see a limit near the capacity.
        fn near_capacity(&mut self, limit: &mut AdaptiveLimit, count: usize) -> f64 {
            let near = 0.7 * self.capacity..=1.6 * self.capacity;
            let limits = self.run(limit, count);
            limits.iter().filter(|&&n| near.contains(&(n as f64))).count() as f64 / count as f64
        }

        fn normal(&mut self) -> f64 {
            let uniform = |_| {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (self.random >> 11) as f64 / (1u64 << 53) as f64
            };
            (0..12).map(uniform).sum::<f64>() - 6.0
        }
    }

    #[test]
    fn work_that_becomes_slower_is_accepted() {
        for capacity in [10.0, 80.0] {
            let mut limit = AdaptiveLimit::new(Adaptive::between(1, 1000));
            let mut server = Server::new(capacity, 0.1, 1);
            server.run(&mut limit, 20_000);
            for base in [0.2, 1.0, 0.1] {
                server.base = base;
                server.run(&mut limit, 20_000);
                let near = server.near_capacity(&mut limit, 20_000);
                assert!(near > 0.95, "{near} at {base} s with {capacity}");
            }
        }
    }

    #[test]
    fn a_capacity_that_changes_is_followed() {
        let mut limit = AdaptiveLimit::new(Adaptive::between(1, 1000));
        let mut server = Server::new(100.0, 0.1, 1);
        for capacity in [100.0, 20.0, 200.0] {
            server.capacity = capacity;
            server.run(&mut limit, 40_000);
            let near = server.near_capacity(&mut limit, 20_000);
            assert!(near > 0.95, "{near} at {capacity}");
        }
    }

    #[test]
    fn failures_unrelated_to_load_do_not_drive_it_to_the_floor() {
        for (every, least) in [(10, 200), (50, 200), (8, 100)] {
            let mut limit = AdaptiveLimit::new(Adaptive::between(2, 500));
            let mut server = Server::new(f64::INFINITY, 0.1, 1);
            server.failures = Some((every, Duration::from_millis(100)));
            let limits = server.run(&mut limit, 60_000);
            let end = &limits[40_000..];
            let mean = end.iter().sum::<usize>() / end.len();
            assert!(mean > least, "{mean} with one of {every} that fails");
        }
    }

    #[test]
    fn work_that_fails_late_does_not_let_it_grow_to_the_ceiling() {
        let mut limit = AdaptiveLimit::new(Adaptive::between(2, 500));
        let mut server = Server::new(f64::INFINITY, 0.1, 1);
        server.failures = Some((4, Duration::from_secs(50)));
        let limits = server.run(&mut limit, 50_000);
        assert!(limits.iter().all(|limit| *limit < 250), "{:?}", limits.iter().max());
    }

    #[test]
    fn overload_without_answers_is_noticed_before_the_timeout() {
        for capacity in [20.0, 100.0] {
            let mut limit = AdaptiveLimit::new(Adaptive::between(2, 1000));
            let mut server = Server::new(capacity, 0.1, 1);
            server.timeout = Some(Duration::from_secs(30));
            let limits = server.run(&mut limit, 100_000);
            let most = limits.iter().max().unwrap();
            assert!((*most as f64) < 4.0 * capacity, "{most} with {capacity}");
            let end = &limits[50_000..];
            let mean = end.iter().sum::<usize>() as f64 / end.len() as f64;
            assert!((0.3 * capacity..1.7 * capacity).contains(&mean), "{mean} with {capacity}");
        }
    }

    #[test]
    fn an_initial_limit_out_of_bounds_is_the_nearest_bound() {
        let initial = |limit| AdaptiveLimit::new(Adaptive::between(5, 9).initial(limit)).limit();
        assert_eq!([0, 7, 10].map(initial), [5, 7, 9]);
        assert_eq!(AdaptiveLimit::new(Adaptive::between(5, 9)).limit(), 5);
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let refused = |make: fn() -> Adaptive| std::panic::catch_unwind(make).is_err();
        assert!(refused(|| Adaptive::between(0, 9)));
        assert!(refused(|| Adaptive::between(9, 8)));
        assert!(refused(|| Adaptive::between(1, 1).tolerance(0.99)));
        assert!(refused(|| Adaptive::between(1, 1).tolerance(f64::NAN)));
        assert!(refused(|| Adaptive::between(1, 1).tolerance(f64::INFINITY)));
        assert!(refused(|| Adaptive::between(1, 1).smoothing(0.0)));
        assert!(refused(|| Adaptive::between(1, 1).smoothing(1.01)));
        assert!(!refused(|| Adaptive::between(1, 1).tolerance(1.0).smoothing(1.0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// From below and from above, whether latency is steady or not.
        #[test]
        fn it_comes_to_rest_near_what_can_be_worked_on_without_waiting(
            capacity in 3u32..150, initial in 1usize..=500, spread in 0.0..0.3, random: u64
        ) {
            let options = Adaptive::between(1, 500).initial(initial);
            let mut limit = AdaptiveLimit::new(options);
            let mut server = Server::new(f64::from(capacity), spread, random);
            server.run(&mut limit, 25_000);
            let near = server.near_capacity(&mut limit, 20_000);
            prop_assert!(near > 0.8, "{near}");
        }

        #[test]
        fn it_reaches_the_ceiling_where_nothing_ever_waits(
            ceiling in 1usize..500, spread in 0.0..0.5, random: u64
        ) {
            let mut limit = AdaptiveLimit::new(Adaptive::between(1, ceiling));
            let mut server = Server::new(f64::INFINITY, spread, random);
            let limits = server.run(&mut limit, 20_000);
            prop_assert!(limits.contains(&ceiling), "{:?}", limits.iter().max());
        }
    }
}
