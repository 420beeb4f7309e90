//! What a channel's callbacks can do.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Channel, reply::encode};
use crate::{
    outbox::EventKey,
    payload::{IntoPayload, Payload, PayloadError},
    protocol::message::{Address, Broadcast, Ref, topic_json},
    pubsub::SubscriberKey,
    session::Connection,
    socket::Socket,
    topic::Topic,
};

/// What a channel knows while a client asks to be let in. It cannot send anything yet.
#[derive(Debug)]
pub struct JoinContext<'a, C: Channel> {
    pub(super) connection: &'a Connection<C::Socket>,
    pub(super) config: &'a C::Config,
    pub(super) reply: Result<Payload, PayloadError>,
}

impl<C: Channel> JoinContext<'_, C> {
    /// What `connect` made of the client.
    #[must_use]
    pub fn assigns(&self) -> &<C::Socket as Socket>::Assigns {
        &self.connection.assigns
    }

    /// The socket's own value, shared by all its clients.
    #[must_use]
    pub fn socket(&self) -> &C::Socket {
        &self.connection.socket
    }

    /// What the route gives to every join.
    #[must_use]
    pub fn config(&self) -> &C::Config {
        self.config
    }

    /// What the client is told if it is let in: any JSON value. `{}` unless set.
    ///
    /// One that cannot be encoded crashes the join.
    pub fn reply(&mut self, response: impl IntoPayload) {
        self.reply = encode(response);
    }
}

/// A joined channel's way to its client and to its topic.
#[derive(Debug)]
pub struct ChannelContext<S: Socket> {
    pub(super) connection: Arc<Connection<S>>,
    pub(super) topic: Topic,
    topic_json: String,
    join_ref: Ref,
    key: SubscriberKey,
    /// When what is being handled was enqueued, if its way is timed.
    pub(super) since: Option<Instant>,
}

impl<S: Socket> ChannelContext<S> {
    pub(super) fn new(
        connection: Arc<Connection<S>>,
        topic: Topic,
        join_ref: Ref,
        key: SubscriberKey,
    ) -> Self {
        let topic_json = topic_json(&topic);
        Self { connection, topic, topic_json, join_ref, key, since: None }
    }

    /// The topic that was joined.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What `connect` made of the client.
    #[must_use]
    pub fn assigns(&self) -> &S::Assigns {
        &self.connection.assigns
    }

    /// The socket's own value, shared by all its clients.
    #[must_use]
    pub fn socket(&self) -> &S {
        &self.connection.socket
    }

    /// The socket's id, if it has one.
    #[must_use]
    pub fn socket_id(&self) -> Option<&str> {
        self.connection.id.as_deref()
    }

    /// Sends an event to this client. The payload has to be a JSON object.
    ///
    /// It never waits. What happens when the client reads too slowly is for
    /// [`Mount::when_full`](crate::Mount::when_full) to say. Once the socket is gone, it does nothing.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is no object, or has no JSON form.
    pub fn push(&self, event: &str, payload: impl IntoPayload) -> Result<(), PayloadError> {
        let frame = self.address().push(event, payload)?;
        let key = EventKey::new(&self.topic, event);
        self.connection.outbox.send_event(&frame, key, self.since);
        Ok(())
    }

    /// Sends an event to everyone on this topic, this client included.
    ///
    /// It never waits, for no client: see [`push`](Self::push).
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is no object, or has no JSON form.
    pub fn broadcast(&self, event: &str, payload: impl IntoPayload) -> Result<(), PayloadError> {
        self.send_broadcast(event, payload, None)
    }

    /// Sends an event to everyone on this topic but this client.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] if the payload is no object, or has no JSON form.
    pub fn broadcast_from(
        &self,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), PayloadError> {
        self.send_broadcast(event, payload, Some(self.key))
    }

    fn send_broadcast(
        &self,
        event: &str,
        payload: impl IntoPayload,
        except: Option<SubscriberKey>,
    ) -> Result<(), PayloadError> {
        let broadcast = Broadcast::encode(&self.topic, event, payload)?;
        self.connection.pubsub.broadcast(&self.topic, event, &broadcast, except, self.since);
        Ok(())
    }

    pub(super) fn address(&self) -> Address<'_> {
        Address { join_ref: &self.join_ref, topic: &self.topic_json }
    }
}
