//! Who came and who went, as clients are told. Pure.

use std::sync::Arc;

use serde::Serialize;

use super::Presences;
use crate::tracker::Diff;

/// Who came to a topic and who went. A change of somebody's meta is both: the new meta has come, the old
/// one has gone, and no client sees the key missing meanwhile.
///
/// Clients are told it as the event `presence_diff`; on the server, tasks are by
/// [`PresenceBuilder::on_diff`](crate::PresenceBuilder::on_diff).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PresenceDiff {
    /// Where.
    #[serde(skip)]
    pub topic: Arc<str>,
    /// Only the metas that are new, whatever else the key has.
    pub joins: Presences,
    /// Only the metas that are gone.
    pub leaves: Presences,
}

impl PresenceDiff {
    pub(super) fn new(topic: Arc<str>, Diff { joins, leaves }: Diff) -> Self {
        Self { topic, joins: Presences::of(joins), leaves: Presences::of(leaves) }
    }
}
