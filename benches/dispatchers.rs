//! Throughput of each dispatcher with four consumers, and the cost of a fair queue.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

#[path = "common/baseline.rs"]
mod baseline;
mod common;

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use pipeline::{
    Graph, Pipeline,
    dispatcher::{BroadcastDispatcher, DemandDispatcher, PartitionDispatcher},
    source::{FairQueueOptions, QueueOptions, fair_queue, queue},
    stage::{DemandMode, Producer, Stage},
    subscription::SubscribeOptions,
};
use tokio::{
    runtime::Runtime,
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use self::{
    baseline::{batches, count_all},
    common::{Count, EVENTS, Numbers},
};

/// The number of consumers.
const CONSUMERS: u64 = 4;

/// The demand of each consumer.
const MAX_DEMAND: usize = 1000;

/// The size of a batch in the hand-written code.
const BATCH: usize = MAX_DEMAND / 2;

/// The capacity of a queue.
const CAPACITY: usize = 10_000;

fn dispatchers(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = group(c, "one producer to four consumers, demand");
    stages(&mut group, &runtime, EVENTS, |stage| stage.dispatcher(DemandDispatcher::default));
    baseline(&mut group, &runtime, EVENTS, "mpsc in turn", async |senders| {
        // A shared queue would need a lock around the receiver.
        for (events, sender) in batches(BATCH).zip(senders.iter().cycle()) {
            sender.send(events).await.unwrap();
        }
    });
    group.finish();

    let mut group = self::group(c, "one producer to four consumers, broadcast");
    let received = EVENTS * CONSUMERS;
    stages(&mut group, &runtime, received, |stage| stage.dispatcher(BroadcastDispatcher::new));
    baseline(&mut group, &runtime, received, "mpsc and clones", async |senders| {
        for events in batches(BATCH) {
            for sender in &senders {
                sender.send(events.clone()).await.unwrap();
            }
        }
    });
    // It has no back-pressure: its capacity is the total number of events.
    group.bench_function("tokio's broadcast", |b| {
        b.to_async(&runtime).iter(|| async {
            let count = Count::default();
            let sender = broadcast::Sender::new(batches(BATCH).count());
            let mut receiving = JoinSet::new();
            for _ in 0..CONSUMERS {
                let (count, mut receiver) = (count.clone(), sender.subscribe());
                receiving.spawn(async move {
                    while let Ok(events) = receiver.recv().await {
                        count.add(events);
                    }
                });
            }
            for events in batches(BATCH) {
                sender.send(events).unwrap();
            }
            drop(sender);
            receiving.join_all().await;
            assert_eq!(count.get(), received);
        });
    });
    group.finish();

    let mut group = self::group(c, "one producer to four consumers, partition");
    stages(&mut group, &runtime, EVENTS, |stage| {
        stage.dispatcher(|| PartitionDispatcher::by_key(0..CONSUMERS, |n| Some(n % CONSUMERS)))
    });
    baseline(&mut group, &runtime, EVENTS, "mpsc by key", async |senders| {
        for events in batches(BATCH) {
            let mut parts = vec![Vec::with_capacity(BATCH.div_ceil(senders.len())); senders.len()];
            for event in events {
                let part = usize::try_from(event % CONSUMERS).unwrap();
                parts[part].push(event);
            }
            for (part, sender) in parts.into_iter().zip(&senders) {
                sender.send(part).await.unwrap();
            }
        }
    });
    group.finish();
}

/// Measures stages. All consumers subscribe before the first event.
fn stages(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    received: u64,
    with_dispatcher: impl Fn(Stage<Numbers, u64>) -> Stage<Numbers, u64>,
) {
    group.bench_function("stages", |b| {
        b.to_async(runtime).iter(|| async {
            let count = Count::default();
            let mut graph = Graph::new("bench");
            let numbers = Stage::new(Numbers::default()).demand_mode(DemandMode::Accumulate);
            let numbers = graph.producer_with(with_dispatcher(numbers));
            let consumers: Vec<_> = (0..CONSUMERS)
                .map(|n| (n, graph.consumer(format!("consumer {n}"), count.clone())))
                .collect();
            let mut pipeline = graph.start().unwrap();
            for (n, consumer) in consumers {
                // Only the partition dispatcher uses the partition.
                let options = SubscribeOptions::new().max_demand(MAX_DEMAND).partition(n);
                consumer.subscribe(&numbers, options).await.unwrap();
            }
            numbers.set_demand_mode(DemandMode::Forward);
            assert_eq!(pipeline.join().await.unprocessed(), 0);
            assert_eq!(count.get(), received);
        });
    });
}

/// Measures the hand-written equivalent: a channel to each consumer.
fn baseline(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    received: u64,
    name: &str,
    send: impl AsyncFn(Vec<mpsc::Sender<Vec<u64>>>),
) {
    group.bench_function(name, |b| {
        b.to_async(runtime).iter(|| async {
            let count = Count::default();
            let mut receiving = JoinSet::new();
            let senders = (0..CONSUMERS).map(|_| {
                let (sender, receiver) = mpsc::channel(2);
                receiving.spawn(count_all(count.clone(), receiver));
                sender
            });
            send(senders.collect()).await;
            receiving.join_all().await;
            assert_eq!(count.get(), received);
        });
    });
}

fn fair_queues(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = group(c, "fair queue");
    group.bench_function("a queue that is not fair", |b| {
        b.to_async(&runtime).iter(|| async {
            let (queue, producer) = queue(QueueOptions::new().capacity(CAPACITY));
            let (count, pipeline) = counted(producer);
            for event in 0..EVENTS {
                queue.push(event).await.unwrap();
            }
            drop(queue);
            assert_complete(count, pipeline).await;
        });
    });
    for keys in [10, 1000] {
        group.bench_function(BenchmarkId::new("keys", keys), |b| {
            b.to_async(&runtime).iter(|| async {
                let options = FairQueueOptions::new().capacity(CAPACITY);
                // Each key has its share, so both queues have the same capacity.
                let (queue, producer) = fair_queue(options.key_capacity(CAPACITY / keys));
                let (count, pipeline) = counted(producer);
                for event in 0..EVENTS {
                    queue.push(event % keys as u64, event).await.unwrap();
                }
                drop(queue);
                assert_complete(count, pipeline).await;
            });
        });
    }
    group.finish();
}

fn counted(producer: impl Producer<Event = u64>) -> (Count, Pipeline) {
    let count = Count::default();
    let builder = Pipeline::builder("bench").producer(producer);
    let pipeline = builder.consumer(count.clone(), SubscribeOptions::new()).start().unwrap();
    (count, pipeline)
}

async fn assert_complete(count: Count, mut pipeline: Pipeline) {
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(count.get(), EVENTS);
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(EVENTS));
    group
}

criterion_group!(benches, dispatchers, fair_queues);
criterion_main!(benches);
