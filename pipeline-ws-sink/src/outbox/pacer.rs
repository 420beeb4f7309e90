//! Pauses that let more frames share a write. Pure.

use std::time::Duration;

/// With this number of frames, a write is efficient.
const ENOUGH: usize = 32;

/// A task that has written for a shorter time or less often does not pause. (A thread that is not
/// scheduled may take long for little work.)
const PRESSED: (Duration, usize) = (Duration::from_millis(1), 256);

/// The longest pause.
const LONGEST: Duration = Duration::from_millis(8);

/// The writes since the last pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FlushPacer {
    pub(super) writes: usize,
    pub(super) frames: usize,
}

impl FlushPacer {
    pub(super) fn wrote(&mut self, frames: usize) {
        self.writes += 1;
        self.frames += frames;
    }

    /// How long to pause when these writes took this long and there is more to write.
    ///
    /// As long as the writes took, up to a limit, and not at all if the writes were efficient.
    /// Frames that come occasionally are never delayed.
    pub(super) fn pause(self, took: Duration) -> Option<Duration> {
        let well_used = self.frames >= self.writes.saturating_mul(ENOUGH);
        let (long, often) = PRESSED;
        (took >= long && self.writes >= often && !well_used).then(|| took.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_runs_of_inefficient_writes_pause() {
        let ms = Duration::from_millis;
        let pause = |writes, frames, took| FlushPacer { writes, frames }.pause(took);
        assert_eq!(pause(300, 300, ms(2)), Some(ms(2)), "as long as the writes took");
        assert_eq!(pause(3000, 3000, ms(20)), Some(ms(8)), "up to the limit");
        assert_eq!(pause(300, 300, Duration::from_micros(999)), None, "too short a time");
        assert_eq!(pause(255, 255, ms(2)), None, "few");
        assert_eq!(pause(300, 300 * 31, ms(2)), Some(ms(2)));
        assert_eq!(pause(300, 300 * 32, ms(2)), None, "efficient writes");
        assert_eq!(pause(0, 0, ms(2)), None, "nothing was written");
    }

    #[test]
    fn a_pacer_counts_writes_and_their_frames() {
        let mut pacer = FlushPacer::default();
        pacer.wrote(3);
        pacer.wrote(1);
        assert_eq!(pacer, FlushPacer { writes: 2, frames: 4 });
    }
}
