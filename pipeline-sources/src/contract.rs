//! The contract of every source, as checks that a broker's tests run.
//!
//! A broker keeps the contract if [`check`] returns for it. The promises are those of the guarantees:
//! at least once, redelivered with a count, given up with a reason, leases that are renewed, items that
//! are given back, nothing fetched without demand, and a broker that goes away and comes back.
//!
//! ```
//! use pipeline_sources::{
//!     Item, SourceOptions,
//!     contract::{Subject, check},
//!     sqlite::{SqliteOptions, SqliteQueue},
//! };
//! # use std::time::Duration;
//!
//! struct InFile(SqliteQueue, #[expect(dead_code)] tempfile::TempDir);
//!
//! impl Subject for InFile {
//!     type Broker = SqliteQueue;
//!
//!     fn broker(&self) -> SqliteQueue {
//!         self.0.clone()
//!     }
//!
//!     async fn push(&self, item: Item) {
//!         self.0.push(item).await.expect("it is stored");
//!     }
//!
//!     async fn dead_letters(&self) -> Vec<String> {
//!         let dead = self.0.dead_letters(0, 100).await.expect("they are read");
//!         dead.iter().map(|dead| dead.reason.to_string()).collect()
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() {
//! check(async || {
//!     let folder = tempfile::tempdir().expect("a folder");
//!     let options = SqliteOptions::new().lease(Duration::from_millis(300));
//!     let opened = SqliteQueue::open_with(folder.path().join("queue.db"), "test", options).await;
//!     InFile(opened.expect("it is opened"), folder)
//! })
//! .await;
//! # }
//! ```
#![allow(clippy::panic, clippy::print_stdout, reason = "these are tests")]

mod faulty;

use std::{
    collections::HashMap,
    future::{Future, pending},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{AsyncMut, Failure, Message, Metadata, Processor, Processors, Wake},
    snapshot::SourceSnapshot,
    timed::TraceContext,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};

pub use self::faulty::{Call, Faults, Faulty, Refusing};
use crate::{
    broker::{Broker, Settle},
    clock,
    item::Item,
    options::SourceOptions,
    source::Source,
};

/// A queue of a broker under test. Each check gets a new one, which is empty.
pub trait Subject: Send + Sync + 'static {
    /// The broker.
    type Broker: Broker;

    /// The broker, for a source of this queue.
    fn broker(&self) -> Self::Broker;

    /// Adds an item to the queue.
    fn push(&self, item: Item) -> impl Future<Output = ()> + Send;

    /// The reasons of the items that were given up.
    fn dead_letters(&self) -> impl Future<Output = Vec<String>> + Send;

    /// Adds an item that the broker cannot read, as another program may. Returns false if the subject cannot
    /// do that, or if all can be read.
    fn push_malformed(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }

    /// Makes it impossible to store dead letters, as when there is no room for them. Returns false if the
    /// subject cannot do that.
    fn fill_graves(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }

    /// Ends what [`fill_graves`](Self::fill_graves) has begun.
    fn empty_graves(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Whether a message knows how often it was delivered.
    fn counts_deliveries(&self) -> bool {
        true
    }

    /// Whether deliveries without an outcome, in a process that has died, are counted.
    fn counts_deaths(&self) -> bool {
        true
    }

    /// Whether an item that ends each process that handles it is given up in the end.
    fn gives_up_after_deaths(&self) -> bool {
        self.counts_deaths()
    }

    /// Whether an item that is postponed counts as not delivered.
    fn uncounts_releases(&self) -> bool {
        true
    }

    /// Whether an item that a drain gives back counts as not delivered.
    fn uncounts_drains(&self) -> bool {
        self.uncounts_releases()
    }

    /// Whether a delivery outlives its session, so that its outcome can be stored in a later one. Where it
    /// does not, the item is delivered again.
    fn outlives_sessions(&self) -> bool {
        true
    }

    /// Whether items are delivered in the order in which they were added, when nothing fails.
    fn is_ordered(&self) -> bool {
        true
    }
}

/// What a check ends with.
enum Checked {
    Kept,
    /// A check that was not made, and why.
    Not(&'static str),
}

impl From<()> for Checked {
    fn from((): ()) -> Self {
        Self::Kept
    }
}

/// The line about a check that was not made. Several are made at a time, so it names its check.
fn unchecked(check: &str, why: &str) -> String {
    format!("contract: NOT CHECKED: {check}: {why}")
}

/// How long a check waits for what has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many checks run at a time. They wait more than they compute.
const AT_ONCE: usize = 3;

/// Checks that a broker keeps the contract. The function makes a new queue for each check, and several checks run at the
/// same time, so a queue must not share its items or its dead letters with another one; its leases should be short, such as
/// 300 milliseconds.
///
/// # Panics
///
/// If it does not. The name of the check is printed.
pub async fn check<S: Subject>(make: impl AsyncFn() -> S) {
    check_all(AT_ONCE, make).await;
}

/// [`check`] with one check after the other, for a server that disturbs its queues while it makes another one, such as
/// RabbitMQ.
///
/// # Panics
///
/// As [`check`].
pub async fn check_one_by_one<S: Subject>(make: impl AsyncFn() -> S) {
    check_all(1, make).await;
}

async fn check_all<S: Subject>(at_once: usize, make: impl AsyncFn() -> S) {
    let places = Semaphore::new(at_once);
    macro_rules! run {
        ($($check:ident),* $(,)?) => {
            tokio::join!($(Box::pin(async {
                let _place = places.acquire().await;
                println!("contract: {}", stringify!($check));
                let checked = async { $check(Arc::new(make().await)).await };
                match AssertUnwindSafe(checked).catch_unwind().await.map(Checked::from) {
                    Ok(Checked::Kept) => {}
                    Ok(Checked::Not(why)) => println!("{}", unchecked(stringify!($check), why)),
                    Err(panic) => {
                        println!("contract: NOT KEPT: {}", stringify!($check));
                        resume_unwind(panic);
                    }
                }
            })),*)
        };
    }
    run!(
        each_item_is_handled_and_forgotten,
        an_item_arrives_with_all_that_belongs_to_it,
        a_payload_is_any_bytes,
        a_failed_item_is_delivered_again_and_then_given_up,
        an_item_that_is_postponed_is_not_given_up,
        a_delay_is_ended_although_the_first_call_for_it_fails,
        an_item_that_cannot_be_decoded_is_given_up_and_the_others_go_on,
        a_malformed_item_is_given_up_and_the_others_go_on,
        nothing_is_fetched_without_demand,
        a_drain_gives_back_what_it_has_not_handled,
        a_lease_is_renewed_while_its_item_is_handled,
        the_items_of_a_dead_pipeline_are_delivered_again,
        sources_share_a_queue,
        a_broker_that_is_away_is_connected_to_again,
        outcomes_are_stored_after_the_broker_was_away,
        a_snapshot_shows_the_source,
        outcomes_that_are_not_stored_stop_the_fetching,
        an_outcome_that_is_refused_by_errors_stops_no_other,
        an_outcome_that_is_refused_by_a_list_stops_no_other,
        dead_letters_that_have_no_room_stop_no_other_outcome,
        a_backlog_that_cannot_be_counted_stops_nothing,
        a_call_that_hangs_ends_its_session,
        healthy_items_survive_lost_connections_and_deaths,
        deliveries_that_were_lost_are_no_failures,
        an_item_that_ends_each_process_is_given_up,
        a_forgotten_acknowledgement_is_a_failure,
        a_drain_while_the_broker_is_away_ends_when_nothing_is_left,
        leases_are_renewed_while_outcomes_are_stored_slowly,
    );
}

/// Options with short delays.
fn quick() -> SourceOptions {
    let backoff = |ms| {
        let delay = Duration::from_millis(ms);
        Backoff::new(delay, delay).jitter(Jitter::None)
    };
    SourceOptions::new().max_deliveries(3).redeliver_after(backoff(10)).reconnect_after(backoff(50))
}

/// What a pipeline has handled.
type Seen = Arc<Mutex<Vec<(String, Metadata)>>>;

/// A processor that calls a function. It has one type, whatever the function, so the stages are compiled once for
/// all checks.
struct Calls(Box<Function>);

type Function =
    dyn for<'a> Fn(&'a mut Message<Item>) -> BoxFuture<'a, Result<(), Failure>> + Send + Sync;

impl Processor<Item> for Calls {
    type Output = ();

    async fn handle_message(&self, message: &mut Message<Item>) -> Result<(), Failure> {
        (self.0)(message).await
    }
}

fn processors<F>(function: F) -> Processors<Item, Calls>
where
    F: for<'a> AsyncMut<'a, Message<Item>, ()> + Clone + Send + Sync + 'static,
{
    Processors::new(Calls(Box::new(move |message| function.clone()(message).boxed())))
}

/// Starts a pipeline with one processor that records each item, and fails those for which the function
/// says so.
fn start<B: Broker>(source: Source<B>, fails: fn(&str) -> Option<Failure>) -> (Pipeline, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text.clone(), message.metadata().clone()));
        fails(&text).map_or(Ok(()), Err)
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(source)
        .processors(processors(handle).concurrency(1))
        .start();
    (pipeline.expect("the options are valid"), seen)
}

fn texts(seen: &Seen) -> Vec<String> {
    seen.lock().iter().map(|(text, _)| text.clone()).collect()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A queue is empty if a new source gets a new item and nothing else for longer than a lease.
async fn assert_nothing_is_left<S: Subject>(subject: &S) {
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    subject.push(Item::new("a new one")).await;
    until("a new item is handled", async || texts(&seen).contains(&"a new one".to_owned())).await;
    sleep(subject.broker().lease().unwrap_or_default().saturating_mul(2)).await;
    assert_eq!(texts(&seen), ["a new one"], "items are left");
    pipeline.drain(PATIENCE).await;
}

async fn each_item_is_handled_and_forgotten<S: Subject>(subject: Arc<S>) {
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    for n in 0..50 {
        subject.push(Item::new(n.to_string())).await;
    }
    until("all are handled", async || seen.lock().len() >= 50).await;
    assert!(pipeline.drain(PATIENCE).await.completed, "the outcomes are stored");
    let mut handled = texts(&seen);
    if !subject.is_ordered() {
        handled.sort_by_key(|text| text.parse::<u64>().ok());
    }
    assert_eq!(handled, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_nothing_is_left(&*subject).await;
}

async fn an_item_arrives_with_all_that_belongs_to_it<S: Subject>(subject: Arc<S>) {
    let trace = TraceContext::random();
    let before = clock::now();
    let item = Item::new("").key("ключ").header("kind", "a \"test\"").header("empty", "");
    subject.push(item.clone().trace(trace)).await;
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    until("it is handled", async || !seen.lock().is_empty()).await;
    pipeline.drain(PATIENCE).await;
    let (text, metadata) = seen.lock()[0].clone();
    assert_eq!(text, "");
    assert_eq!(metadata.key, item.key);
    let headers: Vec<_> = item.headers.into_iter().collect();
    assert_eq!(metadata.headers, headers);
    let id = |trace: TraceContext| trace.trace_id().to_string();
    assert_eq!(metadata.trace.map(id), Some(id(trace)));
    assert!(metadata.id.is_some_and(|id| !id.is_empty()));
    assert_eq!(metadata.deliveries, u32::from(subject.counts_deliveries()));
    // The broker may keep seconds or have a clock of its own, on the same machine.
    let enqueued = metadata.enqueued_at.expect("it is known when it was added");
    let (second, now) = (Duration::from_secs(1), clock::now());
    let is_after = |time: SystemTime, other| time.checked_add(second).is_some_and(|it| it >= other);
    assert!(is_after(enqueued, before) && is_after(now, enqueued), "added at {enqueued:?}");
}

async fn a_payload_is_any_bytes<S: Subject>(subject: Arc<S>) {
    let payloads = [vec![], vec![0], vec![0xff, 0xfe, 0x80], (0..=255).collect::<Vec<u8>>()];
    for payload in &payloads {
        subject.push(Item::new(payload.clone())).await;
    }
    let handled = Arc::new(Mutex::new(Vec::new()));
    let log = handled.clone();
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push(message.payload.to_vec());
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), quick()))
        .processors(processors(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    until("all are handled", async || handled.lock().len() >= payloads.len()).await;
    pipeline.drain(PATIENCE).await;
    let mut handled = handled.lock().clone();
    handled.sort_by_key(Vec::len);
    assert_eq!(handled, payloads);
}

async fn a_failed_item_is_delivered_again_and_then_given_up<S: Subject>(subject: Arc<S>) {
    subject.push(Item::new("bad")).await;
    subject.push(Item::new("good")).await;
    let fails = |text: &str| (text == "bad").then(|| Failure::new("it is bad"));
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), fails);
    until("it is given up", async || !subject.dead_letters().await.is_empty()).await;
    until("the other is handled", async || texts(&seen).contains(&"good".to_owned())).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(subject.dead_letters().await, ["it is bad"]);
    let deliveries = seen
        .lock()
        .iter()
        .filter(|(text, _)| text == "bad")
        .map(|(_, it)| it.deliveries)
        .collect::<Vec<_>>();
    let counted = if subject.counts_deliveries() { [1, 2, 3] } else { [0, 0, 0] };
    assert_eq!(deliveries, counted);
    assert_nothing_is_left(&*subject).await;
}

async fn an_item_that_is_postponed_is_not_given_up<S: Subject>(subject: Arc<S>) {
    const LOOKS: usize = 8;
    const DELAY: Duration = Duration::from_millis(100);
    subject.push(Item::new("1")).await;
    let (seen, times) = (Seen::default(), Arc::new(Mutex::new(Vec::new())));
    let (log, looked) = (seen.clone(), times.clone());
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push((String::new(), message.metadata().clone()));
        looked.lock().push(Instant::now());
        if looked.lock().len() < LOOKS {
            return Err(Failure::new("its time has not come").later(DELAY));
        }
        Ok(())
    };
    let mut options = quick();
    if !subject.uncounts_releases() {
        options = options.max_deliveries(u32::MAX);
    }
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), options))
        .processors(processors(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    until("it is looked at again and again", async || seen.lock().len() >= LOOKS).await;
    pipeline.drain(PATIENCE).await;
    if subject.uncounts_releases() {
        let deliveries: Vec<_> = seen.lock().iter().map(|(_, it)| it.deliveries).collect();
        assert!(deliveries.iter().all(|count| *count <= 1), "{deliveries:?}");
    }
    // A delay may be measured by another clock.
    let between = times.lock().windows(2).map(|two| two[1] - two[0]).min();
    assert!(between >= Some(DELAY / 2), "{between:?}");
    assert_eq!(subject.dead_letters().await, [] as [String; 0]);
    assert_nothing_is_left(&*subject).await;
}

async fn a_delay_is_ended_although_the_first_call_for_it_fails<S: Subject>(
    subject: Arc<S>,
) -> Checked {
    if !<<S::Broker as Broker>::Settle as Settle>::WAKES {
        return Checked::Not("the broker ends no delays");
    }
    const HOUR: Duration = Duration::from_secs(3600);
    subject.push(Item::new("1")).await;
    let (seen, wake) = (Seen::default(), Wake::new());
    let (log, signal) = (seen.clone(), wake.clone());
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push((String::new(), message.metadata().clone()));
        if log.lock().len() == 1 {
            return Err(Failure::new("its time has not come").later(HOUR).woken_by(&signal));
        }
        Ok(())
    };
    let (broker, faults) = Faulty::new(subject.broker());
    // Not so many calls fail that they are given up.
    let delay = Duration::from_millis(500);
    let backoff = Backoff::new(delay, delay).jitter(Jitter::None);
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, quick().reconnect_after(backoff)))
        .processors(processors(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("it is postponed", async || source().released == 1).await;
    faults.fail(Call::Wake);
    wake.wake();
    until("a call has failed", async || faults.attempts() > 0).await;
    faults.come_back();
    until("it is delivered again", async || seen.lock().len() == 2).await;
    assert!(pipeline.drain(PATIENCE).await.completed, "the outcome is stored");
    Checked::Kept
}

async fn an_item_that_cannot_be_decoded_is_given_up_and_the_others_go_on<S: Subject>(
    subject: Arc<S>,
) {
    for text in ["1", "one", "2"] {
        subject.push(Item::new(text)).await;
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |n: &mut Message<u64>| {
        log.lock().push(**n);
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), quick()).json::<u64>())
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    until("the others are handled", async || seen.lock().len() == 2).await;
    until("it is given up", async || !subject.dead_letters().await.is_empty()).await;
    pipeline.drain(PATIENCE).await;
    let reasons = subject.dead_letters().await;
    assert!(
        reasons.len() == 1 && reasons[0].starts_with("not valid JSON: expected value"),
        "{reasons:?}"
    );
}

async fn a_malformed_item_is_given_up_and_the_others_go_on<S: Subject>(subject: Arc<S>) -> Checked {
    subject.push(Item::new("1")).await;
    if !subject.push_malformed().await {
        return Checked::Not("no malformed item was added");
    }
    subject.push(Item::new("2")).await;
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    until("it is given up", async || !subject.dead_letters().await.is_empty()).await;
    until("the others are handled", async || seen.lock().len() == 2).await;
    pipeline.drain(PATIENCE).await;
    let mut handled = texts(&seen);
    if !subject.is_ordered() {
        handled.sort();
    }
    assert_eq!(handled, ["1", "2"]);
    let reasons = subject.dead_letters().await;
    assert!(reasons.len() == 1 && !reasons[0].is_empty(), "{reasons:?}");
    assert_nothing_is_left(&*subject).await;
    Checked::Kept
}

async fn nothing_is_fetched_without_demand<S: Subject>(subject: Arc<S>) {
    for n in 0..60 {
        subject.push(Item::new(n.to_string())).await;
    }
    let (broker, faults) = Faulty::new(subject.broker());
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handle = async move |_: &mut Message<Item>| {
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, quick()))
        .processors(processors(handle).concurrency(2).max_demand(5))
        .start()
        .expect("the options are valid");
    until("it fetches what is asked for", async || faults.fetched() == 10).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(faults.fetched(), 10, "two processors ask for five each");
    opened.add_permits(60);
    // On a busy machine a lease may be over before it is renewed, and its item is fetched again.
    until("all are fetched", async || faults.fetched() >= 60).await;
    pipeline.drain(PATIENCE).await;
}

async fn a_drain_gives_back_what_it_has_not_handled<S: Subject>(subject: Arc<S>) {
    const ITEMS: usize = 60;
    for n in 0..ITEMS {
        subject.push(Item::new(n.to_string())).await;
    }
    let (begun, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let handled = Arc::new(Mutex::new(0));
    let (at_work, opened, count) = (begun.clone(), gate.clone(), handled.clone());
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        gate.acquire().await?.forget();
        *count.lock() += 1;
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), quick()))
        .processors(processors(handle).concurrency(1).max_demand(6))
        .start()
        .expect("the options are valid");
    begun.notified().await;
    pipeline.begin_drain(PATIENCE);
    opened.add_permits(ITEMS);
    let mut pipeline = pipeline;
    assert!(pipeline.join().await.completed);
    let handled = *handled.lock();
    assert!((1..ITEMS).contains(&handled), "{handled}");
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    until("the others are handled", async || seen.lock().len() >= ITEMS - handled).await;
    pipeline.drain(PATIENCE).await;
    let seen = seen.lock();
    assert_eq!(seen.len(), ITEMS - handled, "none is handled twice");
    // One whose lease was over would be a second delivery.
    if subject.counts_deliveries() && subject.uncounts_drains() {
        assert!(seen.iter().all(|(_, it)| it.deliveries == 1), "they were given back");
    }
}

/// A handler that never ends, and what tells that it has begun.
fn stuck<B: Broker>(broker: B) -> (Pipeline, Arc<Notify>) {
    stuck_with(broker, quick())
}

fn stuck_with<B: Broker>(broker: B, options: SourceOptions) -> (Pipeline, Arc<Notify>) {
    let begun = Arc::new(Notify::new());
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, options))
        .processors(processors(handle).concurrency(1).max_demand(20))
        .start();
    (pipeline.expect("the options are valid"), begun)
}

async fn a_lease_is_renewed_while_its_item_is_handled<S: Subject>(subject: Arc<S>) {
    let Some(lease) = subject.broker().lease() else { return };
    subject.push(Item::new("slow")).await;
    let (pipeline, begun) = stuck(subject.broker());
    begun.notified().await;
    let (other, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    sleep(lease.saturating_mul(3)).await;
    assert_eq!(texts(&seen), [] as [String; 0], "it is in work elsewhere");
    other.drain(PATIENCE).await;
    drop(pipeline);
}

async fn the_items_of_a_dead_pipeline_are_delivered_again<S: Subject>(subject: Arc<S>) {
    subject.push(Item::new("7")).await;
    let (pipeline, begun) = stuck(subject.broker());
    begun.notified().await;
    // Dropping a pipeline ends its tasks at once, as the death of its process does.
    drop(pipeline);
    let (pipeline, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    until("it is handled", async || texts(&seen) == ["7"]).await;
    let deliveries = seen.lock()[0].1.deliveries;
    // On another thread, the source may just have given it back, which is not counted.
    let most = if subject.counts_deaths() { 2 } else { 1 };
    assert!(deliveries <= most, "delivered {deliveries} times");
    pipeline.drain(PATIENCE).await;
    assert_nothing_is_left(&*subject).await;
}

async fn sources_share_a_queue<S: Subject>(subject: Arc<S>) {
    let sources = [(); 3].map(|()| start(Source::new(subject.broker(), quick()), |_| None));
    for n in 0..120 {
        subject.push(Item::new(n.to_string())).await;
    }
    let count = || sources.iter().map(|(_, seen)| seen.lock().len()).sum::<usize>();
    until("all are handled", async || count() >= 120).await;
    let mut handled = HashMap::<String, usize>::new();
    for (pipeline, seen) in sources {
        pipeline.drain(PATIENCE).await;
        texts(&seen).into_iter().for_each(|text| *handled.entry(text).or_default() += 1);
    }
    assert_eq!(handled.len(), 120);
    assert!(
        handled.values().all(|times| *times == 1),
        "nothing has failed, so nothing comes twice"
    );
}

async fn a_broker_that_is_away_is_connected_to_again<S: Subject>(subject: Arc<S>) {
    let (broker, faults) = Faulty::new(subject.broker());
    let (pipeline, seen) = start(Source::new(broker, quick()), |_| None);
    subject.push(Item::new("1")).await;
    until("the first is handled", async || texts(&seen) == ["1"]).await;
    faults.go_away();
    let (attempts, begun) = (faults.attempts(), Instant::now());
    until("it tries to connect", async || faults.attempts() >= attempts + 3).await;
    // A try every 50 milliseconds at most: no busy loop.
    let tries = u128::try_from(faults.attempts() - attempts).unwrap_or(u128::MAX);
    assert!(tries <= begun.elapsed().as_millis() / 50 + 2, "{tries} in {:?}", begun.elapsed());
    subject.push(Item::new("2")).await;
    faults.come_back();
    until("the second is handled", async || texts(&seen).contains(&"2".to_owned())).await;
    pipeline.drain(PATIENCE).await;
    assert_nothing_is_left(&*subject).await;
}

async fn a_snapshot_shows_the_source<S: Subject>(subject: Arc<S>) {
    let broker = subject.broker();
    let description = broker.description().into_owned();
    let (broker, faults) = Faulty::new(broker);
    let fails = |text: &str| (text == "bad").then(|| Failure::new("it is bad").give_up());
    // The queue is made first: a server may end a connection that reads from one while it is being made.
    for text in ["good", "bad"] {
        subject.push(Item::new(text)).await;
    }
    let (pipeline, _) = start(Source::new(broker, quick()), fails);
    let source = || {
        let first = pipeline.snapshot().stages.swap_remove(0);
        first.source.expect("it is a durable source")
    };
    until("it shows what was handled", async || {
        let seen = source();
        seen.connected && seen.done == 1 && seen.given_up == 1
    })
    .await;
    assert_eq!((&*source().broker, source().last_error), (&*description, None));
    faults.go_away();
    until("it shows that the broker is away", async || source().connection_errors > 0).await;
    let error = source().last_error.unwrap_or_default();
    assert!(error.contains("away"), "the last error: {error}");
    until("it is not connected", async || !source().connected).await;
    faults.come_back();
    until("it is connected again", async || source().connected).await;
    pipeline.drain(PATIENCE).await;
    assert_nothing_is_left(&*subject).await;
}

async fn outcomes_are_stored_after_the_broker_was_away<S: Subject>(subject: Arc<S>) {
    let (broker, faults) = Faulty::new(subject.broker());
    let gate = Arc::new(Semaphore::new(0));
    let (begun, opened) = (Arc::new(Notify::new()), gate.clone());
    let (at_work, handled) = (begun.clone(), Arc::new(Mutex::new(0)));
    let count = handled.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        gate.acquire().await?.forget();
        *count.lock() += 1;
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, quick()))
        .processors(processors(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    subject.push(Item::new("1")).await;
    begun.notified().await;
    faults.go_away();
    opened.add_permits(100);
    until("it is handled while the broker is away", async || *handled.lock() > 0).await;
    let attempts = faults.attempts();
    until("its outcome cannot be stored", async || faults.attempts() > attempts).await;
    faults.come_back();
    if !subject.outlives_sessions() {
        until("it is delivered again", async || *handled.lock() > 1).await;
    }
    assert!(pipeline.drain(PATIENCE).await.completed, "the outcome is stored");
    assert_nothing_is_left(&*subject).await;
}

async fn outcomes_that_are_not_stored_stop_the_fetching<S: Subject>(subject: Arc<S>) {
    for n in 0..60 {
        subject.push(Item::new(n.to_string())).await;
    }
    let (broker, faults) = Faulty::new(subject.broker());
    faults.hang(Call::Settle);
    let source = Source::new(broker, quick().max_unsettled(20));
    let (pipeline, seen) = start(source, |_| None);
    until("it fetches what it may hold", async || faults.fetched() == 20).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(faults.fetched(), 20, "no more is held than the options say");
    faults.come_back();
    until("all are handled", async || seen.lock().len() >= 60).await;
    pipeline.drain(PATIENCE).await;
}

/// Adds good items and a bad one, which is given up while this cannot be stored. The good ones are stored
/// all the same, and the bad one later.
async fn one_is_refused<B: Broker, S: Subject>(
    subject: &S,
    broker: B,
    shows: impl Fn(&SourceSnapshot) -> bool,
    come_back: impl AsyncFnOnce(),
) {
    const GOOD: usize = 39;
    for n in 0..GOOD {
        subject.push(Item::new(n.to_string())).await;
        if n == GOOD / 2 {
            subject.push(Item::new("bad")).await;
        }
    }
    let fails = |text: &str| (text == "bad").then(|| Failure::new("it is bad").give_up());
    let (pipeline, seen) = start(Source::new(broker, quick()), fails);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("the outcomes of the others are stored", async || source().done >= GOOD as u64).await;
    until("the refused one is seen", async || shows(&source())).await;
    assert_eq!(source().given_up, 0);
    // New items are handled meanwhile.
    subject.push(Item::new("new")).await;
    until("a new one is handled", async || source().done > GOOD as u64).await;
    come_back().await;
    until("it is a dead letter", async || !subject.dead_letters().await.is_empty()).await;
    assert!(pipeline.drain(PATIENCE).await.completed, "all outcomes are stored");
    assert_eq!(subject.dead_letters().await.len(), 1);
    let mut good = texts(&seen);
    good.retain(|text| text != "bad");
    good.sort();
    good.dedup();
    assert_eq!(good.len(), GOOD + 1);
    assert_nothing_is_left(subject).await;
}

async fn an_outcome_that_is_refused_by_errors_stops_no_other<S: Subject>(subject: Arc<S>) {
    let (broker, faults) = Faulty::new(subject.broker());
    faults.refuse(Refusing::ByErrors);
    let before = faults.clone();
    let shows = |source: &SourceSnapshot| source.connection_errors > 2 && before.attempts() > 2;
    one_is_refused(&*subject, broker, shows, async || faults.come_back()).await;
}

async fn an_outcome_that_is_refused_by_a_list_stops_no_other<S: Subject>(subject: Arc<S>) {
    let (broker, faults) = Faulty::new(subject.broker());
    faults.refuse(Refusing::ByLists);
    let shows = |source: &SourceSnapshot| {
        assert_eq!(source.connection_errors, 0, "the session continues");
        source.set_aside == 1
    };
    one_is_refused(&*subject, broker, shows, async || faults.come_back()).await;
}

async fn dead_letters_that_have_no_room_stop_no_other_outcome<S: Subject>(
    subject: Arc<S>,
) -> Checked {
    if !subject.fill_graves().await {
        return Checked::Not("the subject cannot fill its place for dead letters");
    }
    let shows = |source: &SourceSnapshot| source.set_aside == 1 || source.connection_errors > 2;
    let come_back = async || subject.empty_graves().await;
    one_is_refused(&*subject, subject.broker(), shows, come_back).await;
    Checked::Kept
}

async fn a_backlog_that_cannot_be_counted_stops_nothing<S: Subject>(subject: Arc<S>) {
    for hangs in [true, false] {
        let (broker, faults) = Faulty::new(subject.broker());
        if hangs {
            faults.hang(Call::Backlog);
        } else {
            faults.fail(Call::Backlog);
        }
        // The queue is made here. A server may end a connection that uses one while another makes it.
        for n in 0..30 {
            subject.push(Item::new(n.to_string())).await;
        }
        let (pipeline, seen) = start(Source::new(broker, quick()), |_| None);
        let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
        until("all are done", async || source().done == 30).await;
        let (errors, error) = (source().connection_errors, source().last_error);
        assert_eq!((seen.lock().len(), errors, error), (30, 0, None));
        pipeline.drain(PATIENCE).await;
    }
    assert_nothing_is_left(&*subject).await;
}

async fn a_call_that_hangs_ends_its_session<S: Subject>(subject: Arc<S>) {
    let leased = subject.broker().lease().is_some();
    let calls = [(Call::Connect, "connecting"), (Call::Settle, "storing outcomes")];
    let renew = (Call::Renew, "renewing leases");
    for (call, name) in calls.into_iter().chain(leased.then_some(renew)) {
        let (broker, faults) = Faulty::new(subject.broker());
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let handle = async move |_: &mut Message<Item>| {
            gate.acquire().await?.forget();
            Ok(())
        };
        faults.hang(call);
        let options = quick().call_timeout(Duration::from_millis(200));
        let pipeline = Pipeline::of_messages("contract")
            .source(Source::new(broker, options))
            .processors(processors(handle).concurrency(1))
            .start()
            .expect("the options are valid");
        let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
        subject.push(Item::new("1")).await;
        // An item in work has its lease renewed, and one that is handled has its outcome stored.
        if call == Call::Settle {
            opened.add_permits(1000);
        }
        // A busy server may fail for another reason in between.
        until(&format!("{name} ends the session"), async || {
            source().last_error.is_some_and(|error| error.contains(name))
        })
        .await;
        opened.add_permits(1000);
        faults.come_back();
        until("it is done", async || source().done > 0).await;
        assert!(pipeline.drain(PATIENCE).await.completed);
        assert_nothing_is_left(&*subject).await;
    }
}

async fn healthy_items_survive_lost_connections_and_deaths<S: Subject>(subject: Arc<S>) {
    const ITEMS: usize = 20;
    const TIMES: usize = 7;
    let delay = Duration::from_millis(20);
    // All other options are the defaults.
    let options = SourceOptions::new().reconnect_after(Backoff::new(delay, delay));
    for n in 0..ITEMS {
        subject.push(Item::new(n.to_string())).await;
    }
    for _ in 0..TIMES {
        let (pipeline, begun) = stuck_with(subject.broker(), options);
        begun.notified().await;
        drop(pipeline);
    }
    let (broker, faults) = Faulty::new(subject.broker());
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (opened, at_work) = (gate.clone(), begun.clone());
    let handled = Arc::new(Mutex::new(HashMap::<Vec<u8>, usize>::new()));
    let log = handled.clone();
    let handle = async move |message: &mut Message<Item>| {
        *log.lock().entry(message.payload.to_vec()).or_default() += 1;
        at_work.notify_one();
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, options))
        // A fetch waits for more, and notices that the broker is away.
        .processors(processors(handle).concurrency(1).max_demand(2 * ITEMS))
        .start()
        .expect("the options are valid");
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    begun.notified().await;
    for _ in 0..TIMES {
        faults.go_away();
        until("it is noticed", async || !source().connected).await;
        faults.come_back();
        until("it is connected again", async || source().connected).await;
        if !subject.broker().outlives_sessions() {
            // What was begun in the lost session ends, and one that has come again begins.
            opened.add_permits(1);
            begun.notified().await;
        }
    }
    opened.add_permits(10_000);
    until("all are handled", async || handled.lock().len() == ITEMS).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
    assert_eq!(subject.dead_letters().await, [] as [String; 0]);
    if !subject.broker().outlives_sessions() {
        let twice = handled.lock().values().map(|times| times - 1).sum::<usize>();
        assert!(twice <= TIMES, "{twice} items were handled that a lost session had fetched");
    }
    assert_nothing_is_left(&*subject).await;
}

async fn deliveries_that_were_lost_are_no_failures<S: Subject>(subject: Arc<S>) {
    const ITEMS: usize = 10;
    const MOST: usize = 3;
    for n in 1..ITEMS {
        subject.push(Item::new(n.to_string())).await;
    }
    subject.push(Item::new("bad")).await;
    for _ in 0..=MOST {
        let (broker, faults) = Faulty::new(subject.broker());
        let (pipeline, begun) = stuck(broker);
        begun.notified().await;
        until("all are delivered", async || faults.fetched() >= ITEMS).await;
        drop(pipeline);
    }
    let handled = Arc::new(Mutex::new(HashMap::<Vec<u8>, usize>::new()));
    let log = handled.clone();
    let handle = async move |message: &mut Message<Item>| {
        let mut handled = log.lock();
        let times = handled.entry(message.payload.to_vec()).or_default();
        *times += 1;
        if *times < MOST || message.payload == "bad" {
            return Err(Failure::new("it has failed"));
        }
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), quick()))
        .processors(processors(handle).concurrency(1))
        .start()
        .expect("the options are valid");
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("all have an outcome", async || {
        let seen = source();
        seen.done + seen.given_up >= ITEMS as u64
    })
    .await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(subject.dead_letters().await, ["it has failed"], "one of them always fails");
    let handled = handled.lock().clone();
    assert!(handled.len() == ITEMS && handled.values().all(|times| *times >= MOST), "{handled:?}");
    assert_nothing_is_left(&*subject).await;
}

async fn an_item_that_ends_each_process_is_given_up<S: Subject>(subject: Arc<S>) -> Checked {
    if !subject.gives_up_after_deaths() {
        return Checked::Not("the broker does not count the deliveries of dead processes");
    }
    subject.push(Item::new("poison")).await;
    let options = || quick().max_unfinished(3);
    // On another thread, the source may give it back before it ends, which is not counted.
    for _ in 0..20 {
        let (pipeline, begun) = stuck_with(subject.broker(), options());
        let is_delivered = async || {
            let given_up = async || !subject.dead_letters().await.is_empty();
            until("it is given up", given_up).await;
            false
        };
        let delivered = tokio::select! {
            () = begun.notified() => true,
            is_delivered = is_delivered() => is_delivered,
        };
        if !delivered {
            // The dead letter is there before the item is taken off the queue.
            pipeline.drain(PATIENCE).await;
            break;
        }
        drop(pipeline);
    }
    assert_eq!(subject.dead_letters().await.len(), 1);
    assert_nothing_is_left(&*subject).await;
    Checked::Kept
}

async fn a_forgotten_acknowledgement_is_a_failure<S: Subject>(subject: Arc<S>) {
    subject.push(Item::new("1")).await;
    let handled = Arc::new(Mutex::new(0));
    let count = handled.clone();
    let forget = async move |message: &mut Message<Item>| {
        *count.lock() += 1;
        drop(message.take_acknowledgement());
        Ok(())
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(subject.broker(), quick()))
        .processors(processors(forget).concurrency(1))
        .start()
        .expect("the options are valid");
    until("it is given up", async || !subject.dead_letters().await.is_empty()).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*handled.lock(), 3, "it is delivered as often as one that fails");
    let reasons = subject.dead_letters().await;
    assert!(reasons.len() == 1 && reasons[0].contains("dropped"), "{reasons:?}");
    assert_nothing_is_left(&*subject).await;
}

async fn a_drain_while_the_broker_is_away_ends_when_nothing_is_left<S: Subject>(subject: Arc<S>) {
    let (broker, faults) = Faulty::new(subject.broker());
    let (pipeline, seen) = start(Source::new(broker, quick()), |_| None);
    subject.push(Item::new("1")).await;
    until("it is handled", async || texts(&seen) == ["1"]).await;
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("it is done", async || source().done == 1).await;
    faults.go_away();
    until("it is noticed", async || !source().connected).await;
    assert!(pipeline.drain(PATIENCE).await.completed, "nothing is left to be stored");
    assert_nothing_is_left(&*subject).await;
}

async fn leases_are_renewed_while_outcomes_are_stored_slowly<S: Subject>(subject: Arc<S>) {
    let Some(lease) = subject.broker().lease() else { return };
    let (broker, faults) = Faulty::new(subject.broker());
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let slow = async move |message: &mut Message<Item>| {
        if message.payload == "slow" {
            gate.acquire().await?.forget();
        }
        Ok(())
    };
    subject.push(Item::new("slow")).await;
    for n in 0..20 {
        subject.push(Item::new(n.to_string())).await;
    }
    // To store all of them takes several leases.
    faults.settle_slowly(lease / 3);
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, quick().settle_at_once(1)))
        .processors(processors(slow).concurrency(2).max_demand(1))
        .start()
        .expect("the options are valid");
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("all are fetched", async || source().fetched == 21).await;
    let (other, seen) = start(Source::new(subject.broker(), quick()), |_| None);
    until("the others are done", async || source().done == 20).await;
    assert_eq!(texts(&seen), [] as [String; 0], "an item in work was delivered elsewhere");
    assert_eq!(source().redelivered, 0);
    opened.add_permits(10);
    until("all are done", async || source().done == 21).await;
    other.drain(PATIENCE).await;
    pipeline.drain(PATIENCE).await;
    assert_nothing_is_left(&*subject).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_check_that_was_not_made_has_its_name() {
        let line = unchecked("a_drain_is_short", "there is none");
        assert_eq!(line, "contract: NOT CHECKED: a_drain_is_short: there is none");
    }
}
