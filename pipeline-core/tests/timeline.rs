//! Timelines of items, as their workers see them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::Duration;

use pipeline_core::{
    ExitReason, Pipeline,
    source::{FairQueueOptions, QueueOptions, QueueProducer, queue, timed_fair_queue, timed_queue},
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, Worker},
    timed::{Timed, Timeline, TraceContext},
};
use pipeline_test_support::Log;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task,
    time::{Instant, advance, sleep},
};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Records the timelines of its items, each at the beginning and after waiting.
#[derive(Clone)]
struct RecordsTimelines {
    seen: Sender<[Timeline; 2]>,
    takes: Duration,
}

impl RecordsTimelines {
    fn new(takes: Duration) -> (Self, Receiver<[Timeline; 2]>) {
        let (seen, timelines) = channel(1000);
        (Self { seen, takes }, timelines)
    }
}

impl Worker<Timed<u64>> for RecordsTimelines {
    async fn run(&self, item: &Timed<u64>, context: ChildContext) -> Result<(), ExitReason> {
        let first = item.timeline();
        if !self.takes.is_zero() {
            sleep(self.takes).await;
        }
        let _ = self.seen.try_send([first, item.timeline()]);
        // The number says how often it fails first.
        if u64::from(context.restarts()) < **item {
            Err(ExitReason::failed("not yet"))
        } else {
            Ok(())
        }
    }
}

/// The timeline that a worker sees for an item of a queue.
async fn of_one<Q>(queue: Q, producer: QueueProducer<Timed<u64>>) -> Timeline {
    let (worker, mut seen) = RecordsTimelines::new(ms(0));
    let mut pipeline = Pipeline::builder("one")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    drop(queue);
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    seen.recv().await.unwrap()[0]
}

#[tokio::test(start_paused = true)]
async fn every_leg_of_the_way_is_measured_separately() {
    let (queue, producer) = timed_queue(QueueOptions::new());
    for _ in 0..3 {
        queue.push_timed(0).await.unwrap();
    }
    advance(ms(1000)).await;
    let (worker, mut seen) = RecordsTimelines::new(ms(100));
    let supervisor = ConsumerSupervisor::new(worker).max_children(1);
    let _pipeline = Pipeline::builder("legs")
        .producer(producer)
        .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(2).min_demand(1))
        .start()
        .unwrap();
    // The second item leaves the queue with the first, and waits until that is done. Then the third
    // leaves.
    for (queued, waited) in [(1000, 0), (1000, 100), (1100, 100)] {
        let [timeline, after] = seen.recv().await.unwrap();
        assert_eq!(timeline, after, "the timeline must not change while the worker waits");
        assert_eq!(timeline.queue_time(), Some(ms(queued)));
        assert_eq!(timeline.dispatch_time(), Some(ms(waited)));
        assert_eq!(timeline.work_time(Instant::now()), Some(ms(100)));
    }
}

#[tokio::test]
async fn every_worker_knows_its_own_start_wherever_it_runs() {
    const MANY: usize = 1000;
    // First in tasks, then in the supervisor's task, because they are brief.
    let (queue, producer) = timed_queue(QueueOptions::new());
    let (worker, mut seen) = RecordsTimelines::new(ms(0));
    let _pipeline = Pipeline::builder("many")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    let mut last = Instant::now();
    for _ in 0..MANY {
        queue.push_timed(0).await.unwrap();
        let [timeline, _] = seen.recv().await.unwrap();
        assert!(timeline.enqueued_at() >= last);
        assert!(timeline.dequeued_at().unwrap() >= timeline.enqueued_at());
        last = timeline.started_at().unwrap();
        assert!(last >= timeline.dequeued_at().unwrap() && last <= Instant::now());
        assert_eq!(Timed::now(()).timeline().started_at(), None, "the test is no worker");
    }
}

#[tokio::test]
async fn a_task_spawned_by_a_worker_is_no_worker() {
    let (queue, producer) = timed_queue(QueueOptions::new());
    let (times, mut received) = channel(1000);
    let worker = async move |item: &Timed<u64>| {
        let copy = *item;
        let spawned = task::spawn(async move { copy.timeline() }).await.unwrap();
        let _ = times.try_send((item.timeline(), spawned));
        Ok(())
    };
    let _pipeline = Pipeline::builder("spawning")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    queue.push_timed(0).await.unwrap();
    let (own, spawned) = received.recv().await.unwrap();
    assert!(own.started_at().is_some());
    assert_eq!(spawned.dequeued_at(), own.dequeued_at());
    assert_eq!(spawned.started_at(), None);
}

#[tokio::test(start_paused = true)]
async fn a_retried_item_has_waited_until_its_restart() {
    let (queue, producer) = timed_queue(QueueOptions::new());
    let (worker, mut seen) = RecordsTimelines::new(ms(100));
    // It is retried at once.
    let supervisor = ConsumerSupervisor::new(worker).max_restarts(3, ms(5000));
    let _pipeline = Pipeline::builder("failing")
        .producer(producer)
        .consumer_supervisor(supervisor, SubscribeOptions::new())
        .start()
        .unwrap();
    queue.push_timed(2).await.unwrap();
    for waited in [0, 100, 200] {
        let [timeline, _] = seen.recv().await.unwrap();
        assert_eq!(timeline.dispatch_time(), Some(ms(waited)));
    }
}

#[tokio::test(start_paused = true)]
async fn timed_queues_record_when_an_item_leaves() {
    let (timed, timed_producer) = timed_queue(QueueOptions::new());
    // A plain queue does not.
    let (plain, plain_producer) = queue(QueueOptions::new());
    timed.try_push(Timed::now(0)).unwrap();
    plain.try_push(Timed::now(0)).unwrap();
    advance(ms(7)).await;
    assert_eq!(of_one(timed, timed_producer).await.queue_time(), Some(ms(7)));
    let timeline = of_one(plain, plain_producer).await;
    assert_eq!((timeline.queue_time(), timeline.dispatch_time()), (None, None));
    assert!(timeline.started_at().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_timed_fair_queue_records_when_an_item_leaves() {
    for by_push_timed in [true, false] {
        let (queue, producer) = timed_fair_queue(FairQueueOptions::new());
        if by_push_timed {
            queue.push_timed("ada", 0).await.unwrap();
        } else {
            queue.try_push("ada", Timed::now(0)).unwrap();
        }
        advance(ms(7)).await;
        let (worker, mut seen) = RecordsTimelines::new(ms(0));
        let _pipeline = Pipeline::builder("fair")
            .producer(producer)
            .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
            .start()
            .unwrap();
        assert_eq!(seen.recv().await.unwrap()[0].queue_time(), Some(ms(7)));
    }
}

#[tokio::test]
async fn an_item_is_logged_only_if_it_has_a_trace() {
    let (log, _guard) = Log::keep();
    let trace = TraceContext::random();
    let (queue, producer) = timed_queue(QueueOptions::new());
    queue.push(Timed::now(0)).await.unwrap();
    assert_eq!(of_one(queue, producer).await.trace(), None);
    let of_leaving = |log: &Log| {
        let lines = log.take().into_iter();
        lines.filter(|line| line.contains("left the queue")).collect::<Vec<_>>()
    };
    assert!(of_leaving(&log).is_empty());

    let (queue, producer) = timed_queue(QueueOptions::new());
    queue.push(Timed::now(0).with_trace(trace)).await.unwrap();
    assert_eq!(of_one(queue, producer).await.trace(), Some(trace));
    let id = trace.trace_id();
    assert_eq!(of_leaving(&log), [format!("TRACE message=left the queue trace_id={id}")]);
}
