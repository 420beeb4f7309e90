//! Pipelines with failures: what happens to the pipeline, and how long its end takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    cell::Cell,
    collections::{HashSet, VecDeque},
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    builder::StartError,
    dispatcher::{
        BroadcastDispatcher, Deliveries, DemandDispatcher, Dispatcher, Marker, PartitionDispatcher,
        Subscriber,
    },
    report::{PipelineReport, UncleanPipeline},
    source::{QueueOptions, QueueProducer, from_iter, queue},
    stage::{Consumer, Emitter, HandleInfo, Producer, ProducerHandle, Stage},
    step::{for_each, for_each_batch},
    subscription::{SubscribeOptions, Subscription, SubscriptionId},
    supervisor::{Admission, ChildContext, ConsumerSupervisor, Restart, TooManyRestarts, Worker},
    testkit::settle,
};
use pipeline_test_support::{Log, PATIENCE, Recorded, eventually};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task,
    time::{self, Instant},
};

fn demand(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

/// How many events the stages have accounted for, besides the completed ones.
fn accounted(report: &PipelineReport) -> usize {
    let given_up: usize = report.stages.iter().map(|stage| stage.given_up).sum();
    report.unprocessed() + given_up
}

/// The total of a counter over all labels.
fn total(recorded: &Recorded, name: &str) -> u64 {
    recorded.counters(name).iter().map(|(_, count)| count).sum()
}

#[tokio::test(start_paused = true)]
async fn draining_without_a_limit_waits_for_everything() {
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let done = Arc::new(AtomicUsize::new(0));
    let counted = done.clone();
    let pipeline = Pipeline::builder("patient")
        .producer(producer)
        .consumer(
            for_each(move |_| {
                let counted = counted.clone();
                async move {
                    time::sleep(Duration::from_secs(60)).await;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }),
            demand(10, 5),
        )
        .start()
        .unwrap();
    for item in 0..100 {
        queue.push(item).await.unwrap();
    }
    let report = pipeline.drain(Duration::MAX).await;
    assert_eq!(done.load(Ordering::SeqCst), 100, "{report}");
    assert!(report.is_clean() && report.completed, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_a_time_limit_waits_for_its_size() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let mut pipeline = Pipeline::builder("batches")
        .producer(from_iter(0..5))
        .batch(3, Duration::MAX)
        .consumer(
            for_each(move |batch: Vec<i32>| {
                kept.lock().push(batch);
                async {}
            }),
            SubscribeOptions::new(),
        )
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(*seen.lock(), [vec![0, 1, 2], vec![3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_pipeline_task_is_a_failure_that_reports_pending_events() {
    let (log, _guard) = Log::keep();
    let (numbers, producer) = queue::<u64>(QueueOptions::new());
    let (other, ends) = queue::<u64>(QueueOptions::new());
    let mut graph = Graph::new("trapped");
    let stuck = graph.consumer("stuck", for_each(async |_| pending::<()>().await));
    let producer = graph.producer("numbers", producer);
    graph.subscribe(&stuck, &producer, demand(2, 1));
    let ends = graph.producer("ends", ends);
    let done = graph.consumer("done", for_each(async |_| ()));
    graph.subscribe(&done, &ends, demand(2, 1));
    let mut pipeline = graph.start().unwrap();
    for item in 0..10 {
        numbers.push(item).await.unwrap();
    }
    settle().await;
    log.panic_at("stage ended");
    drop(other);
    let report = pipeline.join().await;
    assert!(!report.completed && !report.is_clean());
    assert_eq!(report.unprocessed(), 10, "{report}");
    let own = report.stages.iter().find(|entry| *entry.stage == *report.pipeline).unwrap();
    assert!(own.reason.to_string().starts_with("panicked: the log panics"), "{}", own.reason);
    assert!(pipeline.snapshot().failed);
}

/// Always fails at one event, with an error and a panic in turn.
#[derive(Clone)]
struct Poison {
    at: u64,
    done: mpsc::UnboundedSender<u64>,
}

impl Worker<u64> for Poison {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        if *event == self.at {
            assert!(context.restarts().is_multiple_of(2), "cannot parse it");
            return Err(ExitReason::failed("cannot parse it"));
        }
        self.done.send(*event).unwrap();
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "a test sends no more than it reads")]
fn poison(at: u64) -> (Poison, mpsc::UnboundedReceiver<u64>) {
    let (done, seen) = mpsc::unbounded_channel();
    (Poison { at, done }, seen)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_always_fails_is_given_up_after_three_tries_and_the_others_continue() {
    let (worker, mut done) = poison(3);
    let (telemetry, recorded) = Recorded::new();
    let given_up = Arc::new(Mutex::new(Vec::new()));
    let kept = given_up.clone();
    let supervisor = ConsumerSupervisor::new(worker)
        .on_given_up(move |event, reason| kept.lock().push((event, reason.to_string())));
    let start = Instant::now();
    let mut pipeline = Pipeline::builder("poisoned")
        .telemetry(telemetry)
        .producer(from_iter(0..100))
        .consumer_supervisor(supervisor, demand(4, 3))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.is_clean(), "{report}");
    assert!(start.elapsed() >= Duration::from_millis(150), "it waits between the tries");
    done.close();
    let mut all = Vec::new();
    while let Some(event) = done.recv().await {
        all.push(event);
    }
    all.sort_unstable();
    assert_eq!(all, (0..100).filter(|event| *event != 3).collect::<Vec<_>>());
    assert_eq!(*given_up.lock(), [(3, "failed: cannot parse it".to_owned())]);
    let workers = &report.stages[1];
    assert_eq!((workers.given_up, accounted(&report)), (1, 1));
    assert!(report.to_string().contains("1 event given up"), "{report}");
    assert_eq!(total(&recorded, "pipeline.worker.failures"), 3, "one per try");
    assert_eq!(total(&recorded, "pipeline.worker.given_up"), 1);
    let seen = pipeline.snapshot();
    assert_eq!((seen.failed, seen.stages[1].given_up), (false, 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_failure_no_try_mends_is_given_up_at_once_also_without_a_limit_of_tries() {
    for limited in [false, true] {
        let tries = Arc::new(Mutex::new(Vec::new()));
        let seen = tries.clone();
        let worker = async move |event: &u64| {
            seen.lock().push(*event);
            match event {
                1 => Err(ExitReason::give_up("no such user")),
                2 => Err(ExitReason::failed("no answer")),
                _ => Ok(()),
            }
        };
        let given_up = Arc::new(Mutex::new(Vec::new()));
        let kept = given_up.clone();
        let (telemetry, recorded) = Recorded::new();
        let mut supervisor = ConsumerSupervisor::new(worker).tries(2).on_given_up(
            move |event, reason: ExitReason| kept.lock().push((event, reason.to_string())),
        );
        if limited {
            // It is no restart.
            supervisor = supervisor.max_restarts(1, Duration::from_secs(60));
        }
        let mut pipeline = Pipeline::builder("users")
            .telemetry(telemetry)
            .producer(from_iter(0..4))
            .consumer_supervisor(supervisor, demand(1, 0))
            .start()
            .unwrap();
        let report = pipeline.join().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(*tries.lock(), [0, 1, 2, 2, 3]);
        let counted = recorded.counters("pipeline.worker.given_up");
        let of_reason = |reason| counted.iter().find(|(labels, _)| labels.contains(reason));
        let counts = ["reason=failed", "reason=final"].map(|reason| of_reason(reason).unwrap().1);
        assert_eq!(counts, [1, 1]);
        assert_eq!(counted.iter().map(|(_, count)| count).sum::<u64>(), 2);
        let expected = [(1, "failed: no such user"), (2, "failed: no answer")];
        assert_eq!(*given_up.lock(), expected.map(|(event, reason)| (event, reason.to_owned())));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_worker_does_not_start_is_given_up_and_reported() {
    struct Refuses;
    impl Worker<u64> for Refuses {
        fn admit(&self, event: &u64, _: &ChildContext) -> Result<Admission, ExitReason> {
            Err(ExitReason::failed(format!("no start for {event}")))
        }
        async fn run(&self, _: &u64, _: ChildContext) -> Result<(), ExitReason> {
            Ok(())
        }
    }
    let given_up = Arc::new(AtomicUsize::new(0));
    let counted = given_up.clone();
    let supervisor = ConsumerSupervisor::new(Refuses).on_given_up(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        panic!("the callback may fail, too");
    });
    let mut pipeline = Pipeline::builder("refused")
        .producer(from_iter(0..3))
        .consumer_supervisor(supervisor.restart(Restart::Temporary), SubscribeOptions::new())
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert_eq!((given_up.load(Ordering::SeqCst), report.stages[1].given_up), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_gives_up_is_a_failure_that_shows_at_once() {
    let (worker, _done) = poison(0);
    let (queue, producer) = queue(QueueOptions::new());
    let (telemetry, recorded) = Recorded::new();
    let mut graph = Graph::new("graph");
    graph.telemetry(telemetry);
    let source = graph.producer("source", producer);
    let supervisor = ConsumerSupervisor::new(worker).max_restarts(3, Duration::from_secs(5));
    let workers = graph.consumer_supervisor("workers", supervisor);
    // The source continues without it.
    graph.subscribe(&workers, &source, demand(4, 3));
    let pipeline = graph.start().unwrap();
    queue.push(0).await.unwrap();
    settle().await;
    let observer = pipeline.observer();
    assert!(source.is_running() && !workers.is_running(), "the pipeline must continue");
    let reason = workers.exit_reason().unwrap();
    assert!(!reason.is_graceful());
    let error = reason.source().unwrap().downcast_ref::<TooManyRestarts>().unwrap();
    assert!(matches!(error.last(), ExitReason::Panicked(_) | ExitReason::Failed(_)));
    let seen = observer.snapshot();
    assert!(seen.failed);
    assert_eq!(seen.stages[1].failures, 1);
    assert!(seen.stages[1].failure.as_ref().unwrap().to_string().contains("too many restarts"));
    assert_eq!(total(&recorded, "pipeline.stage.failures"), 1);
    let report = pipeline.drain(Duration::from_secs(1)).await;
    let failure = report.failure().unwrap();
    assert_eq!((&*failure.stage, report.unprocessed()), ("workers", 1));
    let error: UncleanPipeline = report.into_result().unwrap_err();
    assert!(error.to_string().contains("too many restarts of workers"), "{error}");
    assert_eq!(format!("{error:?}"), error.to_string(), "`main` prints this");
}

#[tokio::test(start_paused = true)]
async fn a_restarting_supervisor_that_gives_up_is_restarted() {
    let (worker, mut done) = poison(5);
    let supervisor = Stage::restarting(move || {
        ConsumerSupervisor::new(worker.clone()).max_restarts(1, Duration::from_secs(5))
    });
    let mut pipeline = Pipeline::builder("again")
        .producer(from_iter(0..20))
        .consumer_supervisor_with(supervisor, demand(1, 0))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.failure().is_none(), "{report}");
    assert_eq!(report.unprocessed(), 1, "the event of the failed child: {report}");
    let workers = report.stages.iter().find(|stage| stage.restarts > 0).unwrap();
    assert!(workers.last_failure.as_ref().unwrap().to_string().contains("too many restarts"));
    done.close();
    let mut count = 0;
    while done.recv().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 19);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_with_a_failed_stage_ends_in_time_and_reports_unprocessed_events() {
    let (started, mut starting) = mpsc::channel(1);
    let stuck = for_each(move |_: u64| {
        let started = started.clone();
        async move {
            started.send(()).await.unwrap();
            pending::<()>().await;
        }
    });
    let (queue, producer) = queue(QueueOptions::new());
    let mut pipeline = Pipeline::builder("stuck")
        .producer_with(Stage::new(producer).named("source"))
        .consumer(stuck, demand(4, 2))
        .stop_within(Duration::from_secs(2))
        .start()
        .unwrap();
    for item in 0..4 {
        queue.push(item).await.unwrap();
    }
    starting.recv().await.unwrap();
    let source: ProducerHandle<QueueProducer<u64>> = pipeline.stage("source").unwrap();
    let start = Instant::now();
    source.stop(ExitReason::failed("the source broke")).await;
    let report = pipeline.join().await;
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(5), "{took:?}");
    assert!(!report.completed, "{report}");
    assert_eq!(report.unprocessed(), 4, "{report}");
    let stuck = report.stages.iter().find(|stage| &*stage.stage == "consumer").unwrap();
    assert_eq!(stuck.in_progress, 1, "the others were not begun: {report}");
}

/// Stops a pipeline after 700 ms whose consumer takes this long for an event or a batch.
async fn stopped_in_the_middle<C: Consumer<Event = u64>>(consumer: C) -> PipelineReport {
    let (queue, producer) = queue(QueueOptions::new());
    let mut pipeline = Pipeline::builder("slow")
        .producer_with(Stage::new(producer).named("source"))
        .consumer(consumer, demand(100, 50))
        .start()
        .unwrap();
    for item in 0..100 {
        queue.push(item).await.unwrap();
    }
    time::sleep(Duration::from_millis(650)).await;
    let source: ProducerHandle<QueueProducer<u64>> = pipeline.stage("source").unwrap();
    source.stop(ExitReason::failed("the source broke")).await;
    pipeline.join().await
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_one_long_message_stops_between_two_events() {
    let slow = for_each(async |_: u64| time::sleep(Duration::from_millis(100)).await);
    let report = stopped_in_the_middle(slow).await;
    assert!(report.completed, "{report}");
    // Seven events are done, and none is half done.
    let left: Vec<_> =
        report.stages.iter().map(|stage| (stage.pending, stage.in_progress)).collect();
    assert_eq!(left, [(0, 0), (93, 0)], "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_one_long_message_stops_between_two_chunks() {
    let slow = for_each_batch(async |_: Vec<u64>| time::sleep(Duration::from_secs(3)).await);
    let report = stopped_in_the_middle(slow).await;
    assert!(report.completed, "{report}");
    let left: Vec<_> =
        report.stages.iter().map(|stage| (stage.pending, stage.in_progress)).collect();
    assert_eq!(left, [(0, 0), (50, 0)], "the second half of the message: {report}");
}

#[tokio::test(start_paused = true)]
async fn events_behind_one_that_failed_count_as_pending_and_those_before_it_as_handled() {
    let fail = for_each(async |n: u64| match n {
        3 => Err(ExitReason::failed("not this one")),
        _ => Ok(()),
    });
    let mut pipeline = Pipeline::builder("fails")
        .producer(from_iter(0..10))
        .consumer(fail, demand(10, 0))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    let consumer = report.failure().unwrap();
    assert_eq!((consumer.in_progress, consumer.pending), (1, 6), "{report}");
}

#[tokio::test(start_paused = true)]
async fn an_event_at_which_a_function_ends_gracefully_counts_as_done() {
    let last = for_each(async |n: u64| if n == 2 { Err(ExitReason::Normal) } else { Ok(()) });
    let mut pipeline = Pipeline::builder("row")
        .producer(from_iter(0..3))
        .consumer(last, demand(3, 0))
        .start()
        .unwrap();
    let report = pipeline.join().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_in_time_although_a_callback_blocks_its_thread() {
    let (blocking, mut blocked) = mpsc::channel(1);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(Some(released)));
    let block = for_each(move |_: u64| {
        blocking.try_send(()).unwrap();
        // Until the test releases it after the drain.
        let _ = released.lock().take().unwrap().recv();
        async {}
    });
    let (queue, producer) = queue(QueueOptions::new());
    let pipeline = Pipeline::builder("blocked")
        .producer(producer)
        .consumer(block, demand(2, 1))
        .start()
        .unwrap();
    for item in 0..10 {
        queue.push(item).await.unwrap();
    }
    blocked.recv().await.unwrap();
    let report = pipeline.drain(Duration::from_millis(10)).await;
    drop(release);
    assert!(!report.completed);
    assert_eq!(report.unprocessed(), 10, "according to the gauges of the stages: {report}");
    assert!(report.stages.iter().any(|stage| stage.in_progress == 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_quotes_an_item_cannot_forge_a_log_line_and_is_truncated() {
    let (log, _guard) = Log::keep();
    let item = format!("ada\n2026-11-28 ERROR bank: all money is gone{}", "!".repeat(1 << 20));
    let work = async |item: &String| Err(ExitReason::failed(format!("no such user: {item}")));
    let mut pipeline = Pipeline::builder("users")
        .producer(from_iter([item]))
        .consumer_supervisor(ConsumerSupervisor::new(work).tries(1), SubscribeOptions::new())
        .start()
        .unwrap();
    pipeline.join().await;
    let lines = log.take();
    let failed = lines.iter().find(|line| line.contains("a worker failed")).unwrap();
    assert!(failed.contains("no such user: ada\\n2026-11-28 ERROR"), "{failed}");
    assert!(lines.iter().all(|line| !line.contains('\n') && line.len() < 1_000), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn workers_that_fail_by_the_thousand_do_not_fill_the_log_and_events_that_are_given_up_have_their_lines()
 {
    let (log, _guard) = Log::keep();
    let (telemetry, recorded) = Recorded::new();
    let work = async |_: &u64| Err(ExitReason::failed("the database is away"));
    let mut pipeline = Pipeline::builder("users")
        .telemetry(telemetry)
        .producer(from_iter(0..1_000u64))
        .consumer_supervisor(ConsumerSupervisor::new(work).tries(3), SubscribeOptions::new())
        .start()
        .unwrap();
    pipeline.join().await;
    let lines = log.take();
    let of = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    // A few more may be written while the tries last.
    let (given_up, all) = (of("a worker failed, giving up"), of("a worker failed"));
    assert!((100..110).contains(&given_up) && (200..220).contains(&all), "{given_up} {all}");
    assert_eq!(total(&recorded, "pipeline.worker.given_up"), 1_000);
    assert_eq!(total(&recorded, "pipeline.worker.failures"), 3_000);
}

/// A consumer that fails at its first event, and whose `terminate` never completes.
struct Hangs;

impl Consumer for Hangs {
    type Event = u64;

    async fn handle_events(&mut self, _: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
        Err(ExitReason::failed("no route"))
    }

    async fn terminate(&mut self, _: &ExitReason) {
        pending::<()>().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_shows_before_terminate_has_run_and_terminate_has_a_deadline() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut pipeline =
        Pipeline::builder("row").producer(producer).consumer(Hangs, demand(2, 1)).start().unwrap();
    queue.push(1).await.unwrap();
    settle().await;
    let seen = pipeline.snapshot();
    assert!(seen.failed && seen.stages[1].failure.is_some(), "{seen:?}");
    assert_eq!(seen.stages[1].failures, 1);
    assert!(queue.is_closed(), "the other stages must not wait for it");

    let begun = Instant::now();
    let report = pipeline.join().await;
    assert!(begun.elapsed() <= Duration::from_secs(6), "{report}");
    assert!(!report.completed, "{report}");
    assert_eq!(report.failure().unwrap().reason.to_string(), "failed: no route");
    assert_eq!(pipeline.snapshot().stages[1].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stage_of_a_graph_whose_terminate_hangs_ends_and_the_others_continue() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    graph.stop_within(Duration::from_secs(2));
    let source = graph.producer("source", producer);
    let hangs = graph.consumer("hangs", Hangs);
    let restarts = graph.consumer_with(Stage::restarting(|| Hangs).named("restarts"));
    for consumer in [&hangs, &restarts] {
        graph.subscribe(consumer, &source, demand(1, 0));
    }
    let pipeline = graph.start().unwrap();
    settle().await;
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    settle().await;
    assert!(pipeline.snapshot().failed);
    time::sleep(Duration::from_secs(3)).await;
    assert!(!hangs.is_running());
    let seen = pipeline.snapshot();
    assert_eq!((seen.stages[2].restarts, seen.stages[2].failures), (1, 1));
    assert!(source.is_running() && restarts.is_running());
    assert!(pipeline.observer().failed().await);
}

#[tokio::test(start_paused = true)]
async fn an_observer_waits_for_a_failure_or_for_the_end_without_one() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("graph");
    let source = graph.producer("source", producer);
    let fails =
        graph.consumer("fails", for_each(async |_: u64| Err(ExitReason::failed("no luck"))));
    graph.subscribe(&fails, &source, demand(1, 0));
    let pipeline = graph.start().unwrap();
    let observer = pipeline.observer();
    settle().await;
    assert_eq!(observer.failed().now_or_never(), None);
    queue.push(1).await.unwrap();
    assert!(observer.failed().await);
    assert!(source.is_running(), "the others continue");
    drop(pipeline);

    let ends = Pipeline::builder("numbers")
        .producer(from_iter(0..3))
        .consumer(for_each(async |_: u64| ()), demand(1, 0))
        .start()
        .unwrap();
    assert!(!ends.observer().failed().await);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_gives_up_and_waits_for_its_children_without_a_limit_is_seen_as_failed() {
    let (queue, producer) = queue(QueueOptions::new());
    let work = async |n: &u64| {
        if *n == 0 {
            pending::<()>().await;
        }
        Err(ExitReason::failed("poison"))
    };
    let supervisor = ConsumerSupervisor::new(work)
        .max_restarts(1, Duration::from_secs(9))
        .shutdown(Duration::MAX);
    let pipeline = Pipeline::builder("row")
        .producer(producer)
        .consumer_supervisor(supervisor, demand(2, 1))
        .start()
        .unwrap();
    queue.push(0).await.unwrap();
    queue.push(1).await.unwrap();
    settle().await;
    assert!(pipeline.snapshot().failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_behind_a_child_that_blocks_its_supervisor_are_counted_exactly() {
    // The supervisor may give every child a task of its own, as it does on a busy machine.
    let attempts = async { while !a_child_that_blocks_its_supervisor_is_reported().await {} };
    time::timeout(PATIENCE, attempts).await.unwrap();
}

/// Whether the supervisor has run a child itself that blocked it. If so, all events are counted.
async fn a_child_that_blocks_its_supervisor_is_reported() -> bool {
    const ALL: u64 = 30_000;
    let (blocking, mut blocked) = mpsc::channel(1);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(Some(released)));
    let (tasks, done) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(AtomicUsize::new(0)));
    let count = done.clone();
    let work = async move |n: &u64| {
        // Only the supervisor's own task runs more than one child.
        let by_supervisor = !tasks.lock().insert(task::id());
        let released = (by_supervisor && *n >= ALL / 2).then(|| released.lock().take()).flatten();
        if let Some(released) = released {
            blocking.try_send(()).unwrap();
            let _ = released.recv();
        }
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let (queue, producer) = queue(QueueOptions::new().capacity(30_000));
    for n in 0..ALL {
        queue.push(n).await.unwrap();
    }
    let mut pipeline = Pipeline::builder("row")
        .producer(producer)
        // All requested events come in one message, so none is in transit.
        .consumer_supervisor(ConsumerSupervisor::new(work), demand(1000, 0))
        .start()
        .unwrap();
    queue.close();
    tokio::select! {
        // It returns None if the pipeline ends without a child that the supervisor runs itself.
        Some(()) = blocked.recv() => {}
        _ = pipeline.join() => return false,
    }
    let report = pipeline.drain(Duration::from_millis(10)).await;
    let done = done.load(Ordering::SeqCst);
    drop(release);
    assert_eq!(done + report.unprocessed(), 30_000, "{report}");
    true
}

/// Counts the numbers that it emits, without an end.
struct Endless(Arc<AtomicU64>);

impl Producer for Endless {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        for _ in 0..demand {
            out.emit(self.0.fetch_add(1, Ordering::SeqCst));
        }
        Ok(())
    }
}

impl HandleInfo<(), u64> for Endless {
    async fn handle_info(&mut self, (): (), _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
        Ok(())
    }
}

/// A dispatcher that panics in one of its methods, from its `left`th call on.
struct Faulty {
    method: &'static str,
    left: Cell<usize>,
    inner: DemandDispatcher,
}

impl Faulty {
    fn call(&self, method: &'static str) {
        if method == self.method {
            self.left.set(self.left.get().saturating_sub(1));
            assert!(self.left.get() > 0, "a bug in {method}");
        }
    }
}

impl Dispatcher<u64> for Faulty {
    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        self.call("subscribe");
        Dispatcher::<u64>::subscribe(&mut self.inner, subscriber)
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<u64>) {
        self.call("cancel");
        self.inner.cancel(id, out);
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<u64>) {
        self.call("ask");
        self.inner.ask(id, demand, out);
    }

    fn unmet(&self) -> usize {
        self.call("unmet");
        Dispatcher::<u64>::unmet(&self.inner)
    }

    fn dispatch(&mut self, events: &mut VecDeque<u64>, out: &mut Deliveries<u64>) {
        self.call("dispatch");
        self.inner.dispatch(events, out);
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<u64>) {
        self.call("info");
        self.inner.info(marker, out);
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.call("outstanding");
        Dispatcher::<u64>::outstanding(&self.inner, id)
    }

    fn queued(&self) -> usize {
        self.call("queued");
        Dispatcher::<u64>::queued(&self.inner)
    }
}

/// Runs two consumers of a stage until its dispatcher panics, and asserts that the stage ends with this
/// message, its consumers with it, and that every emitted event was handled or is counted.
async fn panics_in_a_dispatcher(
    case: &str,
    stage: impl FnOnce(Stage<Endless, u64>) -> Stage<Endless, u64>,
    options: [SubscribeOptions; 2],
    message: &str,
) {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let (emitted, handled) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(HashSet::new())));
    let mut graph = Graph::new("dispatching");
    let numbers = graph.producer_with(stage(Stage::new(Endless(emitted.clone())).named("numbers")));
    let consumer = |name: &'static str, graph: &mut Graph| {
        let handled = handled.clone();
        let counts = for_each(move |n: u64| {
            let handled = handled.clone();
            async move {
                // So that the other consumer has events, too.
                task::yield_now().await;
                // A consumer that ends is the reason for `cancel`.
                if name == "leaving" && n > 100 {
                    return Err(ExitReason::failed("enough"));
                }
                handled.lock().insert(n);
                Ok(())
            }
        });
        graph.consumer(name, counts)
    };
    let (staying, leaving) = (consumer("staying", &mut graph), consumer("leaving", &mut graph));
    for (consumer, options) in [&staying, &leaving].into_iter().zip(options) {
        graph.subscribe(consumer, &numbers, options);
    }
    let mut pipeline = graph.start().unwrap();
    for _ in 0..3 {
        // The stage may have ended.
        let _ = numbers.async_info(());
    }
    let report = time::timeout(PATIENCE, pipeline.join()).await.expect(case);
    let stage = |name: &str| report.stages.iter().find(|entry| &*entry.stage == name).unwrap();
    let reason = stage("numbers").reason.to_string();
    assert!(reason.starts_with("panicked: ") && reason.contains(message), "{case}: {reason}");
    assert!(
        !stage("staying").reason.is_graceful(),
        "{case}: a permanent subscription ends: {report}"
    );
    let discarded: usize = report.stages.iter().map(|entry| entry.discarded).sum();
    let accounted = handled.lock().len() + report.unprocessed() + discarded;
    assert_eq!(emitted.load(Ordering::SeqCst), accounted as u64, "{case}: {report}");
    drop((pipeline, numbers, staying, leaving));
    eventually(|| tasks() == before).await;
}

#[tokio::test]
async fn a_dispatcher_that_panics_ends_its_stage_and_every_event_is_counted() {
    for (method, at) in [
        ("subscribe", 2),
        ("ask", 5),
        ("unmet", 50),
        ("dispatch", 3),
        ("info", 1),
        ("queued", 1),
        ("cancel", 1),
    ] {
        let faulty = move || {
            let inner = DemandDispatcher::new();
            Faulty { method, left: Cell::new(at), inner }
        };
        let stage = |stage: Stage<Endless, u64>| stage.dispatcher(faulty);
        let options = [demand(10, 5), demand(10, 5)];
        panics_in_a_dispatcher(method, stage, options, &format!("a bug in {method}")).await;
    }
}

#[tokio::test]
async fn a_selector_or_a_partitions_hash_that_panics_ends_its_stage_and_every_event_is_counted() {
    let broadcasting = |stage: Stage<Endless, u64>| stage.dispatcher(BroadcastDispatcher::new);
    let select = |n: &u64| {
        assert!(*n != 33, "a bug at 33");
        true
    };
    let options = [demand(10, 5), demand(10, 5)].map(|options| options.selector(select));
    panics_in_a_dispatcher("selector", broadcasting, options, "a bug at 33").await;

    let key = |n: &u64| {
        assert!(*n != 33, "a bug at 33");
        Some(n % 2)
    };
    let partitioned = |stage: Stage<Endless, u64>| {
        stage.dispatcher(move || PartitionDispatcher::by_key(0..2, key))
    };
    let options = [0u64, 1].map(|place| demand(10, 5).partition(place));
    panics_in_a_dispatcher("partition", partitioned, options, "a bug at 33").await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_supervisor_counts_the_events_of_its_children_and_those_that_waited_for_one() {
    const EVENTS: usize = 100;
    let (queue, producer) = queue::<usize>(QueueOptions::new());
    let (done, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let worker = {
        let (done, gate) = (done.clone(), gate.clone());
        async move |event: &usize| {
            if *event == 3 {
                return Err(ExitReason::failed("cannot parse it"));
            }
            gate.acquire().await?.forget();
            done.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let supervisor = Stage::restarting(move || {
        let supervisor = ConsumerSupervisor::new(worker.clone()).max_children(4);
        supervisor.max_restarts(0, Duration::from_secs(5)).shutdown(Duration::ZERO)
    });
    let mut pipeline = Pipeline::builder("again")
        .producer(producer)
        .consumer_supervisor_with(supervisor.named("workers"), demand(10, 0))
        .start()
        .unwrap();
    for event in 0..EVENTS {
        queue.push(event).await.unwrap();
    }
    time::sleep(Duration::from_secs(1)).await;
    let seen = pipeline.snapshot();
    let stage = seen.stages.iter().find(|stage| &*stage.stage == "workers").unwrap();
    assert_eq!(stage.restarts, 1, "{stage:?}");
    gate.add_permits(EVENTS);
    drop(queue);
    let report = pipeline.join().await;
    let workers = report.stages.iter().find(|entry| &*entry.stage == "workers").unwrap();
    assert_eq!((workers.in_progress, workers.pending), (4, 6), "{report}");
    assert_eq!((workers.restarts, report.unprocessed()), (1, 10), "{report}");
    assert_eq!(done.load(Ordering::SeqCst), EVENTS - 10, "all later events are handled");
}

#[tokio::test(start_paused = true)]
async fn a_dispatchers_constructor_that_panics_fails_the_start_or_the_restart() {
    for panics_at in [1, 2] {
        let made = AtomicUsize::new(0);
        let make = move || {
            let nth = made.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(nth != panics_at, "no dispatcher");
            DemandDispatcher::new()
        };
        let failing = || from_iter((0..10).inspect(|n: &u64| assert!(*n != 5, "oops")));
        let mut graph = Graph::new("made");
        let numbers = Stage::restarting(failing).named("numbers").dispatcher(make);
        let numbers = graph.producer_with(numbers);
        let consumer = graph.consumer("consumer", for_each(async |_: u64| ()));
        graph.subscribe(&consumer, &numbers, demand(10, 5));
        let started = graph.start();
        let mut pipeline = match started {
            Err(StartError::Init { stage, reason }) if panics_at == 1 => {
                let seen = (&*stage, &*reason.to_string());
                assert_eq!(seen, ("numbers", "panicked: no dispatcher"));
                continue;
            }
            started => started.unwrap(),
        };
        let report = time::timeout(PATIENCE, pipeline.join()).await.expect("the pipeline ends");
        let numbers = report.stages.iter().find(|entry| &*entry.stage == "numbers").unwrap();
        assert_eq!(numbers.reason.to_string(), "panicked: oops", "{report}");
        assert!(pipeline.snapshot().failed && !consumer.is_running(), "{report}");
    }
}
