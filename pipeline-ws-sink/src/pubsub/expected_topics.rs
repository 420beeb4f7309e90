//! The topics that clients are about to join.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{SubscriberTable, synced_topics::Changed};

/// The topics of joins that are accepted and not answered yet. They count as subscribed for an adapter
/// that follows topics, and for nothing else: a client of them receives nothing yet.
#[derive(Debug, Default)]
pub(super) struct ExpectedTopics(Mutex<HashMap<Arc<str>, usize>>);

/// A topic that is expected, until this is dropped.
pub(crate) struct Expected {
    topics: Arc<ExpectedTopics>,
    table: Arc<SubscriberTable>,
    changed: Arc<Changed>,
    topic: Arc<str>,
}

impl ExpectedTopics {
    pub(super) fn contains(&self, topic: &str) -> bool {
        self.0.lock().contains_key(topic)
    }

    /// Expects a topic, and marks it if that is new to the adapter.
    pub(super) fn expect(
        self: &Arc<Self>,
        topic: &Arc<str>,
        table: &Arc<SubscriberTable>,
        changed: &Arc<Changed>,
    ) -> Expected {
        let is_first = {
            let mut topics = self.0.lock();
            let joins = topics.entry(topic.clone()).or_default();
            *joins += 1;
            *joins == 1
        };
        // A topic that loses its last subscriber after this look is marked by that.
        if is_first && !table.has(topic) {
            changed.mark(topic);
        }
        let (topics, table) = (self.clone(), table.clone());
        Expected { topics, table, changed: changed.clone(), topic: topic.clone() }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let was_last = {
            let mut topics = self.topics.0.lock();
            match topics.entry(self.topic.clone()) {
                Entry::Occupied(joins) if *joins.get() <= 1 => {
                    joins.remove();
                    true
                }
                Entry::Occupied(mut joins) => {
                    *joins.get_mut() -= 1;
                    false
                }
                Entry::Vacant(_) => false,
            }
        };
        if was_last && !self.table.has(&self.topic) {
            self.changed.mark(&self.topic);
        }
    }
}
