//! Log lines of a failing sink and of refused series.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{gauge, with_local_recorder};
use pipeline_statsd::{
    StatsdRecorder,
    cadence::{MetricSink, NopMetricSink},
};
use pipeline_test_support::Log;

struct Switch {
    broken: Arc<AtomicBool>,
}

impl MetricSink for Switch {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        }
        Ok(metric.len())
    }
}

#[test]
fn a_failing_sink_is_logged_at_the_first_failure_and_at_recovery() {
    let broken = Arc::new(AtomicBool::new(false));
    let (recorder, flusher) = StatsdRecorder::sink(Switch { broken: Arc::clone(&broken) })
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || gauge!("g").set(1));

    let (log, _guard) = Log::keep();
    flusher.flush();
    assert!(log.take().is_empty());

    broken.store(true, Ordering::Relaxed);
    for _ in 0..5 {
        flusher.flush();
    }
    broken.store(false, Ordering::Relaxed);
    for _ in 0..5 {
        flusher.flush();
    }
    assert_eq!(
        log.take(),
        [
            "WARN error=\"connection refused\" errors=1 lines=0 message=statsd sink is failing",
            "INFO failed_flushes=5 message=statsd sink has recovered",
        ]
    );
}

#[test]
fn too_many_series_are_logged_once_for_each_metric() {
    let (recorder, flusher) = StatsdRecorder::sink(NopMetricSink)
        .max_series(2)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let (log, _guard) = Log::keep();
    for n in 0..2 {
        with_local_recorder(&recorder, || gauge!("g", "n" => n.to_string()).set(1));
    }
    flusher.flush();
    assert!(log.take().is_empty());
    for n in 2..10 {
        with_local_recorder(&recorder, || gauge!("g", "n" => n.to_string()).set(1));
        flusher.flush();
    }
    let limits = "max_per_name=1000 max_series=2";
    let refused = "message=statsd series refused: too many series metric=\"g\" series=2";
    assert_eq!(log.take(), [format!("WARN {limits} {refused}")]);
}
