//! What can be wrong with a presence.

use std::sync::Arc;

use thiserror::Error;

/// Why somebody is not tracked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The same channel, or task, tracks that key on that topic already: there is
    /// [`update`](crate::Presence::update) for that.
    #[error("{key:?} is tracked on {topic:?} already")]
    AlreadyTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// There is nothing to update.
    #[error("{key:?} is not tracked on {topic:?} by this channel")]
    NotTracked {
        /// The topic.
        topic: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The meta was changed while the function of
    /// [`update_with`](crate::Presence::update_with) ran, by the function itself for instance.
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
    /// It was given to no endpoint, or the endpoint is gone.
    #[error("the presence belongs to no endpoint: give it to EndpointBuilder::presence")]
    NotAttached,
}
