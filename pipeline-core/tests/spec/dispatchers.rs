//! Sections 5.10 and 5.11, as far as they need running stages. src/dispatcher/cases tests the
//! dispatchers alone.

use std::time::Duration;

use pipeline_core::{
    Graph, Pipeline,
    backoff::Backoff,
    builder::StartError,
    dispatcher::{BroadcastDispatcher, PartitionDispatcher},
    stage::{DemandMode, ProducerHandle, Stage},
    step::map,
    subscription::{Cancel, SubscribeOptions},
    testkit::{ScriptedProducer, recording, scripted, settle},
};
use pipeline_test_support::Log;

fn auto(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

fn odd_is_unassigned() -> PartitionDispatcher<u64, usize> {
    PartitionDispatcher::by_key([0], |n: &u64| n.is_multiple_of(2).then_some(0))
}

#[tokio::test(start_paused = true)]
async fn s_119_busy_consumers_keep_demand_at_their_minimum() {
    let (producer, script) = scripted::<u64>();
    let mut graph = Graph::new("test");
    let producer = graph
        .producer_with(Stage::new(producer).named("producer").dispatcher(BroadcastDispatcher::new));
    let one = graph.consumer("one", recording().0.stuck());
    let two = graph.consumer("two", recording().0.stuck());
    let _pipeline = graph.start().unwrap();
    one.subscribe(&producer, auto(10, 0)).await.unwrap();
    two.subscribe(&producer, auto(20, 0)).await.unwrap();
    settle().await;
    script.emit(0..10).await;
    settle().await;
    assert_eq!(script.demands(), [10]);
}

#[tokio::test(start_paused = true)]
async fn s_131_a_broadcasting_stage_accepts_each_stage_once() {
    let (log, _guard) = Log::keep();
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = graph
        .producer_with(Stage::new(producer).named("producer").dispatcher(BroadcastDispatcher::new));
    let consumer = graph.consumer("consumer", consumer);
    let _pipeline = graph.start().unwrap();
    consumer.subscribe(&producer, auto(10, 5)).await.unwrap();
    let second = consumer.subscribe(&producer, auto(10, 5)).await.unwrap();
    settle().await;
    let [(subscription, how)] = &recording.cancelled()[..] else {
        panic!("one subscription is refused")
    };
    assert_eq!(subscription, &second);
    assert_eq!(
        how.to_string(),
        "cancelled (failed: the stage has already subscribed, expected once)"
    );
    assert!(consumer.is_running());
    let refused = log.take().into_iter().filter(|line| line.contains("subscription refused"));
    assert_eq!(refused.count(), 1);
    script.emit([1, 2]).await;
    settle().await;
    assert_eq!(recording.events(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn s_132_all_consumers_see_the_first_event_if_demand_was_accumulated() {
    let (producer, script) = scripted();
    let ((first, one), (second, two)) = (recording(), recording());
    let mut graph = Graph::new("test");
    let producer = graph.producer_with(
        Stage::new(producer.from_iter(0..40))
            .named("producer")
            .dispatcher(BroadcastDispatcher::new)
            .demand_mode(DemandMode::Accumulate),
    );
    let first = graph.consumer("first", first);
    let second = graph.consumer("second", second);
    let _pipeline = graph.start().unwrap();
    first.subscribe(&producer, auto(10, 0)).await.unwrap();
    second.subscribe(&producer, auto(20, 0)).await.unwrap();
    settle().await;
    assert!(one.events().is_empty() && two.events().is_empty() && script.demands().is_empty());
    producer.set_demand_mode(DemandMode::Forward);
    settle().await;
    let seen = one.events();
    assert_eq!(seen, (0..40).collect::<Vec<u64>>());
    assert_eq!(two.events(), seen);
}

#[tokio::test(start_paused = true)]
async fn x_011_events_discarded_by_a_producer_consumer_are_requested_again() {
    let (consumer, recording) = recording();
    let (producer, _script) = scripted();
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer.from_iter(0..20));
    let between = graph.producer_consumer_with(
        Stage::new(map(|n: u64| n)).named("between").dispatcher(odd_is_unassigned),
    );
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&between, &producer, auto(4, 2));
    graph.subscribe(&consumer, &between, auto(4, 0).partition(0_usize));
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!(recording.events(), (0..20).step_by(2).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn x_013_a_subscription_without_its_partition_is_refused_and_the_others_are_not_affected() {
    let ((producer, script), (good, events)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer =
        graph.producer_with(Stage::new(producer).named("producer").dispatcher(odd_is_unassigned));
    let good = graph.consumer("good", good);
    graph.subscribe(&good, &producer, auto(4, 2).partition(0_usize));
    let (lost, refusals) = recording::<u64>();
    let lost = graph.consumer("lost", lost);
    let mut pipeline = graph.start().unwrap();
    settle().await;
    for options in [auto(4, 2), auto(4, 2).partition(7_usize), auto(4, 2).partition(0_usize)] {
        lost.subscribe(&producer, options.cancel(Cancel::Temporary)).await.unwrap();
    }
    settle().await;
    let refusals: Vec<String> =
        refusals.cancelled().iter().map(|(_, how)| how.reason().to_string()).collect();
    assert_eq!(
        refusals,
        [
            "failed: no partition was given, expected one of 0",
            "failed: there is no partition 7, expected one of 0",
            "failed: partition 0 already has a subscriber, expected at most one",
        ]
    );
    script.emit([2, 4]).await;
    settle().await;
    assert_eq!(events.events(), [2, 4]);
    // A permanent consumer ends with it.
    lost.subscribe(&producer, auto(4, 2)).await.unwrap();
    settle().await;
    assert!(!lost.is_running() && producer.is_running());
    producer.stop(pipeline_core::ExitReason::Normal).await;
    pipeline.join().await;
}

#[tokio::test(start_paused = true)]
async fn x_014_events_of_an_unknown_partition_are_counted_and_reported() {
    let (log, _guard) = Log::keep();
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let dispatcher = || PartitionDispatcher::by_key([0, 1], |n: &u64| Some(*n));
    let mut graph = Graph::new("test");
    let producer =
        graph.producer_with(Stage::new(producer).named("producer").dispatcher(dispatcher));
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, auto(10, 5).partition(1_u64));
    let pipeline: Pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1, 9, 1, 8]).await;
    settle().await;
    assert_eq!(recording.events(), [1, 1]);
    assert_eq!(pipeline.snapshot().stages[0].discarded, 2);
    let warned = log.take().into_iter().find(|line| line.contains("discarded="));
    let warned = warned.expect("the discard was reported");
    assert!(
        warned.starts_with("WARN")
            && warned.contains("discarded=2")
            && warned.contains("stage=producer"),
        "{warned}"
    );
}

/// Starts a graph whose producer has the partitions 0 and 1, with a consumer for each of these options.
fn start_with(
    options: impl IntoIterator<Item = SubscribeOptions>,
) -> (Result<Pipeline, StartError>, ProducerHandle<ScriptedProducer<u64>>) {
    let dispatcher = || PartitionDispatcher::by_key(0..2, |n: &u64| Some(n % 2));
    let mut graph = Graph::new("test");
    let (producer, _script) = scripted();
    let producer =
        graph.producer_with(Stage::new(producer).named("producer").dispatcher(dispatcher));
    for (number, options) in options.into_iter().enumerate() {
        let consumer = graph.consumer(format!("consumer {number}"), recording::<u64>().0);
        graph.subscribe(&consumer, &producer, options);
    }
    (graph.start(), producer)
}

#[tokio::test(start_paused = true)]
async fn a_planned_subscription_with_a_wrong_partition_is_an_error_of_the_start() {
    let (zero, one) = (auto(4, 2).partition(0), auto(4, 2).partition(1));
    let temporary = |options: SubscribeOptions| options.cancel(Cancel::Temporary);
    for (second, expected) in [
        (auto(4, 2).partition(9), "there is no partition 9, expected one of 0, 1"),
        (temporary(auto(4, 2).partition(9)), "there is no partition 9, expected one of 0, 1"),
        (zero.clone(), "partition 0 already has a subscriber, expected at most one"),
        (auto(4, 2), "no partition was given, expected one of 0, 1"),
        (auto(4, 2).partition("one"), "partition \"one\" is of type &str, expected u64"),
    ] {
        let (started, producer) = start_with([zero.clone(), second]);
        let error = started.unwrap_err();
        let StartError::Subscribe { stage, source } = &error else { panic!("{error:?}") };
        assert_eq!((&**stage, source.to_string()), ("consumer 1", expected.to_owned()));
        assert!(!producer.is_running(), "no stage runs");
    }
    // What may be right later is no error.
    let standby = Cancel::Reconnect(Backoff::new(Duration::from_secs(1), Duration::from_secs(1)));
    for second in [one, temporary(zero.clone()), zero.clone().cancel(standby)] {
        assert!(start_with([zero.clone(), second]).0.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_without_a_planned_consumer_is_logged_once() {
    let (log, _guard) = Log::keep();
    let warnings = || {
        let lines = log.take().into_iter();
        lines.filter(|line| line.contains("no consumer is planned")).collect::<Vec<_>>()
    };
    let (pipeline, producer) = start_with([auto(4, 2).partition(0)]);
    let _pipeline = pipeline.unwrap();
    settle().await;
    let [warned] = &warnings()[..] else { panic!("one line is logged") };
    assert!(warned.starts_with("WARN") && warned.contains("stage=producer"), "{warned}");
    assert!(warned.contains("for partition 1, whose events"), "{warned}");
    assert!(producer.is_running());

    let _all = start_with([auto(4, 2).partition(0), auto(4, 2).partition(1)]).0.unwrap();
    let _later = start_with([]).0.unwrap();
    settle().await;
    assert!(warnings().is_empty(), "there is one for each, or all come later");
}
