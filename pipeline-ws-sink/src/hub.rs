//! What an endpoint's sockets share.

use std::sync::{Arc, atomic::AtomicUsize};

use pipeline_core::Telemetry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Admissions,
    endings::Endings,
    inbox::Inboxes,
    outbox::{Outboxes, Sweeper},
    presence::Presence,
    pubsub::{Adapter, PubSub},
    sampler::Sampler,
    sockets::Sockets,
    telemetry::SocketMetrics,
    tracker::TrackerOptions,
};

/// What an endpoint's sockets share.
pub(crate) struct Hub {
    pub(crate) pubsub: PubSub,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) sweeper: Sweeper,
    pub(crate) metrics: Arc<SocketMetrics>,
    pub(crate) sampler: Sampler,
    pub(crate) inboxes: Arc<Inboxes>,
    pub(crate) outboxes: Arc<Outboxes>,
    pub(crate) admissions: Arc<Admissions>,
    pub(crate) endings: Endings,
    /// Each has a name of its own.
    pub(crate) presences: Vec<Presence>,
    /// The tasks of all sockets.
    pub(crate) tasks: TaskTracker,
    /// How many sockets have ended before their client had taken all that was meant for it: the close frame,
    /// or where it polls, what waited.
    pub(crate) unclosed: AtomicUsize,
    /// Ends these tasks where they are.
    pub(crate) cut_off: CancellationToken,
}

/// How much an endpoint's sockets may be and hold together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HubLimits {
    /// How many sockets there may be.
    pub(crate) sockets: usize,
    /// How many bytes they may have received and not handled.
    pub(crate) inboxes: usize,
    /// How many bytes may wait to be written to them.
    pub(crate) outboxes: usize,
}

impl Hub {
    pub(crate) fn new(
        telemetry: &Telemetry,
        adapter: Option<Arc<dyn Adapter>>,
        shared_online: Option<TrackerOptions>,
        presences: Vec<Presence>,
        limits: HubLimits,
    ) -> Self {
        let sockets: Arc<Sockets> = Arc::default();
        let metrics = Arc::new(SocketMetrics::register(telemetry));
        Self {
            pubsub: PubSub::new(
                sockets.clone(),
                metrics.clone(),
                adapter,
                shared_online,
                telemetry,
            ),
            sockets,
            sweeper: Sweeper::new(),
            metrics,
            sampler: Sampler::register(telemetry),
            inboxes: Arc::new(Inboxes::new(limits.inboxes)),
            outboxes: Arc::new(Outboxes::new(limits.outboxes)),
            admissions: Arc::new(Admissions::new(limits.sockets, telemetry)),
            endings: Endings::new(),
            presences,
            tasks: TaskTracker::new(),
            unclosed: AtomicUsize::new(0),
            cut_off: CancellationToken::new(),
        }
    }

    /// Starts what runs beside the sockets, unless the endpoint has come to its end meanwhile. For a
    /// socket that is open.
    pub(crate) fn begin(self: &Arc<Self>) {
        if self.sockets.are_closed() {
            return;
        }
        Sampler::begin(self);
        self.begin_to_talk();
    }

    /// Begins to talk with other nodes, if there are any, and if there is where that can run.
    pub(crate) fn begin_to_talk(&self) {
        self.pubsub.begin();
        self.presences.iter().for_each(Presence::begin);
    }

    /// Ends it, but for what ends by itself.
    pub(crate) fn end(&self) {
        self.presences.iter().for_each(Presence::end);
        self.pubsub.end();
    }
}
