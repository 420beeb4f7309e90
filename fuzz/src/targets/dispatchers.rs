//! Dispatchers: every event is delivered once to each consumer that it is for, queued, or counted as
//! discarded; no consumer receives more than it asked for; and exactly the unmet demand is taken.

use std::collections::VecDeque;

use pipeline_core::{
    dispatcher::{
        BroadcastDispatcher, Deliveries, Delivery, DemandDispatcher, Dispatcher, Marker,
        PartitionDispatcher, Subscriber,
    },
    subscription::{StageId, SubscribeOptions, SubscriptionId},
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Demand,
    Broadcast,
    /// Each consumer selects the events of its class.
    Selecting,
    Partition,
    /// A partition may have several consumers.
    Shared,
}

/// Events belong to one of these classes. The last one has no partition, and the one before it is unknown.
const CLASSES: u32 = 5;

const PARTITIONS: u32 = 3;

fn class(event: u32) -> u32 {
    event % CLASSES
}

struct Consumer {
    id: SubscriptionId,
    /// The class that it receives; [`CLASSES`] for all.
    class: u32,
    outstanding: usize,
    last: Option<u32>,
}

struct Model {
    kind: Kind,
    dispatcher: Box<dyn Dispatcher<u32>>,
    out: Deliveries<u32>,
    consumers: Vec<Consumer>,
    made: u64,
    next: u32,
    /// The events of each partition that have been taken and not delivered.
    queues: [VecDeque<u32>; PARTITIONS as usize],
    /// The markers that have not arrived, each with the last event before it.
    markers: VecDeque<(Marker, u32)>,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let kinds =
        [Kind::Demand, Kind::Broadcast, Kind::Selecting, Kind::Partition, Kind::Shared];
    let kind = input.choice(&kinds);
    let partitions = || {
        PartitionDispatcher::by_key(0..PARTITIONS, |event: &u32| {
            let class = class(*event);
            (class != CLASSES - 1).then_some(class)
        })
    };
    let dispatcher: Box<dyn Dispatcher<u32>> = match kind {
        Kind::Demand if input.flag() => Box::new(DemandDispatcher::new().shuffled()),
        Kind::Demand => Box::new(DemandDispatcher::new().max_demand(4)),
        Kind::Broadcast | Kind::Selecting => Box::new(BroadcastDispatcher::new()),
        Kind::Partition => Box::new(partitions()),
        Kind::Shared => Box::new(partitions().shared()),
    };
    let mut model = Model {
        kind,
        dispatcher,
        out: Deliveries::new(),
        consumers: Vec::new(),
        made: 0,
        next: 0,
        queues: Default::default(),
        markers: VecDeque::new(),
    };
    while !input.is_empty() {
        model.step(&mut input);
        model.check();
    }
}

impl Model {
    fn step(&mut self, input: &mut Input<'_>) {
        let who = input.below(self.consumers.len());
        match input.below(10) {
            0 => self.subscribe(input),
            1 if !self.consumers.is_empty() => {
                let gone = self.consumers.remove(who);
                self.dispatcher.cancel(gone.id, &mut self.out);
                self.receive(&[]);
            }
            2..=4 if !self.consumers.is_empty() => {
                let demand = match input.below(16) {
                    0 => usize::MAX,
                    small => small,
                };
                let consumer = &mut self.consumers[who];
                consumer.outstanding = consumer.outstanding.saturating_add(demand);
                self.dispatcher.ask(consumer.id, demand, &mut self.out);
                self.receive(&[]);
            }
            5 => {
                self.made += 1;
                let marker = Marker::new(self.made);
                self.markers.push_back((marker, self.next));
                self.dispatcher.info(marker, &mut self.out);
                self.receive(&[]);
            }
            _ => self.dispatch(input.below(30)),
        }
    }

    fn subscribe(&mut self, input: &mut Input<'_>) {
        let class = input.below(PARTITIONS as usize);
        self.made += 1;
        let (id, stage) = (SubscriptionId::new(self.made), StageId::new(self.made));
        let wanted = u32::try_from(class).unwrap_or_default();
        let (class, options) = match self.kind {
            Kind::Partition | Kind::Shared => (wanted, SubscribeOptions::new().partition(wanted)),
            Kind::Selecting if input.flag() => {
                let select = move |event: &u32| selects(wanted, *event);
                (wanted, SubscribeOptions::new().selector(select))
            }
            _ => (CLASSES, SubscribeOptions::new()),
        };
        let is_taken = self.consumers.iter().any(|it| it.class == wanted);
        let result = self.dispatcher.subscribe(Subscriber::new(id, stage, &options));
        if self.kind == Kind::Partition && is_taken {
            assert!(result.is_err(), "two consumers in one partition");
            return;
        }
        result.expect("its place is free");
        self.consumers.push(Consumer { id, class, outstanding: 0, last: None });
    }

    fn dispatch(&mut self, count: usize) {
        let first = self.next + 1;
        self.next += u32::try_from(count).unwrap_or_default();
        let mut events: VecDeque<u32> = (first..=self.next).collect();
        let unmet = self.dispatcher.unmet();
        self.dispatcher.dispatch(&mut events, &mut self.out);
        let taken: Vec<u32> = (first..=self.next).take(count - events.len()).collect();
        let left: Vec<u32> = (first..=self.next).skip(taken.len()).collect();
        assert_eq!(events, left, "the events that are left, of {first} to {}", self.next);
        // The stage keeps them, and emits them later. Here they are gone.
        let discarded = |event: &&u32| match self.kind {
            Kind::Partition | Kind::Shared => class(**event) >= PARTITIONS,
            Kind::Selecting => !self.consumers.iter().any(|it| it.wants(**event)),
            Kind::Demand | Kind::Broadcast => false,
        };
        let costing = taken.iter().filter(|event| !discarded(event)).count();
        match self.kind {
            Kind::Selecting => {
                let met = self.consumers.iter().all(|it| it.outstanding > 0);
                assert!(taken.len() >= unmet.min(count), "{} of {unmet}", taken.len());
                assert!(taken.is_empty() || met, "a consumer has no demand");
            }
            _ => {
                assert!(costing <= unmet, "{costing} events for a demand of {unmet}");
                assert!(costing == unmet || left.is_empty(), "{left:?} are left, with {unmet} unmet");
            }
        }
        self.receive(&taken);
    }

    /// Compares the deliveries with the events that were just taken, and with the queues.
    fn receive(&mut self, taken: &[u32]) {
        let deliveries: Vec<_> = self.out.drain().collect();
        let (filtered, unroutable) = self.out.take_discarded();
        self.out.take_warnings();
        let of_class = |wanted: u32| taken.iter().filter(|event| class(**event) == wanted).count();
        let is_partitioned = matches!(self.kind, Kind::Partition | Kind::Shared);
        if is_partitioned {
            assert_eq!((filtered, unroutable), (of_class(4), of_class(3)), "discarded");
            for event in taken.iter().filter(|event| class(**event) < PARTITIONS) {
                self.queues[class(*event) as usize].push_back(*event);
            }
        }
        let mut received: Vec<Vec<u32>> = vec![Vec::new(); self.consumers.len()];
        let mut in_order = Vec::new();
        for delivery in deliveries {
            match delivery {
                Delivery::Info(marker) => {
                    let (expected, before) = self.markers.pop_front().expect("a marker was sent");
                    assert_eq!(marker, expected, "the order of the markers");
                    let waiting = self.queues.iter().filter_map(VecDeque::front);
                    let earlier = waiting.min().filter(|event| **event <= before);
                    assert_eq!(earlier, None, "{marker:?} overtakes an event");
                }
                Delivery::Events { to, events } => {
                    let at = self.consumers.iter().position(|it| it.id == to);
                    let at = at.expect("a consumer that is subscribed");
                    let consumer = &mut self.consumers[at];
                    assert!(events.len() <= consumer.outstanding, "{events:?} for {}", consumer.outstanding);
                    consumer.outstanding -= events.len();
                    for event in &events {
                        assert!(Some(*event) > consumer.last, "{event} after {:?}", consumer.last);
                        consumer.last = Some(*event);
                        if is_partitioned {
                            let queue = &mut self.queues[consumer.class as usize];
                            assert_eq!(queue.pop_front(), Some(*event), "the next of its partition");
                        }
                    }
                    in_order.extend_from_slice(&events);
                    received[at].extend(events);
                }
            }
        }
        match self.kind {
            Kind::Demand => assert_eq!(in_order, taken, "each event is delivered once, in order"),
            Kind::Broadcast | Kind::Selecting => {
                for (consumer, received) in self.consumers.iter().zip(received) {
                    let wanted: Vec<u32> =
                        taken.iter().copied().filter(|event| consumer.wants(*event)).collect();
                    assert_eq!(received, wanted, "a consumer of class {}", consumer.class);
                }
                let wanted = |event: &&u32| self.consumers.iter().any(|it| it.wants(**event));
                let unwanted = taken.len() - taken.iter().filter(wanted).count();
                assert_eq!(filtered, unwanted, "events that no consumer selects");
            }
            Kind::Partition | Kind::Shared => {}
        }
    }

    fn check(&self) {
        let total: u128 = self.consumers.iter().map(|it| it.outstanding as u128).sum();
        for consumer in &self.consumers {
            assert_eq!(self.dispatcher.outstanding(consumer.id), consumer.outstanding);
        }
        let queued: usize = self.queues.iter().map(VecDeque::len).sum();
        assert_eq!(self.dispatcher.queued(), queued, "queued events");
        let expected = match self.kind {
            Kind::Demand => total,
            Kind::Broadcast | Kind::Selecting => {
                self.consumers.iter().map(|it| it.outstanding as u128).min().unwrap_or(0)
            }
            Kind::Partition | Kind::Shared => total.saturating_sub(queued as u128),
        };
        let expected = usize::try_from(expected).unwrap_or(usize::MAX);
        assert_eq!(self.dispatcher.unmet(), expected, "the unmet demand");
        if self.kind == Kind::Partition {
            for consumer in &self.consumers {
                let waits = !self.queues[consumer.class as usize].is_empty();
                assert!(!waits || consumer.outstanding == 0, "events wait with demand");
            }
        }
    }
}

impl Consumer {
    fn wants(&self, event: u32) -> bool {
        self.class >= CLASSES || selects(self.class, event)
    }
}

fn selects(wanted: u32, event: u32) -> bool {
    event % 4 == wanted
}
