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
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Metadata, Processors},
    timed::TraceContext,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};

pub use self::faulty::{Faults, Faulty};
use crate::{broker::Broker, item::Item, options::SourceOptions, source::Source};

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

    /// Adds an item that the broker cannot read, as another program may. Returns false if all can be read.
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

    /// Whether deliveries without an outcome, in a process that has died, are counted.
    fn counts_deaths(&self) -> bool {
        true
    }

    /// Whether an item that is given back counts as not delivered.
    fn uncounts_releases(&self) -> bool {
        true
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

/// How long a check waits for what has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks that a broker keeps the contract. The function makes a new queue for each check; its leases
/// should be short, such as 300 milliseconds.
///
/// # Panics
///
/// If it does not, with the name of the check.
pub async fn check<S: Subject>(make: impl AsyncFn() -> S) {
    macro_rules! run {
        ($($check:ident),* $(,)?) => {
            $(
                println!("contract: {}", stringify!($check));
                $check(Arc::new(make().await)).await;
            )*
        };
    }
    run!(
        each_item_is_handled_and_forgotten,
        an_item_arrives_with_all_that_belongs_to_it,
        a_failed_item_is_delivered_again_and_then_given_up,
        an_item_that_is_postponed_is_not_given_up,
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
        .processors(Processors::from_fn(handle).concurrency(1))
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
    assert!(metadata.deliveries <= 1);
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
    assert!(deliveries == [1, 2, 3] || deliveries == [0, 0, 0], "{deliveries:?}");
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
        .processors(Processors::from_fn(handle).concurrency(1))
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
    assert!(reasons.len() == 1 && reasons[0].contains("expected value"), "{reasons:?}");
}

async fn a_malformed_item_is_given_up_and_the_others_go_on<S: Subject>(subject: Arc<S>) {
    subject.push(Item::new("1")).await;
    if !subject.push_malformed().await {
        return;
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
        .processors(Processors::from_fn(handle).concurrency(2).max_demand(5))
        .start()
        .expect("the options are valid");
    until("it fetches what is asked for", async || faults.fetched() == 10).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(faults.fetched(), 10, "two processors ask for five each");
    opened.add_permits(60);
    until("all are fetched", async || faults.fetched() == 60).await;
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
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(6))
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
    assert_eq!(seen.lock().len(), ITEMS - handled, "none is handled twice");
}

/// A handler that never ends, and what tells that it has begun.
fn stuck<B: Broker>(broker: B) -> (Pipeline, Arc<Notify>) {
    let begun = Arc::new(Notify::new());
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("contract")
        .source(Source::new(broker, quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
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
    assert!(deliveries == 0 || deliveries == if subject.counts_deaths() { 2 } else { 1 });
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
    let (pipeline, _) = start(Source::new(broker, quick()), fails);
    for text in ["good", "bad"] {
        subject.push(Item::new(text)).await;
    }
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
        .processors(Processors::from_fn(handle).concurrency(1))
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
    faults.stop_settling();
    let source = Source::new(broker, quick().max_unsettled(20));
    let (pipeline, seen) = start(source, |_| None);
    until("it fetches what it may hold", async || faults.fetched() == 20).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(faults.fetched(), 20, "no more is held than the options say");
    faults.come_back();
    until("all are handled", async || seen.lock().len() >= 60).await;
    pipeline.drain(PATIENCE).await;
}
