//! An event that is broadcast on a topic.

use std::sync::Arc;

use crate::{
    payload::{IntoPayload, Payload, PayloadError},
    protocol::message::Encoded,
};

/// An event that was broadcast on a topic, as received by subscribers other than clients: tasks,
/// channels of other topics, other nodes.
///
/// Cheap to clone. The counterpart of `Phoenix.Socket.Broadcast`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    topic: Arc<str>,
    event: Arc<str>,
    payload: Payload,
}

impl Broadcast {
    /// Creates a broadcast; an [`Adapter`](crate::pubsub::Adapter) does so with each message that it
    /// receives.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Encode`] if the payload has no JSON form.
    pub fn new(topic: &str, event: &str, payload: impl IntoPayload) -> Result<Self, PayloadError> {
        let payload = payload.into_payload()?;
        Ok(Self { topic: topic.into(), event: event.into(), payload })
    }

    /// The topic of the broadcast.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> &str {
        &self.event
    }

    /// The payload of the event.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }
}

impl From<&Encoded> for Broadcast {
    fn from(encoded: &Encoded) -> Self {
        Self {
            topic: encoded.topic().into(),
            event: encoded.event().into(),
            payload: encoded.payload(),
        }
    }
}
