//! How many lines the log has of what clients can cause as often as they like.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::token_bucket::{Bucket, Rate};

/// So many lines may be written at once.
const BURST: u32 = 100;

/// So many may be written in each second after that.
const EACH_SECOND: u32 = 10;

/// Decides which of the lines of a kind are written to the log, and counts the others.
pub(crate) struct LineLimit {
    rate: Rate,
    began: Instant,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    bucket: Bucket,
    left_out: u64,
}

/// A line that may be written.
pub(crate) struct Line {
    /// How many lines were left out since the last one, if any.
    pub(crate) left_out: Option<u64>,
}

impl LineLimit {
    pub(crate) fn new() -> Self {
        let rate = Rate::new(EACH_SECOND, Duration::from_secs(1), BURST);
        Self { rate, began: Instant::now(), lines: Mutex::default() }
    }

    /// Whether another line may be written now. Counts it if not.
    pub(crate) fn admit(&self) -> Option<Line> {
        let now = self.began.elapsed();
        let mut lines = self.lines.lock();
        if lines.bucket.wait(self.rate, now).is_some() {
            lines.left_out += 1;
            return None;
        }
        lines.bucket.take(self.rate, now);
        let left_out = std::mem::take(&mut lines.left_out);
        Some(Line { left_out: (left_out > 0).then_some(left_out) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_writes_few_lines_and_the_next_one_says_how_many_were_left_out() {
        let limit = LineLimit::new();
        let written = (0..1000).filter_map(|_| limit.admit()).collect::<Vec<_>>();
        assert_eq!(written.len(), 100);
        assert!(written.iter().all(|line| line.left_out.is_none()));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(limit.admit().unwrap().left_out, Some(900));
        assert_eq!(limit.admit().unwrap().left_out, None);
        assert!(limit.admit().is_none());
    }
}
