//! The queue in a SQLite file.
#![cfg(all(feature = "sqlite", feature = "test-kit"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Processors},
};
use pipeline_sources::{
    Backlog, Broker, BrokerError, Delivery, Fetch, Item, NotStored, Settle, Settlement, Source,
    SourceOptions,
    contract::{Subject, check},
    sqlite::{SqliteFetch, SqliteOptions, SqliteQueue, SqliteReceipt, SqliteSettle, push_in},
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// A file that is removed at the end.
fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    (folder, path)
}

fn text(message: &Message<Item>) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Retries without much delay.
fn quick() -> SourceOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    SourceOptions::new().redeliver_after(backoff.jitter(Jitter::None)).max_deliveries(3)
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Starts a pipeline that keeps the texts, and fails those for which the function says so.
fn keep(
    queue: &SqliteQueue,
    options: SourceOptions,
    fails: fn(&str) -> Option<Failure>,
) -> (Pipeline, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = text(message);
        log.lock().push(text.clone());
        fails(&text).map_or(Ok(()), Err)
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(options))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    (pipeline, seen)
}

async fn is_empty(queue: &SqliteQueue) -> bool {
    queue.backlog().await.unwrap().items == Some(0)
}

/// A queue in a folder of its own.
struct InFile(SqliteQueue, #[expect(dead_code, reason = "it is removed at the end")] TempDir);

impl Subject for InFile {
    type Broker = SqliteQueue;

    fn broker(&self) -> SqliteQueue {
        self.0.clone()
    }

    async fn push(&self, item: Item) {
        self.0.push(item).await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        let dead = self.0.dead_letters(0, 100).await.unwrap();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_in_a_file_keeps_the_contract() {
    for ordered in [false, true] {
        check(async || {
            let (folder, path) = file();
            let options = SqliteOptions::new().lease(Duration::from_millis(300));
            let options = options.ordered_by_key(ordered);
            InFile(SqliteQueue::open_with(path, "test", options).await.unwrap(), folder)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_delivered_in_order_and_forgotten_when_they_are_done() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    for n in 0..50 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    until("all are done", async || is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(pipeline.drain(PATIENCE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_fails_is_delivered_again_and_then_given_up() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    let item = Item::new("bad").key("k").header("kind", "test");
    let id = queue.push(item.clone()).await.unwrap();
    queue.push(Item::new("good")).await.unwrap();
    let fails = |text: &str| (text == "bad").then(|| Failure::new("it is bad"));
    let (pipeline, seen) = keep(&queue, quick(), fails);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().iter().filter(|text| *text == "bad").count(), 3);
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id, dead[0].deliveries, &*dead[0].reason), (id, 3, "it is bad"));
    assert_eq!(dead[0].item, item);
    assert!(dead[0].enqueued_at <= dead[0].given_up_at);

    // It can be replayed, and dropped.
    assert_eq!(queue.replay(id + 100).await.unwrap(), None);
    let new = queue.replay(id).await.unwrap().unwrap();
    assert!(new > id);
    assert_eq!(queue.backlog().await.unwrap().items, Some(1));
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
    assert!(!queue.drop_dead_letter(id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_cannot_be_read_is_given_up_and_the_others_go_on() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    for text in ["1", "one", "2"] {
        queue.push(Item::new(text)).await.unwrap();
    }
    let sum = Arc::new(Mutex::new(0));
    let total = sum.clone();
    let handle = async move |n: &mut Message<u64>| {
        *total.lock() += **n;
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()).json::<u64>())
        .processors(Processors::from_fn(handle))
        .start()
        .unwrap();
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*sum.lock(), 3);
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert!(dead[0].reason.contains("expected value"), "{}", dead[0].reason);
    assert_eq!(dead[0].deliveries, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_back_what_no_stage_has_begun_with() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push_all((0..100).map(|n| Item::new(n.to_string())).collect()).await.unwrap();
    let begun = Arc::new(tokio::sync::Notify::new());
    let (at_work, go) = (begun.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let gate = go.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(4))
        .start()
        .unwrap();
    begun.notified().await;
    go.add_permits(100);
    pipeline.drain(PATIENCE).await;
    let left = queue.backlog().await.unwrap().items.unwrap();
    assert!(left > 0);
    let again = SqliteQueue::open(&path, "numbers").await.unwrap();
    let (pipeline, seen) = keep(&again, quick(), |_| None);
    until("all are done", async || is_empty(&queue).await).await;
    assert_eq!(seen.lock().len() as u64, left);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drain_has_no_time_for_is_given_back_as_if_it_had_not_been_delivered() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push_all((0..5).map(|n| Item::new(n.to_string())).collect()).await.unwrap();
    let begun = Arc::new(tokio::sync::Notify::new());
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        std::future::pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(4))
        .start()
        .unwrap();
    begun.notified().await;
    pipeline.drain(Duration::from_millis(10)).await;
    let file = rusqlite::Connection::open(&path).unwrap();
    let select = "SELECT count(*), max(deliveries), count(lease) FROM pipeline_items";
    let counts = file.query_row(select, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    assert_eq!(counts, Ok((5, 0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_items_of_a_dead_process_are_delivered_again_after_their_lease() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().lease(Duration::from_millis(300));
    let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
    queue.push(Item::new("7")).await.unwrap();
    let begun = Arc::new(tokio::sync::Notify::new());
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.notify_one();
        std::future::pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    begun.notified().await;
    // The lease is renewed while the item is handled.
    let (second, seen) = keep(&queue, quick(), |_| None);
    sleep(Duration::from_millis(900)).await;
    assert!(seen.lock().is_empty());
    // Dropping a pipeline ends its tasks at once, as the death of its process does.
    drop(pipeline);
    until("it is done", async || is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), ["7"]);
    second.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_one_key_are_handled_in_order_although_one_fails() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().ordered_by_key(true);
    let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
    for n in 0..20 {
        let key = if n % 2 == 0 { "even" } else { "odd" };
        queue.push(Item::new(n.to_string()).key(key)).await.unwrap();
    }
    let failed = Arc::new(Mutex::new(false));
    let seen = Arc::new(Mutex::new(Vec::<u64>::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let n = text(message).parse::<u64>()?;
        if n == 4 && !std::mem::replace(&mut *failed.lock(), true) {
            return Err(Failure::new("not the first time"));
        }
        log.lock().push(n);
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(4))
        .start()
        .unwrap();
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let seen = seen.lock();
    let of = |parity| seen.iter().copied().filter(|n| n % 2 == parity).collect::<Vec<_>>();
    assert_eq!(of(0), (0..20).step_by(2).collect::<Vec<_>>());
    assert_eq!(of(1), (1..20).step_by(2).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_adds_items_in_its_own_transaction() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "orders").await.unwrap();
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    let program = rusqlite::Connection::open(&path).unwrap();
    program.busy_timeout(PATIENCE).unwrap();
    program.execute_batch("CREATE TABLE orders (id INTEGER)").unwrap();
    let add = |commit: bool| {
        let transaction = program.unchecked_transaction().unwrap();
        transaction.execute("INSERT INTO orders VALUES (1)", []).unwrap();
        push_in(&transaction, "orders", &Item::new(commit.to_string())).unwrap();
        if commit { transaction.commit().unwrap() } else { transaction.rollback().unwrap() }
    };
    add(false);
    add(true);
    program
        .execute("INSERT INTO pipeline_items (queue, payload) VALUES ('orders', 'by hand')", [])
        .unwrap();
    until("both are done", async || seen.lock().len() == 2 && is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), ["true", "by hand"]);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_kills_its_process_each_time_is_given_up() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().lease(Duration::from_millis(100));
    let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
    queue.push(Item::new("poison")).await.unwrap();
    for _ in 0..3 {
        let begun = Arc::new(tokio::sync::Notify::new());
        let at_work = begun.clone();
        let handle = async move |_: &mut Message<Item>| {
            at_work.notify_one();
            std::future::pending::<Result<(), Failure>>().await
        };
        let pipeline = Pipeline::of_messages("test")
            .source(queue.source(quick()))
            .processors(Processors::from_fn(handle).concurrency(1))
            .start()
            .unwrap();
        begun.notified().await;
        drop(pipeline);
    }
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert!(seen.lock().is_empty());
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(&*dead[0].reason, "delivered 4 times without an outcome");
}

/// A queue whose calls panic the first time before they have done anything, and the second time after it.
#[derive(Clone, Debug)]
struct Panicking {
    queue: SqliteQueue,
    calls: Arc<[AtomicUsize; 5]>,
}

const CONNECT: usize = 0;
const FETCH: usize = 1;
const SETTLE: usize = 2;
const RENEW: usize = 3;
const BACKLOG: usize = 4;

impl Panicking {
    async fn call<R>(&self, which: usize, call: impl Future<Output = R>) -> R {
        let nth = self.calls[which].fetch_add(1, Ordering::Relaxed);
        assert_ne!(nth, 0, "a panic before call {which}");
        let result = call.await;
        assert_ne!(nth, 1, "a panic after call {which}");
        result
    }
}

#[derive(Debug)]
struct PanickingHalf<H>(Panicking, H);

impl Broker for Panicking {
    type Receipt = SqliteReceipt;
    type Fetch = PanickingHalf<SqliteFetch>;
    type Settle = PanickingHalf<SqliteSettle>;

    async fn connect(&self) -> Result<(Self::Fetch, Self::Settle), BrokerError> {
        let (fetch, settle) = self.call(CONNECT, self.queue.connect()).await?;
        Ok((PanickingHalf(self.clone(), fetch), PanickingHalf(self.clone(), settle)))
    }

    fn lease(&self) -> Option<Duration> {
        self.queue.lease()
    }
}

impl Fetch for PanickingHalf<SqliteFetch> {
    type Receipt = SqliteReceipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<SqliteReceipt>>, BrokerError> {
        self.0.call(FETCH, self.1.fetch(max)).await
    }
}

impl Settle for PanickingHalf<SqliteSettle> {
    type Receipt = SqliteReceipt;

    async fn settle(
        &self,
        outcomes: &[Settlement<SqliteReceipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        self.0.call(SETTLE, self.1.settle(outcomes)).await
    }

    async fn renew(&self, receipts: &[SqliteReceipt]) -> Result<(), BrokerError> {
        self.0.call(RENEW, self.1.renew(receipts)).await
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        self.0.call(BACKLOG, self.1.backlog()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_calls_panic_is_connected_to_again_and_loses_nothing() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().lease(Duration::from_millis(300));
    let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
    let broker = Panicking { queue: queue.clone(), calls: Arc::default() };
    let reconnect = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    let options = quick().reconnect_after(reconnect).max_deliveries(u32::MAX);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        // An item is nearly always in work, so that its lease is renewed.
        sleep(Duration::from_millis(15)).await;
        log.lock().push(text(message));
        Ok(())
    };
    let mut pipeline = Pipeline::of_messages("test")
        .source(Source::new(broker.clone(), options))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    let mut numbers = Vec::new();
    // Items are added until each call has panicked twice, and has been made again.
    while broker.calls.iter().any(|calls| calls.load(Ordering::Relaxed) < 3) {
        assert!(numbers.len() < 3000, "called: {:?}", broker.calls);
        numbers.push(numbers.len().to_string());
        queue.push(Item::new(numbers[numbers.len() - 1].clone())).await.unwrap();
        let ended = timeout(Duration::from_millis(10), pipeline.join()).await;
        assert!(ended.is_err(), "the pipeline has ended");
    }
    until("all are done", async || is_empty(&queue).await).await;
    let report = pipeline.drain(PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    let mut seen = std::mem::take(&mut *seen.lock());
    seen.sort_by_key(|text| text.parse::<usize>().unwrap());
    seen.dedup();
    assert_eq!(seen, numbers);
    assert!(queue.dead_letters(0, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decoder_that_panics_fails_its_item_and_the_others_are_handled_once() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    let numbers: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    for text in &numbers {
        queue.push(Item::new(text.clone())).await.unwrap();
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |text: &mut Message<String>| {
        log.lock().push((**text).clone());
        Ok(())
    };
    let decode = |item: Item| {
        assert_ne!(&item.payload[..], b"7", "no luck");
        Ok(String::from_utf8(item.payload.to_vec())?)
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()).decode(decode))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("all are done", async || is_empty(&queue).await).await;
    let report = pipeline.drain(PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(*seen.lock(), [&numbers[..7], &numbers[8..]].concat());
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].deliveries), (1, 3));
    assert!(dead[0].reason.contains("no luck"), "{}", dead[0].reason);
}
