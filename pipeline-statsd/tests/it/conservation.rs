use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use metrics::{counter, histogram, with_local_recorder};

use crate::support::{Collector, quiet, value, weight};

#[test]
fn nothing_is_lost_between_concurrent_recording_and_concurrent_flushes() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 10_000;

    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .flush_every(Duration::from_millis(1))
        .histogram_samples(64)
        .build()
        .unwrap();
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        // Concurrent with the flusher's own thread.
        let flushing = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                flusher.flush();
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    with_local_recorder(&recorder, || {
                        for n in 0..EACH {
                            // By name each time, so that registration takes part in the race.
                            counter!("events").increment(n % 3);
                            histogram!("sizes").record(2);
                        }
                    });
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
        flushing.join().unwrap();
    });
    drop(flusher);

    let lines = collector.take();
    let (counters, samples): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.starts_with("events:"));
    let counted: u64 = counters.iter().map(|line| value(line).parse::<u64>().unwrap()).sum();
    assert_eq!(counted, WRITERS * (0..EACH).map(|n| n % 3).sum::<u64>());
    let sampled: u64 = samples.iter().map(|line| weight(line)).sum();
    assert_eq!(sampled, WRITERS * EACH);
}

#[test]
fn up_to_the_limit_every_sample_is_sent() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).histogram_samples(100).build().unwrap();
    with_local_recorder(&recorder, || {
        (0..100).for_each(|n| histogram!("h").record(n));
    });
    flusher.flush();
    let mut expected: Vec<_> = (0..100).map(|n| format!("h:{n}|h")).collect();
    expected.sort();
    assert_eq!(collector.take(), expected);
}

#[test]
fn above_the_limit_the_rates_of_few_lines_give_the_exact_count() {
    for count in [101_u64, 150, 199, 1_000, 12_345] {
        let collector = Collector::new();
        let (recorder, flusher) = quiet(&collector).histogram_samples(100).build().unwrap();
        with_local_recorder(&recorder, || {
            (0..count).for_each(|_| histogram!("h").record(1));
        });
        flusher.flush();
        let lines = collector.take();
        assert_eq!(lines.len(), 100);
        assert_eq!(lines.iter().map(|line| weight(line)).sum::<u64>(), count);
    }
}
