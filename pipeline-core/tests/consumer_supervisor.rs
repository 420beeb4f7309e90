//! The consumer supervisor: how many workers live at once, and what happens when one fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipeline_core::{
    ChildContext, ConsumerSupervisor, ExitReason, Pipeline, QueueOptions, Restart,
    SubscribeOptions, Worker, queue,
};
use pipeline_test_support::{Recorded, gate};
use support::supervised;
use tokio::sync::mpsc;

#[tokio::test]
async fn exactly_max_demand_workers_live_at_once() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut keeper) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 5, 4);
    for item in 0..20 {
        queue.push(item).await.unwrap();
    }
    let mut started = keeper.started(5).await;
    keeper.assert_none_starts().await;
    while started.len() < 20 {
        keeper.let_go(1);
        started.extend(keeper.started(1).await);
        if started.len() < 20 {
            keeper.assert_none_starts().await;
        }
    }
    started.sort_unstable();
    assert_eq!(started, Vec::from_iter(0..20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_bound_holds_on_many_threads() {
    const MAX: usize = 7;
    let (queue, producer) = queue(QueueOptions::new());
    let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (alive_now, most_seen) = (alive.clone(), most.clone());
    let worker = async move |_event: &u64| {
        most_seen.fetch_max(alive_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        alive_now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), MAX, MAX - 1);
    for item in 0..5_000 {
        queue.push(item).await.unwrap();
    }
    drop(queue);
    assert_eq!(pipeline.ended().await.left_undone(), 0);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert_eq!(most.load(Ordering::SeqCst), MAX);
}

#[tokio::test]
async fn more_is_asked_for_when_workers_fall_to_min_demand() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut keeper) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let _pipeline = supervised(producer, ConsumerSupervisor::new(worker), 4, 2);
    for item in 0..20 {
        queue.push(item).await.unwrap();
    }
    keeper.started(4).await;
    keeper.let_go(1);
    keeper.assert_none_starts().await;
    keeper.let_go(1);
    keeper.started(2).await;
    keeper.assert_none_starts().await;
}

#[tokio::test]
async fn one_worker_takes_the_events_in_order() {
    let (queue, producer) = queue(QueueOptions::new());
    let (sender, mut seen) = mpsc::channel(100);
    let worker = async move |event: &u64| {
        tokio::task::yield_now().await;
        sender.send(*event).await?;
        Ok(())
    };
    let mut pipeline = supervised(producer, ConsumerSupervisor::new(worker), 1, 0);
    for item in 0..100 {
        queue.push(item).await.unwrap();
    }
    drop(queue);
    assert_eq!(pipeline.ended().await.left_undone(), 0);
    for item in 0..100 {
        assert_eq!(seen.recv().await, Some(item));
    }
}

/// Fails for the first attempts at an event, by an error and by a panic in turn.
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
async fn a_transient_worker_is_started_again_with_the_same_event() {
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
    let report = pipeline.ended().await;
    assert_eq!((report.left_undone(), report.failure().is_none()), (0, true));
    for event in [1, 2] {
        for restarts in 0..=3 {
            assert_eq!(seen.recv().await, Some((event, restarts)), "in the same slot");
        }
    }
    assert_eq!(recorded.samples("pipeline.worker.process_time").len(), 8, "one per attempt");
}

#[tokio::test]
async fn a_temporary_worker_is_not_started_again() {
    let (queue, producer) = queue(QueueOptions::new());
    let (attempts, mut seen) = mpsc::channel(100);
    let supervisor =
        ConsumerSupervisor::new(Flaky { failures: 1, attempts }).restart(Restart::Temporary);
    let mut pipeline = supervised(producer, supervisor, 1, 0);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    drop(queue);
    assert!(pipeline.ended().await.failure().is_none());
    assert_eq!([seen.recv().await, seen.recv().await], [Some((1, 0)), Some((2, 0))]);
    assert_eq!(seen.recv().await, None);
}

#[tokio::test]
async fn too_many_restarts_stop_the_supervisor_and_with_it_the_pipeline() {
    let (queue, producer) = queue(QueueOptions::new());
    let (attempts, mut seen) = mpsc::channel(100);
    let supervisor = ConsumerSupervisor::new(Flaky { failures: 9, attempts })
        .max_restarts(2, Duration::from_secs(60));
    let mut pipeline = supervised(producer, supervisor, 1, 0);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    let report = pipeline.ended().await;
    assert!(report.stages.iter().all(|stage| matches!(stage.reason, ExitReason::Shutdown)));
    assert_eq!(report.left_undone(), 2, "{report}");
    for restarts in 0..=2 {
        assert_eq!(seen.recv().await, Some((1, restarts)));
    }
    assert_eq!(seen.recv().await, None);
    assert!(queue.is_closed());
}

#[tokio::test]
async fn process_time_is_measured_in_milliseconds_with_fractions() {
    tokio::time::pause();
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
    pipeline.ended().await;
    let samples = recorded.samples("pipeline.worker.process_time");
    assert!(matches!(samples[..], [ms] if (7250.0..7252.0).contains(&ms)), "{samples:?}");
}
