//! Throughput of stages: from a task into a queue, from a producer to a consumer, through a
//! producer-consumer, and through supervised workers.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

#[path = "common/baseline.rs"]
mod baseline;
mod common;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::{
    ExitReason, Pipeline,
    source::{QueueOptions, queue},
    stage::{Emitter, ProducerConsumer},
    subscription::{SubscribeOptions, Subscription},
    supervisor::ConsumerSupervisor,
};
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, mpsc},
};

use self::{
    baseline::{batches, count_all},
    common::{Count, EVENTS, Numbers},
};

/// Emits the events that it receives.
struct Identity;

impl ProducerConsumer for Identity {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

fn producer_to_consumer(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("producer to consumer");
    group.throughput(Throughput::Elements(EVENTS));
    for max in [1, 10, 100, 1000, 10_000] {
        let demand = SubscribeOptions::new().max_demand(max).min_demand(max / 2);
        group.bench_function(BenchmarkId::new("stages", max), |b| {
            b.to_async(&runtime).iter(|| async {
                let count = Count::default();
                let builder = Pipeline::builder("bench").producer(Numbers::default());
                let mut pipeline = builder.consumer(count.clone(), demand.clone()).start().unwrap();
                assert_eq!(pipeline.join().await.unprocessed(), 0);
                assert_eq!(count.get(), EVENTS);
            });
        });
        // The hand-written equivalent, with as many events in flight.
        let size = max.div_ceil(2);
        group.bench_function(BenchmarkId::new("mpsc of batches", max), |b| {
            b.to_async(&runtime).iter(|| async {
                let count = Count::default();
                let (sender, receiver) = mpsc::channel(max / size);
                let receiving = tokio::spawn(count_all(count.clone(), receiver));
                let sending = tokio::spawn(async move {
                    for events in batches(size) {
                        sender.send(events).await.unwrap();
                    }
                });
                sending.await.unwrap();
                receiving.await.unwrap();
                assert_eq!(count.get(), EVENTS);
            });
        });
    }
}

fn three_stages(c: &mut Criterion) {
    const MAX: usize = 1000;
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("producer to producer-consumer to consumer");
    group.throughput(Throughput::Elements(EVENTS));
    let demand = SubscribeOptions::new().max_demand(MAX);
    group.bench_function(BenchmarkId::new("stages", MAX), |b| {
        b.to_async(&runtime).iter(|| async {
            let count = Count::default();
            let builder = Pipeline::builder("bench").producer(Numbers::default());
            let builder = builder.producer_consumer(Identity, demand.clone());
            let mut pipeline = builder.consumer(count.clone(), demand.clone()).start().unwrap();
            assert_eq!(pipeline.join().await.unprocessed(), 0);
            assert_eq!(count.get(), EVENTS);
        });
    });
    // The hand-written equivalent.
    group.bench_function(BenchmarkId::new("mpsc of batches", MAX), |b| {
        b.to_async(&runtime).iter(|| async {
            let count = Count::default();
            let (first, mut between) = mpsc::channel(2);
            let (second, receiver) = mpsc::channel(2);
            let receiving = tokio::spawn(count_all(count.clone(), receiver));
            let handing_on = tokio::spawn(async move {
                while let Some(events) = between.recv().await {
                    // A stage allocates a new batch for its events, too.
                    let events: Vec<u64> = Vec::into_iter(events).map(black_box).collect();
                    second.send(events).await.unwrap();
                }
            });
            let sending = tokio::spawn(async move {
                for events in batches(MAX / 2) {
                    first.send(events).await.unwrap();
                }
            });
            sending.await.unwrap();
            handing_on.await.unwrap();
            receiving.await.unwrap();
            assert_eq!(count.get(), EVENTS);
        });
    });
}

fn consumer_supervisor(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("supervised workers");
    group.throughput(Throughput::Elements(EVENTS));
    for max in [10, 100, 1000] {
        let demand = SubscribeOptions::new().max_demand(max);
        group.bench_function(BenchmarkId::new("consumer supervisor", max), |b| {
            b.to_async(&runtime).iter(|| async {
                let worker = async |event: &u64| {
                    black_box(*event);
                    Ok(())
                };
                let builder = Pipeline::builder("bench").producer(Numbers::default());
                let workers = ConsumerSupervisor::new(worker);
                let mut pipeline =
                    builder.consumer_supervisor(workers, demand.clone()).start().unwrap();
                assert_eq!(pipeline.join().await.unprocessed(), 0);
            });
        });
        // The hand-written equivalent.
        group.bench_function(BenchmarkId::new("semaphore and spawn", max), |b| {
            b.to_async(&runtime).iter(|| async {
                let (permits, done) = (Arc::new(Semaphore::new(max)), Arc::new(AtomicU64::new(0)));
                for event in 0..EVENTS {
                    let permit = permits.clone().acquire_owned().await.unwrap();
                    let done = done.clone();
                    tokio::spawn(async move {
                        black_box(event);
                        done.fetch_add(1, Ordering::Relaxed);
                        drop(permit);
                    });
                }
                let all = u32::try_from(max).unwrap();
                drop(permits.acquire_many(all).await.unwrap());
                assert_eq!(done.load(Ordering::Relaxed), EVENTS);
            });
        });
    }
}

fn push_from_outside(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("push from outside");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("queue", |b| {
        b.to_async(&runtime).iter(|| async {
            let (queue, producer) = queue(QueueOptions::new());
            let count = Count::default();
            let builder = Pipeline::builder("bench").producer(producer);
            let builder = builder.consumer(count.clone(), SubscribeOptions::new());
            let mut pipeline = builder.start().unwrap();
            for event in 0..EVENTS {
                queue.push(event).await.unwrap();
            }
            drop(queue);
            assert_eq!(pipeline.join().await.unprocessed(), 0);
            assert_eq!(count.get(), EVENTS);
        });
    });
    // The hand-written equivalent.
    group.bench_function("mpsc and recv_many", |b| {
        b.to_async(&runtime).iter(|| async {
            let (sender, mut receiver) = mpsc::channel(10_000);
            let receiving = tokio::spawn(async move {
                let mut events = Vec::new();
                while receiver.recv_many(&mut events, 500).await > 0 {
                    black_box(events.drain(..).sum::<u64>());
                }
            });
            for event in 0..EVENTS {
                sender.send(event).await.unwrap();
            }
            drop(sender);
            receiving.await.unwrap();
        });
    });
}

criterion_group!(
    benches,
    producer_to_consumer,
    three_stages,
    consumer_supervisor,
    push_from_outside
);
criterion_main!(benches);
