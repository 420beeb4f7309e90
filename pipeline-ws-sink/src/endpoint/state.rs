//! The shared state of an endpoint's sockets.

use std::{
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Duration,
};

use pipeline_core::telemetry::Telemetry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admission::Admissions,
    arrivals::{ArrivalRate, Arrivals},
    sampler::Sampler,
    sockets::Sockets,
};
use crate::{
    handshake::refusal::Refusals,
    outbox::{Flusher, Outboxes},
    presence::{Presence, tracker::TrackerOptions},
    pubsub::{Adapter, PubSub},
    session::inbox::Inboxes,
    telemetry::SocketMetrics,
    token::SharedKey,
    transport::{endings::Endings, longpoll_relay::Relay},
};

/// The shared state of an endpoint's sockets.
pub(crate) struct EndpointState {
    pub(crate) pubsub: PubSub,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) flusher: Flusher,
    pub(crate) metrics: Arc<SocketMetrics>,
    pub(crate) sampler: Sampler,
    pub(crate) inboxes: Arc<Inboxes>,
    pub(crate) outboxes: Arc<Outboxes>,
    pub(crate) admissions: Arc<Admissions>,
    pub(crate) connects: Arrivals,
    /// How refused clients learn why, if they do.
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) endings: Endings,
    /// Each presence has a name of its own.
    pub(crate) presences: Vec<Presence>,
    /// The tasks of all sockets.
    pub(crate) tasks: TaskTracker,
    /// The number of sockets that ended before their client had taken everything: the close frame,
    /// or a long-polling client's pending messages.
    pub(crate) unclosed: AtomicUsize,
    /// Their number when the first drain began.
    pub(crate) unclosed_before: OnceLock<usize>,
    /// Aborts these tasks.
    pub(crate) abort: CancellationToken,
}

/// The limits of all sockets of an endpoint together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointLimits {
    /// The maximum number of sockets.
    pub(crate) sockets: usize,
    /// The maximum number of bytes received and not handled.
    pub(crate) inboxes: usize,
    /// The maximum number of bytes that wait to be written.
    pub(crate) outboxes: usize,
    /// The maximum number of pushes that wait to be confirmed.
    pub(crate) confirmations: usize,
    /// How long refused clients wait until they learn why, if they do.
    pub(crate) tell_refused: Option<Duration>,
    /// How many clients may connect in a second.
    pub(crate) connects: Option<ArrivalRate>,
    /// How many channels may be joined in a second.
    pub(crate) joins: Option<ArrivalRate>,
}

impl EndpointState {
    pub(crate) fn new(
        telemetry: &Telemetry,
        adapter: Option<Arc<dyn Adapter>>,
        synced_subscriptions: Option<TrackerOptions>,
        presences: Vec<Presence>,
        limits: EndpointLimits,
        cluster_key: Option<SharedKey>,
    ) -> Self {
        let sockets: Arc<Sockets> = Arc::default();
        let metrics = Arc::new(SocketMetrics::register(telemetry));
        let outboxes = Arc::new(Outboxes::new(limits.outboxes));
        Self {
            pubsub: PubSub::new(
                sockets.clone(),
                metrics.clone(),
                adapter,
                synced_subscriptions,
                limits.confirmations,
            ),
            sockets,
            flusher: Flusher::new(),
            metrics,
            sampler: Sampler::register(telemetry),
            inboxes: Arc::new(Inboxes::new(limits.inboxes)),
            refusals: Arc::new(Refusals::new(limits.tell_refused, limits.sockets, telemetry)),
            connects: Arrivals::connects(limits.connects, telemetry),
            relay: Arc::new(Relay::new(telemetry, outboxes.clone(), cluster_key)),
            outboxes,
            admissions: Arc::new(Admissions::new(limits.sockets, telemetry)),
            endings: Endings::new(),
            presences,
            tasks: TaskTracker::new(),
            unclosed: AtomicUsize::new(0),
            unclosed_before: OnceLock::new(),
            abort: CancellationToken::new(),
        }
    }

    /// Starts the background tasks, unless the endpoint has ended meanwhile. Called for each socket
    /// that opens.
    pub(crate) fn begin(self: &Arc<Self>) {
        if self.sockets.are_closed() {
            return;
        }
        Sampler::begin(self);
        self.begin_replication();
    }

    /// Starts replication between nodes, if there is an adapter and a runtime.
    pub(crate) fn begin_replication(&self) {
        self.pubsub.begin();
        self.presences.iter().for_each(Presence::begin);
    }

    /// Ends the background tasks that do not end by themselves.
    pub(crate) fn end(&self) {
        self.presences.iter().for_each(Presence::end);
        self.pubsub.end();
    }
}
