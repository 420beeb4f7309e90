//! The sending half of a stage: emitted = delivered + buffered + queued + discarded, in order, with no event
//! that was not asked for, in both modes and with all dispatchers.

use std::collections::VecDeque;

use pipeline_core::{
    dispatcher::{
        BroadcastDispatcher, Deliveries, Delivery, DemandDispatcher, Dispatcher, Marker,
        PartitionDispatcher, Subscriber,
    },
    fuzzing::StageOutlet,
    stage::{BufferKeep, DemandMode, WhenUnsubscribed},
    subscription::{StageId, SubscribeOptions, SubscriptionId},
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[];

/// Which events a subscriber receives, and in which order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Any, each one once.
    Demand,
    /// All, from its first one on.
    Broadcast,
    /// Those of its partition.
    Partition,
}

const PARTITIONS: usize = 3;

struct Subscribed {
    id: SubscriptionId,
    outstanding: usize,
    partition: usize,
    last: Option<u32>,
}

struct Model {
    kind: Kind,
    outlet: StageOutlet,
    out: Deliveries<u32>,
    subscribers: Vec<Subscribed>,
    made: u64,
    emitted: u32,
    /// Events that were sent; those of a broadcast count once.
    delivered: usize,
    discarded: usize,
    limit: usize,
    /// The markers that have not arrived, each with the last event before it.
    markers: VecDeque<(Marker, u32)>,
    /// The last event before the last marker that has arrived.
    settled: u32,
    allowance: usize,
    finished: bool,
    /// Whether the events leave in the order of their numbers.
    in_order: bool,
    asked: u128,
    passed_on: u128,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let kind = input.choice(&[Kind::Demand, Kind::Broadcast, Kind::Partition]);
    let limit = input.below(16);
    let keep = if input.flag() { BufferKeep::First } else { BufferKeep::Last };
    let mode = if input.flag() { DemandMode::Accumulate } else { DemandMode::Forward };
    let unsubscribed =
        if input.flag() { WhenUnsubscribed::Discard } else { WhenUnsubscribed::Buffer };
    let mut model = Model::new(kind, limit, keep, mode, unsubscribed);
    while !input.is_empty() {
        model.step(&mut input, mode, unsubscribed);
    }
    model.drain();
}

impl Model {
    fn new(
        kind: Kind,
        limit: usize,
        keep: BufferKeep,
        mode: DemandMode,
        unsubscribed: WhenUnsubscribed,
    ) -> Self {
        let dispatcher: Box<dyn Dispatcher<u32>> = match kind {
            Kind::Demand => Box::new(DemandDispatcher::new()),
            Kind::Broadcast => Box::new(BroadcastDispatcher::new()),
            Kind::Partition => Box::new(PartitionDispatcher::by_key(0..PARTITIONS, |event| {
                Some(partition(*event))
            })),
        };
        Self {
            kind,
            outlet: StageOutlet::new(dispatcher, limit, keep, mode, unsubscribed),
            out: Deliveries::new(),
            subscribers: Vec::new(),
            made: 0,
            emitted: 0,
            delivered: 0,
            discarded: 0,
            limit,
            markers: VecDeque::new(),
            settled: 0,
            allowance: usize::MAX,
            finished: false,
            in_order: true,
            asked: 0,
            passed_on: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>, mode: DemandMode, unsubscribed: WhenUnsubscribed) {
        let who = input.below(4);
        match input.below(16) {
            0 => self.subscribe(),
            1 if !self.subscribers.is_empty() => {
                let gone = self.subscribers.remove(who % self.subscribers.len());
                self.outlet.cancel(gone.id, &mut self.out);
            }
            2..=6 if !self.subscribers.is_empty() => {
                let demand = 1 + input.below(8);
                let who = who % self.subscribers.len();
                let subscriber = &mut self.subscribers[who];
                subscriber.outstanding += demand;
                self.asked += demand as u128;
                self.outlet.ask(subscriber.id, demand, &mut self.out);
            }
            7..=11 => self.emit(1 + input.below(12), unsubscribed),
            12 => {
                self.made += 1;
                let marker = Marker::new(self.made);
                self.markers.push_back((marker, self.emitted));
                self.outlet.mark(marker);
            }
            13 => {
                let other = if input.flag() { DemandMode::Forward } else { mode };
                self.outlet.set_mode(other);
            }
            14 => {
                self.allowance = if input.flag() { usize::MAX } else { input.below(6) };
                self.outlet.allow(self.allowance);
            }
            15 if input.below(16) == 0 => {
                self.finished = true;
                self.outlet.finish();
            }
            _ => {}
        }
        self.settle(input);
    }

    fn subscribe(&mut self) {
        if self.subscribers.len() == PARTITIONS {
            return;
        }
        let is_free = |place: &usize| !self.subscribers.iter().any(|it| it.partition == *place);
        let Some(partition) = (0..PARTITIONS).find(is_free) else { return };
        self.made += 1;
        let id = SubscriptionId::new(self.made);
        let options = SubscribeOptions::new().partition(partition);
        let subscriber = Subscriber::new(id, StageId::new(self.made), &options);
        self.outlet.subscribe(subscriber).expect("its place is free");
        self.subscribers.push(Subscribed { id, outstanding: 0, partition, last: None });
    }

    fn emit(&mut self, count: usize, unsubscribed: WhenUnsubscribed) {
        let first = self.emitted + 1;
        self.emitted += u32::try_from(count).unwrap_or_default();
        let events: Vec<u32> = (first..=self.emitted).collect();
        let emission = self.outlet.emit(&events, &mut self.out);
        let shown = format!("{emission:?} of {count}");
        assert!(emission.dispatched + emission.unsubscribed <= count, "{shown}");
        assert!(emission.overflow <= count, "{shown}");
        if emission.unsubscribed > 0 {
            assert!(unsubscribed == WhenUnsubscribed::Discard, "{shown}");
            assert!(self.subscribers.is_empty(), "{shown}");
        }
        self.discarded += emission.overflow + emission.unsubscribed;
        self.spend(emission.dispatched);
        self.receive();
    }

    fn spend(&mut self, events: usize) {
        if self.allowance != usize::MAX {
            assert!(events <= self.allowance, "{events} left, {} were allowed", self.allowance);
            self.allowance -= events;
        }
    }

    /// Does what a stage does after every change, with a producer that answers some demand at once.
    fn settle(&mut self, input: &mut Input<'_>) {
        self.receive();
        for _ in 0..2000 {
            let left = self.outlet.deliver(&mut self.out);
            self.spend(left);
            self.receive();
            // A stage that finishes does not ask its producer.
            let demand = if self.finished { 0 } else { self.outlet.new_demand() };
            if demand == 0 {
                break;
            }
            self.passed_on += demand as u128;
            // Discarded events are asked for again.
            let most = self.asked + self.discarded as u128;
            assert!(self.passed_on <= most, "{} of {most}", self.passed_on);
            let answer = input.below(demand.min(20) + 1);
            if answer > 0 {
                // The answer to a recorded demand goes before the events that were recorded after it.
                self.in_order &= !self.outlet.replays();
                self.emit(answer, WhenUnsubscribed::Discard);
            }
        }
        self.check();
    }

    fn receive(&mut self) {
        let deliveries: Vec<_> = self.out.drain().collect();
        assert_eq!(self.out.take_discarded(), (0, 0), "all events have a partition");
        let mut broadcast: Option<usize> = None;
        for delivery in deliveries {
            match delivery {
                Delivery::Info(marker) => {
                    let next = self.markers.pop_front();
                    let Some((expected, before)) = next else {
                        unreachable!("{marker:?} was not sent")
                    };
                    assert_eq!(marker, expected, "the order of the markers");
                    self.settled = before;
                }
                Delivery::Events { to, events } => {
                    self.arrive(to, &events);
                    let is_first = match self.kind {
                        Kind::Broadcast => {
                            self.subscribers.first().is_some_and(|first| first.id == to)
                        }
                        Kind::Demand | Kind::Partition => true,
                    };
                    if is_first {
                        self.delivered += events.len();
                        broadcast = Some(events.len());
                    } else {
                        assert_eq!(broadcast, Some(events.len()), "all receive the same");
                    }
                }
            }
        }
    }

    fn arrive(&mut self, to: SubscriptionId, events: &[u32]) {
        let Some(subscriber) = self.subscribers.iter_mut().find(|it| it.id == to) else {
            unreachable!("{events:?} for a subscriber that is gone")
        };
        assert!(
            events.len() <= subscriber.outstanding,
            "{} events for a demand of {}",
            events.len(),
            subscriber.outstanding
        );
        subscriber.outstanding -= events.len();
        for event in events {
            if self.kind == Kind::Partition {
                assert_eq!(partition(*event), subscriber.partition, "{event}");
            }
            if !self.in_order {
                continue;
            }
            assert!(Some(*event) > subscriber.last, "{event} arrives after {:?}", subscriber.last);
            subscriber.last = Some(*event);
            assert!(*event > self.settled, "{event} arrives after a marker behind {}", self.settled);
            let overtaken = self.markers.front().filter(|(_, before)| event > before);
            // Events of other partitions may overtake a marker.
            assert!(
                overtaken.is_none() || self.kind == Kind::Partition,
                "{event} overtakes {overtaken:?}"
            );
        }
    }

    fn check(&self) {
        let inside = self.outlet.undelivered();
        assert_eq!(
            self.emitted as usize,
            self.delivered + inside + self.discarded,
            "emitted = {} delivered + {inside} inside + {} discarded",
            self.delivered,
            self.discarded
        );
        assert!(self.outlet.buffered() <= self.limit, "{} buffered", self.outlet.buffered());
    }

    /// With unlimited demand, everything leaves.
    fn drain(mut self) {
        self.allowance = usize::MAX;
        self.outlet.allow(usize::MAX);
        self.outlet.set_mode(DemandMode::Forward);
        self.outlet.finish();
        while self.subscribers.len() < PARTITIONS {
            self.subscribe();
        }
        for subscriber in &mut self.subscribers {
            subscriber.outstanding += 100_000;
            self.outlet.ask(subscriber.id, 100_000, &mut self.out);
        }
        self.receive();
        self.outlet.deliver(&mut self.out);
        self.receive();
        assert!(self.outlet.is_empty(), "{} events are left", self.outlet.undelivered());
        assert_eq!(self.outlet.undelivered(), 0);
        assert!(self.markers.is_empty(), "{:?} have not arrived", self.markers);
        self.check();
    }
}

fn partition(event: u32) -> usize {
    event as usize % PARTITIONS
}
