//! How fast a client is read from. Pure: told the time, it does not read it.

use std::time::Duration;

use tokio::time::Instant;

use crate::token_bucket::{Bucket, Rate};

/// How many bytes of a frame cost as much as the frame itself. A frame of 1 MiB costs all that a task has
/// of tokio's budget for one turn.
const BYTES_A_UNIT: usize = 8 << 10;

/// For how many seconds of the rate a client may be ahead of it.
const BURST: u32 = 10;

/// How long a client is not read from at a time, at most.
const LONGEST: Duration = Duration::from_secs(1);

/// What frames cost, and how much of it a client may cause.
#[derive(Debug)]
pub(super) struct ReadPace {
    since: Instant,
    rate: Rate,
    bucket: Bucket,
}

/// What a frame of so many bytes costs, after it has been decompressed.
pub(super) fn cost(bytes: usize) -> u64 {
    1 + (bytes / BYTES_A_UNIT) as u64
}

impl ReadPace {
    /// So much a second in the long run.
    pub(super) fn new(a_second: u32, now: Instant) -> Self {
        let rate = Rate::new(a_second, Duration::from_secs(1), a_second.saturating_mul(BURST));
        Self { since: now, rate, bucket: Bucket::default() }
    }

    /// Frames of this cost were read. Returns how long to wait before the next are.
    pub(super) fn took(&mut self, cost: u64, now: Instant) -> Option<Duration> {
        let now = now.saturating_duration_since(self.since);
        self.bucket.take_many(cost, self.rate, now, LONGEST);
        self.bucket.wait(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_send_ten_seconds_worth_at_once_and_then_waits() {
        let start = Instant::now();
        let mut pace = ReadPace::new(100, start);
        assert_eq!(pace.took(999, start), None);
        assert_eq!(pace.took(11, start), Some(Duration::from_millis(110)));
        let later = start + Duration::from_secs(1);
        assert_eq!(pace.took(50, later), None);
    }

    #[test]
    fn a_pause_is_never_long() {
        let start = Instant::now();
        let mut pace = ReadPace::new(100, start);
        assert_eq!(pace.took(1_000_000, start), Some(LONGEST));
        assert_eq!(pace.took(1, start + LONGEST), Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_large_frame_costs_as_much_as_many_small_ones() {
        assert_eq!([0, 100, 8 << 10, 1 << 20].map(cost), [1, 1, 2, 129]);
    }
}
