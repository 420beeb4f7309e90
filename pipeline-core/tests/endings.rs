//! Ends without lost events: restarts while draining, one of several consumers that leaves,
//! pipelines that feed each other, and messages of a stage to itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Wake,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    backoff::Backoff,
    builder::StartError,
    snapshot::{PipelineObserver, PipelinePhase, StageSnapshot},
    source::{FairQueueOptions, Queue, QueueOptions, fair_queue, from_iter, queue},
    stage::{
        CallError, Caller, Consumer, ConsumerHandle, Emitter, EventStream, HandleCall, HandleCast,
        Producer, ProducerConsumer, Stage, StageContext,
    },
    step::{for_each, map},
    subscription::{
        Cancel, Cancellation, DemandControl, SubscribeError, SubscribeOptions, Subscription,
    },
    supervisor::{Admission, ChildContext, ConsumerSupervisor, SupervisorHandle, Worker},
    testkit::{Recording, RecordingConsumer, recording, settle},
};
use pipeline_test_support::PATIENCE;
use tokio::{
    task,
    time::{self, Instant},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MOMENT: Duration = Duration::from_millis(1);

fn demand(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

fn reconnecting() -> Cancel {
    Cancel::Reconnect(Backoff::new(Duration::from_millis(10), Duration::from_millis(100)))
}

/// The handled events of all consumers.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u64>>>);

impl Seen {
    /// A restarting consumer that records each event, and fails once at this one.
    fn failing_once_at(&self, at: u64) -> Stage<impl Consumer<Event = u64>, Infallible> {
        let (seen, failed) = (self.clone(), Arc::new(AtomicUsize::new(0)));
        Stage::restarting(move || {
            let (seen, failed) = (seen.clone(), failed.clone());
            for_each(async move |n| {
                if n == at && failed.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(ExitReason::failed("once"));
                }
                seen.note(n);
                Ok(())
            })
        })
    }

    fn note(&self, n: u64) {
        self.0.lock().push(n);
    }

    /// The handled events so far, sorted.
    fn sorted(&self) -> Vec<u64> {
        let mut all = self.0.lock().clone();
        all.sort_unstable();
        all
    }
}

async fn push_all(queue: &Queue<u64>, items: impl IntoIterator<Item = u64>) {
    for item in items {
        queue.push(item).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_fails_while_draining_is_restarted_and_continues_to_drain() {
    let seen = Seen::default();
    let (queue, producer) = queue(QueueOptions::new());
    let consumer = seen.failing_once_at(500);
    let pipeline = Pipeline::builder("drained")
        .producer(producer)
        .consumer_with(consumer, demand(4, 2))
        .start()
        .unwrap();
    // All at once, so that the failure comes later.
    (0..1000).for_each(|n| queue.try_push(n).unwrap());
    let report = pipeline.drain(DAY).await;
    assert!(report.completed && report.failure().is_none(), "{report}");
    let done = seen.0.lock().len();
    assert_eq!(done + report.unprocessed(), 1000, "{report}");
    assert!(report.unprocessed() <= 4, "at most the events in the callback: {report}");
}

#[tokio::test(start_paused = true)]
async fn a_successful_restart_is_no_failure_and_adds_no_report() {
    let seen = Seen::default();
    let mut pipeline = Pipeline::builder("recovered")
        .producer(from_iter(0..100))
        .consumer_with(seen.failing_once_at(7), demand(1, 0))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.failure().is_none() && !pipeline.snapshot().failed, "{report}");
    assert_eq!(report.stages.len(), 2, "{report}");
    let consumer = report.stages.iter().find(|stage| &*stage.stage == "consumer").unwrap();
    assert_eq!((consumer.restarts, consumer.in_progress), (1, 1));
    assert_eq!(consumer.last_failure.as_ref().unwrap().to_string(), "failed: once");
    let text = report.to_string();
    assert!(text.contains("restarted once, the last time because it failed: once"), "{text}");
    assert_eq!(seen.0.lock().len(), 99);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_made_by_a_handle_survives_the_restart_of_its_consumer() {
    let seen = Seen::default();
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let sink = graph.consumer_with(seen.failing_once_at(3).named("sink"));
    let pipeline = graph.start().unwrap();
    sink.subscribe(&source, demand(1, 0)).await.unwrap();
    // An ended subscription is not made again.
    let ended = sink.subscribe(&source, demand(1, 0).cancel(Cancel::Temporary)).await.unwrap();
    ended.cancel(ExitReason::Normal);
    settle().await;
    push_all(&queue, 0..10).await;
    settle().await;
    let snapshot = pipeline.snapshot();
    assert_eq!((snapshot.stages[1].restarts, snapshot.stages[0].subscriptions.len()), (1, 1));
    assert_eq!(seen.sorted(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn a_linear_pipeline_survives_a_restart_of_its_producer_and_ends_with_it() {
    for options in [demand(10, 5), demand(10, 5).cancel(reconnecting())] {
        let made = AtomicUsize::new(0);
        let source = Stage::restarting(move || {
            let first = made.fetch_add(1, Ordering::SeqCst) == 0;
            from_iter((0..100).inspect(move |n| assert!(!first || *n < 50, "once")))
        });
        let seen = Seen::default();
        let kept = seen.clone();
        let note = for_each(move |n: u64| {
            kept.note(n);
            async {}
        });
        let mut pipeline = Pipeline::builder("row")
            .producer_with(source)
            .map(|n| n)
            .consumer(note, options)
            .start()
            .unwrap();
        let report = time::timeout(DAY, pipeline.join()).await.unwrap();
        assert!(report.failure().is_none(), "{report}");
        let all = seen.sorted();
        assert!((0..100).all(|n| all.contains(&n)), "the second incarnation emitted all: {all:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_linear_pipeline_whose_producer_keeps_failing_ends_with_that_failure() {
    let source = Stage::restarting(|| from_iter((0..10).map(|n: u64| -> u64 { panic!("no {n}") })));
    let mut pipeline = Pipeline::builder("row")
        .producer_with(source)
        .consumer(for_each(async |_: u64| ()), SubscribeOptions::new())
        .start()
        .unwrap();
    let report = time::timeout(DAY, pipeline.join()).await.unwrap();
    let failure = report.failure().unwrap();
    assert_eq!((&*failure.stage, failure.restarts), ("producer", 3), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_linear_pipeline_ends_with_its_source_for_any_cancel_mode() {
    for mode in [Cancel::Permanent, Cancel::Transient, Cancel::Temporary, reconnecting()] {
        let (queue, producer) = queue(QueueOptions::new());
        let mut pipeline = Pipeline::builder("row")
            .producer(producer)
            .consumer(for_each(async |_: u64| ()), SubscribeOptions::new().cancel(mode))
            .start()
            .unwrap();
        queue.push(1).await.unwrap();
        queue.close();
        let report = time::timeout(DAY, pipeline.join()).await.unwrap();
        assert!(report.is_clean() && report.completed, "{mode:?}: {report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_refuses_to_reconnect() {
    let mut graph = Graph::new("graph");
    let numbers = graph.producer("numbers", from_iter(0..3u64));
    let _pipeline = graph.start().unwrap();
    let options = SubscribeOptions::new().cancel(reconnecting());
    let refused = EventStream::new().subscribe(&numbers, options.clone());
    assert_eq!(refused, Err(SubscribeError::Reconnect));
    let refused = Pipeline::builder("row").producer(from_iter(0..3u64)).into_stream(options);
    let Err(StartError::Subscribe { source, .. }) = refused else { panic!("it must be refused") };
    assert_eq!(source, SubscribeError::Reconnect);
}

/// Two consumers of one queue, of which the first finishes under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_finishes_among_several_loses_nothing() {
    let seen = Seen::default();
    let (queue, producer) = queue(QueueOptions::new());
    let note = || {
        let seen = seen.clone();
        for_each(move |n: u64| {
            seen.note(n);
            task::yield_now()
        })
    };
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let (first, second) = (graph.consumer("first", note()), graph.consumer("second", note()));
    graph.subscribe(&first, &source, SubscribeOptions::new());
    graph.subscribe(&second, &source, SubscribeOptions::new());
    let pipeline = graph.start().unwrap();
    let pushing = tokio::spawn(async move { push_all(&queue, 0..20_000).await });
    while seen.0.lock().len() < 2000 {
        task::yield_now().await;
    }
    first.finish().await;
    pushing.await.unwrap();
    let report = pipeline.drain(Duration::MAX).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(seen.sorted(), Vec::from_iter(0..20_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_finishes_under_load_ends_and_loses_nothing() {
    let seen = Seen::default();
    let (queue, producer) = queue(QueueOptions::new().capacity(100));
    let worker = || {
        let seen = seen.clone();
        async move |n: &u64| {
            time::sleep(Duration::from_micros(100)).await;
            seen.note(*n);
            Ok(())
        }
    };
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let first = graph.consumer_supervisor("first", ConsumerSupervisor::new(worker()));
    let second = graph.consumer_supervisor("second", ConsumerSupervisor::new(worker()));
    graph.subscribe(&first, &source, demand(10, 9));
    let pipeline = graph.start().unwrap();
    let pushing = tokio::spawn({
        let queue = queue.clone();
        async move {
            let mut pushed = 0;
            while queue.push(pushed).await.is_ok() {
                pushed += 1;
            }
            pushed
        }
    });
    while seen.0.lock().len() < 100 {
        task::yield_now().await;
    }
    // It always has more to do, and ends all the same.
    first.finish().await;
    second.subscribe(&source, demand(10, 9)).await.unwrap();
    let report = pipeline.drain(Duration::MAX).await;
    let pushed = pushing.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(seen.sorted(), Vec::from_iter(0..pushed));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_of_two_producers_ends_with_the_first_and_leaves_the_items_of_the_other() {
    let ((left, one), (right, two)) = (queue(QueueOptions::new()), queue(QueueOptions::new()));
    let seen = Seen::default();
    let kept = seen.clone();
    let worker = async move |n: &u64| {
        time::sleep(Duration::from_secs(1)).await;
        kept.note(*n);
        Ok(())
    };
    let mut graph = Graph::new("graph");
    let (one, two) = (graph.producer("one", one), graph.producer("two", two));
    let workers = graph.consumer_supervisor("workers", ConsumerSupervisor::new(worker));
    graph.subscribe(&workers, &one, demand(2, 1));
    graph.subscribe(&workers, &two, demand(2, 1));
    let _pipeline = graph.start().unwrap();
    push_all(&left, [1]).await;
    push_all(&right, 10..20).await;
    settle().await;
    left.close();
    time::sleep(Duration::from_millis(1500)).await;
    assert!(!workers.is_running() && two.is_running());
    assert_eq!(seen.sorted(), [1, 10, 11], "the items it had taken");
    assert_eq!(right.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_not_emptied_for_a_cancelled_consumer() {
    let (queue, producer) = queue(QueueOptions::new().capacity(100));
    let (consumer, _recording) = recording::<u64>();
    let mut graph = Graph::new("graph");
    let source = graph.producer_with(Stage::new(producer).named("source").buffer_size(1));
    let sink = graph.consumer("sink", consumer);
    let pipeline = graph.start().unwrap();
    let options = demand(50, 25).cancel(Cancel::Temporary);
    let subscription = sink.subscribe(&source, options.clone()).await.unwrap();
    settle().await;
    subscription.cancel(ExitReason::Normal);
    settle().await;
    push_all(&queue, 0..60).await;
    settle().await;
    let seen = &pipeline.snapshot().stages[0];
    assert_eq!((seen.queued, seen.buffered, seen.discarded), (60, 0, 0));
    // The next consumer gets all of them.
    sink.subscribe(&source, options).await.unwrap();
    settle().await;
    assert_eq!(_recording.events(), Vec::from_iter(0..60));
}

#[tokio::test(start_paused = true)]
async fn an_iterator_keeps_the_items_that_a_cancelled_consumer_had_requested() {
    let ((first, _first), (second, got)) = (recording::<u64>(), recording::<u64>());
    let mut graph = Graph::new("graph");
    let numbers = graph.producer("numbers", from_iter(0u64..));
    let (first, second) =
        (graph.consumer("first", first.manual()), graph.consumer("second", second.manual()));
    let pipeline = graph.start().unwrap();
    let temporary = || SubscribeOptions::new().cancel(Cancel::Temporary);
    let subscription = first.subscribe(&numbers, temporary()).await.unwrap();
    subscription.ask(50_000);
    // The consumer leaves before all of them have been sent.
    subscription.cancel(ExitReason::Normal);
    settle().await;
    let sent = pipeline.snapshot().stages[0].events_out;
    second.subscribe(&numbers, temporary()).await.unwrap();
    settle().await;
    for _ in 0..2 {
        got.subscription().ask(10);
        settle().await;
    }
    assert_eq!(got.events(), (sent..sent + 20).collect::<Vec<_>>());
    let seen = &pipeline.snapshot().stages[0];
    assert_eq!((seen.buffered, seen.discarded), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_fed_by_another_drains_at_once_and_loses_nothing() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut feeding = Graph::new("feeding");
    let source = feeding.producer("source", producer);
    let feeding = feeding.start().unwrap();
    let seen = Seen::default();
    let kept = seen.clone();
    let note = for_each(move |n: u64| {
        kept.note(n);
        time::sleep(Duration::from_millis(10))
    });
    let mut fed = Graph::new("fed");
    let sink = fed.consumer("sink", note);
    fed.subscribe(&sink, &source, demand(10, 5));
    let fed = fed.start().unwrap();
    push_all(&queue, 0..100).await;
    time::sleep(Duration::from_millis(205)).await;
    let start = Instant::now();
    let report = fed.drain(DAY).await;
    assert!(report.is_clean() && report.completed, "{report}");
    assert!(start.elapsed() < Duration::from_secs(1), "only a few events are left to finish");
    let handled = seen.0.lock().len();
    assert!(handled < 50, "it must take no more events: {handled}");
    assert_eq!(handled + queue.len(), 100);
    assert!(source.is_running());
    assert!(
        feeding.drain(Duration::from_secs(1)).await.failure().is_some(),
        "it has no consumer to drain to"
    );
}

/// Tries to wait for itself in every possible way.
struct WaitsForItself {
    me: Option<ConsumerHandle<Self>>,
    failed: Arc<Mutex<Vec<String>>>,
}

struct Wait;

impl Consumer for WaitsForItself {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
        self.me = Some(context.handle().clone());
        Ok(())
    }

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCall<Wait> for WaitsForItself {
    type Reply = ();

    async fn handle_call(
        &mut self,
        _: Wait,
        caller: &mut Caller<()>,
        _: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        caller.reply(());
        let Some(me) = &self.me else { return Ok(()) };
        let mut graph = Graph::new("other");
        let numbers = graph.producer("numbers", from_iter(0..3u64));
        let called = me.call(Wait).await.unwrap_err();
        let asked = me.estimate_buffered_count().await.unwrap_err();
        let subscribed = me.subscribe(&numbers, SubscribeOptions::new()).await.unwrap_err();
        let texts = [called.to_string(), asked.to_string(), subscribed.to_string()];
        assert_eq!((called, asked), (CallError::OwnCallback, CallError::OwnCallback));
        self.failed.lock().extend(texts);
        // These calls send a request and do not wait.
        me.finish().await;
        me.stop(ExitReason::ShutdownWith("seen enough".into())).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_would_wait_for_itself_gets_an_error() {
    let failed = Arc::new(Mutex::new(vec![]));
    let mut graph = Graph::new("graph");
    let stage = graph.consumer("stage", WaitsForItself { me: None, failed: failed.clone() });
    let mut pipeline = graph.start().unwrap();
    stage.call(Wait).await.unwrap();
    let report = time::timeout(DAY, pipeline.join()).await.unwrap();
    assert!(report.stages[0].reason.is_graceful(), "{report}");
    assert_eq!(failed.lock().len(), 3);
}

/// Asks its own supervisor for the number of children.
#[derive(Clone, Default)]
struct Counts {
    supervisor: Arc<OnceLock<SupervisorHandle<u64, Self>>>,
    answers: Arc<Mutex<Vec<Result<usize, CallError>>>>,
}

impl Worker<u64> for Counts {
    async fn run(&self, _: &u64, _: ChildContext) -> Result<(), ExitReason> {
        let supervisor = self.supervisor.get().unwrap();
        let answer = supervisor.child_count().await.map(|count| count.workers);
        self.answers.lock().push(answer);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_may_call_its_supervisor() {
    let mut graph = Graph::new("graph");
    let counts = Counts::default();
    let workers = graph.consumer_supervisor("workers", ConsumerSupervisor::new(counts.clone()));
    assert!(counts.supervisor.set(workers.clone()).is_ok());
    let numbers = graph.producer("numbers", from_iter(0..200u64));
    graph.subscribe(&workers, &numbers, demand(10, 9));
    let mut pipeline = graph.start().unwrap();
    pipeline.join().await;
    let answers = counts.answers.lock();
    assert_eq!(answers.len(), 200);
    assert!(answers.iter().all(Result::is_ok), "a worker that the supervisor runs itself, too");
}

/// A consumer that exposes its subscription, records its events, and fails at 99 the first time.
struct Shows {
    subscription: Arc<Mutex<Option<Subscription>>>,
    failed: Arc<AtomicUsize>,
    seen: Seen,
}

impl Consumer for Shows {
    type Event = u64;

    async fn handle_subscribe(
        &mut self,
        _: &SubscribeOptions,
        from: &Subscription,
    ) -> Result<DemandControl, ExitReason> {
        *self.subscription.lock() = Some(from.clone());
        Ok(DemandControl::Automatic)
    }

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
    ) -> Result<(), ExitReason> {
        for n in events {
            if n == 99 && self.failed.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(ExitReason::failed("once"));
            }
            self.seen.note(n);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_subscription_is_not_made_again_after_a_restart() {
    let subscription = Arc::new(Mutex::new(None::<Subscription>));
    let (failed, seen) = (Arc::new(AtomicUsize::new(0)), Seen::default());
    let shows = {
        let (subscription, seen) = (subscription.clone(), seen.clone());
        move || Shows {
            subscription: subscription.clone(),
            failed: failed.clone(),
            seen: seen.clone(),
        }
    };
    let ((first, one), (second, two)) =
        (queue::<u64>(QueueOptions::new()), queue::<u64>(QueueOptions::new()));
    let mut graph = Graph::new("graph");
    let (one, two) = (graph.producer("one", one), graph.producer("two", two));
    let sink = graph.consumer_with(Stage::restarting(shows).named("sink"));
    graph.subscribe(&sink, &one, demand(2, 1));
    let pipeline = graph.start().unwrap();
    settle().await;
    let last = || subscription.lock().clone().unwrap();
    // First by a subscription to the same producer, then to another.
    sink.resubscribe(&last(), ExitReason::Normal, &one, demand(5, 1)).await.unwrap();
    settle().await;
    sink.resubscribe(&last(), ExitReason::Normal, &two, demand(2, 1)).await.unwrap();
    settle().await;
    push_all(&first, [1]).await;
    push_all(&second, [99]).await;
    time::sleep(Duration::from_secs(1)).await;
    push_all(&second, [2]).await;
    time::sleep(Duration::from_secs(1)).await;
    let seen_at = |stage: usize| pipeline.snapshot().stages[stage].subscriptions.len();
    assert_eq!((seen_at(0), seen_at(1)), (0, 1));
    assert_eq!(seen.sorted(), [2], "1 is from a producer that it has left");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_ended_with_its_producer_is_not_made_again() {
    let ((_first, one), (_second, two)) =
        (queue::<u64>(QueueOptions::new()), queue::<u64>(QueueOptions::new()));
    let mut graph = Graph::new("graph");
    let (one, two) = (graph.producer("one", one), graph.producer("two", two));
    let sink = graph.consumer_with(Stage::restarting(|| for_each(async |_: u64| ())).named("sink"));
    let pipeline = graph.start().unwrap();
    sink.subscribe(&one, SubscribeOptions::new()).await.unwrap();
    sink.subscribe(&two, SubscribeOptions::new()).await.unwrap();
    settle().await;
    two.stop(ExitReason::failed("no route")).await;
    time::sleep(Duration::from_secs(1)).await;
    assert!(sink.is_running() && one.is_running());
    let seen = pipeline.snapshot();
    assert_eq!((seen.stages[2].restarts, seen.stages[0].subscriptions.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_graph_whose_middle_stage_fails_while_draining_delivers_the_rest() {
    let (failed, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let middle = Stage::restarting(move || {
        let failed = failed.clone();
        map(move |n: u64| {
            assert!(n != 50 || failed.fetch_add(1, Ordering::SeqCst) > 0, "once");
            n
        })
    });
    let middle = graph.producer_consumer_with(middle.named("middle"));
    let handled = seen.clone();
    let sink = graph.consumer(
        "sink",
        for_each(move |_: u64| {
            handled.fetch_add(1, Ordering::SeqCst);
            time::sleep(Duration::from_millis(1))
        }),
    );
    graph.subscribe(&middle, &source, demand(4, 2));
    graph.subscribe(&sink, &middle, demand(4, 2).cancel(reconnecting()));
    let pipeline = graph.start().unwrap();
    push_all(&queue, 0..1000).await;
    let report = pipeline.drain(DAY).await;
    assert!(report.completed && report.failure().is_none(), "{report}");
    let handled = seen.load(Ordering::SeqCst);
    assert_eq!(handled + report.unprocessed(), 1000, "{report}");
    assert!(handled > 980, "all events except those in the failed callback: {report}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_consumer_stays_paused_when_its_source_has_ended() {
    let (queue, producer) = queue(QueueOptions::new());
    let (consumer, handled) = recording::<u64>();
    let mut pipeline = Pipeline::builder("row")
        .producer(producer)
        .consumer(consumer, SubscribeOptions::new())
        .start()
        .unwrap();
    settle().await;
    let sink: ConsumerHandle<RecordingConsumer<u64>> = pipeline.stage("consumer").unwrap();
    sink.pause();
    settle().await;
    push_all(&queue, 0..10).await;
    queue.close();
    settle().await;
    assert!(handled.events().is_empty());
    assert_eq!(pipeline.snapshot().phase, PipelinePhase::Running, "it was not asked to drain");
    sink.resume();
    let report = time::timeout(DAY, pipeline.join()).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(handled.events().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_paused_pipeline_whose_source_has_ended_can_be_drained() {
    let (consumer, handled) = recording::<u64>();
    let pipeline = Pipeline::builder("row")
        .producer(from_iter(0..10))
        .consumer(consumer, SubscribeOptions::new())
        .start()
        .unwrap();
    let sink: ConsumerHandle<RecordingConsumer<u64>> = pipeline.stage("consumer").unwrap();
    sink.pause();
    settle().await;
    let report = pipeline.drain(DAY).await;
    assert!(report.completed && report.is_clean(), "{report}");
    assert_eq!(handled.events().len(), 10);
}

/// A producer that never returns from a callback.
struct Stuck;

impl Producer for Stuck {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_finishing_consumer_waits_for_a_stuck_producer_no_longer_than_stop_within() {
    let (queue, one) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let (one, stuck) = (graph.producer("one", one), graph.producer("stuck", Stuck));
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    graph.subscribe(&sink, &one, SubscribeOptions::new());
    graph.subscribe(&sink, &stuck, SubscribeOptions::new());
    let _pipeline = graph.start().unwrap();
    push_all(&queue, 0..5).await;
    queue.close();
    time::sleep(Duration::from_secs(4)).await;
    assert!(sink.is_running(), "events of the producer may still arrive");
    time::sleep(Duration::from_secs(2)).await;
    assert!(!sink.is_running() && stuck.is_running());
    assert_eq!(seen.events().len(), 5);
    assert_eq!(seen.cancelled().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_starts_children_while_it_waits_for_a_producer_to_confirm() {
    let (queue, one) = queue(QueueOptions::new());
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let work = async move |_: &u64| {
        time::sleep(Duration::from_millis(10)).await;
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let mut graph = Graph::new("graph");
    let (one, stuck) = (graph.producer("one", one), graph.producer("stuck", Stuck));
    let supervisor = ConsumerSupervisor::new(work).max_children(1);
    let sink = graph.consumer_supervisor("sink", supervisor);
    graph.subscribe(&sink, &one, demand(100, 50));
    graph.subscribe(&sink, &stuck, demand(100, 50));
    let _pipeline = graph.start().unwrap();
    push_all(&queue, 0..100).await;
    queue.close();
    time::sleep(Duration::from_secs(3)).await;
    assert_eq!(done.load(Ordering::SeqCst), 100);
}

#[tokio::test(start_paused = true)]
async fn a_finishing_consumer_handles_received_events_however_long_that_takes() {
    for (busy, ends_by_itself) in [(11, false), (20, false), (20, true)] {
        let mut graph = Graph::new("graph");
        let one = graph.producer("one", from_iter(0..if ends_by_itself { 10 } else { u64::MAX }));
        let other = graph.producer("other", from_iter(0u64..));
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let sink = graph.consumer(
            "sink",
            for_each(async move |_: u64| {
                time::sleep(Duration::from_millis(busy)).await;
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        graph.subscribe(&sink, &one, demand(1000, 500));
        graph.subscribe(&sink, &other, demand(1000, 500));
        let pipeline = graph.start().unwrap();
        time::sleep(Duration::from_millis(100)).await;
        if !ends_by_itself {
            sink.finish().await;
        }
        time::sleep(Duration::from_secs(600)).await;
        assert!(!sink.is_running());
        let report = pipeline.drain(DAY).await;
        assert_eq!(report.unprocessed(), 0, "{report}");
        assert!(seen.load(Ordering::SeqCst) >= 1000);
    }
}

/// Passes events on, one every 10 ms, and fails once.
struct FailsOnce {
    at: u64,
    failed: Arc<AtomicUsize>,
}

impl ProducerConsumer for FailsOnce {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        for n in events {
            time::sleep(Duration::from_millis(10)).await;
            if n == self.at && self.failed.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(ExitReason::failed("once"));
            }
            out.emit(n);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_gracefully_ended_stage_to_restart() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let relay = Stage::restarting(|| FailsOnce { at: u64::MAX, failed: Arc::default() });
    let relay = graph.producer_consumer_with(relay.named("relay"));
    let (consumer, seen) = recording::<u64>();
    let sink = graph.consumer("sink", consumer);
    graph.subscribe(&relay, &source, demand(10, 5));
    let backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(60));
    graph.subscribe(&sink, &relay, demand(10, 5).cancel(Cancel::Reconnect(backoff)));
    let pipeline = graph.start().unwrap();
    push_all(&queue, 0..97).await;
    time::sleep(Duration::from_millis(20)).await;
    let report = pipeline.drain(Duration::from_secs(30)).await;
    assert!(report.completed && report.is_clean(), "{report}");
    assert_eq!(seen.events().len(), 97);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_fed_by_another_drains_although_the_feeding_stage_is_stuck() {
    let mut feeding = Graph::new("feeding");
    let stuck = feeding.producer("stuck", Stuck);
    let _feeding = feeding.start().unwrap();
    let mut fed = Graph::new("fed");
    let (consumer, seen) = recording::<u64>();
    let sink = fed.consumer("sink", consumer);
    let fed = fed.start().unwrap();
    sink.subscribe(&stuck, demand(10, 5)).await.unwrap();
    settle().await;
    let begun = Instant::now();
    let report = fed.drain(DAY).await;
    assert!(report.completed && report.is_clean(), "{report}");
    assert!(begun.elapsed() <= Duration::from_secs(5), "as long as stages have to stop");
    assert_eq!(seen.cancelled().len(), 1);
}

/// Blocks its supervisor at one event until it is released.
#[derive(Clone, Default)]
struct Blocks {
    blocks: Arc<AtomicBool>,
    unblocked: Arc<AtomicBool>,
}

impl Blocks {
    fn block_at(&self, n: u64) {
        if n == 70 {
            self.blocks.store(true, Ordering::SeqCst);
            while !self.unblocked.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
}

impl Worker<u64> for Blocks {
    fn admit(&self, n: &u64, _: &ChildContext) -> Result<Admission, ExitReason> {
        self.block_at(*n);
        Ok(Admission::Run)
    }

    async fn run(&self, _: &u64, _: ChildContext) -> Result<(), ExitReason> {
        std::future::pending().await
    }
}

struct UnblockOnDrop(Arc<AtomicBool>);

impl Drop for UnblockOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_with_a_child_no_longer_count_as_waiting() {
    let (queue, producer) = queue(QueueOptions::new());
    let worker = Blocks::default();
    // Released even if the test fails: the runtime waits for its threads.
    let _unblock = UnblockOnDrop(worker.unblocked.clone());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let sink = graph.consumer_supervisor("sink", ConsumerSupervisor::new(worker.clone()));
    graph.subscribe(&sink, &source, demand(100, 50));
    let pipeline = graph.start().unwrap();
    sink.pause();
    for n in 0..100 {
        queue.push(n).await.unwrap();
        // They arrive in many messages.
        time::sleep(Duration::from_micros(100)).await;
    }
    let until = async |holds: &(dyn Fn(&StageSnapshot) -> bool + Sync)| {
        let waiting = async {
            while !holds(&pipeline.snapshot().stages[1]) {
                time::sleep(MOMENT).await;
            }
        };
        time::timeout(PATIENCE, waiting).await.unwrap();
    };
    until(&|sink| sink.waiting == 100).await;
    sink.resume();
    until(&|_| worker.blocks.load(Ordering::SeqCst)).await;
    let seen = pipeline.snapshot().stages[1].clone();
    assert!(seen.waiting <= 30, "{seen:?}");
    let report = pipeline.drain(MOMENT).await;
    assert_eq!(report.unprocessed(), 100, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_stage_does_not_subscribe_to_a_producer_that_is_gone() {
    let mut feeding = Graph::new("feeding");
    let gone = feeding
        .producer_with(Stage::restarting(|| from_iter(0u64..)).named("gone").max_restarts(1, DAY));
    let feeding = feeding.start().unwrap();
    let mut fed = Graph::new("fed");
    let (_queue, other) = queue::<u64>(QueueOptions::new());
    let other = fed.producer("other", other);
    let sink = Stage::restarting(|| for_each(async |_: u64| time::sleep(MOMENT).await));
    // One for each failure of the producer, and none for a missing producer.
    let sink = fed.consumer_with(sink.named("sink").max_restarts(2, DAY));
    fed.subscribe(&sink, &other, demand(10, 5));
    let fed = fed.start().unwrap();
    sink.subscribe(&gone, demand(10, 5)).await.unwrap();
    while feeding.snapshot().phase != PipelinePhase::Ended {
        gone.stop(ExitReason::failed("no route")).await;
        time::sleep(Duration::from_millis(300)).await;
    }
    time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fed.snapshot().phase, PipelinePhase::Running);
    assert!(sink.is_running());
}

/// A source that accepts items from outside until it is closed.
struct Watched(Arc<Mutex<Vec<&'static str>>>);

impl Producer for Watched {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    fn close(&mut self) {
        self.0.lock().push("closed");
    }

    fn pending(&self) -> usize {
        self.0.lock().push("counted");
        0
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_is_closed_before_its_items_are_counted_however_it_ends() {
    for kills in [true, false] {
        let calls = Arc::default();
        let mut graph = Graph::new("graph");
        let source = graph.producer("source", Watched(Arc::clone(&calls)));
        let mut pipeline = graph.start().unwrap();
        settle().await;
        if kills {
            source.kill();
        } else {
            source.stop(ExitReason::failed("requested")).await;
        }
        pipeline.join().await;
        assert_eq!(*calls.lock(), ["closed", "counted"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_whose_stage_has_ended_takes_no_uncounted_items() {
    for kills in [true, false] {
        let (queue, mut producer) = queue(QueueOptions::new());
        queue.push(1).await.unwrap();
        if kills {
            drop(producer);
        } else {
            producer.close();
            assert_eq!(producer.pending(), 1);
        }
        assert!(queue.push(2).await.is_err());
        let (queue, mut producer) = fair_queue(FairQueueOptions::new());
        queue.push("a", 1).await.unwrap();
        if kills {
            drop(producer);
        } else {
            producer.close();
            assert_eq!(producer.pending(), 1);
        }
        assert!(queue.push("a", 2).await.is_err());
    }
}

#[tokio::test]
async fn an_event_is_counted_if_its_stage_is_killed_before_the_function_receives_it() {
    const EVENTS: usize = 1_000;
    let (done, mut graph) = (Arc::new(AtomicUsize::new(0)), Graph::new("graph"));
    let count = done.clone();
    let source = graph.producer("source", from_iter(0..EVENTS));
    // The stage yields between events when its cooperative budget is used up.
    let handle = move |_: usize| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(())
    };
    let sink = graph.consumer("sink", for_each(handle));
    graph.subscribe(&sink, &source, demand(EVENTS, 0));
    let pipeline = graph.start().unwrap();
    while done.load(Ordering::SeqCst) == 0 {
        task::yield_now().await;
    }
    sink.kill();
    let report = pipeline.drain(DAY).await;
    let done = done.load(Ordering::SeqCst);
    assert!(done < EVENTS);
    assert_eq!(done + report.unprocessed(), EVENTS, "{report}");
}

/// Emits the number of events that a cast asks for, and blocks its thread at 70 until it is released.
struct Bursts(Blocks);

impl Producer for Bursts {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCast<u64, u64> for Bursts {
    async fn handle_cast(
        &mut self,
        events: u64,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.block_at(events);
        out.emit_all(0..events);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_of_a_stage_that_blocks_its_thread_has_its_discarded_events() {
    let blocks = Blocks::default();
    let _unblock = UnblockOnDrop(blocks.unblocked.clone());
    let mut graph = Graph::new("graph");
    let stage = Stage::new(Bursts(blocks.clone())).buffer_size(10).named("source");
    let source = graph.producer_with(stage);
    let pipeline = graph.start().unwrap();
    source.cast(100).await.unwrap();
    source.cast(70).await.unwrap();
    let blocked = async {
        while !blocks.blocks.load(Ordering::SeqCst) {
            time::sleep(MOMENT).await;
        }
    };
    time::timeout(PATIENCE, blocked).await.unwrap();
    let report = pipeline.drain(MOMENT).await;
    assert_eq!((report.stages[0].pending, report.stages[0].discarded), (10, 90), "{report}");
}

/// A graph whose middle stage is restarted after a failure at this event, and the recording of its
/// last stage, which would wait for a minute before it subscribes again.
fn failing_in_the_middle(at: u64, row: bool) -> (Queue<u64>, Pipeline, Recording<u64>) {
    let (queue, producer) = queue(QueueOptions::new());
    let failed = Arc::new(AtomicUsize::new(0));
    let relay = Stage::restarting(move || FailsOnce { at, failed: failed.clone() }).named("relay");
    let (consumer, seen) = recording::<u64>();
    let minute = Duration::from_secs(60);
    let options = demand(10, 5).cancel(Cancel::Reconnect(Backoff::new(minute, minute)));
    let pipeline = if row {
        let builder = Pipeline::builder("row").producer(producer);
        builder.producer_consumer_with(relay, demand(10, 5)).consumer(consumer, options).start()
    } else {
        let mut graph = Graph::new("graph");
        let source = graph.producer("source", producer);
        let relay = graph.producer_consumer_with(relay);
        let sink = graph.consumer("sink", consumer);
        graph.subscribe(&relay, &source, demand(10, 5));
        graph.subscribe(&sink, &relay, options);
        graph.start()
    };
    (queue, pipeline.unwrap(), seen)
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_the_back_off_of_a_stage_whose_producer_is_back() {
    for row in [true, false] {
        let (queue, pipeline, seen) = failing_in_the_middle(5, row);
        push_all(&queue, 0..1000).await;
        time::sleep(Duration::from_millis(500)).await;
        let report = pipeline.drain(Duration::from_secs(30)).await;
        assert!(report.completed && report.failure().is_none(), "{report}");
        assert_eq!(seen.events().len() + report.unprocessed(), 1000, "{report}");
        assert!(report.unprocessed() <= 10, "at most the events in the callback: {report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_restarted_stage_without_work() {
    for row in [true, false] {
        let (queue, pipeline, seen) = failing_in_the_middle(96, row);
        push_all(&queue, 0..97).await;
        time::sleep(Duration::from_millis(20)).await;
        let begun = Instant::now();
        let report = pipeline.drain(Duration::from_secs(30)).await;
        assert!(report.completed && begun.elapsed() < Duration::from_secs(5), "{report}");
        // The failed callback may have emitted some of its events.
        assert!(seen.events().len() + report.unprocessed() >= 97, "{report}");
    }
}

/// Cancels its subscription after ten events.
struct CancelsAfterTen(Arc<AtomicUsize>, Duration);

impl Consumer for CancelsAfterTen {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        let before = self.0.fetch_add(events.len(), Ordering::SeqCst);
        if before < 10 && before + events.len() >= 10 {
            from.cancel(ExitReason::Normal);
            time::sleep(self.1).await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_temporarily_cancelled_consumer_is_back_when_the_drain_begins() {
    for row in [true, false] {
        let (queue, producer) = queue(QueueOptions::new());
        let seen = Arc::new(AtomicUsize::new(0));
        let consumer = CancelsAfterTen(seen.clone(), Duration::ZERO);
        let minute = Duration::from_secs(60);
        let options = demand(10, 5).cancel(Cancel::Reconnect(Backoff::new(minute, minute)));
        let pipeline = if row {
            Pipeline::builder("row").producer(producer).consumer(consumer, options).start()
        } else {
            let mut graph = Graph::new("graph");
            let source = graph.producer("source", producer);
            let sink = graph.consumer("sink", consumer);
            graph.subscribe(&sink, &source, options);
            graph.start()
        };
        let pipeline = pipeline.unwrap();
        push_all(&queue, 0..1000).await;
        time::sleep(Duration::from_millis(100)).await;
        assert!(seen.load(Ordering::SeqCst) < 50);
        let report = pipeline.drain(Duration::from_secs(30)).await;
        assert!(report.completed && report.is_clean(), "{report}");
        assert_eq!(seen.load(Ordering::SeqCst), 1000);
    }
}

/// Waits for an event that blocks the thread of the stage that handles it, in a pipeline whose
/// source is not polled then.
async fn blocked_by(at: u64) -> (Queue<u64>, Pipeline, UnblockOnDrop) {
    let (queue, producer) = queue(QueueOptions::new());
    let (blocks, unblocked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (blocking, released) = (blocks.clone(), unblocked.clone());
    let handle = for_each(move |n: u64| {
        if n == at {
            blocking.store(true, Ordering::SeqCst);
            while !released.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        std::future::ready(())
    });
    push_all(&queue, 0..100).await;
    let pipeline =
        Pipeline::builder("row").producer(producer).consumer(handle, demand(2, 1)).start().unwrap();
    let waiting = async {
        while !blocks.load(Ordering::SeqCst) {
            time::sleep(MOMENT).await;
        }
    };
    time::timeout(PATIENCE, waiting).await.unwrap();
    (queue, pipeline, UnblockOnDrop(unblocked))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_closed_when_a_drain_has_returned_although_its_stage_is_not_polled() {
    let (queue, pipeline, _unblock) = blocked_by(1).await;
    let report = pipeline.drain(MOMENT).await;
    assert!(queue.is_closed() && queue.try_push(100).is_err());
    assert_eq!(report.unprocessed(), 99, "all but the handled event: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_closed_when_a_drain_begins_although_its_stage_is_not_polled() {
    let (queue, pipeline, unblocked) = blocked_by(1).await;
    let draining = tokio::spawn(pipeline.drain(DAY));
    let closed = async {
        while !queue.is_closed() {
            time::sleep(MOMENT).await;
        }
    };
    time::timeout(PATIENCE, closed).await.unwrap();
    drop(unblocked);
    assert!(draining.await.unwrap().is_clean());
}

/// Always reports that it is ready.
struct AlwaysReady;

impl ProducerConsumer for AlwaysReady {
    type In = u64;
    type Out = u64;

    async fn handle_events(
        &mut self,
        _: Vec<u64>,
        _: &Subscription,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn ready(&mut self) {}
}

// With the real clock: a paused clock stands still while a stage has something to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_is_always_ready_gives_up_a_stuck_producer() {
    let mut feeding = Graph::new("feeding");
    let stuck = feeding.producer("stuck", Stuck);
    let _feeding = feeding.start().unwrap();
    let mut fed = Graph::new("fed");
    fed.stop_within(MOMENT);
    let restless = fed.producer_consumer("restless", AlwaysReady);
    let fed = fed.start().unwrap();
    restless.subscribe(&stuck, demand(10, 5)).await.unwrap();
    let report = time::timeout(PATIENCE, fed.drain(DAY)).await.unwrap();
    assert!(report.completed && report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_stages_behind_a_stuck_one_waits_no_longer_than_one_stage() {
    let mut feeding = Graph::new("feeding");
    let stuck = feeding.producer("stuck", Stuck);
    let _feeding = feeding.start().unwrap();
    let mut fed = Graph::new("fed");
    let relays: Vec<_> =
        (0..4).map(|n| fed.producer_consumer(format!("relay{n}"), map(|n: u64| n))).collect();
    for pair in relays.windows(2) {
        fed.subscribe(&pair[1], &pair[0], demand(10, 5));
    }
    let fed = fed.start().unwrap();
    for relay in &relays {
        relay.subscribe(&stuck, demand(10, 5)).await.unwrap();
    }
    settle().await;
    let begun = Instant::now();
    let report = fed.drain(DAY).await;
    assert!(report.completed && report.is_clean(), "{report}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// Fails when it is asked to drain.
struct FailsAtTheEnd;

impl Producer for FailsAtTheEnd {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        _: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn handle_drain(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        Err(ExitReason::failed("no route"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failed_producer_does_not_lose_events_of_others_at_a_draining_consumer() {
    for _ in 0..5 {
        let (queue, other) = queue(QueueOptions::new());
        let mut graph = Graph::new("graph");
        let failing = graph.producer("failing", FailsAtTheEnd);
        let other = graph.producer("other", other);
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let sink = graph.consumer(
            "sink",
            for_each(async move |_: u64| {
                count.fetch_add(1, Ordering::SeqCst);
                time::sleep(MOMENT).await;
            }),
        );
        let day = Backoff::new(DAY, DAY);
        graph.subscribe(&sink, &failing, demand(10, 5).cancel(Cancel::Reconnect(day)));
        graph.subscribe(&sink, &other, demand(10, 5));
        let pipeline = graph.start().unwrap();
        push_all(&queue, 0..200).await;
        let report = time::timeout(PATIENCE, pipeline.drain(DAY)).await.unwrap();
        assert_eq!((seen.load(Ordering::SeqCst), report.unprocessed()), (200, 0), "{report}");
        assert_eq!(&*report.failure().unwrap().stage, "failing", "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_consumer_ends_if_the_producer_it_subscribed_to_by_a_handle_has_ended() {
    for own in [true, false] {
        let mut feeding = Graph::new("feeding");
        let mut fed = Graph::new("fed");
        let source = from_iter(0u64..9);
        let source =
            if own { fed.producer("source", source) } else { feeding.producer("source", source) };
        let seen = Seen::default();
        let sink = fed.consumer_with(seen.failing_once_at(3).named("sink"));
        let _feeding = (!own).then(|| feeding.start().unwrap());
        let mut fed = fed.start().unwrap();
        sink.subscribe(&source, demand(10, 5)).await.unwrap();
        let report = time::timeout(DAY, fed.join()).await.unwrap();
        assert!(report.failure().is_none(), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_does_not_fail_for_a_failure_that_a_restart_has_fixed() {
    for row in [true, false] {
        let (queue, producer) = queue(QueueOptions::new());
        let failed = Arc::new(AtomicUsize::new(0));
        let relay = Stage::restarting(move || FailsOnce { at: 40, failed: failed.clone() });
        let relay = relay.named("relay");
        let slow = for_each(async |_: u64| time::sleep(Duration::from_millis(50)).await);
        let minute = Duration::from_secs(60);
        let options = demand(10, 5).cancel(Cancel::Reconnect(Backoff::new(minute, minute)));
        let pipeline = if row {
            // Without an option: the stages of a row wait for each other.
            let builder = Pipeline::builder("row").producer(producer);
            builder
                .producer_consumer_with(relay, demand(10, 5))
                .consumer(slow, demand(10, 5))
                .start()
        } else {
            let mut graph = Graph::new("graph");
            let source = graph.producer("source", producer);
            let relay = graph.producer_consumer_with(relay);
            let sink = graph.consumer("sink", slow);
            graph.subscribe(&relay, &source, demand(10, 5));
            graph.subscribe(&sink, &relay, options);
            graph.start()
        };
        let pipeline = pipeline.unwrap();
        push_all(&queue, 0..41).await;
        settle().await;
        let report = pipeline.drain(Duration::from_secs(30)).await;
        assert!(report.completed && report.failure().is_none(), "{report}");
    }
}

/// Emits four events every three seconds, and ends with its consumer.
struct Slow(Arc<AtomicUsize>);

impl Producer for Slow {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        time::sleep(Duration::from_secs(3)).await;
        out.emit_all([1_000_000; 4]);
        self.0.fetch_add(4, Ordering::SeqCst);
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _: &Cancellation,
        _: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.finish();
        Ok(())
    }

    async fn handle_drain(&mut self, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_producer_has_its_full_time_to_confirm_after_earlier_cancels() {
    let mut feeding = Graph::new("feeding");
    let (_calm, foreign) = queue::<u64>(QueueOptions::new());
    let foreign = feeding.producer("foreign", foreign);
    let _feeding = feeding.start().unwrap();
    let (queue, own) = queue(QueueOptions::new());
    let mut fed = Graph::new("fed");
    let emitted = Arc::new(AtomicUsize::new(0));
    let (own, slow) = (fed.producer("own", own), fed.producer("slow", Slow(emitted.clone())));
    let of_slow = Arc::new(AtomicUsize::new(0));
    let count = of_slow.clone();
    let sink = fed.consumer(
        "sink",
        for_each(async move |n: u64| {
            if n < 1_000_000 {
                time::sleep(Duration::from_millis(10)).await;
            } else {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }),
    );
    fed.subscribe(&sink, &own, demand(10, 5));
    fed.subscribe(&sink, &slow, demand(4, 0));
    let fed = fed.start().unwrap();
    sink.subscribe(&foreign, demand(10, 5)).await.unwrap();
    push_all(&queue, 0..1000).await;
    let report = fed.drain(Duration::from_secs(60)).await;
    assert!(report.completed && report.is_clean(), "{report}");
    assert_eq!(of_slow.load(Ordering::SeqCst), emitted.load(Ordering::SeqCst));
}

/// Takes a snapshot of the pipeline when it is woken.
struct SnapshotsWhenWoken(PipelineObserver, AtomicBool);

impl Wake for SnapshotsWhenWoken {
    fn wake(self: Arc<Self>) {
        let _ = self.0.snapshot();
        self.1.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_of_a_push_may_take_a_snapshot_of_the_draining_pipeline() {
    let (queue, producer) = queue(QueueOptions::new().capacity(1));
    let consumer = for_each(async |_: u64| std::future::pending::<()>().await);
    let pipeline = Pipeline::builder("row").producer(producer).consumer(consumer, demand(1, 0));
    let pipeline = pipeline.start().unwrap();
    push_all(&queue, 0..2).await;
    settle().await;
    let looking = Arc::new(SnapshotsWhenWoken(pipeline.observer(), AtomicBool::new(false)));
    let mut push = std::pin::pin!(queue.push(2));
    let waker = looking.clone().into();
    assert!(push.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    pipeline.drain(MOMENT).await;
    assert!(looking.1.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_has_cancelled_gracefully_does_not_fail_when_its_producer_does() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let seen = Arc::new(AtomicUsize::new(0));
    let sink = graph.consumer("sink", CancelsAfterTen(seen.clone(), Duration::from_secs(1)));
    let minute = Duration::from_secs(60);
    graph.subscribe(
        &sink,
        &source,
        demand(10, 5).cancel(Cancel::Reconnect(Backoff::new(minute, minute))),
    );
    let _pipeline = graph.start().unwrap();
    push_all(&queue, 0..100).await;
    settle().await;
    source.stop(ExitReason::failed("no route")).await;
    time::sleep(DAY).await;
    assert!(sink.is_running());
}
