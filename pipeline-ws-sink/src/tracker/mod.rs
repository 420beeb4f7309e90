//! Who is tracked on which topic, on all nodes: the replicated set that presence is made of.
//!
//! Each node is a replica, and the only one that adds and removes its own entries. It counts its changes:
//! what the others know of it is a count, and the entries that were there after so many changes. So there
//! are no tombstones: an entry that is not among those of a later count has been removed. It is an
//! observed-remove set whose elements have one writer each.

mod entries;
mod log;
mod message;
mod options;
mod remote;
mod replica;
mod replicate;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

pub use self::options::{TrackerOptions, TrackerOptionsError};
pub(crate) use self::{
    message::{Message, Outgoing, To},
    replica::{Input, Step, Tracker},
    replicate::{Replica, TRACKERS, replicate, say_farewell},
};

/// What somebody is tracked with: a JSON object.
pub(crate) type Meta = Arc<Map<String, Value>>;

/// What has changed on a topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Diff {
    /// Who came: the key, and with what.
    pub(crate) joins: Vec<(Arc<str>, Meta)>,
    pub(crate) leaves: Vec<(Arc<str>, Meta)>,
}

/// What has changed, by topic.
pub(crate) type Diffs = BTreeMap<Arc<str>, Diff>;
