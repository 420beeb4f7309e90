//! A recorder that panics.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use pipeline_core::telemetry::Telemetry;
use pipeline_test_support::{Log, Recorded};

/// A recorder that always panics.
fn broken() -> (Telemetry, Recorded) {
    let (telemetry, recorded) = Recorded::new();
    recorded.panic_at("");
    (telemetry, recorded)
}

/// A recorder that does not know the metrics.
struct Strict;

impl Recorder for Strict {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        panic!("no such metric")
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        panic!("no such metric")
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("no such metric")
    }
}

#[test]
fn a_recorder_that_always_panics_stops_nothing_and_is_logged_ever_more_rarely() {
    let (log, _guard) = Log::keep();
    let (telemetry, recorded) = broken();
    let counter = telemetry.counter("counter", "", []);
    counter.absolute(1);
    (0..999).for_each(|_| counter.increment(1));
    let gauge = telemetry.gauge("gauge", "", []);
    gauge.set(1.0);
    gauge.increment(1.0);
    gauge.decrement(1.0);
    let histogram = telemetry.timer("histogram", "", []);
    histogram.record(1.0);
    histogram.record_many(1.0, 2);
    assert_eq!(recorded.panics(), 1000 + 3 + 2);
    let lines = log.take();
    let of = |metric: &str| lines.iter().filter(|line| line.contains(metric)).count();
    assert_eq!((of("metric=\"counter\""), of("metric=\"gauge\"")), (10, 2), "{lines:?}");
    let expected = "ERROR message=the metrics recorder panicked metric=\"histogram\" panics=2 \
                    reason=\"panicked: the recorder panics at histogram\"";
    assert_eq!(lines.last().unwrap(), expected);
}

#[test]
fn a_recorder_that_panics_while_a_panic_unwinds_does_not_abort_the_process() {
    struct Open(Gauge);

    impl Drop for Open {
        fn drop(&mut self) {
            self.0.decrement(1.0);
        }
    }

    let gauge = broken().0.gauge("gauge", "", []);
    let open = Open(gauge);
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _open = open;
        resume_unwind(Box::new("first"));
    }));
    assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"first"));
}

#[test]
fn a_metric_that_cannot_be_registered_is_not_recorded() {
    let (log, _guard) = Log::keep();
    let telemetry = Telemetry::with_recorder(Strict);
    telemetry.counter("counter", "", []).increment(1);
    telemetry.gauge("gauge", "", []).set(1.0);
    telemetry.timer("histogram", "", []).record(1.0);
    let lines = log.take();
    assert!(lines.len() == 3 && lines[0].contains("no such metric"), "{lines:?}");
}

#[test]
fn a_log_that_panics_too_stops_nothing() {
    let (log, _guard) = Log::keep();
    log.panic_at("the metrics recorder panicked");
    let counter = broken().0.counter("counter", "", []);
    counter.increment(1);
    counter.increment(1);
    assert_eq!(log.take().len(), 1, "the second panic");
}
