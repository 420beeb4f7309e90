//! The cost of metrics: events per second without a recorder, and with the StatsD recorder.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

mod common;

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::{
    Pipeline,
    statsd::{StatsdFlusher, StatsdRecorder, cadence::NopMetricSink},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    telemetry::Telemetry,
};
use tokio::runtime::Runtime;

use self::common::{Count, EVENTS, Numbers};

/// A recorder that flushes into a null sink, ten times as often as by default.
fn statsd() -> (Telemetry, StatsdFlusher) {
    let builder = StatsdRecorder::sink(NopMetricSink).flush_every(Duration::from_secs(1));
    let (recorder, flusher) = builder.build().unwrap();
    (Telemetry::with_recorder(recorder), flusher)
}

fn producer_to_consumer(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (statsd, _flusher) = statsd();
    let mut group = c.benchmark_group("measuring a producer and a consumer");
    group.throughput(Throughput::Elements(EVENTS));
    for (recorder, telemetry) in [("none", Telemetry::global()), ("statsd", statsd)] {
        for max in [1000, 10] {
            let demand = SubscribeOptions::new().max_demand(max);
            group.bench_function(BenchmarkId::new(recorder, max), |b| {
                b.to_async(&runtime).iter(|| async {
                    let count = Count::default();
                    let builder = Pipeline::builder("bench").telemetry(telemetry.clone());
                    let builder = builder.producer(Numbers::default());
                    let builder = builder.consumer(count.clone(), demand.clone());
                    let report = builder.start().unwrap().join().await;
                    assert_eq!((report.unprocessed(), count.get()), (0, EVENTS));
                });
            });
        }
    }
}

fn supervised_workers(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let (statsd, _flusher) = statsd();
    let mut group = c.benchmark_group("measuring supervised workers");
    group.throughput(Throughput::Elements(EVENTS));
    for (recorder, telemetry) in [("none", Telemetry::global()), ("statsd", statsd)] {
        for max in [1000, 10] {
            let demand = SubscribeOptions::new().max_demand(max);
            group.bench_function(BenchmarkId::new(recorder, max), |b| {
                b.to_async(&runtime).iter(|| async {
                    let worker = async |event: &u64| {
                        black_box(*event);
                        Ok(())
                    };
                    let builder = Pipeline::builder("bench").telemetry(telemetry.clone());
                    let builder = builder.producer(Numbers::default());
                    let workers = ConsumerSupervisor::new(worker);
                    let builder = builder.consumer_supervisor(workers, demand.clone());
                    assert_eq!(builder.start().unwrap().join().await.unprocessed(), 0);
                });
            });
        }
    }
}

criterion_group!(benches, producer_to_consumer, supervised_workers);
criterion_main!(benches);
