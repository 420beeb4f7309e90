//! What replicas say to each other. Pure.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::entries::Entry;

/// Somebody to be told something.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) to: To,
    pub(crate) message: Message,
}

/// Who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// All other nodes.
    All,
    Node(Arc<str>),
}

/// What one replica says to others.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Message {
    /// The version of this form. A node that does not know it passes the message over.
    pub(super) v: u8,
    pub(super) from: From,
    pub(super) says: Says,
}

/// A node, and when it was started: one that was started again is another replica.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct From {
    pub(super) node: Arc<str>,
    pub(super) version: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Says {
    /// It is there, and so many changes old. What has changed since it last said so, if it is not too
    /// much.
    Here { count: u64, changes: Option<Changes> },
    /// It knows of so many changes of the replica that it says this to, and wants to know the others.
    Missing { version: u64, count: u64 },
    /// What has changed since.
    Since { count: u64, changes: Changes },
    /// All its entries.
    All { count: u64, entries: Vec<(u64, Entry)> },
    /// It ends.
    Bye,
}

/// What has changed from one change to another.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Changes {
    /// After this one.
    pub(super) since: u64,
    pub(super) added: Vec<(u64, Entry)>,
    /// What these had added is gone.
    pub(super) removed: Vec<u64>,
}

impl Message {
    /// The version of this form.
    pub(super) const VERSION: u8 = 1;
}

/// As a list, because there are many.
impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.topic, &*self.key, &*self.meta).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (topic, key, meta): (String, String, Map<String, Value>) =
            Deserialize::deserialize(deserializer)?;
        Ok(Self { topic: topic.into(), key: key.into(), meta: Arc::new(meta) })
    }
}
