//! Lines of the log that many items may cause. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two lines.
const BETWEEN: Duration = Duration::from_secs(10);

/// Limits how often a line is written that many items may cause.
#[derive(Debug, Default)]
pub(crate) struct LineLimit {
    last: Option<Instant>,
    skipped: u64,
}

impl LineLimit {
    /// Counts a line. If it is to be written now, returns how many were not written before it.
    pub(crate) fn line(&mut self, now: Instant) -> Option<u64> {
        if self.is_too_early(now) {
            self.skipped += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.skipped))
    }

    /// How many were not written, if that is to be written now.
    pub(crate) fn rest(&mut self, now: Instant) -> Option<u64> {
        if self.skipped == 0 || self.is_too_early(now) {
            return None;
        }
        self.line(now)
    }

    fn is_too_early(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < BETWEEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_once_in_ten_seconds_with_how_many_were_not() {
        let mut limit = LineLimit::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(limit.line(at(0)), Some(0));
        assert_eq!([limit.line(at(1)), limit.line(at(9)), limit.rest(at(9))], [None; 3]);
        assert_eq!(limit.rest(at(10)), Some(2));
        assert_eq!(limit.rest(at(60)), None);
        assert_eq!(limit.line(at(60)), Some(0));
    }
}
