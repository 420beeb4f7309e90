//! The subscribers of each topic.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use parking_lot::RwLock;
use pipeline_core::{Deadline, processing::Wake};
use slab::Slab;
use tokio::time::Instant;

use super::{
    broadcast::Broadcast,
    burst::{self, BurstDetector},
    by_route::ByRoute,
    confirm::Confirmations,
    kept_topics::KeptTopics,
    subscription::BroadcastQueue,
    synced_topics::Changed,
};
use crate::{
    channel::{ChannelMessage, Intercepted, Mailbox, Room},
    outbox::{Outbox, PendingMetrics, WriteMode},
    protocol::{message::Encoded, version::Version},
    telemetry::{RouteMetrics, SocketMetrics, log_line, shown},
};

/// The number of shards of the topic table, which reduces lock contention.
const SHARDS: usize = 64;

/// The subscribers of all topics.
///
/// A shard is locked only to look up a topic. While a topic dispatches a broadcast, only joins and
/// leaves of that topic wait for it.
pub(crate) struct SubscriberTable {
    shards: [Shard; SHARDS],
    /// The reference moment of all burst detection.
    epoch: Instant,
    /// Whether a skipped client of version 1 has been logged.
    passed_over: AtomicBool,
    metrics: Arc<SocketMetrics>,
    /// What clients are to confirm.
    confirmations: Arc<Confirmations>,
    /// The topics for which messages are kept.
    kept: KeptTopics,
    /// Where it is marked that a topic has got its first subscriber or lost its last: for the nodes, if
    /// they share their topics, and for an adapter that follows them.
    changed: Vec<Arc<Changed>>,
}

/// A shard of the topics.
type Shard = RwLock<HashMap<Arc<str>, Arc<RwLock<Listeners>>, RandomState>>;

/// The subscribers of one topic.
#[derive(Default)]
struct Listeners {
    subscribers: Slab<(SubscriberId, Subscriber)>,
    by_route: ByRoute<RouteMetrics>,
    bursts: BurstDetector,
    /// The last subscriber has left, and the topic is about to be removed. New subscribers have to
    /// look it up again.
    closed: bool,
}

/// A subscriber of a topic.
pub(crate) enum Subscriber {
    /// A channel that has joined the topic.
    Joined(JoinedChannel),
    /// A channel of another topic.
    Channel(Arc<Mailbox>),
    Task(Arc<BroadcastQueue>),
}

/// A joined channel, as seen by broadcasts.
pub(crate) struct JoinedChannel {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) version: Version,
    /// Broadcasts of these events go to the channel instead of the socket.
    pub(crate) intercept: &'static [&'static str],
    pub(crate) mailbox: Arc<Mailbox>,
    /// The metrics of its route.
    pub(crate) route: Arc<RouteMetrics>,
}

impl Subscriber {
    /// The route of a channel that has joined.
    fn route(&self) -> Option<&Arc<RouteMetrics>> {
        match self {
            Self::Joined(joined) => Some(&joined.route),
            Self::Channel(_) | Self::Task(_) => None,
        }
    }
}

impl JoinedChannel {
    /// Whether the channel intercepts this broadcast.
    fn intercepts(&self, broadcast: &Encoded) -> bool {
        self.intercept.contains(&broadcast.event())
    }

    /// Passes a broadcast to the channel that intercepts it. With `slow`, a channel without room
    /// whose client senders wait for is put there.
    fn offer_intercepted(&self, broadcast: &Encoded, slow: Option<&mut Vec<SlowReceiver>>) {
        let intercepted = Intercepted::new(broadcast, &self.outbox);
        let waits = self.outbox.wait_limit().is_some();
        match slow {
            Some(slow) if waits => {
                if self.mailbox.offer(intercepted).is_err() {
                    let (mailbox, outbox) = (self.mailbox.clone(), self.outbox.clone());
                    slow.push(SlowReceiver::Channel(mailbox, outbox));
                }
            }
            // Where senders wait for the client, the usual room is reserved for them.
            None if waits => self.mailbox.intercepted(intercepted, Room::Twice),
            _ => self.mailbox.intercepted(intercepted, Room::Usual),
        }
    }
}

/// A subscriber without room that the sender has to wait for.
pub(super) enum SlowReceiver {
    Socket(Arc<Outbox>, Version),
    /// A channel that intercepts, and its own slow client.
    Channel(Arc<Mailbox>, Arc<Outbox>),
}

/// A subscription, until it is dropped.
pub(crate) struct SubscriptionGuard {
    table: Arc<SubscriberTable>,
    topic: Arc<str>,
    listeners: Arc<RwLock<Listeners>>,
    id: SubscriberId,
    key: usize,
    /// A key is reused once it is free, so it must be freed only once.
    cancelled: bool,
}

/// The id of a subscriber: a channel, or a task that has subscribed. Ids are unique.
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::ChannelContext, pubsub::BroadcastError};
/// use serde_json::json;
///
/// fn announce_to_others<C: Channel>(cx: &ChannelContext<C>) -> Result<(), BroadcastError> {
///     cx.pubsub().broadcast_from(cx.id(), cx.topic(), "moved", json!({ "x": 1 }))
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriberId(u64);

impl SubscriberId {
    /// A new id, unique across all endpoints.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl SubscriberTable {
    pub(super) fn new(
        metrics: Arc<SocketMetrics>,
        changed: Vec<Arc<Changed>>,
        max_confirmations: usize,
    ) -> Self {
        Self {
            confirmations: Arc::new(Confirmations::new(max_confirmations, metrics.clone())),
            kept: KeptTopics::new(metrics.kept.clone()),
            metrics,
            changed,
            shards: std::array::from_fn(|_| RwLock::default()),
            epoch: Instant::now(),
            passed_over: AtomicBool::new(false),
        }
    }

    /// Subscribes to a topic. Broadcasts that begin after the return are not missed.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        topic: &Arc<str>,
        id: SubscriberId,
        who: Subscriber,
    ) -> SubscriptionGuard {
        self.enter(topic, id, who, || {})
    }

    /// Subscribes a channel to its own topic, and answers its client: the answer is queued before
    /// each broadcast that the client receives by this subscription.
    ///
    /// The topic is locked meanwhile, so `answer` has to be quick, and to call no code of the
    /// application.
    pub(crate) fn join(
        self: &Arc<Self>,
        topic: &Arc<str>,
        id: SubscriberId,
        joined: JoinedChannel,
        answer: impl FnOnce(),
    ) -> SubscriptionGuard {
        self.enter(topic, id, Subscriber::Joined(joined), answer)
    }

    /// Subscribes to a topic. Calls `first` before any broadcast is received.
    fn enter(
        self: &Arc<Self>,
        topic: &Arc<str>,
        id: SubscriberId,
        who: Subscriber,
        first: impl FnOnce(),
    ) -> SubscriptionGuard {
        let route = who.route().cloned();
        loop {
            let listeners = self.shard(topic).write().entry(topic.clone()).or_default().clone();
            let mut open = listeners.write();
            if open.closed {
                drop(open);
                self.remove(topic, &listeners);
                continue;
            }
            let is_first = route.as_ref().is_some_and(|route| open.by_route.enter(route));
            let is_new = open.subscribers.is_empty();
            let key = open.subscribers.insert((id, who));
            first();
            drop(open);
            let (table, topic) = (self.clone(), topic.clone());
            let guard = SubscriptionGuard { table, topic, listeners, id, key, cancelled: false };
            if is_new {
                self.mark(&guard.topic);
            }
            if let Some(route) = route {
                route.joined(is_first);
                self.kept.joined(&guard.topic);
            }
            return guard;
        }
    }

    /// Dispatches a broadcast to every subscriber of its topic except one.
    ///
    /// It never waits for a socket: frames that a socket cannot take now wait in its outbox. With
    /// `slow`, subscribers without room that the sender has to wait for are put there instead.
    ///
    /// The topic is locked meanwhile, and no code of the application runs. Metrics are recorded
    /// after that: a recorder may broadcast on the same topic while a client wants to join it.
    pub(super) fn dispatch(
        &self,
        broadcast: &Encoded,
        except: Option<SubscriberId>,
        mut slow: Option<&mut Vec<SlowReceiver>>,
    ) {
        self.metrics.broadcasts.increment(1);
        let topic = broadcast.topic();
        let Some(listeners) = self.shard(topic).read().get(topic).cloned() else { return };
        let open = listeners.read();
        let now = Instant::now();
        let since = now.saturating_duration_since(self.epoch);
        let mode = open.bursts.mode(since, open.subscribers.len(), burst::is_one_of_many(now));
        let (mut unrecorded, mut passed_over) = (PendingMetrics::default(), 0usize);
        let mut addressed = 0usize;
        for (_, (id, subscriber)) in &open.subscribers {
            if except == Some(*id) {
                continue;
            }
            match subscriber {
                Subscriber::Joined(joined) if joined.intercepts(broadcast) => {
                    addressed += 1;
                    joined.offer_intercepted(broadcast, slow.as_deref_mut());
                }
                Subscriber::Joined(joined) => match (broadcast.frame(joined.version), &mut slow) {
                    (None, _) => passed_over += 1,
                    (Some(frame), None) => {
                        addressed += 1;
                        joined.outbox.send_shared(frame, mode, &mut unrecorded);
                    }
                    (Some(frame), Some(slow)) => {
                        addressed += 1;
                        if joined.outbox.offer_shared(frame, mode, &mut unrecorded).is_err() {
                            slow.push(SlowReceiver::Socket(joined.outbox.clone(), joined.version));
                        }
                    }
                },
                Subscriber::Channel(mailbox) => mailbox.foreign(broadcast.into()),
                Subscriber::Task(inbox) => inbox.put(Broadcast::from(broadcast)),
            }
        }
        let now = Instant::now();
        open.bursts.dispatched(now.saturating_duration_since(self.epoch));
        burst::note_dispatch(now);
        drop(open);
        if let Some(push) = broadcast.push() {
            push.addressed(addressed);
            push.unsupported(passed_over);
        }
        unrecorded.record(&self.metrics);
        if passed_over > 0 {
            self.pass_over(broadcast);
        }
    }

    /// Waits until a subscriber has room, and delivers the broadcast. Closes the socket if it has
    /// had no room since this moment for as long as its policy allows, or if it has been full for
    /// too long in all. If the process was suspended meanwhile, all clients of the broadcast have
    /// one [recovery](Outbox::or_close_slow).
    pub(super) async fn wait_for(
        &self,
        receiver: &SlowReceiver,
        broadcast: &Encoded,
        waiting_since: Instant,
        recovery: &mut Option<Deadline>,
    ) {
        let (SlowReceiver::Socket(outbox, _) | SlowReceiver::Channel(_, outbox)) = receiver;
        let limit = outbox.wait_limit().unwrap_or_default();
        let deadline = Deadline::after(waiting_since, limit).min(outbox.full_until());
        let waiting = async {
            match receiver {
                SlowReceiver::Socket(outbox, version) => {
                    let Some(frame) = broadcast.frame(*version) else { return };
                    while outbox.offer_and_record(frame, WriteMode::Deferred).is_err() {
                        outbox.room().await;
                    }
                }
                SlowReceiver::Channel(mailbox, outbox) => {
                    let message = ChannelMessage::Intercepted(Intercepted::new(broadcast, outbox));
                    // A channel that has ended needs no delivery.
                    let _ = mailbox.send(message).await;
                }
            }
        };
        let once_more = || match receiver {
            SlowReceiver::Socket(outbox, version) => {
                let frame = broadcast.frame(*version);
                frame
                    .is_none_or(|frame| outbox.offer_and_record(frame, WriteMode::Deferred).is_ok())
            }
            SlowReceiver::Channel(mailbox, outbox) => {
                mailbox.offer(Intercepted::new(broadcast, outbox)).is_ok()
            }
        };
        outbox.or_close_slow(deadline, recovery, waiting, once_more).await;
    }

    /// Delivers a broadcast without waiting, into the reserve beyond the limits of a socket's
    /// outbox, or of the mailbox of a channel that intercepts.
    pub(super) fn force(&self, receiver: &SlowReceiver, broadcast: &Encoded) {
        match receiver {
            SlowReceiver::Socket(outbox, version) => {
                if let Some(frame) = broadcast.frame(*version) {
                    outbox.send_and_record(frame, WriteMode::Deferred);
                }
            }
            SlowReceiver::Channel(mailbox, outbox) => {
                mailbox.intercepted(Intercepted::new(broadcast, outbox), Room::Twice);
            }
        }
    }

    /// Whether this topic has subscribers.
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.shard(topic).read().contains_key(topic)
    }

    /// Whether a channel has joined this topic.
    pub(super) fn has_clients(&self, topic: &str) -> bool {
        let listeners = self.shard(topic).read().get(topic).cloned();
        listeners.is_some_and(|listeners| !listeners.read().by_route.is_empty())
    }

    /// The number of subscribers of this topic.
    pub(crate) fn listeners(&self, topic: &str) -> usize {
        let listeners = self.shard(topic).read().get(topic).cloned();
        listeners.map_or(0, |listeners| listeners.read().subscribers.len())
    }

    pub(super) fn metrics(&self) -> &SocketMetrics {
        &self.metrics
    }

    /// What clients are to confirm.
    pub(crate) fn confirmations(&self) -> &Arc<Confirmations> {
        &self.confirmations
    }

    /// Notes that a message for a topic is kept for this time. A join of the topic gives the signal.
    pub(super) fn keep(&self, topic: &str, delay: Duration) -> Wake {
        self.kept.keep(topic, delay)
    }

    /// The number of topics with subscribers.
    pub(crate) fn topics(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Skips a client whose protocol version cannot express a broadcast. Logged once.
    fn pass_over(&self, broadcast: &Encoded) {
        if !self.passed_over.swap(true, Ordering::Relaxed) {
            let (topic, event) = (shown(broadcast.topic()), shown(broadcast.event()));
            log_line!(
                WARN,
                topic,
                event,
                "skipped clients of protocol version 1: binary payload unsupported"
            );
        }
    }

    /// Marks a topic that has got its first subscriber or lost its last.
    fn mark(&self, topic: &Arc<str>) {
        self.changed.iter().for_each(|changed| changed.mark(topic));
    }

    /// Removes a topic from the table, unless it has been created again already.
    fn remove(&self, topic: &str, listeners: &Arc<RwLock<Listeners>>) {
        let mut shard = self.shard(topic).write();
        if shard.get(topic).is_some_and(|current| Arc::ptr_eq(current, listeners)) {
            shard.remove(topic);
        }
    }

    fn shard(&self, topic: &str) -> &Shard {
        // The hash only selects a shard, so any spread will do; topics differ at their end.
        let mix = |hash: usize, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte));
        &self.shards[topic.bytes().rev().take(8).fold(topic.len(), mix) % SHARDS]
    }
}

impl SubscriptionGuard {
    pub(crate) fn id(&self) -> SubscriberId {
        self.id
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Unsubscribes. Broadcasts that begin after the return are not received.
    pub(crate) fn cancel(&mut self) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        let mut listeners = self.listeners.write();
        let gone = listeners.subscribers.try_remove(self.key);
        let route = gone.as_ref().and_then(|(_, who)| who.route()).cloned();
        let was_last = route.as_ref().is_some_and(|route| listeners.by_route.leave(route));
        listeners.closed = listeners.subscribers.is_empty();
        let closed = listeners.closed;
        let was_last_channel = route.is_some() && listeners.by_route.is_empty();
        drop(listeners);
        if was_last_channel {
            self.table.confirmations.end(&self.topic);
        }
        if closed {
            self.table.remove(&self.topic, &self.listeners);
            self.table.mark(&self.topic);
        }
        if let Some(route) = route {
            route.left(was_last);
        }
        // Dropped after the locks are released: it may be the last owner of a whole socket.
        drop(gone);
    }
}

impl Drop for SubscriptionGuard {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
impl SubscriberTable {
    /// A table that records nothing.
    pub(super) fn silent() -> Self {
        Self::new(
            Arc::new(SocketMetrics::register(&pipeline_core::telemetry::Telemetry::global())),
            Vec::new(),
            0,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, future::poll_fn, thread, time::Duration};

    use pipeline_core::telemetry::Telemetry;
    use pipeline_test_support::Log;
    use serde_json::json;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{
        outbox::{OutboxLimits, WhenFull, Writer},
        protocol::frame::Frame,
        telemetry::{LockProbe, push_times::broadcast_now},
    };

    /// A subscriber that intercepts these events, with the mailbox that receives them.
    fn subscriber(intercept: &'static [&'static str]) -> (Subscriber, Arc<Mailbox>) {
        let metrics = Arc::new(SocketMetrics::register(&Telemetry::global()));
        let limits = OutboxLimits { frames: 1, bytes: 1 };
        let writer = Writer::Task(Box::pin(tokio::io::sink()));
        joined(Outbox::new(writer, limits, metrics), intercept)
    }

    /// A subscriber with this outbox.
    fn joined(outbox: Outbox, intercept: &'static [&'static str]) -> (Subscriber, Arc<Mailbox>) {
        let (outbox, mailbox) = (Arc::new(outbox), Arc::new(Mailbox::default()));
        let version = Version::V2;
        let route =
            Arc::new(RouteMetrics::register(&Telemetry::global(), "Silent", &Arc::default()));
        let joined = JoinedChannel { outbox, version, intercept, mailbox: mailbox.clone(), route };
        (Subscriber::Joined(joined), mailbox)
    }

    #[tokio::test]
    async fn a_topic_without_subscribers_takes_no_memory() {
        let table = Arc::new(SubscriberTable::silent());
        let topic: Arc<str> = "t".into();
        let first = table.subscribe(&topic, SubscriberId::new(), subscriber(&[]).0);
        let mut second = table.subscribe(&topic, SubscriberId::new(), subscriber(&[]).0);
        assert_eq!(table.topics(), 1);
        second.cancel();
        assert_eq!(table.topics(), 1);
        drop(first);
        assert_eq!(table.topics(), 0);
        // The freed key may belong to another subscriber by now.
        let third = table.subscribe(&topic, SubscriberId::new(), subscriber(&[]).0);
        drop(second);
        assert_eq!(table.topics(), 1);
        drop(third);
        assert_eq!(table.topics(), 0);
    }

    #[tokio::test]
    async fn the_answer_to_a_join_is_before_a_broadcast_that_begins_meanwhile() {
        let table = Arc::new(SubscriberTable::silent());
        let topic: Arc<str> = "t".into();
        let metrics = Arc::new(SocketMetrics::register(&Telemetry::global()));
        let limits = OutboxLimits { frames: 8, bytes: 1000 };
        let outbox = Outbox::new(Writer::Fetched, limits, metrics.clone());
        let (Subscriber::Joined(channel), _) = joined(outbox, &[]) else { unreachable!() };
        let outbox = channel.outbox.clone();
        let news = Encoded::new(&topic, "news", json!({})).unwrap();
        let (begins, begun) = std::sync::mpsc::channel();
        let (ends, ended) = std::sync::mpsc::channel();
        let answer = outbox.ready(&Frame::pong(b"answer"));
        let mut unrecorded = PendingMetrics::default();
        thread::scope(|scope| {
            let (table, news) = (&table, &news);
            let _guard = table.join(&topic, SubscriberId::new(), channel, || {
                scope.spawn(move || {
                    begins.send(()).unwrap();
                    table.dispatch(news, None, None);
                    ends.send(()).unwrap();
                });
                begun.recv().unwrap();
                // A broadcast that does not wait for the answer ends soon, and comes before it.
                let _ = ended.recv_timeout(Duration::from_millis(200));
                outbox.queue(&answer, &mut unrecorded);
            });
        });
        outbox.write_queued(unrecorded);
        let fetched = poll_fn(|cx| outbox.poll_fetch(cx)).await;
        let bodies: Vec<_> = fetched.iter().map(Frame::body).collect();
        assert_eq!(bodies.len(), 2);
        assert_eq!(&bodies[0][..], b"answer");
    }

    #[tokio::test]
    async fn nothing_is_recorded_while_a_topic_is_locked() {
        let topic: Arc<str> = "t".into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        let (stream, mut names) = (Arc::new(stream), BTreeSet::new());
        for when_full in [
            WhenFull::Disconnect,
            WhenFull::DropOldest,
            WhenFull::DropNewest,
            WhenFull::KeepLatest,
            WhenFull::block(),
        ] {
            let recorder = LockProbe::default();
            let metrics =
                Arc::new(SocketMetrics::register(&Telemetry::with_recorder(recorder.clone())));
            let table = Arc::new(SubscriberTable::new(metrics.clone(), Vec::new(), 0));
            // The first takes everything at once, the second on request, and the third nothing.
            let writers = [
                Writer::Tcp(stream.clone()),
                Writer::Task(Box::pin(tokio::io::sink())),
                Writer::Fetched,
            ];
            let listening = writers.map(|writer| {
                let limits = OutboxLimits { frames: 2, bytes: 1000 };
                let outbox = Outbox::new(writer, limits, metrics.clone()).when_full(when_full);
                table.subscribe(&topic, SubscriberId::new(), joined(outbox, &[]).0)
            });
            let (watched, name) = (Arc::downgrade(&table), topic.clone());
            recorder.watch(move || {
                let Some(table) = watched.upgrade() else { return false };
                let Some(shard) = table.shard(&name).try_write() else { return true };
                shard.get(&name).is_some_and(|listeners| listeners.try_write().is_none())
            });
            let news =
                Encoded::new(&topic, "news", json!({})).unwrap().timed(Some(broadcast_now()));
            for _ in 0..20 {
                table.dispatch(&news, None, Some(&mut Vec::new()));
                table.dispatch(&news, None, None);
            }
            names.append(&mut recorder.names());
            drop(listening);
        }
        drop(client);
        let expected = [
            "pipeline.push_delivered",
            "pipeline.push_written",
            "socket.broadcasts",
            "socket.closed_slow",
            "socket.frames_dropped drop_newest",
            "socket.frames_dropped drop_oldest",
            "socket.frames_dropped overflow",
            "socket.frames_dropped superseded",
            "socket.frames_out",
            "socket.write_time",
        ];
        assert_eq!(Vec::from_iter(names), expected);
    }

    #[tokio::test]
    async fn a_recorder_that_panics_loses_no_event_for_slow_subscribers() {
        let (log, _guard) = Log::keep();
        let recorder = LockProbe::default();
        let metrics =
            Arc::new(SocketMetrics::register(&Telemetry::with_recorder(recorder.clone())));
        let table = Arc::new(SubscriberTable::new(metrics.clone(), Vec::new(), 0));
        let topic: Arc<str> = "t".into();
        let _listening = [WhenFull::block(), WhenFull::DropOldest].map(|when_full| {
            let limits = OutboxLimits { frames: 2, bytes: 1000 };
            let outbox = Outbox::new(Writer::Fetched, limits, metrics.clone()).when_full(when_full);
            table.subscribe(&topic, SubscriberId::new(), joined(outbox, &[]).0)
        });
        let news = Encoded::new(&topic, "news", json!({})).unwrap();
        let slow = || {
            let mut slow = Vec::new();
            table.dispatch(&news, None, Some(&mut slow));
            slow.len()
        };
        while slow() == 0 {}
        recorder.watch(|| panic!("a recorder that panics"));
        assert_eq!(slow(), 1);
        let lines = log.take();
        let of = |metric: &str| lines.iter().any(|line| line.contains(metric));
        assert!(of("socket.broadcasts") && of("socket.frames_dropped"), "{lines:?}");
    }

    #[tokio::test]
    async fn a_subscriber_receives_every_broadcast_while_others_join_and_leave() {
        const ROUNDS: usize = 2_000;
        let table = Arc::new(SubscriberTable::silent());
        let topic: Arc<str> = "t".into();
        thread::scope(|scope| {
            for intercept in [&["a"], &["b"], &["c"]] {
                let (table, topic) = (&table, &topic);
                scope.spawn(move || {
                    let event = intercept[0];
                    let news = Encoded::new(topic, event, json!({})).unwrap();
                    for _ in 0..ROUNDS {
                        let (subscriber, mailbox) = subscriber(intercept);
                        let mut subscription =
                            table.subscribe(topic, SubscriberId::new(), subscriber);
                        table.dispatch(&news, None, None);
                        assert_eq!(mailbox.len(), 1, "a subscriber missed its own broadcast");
                        let except = Some(subscription.id());
                        subscription.cancel();
                        table.dispatch(&news, except, None);
                        assert_eq!(mailbox.len(), 1, "received a broadcast after unsubscribing");
                    }
                });
            }
        });
        assert_eq!(table.topics(), 0);
    }
}
