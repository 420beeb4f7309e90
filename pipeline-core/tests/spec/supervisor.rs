//! Section 5.13: `ConsumerSupervisor`, and.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    stage::ProducerHandle,
    subscription::{Cancel, SubscribeOptions},
    supervisor::{
        ChildCount, ChildId, ChildState, ConsumerSupervisor, Restart, SupervisorHandle,
        TerminateError, TooManyRestarts,
    },
    testkit::{Script, ScriptedProducer, assert_no_task_left, scripted, settle},
};
use pipeline_test_support::Log;
use tokio::time::{self, Instant};

use crate::children::{Answer, Children};

/// No demand.
const NONE: [usize; 0] = [];

/// A producer and a supervisor, before they run.
struct Setup {
    options: SubscribeOptions,
    producer: (ScriptedProducer<u64>, Script<u64>),
    supervisor: ConsumerSupervisor<u64, Children>,
    children: Children,
}

/// `silent`, and a supervisor that subscribes to it as `(max,min)`.
fn supervised(max: usize, min: usize) -> Setup {
    let children = Children::default();
    // The reference's rule for failing children, with its numbers.
    let supervisor =
        ConsumerSupervisor::new(children.clone()).max_restarts(3, Duration::from_secs(5));
    let options = SubscribeOptions::new().max_demand(max).min_demand(min);
    Setup { options, producer: scripted(), supervisor, children }
}

impl Setup {
    /// Each demand is answered with as many of these events.
    fn events(mut self, events: impl IntoIterator<Item = u64, IntoIter: Send + 'static>) -> Self {
        self.producer.0 = self.producer.0.from_iter(events);
        self
    }

    fn cancel(mut self, mode: Cancel) -> Self {
        self.options = self.options.cancel(mode);
        self
    }

    fn restart(mut self, restart: Restart) -> Self {
        self.supervisor = self.supervisor.restart(restart);
        self
    }

    fn max_restarts(mut self, restarts: usize, seconds: u64) -> Self {
        self.supervisor = self.supervisor.max_restarts(restarts, Duration::from_secs(seconds));
        self
    }

    fn shutdown(mut self, within: Duration) -> Self {
        self.supervisor = self.supervisor.shutdown(within);
        self
    }

    fn start_now(self) -> Case {
        let Self { options, producer: (producer, script), supervisor, children } = self;
        let mut graph = Graph::new("test");
        let producer = graph.producer("producer", producer);
        let supervisor = graph.consumer_supervisor("supervisor", supervisor);
        graph.subscribe(&supervisor, &producer, options);
        Case { pipeline: graph.start().unwrap(), script, supervisor, children }
    }

    async fn start(self) -> Case {
        let case = self.start_now();
        settle().await;
        case
    }
}

struct Case {
    pipeline: Pipeline,
    script: Script<u64>,
    supervisor: SupervisorHandle<u64, Children>,
    children: Children,
}

impl Case {
    async fn emit(&self, events: impl IntoIterator<Item = u64>) {
        self.script.emit(events).await;
        settle().await;
    }

    /// The number of running children, and of all children.
    async fn count(&self) -> (usize, usize) {
        let count = self.supervisor.child_count().await.unwrap();
        (count.active, count.workers)
    }

    /// The `n`th of the remaining children, in the order of their start.
    async fn child(&self, n: usize) -> ChildId {
        self.supervisor.children().await.unwrap()[n].0
    }

    /// The end of the supervisor's subscription, as seen by the producer.
    fn gone(&self) -> Vec<String> {
        self.script.cancelled().into_iter().map(|(_, ended)| ended.to_string()).collect()
    }
}

fn errors(log: &Log) -> Vec<String> {
    log.take().into_iter().filter(|line| line.starts_with("ERROR")).collect()
}

#[tokio::test(start_paused = true)]
async fn s_153_more_events_are_requested_when_the_children_fall_to_min_demand() {
    let case = supervised(4, 2).events(0..100).start().await;
    assert_eq!(case.script.demands(), [4]);
    assert_eq!(case.children.started(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    case.children.end(0, Ok(())).await;
    assert_eq!((case.script.demands(), case.children.started()), (vec![], vec![]));
    case.children.end(1, Ok(())).await;
    assert_eq!(case.script.demands(), [2]);
    assert_eq!(case.children.started(), [(4, 0), (5, 0)]);
    assert_eq!(case.count().await, (4, 4));
}

#[tokio::test(start_paused = true)]
async fn s_154_children_that_do_not_start_free_their_slots_together() {
    let (log, _guard) = Log::keep();
    let case = supervised(4, 2).start().await;
    assert_eq!(case.script.demands(), [4]);
    case.children.answer(0, [Answer::Fail]);
    case.children.answer(2, [Answer::Ignore]);
    case.children.answer(3, [Answer::Panic]);
    case.emit([0, 1, 2, 3]).await;
    assert_eq!(case.children.started(), [(1, 0)]);
    assert_eq!(case.script.demands(), [3]);
    assert_eq!(case.count().await, (1, 1));
    let failed = |reason| {
        format!(
            "ERROR message=a worker failed to start, giving up its event reason={reason:?} \
             stage=supervisor"
        )
    };
    let expected = [failed("failed: no start"), failed("panicked: no start either")];
    assert_eq!(errors(&log), expected, "the ignored event must not be logged");
}

#[tokio::test(start_paused = true)]
async fn s_155_a_temporary_child_that_crashes_is_reported_and_done() {
    let (log, _guard) = Log::keep();
    let case = supervised(2, 1).events(0..2).restart(Restart::Temporary).start().await;
    assert_eq!(case.script.demands(), [2]);
    assert_eq!(case.children.started(), [(0, 0), (1, 0)]);
    case.children.crash(0).await;
    let report = "ERROR message=a worker failed, giving up its event reason=\"failed: crash\" \
         restart=false stage=supervisor tries=1";
    assert_eq!(errors(&log), [report]);
    assert_eq!(case.script.demands(), [1]);
    assert_eq!(case.children.started(), []);
    assert_eq!(case.count().await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn s_156_a_transient_child_that_crashes_is_restarted_in_its_slot() {
    let (log, _guard) = Log::keep();
    let case = supervised(2, 1).events(0..2).start().await;
    assert_eq!(case.script.demands(), [2]);
    assert_eq!(case.children.started(), [(0, 0), (1, 0)]);
    let child = case.child(0).await;
    case.children.crash(0).await;
    let report = "ERROR message=a worker failed reason=\"failed: crash\" restart=true stage=supervisor tries=1";
    assert_eq!(errors(&log), [report]);
    assert_eq!(case.children.started(), [(0, 1)]);
    assert_eq!(case.script.demands(), NONE);
    assert_eq!(case.count().await, (2, 2));
    assert_eq!(case.child(0).await, child, "a restarted child keeps its id");
    case.children.end(0, Ok(())).await;
    assert_eq!(case.script.demands(), [1]);
    assert_eq!(errors(&log), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn s_157_a_transient_child_that_ends_gracefully_is_done() {
    let (log, _guard) = Log::keep();
    let case = supervised(2, 1).events(0..2).start().await;
    assert_eq!(case.script.demands(), [2]);
    case.children.end(0, Err(ExitReason::Shutdown)).await;
    assert_eq!(case.script.demands(), [1]);
    case.children.end(1, Err(ExitReason::ShutdownWith("x".into()))).await;
    assert_eq!(case.script.demands(), [1]);
    assert_eq!(case.children.started(), [(0, 0), (1, 0)], "no child must be restarted");
    assert_eq!(case.count().await, (0, 0));
    assert_eq!(errors(&log), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn s_158_a_child_whose_restart_fails_is_restarting_until_one_succeeds() {
    let case = supervised(2, 1).events(0..2).max_restarts(10, 5).start().await;
    assert_eq!(case.script.demands(), [2]);
    case.children.answer(0, [Answer::Fail, Answer::Fail, Answer::Fail, Answer::Run]);
    let child = case.child(0).await;
    case.children.end_soon(0, Err(ExitReason::failed("crash")));
    let mut seen = vec![];
    for _ in 0..20 {
        seen.push(case.count().await);
        let state = case.supervisor.children().await.unwrap()[0];
        assert!(matches!(state, (id, ChildState::Running | ChildState::Restarting) if id == child));
    }
    assert!(seen.contains(&(1, 2)), "shown while it is restarting: {seen:?}");
    settle().await;
    assert_eq!(case.count().await, (2, 2));
    assert_eq!(case.children.started(), [(0, 0), (1, 0), (0, 4)], "the fourth attempt");
    assert_eq!(case.script.demands(), NONE);
}

#[tokio::test(start_paused = true)]
async fn s_159_too_many_crashes_within_the_time_stop_the_supervisor_and_its_children() {
    let (log, _guard) = Log::keep();
    let case = supervised(2, 1).events(0..2).max_restarts(2, 5).start().await;
    for restarts in 1..=2 {
        case.children.crash(0).await;
        assert_eq!(case.count().await, (2, 2));
        assert_eq!(case.children.started().last(), Some(&(0, restarts)));
        time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(case.children.notified(), []);
    let _ = errors(&log);
    case.children.crash(0).await;
    assert!(
        errors(&log).contains(&"ERROR message=too many restarts, stopping stage=supervisor".into())
    );
    assert_eq!(case.gone(), ["down (shutdown)"]);
    assert!(!case.supervisor.is_running());
    assert!(
        matches!(case.children.notified()[..], [(1, _)]),
        "the other child must be notified to stop"
    );
    assert_eq!(case.children.running(), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn s_159_older_crashes_do_not_count() {
    let case = supervised(2, 1).events(0..2).max_restarts(2, 5).start().await;
    for _ in 0..10 {
        case.children.crash(0).await;
        time::sleep(Duration::from_secs(3)).await;
    }
    assert!(case.supervisor.is_running());
}

#[tokio::test(start_paused = true)]
async fn s_160_restarts_that_fail_count_against_the_limit() {
    let case = supervised(2, 1).events(0..2).max_restarts(1, 5).start().await;
    case.children.answer(0, [Answer::Fail]);
    case.children.crash(0).await;
    assert_eq!(case.gone(), ["down (shutdown)"]);
    assert!(!case.supervisor.is_running());
    assert_eq!(case.children.attempts(), 3, "two starts and one restart");
}

#[tokio::test(start_paused = true)]
async fn s_161_events_whose_child_does_not_start_are_consumed_without_one() {
    let setup = supervised(1, 0);
    setup.children.answer(1, [Answer::Fail]);
    setup.children.answer(2, [Answer::Ignore]);
    let case = setup.start().await;
    case.emit(0..6).await;
    assert_eq!(case.children.started(), [(0, 0)]);
    assert_eq!(case.script.handle().estimate_buffered_count().await, Ok(5));
    case.children.end(0, Ok(())).await;
    assert_eq!(case.children.started(), [(3, 0)], "exactly one");
    assert_eq!(case.script.handle().estimate_buffered_count().await, Ok(2));
    assert_eq!(case.count().await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn s_162_a_child_that_restarts_forever_can_be_terminated() {
    let case = supervised(1, 0).events(0..2).max_restarts(1_000_000, 5).start().await;
    case.children.answer(0, [Answer::Fail]);
    let child = case.child(0).await;
    case.children.end_soon(0, Err(ExitReason::failed("crash")));
    // From now on the supervisor never becomes idle.
    case.children.attempted(100).await;
    assert_eq!(case.count().await, (0, 1));
    assert_eq!(case.supervisor.terminate_child(child).await, Ok(()));
    settle().await;
    assert_eq!(case.children.started(), [(0, 0), (1, 0)]);
    assert_eq!(case.count().await, (1, 1));
    let again = case.supervisor.terminate_child(child).await;
    assert_eq!(again, Err(TerminateError::NotFound));
    assert_eq!(case.script.demands(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn s_163_terminating_a_child_frees_its_slot() {
    let (log, _guard) = Log::keep();
    let case = supervised(2, 1).events(0..).start().await;
    assert_eq!(case.script.demands(), [2]);
    assert_eq!(case.children.started(), [(0, 0), (1, 0)]);
    assert_eq!(case.supervisor.terminate_child(case.child(0).await).await, Ok(()));
    assert!(matches!(case.children.dropped()[..], [(0, _)]), "it has ended when this returns");
    settle().await;
    assert_eq!(case.script.demands(), [1]);
    assert_eq!(case.children.started(), [(2, 0)]);
    assert_eq!(case.count().await, (2, 2));
    assert_eq!(errors(&log), [""; 0], "a requested end must not be logged");

    let child = case.child(0).await;
    let terminate = || case.supervisor.terminate_child(child);
    assert_eq!(tokio::join!(terminate(), terminate()), (Ok(()), Ok(())), "asked for twice");
    assert_eq!(terminate().await, Err(TerminateError::NotFound));
}

#[tokio::test(start_paused = true)]
async fn s_164_a_child_started_by_hand_takes_no_slot() {
    let case = supervised(2, 1).events(0..).start().await;
    assert_eq!(case.script.demands(), [2]);
    let child = case.supervisor.spawn_child(100).await.unwrap();
    settle().await;
    assert_eq!(case.count().await, (3, 3));
    assert_eq!(child, Some(case.child(2).await));
    case.children.end(100, Ok(())).await;
    assert_eq!(case.script.demands(), NONE);
    assert_eq!(case.count().await, (2, 2));
    case.children.end(0, Ok(())).await;
    assert_eq!(case.script.demands(), [1], "the slots must be unchanged");

    case.children.answer(101, [Answer::Ignore]);
    assert_eq!(case.supervisor.spawn_child(101).await, Ok(None));
    case.children.answer(102, [Answer::Fail]);
    assert_eq!(case.supervisor.spawn_child(102).await, Ok(None));
    assert_eq!(case.script.demands(), NONE);
}

#[tokio::test(start_paused = true)]
async fn s_165_each_subscription_has_slots_of_its_own() {
    let (children, [p, q]) = (Children::default(), [scripted(), scripted()]);
    let mut graph = Graph::new("test");
    let supervisor =
        graph.consumer_supervisor("supervisor", ConsumerSupervisor::new(children.clone()));
    for ((name, producer), max, from) in [(("p", p.0), 2, 0), (("q", q.0), 3, 100)] {
        let producer = graph.producer(name, producer.from_iter(from..));
        let options = SubscribeOptions::new().max_demand(max).min_demand(1);
        graph.subscribe(&supervisor, &producer, options);
    }
    let _pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!((p.1.demands(), q.1.demands()), (vec![2], vec![3]));
    assert_eq!(children.running(), [0, 1, 100, 101, 102]);
    assert_eq!(supervisor.child_count().await.unwrap().active, 5);
    children.end(100, Ok(())).await;
    assert_eq!((p.1.demands(), q.1.demands()), (vec![], vec![]));
    children.end(0, Ok(())).await;
    assert_eq!((p.1.demands(), q.1.demands()), (vec![1], vec![]), "one freed is not enough for q");
    children.end(101, Ok(())).await;
    assert_eq!((p.1.demands(), q.1.demands()), (vec![], vec![2]));
}

#[tokio::test(start_paused = true)]
async fn s_166_children_outlive_a_temporary_subscription() {
    let case = supervised(3, 2).events(0..3).cancel(Cancel::Temporary).start().await;
    case.script.handle().stop(ExitReason::Shutdown).await;
    settle().await;
    assert_eq!(case.count().await, (3, 3));
    case.children.end(0, Ok(())).await;
    assert_eq!(case.count().await, (2, 2));
    assert_eq!(case.supervisor.terminate_child(case.child(0).await).await, Ok(()));
    assert_eq!(case.children.running(), [2]);
    case.children.end(2, Ok(())).await;
    assert_eq!(case.count().await, (0, 0));
    assert!(case.supervisor.is_running());
    assert_eq!(case.children.notified(), []);
}

/// The same, with a producer that shows that no demand is sent.
#[tokio::test(start_paused = true)]
async fn s_166_children_of_a_cancelled_subscription_send_no_demand() {
    let case = supervised(2, 1).events(0..2).cancel(Cancel::Temporary).start().await;
    assert_eq!(case.script.demands(), [2]);
    let (subscription, _) = case.script.subscribed().remove(0);
    subscription.cancel(ExitReason::Normal);
    settle().await;
    case.children.end(0, Ok(())).await;
    case.children.end(1, Ok(())).await;
    assert_eq!(case.script.demands(), NONE);
    assert_eq!(case.gone(), ["cancelled (normal)"]);
}

#[tokio::test(start_paused = true)]
async fn s_167_the_end_of_a_permanent_producer_stops_the_supervisor_and_its_children() {
    let case = supervised(2, 1).events(0..2).start().await;
    let before = Instant::now();
    case.script.handle().stop(ExitReason::Shutdown).await;
    settle().await;
    assert!(!case.supervisor.is_running());
    let notified = case.children.notified();
    assert!(
        matches!(notified[..], [(0, at), (1, also)] if at == before && also == before),
        "{notified:?}"
    );
    let mut pipeline = case.pipeline;
    let report = pipeline.join().await;
    let supervisor = report.stages.last().unwrap();
    assert_eq!(supervisor.to_string(), "supervisor ended (shutdown), 2 events in progress");
}

#[tokio::test(start_paused = true)]
async fn s_168_a_pool_of_three_that_asks_at_two_refills_as_children_end() {
    let case = supervised(3, 2).start().await;
    case.emit(0..3).await;
    assert_eq!(case.children.started(), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(case.script.demands(), [3]);
    case.children.end(0, Ok(())).await;
    case.children.end(1, Ok(())).await;
    assert_eq!(case.script.demands(), [1, 1]);
    assert_eq!(case.children.running(), [2]);
    case.emit([3, 4]).await;
    assert_eq!(case.children.started(), [(3, 0), (4, 0)]);
    case.emit([5]).await;
    assert_eq!(case.children.started(), []);
    assert_eq!(case.script.handle().estimate_buffered_count().await, Ok(1), "it waits");
}

#[tokio::test(start_paused = true)]
async fn s_169_a_partly_used_demand_is_not_asked_for_again() {
    let case = supervised(3, 0).start().await;
    assert_eq!(case.script.demands(), [3]);
    case.emit([0, 1]).await;
    assert_eq!(case.children.running(), [0, 1]);
    assert_eq!(case.script.demands(), NONE);
}

#[tokio::test(start_paused = true)]
async fn s_170_children_are_notified_together_and_killed_at_the_deadline() {
    let within = Duration::from_millis(100);
    let setup = supervised(2, 1).events(0..2).shutdown(within);
    setup.children.deaf(1);
    let case = setup.start().await;
    let begun = Instant::now();
    case.supervisor.stop(ExitReason::Shutdown).await;
    let took = begun.elapsed();
    assert_eq!(case.children.notified(), [(0, begun), (1, begun)]);
    assert!(matches!(case.children.dropped()[..], [(1, at)] if at.duration_since(begun) == took));
    assert!((within..within + Duration::from_millis(2)).contains(&took), "{took:?}");
    settle().await;
    assert_eq!(case.gone(), ["down (shutdown)"]);
}

#[tokio::test(start_paused = true)]
async fn s_171_children_without_any_time_are_killed_at_once() {
    let case = supervised(2, 1).events(0..2).shutdown(Duration::ZERO).start().await;
    let begun = Instant::now();
    case.supervisor.stop(ExitReason::Shutdown).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(case.children.notified(), [], "no child must be notified");
    assert_eq!(case.children.dropped().len(), 2);
    case.script.handle().stop(ExitReason::Normal).await;
    let mut pipeline = case.pipeline;
    let report = pipeline.join().await;
    assert_eq!(report.stages[0].to_string(), "supervisor ended (shutdown), 2 events in progress");
}

/// The third choice listed in section 3.
#[tokio::test(start_paused = true)]
async fn s_171_children_without_a_time_limit_are_waited_for() {
    let setup = supervised(2, 1).events(0..2).shutdown(Duration::MAX);
    setup.children.deaf(1);
    let Case { pipeline, script, supervisor, children } = setup.start().await;
    let stop = tokio::spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.stop(ExitReason::Shutdown).await }
    });
    time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(children.notified().len(), 2);
    assert!(supervisor.is_running());
    children.end_soon(1, Ok(()));
    stop.await.unwrap();
    assert_eq!(children.dropped(), []);
    drop((pipeline, script));
    assert_no_task_left().await;
}

#[tokio::test(start_paused = true)]
async fn s_172_children_are_counted_as_a_supervisor_counts_them() {
    let case = supervised(3, 1).events(0..3).max_restarts(1_000_000, 5).start().await;
    case.children.answer(2, [Answer::Fail]);
    case.children.end_soon(2, Err(ExitReason::failed("crash")));
    case.children.attempted(5).await;
    let ChildCount { active, workers, .. } = case.supervisor.child_count().await.unwrap();
    assert_eq!((active, workers), (2, 3));
    let children = case.supervisor.children().await.unwrap();
    let states: Vec<_> = children.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [ChildState::Running, ChildState::Running, ChildState::Restarting]);
}

#[tokio::test(start_paused = true)]
async fn x_031_a_supervisor_asks_when_the_running_children_fall_to_min_demand() {
    for (min, ended) in [(8, 2), (2, 8)] {
        let case = supervised(10, min).events(0..).start().await;
        assert_eq!(case.script.demands(), [10]);
        for child in 0..ended {
            assert_eq!(case.script.demands(), NONE, "{child} of {ended} have ended");
            case.children.end(child, Ok(())).await;
        }
        assert_eq!(case.script.demands(), [usize::try_from(ended).unwrap()]);
        assert_eq!(case.count().await, (10, 10));
    }
}

#[tokio::test(start_paused = true)]
async fn x_032_with_three_slots_and_a_minimum_of_one_two_are_asked_for_after_two() {
    let case = supervised(3, 1).events(0..).start().await;
    assert_eq!(case.script.demands(), [3]);
    case.children.end(0, Ok(())).await;
    assert_eq!(case.script.demands(), NONE);
    case.children.end(1, Ok(())).await;
    assert_eq!(case.script.demands(), [2]);
}

#[tokio::test(start_paused = true)]
async fn by_default_a_free_slot_does_not_wait_for_busy_ones() {
    let mut setup = supervised(10, 5).events(0..);
    setup.options = SubscribeOptions::new().max_demand(10);
    let case = setup.start().await;
    assert_eq!(case.script.demands(), [10]);
    case.children.end(3, Ok(())).await;
    assert_eq!(case.script.demands(), [1]);
    assert_eq!(case.children.running(), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]);
    // Slots that become free together are asked for together.
    for child in [0, 1, 2] {
        case.children.end_soon(child, Ok(()));
    }
    settle().await;
    assert_eq!(case.script.demands(), [3]);
}

#[tokio::test(start_paused = true)]
async fn with_max_children_a_subscription_with_few_events_does_not_wait_behind_one_with_many() {
    let mut setup = supervised(100, 99).events(0..);
    setup.supervisor = setup.supervisor.max_children(2);
    let case = setup.start().await;
    assert_eq!(case.children.running(), [0, 1]);
    let mut graph = Graph::new("other");
    let other: ProducerHandle<_> = graph.producer("other", scripted().0.from_iter(1000..));
    let _others = graph.start().unwrap();
    case.supervisor.subscribe(&other, SubscribeOptions::new().max_demand(2)).await.unwrap();
    settle().await;
    for (child, running) in [(0, [1, 2]), (1, [2, 1000]), (2, [3, 1000]), (1000, [3, 1001])] {
        case.children.end(child, Ok(())).await;
        assert_eq!(case.children.running(), running);
    }
}

#[tokio::test(start_paused = true)]
async fn x_033_a_stopping_supervisor_sends_no_demand() {
    let case = supervised(2, 1).events(0..).max_restarts(0, 5).start().await;
    assert_eq!(case.script.demands(), [2]);
    // One child ends just before the other stops the supervisor.
    case.children.end_soon(0, Ok(()));
    case.children.end_soon(1, Err(ExitReason::failed("crash")));
    settle().await;
    assert_eq!(case.gone(), ["down (shutdown)"]);
    assert_eq!(case.script.demands(), NONE);
    assert_eq!(case.script.handle().estimate_buffered_count().await, Ok(0));

    // Children that end while it waits for them free no slots either.
    let setup = supervised(2, 1).events(0..).shutdown(Duration::from_secs(5));
    setup.children.deaf(0);
    let case = setup.start().await;
    assert_eq!(case.script.demands(), [2]);
    let stop = tokio::spawn({
        let supervisor = case.supervisor.clone();
        async move { supervisor.stop(ExitReason::Shutdown).await }
    });
    settle().await;
    case.children.end(0, Ok(())).await;
    stop.await.unwrap();
    settle().await;
    assert_eq!((case.script.demands(), case.gone()), (vec![], vec!["down (shutdown)".to_owned()]));
}

/// A supervisor `(2,0)` with two children, whose subscription was cancelled and which has
/// subscribed to another producer.
async fn moved(
    supervisor: impl FnOnce(ConsumerSupervisor<u64, Children>) -> ConsumerSupervisor<u64, Children>,
) -> (Case, Pipeline) {
    let mut setup = supervised(2, 0).events(0..).cancel(Cancel::Temporary);
    setup.supervisor = supervisor(setup.supervisor);
    let case = setup.start().await;
    case.script.subscribed()[0].0.cancel(ExitReason::Normal);
    settle().await;
    let mut graph = Graph::new("other");
    let other: ProducerHandle<_> = graph.producer("other", scripted().0.from_iter(100..));
    let others = graph.start().unwrap();
    let options = SubscribeOptions::new().max_demand(2).min_demand(0);
    case.supervisor.subscribe(&other, options).await.unwrap();
    settle().await;
    (case, others)
}

#[tokio::test(start_paused = true)]
async fn x_034_the_bound_is_per_subscription_unless_there_is_one_for_all() {
    let (case, _others) = moved(|supervisor| supervisor).await;
    assert_eq!(case.children.running(), [0, 1, 100, 101]);

    let (case, _others) = moved(|supervisor| supervisor.max_children(3)).await;
    assert_eq!(case.children.running(), [0, 1, 100]);
    case.children.end(1, Ok(())).await;
    assert_eq!(case.children.running(), [0, 100, 101]);
    // Children started by hand are not counted.
    case.supervisor.spawn_child(200).await.unwrap();
    case.supervisor.spawn_child(201).await.unwrap();
    case.children.end(100, Ok(())).await;
    case.children.end(101, Ok(())).await;
    assert_eq!(case.children.running(), [0, 102, 103, 200, 201]);
}

#[tokio::test(start_paused = true)]
async fn x_042_an_event_that_always_fails_is_given_up_and_its_slot_is_freed() {
    let children = Children::default();
    let (producer, script) = scripted();
    let given_up = Arc::new(Mutex::new(vec![]));
    let kept = given_up.clone();
    let supervisor = ConsumerSupervisor::new(children.clone())
        .on_given_up(move |event, reason| kept.lock().push((event, reason.to_string())));
    let mut graph = Graph::new("test");
    let producer = graph.producer("producer", producer.from_iter(0..));
    let supervisor = graph.consumer_supervisor("supervisor", supervisor);
    let options = SubscribeOptions::new().max_demand(2).min_demand(1);
    graph.subscribe(&supervisor, &producer, options);
    let pipeline = graph.start().unwrap();
    settle().await;
    assert_eq!(children.started(), [(0, 0), (1, 0)]);
    for failed in 1..=2 {
        children.crash(0).await;
        assert_eq!(children.started(), [], "not at once");
        assert_eq!(supervisor.children().await.unwrap()[0].1, ChildState::Restarting);
        time::sleep(Duration::from_millis(100 * failed)).await;
        settle().await;
        assert_eq!(children.started(), [(0, u32::try_from(failed).unwrap())]);
        assert!(given_up.lock().is_empty());
    }
    assert_eq!(script.demands(), [2], "no more while the event holds its slot");
    children.crash(0).await;
    assert_eq!(*given_up.lock(), [(0, "failed: crash".to_owned())]);
    assert_eq!((script.demands(), children.started()), (vec![1], vec![(2, 0)]));
    let snapshot = pipeline.snapshot();
    assert_eq!((snapshot.failed, snapshot.stages[1].given_up), (false, 1));
}

#[tokio::test(start_paused = true)]
async fn x_043_a_supervisor_that_reaches_its_limit_has_failed_and_its_peers_see_shutdown() {
    let mut case = supervised(2, 1).events(0..2).max_restarts(0, 5).start().await;
    case.children.crash(0).await;
    assert_eq!(case.gone(), ["down (shutdown)"]);
    let snapshot = case.pipeline.snapshot();
    assert!(snapshot.failed, "at once");
    case.script.handle().stop(ExitReason::Normal).await;
    let report = case.pipeline.join().await;
    let reason = &report.failure().unwrap().reason;
    assert!(reason.source().unwrap().is::<TooManyRestarts>(), "{reason}");
}
