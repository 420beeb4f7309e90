//! Operations on running stages.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipeline_core::{
    ExitReason, Graph, Pipeline,
    backoff::Backoff,
    builder::StartError,
    snapshot::Activity,
    source::{QueueOptions, QueueProducer, from_iter, queue},
    stage::{
        CallError, Emitter, HandleCall, Producer, ProducerConsumer, ProducerHandle, RateLimit,
        Stage, StageContext, WhenUnsubscribed,
    },
    step::{flat_map, for_each, map},
    subscription::{Cancel, SubscribeOptions, Subscription},
    supervisor::{Adaptive, ConsumerSupervisor},
    testkit::{Command, assert_no_task_left, recording, scripted, settle},
};
use pipeline_test_support::Recorded;
use tokio::time::{Instant, sleep};

fn demand(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

#[tokio::test(start_paused = true)]
async fn either_end_determines_the_event_type() {
    // Nothing else determines the item type of the queue or the argument of the function.
    let (queue, producer) = queue(QueueOptions::new());
    let mut lengths = Pipeline::builder("lengths")
        .producer(producer)
        .consumer(for_each(async |line: String| drop(line)), SubscribeOptions::new())
        .start()
        .unwrap();
    queue.close();
    assert_eq!(lengths.join().await.unprocessed(), 0);
    let mut numbers = Pipeline::builder("numbers")
        .producer(from_iter(0..3))
        .producer_consumer(map(|n: u64| n.to_string()), SubscribeOptions::new())
        .consumer(for_each(async |line| drop(line)), SubscribeOptions::new())
        .start()
        .unwrap();
    assert_eq!(numbers.join().await.unprocessed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_paused_stage_delivers_its_events_when_it_is_resumed() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer);
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, demand(10, 5));
    let pipeline = graph.start().unwrap();
    settle().await;
    producer.pause();
    script.emit([1, 2, 3]).await;
    settle().await;
    assert!(recording.chunks().is_empty());
    assert_eq!(pipeline.snapshot().stages[0].activity, Activity::Paused);
    assert_eq!(producer.estimate_buffered_count().await, Ok(3));
    producer.resume();
    settle().await;
    assert_eq!(recording.events(), [1, 2, 3]);

    consumer.pause();
    settle().await;
    script.emit([4, 5]).await;
    settle().await;
    assert!(recording.chunks().is_empty());
    assert_eq!(pipeline.snapshot().stages[1].waiting, 2);
    consumer.resume();
    settle().await;
    assert_eq!(recording.events(), [4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_subscription_does_not_block_others() {
    let ((left, left_script), (right, right_script)) = (scripted(), scripted());
    let (consumer, recording) = recording();
    let mut graph = Graph::new("test");
    let (left, right) = (graph.producer("left", left), graph.producer("right", right));
    let consumer = graph.consumer("consumer", consumer);
    let _pipeline = graph.start().unwrap();
    let subscription = consumer.subscribe(&left, demand(4, 2)).await.unwrap();
    consumer.subscribe(&right, demand(4, 2)).await.unwrap();
    subscription.pause();
    settle().await;
    left_script.emit([1, 2]).await;
    right_script.emit([10]).await;
    settle().await;
    assert_eq!(recording.events(), [10]);
    subscription.resume();
    settle().await;
    assert_eq!(recording.events(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_finishing_stage_delivers_its_events_first() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer);
    let consumer = graph.consumer("consumer", consumer.manual());
    graph.subscribe(&consumer, &producer, demand(10, 5));
    let mut pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1, 2, 3]).await;
    let finishing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.finish().await }
    });
    settle().await;
    assert!(producer.is_running());
    recording.allow(2);
    settle().await;
    assert!(producer.is_running());
    recording.allow(1);
    finishing.await.unwrap();
    assert_eq!(recording.events(), [1, 2, 3]);
    let report = pipeline.join().await;
    assert_eq!((report.unprocessed(), report.failure().is_none()), (0, true));
}

#[tokio::test(start_paused = true)]
async fn a_producer_consumer_whose_producer_has_ended_delivers_its_events_first() {
    let (consumer, recording) = recording();
    let mut graph = Graph::new("test");
    let numbers = graph.producer("numbers", from_iter(1..4));
    let thrice = graph.producer_consumer("thrice", Thrice);
    let consumer = graph.consumer("consumer", consumer.manual());
    graph.subscribe(&thrice, &numbers, demand(10, 5));
    graph.subscribe(&consumer, &thrice, demand(10, 5));
    let mut pipeline = graph.start().unwrap();
    settle().await;
    recording.allow(1);
    settle().await;
    assert!(!numbers.is_running() && thrice.is_running());
    recording.allow(7);
    settle().await;
    assert!(thrice.is_running(), "one event must be left");
    recording.allow(1);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(recording.events(), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
}

/// Emits each event three times.
struct Thrice;

impl ProducerConsumer for Thrice {
    type In = u32;
    type Out = u32;

    async fn handle_events(
        &mut self,
        events: Vec<u32>,
        _: &Subscription,
        out: &mut Emitter<'_, u32>,
    ) -> Result<(), ExitReason> {
        events.into_iter().for_each(|n| out.emit_all([n; 3]));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_producer_gets_its_consumer_back() {
    let (producer, script) = scripted::<u64>();
    let (consumer, recording) = recording();
    let made = Arc::new(AtomicUsize::new(0));
    let mut graph = Graph::new("test");
    // Each incarnation has its own script; the first is kept here.
    let mut first = Some(producer);
    let counted = made.clone();
    let producer = graph.producer_with(
        Stage::restarting(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            first.take().unwrap_or_else(|| scripted().0.from_iter(100..104))
        })
        .named("producer"),
    );
    let consumer = graph.consumer("consumer", consumer);
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    graph.subscribe(&consumer, &producer, demand(4, 2).cancel(Cancel::Reconnect(backoff)));
    let pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1]).await;
    script.execute(Command::Panic("on purpose")).await.unwrap();
    settle().await;
    assert_eq!(recording.events(), [1]);
    assert!(consumer.is_running() && producer.is_running());
    assert_eq!(made.load(Ordering::Relaxed), 2);
    assert_eq!(recording.subscriptions(), 1, "it must wait before it subscribes again");
    assert_eq!(pipeline.snapshot().stages[0].restarts, 1);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(recording.subscriptions(), 2);
    assert_eq!(recording.events()[..4], [100, 101, 102, 103]);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_keeps_failing_stops_the_pipeline() {
    let (consumer, recording) = recording::<u64>();
    let mut graph = Graph::new("test");
    let producer = graph.producer_with(
        Stage::restarting(|| {
            let (producer, script) = scripted();
            script.on_demand(Command::Panic("always"));
            producer
        })
        .max_restarts(2, Duration::from_secs(5)),
    );
    let consumer = graph.consumer("consumer", consumer);
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
    graph.subscribe(&consumer, &producer, demand(4, 2).cancel(Cancel::Reconnect(backoff)));
    let mut pipeline = graph.start().unwrap();
    let report = pipeline.join().await;
    let failures: Vec<_> = report.stages.iter().filter(|it| !it.reason.is_graceful()).collect();
    assert_eq!(
        (failures.len(), failures[0].restarts),
        (1, 2),
        "two restarts and one failure too many: {report}"
    );
    assert_eq!(pipeline.snapshot().stages[0].failures, 3);
    assert_eq!(recording.terminated().unwrap().to_string(), "shutdown");
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn events_without_subscribers_can_be_discarded() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = graph.producer_with(
        Stage::new(producer).named("producer").when_unsubscribed(WhenUnsubscribed::Discard),
    );
    let consumer = graph.consumer("consumer", consumer.manual());
    let pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1, 2, 3]).await;
    consumer.subscribe(&producer, demand(10, 5)).await.unwrap();
    settle().await;
    script.emit([4]).await;
    recording.allow(10);
    settle().await;
    assert_eq!(recording.events(), [4]);
    assert_eq!(pipeline.snapshot().stages[0].discarded, 3);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_spreads_events_over_intervals_and_can_be_changed() {
    let (consumer, recording) = recording();
    let mut graph = Graph::new("test");
    let limit = RateLimit::new(3, Duration::from_millis(100));
    let producer =
        graph.producer_with(Stage::new(from_iter(0..100)).named("producer").rate_limit(limit));
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, demand(10, 5));
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!(recording.events(), [0, 1, 2]);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(recording.events(), [0; 0]);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(recording.events(), [3, 4, 5]);
    producer.rate_limit(RateLimit::new(1, Duration::from_millis(100)));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(recording.events(), [6]);
    producer.rate_limit(None);
    settle().await;
    assert_eq!(recording.events().len(), 93);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_where_events_wait_and_for_which_consumer() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let mut graph = Graph::new("test");
    let producer = graph.producer("source", producer);
    let consumer = graph.consumer("sink", consumer.manual());
    graph.subscribe(&consumer, &producer, demand(10, 5));
    let pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1, 2, 3]).await;
    recording.allow(1);
    settle().await;
    let before = pipeline.snapshot();
    let [source, sink] = &before.stages[..] else { panic!("two stages") };
    assert_eq!((&*source.stage, &*sink.stage), ("source", "sink"));
    assert_eq!((source.events_out, source.buffered, sink.events_in), (1, 2, 1));
    assert_eq!(source.activity, Activity::WaitingForDemand);
    assert_eq!(sink.activity, Activity::WaitingForEvents);
    let [subscription] = &source.subscriptions[..] else { panic!("one subscription") };
    assert_eq!((&*subscription.consumer, subscription.pending_demand), ("sink", 0));
    recording.allow(5);
    sleep(Duration::from_secs(3)).await;
    let after = pipeline.snapshot();
    assert_eq!(after.stages[0].subscriptions[0].pending_demand, 3);
    assert_eq!(after.stages[0].activity, Activity::WaitingForEvents);
    let waited = after.stages[0].waiting_for_events - before.stages[0].waiting_for_events;
    assert_eq!(waited.as_secs(), 3);
    recording.subscription().cancel(ExitReason::Normal);
    settle().await;
    let end = pipeline.snapshot();
    assert!(end.stages[0].subscriptions.is_empty());
    assert_eq!(end.stages[1].activity, Activity::Ended);
}

#[tokio::test(start_paused = true)]
async fn gauges_are_recorded_every_second_and_at_the_end() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let (telemetry, recorded) = Recorded::new();
    let mut graph = Graph::new("test");
    graph.telemetry(telemetry);
    let producer = graph.producer("source", producer);
    let consumer = graph.consumer("sink", consumer.manual());
    graph.subscribe(&consumer, &producer, demand(10, 5));
    let pipeline = graph.start().unwrap();
    settle().await;
    script.emit([1, 2, 3]).await;
    recording.allow(1);
    let labels = |stage| format!("pipeline=test,stage={stage}");
    let of = |stage, value: f64| (labels(stage), value);
    let gauges = |name| recorded.gauges(name);
    sleep(Duration::from_secs(2)).await;
    recorded.look();
    assert_eq!(gauges("pipeline.events_buffered"), [of("sink", 0.0), of("source", 2.0)]);
    assert_eq!(gauges("pipeline.subscriptions"), [of("sink", 0.0), of("source", 1.0)]);
    assert_eq!(gauges("pipeline.demand_pending"), [of("sink", 0.0), of("source", 0.0)]);

    let waited = |name| recorded.counters(name);
    let for_demand = "pipeline.stage.demand_wait_time";
    let [(source, milliseconds)] = &waited(for_demand)[..] else { panic!("the source only") };
    assert_eq!(source, "pipeline=test,stage=source");
    assert!((1..=2_000).contains(milliseconds));

    recording.allow(5);
    sleep(Duration::from_secs(1)).await;
    recorded.look();
    assert_eq!(gauges("pipeline.demand_pending"), [of("sink", 0.0), of("source", 3.0)]);
    let _ = (waited("pipeline.stage.event_wait_time"), waited(for_demand));
    sleep(Duration::from_secs(3)).await;
    let expected = ["sink", "source"].map(|stage| (labels(stage), 3_000));
    assert_eq!(waited("pipeline.stage.event_wait_time"), expected);
    assert_eq!(waited(for_demand), [], "there was demand");

    recording.subscription().cancel(ExitReason::Normal);
    settle().await;
    pipeline.drain(Duration::from_secs(1)).await;
    recorded.look();
    assert_eq!(gauges("pipeline.subscriptions"), [of("sink", 0.0), of("source", 0.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_stage_is_found_by_its_name_and_type() {
    let (_queue, producer) = queue::<u64>(QueueOptions::new());
    let pipeline = Pipeline::builder("test")
        .producer(producer)
        .consumer(for_each(async |_: u64| {}), SubscribeOptions::new())
        .start()
        .unwrap();
    let found: Option<ProducerHandle<QueueProducer<u64>>> = pipeline.stage("producer");
    assert_eq!(found.unwrap().name(), "producer");
    let other: Option<ProducerHandle<QueueProducer<u32>>> = pipeline.stage("producer");
    assert!(other.is_none(), "a handle of another type must not be returned");
    let missing: Option<ProducerHandle<QueueProducer<u64>>> = pipeline.stage("missing");
    assert!(missing.is_none());
}

#[tokio::test(start_paused = true)]
async fn stage_names_are_unique() {
    let mut graph = Graph::new("test");
    let _one = graph.producer("twin", from_iter(0..3));
    let two = graph.producer("twin", from_iter(0..3));
    let error = graph.start().unwrap_err();
    assert!(matches!(&error, StartError::NameTaken { stage } if &**stage == "twin"), "{error}");
    assert!(!two.is_running());
}

#[tokio::test(start_paused = true)]
async fn batches_are_emitted_when_they_are_full_or_their_time_is_up() {
    let ((producer, script), (consumer, recording)) = (scripted(), recording());
    let pipeline = Pipeline::builder("test")
        .producer(producer)
        .batch(3, Duration::from_millis(100))
        .consumer(consumer, demand(10, 5))
        .start()
        .unwrap();
    settle().await;
    script.emit([1, 2, 3, 4]).await;
    settle().await;
    assert_eq!(recording.events(), [[1, 2, 3]]);
    let start = Instant::now();
    sleep(Duration::from_millis(90)).await;
    assert!(recording.events().is_empty(), "{:?}", start.elapsed());
    sleep(Duration::from_millis(20)).await;
    assert_eq!(recording.events(), [[4]]);
    // The open batch is not lost when the source ends.
    script.emit([5]).await;
    let report = pipeline.drain(Duration::from_secs(1)).await;
    assert_eq!(report.unprocessed(), 0, "{report}");
    assert_eq!(recording.events(), [[5]]);
}

#[tokio::test(start_paused = true)]
async fn maps_and_filters_can_be_chained() {
    let (consumer, recording) = recording();
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..10))
        .map(|n| n * n)
        .filter(|n| n % 2 == 0)
        .consumer(consumer, demand(2, 1))
        .start()
        .unwrap();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(recording.events(), [0, 4, 16, 36, 64]);
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn a_flat_map_makes_any_number_of_events_of_each() {
    let (consumer, recording) = recording();
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..5))
        .flat_map(|n: u64| (0..n).map(move |_| n))
        .consumer(consumer, demand(2, 1))
        .start()
        .unwrap();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(recording.events(), [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_flat_map_takes_no_more_while_what_it_has_made_waits_and_more_for_what_becomes_nothing() {
    let (producer, script) = scripted();
    let (consumer, _recording) = recording::<u64>();
    // The consumer holds what it has, so there is no demand after the first ten.
    let _pipeline = Pipeline::builder("test")
        .producer(producer.from_iter(0..))
        .producer_consumer(flat_map(|n: u64| [n; 100]), demand(2, 0))
        .consumer(consumer.stuck(), demand(10, 0))
        .start()
        .unwrap();
    settle().await;
    let asked: usize = script.demands().into_iter().sum();
    assert!((2..=4).contains(&asked), "{asked}");

    let (producer, _script) = scripted();
    let (consumer, recording) = recording();
    let _pipeline = Pipeline::builder("test")
        .producer(producer.from_iter(0..100))
        .producer_consumer(flat_map(|n: u64| n.is_multiple_of(10).then_some(n)), demand(2, 0))
        .consumer(consumer, demand(10, 0))
        .start()
        .unwrap();
    settle().await;
    assert_eq!(recording.events(), (0..100).step_by(10).collect::<Vec<u64>>());
}

/// Answers calls with the number of its events, from a later callback.
struct AnswersLater(Option<pipeline_core::stage::Caller<u32>>);
struct HowMany;
struct Answer;

impl Producer for AnswersLater {
    type Event = u32;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        assert_eq!(context.handle().name(), context.stage());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u32>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCall<HowMany, u32> for AnswersLater {
    type Reply = u32;

    async fn handle_call(
        &mut self,
        _: HowMany,
        caller: &mut pipeline_core::stage::Caller<u32>,
        _: &mut Emitter<'_, u32>,
    ) -> Result<(), ExitReason> {
        self.0 = Some(caller.take());
        Ok(())
    }
}

impl HandleCall<Answer, u32> for AnswersLater {
    type Reply = ();

    async fn handle_call(
        &mut self,
        _: Answer,
        caller: &mut pipeline_core::stage::Caller<()>,
        _: &mut Emitter<'_, u32>,
    ) -> Result<(), ExitReason> {
        if let Some(mut waiting) = self.0.take() {
            waiting.reply(7);
        }
        caller.reply(());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_with_a_limit_times_out_when_the_answer_is_late() {
    let mut graph = Graph::new("test");
    let later = graph.producer("later", AnswersLater(None));
    let _pipeline = graph.start().unwrap();
    let start = Instant::now();
    let late = later.call_within(HowMany, Duration::from_secs(5)).await;
    assert_eq!((late, start.elapsed()), (Err(CallError::TimedOut), Duration::from_secs(5)));
    // The stage continues, and an answer in time arrives; so does one without a limit.
    assert_eq!(later.call_within(Answer, Duration::from_secs(5)).await, Ok(()));
    assert_eq!(later.call_within(Answer, Duration::MAX).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_call_can_be_answered_from_a_later_callback() {
    let mut graph = Graph::new("test");
    let later = graph.producer("later", AnswersLater(None));
    let _pipeline = graph.start().unwrap();
    let asking = tokio::spawn({
        let later = later.clone();
        async move { later.call(HowMany).await }
    });
    settle().await;
    assert!(!asking.is_finished());
    later.call(Answer).await.unwrap();
    assert_eq!(asking.await.unwrap(), Ok(7));
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_supervisor_finds_the_best_number_of_workers() {
    const CAPACITY: usize = 8;
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, most) = (running.clone(), peak.clone());
    // A service that answers in 10 ms for up to `CAPACITY` concurrent calls.
    let worker = async move |_: &u64| {
        let now = counted.fetch_add(1, Ordering::Relaxed) + 1;
        most.fetch_max(now, Ordering::Relaxed);
        let slower = u32::try_from(now.div_ceil(CAPACITY)).unwrap();
        sleep(Duration::from_millis(10) * slower).await;
        counted.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    };
    let supervisor = ConsumerSupervisor::new(worker).adaptive(Adaptive::between(1, 100).initial(1));
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..20_000))
        .consumer_supervisor(supervisor, demand(100, 50))
        .start()
        .unwrap();
    sleep(Duration::from_secs(5)).await;
    peak.store(0, Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    let found = peak.load(Ordering::Relaxed);
    assert!((CAPACITY / 2..=CAPACITY * 2).contains(&found), "{found} at once");
    assert_eq!(pipeline.join().await.unprocessed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_ends_before_its_consumers_subscribe_is_no_failure() {
    for _ in 0..500 {
        let mut graph = Graph::new("test");
        let producer = graph.producer("producer", from_iter(0..5u64));
        let first = graph.consumer("first", for_each(async |_: u64| ()));
        let second = graph.consumer("second", for_each(async |_: u64| ()));
        graph.subscribe(&first, &producer, SubscribeOptions::new());
        graph.subscribe(&second, &producer, SubscribeOptions::new());
        let report = graph.start().unwrap().join().await;
        assert!(report.failure().is_none(), "{report}");
    }
}

#[tokio::test]
async fn a_producer_that_finishes_at_once_delivers_its_queued_items() {
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer);
    let (consumer, recording) = recording();
    let consumer = graph.consumer("consumer", consumer);
    graph.subscribe(&consumer, &producer, demand(2, 1));
    for n in 0..7 {
        queue.push(n).await.unwrap();
    }
    let mut pipeline = graph.start().unwrap();
    producer.finish().await;
    let report = pipeline.join().await;
    assert!(report.failure().is_none(), "{report}");
    assert_eq!((recording.events().len(), report.unprocessed()), (7, 0));
}
