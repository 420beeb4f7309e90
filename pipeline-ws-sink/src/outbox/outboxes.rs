//! How much the outboxes of an endpoint hold together, and how much that may be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{Notify, futures::Notified};

/// What an outbox may hold even when the endpoint's outboxes together hold too much, in bytes of memory: so
/// a few clients that fill the endpoint's limit do not cost the others their connections.
pub(super) const SHARE: usize = 16 << 10;

/// What all outboxes of an endpoint hold, beyond the [share](SHARE) of each. A frame that waits for many
/// sockets counts once.
#[derive(Debug)]
pub(crate) struct Outboxes {
    bytes: AtomicUsize,
    limit: usize,
    /// Told when they hold less than they may again.
    room: Notify,
}

/// Bytes that count for an endpoint until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    all: Arc<Outboxes>,
    bytes: usize,
}

impl Outboxes {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), limit, room: Notify::new() }
    }

    /// How much the outboxes hold, beyond the share of each.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Whether the outboxes together hold as much as they may.
    pub(super) fn are_full(&self) -> bool {
        self.bytes() >= self.limit
    }

    /// Waits until the outboxes hold less than they may together, if they hold as much now. From the call
    /// on, none is missed.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }
}

impl Held {
    /// Has so many bytes count, whether there is room or not.
    pub(super) fn new(all: &Arc<Outboxes>, bytes: usize) -> Self {
        all.bytes.fetch_add(bytes, Relaxed);
        Self { all: all.clone(), bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (before, limit) = (self.all.bytes.fetch_sub(self.bytes, Relaxed), self.all.limit);
        if before >= limit && before - self.bytes < limit {
            self.all.room.notify_waiters();
        }
    }
}
