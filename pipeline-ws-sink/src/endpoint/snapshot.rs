//! Snapshots of the sockets and channels of an endpoint.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
};

use serde::{Deserialize, Serialize};

use super::Inner;
use crate::{
    pubsub::{AdapterSnapshot, PubSub},
    telemetry::latencies::Latencies,
};

/// The state of an endpoint's sockets and channels at one moment. It is read while they run, so its
/// numbers may be of slightly different moments. Counters start when the endpoint is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// Whether the endpoint [drains](crate::Endpoint::drain), and accepts no more clients.
    pub draining: bool,
    /// The sockets of each mount, in the order in which they were mounted. Not serialized.
    #[serde(skip)]
    pub sockets: Vec<MountSnapshot>,
    /// The channels of each route: mount after mount, and in the order of its routes. Not
    /// serialized.
    #[serde(skip)]
    pub channels: Vec<RouteSnapshot>,
    /// Topics with subscribers: channels, or tasks that have
    /// [subscribed](crate::PubSub::subscribe).
    pub topics: usize,
    /// Events that were broadcast on this node, from any source, with or without subscribers.
    pub broadcasts: u64,
    /// Clients that were refused because the
    /// [maximum](crate::endpoint::EndpointBuilder::max_sockets) of open sockets was reached.
    pub connections_refused: u64,
    /// Frames that clients have sent: messages, their fragments, and control frames.
    pub frames_in: u64,
    /// Frames of which the operating system has taken the last byte.
    pub frames_out: u64,
    /// Frames that wait to be written.
    pub frames_waiting: usize,
    /// The bytes of these frames. A partly written frame counts in full.
    pub bytes_waiting: usize,
    /// Bytes received from clients and not handled, beyond the first 16 KiB of each socket: see
    /// [`EndpointBuilder::max_inboxes`](crate::endpoint::EndpointBuilder::max_inboxes).
    pub inbox_bytes: usize,
    /// Bytes of memory that wait to be written, beyond the first 16 KiB of each socket: see
    /// [`EndpointBuilder::max_outboxes`](crate::endpoint::EndpointBuilder::max_outboxes).
    pub outbox_bytes: usize,
    /// Frames that were dropped instead of written, by reason: `overflow`, `drop_oldest`,
    /// `drop_newest`, `superseded`, `mailbox` or `ended`, as in the metric `socket.frames_dropped`.
    /// Reasons without dropped frames are left out.
    pub dropped: BTreeMap<Cow<'static, str>, u64>,
    /// Sockets that were closed because the client was too slow.
    pub closed_slow: u64,
    /// Requests of long-polling clients that met this node and were answered by that of their session. Not
    /// serialized.
    #[serde(skip)]
    pub relayed: u64,
    /// What the adapter has sent to other nodes and received from them, if there is one that tells.
    /// Not serialized.
    #[serde(skip)]
    pub adapter: Option<AdapterSnapshot>,
    /// The metric `pipeline.push_delivered`: from when an item was enqueued until its frame was
    /// written, one sample for each socket. Not serialized.
    #[serde(skip)]
    pub delivered: Latencies,
    /// The parts of these times. Not serialized.
    #[serde(skip)]
    pub legs: PushLegs,
}

/// The parts of the time of timed pushes: see [`Timeline`](pipeline_core::timed::Timeline).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushLegs {
    /// The metric `pipeline.push_queued`: until the item left its queue.
    pub queued: Latencies,
    /// The metric `pipeline.push_waited`: from then until a worker began.
    pub waited: Latencies,
    /// The metric `pipeline.push_worked`: from then until the broadcast.
    pub worked: Latencies,
    /// The metric `pipeline.push_written`: from then until a socket had it, one sample for each socket.
    pub written: Latencies,
}

/// The sockets of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MountSnapshot {
    /// The full path, including the transport: `/socket/websocket`.
    pub path: String,
    /// The sockets' [name](crate::Socket::name) in metrics.
    pub socket: Cow<'static, str>,
    /// The number of open sockets.
    pub open: usize,
    /// Clients that [`connect`](crate::Socket::connect) accepted.
    pub connected: u64,
    /// Clients that it refused.
    pub refused: u64,
    /// Events and joins beyond a [rate limit](crate::Mount::message_rate_limit) or the bound of an
    /// inbox.
    pub messages_refused: u64,
}

/// The channels of one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RouteSnapshot {
    /// The path of its mount: see [`MountSnapshot::path`].
    pub path: String,
    /// The pattern of its topics, such as `room:*`.
    pub pattern: String,
    /// The channels' [name](crate::Channel::name) in metrics.
    pub channel: Cow<'static, str>,
    /// Channels that are joined.
    pub open: usize,
    /// The number of topics that they are joined on.
    pub topics: usize,
    /// Joins that were accepted.
    pub joined: u64,
    /// Joins that were refused, or that crashed.
    pub refused: u64,
}

/// Observes an endpoint without keeping it or its sockets open. Made by
/// [`Endpoint::observer`](crate::Endpoint::observer); cheap to clone.
///
/// ```
/// use pipeline_ws_sink::{Endpoint, endpoint::EndpointObserver};
///
/// # fn main() -> Result<(), pipeline_ws_sink::endpoint::BuildError> {
/// let endpoint = Endpoint::builder().build()?;
/// let observer: EndpointObserver = endpoint.observer();
/// assert!(observer.snapshot().is_some());
/// drop(endpoint);
/// assert!(observer.snapshot().is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EndpointObserver(Weak<Inner>);

impl EndpointObserver {
    pub(crate) fn of(endpoint: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(endpoint))
    }

    /// A snapshot of the endpoint; `None` when it is gone. See
    /// [`Endpoint::snapshot`](crate::Endpoint::snapshot).
    #[must_use]
    pub fn snapshot(&self) -> Option<EndpointSnapshot> {
        Some(self.0.upgrade()?.snapshot())
    }

    /// The endpoint's broadcasts and subscriptions; `None` when it is gone.
    #[must_use]
    pub fn pubsub(&self) -> Option<PubSub> {
        Some(self.0.upgrade()?.state.pubsub.clone())
    }
}

impl fmt::Debug for EndpointObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = self.0.strong_count() == 0;
        f.debug_struct("EndpointObserver").field("gone", &gone).finish()
    }
}
