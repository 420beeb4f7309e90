use std::{
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use metrics::{Counter, Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::{
    Dialect, StatsdRecorder,
    cadence::{MetricSink, SpyMetricSink},
};

use crate::support::{Collector, quiet, value};

#[test]
fn every_value_is_sent_in_order_in_its_own_line_without_a_flush() {
    let (sent, sink) = SpyMetricSink::new();
    let (recorder, _flusher) = StatsdRecorder::sink(sink)
        .per_event()
        .dialect(Dialect::StatsD)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let expect = |lines: &[&str]| {
        let sent = sent.try_iter().map(|line| String::from_utf8(line).unwrap());
        assert_eq!(sent.collect::<Vec<_>>(), lines);
    };
    with_local_recorder(&recorder, || {
        describe_histogram!("t", Unit::Seconds, "");
        counter!("c").increment(1);
        counter!("c").increment(2);
        counter!("c").absolute(10);
    });
    expect(&["c:1|c", "c:2|c", "c:7|c"]);
    with_local_recorder(&recorder, || {
        gauge!("g").set(2);
        gauge!("g").set(2);
        gauge!("g").decrement(5);
        gauge!("g").set(f64::NAN);
    });
    expect(&["g:2|g", "g:2|g", "g:0|g\ng:-3|g"]);
    with_local_recorder(&recorder, || {
        histogram!("t").record(0.001_5);
        histogram!("h").record(3);
        histogram!("h").record_many(4, 2);
        counter!("end").increment(1);
    });
    expect(&["t:1.5|ms", "h:3|ms", "h:4|ms", "h:4|ms", "end:1|c"]);
}

#[test]
fn concurrent_values_are_neither_lost_nor_reordered() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 2000;
    let (sent, sink) = SpyMetricSink::new();
    let (recorder, flusher) =
        StatsdRecorder::sink(sink).per_event().own_counters(false).build().unwrap();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let recorder = &recorder;
            scope.spawn(move || {
                let gauge =
                    with_local_recorder(recorder, || gauge!("g", "of" => writer.to_string()));
                (0..EACH).for_each(|n| gauge.set(n as f64));
            });
        }
    });
    drop(flusher);
    let lines: Vec<_> = sent.iter().map(|line| String::from_utf8(line).unwrap()).collect();
    for writer in 0..WRITERS {
        let mine = lines.iter().filter(|line| line.ends_with(&format!(":{writer}")));
        let values: Vec<u64> = mine.map(|line| value(line).parse().unwrap()).collect();
        assert_eq!(values, (0..EACH).collect::<Vec<_>>());
    }
}

/// Blocks in each call until it is released.
struct Stuck {
    released: Mutex<Receiver<()>>,
    then: Collector,
}

impl MetricSink for Stuck {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let _ = self.released.lock().recv();
        self.then.emit(metric)
    }
}

#[test]
fn recording_waits_for_a_sink_that_blocks_and_no_value_is_lost() {
    const VALUES: usize = 100;
    let (release, released) = mpsc::channel();
    let collector = Collector::new();
    let sink = Stuck { released: Mutex::new(released), then: collector.clone() };
    let (recorder, flusher) = StatsdRecorder::sink(sink)
        .per_event()
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    thread::scope(|scope| {
        let recording = scope.spawn(|| (0..VALUES).for_each(|_| counter.increment(1)));
        for sent in 1..=VALUES {
            release.send(()).unwrap();
            while collector.count() < sent {
                thread::yield_now();
            }
            assert_eq!(collector.count(), sent, "the others wait");
        }
        recording.join().unwrap();
    });
    drop((release, flusher));
    assert_eq!(collector.take(), ["c:1|c"; VALUES]);
}

/// Fails, and records a metric with each line, as a log subscriber may that counts lines.
struct Recording(Arc<OnceLock<Counter>>);

impl MetricSink for Recording {
    fn emit(&self, _: &str) -> io::Result<usize> {
        if let Some(counter) = self.0.get() {
            counter.increment(1);
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

#[test]
fn a_sink_may_record_and_the_next_flush_reports_all_values() {
    let own = Arc::<OnceLock<Counter>>::default();
    let (recorder, flusher) = StatsdRecorder::sink(Recording(own.clone()))
        .per_event()
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let (values, lines) = with_local_recorder(&recorder, || (counter!("c"), counter!("lines")));
    assert!(own.set(lines).is_ok());
    (0..3).for_each(|_| values.increment(1));
    let report = flusher.flush();
    assert_eq!((report.lines, report.lines_lost), (0, 4), "three values, and those of the sink");
}

#[test]
fn every_value_is_sent_whatever_the_sample_rate() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).per_event().sample_rate(0.1).flush_every(Duration::MAX).build().unwrap();
    with_local_recorder(&recorder, || {
        for _ in 0..1000 {
            counter!("c").increment(1);
            histogram!("h").record(2);
        }
        (0..3).for_each(|n| gauge!("g").set(n));
    });
    let lines = collector.take();
    let count = |line: &str| lines.iter().filter(|sent| *sent == line).count();
    assert_eq!(["c:1|c", "h:2|h"].map(count), [1000, 1000]);
    assert_eq!(["g:0|g", "g:1|g", "g:2|g"].map(count), [1, 1, 1]);
    assert_eq!(lines.len(), 2003);
    drop(flusher);
}

#[test]
fn idle_series_are_removed_and_totals_are_kept() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .per_event()
        .idle_after(Duration::from_nanos(1))
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        counter!("c").increment(1);
        counter!("total").absolute(100);
        gauge!("g").set(1);
        gauge!("steps").increment(1);
        histogram!("h").record(1);
    });
    let series: Vec<_> = (0..4).map(|_| flusher.flush().series).collect();
    assert_eq!(series.last(), Some(&3), "the gauge that was only set stays");
    collector.take();
    with_local_recorder(&recorder, || {
        counter!("total").absolute(105);
        gauge!("steps").decrement(1);
    });
    assert_eq!(collector.take(), ["steps:0|g", "total:5|c"]);
}
