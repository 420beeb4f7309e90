use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use metrics::{counter, gauge, histogram, with_local_recorder};

use crate::support::{Collector, quiet, value};

/// An unused series is removed at the next flush.
const AT_ONCE: Duration = Duration::from_nanos(1);

#[test]
fn an_idle_series_is_removed_and_comes_back() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).idle_after(AT_ONCE).build().unwrap();
    let record = || {
        counter!("c").increment(1);
        histogram!("h").record(1);
    };
    with_local_recorder(&recorder, record);
    let series: Vec<_> = (0..3).map(|_| flusher.flush().series).collect();
    assert_eq!(series, [2, 0, 0]);
    assert_eq!(collector.take(), ["c:1|c", "h:1|h"]);

    with_local_recorder(&recorder, record);
    assert_eq!(flusher.flush().series, 2);
    assert_eq!(collector.take(), ["c:1|c", "h:1|h"]);
}

#[test]
fn a_gauge_that_was_set_once_is_always_repeated() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).idle_after(AT_ONCE).build().unwrap();
    with_local_recorder(&recorder, || gauge!("build_info", "version" => "1.2.3").set(1));
    for _ in 0..100 {
        flusher.flush();
        assert_eq!(collector.take(), ["build_info:1|g|#version:1.2.3"]);
    }
}

#[test]
fn a_gauge_is_repeated_until_its_handle_is_dropped_and_its_slot_is_needed() {
    let collector = Collector::new();
    let builder = quiet(&collector).flush_every(Duration::MAX).idle_after(AT_ONCE).max_series(1);
    let (recorder, flusher) = builder.build().unwrap();
    let held = with_local_recorder(&recorder, || gauge!("g"));
    held.set(1);
    for _ in 0..10 {
        flusher.flush();
        assert_eq!(collector.take(), ["g:1|g"]);
    }
    drop(held);
    assert_eq!((flusher.flush().lines, flusher.flush().series), (1, 0));
}

#[test]
fn an_increment_by_an_idle_handle_is_not_lost() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).idle_after(AT_ONCE).build().unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    let histogram = with_local_recorder(&recorder, || histogram!("h"));
    for _ in 0..3 {
        (0..5).for_each(|_| assert_eq!(flusher.flush().lines, 0));
        assert!(collector.take().is_empty());
        counter.increment(2);
        histogram.record(1);
        // Another handle of the same key is the same series, idle or not.
        with_local_recorder(&recorder, || counter!("c").increment(1));
        flusher.flush();
        assert_eq!(collector.take(), ["c:3|c", "h:1|h"]);
    }
}

#[test]
fn nothing_is_lost_while_series_are_removed_and_recreated_under_their_writers() {
    const WRITERS: u64 = 3;
    const EACH: u64 = 20_000;
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).idle_after(AT_ONCE).build().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                flusher.flush();
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let recorder = &recorder;
                scope.spawn(move || {
                    with_local_recorder(recorder, || {
                        for n in 0..EACH {
                            // Each series is idle most of the time, and no handle is held.
                            let key = (n / 7 + writer) % 50;
                            counter!("c", "key" => key.to_string()).increment(1);
                            gauge!("g", "key" => key.to_string()).increment(1);
                        }
                    });
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
        flushing.join().unwrap();
    });
    flusher.flush();
    let lines = collector.take();
    let counted: u64 = lines
        .iter()
        .filter(|line| line.starts_with("c:"))
        .map(|line| value(line).parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, WRITERS * EACH);

    // The gauges hold the sum of all steps.
    flusher.flush();
    let levels: u64 = collector.take().iter().map(|line| value(line).parse::<u64>().unwrap()).sum();
    assert_eq!(levels, WRITERS * EACH);
}
