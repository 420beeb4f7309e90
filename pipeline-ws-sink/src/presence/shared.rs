//! What the handles of a presence share: its tracker, and how what changes is told.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle, time::Instant};

use super::{PresenceDiff, PresenceError, Presences, phx_ref, waiting::Waiting};
use crate::{
    protocol::message::Encoded,
    pubsub::{PubSub, SubscriberId},
    tracker::{
        Diff, Diffs, Input, Outgoing, Replica, Step, Tracker, TrackerOptions, replicate, tell,
    },
};

/// What clients are told of who came and who went.
const DIFF: &str = "presence_diff";

/// Adds to what is told of many keys.
pub(super) type Fetch =
    Box<dyn Fn(Arc<str>, Presences) -> BoxFuture<'static, Presences> + Send + Sync>;

/// Is told who came and who went.
pub(super) type OnDiff = Box<dyn Fn(&PresenceDiff) + Send + Sync>;

/// What the handles of a presence share.
pub(crate) struct Shared {
    pub(super) name: String,
    pub(super) options: TrackerOptions,
    pub(super) fetch: Option<Fetch>,
    pub(super) on_diff: Option<OnDiff>,
    attached: OnceLock<Attached>,
}

/// What it has of the endpoint that it belongs to.
struct Attached {
    pubsub: PubSub,
    started: Instant,
    /// Who gives names to metas.
    giver: u16,
    count: AtomicU16,
    state: Mutex<State>,
    /// Held by who tells what has changed, so that it is told in order.
    telling: Mutex<()>,
    /// Something is to be told, where a task does that.
    changed: Notify,
    tasks: Mutex<Vec<AbortHandle>>,
}

struct State {
    tracker: Tracker,
    waiting: Waiting,
    has_ended: bool,
}

impl Shared {
    pub(super) fn new(
        name: String,
        options: TrackerOptions,
        fetch: Option<Fetch>,
        on_diff: Option<OnDiff>,
    ) -> Self {
        Self { name, options, fetch, on_diff, attached: OnceLock::new() }
    }

    /// Whether it belongs to an endpoint, or did.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.get().is_some()
    }

    /// Has it belong to an endpoint. Returns whether it belonged to none.
    pub(super) fn attach(&self, pubsub: &PubSub) -> bool {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Only nodes that are started at the same nanosecond would be taken for each other.
        let version = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let [.., low, lower] = version.to_be_bytes();
        let started = Instant::now();
        let tracker = match pubsub.node_name() {
            Some(node) => {
                Tracker::replicated(node, version, version, self.options.clone(), Duration::ZERO)
            }
            None => Tracker::alone(),
        };
        let waiting = Waiting::default();
        let attached = Attached {
            pubsub: pubsub.clone(),
            started,
            giver: u16::from_be_bytes([low, lower]),
            count: AtomicU16::new(0),
            state: Mutex::new(State { tracker, waiting, has_ended: false }),
            telling: Mutex::new(()),
            changed: Notify::new(),
            tasks: Mutex::default(),
        };
        self.attached.set(attached).is_ok()
    }

    /// Starts what runs beside it, if anything does, and if there is where it can run.
    pub(super) fn begin(self: &Arc<Self>) {
        let Some(attached) = self.attached.get() else { return };
        let replicates = attached.pubsub.node_name().is_some();
        if !replicates && self.fetch.is_none() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = attached.tasks.lock();
        // They may have ended with the runtime of an earlier socket.
        let runs = tasks.iter().any(|task| !task.is_finished());
        if runs || attached.state.lock().has_ended {
            return;
        }
        tasks.clear();
        if replicates {
            let (weak, pubsub) = (Arc::downgrade(self), attached.pubsub.clone());
            let (name, started) = (self.name.clone(), attached.started);
            let talking = async move { replicate(weak, pubsub, &name, started).await };
            tasks.push(runtime.spawn(talking).abort_handle());
        }
        if self.fetch.is_some() {
            let shared = self.clone();
            tasks.push(runtime.spawn(async move { shared.tell_enriched().await }).abort_handle());
        }
    }

    /// Ends what runs beside it, and says so to the other nodes, if they are to know.
    pub(super) fn end(&self) {
        let Some(attached) = self.attached.get() else { return };
        if std::mem::replace(&mut attached.state.lock().has_ended, true) {
            return;
        }
        tell(&attached.pubsub, &self.name, &self.farewell());
        attached.tasks.lock().drain(..).for_each(|task| task.abort());
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
        phx_ref::give(&mut meta, &name, None);
        let meta = Arc::new(meta);
        attached.change(|tracker| {
            let (topic, key) = (topic.clone(), key.clone());
            match tracker.track(actor.number(), &topic, &key, meta.clone()) {
                Ok(()) => Ok((Diff { joins: vec![(key, meta)], leaves: vec![] }, topic)),
                Err(_) => Err(PresenceError::AlreadyTracked { topic, key }),
            }
        })?;
        self.tell();
        Ok(name)
    }

    pub(super) fn update(
        &self,
        actor: SubscriberId,
        topic: &Arc<str>,
        key: &Arc<str>,
        change: impl FnOnce(&Map<String, Value>) -> Result<Map<String, Value>, PresenceError>,
    ) -> Result<String, PresenceError> {
        let attached = self.attached()?;
        let name = attached.name();
        attached.change(|tracker| {
            let (topic, key) = (topic.clone(), key.clone());
            let Some(old) = tracker.get(actor.number(), &topic, &key).cloned() else {
                return Err(PresenceError::NotTracked { topic, key });
            };
            let mut meta = change(&old)?;
            phx_ref::give(&mut meta, &name, phx_ref::of(&old));
            let meta = Arc::new(meta);
            let old = tracker.update(actor.number(), &topic, &key, meta.clone());
            let leaves = old.into_iter().map(|old| (key.clone(), old)).collect();
            Ok((Diff { joins: vec![(key, meta)], leaves }, topic))
        })?;
        self.tell();
        Ok(name)
    }

    pub(super) fn untrack(&self, actor: SubscriberId, topic: &Arc<str>, key: &Arc<str>) {
        let Ok(attached) = self.attached() else { return };
        let mut state = attached.state.lock();
        if let Some(gone) = state.tracker.untrack(actor.number(), topic, key) {
            let diff = Diff { joins: vec![], leaves: vec![(key.clone(), gone)] };
            state.waiting.add(Diffs::from_iter([(topic.clone(), diff)]));
        }
        drop(state);
        self.tell();
    }

    /// Somebody is gone from all topics.
    pub(super) fn leave(&self, actor: SubscriberId) {
        let Ok(attached) = self.attached() else { return };
        let mut state = attached.state.lock();
        let gone = state.tracker.untrack_all(actor.number());
        state.waiting.add(gone);
        drop(state);
        self.tell();
    }

    pub(super) async fn list(&self, topic: &str) -> Presences {
        let Ok(attached) = self.attached() else { return Presences::default() };
        let who = attached
            .look(|tracker| Presences::of(tracker.list(topic).map(|(key, meta)| (&**key, meta))));
        self.enriched(&topic.into(), who).await
    }

    pub(super) async fn get_by_key(&self, topic: &str, key: &str) -> Option<Map<String, Value>> {
        let attached = self.attached().ok()?;
        let who = attached
            .look(|tracker| Presences::of(tracker.get_by_key(topic, key).map(|meta| (key, meta))));
        if who.is_empty() {
            return None;
        }
        self.enriched(&topic.into(), who).await.take(key)
    }

    pub(super) fn len(&self) -> usize {
        self.attached().map_or(0, |attached| attached.look(Tracker::len))
    }

    fn attached(&self) -> Result<&Attached, PresenceError> {
        self.attached.get().ok_or(PresenceError::NotAttached)
    }

    /// Has told what has changed: here and now, or by the task that does it.
    fn tell(&self) {
        let Ok(attached) = self.attached() else { return };
        if self.fetch.is_some() {
            attached.changed.notify_one();
            return;
        }
        // Whoever tells at the moment tells this, too: nobody waits, not even for itself.
        while !attached.state.lock().waiting.is_empty() {
            let Some(_telling) = attached.telling.try_lock() else { return };
            while let Some(diff) = attached.next() {
                self.broadcast(attached, &diff);
            }
        }
    }

    /// Tells what has changed once it is enriched, one change after the other.
    async fn tell_enriched(&self) {
        let Ok(attached) = self.attached() else { return };
        loop {
            attached.changed.notified().await;
            while let Some(mut diff) = attached.next() {
                diff.joins = self.enriched(&diff.topic, diff.joins).await;
                diff.leaves = self.enriched(&diff.topic, diff.leaves).await;
                self.broadcast(attached, &diff);
            }
        }
    }

    fn broadcast(&self, attached: &Attached, diff: &PresenceDiff) {
        match Encoded::new(&diff.topic, DIFF, diff) {
            Ok(encoded) => attached.pubsub.tell_here(&encoded),
            Err(error) => tracing::error!(topic = %diff.topic, %error, "a diff cannot be told"),
        }
        if let Some(on_diff) = &self.on_diff
            && catch_unwind(AssertUnwindSafe(|| on_diff(diff))).is_err()
        {
            tracing::error!(topic = %diff.topic, "who was to be told of a diff has panicked");
        }
    }

    /// With what `fetch` adds, unless it panics.
    async fn enriched(&self, topic: &Arc<str>, mut who: Presences) -> Presences {
        let Some(fetch) = &self.fetch else { return who };
        let fetched = AssertUnwindSafe(async { fetch(topic.clone(), who.clone()).await });
        match fetched.catch_unwind().await {
            Ok(enriched) => who.enrich(enriched),
            Err(_) => tracing::error!(%topic, presence = self.name, "fetch has panicked"),
        }
        who
    }
}

impl Attached {
    /// A name for a meta.
    fn name(&self) -> String {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        phx_ref::make(time, self.giver, self.count.fetch_add(1, Relaxed))
    }

    fn look<T>(&self, look: impl FnOnce(&Tracker) -> T) -> T {
        look(&self.state.lock().tracker)
    }

    /// Changes the tracker, and notes what is to be told in the same order.
    fn change(
        &self,
        change: impl FnOnce(&mut Tracker) -> Result<(Diff, Arc<str>), PresenceError>,
    ) -> Result<(), PresenceError> {
        let mut state = self.state.lock();
        if state.has_ended {
            return Err(PresenceError::NotAttached);
        }
        let (diff, topic) = change(&mut state.tracker)?;
        state.waiting.add(Diffs::from_iter([(topic, diff)]));
        Ok(())
    }

    /// What is to be told next.
    fn next(&self) -> Option<PresenceDiff> {
        let (topic, diff) = self.state.lock().waiting.next()?;
        Some(PresenceDiff::new(topic, &diff))
    }
}

impl Replica for Shared {
    fn next_tick(&self) -> Option<Duration> {
        self.attached.get()?.state.lock().tracker.next_tick()
    }

    fn step(self: &Arc<Self>, input: Input, now: Duration) -> Vec<Outgoing> {
        let Some(attached) = self.attached.get() else { return Vec::new() };
        let mut state = attached.state.lock();
        let Step { diffs, send } = state.tracker.step(input, now);
        state.waiting.add(diffs);
        drop(state);
        self.tell();
        send
    }

    fn farewell(&self) -> Vec<Outgoing> {
        self.attached
            .get()
            .map(|attached| attached.state.lock().tracker.farewell())
            .unwrap_or_default()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

/// A meta as it is kept.
pub(super) fn object(
    meta: &(impl serde::Serialize + ?Sized),
) -> Result<Map<String, Value>, PresenceError> {
    match serde_json::to_value(meta) {
        Ok(Value::Object(meta)) => Ok(meta),
        Ok(_) => Err(PresenceError::NotAnObject),
        Err(error) => Err(PresenceError::Encode(error)),
    }
}
