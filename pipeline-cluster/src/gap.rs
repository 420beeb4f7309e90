//! What is known to be missing.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::channels::Channel;

/// Something that other nodes have sent has not arrived on this node, or may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// Broadcasts of a node are missing.
    Missing(Missing),
    /// This node was not connected to the server for this long, up to now. Anything may be missing. The time begins with
    /// the last ping, publication or subscription that the server has answered, when this node asked for it; with NATS, with
    /// the last ping. That is before this node noticed its silence. What is read after that makes it no shorter, because the server may have discarded
    /// what was behind it. On the first connection of a node that was there before its server, it begins with the start of
    /// the node.
    Disconnected(Duration),
    /// So many broadcasts have arrived and were dropped, because this node delivers them more slowly than they arrive. What
    /// a [`Missing`](Self::Missing) does not tell may be missing too.
    Overrun(u64),
    /// So many gaps were not read from the [`Gaps`] that they were dropped. Anything may be missing.
    Unread(u64),
}

/// Broadcasts of a node that are missing.
#[derive(Clone, PartialEq, Eq)]
pub struct Missing {
    pub(crate) origin: Arc<str>,
    pub(crate) count: u64,
    pub(crate) channel: Channel,
}

impl Missing {
    /// The node that has sent them.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// How many they are. 0 if that is not known: its numbers, which only grow, were lower than before, so
    /// broadcasts may have been dropped as repeated.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl fmt::Debug for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, count, channel: _ } = self;
        f.debug_struct("Missing")
            .field("origin", origin)
            .field("count", count)
            .finish_non_exhaustive()
    }
}

impl Gap {
    /// Whether a broadcast of this topic may be missing. Topics share channels, so it may be one of
    /// another topic.
    #[must_use]
    pub fn concerns(&self, topic: &str) -> bool {
        match self {
            Self::Missing(Missing { channel: channel @ Channel::Topic(_), .. }) => {
                *channel == Channel::of_topic(topic)
            }
            _ => true,
        }
    }
}

/// The gaps that a node sees from when this was made; see [`Cluster::gaps`](crate::Cluster::gaps).
#[derive(Debug)]
pub struct Gaps(pub(crate) Receiver<Gap>);

/// How many gaps may wait to be read.
pub(crate) const UNREAD: usize = 1024;

impl Gaps {
    /// Waits for the next gap. `None` once the cluster is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Gap> {
        match self.0.recv().await {
            Ok(gap) => Some(gap),
            Err(RecvError::Lagged(gaps)) => Some(Gap::Unread(gaps)),
            Err(RecvError::Closed) => None,
        }
    }
}
