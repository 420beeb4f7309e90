use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use metrics::{counter, gauge, with_local_recorder};
use pipeline_statsd::{StatsdRecorder, cadence::MetricSink};

use crate::support::{Collector, PATIENCE, quiet};

#[test]
fn the_thread_survives_a_failing_sink_and_sends_after_recovery() {
    let (collector, attempts) = Collector::watched();
    collector.fail(true, true);
    let (recorder, _flusher) =
        quiet(&collector).flush_every(Duration::from_millis(1)).build().unwrap();
    with_local_recorder(&recorder, || gauge!("g").set(1));

    // Several failed flushes: each calls emit once and flush once.
    for _ in 0..6 {
        attempts.recv_timeout(PATIENCE).unwrap();
    }
    assert!(collector.take().is_empty());

    collector.fail(false, false);
    loop {
        attempts.recv_timeout(PATIENCE).unwrap();
        if let [line, ..] = collector.take().as_slice() {
            assert_eq!(line, "g:1|g");
            break;
        }
    }
}

#[test]
fn the_report_counts_sent_lines_and_failures() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(Duration::MAX).build().unwrap();
    let record = || {
        counter!("a").increment(1);
        counter!("b").increment(1);
    };

    with_local_recorder(&recorder, record);
    collector.fail(true, false);
    let report = flusher.flush();
    assert_eq!((report.lines, report.bytes), (0, 0));
    assert_eq!((report.errors, report.lines_lost), (2, 2));

    // The refused lines are lost.
    collector.fail(false, false);
    assert_eq!(flusher.flush().lines, 0);

    with_local_recorder(&recorder, record);
    collector.fail(false, true);
    let report = flusher.flush();
    assert_eq!((report.lines, report.bytes, report.packets, report.errors), (2, 10, 2, 1));
}

#[test]
fn dropping_the_flusher_returns_with_a_failing_sink() {
    let collector = Collector::new();
    collector.fail(true, true);
    let (recorder, flusher) = quiet(&collector).flush_every(Duration::MAX).build().unwrap();
    with_local_recorder(&recorder, || counter!("c").increment(1));
    drop(flusher);
    assert_eq!(collector.handles(), 1);
}

/// Panics once, then forwards to the inner sink.
struct PanicsOnce {
    panicked: AtomicBool,
    collector: Collector,
}

impl MetricSink for PanicsOnce {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        assert!(self.panicked.swap(true, Ordering::Relaxed), "a bug in the sink");
        self.collector.emit(metric)
    }
}

#[test]
fn the_thread_survives_a_sink_that_panics_and_counts_the_panic() {
    let (collector, attempts) = Collector::watched();
    let sink = PanicsOnce { panicked: AtomicBool::new(false), collector: collector.clone() };
    let (recorder, flusher) =
        StatsdRecorder::sink(sink).flush_every(Duration::from_millis(1)).build().unwrap();
    with_local_recorder(&recorder, || counter!("lost").increment(1));
    // A flush that sends anything reports the flushes before it.
    let line = (0..1_000).find_map(|_| {
        with_local_recorder(&recorder, || counter!("sent").increment(1));
        attempts.recv_timeout(PATIENCE).unwrap();
        collector.take().into_iter().find(|line| line.starts_with("statsd.client.errors:"))
    });
    assert_eq!(line.as_deref(), Some("statsd.client.errors:1|c"));
    drop(flusher);
}
