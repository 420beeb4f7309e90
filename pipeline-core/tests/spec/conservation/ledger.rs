//! The ledger of a pipeline run, and dispatchers that write to it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason,
    dispatcher::{Deliveries, Delivery, Dispatcher, Marker, Subscriber},
    subscription::{Subscription, SubscriptionId},
};

/// The `n`th event emitted by an incarnation of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) origin: u64,
    pub(super) n: u64,
}

/// The events so far, and the violations.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    incarnations: u64,
    /// The number of events that callbacks emitted.
    emitted: usize,
    /// Events that a stage has finished.
    handled: HashSet<Event>,
    /// The subscription that an event was sent on.
    sent: HashMap<Event, SubscriptionId>,
    /// The last event received on each subscription.
    last: HashMap<SubscriptionId, Event>,
    /// The demand that producers received, and that subscriptions to them asked for.
    received: usize,
    asked: usize,
    subscriptions: Vec<Subscription>,
    ended: HashSet<SubscriptionId>,
    complaints: Vec<String>,
    /// Whether producers accumulate at times. Events that they emit meanwhile wait for events
    /// emitted for earlier demand.
    replays: bool,
}

impl Ledger {
    /// Expects producers to accumulate.
    pub(super) fn expect_replays(&self) {
        self.0.lock().replays = true;
    }

    /// An id for a new incarnation of a stage.
    pub(super) fn incarnation(&self) -> u64 {
        let entries = &mut *self.0.lock();
        entries.incarnations += 1;
        entries.incarnations
    }

    pub(super) fn complain(&self, complaint: String) {
        self.0.lock().complaints.push(complaint);
    }

    pub(super) fn emitted(&self, events: usize) {
        self.0.lock().emitted += events;
    }

    /// Records sent events.
    fn sent(&self, on: SubscriptionId, events: &[Event]) {
        let entries = &mut *self.0.lock();
        if entries.ended.contains(&on) {
            entries.complaints.push(format!("{events:?} were sent on {on:?}, which has ended"));
        }
        for event in events {
            if let Some(other) = entries.sent.insert(*event, on) {
                entries.complaints.push(format!("{event:?} was sent on {other:?} and on {on:?}"));
            }
        }
    }

    /// Records received events, on a subscription if it is known.
    pub(super) fn arrived(&self, from: Option<SubscriptionId>, events: &[Event]) {
        let entries = &mut *self.0.lock();
        if events.is_empty() {
            entries.complaints.push(format!("nothing arrived on {from:?}"));
        }
        for event in events {
            let Some(on) = entries.sent.get(event).copied() else {
                entries.complaints.push(format!("{event:?} was not sent"));
                continue;
            };
            if from.is_some_and(|from| from != on) {
                entries.complaints.push(format!("{event:?} was sent on {on:?}, not {from:?}"));
            }
            // Each subscription belongs to one stage.
            let last = entries.last.insert(on, *event);
            let replays = entries.replays;
            let is_late = |last: Event| !replays && last.n >= event.n;
            if last.is_some_and(|last| last.origin != event.origin || is_late(last)) {
                entries.complaints.push(format!("{event:?} came after {last:?} on {on:?}"));
            }
        }
    }

    /// Records finished events.
    pub(super) fn handled(&self, events: &[Event]) {
        let entries = &mut *self.0.lock();
        for event in events {
            if !entries.handled.insert(*event) {
                entries.complaints.push(format!("{event:?} was handled twice"));
            }
        }
    }

    pub(super) fn subscribed(&self, subscription: &Subscription) {
        self.0.lock().subscriptions.push(subscription.clone());
    }

    pub(super) fn ended(&self, subscription: &Subscription) {
        self.0.lock().ended.insert(subscription.id());
    }

    /// All subscriptions so far.
    pub(super) fn subscriptions(&self) -> Vec<Subscription> {
        self.0.lock().subscriptions.clone()
    }

    pub(super) fn received(&self, demand: usize) {
        self.0.lock().received += demand;
    }

    fn asked(&self, demand: usize) {
        self.0.lock().asked += demand;
    }

    /// The number of emitted and of handled events.
    pub(super) fn balance(&self) -> (usize, usize) {
        let entries = &*self.0.lock();
        (entries.emitted, entries.handled.len())
    }

    /// The demand that producers received, and the maximum that they were asked for.
    pub(super) fn demand(&self) -> (usize, usize) {
        let entries = &*self.0.lock();
        (entries.received, entries.asked)
    }

    pub(super) fn complaints(&self) -> Vec<String> {
        self.0.lock().complaints.clone()
    }
}

/// A wrapped dispatcher: events that it sends on a subscription must have been asked for.
pub(super) struct Watched<D> {
    dispatcher: D,
    ledger: Ledger,
    /// Whether it belongs to a producer.
    first: bool,
    /// The outstanding demand of each subscription.
    outstanding: HashMap<SubscriptionId, usize>,
}

impl<D: Dispatcher<Event>> Watched<D> {
    pub(super) fn new(dispatcher: D, ledger: Ledger, first: bool) -> Self {
        Self { dispatcher, ledger, first, outstanding: HashMap::new() }
    }

    /// Calls the dispatcher and checks the events that it sends.
    fn watch(
        &mut self,
        out: &mut Deliveries<Event>,
        act: impl FnOnce(&mut D, &mut Deliveries<Event>),
    ) {
        let mut deliveries = Deliveries::new();
        act(&mut self.dispatcher, &mut deliveries);
        for delivery in deliveries.drain() {
            match delivery {
                Delivery::Info(marker) => out.info(marker),
                Delivery::Events { to, events } => {
                    match self.outstanding.get_mut(&to) {
                        Some(left) if *left >= events.len() => *left -= events.len(),
                        left => self.ledger.complain(format!(
                            "{} events were sent on {to:?}, which wanted {left:?}",
                            events.len()
                        )),
                    }
                    self.ledger.sent(to, &events);
                    out.send(to, events);
                }
            }
        }
        for (id, outstanding) in &self.outstanding {
            let known = self.dispatcher.outstanding(*id);
            if known != *outstanding {
                self.ledger.complain(format!("{id:?}: {known} are not {outstanding}"));
            }
        }
    }
}

impl<D: Dispatcher<Event>> Dispatcher<Event> for Watched<D> {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.dispatcher.subscribe(subscriber)?;
        if self.outstanding.insert(subscriber.id, 0).is_some() {
            self.ledger.complain(format!("{:?} has subscribed twice", subscriber.id));
        }
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<Event>) {
        if self.outstanding.remove(&id).is_none() {
            self.ledger.complain(format!("{id:?} was cancelled and is not known"));
        }
        self.watch(out, |dispatcher, out| dispatcher.cancel(id, out));
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<Event>) {
        match self.outstanding.get_mut(&id) {
            Some(outstanding) if demand > 0 => *outstanding += demand,
            _ => self.ledger.complain(format!("{id:?} asked for {demand}")),
        }
        if self.first {
            self.ledger.asked(demand);
        }
        self.watch(out, |dispatcher, out| dispatcher.ask(id, demand, out));
    }

    fn unmet(&self) -> usize {
        self.dispatcher.unmet()
    }

    fn dispatch(&mut self, events: &mut VecDeque<Event>, out: &mut Deliveries<Event>) {
        if events.is_empty() {
            self.ledger.complain("there was nothing to dispatch".into());
        }
        self.watch(out, |dispatcher, out| dispatcher.dispatch(events, out));
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<Event>) {
        self.watch(out, |dispatcher, out| dispatcher.info(marker, out));
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.dispatcher.outstanding(id)
    }

    fn queued(&self) -> usize {
        self.dispatcher.queued()
    }
}

/// A dispatcher with queues of its own: even events go to one subscriber, odd ones to another, and
/// a third is refused.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: [Lane; 2],
    markers: VecDeque<Marker>,
}

#[derive(Default)]
struct Lane {
    subscriber: Option<(SubscriptionId, usize)>,
    queue: VecDeque<Event>,
}

impl Lanes {
    fn flush(&mut self, out: &mut Deliveries<Event>) {
        for Lane { subscriber, queue } in &mut self.lanes {
            if let Some((id, outstanding)) = subscriber {
                let count = queue.len().min(*outstanding);
                *outstanding -= count;
                out.send(*id, queue.drain(..count).collect());
            }
        }
        if self.lanes.iter().all(|lane| lane.queue.is_empty()) {
            self.markers.drain(..).for_each(|marker| out.info(marker));
        }
    }

    fn lane(&mut self, id: SubscriptionId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.subscriber.is_some_and(|(other, _)| other == id))
    }
}

impl Dispatcher<Event> for Lanes {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        let free = self.lanes.iter_mut().find(|lane| lane.subscriber.is_none());
        let lane = free.ok_or_else(|| ExitReason::failed("both lanes are taken"))?;
        lane.subscriber = Some((subscriber.id, 0));
        Ok(())
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<Event>) {
        if let Some(lane) = self.lane(id) {
            lane.subscriber = None;
        }
        self.flush(out);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<Event>) {
        if let Some(Lane { subscriber: Some((_, outstanding)), .. }) = self.lane(id) {
            *outstanding += demand;
        }
        self.flush(out);
    }

    fn unmet(&self) -> usize {
        let asked = self.lanes.iter().filter_map(|lane| lane.subscriber).map(|(_, asked)| asked);
        asked.sum::<usize>().saturating_sub(Dispatcher::queued(self))
    }

    fn dispatch(&mut self, events: &mut VecDeque<Event>, out: &mut Deliveries<Event>) {
        let count = events.len().min(self.unmet());
        for event in events.drain(..count) {
            let [even, odd] = &mut self.lanes;
            let lane = if event.n % 2 == 0 { even } else { odd };
            lane.queue.push_back(event);
        }
        self.flush(out);
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<Event>) {
        self.markers.push_back(marker);
        self.flush(out);
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        let mut subscribers = self.lanes.iter().filter_map(|lane| lane.subscriber);
        subscribers.find(|(other, _)| *other == id).map_or(0, |(_, outstanding)| outstanding)
    }

    fn queued(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queue.len()).sum()
    }
}
