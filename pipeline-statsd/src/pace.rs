//! Spreads packets over time, so that they fit into a receiver's buffer. Pure.

use std::time::Duration;

/// The number of packets that are sent without a pause. A Linux receiver with its default buffer holds
/// about ninety of 1432 bytes.
const BURST: u32 = 16;

/// The shortest and the longest time for a burst.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(20);

/// The number of bursts in a flush with full pauses. Later pauses are shorter, so that a flush of any
/// length ends in time.
const FULL: u32 = 100;

/// Computes pauses. Instants are durations since an arbitrary start.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The total time of the pauses in a flush.
    patience: Duration,
    /// The rest of it.
    left: Duration,
    burst: u32,
    began: Duration,
}

impl Pace {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, left: patience, burst: 0, began: Duration::ZERO }
    }

    /// Counts a packet that is about to be sent, and returns the pause before it.
    pub(crate) fn pause(&mut self, now: Duration) -> Duration {
        let mut pause = Duration::ZERO;
        if self.burst >= BURST {
            let distance =
                (self.patience / FULL).clamp(SHORTEST, LONGEST).min(self.left / FULL * 2);
            let passed = now.saturating_sub(self.began);
            pause = distance.saturating_sub(passed);
            self.left = self.left.saturating_sub(pause);
            self.burst = 0;
        }
        if self.burst == 0 {
            self.began = now.saturating_add(pause);
        }
        self.burst += 1;
        pause
    }

    /// How long the flush may still wait.
    pub(crate) fn left(&self) -> Duration {
        self.left
    }

    /// Deducts other waiting time of the flush.
    pub(crate) fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }

    /// Resets the waiting time at the end of a flush.
    pub(crate) fn rest(&mut self) {
        self.left = self.patience;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The send time of each packet, if sending takes no time.
    fn sent_at(pace: &mut Pace, packets: usize) -> Vec<Duration> {
        let mut now = Duration::ZERO;
        let mut sent = Vec::new();
        for _ in 0..packets {
            now += pace.pause(now);
            sent.push(now);
        }
        sent
    }

    #[test]
    fn packets_leave_in_bursts_with_pauses_between() {
        let sent = sent_at(&mut Pace::new(Duration::from_millis(500)), 40);
        let at = |ms, count| vec![Duration::from_millis(ms); count];
        assert_eq!(sent, [at(0, 16), at(5, 16), at(10, 8)].concat());
    }

    #[test]
    fn slow_packets_are_not_delayed() {
        let mut pace = Pace::new(Duration::from_millis(500));
        assert!((0..100).all(|n| pace.pause(Duration::from_millis(n)) == Duration::ZERO));
    }

    #[test]
    fn the_pauses_of_a_flush_are_bounded() {
        for patience in [1, 5, 500, 5000].map(Duration::from_millis) {
            let mut pace = Pace::new(patience);
            for _ in 0..2 {
                let sent = sent_at(&mut pace, 1_000_000);
                assert!(*sent.last().unwrap() <= patience, "{patience:?}");
                pace.rest();
            }
        }
    }
}
