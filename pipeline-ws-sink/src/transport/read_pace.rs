//! The pace at which a client is read from. Pure: the caller passes the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    protocol::connection::Incoming,
    session::{
        cost,
        token_bucket::{Bucket, Rate},
    },
};

/// How many seconds' worth of its rate a client may be ahead.
const BURST: u32 = 10;

/// How many compressed bytes take as long to decompress as a small frame takes to handle: 8 to 25
/// nanoseconds each.
const COMPRESSED_A_UNIT: usize = 512;

/// The minimum pause, so that a client that is always too fast does not need a timer for each of
/// its frames.
const SHORTEST: Duration = Duration::from_millis(5);

/// The cost of frames, and a client's rate.
#[derive(Debug)]
pub(super) struct ReadPace {
    since: Instant,
    rate: Rate,
    bucket: Bucket,
}

/// The cost of handling this.
pub(super) fn cost_of(incoming: &Incoming) -> u64 {
    match incoming {
        // Each block costs as much as a small frame, even if empty: tables are built for it.
        Incoming::Inflated(step) => (step.blocks + step.taken / COMPRESSED_A_UNIT).max(1) as u64,
        incoming => cost(incoming.bytes()),
    }
}

impl ReadPace {
    /// A pace of this cost per second on average.
    pub(super) fn new(a_second: u32, now: Instant) -> Self {
        let rate = Rate::new(a_second, Duration::from_secs(1), a_second.saturating_mul(BURST));
        Self { since: now, rate, bucket: Bucket::default() }
    }

    /// Adds the cost of handled data.
    pub(super) fn took(&mut self, cost: u64, now: Instant) {
        self.bucket.take_many(cost, self.rate, now.saturating_duration_since(self.since));
    }

    /// How long to wait before more is handled, if at all.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let wait = self.bucket.wait(self.rate, now.saturating_duration_since(self.since))?;
        Some(wait.max(SHORTEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::deflate::InflateStep;

    #[test]
    fn a_client_may_send_ten_seconds_worth_at_once_and_then_waits() {
        let start = Instant::now();
        let mut pace = ReadPace::new(100, start);
        pace.took(999, start);
        assert_eq!(pace.wait(start), None);
        pace.took(11, start);
        assert_eq!(pace.wait(start), Some(Duration::from_millis(110)));
        let later = start + Duration::from_secs(1);
        pace.took(50, later);
        assert_eq!(pace.wait(later), None);
    }

    #[test]
    fn a_cost_of_more_than_a_second_is_paid_in_full() {
        let start = Instant::now();
        let mut pace = ReadPace::new(100, start);
        pace.took(999 + 6000, start);
        assert_eq!(pace.wait(start), Some(Duration::from_secs(60)));
        let later = start + Duration::from_secs(59);
        assert_eq!(pace.wait(later), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_client_that_is_always_too_fast_is_read_from_at_its_rate() {
        let start = Instant::now();
        let (mut pace, mut now) = (ReadPace::new(200, start), start);
        let mut frames = 0;
        while now < start + Duration::from_secs(60) {
            pace.took(1, now);
            frames += 1;
            now += pace.wait(now).unwrap_or_default();
        }
        assert!((60 * 200..=70 * 200 + 1).contains(&frames), "{frames}");
    }

    #[test]
    fn a_large_frame_costs_as_much_as_many_small_ones() {
        assert_eq!([0, 100, 8 << 10, 1 << 20].map(cost), [1, 1, 2, 129]);
        let pings = [0, 100].map(|length| Incoming::Ping(vec![0; length].into()));
        assert_eq!(pings.each_ref().map(cost_of), [1, 1]);
    }

    #[test]
    fn a_compressed_message_costs_by_its_blocks_and_by_its_bytes() {
        let cost = |blocks, taken| {
            cost_of(&Incoming::Inflated(InflateStep { blocks, taken, is_last: false }))
        };
        assert_eq!(
            [0, 1, 16].map(|blocks| cost(blocks, 20)),
            [1, 1, 16],
            "for any content of a block"
        );
        assert_eq!([511, 512, 40 << 10].map(|taken| cost(0, taken)), [1, 1, 80]);
        assert_eq!(cost(1, 511), 1, "a small message costs the same as an uncompressed one");
    }
}
