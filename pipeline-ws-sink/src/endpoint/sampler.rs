//! Metrics that are sampled from an endpoint at intervals.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline_core::telemetry::Telemetry;
use tokio::{
    task::AbortHandle,
    time::{MissedTickBehavior, interval},
};

use super::state::EndpointState;
use crate::telemetry::Level;

/// The sampling interval.
const LOOK: Duration = Duration::from_secs(1);

/// Samples once a second the levels that cannot be counted without a cost for every frame.
///
/// The task starts with the first socket, and ends when it finds none open, so an endpoint without
/// sockets does nothing at all. The endpoint owns it.
pub(crate) struct Sampler {
    topics: Level,
    frames_waiting: Level,
    bytes_waiting: Level,
    inbox_bytes: Level,
    outbox_bytes: Level,
    confirmations: Level,
    task: Mutex<Option<AbortHandle>>,
}

impl Sampler {
    pub(crate) fn register(telemetry: &Telemetry) -> Self {
        let level = |name, description| Level::from(telemetry.gauge(name, description, []));
        Self {
            topics: level("socket.topics", "Topics with subscribers"),
            frames_waiting: level("socket.frames_waiting", "Frames waiting to be written"),
            bytes_waiting: level("socket.bytes_waiting", "Bytes of the waiting frames"),
            inbox_bytes: level(
                "socket.inbox_bytes",
                "Bytes received and not handled, beyond the first 16 KiB of each socket",
            ),
            outbox_bytes: level(
                "socket.outbox_bytes",
                "Bytes of memory waiting to be written, beyond the first 16 KiB of each socket",
            ),
            confirmations: level(
                "socket.confirmations_waiting",
                "Pushes that wait to be confirmed by a client",
            ),
            task: Mutex::default(),
        }
    }

    /// Samples the endpoint for as long as it has sockets. Called for each socket that opens.
    pub(crate) fn begin(state: &Arc<EndpointState>) {
        let mut task = state.sampler.task.lock();
        // The task may have ended with the runtime of an earlier socket.
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            let state = Arc::downgrade(state);
            let looking = async move {
                let mut looks = interval(LOOK);
                looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    looks.tick().await;
                    match state.upgrade() {
                        Some(state) if state.sampler.look(&state) => {}
                        _ => return,
                    }
                }
            };
            *task = Some(tokio::spawn(looking).abort_handle());
        }
    }

    /// Samples once. Returns whether to continue.
    fn look(&self, state: &EndpointState) -> bool {
        self.topics.set(state.pubsub.table().topics());
        let waiting = state.sockets.waiting();
        self.frames_waiting.set(waiting.frames);
        self.bytes_waiting.set(waiting.bytes);
        self.inbox_bytes.set(state.inboxes.bytes());
        self.outbox_bytes.set(state.outboxes.bytes());
        self.confirmations.set(state.pubsub.table().confirmations().waiting());
        // A socket that opens now is either seen here, or finds no task and starts another.
        let mut task = self.task.lock();
        let continues = state.sockets.len() > 0;
        if !continues {
            *task = None;
        }
        continues
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}
