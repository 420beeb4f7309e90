//! How many events pass through the stages: from outside into a queue, from a producer to a
//! consumer, and through supervised workers.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::{
    Consumer, ConsumerSupervisor, Emitter, ExitReason, Pipeline, Producer, QueueOptions,
    SubscribeOptions, Subscription, queue,
};
use tokio::{runtime::Runtime, sync::Semaphore};

/// Events per measurement.
const EVENTS: u64 = 100_000;

/// Emits so many numbers, as they are asked for, and ends.
struct Numbers {
    next: u64,
}

impl Producer for Numbers {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        let end = EVENTS.min(self.next + demand as u64);
        out.emit_all(self.next..end);
        self.next = end;
        if end == EVENTS { Err(ExitReason::Normal) } else { Ok(()) }
    }
}

struct Discard;

impl Consumer for Discard {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        black_box(events);
        Ok(())
    }
}

fn producer_to_consumer(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("producer to consumer");
    group.throughput(Throughput::Elements(EVENTS));
    for (max, min) in [(1, 0), (10, 5), (100, 50), (1000, 500)] {
        let demand = SubscribeOptions::new().max_demand(max).min_demand(min);
        group.bench_function(BenchmarkId::from_parameter(max), |b| {
            b.to_async(&runtime).iter(|| async {
                let builder = Pipeline::builder("bench").producer(Numbers { next: 0 });
                let mut pipeline = builder.consumer(Discard, demand.clone()).start().unwrap();
                assert_eq!(pipeline.ended().await.left_undone(), 0);
            });
        });
    }
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
                let builder = Pipeline::builder("bench").producer(Numbers { next: 0 });
                let workers = ConsumerSupervisor::new(worker);
                let mut pipeline =
                    builder.consumer_supervisor(workers, demand.clone()).start().unwrap();
                assert_eq!(pipeline.ended().await.left_undone(), 0);
            });
        });
        // What one would write by hand.
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
            let builder = Pipeline::builder("bench").producer(producer);
            let mut pipeline = builder.consumer(Discard, SubscribeOptions::new()).start().unwrap();
            for event in 0..EVENTS {
                queue.push(event).await.unwrap();
            }
            drop(queue);
            assert_eq!(pipeline.ended().await.left_undone(), 0);
        });
    });
    // What one would write by hand.
    group.bench_function("mpsc and recv_many", |b| {
        b.to_async(&runtime).iter(|| async {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(10_000);
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

criterion_group!(benches, producer_to_consumer, consumer_supervisor, push_from_outside);
criterion_main!(benches);
