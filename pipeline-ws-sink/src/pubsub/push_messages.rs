//! The end of a pipeline of messages: it pushes each to a topic, and acknowledges it when its push has
//! come far enough.

use std::{
    borrow::Cow,
    fmt,
    marker::PhantomData,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use futures::{future::BoxFuture, poll};
use parking_lot::Mutex;
use pipeline_core::{
    backoff::{Backoff, Jitter},
    processing::{AsyncMut, Failure, Message, Processor, Redelivery},
    shown::shown,
    timed::{Timed, Timeline},
};
use thiserror::Error;
use tokio::time::Instant;

use super::{
    Confirmation, Delivered, NotConfirmed, PreparedBroadcast, PubSub, PushOutcome,
    first_seen::FirstSeen,
    waiting_pushes::{BegunPush, Limits, WaitingPushes},
};
use crate::{
    clock::{Clock, elapsed},
    endpoint::CONFIRMATIONS,
    payload::{IntoPayload, Payload, PayloadError},
    telemetry::{LineLimit, PushMetrics, limited},
};

/// How long a push may take to be written, by default.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// When a message for clients of another node is delivered again: the older, the later.
fn hand_over() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_millis(500)).jitter(Jitter::None)
}

/// How many pushes may wait, and how large they may be together, by default. Fewer than a source has in work, and
/// than there may be confirmations, so that those behind them are looked at.
const WAITING: Limits = Limits { pushes: 8_000, bytes: 64 * 1024 * 1024 };
const _: () = assert!(WAITING.pushes < CONFIRMATIONS);

/// By how much the clock of the program that adds messages may be ahead of this one.
const AHEAD: Duration = Duration::from_secs(60);

/// How far a push has to come before its message is acknowledged.
///
/// Until then the message is its source's: after a crash it is delivered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// The pipeline has taken it over. A crash loses it.
    TakenOver,
    /// The push was handed to the outboxes of all sockets. What waits there is lost with the process,
    /// and with its socket.
    Handled,
    /// Every socket that had joined the topic has taken the push, or has ended. The default.
    ///
    /// A channel that [intercepts](crate::Channel::INTERCEPT) it has handled it, and its socket has taken what
    /// it has pushed meanwhile. If it ends instead and its socket does not, the message has failed.
    ///
    /// The operating system has its bytes then; the client may still lose its connection before it has
    /// read them.
    #[default]
    Written,
    /// A client has confirmed it: see [`PubSub::confirmation`]. The payload, which has to be a JSON
    /// object, gets the member `ack`, and the client sends the event `ack` with `{id: payload.ack}` on
    /// its channel.
    Confirmed {
        /// How long the client may take. Then the message has failed.
        within: Duration,
    },
}

/// What becomes of a message if no client has joined its topic. By default it is kept for an hour, and is done
/// then: after a restart, no client is there until the first has connected again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSubscribers {
    /// The message is done: a user who is not there misses it, and so do all users after a restart, until they
    /// are back.
    Done,
    /// Its source keeps it, and delivers it again until a client is there.
    Keep {
        /// For how long, since it was added to its source. One from the future is kept for so long from when it is looked
        /// at first: see [`PushMessages::look_again`].
        keep_for: Duration,
        /// What becomes of it afterwards.
        then: Expired,
    },
}

impl Default for NoSubscribers {
    fn default() -> Self {
        Self::Keep { keep_for: Duration::from_secs(3600), then: Expired::Done }
    }
}

/// What becomes of a message that was kept for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The message is done.
    Done,
    /// The message is given up: a source with dead letters puts it there.
    GiveUp,
}

/// What becomes of a message if as many pushes wait as [may](PushMessages::max_waiting), of its topic or of all, or as
/// many [confirmations](crate::endpoint::EndpointBuilder::max_confirmations).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenCrowded {
    /// If its topic has its share of the room, its source has it back before it is pushed, and delivers it
    /// [later](PushMessages::look_again), without counting this delivery. If all of the room is taken, it keeps its place.
    /// The default: clients that do not read delay no others while there is room.
    #[default]
    GiveBackBusyTopics,
    /// The message is pushed as soon as it may be, and occupies its processor or worker until its outcome is known:
    /// its source is asked for less. One topic may have all of the room then, and all processors. It is for a source
    /// that delivers nothing again; with [`in_order`](PushMessages::in_order) or [`Acknowledge::Confirmed`], a drain gives
    /// back what waits for its turn or for a confirmation all the same, and such a source loses it.
    KeepPlace,
    /// Its source has it back in both cases.
    GiveBack,
}

/// The nodes of the endpoint do not share which topics have subscribers.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "messages cannot be given back to the node that has their clients: no node knows the topics of the others without sync_subscriptions"
)]
#[non_exhaustive]
pub struct SubscriptionsNotSynced {}

/// What becomes of a message whose topic has clients on other nodes, and none on this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientsElsewhere {
    /// The message is broadcast to them, as far as the [`Adapter`](crate::pubsub::Adapter) promises, and done. The
    /// default.
    #[default]
    Broadcast,
    /// Its source has it back, and delivers it again soon, without counting this delivery: until the node
    /// with the clients takes it, and acknowledges what has become of the push. That node has to read from
    /// the same source.
    GiveBack,
}

/// An event to be pushed to a topic.
///
/// ```
/// use pipeline_ws_sink::pubsub::Push;
/// use serde_json::json;
///
/// let push = Push::new("user:7", "alarm", json!({ "text": "Fire" }));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Push<P> {
    topic: Cow<'static, str>,
    event: Cow<'static, str>,
    payload: P,
    timeline: Option<Timeline>,
    /// Whether other nodes are left out.
    here_only: bool,
}

impl<P: IntoPayload> Push<P> {
    /// An event for all clients that have joined a topic.
    pub fn new(
        topic: impl Into<Cow<'static, str>>,
        event: impl Into<Cow<'static, str>>,
        payload: P,
    ) -> Self {
        let (topic, event) = (topic.into(), event.into());
        Self { topic, event, payload, timeline: None, here_only: false }
    }

    /// Enables timing, as [`PreparedBroadcast::timed`] does: `timeline` holds the times until now. To time all from when
    /// they were added to their source, take [`PushMessages::timed`].
    ///
    /// ```
    /// use pipeline_core::timed::Timed;
    /// use pipeline_ws_sink::pubsub::Push;
    /// use serde_json::json;
    ///
    /// let alarm = Timed::now("Fire");
    /// let push = Push::new("user:7", "alarm", json!({ "text": *alarm })).timed(&alarm);
    /// ```
    pub fn timed(self, timeline: impl Into<Timeline>) -> Self {
        Self { timeline: Some(timeline.into()), ..self }
    }

    /// Sends the event to the clients of this node only, as [`PreparedBroadcast::here_only`] does. For a
    /// program whose nodes each have their own copy of the message, such as a consumer group of Kafka for
    /// each node.
    ///
    /// Clients of other nodes count as absent then, whatever
    /// [`clients_elsewhere`](PushMessages::clients_elsewhere) says: without a client on this node, the
    /// message is [kept or done](PushMessages::no_subscribers). A node that need not wait for its clients
    /// has [`NoSubscribers::Done`].
    ///
    /// ```
    /// use pipeline_ws_sink::pubsub::Push;
    /// use serde_json::json;
    ///
    /// let push = Push::new("news", "headline", json!({ "text": "Rain" })).here_only();
    /// ```
    pub fn here_only(self) -> Self {
        Self { here_only: true, ..self }
    }
}

impl<P> Push<P> {
    /// Gives it these times, unless it has some.
    fn or_timed(self, times: Option<Timeline>) -> Self {
        Self { timeline: self.timeline.or(times), ..self }
    }
}

/// A processor that pushes each message to a topic, and is done with it when the push has come [far
/// enough](Acknowledge). Made by [`PubSub::push_messages`].
pub struct PushMessages<F> {
    pubsub: PubSub,
    push: F,
    acknowledge: Acknowledge,
    no_subscribers: NoSubscribers,
    elsewhere: ClientsElsewhere,
    written_within: Duration,
    look_again: Backoff,
    in_order: bool,
    timed: bool,
    waiting: Arc<WaitingPushes>,
    when_crowded: WhenCrowded,
    clock: Clock,
    /// The messages from the future that were kept.
    from_future: Mutex<FirstSeen>,
    lines: LineLimit,
    metrics: Arc<PushMetrics>,
}

/// Why a push has not come far enough.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum Stuck {
    #[error("no client has joined the topic")]
    Absent,
    #[error("a socket or a channel has dropped the push")]
    Dropped,
    #[error("a socket has not taken the push in time")]
    Slow,
    #[error("too many pushes to the topic wait for their clients")]
    Crowded,
    #[error("too many pushes wait to be confirmed")]
    Confirmations,
    #[error("its pipeline ends before its turn has come")]
    Turn,
    #[error("its clients are on another node")]
    Elsewhere,
    #[error("its source delivers it again")]
    Old,
}

impl PubSub {
    /// The end of a pipeline of messages: this function turns each message into a push, and the message
    /// is acknowledged when its push has come [far enough](PushMessages::acknowledge).
    ///
    /// A processor asks for one message, whatever its
    /// [`max_demand`](pipeline_core::processing::Processors::max_demand) is, and hands its push to the sockets.
    /// A push that then only waits, for a client to take or to confirm it, leaves the processor to the next
    /// message. So a client that does not read delays its own pushes and no others. How many may wait is
    /// [bounded](PushMessages::max_waiting), with a share for each topic. Followed by a batcher, and with
    /// [`partition_by`](pipeline_core::processing::Processors::partition_by), a push that waits occupies
    /// its processor: use many.
    ///
    /// The pushes of one user keep their order if the source delivers the next message of a user when the
    /// one before is done, as a queue that is ordered by key does. With [`in_order`](PushMessages::in_order)
    /// or `partition_by` they keep it until one of them is delivered again.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::{Pipeline, processing::{Message, Processors}, source::from_iter};
    /// use pipeline_ws_sink::{
    ///     Endpoint,
    ///     pubsub::{Acknowledge, Expired, NoSubscribers, Push},
    /// };
    /// use serde_json::json;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let a_day = Duration::from_secs(86_400);
    /// let push = endpoint
    ///     .pubsub()
    ///     .push_messages(|ticket: &Message<u64>| {
    ///         Ok(Push::new(format!("user:{}", **ticket), "ticket", json!({ "seat": 12 })))
    ///     })
    ///     .acknowledge(Acknowledge::Confirmed { within: Duration::from_secs(10) })
    ///     .no_subscribers(NoSubscribers::Keep { keep_for: a_day, then: Expired::GiveUp });
    /// # let tickets = (0..3).map(Message::unacknowledged);
    /// let mut pipeline = Pipeline::of_messages("tickets")
    ///     .source(from_iter(tickets))
    ///     .processors(Processors::new(push).concurrency(200))
    ///     .start()?;
    /// # pipeline.join().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn push_messages<T, P, F>(&self, push: F) -> PushMessages<F>
    where
        P: IntoPayload + Send,
        F: Fn(&Message<T>) -> Result<Push<P>, Failure> + Send + Sync + 'static,
    {
        self.pushing(push)
    }

    fn pushing<F>(&self, push: F) -> PushMessages<F> {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let metrics = self.shared.table.metrics().pushes.clone();
        PushMessages {
            pubsub: self.clone(),
            push,
            acknowledge: Acknowledge::default(),
            no_subscribers: NoSubscribers::default(),
            elsewhere: ClientsElsewhere::default(),
            written_within: WRITTEN_WITHIN,
            look_again: Backoff::new(second, minute).jitter(Jitter::None),
            in_order: false,
            timed: false,
            waiting: WaitingPushes::new(WAITING, metrics.clone()),
            when_crowded: WhenCrowded::default(),
            clock: Clock::start(),
            from_future: Mutex::default(),
            lines: LineLimit::new(),
            metrics,
        }
    }

    /// The same with an async function, which asks a service or a database for what the push needs. It
    /// occupies its processor meanwhile. If it fails, its message has failed.
    ///
    /// Each message gets a clone of the closure, so capture what is cheap to clone.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline,
    ///     processing::{Failure, Message, Processors},
    ///     source::from_iter,
    /// };
    /// use pipeline_ws_sink::{Endpoint, pubsub::Push};
    /// use serde_json::json;
    ///
    /// /// A product that a user watches.
    /// struct Watched {
    ///     user: u64,
    ///     product: u64,
    /// }
    ///
    /// async fn price(product: u64) -> Result<f64, Failure> {
    ///     // Asks a service.
    ///     Ok(1.5)
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let endpoint = Endpoint::builder().build()?;
    /// let push = endpoint.pubsub().push_messages_async(async |watched: &mut Message<Watched>| {
    ///     let price = price(watched.product).await?;
    ///     let payload = json!({ "product": watched.product, "price": price });
    ///     Ok(Push::new(format!("user:{}", watched.user), "price", payload))
    /// });
    /// # let watched = (0..3).map(|user| Message::unacknowledged(Watched { user, product: 7 }));
    /// let mut pipeline = Pipeline::of_messages("prices")
    ///     .source(from_iter(watched))
    ///     .processors(Processors::new(push).concurrency(50))
    ///     .start()?;
    /// # pipeline.join().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn push_messages_async<T, P, F>(&self, push: F) -> PushMessages<AsyncPush<F, T, P>>
    where
        P: IntoPayload + Send,
        F: for<'a> AsyncMut<'a, Message<T>, Push<P>> + Clone + Send + Sync + 'static,
    {
        self.pushing(AsyncPush { push, types: PhantomData })
    }
}

/// An async function that turns a message into a push: see [`PubSub::push_messages_async`].
#[derive(Debug)]
pub struct AsyncPush<F, T, P> {
    push: F,
    types: PhantomData<fn(T) -> P>,
}

impl<F> PushMessages<F> {
    /// How far a push has to come. Default [`Acknowledge::Written`].
    #[must_use]
    pub fn acknowledge(self, acknowledge: Acknowledge) -> Self {
        Self { acknowledge, ..self }
    }

    /// What becomes of a message if no client has joined its topic. By default it is kept for an hour.
    /// A partition of Kafka waits for a message that is kept.
    ///
    /// A client that had joined and has ended before it has taken the push was not there either. With an
    /// [`Adapter`](crate::pubsub::Adapter), clients of other nodes count as there as long as
    /// [`PubSub::has_subscribers`] says so.
    ///
    /// A delivery that finds no client is not counted by the source
    /// ([`Failure::later`](pipeline_core::processing::Failure::later)), so the message is kept for all of
    /// its time, whatever `SourceOptions::max_deliveries` is; except where the server itself counts
    /// deliveries, as that of NATS does. A message without a time of its own is looked for as often as
    /// its source delivers one that fails.
    #[must_use]
    pub fn no_subscribers(self, no_subscribers: NoSubscribers) -> Self {
        Self { no_subscribers, ..self }
    }

    /// What becomes of a message whose topic has clients on other nodes, and none on this one. By default it
    /// is broadcast to them, which they may miss.
    ///
    /// To give it back, this node has to know where clients are:
    /// [`EndpointBuilder::sync_subscriptions`](crate::endpoint::EndpointBuilder::sync_subscriptions). A message
    /// is given back as long as it may be [kept](Self::no_subscribers).
    ///
    /// # Errors
    ///
    /// [`SubscriptionsNotSynced`] for [`ClientsElsewhere::GiveBack`] if the endpoint has an
    /// [`Adapter`](crate::pubsub::Adapter), and its nodes do not share their topics. Every topic would count as one with
    /// clients elsewhere, and each message as done at its first broadcast, whether a client is anywhere or not.
    pub fn clients_elsewhere(
        self,
        elsewhere: ClientsElsewhere,
    ) -> Result<Self, SubscriptionsNotSynced> {
        if elsewhere == ClientsElsewhere::GiveBack && !self.pubsub.knows_elsewhere() {
            return Err(SubscriptionsNotSynced {});
        }
        Ok(Self { elsewhere, ..self })
    }

    /// When a message that is kept is delivered again. Default from a second to a minute: the older the
    /// message, the longer, but not longer than this end of a pipeline has existed. A message that is from the
    /// future by more than a minute counts as one that was there before this end. It is
    /// [kept](Self::no_subscribers) as if it was added when this end has looked at it first, which a line of the log says; of
    /// more than 100,000 such messages, the source counts how often they are looked at, as of messages without a time.
    ///
    /// A join of its topic on the node that keeps it delivers it at once, if its source can end a delay
    /// (`Settle::wake`): those of SQLite, PostgreSQL and Redis can. An endpoint
    /// knows the last 50,000 messages that are kept, 1,000 of each topic and 8 MiB of topics' names; counted in
    /// `socket.kept_messages`. What is more, what another process keeps or has kept before a restart, and what another
    /// source has, waits for its delay after the user is back.
    #[must_use]
    pub fn look_again(self, backoff: Backoff) -> Self {
        Self { look_again: backoff, ..self }
    }

    /// How long the sockets may take for a push, with [`Acknowledge::Written`]. Then the message has
    /// failed. Default a minute.
    #[must_use]
    pub fn written_within(self, limit: Duration) -> Self {
        Self { written_within: limit, ..self }
    }

    /// Pushes to a topic one after the other: each waits until the outcome of the one before is known. It is
    /// for a source that keeps no order itself. By default they do not wait for each other.
    ///
    /// The wait for its turn does not count as time of a message's try
    /// ([`handle_within`](pipeline_core::processing::Processors::handle_within)). When the pipeline drains, messages whose
    /// turn has not come are given back to their source at once, which does not count as a delivery: a source that
    /// delivers nothing again loses them.
    ///
    /// A push keeps its turn between its [tries](pipeline_core::processing::Processors::tries), unless a try took too long,
    /// or another push to the topic waits for its turn in a processor, since there is no room. A message that
    /// is delivered again, also since its topic has more than its [share](Self::max_waiting), comes after those
    /// that were pushed meanwhile. With [`push_messages_async`](PubSub::push_messages_async), the order is that in which
    /// the function returns.
    #[must_use]
    pub fn in_order(self) -> Self {
        Self { in_order: true, ..self }
    }

    /// Enables timing of all pushes, from when their items were added to their source until they are written to the
    /// sockets, as [`Push::timed`] does for one. A push with times of its own keeps them.
    ///
    /// - `pipeline.push_delivered`: the time since [`enqueued_at`](pipeline_core::processing::Metadata::enqueued_at).
    /// - `pipeline.push_queued`: from then until this processor begins with the message. What was kept for a user
    ///   counts with the user's absence, and a message that is delivered again with all that came before.
    /// - `pipeline.push_worked`: from then until the broadcast: the function of
    ///   [`push_messages_async`](PubSub::push_messages_async), and the wait for its turn.
    /// - `pipeline.push_written`: from there to the socket.
    ///
    /// The first two are measured by the wall clock, which another machine may have set differently. A message from the
    /// future counts as one that was added now, and so does one without a time. If it has a trace, so has the push.
    ///
    /// ```
    /// # use pipeline_core::processing::Message;
    /// # use pipeline_ws_sink::{Endpoint, pubsub::Push};
    /// # use serde_json::json;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let endpoint = Endpoint::builder().build()?;
    /// let push = endpoint
    ///     .pubsub()
    ///     .push_messages(|ticket: &Message<u64>| {
    ///         Ok(Push::new(format!("user:{}", **ticket), "ticket", json!({ "seat": 12 })))
    ///     })
    ///     .timed();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn timed(self) -> Self {
        Self { timed: true, ..self }
    }

    /// The times of a push, if all are timed: its processor begins now.
    fn times<T>(&self, message: &Message<T>) -> Option<Timeline> {
        if !self.timed {
            return None;
        }
        let metadata = message.metadata();
        let waited = metadata.enqueued_at.map(elapsed).unwrap_or_default();
        let fetched = Timed::fetched((), waited);
        let fetched = match metadata.trace {
            Some(trace) => fetched.with_trace(trace),
            None => fetched,
        };
        Some(fetched.timeline().with_started_at(Instant::now()))
    }

    /// How many pushes may wait at the same time for clients to take or to confirm them, or for their turn, and
    /// how many bytes they may have together. Default 8,000 and 64 MiB. One topic may have an eighth of the room that
    /// is free, or two pushes. What becomes of more, [`when_crowded`](Self::when_crowded) says: by default, what
    /// is more of a topic is given back to its source.
    ///
    /// A program that raises it raises two other limits, of 10,000 each: the source's `max_unsettled`, as a source with as
    /// many messages in work delivers no other, and, with [`Acknowledge::Confirmed`],
    /// [`max_confirmations`](crate::endpoint::EndpointBuilder::max_confirmations), which all pipelines of an
    /// endpoint share.
    #[must_use]
    pub fn max_waiting(self, pushes: usize, bytes: usize) -> Self {
        let waiting = WaitingPushes::new(Limits { pushes, bytes }, self.metrics.clone());
        Self { waiting, ..self }
    }

    /// What becomes of a message if as many pushes wait as [may](Self::max_waiting). By default it is given back to its
    /// source if its topic has its share of the room, and keeps its place if there is no room at all.
    #[must_use]
    pub fn when_crowded(self, when_crowded: WhenCrowded) -> Self {
        Self { when_crowded, ..self }
    }

    /// Sends a push. If it has to wait, it leaves its work place, as far as there is room for it.
    ///
    /// The future is boxed, because the callers' futures, each of which has room for the one within twice, would
    /// be dozens of times as large, for each push that waits.
    fn send_apart<'a, T, P>(
        &'a self,
        push: Push<P>,
        message: &'a mut Message<T>,
    ) -> BoxFuture<'a, Result<Delivered, Failure>>
    where
        F: Sync,
        T: Send + Sync,
        P: IntoPayload + Send + 'a,
    {
        Box::pin(self.send_in_turn(push, message))
    }

    async fn send_in_turn<T, P>(
        &self,
        push: Push<P>,
        message: &mut Message<T>,
    ) -> Result<Delivered, Failure>
    where
        P: IntoPayload + Send,
    {
        let Push { topic, event, payload, timeline, here_only } = push;
        if self.elsewhere == ClientsElsewhere::GiveBack
            && !here_only
            && self.pubsub.has_clients_elsewhere_only(&topic)
        {
            return self.on_other_nodes(&topic, message);
        }
        let payload = payload.into_payload().map_err(|error| Failure::from(error).give_up())?;
        let bytes = [topic.len(), event.len(), payload.bytes().len()].iter().sum();
        // An earlier try has kept it.
        let kept = message.take_held::<BegunPush>();
        let (in_order, when) = (self.in_order, self.when_crowded);
        let Ok(mut begun) = self.waiting.begin_again(kept, &topic, bytes, in_order, when) else {
            return Err(self.given_back(&topic, Stuck::Crowded, message));
        };
        let place = message.place();
        let confirmation = place.without_limit(self.ready(&topic, &mut begun, message)).await?;
        let push = Push { topic, event, payload, timeline, here_only };
        let sent = {
            let mut sending = pin!(self.send(push, confirmation, message));
            match poll!(&mut sending) {
                // Most are done at once.
                Poll::Ready(sent) => sent,
                Poll::Pending => {
                    if begun.wait() {
                        place.leave();
                    }
                    sending.await
                }
            }
        };
        if let Err(failure) = &sent
            && failure.redelivery() == Redelivery::Usual
            && message.is_tried_again()
            && begun.rest()
        {
            message.hold(begun);
        }
        sent
    }

    /// Waits until a push may be sent: for its turn, and for its confirmation.
    async fn ready<T>(
        &self,
        topic: &str,
        begun: &mut BegunPush,
        message: &Message<T>,
    ) -> Result<Option<(Confirmation, Duration)>, Failure> {
        if !begun.has_turn() {
            let place = message.place();
            if begun.has_room() {
                place.leave();
            }
            tokio::select! {
                biased;
                // Otherwise a drain would take as long as all of them, one after the other.
                () = place.draining() => {
                    self.metrics.given_back.increment(1);
                    return Err(Failure::from(Stuck::Turn).later(Duration::ZERO));
                }
                () = begun.turn() => {}
            }
            if !message.is_current() {
                return Err(self.given_back(topic, Stuck::Old, message));
            }
        }
        let Acknowledge::Confirmed { within } = self.acknowledge else { return Ok(None) };
        if let Some(confirmation) = self.pubsub.confirmation_if_free(topic) {
            return Ok(Some((confirmation, within)));
        }
        // It waits for one where it is, or is given back.
        if self.when_crowded == WhenCrowded::GiveBack && !begun.has_room() {
            return Err(self.given_back(topic, Stuck::Confirmations, message));
        }
        begun.keep_place();
        let place = message.place();
        let confirmation = tokio::select! {
            biased;
            // It has not begun either.
            () = place.draining() => {
                self.metrics.given_back.increment(1);
                return Err(Failure::from(Stuck::Confirmations).later(Duration::ZERO));
            }
            confirmation = self.pubsub.confirmation_once_free(topic) => confirmation?,
        };
        if !message.is_current() {
            return Err(self.given_back(topic, Stuck::Old, message));
        }
        Ok(Some((confirmation, within)))
    }

    /// Sends a push and waits until it has come far enough.
    async fn send<T>(
        &self,
        push: Push<Payload>,
        confirmation: Option<(Confirmation, Duration)>,
        message: &mut Message<T>,
    ) -> Result<Delivered, Failure> {
        let Push { topic, event, payload, timeline, here_only } = push;
        self.pubsub.check_served(&topic);
        let to = (&*topic, &*event, here_only);
        let prepared = |payload| encoded(to, payload, timeline);
        if let Some((confirmation, within)) = confirmation {
            let payload = WithAck { payload, id: confirmation.id() };
            let broadcast = encoded(to, payload, timeline)?;
            let outcome = self.deliver(broadcast).await?;
            return match confirmed(confirmation, outcome, within).await {
                Ok(delivered) => {
                    self.metrics.confirmed.increment(1);
                    Ok(delivered)
                }
                Err(Unconfirmed::Absent(delivered)) => self.absent(&topic, delivered, message),
                Err(Unconfirmed::Not(why)) => {
                    self.metrics.unconfirmed.increment(1);
                    Err(why.into())
                }
            };
        }
        match self.acknowledge {
            Acknowledge::TakenOver => {
                if matches!(self.no_subscribers, NoSubscribers::Keep { .. })
                    && !self.may_have_clients(&topic, here_only)
                {
                    return self.absent(&topic, Delivered::default(), message);
                }
                // What cannot be encoded is not taken over, but given up.
                let broadcast = prepared(payload)?;
                message.acknowledge_now();
                let outcome = self.deliver(broadcast).await?;
                self.metrics.taken_over.increment(1);
                Ok(outcome.so_far())
            }
            Acknowledge::Handled => {
                let outcome = self.deliver(prepared(payload)?).await?;
                let delivered = outcome.so_far();
                if delivered.is_unheard() {
                    return self.absent(&topic, delivered, message);
                }
                self.metrics.handled.increment(1);
                Ok(delivered)
            }
            // A push that is to be confirmed has its confirmation.
            Acknowledge::Written | Acknowledge::Confirmed { .. } => {
                let outcome = self.deliver(prepared(payload)?).await?;
                let delivered = outcome.within(self.written_within).await;
                if delivered.is_unheard() {
                    return self.absent(&topic, delivered, message);
                }
                if delivered.pending > 0 || delivered.dropped > 0 {
                    self.metrics.stuck.increment(1);
                    let why = if delivered.dropped > 0 { Stuck::Dropped } else { Stuck::Slow };
                    return Err(why.into());
                }
                self.metrics.written.increment(1);
                Ok(delivered)
            }
        }
    }

    /// Whether a push may find a client, on this node or, if it is for all, on another one.
    fn may_have_clients(&self, topic: &str, here_only: bool) -> bool {
        if here_only {
            self.pubsub.has_clients_here(topic)
        } else {
            self.pubsub.may_have_clients(topic)
        }
    }

    async fn deliver(&self, broadcast: PreparedBroadcast) -> Result<PushOutcome, Failure> {
        Ok(self.pubsub.deliver(broadcast).await?)
    }

    /// Why a message is not pushed now.
    fn given_back<T>(&self, topic: &str, why: Stuck, message: &Message<T>) -> Failure {
        self.metrics.given_back.increment(1);
        Failure::from(why).later(delay_at(self.look_again, self.looked_for(topic, message)))
    }

    /// For how long a message was looked at by this end of a pipeline.
    fn looked_for<T>(&self, topic: &str, message: &Message<T>) -> Duration {
        let here = self.clock.started().elapsed();
        let Some(enqueued_at) = message.metadata().enqueued_at else { return Duration::ZERO };
        // It may be as old as this end.
        if self.clock.until(enqueued_at) > AHEAD {
            return here;
        }
        self.past_age(topic, message, enqueued_at).min(here)
    }

    /// What becomes of a message whose clients are on other nodes.
    fn on_other_nodes<T>(&self, topic: &str, message: &Message<T>) -> Result<Delivered, Failure> {
        if let NoSubscribers::Keep { keep_for, .. } = self.no_subscribers
            && self.age(topic, message, keep_for).is_some_and(|age| age >= keep_for)
        {
            return self.absent(topic, Delivered::default(), message);
        }
        self.metrics.elsewhere.increment(1);
        let looked_for = self.looked_for(topic, message);
        Err(Failure::from(Stuck::Elsewhere).later(delay_at(hand_over(), looked_for)))
    }

    /// The age of a message that is not from the future. One that was from it is at least as old as it is known to this end.
    fn past_age<T>(&self, topic: &str, message: &Message<T>, enqueued_at: SystemTime) -> Duration {
        let identity = (topic, &message.metadata().id, enqueued_at);
        let known = self.from_future.lock().known(identity, Instant::now());
        self.clock.since(enqueued_at).max(known.unwrap_or_default())
    }

    /// The age of a message that is kept for so long. One from the future is as old as it is known to this end, also when its
    /// time has come.
    fn age<T>(&self, topic: &str, message: &Message<T>, keep_for: Duration) -> Option<Duration> {
        let metadata = message.metadata();
        let enqueued_at = metadata.enqueued_at?;
        let ahead = self.clock.until(enqueued_at);
        if ahead <= AHEAD {
            return Some(self.past_age(topic, message, enqueued_at));
        }
        // It is forgotten when its last look is over.
        let forget_after = keep_for.saturating_mul(2);
        let identity = (topic, &metadata.id, enqueued_at);
        let age = self.from_future.lock().age(identity, Instant::now(), forget_after);
        if age.is_none_or(|age| age.is_zero()) {
            limited!(
                self.lines,
                WARN,
                topic = shown(topic),
                ?ahead,
                "a message is from the future by its enqueued_at, so it is kept as long as one that was added now"
            );
        }
        age
    }

    /// What becomes of a message whose push has reached no client.
    fn absent<T>(
        &self,
        topic: &str,
        delivered: Delivered,
        message: &Message<T>,
    ) -> Result<Delivered, Failure> {
        let NoSubscribers::Keep { keep_for, then } = self.no_subscribers else {
            self.metrics.absent.increment(1);
            return Ok(delivered);
        };
        let added = self.age(topic, message, keep_for);
        // A message without a time is as young as it can be.
        let left = keep_for.saturating_sub(added.unwrap_or_default());
        if !left.is_zero() {
            self.metrics.kept.increment(1);
            // Its last delivery is at its deadline.
            let absent = Failure::from(Stuck::Absent);
            return Err(match added {
                Some(_) => {
                    // It was not looked for before this worker was there, and its user may come back soon.
                    let looked_for = self.looked_for(topic, message);
                    let delay = delay_at(self.look_again, looked_for).min(left);
                    let table = &self.pubsub.shared.table;
                    let wake = table.keep(topic, delay);
                    // A client may have joined before that, and since the push. One that cannot get it has not.
                    let is_back = delivered.unsupported == 0 && table.has_clients(topic);
                    if is_back && delivered.closed == 0 {
                        wake.wake();
                    }
                    // Or it is one that has just ended.
                    let soon = is_back && delivered.closed > 0;
                    let soon = soon.then(|| delay_at(hand_over(), looked_for));
                    absent.later(soon.map_or(delay, |soon| soon.min(delay))).woken_by(&wake)
                }
                // It might never be too old, so its source counts how often it is looked for.
                None => {
                    let deliveries = message.metadata().deliveries.max(1);
                    absent.retry_after(self.look_again.nth_delay(deliveries, 0.5))
                }
            });
        }
        self.metrics.expired.increment(1);
        match then {
            Expired::Done => Ok(delivered),
            Expired::GiveUp => Err(Failure::from(Stuck::Absent).give_up()),
        }
    }
}

/// How many delays of a backoff are added up. One that doubles is far beyond its maximum by then.
const LOOKS: u32 = 100;

/// The delay of the next look at a message that was looked for during this time: the first that ends later.
fn delay_at(backoff: Backoff, looked_for: Duration) -> Duration {
    let (mut ends, mut delay) = (Duration::ZERO, Duration::ZERO);
    for nth in 1..=LOOKS {
        delay = backoff.nth_delay(nth, 0.5);
        ends = ends.saturating_add(delay);
        if ends > looked_for {
            break;
        }
    }
    delay
}

/// Encodes a push: its topic, its event, and whether it is for this node only. Another try of one that cannot be
/// encoded would not help.
fn encoded(
    (topic, event, here_only): (&str, &str, bool),
    payload: impl IntoPayload,
    timeline: Option<Timeline>,
) -> Result<PreparedBroadcast, Failure> {
    let broadcast = PreparedBroadcast::new(topic, event, payload)
        .map_err(|error| Failure::from(error).give_up())?;
    let broadcast = if here_only { broadcast.here_only() } else { broadcast };
    Ok(match timeline {
        Some(timeline) => broadcast.timed(timeline),
        None => broadcast,
    })
}

/// Why a push was not confirmed.
enum Unconfirmed {
    /// No client has got it.
    Absent(Delivered),
    Not(NotConfirmed),
}

/// Waits for a client to confirm, or until it is known that none has got the push.
async fn confirmed(
    confirmation: Confirmation,
    mut outcome: PushOutcome,
    within: Duration,
) -> Result<Delivered, Unconfirmed> {
    let mut confirmed = pin!(confirmation.within(within));
    tokio::select! {
        biased;
        confirmed = &mut confirmed => {
            return confirmed.map(|()| outcome.so_far()).map_err(Unconfirmed::Not);
        }
        delivered = &mut outcome => {
            if delivered.is_unheard() {
                return Err(Unconfirmed::Absent(delivered));
            }
        }
    }
    confirmed.await.map(|()| outcome.so_far()).map_err(Unconfirmed::Not)
}

impl<T, P, F> Processor<T> for PushMessages<F>
where
    T: Send + Sync + 'static,
    P: IntoPayload + Send,
    F: Fn(&Message<T>) -> Result<Push<P>, Failure> + Send + Sync + 'static,
{
    type Output = Delivered;

    /// A client that is slow delays no message but its own while a processor is free.
    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<T>) -> Result<Delivered, Failure> {
        let times = self.times(message);
        let push = (self.push)(message)?;
        self.send_apart(push.or_timed(times), message).await
    }
}

impl<T, P, F> Processor<T> for PushMessages<AsyncPush<F, T, P>>
where
    T: Send + Sync + 'static,
    P: IntoPayload + Send + 'static,
    F: for<'a> AsyncMut<'a, Message<T>, Push<P>> + Clone + Send + Sync + 'static,
{
    type Output = Delivered;

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<T>) -> Result<Delivered, Failure> {
        let times = self.times(message);
        let push = self.push.push.clone()(message).await?;
        self.send_apart(push.or_timed(times), message).await
    }
}

impl<F> fmt::Debug for PushMessages<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushMessages")
            .field("acknowledge", &self.acknowledge)
            .field("no_subscribers", &self.no_subscribers)
            .finish_non_exhaustive()
    }
}

/// A payload with the id that its client is to send back.
struct WithAck<'a, P> {
    payload: P,
    id: &'a str,
}

impl<P: IntoPayload> IntoPayload for WithAck<'_, P> {
    /// Appends the object with another member.
    fn write(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        if self.payload.is_binary() {
            return Err(PayloadError::NotAnObject);
        }
        let start = out.len();
        self.payload.write(out)?;
        let end = out.iter().rposition(|byte| !byte.is_ascii_whitespace());
        let first = out[start..].iter().position(|byte| !byte.is_ascii_whitespace());
        let (Some(end), Some(first)) = (end, first) else { return Err(PayloadError::NotAnObject) };
        let first = start.saturating_add(first);
        if out[first] != b'{' {
            return Err(PayloadError::NotAnObject);
        }
        let is_empty = out[first..end][1..].iter().all(u8::is_ascii_whitespace);
        // Last, so that it replaces a member of the same name.
        out.truncate(end);
        if !is_empty {
            out.push(b',');
        }
        out.extend_from_slice(b"\"ack\":\"");
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(b"\"}");
        Ok(())
    }
}
