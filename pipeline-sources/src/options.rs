//! The options of a source.

use std::time::Duration;

use pipeline_core::backoff::Backoff;

/// How a [`Source`](crate::Source) delivers items again, gives them up, and connects again.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::backoff::Backoff;
/// use pipeline_sources::SourceOptions;
///
/// let options = SourceOptions::new()
///     .max_deliveries(10)
///     .redeliver_after(Backoff::new(Duration::from_secs(1), Duration::from_secs(300)));
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SourceOptions {
    pub(crate) max_deliveries: u32,
    pub(crate) redeliver: Backoff,
    pub(crate) reconnect: Backoff,
    pub(crate) fetch_at_once: usize,
    pub(crate) settle_at_once: usize,
    pub(crate) max_unsettled: usize,
    pub(crate) max_unsettled_bytes: usize,
    pub(crate) max_unfinished: u32,
    /// Without one it is that of [`SourceOptions::calls_within`].
    pub(crate) call_timeout: Option<Duration>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        Self {
            max_deliveries: 5,
            redeliver: Backoff::new(second, minute * 5),
            reconnect: Backoff::new(Duration::from_millis(100), second * 30),
            fetch_at_once: 100,
            settle_at_once: 1000,
            max_unsettled: 10_000,
            max_unsettled_bytes: 256 * 1024 * 1024,
            max_unfinished: 20,
            call_timeout: None,
        }
    }
}

/// How long a call may take, unless a lease is short or the program says so.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a call may take at least, also if a lease is shorter: a server needs some time.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long a call may take so that no lease ends while an outcome is being stored: it is not renewed meanwhile, and
/// the last renewal was up to a third of a lease before.
pub(crate) fn in_lease(lease: Duration) -> Duration {
    lease.saturating_mul(2) / 3
}

impl SourceOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often an item may fail: it is given up at this failure. Default 5, so that it is tried five times.
    ///
    /// The broker keeps how often an item has failed. A message that a program forgets without an outcome has
    /// failed. What was [postponed](pipeline_core::processing::Failure::later), given back, dropped with its
    /// stage, or lost with its process or its connection has not, and is not counted here.
    ///
    /// Where a server has no place for that number, as NATS, each source counts itself, and remembers the last
    /// 4,096 items that have failed, and [as many as may be held back](crate::Broker::held_back) of those that were postponed. An item that fails in several processes is tried more
    /// often then, up to [`max_unfinished`](Self::max_unfinished).
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "an item must be delivered at least once");
        self.max_deliveries = deliveries;
        self
    }

    /// How often an item is delivered without an outcome before it is given up, because its process was
    /// killed, its stage has ended, or its connection was lost. Default 20. Failures are not counted here.
    ///
    /// Items that were fetched when a process dies have been delivered, also those that it had not begun
    /// with. So this is how many deaths or lost connections an item survives, and how many times an item may
    /// kill its process.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_unfinished(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "an item must be delivered at least once");
        self.max_unfinished = deliveries;
        self
    }

    /// How long a call of the broker may take: to connect, to store outcomes, to renew leases, and to count
    /// the backlog. Default 20 seconds, or two thirds of the broker's lease if that is less, but not less
    /// than a second. A call that takes longer has failed, and the source connects again;
    /// only the backlog is counted later. To fetch may take any time, because it waits for items; a
    /// [`Fetch`](crate::Fetch) notices itself that its server is gone.
    ///
    /// With a broker that has leases it should be at most two thirds of one: an item whose outcome is being
    /// stored has its lease not renewed, and the last renewal was up to a third of a lease before. A source that
    /// starts with a longer one logs a warning. How long an item is handled does not matter: its lease is renewed
    /// each third of a lease until it has an outcome.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "a call must have some time");
        self.call_timeout = Some(limit);
        self
    }

    /// How long a call of a broker with this lease may take.
    pub(crate) fn calls_within(&self, lease: Option<Duration>) -> Duration {
        let fits = lease.map_or(Duration::MAX, in_lease).max(SHORTEST);
        self.call_timeout.unwrap_or(CALL_TIMEOUT.min(fits))
    }

    /// The delays before a failed item is delivered again. Default from a second to five minutes.
    pub fn redeliver_after(mut self, backoff: Backoff) -> Self {
        self.redeliver = backoff;
        self
    }

    /// The delays before the source connects again, and before an outcome that the broker has refused is
    /// stored again. Default from a tenth of a second to half a minute. The delays of connecting begin anew
    /// after a session that has lived for a second, and for twice the delay before it, and after one that has
    /// fetched an item or had three calls in a row answered. Sessions that end soon after that, one after the
    /// other, are up to three seconds apart.
    pub fn reconnect_after(mut self, backoff: Backoff) -> Self {
        self.reconnect = backoff;
        self
    }

    /// How many items are fetched in one call, if there is demand for them. Default 100. After a call that was not
    /// answered it is half of what that one asked for, until calls are answered again; and of large items so many as have
    /// 16 MiB, as far as earlier ones tell.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn fetch_at_once(mut self, items: usize) -> Self {
        assert!(items > 0, "a fetch must be for at least one item");
        self.fetch_at_once = items;
        self
    }

    /// How many items may have been fetched without a stored outcome. Beyond it nothing is fetched, as
    /// when the broker stores outcomes more slowly than it delivers items, or refuses them. Default 10,000.
    /// Those whose outcome it refuses are among them as long as it does.
    ///
    /// It is also how many handled items are delivered again at most when the process dies, for those with a
    /// stored outcome are done. With Kafka it is this and, of each partition, what was done beyond
    /// the committed offset, which `KafkaOptions::max_uncommitted` bounds.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_unsettled(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one item must be held");
        self.max_unsettled = items;
        self
    }

    /// How many bytes the items may have that were fetched without a stored outcome. Beyond it nothing is
    /// fetched; the last fetch may exceed it. Default 256 MiB.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_unsettled_bytes(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "at least one item must be held");
        self.max_unsettled_bytes = bytes;
        self
    }

    /// How many acknowledgements are stored in one call. Default 1000.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn settle_at_once(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one acknowledgement must be stored at once");
        self.settle_at_once = items;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_fit_the_lease_unless_the_program_says_how_long_they_may_take() {
        let (second, options) = (Duration::from_secs(1), SourceOptions::new());
        let calls = [None, Some(60), Some(30), Some(6), Some(1)]
            .map(|lease| options.calls_within(lease.map(Duration::from_secs)).as_secs());
        assert_eq!(calls, [20, 20, 20, 4, 1]);
        let chosen = options.call_timeout(9 * second);
        assert_eq!(chosen.calls_within(Some(6 * second)), 9 * second);
    }
}
