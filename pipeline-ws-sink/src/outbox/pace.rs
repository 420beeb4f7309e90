//! When to pause so that more frames share a write. Pure.

use std::time::Duration;

/// So many frames make a write cheap enough.
const ENOUGH: usize = 32;

/// Nobody who writes for a shorter time without a break, or less often, is pressed. (A thread that
/// does not get its turn may take long for little.)
const PRESSED: (Duration, usize) = (Duration::from_millis(1), 256);

/// The longest pause.
const LONGEST: Duration = Duration::from_millis(8);

/// What has been written since the last pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) writes: usize,
    pub(super) frames: usize,
}

impl Stretch {
    pub(super) fn wrote(&mut self, frames: usize) {
        self.writes += 1;
        self.frames += frames;
    }

    /// How long to pause when this took so long, and there is more to write already.
    ///
    /// As long as it took, but for a moment only, and not if the writes were well used. Frames that
    /// come now and then are never held up.
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
    fn only_those_who_write_without_a_break_and_few_frames_at_once_pause() {
        let ms = Duration::from_millis;
        let pause = |writes, frames, took| Stretch { writes, frames }.pause(took);
        assert_eq!(pause(300, 300, ms(2)), Some(ms(2)), "as long as it took");
        assert_eq!(pause(3000, 3000, ms(20)), Some(ms(8)), "but not for long");
        assert_eq!(pause(300, 300, Duration::from_micros(999)), None, "not for long");
        assert_eq!(pause(255, 255, ms(2)), None, "few");
        assert_eq!(pause(300, 300 * 31, ms(2)), Some(ms(2)));
        assert_eq!(pause(300, 300 * 32, ms(2)), None, "well used");
        assert_eq!(pause(0, 0, ms(2)), None, "nothing was written");
    }

    #[test]
    fn a_stretch_counts_writes_and_their_frames() {
        let mut stretch = Stretch::default();
        stretch.wrote(3);
        stretch.wrote(1);
        assert_eq!(stretch, Stretch { writes: 2, frames: 4 });
    }
}
