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
pub(crate) struct PubSub {
    hasher: RandomState,
    shards: [RwLock<HashMap<Arc<str>, Arc<Subscribers>>>; SHARDS],
}

type Subscribers = RwLock<Slab<Subscriber>>;

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
        // Under the shard's lock, or the topic might be taken out of the table meanwhile.
        let mut shard = self.shard(topic).write();
        let subscribers = shard.entry(topic.clone()).or_default();
        let key = SubscriberKey(subscribers.write().insert(who));
        Subscription { pubsub: self.clone(), topic: topic.clone(), key, cancelled: false }
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
        let Some(subscribers) = self.shard(topic).read().get(topic).cloned() else {
            return;
        };
        for (key, subscriber) in &*subscribers.read() {
            if except == Some(SubscriberKey(key)) {
                continue;
            }
            if subscriber.intercept.contains(&event) {
                let payload = broadcast.payload.clone();
                subscriber.mailbox.intercepted(Intercepted { event: event.into(), payload, since });
            } else {
                subscriber.outbox.send(&broadcast.frame, since);
            }
        }
    }

    fn shard(&self, topic: &str) -> &RwLock<HashMap<Arc<str>, Arc<Subscribers>>> {
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
        let mut shard = self.pubsub.shard(&self.topic).write();
        let Some(topic) = shard.get(&self.topic) else {
            return;
        };
        let mut subscribers = topic.write();
        let gone = subscribers.try_remove(self.key.0);
        let empty = subscribers.is_empty();
        drop(subscribers);
        if empty {
            shard.remove(&self.topic);
        }
        drop(shard);
        // After the locks: it may be the last to hold a whole socket.
        drop(gone);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancel();
    }
}
