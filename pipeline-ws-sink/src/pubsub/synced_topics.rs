//! The topics with subscribers, on each node.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

use super::{PubSub, table::SubscriberTable};
use crate::{
    clock::Clock,
    presence::tracker::{
        Input, Meta, OutboundMessage, Replica, StepOutput, TRACKERS, Tracker, TrackerOptions,
        replicate, send_all,
    },
};

/// The tracker topic under which nodes replicate their topics.
const NAME: &str = "subscriptions";

/// All topics are tracked for a single actor.
const ACTOR: u64 = 0;

/// The topics with subscribers, here and on the other nodes.
///
/// A topic of this node is replicated once a period, if its first subscriber has come or its last
/// has left since. A subscription costs a mark, and no message.
pub(crate) struct SyncedTopics {
    tracker: Mutex<Tracker>,
    changed: Arc<Changed>,
    /// The tracked key of every topic.
    key: Arc<str>,
    meta: Meta,
    clock: Clock,
    table: OnceLock<Weak<SubscriberTable>>,
    replication: Mutex<Replication>,
}

/// The replication task.
#[derive(Debug, Default)]
struct Replication {
    task: Option<AbortHandle>,
    /// No task is started any more: a socket may open while its endpoint ends.
    has_ended: bool,
}

/// The topics that have got their first subscriber or lost their last.
#[derive(Debug, Default)]
pub(super) struct Changed {
    marked: Mutex<Marked>,
    /// Wakes the one task that waits for marks.
    waiting: Notify,
}

#[derive(Debug, Default)]
struct Marked {
    topics: HashSet<Arc<str>>,
    /// The table is gone, and there are no more marks.
    has_ended: bool,
}

impl Changed {
    pub(super) fn mark(&self, topic: &Arc<str>) {
        if topic.starts_with(TRACKERS) {
            return;
        }
        let is_first = {
            let mut marked = self.marked.lock();
            let is_first = marked.topics.is_empty();
            marked.topics.insert(topic.clone());
            is_first
        };
        if is_first {
            self.waiting.notify_one();
        }
    }

    /// Takes the marks.
    fn take(&self) -> HashSet<Arc<str>> {
        mem::take(&mut self.marked.lock().topics)
    }

    /// Waits for marks, and takes them. `None` when there are no more.
    pub(super) async fn changed(&self) -> Option<Vec<Arc<str>>> {
        loop {
            {
                let mut marked = self.marked.lock();
                if marked.has_ended {
                    return None;
                }
                if !marked.topics.is_empty() {
                    return Some(mem::take(&mut marked.topics).into_iter().collect());
                }
            }
            self.waiting.notified().await;
        }
    }

    pub(super) fn end(&self) {
        self.marked.lock().has_ended = true;
        self.waiting.notify_one();
    }
}

impl SyncedTopics {
    pub(super) fn new(node: &str, options: TrackerOptions) -> Self {
        let clock = Clock::start();
        let version = clock.version();
        // A node that has ended has no subscribers, so the others need not wait for it.
        let options = options.permdown_on_shutdown(true);
        let tracker = Tracker::replicated(node, version, version, options, Duration::ZERO);
        Self {
            tracker: Mutex::new(tracker),
            changed: Arc::default(),
            key: "".into(),
            meta: Arc::default(),
            clock,
            table: OnceLock::new(),
            replication: Mutex::default(),
        }
    }

    /// The set in which changed topics are marked.
    pub(super) fn changed(&self) -> Arc<Changed> {
        self.changed.clone()
    }

    pub(super) fn watch(&self, table: &Arc<SubscriberTable>) {
        // Set only once, right after the table is made.
        let _ = self.table.set(Arc::downgrade(table));
    }

    /// Whether a topic may have subscribers on another node: it has some, or that node's state is
    /// incomplete.
    pub(super) fn may_have(&self, topic: &str) -> bool {
        let tracker = self.tracker.lock();
        tracker.has_topic(topic) || !tracker.knows_all()
    }

    /// Starts the replication task, if there is a runtime.
    pub(super) fn begin(self: &Arc<Self>, pubsub: &PubSub) {
        let mut replication = self.replication.lock();
        // The task may have ended with the runtime of an earlier socket.
        let runs = replication.task.as_ref().is_some_and(|task| !task.is_finished());
        if runs || replication.has_ended {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let (weak, pubsub) = (Arc::downgrade(self), pubsub.clone());
            let started = self.clock.started();
            let task = async move { replicate(weak, pubsub, NAME, started).await };
            replication.task = Some(runtime.spawn(task).abort_handle());
        }
    }

    pub(super) fn end(&self, pubsub: &PubSub) {
        let task = {
            let mut replication = self.replication.lock();
            replication.has_ended = true;
            replication.task.take()
        };
        // The task calls the user's adapter, so it is spawned outside the lock.
        if let Some(task) = task {
            task.abort();
            send_all(pubsub, NAME, &self.shutdown_message());
        }
    }
}

impl Replica for SyncedTopics {
    fn next_tick(&self) -> Option<Duration> {
        self.tracker.lock().next_tick()
    }

    fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<OutboundMessage> {
        let mut tracker = self.tracker.lock();
        if let (Input::Tick, Some(table)) = (&input, self.table.get().and_then(Weak::upgrade)) {
            let changed = self.changed.take();
            for topic in changed {
                if table.has(&topic) {
                    // A topic that is tracked already stays.
                    let _ = tracker.track(ACTOR, &topic, &self.key, self.meta.clone());
                } else {
                    tracker.untrack(ACTOR, &topic, &self.key);
                }
            }
        }
        // The diffs are not needed: queries read the current state.
        let StepOutput { send, diffs: _ } = tracker.step(input, now);
        send
    }

    fn shutdown_message(&self) -> Vec<OutboundMessage> {
        self.tracker.lock().shutdown_message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::Endpoint,
        pubsub::{Adapter, AdapterError, LocalNode, broadcast::Broadcast},
    };

    /// An adapter without other nodes.
    struct NoWay;

    impl Adapter for NoWay {
        fn node_name(&self) -> &str {
            "here"
        }

        fn start(&self, _: LocalNode) {}

        fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
            Ok(())
        }

        fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_socket_that_opens_after_the_end_starts_no_task() {
        let builder = Endpoint::builder().adapter(NoWay).sync_subscriptions(TrackerOptions::new());
        let endpoint = builder.build().unwrap();
        let pubsub = endpoint.pubsub();
        let topics = pubsub.shared.topics.as_ref().unwrap();
        pubsub.begin();
        assert!(topics.replication.lock().task.is_some());
        pubsub.end();
        pubsub.begin();
        assert!(topics.replication.lock().task.is_none());
    }
}
