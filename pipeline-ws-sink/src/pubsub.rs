//! Who listens to which topic.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use parking_lot::RwLock;
use slab::Slab;
use tokio::time::Instant;

use crate::{
    channel::{Intercepted, Mailbox},
    outbox::Outbox,
    protocol::message::Broadcast,
};

/// How many parts the table of topics has, so that few callers wait for each other.
const SHARDS: usize = 64;

/// The subscribers of all topics.
///
/// A part of the table is locked only to look a topic up. While a topic hands out a broadcast, those
/// who join or leave that topic wait for it, and nobody else.
pub(crate) struct PubSub {
    hasher: RandomState,
    shards: [Shard; SHARDS],
}

/// A part of the topics.
type Shard = RwLock<HashMap<Arc<str>, Arc<RwLock<Listeners>>>>;

/// The subscribers of one topic.
#[derive(Default)]
struct Listeners {
    subscribers: Slab<Subscriber>,
    /// The last one has left, and the topic is about to go. Who comes now has to look it up again.
    closed: bool,
}

/// A joined channel, as broadcasts see it.
pub(crate) struct Subscriber {
    pub(crate) outbox: Arc<Outbox>,
    /// Broadcasts of these events go to the channel instead of the socket.
    pub(crate) intercept: &'static [&'static str],
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Listens to a topic for as long as it lives.
pub(crate) struct Subscription {
    pubsub: Arc<PubSub>,
    topic: Arc<str>,
    listeners: Arc<RwLock<Listeners>>,
    key: SubscriberKey,
    /// A key is given to another subscriber once it is free, so it must be freed only once.
    cancelled: bool,
}

/// Names a subscriber within its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubscriberKey(usize);

impl PubSub {
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| RwLock::default()) }
    }

    /// Subscribes to a topic. Broadcasts that begin after the return are not missed.
    pub(crate) fn subscribe(self: &Arc<Self>, topic: &Arc<str>, who: Subscriber) -> Subscription {
        loop {
            let listeners = self.shard(topic).write().entry(topic.clone()).or_default().clone();
            let mut open = listeners.write();
            if open.closed {
                drop(open);
                self.remove(topic, &listeners);
                continue;
            }
            let key = SubscriberKey(open.subscribers.insert(who));
            drop(open);
            let (pubsub, topic) = (self.clone(), topic.clone());
            return Subscription { pubsub, topic, listeners, key, cancelled: false };
        }
    }

    /// Hands an encoded broadcast to every subscriber of a topic but one.
    ///
    /// Nothing here waits for a socket: what one cannot take now waits in its outbox.
    pub(crate) fn broadcast(
        &self,
        topic: &str,
        event: &str,
        broadcast: &Broadcast,
        except: Option<SubscriberKey>,
        since: Option<Instant>,
    ) {
        let Some(listeners) = self.shard(topic).read().get(topic).cloned() else { return };
        for (key, subscriber) in &listeners.read().subscribers {
            if except == Some(SubscriberKey(key)) {
                continue;
            }
            if subscriber.intercept.contains(&event) {
                let payload = broadcast.payload.clone();
                subscriber.mailbox.intercepted(Intercepted { event: event.into(), payload, since });
            } else {
                subscriber.outbox.send_shared(&broadcast.frame, since);
            }
        }
    }

    /// Takes a topic out of the table, unless it is there anew already.
    fn remove(&self, topic: &str, listeners: &Arc<RwLock<Listeners>>) {
        let mut shard = self.shard(topic).write();
        if shard.get(topic).is_some_and(|current| Arc::ptr_eq(current, listeners)) {
            shard.remove(topic);
        }
    }

    fn shard(&self, topic: &str) -> &Shard {
        let hash = self.hasher.hash_one(topic);
        let index = usize::try_from(hash % SHARDS as u64).expect("less than the number of shards");
        &self.shards[index]
    }
}

impl Subscription {
    pub(crate) fn key(&self) -> SubscriberKey {
        self.key
    }

    /// Stops listening. Broadcasts that begin after the return are not received.
    pub(crate) fn cancel(&mut self) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        let mut listeners = self.listeners.write();
        let gone = listeners.subscribers.try_remove(self.key.0);
        listeners.closed = listeners.subscribers.is_empty();
        let closed = listeners.closed;
        drop(listeners);
        if closed {
            self.pubsub.remove(&self.topic, &self.listeners);
        }
        // After the locks: it may be the last to hold a whole socket.
        drop(gone);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use pipeline_core::Telemetry;
    use serde_json::json;

    use super::*;
    use crate::{
        outbox::{OutboxLimits, Writer},
        telemetry::SocketMetrics,
    };

    /// A subscriber whose broadcasts of these events go to its mailbox, to be counted there.
    fn subscriber(intercept: &'static [&'static str]) -> (Subscriber, Arc<Mailbox>) {
        let metrics = Arc::new(SocketMetrics::register(&Telemetry::global()));
        let limits = OutboxLimits { frames: 1, bytes: 1 };
        let writer = Writer::Task(Box::pin(tokio::io::sink()));
        let outbox = Arc::new(Outbox::new(writer, limits, metrics));
        let mailbox = Arc::new(Mailbox::default());
        (Subscriber { outbox, intercept, mailbox: mailbox.clone() }, mailbox)
    }

    fn topics(pubsub: &PubSub) -> usize {
        pubsub.shards.iter().map(|shard| shard.read().len()).sum()
    }

    #[tokio::test]
    async fn a_topic_that_nobody_listens_to_takes_no_memory() {
        let pubsub = Arc::new(PubSub::new());
        let topic: Arc<str> = "t".into();
        let first = pubsub.subscribe(&topic, subscriber(&[]).0);
        let mut second = pubsub.subscribe(&topic, subscriber(&[]).0);
        assert_eq!(topics(&pubsub), 1);
        second.cancel();
        assert_eq!(topics(&pubsub), 1);
        drop(first);
        assert_eq!(topics(&pubsub), 0);
        // Its key may belong to another by now.
        let third = pubsub.subscribe(&topic, subscriber(&[]).0);
        drop(second);
        assert_eq!(topics(&pubsub), 1);
        drop(third);
        assert_eq!(topics(&pubsub), 0);
    }

    #[tokio::test]
    async fn who_has_subscribed_gets_every_broadcast_however_others_come_and_go() {
        const ROUNDS: usize = 2_000;
        let pubsub = Arc::new(PubSub::new());
        let topic: Arc<str> = "t".into();
        thread::scope(|scope| {
            for intercept in [&["a"], &["b"], &["c"]] {
                let (pubsub, topic) = (&pubsub, &topic);
                scope.spawn(move || {
                    let event = intercept[0];
                    let news = Broadcast::encode(topic, event, json!({})).unwrap();
                    for _ in 0..ROUNDS {
                        let (subscriber, mailbox) = subscriber(intercept);
                        let mut subscription = pubsub.subscribe(topic, subscriber);
                        pubsub.broadcast(topic, event, &news, None, None);
                        assert_eq!(mailbox.len(), 1, "missed its own broadcast");
                        let except = Some(subscription.key());
                        subscription.cancel();
                        pubsub.broadcast(topic, event, &news, except, None);
                        assert_eq!(mailbox.len(), 1, "still listening");
                    }
                });
            }
        });
        assert_eq!(topics(&pubsub), 0);
    }
}
