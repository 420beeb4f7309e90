//! The time limit of a supervisor's workers.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Pipeline,
    backoff::{Backoff, Jitter},
    report::PipelineReport,
    source::from_iter,
    subscription::SubscribeOptions,
    supervisor::{ChildContext, ConsumerSupervisor, TimedOut, Worker},
};
use tokio::{
    task::coop,
    time::{Instant, sleep, timeout},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Runs the events 0 to `events` with this supervisor, and `children` at once.
async fn run<W: Worker<u64>>(
    supervisor: ConsumerSupervisor<u64, W>,
    events: u64,
    children: usize,
) -> PipelineReport {
    let mut pipeline = Pipeline::builder("test")
        .producer(from_iter(0..events))
        .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(children))
        .start()
        .unwrap();
    timeout(LONG, pipeline.join()).await.expect("no worker holds up the others")
}

type GivenUp = Arc<Mutex<Vec<(u64, String)>>>;

/// What a supervisor gives up, with the reason.
fn given_up() -> (GivenUp, impl FnMut(u64, ExitReason) + Send + 'static) {
    let given_up = GivenUp::default();
    let kept = given_up.clone();
    (given_up, move |n, reason: ExitReason| {
        let error = reason.source().and_then(|error| error.downcast_ref::<TimedOut>());
        assert_eq!(error.map(TimedOut::within), Some(ms(50)));
        kept.lock().push((n, reason.to_string()));
    })
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_takes_too_long_has_failed_and_its_place_is_free() {
    let since = Instant::now();
    let (lost, on_given_up) = given_up();
    let handled = Arc::new(Mutex::new(Vec::new()));
    let seen = handled.clone();
    let worker = async move |n: &u64| {
        if *n < 2 {
            pending::<()>().await;
        }
        seen.lock().push((*n, since.elapsed().as_millis()));
        Ok(())
    };
    let supervisor = ConsumerSupervisor::new(worker)
        .run_within(ms(50))
        .tries(1)
        .always_spawn()
        .on_given_up(on_given_up);
    let report = run(supervisor, 4, 2).await;
    assert_eq!(report.stages[1].given_up, 2);
    let late = || "failed: a worker took longer than 50ms".to_owned();
    assert_eq!(*lost.lock(), [(0, late()), (1, late())]);
    assert_eq!(*handled.lock(), [(2, 50), (3, 50)]);
}

#[tokio::test(start_paused = true)]
async fn each_try_has_the_limit_and_one_in_time_is_no_failure() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    // The third try of each event takes less than the limit, the sleeps of a try together too.
    let worker = async move |_: &u64| {
        let shorter = counted.fetch_add(1, SeqCst) >= 2;
        for _ in 0..3 {
            sleep(if shorter { ms(15) } else { ms(20) }).await;
        }
        Ok(())
    };
    let supervisor = ConsumerSupervisor::new(worker)
        .run_within(ms(50))
        .backoff(Backoff::new(ms(10), ms(10)).jitter(Jitter::None));
    let since = Instant::now();
    let report = run(supervisor, 1, 1).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.stages[1].given_up, 0);
    assert_eq!(tries.load(SeqCst), 3);
    assert_eq!(since.elapsed().as_millis(), 50 + 10 + 50 + 10 + 45);
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_worker_for_its_turn_is_not_counted() {
    struct WaitsForTurn;

    impl Worker<u64> for WaitsForTurn {
        async fn run(&self, n: &u64, context: ChildContext) -> Result<(), ExitReason> {
            sleep(ms(20)).await;
            context.place().without_limit(sleep(LONG / 2)).await;
            sleep(ms(if *n == 0 { 20 } else { 40 })).await;
            Ok(())
        }
    }

    for may_leave in [false, true] {
        let (lost, on_given_up) = given_up();
        let supervisor = ConsumerSupervisor::<u64, _>::new(WaitsForTurn)
            .run_within(ms(50))
            .tries(1)
            .on_given_up(on_given_up);
        let supervisor = if may_leave { supervisor.may_leave() } else { supervisor };
        let report = run(supervisor, 2, 2).await;
        assert_eq!(report.stages[1].given_up, 1);
        assert_eq!(*lost.lock(), [(1, "failed: a worker took longer than 50ms".to_owned())]);
    }
}

#[tokio::test]
async fn a_worker_that_never_waits_for_long_is_limited_too() {
    let (lost, on_given_up) = given_up();
    // It always uses up its turn.
    let worker = async |_: &u64| loop {
        coop::consume_budget().await;
    };
    let supervisor = ConsumerSupervisor::<u64, _>::new(worker)
        .run_within(ms(50))
        .tries(1)
        .on_given_up(on_given_up);
    run(supervisor, 2, 1).await;
    assert_eq!(lost.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_next_event_of_a_key_begins_when_the_time_is_over() {
    let since = Instant::now();
    let begun = Arc::new(Mutex::new(Vec::new()));
    let seen = begun.clone();
    let worker = async move |n: &u64| {
        seen.lock().push((*n, since.elapsed().as_millis()));
        if *n == 0 { pending().await } else { Ok(()) }
    };
    let (_, on_given_up) = given_up();
    let supervisor = ConsumerSupervisor::new(worker)
        .ordered_by_key(|n: &u64| n % 2)
        .run_within(ms(50))
        .tries(1)
        .on_given_up(on_given_up);
    run(supervisor, 4, 10).await;
    assert_eq!(*begun.lock(), [(0, 0), (1, 0), (3, 0), (2, 50)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_are_counted_once_on_many_threads() {
    const EVENTS: u64 = 2000;
    let handled = Arc::new(AtomicUsize::new(0));
    let seen = handled.clone();
    // One in ten never returns, others return at once, and others about when their time is over.
    let worker = async move |n: &u64| {
        match n % 10 {
            0 => pending().await,
            1 => sleep(ms(50)).await,
            2 => sleep(ms(n % 7)).await,
            _ => {}
        }
        seen.fetch_add(1, SeqCst);
        Ok(())
    };
    let (lost, on_given_up) = given_up();
    let supervisor = ConsumerSupervisor::<u64, _>::new(worker)
        .run_within(ms(50))
        .tries(1)
        .on_given_up(on_given_up);
    let report = run(supervisor, EVENTS, 100).await;
    assert_eq!(report.unprocessed(), 0);
    let lost = lost.lock().len();
    assert_eq!(report.stages[1].given_up, lost);
    assert!(lost >= 200, "{lost} were given up");
    // A worker that returned in the moment in which its time was over counts as done or as failed, not both.
    assert_eq!(handled.load(SeqCst) + lost, 2000);
}
