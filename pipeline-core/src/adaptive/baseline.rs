//! How long work takes that does not wait, and how much of it fails.

use super::round::Round;

/// After how many rounds a baseline is measured again that was not found where it was, and after how
/// many at most one that was, time and again.
const PROBE_SOON: u32 = 4;
const PROBE_LATE: u32 = 64;

/// Which part of the way a baseline goes to what is measured, and to what is found below it.
const LEARN_MEASURED: f64 = 0.5;
const LEARN_BELOW: f64 = 0.2;

/// How many times as long as is tolerated is much too long.
const OVERDUE: f64 = 8.0;

/// The largest share of failures that is taken for usual.
const MOST_USUAL: f64 = 0.15;

/// How near two shares of failures are that are the same.
const SAME_SHARE: f64 = 0.1;

/// The latency of work that does not wait, as far as it is known; a logarithm, as in a
/// [`Round`](super::round::Round).
#[derive(Debug)]
pub(super) struct Baseline {
    latency: f64,
    /// The share of work that fails even if few are in flight.
    failing: f64,
    /// The logarithm of how many times as long is tolerated.
    tolerated: f64,
    /// It was found again when it was last measured.
    settled: bool,
    /// How many rounds ago it was measured, or found near enough.
    age: u32,
    /// At which age to measure it again.
    probe_at: u32,
}

impl Baseline {
    pub(super) fn new(latency: f64, tolerance: f64) -> Self {
        Self {
            latency,
            failing: 0.0,
            tolerated: tolerance.ln(),
            settled: false,
            age: 0,
            probe_at: 1,
        }
    }

    /// How many times as long as this latency would be tolerated.
    pub(super) fn gradient(&self, latency: f64) -> f64 {
        (self.tolerated + self.latency - latency).exp()
    }

    /// Which share of a round failed beyond what is usual, and beyond chance.
    pub(super) fn excess(&self, round: &Round) -> f64 {
        (round.bad() - self.failing - round.chance(self.failing)).max(0.0)
    }

    /// What takes longer, in seconds, takes much too long.
    pub(super) fn overdue(&self) -> f64 {
        OVERDUE * (self.tolerated + self.latency).exp()
    }

    /// It was measured in the last round, or found near enough.
    pub(super) fn is_confirmed(&self) -> bool {
        self.age == 0
    }

    /// It has not been confirmed for so long that it has to be measured.
    pub(super) fn is_doubtful(&self) -> bool {
        self.age >= self.probe_at
    }

    /// Learns from a round in which nothing should have waited.
    pub(super) fn measure(&mut self, latency: f64, round: &Round) {
        let off = latency - self.latency;
        self.latency += LEARN_MEASURED * off;
        let more = round.bad().min(MOST_USUAL) - self.failing;
        self.failing += LEARN_MEASURED * more;
        self.settled = off.abs() <= self.tolerated && more.abs() <= SAME_SHARE;
        self.probe_at = if self.settled { PROBE_LATE.min(2 * self.probe_at) } else { PROBE_SOON };
        self.age = 0;
    }

    /// Learns from a round in which work may have waited.
    pub(super) fn compare(&mut self, latency: f64, round: &Round) {
        let off = latency - self.latency;
        self.latency += LEARN_BELOW * off.min(0.0);
        let usual = self.excess(round) == 0.0;
        let less = round.bad() + round.chance(self.failing) - self.failing;
        self.failing += LEARN_BELOW * less.min(0.0);
        if off < -2.0 * self.tolerated {
            // It has become faster, and nobody knows how much.
            (self.settled, self.probe_at) = (false, PROBE_SOON);
        }
        let near = self.settled && off <= self.tolerated / 8.0 && usual;
        self.age = if near { 0 } else { self.age + 1 };
    }
    /// Forgets what was learned: this is the least that was ever measured, and may still be waiting.
    pub(super) fn replace(&mut self, latency: f64) {
        self.latency = latency;
    }
}
