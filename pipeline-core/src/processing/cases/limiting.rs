//! The rate limit that the sources share.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Source, ms, pass, processors};
use crate::{
    Pipeline,
    processing::{Message, MessagesHandle, NotRateLimited},
    source::from_iter,
    stage::RateLimit,
    testkit::settle,
};

/// The handled messages since the last call.
fn handled(source: &Source) -> Vec<u64> {
    source.acks().into_iter().flat_map(|(done, _)| done).collect()
}

/// Starts a pipeline with a limit.
fn limited(messages: usize, interval: u64) -> (Pipeline, MessagesHandle<u64>, Source) {
    let (producer, source) = Source::new();
    let (pipeline, handle) = Pipeline::of_messages("test")
        .rate_limit(RateLimit::new(messages, ms(interval)))
        .source(producer)
        .processors(pass())
        .start_with_handle()
        .unwrap();
    (pipeline, handle, source)
}

#[tokio::test(start_paused = true)]
async fn s_215_messages_over_the_limit_wait_for_the_next_interval() {
    let (_pipeline, _, source) = limited(2, 200);
    source.push(1..=5).await;
    assert_eq!(handled(&source), [1, 2]);
    sleep(ms(200)).await;
    assert_eq!(handled(&source), [3, 4]);
    sleep(ms(200)).await;
    assert_eq!(handled(&source), [5]);
}

#[tokio::test(start_paused = true)]
async fn s_216_sources_share_the_limit() {
    let ((one, a), (two, b)) = (Source::new(), Source::new());
    let _pipeline = Pipeline::of_messages("test")
        .rate_limit(RateLimit::new(4, ms(300)))
        .source(one)
        .and_source(two)
        .processors(pass())
        .start()
        .unwrap();
    a.push(1..=3).await;
    b.push(1..=3).await;
    assert_eq!([handled(&a), handled(&b)], [vec![1, 2, 3], vec![1]]);
    sleep(ms(300)).await;
    assert_eq!(handled(&b), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn s_217_demand_is_withheld_while_the_limit_is_used_up() {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .rate_limit(RateLimit::new(2, ms(100)))
        .source(producer)
        .processors(pass().max_demand(2).min_demand(0))
        .start()
        .unwrap();
    settle().await;
    assert_eq!(source.script.demands(), [2]);
    source.push(1..=2).await;
    assert_eq!(handled(&source), [1, 2]);
    assert_eq!(source.script.demands(), [] as [usize; 0], "it is withheld");
    source.push([3]).await;
    assert_eq!(handled(&source), [] as [u64; 0]);
    sleep(ms(100)).await;
    assert_eq!(handled(&source), [3]);
    // The message that waited answers one of the two.
    assert_eq!(source.script.demands(), [1]);
}

#[tokio::test(start_paused = true)]
async fn s_218_a_limit_is_changed_at_once_or_from_the_next_interval() {
    let (_pipeline, handle, source) = limited(1, 5000);
    source.push(1..=5).await;
    assert_eq!(handled(&source), [1]);
    handle.reset_rate_limit(RateLimit::new(3, ms(5000))).unwrap();
    settle().await;
    assert_eq!(handled(&source), [2, 3, 4]);
    handle.update_rate_limit(RateLimit::new(5, ms(5000))).unwrap();
    assert_eq!(handle.rate_limit(), Some(RateLimit::new(5, ms(5000))));
    settle().await;
    assert_eq!(handled(&source), [] as [u64; 0]);
    sleep(ms(5000)).await;
    assert_eq!(handled(&source), [5]);
}

#[tokio::test(start_paused = true)]
async fn s_219_a_pipeline_without_a_limit_has_none_to_change() {
    let (producer, _source) = Source::new();
    let (_pipeline, handle) = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(async |_: &mut Message<u64>| Ok(())))
        .start_with_handle()
        .unwrap();
    assert_eq!(handle.rate_limit(), None);
    assert_eq!(handle.update_rate_limit(RateLimit::new(1, ms(1))), Err(NotRateLimited));
    assert_eq!(handle.reset_rate_limit(RateLimit::new(1, ms(1))), Err(NotRateLimited));
}

/// On the real clock: an interval may end between any two steps of a stage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_with_very_short_intervals_stops_no_source() {
    for (messages, nanoseconds) in [(1, 1_000), (5, 50_000), (3, 7_000)] {
        let limit = RateLimit::new(messages, Duration::from_nanos(nanoseconds));
        let numbers = || from_iter((0..5_000u64).map(Message::unacknowledged));
        let mut pipeline = Pipeline::of_messages("test")
            .rate_limit(limit)
            .source(numbers())
            .and_source(numbers())
            .processors(pass().concurrency(2))
            .start()
            .unwrap();
        let ended = timeout(Duration::from_secs(60), pipeline.join()).await;
        assert!(ended.is_ok_and(|report| report.is_clean()), "{messages} in {nanoseconds} ns");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_cannot_change_the_limit_that_it_shares() {
    let (_pipeline, handle, source) = limited(2, 200);
    source.script.handle().rate_limit(None);
    source.push(1..=5).await;
    assert_eq!(handled(&source), [1, 2]);
    assert_eq!(handle.rate_limit(), Some(RateLimit::new(2, ms(200))));
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_for_the_next_interval_leaves_this_one() {
    let (_pipeline, handle, source) = limited(10, 5000);
    source.push(1..=2).await;
    handle.update_rate_limit(RateLimit::new(1, ms(5000))).unwrap();
    source.push(3..=12).await;
    assert_eq!(handled(&source), (1..=10).collect::<Vec<_>>());
}
