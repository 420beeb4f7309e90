//! Which topics are listened to on which node.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};

use super::{PubSub, table::Table};
use crate::tracker::{
    Input, Meta, Outgoing, Replica, Step, TRACKERS, Tracker, TrackerOptions, replicate, tell,
};

/// What the nodes are told topics by.
const NAME: &str = "online";

/// All topics are tracked as one.
const ACTOR: u64 = 0;

/// Which topics are listened to, here and on the other nodes.
///
/// A topic of this node is told of once a period, if somebody has come to it or all have left since. So
/// whoever comes and goes costs a mark, and no message.
pub(crate) struct Topics {
    tracker: Mutex<Tracker>,
    changed: Arc<Changed>,
    /// What is told of a topic: nothing but that it is there.
    key: Arc<str>,
    meta: Meta,
    started: Instant,
    table: OnceLock<Weak<Table>>,
    talking: Mutex<Talking>,
}

/// The task that talks with the other nodes.
#[derive(Debug, Default)]
struct Talking {
    task: Option<AbortHandle>,
    /// None is started any more: a socket may open while its endpoint ends.
    has_ended: bool,
}

/// The topics to which somebody has come first, or which the last has left. As many as there are.
#[derive(Debug, Default)]
pub(super) struct Changed(Mutex<HashSet<Arc<str>>>);

impl Changed {
    pub(super) fn mark(&self, topic: &Arc<str>) {
        if !topic.starts_with(TRACKERS) {
            self.0.lock().insert(topic.clone());
        }
    }
}

impl Topics {
    pub(super) fn new(node: &str, options: TrackerOptions) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let version = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // Nobody listens on a node that has ended, so the others need not wait for it.
        let options = options.permdown_on_shutdown(true);
        let tracker = Tracker::replicated(node, version, version, options, Duration::ZERO);
        Self {
            tracker: Mutex::new(tracker),
            changed: Arc::default(),
            key: "".into(),
            meta: Arc::default(),
            started: Instant::now(),
            table: OnceLock::new(),
            talking: Mutex::default(),
        }
    }

    /// Where topics are marked when they change.
    pub(super) fn changed(&self) -> Arc<Changed> {
        self.changed.clone()
    }

    pub(super) fn watch(&self, table: &Arc<Table>) {
        // It is set once, right after the table is made.
        let _ = self.table.set(Arc::downgrade(table));
    }

    /// Whether a topic may be listened to on another node: it is there, or not all that is there is known.
    pub(super) fn may_have(&self, topic: &str) -> bool {
        let tracker = self.tracker.lock();
        tracker.has_topic(topic) || !tracker.knows_all()
    }

    /// Begins to talk with the other nodes, if there is where that can run.
    pub(super) fn begin(self: &Arc<Self>, pubsub: &PubSub) {
        let mut talking = self.talking.lock();
        // It may have ended with the runtime of an earlier socket.
        let runs = talking.task.as_ref().is_some_and(|task| !task.is_finished());
        if runs || talking.has_ended {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let (weak, pubsub, started) = (Arc::downgrade(self), pubsub.clone(), self.started);
            let task = async move { replicate(weak, pubsub, NAME, started).await };
            talking.task = Some(runtime.spawn(task).abort_handle());
        }
    }

    pub(super) fn end(&self, pubsub: &PubSub) {
        let task = {
            let mut talking = self.talking.lock();
            talking.has_ended = true;
            talking.task.take()
        };
        // The adapter, which is the user's, is called under no lock.
        if let Some(task) = task {
            task.abort();
            tell(pubsub, NAME, &self.farewell());
        }
    }
}

impl Replica for Topics {
    fn next_tick(&self) -> Option<Duration> {
        self.tracker.lock().next_tick()
    }

    fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<Outgoing> {
        let mut tracker = self.tracker.lock();
        if let (Input::Tick, Some(table)) = (&input, self.table.get().and_then(Weak::upgrade)) {
            let changed = mem::take(&mut *self.changed.0.lock());
            for topic in changed {
                if table.has(&topic) {
                    // If it has been told of, it stays.
                    let _ = tracker.track(ACTOR, &topic, &self.key, self.meta.clone());
                } else {
                    tracker.untrack(ACTOR, &topic, &self.key);
                }
            }
        }
        // Nobody is told of the differences: who asks is told what is.
        let Step { send, diffs: _ } = tracker.step(input, now);
        send
    }

    fn farewell(&self) -> Vec<Outgoing> {
        self.tracker.lock().farewell()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broadcast::Broadcast,
        endpoint::Endpoint,
        pubsub::{Adapter, AdapterError, LocalNode},
    };

    /// The way to no other node.
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
    async fn a_socket_that_opens_after_the_end_starts_no_task_anew() {
        let builder = Endpoint::builder().adapter(NoWay).share_online(TrackerOptions::new());
        let endpoint = builder.build().unwrap();
        let pubsub = endpoint.pubsub();
        let topics = pubsub.shared.topics.as_ref().unwrap();
        pubsub.begin();
        assert!(topics.talking.lock().task.is_some());
        pubsub.end();
        pubsub.begin();
        assert!(topics.talking.lock().task.is_none());
    }
}
