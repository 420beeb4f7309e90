//! The adapter.

use std::{fmt, sync::Arc};

use pipeline_ws_sink::pubsub::{
    Adapter, AdapterError, AdapterSnapshot, Broadcast, LocalNode, UntilReceives,
};
use thiserror::Error;
use tokio::time::{Duration, timeout};

use crate::{ClusterOptions, core::Core, driver, gap::Gaps};

/// This node of a cluster: the adapter of its endpoint.
///
/// Cheap to clone; all clones are the same node. It is the adapter of one endpoint. When the endpoint and
/// all clones are dropped, what waits is sent for up to a second, and the connection ends.
///
/// The [crate's documentation](crate) says what is promised.
#[derive(Clone)]
pub struct Cluster {
    node: Arc<Node>,
}

/// Ends the task when the last clone is dropped.
struct Node {
    core: Arc<Core>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.core.state.send_modify(|state| state.is_ending = true);
    }
}

/// A cluster cannot be joined.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterError {
    /// The address of the server cannot be read. It is not quoted, since it may have a password.
    #[error("the address of the server is invalid")]
    Address,
    /// The prefix is a part of names on the server.
    #[error("the prefix {prefix:?} must have 1 to 64 letters, digits, `-` and `_`")]
    Prefix {
        /// The prefix.
        prefix: String,
    },
    /// The name of the node is empty or has more than 255 bytes.
    #[error("the name of the node {name:?} must have 1 to 255 bytes")]
    NodeName {
        /// The name.
        name: String,
    },
    /// An option is a time that must be longer than zero: the server could never answer within it, or would be asked
    /// without a pause.
    #[error("the option `{option}` is zero, and must be longer")]
    Zero {
        /// The name of the option.
        option: &'static str,
    },
    /// A client's request cannot be passed on to another node.
    #[error("not connected to the other nodes")]
    NotConnected,
    /// Too many broadcasts wait to be sent, and the options say that more are refused.
    #[error("too many broadcasts wait to be sent to the other nodes")]
    Full,
}

impl Cluster {
    /// Joins the nodes that use this server of Redis, version 6 or later, with the same prefix. Several
    /// connections to one address are nodes of their own.
    ///
    /// It returns when the first try to connect has ended. If the server is away, the node is alone until
    /// the server is there.
    ///
    /// # Errors
    ///
    /// [`ClusterError`] if the address or an option is invalid.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub async fn redis(url: &str, options: ClusterOptions) -> Result<Self, ClusterError> {
        Self::join(crate::redis::Redis::new(url)?, options).await
    }

    /// Joins the nodes that use this server of NATS with the same prefix. The address may be several,
    /// separated by commas: servers of one cluster of NATS. The user and the password of the first address that has them
    /// are those at all servers, and a user without a password is a token.
    ///
    /// It returns when the first try to connect has ended. If the server is away, the node is alone until
    /// the server is there.
    ///
    /// # Errors
    ///
    /// [`ClusterError`] if the address or an option is invalid.
    #[cfg(feature = "nats")]
    #[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
    pub async fn nats(urls: &str, options: ClusterOptions) -> Result<Self, ClusterError> {
        Self::join(crate::nats::Nats::new(urls)?, options).await
    }

    #[cfg(any(feature = "redis", feature = "nats", test))]
    pub(crate) async fn join(
        server: impl driver::Server,
        options: ClusterOptions,
    ) -> Result<Self, ClusterError> {
        let core = Arc::new(Core::new(options)?);
        tokio::spawn(driver::drive(core.clone(), server));
        let cluster = Self { node: Arc::new(Node { core }) };
        let mut state = cluster.node.core.state.subscribe();
        // The task ends with the runtime, and so does this.
        let _ = state.wait_for(|state| state.has_tried).await.map(drop);
        Ok(cluster)
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node.core.name
    }

    /// Whether this node is connected to the server, and subscribed to its topics.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.node.core.state.borrow().is_connected
    }

    /// Waits until this node is connected. A node connects when an endpoint is built with it as its adapter:
    /// before that, this waits for ever.
    pub async fn connected(&self) {
        let mut state = self.node.core.state.subscribe();
        let _ = state.wait_for(|state| state.is_connected).await.map(drop);
    }

    /// Waits until this node receives what other nodes broadcast to a topic, which has a subscriber on
    /// this node. For a program that subscribes, tells another node, and expects its answer. Joins of
    /// clients [wait by themselves](ClusterOptions::join_wait).
    pub async fn receives(&self, topic: &str) {
        let mut state = self.node.core.state.subscribe();
        while !self.node.core.receives(topic) {
            // The node itself keeps it open.
            let _ = state.changed().await;
        }
    }

    /// The gaps that this node sees from now on.
    #[must_use]
    pub fn gaps(&self) -> Gaps {
        Gaps(self.node.core.gaps.subscribe())
    }

    /// Waits until everything that was broadcast before is sent, for at most this long. Returns whether
    /// it is. For the end of a program, whose presences have just said that this node leaves. Right after an
    /// outage, what waits is then not [kept back](ClusterOptions::settle) any longer for other nodes.
    pub async fn flush(&self, within: Duration) -> bool {
        timeout(within, self.node.core.flush()).await.is_ok()
    }
}

impl Adapter for Cluster {
    fn node_name(&self) -> &str {
        self.node()
    }

    fn start(&self, node: LocalNode) {
        self.node.core.start(node);
    }

    fn follows_topics(&self) -> bool {
        true
    }

    fn until_receives(&self, topic: &str) -> Option<UntilReceives> {
        let receives = self.node.core.until_receives(topic)?;
        Some(Box::pin(receives))
    }

    fn snapshot(&self) -> Option<AdapterSnapshot> {
        Some(self.node.core.snapshot())
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        self.node.core.broadcast(broadcast)
    }

    fn direct_broadcast(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
        self.node.core.direct(node, broadcast)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.is_connected();
        f.debug_struct("Cluster")
            .field("node", &self.node())
            .field("connected", &connected)
            .finish_non_exhaustive()
    }
}
