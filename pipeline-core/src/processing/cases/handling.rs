//! How processors handle messages.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Log, Source, batcher, keep, pass, processors};
use crate::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Processor, Processors},
    snapshot::Activity,
    testkit::settle,
};

use super::ms;

/// What a processor's callbacks were called with.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Handle(u64, bool),
    Failed(Vec<u64>),
}

/// A processor whose `prepare_messages` fails for some chunks.
struct Prepares {
    calls: Log<Call>,
    prepare: fn(&mut [Message<u64>]) -> Result<(), Failure>,
}

impl Processor<u64> for Prepares {
    type Output = u64;

    async fn prepare_messages(&self, messages: &mut [Message<u64>]) -> Result<(), Failure> {
        (self.prepare)(messages)
    }

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<u64, Failure> {
        self.calls.add(Call::Handle(**message, message.failure().is_some()));
        if **message == 1 {
            message.recover();
        }
        Ok(**message)
    }

    async fn handle_failed(&self, messages: &mut [Message<u64>]) {
        self.calls.add(Call::Failed(messages.iter().map(|message| **message).collect()));
    }
}

/// Starts a pipeline with this `prepare_messages`.
fn prepares(
    prepare: fn(&mut [Message<u64>]) -> Result<(), Failure>,
) -> (Pipeline, Source, Log<Call>) {
    let (producer, source) = Source::new();
    let calls = Log::default();
    let processor = Prepares { calls: calls.clone(), prepare };
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(processor).concurrency(1))
        .start()
        .unwrap();
    (pipeline, source, calls)
}

#[tokio::test(start_paused = true)]
async fn s_198_a_failed_preparation_fails_its_chunk() {
    fn fail_three(messages: &mut [Message<u64>]) -> Result<(), Failure> {
        if messages.len() == 3 { Err(Failure::new("unprepared")) } else { Ok(()) }
    }
    fn panic_at_three(messages: &mut [Message<u64>]) -> Result<(), Failure> {
        assert!(messages.len() != 3, "unprepared");
        Ok(())
    }
    for prepare in [fail_three, panic_at_three] {
        let (_pipeline, source, calls) = prepares(prepare);
        source.push(1..=3).await;
        assert_eq!(calls.take(), [Call::Failed(vec![1, 2, 3])]);
        assert_eq!(source.acks(), [(vec![], vec![1, 2, 3])]);
        assert!(source.failures().iter().all(|(_, why)| why.ends_with("unprepared")));
        source.push([4]).await;
        assert_eq!(source.acks(), [(vec![4], vec![])]);
    }
}

#[tokio::test(start_paused = true)]
async fn s_200_a_message_that_was_failed_is_handled_and_may_recover() {
    let (_pipeline, source, calls) = prepares(|messages| {
        messages.iter_mut().for_each(|message| message.fail(Failure::new("no")));
        Ok(())
    });
    source.push([1, 2]).await;
    let expected = [Call::Handle(1, true), Call::Handle(2, true), Call::Failed(vec![2])];
    assert_eq!(calls.take(), expected);
    assert_eq!(source.acks(), [(vec![1], vec![2])]);
}

#[tokio::test(start_paused = true)]
async fn s_201_a_failure_fails_one_message() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| match **n {
        2 => panic!("at two"),
        3 => Err(Failure::new("not three")),
        n => Ok(n),
    };
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .start()
        .unwrap();
    source.push(1..=3).await;
    assert_eq!(source.acks(), [(vec![1], vec![2, 3])]);
    let why = source.failures().into_iter().map(|(_, why)| why).collect::<Vec<_>>();
    assert_eq!(why, ["panicked: at two", "not three"]);
    assert!(pipeline.snapshot().stages.iter().all(|stage| stage.restarts == 0));
}

#[tokio::test(start_paused = true)]
async fn x_048_a_short_backlog_is_in_work_at_once() {
    let (producer, source) = Source::new();
    let begun = Log::default();
    let seen = begun.clone();
    let handle = async move |n: &mut Message<u64>| {
        seen.add(**n);
        pending::<Result<(), Failure>>().await
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(20))
        .start()
        .unwrap();
    // All have asked.
    settle().await;
    source.push(1..=20).await;
    let mut begun = begun.take();
    begun.sort_unstable();
    assert_eq!(begun, (1..=20).collect::<Vec<_>>());
}

/// Waits for ever with the first message.
struct OneAtATime;

impl Processor<u64> for OneAtATime {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        if **message == 1 { pending().await } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn no_message_waits_behind_another_of_a_processor_that_works_on_one_at_a_time() {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(OneAtATime).concurrency(3).max_demand(10))
        .start()
        .unwrap();
    source.push(1..=30).await;
    let mut done: Vec<u64> = source.acks().into_iter().flat_map(|(done, _)| done).collect();
    done.sort_unstable();
    assert_eq!(done, (2..=30).collect::<Vec<_>>());
}

/// Leaves its place with all messages, and waits for ever with those that can be divided by three.
struct LeavesPlace;

impl Processor<u64> for LeavesPlace {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        message.place().leave();
        match **message % 3 {
            0 => pending().await,
            1 => {
                sleep(ms(10)).await;
                Ok(())
            }
            _ => {
                sleep(ms(20)).await;
                Err(Failure::new("two are left over"))
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_have_left_their_place_delay_no_other_and_are_acknowledged() {
    let (producer, source) = Source::new();
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(LeavesPlace).concurrency(2))
        .start()
        .unwrap();
    source.push(1..=30).await;
    sleep(ms(100)).await;
    let acks = source.acks();
    let of = |remainder| (1..=30).filter(|n| n % 3 == remainder).collect::<Vec<u64>>();
    let mut done: Vec<u64> = acks.iter().flat_map(|(done, _)| done.clone()).collect();
    let mut failed: Vec<u64> = acks.into_iter().flat_map(|(_, failed)| failed).collect();
    done.sort_unstable();
    failed.sort_unstable();
    assert_eq!((done, failed), (of(1), of(2)));
    let activities = pipeline.snapshot().stages.into_iter().map(|stage| stage.activity);
    assert!(activities.skip(1).all(|activity| activity == Activity::WaitingForEvents));
    // They are still work of their stages: a drain waits for them, and reports those that it ends.
    let report = pipeline.drain(ms(1_000)).await;
    assert_eq!((report.completed, report.unprocessed()), (false, 10));
    let mut failed: Vec<u64> = source.acks().into_iter().flat_map(|(_, failed)| failed).collect();
    failed.sort_unstable();
    assert_eq!(failed, of(0));
}

/// How many are inside now, and were at most.
#[derive(Clone, Default)]
struct Inside(Arc<(AtomicUsize, AtomicUsize)>);

impl Inside {
    /// Stays inside for a moment.
    async fn stay(&self) {
        let (now, most) = &*self.0;
        most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
        sleep(ms(1)).await;
        now.fetch_sub(1, Relaxed);
    }

    fn most(&self) -> usize {
        self.0.1.load(Relaxed)
    }
}

/// Works, leaves its place, waits for the same moment as all others, and fails.
#[derive(Clone)]
struct WaitsOutside {
    until: Instant,
    handles: Inside,
    fails: Inside,
}

impl Processor<u64> for WaitsOutside {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        self.handles.stay().await;
        message.place().leave();
        sleep_until(self.until).await;
        Err(Failure::new("no answer"))
    }

    async fn handle_failed(&self, _messages: &mut [Message<u64>]) {
        self.fails.stay().await;
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_have_left_are_tried_again_and_fail_in_a_place_only() {
    for tries in [1, 2] {
        let (producer, source) = Source::new();
        let until = Instant::now() + ms(1_000);
        let (handles, fails) = Default::default();
        let waits = WaitsOutside { until, handles, fails };
        let backoff = Backoff::new(ms(10), ms(10)).jitter(Jitter::None);
        let _pipeline = Pipeline::of_messages("test")
            .source(producer)
            .processors(Processors::new(waits.clone()).concurrency(3).tries(tries, backoff))
            .start()
            .unwrap();
        source.push(1..=60).await;
        sleep(ms(500)).await;
        assert_eq!(source.acks(), [], "all of them wait");
        sleep(ms(2_000)).await;
        assert_eq!(source.acks().into_iter().map(|(_, failed)| failed.len()).sum::<usize>(), 60);
        assert_eq!((waits.handles.most(), waits.fails.most()), (3, 3), "{tries} tries");
    }
}

/// Every message leaves its place and fails a second later. Then 0 comes, which stays in its place for ever.
struct OneHangs;

impl Processor<u64> for OneHangs {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        if **message == 0 {
            pending::<()>().await;
        }
        message.place().leave();
        sleep(ms(1_000)).await;
        Err(Failure::new("no answer"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_left_a_processor_that_hangs_comes_back_to_another() {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(OneHangs).concurrency(2))
        .start()
        .unwrap();
    source.push((1..=10).chain([0])).await;
    sleep(ms(2_000)).await;
    let mut failed: Vec<u64> = source.acks().into_iter().flat_map(|(_, failed)| failed).collect();
    failed.sort_unstable();
    assert_eq!(failed, (1..=10).collect::<Vec<_>>());
}

/// Another task leaves its place, while it sleeps.
struct LeftByAnother;

impl Processor<u64> for LeftByAnother {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        let place = message.place();
        tokio::spawn(async move {
            sleep(ms(10)).await;
            place.leave();
            // It is kept for longer than the message.
            sleep(ms(60_000)).await;
        });
        sleep(ms(1_000)).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_another_task_leaves_is_free_at_once() {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(Processors::new(LeftByAnother).concurrency(1))
        .start()
        .unwrap();
    source.push(1..=10).await;
    sleep(ms(1_500)).await;
    let done: Vec<u64> = source.acks().into_iter().flat_map(|(done, _)| done).collect();
    assert_eq!(done, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_partition_wait_for_one_that_has_left_its_place() {
    let (producer, source) = Source::new();
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .partition_by(|n| **n % 2)
        .processors(Processors::new(LeavesPlace).concurrency(2))
        .start()
        .unwrap();
    // The first that waits for ever are 3 and 6.
    source.push([1, 4, 3, 6, 7, 10]).await;
    sleep(ms(100)).await;
    let mut done: Vec<u64> = source.acks().into_iter().flat_map(|(done, _)| done).collect();
    done.sort_unstable();
    assert_eq!(done, [1, 4]);
}

/// Waits for its turn for as many milliseconds as a message says, and then works for two seconds.
#[derive(Clone)]
struct WaitsForTurn<const ALONE: bool>;

impl<const ALONE: bool> Processor<u64> for WaitsForTurn<ALONE> {
    type Output = u64;

    const ONE_AT_A_TIME: bool = ALONE;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<u64, Failure> {
        let place = message.place();
        place.leave();
        place.without_limit(sleep(ms(**message))).await;
        sleep(ms(2_000)).await;
        Ok(**message)
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_turn_does_not_count_as_time_of_a_try() {
    for is_partitioned in [false, true] {
        for limit in [1_999, 2_100] {
            wait_for_turns(WaitsForTurn::<true>, is_partitioned, limit).await;
            wait_for_turns(WaitsForTurn::<false>, is_partitioned, limit).await;
        }
    }
}

/// Messages of a processor, in the last layer and in another, whose tries may take so many milliseconds.
async fn wait_for_turns<P>(processor: P, is_partitioned: bool, limit: u64)
where
    P: Processor<u64, Output = u64> + Clone,
{
    let waits = [0, 1_000, 60_000];
    let expected = if limit < 2_000 { 0 } else { waits.len() };
    for has_batcher in [false, true] {
        let (producer, source) = Source::new();
        let processors = Processors::new(processor.clone()).concurrency(1).handle_within(ms(limit));
        let processors = if is_partitioned { processors.partition_by(|_| 0) } else { processors };
        let pipeline = Pipeline::of_messages("test").source(producer).processors(processors);
        let _pipeline = if has_batcher {
            pipeline.batcher(keep(&Log::default())).start().unwrap()
        } else {
            pipeline.start().unwrap()
        };
        source.push(waits).await;
        sleep(ms(120_000)).await;
        let acks = source.acks();
        let done: usize = acks.iter().map(|(done, _)| done.len()).sum();
        let failed: usize = acks.iter().map(|(_, failed)| failed.len()).sum();
        assert_eq!((done, failed), (expected, waits.len() - expected), "{limit}");
    }
}

/// A task of its own waits without the limit, and the message waits for ever.
struct WaitsElsewhere;

impl Processor<u64> for WaitsElsewhere {
    type Output = ();

    const ONE_AT_A_TIME: bool = true;

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        let place = message.place();
        tokio::spawn(async move { place.without_limit(sleep(ms(10_000))).await });
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_counts_again_when_another_task_has_ended_the_wait() {
    let (producer, source) = Source::new();
    let processors = Processors::new(WaitsElsewhere).concurrency(1).handle_within(ms(1_000));
    let _pipeline =
        Pipeline::of_messages("test").source(producer).processors(processors).start().unwrap();
    source.push([1]).await;
    sleep(ms(9_000)).await;
    assert_eq!(source.acks(), []);
    sleep(ms(3_000)).await;
    assert_eq!(source.acks(), [(vec![], vec![1])]);
}

/// What a message has kept: a value of the program, and one of another type.
#[derive(Clone, Default)]
struct Keeps {
    seen: Log<(Option<u64>, Option<&'static str>, bool)>,
    dropped: Log<bool>,
}

/// Notes whether the message has failed for good when it is dropped.
struct Kept(Log<bool>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.add(true);
    }
}

impl Processor<u64> for Keeps {
    type Output = ();

    async fn handle_message(&self, message: &mut Message<u64>) -> Result<(), Failure> {
        let (number, text) = (message.take_held::<u64>(), message.held_mut::<&'static str>());
        self.seen.add((number, text.copied(), message.is_tried_again()));
        message.hold(number.unwrap_or_default() + 1);
        message.hold("kept");
        message.hold(Kept(self.dropped.clone()));
        // A try that takes too long keeps its values too.
        if number.is_none() { pending().await } else { Err(Failure::new("not yet")) }
    }

    async fn handle_failed(&self, messages: &mut [Message<u64>]) {
        let held = messages[0].held_mut::<u64>().is_some();
        self.seen.add((None, None, held));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_keeps_a_value_of_each_type_until_no_try_follows() {
    let (producer, source) = Source::new();
    let keeps = Keeps::default();
    let backoff = Backoff::new(ms(10), ms(10)).jitter(Jitter::None);
    let processors = Processors::new(keeps.clone()).concurrency(1).handle_within(ms(1_000));
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors.tries(3, backoff))
        .start()
        .unwrap();
    source.push([7]).await;
    sleep(ms(5_000)).await;
    let tries = [(None, None, true), (Some(1), Some("kept"), true), (Some(2), Some("kept"), false)];
    let failed = (None, None, false);
    assert_eq!(keeps.seen.take(), tries.into_iter().chain([failed]).collect::<Vec<_>>());
    assert_eq!(keeps.dropped.take().len(), 3, "each was replaced, or dropped at the end");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    Known,
    Other,
    Unknown,
}

#[tokio::test(start_paused = true)]
async fn s_202_a_message_for_an_unknown_batcher_fails() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| {
        if **n == 2 { Err(Failure::new("its own failure")) } else { Ok(**n) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .route(|_| Name::Unknown)
        .batcher(Name::Known, keep(&Log::default()))
        .batcher(Name::Other, keep(&Log::default()))
        .start()
        .unwrap();
    source.push([1, 2]).await;
    let mut failures = source.failures();
    failures.sort();
    let unknown = "there is no batcher Unknown, expected one of Known, Other";
    assert_eq!(failures, [(1, unknown.to_owned()), (2, "its own failure".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_panics_fails_its_message() {
    let (producer, source) = Source::new();
    let route = |n: &u64| {
        assert!(*n != 1, "no way");
        Name::Known
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .route(route)
        .batcher(Name::Known, keep(&Log::default()).size(1))
        .start()
        .unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![], vec![1]), (vec![2], vec![])]);
    assert_eq!(source.failures(), [(1, "panicked: no way".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_fails_its_message() {
    let (producer, source) = Source::new();
    let batcher = keep(&Log::default()).key_by(|row| {
        assert!(row.output != 1, "no key");
    });
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(batcher.size(1))
        .start()
        .unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![], vec![1]), (vec![2], vec![])]);
}

#[tokio::test(start_paused = true)]
async fn s_203_failed_messages_are_acknowledged_before_the_batch() {
    let (producer, source) = Source::new();
    let batches = Log::default();
    let odd = async |n: &mut Message<u64>| {
        if n.is_multiple_of(2) { Err(Failure::new("even")) } else { Ok(**n) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(odd).concurrency(1))
        .batcher(keep(&batches).size(3))
        .start()
        .unwrap();
    source.push(1..=5).await;
    assert_eq!(source.acks(), [(vec![], vec![2, 4]), (vec![1, 3, 5], vec![])]);
}

/// How often each message was handled.
async fn tried(handle_until: u64, why: fn(&'static str) -> Failure) -> (Vec<u64>, Source) {
    let (producer, source) = Source::new();
    let handled = Log::default();
    let log = handled.clone();
    let handle = async move |n: &mut Message<u64>| {
        log.add(**n);
        *n.data_mut() += 1;
        if **n < handle_until { Err(why("not yet")) } else { Ok(()) }
    };
    let backoff = Backoff::new(ms(10), ms(10)).jitter(Jitter::None);
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1).tries(3, backoff))
        .start()
        .unwrap();
    source.push([0]).await;
    sleep(ms(100)).await;
    (handled.take(), source)
}

#[tokio::test(start_paused = true)]
async fn a_message_is_tried_again_until_it_is_handled_or_its_tries_are_used_up() {
    let (handled, source) = tried(3, Failure::new).await;
    assert_eq!((handled, source.acks()), (vec![0, 1, 2], vec![(vec![0], vec![])]));
    let (handled, source) = tried(9, Failure::new).await;
    assert_eq!((handled, source.acks()), (vec![0, 1, 2], vec![(vec![], vec![0])]));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_given_up_is_not_tried_again() {
    let (handled, source) = tried(9, |why| Failure::new(why).give_up()).await;
    assert_eq!((handled, source.acks()), (vec![0], vec![(vec![], vec![0])]));
}

#[tokio::test(start_paused = true)]
async fn a_try_that_takes_too_long_has_failed() {
    let (producer, source) = Source::new();
    let handle = async |_: &mut Message<u64>| pending::<Result<(), Failure>>().await;
    let processors = processors(handle).concurrency(1).handle_within(ms(50));
    let _pipeline =
        Pipeline::of_messages("test").source(producer).processors(processors).start().unwrap();
    source.push([1]).await;
    sleep(ms(50)).await;
    assert_eq!(source.failures(), [(1, "handle_message took longer than 50ms".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn x_036_a_batch_keeps_all_of_its_messages() {
    // A batch lends its messages as a slice, so none of them can be left out. One that is swapped
    // with another of the batch is still acknowledged.
    let (producer, source) = Source::new();
    let batcher = batcher(async |batch: &mut super::Batch<u64, u64>| {
        batch.reverse();
        batch[0].message.fail(Failure::new("not returned"));
        Ok(())
    });
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(batcher.size(3))
        .start()
        .unwrap();
    source.push(1..=3).await;
    assert_eq!(source.acks(), [(vec![2, 1], vec![3])]);
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_try_said_about_a_message_is_forgotten_by_the_next() {
    let (producer, source) = Source::new();
    let tries = Log::default();
    let handle = async move |n: &mut Message<u64>| {
        tries.add(());
        if tries.0.lock().len() == 1 {
            n.fail(Failure::new("not yet"));
            return Err(Failure::new("not yet"));
        }
        Ok(())
    };
    let backoff = Backoff::new(ms(10), ms(10));
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1).tries(2, backoff))
        .start()
        .unwrap();
    source.push([1]).await;
    sleep(ms(20)).await;
    assert_eq!(source.acks(), [(vec![1], vec![])]);
}

#[tokio::test(start_paused = true)]
async fn failed_messages_are_in_order_whatever_failed_them() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| {
        if n.is_multiple_of(2) { Err(Failure::new("even")) } else { Ok(**n) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .route(|_| Name::Unknown)
        .batcher(Name::Known, keep(&Log::default()))
        .start()
        .unwrap();
    source.push(1..=4).await;
    assert_eq!(source.acks(), [(vec![], vec![1, 2, 3, 4])]);
}

/// A future whose destructor panics.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a destructor panics");
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_panics_when_it_is_dropped_fails_its_message_only() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| {
        if **n == 2 {
            let _held = PanicsWhenDropped;
            pending::<()>().await;
        }
        Ok(())
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1).handle_within(ms(20)))
        .start()
        .unwrap();
    source.push(1..=3).await;
    sleep(ms(20)).await;
    assert_eq!(source.acks(), [(vec![1, 3], vec![2])]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_function_that_panics_fails_its_message() {
    let (producer, source) = Source::new();
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .partition_by(|n| {
            assert!(**n != 2, "no partition");
            **n
        })
        .processors(pass().concurrency(2))
        .start()
        .unwrap();
    source.push(1..=4).await;
    assert_eq!(source.failures(), [(2, "panicked: no partition".to_owned())]);
    assert!(pipeline.snapshot().stages.iter().all(|stage| stage.restarts == 0));
}

/// A key whose hash panics for one number.
#[derive(Clone, PartialEq, Eq)]
struct Key(u64);

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        assert!(self.0 != 2, "no hash");
        self.0.hash(state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_hash_panics_fails_its_message() {
    let (producer, source) = Source::new();
    let batcher = keep(&Log::default()).key_by(|row| Key(row.output)).size(1);
    let pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(pass())
        .batcher(batcher)
        .start()
        .unwrap();
    source.push(1..=4).await;
    assert_eq!(source.failures(), [(2, "panicked: no hash".to_owned())]);
    assert!(pipeline.snapshot().stages.iter().all(|stage| stage.restarts == 0));
}
