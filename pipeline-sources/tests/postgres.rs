//! The queue in a table of PostgreSQL.
//!
//! `KILLS=50 RESTARTS=10 ITEMS=20000 cargo test -p pipeline-sources --all-features --test postgres --
//! --nocapture` prints the figures of longer runs.
#![cfg(all(feature = "postgres", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod kills;
mod outages;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
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
    Broker, Fetch, Item, Outcome, Settle, Settlement, SourceOptions,
    contract::{Subject, check},
    postgres::{PostgresError, PostgresOptions, PostgresQueue, SCHEMA, push_in},
};
use pipeline_test_support::servers::{Kind, Server};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};

use self::outages::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// Options of tests: short leases, and calls that end soon.
fn options() -> PostgresOptions {
    PostgresOptions::new()
        .lease(Duration::from_millis(500))
        .poll_interval(Duration::from_millis(100))
        .call_timeout(Duration::from_secs(2))
}

/// Retries without much delay.
fn quick() -> SourceOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    SourceOptions::new().redeliver_after(backoff.jitter(Jitter::None)).max_deliveries(3)
}

/// The connection of another program.
async fn client(address: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn open(server: &Server, options: PostgresOptions) -> PostgresQueue {
    let queue = PostgresQueue::open_with(&server.url(), "numbers", options).unwrap();
    queue.prepare().await.unwrap();
    queue
}

/// Starts a pipeline that keeps the texts, and fails those for which the function says so.
fn keep(
    queue: &PostgresQueue,
    options: SourceOptions,
    fails: fn(&str) -> Option<Failure>,
) -> (Pipeline, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
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

async fn is_empty(queue: &PostgresQueue) -> bool {
    queue.backlog().await.is_ok_and(|backlog| backlog.items == Some(0))
}

/// A queue of a name of its own.
struct AtServer {
    queue: PostgresQueue,
    client: Client,
}

impl Subject for AtServer {
    type Broker = PostgresQueue;

    fn broker(&self) -> PostgresQueue {
        self.queue.clone()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    async fn push_malformed(&self) -> bool {
        let insert = "INSERT INTO pipeline_items (queue, payload, headers) VALUES ($1, '', '[]')";
        self.client.execute(insert, &[&self.queue.name()]).await.unwrap();
        true
    }

    async fn dead_letters(&self) -> Vec<String> {
        let dead = self.queue.dead_letters(0, 100).await.unwrap();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_in_postgres_keeps_the_contract() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let number = AtomicUsize::new(0);
    for ordered in [false, true] {
        check(async || {
            let name = format!("queue{}", number.fetch_add(1, SeqCst));
            let options = options().ordered_by_key(ordered);
            let queue = PostgresQueue::open_with(&server.url(), name, options).unwrap();
            queue.prepare().await.unwrap();
            AtServer { queue, client: client(&server.url()).await }
        })
        .await;
    }
}

impl outages::Queue for PostgresQueue {
    type Broker = Self;

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn try_push(&self, item: Item) -> Result<(), String> {
        self.push(item).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_started_again_loses_no_item() {
    let Some(mut server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    outages::killed(&mut server, queue.clone()).await;
    until("all are done", async || is_empty(&queue).await).await;
    assert!(queue.dead_letters(0, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_is_noticed_and_used_again() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    outages::frozen(&server, open(&server, options()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_absent_at_the_start_is_waited_for() {
    let Some(mut server) = Server::start(Kind::Postgres).await else { return };
    // The tables are created by what comes first.
    let queue = PostgresQueue::open_with(&server.url(), "numbers", options()).unwrap();
    outages::absent(&mut server, queue).await;
}

impl kills::Queue for PostgresQueue {
    type Broker = Self;

    async fn open(address: &str) -> Self {
        let options = PostgresOptions::new().lease(kills::LEASE).ordered_by_key(true);
        Self::open_with(address, "numbers", options).unwrap()
    }

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn push(&self, item: Item) {
        Self::push(self, item).await.unwrap();
    }

    async fn is_empty(&self) -> bool {
        is_empty(self).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item_of_postgres_and_keeps_the_order_of_each_key() {
    if kills::inside::<PostgresQueue>().await {
        return;
    }
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let test = "a_process_that_is_killed_loses_no_item_of_postgres_and_keeps_the_order_of_each_key";
    kills::handling::<PostgresQueue>(test, &server.url(), kills::Order::OfEachKey).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_to_postgres_has_returned_is_delivered_although_its_process_was_killed()
{
    if kills::inside::<PostgresQueue>().await {
        return;
    }
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let test =
        "an_item_whose_push_to_postgres_has_returned_is_delivered_although_its_process_was_killed";
    kills::pushing::<PostgresQueue>(test, &server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_by_pages_replayed_and_dropped() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let items: Vec<_> =
        (0..3).map(|n| Item::new(n.to_string()).key("k").header("kind", "test")).collect();
    let ids = queue.push_all(items.clone()).await.unwrap();
    assert!(ids.is_sorted() && ids.len() == 3, "{ids:?}");
    let (pipeline, seen) = keep(&queue, quick(), |_| Some(Failure::new("it is \0 bad")));
    until("all are given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len(), 9);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(3));

    let mut dead = queue.dead_letters(0, 2).await.unwrap();
    assert_eq!(dead.len(), 2);
    dead.extend(queue.dead_letters(dead[1].id, 2).await.unwrap());
    assert_eq!(dead.iter().map(|dead| dead.id).collect::<Vec<_>>(), ids);
    for (dead, item) in dead.iter().zip(&items) {
        assert_eq!(&dead.item, item);
        assert_eq!((dead.deliveries, &*dead.reason), (3, "it is \u{fffd} bad"));
        assert!(dead.enqueued_at.unwrap() <= dead.given_up_at.unwrap());
    }

    let new = queue.replay(ids[0]).await.unwrap().unwrap();
    assert!(new > ids[2]);
    assert_eq!(queue.replay(ids[0]).await.unwrap(), None);
    assert!(queue.drop_dead_letter(ids[1]).await.unwrap());
    assert!(!queue.drop_dead_letter(ids[1]).await.unwrap());
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(1), Some(1)));
    // It is as it was, and as old, and is tried again from the first time on.
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let again = fetch.fetch(10).await.unwrap();
    assert_eq!((again.len(), &again[0].item, again[0].deliveries), (1, &items[0], 1));
    assert_eq!(again[0].enqueued_at, dead[0].enqueued_at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_adds_items_in_its_own_transaction_and_wakes_the_source() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    // Only a notification can wake it in time.
    let queue = open(&server, options().poll_interval(PATIENCE * 10)).await;
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    let mut program = client(&server.url()).await;
    program.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    for commits in [false, true] {
        let transaction = program.transaction().await.unwrap();
        transaction.execute("INSERT INTO orders VALUES (1)", &[]).await.unwrap();
        push_in(&transaction, "numbers", &Item::new(commits.to_string())).await.unwrap();
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    until("it is handled", async || *seen.lock() == ["true"]).await;
    let insert = "INSERT INTO pipeline_items (queue, payload) VALUES ('numbers', 'by hand')";
    program.batch_execute(insert).await.unwrap();
    until("both are done", async || seen.lock().len() == 2 && is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), ["true", "by hand"]);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_found_without_notifications() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let program = client(&server.url()).await;
    let disable = "ALTER TABLE pipeline_items DISABLE TRIGGER pipeline_items_added";
    program.batch_execute(disable).await.unwrap();
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    for n in 0..3 {
        queue.push(Item::new(n.to_string())).await.unwrap();
        until("it is handled", async || seen.lock().len() > n).await;
    }
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_one_key_are_handled_in_order_although_one_fails() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true)).await;
    for n in 0..20 {
        let key = if n % 2 == 0 { "even" } else { "odd" };
        queue.push(Item::new(n.to_string()).key(key)).await.unwrap();
    }
    let failed = Arc::new(Mutex::new(false));
    let seen = Arc::new(Mutex::new(Vec::<u64>::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let n = String::from_utf8(message.payload.to_vec())?.parse::<u64>()?;
        if n == 4 && !std::mem::replace(&mut *failed.lock(), true) {
            return Err(Failure::new("not the first time"));
        }
        if n == 7 {
            return Err(Failure::new("never").give_up());
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
    assert_eq!(of(1), (1..20).step_by(2).filter(|n| *n != 7).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_items_that_are_committed_in_any_order_one_of_a_key_is_in_work() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true).lease(PATIENCE)).await;
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let item = |n: u32| Item::new(n.to_string()).key("k");
    let mut program = client(&server.url()).await;
    let early = program.transaction().await.unwrap();
    push_in(&early, "numbers", &item(1)).await.unwrap();
    // Its id is greater, and it is committed before.
    queue.push(item(2)).await.unwrap();
    let fetched = fetch.fetch(10).await.unwrap();
    assert_eq!(&fetched[0].item.payload[..], b"2");
    early.commit().await.unwrap();
    queue.push(item(3)).await.unwrap();
    let none = timeout(Duration::from_millis(500), fetch.fetch(10)).await;
    assert!(none.is_err(), "one of the key is in work: {none:?}");
    // It fails, and the earlier one has its turn.
    let retry = Outcome::Retry(Duration::ZERO);
    settle.settle(&[Settlement { receipt: fetched[0].receipt, outcome: retry }]).await.unwrap();
    let mut handled = Vec::new();
    for _ in 0..3 {
        let fetched = timeout(PATIENCE, fetch.fetch(10)).await.unwrap().unwrap();
        assert_eq!(fetched.len(), 1, "{fetched:?}");
        handled.push(String::from_utf8(fetched[0].item.payload.to_vec()).unwrap());
        let receipt = fetched[0].receipt;
        settle.settle(&[Settlement { receipt, outcome: Outcome::Done }]).await.unwrap();
    }
    assert_eq!(handled, ["1", "2", "3"]);
    assert!(is_empty(&queue).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_costs_nothing_until_it_is_asked_for() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let program = client(&server.url()).await;
    let items = std::env::var("BACKLOG").map_or(30_000, |items| items.parse().unwrap());
    let options = options().call_timeout(PATIENCE).lease(PATIENCE);
    let queue = open(&server, options.ordered_by_key(true)).await;
    let times = async || {
        let (mut fetch, settle) = queue.connect().await.unwrap();
        let mut times = Vec::new();
        for n in 0..20 {
            queue.push(Item::new(n.to_string())).await.unwrap();
            let begun = Instant::now();
            let fetched = fetch.fetch(10).await.unwrap();
            let done = |receipt| Settlement { receipt, outcome: Outcome::Done };
            let done: Vec<_> = fetched.iter().map(|it| done(it.receipt)).collect();
            settle.settle(&done).await.unwrap();
            settle.backlog().await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort();
        times[times.len() / 2]
    };
    let alone = times().await;
    // Of one key, the worst: each but the first waits for its turn.
    let fill = "INSERT INTO pipeline_items (queue, key, payload)
        SELECT 'numbers', 'k' || n % 2, 'x' FROM generate_series(1, $1::int8) AS n";
    program.execute(fill, &[&items]).await.unwrap();
    let begun = Instant::now();
    let (mut fetch, settle) = queue.connect().await.unwrap();
    assert_eq!(fetch.fetch(10).await.unwrap().len(), 2, "the first of each key");
    let first = begun.elapsed();
    let backlog = settle.backlog().await.unwrap();
    assert!(backlog.items.unwrap() > 10_000, "{backlog:?}");
    // Each is found before its turn once.
    let blocked = async || {
        let count = "SELECT count(*) FROM pipeline_items WHERE available_at = 'infinity'";
        program.query_one(count, &[]).await.unwrap().get::<_, i64>(0)
    };
    let mut searches = 0;
    while blocked().await < items - 2 {
        let _ = timeout(Duration::from_millis(500), fetch.fetch(1)).await;
        searches += 1;
        assert!(searches < 1000, "{} of {items} are blocked", blocked().await);
    }
    let with = times().await;
    println!(
        "{items} items: the first fetch took {first:?}; then {with:?} an item, alone {alone:?}"
    );
    assert!(
        with < alone * 20 + Duration::from_millis(20),
        "{with:?} with a backlog, {alone:?} alone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_dropped_gives_back_what_it_takes() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().lease(PATIENCE * 10).call_timeout(PATIENCE)).await;
    let (mut dropped, settle) = queue.connect().await.unwrap();
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    for n in 0..30_u64 {
        queue.push(Item::new(n.to_string())).await.unwrap();
        tokio::select! {
            biased;
            () = sleep(Duration::from_millis(n % 4)) => {}
            fetched = dropped.fetch(1) => {
                let receipt = fetched.unwrap()[0].receipt;
                let released = Settlement { receipt, outcome: Outcome::Release { after: Duration::ZERO } };
                settle.settle(&[released]).await.unwrap();
            }
        }
        let fetched = timeout(PATIENCE, fetch.fetch(1)).await.unwrap().unwrap().remove(0);
        assert_eq!(fetched.deliveries, 1, "it was not delivered before");
        assert_eq!(fetched.item.payload, n.to_string());
        let done = Settlement { receipt: fetched.receipt, outcome: Outcome::Done };
        settle.settle(&[done]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_created_once_and_those_of_a_newer_version_are_refused() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let without = PostgresQueue::open_with(&server.url(), "a", options().create_tables(false));
    let without = without.unwrap();
    let missing = without.push(Item::new("1")).await.unwrap_err();
    assert!(matches!(missing, PostgresError::Version { version: 0 }), "{missing}");
    // Several create them at the same time.
    let queues = [(); 4].map(|()| PostgresQueue::open(&server.url(), "a").unwrap());
    let prepared = queues.each_ref().map(PostgresQueue::prepare);
    for prepared in futures::future::join_all(prepared).await {
        prepared.unwrap();
    }
    without.push(Item::new("1")).await.unwrap();
    let program = client(&server.url()).await;
    program.batch_execute(SCHEMA).await.unwrap();
    assert_eq!(without.backlog().await.unwrap().items, Some(1), "it can be run again");
    program.batch_execute("UPDATE pipeline_schema SET version = 2").await.unwrap();
    let newer = PostgresQueue::open(&server.url(), "a").unwrap().prepare().await.unwrap_err();
    assert!(matches!(newer, PostgresError::Version { version: 2 }), "{newer}");
}
