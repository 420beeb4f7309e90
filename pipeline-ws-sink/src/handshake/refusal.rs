//! Clients that are refused after the upgrade, so that they learn why.

use std::{sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use metrics::Counter;
use pipeline_core::telemetry::Telemetry;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};

use super::LAST_UPGRADES;
use crate::{
    endpoint::{mount::MountOptions, state::EndpointState},
    outbox::Outbox,
    protocol::frame::Frame,
    socket::{Close, ConnectError},
    transport::{
        io::Io,
        websocket::{self, Parting},
    },
};

/// How many refused clients may be told at the same time, at most.
const AT_ONCE: usize = 1000;

/// One of so many sockets, at most, is a client that learns why it is refused. The others are left to clients
/// that are welcome.
const SHARE: usize = 8;

/// How long a refused client may take to read the answer and the close frame, besides the delay.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// The telling of refused clients.
pub(crate) struct Refusals {
    /// How long a client waits for the close frame, if it gets one.
    delay: Option<Duration>,
    /// The permits for further clients.
    room: Arc<Semaphore>,
    told: Counter,
    late: Counter,
    gone: Counter,
    crowded: Counter,
}

/// A client that is to learn why.
pub(super) struct Refusal {
    refusals: Arc<Refusals>,
    delay: Duration,
    close: Close,
    permit: OwnedSemaphorePermit,
}

impl Refusals {
    pub(crate) fn new(delay: Option<Duration>, max_sockets: usize, telemetry: &Telemetry) -> Self {
        let count = |outcome: &str| {
            telemetry.counter(
                "socket.refusals",
                "Clients that were refused after the upgrade, by whether they learned why",
                [("outcome", outcome.to_owned())],
            )
        };
        let room = Arc::new(Semaphore::new((max_sockets / SHARE).clamp(1, AT_ONCE)));
        let (told, late) = (count("told"), count("late"));
        Self { delay, room, told, late, gone: count("gone"), crowded: count("crowded") }
    }

    /// How a client that is refused for this reason learns it. None if it is answered by a status: by
    /// default, if it has a response of its own, or if too many learn theirs already.
    pub(super) fn of(self: &Arc<Self>, error: &ConnectError) -> Option<Refusal> {
        let delay = self.delay?;
        let close = error.close()?;
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            self.crowded.increment(1);
            return None;
        };
        Some(Refusal { refusals: self.clone(), delay, close, permit })
    }
}

impl Refusal {
    /// Waits until the connection becomes a WebSocket, and closes it with the code and the reason. The
    /// client's data is not handled.
    pub(super) async fn tell(
        self,
        state: &EndpointState,
        upgrading: OnUpgrade,
        options: &MountOptions,
    ) {
        let Self { refusals, delay, close, permit } = self;
        let late = async {
            tokio::select! {
                () = time::sleep(delay.saturating_add(TOLD_WITHIN)) => {}
                () = state.abort.cancelled() => {}
                () = async {
                    state.sockets.closed().await;
                    time::sleep(LAST_UPGRADES).await;
                } => {}
            }
        };
        let due = async {
            tokio::select! {
                () = time::sleep(delay) => {}
                () = state.sockets.closed() => {}
            }
        };
        let mut parting = Parting::Late;
        let telling = async {
            let Ok(upgraded) = upgrading.await else {
                parting = Parting::Gone;
                return;
            };
            let Io { reader, writer, received } = Io::of(upgraded);
            let outbox = Arc::new(Outbox::new(writer, options.outbox, state.metrics.clone()));
            let last = Frame::close_because(close.code, &close.reason);
            websocket::refuse(reader, received, &outbox, &last, options, due, &mut parting).await;
        };
        tokio::select! {
            biased;
            () = telling => {}
            () = late => {}
        }
        drop(permit);
        match parting {
            Parting::Told => refusals.told.increment(1),
            Parting::Late => refusals.late.increment(1),
            Parting::Gone => refusals.gone.increment(1),
        }
    }
}
