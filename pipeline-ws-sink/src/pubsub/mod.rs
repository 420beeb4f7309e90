//! Broadcasts to all subscribers of a topic.

mod adapter;
pub(crate) mod broadcast;
mod burst;
mod by_route;
mod confirm;
mod expected_topics;
mod filter;
mod first_seen;
mod kept_topics;
mod push_messages;
#[cfg(test)]
mod schedules;
mod sequence;
mod served;
mod subscription;
mod synced_topics;
mod table;
pub(crate) mod topic;
mod turns;
mod waiting_pushes;
mod worker;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, OnceLock},
};

use pipeline_core::timed::Timeline;
use thiserror::Error;
use tokio::time::Instant;

pub(crate) use self::adapter::Contained;
pub(crate) use self::expected_topics::Expected;
pub(crate) use self::table::{JoinedChannel, Subscriber, SubscriberTable, SubscriptionGuard};
pub use self::{
    adapter::{Adapter, AdapterError, AdapterSnapshot, LocalNode, UntilReceives},
    broadcast::Broadcast,
    confirm::{Confirmation, NotConfirmed, TooManyConfirmations},
    filter::FilterSubscribed,
    push_messages::{
        Acknowledge, AsyncPush, ClientsElsewhere, Expired, NoSubscribers, Push, PushMessages,
        SubscriptionsNotSynced, WhenCrowded,
    },
    subscription::{Lagged, TopicSubscription},
    table::SubscriberId,
    topic::Topic,
    worker::{BroadcastWorker, PreparedBroadcast},
};
use self::{
    expected_topics::ExpectedTopics,
    served::Served,
    synced_topics::{Changed, SyncedTopics},
    table::SlowReceiver,
    topic::{TopicPattern, is_reserved},
    turns::{TopicTurns, Turn, TurnKind},
};
pub use crate::outbox::{Delivered, PushOutcome};
use crate::{
    endpoint::{
        arrivals::{Arrivals, TooMany},
        sockets::Sockets,
    },
    outbox::CountedPush,
    payload::{IntoPayload, PayloadError},
    presence::tracker::{TRACKERS, TrackerOptions},
    protocol::message::Encoded,
    telemetry::{SocketMetrics, described, log_line, shown},
};

/// The event that closes the sockets whose id is the topic it is broadcast on.
const DISCONNECT: &str = "disconnect";

/// Broadcasts to topics, and subscribes to them.
///
/// Every endpoint has one, [`Endpoint::pubsub`](crate::Endpoint::pubsub), and so has every channel,
/// [`ChannelContext::pubsub`](crate::channel::ChannelContext::pubsub). Cheap to clone. It keeps no
/// socket open.
///
/// The broadcasting functions are those of a Phoenix endpoint. None of them waits for a client:
/// frames that a client cannot take at once wait in its outbox, and
/// [`Mount::when_full`](crate::Mount::when_full) decides what happens to a client that falls too
/// far behind. [`broadcast_when_ready`](Self::broadcast_when_ready) waits, if that policy is to
/// wait. With an [`Adapter`] broadcasts reach the other nodes first, and then this one.
///
/// ```
/// use pipeline_ws_sink::{Endpoint, PubSub};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let endpoint = Endpoint::builder().build()?;
/// let pubsub: &PubSub = endpoint.pubsub();
/// let mut news = pubsub.subscribe("news:today");
/// pubsub.broadcast("news:today", "headline", json!({ "text": "It works" }))?;
/// assert_eq!(news.recv().await?.event(), "headline");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PubSub {
    shared: Arc<Shared>,
}

struct Shared {
    table: Arc<SubscriberTable>,
    sockets: Arc<Sockets>,
    adapter: Option<Arc<dyn Adapter>>,
    turns: Arc<TopicTurns>,
    /// The topics with subscribers on other nodes, if the nodes share them.
    topics: Option<Arc<SyncedTopics>>,
    /// The topics that have got or lost subscribers on this node, if the adapter follows them.
    interest: Option<Arc<Changed>>,
    /// The topics that clients are about to join: such an adapter is asked for them before.
    expected: Arc<ExpectedTopics>,
    /// What handles requests of long-polling clients that other nodes pass on.
    relayed: OnceLock<OnRelayed>,
    /// The topics that clients can join.
    served: OnceLock<Served>,
    /// How many channels may be joined in a second. Here, because every channel has this.
    joins: OnceLock<Arrivals>,
}

/// Handles a message about a long-polling client's request.
type OnRelayed = Box<dyn Fn(&Broadcast) + Send + Sync>;

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(interest) = &self.interest {
            interest.end();
        }
    }
}

impl PubSub {
    pub(crate) fn new(
        sockets: Arc<Sockets>,
        metrics: Arc<SocketMetrics>,
        adapter: Option<Arc<dyn Adapter>>,
        synced_subscriptions: Option<TrackerOptions>,
        max_confirmations: usize,
    ) -> Self {
        let topics = adapter.as_ref().zip(synced_subscriptions);
        let topics = topics
            .map(|(adapter, options)| Arc::new(SyncedTopics::new(adapter.node_name(), options)));
        let follows = adapter.as_ref().filter(|adapter| adapter.follows_topics());
        let interest = follows.map(|_| Arc::<Changed>::default());
        let changed = topics.as_ref().map(|topics| topics.changed());
        let changed = changed.into_iter().chain(interest.clone()).collect();
        let table = Arc::new(SubscriberTable::new(metrics, changed, max_confirmations));
        let turns = Arc::default();
        if let Some(topics) = &topics {
            topics.watch(&table);
        }
        let shared = Shared {
            table,
            sockets,
            adapter,
            turns,
            topics,
            interest,
            expected: Arc::default(),
            relayed: OnceLock::new(),
            served: OnceLock::new(),
            joins: OnceLock::new(),
        };
        let pubsub = Self { shared: Arc::new(shared) };
        if let Some(adapter) = &pubsub.shared.adapter {
            adapter.start(LocalNode::of(&pubsub));
        }
        pubsub
    }

    /// Sends an event to all subscribers of a topic.
    ///
    /// The payload is encoded once for each version of the protocol in use, for any number of
    /// subscribers.
    ///
    /// # Errors
    ///
    /// [`BroadcastError`] if the payload is not a JSON object or binary, or if the adapter fails.
    /// The event is then not delivered on this node.
    pub fn broadcast(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.broadcast_encoded(&Encoded::by_application(topic, event, payload)?, None)
    }

    /// Whether a route of a mount of this endpoint matches a topic, so that clients can join it.
    ///
    /// A topic that none matches is a likely mistake in its spelling, or one that only tasks of the server subscribe
    /// to, or clients of another kind of node. So a broadcast to it is no error, and a test may assert what it expects.
    /// [`push_messages`](Self::push_messages), whose pushes are for clients, logs a warning.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Channel, Endpoint, Mount, Payload, Socket, Topic};
    /// # use pipeline_ws_sink::{channel::{JoinContext, JoinError}, socket::{ConnectError, ConnectInfo, Params}};
    /// # struct Users;
    /// # struct User;
    /// # impl Socket for Users {
    /// #     type Assigns = ();
    /// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
    /// # }
    /// # impl Channel for User {
    /// #     type Socket = Users;
    /// #     type Config = ();
    /// #     async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
    /// #         Ok(Self)
    /// #     }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mount = Mount::new(Users).channel::<User>("user:*");
    /// let endpoint = Endpoint::builder().mount("/socket", mount).build()?;
    /// assert!(endpoint.knows_topic("user:7"));
    /// assert!(!endpoint.knows_topic("users:7"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn knows_topic(&self, topic: &str) -> bool {
        self.shared.served.get().is_some_and(|served| served.has(topic))
    }

    /// Sets the topics that clients can join.
    pub(crate) fn set_served(&self, patterns: Vec<TopicPattern>) {
        // Set only once, when the endpoint is built.
        let _ = self.shared.served.set(Served::new(patterns));
    }

    /// Logs that a push is for a topic that clients cannot join, once for each kind of topic.
    fn check_served(&self, topic: &str) {
        let Some(served) = self.shared.served.get() else { return };
        // A topic that tasks read is no mistake, nor does it hide one.
        if !served.has(topic) && !self.shared.table.has(topic) && served.is_new_mistake(topic) {
            let topic = shown(topic);
            log_line!(
                WARN,
                topic,
                "a push is for a topic that clients cannot join: no mount of this node has a route that matches it"
            );
        }
    }

    /// Sends an event to all subscribers of a topic, and records its timing.
    ///
    /// `timeline` holds the times before this call: those of a [`Timed`](pipeline_core::timed::Timed)
    /// item, `&item` or `item.timeline()`, or only the moment when it was enqueued. Recorded in
    /// milliseconds for each socket of this node, when the operating system has taken the last byte
    /// of the frame:
    ///
    /// - `pipeline.push_delivered`: the time since the item was enqueued.
    /// - `pipeline.push_written`: the time since this call.
    ///
    /// Recorded once for this call, as far as known:
    ///
    /// - `pipeline.push_queued`: from when the item was enqueued until it left its queue.
    /// - `pipeline.push_waited`: from then until its worker was started.
    /// - `pipeline.push_worked`: from then until this call.
    ///
    /// If the item belongs to a [trace](pipeline_core::timed::TraceContext), the call and each
    /// write are logged at the level `trace`, with its `trace_id`.
    ///
    /// ```
    /// use pipeline_core::timed::Timed;
    /// use pipeline_ws_sink::{PubSub, pubsub::BroadcastError};
    /// use serde_json::json;
    ///
    /// fn broadcast_price(pubsub: &PubSub, price: &Timed<f64>) -> Result<(), BroadcastError> {
    ///     pubsub.broadcast_timed(price, "stock:acme", "price", json!({ "price": **price }))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`broadcast`](Self::broadcast).
    pub fn broadcast_timed(
        &self,
        timeline: impl Into<Timeline>,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        let broadcast = PreparedBroadcast::new(topic, event, payload)?.timed(timeline);
        self.forward(&broadcast.event)?;
        self.shared.table.metrics().push_times.record_broadcast(&broadcast.event);
        self.deliver_locally(&broadcast.event, None);
        Ok(())
    }

    /// Sends an event to all subscribers of a topic on this node, and records its timing as
    /// [`broadcast_timed`](Self::broadcast_timed) does. For a program whose nodes each have their own
    /// copy of what they push.
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Payload`] if the payload is not a JSON object or binary, and [`BroadcastError::Adapter`] if the
    /// topic is reserved for messages between nodes.
    pub fn local_broadcast_timed(
        &self,
        timeline: impl Into<Timeline>,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        let broadcast = PreparedBroadcast::new(topic, event, payload)?.timed(timeline);
        not_reserved(topic)?;
        self.shared.table.metrics().push_times.record_broadcast(&broadcast.event);
        self.deliver_locally(&broadcast.event, None);
        Ok(())
    }

    /// Sends an event to all subscribers of a topic except one: a channel, or a task that has
    /// subscribed.
    ///
    /// Only that subscriber is left out. Its user receives the event on other sockets that have
    /// joined the topic.
    ///
    /// # Errors
    ///
    /// Those of [`broadcast`](Self::broadcast).
    pub fn broadcast_from(
        &self,
        from: SubscriberId,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        self.broadcast_encoded(&Encoded::by_application(topic, event, payload)?, Some(from))
    }

    /// Sends an event to all subscribers of a topic on this node.
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Payload`] if the payload is not a JSON object or binary, and [`BroadcastError::Adapter`] if the
    /// topic is reserved for messages between nodes.
    pub fn local_broadcast(
        &self,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        not_reserved(topic)?;
        self.deliver_locally(&Encoded::by_application(topic, event, payload)?, None);
        Ok(())
    }

    /// Sends an event to all subscribers of a topic on this node except one.
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Payload`] if the payload is not a JSON object or binary, and [`BroadcastError::Adapter`] if the
    /// topic is reserved for messages between nodes.
    pub fn local_broadcast_from(
        &self,
        from: SubscriberId,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        not_reserved(topic)?;
        self.deliver_locally(&Encoded::by_application(topic, event, payload)?, Some(from));
        Ok(())
    }

    /// Sends an event to all subscribers of a topic on the node with this name, through the
    /// adapter.
    ///
    /// # Errors
    ///
    /// [`BroadcastError`] if the payload is not a JSON object or binary, if the adapter fails, or
    /// if there is no adapter.
    pub fn direct_broadcast(
        &self,
        node: &str,
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<(), BroadcastError> {
        let broadcast = Broadcast::from(&Encoded::by_application(topic, event, payload)?);
        not_reserved(topic)?;
        let adapter = self.shared.adapter.as_ref();
        let adapter = adapter.ok_or_else(|| AdapterError::new("there is no adapter"))?;
        Ok(adapter.direct_broadcast(node, &broadcast)?)
    }

    /// Sends an event to all subscribers of a topic, and waits for room in the outboxes of slow
    /// clients whose policy is [`WhenFull::Block`](crate::mount::WhenFull::Block). For senders that
    /// can wait, such as the end of a pipeline; see [`broadcast_worker`](Self::broadcast_worker). A
    /// channel's callbacks cannot: their own client would wait with them.
    ///
    /// It returns when every socket of this node has accepted the event: to write it, or to drop it
    /// where that is the policy. A client that has no room for one broadcast for as long as its policy
    /// allows is closed, and counted in `socket.closed_slow`. So is a client that has been full for
    /// longer than [`Mount::send_timeout`](crate::Mount::send_timeout), over any number of broadcasts.
    ///
    /// Calls for one topic are sent one after the other, in the order in which their futures are
    /// first polled. A slow client therefore delays all senders of its topic, for as long as its
    /// policy allows, and again if it connects again:
    /// [`WhenFull::Block`](crate::mount::WhenFull::Block) suits topics of one user each. An event
    /// of a [`broadcast_worker`](Self::broadcast_worker) that could not be sent and is retried
    /// later does not delay them: calls overtake it, and the events of its topic that wait behind
    /// it.
    ///
    /// In a worker of your own, the wait occupies the worker: as soon as all workers of a pipeline
    /// wait for one slow client, the events for all others wait too. A
    /// [`broadcast_worker`](Self::broadcast_worker) keeps some of its workers free.
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Adapter`] if the other nodes cannot be reached. The event is then not
    /// delivered on this node.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, subscribers that had no room do not receive the event; the others
    /// have received it.
    ///
    /// ```
    /// # use pipeline_ws_sink::{PubSub, pubsub::{BroadcastError, PreparedBroadcast}};
    /// # use serde_json::json;
    /// # async fn broadcast_price(pubsub: &PubSub) -> Result<(), BroadcastError> {
    /// let broadcast = PreparedBroadcast::new("stock:acme", "price", json!({ "price": 1.5 }))?;
    /// pubsub.broadcast_when_ready(&broadcast).await
    /// # }
    /// ```
    pub async fn broadcast_when_ready(
        &self,
        broadcast: &PreparedBroadcast,
    ) -> Result<(), BroadcastError> {
        let turn = self.shared.turns.enter(broadcast.event.shared_topic(), TurnKind::Overtaking);
        self.send_from(&turn, broadcast).await
    }

    /// Sends an event to all subscribers of a topic as
    /// [`broadcast_when_ready`](Self::broadcast_when_ready) does, and reports how many sockets have
    /// taken it.
    ///
    /// It returns when every socket of this node has accepted the event, and the outcome completes when
    /// every socket has taken it, dropped it or ended. The frame is still encoded once and written as
    /// soon as it can be: the sockets only count.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use pipeline_ws_sink::{Endpoint, pubsub::PreparedBroadcast};
    /// use serde_json::json;
    ///
    /// let endpoint = Endpoint::builder().build()?;
    /// let alarm = PreparedBroadcast::new("user:7", "alarm", json!({ "text": "Fire" }))?;
    /// let outcome = endpoint.pubsub().deliver(alarm).await?;
    /// let delivered = outcome.within(Duration::from_secs(10)).await;
    /// if delivered.is_unheard() {
    ///     println!("user 7 is not here: send a letter");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`broadcast_when_ready`](Self::broadcast_when_ready).
    ///
    /// # Cancel safety
    ///
    /// As that of [`broadcast_when_ready`](Self::broadcast_when_ready).
    pub async fn deliver(
        &self,
        broadcast: PreparedBroadcast,
    ) -> Result<PushOutcome, BroadcastError> {
        let (broadcast, outcome) = self.counted(broadcast);
        self.broadcast_when_ready(&broadcast).await?;
        Ok(outcome)
    }

    /// The same without waiting for room, as [`broadcast`](Self::broadcast) sends it.
    ///
    /// # Errors
    ///
    /// [`BroadcastError::Adapter`] if the other nodes cannot be reached. The event is then not
    /// delivered on this node.
    pub fn deliver_now(&self, broadcast: PreparedBroadcast) -> Result<PushOutcome, BroadcastError> {
        let (broadcast, outcome) = self.counted(broadcast);
        self.forward_prepared(&broadcast)?;
        self.shared.table.metrics().push_times.record_broadcast(&broadcast.event);
        self.deliver_locally(&broadcast.event, None);
        Ok(outcome)
    }

    /// A broadcast that counts its copies.
    fn counted(&self, broadcast: PreparedBroadcast) -> (PreparedBroadcast, PushOutcome) {
        let (push, outcome) = CountedPush::new();
        let PreparedBroadcast { event, here_only } = broadcast;
        if !here_only && self.has_subscribers_elsewhere(event.topic()) {
            push.goes_elsewhere();
        }
        (PreparedBroadcast { event: event.counted(Some(push)), here_only }, outcome)
    }

    /// Sends an event once it is its turn.
    async fn send_from(
        &self,
        turn: &Turn,
        broadcast: &PreparedBroadcast,
    ) -> Result<(), BroadcastError> {
        turn.wait().await;
        self.forward_prepared(broadcast)?;
        self.shared.table.metrics().push_times.record_broadcast(&broadcast.event);
        let mut slow = Vec::new();
        self.shared.table.dispatch(&broadcast.event, None, Some(&mut slow));
        if broadcast.event.event() == DISCONNECT {
            self.shared.sockets.disconnect(broadcast.event.topic());
        }
        if !slow.is_empty() {
            // Boxed: most calls do not wait, and their future stays small, as it is copied
            // a few times on its way into a task.
            Box::pin(self.wait_for_all(slow, &broadcast.event, turn)).await;
        }
        Ok(())
    }

    /// Waits for room with each of these subscribers, or until the topic stops waiting: then the
    /// event is forced into the reserve that outboxes have for senders that cannot wait.
    async fn wait_for_all(&self, slow: Vec<SlowReceiver>, event: &Encoded, turn: &Turn) {
        let (since, mut waits_ended) = (Instant::now(), pin!(turn.waits_ended()));
        let (mut uses_reserve, mut recovery) = (false, None);
        for receiver in slow {
            if !uses_reserve {
                tokio::select! {
                    biased;
                    () = self.shared.table.wait_for(&receiver, event, since, &mut recovery) => continue,
                    () = &mut waits_ended => uses_reserve = true,
                }
            }
            self.shared.table.force(&receiver, event);
        }
    }

    /// Subscribes to a topic, until the returned value is dropped. Broadcasts that begin after the
    /// return are not missed.
    ///
    /// A task that subscribes twice receives everything twice.
    #[must_use]
    pub fn subscribe(&self, topic: &str) -> TopicSubscription {
        TopicSubscription::new(&self.shared.table, topic)
    }

    /// Closes every socket with this id, with a code that makes the official client connect again.
    /// Returns the number of sockets closed on this node.
    ///
    /// It is the same as broadcasting the event `disconnect` on the id. To keep a user out, make
    /// `connect` refuse it first. See [`Socket::id`](crate::Socket::id).
    #[expect(clippy::missing_panics_doc, reason = "it cannot panic")]
    #[expect(clippy::must_use_candidate, reason = "the number is an extra")]
    pub fn disconnect(&self, id: &str) -> usize {
        let event = Encoded::new(id, DISCONNECT, serde_json::json!({}));
        let event = event.expect("an empty object can be encoded");
        if let Err(error) = self.forward(&event) {
            let (id, error) = (shown(id), described(&error));
            log_line!(WARN, id, error, "failed to broadcast a disconnect to the other nodes");
        }
        self.deliver_locally(&event, None)
    }

    pub(crate) fn table(&self) -> &Arc<SubscriberTable> {
        &self.shared.table
    }

    /// Sends to the other nodes first: if they cannot be reached, the event is delivered to no one.
    pub(crate) fn broadcast_encoded(
        &self,
        broadcast: &Encoded,
        except: Option<SubscriberId>,
    ) -> Result<(), BroadcastError> {
        self.forward(broadcast)?;
        self.deliver_locally(broadcast, except);
        Ok(())
    }

    /// Sets what handles requests of long-polling clients that other nodes pass on.
    pub(crate) fn on_relayed(&self, handle: OnRelayed) {
        // An endpoint is built once.
        let _ = self.shared.relayed.set(handle);
    }

    /// Sets how many channels may be joined in a second.
    pub(crate) fn set_joins(&self, joins: Arrivals) {
        // An endpoint is built once.
        let _ = self.shared.joins.set(joins);
    }

    /// Waits for the turn of a join of the socket with this number.
    pub(crate) async fn join_turn(&self, socket: usize) -> Result<(), TooMany> {
        match self.shared.joins.get() {
            Some(joins) => joins.join(socket).await,
            None => Ok(()),
        }
    }

    /// Before a join of this topic is answered: waits until what other nodes broadcast to it arrives here,
    /// if the adapter does. The topic counts as subscribed for the adapter until the result is dropped.
    pub(crate) async fn expect(&self, topic: &Arc<str>) -> Option<Expected> {
        let Shared { table, adapter, interest, expected, .. } = &*self.shared;
        let adapter = adapter.as_ref()?;
        let interest = interest.as_ref().filter(|_| !topic.starts_with(TRACKERS))?;
        let expected = expected.expect(topic, table, interest);
        if let Some(receives) = adapter.until_receives(topic) {
            receives.await;
        }
        Some(expected)
    }

    /// Starts to share this node's topics with the other nodes, if that is enabled.
    pub(crate) fn begin(&self) {
        if let Some(topics) = &self.shared.topics {
            topics.begin(self);
        }
    }

    pub(crate) fn end(&self) {
        if let Some(topics) = &self.shared.topics {
            topics.end(self);
        }
    }

    /// What the adapter has sent and received, if it tells.
    pub(crate) fn adapter_snapshot(&self) -> Option<AdapterSnapshot> {
        self.shared.adapter.as_ref()?.snapshot()
    }

    /// The name of this node, if there is an [`Adapter`].
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.shared.adapter.as_ref().map(|adapter| adapter.node_name())
    }

    /// Sends to all other nodes only, also on a reserved topic. For the project's own crates.
    #[doc(hidden)]
    pub fn send_to_others(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        self.shared.adapter.as_ref().map_or(Ok(()), |adapter| adapter.broadcast(broadcast))
    }

    /// Sends to one node.
    pub(crate) fn send_to_node(
        &self,
        node: &str,
        broadcast: &Broadcast,
    ) -> Result<(), AdapterError> {
        let adapter = self.shared.adapter.as_ref();
        adapter.map_or(Ok(()), |adapter| adapter.direct_broadcast(node, broadcast))
    }

    fn forward_prepared(&self, broadcast: &PreparedBroadcast) -> Result<(), AdapterError> {
        if broadcast.here_only {
            not_reserved(broadcast.event.topic())
        } else {
            self.forward(&broadcast.event)
        }
    }

    fn forward(&self, broadcast: &Encoded) -> Result<(), AdapterError> {
        not_reserved(broadcast.topic())?;
        match &self.shared.adapter {
            Some(adapter) => {
                let timeline = broadcast.timeline().copied();
                let broadcast = Broadcast::from(broadcast);
                adapter.broadcast(&match timeline {
                    Some(timeline) => broadcast.timed(timeline),
                    None => broadcast,
                })
            }
            None => Ok(()),
        }
    }

    /// Delivers on this node. Returns the number of closed sockets.
    pub(crate) fn deliver_locally(
        &self,
        broadcast: &Encoded,
        except: Option<SubscriberId>,
    ) -> usize {
        self.shared.table.dispatch(broadcast, except, None);
        if broadcast.event() == DISCONNECT {
            self.shared.sockets.disconnect(broadcast.topic())
        } else {
            0
        }
    }
}

impl fmt::Debug for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.shared.adapter.as_ref().map(|adapter| adapter.node_name());
        f.debug_struct("PubSub").field("node", &node).finish_non_exhaustive()
    }
}

/// Refuses the topics on which nodes talk to each other: requests that they pass on, presences and subscriptions. A
/// channel may let its clients choose the topic and the payload of a broadcast; no node may take them for those of
/// another node.
fn not_reserved(topic: &str) -> Result<(), AdapterError> {
    if is_reserved(topic) {
        return Err(AdapterError::new("the topic is reserved for messages between nodes"));
    }
    Ok(())
}

/// A broadcast was not sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The payload is not a JSON object or binary.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The other nodes cannot be reached, or the topic is reserved for messages between them.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}
