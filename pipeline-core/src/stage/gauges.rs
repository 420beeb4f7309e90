//! The gauges of a running stage.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::times::Times;
use crate::{
    exit::ExitReason,
    snapshot::{Activity, SourceSnapshot, StageKind, StageSnapshot, SubscriptionSnapshot},
    subscription::{Subscription, SubscriptionId},
    tally::Tally,
    telemetry::{Discard, Refusal},
};

/// Numbers that the stage writes and a snapshot reads. They do not synchronize anything.
#[derive(Debug)]
pub(crate) struct Gauges {
    kind: StageKind,
    buffer_capacity: Option<usize>,
    pub(crate) events_in: Tally,
    pub(crate) events_out: Tally,
    pub(crate) waiting: AtomicUsize,
    /// Events that wait in a supervisor for a child.
    pub(crate) childless: AtomicUsize,
    pub(crate) buffered: AtomicUsize,
    pub(crate) workers: AtomicUsize,
    pub(crate) worker_failures: Tally,
    /// Events whose workers failed too often.
    pub(crate) given_up: Tally,
    /// The number of events in a callback, for stages whose callbacks may take long.
    in_callback: AtomicUsize,
    /// How often an incarnation has failed.
    pub(crate) failures: Tally,
    /// Why it has failed for good.
    failure: Mutex<Option<ExitReason>>,
    /// By reason. A queue counts its own discarded items.
    discarded: [Tally; Discard::ALL.len()],
    starts: AtomicU64,
    begun: AtomicBool,
    times: Times,
    queue: Mutex<QueueGauge>,
    /// What a producer reports about what it reads from.
    source: SourceReport,
    consumers: Mutex<Vec<(Subscription, Arc<str>)>>,
}

impl Gauges {
    /// Gauges of a stage of this kind, with the capacity of its buffer, if it is bounded.
    pub(crate) fn new(kind: StageKind, buffer_capacity: Option<usize>) -> Self {
        Self {
            kind,
            buffer_capacity,
            events_in: Tally::default(),
            events_out: Tally::default(),
            waiting: AtomicUsize::default(),
            childless: AtomicUsize::default(),
            buffered: AtomicUsize::default(),
            workers: AtomicUsize::default(),
            worker_failures: Tally::default(),
            given_up: Tally::default(),
            in_callback: AtomicUsize::default(),
            failures: Tally::default(),
            failure: Mutex::default(),
            discarded: Default::default(),
            starts: AtomicU64::default(),
            begun: AtomicBool::default(),
            times: Times::default(),
            queue: Mutex::default(),
            source: SourceReport::default(),
            consumers: Mutex::default(),
        }
    }

    /// Records a new activity.
    pub(crate) fn enter(&self, activity: Activity) {
        self.times.enter(activity, Instant::now());
    }

    /// Resets the gauges for a new incarnation of the stage.
    pub(crate) fn started(&self) {
        self.starts.fetch_add(1, Relaxed);
        self.waiting.store(0, Relaxed);
        self.childless.store(0, Relaxed);
        self.in_callback.store(0, Relaxed);
        self.buffered.store(0, Relaxed);
        self.enter(Activity::Starting);
    }

    /// Records that the stage has made its subscriptions and is ready for events.
    pub(crate) fn begun(&self) {
        self.begun.store(true, Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Relaxed)
    }

    /// Records that the stage has ended, temporarily or for good. The counts stay visible;
    /// connections are dropped.
    pub(crate) fn vacated(&self, restarting: bool) {
        self.consumers.lock().clear();
        self.workers.store(0, Relaxed);
        self.queue.lock().clear();
        self.source.vacated();
        self.enter(if restarting { Activity::Starting } else { Activity::Ended });
    }

    /// Records that the stage has failed and is not restarted.
    pub(crate) fn failed_for_good(&self, reason: &ExitReason) {
        *self.failure.lock() = Some(reason.clone());
    }

    /// Records the number of events in a callback, 0 for none, and the number of events behind them
    /// in the same message.
    #[inline]
    pub(crate) fn set_in_callback(&self, events: usize, behind: usize) {
        self.in_callback.store(events, Relaxed);
        self.waiting.store(behind, Relaxed);
    }

    /// Records how many children a supervisor runs itself, one or none, and how many events wait
    /// for a child.
    #[inline]
    pub(crate) fn set_inline(&self, children: usize, childless: usize) {
        self.in_callback.store(children, Relaxed);
        self.childless.store(childless, Relaxed);
    }

    pub(crate) fn in_callback(&self) -> usize {
        self.in_callback.load(Relaxed)
    }

    /// Sets the queue before the stage.
    pub(crate) fn set_queue(&self, queue: impl QueueProbe + 'static) {
        self.queue.lock().set(Arc::new(queue));
    }

    /// The report of a durable source, which exists from now on.
    pub(crate) fn source_report(&self) -> SourceReport {
        self.source.update(|_| {});
        self.source.clone()
    }

    /// Closes the queue before the stage, if there is one.
    pub(crate) fn close_queue(&self) {
        // A waker may read the snapshot, so the lock is released before the queue wakes the waiting tasks.
        let queue = self.queue.lock().queue();
        if let Some(queue) = queue {
            queue.close();
        }
    }

    pub(crate) fn discarded(&self, why: Discard, events: usize) {
        self.discarded[why as usize].add(events);
    }

    /// The discarded events that the stage's report counts.
    pub(crate) fn reported_discards(&self) -> usize {
        let discarded = |why: Discard| self.discarded[why as usize].get();
        let events: u64 = Discard::REPORTED.map(discarded).into_iter().sum();
        usize::try_from(events).unwrap_or(usize::MAX)
    }

    pub(crate) fn subscribed(&self, subscription: Subscription, consumer: Arc<str>) {
        self.consumers.lock().push((subscription, consumer));
    }

    pub(crate) fn unsubscribed(&self, id: SubscriptionId) {
        self.consumers.lock().retain(|(subscription, _)| subscription.id() != id);
    }

    pub(crate) fn snapshot(&self, stage: Arc<str>) -> StageSnapshot {
        let consumers = self.consumers.lock();
        let subscription = |(subscription, consumer): &(Subscription, Arc<str>)| {
            let (id, pending_demand) = (subscription.id(), subscription.pending_demand());
            let sent = subscription.total_sent();
            SubscriptionSnapshot { id, consumer: consumer.clone(), pending_demand, sent }
        };
        let subscriptions = consumers.iter().map(subscription).collect();
        drop(consumers);
        let queued = self.queue.lock().queued();
        let discarded = |why: Discard| {
            let by_queue = if why == Discard::QueueFull { queued.discarded } else { 0 };
            (Cow::from(why.reason()), self.discarded[why as usize].get() + by_queue)
        };
        let discarded = Discard::ALL.map(discarded).into_iter();
        let discarded_by: BTreeMap<_, _> = discarded.filter(|(_, events)| *events > 0).collect();
        let refused = Refusal::ALL.map(|why| Cow::from(why.reason())).into_iter();
        let refused = refused.zip(queued.refused).filter(|(_, items)| *items > 0);
        let refused_by: BTreeMap<_, _> = refused.collect();
        let times = self.times.at(Instant::now());
        let supervises = self.kind == StageKind::ConsumerSupervisor;
        StageSnapshot {
            stage,
            kind: self.kind,
            activity: times.activity,
            events_in: self.events_in.get(),
            events_out: self.events_out.get(),
            queued: queued.items,
            queue_capacity: queued.capacity,
            source: self.source.snapshot(),
            waiting: self.waiting.load(Relaxed) + self.childless.load(Relaxed),
            buffered: self.buffered.load(Relaxed),
            buffer_capacity: self.buffer_capacity,
            discarded: discarded_by.values().sum(),
            discarded_by,
            refused: refused_by.values().sum(),
            refused_by,
            workers: supervises.then(|| self.workers.load(Relaxed)),
            worker_failures: self.worker_failures.get(),
            given_up: self.given_up.get(),
            failures: self.failures.get(),
            failure: self.failure.lock().clone(),
            restarts: self.starts.load(Relaxed).saturating_sub(1),
            busy: times.busy,
            waiting_for_events: times.waiting_for_events,
            waiting_for_demand: times.waiting_for_demand,
            subscriptions,
        }
    }
}

/// What a producer reports about the durable source that it reads from, for the stage's
/// [snapshots](crate::snapshot::StageSnapshot::source). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SourceReport(Arc<Mutex<Option<SourceSnapshot>>>);

impl SourceReport {
    /// Changes the report.
    pub fn update(&self, change: impl FnOnce(&mut SourceSnapshot)) {
        change(self.0.lock().get_or_insert_default());
    }

    fn snapshot(&self) -> Option<SourceSnapshot> {
        self.0.lock().clone()
    }

    fn vacated(&self) {
        if let Some(source) = &mut *self.0.lock() {
            source.connected = false;
        }
    }
}

/// The queue before a stage, if there is one, or its last state.
#[derive(Default)]
struct QueueGauge {
    queue: Option<Arc<dyn QueueProbe>>,
    last: QueueState,
    /// What earlier queues of the same stage discarded and refused.
    before: QueueState,
}

/// A queue as its stage's gauges see it.
pub(crate) trait QueueProbe: Send + Sync {
    fn state(&self) -> QueueState;

    /// Closes the queue, and wakes the tasks that wait to push.
    fn close(&self);
}

/// The state of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueState {
    pub(crate) items: usize,
    /// The capacity of the queue; `None` if there is no queue.
    pub(crate) capacity: Option<usize>,
    pub(crate) discarded: u64,
    /// By reason, in the order of [`Refusal::ALL`].
    pub(crate) refused: [u64; Refusal::ALL.len()],
}

impl QueueGauge {
    /// Sets the current queue.
    fn set(&mut self, queue: Arc<dyn QueueProbe>) {
        self.before = self.queued();
        self.queue = Some(queue);
    }

    /// Drops the queue and keeps its last state.
    fn clear(&mut self) {
        self.last = self.queued();
        self.before = QueueState::default();
        self.queue = None;
    }

    /// The current queue, if there is one.
    fn queue(&self) -> Option<Arc<dyn QueueProbe>> {
        self.queue.clone()
    }

    fn queued(&self) -> QueueState {
        let now = self.queue.as_ref().map_or(self.last, |queue| queue.state());
        let mut refused = now.refused;
        for (sum, before) in refused.iter_mut().zip(self.before.refused) {
            *sum += before;
        }
        QueueState { discarded: self.before.discarded + now.discarded, refused, ..now }
    }
}

impl fmt::Debug for QueueGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queued().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Holding(Arc<usize>, u64);

    impl QueueProbe for Holding {
        fn state(&self) -> QueueState {
            QueueState {
                items: *self.0,
                capacity: Some(9),
                discarded: self.1,
                refused: [0, self.1, 0],
            }
        }

        fn close(&self) {}
    }

    fn queue(items: usize, discarded: u64) -> Arc<dyn QueueProbe> {
        Arc::new(Holding(Arc::new(items), discarded))
    }

    #[test]
    fn the_last_state_of_a_dropped_queue_is_kept() {
        let mut gauge = QueueGauge::default();
        assert_eq!(gauge.queued(), QueueState::default());
        let items = Arc::new(3);
        gauge.set(Arc::new(Holding(items.clone(), 1)));
        gauge.clear();
        let last = QueueState { items: 3, capacity: Some(9), discarded: 1, refused: [0, 1, 0] };
        assert_eq!(gauge.queued(), last);
        assert_eq!(Arc::strong_count(&items), 1, "the queue must be dropped");
    }

    #[test]
    fn discarded_and_refused_items_are_counted_across_queues() {
        let mut gauge = QueueGauge::default();
        gauge.set(queue(3, 5));
        gauge.clear();
        gauge.set(queue(1, 2));
        let both = QueueState { items: 1, capacity: Some(9), discarded: 7, refused: [0, 7, 0] };
        assert_eq!(gauge.queued(), both);
        gauge.clear();
        assert_eq!((gauge.queued().discarded, gauge.queued().refused), (7, [0, 7, 0]));
    }
}
