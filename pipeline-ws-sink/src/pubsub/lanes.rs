//! Who waits for whom: those who send on one topic, one behind the other.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// The topics on which somebody waits. The others take no memory.
#[derive(Default)]
pub(super) struct Lanes {
    waiting: Mutex<HashMap<Arc<str>, Arc<Turn<()>>>>,
}

/// A turn on a topic. The next one comes when it is dropped.
pub(super) struct Lane<'a> {
    lanes: &'a Lanes,
    topic: Arc<str>,
    /// Taken when the turn ends.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Lanes {
    /// The turns on a topic where others wait. Nobody does, as a rule.
    pub(super) fn find(&self, topic: &str) -> Option<Arc<Turn<()>>> {
        self.waiting.lock().get(topic).cloned()
    }

    /// Waits for its turn.
    ///
    /// Turns come in the order in which the futures were first polled.
    pub(super) async fn behind(&self, topic: &str, turn: Arc<Turn<()>>) -> Lane<'_> {
        let guard = turn.lock_owned().await;
        Lane { lanes: self, topic: topic.into(), turn: Some(guard) }
    }

    /// Makes the others on a topic wait.
    pub(super) async fn open(&self, topic: &str) -> Lane<'_> {
        let topic: Arc<str> = topic.into();
        let turn = self.waiting.lock().entry(topic.clone()).or_default().clone();
        let guard = turn.lock_owned().await;
        Lane { lanes: self, topic, turn: Some(guard) }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut waiting = self.lanes.waiting.lock();
        self.turn = None;
        // Whoever comes does so under this lock, so if nobody is there, nobody will be.
        if waiting.get(&self.topic).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            waiting.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn who_comes_later_waits_and_a_topic_without_waiters_takes_no_memory() {
        let lanes = Lanes::default();
        assert!(lanes.find("t").is_none());
        let first = lanes.open("t").await;
        let mut second = pin!(lanes.behind("t", lanes.find("t").unwrap()));
        let mut third = pin!(lanes.behind("t", lanes.find("t").unwrap()));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(lanes.find("another").is_none());
        drop(first);
        assert!(poll!(&mut third).is_pending(), "it was behind the second");
        let second = second.await;
        drop(second);
        drop(third.await);
        assert!(lanes.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let lanes = Lanes::default();
        let first = lanes.open("t").await;
        {
            let mut second = pin!(lanes.behind("t", lanes.find("t").unwrap()));
            assert!(poll!(&mut second).is_pending());
            drop(first);
        }
        // The turn that nobody took is found by the next one.
        drop(lanes.open("t").await);
        assert!(lanes.waiting.lock().is_empty());
    }
}
