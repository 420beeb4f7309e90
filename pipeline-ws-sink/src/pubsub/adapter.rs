//! The way to other nodes.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Weak},
};

use super::{PubSub, Shared};
use crate::{broadcast::Broadcast, payload::PayloadError, protocol::message::Encoded};

/// Carries broadcasts to the other nodes of a cluster. Without one, an endpoint is alone.
///
/// It is what an adapter of `Phoenix.PubSub` is. Delivery is at most once, and there is no order
/// between nodes. A broadcast that arrives from another node is given to [`LocalNode::deliver`], and
/// never sent on. A node never sends to itself: whoever listens there has been told already.
///
/// The functions return at once, because whoever broadcasts waits for them. An adapter that has to
/// wait for a network keeps a bounded queue, and says so when it is full.
///
/// ```
/// use std::sync::{Mutex, OnceLock};
///
/// use pipeline_ws_sink::{Adapter, AdapterError, Broadcast, Endpoint, LocalNode};
/// use serde_json::json;
///
/// /// Tells one other endpoint in the same process.
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
    /// What this node is called. No other node of the cluster has this name.
    fn node_name(&self) -> &str;

    /// Called once, when the endpoint is built, with the way in for what other nodes send.
    fn start(&self, node: LocalNode) {
        drop(node);
    }

    /// Sends to all nodes but this one.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if it cannot be sent; those who listen here do not get it then.
    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError>;

    /// Sends to the node with this name, which may be this one.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if it cannot be sent, or if no node has this name.
    fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError>;
}

/// The way in for what other nodes send.
///
/// It does not keep the endpoint alive.
#[derive(Clone)]
pub struct LocalNode(Weak<Shared>);

impl LocalNode {
    /// The node that this is the way to everyone of.
    #[must_use]
    pub fn of(pubsub: &PubSub) -> Self {
        Self(Arc::downgrade(&pubsub.shared))
    }

    /// Sends what another node has sent to everyone on its topic on this node. Does nothing when
    /// the endpoint is gone.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload can be no event's; nobody gets it then.
    pub fn deliver(&self, broadcast: &Broadcast) -> Result<(), PayloadError> {
        let encoded = Encoded::new(broadcast.topic(), broadcast.event(), broadcast.payload())?;
        if let Some(shared) = self.0.upgrade() {
            PubSub { shared }.here(&encoded, None);
        }
        Ok(())
    }
}

impl fmt::Debug for LocalNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gone = self.0.strong_count() == 0;
        f.debug_struct("LocalNode").field("gone", &gone).finish()
    }
}

/// Why the other nodes were not told. Any error converts with `?`.
///
/// ```
/// use pipeline_ws_sink::AdapterError;
///
/// let error = AdapterError::new("the queue to the network is full");
/// assert_eq!(error.to_string(), "the other nodes were not told: the queue to the network is full");
/// ```
pub struct AdapterError {
    cause: Box<dyn Error + Send + Sync>,
}

impl AdapterError {
    /// For this reason.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: cause.into() }
    }

    /// What went wrong.
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
        write!(f, "the other nodes were not told: {}", self.cause)
    }
}

impl Error for AdapterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
