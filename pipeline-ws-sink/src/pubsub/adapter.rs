//! The adapter: broadcasts to and from the other nodes of a cluster.

use std::{
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Weak},
};

use futures::FutureExt;
use pipeline_core::ExitReason;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{PubSub, Shared, broadcast::Broadcast};
use crate::{payload::PayloadError, protocol::message::Encoded};

/// Carries broadcasts to the other nodes of a cluster. Without an adapter, an endpoint is alone.
///
/// It is the counterpart of an adapter of `Phoenix.PubSub`. Delivery is at most once, and there is
/// no order between nodes. Pass a broadcast that arrives from another node to
/// [`LocalNode::deliver`], and do not send it on. A node never sends to itself: its own subscribers
/// have already received the broadcast.
///
/// The functions return at once, because the broadcasting task waits for them. An adapter that has
/// to wait for a network keeps a bounded queue, and returns an error when the queue is full. A panic
/// in one of them that sends is an error of that call.
///
/// ```
/// use std::sync::{Mutex, OnceLock};
///
/// use pipeline_ws_sink::{Endpoint, pubsub::{Adapter, AdapterError, Broadcast, LocalNode}};
/// use serde_json::json;
///
/// /// Delivers to one other endpoint in the same process.
/// #[derive(Default)]
/// struct Wire {
///     other: OnceLock<LocalNode>,
/// }
///
/// impl Adapter for &'static Wire {
///     fn node_name(&self) -> &str {
///         "left"
///     }
///
///     fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
///         let other = self.other.get().ok_or_else(|| AdapterError::new("no connection yet"))?;
///         Ok(other.deliver(broadcast)?)
///     }
///
///     fn direct_broadcast(&self, _: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
///         Adapter::broadcast(self, broadcast)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let wire: &'static Wire = Box::leak(Box::default());
/// let left = Endpoint::builder().adapter(wire).build()?;
/// let right = Endpoint::builder().build()?;
/// wire.other.set(LocalNode::of(right.pubsub())).expect("it was not set");
///
/// let mut listening = right.pubsub().subscribe("room:1");
/// left.broadcast("room:1", "shouted", json!({}))?;
/// assert_eq!(listening.recv().await?.event(), "shouted");
/// # Ok(())
/// # }
/// ```
pub trait Adapter: Send + Sync + 'static {
    /// The name of this node, unique in the cluster.
    fn node_name(&self) -> &str;

    /// Called once, when the endpoint is built, with the handle that delivers broadcasts from other
    /// nodes.
    fn start(&self, node: LocalNode) {
        drop(node);
    }

    /// Whether the adapter asks for [changed topics](LocalNode::changed_topics). By default it does
    /// not, and nothing is marked.
    fn follows_topics(&self) -> bool {
        false
    }

    /// What the join of a topic waits for before it is answered: that broadcasts of other nodes to the topic
    /// arrive on this node. `None`, the default, if they do already, or if joins do not wait.
    ///
    /// It is called for an adapter that [follows topics](Self::follows_topics), when the topic is marked
    /// as changed and [counts as subscribed](LocalNode::has_subscribers). The future has to end in any
    /// case, since the client gets no answer before.
    fn until_receives(&self, topic: &str) -> Option<UntilReceives> {
        let _ = topic;
        None
    }

    /// What the adapter has sent and received, for readers of the node's state. None by default.
    fn snapshot(&self) -> Option<AdapterSnapshot> {
        None
    }

    /// Sends a broadcast to all other nodes.
    ///
    /// An adapter that knows which nodes have subscribers may leave out the others, unless the broadcast
    /// [is for every node](Broadcast::is_for_every_node).
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if it cannot be sent; the subscribers on this node then do not receive it
    /// either.
    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError>;

    /// Sends a broadcast to the node with this name, which may be this one.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if it cannot be sent, or if no node has this name.
    fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError>;
}

/// The future of [`Adapter::until_receives`].
pub type UntilReceives = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an [`Adapter`] has sent and received. Counters start with the adapter.
///
/// ```
/// use pipeline_ws_sink::pubsub::AdapterSnapshot;
///
/// let mut snapshot = AdapterSnapshot::default();
/// snapshot.is_connected = true;
/// snapshot.sent = 7;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AdapterSnapshot {
    /// Whether the node can send and receive now.
    pub is_connected: bool,
    /// Broadcasts that wait to be sent, or are on the way to the server between the nodes.
    pub waiting: usize,
    /// Broadcasts that were sent to other nodes.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Broadcasts of other nodes.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// The sum of the times from a broadcast on another node to its delivery on this one, in
    /// microseconds.
    pub lag_micros: u64,
    /// How often broadcasts of another node were missing.
    pub gaps: u64,
    /// How many are known to be missing.
    pub lost: u64,
    /// Broadcasts that were not sent, or not delivered here.
    pub dropped: u64,
}

/// The program's adapter. A panic while it sends is an error, so that no caller has to expect one: the
/// endpoint also sends by itself, from its trackers' tasks and while it shuts down.
pub(crate) struct Contained<A>(pub(crate) A);

impl<A: Adapter> Adapter for Contained<A> {
    fn node_name(&self) -> &str {
        self.0.node_name()
    }

    fn start(&self, node: LocalNode) {
        self.0.start(node);
    }

    fn follows_topics(&self) -> bool {
        self.0.follows_topics()
    }

    fn until_receives(&self, topic: &str) -> Option<UntilReceives> {
        let asked = catch_unwind(AssertUnwindSafe(|| self.0.until_receives(topic)));
        // After a panic, the join is answered.
        let receives = AssertUnwindSafe(asked.ok()??).catch_unwind();
        Some(Box::pin(receives.map(drop)))
    }

    fn snapshot(&self) -> Option<AdapterSnapshot> {
        catch_unwind(AssertUnwindSafe(|| self.0.snapshot())).unwrap_or_default()
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        contained(|| self.0.broadcast(broadcast))
    }

    fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
        contained(|| self.0.direct_broadcast(node, broadcast))
    }
}

fn contained(send: impl FnOnce() -> Result<(), AdapterError>) -> Result<(), AdapterError> {
    catch_unwind(AssertUnwindSafe(send)).unwrap_or_else(|payload| {
        let panicked = ExitReason::from_panic(&*payload);
        Err(AdapterError::new(panicked.to_string()))
    })
}

/// Delivers broadcasts from other nodes on this node.
///
/// It does not keep the endpoint alive.
#[derive(Clone)]
pub struct LocalNode(Weak<Shared>);

impl LocalNode {
    /// The handle of the node of this [`PubSub`].
    #[must_use]
    pub fn of(pubsub: &PubSub) -> Self {
        Self(Arc::downgrade(&pubsub.shared))
    }

    /// Delivers another node's broadcast to all subscribers of its topic on this node. Does nothing
    /// once the endpoint is gone.
    ///
    /// The payload is put in a frame as it is. If the broadcast [is timed](Broadcast::timed), each
    /// socket records `pipeline.push_delivered`, the whole way, and `pipeline.push_written`, the time
    /// since this call. The parts before it are recorded by the node that it comes from.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is not a JSON object or binary; the broadcast is then
    /// delivered to no one.
    pub fn deliver(&self, broadcast: &Broadcast) -> Result<(), PayloadError> {
        if broadcast.is_request() {
            let shared = self.0.upgrade();
            if let Some(handle) = shared.as_ref().and_then(|shared| shared.relayed.get()) {
                handle(broadcast);
            }
            return Ok(());
        }
        let encoded = Encoded::new(broadcast.topic(), broadcast.event(), broadcast.payload())?;
        let timeline = broadcast.timeline().map(|it| it.with_broadcast_at(Instant::now()));
        if let Some(shared) = self.0.upgrade() {
            PubSub { shared }.deliver_locally(&encoded.timed(timeline), None);
        }
        Ok(())
    }

    /// Whether this topic has subscribers on this node, or is about to have: a join that is accepted
    /// counts before it is answered.
    #[must_use]
    pub fn has_subscribers(&self, topic: &str) -> bool {
        // In this order: a join is in the table before it is expected no more.
        let has = |shared: Arc<Shared>| shared.expected.contains(topic) || shared.table.has(topic);
        self.0.upgrade().is_some_and(has)
    }

    /// Waits until topics have got their first subscriber on this node or lost their last, and returns
    /// them, each once, however often it has changed. `None` once the endpoint is gone.
    ///
    /// A change costs its subscriber a mark in a set. So call this in a loop, in one task, and ask
    /// [`has_subscribers`](Self::has_subscribers) about each topic: what changes after the answer is
    /// returned by the next call. Topics of trackers are left out, since their messages
    /// [are for every node](Broadcast::is_for_every_node). Topics are marked only for an adapter that
    /// [follows them](Adapter::follows_topics).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn changed_topics(&self) -> Option<Vec<Arc<str>>> {
        let interest = self.0.upgrade()?.interest.clone()?;
        interest.changed().await
    }
}

impl fmt::Debug for LocalNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = self.0.strong_count() == 0;
        f.debug_struct("LocalNode").field("gone", &gone).finish()
    }
}

/// The other nodes could not be reached. Any error converts with `?`.
pub struct AdapterError {
    cause: Box<dyn Error + Send + Sync>,
}

impl AdapterError {
    /// Creates an error with this cause.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: cause.into() }
    }

    /// The cause of the error.
    #[must_use]
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }
}

impl From<PayloadError> for AdapterError {
    fn from(error: PayloadError) -> Self {
        Self::new(error)
    }
}

impl fmt::Debug for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterError").field("cause", &self.cause).finish()
    }
}

impl fmt::Display for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to reach the other nodes: {}", self.cause)
    }
}

impl Error for AdapterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
