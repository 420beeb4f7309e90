//! The tracker: the replicated set of presences, on this node and on the others.
//!
//! Every entry is added and removed by its own node. The other nodes keep copies, which they update
//! from that node's messages, or from those of a third node.

mod context;
mod message;
mod options;
mod replica;
mod replicate;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use thiserror::Error;

pub(crate) use self::message::Message;
pub use self::options::{TrackerOptions, TrackerOptionsError};
pub(crate) use self::replicate::{Replica, TRACKERS, replicate, send_all};
use self::{replica::Cluster, store::Store};

/// The meta of an entry: a JSON object.
pub(crate) type Meta = Arc<serde_json::Map<String, serde_json::Value>>;

/// The changes on a topic: keys with their metas.
#[derive(Default, Debug, PartialEq)]
pub(crate) struct Diff {
    pub(crate) joins: Vec<(Arc<str>, Meta)>,
    pub(crate) leaves: Vec<(Arc<str>, Meta)>,
}

/// The changes, by topic.
pub(crate) type Diffs = BTreeMap<Arc<str>, Diff>;

/// This actor already tracks this key on this topic.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the key is already tracked")]
pub(crate) struct AlreadyTracked;

/// An input of a replica.
pub(crate) enum Input {
    /// The time of [`Tracker::next_tick`] has come.
    Tick,
    /// A message from another replica.
    Message(Message),
}

/// The result of a step.
#[derive(Default)]
pub(crate) struct StepOutput {
    /// The changes on other nodes.
    pub(crate) diffs: Diffs,
    pub(crate) send: Vec<OutboundMessage>,
}

/// A message to other replicas.
#[derive(Clone, Debug)]
pub(crate) struct OutboundMessage {
    pub(crate) to: To,
    pub(crate) message: Message,
}

/// The receivers of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum To {
    All,
    /// The replica on the node of this name.
    Node(Arc<str>),
}

/// One replica of the set. It neither waits nor sends: the caller passes the time and the messages
/// of others, and sends the resulting messages.
pub(crate) struct Tracker {
    store: Store,
    /// State for other replicas, unless this one is alone.
    cluster: Option<Box<Cluster>>,
}

impl Tracker {
    /// A replica without others.
    pub(crate) fn alone() -> Self {
        Self { store: Store::default(), cluster: None }
    }

    /// A replica among others. `version` is different at each start, and should be greater; `now`
    /// is the time since a fixed moment; `seed` determines the moment of the first heartbeat, so
    /// that nodes that start together do not all send at the same time.
    pub(crate) fn replicated(
        node: &str,
        version: u64,
        seed: u64,
        options: TrackerOptions,
        now: Duration,
    ) -> Self {
        let cluster = Cluster::new(node, version, seed, options, now);
        Self { store: Store::default(), cluster: Some(Box::new(cluster)) }
    }

    /// Adds an entry of this node.
    pub(crate) fn track(
        &mut self,
        actor: u64,
        topic: &Arc<str>,
        key: &Arc<str>,
        meta: Meta,
    ) -> Result<(), AlreadyTracked> {
        if self.store.get(actor, topic, key).is_some() {
            return Err(AlreadyTracked);
        }
        let clock = self.cluster.as_mut().map(|cluster| cluster.added(topic, key, &meta));
        self.store.track(actor, topic, key, meta, clock.unwrap_or_default());
        Ok(())
    }

    /// Replaces the meta of an entry, and returns the old one. `None` if it is not tracked; then
    /// nothing changes.
    pub(crate) fn update(
        &mut self,
        actor: u64,
        topic: &str,
        key: &str,
        meta: Meta,
    ) -> Option<Meta> {
        let (topic, entry) = self.store.get_mut(actor, topic, key)?;
        if let Some(cluster) = &mut self.cluster {
            cluster.removed(entry.clock);
            entry.clock = cluster.added(topic, &entry.key, &meta);
        }
        Some(std::mem::replace(&mut entry.meta, meta))
    }

    /// Removes an entry, and returns its meta.
    pub(crate) fn untrack(&mut self, actor: u64, topic: &str, key: &str) -> Option<Meta> {
        let entry = self.store.untrack(actor, topic, key)?;
        if let Some(cluster) = &mut self.cluster {
            cluster.removed(entry.clock);
        }
        Some(entry.meta)
    }

    /// Removes all entries of an actor.
    pub(crate) fn untrack_all(&mut self, actor: u64) -> Diffs {
        let topics = self.store.topics_of(actor);
        topics.into_iter().map(|topic| (topic.clone(), self.untrack_topic(actor, &topic))).collect()
    }

    /// Removes all entries of an actor on one topic.
    pub(crate) fn untrack_topic(&mut self, actor: u64, topic: &str) -> Diff {
        let mut diff = Diff::default();
        for entry in self.store.untrack_topic(actor, topic) {
            if let Some(cluster) = &mut self.cluster {
                cluster.removed(entry.clock);
            }
            diff.leaves.push((entry.key, entry.meta));
        }
        diff
    }

    /// The meta of an actor's entry on this node.
    pub(crate) fn get(&self, actor: u64, topic: &str, key: &str) -> Option<&Meta> {
        self.store.get(actor, topic, key).map(|entry| &entry.meta)
    }

    /// All keys on a topic with their metas: first those of this node, in the order in which they
    /// were tracked; then those of other nodes that are not down.
    pub(crate) fn list(&self, topic: &str) -> impl Iterator<Item = (&Arc<str>, &Meta)> {
        self.store.list(topic)
    }

    /// All metas of a key on a topic, in the same order.
    pub(crate) fn get_by_key(&self, topic: &str, key: &str) -> impl Iterator<Item = &Meta> {
        self.store.get_by_key(topic, key)
    }

    /// The number of metas of a key on a topic.
    pub(crate) fn count_of_key(&self, topic: &str, key: &str) -> usize {
        self.store.count_of_key(topic, key)
    }

    /// Whether a topic has entries.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.store.has_topic(topic)
    }

    /// Whether all entries of the other nodes are known here, and not only those received so far.
    pub(crate) fn knows_all(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.knows_all())
    }

    /// The number of listed entries on a topic.
    pub(crate) fn count(&self, topic: &str) -> usize {
        self.store.count(topic)
    }

    /// The number of listed entries, on all topics.
    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    /// When [`Input::Tick`] is due. Never, for a replica that is alone.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        self.cluster.as_ref().map(|cluster| cluster.next_tick())
    }

    /// Processes an input. A tick that comes too early does nothing.
    pub(crate) fn step(&mut self, input: Input, now: Duration) -> StepOutput {
        match &mut self.cluster {
            Some(cluster) => cluster.step(input, now, &mut self.store),
            None => StepOutput::default(),
        }
    }

    /// The messages to the others at shutdown.
    pub(crate) fn shutdown_message(&mut self) -> Vec<OutboundMessage> {
        self.cluster.as_ref().map(|cluster| cluster.shutdown_message()).unwrap_or_default()
    }
}
