//! How many clients may arrive in a second, and what becomes of those that come at once.

use std::time::Duration;

use metrics::{Counter, Histogram};
use parking_lot::Mutex;
use pipeline_core::telemetry::{Telemetry, milliseconds};
use tokio::time::{Instant, sleep_until};

/// How many clients may connect or join in a second, and how long the others may wait for their turn.
///
/// When all clients of a server come at once, after its restart or that of another node, their `connect`
/// and `join` callbacks would compete with each other, and with the clients that are there. With a rate,
/// they wait in the order in which they come. That costs no memory but their own, and a client that waits
/// does nothing else, so the callbacks of those that are connected are not delayed. One that would have to
/// wait for longer than [`wait`](Self::wait) is refused at once, and tries again: at most `per_second` ×
/// `wait` wait. Each of them has a connection, so that number has to be well below the server's limit of
/// connections.
///
/// A client that gives up while it waits keeps its turn. So this is for clients that come at once by
/// accident, and no protection from one that means harm.
///
/// ```
/// # use std::time::Duration;
/// # use pipeline_ws_sink::{Endpoint, endpoint::ArrivalRate};
/// let builder = Endpoint::builder()
///     .connect_rate(ArrivalRate::new(2_000))
///     .join_rate(ArrivalRate::new(4_000).wait(Duration::from_secs(3)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ArrivalRate {
    interval: Duration,
    wait: Duration,
}

impl ArrivalRate {
    /// This number in a second, and a wait of at most five seconds.
    ///
    /// # Panics
    ///
    /// If it is zero: no client would ever arrive.
    pub fn new(per_second: u32) -> Self {
        assert!(per_second > 0, "per_second must be at least 1");
        Self { interval: Duration::from_secs(1) / per_second, wait: Duration::from_secs(5) }
    }

    /// How long a client may wait for its turn. Default five seconds. The official client gives up a join
    /// after ten, and begins it again later.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// How many may come at once after a pause, as the time in which the rate lets them come.
const BURST: Duration = Duration::from_millis(100);

/// The next free turn. Pure.
#[derive(Debug)]
struct Turns {
    rate: ArrivalRate,
    next: Option<Instant>,
}

impl Turns {
    /// The next turn. None if it is too far away.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let at = self.next.map_or(earliest, |next| next.max(earliest));
        if at.saturating_duration_since(now) > self.rate.wait {
            return None;
        }
        self.next = at.checked_add(self.rate.interval);
        Some(at)
    }
}

/// Where clients wait for their turn.
pub(crate) struct Arrivals {
    turns: Option<Mutex<Turns>>,
    waited: Histogram,
    refused: Counter,
}

/// A client would have to wait for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Arrivals {
    /// Clients that connect.
    pub(crate) fn connects(rate: Option<ArrivalRate>, telemetry: &Telemetry) -> Self {
        let waited = ("socket.connect_waited", "Time that clients waited to connect");
        let refused = ("socket.connects_over_rate", "Clients refused because too many connect");
        Self::new(rate, telemetry, waited, refused)
    }

    /// Channels that are joined.
    pub(crate) fn joins(rate: Option<ArrivalRate>, telemetry: &Telemetry) -> Self {
        let waited = ("channel.join_waited", "Time that joins waited for their turn");
        let refused = ("channel.joins_over_rate", "Joins refused because too many clients join");
        Self::new(rate, telemetry, waited, refused)
    }

    fn new(
        rate: Option<ArrivalRate>,
        telemetry: &Telemetry,
        waited: (&'static str, &'static str),
        refused: (&'static str, &'static str),
    ) -> Self {
        Self {
            turns: rate.map(|rate| Mutex::new(Turns { rate, next: None })),
            waited: telemetry.timer(waited.0, waited.1, []),
            refused: telemetry.counter(refused.0, refused.1, []),
        }
    }

    /// Waits for a turn.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. The turn stays taken.
    pub(crate) async fn turn(&self) -> Result<(), TooMany> {
        let Some(turns) = &self.turns else { return Ok(()) };
        let now = Instant::now();
        let Some(at) = turns.lock().take(now) else {
            self.refused.increment(1);
            return Err(TooMany);
        };
        if at > now {
            sleep_until(at).await;
            self.waited.record(milliseconds(now.elapsed()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn turns_are_in_order_at_the_rate_and_none_is_too_far_away(
            per_second in 1_u32..5_000,
            wait in 0_u64..3_000,
            pauses in prop::collection::vec(0_u64..50, 1..300),
        ) {
            let rate = ArrivalRate::new(per_second).wait(Duration::from_millis(wait));
            let mut turns = Turns { rate, next: None };
            let begun = Instant::now() + Duration::from_secs(1);
            let (mut now, mut taken) = (begun, Vec::new());
            for pause in pauses {
                now += Duration::from_millis(pause);
                match turns.take(now) {
                    Some(at) => {
                        prop_assert!(at <= now + rate.wait);
                        taken.push(at);
                    }
                    // It would have been too late.
                    None => prop_assert!(turns.next.unwrap() > now + rate.wait),
                }
            }
            for pair in taken.windows(2) {
                prop_assert!(pair[1] >= pair[0] + rate.interval);
            }
        }
    }
}
