//! Observing a running pipeline, and one that has ended.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{sync::Arc, time::Duration};

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    dispatcher::BroadcastDispatcher,
    snapshot::{PipelineObserver, PipelinePhase, StageKind, StageSnapshot},
    source::{FairQueueOptions, QueueOptions, fair_queue, from_iter, queue},
    stage::{Stage, WhenUnsubscribed},
    step::{for_each, for_each_batch, map, map_async},
    subscription::SubscribeOptions,
    supervisor::{ConsumerSupervisor, Restart},
    testkit::{assert_no_task_left, recording, scripted, settle},
};
use pipeline_test_support::{Recorded, Spans, gate};
use tokio::{sync::Semaphore, time::sleep};

fn seen<const N: usize>(observer: &PipelineObserver) -> [StageSnapshot; N] {
    observer.snapshot().stages.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn queued_items_show_before_and_after_the_end() {
    let (queue, producer) = queue(QueueOptions::new().capacity(2));
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    let observer = pipeline.observer();
    queue.push(0).await.unwrap();
    control.started(1).await;
    for event in 1..6 {
        let _ = queue.offer(event).unwrap();
    }
    // The source has not read its queue since, because it has no demand.
    let [source, supervisor] = seen(&observer);
    assert_eq!((source.queued, source.queue_capacity), (2, Some(2)));
    assert_eq!((source.discarded, &source.discarded_by), (3, &[("queue_full".into(), 3)].into()));
    assert_eq!((source.workers, supervisor.workers), (None, Some(1)));
    assert_eq!((supervisor.queued, supervisor.queue_capacity), (0, None));

    pipeline.drain(Duration::ZERO).await;
    let [source, supervisor] = seen(&observer);
    assert_eq!((source.queued, source.queue_capacity, source.discarded), (2, Some(2), 3));
    assert_eq!(supervisor.workers, Some(0));
    assert!(source.subscriptions.is_empty());
}

#[tokio::test]
async fn items_in_a_fair_queue_show() {
    let (queue, producer) = fair_queue(FairQueueOptions::new().capacity(10).key_capacity(1));
    let mut graph = Graph::new("test");
    graph.producer("source", producer);
    let pipeline = graph.start().unwrap();
    for event in 0..3 {
        let _ = queue.offer("Ada", event).unwrap();
    }
    queue.push("Joe", 3).await.unwrap();
    let [source] = seen(&pipeline.observer());
    assert_eq!((source.queued, source.queue_capacity), (2, Some(10)));
    assert_eq!(source.discarded_by, [("queue_full".into(), 2)].into());
}

#[tokio::test(start_paused = true)]
async fn an_observer_keeps_nothing_alive() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("test");
    graph.producer("source", producer);
    let pipeline = graph.start().unwrap();
    let observer = pipeline.observer();
    let event = Arc::new(());
    queue.push(event.clone()).await.unwrap();
    settle().await;
    drop((pipeline, queue));
    assert_no_task_left().await;
    assert_eq!(Arc::strong_count(&event), 1);
    let [source] = seen(&observer);
    assert_eq!(source.queued, 1, "one item must be left in the queue");
    assert_eq!(observer.snapshot().phase, PipelinePhase::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_starts_runs_drains_and_has_ended() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    let observer = pipeline.observer();
    let phase = || observer.snapshot().phase;
    assert_eq!(phase(), PipelinePhase::Starting);
    queue.push(0).await.unwrap();
    control.started(1).await;
    assert_eq!(phase(), PipelinePhase::Running);
    let drain = tokio::spawn(pipeline.drain(Duration::from_secs(1)));
    settle().await;
    assert_eq!(phase(), PipelinePhase::Draining);
    drain.await.unwrap();
    assert_eq!(phase(), PipelinePhase::Ended);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_stops_because_a_stage_failed_has_ended() {
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..10))
        .consumer(
            for_each(async |_| Err::<(), _>(ExitReason::failed("no luck"))),
            SubscribeOptions::new(),
        )
        .start()
        .unwrap();
    let observer = pipeline.observer();
    pipeline.join().await;
    assert_eq!(observer.snapshot().phase, PipelinePhase::Ended);
}

#[tokio::test(start_paused = true)]
async fn every_failure_of_a_worker_shows() {
    let (queue, producer) = queue(QueueOptions::new());
    let worker = async |event: &u64| match event {
        0 => Err(ExitReason::failed("no luck")),
        1 => panic!("no luck at all"),
        _ => Ok(()),
    };
    let supervisor = ConsumerSupervisor::new(worker).restart(Restart::Temporary);
    let mut pipeline = Pipeline::builder("test")
        .producer(producer)
        .consumer_supervisor(supervisor, SubscribeOptions::new())
        .start()
        .unwrap();
    for event in 0..5 {
        queue.push(event).await.unwrap();
    }
    queue.close();
    pipeline.join().await;
    let [source, supervisor] = seen(&pipeline.observer());
    assert_eq!((source.worker_failures, supervisor.worker_failures), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn sent_events_are_counted_for_each_subscription() {
    let (producer, script) = scripted();
    let mut graph = Graph::new("test");
    let producer = Stage::new(producer).named("source").dispatcher(BroadcastDispatcher::new);
    let producer = graph.producer_with(producer);
    let mut recordings = Vec::new();
    for (name, max) in [("a", 4), ("b", 10)] {
        let (consumer, recording) = recording();
        let consumer = graph.consumer(name, consumer.manual());
        graph.subscribe(&consumer, &producer, SubscribeOptions::new().max_demand(max));
        recordings.push((recording, max));
    }
    let pipeline = graph.start().unwrap();
    settle().await;
    for (recording, max) in &recordings {
        recording.allow(*max);
    }
    settle().await;
    script.emit([1, 2, 3]).await;
    settle().await;
    let [source, ..] = seen::<3>(&pipeline.observer());
    let mut sent: Vec<_> =
        source.subscriptions.iter().map(|to| (&*to.consumer, to.sent, to.pending_demand)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [("a", 3, 1), ("b", 3, 7)]);
    assert_eq!(source.events_out, 6);
}

#[tokio::test(start_paused = true)]
async fn discarded_events_are_counted_by_reason() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = Stage::new(producer).named("source").buffer_size(2);
    let producer = graph.producer_with(producer.when_unsubscribed(WhenUnsubscribed::Discard));
    let consumer = graph.consumer("sink", consumer.manual());
    let pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1]).await;
    consumer.subscribe(&producer, SubscribeOptions::new()).await.unwrap();
    settle().await;
    script.emit([2, 3, 4, 5]).await;
    let [source, _] = seen(&pipeline.observer());
    assert_eq!(source.discarded_by, [("buffer_full".into(), 2), ("unsubscribed".into(), 1)].into());
    assert_eq!((source.discarded, source.buffered, source.buffer_capacity), (3, 2, Some(2)));
    drop(recording);
}

#[tokio::test]
async fn a_snapshot_shows_the_kind_and_the_buffer_capacity_of_a_stage() {
    let pipeline = Pipeline::builder("test")
        .producer(from_iter(0..10))
        .producer_consumer(map(|n: u64| n), SubscribeOptions::new())
        .consumer(for_each(async |_| ()), SubscribeOptions::new())
        .start()
        .unwrap();
    let kinds = seen::<3>(&pipeline.observer()).map(|stage| (stage.kind, stage.buffer_capacity));
    let expected = [
        (StageKind::Producer, Some(10_000)),
        (StageKind::ProducerConsumer, None),
        (StageKind::Consumer, None),
    ];
    assert_eq!(kinds, expected);
}

/// The recorded times of a consumer's batches of one event each, which take this many milliseconds.
/// Batches of zero time are left out, and so is the producer.
async fn times_of_batches(take: impl Fn(u64) -> u64 + Clone + Send + 'static) -> Vec<f64> {
    let (telemetry, recorded) = Recorded::new();
    let consumer = for_each_batch(move |events: Vec<u64>| {
        let takes = Duration::from_millis(take(events[0]));
        async move {
            if !takes.is_zero() {
                sleep(takes).await;
            }
        }
    });
    let mut pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(from_iter(1..41))
        .consumer(consumer, SubscribeOptions::new().max_demand(2).min_demand(1))
        .start()
        .unwrap();
    pipeline.join().await;
    let mut times = recorded.samples("pipeline.stage.handle_time");
    times.retain(|time| *time > 0.0);
    times
}

#[tokio::test(start_paused = true)]
async fn the_time_of_every_long_batch_is_recorded() {
    assert_eq!(times_of_batches(|_| 5).await, [5.0; 40]);
}

#[tokio::test(start_paused = true)]
async fn one_of_sixteen_short_batches_is_timed_and_counts_for_all() {
    // The first batch is short, so 15 are not timed. The 17th counts for them.
    let times = times_of_batches(|n| if n == 16 || n == 17 || n == 18 { 5 } else { 0 }).await;
    assert_eq!(times, [5.0; 17], "16 batches and one more");
}

#[tokio::test(start_paused = true)]
async fn workers_and_queued_items_are_recorded_for_stages_that_have_them() {
    let (telemetry, recorded) = Recorded::new();
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(2))
        .start()
        .unwrap();
    for event in 0..5 {
        queue.push(event).await.unwrap();
    }
    control.started(2).await;
    sleep(Duration::from_secs(2)).await;
    recorded.look();
    let gauge = |name| recorded.gauges(name);
    let of = |stage: &str, value: f64| [(format!("pipeline=test,stage={stage}"), value)];
    assert_eq!(gauge("pipeline.workers"), of("consumer_supervisor", 2.0));
    assert_eq!(gauge("pipeline.events_queued"), of("producer", 3.0));
}

#[tokio::test(start_paused = true)]
async fn log_lines_of_a_callback_name_their_stage_and_pipeline() {
    let (spans, _guard) = Spans::keep();
    let worker = async |_: &u64| {
        tracing::info!("in a worker");
        Ok(())
    };
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..1))
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    pipeline.join().await;
    let expected = "pipeline{pipeline=test}: \
                    stage{kind=\"consumer_supervisor\" pipeline=test stage=consumer_supervisor}";
    assert_eq!(spans.of("in a worker"), expected);
    assert_eq!(spans.made(), 3, "one for each task, and none for each event");
}

#[tokio::test(start_paused = true)]
async fn what_a_map_async_has_in_work_is_a_gauge() {
    let (telemetry, recorded) = Recorded::new();
    let gate = Arc::new(Semaphore::new(0));
    let (opens, (queue, producer)) = (gate.clone(), queue(QueueOptions::new()));
    let pass = move |event: u64| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            event
        }
    };
    let pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .producer_consumer_with(
            Stage::new(map_async(3, pass)).named("ask"),
            SubscribeOptions::new(),
        )
        .consumer(for_each(async |_| {}), SubscribeOptions::new())
        .start()
        .unwrap();
    let in_work = async || {
        settle().await;
        recorded.look();
        recorded.gauges("pipeline.stage.in_work")
    };
    let shown = |events| vec![("pipeline=test,stage=ask".to_owned(), f64::from(events))];
    for event in 0..5 {
        queue.push(event).await.unwrap();
    }
    assert_eq!(in_work().await, shown(3));
    opens.add_permits(3);
    assert_eq!(in_work().await, shown(2));
    opens.add_permits(1);
    assert_eq!(in_work().await, shown(1));
    queue.push(5).await.unwrap();
    assert_eq!(in_work().await, shown(2));
    opens.add_permits(2);
    assert_eq!(in_work().await, shown(0));
    queue.push(6).await.unwrap();
    assert_eq!(in_work().await, shown(1));
    pipeline.drain(Duration::ZERO).await;
    assert_eq!(in_work().await, shown(0), "what it ran was dropped");
}

#[tokio::test(start_paused = true)]
async fn an_operator_kills_a_stage_by_its_name() {
    let (_queue, producer) = queue::<u64>(QueueOptions::new());
    let mut graph = Graph::new("test");
    let source = graph.producer("source", producer);
    let restarts = Stage::restarting(|| for_each(async |_: u64| {})).named("restarts");
    let restarts = graph.consumer_with(restarts.max_restarts(3, Duration::from_secs(60)));
    let once = graph.consumer("once", for_each(async |_: u64| {}));
    graph.subscribe(&restarts, &source, SubscribeOptions::new());
    graph.subscribe(&once, &source, SubscribeOptions::new());
    let pipeline = graph.start().unwrap();
    let (observer, operator) = (pipeline.observer(), pipeline.operator());
    assert_eq!(operator.name(), "test");
    assert!(operator.stages().eq(["source", "restarts", "once"]));
    assert!(!operator.kill("other"));
    let failures = || seen::<3>(&observer).map(|stage| stage.failures);
    assert_eq!(failures(), [0; 3]);

    assert!(operator.kill("restarts"));
    settle().await;
    assert_eq!(failures(), [0, 1, 0]);
    assert!(!observer.snapshot().failed);
    assert!(operator.kill("once"));
    settle().await;
    assert_eq!(failures(), [0, 1, 1]);
    assert!(observer.snapshot().failed);
    assert!(!operator.kill("once"), "it does not run");

    drop(pipeline);
    settle().await;
    assert!(["source", "restarts"].iter().all(|stage| !operator.kill(stage)));
    assert_no_task_left().await;
}
