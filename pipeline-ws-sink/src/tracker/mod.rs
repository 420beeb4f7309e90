//! Who has said to be there, on this node and on the others: the replicated set behind presence.
//!
//! Every entry is made and removed by the node that it is from. The others keep copies, which they
//! bring up to date by what that node says, or by what a third one knows.

mod message;
mod options;
mod replica;
mod replicate;
mod seen;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use thiserror::Error;

pub(crate) use self::message::Message;
pub use self::options::{TrackerOptions, TrackerOptionsError};
pub(crate) use self::replicate::{Replica, TRACKERS, replicate, tell};
use self::{replica::Cluster, store::Store};

/// What somebody is tracked with: a JSON object.
pub(crate) type Meta = Arc<serde_json::Map<String, serde_json::Value>>;

/// What has changed on a topic: keys with their metas.
#[derive(Default, Debug, PartialEq)]
pub(crate) struct Diff {
    pub(crate) joins: Vec<(Arc<str>, Meta)>,
    pub(crate) leaves: Vec<(Arc<str>, Meta)>,
}

/// What has changed, by topic.
pub(crate) type Diffs = BTreeMap<Arc<str>, Diff>;

/// This actor tracks this key on this topic already.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("it is tracked already")]
pub(crate) struct AlreadyTracked;

/// What happens to a replica.
pub(crate) enum Input {
    /// The time of [`Tracker::next_tick`] has come.
    Tick,
    /// Another replica has said this.
    Message(Message),
}

/// What comes of it.
#[derive(Default)]
pub(crate) struct Step {
    /// What has changed on other nodes.
    pub(crate) diffs: Diffs,
    pub(crate) send: Vec<Outgoing>,
}

/// What is to be sent to other replicas.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) to: To,
    pub(crate) message: Message,
}

/// Which other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum To {
    All,
    /// The one on the node of this name.
    Node(Arc<str>),
}

/// One replica of the set. It neither waits nor sends: it is told the time and what others say, and
/// says what it has to tell them.
pub(crate) struct Tracker {
    store: Store,
    /// Nothing is kept for others if there are none.
    cluster: Option<Box<Cluster>>,
}

impl Tracker {
    /// The only one.
    pub(crate) fn alone() -> Self {
        Self { store: Store::default(), cluster: None }
    }

    /// One of several. `version` is different at each start, and should be greater; `now` is the time since some moment that
    /// stays the same; `seed` is for the moment of the first heartbeat, so that not all nodes that
    /// start together send theirs together.
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

    /// Gives an entry another meta, and returns the one that it had. `None` if it is not tracked;
    /// then nothing changes.
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

    /// Removes an entry, and returns what it was tracked with.
    pub(crate) fn untrack(&mut self, actor: u64, topic: &str, key: &str) -> Option<Meta> {
        let entry = self.store.untrack(actor, topic, key)?;
        if let Some(cluster) = &mut self.cluster {
            cluster.removed(entry.clock);
        }
        Some(entry.meta)
    }

    /// Removes all that an actor has tracked.
    pub(crate) fn untrack_all(&mut self, actor: u64) -> Diffs {
        let topics = self.store.topics_of(actor);
        topics.into_iter().map(|topic| (topic.clone(), self.untrack_topic(actor, &topic))).collect()
    }

    /// Removes all that an actor has tracked on one topic.
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

    /// What an actor of this node is tracked with.
    pub(crate) fn get(&self, actor: u64, topic: &str, key: &str) -> Option<&Meta> {
        self.store.get(actor, topic, key).map(|entry| &entry.meta)
    }

    /// All keys on a topic with their metas: those of this node first, in the order in which they
    /// were tracked; then those of other nodes, but for those that are down.
    pub(crate) fn list(&self, topic: &str) -> impl Iterator<Item = (&Arc<str>, &Meta)> {
        self.store.list(topic)
    }

    /// All metas of a key on a topic, in the same order.
    pub(crate) fn get_by_key(&self, topic: &str, key: &str) -> impl Iterator<Item = &Meta> {
        self.store.get_by_key(topic, key)
    }

    /// Whether anybody is on a topic.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.store.has_topic(topic)
    }

    /// Whether all entries of the other nodes are listed here, and not only those that have been heard of.
    pub(crate) fn knows_all(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.knows_all())
    }

    /// How many entries are listed on a topic.
    pub(crate) fn count(&self, topic: &str) -> usize {
        self.store.count(topic)
    }

    /// How many entries are listed, on all topics.
    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    /// When [`Input::Tick`] is due. Never, for one that is alone.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        self.cluster.as_ref().map(|cluster| cluster.next_tick())
    }

    /// Takes in what has happened. A tick that comes too early does nothing.
    pub(crate) fn step(&mut self, input: Input, now: Duration) -> Step {
        match &mut self.cluster {
            Some(cluster) => cluster.step(input, now, &mut self.store),
            None => Step::default(),
        }
    }

    /// What is to be told to the others before the end.
    pub(crate) fn farewell(&mut self) -> Vec<Outgoing> {
        self.cluster.as_ref().map(|cluster| cluster.farewell()).unwrap_or_default()
    }
}
