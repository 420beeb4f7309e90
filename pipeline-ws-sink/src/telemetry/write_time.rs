//! How long writes take.

use std::cell::Cell;

use metrics::Histogram;
use tokio::time::Instant;

/// Of so many writes of a thread, one is timed: to look at the clock before each would be one per cent
/// of what a small one costs.
const ONE_IN: u32 = 16;

/// How long the system takes for a write.
pub(crate) struct WriteTime(Histogram);

impl WriteTime {
    /// A write begins. Returns when, if it is to be timed.
    pub(crate) fn begin(&self) -> Option<Instant> {
        thread_local! {
            static WRITES: Cell<u32> = const { Cell::new(0) };
        }
        let number = WRITES.replace(WRITES.get().wrapping_add(1));
        is_timed(number).then(Instant::now)
    }

    /// The write has ended.
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

/// Whether the write of this number is one of those.
///
/// Not every sixteenth: to sixteen sockets in turn, that would always be the same one. Multiples of
/// the golden ratio come everywhere as often, by whatever step one goes.
pub(super) fn is_timed(number: u32) -> bool {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    number.wrapping_mul(GOLDEN_RATIO) < u32::MAX / ONE_IN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_in_sixteen_is_timed_of_all_sockets_alike() {
        assert!(is_timed(0), "the first is, so that there is a sample at all");
        for sockets in [1, 2, 3, 16, 17, 100] {
            for socket in 0..sockets {
                let writes = (0..16_000).map(|round| socket + round * sockets);
                let timed = writes.filter(|number| is_timed(*number)).count();
                assert!((900..1100).contains(&timed), "{timed} of socket {socket} of {sockets}");
            }
        }
    }
}
