//! The options of a Kafka queue.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

/// The options of a [`KafkaQueue`](super::KafkaQueue).
///
/// ```
/// use pipeline_sources::kafka::KafkaOptions;
///
/// let options = KafkaOptions::new().ordered_by_key(true).set("client.rack", "north");
/// ```
#[derive(Clone)]
#[must_use]
pub struct KafkaOptions {
    pub(super) dead_letters: Option<Arc<str>>,
    pub(super) ordered: bool,
    pub(super) max_uncommitted: usize,
    pub(super) max_uncommitted_bytes: usize,
    pub(super) prefetch: usize,
    pub(super) call_timeout: Duration,
    pub(super) push_timeout: Duration,
    pub(super) revoke_wait: Duration,
    pub(super) settings: BTreeMap<String, String>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            dead_letters: None,
            ordered: false,
            max_uncommitted: 10_000,
            max_uncommitted_bytes: 64 << 20,
            prefetch: 1 << 20,
            call_timeout: seconds(10),
            push_timeout: seconds(30),
            revoke_wait: seconds(10),
            settings: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A setting may be a password.
        f.debug_struct("KafkaOptions")
            .field("dead_letters", &self.dead_letters)
            .field("ordered", &self.ordered)
            .field("max_uncommitted", &self.max_uncommitted)
            .field("settings", &self.settings.keys())
            .finish_non_exhaustive()
    }
}

impl KafkaOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The topic of the items that were given up. Default the topic's name and `.dead-letters`. It should
    /// have `cleanup.policy=compact`.
    pub fn dead_letters(mut self, topic: impl Into<Arc<str>>) -> Self {
        self.dead_letters = Some(topic.into());
        self
    }

    /// Items with the same key are delivered in their order, one at a time: the next one when the one
    /// before was handled or given up. Default no.
    pub fn ordered_by_key(mut self, ordered: bool) -> Self {
        self.ordered = ordered;
        self
    }

    /// How many items of a partition may have been read from the first one on that is not done. Beyond it
    /// nothing more is read of the partition. So many may come again after the death of the process.
    /// Default 10,000.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_uncommitted(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one item must be read");
        self.max_uncommitted = items;
        self
    }

    /// How many bytes the items of a partition may have that were read and are not done. Beyond it nothing
    /// more is read of the partition. Default 64 MiB.
    pub fn max_uncommitted_bytes(mut self, bytes: usize) -> Self {
        self.max_uncommitted_bytes = bytes.max(1);
        self
    }

    /// About how many bytes of a partition the client fetches before they are asked for. Default 1 MiB.
    pub fn prefetch(mut self, bytes: usize) -> Self {
        self.prefetch = bytes.clamp(1024, 1 << 30);
        self
    }

    /// How long an answer of the servers is waited for. Then the source connects again. Default 10 seconds.
    pub fn call_timeout(mut self, time: Duration) -> Self {
        self.call_timeout = time.clamp(Duration::from_millis(100), Duration::from_secs(300));
        self
    }

    /// How long a push is tried, also while the servers are away. Default 30 seconds.
    pub fn push_timeout(mut self, time: Duration) -> Self {
        self.push_timeout = time.clamp(Duration::from_millis(100), Duration::from_secs(86_400));
        self
    }

    /// How long a partition that goes to another source is kept until what is in work of it is done.
    /// Default 10 seconds.
    pub fn revoke_wait(mut self, time: Duration) -> Self {
        self.revoke_wait = time;
        self
    }

    /// A setting of the client, librdkafka, by its name there, such as `security.protocol`. Those on which
    /// the promises of the source depend stay as they are, such as `enable.auto.commit`.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }
}
