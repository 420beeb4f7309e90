//! What an endpoint's sockets share.

use std::sync::Arc;

use pipeline_core::Telemetry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    outbox::Sweeper,
    pubsub::{Adapter, PubSub},
    sampler::Sampler,
    sockets::Sockets,
    telemetry::SocketMetrics,
};

/// What an endpoint's sockets share.
pub(crate) struct Hub {
    pub(crate) pubsub: PubSub,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) sweeper: Sweeper,
    pub(crate) metrics: Arc<SocketMetrics>,
    pub(crate) sampler: Sampler,
    /// The tasks of all sockets.
    pub(crate) tasks: TaskTracker,
    /// Ends these tasks where they are.
    pub(crate) cut_off: CancellationToken,
}

impl Hub {
    pub(crate) fn new(telemetry: &Telemetry, adapter: Option<Arc<dyn Adapter>>) -> Self {
        let sockets: Arc<Sockets> = Arc::default();
        let metrics = Arc::new(SocketMetrics::register(telemetry));
        Self {
            pubsub: PubSub::new(sockets.clone(), metrics.clone(), adapter, telemetry),
            sockets,
            sweeper: Sweeper::new(),
            metrics,
            sampler: Sampler::register(telemetry),
            tasks: TaskTracker::new(),
            cut_off: CancellationToken::new(),
        }
    }
}
