use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use metrics::{Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::cadence::{MetricSink, SpyMetricSink};
use pipeline_statsd::{Dialect, StatsdRecorder};

use crate::support::{Collector, PATIENCE, quiet, value};

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
        for line in lines {
            let sent = sent.recv_timeout(PATIENCE).unwrap();
            assert_eq!(String::from_utf8(sent).unwrap(), *line);
        }
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
    expect(&["t:1.5|ms", "h:3|ms", "h:4|ms|@0.5", "end:1|c"]);
}

#[test]
fn concurrent_values_are_neither_lost_nor_reordered() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 2000;
    let (sent, sink) = SpyMetricSink::new();
    let (recorder, flusher) =
        StatsdRecorder::sink(sink).per_event().own_counters(false).build().unwrap();
    std::thread::scope(|scope| {
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

/// Reports each call, then blocks in it until it is released.
struct Stuck {
    entered: SyncSender<()>,
    let_go: Mutex<Receiver<()>>,
    then: Collector,
}

impl MetricSink for Stuck {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let _ = self.entered.try_send(());
        let _ = self.let_go.lock().recv();
        self.then.emit(metric)
    }
}

#[test]
fn with_a_blocked_sink_excess_values_are_dropped_and_counted() {
    let (entered, entries) = mpsc::sync_channel(1);
    let (go, let_go) = mpsc::channel();
    let collector = Collector::new();
    let sink = Stuck { entered, let_go: Mutex::new(let_go), then: collector.clone() };
    let (recorder, flusher) = StatsdRecorder::sink(sink)
        .per_event()
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    counter.increment(1);
    entries.recv_timeout(PATIENCE).unwrap();

    // The thread is in the sink, so the queue is not drained.
    (0..10_100).for_each(|_| counter.increment(1));
    drop(go);
    drop(flusher);
    assert_eq!(collector.take().len(), 10_001);
}

#[test]
fn dropped_values_are_reported() {
    let (entered, entries) = mpsc::sync_channel(1);
    let (go, let_go) = mpsc::channel();
    let collector = Collector::new();
    let sink = Stuck { entered, let_go: Mutex::new(let_go), then: collector.clone() };
    let (recorder, flusher) =
        StatsdRecorder::sink(sink).per_event().flush_every(Duration::MAX).build().unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    counter.increment(1);
    entries.recv_timeout(PATIENCE).unwrap();
    (0..10_100).for_each(|_| counter.increment(1));
    drop(go);
    flusher.flush();
    // By now they are counted, by this flush or by the thread.
    counter.increment(1);
    flusher.flush();
    drop(flusher);
    let lines = collector.take();
    assert!(lines.contains(&"statsd.client.events_dropped:100|c".to_owned()));
}

#[test]
fn one_of_each_n_values_is_sent_with_its_rate() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .per_event()
        .sample_rate(0.1)
        .sample_rate_of("rare", 1.0)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        for _ in 0..1000 {
            counter!("c").increment(1);
            histogram!("h").record(2);
        }
        (0..3).for_each(|n| gauge!("g").set(n));
        counter!("rare").increment(1);
    });
    drop(flusher);
    let lines = collector.take();
    let count = |line: &str| lines.iter().filter(|sent| *sent == line).count();
    assert_eq!(count("c:1|c|@0.1"), 100);
    assert_eq!(count("h:2|h|@0.1"), 100);
    assert_eq!(["g:0|g", "g:1|g", "g:2|g", "rare:1|c"].map(count), [1, 1, 1, 1]);
    assert_eq!(lines.len(), 204);
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
    // Queued values hold their series. The thread decides how long they are queued.
    assert_eq!(series.last(), Some(&2));
    collector.take();
    with_local_recorder(&recorder, || {
        counter!("total").absolute(105);
        gauge!("steps").decrement(1);
    });
    drop(flusher);
    assert_eq!(collector.take(), ["steps:0|g", "total:5|c"]);
}
