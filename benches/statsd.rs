//! The cost of recording a metric, and of writing it as a line of StatsD.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has failed")]

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::{
    statsd::{Dialect, StatsdFlusher, StatsdRecorder, cadence::NopMetricSink},
    telemetry::Telemetry,
};

/// The number of lines in a flush.
const LINES: usize = 1000;

/// A recorder with a null sink that flushes only on request.
fn recorder(dialect: Dialect) -> (Telemetry, StatsdFlusher) {
    let builder = StatsdRecorder::sink(NopMetricSink).dialect(dialect).prefix("push");
    let builder = builder.tag("region", "eu").histogram_samples(LINES);
    let (recorder, flusher) = builder.flush_every(Duration::from_secs(3600)).build().unwrap();
    (Telemetry::with_recorder(recorder), flusher)
}

fn lines(c: &mut Criterion) {
    let mut group = c.benchmark_group("StatsD lines");
    group.throughput(Throughput::Elements(LINES as u64));
    for dialect in [Dialect::DogStatsD, Dialect::StatsD] {
        let (telemetry, flusher) = recorder(dialect);
        let times = telemetry.timer("time", "for the bench", [("stage", "push".to_owned())]);
        group.bench_function(BenchmarkId::new("samples", format!("{dialect:?}")), |b| {
            let record = || (0..LINES).for_each(|n| times.record(n as f64 * 0.001_234));
            b.iter_batched(record, |()| flusher.flush(), BatchSize::PerIteration);
        });

        let (telemetry, flusher) = recorder(dialect);
        let counters: Vec<_> = (0..LINES)
            .map(|n| telemetry.counter("count", "for the bench", [("stage", n.to_string())]))
            .collect();
        group.bench_function(BenchmarkId::new("counters", format!("{dialect:?}")), |b| {
            let count = || counters.iter().for_each(|counter| counter.increment(7));
            b.iter_batched(count, |()| flusher.flush(), BatchSize::PerIteration);
        });

        let (telemetry, flusher) = recorder(dialect);
        // The handles are held, because an unused gauge without a handle is removed.
        let gauges: Vec<_> = (0..LINES)
            .map(|n| telemetry.gauge("level", "for the bench", [("stage", n.to_string())]))
            .collect();
        gauges.iter().enumerate().for_each(|(n, gauge)| gauge.set(n as f64 * 0.5));
        group.bench_function(BenchmarkId::new("gauges", format!("{dialect:?}")), |b| {
            b.iter(|| flusher.flush());
        });
    }
}

fn recording(c: &mut Criterion) {
    let mut group = c.benchmark_group("record a metric");
    let (telemetry, _flusher) = recorder(Dialect::default());
    let counter = telemetry.counter("count", "for the bench", []);
    group.bench_function("a counter", |b| b.iter(|| counter.increment(black_box(1))));
    let times = telemetry.timer("time", "for the bench", []);
    group.bench_function("a time", |b| b.iter(|| times.record(black_box(0.75))));
}

criterion_group!(benches, lines, recording);
criterion_main!(benches);
