//! A consumer supervisor that has one event of a key in work at a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    collections::HashSet,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    backoff::{Backoff, Jitter},
    snapshot::Activity,
    source::{QueueOptions, from_iter, queue},
    subscription::SubscribeOptions,
    supervisor::{
        Admission, ChildContext, ChildState, ConsumerSupervisor, KeyIsFull, Reserved, Worker,
    },
};
use pipeline_test_support::{Gate, GateControl, gate};
use support::supervised;
use tokio::{
    sync::mpsc,
    task,
    time::{sleep, timeout},
};

const KEYS: usize = 20;

/// The key of an event.
fn hundreds(event: &u64) -> u64 {
    event / 100
}

/// Waits for so many events to begin, in any order.
async fn started(control: &mut GateControl, count: usize) -> Vec<u64> {
    let mut started = control.started(count).await;
    started.sort_unstable();
    started
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_of_a_key_are_handled_one_at_a_time_and_in_order_on_many_threads() {
    // Children in tasks, and brief ones that the supervisor runs itself.
    for yields in [3, 0] {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); KEYS]));
        let busy: Arc<Vec<_>> = Arc::new((0..KEYS).map(|_| AtomicBool::new(false)).collect());
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (log, most_seen) = (seen.clone(), most.clone());
        let worker = async move |(key, number): &(usize, u64)| {
            assert!(!busy[*key].swap(true, Ordering::SeqCst), "another of its key is in work");
            most_seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            for _ in 0..yields {
                task::yield_now().await;
            }
            log.lock()[*key].push(*number);
            running.fetch_sub(1, Ordering::SeqCst);
            busy[*key].store(false, Ordering::SeqCst);
            Ok(())
        };
        let events = (0..10_000).map(|n| (usize::try_from(n * n % 7919).unwrap() % KEYS, n));
        let supervisor =
            ConsumerSupervisor::new(worker).tries(1).ordered_by_key(|(key, _): &(usize, u64)| *key);
        let mut pipeline = supervised(from_iter(events), supervisor, 100, 50);
        let report = pipeline.join().await;
        assert_eq!((report.unprocessed(), report.stages[1].given_up), (0, 0));
        let seen = seen.lock();
        assert_eq!(seen.iter().map(Vec::len).sum::<usize>(), 10_000);
        assert!(seen.iter().all(|numbers| numbers.is_sorted()));
        let most = most.load(Ordering::SeqCst);
        assert!(most <= KEYS && (yields == 0 || most > 1), "{most}");
    }
}

/// Leaves its place at once, and waits for the gate.
struct Leaves(Gate);

impl Worker<u64> for Leaves {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        context.place().leave();
        self.0.pass(*event).await
    }
}

#[tokio::test]
async fn children_that_have_left_their_places_delay_no_event_and_are_waited_for() {
    for may_leave in [true, false] {
        let (gate, mut control) = gate();
        let supervisor = ConsumerSupervisor::new(Leaves(gate)).ordered_by_key(hundreds);
        let supervisor = if may_leave { supervisor.may_leave() } else { supervisor };
        let mut pipeline = supervised(from_iter([100, 101, 102, 200, 300, 400]), supervisor, 2, 1);
        if may_leave {
            assert_eq!(started(&mut control, 6).await, [100, 101, 102, 200, 300, 400]);
            // The supervisor learns that they have left, and then has nothing to do.
            let is_idle = async {
                while pipeline.snapshot().stages[1].activity == Activity::Busy {
                    task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), is_idle).await.unwrap();
            assert_eq!(pipeline.snapshot().stages[1].workers, Some(0));
            control.release(6);
        } else {
            // The second waits for its key, and for both places.
            assert_eq!(started(&mut control, 1).await, [100]);
            control.assert_none_starts().await;
            control.release(6);
            assert_eq!(started(&mut control, 5).await, [101, 102, 200, 300, 400]);
        }
        assert_eq!(pipeline.join().await.unprocessed(), 0);
    }
}

/// Works in its place, leaves it, and fails the first time.
#[derive(Clone, Default)]
struct FailsOutside {
    /// The keys in work.
    inside: Arc<Mutex<HashSet<u64>>>,
    most: Arc<AtomicUsize>,
    together: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

impl Worker<u64> for FailsOutside {
    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        let (is_alone, inside) = {
            let mut inside = self.inside.lock();
            (inside.insert(hundreds(event)), inside.len())
        };
        self.together.fetch_add(usize::from(!is_alone), Ordering::SeqCst);
        self.most.fetch_max(inside, Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(5)).await;
        self.inside.lock().remove(&hundreds(event));
        context.place().leave();
        sleep(Duration::from_millis(20)).await;
        if context.restarts() == 0 { Err(ExitReason::failed("not yet")) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_has_left_is_restarted_in_a_place_and_with_its_key() {
    for delay in [1, 7, 100] {
        let worker = FailsOutside::default();
        let delay = Duration::from_millis(delay);
        let supervisor = ConsumerSupervisor::new(worker.clone())
            .ordered_by_key(hundreds)
            .max_children(3)
            .may_leave()
            .tries(3)
            .backoff(Backoff::new(delay, delay).jitter(Jitter::None));
        let events = (0..60).map(|n| n % 6 * 100 + n);
        let mut pipeline = supervised(from_iter(events), supervisor, 10, 5);
        let report = pipeline.join().await;
        assert_eq!((report.unprocessed(), report.stages[1].given_up), (0, 0));
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        assert_eq!((of(&worker.runs), of(&worker.together), of(&worker.most)), (120, 0, 3));
    }
}

/// Leaves its place and fails, except for the first event of a hundred, which waits for ever.
struct Stuck {
    reserves: bool,
}

impl Worker<u64> for Stuck {
    fn reserve(&self, _: &u64) -> Option<Reserved> {
        self.reserves.then(|| Arc::new(()) as Reserved)
    }

    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        if event.is_multiple_of(100) {
            return pending().await;
        }
        context.place().leave();
        Err(ExitReason::failed("as the test wants it"))
    }
}

fn stuck(reserves: bool) -> ConsumerSupervisor<u64, Stuck> {
    let second = Duration::from_secs(1);
    ConsumerSupervisor::new(Stuck { reserves })
        .ordered_by_key(hundreds)
        .max_children(1)
        .may_leave()
        .tries(3)
        .backoff(Backoff::new(second, second).jitter(Jitter::None))
}

/// The first event of a hundred waits for the gate. Others leave their place and fail.
struct IsAsked {
    gate: Gate,
    /// Whether no child is restarted any more.
    refuses: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
}

impl Worker<u64> for IsAsked {
    fn admit(&self, _: &u64, context: &ChildContext) -> Result<Admission, ExitReason> {
        let refuses = context.restarts() > 0 && self.refuses.load(Ordering::SeqCst);
        Ok(if refuses { Admission::Ignore } else { Admission::Run })
    }

    async fn run(&self, event: &u64, context: ChildContext) -> Result<(), ExitReason> {
        if event.is_multiple_of(100) {
            return self.gate.pass(*event).await;
        }
        self.runs.fetch_add(1, Ordering::SeqCst);
        context.place().leave();
        Err(ExitReason::failed("as the test wants it"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_asked_about_a_restart_when_the_child_has_its_place_and_during_a_drain() {
    for refuses in [true, false] {
        let (gate, mut control) = gate();
        let (refused, runs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let second = Duration::from_secs(1);
        let worker = IsAsked { gate, refuses: refused.clone(), runs: runs.clone() };
        let supervisor = ConsumerSupervisor::new(worker)
            .ordered_by_key(hundreds)
            .max_children(1)
            .may_leave()
            .tries(2)
            .backoff(Backoff::new(second, second).jitter(Jitter::None));
        // The child of 101 waits for the only place, and for its key, which 100 has.
        let pipeline = supervised(from_iter([101, 100]), supervisor, 10, 5);
        assert_eq!(started(&mut control, 1).await, [100]);
        sleep(second * 10).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        refused.store(refuses, Ordering::SeqCst);
        let draining = tokio::spawn(pipeline.drain(Duration::from_secs(1000)));
        sleep(second).await;
        control.release(1);
        let report = draining.await.unwrap();
        let expected = if refuses { (1, 0) } else { (2, 1) };
        assert_eq!((runs.load(Ordering::SeqCst), report.stages[1].given_up), expected);
        assert_eq!((report.completed, report.unprocessed()), (true, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_with_a_reservation_is_restarted_without_a_place() {
    let pipeline = supervised(from_iter([101, 300]), stuck(true), 10, 5);
    let second = Duration::from_secs(1);
    sleep(second * 10).await;
    let report = pipeline.drain(second).await;
    assert_eq!((report.stages[1].given_up, report.unprocessed()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_a_place_to_be_restarted_in_can_be_terminated_and_is_counted() {
    let second = Duration::from_secs(1);
    for terminates in [true, false] {
        let supervisor = stuck(false);
        let mut graph = Graph::new("keys");
        let numbers = graph.producer("numbers", from_iter([101, 201, 300, 401]));
        let jobs = graph.consumer_supervisor("jobs", supervisor);
        graph.subscribe(&jobs, &numbers, SubscribeOptions::new().max_demand(10));
        let mut pipeline = graph.start().unwrap();
        sleep(second * 10).await;
        // 300 occupies the only place.
        let children = jobs.children().await.unwrap();
        let states: Vec<_> = children.iter().map(|(_, state)| *state).collect();
        let restarting = ChildState::Restarting;
        assert_eq!(states, [restarting, restarting, ChildState::Running]);
        let report = if terminates {
            jobs.terminate_child(children[0].0).await.unwrap();
            assert_eq!(jobs.children().await.unwrap().len(), 2);
            jobs.terminate_child(children[2].0).await.unwrap();
            pipeline.join().await
        } else {
            pipeline.drain(second).await
        };
        let jobs = &report.stages[1];
        let expected = if terminates { (2, 0, 0) } else { (0, 3, 1) };
        assert_eq!((jobs.given_up, jobs.in_progress, jobs.pending), expected);
    }
}

#[tokio::test]
async fn other_keys_do_not_wait_and_those_that_wait_are_part_of_the_demand() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let supervisor = ConsumerSupervisor::new(worker).ordered_by_key(hundreds);
    let _pipeline = supervised(producer, supervisor, 4, 3);
    for event in [100, 101, 102, 200, 300] {
        queue.push(event).await.unwrap();
    }
    // Four were asked for: two begin, and two wait for their key.
    assert_eq!(started(&mut control, 2).await, [100, 200]);
    control.assert_none_starts().await;
    assert_eq!(queue.len(), 1);
    control.release(2);
    assert_eq!(started(&mut control, 2).await, [101, 300]);
    control.release(2);
    assert_eq!(started(&mut control, 1).await, [102]);
    control.release(1);
}

#[tokio::test]
async fn at_most_so_many_events_of_a_key_are_in_work() {
    let (queue, producer) = queue(QueueOptions::new());
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let supervisor = ConsumerSupervisor::new(worker).at_most_per_key(2, hundreds);
    let _pipeline = supervised(producer, supervisor, 10, 9);
    for event in [100, 101, 102, 103, 200] {
        queue.push(event).await.unwrap();
    }
    assert_eq!(started(&mut control, 3).await, [100, 101, 200]);
    control.assert_none_starts().await;
    // Each that ends makes room for the next of its key.
    control.release(3);
    assert_eq!(started(&mut control, 2).await, [102, 103]);
    control.release(2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_or_panics_holds_up_its_key_until_it_is_given_up() {
    for panics in [false, true] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let worker = async move |event: &u64| {
            log.lock().push(*event);
            match event {
                100 if panics => panic!("as the test wants it"),
                100 => Err(ExitReason::failed("as the test wants it")),
                _ => Ok(()),
            }
        };
        let second = Duration::from_secs(1);
        let supervisor = ConsumerSupervisor::new(worker)
            .ordered_by_key(hundreds)
            .tries(3)
            .backoff(Backoff::new(second, second).jitter(Jitter::None));
        let mut pipeline = supervised(from_iter([100, 101, 200, 201, 102]), supervisor, 10, 5);
        let report = pipeline.join().await;
        assert_eq!((report.unprocessed(), report.stages[1].given_up), (0, 1));
        assert_eq!(*seen.lock(), [100, 200, 201, 100, 100, 101, 102]);
    }
}

/// Ignores some events, gives others up, and keeps the rest.
struct Picky(Arc<Mutex<Vec<u64>>>);

impl Worker<u64> for Picky {
    fn admit(&self, event: &u64, _: &ChildContext) -> Result<Admission, ExitReason> {
        match event % 3 {
            0 => Ok(Admission::Ignore),
            1 => Err(ExitReason::failed("not this one")),
            _ => Ok(Admission::Run),
        }
    }

    async fn run(&self, event: &u64, _: ChildContext) -> Result<(), ExitReason> {
        task::yield_now().await;
        self.0.lock().push(*event);
        Ok(())
    }
}

#[tokio::test]
async fn an_event_that_is_not_accepted_or_whose_key_panics_holds_up_nothing() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let supervisor = ConsumerSupervisor::new(Picky(seen.clone())).ordered_by_key(|event: &u64| {
        assert!(event % 10 != 5, "as the test wants it");
        0
    });
    let mut pipeline = supervised(from_iter(0..100), supervisor, 10, 5);
    pipeline.join().await;
    let expected: Vec<u64> = (0..100).filter(|n| n % 3 == 2 && n % 10 != 5).collect();
    assert_eq!(*seen.lock(), expected);
}

#[tokio::test]
async fn a_child_that_is_terminated_makes_room_for_the_next_of_its_key() {
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let mut graph = Graph::new("keys");
    let numbers = graph.producer("numbers", from_iter(100..103));
    let supervisor = ConsumerSupervisor::new(worker).ordered_by_key(hundreds);
    let jobs = graph.consumer_supervisor("jobs", supervisor);
    graph.subscribe(&jobs, &numbers, SubscribeOptions::new().max_demand(10));
    let mut pipeline = graph.start().unwrap();
    assert_eq!(started(&mut control, 1).await, [100]);
    let (child, _) = jobs.children().await.unwrap()[0];
    jobs.terminate_child(child).await.unwrap();
    assert_eq!(started(&mut control, 1).await, [101]);
    control.release(1);
    assert_eq!(started(&mut control, 1).await, [102]);
    control.release(1);
    pipeline.join().await;
}

#[tokio::test]
async fn what_waits_for_its_key_is_handled_by_a_drain_and_counted_by_a_stop() {
    for drains in [true, false] {
        let (gate, mut control) = gate();
        let worker = async move |event: &u64| gate.pass(*event).await;
        let supervisor =
            ConsumerSupervisor::new(worker).ordered_by_key(hundreds).shutdown(Duration::ZERO);
        let pipeline = supervised(from_iter(100..105), supervisor, 10, 5);
        assert_eq!(started(&mut control, 1).await, [100]);
        if drains {
            control.release(5);
            assert_eq!(pipeline.drain(Duration::from_secs(60)).await.unprocessed(), 0);
        } else {
            assert_eq!(pipeline.drain(Duration::ZERO).await.unprocessed(), 5);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_more_events_than_the_demand_holds_up_no_other_if_only_so_many_of_it_may_wait() {
    let (handled, mut seen) = mpsc::channel(1_000);
    let worker = async move |event: &u64| {
        if *event < 100 {
            // The client of this user reads nothing.
            pending::<()>().await;
        }
        handled.send(*event).await?;
        Ok(())
    };
    let given_up = Arc::new(AtomicUsize::new(0));
    let count = given_up.clone();
    let supervisor = ConsumerSupervisor::new(worker)
        .ordered_by_key(hundreds)
        .max_waiting_per_key(10)
        .on_given_up(move |event, reason| {
            let full = reason.source().and_then(|error| error.downcast_ref::<KeyIsFull>());
            assert!(event < 100 && full.is_some_and(|full| full.waiting == 10), "{event} {reason}");
            count.fetch_add(1, Ordering::Relaxed);
        });
    let events = (0..1_000u64).map(|n| if n % 2 == 0 { n / 2 % 100 } else { 100 + n });
    let pipeline = Pipeline::builder("test")
        .producer(from_iter(events))
        .consumer_supervisor(supervisor, SubscribeOptions::new().max_demand(20))
        .start()
        .unwrap();
    let mut others = Vec::new();
    while others.len() < 500 {
        let left = 500 - others.len();
        seen.recv_many(&mut others, left).await;
    }
    others.sort_unstable();
    assert!(others.into_iter().eq((1..1_000).step_by(2).map(|n| 100 + n)));
    // One is in work, and ten wait.
    assert_eq!(given_up.load(Ordering::Relaxed), 500 - 11);
    drop(pipeline);
}
