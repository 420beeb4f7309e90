//! Functions that are asked for events.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use pipeline_core::{
    Graph, Pipeline, source::from_poll, stage::EventStream, step::for_each,
    subscription::SubscribeOptions, testkit,
};
use pipeline_test_support::{Log, gate};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

/// What a function was asked for, and when, in milliseconds.
type Asked = Arc<Mutex<Vec<(usize, u128)>>>;

/// Rows that can be taken.
#[derive(Clone, Default)]
struct Table {
    rows: Arc<Mutex<VecDeque<u32>>>,
    asked: Asked,
}

impl Table {
    fn of(rows: std::ops::Range<u32>) -> Self {
        let table = Self::default();
        table.rows.lock().extend(rows);
        table
    }

    fn take(&self, limit: usize, start: Instant) -> Vec<u32> {
        self.asked.lock().push((limit, start.elapsed().as_millis()));
        let mut rows = self.rows.lock();
        let limit = limit.min(rows.len());
        rows.drain(..limit).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn full_answers_are_followed_at_once_and_others_after_the_interval() {
    let (table, start) = (Table::of(0..25), Instant::now());
    let rows = table.clone();
    let rows =
        from_poll(SECOND, async move |limit: usize| Ok::<_, io::Error>(rows.take(limit, start)));
    let (consumer, recording) = testkit::recording();
    let options = SubscribeOptions::new().max_demand(10).min_demand(0);
    let pipeline = Pipeline::builder("test").producer(rows).consumer(consumer, options).start();
    let pipeline = pipeline.unwrap();
    sleep(Duration::from_millis(2_500)).await;
    table.rows.lock().extend(25..30);
    sleep(SECOND).await;
    assert_eq!(recording.events(), (0..30).collect::<Vec<_>>());
    let asked = table.asked.lock().clone();
    let expected = [(10, 0), (10, 0), (10, 0), (5, 1_000), (5, 2_000), (5, 3_000), (10, 3_000)];
    assert_eq!(asked, expected, "never more than there is demand for");
    assert!(pipeline.drain(SECOND).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn without_demand_the_function_is_not_called() {
    let table = Table::of(0..100);
    let (rows, start) = (table.clone(), Instant::now());
    let rows =
        from_poll(SECOND, async move |limit: usize| Ok::<_, io::Error>(rows.take(limit, start)));
    let (gate, mut control) = gate();
    let slow = for_each(async move |row: u32| gate.pass(u64::from(row)).await);
    let options = SubscribeOptions::new().max_demand(4).min_demand(0);
    let pipeline =
        Pipeline::builder("test").producer(rows).consumer(slow, options).start().unwrap();
    control.started(1).await;
    sleep(60 * SECOND).await;
    assert_eq!(table.asked.lock().len(), 1);
    control.release(4);
    control.started(4).await;
    assert_eq!(table.asked.lock().len(), 2);
    control.release(100);
    drop(pipeline);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_logged_and_the_function_is_called_again_later_and_later() {
    let (log, _guard) = Log::keep();
    let calls = Arc::new(AtomicUsize::new(0));
    let (count, start) = (calls.clone(), Instant::now());
    let flaky = from_poll(SECOND, async move |_: usize| match count.fetch_add(1, SeqCst) {
        0..5 => Err("the database is away"),
        5 => Ok(vec![start.elapsed()]),
        _ => Ok(Vec::new()),
    });
    let (consumer, recording) = testkit::recording();
    let pipeline = Pipeline::builder("test")
        .producer(flaky)
        .consumer(consumer, SubscribeOptions::new())
        .start()
        .unwrap();
    sleep(60 * SECOND).await;
    // 1, 2, 4, 8 and 16 s, each shortened by half at most.
    let [late] = recording.events()[..] else { panic!("one event") };
    assert!(late >= Duration::from_millis(15_500) && late <= 32 * SECOND, "{late:?}");
    let lines = log.take();
    let warned = lines.iter().filter(|line| line.contains("polling failed")).count();
    assert_eq!(warned, 5, "{lines:?}");
    assert!(pipeline.drain(SECOND).await.is_clean());
}

/// A query that deletes what it returns must not be dropped half way.
#[tokio::test(start_paused = true)]
async fn demand_and_a_drain_do_not_drop_a_call_that_has_begun() {
    let (permits, taken) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits, calls) = (permits.clone(), taken.clone());
    let slow = from_poll(SECOND, async move |limit: usize| {
        calls.fetch_add(1, SeqCst);
        waits.acquire().await.unwrap().forget();
        Ok::<_, io::Error>(vec![7_u32; limit])
    });
    let (consumer, recording) = testkit::recording();
    let pipeline = Pipeline::builder("test")
        .producer(slow)
        .consumer(consumer, SubscribeOptions::new().max_demand(3))
        .start()
        .unwrap();
    sleep(10 * SECOND).await;
    let draining = tokio::spawn(pipeline.drain(60 * SECOND));
    sleep(10 * SECOND).await;
    assert_eq!((taken.load(SeqCst), recording.events().len()), (1, 0));
    permits.add_permits(1);
    let report = draining.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(recording.events(), [7; 3]);
    assert_eq!(taken.load(SeqCst), 1, "a drain asks for nothing new");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_call_whose_consumer_has_left() {
    let (permits, called) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits, calls) = (permits.clone(), called.clone());
    let rows = from_poll(SECOND, async move |limit: usize| {
        calls.fetch_add(1, SeqCst);
        waits.acquire().await.unwrap().forget();
        Ok::<_, io::Error>(vec![7_u32; limit])
    });
    let mut graph = Graph::new("test");
    let rows = graph.producer("rows", rows);
    let pipeline = graph.start().unwrap();
    let mut consumer = EventStream::new();
    consumer.subscribe(&rows, SubscribeOptions::new().max_demand(3)).unwrap();
    assert!(timeout(SECOND, consumer.next()).await.is_err());
    assert_eq!(called.load(SeqCst), 1);
    drop(consumer);
    let draining = tokio::spawn(pipeline.drain(60 * SECOND));
    sleep(10 * SECOND).await;
    permits.add_permits(1);
    let report = draining.await.unwrap();
    assert_eq!(report.unprocessed(), 3, "they are not forgotten: {report}");
}

#[tokio::test(start_paused = true)]
async fn a_call_continues_when_its_consumer_has_left_and_the_next_one_gets_what_it_returns() {
    let (permits, returned) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits, returns) = (permits.clone(), returned.clone());
    let rows = from_poll(SECOND, async move |limit: usize| {
        waits.acquire().await.unwrap().forget();
        returns.fetch_add(1, SeqCst);
        Ok::<_, io::Error>(vec![7_u32; limit])
    });
    let mut graph = Graph::new("test");
    let rows = graph.producer("rows", rows);
    let pipeline = graph.start().unwrap();
    let subscribe = || {
        let mut consumer = EventStream::new();
        consumer.subscribe(&rows, SubscribeOptions::new().max_demand(3)).unwrap();
        consumer
    };
    let mut consumer = subscribe();
    assert!(timeout(SECOND, consumer.next()).await.is_err());
    drop(consumer);
    sleep(SECOND).await;
    permits.add_permits(1);
    sleep(SECOND).await;
    assert_eq!(returned.load(SeqCst), 1, "nothing stands still");
    let mut consumer = subscribe();
    for _ in 0..3 {
        assert_eq!(timeout(SECOND, consumer.next()).await.unwrap().unwrap().unwrap(), 7);
    }
    drop(consumer);
    assert!(pipeline.drain(SECOND).await.is_clean());
}

/// A stage that fails during the drain stops the others. The call never returns.
#[tokio::test(start_paused = true)]
async fn a_stop_during_a_drain_does_not_wait_for_a_call() {
    let (called, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (calls, waits) = (called.clone(), fails.clone());
    let rows = from_poll(SECOND, async move |_: usize| {
        if calls.fetch_add(1, SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        Ok::<_, io::Error>(vec![7_u32])
    });
    let failing = for_each(async move |_: u32| {
        waits.acquire().await.unwrap().forget();
        assert!(waits.is_closed(), "it fails");
    });
    let pipeline = Pipeline::builder("test")
        .producer(rows)
        .consumer(failing, SubscribeOptions::new().max_demand(3))
        .stop_within(600 * SECOND)
        .start()
        .unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(called.load(SeqCst), 2);
    let draining = tokio::spawn(pipeline.drain(3600 * SECOND));
    sleep(10 * SECOND).await;
    let begun = Instant::now();
    fails.add_permits(1);
    assert!(!draining.await.unwrap().is_clean());
    assert!(begun.elapsed() < 60 * SECOND, "{:?}", begun.elapsed());
}

#[test]
#[should_panic = "the interval of a function that is polled must be longer than 0"]
fn an_interval_of_0_is_refused() {
    let _ = from_poll(Duration::ZERO, async |_: usize| Ok::<Vec<u32>, io::Error>(Vec::new()));
}
