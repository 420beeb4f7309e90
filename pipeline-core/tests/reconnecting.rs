//! Subscriptions that end and come back, and what a stage's end owes to its last events.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    backoff::Backoff,
    builder::StartError,
    dispatcher::PartitionDispatcher,
    source::{Queue, QueueOptions, QueueProducer, from_iter, queue},
    stage::{
        Caller, Consumer, ConsumerHandle, DemandMode, Emitter, HandleCall, HandleCast, HandleInfo,
        Producer, ProducerConsumer, ProducerHandle, Stage,
    },
    step::for_each,
    subscription::{Cancel, DemandControl, SubscribeOptions, Subscription},
    testkit::{Recording, RecordingConsumer, recording, settle},
};
use tokio::{
    sync::{Notify, oneshot},
    time,
};

fn demand(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

fn reconnecting(within: Duration) -> Cancel {
    Cancel::Reconnect(Backoff::new(within, within))
}

const MINUTE: Duration = Duration::from_secs(60);

/// Cancels the subscription of its first event with this reason, and counts all events.
struct CancelsFirst(Arc<AtomicUsize>, ExitReason);

impl Consumer for CancelsFirst {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        if self.0.fetch_add(events.len(), Ordering::SeqCst) == 0 {
            from.cancel(self.1.clone());
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_has_cancelled_gracefully_survives_the_end_of_its_producer_in_its_back_off()
{
    for dropped in [false, true] {
        let mut feeding = Graph::new("feeding");
        let (first_queue, producer) = queue(QueueOptions::new());
        let first = feeding.producer("first", producer);
        let feeding = feeding.start().unwrap();
        let mut graph = Graph::new("graph");
        let (second_queue, producer) = queue(QueueOptions::new());
        let second = graph.producer("second", producer);
        let seen = Arc::<AtomicUsize>::default();
        let sink = graph.consumer("sink", CancelsFirst(seen.clone(), ExitReason::Normal));
        graph.subscribe(&sink, &second, demand(10, 5).cancel(Cancel::Temporary));
        let _pipeline = graph.start().unwrap();
        sink.subscribe(&first, demand(1, 0).cancel(reconnecting(MINUTE))).await.unwrap();
        first_queue.push(1).await.unwrap();
        settle().await;
        if dropped {
            drop(feeding);
        } else {
            first.stop(ExitReason::failed("no route")).await;
        }
        time::sleep(2 * MINUTE).await;
        second_queue.push(2).await.unwrap();
        settle().await;
        assert_eq!((seen.load(Ordering::SeqCst), sink.is_running()), (2, true), "{dropped}");
    }
}

/// Cancels gracefully at event 10 and fails at event 50, once each.
struct CancelsAndFails {
    seen: Arc<AtomicUsize>,
    cancelled: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
}

impl Consumer for CancelsAndFails {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        for event in events {
            if event == 50 && !self.failed.swap(true, Ordering::SeqCst) {
                return Err(ExitReason::failed("once"));
            }
            self.seen.fetch_add(1, Ordering::SeqCst);
            if event == 10 && !self.cancelled.swap(true, Ordering::SeqCst) {
                from.cancel(ExitReason::Normal);
            }
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_by_handle_that_was_cancelled_and_is_back_survives_a_restart() {
    let mut graph = Graph::new("graph");
    let (queue, producer) = queue(QueueOptions::new());
    let source = graph.producer("source", producer);
    let seen = Arc::<AtomicUsize>::default();
    let (counted, cancelled, failed) = (seen.clone(), Arc::default(), Arc::default());
    let stage = Stage::restarting(move || CancelsAndFails {
        seen: counted.clone(),
        cancelled: Arc::clone(&cancelled),
        failed: Arc::clone(&failed),
    });
    let sink = graph.consumer_with(stage.named("sink"));
    let _pipeline = graph.start().unwrap();
    let options = demand(1, 0).cancel(reconnecting(Duration::from_millis(100)));
    sink.subscribe(&source, options).await.unwrap();
    for event in 0..200 {
        queue.push(event).await.unwrap();
    }
    time::sleep(MINUTE).await;
    assert_eq!((seen.load(Ordering::SeqCst), queue.len()), (199, 0));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_a_linear_pipeline_that_cancels_with_a_failure_ends_with_it() {
    for restarting in [false, true] {
        let seen = Arc::<AtomicUsize>::default();
        let refuses = CancelsFirst(seen.clone(), ExitReason::failed("bad schema"));
        let builder = Pipeline::builder("linear");
        let builder = if restarting {
            builder.producer_with(Stage::restarting(|| from_iter(0u64..100)))
        } else {
            builder.producer(from_iter(0u64..100))
        };
        let mut pipeline = builder.consumer(refuses, demand(1, 0)).start().unwrap();
        let report = pipeline.join().await;
        let reason = report.failure().unwrap().reason.to_string();
        assert_eq!((seen.load(Ordering::SeqCst), &*reason), (1, "failed: bad schema"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reconnecting_subscription_waits_for_a_producer_that_has_not_been_started() {
    let mut feeding = Graph::new("feeding");
    let source = feeding.producer("source", from_iter(0u64..10));
    let mut graph = Graph::new("graph");
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    let _pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(reconnecting(Duration::from_secs(1)));
    sink.subscribe(&source, options).await.unwrap();
    settle().await;
    let _feeding = feeding.start().unwrap();
    time::sleep(MINUTE).await;
    assert_eq!(seen.events().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_replaced_by_one_to_a_producer_that_has_not_been_started() {
    let mut later = Graph::new("later");
    let (second_queue, producer) = queue(QueueOptions::new());
    let second = later.producer("second", producer);
    let mut graph = Graph::new("graph");
    let (first_queue, producer) = queue(QueueOptions::new());
    let first = graph.producer("first", producer);
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    let pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(reconnecting(Duration::from_secs(1)));
    let old = sink.subscribe(&first, options.clone()).await.unwrap();
    sink.resubscribe(&old, ExitReason::Normal, &second, options).await.unwrap();
    first_queue.push(1).await.unwrap();
    second_queue.push(2).await.unwrap();
    settle().await;
    assert_eq!(pipeline.snapshot().stages[0].subscriptions.len(), 0);
    let _later = later.start().unwrap();
    time::sleep(MINUTE).await;
    assert_eq!(seen.events(), [2]);
}

/// A sink whose subscription to the first producer is to be made a minute later, and a second producer.
struct Waiting {
    first_queue: Queue<u64>,
    second_queue: Queue<u64>,
    second: ProducerHandle<QueueProducer<u64>>,
    sink: ConsumerHandle<RecordingConsumer<u64>>,
    seen: Recording<u64>,
    old: Subscription,
    options: SubscribeOptions,
    _pipelines: [Pipeline; 2],
}

impl Waiting {
    /// The subscription waits because it was cancelled, or because the first producer had not been started.
    async fn new(cancelled: bool) -> Self {
        let mut feeding = Graph::new("feeding");
        let (first_queue, producer) = queue(QueueOptions::new());
        let first = feeding.producer("first", producer);
        let mut graph = Graph::new("graph");
        let (second_queue, producer) = queue(QueueOptions::new());
        let second = graph.producer("second", producer);
        let (consumer, seen) = recording::<u64>();
        let sink = graph.consumer("sink", consumer);
        let pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(reconnecting(MINUTE));
        let (old, feeding) = if cancelled {
            let feeding = feeding.start().unwrap();
            let old = sink.subscribe(&first, options.clone()).await.unwrap();
            old.cancel(ExitReason::Normal);
            settle().await;
            (old, feeding)
        } else {
            let old = sink.subscribe(&first, options.clone()).await.unwrap();
            (old, feeding.start().unwrap())
        };
        let _pipelines = [pipeline, feeding];
        Self { first_queue, second_queue, second, sink, seen, old, options, _pipelines }
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_to_be_made_again_is_replaced() {
    for started in [true, false] {
        let Waiting { first_queue, second_queue, second, sink, seen, old, options, _pipelines } =
            Waiting::new(started).await;
        sink.resubscribe(&old, ExitReason::Normal, &second, options).await.unwrap();
        time::sleep(2 * MINUTE).await;
        first_queue.push(1).await.unwrap();
        second_queue.push(2).await.unwrap();
        settle().await;
        assert_eq!(seen.events(), [2], "started: {started}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_waits_for_a_producer_that_has_not_been_started_can_be_cancelled() {
    for (reason, survives) in [(ExitReason::Normal, true), (ExitReason::failed("mistaken"), false)]
    {
        let mut feeding = Graph::new("feeding");
        let source = feeding.producer("source", from_iter(0u64..10));
        let mut graph = Graph::new("graph");
        let (consumer, seen) = recording::<u64>();
        let sink = graph.consumer("sink", consumer);
        let _pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(reconnecting(Duration::from_secs(1)));
        let subscription = sink.subscribe(&source, options).await.unwrap();
        subscription.cancel(reason);
        settle().await;
        let _feeding = feeding.start().unwrap();
        time::sleep(MINUTE).await;
        assert_eq!((seen.events().len(), sink.is_running()), (0, survives));
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_does_not_wait_for_a_producer_whose_graph_will_not_be_started() {
    for dropped in [false, true] {
        let mut feeding = Graph::new("feeding");
        let source = feeding.producer("source", from_iter(0u64..10));
        let mut graph = Graph::new("graph");
        let sink = graph.consumer("sink", for_each(async |_: u64| ()));
        let mut pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(reconnecting(Duration::from_secs(1)));
        sink.subscribe(&source, options).await.unwrap();
        settle().await;
        if dropped {
            drop(feeding);
        } else {
            feeding.producer("source", from_iter(0u64..10));
            assert!(matches!(feeding.start(), Err(StartError::NameTaken { .. })));
        }
        let report = time::timeout(MINUTE, pipeline.join()).await.expect("the consumer ends");
        assert!(matches!(report.failure().unwrap().reason, ExitReason::NotRunning), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_still_names_a_subscription_that_was_made_again() {
    for started in [true, false] {
        let Waiting { first_queue, second_queue, second, sink, seen, old, options, _pipelines } =
            Waiting::new(started).await;
        old.pause();
        time::sleep(2 * MINUTE).await;
        first_queue.push(1).await.unwrap();
        settle().await;
        assert_eq!(seen.events(), [0; 0], "started: {started}, it was paused before it was made");
        old.resume();
        settle().await;
        assert_eq!(seen.events(), [1], "started: {started}");
        sink.resubscribe(&old, ExitReason::Normal, &second, options).await.unwrap();
        time::sleep(2 * MINUTE).await;
        first_queue.push(2).await.unwrap();
        second_queue.push(3).await.unwrap();
        settle().await;
        assert_eq!(seen.events(), [3], "started: {started}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_cancels_a_subscription_that_was_made_later() {
    let mut feeding = Graph::new("feeding");
    let (queue, producer) = queue(QueueOptions::new());
    let source = feeding.producer("source", producer);
    let mut graph = Graph::new("graph");
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    let _pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(reconnecting(MINUTE));
    let subscription = sink.subscribe(&source, options).await.unwrap();
    let _feeding = feeding.start().unwrap();
    time::sleep(2 * MINUTE).await;
    // The first ends what was made, the second withdraws what is to be made.
    subscription.cancel(ExitReason::Normal);
    settle().await;
    assert_eq!((seen.subscriptions(), seen.cancelled().len()), (1, 1));
    subscription.cancel(ExitReason::Normal);
    queue.push(1).await.unwrap();
    time::sleep(2 * MINUTE).await;
    assert_eq!((seen.events().len(), sink.is_running()), (0, true));
}

#[tokio::test(start_paused = true)]
async fn a_paused_stage_withdraws_a_subscription_before_its_producer_is_started() {
    let mut feeding = Graph::new("feeding");
    let source = feeding.producer("source", from_iter(0u64..10));
    let mut graph = Graph::new("graph");
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    let _pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(reconnecting(MINUTE));
    let subscription = sink.subscribe(&source, options).await.unwrap();
    sink.pause();
    subscription.cancel(ExitReason::Normal);
    let _feeding = feeding.start().unwrap();
    time::sleep(2 * MINUTE).await;
    sink.resume();
    time::sleep(2 * MINUTE).await;
    assert_eq!((seen.events().len(), sink.is_running()), (0, true));
}

/// Awaits a future when it is called, or fails.
struct Awaits(Arc<AtomicU64>);

impl Consumer for Awaits {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        self.0.fetch_add(events.iter().sum(), Ordering::SeqCst);
        Ok(())
    }
}

impl HandleCast<BoxFuture<'static, ()>> for Awaits {
    async fn handle_cast(
        &mut self,
        work: BoxFuture<'static, ()>,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        work.await;
        Ok(())
    }
}

impl HandleCast<ExitReason> for Awaits {
    async fn handle_cast(
        &mut self,
        reason: ExitReason,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        Err(reason)
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_stage_withdraws_a_subscription_before_its_producer_is_started() {
    // A busy stage polls its timers now and then, and reads no message before.
    for place in 0..20 {
        let mut feeding = Graph::new("feeding");
        let source = feeding.producer("source", from_iter(1u64..10));
        let mut graph = Graph::new("graph");
        let seen = Arc::<AtomicU64>::default();
        let sink = graph.consumer("sink", Awaits(seen.clone()));
        let _pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(reconnecting(MINUTE));
        let subscription = sink.subscribe(&source, options).await.unwrap();
        let (started, starts) = oneshot::channel();
        let cancels = async move {
            subscription.cancel(ExitReason::Normal);
            let _ = started.send(feeding.start().unwrap());
            time::sleep(2 * MINUTE).await;
        };
        let mut cancels = Some(cancels.boxed());
        for turn in 0..40 {
            let work = cancels.take_if(|_| turn == place);
            sink.cast(work.unwrap_or_else(|| async {}.boxed())).await.unwrap();
        }
        let _feeding = starts.await.unwrap();
        time::sleep(9 * MINUTE).await;
        assert_eq!((seen.load(Ordering::SeqCst), sink.is_running()), (0, true), "{place}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_still_names_a_subscription_of_a_restarted_consumer() {
    for started in [false, true] {
        for replaced in [false, true] {
            let mut feeding = Some(Graph::new("feeding"));
            let (first_queue, producer) = queue(QueueOptions::new());
            let first = feeding.as_mut().unwrap().producer("first", producer);
            let _feeding = if started { feeding.take().map(Graph::start) } else { None };
            let mut graph = Graph::new("graph");
            let (second_queue, producer) = queue(QueueOptions::new());
            let second = graph.producer("second", producer);
            let seen = Arc::<AtomicU64>::default();
            let counted = seen.clone();
            let stage = Stage::restarting(move || Awaits(counted.clone())).named("sink");
            let sink = graph.consumer_with(stage);
            let _pipeline = graph.start().unwrap();
            let options = demand(10, 5).cancel(reconnecting(MINUTE));
            let old = sink.subscribe(&first, options.clone()).await.unwrap();
            sink.cast(ExitReason::failed("once")).await.unwrap();
            settle().await;
            if replaced {
                sink.resubscribe(&old, ExitReason::Normal, &second, options).await.unwrap();
                second_queue.push(100).await.unwrap();
            } else {
                old.cancel(ExitReason::Normal);
            }
            settle().await;
            let _feeding = feeding.map(Graph::start);
            first_queue.push(1).await.unwrap();
            time::sleep(MINUTE / 2).await;
            // Time for a back-off, if there is one.
            let expected = if replaced { 100 } else { 0 };
            assert_eq!(seen.load(Ordering::SeqCst), expected, "started: {started}, {replaced}");
            time::sleep(2 * MINUTE).await;
            // A subscription that was made before it was cancelled is made again.
            let expected = if started && !replaced { 1 } else { expected };
            assert_eq!(seen.load(Ordering::SeqCst), expected, "started: {started}, {replaced}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_fails_before_it_reads_a_withdrawal_does_not_subscribe_after_its_restart() {
    let mut feeding = Graph::new("feeding");
    let source = feeding.producer("source", from_iter(1u64..10));
    let mut graph = Graph::new("graph");
    let seen = Arc::<AtomicU64>::default();
    let counted = seen.clone();
    let stage = Stage::restarting(move || Awaits(counted.clone())).named("sink");
    let sink = graph.consumer_with(stage);
    let _pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(reconnecting(MINUTE));
    let subscription = sink.subscribe(&source, options).await.unwrap();
    sink.cast(ExitReason::failed("once")).await.unwrap();
    subscription.cancel(ExitReason::Normal);
    settle().await;
    let _feeding = feeding.start().unwrap();
    time::sleep(2 * MINUTE).await;
    assert_eq!((seen.load(Ordering::SeqCst), sink.is_running()), (0, true));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_consumer_continues_without_a_producer_whose_graph_was_dropped() {
    let mut feeding = Graph::new("feeding");
    let stage = Stage::restarting(|| from_iter(0u64..10)).named("source");
    let source = feeding.producer_with(stage);
    let mut graph = Graph::new("graph");
    let seen = Arc::<AtomicU64>::default();
    let stage = Stage::restarting(move || Awaits(seen.clone())).named("sink");
    let sink = graph.consumer_with(stage);
    let _pipeline = graph.start().unwrap();
    sink.subscribe(&source, demand(10, 5).cancel(reconnecting(MINUTE))).await.unwrap();
    settle().await;
    assert!(source.exit_reason().is_none());
    drop(feeding);
    assert!(matches!(source.exit_reason(), Some(ExitReason::NotRunning)));
    time::sleep(2 * MINUTE).await;
    assert!(sink.is_running());
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_cancel_is_kept_if_the_producer_ends_in_the_back_off() {
    for ends in [ExitReason::Normal, ExitReason::failed("no route")] {
        let mut feeding = Graph::new("feeding");
        let (_queue, producer) = queue(QueueOptions::new());
        let source = feeding.producer("source", producer);
        let _feeding = feeding.start().unwrap();
        let mut graph = Graph::new("graph");
        let sink = graph.consumer("sink", for_each(async |_: u64| ()));
        let mut pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(reconnecting(MINUTE));
        let subscription = sink.subscribe(&source, options).await.unwrap();
        subscription.cancel(ExitReason::failed("bad schema"));
        settle().await;
        source.stop(ends).await;
        let report = time::timeout(2 * MINUTE, pipeline.join()).await.expect("the consumer ends");
        assert_eq!(report.failure().unwrap().reason.to_string(), "failed: bad schema");
    }
}

/// Ends with a reason when it is called, after it was allowed to.
struct EndsInCall(Arc<Notify>);

impl Producer for EndsInCall {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCast<ExitReason, u64> for EndsInCall {
    async fn handle_cast(
        &mut self,
        reason: ExitReason,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.notified().await;
        Err(reason)
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_its_producer_has_not_read_when_it_ends_keeps_its_reason() {
    let (failed, bad) = (ExitReason::failed("no route"), ExitReason::failed("bad schema"));
    for (mode, cancels, ends, survives) in [
        (reconnecting(MINUTE), ExitReason::Normal, failed, true),
        (Cancel::Transient, bad, ExitReason::Normal, false),
    ] {
        let mut feeding = Graph::new("feeding");
        let allow = Arc::<Notify>::default();
        let source = feeding.producer("source", EndsInCall(allow.clone()));
        let _feeding = feeding.start().unwrap();
        let mut graph = Graph::new("graph");
        let sink = graph.consumer("sink", for_each(async |_: u64| ()));
        let mut pipeline = graph.start().unwrap();
        let options = demand(10, 5).cancel(mode);
        let subscription = sink.subscribe(&source, options).await.unwrap();
        source.cast(ends).await.unwrap();
        settle().await;
        subscription.cancel(cancels.clone());
        allow.notify_one();
        settle().await;
        assert_eq!(sink.is_running(), survives);
        if !survives {
            let report = pipeline.join().await;
            let reason = &report.failure().unwrap().reason;
            assert_eq!(reason.to_string(), cancels.to_string());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacing_that_its_producer_has_not_read_when_it_ends_keeps_its_reason() {
    let mut feeding = Graph::new("feeding");
    let allow = Arc::<Notify>::default();
    let source = feeding.producer("source", EndsInCall(allow.clone()));
    let _feeding = feeding.start().unwrap();
    let mut graph = Graph::new("graph");
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    let _pipeline = graph.start().unwrap();
    let options = demand(10, 5).cancel(Cancel::Temporary);
    let old = sink.subscribe(&source, options.clone()).await.unwrap();
    source.cast(ExitReason::failed("no route")).await.unwrap();
    settle().await;
    let new = sink.resubscribe(&old, ExitReason::Normal, &source, options).await.unwrap();
    allow.notify_one();
    settle().await;
    let ended = seen.cancelled().into_iter().map(|(of, how)| (of, how.to_string()));
    let expected = [(old, "cancelled (normal)"), (new, "down (failed: no route)")];
    assert_eq!(ended.collect::<Vec<_>>(), expected.map(|(of, how)| (of, how.to_owned())));
}

/// Finishes when it subscribes for the first time.
struct FinishesAtOnce(Arc<AtomicUsize>);

impl ProducerConsumer for FinishesAtOnce {
    type In = u64;
    type Out = u64;

    async fn handle_subscribe(
        &mut self,
        _: &SubscribeOptions,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<DemandControl, ExitReason> {
        self.0.fetch_add(1, Ordering::SeqCst);
        out.finish();
        Ok(DemandControl::Automatic)
    }

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_finishes_while_it_subscribes_makes_no_more_subscriptions_and_ends() {
    let mut graph = Graph::new("graph");
    let (_first, producer) = queue::<u64>(QueueOptions::new());
    let first = graph.producer("first", producer);
    let (_second, producer) = queue::<u64>(QueueOptions::new());
    let second = graph.producer("second", producer);
    let subscribed = Arc::<AtomicUsize>::default();
    let relay = graph.producer_consumer("relay", FinishesAtOnce(subscribed.clone()));
    graph.subscribe(&relay, &first, demand(10, 5));
    graph.subscribe(&relay, &second, demand(10, 5));
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!((subscribed.load(Ordering::SeqCst), relay.is_running()), (1, false));
}

struct Emit(Vec<u64>);
struct Stock(u64);

/// Emits on command, and its stock only as far as there is demand.
struct Stocked {
    stock: u64,
    draining: bool,
}

impl Stocked {
    fn flush(&mut self, out: &mut Emitter<'_, u64>) {
        while out.owed() > 0 && self.stock > 0 {
            self.stock -= 1;
            out.emit(self.stock);
        }
        if self.draining && self.stock == 0 {
            out.finish();
        }
    }
}

impl Producer for Stocked {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.flush(out);
        Ok(())
    }

    async fn handle_drain(&mut self, out: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        self.draining = true;
        self.flush(out);
        Ok(())
    }
}

impl HandleCall<Emit, u64> for Stocked {
    type Reply = ();

    async fn handle_call(
        &mut self,
        message: Emit,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(message.0);
        caller.reply(());
        Ok(())
    }
}

impl HandleCall<Stock, u64> for Stocked {
    type Reply = ();

    async fn handle_call(
        &mut self,
        message: Stock,
        caller: &mut Caller<()>,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.stock += message.0;
        caller.reply(());
        Ok(())
    }
}

impl HandleInfo<u64, u64> for Stocked {
    async fn handle_info(
        &mut self,
        event: u64,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit(event);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_producer_sees_its_demand_although_it_was_paused_or_has_recorded_events() {
    for paused in [false, true] {
        let mut graph = Graph::new("graph");
        let source = graph.producer("source", Stocked { stock: 0, draining: false });
        let (consumer, seen) = recording::<u64>();
        let sink = graph.consumer("sink", consumer);
        graph.subscribe(&sink, &source, demand(10, 5));
        let pipeline = graph.start().unwrap();
        settle().await;
        if paused {
            source.pause();
        } else {
            source.set_demand_mode(DemandMode::Accumulate);
        }
        source.call(Emit(vec![99])).await.unwrap();
        source.call(Stock(5)).await.unwrap();
        settle().await;
        let report = pipeline.drain(MINUTE).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(seen.events(), [99, 4, 3, 2, 1, 0], "paused: {paused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_producer_with_recorded_demand_loses_nothing_behind_a_small_buffer() {
    let mut graph = Graph::new("graph");
    let stage = Stage::new(Stocked { stock: 0, draining: false }).named("source");
    let source = graph.producer_with(stage.buffer_size(10).demand_mode(DemandMode::Accumulate));
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    graph.subscribe(&sink, &source, demand(1000, 500));
    let pipeline = graph.start().unwrap();
    settle().await;
    source.call(Emit(vec![1000])).await.unwrap();
    source.call(Stock(100)).await.unwrap();
    settle().await;
    let report = pipeline.drain(MINUTE).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((seen.events().len(), report.stages[0].discarded), (101, 0));
}

#[tokio::test(start_paused = true)]
async fn events_that_infos_emit_at_the_end_are_delivered_behind_a_partition_that_waits() {
    let mut graph = Graph::new("graph");
    let stage = Stage::new(Stocked { stock: 0, draining: false }).named("source");
    let dispatcher = || PartitionDispatcher::by_key(0..2u64, |event: &u64| Some(event % 2));
    let source = graph.producer_with(stage.dispatcher(dispatcher));
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let slow = {
        let seen = seen.clone();
        for_each(move |event: u64| {
            let seen = seen.clone();
            async move {
                time::sleep(Duration::from_millis(10)).await;
                seen.lock().push(event);
            }
        })
    };
    let slow = graph.consumer("slow", slow);
    let idle = graph.consumer("idle", for_each(async |_: u64| ()));
    graph.subscribe(&slow, &source, demand(1, 0).partition(0u64));
    graph.subscribe(&idle, &source, demand(100, 50).partition(1u64));
    let pipeline = graph.start().unwrap();
    settle().await;
    source.call(Emit(vec![0, 2, 4, 6])).await.unwrap();
    for event in [100, 102, 104] {
        source.async_info(event).unwrap();
        source.call(Emit(vec![8])).await.unwrap();
    }
    let report = pipeline.drain(MINUTE).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(seen.lock().len(), 10);
}
