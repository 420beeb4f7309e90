//! An event that is broadcast on a topic.

use std::sync::Arc;

use pipeline_core::timed::Timeline;

use super::DISCONNECT;
use crate::{
    payload::{IntoPayload, Payload, PayloadError},
    presence::tracker::TRACKERS,
    protocol::message::Encoded,
    transport::longpoll_relay::RELAYS,
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
    /// The times of the push so far, if it is timed and goes to other nodes or comes from one.
    timeline: Option<Arc<Timeline>>,
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
        Ok(Self { topic: topic.into(), event: event.into(), payload, timeline: None })
    }

    /// Sets the times of the push so far. The sockets that receive it record its times.
    ///
    /// An adapter sets them for a broadcast of another node: from when the item was enqueued there, as
    /// far as the clocks of both nodes tell.
    #[must_use]
    pub fn timed(self, timeline: impl Into<Timeline>) -> Self {
        Self { timeline: Some(Arc::new(timeline.into())), ..self }
    }

    /// The times of the push so far, if the broadcast is timed. Adapters read them; other receivers are
    /// passed no times.
    #[must_use]
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_deref()
    }

    /// Whether the broadcast is for every node, whether it has subscribers of the topic or not: a
    /// message between trackers of presences, or the event that closes the sockets of an id.
    ///
    /// An [`Adapter`](crate::pubsub::Adapter) that leaves out nodes without subscribers does not leave
    /// them out of these.
    #[must_use]
    pub fn is_for_every_node(&self) -> bool {
        &*self.event == DISCONNECT || self.topic.starts_with(TRACKERS)
    }

    /// Whether this is a part of a client's request that another node is to answer, or of the answer. It is
    /// always sent to one node, and of no use when it is late.
    ///
    /// An [`Adapter`](crate::pubsub::Adapter) returns an error if it cannot send it now. It does not let it
    /// take the room of broadcasts, and does not send it twice.
    #[must_use]
    pub fn is_request(&self) -> bool {
        *self.topic == *RELAYS
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
            topic: encoded.shared_topic().clone(),
            event: encoded.event().into(),
            payload: encoded.payload(),
            timeline: None,
        }
    }
}
