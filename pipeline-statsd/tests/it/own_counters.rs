use std::time::Duration;

use metrics::{counter, histogram, with_local_recorder};
use pipeline_statsd::{Dialect, StatsdRecorder};

use crate::support::{Collector, quiet, value};

/// The sum of all lines of this name.
fn sum(lines: &[String], name: &str) -> u64 {
    let named = lines.iter().filter(|line| line.starts_with(&format!("{name}:")));
    named.map(|line| value(line).parse::<u64>().expect("a count is a whole number")).sum()
}

#[test]
fn a_flush_reports_the_flushes_before_it() {
    let collector = Collector::new();
    let (recorder, flusher) = StatsdRecorder::sink(collector.clone())
        .prefix("app")
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let record = || counter!("c").increment(1);
    with_local_recorder(&recorder, record);
    let first = flusher.flush();
    assert_eq!(collector.take(), ["app.c:1|c"], "there is nothing to report yet");

    with_local_recorder(&recorder, record);
    flusher.flush();
    assert_eq!(
        collector.take(),
        [
            "app.c:1|c".to_owned(),
            format!("app.statsd.client.bytes:{}|c", first.bytes),
            "app.statsd.client.lines:1|c".to_owned(),
            "app.statsd.client.packets:1|c".to_owned(),
            "app.statsd.client.series:1|g".to_owned(),
        ]
    );
}

#[test]
fn own_counters_are_never_sent_alone() {
    let collector = Collector::new();
    let (recorder, flusher) =
        StatsdRecorder::sink(collector.clone()).flush_every(Duration::MAX).build().unwrap();
    with_local_recorder(&recorder, || counter!("c").increment(1));
    flusher.flush();
    collector.take();
    for _ in 0..3 {
        assert_eq!(flusher.flush().lines, 0);
    }
    assert!(collector.take().is_empty());
}

#[test]
fn counts_from_a_failing_sink_are_sent_after_recovery() {
    let collector = Collector::new();
    let (recorder, flusher) =
        StatsdRecorder::sink(collector.clone()).flush_every(Duration::MAX).build().unwrap();
    let record = || counter!("c").increment(1);
    collector.fail(true, false);
    let (mut errors, mut lost) = (0, 0);
    for _ in 0..3 {
        with_local_recorder(&recorder, record);
        let report = flusher.flush();
        errors += report.errors;
        lost += report.lines_lost;
    }
    collector.fail(false, false);
    with_local_recorder(&recorder, record);
    flusher.flush();
    let lines = collector.take();
    assert!(errors > 3);
    assert_eq!(sum(&lines, "statsd.client.errors"), errors);
    assert_eq!(sum(&lines, "statsd.client.lines_lost"), lost);
}

#[test]
fn dropped_lines_and_refused_series_are_reported() {
    let collector = Collector::new();
    let (recorder, flusher) = StatsdRecorder::sink(collector.clone())
        .dialect(Dialect::StatsD)
        .max_series(3)
        .packet_bytes(60)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let record = || {
        counter!("c").increment(1);
        histogram!("h").record(-1);
        counter!("long", "label" => "x".repeat(60)).increment(1);
        counter!("too_many").increment(1);
    };
    for _ in 0..2 {
        with_local_recorder(&recorder, record);
        flusher.flush();
    }
    let lines = collector.take();
    assert_eq!(sum(&lines, "statsd.client.samples_skipped"), 1);
    assert_eq!(sum(&lines, "statsd.client.lines_oversized"), 1);
    assert_eq!(sum(&lines, "statsd.client.series_refused;metric=too_many"), 1);
}

#[test]
fn reported_counts_add_up_to_the_sent_lines() {
    let collector = Collector::new();
    let (recorder, flusher) = StatsdRecorder::sink(collector.clone())
        .packet_bytes(80)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let (mut lines, mut bytes, mut packets) = (0, 0, 0);
    for n in 0..10_u64 {
        if n > 0 {
            // All but the last flush, which reports these.
            let report = flusher.flush();
            lines += report.lines;
            bytes += report.bytes;
            packets += report.packets;
        }
        with_local_recorder(&recorder, || {
            (0..n * 10).for_each(|n| histogram!("h").record(n as f64));
        });
    }
    flusher.flush();
    let sent = collector.take();
    assert_eq!(sum(&sent, "statsd.client.lines"), lines);
    assert_eq!(sum(&sent, "statsd.client.bytes"), bytes);
    assert_eq!(sum(&sent, "statsd.client.packets"), packets);
}

#[test]
fn they_can_be_turned_off() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(Duration::MAX).build().unwrap();
    for _ in 0..3 {
        with_local_recorder(&recorder, || counter!("c").increment(1));
        assert_eq!(flusher.flush().lines, 1);
    }
    assert_eq!(collector.take(), ["c:1|c", "c:1|c", "c:1|c"]);
}
