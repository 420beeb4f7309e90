//! Since when an event is on its way. Pure.

use pipeline_core::{Timeline, TraceContext};
use tokio::time::Instant;

/// Since when a timed event is on its way, and to which trace it belongs: what is needed once its frame
/// has been written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    /// When what it carries was enqueued.
    pub(crate) enqueued_at: Instant,
    pub(crate) broadcast_at: Instant,
    pub(crate) trace: Option<TraceContext>,
}

impl Since {
    pub(crate) fn new(timeline: &Timeline, broadcast_at: Instant) -> Self {
        Self { enqueued_at: timeline.enqueued_at(), broadcast_at, trace: timeline.trace() }
    }
}

#[cfg(test)]
impl Since {
    pub(crate) fn now() -> Self {
        Self::new(&Instant::now().into(), Instant::now())
    }
}
