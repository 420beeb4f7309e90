//! What a stage shows of itself while it runs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::times::Times;
use crate::{
    snapshot::{Activity, StageSnapshot, SubscriptionSnapshot},
    subscription::{Subscription, SubscriptionId},
};

/// Numbers that the stage writes and a snapshot reads. None of them orders anything.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) events_in: Tally,
    pub(crate) events_out: Tally,
    pub(crate) waiting: AtomicUsize,
    pub(crate) buffered: AtomicUsize,
    pub(crate) discarded: Tally,
    starts: AtomicU64,
    times: Times,
    consumers: Mutex<Vec<(Subscription, Arc<str>)>>,
}

/// A sum that one task adds to and any may read.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Gauges {
    /// The stage does something else from now on.
    pub(crate) fn enter(&self, activity: Activity) {
        self.times.enter(activity, Instant::now());
    }

    /// A new incarnation of the stage begins.
    pub(crate) fn started(&self) {
        self.starts.fetch_add(1, Relaxed);
        self.waiting.store(0, Relaxed);
        self.buffered.store(0, Relaxed);
        self.consumers.lock().clear();
        self.enter(Activity::Starting);
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
            let (id, pending) = (subscription.id(), subscription.pending());
            SubscriptionSnapshot { id, consumer: consumer.clone(), pending }
        };
        let subscriptions = consumers.iter().map(subscription).collect();
        drop(consumers);
        let times = self.times.at(Instant::now());
        StageSnapshot {
            stage,
            activity: times.activity,
            events_in: self.events_in.get(),
            events_out: self.events_out.get(),
            waiting: self.waiting.load(Relaxed),
            buffered: self.buffered.load(Relaxed),
            discarded: self.discarded.get(),
            restarts: self.starts.load(Relaxed).saturating_sub(1),
            busy: times.busy,
            waiting_for_events: times.waiting_for_events,
            waiting_for_demand: times.waiting_for_demand,
            subscriptions,
        }
    }
}

impl Tally {
    /// Not for two tasks at a time: one would forget what the other has added.
    #[inline]
    pub(crate) fn add(&self, events: usize) {
        self.0.store(self.get().wrapping_add(events as u64), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
