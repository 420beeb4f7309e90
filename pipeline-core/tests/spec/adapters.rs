//! Section 5.14: adapters.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    builder::StartError,
    source::{from_iter, from_stream},
    stage::{DemandMode, EventStream, Producer, ProducerHandle, Stage},
    subscription::{Cancel, Cancellation, SubscribeError, SubscribeOptions, Subscription},
    testkit::{Recording, Script, assert_no_task_left, recording, scripted, settle},
};
use tokio::time;

/// `auto(max,min)`.
fn auto(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

fn ends(cancelled: Vec<(Subscription, Cancellation)>) -> Vec<String> {
    cancelled.into_iter().map(|(_, ended)| ended.to_string()).collect()
}

/// A producer and a consumer that records its events.
fn case<P: Producer>(producer: P, options: SubscribeOptions) -> (Pipeline, Recording<P::Event>) {
    let mut graph = Graph::new("test");
    let (consumer, recording) = recording();
    let producer = graph.producer("producer", producer);
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, options);
    (graph.start().unwrap(), recording)
}

/// A pipeline of producers only, read by a stream.
fn sources<P: Producer>(
    producers: impl IntoIterator<Item = P>,
) -> (Pipeline, Vec<ProducerHandle<P>>) {
    let mut graph = Graph::new("test");
    let named = producers.into_iter().enumerate();
    let handles = named.map(|(n, source)| graph.producer(format!("source {n}"), source)).collect();
    (graph.start().unwrap(), handles)
}

/// `counter`, and a stream of its events.
fn counter(max_demand: usize) -> (Pipeline, Script<u64>, EventStream<u64>) {
    let (producer, script) = scripted();
    let (pipeline, handles) = sources([producer.from_iter(0..)]);
    let mut stream = EventStream::new();
    stream.subscribe(&handles[0], SubscribeOptions::new().max_demand(max_demand)).unwrap();
    (pipeline, script, stream)
}

async fn take(stream: &mut EventStream<u64>, count: usize) -> Vec<u64> {
    stream.take(count).try_collect().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn s_173_an_iterator_is_delivered_and_then_the_stage_ends() {
    async fn run<P: Producer<Event = u64>>(producer: P) {
        let (mut pipeline, recording) = case(producer, auto(2, 1));
        let report = pipeline.join().await;
        assert_eq!(recording.chunks(), [[1], [2], [3], [4], [5]]);
        assert_eq!(ends(recording.cancelled()), ["down (normal)"]);
        assert!(matches!(recording.terminated(), Some(ExitReason::Normal)));
        assert!(report.stages.iter().all(|stage| matches!(stage.reason, ExitReason::Normal)));
        assert_eq!(report.unprocessed(), 0);
    }
    run(from_iter(1..=5)).await;
    run(from_stream(stream::iter(1..=5))).await;
}

#[tokio::test(start_paused = true)]
async fn s_174_an_empty_source_lives_until_the_first_demand() {
    async fn run<P: Producer<Event = u64>>(producer: P) {
        let mut graph = Graph::new("test");
        let (consumer, recording) = recording();
        let producer = graph.producer("producer", producer);
        let consumer = graph.consumer("consumer", consumer);
        let _pipeline = graph.start().unwrap();
        time::sleep(Duration::from_secs(3600)).await;
        assert!(producer.is_running());
        let options = SubscribeOptions::new().cancel(Cancel::Transient);
        consumer.subscribe(&producer, options).await.unwrap();
        settle().await;
        assert!(!producer.is_running());
        assert_eq!(ends(recording.cancelled()), ["down (normal)"]);
        assert!(consumer.is_running());
        assert_eq!(recording.events(), [0u64; 0]);
    }
    run(from_iter([])).await;
    run(from_stream(stream::empty())).await;
}

#[tokio::test(start_paused = true)]
async fn s_175_a_failing_iterator_ends_the_stage_and_loses_its_batch() {
    let items = (1..=10).inspect(|item| assert!(*item != 4, "no fourth"));
    let options = auto(2, 0).cancel(Cancel::Transient);
    let (_pipeline, recording) = case(from_iter(items), options);
    settle().await;
    assert_eq!(recording.chunks(), [[1, 2]]);
    assert_eq!(ends(recording.cancelled()), ["down (panicked: no fourth)"]);
    assert_eq!(recording.terminated().unwrap().to_string(), "panicked: no fourth");
}

#[tokio::test(start_paused = true)]
async fn s_176_an_endless_source_ends_with_its_last_consumer_if_configured() {
    async fn run<P: Producer<Event = u64>>(producer: P, stops: bool) {
        let mut graph = Graph::new("test");
        let (consumer, recording) = recording();
        let producer = graph.producer("producer", producer);
        let consumer = graph.consumer("consumer", consumer.manual());
        let options = SubscribeOptions::new().cancel(Cancel::Temporary);
        graph.subscribe(&consumer, &producer, options.clone());
        let pipeline = graph.start().unwrap();
        let other = consumer.subscribe(&producer, options).await.unwrap();
        other.ask(2);
        settle().await;
        assert_eq!(recording.events(), [0, 1]);
        other.cancel(ExitReason::Normal);
        settle().await;
        assert!(producer.is_running(), "it has another consumer");
        consumer.stop(ExitReason::Shutdown).await;
        settle().await;
        assert_eq!(producer.is_running(), !stops);
        producer.stop(ExitReason::Shutdown).await;
        let report = pipeline.drain(Duration::from_secs(1)).await;
        let of = |name: &str| report.stages.iter().find(|stage| &*stage.stage == name).unwrap();
        assert_eq!(matches!(of("producer").reason, ExitReason::Normal), stops, "{report}");
    }
    run(from_iter(0..), false).await;
    run(from_iter(0..).stop_without_consumers(), true).await;
    run(from_stream(stream::iter(0..)), false).await;
    run(from_stream(stream::iter(0..)).stop_without_consumers(), true).await;
}

#[tokio::test(start_paused = true)]
async fn s_177_a_stream_requests_the_next_chunk_when_one_is_taken_and_cancels_when_dropped() {
    let (_pipeline, script, mut stream) = counter(4);
    assert_eq!(take(&mut stream, 3).await, [0, 1, 2]);
    drop(stream);
    settle().await;
    assert_eq!(script.demands(), [4, 2]);
    assert_eq!(ends(script.cancelled()), ["cancelled (normal)"]);
}

#[tokio::test(start_paused = true)]
async fn s_178_a_stream_requests_half_at_a_time() {
    let (_pipeline, script, mut stream) = counter(4);
    assert_eq!(take(&mut stream, 10).await, Vec::from_iter(0..10));
    settle().await;
    assert_eq!(script.demands(), [4, 2, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn s_179_a_stream_that_was_dropped_leaves_nothing() {
    let (pipeline, script, mut stream) = counter(100);
    assert_eq!(take(&mut stream, 300).await, Vec::from_iter(0..300));
    drop(stream);
    settle().await;
    assert_eq!(ends(script.cancelled()), ["cancelled (normal)"]);
    assert_eq!(script.handle().estimate_buffered_count().await, Ok(0));
    drop(pipeline);
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn s_180_a_stream_of_two_finite_sources_yields_all_events_and_ends() {
    let (_pipeline, handles) = sources([0..100, 100..250].map(from_iter));
    let mut stream = EventStream::new();
    for handle in &handles {
        stream.subscribe(handle, auto(7, 3).cancel(Cancel::Transient)).unwrap();
    }
    let items: Vec<u64> = stream.by_ref().try_collect().await.unwrap();
    let (mut low, mut high): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| *item < 100);
    assert!(low.is_sorted() && high.is_sorted(), "each source's items are in order");
    low.append(&mut high);
    assert_eq!(low, Vec::from_iter(0..250));
    assert!(stream.next().await.is_none(), "it has ended for good");
}

#[tokio::test(start_paused = true)]
async fn s_181_any_end_of_a_permanent_source_is_an_error() {
    let (_pipeline, handles) = sources([from_iter(0..10)]);
    let mut stream = EventStream::new();
    stream.subscribe(&handles[0], auto(4, 2)).unwrap();
    let mut items = Vec::new();
    let failure = loop {
        match stream.next().await.unwrap() {
            Ok(item) => items.push(item),
            Err(error) => break error,
        }
    };
    assert!(matches!(failure.reason(), ExitReason::Normal));
    assert_eq!(items, Vec::from_iter(0..10), "emitted events come before the end");
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn s_182_a_missing_producer_is_an_error_unless_temporary() {
    // A producer that was never started, and one that has ended.
    let never = Graph::new("never").producer("producer", scripted::<u64>().0);
    let (pipeline, handles) = sources([scripted::<u64>().0]);
    settle().await;
    handles[0].stop(ExitReason::Shutdown).await;
    for missing in [&never, &handles[0]] {
        for mode in [Cancel::Permanent, Cancel::Transient] {
            let mut stream = EventStream::new();
            stream.subscribe(missing, SubscribeOptions::new().cancel(mode)).unwrap();
            let missing = stream.next().await.unwrap().unwrap_err();
            assert!(matches!(missing.reason(), ExitReason::NotRunning));
            assert!(stream.next().await.is_none());
        }
        let mut stream = EventStream::new();
        stream.subscribe(missing, SubscribeOptions::new().cancel(Cancel::Temporary)).unwrap();
        assert!(stream.next().await.is_none(), "empty");
    }
    drop(pipeline);
}

#[tokio::test(start_paused = true)]
async fn s_183_a_stream_with_invalid_options_is_refused_at_once() {
    let (pipeline, handles) = sources([scripted::<u64>().0]);
    let mut stream = EventStream::new();
    let refused = stream.subscribe(&handles[0], SubscribeOptions::new().max_demand(0));
    assert_eq!(refused, Err(SubscribeError::MaxDemand));

    let builder = Pipeline::builder("test").producer(from_iter(0..10u64));
    let refused = builder.into_stream(SubscribeOptions::new().max_demand(0)).unwrap_err();
    assert!(matches!(refused, StartError::Subscribe { source: SubscribeError::MaxDemand, .. }));
    drop((stream, pipeline));
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_sets_its_producers_to_forward() {
    let mut graph = Graph::new("test");
    let stage = Stage::new(from_iter(0..3)).named("source").demand_mode(DemandMode::Accumulate);
    let producer = graph.producer_with(stage);
    let _pipeline = graph.start().unwrap();
    let mut stream = EventStream::new();
    stream.subscribe(&producer, auto(4, 2).cancel(Cancel::Transient)).unwrap();
    let items: Vec<u64> = stream.try_collect().await.unwrap();
    assert_eq!(items, [0, 1, 2]);
}
