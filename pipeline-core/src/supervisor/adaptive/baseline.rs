//! The baseline of an adaptive limit: the latency of work that does not queue, and its usual share
//! of failures.

use super::round::Round;

/// The number of rounds after which an unconfirmed baseline is measured again, and the maximum for
/// one that is confirmed repeatedly.
const PROBE_SOON: u32 = 4;
const PROBE_LATE: u32 = 64;

/// How far a baseline moves towards a measured latency, and towards a lower one that was observed.
const LEARN_MEASURED: f64 = 0.5;
const LEARN_BELOW: f64 = 0.2;

/// The factor beyond the tolerance from which work is overdue.
const OVERDUE: f64 = 8.0;

/// The largest share of failures that is considered usual.
const MOST_USUAL: f64 = 0.15;

/// Two shares of failures that differ by less than this are the same.
const SAME_SHARE: f64 = 0.1;

/// The known latency of work that does not queue, as a logarithm like in a
/// [`Round`](super::round::Round).
#[derive(Debug)]
pub(super) struct Baseline {
    latency: f64,
    /// The share of work that fails even if little is in flight.
    failing: f64,
    /// The logarithm of the tolerated factor.
    tolerated: f64,
    /// Whether the last measurement confirmed it.
    settled: bool,
    /// The number of rounds since it was last measured or confirmed.
    age: u32,
    /// The age at which it is measured again.
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

    /// The tolerated latency divided by this latency.
    pub(super) fn gradient(&self, latency: f64) -> f64 {
        (self.tolerated + self.latency - latency).exp()
    }

    /// The share of failures in a round beyond the usual share and beyond chance.
    pub(super) fn excess(&self, round: &Round) -> f64 {
        (round.bad() - self.failing - round.chance(self.failing)).max(0.0)
    }

    /// The latency, in seconds, from which work is overdue.
    pub(super) fn overdue(&self) -> f64 {
        OVERDUE * (self.tolerated + self.latency).exp()
    }

    /// Whether the last round measured or confirmed it.
    pub(super) fn is_confirmed(&self) -> bool {
        self.age == 0
    }

    /// Whether the baseline has to be measured again: no round has confirmed it for too long.
    pub(super) fn is_doubtful(&self) -> bool {
        self.age >= self.probe_at
    }

    /// Learns from a round in which nothing should have queued.
    pub(super) fn measure(&mut self, latency: f64, round: &Round) {
        let off = latency - self.latency;
        self.latency += LEARN_MEASURED * off;
        let more = round.bad().min(MOST_USUAL) - self.failing;
        self.failing += LEARN_MEASURED * more;
        self.settled = off.abs() <= self.tolerated && more.abs() <= SAME_SHARE;
        self.probe_at = if self.settled { PROBE_LATE.min(2 * self.probe_at) } else { PROBE_SOON };
        self.age = 0;
    }

    /// Learns from a round in which work may have queued.
    pub(super) fn compare(&mut self, latency: f64, round: &Round) {
        let off = latency - self.latency;
        self.latency += LEARN_BELOW * off.min(0.0);
        let usual = self.excess(round) == 0.0;
        let less = round.bad() + round.chance(self.failing) - self.failing;
        self.failing += LEARN_BELOW * less.min(0.0);
        if off < -2.0 * self.tolerated {
            // The work has become faster, by an unknown amount.
            (self.settled, self.probe_at) = (false, PROBE_SOON);
        }
        let near = self.settled && off <= self.tolerated / 8.0 && usual;
        self.age = if near { 0 } else { self.age + 1 };
    }
    /// Starts over with the lowest latency that was ever measured. It may still include queueing.
    pub(super) fn replace(&mut self, latency: f64) {
        self.latency = latency;
    }
}
