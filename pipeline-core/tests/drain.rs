//! The end of a pipeline: gracefully, at its deadline, and when it is dropped.

mod support;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipeline_core::{
    ExitReason, Pipeline,
    source::{Closed, QueueOptions, queue},
    step::{for_each, map},
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Worker},
};
use pipeline_test_support::{gate, settle};
use support::supervised;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn draining_processes_accepted_items_and_takes_no_more() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = supervised(producer, ConsumerSupervisor::new(worker), 2, 1);
    for item in 0..10 {
        queue.push(item).await.unwrap();
    }
    control.started(2).await;
    let draining = tokio::spawn(pipeline.drain(LONG));
    while !queue.is_closed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(queue.push(10).await, Err(Closed(10)));
    control.release(10);
    assert_eq!(control.started(8).await, Vec::from_iter(2..10));
    let report = draining.await.unwrap();
    assert!(report.completed);
    assert_eq!(report.unprocessed(), 0);
    assert_eq!(
        report.to_string().split(';').next(),
        Some("pipeline test ended, no unprocessed events")
    );
}

#[tokio::test]
async fn a_drained_pipeline_shows_no_events_that_wait() {
    // With this demand, the mapping stage has a message in its buffer when it ends.
    for max_demand in 1..5 {
        let demand = |events: usize| SubscribeOptions::new().max_demand(events).min_demand(0);
        let (queue, producer) = queue(QueueOptions::new());
        let pipeline = Pipeline::builder("test")
            .producer(producer)
            .producer_consumer(map(|n: u64| n), demand(40))
            .consumer(for_each(async |_: u64| tokio::task::yield_now().await), demand(max_demand))
            .start()
            .unwrap();
        for item in 0..100 {
            queue.push(item).await.unwrap();
        }
        let observer = pipeline.observer();
        let report = pipeline.drain(LONG).await;
        assert_eq!(report.unprocessed(), 0, "max_demand {max_demand}: {report}");
        for stage in observer.snapshot().stages {
            let waiting = (stage.queued, stage.waiting, stage.buffered);
            assert_eq!(waiting, (0, 0, 0), "max_demand {max_demand}, stage {}", stage.stage);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unprocessed_events_at_the_deadline_are_counted_exactly() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = supervised(producer, ConsumerSupervisor::new(worker), 3, 2);
    for item in 0..10 {
        queue.push(item).await.unwrap();
    }
    control.started(3).await;
    let report = pipeline.drain(Duration::from_millis(50)).await;
    assert!(!report.completed);
    let producer = report.stages.iter().find(|stage| &*stage.stage == "producer").unwrap();
    let workers = report.stages.iter().find(|stage| &*stage.stage != "producer").unwrap();
    assert_eq!((producer.pending, producer.in_progress), (7, 0));
    assert_eq!((workers.pending, workers.in_progress), (0, 3));
    assert_eq!(report.unprocessed(), 10);
    let text = report.to_string();
    assert!(
        text.starts_with("pipeline test ended after its deadline, 10 unprocessed events"),
        "{text}"
    );
    assert!(text.contains("producer ended (killed), 7 events pending"), "{text}");
    assert!(text.contains("3 events in progress"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_all_accepted_events_are_done_or_reported() {
    for round in 0..20 {
        let (queue, producer) = queue(QueueOptions::new().capacity(50));
        let done = Arc::new(AtomicUsize::new(0));
        let counter = done.clone();
        let worker = async move |_: &u64| {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let pipeline = supervised(producer, ConsumerSupervisor::new(worker), 10, 5);
        let (accepted, mut accepting) = mpsc::channel::<()>(1);
        let pushers: Vec<_> = (0..4)
            .map(|_| {
                let (queue, accepted) = (queue.clone(), accepted.clone());
                tokio::spawn(async move {
                    let mut count = 0;
                    while queue.push(1u64).await.is_ok() {
                        count += 1;
                        let _ = accepted.try_send(());
                    }
                    count
                })
            })
            .collect();
        accepting.recv().await.unwrap();
        // Sometimes there is no time at all, sometimes enough for some or all events.
        let report = pipeline.drain(Duration::from_micros(round * round * 50)).await;
        let mut accepted = 0;
        for pusher in pushers {
            accepted += pusher.await.unwrap();
        }
        assert_eq!(accepted, done.load(Ordering::SeqCst) + report.unprocessed(), "{report}");
    }
}

/// Counts the running workers.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn dropping_a_pipeline_ends_its_stages_and_workers() {
    let (queue, producer) = queue(QueueOptions::new());
    let alive = Arc::new(AtomicUsize::new(0));
    let (gate, mut control) = gate();
    let counter = alive.clone();
    let worker = async move |event: &u64| {
        let _alive = Alive::new(&counter);
        gate.pass(*event).await
    };
    let pipeline = supervised(producer, ConsumerSupervisor::new(worker), 3, 0);
    for item in 0..10 {
        queue.push(item).await.unwrap();
    }
    control.started(3).await;
    assert_eq!(alive.load(Ordering::SeqCst), 3);
    drop(pipeline);
    while alive.load(Ordering::SeqCst) > 0 || !queue.is_closed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(queue.len(), 7);
}

/// Ends when it is notified to stop, or never.
struct EndsOnRequest(mpsc::Sender<u64>);

impl Worker<u64> for EndsOnRequest {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        self.0.send(*event).await?;
        if *event == 0 {
            return Err(ExitReason::failed("enough"));
        }
        context.stopping().await;
        self.0.send(100 + *event).await?;
        if *event == 1 { Ok(()) } else { pending().await }
    }
}

#[tokio::test(start_paused = true)]
async fn workers_are_notified_to_stop_and_dropped_if_they_do_not() {
    let (queue, producer) = queue(QueueOptions::new());
    let (started, mut starting) = mpsc::channel(9);
    let supervisor = ConsumerSupervisor::new(EndsOnRequest(started))
        .max_restarts(0, LONG)
        .shutdown(Duration::from_secs(30));
    let mut pipeline = supervised(producer, supervisor, 3, 0);
    queue.push(1).await.unwrap();
    queue.push(2).await.unwrap();
    assert_eq!([starting.recv().await, starting.recv().await], [Some(1), Some(2)]);
    settle().await;
    assert!(starting.try_recv().is_err(), "the workers were not notified to stop");
    queue.push(0).await.unwrap();
    let report = pipeline.join().await;
    assert_eq!(starting.recv().await, Some(0));
    let mut notified = [starting.recv().await, starting.recv().await];
    notified.sort_unstable();
    assert_eq!(notified, [Some(101), Some(102)]);
    let workers = report.stages.iter().find(|stage| stage.in_progress > 0).unwrap();
    assert!(workers.reason.to_string().contains("too many restarts"), "{report}");
    assert_eq!(
        workers.in_progress, 2,
        "the failed worker and the one that ignored the notification"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_cut_short_reports_the_rest() {
    const DAY: Duration = Duration::from_secs(86_400);
    let (queue, producer) = queue(QueueOptions::new());
    let stuck = ConsumerSupervisor::new(async |_: &u64| pending().await);
    let mut pipeline = Pipeline::builder("jobs")
        .producer(producer)
        .consumer_supervisor(stuck, SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    for n in 0..3 {
        queue.push(n).await.unwrap();
    }
    pipeline.begin_drain(DAY);
    // A later call does not give it more time.
    pipeline.begin_drain(Duration::MAX);
    assert!(timeout(DAY / 2, pipeline.join()).await.is_err(), "a worker is stuck");
    assert!(queue.is_closed());
    let began = Instant::now();
    pipeline.begin_drain(Duration::ZERO);
    let report = pipeline.join().await;
    assert!(began.elapsed() < DAY / 4, "it took {:?}", began.elapsed());
    let in_progress: usize = report.stages.iter().map(|stage| stage.in_progress).sum();
    assert_eq!((in_progress, report.unprocessed()), (1, 3), "{report}");
    assert!(!report.completed && !report.is_clean());
}
