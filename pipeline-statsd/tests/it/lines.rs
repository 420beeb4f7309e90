use metrics::{Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use pipeline_statsd::{Dialect, StatsdBuilder, StatsdRecorder, cadence::SpyMetricSink};

use crate::support::Collector;

/// Records, flushes once, and compares the lines in the sink.
fn check(
    options: impl FnOnce(StatsdBuilder) -> StatsdBuilder,
    record: impl FnOnce(),
    lines: &[&str],
) {
    let collector = Collector::new();
    let builder = options(StatsdRecorder::sink(collector.clone()));
    let (recorder, flusher) = builder.build().expect("the options are valid");
    with_local_recorder(&recorder, record);
    let report = flusher.flush();
    let sent = collector.take();
    assert_eq!(sent, lines);
    assert_eq!(report.lines, sent.len() as u64);
}

fn everything() {
    describe_histogram!("push_time", Unit::Milliseconds, "enqueue to socket");
    counter!("joins", "result" => "ok", "channel" => "user").increment(2);
    gauge!("depth").set(-3);
    gauge!("load", "cpu" => "0").set(0.5);
    histogram!("push_time", "topic" => "user:*").record(0.75);
    histogram!("push_bytes").record(512);
}

#[test]
fn everything_in_the_datadog_dialect() {
    check(
        |statsd| statsd.prefix("push").tag("region", "eu"),
        everything,
        &[
            "push.depth:-3|g|#region:eu",
            "push.joins:2|c|#channel:user,region:eu,result:ok",
            "push.load:0.5|g|#cpu:0,region:eu",
            "push.push_bytes:512|h|#region:eu",
            "push.push_time:0.75|ms|#region:eu,topic:user:_",
        ],
    );
}

#[test]
fn everything_in_the_dialect_of_the_original_daemon() {
    check(
        |statsd| statsd.prefix("push").tag("region", "eu").dialect(Dialect::StatsD),
        everything,
        &[
            "push.depth;region=eu:-3|g",
            "push.depth;region=eu:0|g",
            "push.joins;channel=user;region=eu;result=ok:2|c",
            "push.load;cpu=0;region=eu:0.5|g",
            "push.push_bytes;region=eu:512|ms",
            "push.push_time;region=eu;topic=user__:0.75|ms",
        ],
    );
}

#[test]
fn a_timing_below_a_millisecond_keeps_its_fraction() {
    let record = || {
        describe_histogram!("t", Unit::Milliseconds, "");
        histogram!("t").record(0.001_234);
        histogram!("t").record(0.1 + 0.2);
    };
    check(|statsd| statsd, record, &["t:0.001234|ms", "t:0.3|ms"]);
    check(|statsd| statsd.dialect(Dialect::StatsD), record, &["t:0.001234|ms", "t:0.3|ms"]);
}

#[test]
fn a_duration_is_described_in_seconds_and_sent_in_milliseconds() {
    check(
        |statsd| statsd,
        || {
            describe_histogram!("t", Unit::Seconds, "");
            histogram!("t").record(std::time::Duration::from_micros(750));
        },
        &["t:0.75|ms"],
    );
}

#[test]
fn the_two_lines_of_a_negative_gauge_stay_together_and_in_order() {
    let (sent, sink) = SpyMetricSink::new();
    let (recorder, flusher) = StatsdRecorder::sink(sink).dialect(Dialect::StatsD).build().unwrap();
    with_local_recorder(&recorder, || gauge!("depth").set(-3));
    let report = flusher.flush();
    assert_eq!(sent.recv().unwrap(), b"depth:0|g\ndepth:-3|g");
    assert_eq!((report.lines, report.bytes), (2, 20));
}

#[test]
fn hostile_names_and_labels_make_one_line_each() {
    let record = || {
        counter!("a:1|c\nb:9|c", "k\n,#|@" => "v:1|c\nevil:1|c").increment(1);
        counter!("", "empty" => "", "" => "key").increment(1);
    };
    check(
        |statsd| statsd.prefix("p|\n"),
        record,
        &["p__._:1|c", "p__.a_1_c_b_9_c:1|c|#k_____:v:1_c_evil:1_c"],
    );
    check(
        |statsd| statsd.prefix("p|\n").dialect(Dialect::StatsD),
        record,
        &["p__._:1|c", "p__.a_1_c_b_9_c;k_____=v_1_c_evil_1_c:1|c"],
    );
}

#[test]
fn values_that_are_not_finite_are_never_sent() {
    let record = || {
        gauge!("g").set(f64::NAN);
        histogram!("h").record(f64::INFINITY);
        describe_histogram!("t", Unit::Seconds, "");
        histogram!("t").record(f64::MAX); // finite, but not in milliseconds
    };
    check(|statsd| statsd, record, &[]);
}
