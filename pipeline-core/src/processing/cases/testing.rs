//! The helpers for tests of a program's pipeline.

use tokio::time::{Instant, sleep, timeout};

use super::{Log, Source, keep, ms, pass};
use crate::{
    Pipeline,
    processing::{BatchMode, Message, MessagesHandle},
    testkit::{scripted, settle},
};

/// Starts a pipeline with batches of this size.
fn batching(size: usize, within: u64) -> (Pipeline, MessagesHandle<u64>) {
    let (producer, script) = scripted::<Message<u64>>();
    // The source emits nothing of its own.
    drop(script);
    Pipeline::of_messages("test")
        .source(producer)
        .processors(pass().max_demand(2).min_demand(1))
        .batcher(keep(&Log::default()).size(size).within(ms(within)))
        .start_with_handle()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn s_230_a_test_message_flushes_its_batch() {
    let (_pipeline, handle) = batching(10, 5000);
    let begun = Instant::now();
    let outcome = handle.test_message(7).await.unwrap().next().await.unwrap();
    assert_eq!((outcome.done, outcome.failed.len()), (vec![0], 0));
    assert!(begun.elapsed() < ms(5000));
}

#[tokio::test(start_paused = true)]
async fn s_231_a_test_batch_in_bulk_waits_for_its_time() {
    let (_pipeline, handle) = batching(10, 5000);
    let mut outcomes = handle.test_batch([1, 2, 3], BatchMode::Bulk).await.unwrap();
    assert!(timeout(ms(4999), outcomes.next()).await.is_err());
    assert_eq!(outcomes.next().await.unwrap().done, [0, 1, 2]);
    assert!(outcomes.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn s_232_a_test_batch_may_be_acknowledged_in_several_groups() {
    let (_pipeline, handle) = batching(2, 100);
    let mut outcomes = handle.test_batch(1..=5, BatchMode::Bulk).await.unwrap();
    let mut groups = Vec::new();
    while let Some(outcome) = outcomes.next().await {
        groups.push(outcome.done);
    }
    assert_eq!(groups, [vec![0, 1], vec![2, 3], vec![4]]);
}

#[tokio::test(start_paused = true)]
async fn s_233_pushed_messages_are_processed_like_produced_ones() {
    let (producer, source) = Source::new();
    let (pipeline, handle) = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .start_with_handle()
        .unwrap();
    handle.push_messages(vec![source.message(1), source.message(2)]).await.unwrap();
    settle().await;
    assert_eq!(source.acks(), [(vec![1, 2], vec![])]);
    drop(pipeline);
    sleep(ms(1)).await;
    // Messages that are pushed too late have failed.
    assert!(handle.push_messages(vec![source.message(3)]).await.is_err());
    assert_eq!(source.acks(), [(vec![], vec![3])]);
}
