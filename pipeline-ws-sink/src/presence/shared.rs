//! The shared state of a presence's handles: its tracker, and the sending of its changes.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{runtime::Handle, task::AbortHandle};

use super::{
    PresenceDiff, PresenceError, PresenceList,
    diff_sender::DiffSender,
    pending::PendingDiffs,
    phx_ref,
    shared_lists::SharedLists,
    tracker::{
        Diff, Diffs, Input, Meta, OutboundMessage, Replica, StepOutput, Tracker, TrackerOptions,
        replicate, send_all,
    },
};
use crate::{
    clock::Clock,
    pubsub::{PubSub, SubscriberId},
    telemetry::{LineLimit, limited, shown},
};

/// How many subscribers or presences a topic may have for its work to be done at once, by the
/// calling task. Larger topics are handled in steps, between the work of others.
pub(super) const FEW: usize = 100;

/// Adds data to many keys.
pub(super) type Fetch =
    Box<dyn Fn(Arc<str>, PresenceList) -> BoxFuture<'static, PresenceList> + Send + Sync>;

/// The callback for diffs.
pub(super) type OnDiff = Box<dyn Fn(&PresenceDiff) + Send + Sync>;

/// The shared state of a presence's handles.
pub(crate) struct Shared {
    pub(super) name: String,
    pub(super) options: TrackerOptions,
    pub(super) fetch: Option<Fetch>,
    pub(super) on_diff: Option<OnDiff>,
    /// The rate limit of log lines about failures while clients come and go.
    pub(super) lines: LineLimit,
    attached: OnceLock<Attached>,
}

/// The state of a presence that is attached to an endpoint.
pub(super) struct Attached {
    pub(super) pubsub: PubSub,
    clock: Clock,
    /// This node's part in the references of metas.
    giver: u16,
    count: AtomicU16,
    pub(super) state: Mutex<State>,
    lists: SharedLists,
    pub(super) tasks: Mutex<Tasks>,
}

pub(super) struct State {
    tracker: Tracker,
    pub(super) pending: PendingDiffs,
    /// Whether a [`DiffSender`] exists.
    pub(super) is_sending: bool,
    pub(super) has_ended: bool,
}

/// The background tasks of a presence.
#[derive(Default)]
pub(super) struct Tasks {
    replicates: Option<AbortHandle>,
    pub(super) sends: Option<AbortHandle>,
}

impl Shared {
    pub(super) fn new(
        name: String,
        options: TrackerOptions,
        fetch: Option<Fetch>,
        on_diff: Option<OnDiff>,
    ) -> Self {
        let (lines, attached) = (LineLimit::new(), OnceLock::new());
        Self { name, options, fetch, on_diff, lines, attached }
    }

    /// Whether it is or was attached to an endpoint.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.get().is_some()
    }

    /// Attaches it to an endpoint. Returns whether it was not attached before.
    pub(super) fn attach(&self, pubsub: &PubSub) -> bool {
        let clock = Clock::start();
        let version = clock.version();
        let [.., low, lower] = version.to_be_bytes();
        let tracker = match pubsub.node_name() {
            Some(node) => {
                Tracker::replicated(node, version, version, self.options.clone(), Duration::ZERO)
            }
            None => Tracker::alone(),
        };
        let state = State {
            tracker,
            pending: PendingDiffs::default(),
            is_sending: false,
            has_ended: false,
        };
        let attached = Attached {
            pubsub: pubsub.clone(),
            clock,
            giver: u16::from_be_bytes([low, lower]),
            count: AtomicU16::new(0),
            state: Mutex::new(state),
            lists: SharedLists::new(),
            tasks: Mutex::default(),
        };
        self.attached.set(attached).is_ok()
    }

    /// Starts replication, if there is an adapter and a runtime.
    pub(super) fn begin(self: &Arc<Self>) {
        let Some(attached) = self.attached.get() else { return };
        if attached.pubsub.node_name().is_none() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = attached.tasks.lock();
        // The task may have ended with the runtime of an earlier socket.
        let runs = tasks.replicates.as_ref().is_some_and(|task| !task.is_finished());
        if runs || attached.state.lock().has_ended {
            return;
        }
        let (weak, pubsub) = (Arc::downgrade(self), attached.pubsub.clone());
        let (name, started) = (self.name.clone(), attached.clock.started());
        let replication = async move { replicate(weak, pubsub, &name, started).await };
        tasks.replicates = Some(runtime.spawn(replication).abort_handle());
    }

    /// Ends the background tasks, and announces the shutdown to the other nodes, if the options say
    /// so.
    pub(super) fn end(&self) {
        let Some(attached) = self.attached.get() else { return };
        if std::mem::replace(&mut attached.state.lock().has_ended, true) {
            return;
        }
        let Tasks { replicates, sends } = std::mem::take(&mut *attached.tasks.lock());
        replicates.into_iter().chain(sends).for_each(|task| task.abort());
        send_all(&attached.pubsub, &self.name, &self.shutdown_message());
    }

    pub(super) fn track(
        self: &Arc<Self>,
        actor: SubscriberId,
        topic: &Arc<str>,
        key: &Arc<str>,
        mut meta: Map<String, Value>,
    ) -> Result<String, PresenceError> {
        let attached = self.attached()?;
        self.begin();
        let name = attached.name();
        phx_ref::set(&mut meta, &name, None);
        let meta = Arc::new(meta);
        attached.change(|tracker| {
            let (topic, key) = (topic.clone(), key.clone());
            match tracker.track(actor.number(), &topic, &key, meta.clone()) {
                Ok(()) => Ok((Diff { joins: vec![(key, meta)], leaves: vec![] }, topic)),
                Err(_) => Err(PresenceError::AlreadyTracked { topic, key }),
            }
        })?;
        self.send_pending();
        Ok(name)
    }

    /// The current meta of a key.
    pub(super) fn meta(
        &self,
        actor: SubscriberId,
        topic: &Arc<str>,
        key: &Arc<str>,
    ) -> Result<Meta, PresenceError> {
        let meta =
            self.attached()?.look(|tracker| tracker.get(actor.number(), topic, key).cloned());
        let (topic, key) = (topic.clone(), key.clone());
        meta.ok_or(PresenceError::NotTracked { topic, key })
    }

    /// Replaces the meta of a key. If `only_if` is set, the key must still have that meta.
    pub(super) fn update(
        self: &Arc<Self>,
        actor: SubscriberId,
        topic: &Arc<str>,
        key: &Arc<str>,
        mut meta: Map<String, Value>,
        only_if: Option<&Meta>,
    ) -> Result<String, PresenceError> {
        let attached = self.attached()?;
        let name = attached.name();
        attached.change(|tracker| {
            let (topic, key) = (topic.clone(), key.clone());
            let Some(old) = tracker.get(actor.number(), &topic, &key) else {
                return Err(PresenceError::NotTracked { topic, key });
            };
            if only_if.is_some_and(|expected| !Arc::ptr_eq(expected, old)) {
                return Err(PresenceError::ChangedMeanwhile { topic, key });
            }
            phx_ref::set(&mut meta, &name, phx_ref::of(old));
            let meta = Arc::new(meta);
            let old = tracker.update(actor.number(), &topic, &key, meta.clone());
            let leaves = old.into_iter().map(|old| (key.clone(), old)).collect();
            Ok((Diff { joins: vec![(key, meta)], leaves }, topic))
        })?;
        self.send_pending();
        Ok(name)
    }

    pub(super) fn untrack(self: &Arc<Self>, actor: SubscriberId, topic: &Arc<str>, key: &Arc<str>) {
        let Ok(attached) = self.attached() else { return };
        let mut state = attached.state.lock();
        if let Some(gone) = state.tracker.untrack(actor.number(), topic, key) {
            let diff = Diff { joins: vec![], leaves: vec![(key.clone(), gone)] };
            state.pending.add(Diffs::from_iter([(topic.clone(), diff)]));
        }
        drop(state);
        self.send_pending();
    }

    /// Removes an actor from all topics.
    pub(super) fn leave(self: &Arc<Self>, actor: SubscriberId) {
        let Ok(attached) = self.attached() else { return };
        let mut state = attached.state.lock();
        let gone = state.tracker.untrack_all(actor.number());
        state.pending.add(gone);
        drop(state);
        self.send_pending();
    }

    pub(super) async fn list(&self, topic: &str) -> PresenceList {
        let Ok(attached) = self.attached() else { return PresenceList::default() };
        let listed = async {
            let who = attached.list(topic, None);
            self.enriched(&topic.into(), PresenceList::of(who)).await
        };
        if attached.look(|tracker| tracker.count(topic)) <= FEW {
            listed.await
        } else {
            attached.lists.share(topic, listed).await
        }
    }

    pub(super) async fn get_by_key(&self, topic: &str, key: &str) -> Option<Map<String, Value>> {
        let metas = self.attached().ok()?.list(topic, Some(key));
        if metas.is_empty() {
            return None;
        }
        self.enriched(&topic.into(), PresenceList::of(metas)).await.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.attached().map_or(0, |attached| attached.look(Tracker::len))
    }

    pub(super) fn attached(&self) -> Result<&Attached, PresenceError> {
        self.attached.get().ok_or(PresenceError::NotAttached)
    }

    /// Sends pending changes to the clients.
    fn send_pending(self: &Arc<Self>) {
        if let Some(sender) = DiffSender::claim(self) {
            sender.run();
        }
    }

    /// Adds the data of `fetch`, unless it panics.
    pub(super) async fn enriched(&self, topic: &Arc<str>, mut who: PresenceList) -> PresenceList {
        let Some(fetch) = &self.fetch else { return who };
        let fetched = AssertUnwindSafe(async { fetch(topic.clone(), who.clone()).await });
        match fetched.catch_unwind().await {
            Ok(enriched) => who.enrich(enriched),
            Err(_) => {
                let presence = &self.name;
                limited!(
                    self.lines,
                    ERROR,
                    topic = shown(topic),
                    presence,
                    "fetch callback panicked"
                );
            }
        }
        who
    }
}

impl State {
    /// The next diff that is sent. The tracker and the changes are looked at together, so what is not in
    /// the diff has not changed since the one before.
    pub(super) fn next_diff(&mut self) -> Option<PresenceDiff> {
        let (topic, diff) = self.pending.next()?;
        let metas = |key: &str| self.tracker.count_of_key(&topic, key);
        Some(PresenceDiff::new(topic.clone(), diff, metas))
    }
}

impl Attached {
    /// A reference for a meta.
    fn name(&self) -> String {
        phx_ref::make(self.clock.since_1970(), self.giver, self.count.fetch_add(1, Relaxed))
    }

    /// The presences of a topic, or of one of its keys, for a client.
    fn list(&self, topic: &str, key: Option<&str>) -> Vec<(Arc<str>, Meta)> {
        let State { tracker, pending, .. } = &mut *self.state.lock();
        match key {
            None => pending.list(topic, None, tracker.list(topic)),
            Some(key) => {
                let shared: Arc<str> = key.into();
                let metas = tracker.get_by_key(topic, key).map(|meta| (&shared, meta));
                pending.list(topic, Some(key), metas)
            }
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Tracker) -> T) -> T {
        look(&self.state.lock().tracker)
    }

    /// Changes the tracker, and queues the resulting diff in the same order.
    fn change(
        &self,
        change: impl FnOnce(&mut Tracker) -> Result<(Diff, Arc<str>), PresenceError>,
    ) -> Result<(), PresenceError> {
        let mut state = self.state.lock();
        if state.has_ended {
            return Err(PresenceError::NotAttached);
        }
        let (diff, topic) = change(&mut state.tracker)?;
        state.pending.add(Diffs::from_iter([(topic, diff)]));
        Ok(())
    }
}

impl Replica for Shared {
    fn next_tick(&self) -> Option<Duration> {
        self.attached.get()?.state.lock().tracker.next_tick()
    }

    fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<OutboundMessage> {
        let Some(attached) = self.attached.get() else { return Vec::new() };
        let mut state = attached.state.lock();
        let StepOutput { diffs, send } = state.tracker.step(input, now);
        state.pending.add(diffs);
        drop(state);
        self.send_pending();
        send
    }

    fn shutdown_message(&self) -> Vec<OutboundMessage> {
        self.attached
            .get()
            .map(|attached| attached.state.lock().tracker.shutdown_message())
            .unwrap_or_default()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

/// A meta as a JSON object.
pub(super) fn object(
    meta: &(impl serde::Serialize + ?Sized),
) -> Result<Map<String, Value>, PresenceError> {
    match serde_json::to_value(meta) {
        Ok(Value::Object(meta)) => Ok(meta),
        Ok(_) => Err(PresenceError::NotAnObject),
        Err(error) => Err(PresenceError::Encode(error)),
    }
}
