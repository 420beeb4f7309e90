//! The fair queue: turns, waiting pushers, refusals and discarded items.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use pipeline_core::{
    ExitReason, Pipeline,
    source::{
        Closed, FairQueueOptions, FairQueueProducer, OfferOutcome, TryPushError, fair_queue,
        timed_fair_queue,
    },
    stage::BufferKeep,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
};
use pipeline_test_support::{GateControl, Log, Recorded, gate, settle};
use support::supervised;
use tokio::{sync::mpsc, time::Instant};

/// Workers, `workers` of them at once, that the gate releases.
fn gated(
    producer: FairQueueProducer<&'static str, u64>,
    workers: usize,
) -> (Pipeline, GateControl) {
    let (gate, control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    (supervised(producer, ConsumerSupervisor::new(worker), workers, 0), control)
}

/// All items that leave a queue, once its pushing end is gone.
async fn all(producer: FairQueueProducer<&'static str, u64>) -> Vec<u64> {
    let (sender, mut arrived) = mpsc::channel(100);
    let worker = async move |event: &u64| {
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    let mut items = Vec::new();
    while let Some(item) = arrived.recv().await {
        items.push(item);
    }
    items
}

#[tokio::test]
async fn a_key_with_one_item_does_not_wait_for_a_key_with_ten_thousand() {
    let options = FairQueueOptions::new().capacity(20_000).key_capacity(10_000);
    let (queue, producer) = fair_queue(options);
    for item in 0..10_000 {
        queue.try_push("flood", item).unwrap();
    }
    let (_pipeline, mut control) = gated(producer, 1);
    assert_eq!(control.started(1).await, [0]);
    control.release(5);
    assert_eq!(control.started(5).await, [1, 2, 3, 4, 5]);

    queue.try_push("other", 77_777).unwrap();
    control.release(2);
    let next = control.started(2).await;
    assert!(next.contains(&77_777), "{next:?}");
}

#[tokio::test]
async fn a_key_with_one_item_does_not_wait_for_callers_that_wait_for_room() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(10).key_capacity(10));
    let (_pipeline, mut control) = gated(producer, 1);
    for item in 0..500 {
        tokio::spawn(queue.push("flood", item));
    }
    control.started(1).await;
    settle().await;
    assert_eq!(queue.len(), 10);
    let single = tokio::spawn(queue.push("other", 77_777));
    settle().await;
    assert!(!single.is_finished());
    control.release(2);
    let next = control.started(2).await;
    assert!(next.contains(&77_777), "{next:?}");
    single.await.unwrap().unwrap();
}

#[tokio::test]
async fn keys_are_served_by_their_weight() {
    let weight = |user: &&'static str| if *user == "paying" { 3 } else { 0 };
    let (queue, producer) = fair_queue(FairQueueOptions::new().weight(weight));
    for item in 0..9 {
        queue.push("free", item).await.unwrap();
        queue.push("paying", 100 + item).await.unwrap();
    }
    drop(queue);
    let items = all(producer).await;
    assert_eq!(items[..8], [0, 100, 101, 102, 1, 103, 104, 105]);
    assert_eq!(items.len(), 18);
}

#[tokio::test]
async fn an_item_uses_its_keys_share_by_its_cost() {
    // An item's cost is its number, and at least 1.
    let options =
        FairQueueOptions::new().cost(|item: &u64| u32::try_from(*item).unwrap()).quantum(100);
    let (queue, producer) = fair_queue(options);
    for _ in 0..3 {
        queue.push("large", 100).await.unwrap();
    }
    for item in [0, 50, 50, 51, 52] {
        queue.push("small", item).await.unwrap();
    }
    drop(queue);
    assert_eq!(all(producer).await, [100, 0, 50, 100, 50, 51, 100, 52]);
}

#[tokio::test]
async fn push_waits_for_room_in_its_key_and_does_not_block_other_keys() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(9).key_capacity(1));
    let (_pipeline, mut control) = gated(producer, 1);
    queue.push("a", 0).await.unwrap();
    assert_eq!(control.started(1).await, [0]);
    queue.push("a", 1).await.unwrap();
    let waiting = tokio::spawn(queue.push("a", 2));
    settle().await;
    assert!(!waiting.is_finished());
    assert_eq!(queue.try_push("a", 9), Err(TryPushError::KeyFull(9)));
    queue.push("b", 3).await.unwrap();

    control.release(1);
    waiting.await.unwrap().unwrap();
    control.release(2);
    assert_eq!(control.started(3).await, [1, 3, 2]);
}

#[tokio::test]
async fn a_dropped_push_leaves_nothing_behind() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().key_capacity(1));
    queue.push("a", 1).await.unwrap();
    let given_up = tokio::spawn(queue.push("a", 2));
    settle().await;
    let waits = tokio::spawn(queue.push("a", 3));
    settle().await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    let arrived = tokio::spawn(all(producer));
    waits.await.unwrap().unwrap();
    drop(queue);
    assert_eq!(arrived.await.unwrap(), [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn push_timed_records_the_time_of_the_call() {
    let (queue, producer) = timed_fair_queue(FairQueueOptions::new());
    let (sender, mut arrived) = mpsc::channel(1);
    let worker = async move |event: &Timed<u64>| {
        sender.send(*event).await?;
        Ok(())
    };
    let called_at = Instant::now();
    let push = queue.push_timed("a", 7);
    tokio::time::advance(Duration::from_millis(50)).await;
    push.await.unwrap();
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);

    let event = arrived.recv().await.unwrap();
    assert_eq!((event.enqueued_at(), event.into_inner()), (called_at, 7));
}

#[tokio::test]
async fn a_queue_keeps_to_its_bounds() {
    let (queue, _producer) = fair_queue(FairQueueOptions::new().capacity(3).key_capacity(2));
    queue.try_push("a", 1).unwrap();
    queue.try_push("a", 2).unwrap();
    assert_eq!(queue.try_push("a", 3), Err(TryPushError::KeyFull(3)));
    queue.try_push("b", 4).unwrap();
    assert_eq!(queue.try_push("b", 5), Err(TryPushError::Full(5)));
    assert_eq!((queue.len(), queue.len_of(&"a"), queue.len_of(&"c")), (3, 2, 0));
    assert_eq!((queue.capacity(), queue.key_capacity(), queue.is_empty()), (3, 2, false));
}

#[tokio::test]
async fn offers_evict_items_of_the_key_that_floods_the_queue() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(4).key_capacity(3));
    for item in 0..3 {
        assert_eq!(queue.offer("flood", item), Ok(OfferOutcome::Kept));
    }
    assert_eq!(queue.offer("flood", 3), Ok(OfferOutcome::DisplacedOldest));
    assert_eq!(queue.offer("small", 10), Ok(OfferOutcome::Kept));
    assert_eq!(queue.offer("other", 20), Ok(OfferOutcome::DisplacedOldest));
    assert_eq!((queue.len(), queue.discarded()), (4, 2));
    drop(queue);
    assert_eq!(all(producer).await, [2, 10, 20, 3]);
}

#[tokio::test]
async fn discarded_items_are_counted_and_logged_when_it_begins_and_ends() {
    let (log, _guard) = Log::keep();
    let (telemetry, recorded) = Recorded::new();
    let options = FairQueueOptions::new().capacity(5).key_capacity(2).keep(BufferKeep::First);
    let (queue, producer) = fair_queue(options);
    let offers: Vec<OfferOutcome> = (0..5u64).map(|item| queue.offer("a", item).unwrap()).collect();
    assert_eq!(offers[..2], [OfferOutcome::Kept; 2]);
    assert_eq!(offers[2..], [OfferOutcome::Discarded; 3]);
    assert_eq!(log.take(), ["WARN message=the queue or a key of it is full, discarding"]);

    let worker = async |_: &u64| Ok(());
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    assert_eq!(pipeline.drain(Duration::from_secs(60)).await.unprocessed(), 0);
    let labels = "pipeline=test,reason=queue_full,stage=producer".to_owned();
    assert_eq!(recorded.counters("pipeline.events_discarded"), [(labels, 3)]);
    let logged: Vec<String> =
        log.take().into_iter().filter(|line| line.contains("the queue")).collect();
    assert_eq!(logged, ["WARN discarded=3 message=the queue has room again"]);
}

#[tokio::test]
async fn a_closed_queue_returns_every_item() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().key_capacity(1));
    queue.push("a", 1).await.unwrap();
    let waiting = tokio::spawn(queue.push("a", 2));
    settle().await;
    drop(producer);
    assert_eq!(waiting.await.unwrap(), Err(Closed(2)));
    assert_eq!(queue.push("a", 3).await, Err(Closed(3)));
    assert_eq!(queue.try_push("b", 4), Err(TryPushError::Closed(4)));
    assert_eq!(queue.offer("b", 5), Err(Closed(5)));
    assert!(queue.is_closed());
}

#[tokio::test]
async fn the_pipeline_ends_when_the_last_handle_is_gone_and_the_queue_is_empty() {
    let (queue, producer) = fair_queue(FairQueueOptions::new());
    let (mut pipeline, mut control) = gated(producer, 9);
    let second = queue.clone();
    drop(queue);
    for item in 0..3 {
        second.push("a", item).await.unwrap();
    }
    drop(second);
    assert_eq!(control.started(3).await, [0, 1, 2]);
    control.release(3);
    let report = pipeline.join().await;
    assert!(report.stages.iter().all(|stage| matches!(stage.reason, ExitReason::Normal)));
    assert_eq!(report.unprocessed(), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_takes_no_more_items_and_reports_the_pending_ones() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().key_capacity(4));
    let (pipeline, mut control) = gated(producer, 1);
    for item in 0..4 {
        queue.push("a", item).await.unwrap();
        queue.push("b", item).await.unwrap();
    }
    control.started(1).await;
    queue.push("a", 4).await.unwrap();
    let waiting = tokio::spawn(queue.push("a", 5));
    settle().await;
    let report = pipeline.drain(Duration::from_millis(50)).await;
    assert_eq!(waiting.await.unwrap(), Err(Closed(5)));
    assert_eq!(queue.try_push("b", 6), Err(TryPushError::Closed(6)));
    let producer = report.stages.iter().find(|stage| &*stage.stage == "producer").unwrap();
    assert_eq!((producer.pending, report.unprocessed()), (8, 9));
}

#[test]
#[should_panic = "the capacity of a key must be at least 1"]
fn a_key_capacity_of_0_is_refused() {
    let _ = fair_queue::<u64, u64>(FairQueueOptions::new().key_capacity(0));
}

#[test]
#[should_panic = "the quantum of a fair queue"]
fn a_quantum_of_0_is_refused() {
    let _ = fair_queue::<u64, u64>(FairQueueOptions::new().quantum(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_pushers_lose_nothing_and_keep_their_own_order() {
    const PUSHERS: usize = 8;
    const EACH: u64 = 2_000;
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(16).key_capacity(3));
    let (sender, mut arrived) = mpsc::channel(64);
    let worker = async move |event: &(usize, u64)| {
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    for pusher in 0..PUSHERS {
        let queue = queue.clone();
        tokio::spawn(async move {
            for n in 0..EACH {
                // Two pushers per key.
                queue.push(pusher / 2, (pusher, n)).await.unwrap();
            }
        });
    }
    drop(queue);
    let mut next = [0; PUSHERS];
    while let Some((pusher, n)) = arrived.recv().await {
        assert_eq!(next[pusher], n);
        next[pusher] += 1;
    }
    assert_eq!(next, [EACH; PUSHERS]);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
}

#[tokio::test]
async fn waiting_for_the_close_ends_with_it() {
    let (queue, producer) = fair_queue::<u64, u64>(FairQueueOptions::new());
    let waiting = tokio::spawn(queue.closed());
    settle().await;
    assert!(!waiting.is_finished());
    drop(producer);
    waiting.await.unwrap();
    queue.closed().await;
}

#[tokio::test]
async fn a_weight_or_a_cost_that_panics_reaches_its_caller_and_changes_nothing() {
    let cost = |item: &u64| {
        assert!(*item != 13, "a bug at {item}");
        1
    };
    let weight = |key: &&'static str| {
        assert!(*key != "cursed", "a bug at {key}");
        1
    };
    let (queue, producer) = fair_queue(FairQueueOptions::new().cost(cost).weight(weight));
    for (key, item) in [("a", 13), ("cursed", 1)] {
        let panics = |push: &dyn Fn() -> bool| catch_unwind(AssertUnwindSafe(push)).is_err();
        assert!(panics(&|| queue.try_push(key, item).is_ok()), "try_push of {item} for {key}");
        assert!(panics(&|| queue.offer(key, item).is_ok()), "offer of {item} for {key}");
        let pushing = queue.clone();
        let pushed = tokio::spawn(async move { pushing.push(key, item).await }).await;
        assert!(pushed.unwrap_err().is_panic(), "push of {item} for {key}");
        assert_eq!((queue.len(), queue.len_of(&key)), (0, 0), "after {item} for {key}");
    }
    for item in 1..=3 {
        queue.try_push("a", item).unwrap();
    }
    drop(queue);
    assert_eq!(all(producer).await, [1, 2, 3]);
}
