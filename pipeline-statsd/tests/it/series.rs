use std::time::Duration;

use metrics::{counter, gauge, histogram, with_local_recorder};

use crate::support::{Collector, quiet};

#[test]
fn a_series_above_the_limit_is_refused_and_counted_and_others_still_work() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).max_series(3).build().unwrap();
    let record = || {
        counter!("c").increment(1);
        gauge!("g").set(1);
        histogram!("h").record(1);
        for n in 0..100 {
            counter!("user", "id" => n.to_string()).increment(1);
        }
        gauge!("another").set(1);
        histogram!("another").record(1);
    };
    for _ in 0..2 {
        with_local_recorder(&recorder, record);
        let report = flusher.flush();
        assert_eq!((report.series, report.series_refused), (3, 102));
        assert_eq!(collector.take(), ["c:1|c", "g:1|g", "h:1|h"]);
    }
    assert_eq!(flusher.flush().series_refused, 0);
}

#[test]
fn removed_series_make_room_for_others() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .flush_every(Duration::MAX)
        .max_series(1)
        .idle_after(Duration::from_nanos(1))
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        counter!("first").increment(1);
        counter!("second").increment(1);
    });
    assert_eq!(flusher.flush().series_refused, 1);
    assert_eq!(flusher.flush().series, 0);
    with_local_recorder(&recorder, || counter!("second").increment(1));
    assert_eq!(flusher.flush().series_refused, 0);
    assert_eq!(collector.take(), ["first:1|c", "second:1|c"]);
}

#[test]
fn a_handle_of_a_refused_series_has_no_effect() {
    let collector = Collector::new();
    let (recorder, flusher) =
        quiet(&collector).flush_every(Duration::MAX).max_series(1).build().unwrap();
    let (kept, refused) = with_local_recorder(&recorder, || (counter!("kept"), counter!("no")));
    for _ in 0..2 {
        kept.increment(1);
        refused.increment(1);
        flusher.flush();
        assert_eq!(collector.take(), ["kept:1|c"]);
    }
}

#[test]
fn unbounded_labels_affect_one_metric_and_lines_stay_bounded() {
    let collector = Collector::new();
    let (recorder, flusher) = quiet(&collector)
        .flush_every(Duration::MAX)
        .max_series(10)
        .max_series_per_name(3)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        for n in 0..100 {
            counter!("hostile", "said" => n.to_string() + &"x".repeat(100_000)).increment(1);
            counter!("endless", "said" => "x".repeat(100_000) + &n.to_string()).increment(1);
        }
        counter!("calm").increment(1);
    });
    let report = flusher.flush();
    assert_eq!((report.series, report.series_refused), (5, 97));
    let lines = collector.take();
    assert!(lines.contains(&"calm:1|c".to_owned()), "{lines:?}");
    assert!(lines.iter().all(|line| line.len() < 230), "{lines:?}");
    let cut = format!("endless:100|c|#said:{}...", "x".repeat(197));
    assert!(lines.contains(&cut), "{lines:?}");
}
