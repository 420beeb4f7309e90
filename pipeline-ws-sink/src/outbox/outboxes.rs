//! The memory of all outboxes of an endpoint, and its limit.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{Notify, futures::Notified};

/// The bytes of memory that an outbox may hold even when the endpoint's limit is reached: so a few
/// clients that fill the limit do not cost the others their connections.
pub(super) const SHARE: usize = 16 << 10;

/// The memory of all outboxes of an endpoint, beyond the [share](SHARE) of each. A frame that waits
/// for many sockets counts once.
#[derive(Debug)]
pub(crate) struct Outboxes {
    bytes: AtomicUsize,
    limit: usize,
    /// Notified when the total is below the limit again.
    room: Notify,
}

/// Bytes that count for an endpoint until this is dropped.
#[derive(Debug)]
pub(crate) struct OutboxBytes {
    all: Arc<Outboxes>,
    bytes: usize,
}

impl Outboxes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), limit, room: Notify::new() }
    }

    /// The bytes of all outboxes, beyond the share of each.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Whether the outboxes together have reached the limit.
    pub(super) fn are_full(&self) -> bool {
        self.bytes() >= self.limit
    }

    /// Waits until the outboxes together are below the limit, if they have reached it now.
    /// Notifications after this call are not missed.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }
}

impl OutboxBytes {
    /// Counts this number of bytes, whether there is room or not.
    pub(crate) fn new(all: &Arc<Outboxes>, bytes: usize) -> Self {
        all.bytes.fetch_add(bytes, Relaxed);
        Self { all: all.clone(), bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for OutboxBytes {
    fn drop(&mut self) {
        let (before, limit) = (self.all.bytes.fetch_sub(self.bytes, Relaxed), self.all.limit);
        if before >= limit && before - self.bytes < limit {
            self.all.room.notify_waiters();
        }
    }
}
