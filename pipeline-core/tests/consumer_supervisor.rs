//! The consumer supervisor: how many workers run at once, and how failures are handled.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Pipeline,
    source::{QueueOptions, from_iter, queue},
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Reserved, Restart, Worker},
    testkit::{scripted, settle},
};
use pipeline_test_support::{Recorded, gate};
use support::supervised;
use tokio::{
    sync::{Barrier, mpsc},
    task,
};

#[tokio::test]
async fn exactly_max_demand_workers_live_at_once() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 5, 4);
    for item in 0..20 {
        queue.push(item).await.unwrap();
    }
    let mut started = control.started(5).await;
    control.assert_none_starts().await;
    while started.len() < 20 {
        control.release(1);
        started.extend(control.started(1).await);
        if started.len() < 20 {
            control.assert_none_starts().await;
        }
    }
    started.sort_unstable();
    assert_eq!(started, Vec::from_iter(0..20));
}

/// Sends the number of spare children.
struct ReportsSpare(mpsc::Sender<usize>);

impl Worker<u64> for ReportsSpare {
    async fn run(&self, _: &u64, context: ChildContext) -> Result<(), ExitReason> {
        Ok(self.0.send(context.spare()).await?)
    }
}

#[tokio::test]
async fn a_child_knows_how_many_may_take_long_without_delaying_the_others() {
    for (max, min, children, expected) in [(5, 4, 100, 4), (5, 0, 100, 0), (50, 49, 10, 9)] {
        let (spare, mut reported) = mpsc::channel(1);
        let supervisor = ConsumerSupervisor::new(ReportsSpare(spare)).max_children(children);
        let _pipeline = supervised(from_iter(0..1), supervisor, max, min);
        assert_eq!(reported.recv().await, Some(expected), "{max} {min} {children}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_bound_holds_on_many_threads() {
    const MAX: usize = 7;
    let (queue, producer) = queue(QueueOptions::new());
    let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (alive_now, most_seen) = (alive.clone(), most.clone());
    let worker = async move |_event: &u64| {
        most_seen.fetch_max(alive_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        task::yield_now().await;
        alive_now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), MAX, MAX - 1);
    for item in 0..5_000 {
        queue.push(item).await.unwrap();
    }
    drop(queue);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert_eq!(most.load(Ordering::SeqCst), MAX);
}

#[tokio::test]
async fn more_events_are_requested_when_workers_fall_to_min_demand() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 4, 2);
    for item in 0..20 {
        queue.push(item).await.unwrap();
    }
    control.started(4).await;
    control.release(1);
    control.assert_none_starts().await;
    control.release(1);
    control.started(2).await;
    control.assert_none_starts().await;
}

#[tokio::test]
async fn one_worker_takes_the_events_in_order() {
    let (queue, producer) = queue(QueueOptions::new());
    let (sender, mut seen) = mpsc::channel(100);
    let worker = async move |event: &u64| {
        task::yield_now().await;
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    for item in 0..100 {
        queue.push(item).await.unwrap();
    }
    drop(queue);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    for item in 0..100 {
        assert_eq!(seen.recv().await, Some(item));
    }
}

/// Fails on its first attempts at an event, with an error and a panic in turn.
struct Flaky {
    failures: u32,
    attempts: mpsc::Sender<(u64, u32)>,
}

impl Worker<u64> for Flaky {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        self.attempts.send((*event, context.restarts())).await?;
        match context.restarts() {
            n if n >= self.failures => Ok(()),
            n if n % 2 == 0 => Err(ExitReason::failed("not yet")),
            n => panic!("attempt {n}"),
        }
    }
}

#[tokio::test]
async fn a_transient_worker_is_restarted_with_the_same_event() {
    let (queue, producer) = queue(QueueOptions::new());
    let (attempts, mut seen) = mpsc::channel(100);
    let (telemetry, recorded) = Recorded::new();
    let supervisor = ConsumerSupervisor::new(Flaky { failures: 3, attempts })
        .max_restarts(100, Duration::from_secs(60));
    let mut pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    drop(queue);
    let report = pipeline.join().await;
    assert_eq!((report.unprocessed(), report.failure().is_none()), (0, true));
    for event in [1, 2] {
        for restarts in 0..=3 {
            assert_eq!(seen.recv().await, Some((event, restarts)), "in the same slot");
        }
    }
    assert_eq!(recorded.samples("pipeline.worker.process_time").len(), 8, "one per attempt");
}

#[tokio::test]
async fn a_temporary_worker_is_not_restarted() {
    let (queue, producer) = queue(QueueOptions::new());
    let (attempts, mut seen) = mpsc::channel(100);
    let supervisor =
        ConsumerSupervisor::new(Flaky { failures: 1, attempts }).restart(Restart::Temporary);
    let mut pipeline = supervised(producer, supervisor, 1, 0);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    drop(queue);
    assert!(pipeline.join().await.failure().is_none());
    assert_eq!([seen.recv().await, seen.recv().await], [Some((1, 0)), Some((2, 0))]);
    assert_eq!(seen.recv().await, None);
}

#[tokio::test]
async fn too_many_restarts_stop_the_supervisor_and_its_pipeline() {
    let (queue, producer) = queue(QueueOptions::new());
    let (attempts, mut seen) = mpsc::channel(100);
    let supervisor = ConsumerSupervisor::new(Flaky { failures: 9, attempts })
        .max_restarts(2, Duration::from_secs(60));
    let mut pipeline = supervised(producer, supervisor, 1, 0);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    let report = pipeline.join().await;
    let reasons: Vec<_> = report.stages.iter().map(|stage| stage.reason.to_string()).collect();
    let failure = "failed: too many restarts of workers, the last one failed: not yet";
    assert_eq!(reasons, [failure, "shutdown"]);
    assert_eq!(report.unprocessed(), 2, "{report}");
    for restarts in 0..=2 {
        assert_eq!(seen.recv().await, Some((1, restarts)));
    }
    assert_eq!(seen.recv().await, None);
    assert!(queue.is_closed());
}

#[tokio::test(start_paused = true)]
async fn process_time_is_measured_in_milliseconds_with_fractions() {
    let (queue, producer) = queue(QueueOptions::new());
    let (telemetry, recorded) = Recorded::new();
    let worker = async |_: &u64| {
        tokio::time::sleep(Duration::from_micros(7_250_000)).await;
        Ok(())
    };
    let mut pipeline = Pipeline::builder("test")
        .telemetry(telemetry)
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    queue.push(1).await.unwrap();
    drop(queue);
    pipeline.join().await;
    let samples = recorded.samples("pipeline.worker.process_time");
    assert!(matches!(samples[..], [ms] if (7250.0..7252.0).contains(&ms)), "{samples:?}");
}

/// Records its tasks. The events up to 99, of more than a hundred, complete at once.
struct Noting {
    tasks: Arc<Mutex<HashSet<task::Id>>>,
    meeting: Barrier,
    done: Arc<AtomicU64>,
}

impl Noting {
    fn new() -> Self {
        Self { tasks: Arc::default(), meeting: Barrier::new(2), done: Arc::default() }
    }
}

impl Worker<u64> for Noting {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        self.tasks.lock().insert(task::id());
        match event {
            80 if context.restarts() == 0 => return Err(ExitReason::failed("not yet")),
            90 if context.restarts() == 0 => panic!("on purpose"),
            // These children wait for each other.
            100.. => {
                self.meeting.wait().await;
            }
            _ => {}
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn children_after_many_brief_ones_still_wait_fail_and_panic_on_their_own() {
    let worker = Noting::new();
    let (tasks, done) = (worker.tasks.clone(), worker.done.clone());
    let mut pipeline = Pipeline::builder("jobs")
        .producer(from_iter(0..102))
        .consumer_supervisor(
            ConsumerSupervisor::new(worker),
            SubscribeOptions::new().max_demand(10),
        )
        .start()
        .unwrap();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(done.load(Ordering::Relaxed), 102);
    assert!(tasks.lock().len() < 70, "some children must run without a task");
}

#[tokio::test(start_paused = true)]
async fn with_always_spawn_each_child_gets_a_task() {
    let worker = Noting::new();
    let tasks = worker.tasks.clone();
    let supervisor = ConsumerSupervisor::new(worker).always_spawn();
    let mut pipeline = Pipeline::builder("jobs")
        .producer(from_iter(0..102))
        .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(10))
        .start()
        .unwrap();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    assert_eq!(tasks.lock().len(), 104, "two were restarted");
}

#[tokio::test(start_paused = true)]
async fn slots_of_children_that_complete_at_once_are_requested_together() {
    let (producer, script) = scripted();
    let worker = ConsumerSupervisor::new(async |_: &u64| Ok(()));
    let options = SubscribeOptions::new().max_demand(10).min_demand(6);
    let _pipeline = Pipeline::builder("jobs")
        .producer(producer)
        .consumer_supervisor(worker, options)
        .start()
        .unwrap();
    settle().await;
    assert_eq!(script.demands(), [10]);
    for _ in 0..30 {
        script.emit([1, 2, 3]).await;
        settle().await;
        assert_eq!(script.demands(), [0; 0]);
        script.emit([4]).await;
        settle().await;
        assert_eq!(script.demands(), [4], "four slots are free");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_stopping_ends_when_the_supervisor_is_gone() {
    struct Passing(mpsc::Sender<ChildContext>);
    impl Worker<u64> for Passing {
        async fn run(&self, _: &u64, context: ChildContext) -> Result<(), ExitReason> {
            self.0.try_send(context).map_err(|_| ExitReason::failed("the receiver is gone"))
        }
    }
    let (sender, mut contexts) = mpsc::channel(1);
    let pipeline = Pipeline::builder("jobs")
        .producer(from_iter([1]))
        .consumer_supervisor(ConsumerSupervisor::new(Passing(sender)), SubscribeOptions::new())
        .start()
        .unwrap();
    let context = contexts.recv().await.unwrap();
    drop(pipeline);
    context.stopping().await;
}

/// Cannot reserve anything for the event 3, nor tell whether its reservations are used.
struct Unreserved(Arc<AtomicU64>);

impl Worker<u64> for Unreserved {
    fn reserve(&self, event: &u64) -> Option<Reserved> {
        assert!(*event != 3, "a bug at 3");
        Some(Arc::new(*event))
    }

    fn poll_reserved(&self, _: &mut Context<'_>) -> Poll<()> {
        panic!("a bug")
    }

    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        assert_eq!(context.reserved::<u64>(), Some(event));
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserve_that_panics_gives_its_event_up_and_poll_reserved_stops_no_children() {
    const EVENTS: u64 = 200;
    let done = Arc::new(AtomicU64::new(0));
    let supervisor = ConsumerSupervisor::new(Unreserved(done.clone()));
    let mut pipeline = supervised(from_iter(0..EVENTS), supervisor, 10, 5);
    let report = pipeline.join().await;
    assert_eq!(done.load(Ordering::Relaxed), EVENTS - 1, "{report}");
    let seen = (report.stages[1].given_up, report.unprocessed(), report.failure().is_none());
    assert_eq!(seen, (1, 0, true), "{report}");
}
