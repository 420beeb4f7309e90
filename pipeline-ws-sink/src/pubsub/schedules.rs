//! Subscribers that come and go while several tasks broadcast to their topics, in random orders on
//! several threads.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::FutureExt;
use parking_lot::Mutex;
use pipeline_core::telemetry::Telemetry;
use pipeline_test_support::{PATIENCE, Schedule, on_any_schedule};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{
    JoinedChannel, PreparedBroadcast, PubSub, Subscriber, SubscriberId, SubscriptionGuard,
    TopicSubscription,
};
use crate::{
    channel::Mailbox,
    outbox::{Outbox, OutboxLimits, WhenFull, Writer},
    protocol::{frame::Frame, version::Version},
    session::end::SocketEnd,
    telemetry::{RouteMetrics, SocketMetrics},
};

const TOPICS: [&str; 3] = ["t:0", "t:1", "t:2"];
const SENDERS: usize = 3;
const BROADCASTS: u32 = 30;

/// The sender of broadcasts that are given up, which some subscribers receive.
const IMPATIENT: usize = SENDERS;

/// A broadcast, as it is received: the number of its sender, and that of the broadcast among those of
/// its sender to this topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
struct News {
    sender: usize,
    number: u32,
}

/// How far a sender is on a topic: how many broadcasts it has begun, and how many have returned.
#[derive(Default)]
struct Progress {
    begun: AtomicU32,
    returned: AtomicU32,
}

struct House {
    pubsub: PubSub,
    metrics: Arc<SocketMetrics>,
    route: Arc<RouteMetrics>,
    /// How many of the topics are used.
    topics: usize,
    /// By topic and sender.
    progress: [[Progress; SENDERS]; TOPICS.len()],
    /// Whether all senders wait for room, so that all subscribers receive one order.
    waits: bool,
    /// The senders that are not done.
    sending: AtomicUsize,
    /// By topic, what each subscriber has received.
    received: [Mutex<Vec<Vec<News>>>; TOPICS.len()],
}

/// A subscriber: a client that has joined, or a task.
enum Listener {
    Client { outbox: Arc<Outbox>, guard: SubscriptionGuard },
    Task(TopicSubscription),
}

impl House {
    fn any(schedule: &mut Schedule) -> Self {
        let telemetry = Telemetry::global();
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        Self {
            pubsub: PubSub::new(Arc::default(), metrics.clone(), None, None, 0),
            metrics,
            route: Arc::new(RouteMetrics::register(&telemetry, "Any", &Arc::default())),
            topics: schedule.pick(1..=TOPICS.len()),
            progress: Default::default(),
            waits: schedule.once_in(2),
            sending: AtomicUsize::new(SENDERS),
            received: Default::default(),
        }
    }

    /// Sends numbered broadcasts to random topics, one after the other.
    async fn send(self: Arc<Self>, sender: usize, mut schedule: Schedule) {
        for _ in 0..BROADCASTS {
            if schedule.once_in(8) {
                self.give_up(&mut schedule).await;
            }
            let at = schedule.pick(..self.topics);
            let (topic, progress) = (TOPICS[at], &self.progress[at][sender]);
            let number = progress.begun.fetch_add(1, SeqCst);
            let payload = json!({ "sender": sender, "number": number });
            if self.waits || schedule.once_in(2) {
                let prepared = PreparedBroadcast::new(topic, "news", payload).unwrap();
                self.pubsub.broadcast_when_ready(&prepared).await.unwrap();
            } else {
                self.pubsub.broadcast(topic, "news", payload).unwrap();
            }
            progress.returned.fetch_add(1, SeqCst);
            schedule.pause().await;
        }
        self.sending.fetch_sub(1, SeqCst);
    }

    /// Sends a broadcast, and gives it up while it waits.
    async fn give_up(&self, schedule: &mut Schedule) {
        let payload = json!({ "sender": IMPATIENT, "number": 0 });
        let prepared = PreparedBroadcast::new(schedule.one_of(&TOPICS), "news", payload).unwrap();
        tokio::select! {
            biased;
            sent = self.pubsub.broadcast_when_ready(&prepared) => sent.unwrap(),
            () = schedule.pause() => {}
        }
    }

    fn begun(&self, at: usize) -> [u32; SENDERS] {
        self.progress[at].each_ref().map(|progress| progress.begun.load(SeqCst))
    }

    fn returned(&self, at: usize) -> [u32; SENDERS] {
        self.progress[at].each_ref().map(|progress| progress.returned.load(SeqCst))
    }

    fn subscribe(&self, at: usize, schedule: &mut Schedule) -> Listener {
        if schedule.once_in(3) {
            return Listener::Task(self.pubsub.subscribe(TOPICS[at]));
        }
        // A sender that does not wait closes a client whose outbox is full.
        let frames = if self.waits { schedule.one_of(&[1, 3, 1_000]) } else { 1_000 };
        let limits = OutboxLimits { frames, bytes: 1 << 20 };
        let outbox = Outbox::new(Writer::Fetched, limits, self.metrics.clone());
        let outbox = Arc::new(outbox.when_full(WhenFull::Block { timeout: Duration::MAX }));
        let (mailbox, version, intercept) = (Arc::<Mailbox>::default(), Version::V2, &[][..]);
        let (outbox, route) = (outbox.clone(), self.route.clone());
        let joined = JoinedChannel { outbox: outbox.clone(), version, intercept, mailbox, route };
        let topic = TOPICS[at].into();
        let table = self.pubsub.table();
        let guard = table.subscribe(&topic, SubscriberId::new(), Subscriber::Joined(joined));
        Listener::Client { outbox, guard }
    }

    /// Subscribes to a topic, receives for a while, and unsubscribes.
    async fn visit(&self, schedule: &mut Schedule) {
        let at = schedule.pick(..self.topics);
        // The topic comes and goes, with and without the others.
        for _ in 0..schedule.pick(..40) {
            drop(self.pubsub.subscribe(TOPICS[at]));
        }
        let before = self.returned(at);
        let mut listener = self.subscribe(at, schedule);
        let from = self.begun(at);
        let mut received = Vec::new();
        let stays = schedule.one_of(&[0, 1, 10, usize::MAX]);
        for _ in 0..stays {
            schedule.pause().await;
            // A client that never reads would stop the senders.
            listener.receive(&mut received);
            assert!(self.pubsub.table().has(TOPICS[at]), "its own subscription");
            if self.sending.load(SeqCst) == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let until = self.returned(at);
        listener.unsubscribe();
        let after = self.begun(at);
        listener.receive(&mut received);
        drop(listener);
        received.retain(|news| news.sender != IMPATIENT);
        for sender in 0..SENDERS {
            let numbers = received.iter().filter(|news| news.sender == sender);
            let numbers: Vec<u32> = numbers.map(|news| news.number).collect();
            let about = || {
                let (before, from) = (before[sender], from[sender]);
                let (until, after) = (until[sender], after[sender]);
                format!("{numbers:?} of {before}, {from} to {until}, {after}")
            };
            assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "order: {}", about());
            let (first, end) = match (numbers.first(), numbers.last()) {
                (Some(first), Some(last)) => (*first, last + 1),
                _ => (from[sender], from[sender]),
            };
            let begins_in_time = (before[sender]..=from[sender]).contains(&first);
            assert!(begins_in_time || numbers.is_empty(), "the first: {}", about());
            let ends_in_time = end >= until[sender] && end <= after[sender].max(from[sender]);
            assert!(ends_in_time, "the last: {}", about());
        }
        self.received[at].lock().push(received);
    }

    /// Asserts that any two subscribers have received their common broadcasts in one order.
    fn assert_one_order(&self) {
        for received in &self.received {
            let received = received.lock();
            for (n, one) in received.iter().enumerate() {
                let places: HashMap<_, _> = (0..).zip(one).map(|(at, news)| (news, at)).collect();
                for other in &received[..n] {
                    let common: Vec<u32> =
                        other.iter().filter_map(|news| places.get(news).copied()).collect();
                    assert!(common.is_sorted(), "{one:?} and {other:?}");
                }
            }
        }
    }
}

impl Listener {
    /// Receives everything that waits.
    fn receive(&mut self, received: &mut Vec<News>) {
        match self {
            Self::Client { outbox, .. } => {
                let fetch = || poll_fn(|cx| outbox.poll_fetch(cx)).now_or_never();
                while let Some(fetched) = fetch() {
                    received.extend(fetched.iter().map(news));
                }
            }
            Self::Task(subscription) => {
                while let Some(broadcast) = subscription.recv().now_or_never() {
                    let payload = broadcast.unwrap().payload().clone();
                    received.push(payload.parse().unwrap());
                }
            }
        }
    }

    /// Unsubscribes. The client can still be received from.
    fn unsubscribe(&mut self) {
        match self {
            Self::Client { guard, .. } => guard.cancel(),
            Self::Task(subscription) => subscription.cancel(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Senders may wait for its room.
        if let Self::Client { outbox, .. } = self {
            outbox.end(SocketEnd::Closed);
            outbox.release();
        }
    }
}

fn news(frame: &Frame) -> News {
    let (_, _, _, _, news): ((), (), String, String, News) =
        serde_json::from_slice(&frame.body()).unwrap();
    news
}

async fn case(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let house = Arc::new(House::any(&mut schedule));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| tokio::spawn(house.clone().send(sender, schedule.fork())))
        .collect();
    let visitors: Vec<_> = (0..schedule.pick(2..=5))
        .map(|_| {
            let (house, mut schedule) = (house.clone(), schedule.fork());
            tokio::spawn(async move {
                while house.sending.load(SeqCst) > 0 {
                    house.visit(&mut schedule).await;
                }
            })
        })
        .collect();
    for task in senders.into_iter().chain(visitors) {
        timeout(PATIENCE, task).await.expect("no task waits forever").unwrap();
    }
    if house.waits {
        house.assert_one_order();
    }
    let topics = (house.pubsub.table().topics(), house.route.topics(), house.route.open());
    assert_eq!(topics, (0, 0, 0), "topics, topics of the route, and its channels");
    assert_eq!(house.pubsub.shared.turns.open(), 0, "topics with turns");
}

#[test]
fn a_broadcast_arrives_if_it_begins_between_the_returns_of_subscribe_and_unsubscribe() {
    on_any_schedule(400, case);
}
