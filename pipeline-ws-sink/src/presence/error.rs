//! The errors of a presence.

use std::sync::Arc;

use thiserror::Error;

/// A presence could not be tracked or updated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The same channel or task already tracks this key on this topic. Use
    /// [`update`](crate::Presence::update) to change its meta.
    #[error("{key:?} is tracked on {topic:?} already")]
    AlreadyTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The key is not tracked, so there is nothing to update.
    #[error("{key:?} is not tracked on {topic:?} by this channel")]
    NotTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The meta was changed while the function of [`update_with`](crate::Presence::update_with)
    /// ran, for instance by the function itself.
    #[error("the meta of {key:?} on {topic:?} was changed while update_with ran")]
    ChangedMeanwhile {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// A meta is a JSON object, to which its reference is added.
    #[error("a meta has to be a JSON object")]
    NotAnObject,
    /// The meta has no JSON form.
    #[error("the meta cannot be encoded as JSON")]
    Encode(#[source] serde_json::Error),
    /// The presence is not attached to an endpoint, or the endpoint is gone.
    #[error("the presence is not attached to an endpoint: pass it to EndpointBuilder::presence")]
    NotAttached,
}
