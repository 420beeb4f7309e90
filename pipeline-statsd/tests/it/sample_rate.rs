use std::time::Duration;

use metrics::{counter, gauge, histogram, with_local_recorder};
use pipeline_statsd::BuildError;

use crate::support::{Collector, quiet, weight};

#[test]
fn a_fraction_of_the_samples_is_sent_and_the_count_is_exact() {
    for (count, lines) in [(1_u64, 1), (10, 1), (1000, 100), (1005, 101), (123_456, 200)] {
        let collector = Collector::new();
        let (recorder, flusher) = quiet(&collector)
            .sample_rate(0.1)
            .histogram_samples(200)
            .flush_every(Duration::MAX)
            .build()
            .unwrap();
        with_local_recorder(&recorder, || {
            (0..count).for_each(|_| histogram!("h").record(1));
        });
        flusher.flush();
        let sent = collector.take();
        assert_eq!(sent.len(), lines, "{count}");
        assert_eq!(sent.iter().map(|line| weight(line)).sum::<u64>(), count);
        assert_eq!(sent.contains(&"h:1|h|@0.1".to_owned()), (10..2000).contains(&count));
    }
}

#[test]
fn a_metric_can_have_its_own_rate_and_counters_and_gauges_have_none() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .sample_rate(0.25)
        .sample_rate_of("all", 1.0)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        for _ in 0..4 {
            counter!("c").increment(1);
            gauge!("g").set(1);
            histogram!("all", "a" => "label").record(1);
            histogram!("some").record(1);
        }
    });
    flusher.flush();
    let all = "all:1|h|#a:label";
    assert_eq!(collector.take(), [all, all, all, all, "c:4|c", "g:1|g", "some:1|h|@0.25"]);
}

#[test]
fn an_invalid_rate_is_refused() {
    for rate in [0.0, -1.0, 1.5, f64::NAN] {
        let error = quiet(&Collector::new()).sample_rate(rate).build().unwrap_err();
        assert!(matches!(error, BuildError::SampleRate), "{rate}");
        let error = quiet(&Collector::new()).sample_rate_of("h", rate).build().unwrap_err();
        assert!(matches!(error, BuildError::SampleRate), "{rate}");
    }
}
