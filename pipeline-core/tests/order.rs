//! The promised orders on several threads, in random schedules: of a queue, of each key, of each
//! subscription, of a partition, and of a supervisor with one child.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    Graph, Pipeline,
    dispatcher::PartitionDispatcher,
    source::{FairQueue, FairQueueOptions, Queue, QueueOptions, fair_queue, queue},
    stage::{Producer, Stage},
    step::{for_each, map},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
};
use pipeline_test_support::{Schedule, on_any_schedule};

/// The number of the items of each key.
const ITEMS: u64 = 40;

/// An item: its key, and its number among those of the key.
type Item = (u64, u64);

/// The pushing end of either queue.
#[derive(Clone)]
enum Pushing {
    Plain(Queue<Item>),
    Fair(FairQueue<u64, Item>),
}

impl Pushing {
    /// Pushes an item in one of the ways that keep it.
    async fn push(&self, item: Item, schedule: &mut Schedule) {
        let mut tries = schedule.pick(..3);
        loop {
            let refused = match (self, tries) {
                (Self::Plain(queue), 0) => return queue.push(item).await.unwrap(),
                (Self::Fair(queue), 0) => return queue.push(item.0, item).await.unwrap(),
                (Self::Plain(queue), _) => queue.try_push(item).is_err(),
                (Self::Fair(queue), _) => queue.try_push(item.0, item).is_err(),
            };
            if !refused {
                return;
            }
            tries -= 1;
            schedule.pause().await;
        }
    }
}

impl Pushing {
    /// Pushes two items at once, which both wait if there is no room.
    async fn push_both(&self, [first, second]: [Item; 2]) {
        let (first, second) = match self {
            Self::Plain(queue) => tokio::join!(queue.push(first), queue.push(second)),
            Self::Fair(queue) => {
                tokio::join!(queue.push(first.0, first), queue.push(second.0, second))
            }
        };
        assert!(first.is_ok() && second.is_ok());
    }
}

/// Pushes the items of each key from a task of its own.
fn push_all(queue: &Pushing, keys: u64, schedule: &mut Schedule) {
    for key in 0..keys {
        let (queue, mut schedule) = (queue.clone(), schedule.fork());
        tokio::spawn(async move {
            for number in (0..ITEMS).step_by(2) {
                let pair = [(key, number), (key, number + 1)];
                if schedule.once_in(2) {
                    queue.push_both(pair).await;
                } else {
                    for item in pair {
                        queue.push(item, &mut schedule).await;
                    }
                }
                schedule.pause().await;
            }
        });
    }
}

/// The handled items, with a random pause before each.
#[derive(Clone)]
struct Handled {
    items: Arc<Mutex<Vec<Item>>>,
    schedule: Arc<Mutex<Schedule>>,
}

impl Handled {
    fn new(schedule: &mut Schedule) -> Self {
        Self { items: Arc::default(), schedule: Arc::new(Mutex::new(schedule.fork())) }
    }

    async fn handle(&self, item: Item) {
        let mut schedule = self.schedule.lock().fork();
        schedule.pause().await;
        self.items.lock().push(item);
        schedule.pause().await;
    }

    /// Asserts that all items of some keys were handled, once and in order.
    fn assert_ordered(&self, keys: impl Iterator<Item = u64>) {
        let items = self.items.lock();
        let mut by_key = HashMap::<u64, Vec<u64>>::new();
        items.iter().for_each(|(key, number)| by_key.entry(*key).or_default().push(*number));
        let in_order: HashMap<_, Vec<u64>> = keys.map(|key| (key, (0..ITEMS).collect())).collect();
        assert_eq!(by_key, in_order);
    }
}

fn demand(schedule: &mut Schedule) -> SubscribeOptions {
    let max = schedule.one_of(&[1, 2, 7, 100]);
    SubscribeOptions::new().max_demand(max).min_demand(schedule.pick(..max))
}

/// A pipeline of two stages behind each other, the last of which handles one event at a time.
fn linear<P>(producer: P, handled: &Handled, schedule: &mut Schedule) -> Pipeline
where
    P: Producer<Event = Item>,
{
    let (handling, mut mapping) = (handled.clone(), schedule.fork());
    let builder = Pipeline::builder("linear").producer(producer);
    let builder = builder.producer_consumer(
        map(move |item: Item| {
            mapping.hesitate();
            item
        }),
        demand(schedule),
    );
    if schedule.once_in(2) {
        let consumer = for_each(move |item| {
            let handling = handling.clone();
            async move { handling.handle(item).await }
        });
        builder.consumer(consumer, demand(schedule)).start().unwrap()
    } else {
        let supervisor = ConsumerSupervisor::new(async move |item: &Item| {
            handling.handle(*item).await;
            Ok(())
        });
        let options = SubscribeOptions::new().max_demand(1).min_demand(0);
        builder.consumer_supervisor(supervisor, options).start().unwrap()
    }
}

/// A producer whose events of one key go to one consumer.
fn partitioned<P>(producer: P, handled: &[Handled], schedule: &mut Schedule) -> Pipeline
where
    P: Producer<Event = Item>,
{
    let partitions = handled.len() as u64;
    let dispatcher = move || {
        PartitionDispatcher::by_key(0..partitions, move |item: &Item| Some(item.0 % partitions))
    };
    let mut graph = Graph::new("partitioned");
    let producer = graph.producer_with(Stage::new(producer).dispatcher(dispatcher));
    for (partition, handled) in (0..).zip(handled) {
        let handled = handled.clone();
        let consumer = for_each(move |item| {
            let handled = handled.clone();
            async move { handled.handle(item).await }
        });
        let consumer = graph.consumer(format!("consumer {partition}"), consumer);
        graph.subscribe(&consumer, &producer, demand(schedule).partition::<u64>(partition));
    }
    graph.start().unwrap()
}

async fn run<P>(producer: P, queue: Pushing, mut schedule: Schedule)
where
    P: Producer<Event = Item>,
{
    let keys = schedule.pick(1..=4) as u64;
    let partitions = schedule.pick(1..=3);
    let handled: Vec<_> = (0..partitions).map(|_| Handled::new(&mut schedule)).collect();
    let is_linear = partitions == 1;
    let mut pipeline = if is_linear {
        linear(producer, &handled[0], &mut schedule)
    } else {
        partitioned(producer, &handled, &mut schedule)
    };
    push_all(&queue, keys, &mut schedule);
    drop(queue);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    for (partition, handled) in (0..).zip(&handled) {
        handled.assert_ordered((0..keys).filter(|key| key % partitions as u64 == partition));
    }
}

async fn case(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let capacity = schedule.one_of(&[1, 3, 1_000]);
    if schedule.once_in(2) {
        let (queue, producer) = queue(QueueOptions::new().capacity(capacity));
        run(producer, Pushing::Plain(queue), schedule).await;
    } else {
        let key_capacity = schedule.one_of(&[1, 2, 100]);
        let options = FairQueueOptions::new().capacity(capacity).key_capacity(key_capacity);
        let (queue, producer) = fair_queue(options);
        run(producer, Pushing::Fair(queue), schedule).await;
    }
}

#[test]
fn items_of_a_key_are_handled_once_and_in_order_whichever_threads_run_the_stages() {
    on_any_schedule(150, case);
}
