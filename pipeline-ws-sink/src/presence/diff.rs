//! The joins and leaves on a topic, as sent to clients. Pure.

use std::sync::Arc;

use serde::Serialize;

use super::{PresenceList, tracker::Diff};

/// The joins and leaves on a topic. An updated meta is in both: the new meta joins, the old one
/// leaves, and no client sees the key missing meanwhile.
///
/// Clients receive it as the event `presence_diff`; code on the server receives it through
/// [`PresenceBuilder::on_diff`](crate::PresenceBuilder::on_diff).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PresenceDiff {
    /// The topic.
    #[serde(skip)]
    pub topic: Arc<str>,
    /// The new metas only; the key may have others.
    pub joins: PresenceList,
    /// The removed metas only.
    pub leaves: PresenceList,
}

impl PresenceDiff {
    pub(super) fn new(topic: Arc<str>, Diff { joins, leaves }: Diff) -> Self {
        Self { topic, joins: PresenceList::of(joins), leaves: PresenceList::of(leaves) }
    }
}
