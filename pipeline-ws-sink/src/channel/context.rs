//! The contexts of a channel's callbacks.

use std::{
    borrow::Cow,
    fmt, mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use pipeline_core::{Deadline, timed::Timeline};
use serde::Deserialize;
use thiserror::Error;

use super::{
    Channel,
    handle::{ChannelHandle, HandleMessage, boxed},
    mailbox::Mailbox,
    reply::{NoReplyExpected, Reply, SocketRef},
    timers::{Timers, TooManyTimers},
};
use crate::{
    outbox::{CountedPush, EventKey, PushOutcome},
    payload::{IntoPayload, Payload, PayloadError},
    presence::Presence,
    protocol::{
        message::{Address, Encoded, is_reserved},
        reference::{Ref, quoted},
    },
    pubsub::{BroadcastError, PubSub, Subscriber, SubscriberId, SubscriptionGuard, topic::Topic},
    session::Connection,
    socket::Socket,
};

/// The context of a join. It cannot send anything to the client yet.
pub struct JoinContext<'a, C: Channel> {
    pub(super) channel: &'a ChannelContext<C>,
    pub(super) config: &'a C::Config,
    pub(super) reply: Result<Payload, PayloadError>,
}

impl<C: Channel> JoinContext<'_, C> {
    /// The client's state, as returned by `connect`.
    #[must_use]
    pub fn assigns(&self) -> &<C::Socket as Socket>::Assigns {
        self.channel.assigns()
    }

    /// The socket's value, shared by all its clients.
    #[must_use]
    pub fn socket(&self) -> &C::Socket {
        self.channel.socket()
    }

    /// The configuration of the route.
    #[must_use]
    pub fn config(&self) -> &C::Config {
        self.config
    }

    /// Sets the response to a successful join: any JSON value, or bytes. Default `{}`.
    ///
    /// A response that cannot be encoded crashes the join.
    ///
    /// The client is subscribed to the topic when `join` has returned, in the same step in which it is answered. So a
    /// state that `join` reads may miss a change, also with a single node: what is broadcast after the reading and before
    /// that step is neither in the state nor received, and the rest of `join` is that long. With other nodes the wait for
    /// their broadcasts comes after `join`, and makes it longer.
    ///
    /// A state that must miss nothing is read in a message after the join: [`send_after`](Self::send_after) with
    /// [`Duration::ZERO`], whose handler pushes it. Each change is in that state, or received after the answer, or both: so
    /// give it a number, or let it say the whole value.
    pub fn reply(&mut self, response: impl IntoPayload) {
        self.reply = response.into_payload();
    }

    /// Sends the channel a message after this time, and not before the join has succeeded. With
    /// [`Duration::ZERO`], it is the first message that the channel handles.
    ///
    /// # Errors
    ///
    /// [`TooManyTimers`] if 1024 timers are pending.
    pub fn send_after<M>(&mut self, delay: Duration, message: M) -> Result<(), TooManyTimers>
    where
        C: HandleMessage<M>,
        M: Send + 'static,
    {
        self.channel.send_after(delay, message)
    }

    /// A handle that sends messages to this channel. They are handled once the join has succeeded.
    #[must_use]
    pub fn handle(&self) -> ChannelHandle<C> {
        self.channel.handle()
    }

    /// Subscribes to another topic: see [`ChannelContext::subscribe`].
    pub fn subscribe(&mut self, topic: &str) {
        self.channel.subscribe(topic);
    }

    /// The endpoint's [`PubSub`].
    #[must_use]
    pub fn pubsub(&self) -> &PubSub {
        self.channel.pubsub()
    }
}

impl<C: Channel> fmt::Debug for JoinContext<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinContext").field("channel", self.channel).finish_non_exhaustive()
    }
}

/// The context of a joined channel: it pushes to the client and broadcasts to the topic.
pub struct ChannelContext<C: Channel> {
    pub(super) connection: Arc<Connection<C::Socket>>,
    pub(super) topic: Topic,
    topic_json: String,
    join_ref: Ref,
    id: SubscriberId,
    mailbox: Arc<Mailbox>,
    /// The reference of the message that is being handled.
    pub(super) reference: Ref,
    /// The start time of the push that is being handled, if it is timed.
    pub(super) timeline: Option<Timeline>,
    /// The push that is being handled, if its outcome is wanted.
    pub(super) push: Option<Arc<CountedPush>>,
    own: Mutex<Resources>,
}

/// What a client sends to confirm a push.
#[derive(Deserialize)]
struct ConfirmedPush<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// Resources that belong to the channel.
#[derive(Default)]
struct Resources {
    timers: Timers,
    /// Subscriptions to other topics.
    subscriptions: Vec<SubscriptionGuard>,
    /// The presences that track its client, or did.
    present_in: Vec<Presence>,
}

impl<C: Channel> ChannelContext<C> {
    pub(super) fn new(
        connection: Arc<Connection<C::Socket>>,
        topic: Topic,
        join_ref: Ref,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let mut topic_json = quoted(&topic);
        // It lives as long as the channel.
        topic_json.shrink_to_fit();
        let id = SubscriberId::new();
        Self {
            connection,
            topic,
            topic_json,
            join_ref,
            id,
            mailbox,
            reference: Ref::NULL,
            timeline: None,
            push: None,
            own: Mutex::default(),
        }
    }

    /// The topic of the channel.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The client's state, as returned by `connect`.
    #[must_use]
    pub fn assigns(&self) -> &<C::Socket as Socket>::Assigns {
        &self.connection.assigns
    }

    /// The socket's value, shared by all its clients.
    #[must_use]
    pub fn socket(&self) -> &C::Socket {
        &self.connection.socket
    }

    /// The socket's id, if it has one.
    #[must_use]
    pub fn socket_id(&self) -> Option<&str> {
        self.connection.id.as_deref()
    }

    /// The client's transport: `websocket` or `longpoll`.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        self.connection.transport
    }

    /// The time until the socket's end, if it has one: see [`Socket::expires_at`].
    #[must_use]
    pub fn expires_in(&self) -> Option<Duration> {
        self.connection.expiry.remaining()
    }

    /// Gives the socket another end, or none: for a client that has shown a new token, without a
    /// reconnect. It replaces the end that [`Socket::expires_at`] or an earlier call has set, and
    /// applies to all channels of the socket. An end that has passed closes the socket at once.
    ///
    /// The [assigns](Self::assigns) stay those of `connect`. So check that the new token is one of
    /// the same user:
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// # use pipeline_ws_sink::socket::{ConnectError, ConnectInfo, Params};
    /// use pipeline_ws_sink::{
    ///     Channel, Payload, Socket, Topic,
    ///     channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    ///     token::{Signer, VerifiedToken},
    /// };
    /// use serde_json::json;
    ///
    /// # struct UserSocket {
    /// #     signer: Signer,
    /// # }
    /// # impl Socket for UserSocket {
    /// #     type Assigns = VerifiedToken<u64>;
    /// #     async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<Self::Assigns, ConnectError> {
    /// #         Ok(self.signer.verify_with_expiry(params.require("token")?, SystemTime::now())?)
    /// #     }
    /// # }
    /// struct UserChannel;
    ///
    /// impl Channel for UserChannel {
    ///     type Socket = UserSocket;
    ///     type Config = ();
    /// #   async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
    /// #       Ok(UserChannel)
    /// #   }
    ///
    ///     async fn handle_in(
    ///         &mut self,
    ///         event: &str,
    ///         payload: Payload,
    ///         cx: &ChannelContext<Self>,
    ///     ) -> Result<Reply, Stop> {
    ///         if event != "refresh" {
    ///             return Err(Stop::unknown_event(event));
    ///         }
    ///         let refused = Reply::error().with(json!({ "reason": "invalid token" }));
    ///         let Ok(token) = payload.parse::<String>() else { return Ok(refused) };
    ///         match cx.socket().signer.verify_with_expiry::<u64>(&token, SystemTime::now()) {
    ///             Ok(token) if token.data == cx.assigns().data => {
    ///                 cx.set_expires_at(token.expires_at);
    ///                 Ok(Reply::ok())
    ///             }
    ///             _ => Ok(refused),
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// ```js
    /// channel.on("socket_expiring", async () => channel.push("refresh", await newToken()))
    /// ```
    pub fn set_expires_at(&self, end: Option<SystemTime>) {
        self.connection.metrics.expiries_renewed.increment(1);
        self.connection.expiry.set(end);
    }

    /// The reference of the client's message that is being handled; null outside of
    /// [`handle_in`](Channel::handle_in).
    #[must_use]
    pub fn reference(&self) -> &Ref {
        &self.reference
    }

    /// The reference of the join. Every frame that this channel sends to the client carries it.
    #[must_use]
    pub fn join_ref(&self) -> &Ref {
        &self.join_ref
    }

    /// The subscriber id of this channel, for [`PubSub::broadcast_from`].
    #[must_use]
    pub fn id(&self) -> SubscriberId {
        self.id
    }

    /// The endpoint's [`PubSub`].
    #[must_use]
    pub fn pubsub(&self) -> &PubSub {
        &self.connection.pubsub
    }

    /// A handle that sends messages to this channel.
    #[must_use]
    pub fn handle(&self) -> ChannelHandle<C> {
        ChannelHandle::new(self.mailbox.clone())
    }

    /// Sends an event to this client. The payload has to be a JSON object, or binary.
    ///
    /// It never waits. [`Mount::when_full`](crate::Mount::when_full) decides what happens when the
    /// client reads too slowly.
    ///
    /// Because it never waits, a loop of pushes occupies its thread. A long loop, or one whose
    /// length a client chooses, should yield with
    /// [`consume_budget`](tokio::task::coop::consume_budget):
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, channel::{ChannelContext, Stop}};
    /// # use serde_json::json;
    /// async fn count<C: Channel>(to: u64, cx: &ChannelContext<C>) -> Result<(), Stop> {
    ///     for n in 1..=to {
    ///         cx.push("tick", json!({ "n": n }))?; // and ends when the socket does
    ///         tokio::task::coop::consume_budget().await;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PushError::Ended`] when the socket has ended. A callback that returns this error ends its
    /// channel as the socket's end does; it does not count as a crash.
    ///
    /// [`PushError::Payload`] if the payload is neither a JSON object nor binary, if it has no JSON
    /// form, if it is binary and the client cannot receive that, or if the event's name begins with
    /// `phx_`.
    pub fn push(&self, event: &str, payload: impl IntoPayload) -> Result<(), PushError> {
        self.send(event, payload, self.push.as_ref())?;
        if self.connection.outbox.has_ended() { Err(PushError::Ended) } else { Ok(()) }
    }

    /// Sends an event to this client, as [`push`](Self::push) does, and reports whether the client's
    /// socket has taken it.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, channel::{ChannelContext, Stop}};
    /// # use serde_json::json;
    /// async fn hand_over<C: Channel>(cx: &ChannelContext<C>) -> Result<bool, Stop> {
    ///     let outcome = cx.deliver("ticket", json!({ "seat": 12 }))?;
    ///     Ok(outcome.await.written == 1)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PayloadError`], as for [`push`](Self::push). If the socket has ended, the outcome says so.
    pub fn deliver(
        &self,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<PushOutcome, PayloadError> {
        let (push, outcome) = CountedPush::new();
        self.send(event, payload, Some(&push))?;
        Ok(outcome)
    }

    fn send(
        &self,
        event: &str,
        payload: impl IntoPayload,
        push: Option<&Arc<CountedPush>>,
    ) -> Result<(), PayloadError> {
        if is_reserved(event) {
            return Err(PayloadError::Reserved { event: event.to_owned() });
        }
        let frame = self.address().push(event, payload)?;
        let key = EventKey::new(&self.topic, event);
        if let Some(push) = push {
            push.addressed(1);
        }
        self.connection.outbox.send_event(&frame, key, self.timeline, push);
        Ok(())
    }

    /// Sends an event to all subscribers of this topic, including this client.
    ///
    /// It never waits for a client: see [`push`](Self::push).
    ///
    /// # Errors
    ///
    /// [`BroadcastError`] if the payload is not a JSON object or binary, or if the other nodes
    /// cannot be reached.
    pub fn broadcast(&self, event: &str, payload: impl IntoPayload) -> Result<(), BroadcastError> {
        self.send_broadcast(event, payload, None)
    }

    /// Sends an event to all subscribers of this topic except this client.
    ///
    /// # Errors
    ///
    /// Those of [`broadcast`](Self::broadcast).
    pub fn broadcast_from(
        &self,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.send_broadcast(event, payload, Some(self.id))
    }

    fn send_broadcast(
        &self,
        event: &str,
        payload: impl IntoPayload,
        except: Option<SubscriberId>,
    ) -> Result<(), BroadcastError> {
        let broadcast = Encoded::by_application(&self.topic, event, payload)?.timed(self.timeline);
        self.pubsub().broadcast_encoded(&broadcast, except)
    }

    /// Confirms a push, for a client that says that it has got it: `payload` is that of its event,
    /// `{"id": ..}` with the [id](crate::pubsub::Confirmation::id) that the push has brought. Returns
    /// the answer: `ok`, or `error` with the reason `unknown` if nothing is waited for, because the
    /// confirmation is late, a second one, or for a push to another topic.
    ///
    /// [`PubSub::confirmation`] has the other half, and the client's.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, Payload, channel::{ChannelContext, Reply, Stop}};
    /// # struct UserChannel;
    /// # impl UserChannel {
    /// async fn handle_in<C: Channel>(
    ///     &mut self,
    ///     event: &str,
    ///     payload: Payload,
    ///     cx: &ChannelContext<C>,
    /// ) -> Result<Reply, Stop> {
    ///     match event {
    ///         "ack" => Ok(cx.confirm(&payload)),
    ///         other => Err(Stop::unknown_event(other)),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn confirm(&self, payload: &Payload) -> Reply {
        let confirmations = self.pubsub().table().confirmations();
        // Anything but an id of a push is the id of none.
        let id = payload.parse::<ConfirmedPush<'_>>().map(|push| push.id).unwrap_or_default();
        if confirmations.confirm(&self.topic, &id) {
            Reply::ok()
        } else {
            Reply::error().with(serde_json::json!({ "reason": "unknown" }))
        }
    }

    /// A reference to the message that is being handled, to answer it later.
    ///
    /// # Errors
    ///
    /// [`NoReplyExpected`] if no message of the client is being handled, or if the client gave it no
    /// reference.
    pub fn socket_ref(&self) -> Result<SocketRef, NoReplyExpected> {
        let Self { connection, topic, join_ref, reference, .. } = self;
        let (outbox, version) = (connection.outbox.clone(), connection.version);
        SocketRef::new(outbox, version, topic.clone(), join_ref.clone(), reference.clone())
    }

    /// Sends this channel a message after this time. The timer ends with the channel. With
    /// [`Duration::MAX`], the message is never sent, and still counts as a timer.
    ///
    /// Messages that are due at the same time are handled in the order in which they were
    /// scheduled, and before messages from others.
    ///
    /// # Errors
    ///
    /// [`TooManyTimers`] if 1024 timers are pending.
    pub fn send_after<M>(&self, delay: Duration, message: M) -> Result<(), TooManyTimers>
    where
        C: HandleMessage<M>,
        M: Send + 'static,
    {
        self.own.lock().timers.set(Deadline::from_now(delay), boxed::<C, M>(message))
    }

    /// Subscribes to another topic. Broadcasts on it do not go to the client, but to
    /// [`Channel::handle_broadcast`].
    ///
    /// A channel that subscribes twice receives everything twice, and a channel that lags 256
    /// broadcasts or 16 MiB behind ends.
    pub fn subscribe(&self, topic: &str) {
        let table = self.pubsub().table();
        let who = Subscriber::Channel(self.mailbox.clone());
        let listening = table.subscribe(&topic.into(), self.id, who);
        self.own.lock().subscriptions.push(listening);
    }

    /// Cancels all of this channel's subscriptions to another topic.
    pub fn unsubscribe(&self, topic: &str) {
        let mut own = self.own.lock();
        let (gone, kept): (Vec<_>, Vec<_>) =
            mem::take(&mut own.subscriptions).into_iter().partition(|other| other.topic() == topic);
        own.subscriptions = kept;
        drop(own);
        drop(gone);
    }

    /// Records that the client is tracked in this presence until the channel ends.
    pub(crate) fn is_present_in(&self, presence: &Presence) {
        let present_in = &mut self.own.lock().present_in;
        if !present_in.iter().any(|other| other.is_same(presence)) {
            present_in.push(presence.clone());
        }
    }

    /// Removes the client from all presences.
    pub(super) fn leave(&self) {
        let present_in = mem::take(&mut self.own.lock().present_in);
        present_in.iter().for_each(|presence| presence.leave(self.id));
    }

    /// Accesses the timers.
    pub(super) fn timers<R>(&self, look: impl FnOnce(&mut Timers) -> R) -> R {
        look(&mut self.own.lock().timers)
    }

    pub(super) fn address(&self) -> Address<'_> {
        let version = self.connection.version;
        Address { version, join_ref: &self.join_ref, topic: &self.topic_json }
    }
}

impl<C: Channel> Drop for ChannelContext<C> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<C: Channel> fmt::Debug for ChannelContext<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelContext")
            .field("topic", &self.topic)
            .field("join_ref", &self.join_ref)
            .finish_non_exhaustive()
    }
}

/// An event was not sent to a client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PushError {
    /// The socket has ended.
    #[error("the socket has ended")]
    Ended,
    /// The event cannot be sent.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}
