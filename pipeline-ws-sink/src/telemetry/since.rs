//! The start time of a timed event. Pure.

use pipeline_core::{Timeline, TraceContext};
use tokio::time::Instant;

/// The start time of a timed event, and its trace: the data that is needed once its frame has been
/// written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    /// When its item was enqueued.
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
