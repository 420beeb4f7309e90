//! The time of writes.

use std::cell::Cell;

use metrics::Histogram;
use tokio::time::Instant;

/// One in this number of a thread's writes is timed: reading the clock before each would cost one
/// per cent of a small write.
const ONE_IN: u32 = 16;

/// A histogram of the time that the system takes for a write.
pub(crate) struct WriteTime(Histogram);

impl WriteTime {
    /// Called when a write begins. Returns the start time, if it is timed.
    pub(crate) fn begin(&self) -> Option<Instant> {
        thread_local! {
            static WRITES: Cell<u32> = const { Cell::new(0) };
        }
        let number = WRITES.replace(WRITES.get().wrapping_add(1));
        is_timed(number).then(Instant::now)
    }

    /// Records a write that has ended.
    pub(crate) fn end(&self, begun: Option<Instant>, now: Instant) {
        if let Some(begun) = begun {
            self.0.record(now.saturating_duration_since(begun).as_secs_f64() * 1e3);
        }
    }
}

impl From<Histogram> for WriteTime {
    fn from(histogram: Histogram) -> Self {
        Self(histogram)
    }
}

/// Whether the write of this number is timed.
///
/// Not every sixteenth: for sixteen sockets in turn, that would always be the same one. Multiples
/// of the golden ratio are distributed evenly, for any step.
pub(super) fn is_timed(number: u32) -> bool {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    number.wrapping_mul(GOLDEN_RATIO) < u32::MAX / ONE_IN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_in_sixteen_is_timed_evenly_over_all_sockets() {
        assert!(is_timed(0), "the first is timed, so that there is always a sample");
        for sockets in [1, 2, 3, 16, 17, 100] {
            for socket in 0..sockets {
                let writes = (0..16_000).map(|round| socket + round * sockets);
                let timed = writes.filter(|number| is_timed(*number)).count();
                assert!((900..1100).contains(&timed), "{timed} of socket {socket} of {sockets}");
            }
        }
    }
}
