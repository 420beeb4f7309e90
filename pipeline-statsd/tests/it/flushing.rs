use std::time::Duration;

use metrics::{counter, gauge, histogram, with_local_recorder};
use pipeline_statsd::{BuildError, FlushReport, StatsdRecorder};

use crate::support::{Collector, PATIENCE, quiet};

const NEVER: Duration = Duration::MAX;

#[test]
fn the_thread_flushes_periodically() {
    let (collector, attempts) = Collector::watched();
    let (recorder, _flusher) =
        quiet(&collector).flush_every(Duration::from_millis(1)).build().unwrap();
    for _ in 0..3 {
        with_local_recorder(&recorder, || counter!("c").increment(1));
        loop {
            attempts.recv_timeout(PATIENCE).unwrap();
            if collector.take() == ["c:1|c"] {
                break;
            }
        }
    }
}

#[test]
fn dropping_the_flusher_sends_the_rest_and_drops_the_sink() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(NEVER).build().unwrap();
    with_local_recorder(&recorder, || {
        counter!("c").increment(7);
        histogram!("h").record(1);
    });
    drop(flusher);
    assert_eq!(collector.take(), ["c:7|c", "h:1|h"]);
    assert_eq!(collector.handles(), 1, "the thread has ended and the sink is dropped");

    // Later values are accepted and never sent.
    with_local_recorder(&recorder, || counter!("c").increment(1));
    assert!(collector.take().is_empty());
}

#[test]
fn when_nothing_changed_only_gauges_are_sent() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(NEVER).build().unwrap();
    assert_eq!(flusher.flush(), FlushReport::default());

    with_local_recorder(&recorder, || {
        counter!("c").increment(1);
        histogram!("h").record(1);
    });
    assert_eq!((flusher.flush().lines, flusher.flush().lines), (2, 0));
    collector.take();

    with_local_recorder(&recorder, || gauge!("g").set(4));
    for _ in 0..3 {
        assert_eq!(flusher.flush().lines, 1);
        assert_eq!(collector.take(), ["g:4|g"]);
    }
}

#[test]
fn counters_send_their_increase_by_increments_and_totals() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(NEVER).build().unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    counter.absolute(100);
    flusher.flush();
    counter.absolute(130);
    counter.increment(5);
    flusher.flush();
    counter.absolute(90);
    flusher.flush();
    assert_eq!(collector.take(), ["c:100|c", "c:35|c"]);
}

#[test]
fn clones_of_a_recorder_share_their_series() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector).flush_every(NEVER).build().unwrap();
    with_local_recorder(&recorder.clone(), || counter!("c").increment(1));
    with_local_recorder(&recorder, || counter!("c").increment(1));
    flusher.flush();
    assert_eq!(collector.take(), ["c:2|c"]);
}

#[test]
fn invalid_options_are_refused() {
    let builder = || StatsdRecorder::sink(Collector::new());
    let error = builder().flush_every(Duration::ZERO).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroInterval));
    let error = builder().histogram_samples(0).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroSamples));
    let error = builder().idle_after(Duration::ZERO).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroIdle));
    let error = builder().max_series(0).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroSeries));
    let error = builder().packet_bytes(0).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroPacket));
}
