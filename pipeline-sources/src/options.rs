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
        }
    }
}

impl SourceOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often an item is delivered before it is given up. Default 5. Deliveries without an outcome,
    /// in a process that was killed, count too.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_deliveries(mut self, deliveries: u32) -> Self {
        assert!(deliveries > 0, "an item must be delivered at least once");
        self.max_deliveries = deliveries;
        self
    }

    /// The delays before a failed item is delivered again. Default from a second to five minutes.
    pub fn redeliver_after(mut self, backoff: Backoff) -> Self {
        self.redeliver = backoff;
        self
    }

    /// The delays before the source connects again. Default from a tenth of a second to half a minute.
    pub fn reconnect_after(mut self, backoff: Backoff) -> Self {
        self.reconnect = backoff;
        self
    }

    /// How many items are fetched in one call, if there is demand for them. Default 100.
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
    /// when the broker stores outcomes more slowly than it delivers items. Default 10,000.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_unsettled(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one item must be held");
        self.max_unsettled = items;
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
