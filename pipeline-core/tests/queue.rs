//! The queue producer: waiting pushers, refusals, timestamps and discarded items.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Wake, Waker},
    time::Duration,
};

use pipeline_core::{
    ExitReason, Pipeline,
    source::{
        Closed, FairQueueOptions, OfferOutcome, QueueOptions, TryPushError, fair_queue, queue,
        timed_queue,
    },
    stage::BufferKeep,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
};
use pipeline_test_support::{Log, Recorded, gate, settle};
use support::supervised;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

#[tokio::test]
async fn push_waits_for_room_and_is_served_in_order() {
    let (queue, producer) = queue(QueueOptions::new().capacity(2));
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);

    // One item is with the worker, two are in the queue, and the fourth finds no room.
    queue.push(0).await.unwrap();
    assert_eq!(control.started(1).await, [0]);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    let waiting = tokio::spawn(queue.push(3));
    settle().await;
    assert!(!waiting.is_finished());
    assert_eq!(queue.try_push(9).unwrap_err(), TryPushError::Full(9));

    control.release(1);
    waiting.await.unwrap().unwrap();
    control.release(3);
    assert_eq!(control.started(3).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_dropped_push_leaves_nothing_behind() {
    let (queue, producer) = queue(QueueOptions::new().capacity(1));
    queue.push(1).await.unwrap();
    let given_up = tokio::spawn(queue.push(2));
    settle().await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    let waits = tokio::spawn(queue.push(3));
    settle().await;

    let (sender, mut arrived) = mpsc::channel(9);
    let worker = async move |event: &u64| {
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    waits.await.unwrap().unwrap();
    drop(queue);
    pipeline.join().await;
    let arrived = [arrived.recv().await, arrived.recv().await, arrived.recv().await];
    assert_eq!(arrived, [Some(1), Some(3), None]);
}

#[tokio::test(start_paused = true)]
async fn push_timed_records_the_time_of_the_call() {
    let (queue, producer) = timed_queue(QueueOptions::new());
    let (sender, mut arrived) = mpsc::channel(1);
    let worker = async move |event: &Timed<u64>| {
        sender.send(*event).await?;
        Ok(())
    };
    let called_at = Instant::now();
    let push = queue.push_timed(7);
    tokio::time::advance(Duration::from_millis(50)).await;
    push.await.unwrap();
    tokio::time::advance(Duration::from_millis(50)).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);

    let event = arrived.recv().await.unwrap();
    assert_eq!((event.enqueued_at(), event.into_inner()), (called_at, 7));
}

#[tokio::test]
async fn items_offered_to_a_full_queue_are_discarded_and_counted() {
    let (queue, producer) = queue(QueueOptions::new().capacity(2).keep(BufferKeep::First));
    let offers: Vec<OfferOutcome> = (0..5u64).map(|item| queue.offer(item).unwrap()).collect();
    assert_eq!(offers[..2], [OfferOutcome::Kept; 2]);
    assert_eq!(offers[2..], [OfferOutcome::Discarded; 3]);
    assert_eq!(queue.discarded(), 3);

    let (telemetry, recorded) = Recorded::new();
    let (sender, mut arrived) = mpsc::channel(9);
    let worker = async move |event: &u64| {
        sender.send(*event).await?;
        Ok(())
    };
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    let report = pipeline.drain(Duration::from_secs(60)).await;
    assert_eq!(report.unprocessed(), 0);
    assert_eq!([arrived.recv().await, arrived.recv().await], [Some(0), Some(1)]);
    assert_eq!(arrived.recv().await, None);
    let discarded = recorded.counters("pipeline.events_discarded");
    let labels = "pipeline=test,reason=queue_full,stage=producer";
    assert_eq!(discarded, [(labels.to_owned(), 3)]);
}

/// Items are pushed while none are taken, some longer ago than `max_age`.
#[tokio::test(start_paused = true)]
async fn items_older_than_max_age_are_discarded_and_counted() {
    let (log, _guard) = Log::keep();
    let (queue, producer) = timed_queue(QueueOptions::new().capacity(100));
    let producer = producer.max_age(Duration::from_secs(2));
    for item in 0..30u64 {
        queue.push_timed(item).await.unwrap();
    }
    tokio::time::advance(Duration::from_millis(2001)).await;
    for item in 30..40u64 {
        queue.push_timed(item).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(2)).await;

    let (telemetry, recorded) = Recorded::new();
    let (sender, mut arrived) = mpsc::channel(100);
    let worker = async move |event: &Timed<u64>| {
        sender.send(**event).await?;
        Ok(())
    };
    let mut pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        // Fewer than the old items: those do not use up demand.
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(7))
        .start()
        .unwrap();
    for item in 30..40 {
        assert_eq!(arrived.recv().await, Some(item));
    }
    assert_eq!(queue.discarded(), 30);
    let labels = "pipeline=test,reason=too_old,stage=producer";
    let counted = recorded.counters("pipeline.events_discarded");
    assert_eq!(counted, [(labels.to_owned(), 30)]);
    assert_eq!(pipeline.snapshot().stages[0].discarded_by, [("too_old".into(), 30)].into());
    let logged = log.take().into_iter().filter(|line| line.contains("max_age"));
    assert!((1..=5).contains(&logged.count()), "old items must be logged, but not each of them");
    drop(queue);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_with_only_old_items_ends() {
    let (queue, producer) = timed_queue(QueueOptions::new());
    let producer = producer.max_age(Duration::ZERO);
    for item in 0..1000u64 {
        queue.push_timed(item).await.unwrap();
    }
    tokio::time::advance(Duration::from_millis(1)).await;
    queue.close();
    let worker = async |_: &Timed<u64>| Err(ExitReason::failed("it is too late for this"));
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    let report = pipeline.join().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(queue.discarded(), 1000);
}

#[tokio::test]
async fn discarding_is_logged_when_it_begins_and_ends() {
    let (log, _guard) = Log::keep();
    let (queue, producer) = queue(QueueOptions::new().capacity(1));
    for item in 0..5u64 {
        let _ = queue.offer(item).unwrap();
    }
    assert_eq!(log.take(), ["WARN message=the queue is full, discarding"]);
    let worker = async |_: &u64| Ok(());
    let pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    pipeline.drain(Duration::from_secs(60)).await;
    let logged = log.take().into_iter().filter(|line| line.contains("the queue"));
    let logged: Vec<String> = logged.collect();
    assert_eq!(logged, ["WARN discarded=4 message=the queue has room again"]);
}

#[tokio::test(start_paused = true)]
async fn items_discarded_until_the_end_are_counted() {
    let (telemetry, recorded) = Recorded::new();
    let (queue, producer) = queue(QueueOptions::new().capacity(1));
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    queue.push(0).await.unwrap();
    control.started(1).await;
    for item in 1..4 {
        let _ = queue.offer(item).unwrap();
    }
    let report = pipeline.drain(Duration::ZERO).await;
    assert_eq!(report.unprocessed(), 2);
    let labels = "pipeline=test,reason=queue_full,stage=producer".to_owned();
    assert_eq!(recorded.counters("pipeline.events_discarded"), [(labels, 2)]);
}

#[tokio::test]
async fn a_queue_that_keeps_the_last_displaces_the_oldest() {
    let (queue, _producer) = queue(QueueOptions::new().capacity(1));
    assert_eq!(queue.offer(1).unwrap(), OfferOutcome::Kept);
    assert_eq!(queue.offer(2).unwrap(), OfferOutcome::DisplacedOldest);
    assert_eq!((queue.len(), queue.capacity(), queue.discarded()), (1, 1, 1));
    assert!(!queue.is_empty());
}

#[tokio::test]
async fn a_closed_queue_returns_every_item() {
    let (queue, producer) = queue(QueueOptions::new().capacity(1));
    queue.push(1).await.unwrap();
    let waiting = tokio::spawn(queue.push(2));
    settle().await;
    drop(producer);
    assert_eq!(waiting.await.unwrap(), Err(Closed(2)));
    assert_eq!(queue.push(3).await, Err(Closed(3)));
    assert_eq!(queue.try_push(4), Err(TryPushError::Closed(4)));
    assert_eq!(queue.offer(5), Err(Closed(5)));
    assert!(queue.is_closed());
}

#[tokio::test]
async fn the_pipeline_ends_when_the_last_handle_is_gone_and_the_queue_is_empty() {
    let (queue, producer) = queue(QueueOptions::new());
    let (sender, mut arrived) = mpsc::channel(9);
    let worker = async move |event: &u64| {
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    let second = queue.clone();
    drop(queue);
    for item in 0..3 {
        second.push(item).await.unwrap();
    }
    drop(second);
    let report = pipeline.join().await;
    assert!(report.stages.iter().all(|stage| matches!(stage.reason, ExitReason::Normal)));
    assert_eq!(report.unprocessed(), 0);
    for item in 0..3 {
        assert_eq!(arrived.recv().await, Some(item));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_pushers_lose_nothing_and_keep_their_own_order() {
    const PUSHERS: usize = 8;
    const EACH: u64 = 2_000;
    let (queue, producer) = queue(QueueOptions::new().capacity(16));
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
                queue.push((pusher, n)).await.unwrap();
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
async fn waiting_for_the_close_ends_whatever_closes_the_queue() {
    for way in ["handle", "handles dropped", "producer dropped", "drain", "kill", "failure"] {
        let (queue, producer) = queue::<u64>(QueueOptions::new());
        let waiting = [queue.closed(), queue.closed()].map(tokio::spawn);
        let dropped = tokio::spawn(queue.closed());
        settle().await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "{way}: it is open");
        dropped.abort();
        let fail = async |_: &u64| Err(ExitReason::failed("no route"));
        let fail = ConsumerSupervisor::new(fail).max_restarts(0, Duration::from_secs(5));
        let start = |producer| supervised(producer, fail, 1, 0);
        let later = queue.closed();
        let mut queue = Some(queue);
        match way {
            "handle" => queue.as_ref().unwrap().clone().close(),
            "handles dropped" => drop(queue.take()),
            "producer dropped" => drop(producer),
            "drain" => drop(start(producer).drain(Duration::from_secs(5)).await),
            "kill" => drop(start(producer)),
            _ => {
                let mut pipeline = start(producer);
                queue.as_ref().unwrap().push(1).await.unwrap();
                pipeline.join().await;
            }
        }
        for waiting in waiting {
            waiting.await.unwrap();
        }
        later.await;
        assert!(queue.is_none_or(|queue| queue.is_closed()), "{way}");
    }
}

#[tokio::test]
async fn waiting_for_the_close_keeps_no_items() {
    let (queue, producer) = queue(QueueOptions::new());
    let item = Arc::new(());
    queue.push(item.clone()).await.unwrap();
    let closed = queue.closed();
    drop((queue, producer));
    assert_eq!(Arc::strong_count(&item), 1);
    closed.await;
}

struct PanickingWaker;

#[expect(clippy::panic, reason = "the test needs it")]
impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a waker of the user's");
    }
}

#[tokio::test]
async fn waiting_for_the_close_ends_even_if_a_pusher_cannot_be_woken() {
    let (queue, _producer) = queue(QueueOptions::new().capacity(1));
    queue.push(1).await.unwrap();
    let mut waiting = pin!(queue.push(2));
    let waker = Waker::from(Arc::new(PanickingWaker));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let closed = tokio::spawn(queue.closed());
    settle().await;
    assert!(catch_unwind(AssertUnwindSafe(|| queue.close())).is_err());
    timeout(Duration::from_secs(5), closed).await.expect("it is closed").unwrap();
}

/// The counted refusals of the only stage with a queue, by reason.
fn refusals(recorded: &Recorded) -> Vec<(String, u64)> {
    let counted = recorded.counters("pipeline.events_refused");
    counted.into_iter().filter(|(_, items)| *items > 0).collect()
}

#[tokio::test(start_paused = true)]
async fn items_that_find_no_room_are_counted_and_logged_once_until_there_is_room() {
    let (log, _guard) = Log::keep();
    let (telemetry, recorded) = Recorded::new();
    let (queue, producer) = queue(QueueOptions::new().capacity(2));
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    queue.push(0).await.unwrap();
    control.started(1).await;
    for item in 1..3 {
        queue.push(item).await.unwrap();
    }

    for _ in 0..3 {
        queue.try_push(9).unwrap_err();
    }
    // A sender that waits, and is no more interested after a second.
    timeout(Duration::from_secs(1), queue.push(9)).await.unwrap_err();
    let waits = tokio::spawn(queue.push(3));
    settle().await;
    let begins = |line: &String| line.contains("refusing items") && line.contains("queue_full");
    let lines = log.take();
    let begun: Vec<_> = lines.iter().filter(|line| begins(line)).collect();
    assert_eq!(begun.len(), 1, "{lines:?}");
    assert!(begun[0].contains(r#"pipeline="test""#) && begun[0].contains(r#"stage="producer""#));
    let source = pipeline.snapshot().stages[0].clone();
    assert_eq!(source.refused, 4);
    assert_eq!(source.refused_by, [("queue_full".into(), 3), ("gave_up".into(), 1)].into());
    assert_eq!(source.discarded, 0, "refused items are not discarded");
    tokio::time::sleep(Duration::from_secs(11)).await;
    let label = |reason| format!("pipeline=test,reason={reason},stage=producer");
    assert_eq!(refusals(&recorded), [(label("gave_up"), 1), (label("queue_full"), 3)]);

    control.release(4);
    control.started(3).await;
    waits.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    queue.push(4).await.unwrap();
    control.release(1);
    control.started(1).await;
    settle().await;
    let over = log.take().into_iter().filter(|line| line.contains("room again"));
    assert_eq!(over.count(), 1);
    queue.close();
    queue.try_push(9).unwrap_err();
    assert_eq!(pipeline.snapshot().stages[0].refused, 4, "a closed queue is not full");
}

#[tokio::test(start_paused = true)]
async fn items_of_a_key_that_is_full_are_counted_as_such() {
    let (log, _guard) = Log::keep();
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(10).key_capacity(1));
    let pipeline = Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(
            ConsumerSupervisor::new(async |_: &u64| Ok(())),
            SubscribeOptions::new().max_demand(1),
        )
        .start()
        .unwrap();
    queue.try_push("Ada", 1).unwrap();
    assert_eq!(queue.try_push("Ada", 2).unwrap_err(), TryPushError::KeyFull(2));
    queue.try_push("Joe", 3).unwrap();
    let refused = pipeline.snapshot().stages[0].refused_by.clone();
    assert_eq!(refused, [("key_full".into(), 1)].into());

    // The queue itself has room at every look, and one key is over its limit all the time.
    let _ = log.take();
    for n in 0..1_000 {
        if queue.try_push("Ada", n).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = (queue.try_push("Ada", n), queue.try_push("Ada", n));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(pipeline.snapshot().stages[0].refused > 500);
    assert_eq!(log.take(), [""; 0], "the line was written at the first refusal");
}
