//! A presence without a channel.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{Presence, PresenceError};
use crate::pubsub::SubscriberId;

/// A presence that lasts until this value is dropped. Made by [`Presence::track_detached`].
#[must_use = "the presence leaves when this is dropped"]
pub struct PresenceGuard {
    pub(super) presence: Presence,
    pub(super) actor: SubscriberId,
    pub(super) topic: Arc<str>,
    pub(super) key: Arc<str>,
}

impl PresenceGuard {
    /// Replaces the meta.
    ///
    /// # Errors
    ///
    /// [`PresenceError`] if it is not a JSON object, or if the endpoint is gone.
    pub fn update(&self, meta: &(impl Serialize + ?Sized)) -> Result<String, PresenceError> {
        let meta = super::object(meta)?;
        self.presence.shared.update(self.actor, &self.topic, &self.key, meta, None)
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        self.presence.shared.untrack(self.actor, &self.topic, &self.key);
    }
}

impl fmt::Debug for PresenceGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceGuard")
            .field("topic", &self.topic)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
