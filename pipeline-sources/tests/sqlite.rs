//! The queue in a SQLite file.
#![cfg(all(feature = "sqlite", feature = "test-kit"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::Backoff,
    processing::{Failure, Message, Processors},
    step::for_each,
    subscription::SubscribeOptions,
};
use pipeline_sources::{
    Backlog, Broker, BrokerError, DeadLetter, Delivery, Fetch, Item, NotStored, Outcome,
    QueuedState, Settle, Settlement, Source,
    contract::{Subject, check},
    sqlite::{
        SqliteError, SqliteFetch, SqliteOptions, SqliteQueue, SqliteReceipt, SqliteSettle, push_in,
    },
};
use rusqlite::{Connection, params};
use tempfile::TempDir;
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};

use self::common::{
    Numbers, PATIENCE, Refusals, assert_dead, keep, payloads, quick, stuck, text, until,
};

/// A file that is removed at the end.
fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    (folder, path)
}

async fn is_empty(queue: &SqliteQueue) -> bool {
    queue.backlog().await.unwrap().items == Some(0)
}

/// The number of commits in the log of a file. Nothing else than a commit says how large the file is after it.
fn commits(path: &Path) -> usize {
    let log = std::fs::read(format!("{}-wal", path.display())).unwrap();
    let number = |at: &[u8]| u32::from_be_bytes(at.try_into().unwrap());
    let (header, frames) = log.split_at(32);
    let page = number(&header[8..12]) as usize;
    let is_current = |frame: &&[u8]| frame[8..16] == header[16..24];
    let is_commit = |frame: &&[u8]| number(&frame[4..8]) > 0;
    frames.chunks_exact(24 + page).take_while(is_current).filter(is_commit).count()
}

/// A queue in a folder of its own.
struct InFile {
    queue: SqliteQueue,
    /// The connection of another program.
    program: Mutex<Connection>,
    #[expect(dead_code, reason = "it is removed at the end")]
    folder: TempDir,
}

impl Subject for InFile {
    type Broker = SqliteQueue;

    fn broker(&self) -> SqliteQueue {
        self.queue.clone()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    async fn push_malformed(&self) -> bool {
        let insert = "INSERT INTO pipeline_items (queue, payload, headers)
            VALUES ('test', '', '{\"kind\": \"order\", \"n\": 7}')";
        self.program.lock().execute(insert, []).unwrap();
        true
    }

    async fn fill_graves(&self) -> bool {
        let full = "CREATE TRIGGER full BEFORE INSERT ON pipeline_dead_letters
            BEGIN SELECT RAISE(ABORT, 'there is no room'); END";
        self.program.lock().execute_batch(full).unwrap();
        true
    }

    async fn empty_graves(&self) {
        self.program.lock().execute_batch("DROP TRIGGER full").unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        let dead = self.queue.dead_letters(0, 100).await.unwrap();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_the_delay_of_an_item() {
    for ordered in [false, true] {
        let (_folder, path) = file();
        // What it does not learn at once, it does not find in the test's time.
        let options = SqliteOptions::new().poll_interval(PATIENCE * 10).ordered_by_key(ordered);
        let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
        let push = async |item| {
            queue.push(item).await.unwrap();
        };
        common::a_signal_ends_a_delay(queue.source(quick()), push).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_wakes_the_sources_of_its_process_after_its_own_transaction() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().poll_interval(PATIENCE * 10);
    let queue = SqliteQueue::open_with(&path, "orders", options).await.unwrap();
    let mut program = Connection::open(&path).unwrap();
    program
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, user TEXT NOT NULL);
             CREATE TRIGGER order_placed AFTER INSERT ON orders BEGIN
                INSERT INTO pipeline_items (queue, payload) VALUES ('orders', NEW.user);
             END",
        )
        .unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    for n in 0..20 {
        let transaction = program.transaction().unwrap();
        let user = n.to_string();
        if n % 2 == 0 {
            transaction.execute("INSERT INTO orders (user) VALUES (?1)", [&user]).unwrap();
        } else {
            push_in(&transaction, "orders", &Item::new(user.clone())).unwrap();
        }
        transaction.commit().unwrap();
        queue.clone().wake();
        until("the item is handled", async || seen.lock().last() == Some(&user)).await;
    }
    until("all are done", async || is_empty(&queue).await).await;
    drop(pipeline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_in_a_file_keeps_the_contract() {
    for ordered in [false, true] {
        check(async || {
            let (folder, path) = file();
            let options = SqliteOptions::new().lease(Duration::from_millis(800));
            let options = options.ordered_by_key(ordered);
            let queue = SqliteQueue::open_with(&path, "test", options).await.unwrap();
            let program = Connection::open(&path).unwrap();
            program.busy_timeout(PATIENCE).unwrap();
            InFile { queue, program: Mutex::new(program), folder }
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
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
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
    let (pipeline, seen) = keep(queue.source(quick()), fails);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().iter().filter(|text| *text == "bad").count(), 3);
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].id, id);
    assert_dead(&dead[0], &item, 3, "it is bad");

    // It can be replayed, and dropped.
    assert_eq!(queue.replay(id + 100).await.unwrap(), None);
    let new = queue.replay(id).await.unwrap().unwrap();
    assert!(new > id);
    // Its age begins anew.
    let again = queue.items(0, 10).await.unwrap().remove(0);
    assert_eq!((again.id, again.item, again.deliveries), (new, item, 0));
    assert!(again.enqueued_at >= dead[0].given_up_at);
    assert_eq!(queue.backlog().await.unwrap().items, Some(1));
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
    assert!(!queue.drop_dead_letter(id).await.unwrap());
}

#[tokio::test]
async fn pushes_at_the_same_time_share_a_commit() {
    const PUSHERS: usize = 64;
    const ROUNDS: usize = 5;
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push(Item::new("first")).await.unwrap();
    let open = || {
        let connection = Connection::open(&path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    };
    // While it reads, the log grows only.
    let reader = open();
    reader.execute_batch("BEGIN; SELECT count(*) FROM pipeline_items").unwrap();
    let other = open();
    let before = commits(&path);
    for _ in 0..ROUNDS {
        // The first commit waits for another program, and the pushes wait for the first.
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let pushes: Vec<_> = (0..PUSHERS)
            .map(|n| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.push(Item::new(n.to_string())).await })
            })
            .collect();
        for _ in 0..10 {
            yield_now().await;
        }
        other.execute_batch("ROLLBACK").unwrap();
        for push in pushes {
            timeout(PATIENCE, push).await.unwrap().unwrap().unwrap();
        }
    }
    let count = "SELECT count(*) FROM pipeline_items";
    let items: i64 = other.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(usize::try_from(items).unwrap(), 1 + ROUNDS * PUSHERS);
    let commits = commits(&path) - before;
    assert!((ROUNDS..=4 * ROUNDS).contains(&commits), "{commits} for {} pushes", items - 1);
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_dead_letters_are_replayed_once_although_they_fail_again_at_once() {
    const MANY: usize = 250;
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    queue.push_all((0..MANY).map(|n| Item::new(n.to_string())).collect()).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| Some(Failure::new("no").give_up()));
    until("all are given up", async || is_empty(&queue).await).await;
    let replayed = queue.replay_all(|dead| &dead.item.payload[..] != b"7");
    assert_eq!(timeout(PATIENCE, replayed).await.unwrap().unwrap(), MANY as u64 - 1);
    until("all are given up again", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len(), 2 * MANY - 1);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(MANY as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    common::a_drop_of_all_takes_what_was_there(
        queue.source(quick()),
        async |item| {
            queue.push(item).await.unwrap();
        },
        async || payloads(&queue.dead_letters(0, 300).await.unwrap()),
        async |which| queue.drop_all_dead_letters(|dead| which(&dead.item)).await.unwrap(),
    )
    .await;
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 2);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_are_there_are_replayed_whatever_their_ids_and_however_fast_others_come() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let operator = Connection::open(&path).unwrap();
    operator.busy_timeout(PATIENCE).unwrap();
    let insert = "INSERT INTO pipeline_dead_letters
            (id, queue, payload, enqueued_at, deliveries, reason, given_up_at)
        VALUES (?1, 'numbers', zeroblob(?2), 0, 1, 'no', 0)";
    operator.execute("INSERT INTO pipeline_queues (queue) VALUES ('numbers')", []).unwrap();
    // Each is more than half of what a page may have.
    for id in [-5, 0, 1, 7] {
        operator.execute(insert, params![id, 10_000_000]).unwrap();
    }
    let (mut seen, mut next) = (Vec::new(), 7);
    let which = |dead: &DeadLetter| {
        seen.push(dead.id);
        assert!(seen.len() < 1000, "it ends");
        for _ in 0..2 {
            next += 1;
            operator.execute(insert, params![next, 1]).unwrap();
        }
        dead.id > 0
    };
    assert_eq!(timeout(PATIENCE, queue.replay_all(which)).await.unwrap().unwrap(), 2);
    assert_eq!(seen, [-5, 0, 1, 7]);
    assert_eq!(queue.backlog().await.unwrap().items, Some(2));
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(2 + 8));

    // An item keeps its id when it is given up, so others come between those that were there.
    let mut other = 1;
    let which = |dead: &DeadLetter| {
        if dead.id < 7 {
            other += 1;
            operator.execute(insert, params![other, 1]).unwrap();
        }
        true
    };
    assert_eq!(queue.drop_all_dead_letters(which).await.unwrap(), 2 + 8);
    let left = queue.dead_letters(i64::MIN, 100).await.unwrap();
    assert_eq!(left.iter().map(|dead| dead.id).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_has_no_more_large_items_than_it_has_bytes() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    for n in 0..5 {
        queue.push(Item::new(vec![n; 10_000_000])).await.unwrap();
    }
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let mut fetched = Vec::new();
    while fetched.len() < 3 {
        let items = fetch.fetch(10).await.unwrap();
        fetched.push(items.iter().map(|it| it.item.payload[0]).collect::<Vec<_>>());
    }
    assert_eq!(fetched, [vec![0, 1], vec![2, 3], vec![4]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_items_and_dead_letters_are_listed_by_pages() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    for _ in 0..5 {
        queue.push(Item::new(vec![0; 6_000_000])).await.unwrap();
    }
    let page = queue.items(0, 100).await.unwrap();
    let rest = queue.items(page[2].id, 100).await.unwrap();
    assert_eq!((page.len(), rest.len()), (3, 2));
    let operator = Connection::open(&path).unwrap();
    let give_up = "INSERT INTO pipeline_dead_letters
            (id, queue, payload, enqueued_at, deliveries, reason, given_up_at)
        SELECT id, queue, payload, enqueued_at, 1, 'no', 0 FROM pipeline_items";
    operator.execute(give_up, []).unwrap();
    common::large_letters_are_listed_by_pages(5, async |after: Option<i64>| {
        queue.dead_letters(after.unwrap_or(0), 100).await.unwrap()
    })
    .await;
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
    let (pipeline, seen) = keep(again.source(quick()), |_| None);
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
    let file = Connection::open(&path).unwrap();
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
    let pipeline = stuck(queue.source(quick())).await;
    // The lease is renewed while the item is handled.
    let (second, seen) = keep(queue.source(quick()), |_| None);
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

/// What programs and an operator do to a queue that is ordered by key, and what sources do, one after the
/// other.
struct Disorder {
    numbers: Numbers,
    queue: SqliteQueue,
    fetch: SqliteFetch,
    settle: SqliteSettle,
    operator: Connection,
    held: Vec<SqliteReceipt>,
    log: Vec<String>,
}

const KEYS: [&str; 2] = ["a", "b"];
const NEVER: i64 = i64::MAX;

/// Whether it is the turn of an item, so that a fetch has to return.
const HAS_TURN: &str = "SELECT EXISTS (SELECT 1 FROM pipeline_items AS f WHERE
    (key IS NULL AND available_at < 4000000000000)
    OR (id = (SELECT min(id) FROM pipeline_items WHERE key = f.key)
        AND NOT EXISTS (SELECT 1 FROM pipeline_items WHERE key = f.key AND lease IS NOT NULL
            AND available_at > 4000000000000 AND available_at < 9223372036854775807)
        AND (available_at < 4000000000000 OR (available_at = 9223372036854775807
            AND EXISTS (SELECT 1 FROM pipeline_items WHERE key = f.key
                AND available_at < 4000000000000)))))";

impl Disorder {
    fn ids(&self, which: &str) -> Vec<i64> {
        let select = format!("SELECT id FROM pipeline_items WHERE {which} ORDER BY id");
        let mut select = self.operator.prepare(&select).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn add(&mut self) {
        let key = KEYS[self.numbers.below(2)];
        // A program may choose the id, also one before others.
        let id = self.numbers.below(3) == 0;
        let id = id.then(|| 1 + self.numbers.below(500)).and_then(|id| i64::try_from(id).ok());
        let add = "INSERT OR IGNORE INTO pipeline_items (id, queue, key, payload)
            VALUES (?1, 'numbers', ?2, '')";
        self.operator.execute(add, params![id, key]).unwrap();
        self.log.push(format!("a program adds {id:?} of {key}"));
    }

    /// Takes items, if it is the turn of some. None is taken before an earlier one of its key.
    async fn take(&mut self) -> usize {
        let has_turn = self.operator.query_row(HAS_TURN, [], |row| row.get::<_, bool>(0)).unwrap();
        if !has_turn {
            return 0;
        }
        let most = self.numbers.below(4) + 1;
        let fetched = timeout(PATIENCE, self.fetch.fetch(most)).await;
        let fetched = fetched.unwrap_or_else(|_| panic!("nothing is taken: {:#?}", self.log));
        let taken: Vec<_> = fetched.unwrap().into_iter().map(|it| (it.id, it.receipt)).collect();
        let ids: Vec<_> = taken.iter().map(|(id, _)| id.to_string()).collect();
        self.log.push(format!("a source takes {ids:?}"));
        let early = format!(
            "id IN ({}) AND EXISTS (SELECT 1 FROM pipeline_items AS e
                WHERE e.key = pipeline_items.key AND e.id < pipeline_items.id)",
            ids.join(", ")
        );
        let early = self.ids(&early);
        assert!(early.is_empty(), "taken before their turn: {early:?}, {:#?}", self.log);
        self.held.extend(taken.into_iter().map(|(_, receipt)| receipt));
        ids.len()
    }

    async fn settle(&mut self, receipt: SqliteReceipt, outcome: Outcome) {
        self.log.push(format!("{receipt:?}: {outcome:?}"));
        let settlement = Settlement { receipt, outcome };
        assert!(self.settle.settle(&[settlement]).await.unwrap().is_empty());
        self.held.retain(|held| *held != receipt);
    }

    /// A source dies, and its leases end.
    fn die(&mut self) {
        let leases = "UPDATE pipeline_items SET available_at = 5
            WHERE lease IS NOT NULL AND available_at < 9223372036854775807";
        self.operator.execute(leases, []).unwrap();
        self.held.clear();
        self.log.push("all sources die".to_owned());
    }

    async fn disturb(&mut self) {
        let (all, idle) = (self.ids("true"), self.ids("lease IS NULL"));
        let infinity = format!("UPDATE pipeline_items SET available_at = {NEVER} WHERE id = ?1");
        let (what, id) = match self.numbers.below(8) {
            0 | 1 => ("DELETE FROM pipeline_items WHERE id = ?1", self.numbers.one_of(&all)),
            2 | 3 => {
                ("UPDATE pipeline_items SET key = 'a' WHERE id = ?1", self.numbers.one_of(&idle))
            }
            4 | 5 => {
                ("UPDATE pipeline_items SET key = NULL WHERE id = ?1", self.numbers.one_of(&idle))
            }
            // Without the triggers of what it replaces.
            6 => (
                "REPLACE INTO pipeline_items (id, queue, key, payload) VALUES (?1, 'numbers', 'b', '')",
                self.numbers.one_of(&idle),
            ),
            _ => (&*infinity, self.numbers.one_of(&self.ids("lease IS NULL AND key IS NOT NULL"))),
        };
        let Some(id) = id else { return };
        self.operator.execute(what, [id]).unwrap();
        self.log.push(format!("{what}: {id}"));
        if what.starts_with("REPLACE") || what == infinity {
            // A new source looks at once for what nothing else has noticed.
            let (mut fetch, _) = self.queue.connect().await.unwrap();
            if let Ok(fetched) = timeout(Duration::from_millis(300), fetch.fetch(1)).await {
                let receipt = fetched.unwrap()[0].receipt;
                self.settle(receipt, Outcome::Release { after: Duration::ZERO }).await;
            }
        }
    }

    /// If a key has items, one of them is available, in work, or waits for a time that comes. At most one is
    /// in work.
    fn check(&self) {
        let keys = |having: &str| {
            let select = format!(
                "SELECT count(*) FROM (SELECT key FROM pipeline_items WHERE key IS NOT NULL
                    GROUP BY key HAVING {having})"
            );
            self.operator.query_row(&select, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let stuck = keys("min(available_at) = 9223372036854775807");
        assert_eq!(stuck, 0, "all items of a key wait: {:#?}", self.log);
        let many = keys(
            "sum(lease IS NOT NULL AND available_at > 4000000000000
                AND available_at < 9223372036854775807) > 1",
        );
        assert_eq!(many, 0, "several items of a key are in work: {:#?}", self.log);
    }

    async fn run(&mut self) {
        for _ in 0..60 {
            match self.numbers.below(10) {
                0..=3 => self.add(),
                4 | 5 => {
                    self.take().await;
                }
                6 | 7 => {
                    let outcome = match self.numbers.below(5) {
                        0 | 1 => Outcome::Done,
                        2 => Outcome::Retry { after: Duration::ZERO, failures: 1 },
                        3 => Outcome::Release { after: Duration::ZERO },
                        _ => Outcome::GiveUp { reason: "it is bad".into() },
                    };
                    if let Some(receipt) = self.numbers.one_of(&self.held) {
                        self.settle(receipt, outcome).await;
                    }
                }
                8 => self.die(),
                _ => self.disturb().await,
            }
            self.check();
        }
        for receipt in std::mem::take(&mut self.held) {
            self.settle(receipt, Outcome::Done).await;
        }
        // Those whose item was moved to another key while it was in work.
        self.die();
        while !self.ids("true").is_empty() {
            assert!(self.take().await > 0, "items are left: {:#?}", self.log);
            for receipt in std::mem::take(&mut self.held) {
                self.settle(receipt, Outcome::Done).await;
            }
            self.check();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_never_stuck_whatever_is_added_dies_or_is_changed() {
    let (_folder, path) = file();
    // Leases that outlast the year 2096.
    let options = SqliteOptions::new().lease(Duration::from_secs(100 * 365 * 24 * 3600));
    let options = options.ordered_by_key(true).poll_interval(Duration::from_millis(1));
    let queue = SqliteQueue::open_with(&path, "numbers", options).await.unwrap();
    let (fetch, settle) = queue.connect().await.unwrap();
    let operator = Connection::open(&path).unwrap();
    operator.busy_timeout(PATIENCE).unwrap();
    operator.pragma_update(None, "synchronous", "OFF").unwrap();
    let (numbers, held, log) = (Numbers::new(0), Vec::new(), Vec::new());
    let mut disorder = Disorder { numbers, queue, fetch, settle, operator, held, log };
    let rounds = std::env::var("ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        disorder.numbers = Numbers::new(seed);
        disorder.log = vec![format!("round {seed}")];
        disorder.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_come_again_do_not_wait_behind_a_backlog_nor_new_ones_behind_them() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let first = queue.push_all((0..4).map(|n| Item::new(format!("first {n}"))).collect()).await;
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(3).await.unwrap();
    // One has failed, one was postponed, and the process of one has died.
    let outcomes = [
        Outcome::Retry { after: Duration::ZERO, failures: 1 },
        Outcome::Release { after: Duration::from_nanos(1) },
    ];
    for (fetched, outcome) in fetched.iter().zip(outcomes) {
        let settlement = Settlement { receipt: fetched.receipt, outcome };
        assert!(settle.settle(&[settlement]).await.unwrap().is_empty());
    }
    let operator = Connection::open(&path).unwrap();
    let end = "UPDATE pipeline_items SET available_at = 5 WHERE id = ?1";
    assert_eq!(operator.execute(end, [first.unwrap()[2]]), Ok(1));
    queue.push_all((0..1000).map(|n| Item::new(n.to_string())).collect()).await.unwrap();
    let mut texts = async |most| {
        let fetched = fetch.fetch(most).await.unwrap();
        fetched.iter().map(|it| String::from_utf8(it.item.payload.to_vec()).unwrap()).collect()
    };
    let mut seen: Vec<String> = texts(4).await;
    assert_eq!(seen.len(), 4);
    seen.extend::<Vec<String>>(texts(4).await);
    for n in 0..4 {
        assert!(seen.contains(&format!("first {n}")), "{seen:?}");
    }
    // Many that come again leave half of the places, also where there is one.
    operator.execute("UPDATE pipeline_items SET available_at = 5 WHERE id <= 504", []).unwrap();
    let mut counts = [0_usize, 0];
    for most in [10, 11, 1, 1, 1, 1] {
        for text in texts(most).await {
            let is_new = text.parse::<usize>().is_ok_and(|n| n >= 500);
            counts[usize::from(is_new)] += 1;
        }
    }
    assert!(counts[0].abs_diff(counts[1]) <= 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_are_given_up_and_the_others_go_on() {
    let (_folder, path) = file();
    // The first version had no constraints.
    let operator = Connection::open(&path).unwrap();
    operator.busy_timeout(PATIENCE).unwrap();
    operator.execute_batch(include_str!("fixtures/sqlite_1.sql")).unwrap();
    let columns = [
        ("enqueued_at", "datetime('now')", "its enqueued_at is no integer"),
        (
            "enqueued_at",
            "(julianday('now') - 2440587.5) * 86400000.123",
            "its enqueued_at is no integer",
        ),
        ("enqueued_at", "x'00'", "its enqueued_at is no integer"),
        ("headers", "'{\"kind\": \"order\", \"n\": 7}'", "its headers are not an object of texts"),
        ("headers", "'[]'", "its headers are not an object of texts"),
        ("headers", "5", "its headers are not an object of texts"),
        ("headers", "x'ff'", "its headers are not an object of texts"),
        ("key", "x'ff'", "its key is not UTF-8"),
        ("deliveries", "9223372036854775807", "delivered 2147483646 times"),
    ];
    let insert = |column: &str, value: &str, payload: &str| {
        let insert = format!(
            "INSERT INTO pipeline_items (queue, payload, {column}) VALUES ('numbers', '{payload}', {value})"
        );
        operator.execute_batch(&insert).unwrap_or_else(|error| panic!("{insert}: {error}"));
    };
    for (n, (column, value, _)) in columns.iter().enumerate() {
        insert(column, value, &n.to_string());
    }
    let fine = [
        ("available_at", "'soon'"),
        ("available_at", "1e300"),
        ("available_at", "-5"),
        ("deliveries", "'many'"),
        ("deliveries", "-5"),
        ("lease", "'mine'"),
        ("trace", "x'ff'"),
        ("key", "5.5"),
        ("enqueued_at", "-9223372036854775807"),
    ];
    for (column, value) in fine {
        insert(column, value, "good");
    }
    for ordered in [false, true] {
        let options = SqliteOptions::new().ordered_by_key(ordered);
        let queue = SqliteQueue::open_with(&path, "numbers", options).await.unwrap();
        let (pipeline, seen) = keep(queue.source(quick()), |_| None);
        until("all are done", async || is_empty(&queue).await).await;
        pipeline.drain(PATIENCE).await;
        assert_eq!(*seen.lock(), vec!["good"; fine.len()]);
        let dead = queue.dead_letters(0, 100).await.unwrap();
        assert_eq!(dead.len(), columns.len());
        for ((column, value, reason), dead) in columns.iter().zip(dead) {
            assert!(dead.reason.contains(reason), "{column} {value}: {}", dead.reason);
            // It is the same when it is replayed, or it can be read now.
            queue.replay(dead.id).await.unwrap().unwrap();
        }
        operator.execute("DELETE FROM pipeline_items", []).unwrap();
        for (n, (column, value, _)) in columns.iter().enumerate() {
            insert(column, value, &n.to_string());
        }
        for (column, value) in fine {
            insert(column, value, "good");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_is_not_utf_8_stops_nothing_else_in_any_column() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().ordered_by_key(true);
    let queue = SqliteQueue::open_with(&path, "numbers", options).await.unwrap();
    let operator = Connection::open(&path).unwrap();
    // The second waits for the first, and the last until long after this test.
    operator
        .execute_batch(
            "INSERT INTO pipeline_items (queue, payload, key) VALUES
                ('numbers', 'first', CAST(x'ff' AS TEXT)), ('numbers', 'second', CAST(x'ff' AS TEXT));
            PRAGMA ignore_check_constraints = on;
            INSERT INTO pipeline_items (queue, payload, available_at, waits_since) VALUES
                ('numbers', 'later', 8000000000000000, CAST(x'fe' AS TEXT));",
        )
        .unwrap();
    queue.push(Item::new("good")).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("the good one is handled", async || *seen.lock() == ["good"]).await;
    let dead = async || queue.dead_letters(0, 100).await.unwrap();
    until("the others are given up", async || dead().await.len() == 2).await;
    for dead in dead().await {
        assert_eq!(&*dead.reason, "its key is not UTF-8");
    }
    assert_eq!(queue.items(i64::MIN, 100).await.unwrap().len(), 1, "what waits is kept");
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_refuses_plain_mistakes() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let operator = Connection::open(&path).unwrap();
    for (column, value) in [
        ("enqueued_at", "datetime('now')"),
        ("available_at", "'soon'"),
        ("deliveries", "1.5"),
        // No id would be left for later items.
        ("id", "9223372036854775807"),
        ("id", "4611686018427387904"),
        ("id", "4611686018427387903"),
        ("id", "2305843009213693952"),
    ] {
        let insert = format!(
            "INSERT INTO pipeline_items (queue, payload, {column}) VALUES ('numbers', '', {value})"
        );
        assert!(operator.execute_batch(&insert).is_err(), "{insert}");
    }
    assert_eq!(queue.push(Item::new("1")).await.unwrap(), 1);

    // An id that a program makes of the time is large, and many are left after it.
    let insert = "INSERT INTO pipeline_items (id, queue, payload) VALUES (?1, 'numbers', '2')";
    operator.execute(insert, [(1_i64 << 61) - 1]).unwrap();
    for n in 0..3 {
        assert_eq!(queue.push(Item::new("3")).await.unwrap(), (1 << 61) + n);
    }
    operator.execute(insert, [(1_i64 << 61) + 1000]).unwrap();
    assert!(operator.execute(insert, [1_i64 << 62]).is_err());
    assert_eq!(queue.push(Item::new("4")).await.unwrap(), (1 << 61) + 1001);
}

/// Ids that older versions have let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_after_which_none_is_left_is_named_and_is_no_full_disk() {
    for (tables, last) in [
        // No check, and SQLite says that the disk is full.
        (Some(include_str!("fixtures/sqlite_1.sql")), i64::MAX),
        (None, (1_i64 << 62) - 1),
    ] {
        let (folder, path) = file();
        let operator = Connection::open(&path).unwrap();
        if let Some(tables) = tables {
            operator.execute_batch(tables).unwrap();
        } else {
            drop(SqliteQueue::open(&path, "numbers").await.unwrap());
        }
        operator.execute_batch("DROP TRIGGER IF EXISTS pipeline_items_far").unwrap();
        let insert = "INSERT INTO pipeline_items (id, queue, payload) VALUES (?1, 'numbers', '1')";
        operator.execute(insert, [last]).unwrap();

        let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
        for handled in [false, true] {
            if handled {
                let (pipeline, _) = keep(queue.source(quick()), |_| None);
                until("it is done", async || is_empty(&queue).await).await;
                pipeline.drain(PATIENCE).await;
            }
            let error = queue.push(Item::new("2")).await.unwrap_err();
            assert!(matches!(error, SqliteError::IdsUsedUp { last: id } if id == last), "{error}");
            let error = queue.push_all(vec![Item::new("2")]).await.unwrap_err();
            assert!(matches!(error, SqliteError::IdsUsedUp { last: id } if id == last), "{error}");
        }
        assert!(folder.path().join("queue.db-reserve").exists(), "the disk is not full");

        let lower = "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'pipeline_items'";
        operator.execute_batch(lower).unwrap();
        assert_eq!(queue.push(Item::new("2")).await.unwrap(), 1);
        // What the version before has not refused is refused now.
        assert!(operator.execute(insert, [last]).is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_the_first_version_is_used_as_it_is() {
    let (_folder, path) = file();
    let program = Connection::open(&path).unwrap();
    program.execute_batch(include_str!("fixtures/sqlite_1.sql")).unwrap();
    // The last one of the key waits for ever, as an operator has changed the key of the first.
    let old = "INSERT INTO pipeline_queues (queue, ordered) VALUES ('numbers', 1);
        INSERT INTO pipeline_items (queue, key, payload) VALUES
            ('numbers', 'a', '1'), ('numbers', 'a', '2'), ('numbers', NULL, '3');
        UPDATE pipeline_items SET key = 'b' WHERE id = 1;";
    program.execute_batch(old).unwrap();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    seen.lock().sort();
    assert_eq!(*seen.lock(), ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_id_is_taken_gets_another_and_a_long_reason_is_cut() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let program = Connection::open(&path).unwrap();
    program.busy_timeout(PATIENCE).unwrap();
    let fails = |text: &str| Some(Failure::new(text.repeat(3000)).give_up());
    let (pipeline, _) = keep(queue.source(quick()), fails);
    for n in 0..3 {
        let insert = "INSERT INTO pipeline_items (id, queue, payload) VALUES (7, 'numbers', ?1)";
        program.execute(insert, [n.to_string()]).unwrap();
        until("it is given up", async || is_empty(&queue).await).await;
    }
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(dead.iter().map(|it| it.id).collect::<Vec<_>>(), [7, 8, 9]);
    for (n, dead) in dead.iter().enumerate() {
        assert_eq!(dead.item.payload, n.to_string());
        assert_eq!(*dead.reason, *n.to_string().repeat(2000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_stays_ordered_when_it_is_opened_without_saying_so() {
    let (_folder, path) = file();
    let ordered = SqliteOptions::new().ordered_by_key(true);
    SqliteQueue::open_with(&path, "numbers", ordered).await.unwrap();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    for n in 0..6 {
        queue.push(Item::new(n.to_string()).key("k")).await.unwrap();
    }
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    assert_eq!(fetch.fetch(10).await.unwrap().len(), 1, "it is ordered");
    let unordered = SqliteOptions::new().ordered_by_key(false);
    SqliteQueue::open_with(&path, "numbers", unordered).await.unwrap();
    assert_eq!(fetch.fetch(10).await.unwrap().len(), 5, "it is not ordered any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_not_done_are_listed_with_what_they_wait_for_and_the_first_is_the_oldest() {
    let (_folder, path) = file();
    let queue = SqliteOptions::new().ordered_by_key(true);
    let queue = SqliteQueue::open_with(&path, "numbers", queue).await.unwrap();
    for (text, key) in [("later", "a"), ("in work", "b"), ("blocked", "b"), ("available", "c")] {
        queue.push(Item::new(text).key(key)).await.unwrap();
    }
    let first = queue.items(0, 1).await.unwrap().remove(0);
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(2).await.unwrap();
    let retry = Outcome::Retry { after: PATIENCE * 10, failures: 1 };
    settle.settle(&[Settlement { receipt: fetched[0].receipt, outcome: retry }]).await.unwrap();
    let mut items = queue.items(0, 2).await.unwrap();
    items.extend(queue.items(items[1].id, 10).await.unwrap());
    let texts: Vec<_> = items.iter().map(|it| it.item.payload.clone()).collect();
    assert_eq!(texts, ["later", "in work", "blocked", "available"]);
    let states: Vec<_> = items.iter().map(|it| it.state).collect();
    assert!(matches!(states[0], QueuedState::Later { .. }), "{states:?}");
    assert!(matches!(states[1], QueuedState::InWork { .. }), "{states:?}");
    assert_eq!(states[2..], [QueuedState::Blocked, QueuedState::Available]);
    assert_eq!(items.iter().map(|it| it.deliveries).collect::<Vec<_>>(), [1, 1, 0, 0]);
    // The first is not done, and so it is the oldest.
    assert_eq!(queue.backlog().await.unwrap().oldest, first.enqueued_at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_moved_to_the_next_queue_once() {
    let (_folder, path) = file();
    let ordered = SqliteOptions::new().ordered_by_key(true);
    let orders = SqliteQueue::open_with(&path, "orders", ordered).await.unwrap();
    let pushes = SqliteQueue::open(&path, "pushes").await.unwrap();
    for n in 0..10 {
        orders.push(Item::new(n.to_string()).key("k")).await.unwrap();
    }
    let queue = orders.clone();
    let failed = Arc::new(Mutex::new(false));
    let handle = async move |order: &mut Message<Item>| {
        let id = order.metadata().id.clone().unwrap_or_default();
        let item = Item::new(format!("enriched {}", text(order)));
        let new = queue.forward(&id, "pushes", item.clone()).await?;
        // The one that was moved is gone.
        assert!(new.is_some() && queue.forward(&id, "pushes", item).await?.is_none());
        // It was moved, whatever becomes of its message.
        if text(order) == "3" && !std::mem::replace(&mut *failed.lock(), true) {
            return Err(Failure::new("it is too late"));
        }
        Ok(())
    };
    let pipeline = Pipeline::of_messages("orders")
        .source(orders.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(2))
        .start()
        .unwrap();
    let (pushing, seen) = keep(pushes.source(quick()), |_| None);
    until("all are done", async || is_empty(&orders).await && is_empty(&pushes).await).await;
    pipeline.drain(PATIENCE).await;
    pushing.drain(PATIENCE).await;
    assert_eq!(*seen.lock(), (0..10).map(|n| format!("enriched {n}")).collect::<Vec<_>>());
    assert!(orders.dead_letters(0, 10).await.unwrap().is_empty());
    assert_eq!(orders.forward("no id", "pushes", Item::new("")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_adds_items_in_its_own_transaction() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(&path, "orders").await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    let program = Connection::open(&path).unwrap();
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
        drop(stuck(queue.source(quick().max_unfinished(3))).await);
    }
    let (pipeline, seen) = keep(queue.source(quick().max_unfinished(3)), |_| None);
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert!(seen.lock().is_empty());
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(&*dead[0].reason, "delivered 3 times, and no outcome is known of 3 of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_a_stage_of_the_programs_own_drops_is_given_up_in_the_end() {
    let (_folder, path) = file();
    let queue = SqliteQueue::open(path, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let drop_all = for_each(async move |message: Message<Item>| {
        count.fetch_add(1, Ordering::Relaxed);
        drop(message);
    });
    let pipeline = Pipeline::builder("test")
        .producer(queue.source(quick().max_unfinished(4)))
        .consumer(drop_all, SubscribeOptions::new())
        .start()
        .unwrap();
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.load(Ordering::Relaxed), 4);
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(&*dead[0].reason, "the message was dropped before its outcome was known");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_any_length_keeps_an_item_in_work() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().lease(Duration::MAX).ordered_by_key(true);
    let queue = SqliteQueue::open_with(path, "numbers", options).await.unwrap();
    queue.push(Item::new("1").key("a")).await.unwrap();
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(1).await.unwrap();
    let state = async || queue.items(0, 1).await.unwrap()[0].state;
    assert!(matches!(state().await, QueuedState::InWork { .. }), "{:?}", state().await);
    settle.renew(&[fetched[0].receipt]).await.unwrap();
    assert!(matches!(state().await, QueuedState::InWork { .. }), "{:?}", state().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_an_operator_has_made_one_without_an_order_is_delivered_whole() {
    let (_folder, path) = file();
    let options = SqliteOptions::new().ordered_by_key(true);
    let queue = SqliteQueue::open_with(&path, "numbers", options).await.unwrap();
    for n in 0..5 {
        queue.push(Item::new(n.to_string()).key("a")).await.unwrap();
    }
    let operator = Connection::open(&path).unwrap();
    operator.busy_timeout(PATIENCE).unwrap();
    operator.execute("UPDATE pipeline_queues SET ordered = 0", []).unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("all are delivered", async || seen.lock().len() == 5).await;
    pipeline.drain(PATIENCE).await;
    assert!(is_empty(&queue).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_clock_that_was_ahead_has_leased_or_postponed_waits_no_longer_than_it_was_to() {
    const LEASED: usize = 600;
    const HOUR: Duration = Duration::from_secs(3600);
    for ahead in [2 * HOUR, 400 * 24 * HOUR] {
        let ahead = i64::try_from(ahead.as_millis()).unwrap();
        let (_folder, path) = file();
        let options = SqliteOptions::new().lease(Duration::from_secs(2)).ordered_by_key(true);
        let queue = SqliteQueue::open_with(&path, "numbers", options).await.unwrap();
        for text in ["postponed", "behind it"] {
            queue.push(Item::new(text).key("a")).await.unwrap();
        }
        queue.push(Item::new("tomorrow")).await.unwrap();
        queue.push_all((0..LEASED).map(|n| Item::new(n.to_string())).collect()).await.unwrap();
        let (mut fetch, settle) = queue.connect().await.unwrap();
        let mut fetched = Vec::new();
        while fetched.len() < LEASED + 2 {
            fetched.extend(fetch.fetch(LEASED).await.unwrap());
        }
        for (fetched, after) in [(&fetched[0], PATIENCE / 100), (&fetched[1], 24 * HOUR)] {
            let outcome = Outcome::Release { after };
            let settlement = Settlement { receipt: fetched.receipt, outcome };
            assert!(settle.settle(&[settlement]).await.unwrap().is_empty());
        }
        drop((fetch, settle));
        // So would they be if the clock had been ahead, and is right now.
        let operator = Connection::open(&path).unwrap();
        operator.busy_timeout(PATIENCE).unwrap();
        let set = "UPDATE pipeline_items SET available_at = available_at + ?1,
                waits_since = waits_since + ?1
            WHERE available_at > 0 AND available_at < 9223372036854775807";
        assert_eq!(operator.execute(set, [ahead]), Ok(LEASED + 2));
        // What another program has put off was set by no clock.
        let later = "INSERT INTO pipeline_items (queue, payload, available_at)
            SELECT 'numbers', 'in a year', max(available_at) FROM pipeline_items
                WHERE available_at < 9223372036854775807";
        operator.execute(later, []).unwrap();

        let (mut fetch, settle) = queue.connect().await.unwrap();
        let (mut texts, mut brought) = (Vec::new(), 0);
        let all = async {
            while texts.len() < LEASED + 2 {
                for delivery in fetch.fetch(100).await.unwrap() {
                    texts.push(String::from_utf8(delivery.item.payload.to_vec()).unwrap());
                    let receipt = delivery.receipt;
                    let settlement = Settlement { receipt, outcome: Outcome::Done };
                    assert!(settle.settle(&[settlement]).await.unwrap().is_empty());
                }
                brought += settle.backlog().await.unwrap().brought_forward;
            }
        };
        timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("ahead by {ahead}"));
        assert_eq!(brought, LEASED as u64 + 1);
        texts.sort();
        let mut expected: Vec<_> = (0..LEASED).map(|n| n.to_string()).collect();
        expected.extend(["postponed".to_owned(), "behind it".to_owned()]);
        expected.sort();
        assert_eq!(texts, expected);
        let left: Vec<_> = queue.items(0, 10).await.unwrap();
        let texts: Vec<_> = left.iter().map(|it| it.item.payload.clone()).collect();
        assert_eq!(texts, ["tomorrow", "in a year"]);
        let QueuedState::Later { at } = left[0].state else { panic!("{:?}", left[0].state) };
        // Its time stays what it is, until it has waited for a day.
        assert!(at > std::time::SystemTime::now() + 24 * HOUR, "{at:?}");
    }
}

/// The test runs once more in a process of its own, which has a small disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_closed_opens_again_although_the_disk_has_become_full() {
    const SMALL_DISK: &str = "SMALL_DISK";
    let test = "a_file_that_was_closed_opens_again_although_the_disk_has_become_full";
    let Some(disk) = std::env::var_os(SMALL_DISK) else {
        let folder = tempfile::tempdir().unwrap();
        // In a namespace of its own: nothing is left of it.
        let with_disk = |program: &std::ffi::OsStr| {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
            command.args(["sh", "-c", r#"mount -t tmpfs -o size=12m tmpfs "$0" && exec "$@""#]);
            command.arg(folder.path()).arg(program).env(SMALL_DISK, folder.path());
            command
        };
        if !with_disk("true".as_ref()).status().is_ok_and(|it| it.success()) {
            println!("SKIPPED: the system does not mount a disk for a user");
            return;
        }
        let program = std::env::current_exe().unwrap();
        let mut again = with_disk(program.as_ref());
        assert!(again.args(["--exact", test, "--nocapture"]).status().unwrap().success());
        return;
    };
    let path = PathBuf::from(disk).join("queue.db");
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    drop(queue);
    // What has it open last removes both.
    let is_there = |suffix: &str| path.with_extension(format!("db-{suffix}")).exists();
    until("it is closed", async || !is_there("shm") && !is_there("wal")).await;
    assert!(is_there("reserve"));

    let mut other = std::fs::File::create(path.with_file_name("other")).unwrap();
    let full = loop {
        if let Err(error) = other.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("it is done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*seen.lock(), ["1"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_at_its_path_any_more_confirms_nothing_until_it_is_back() {
    let (folder, path) = file();
    let aside = folder.path().join("aside.db");
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("the first is done", async || is_empty(&queue).await).await;
    assert!(source().connected);

    let refused = async |which: &'static str| {
        let pushed = queue.push(Item::new(which)).await;
        let Err(error @ SqliteError::Replaced { path: named, .. }) = &pushed else {
            panic!("{which}: {pushed:?}")
        };
        assert_eq!(*named, path);
        assert!(error.to_string().contains("deleted or replaced"), "{error}");
    };
    std::fs::rename(&path, &aside).unwrap();
    refused("moved").await;
    until("the source knows it", async || !source().connected).await;
    let told = async || source().last_error.is_some_and(|it| it.contains("deleted or replaced"));
    until("the source says so", told).await;

    // Another file takes its place, by the way in which most programs save.
    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE others (id)").unwrap();
    let saved = std::fs::read(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    refused("replaced").await;
    // A program that opens it would apply the log of the old file to it.
    assert_eq!(std::fs::read(&path).unwrap(), saved, "the other file is as it was");

    std::fs::rename(&aside, &path).unwrap();
    until("it is connected again", async || source().connected).await;
    queue.push(Item::new("2")).await.unwrap();
    until("the last is done", async || seen.lock().iter().any(|it| it == "2")).await;
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    // The first push that was refused may have been written before it was noticed, and no later one.
    assert!(!seen.lock().iter().any(|it| it == "replaced"), "{:?}", seen.lock());
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_that_has_to_be_removed_is_named_as_it_is_where_a_link_leads_to_the_file() {
    let (folder, file) = file();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let queue = SqliteQueue::open(&link, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();

    // The link leads elsewhere. The log belongs to the file that is still there.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere.db"), &link).unwrap();
    let error = queue.push(Item::new("2")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("put it back") && !text.contains("-wal"), "{text}");
    let SqliteError::Replaced { path, log_of } = error else { panic!("{error}") };
    assert_eq!((path, log_of), (link.clone(), None));
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    queue.push(Item::new("3")).await.unwrap();

    // The file is replaced.
    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE others (id)").unwrap();
    std::fs::rename(&other, &file).unwrap();
    let error = queue.push(Item::new("4")).await.unwrap_err();
    let SqliteError::Replaced { path, log_of: Some(log_of) } = &error else { panic!("{error}") };
    assert_eq!(*path, link);
    let logs = ["-wal", "-shm"].map(|end| format!("{}{end}", log_of.display()));
    for log in &logs {
        assert!(error.to_string().contains(log), "{error}");
        assert!(Path::new(log).exists(), "{log}");
    }
    // As the program ends without closing the file, and the operator does what the error says.
    logs.iter().for_each(|log| std::fs::remove_file(log).unwrap());
    let others = Connection::open(&file).unwrap();
    let count: i64 = others.query_row("SELECT count(*) FROM others", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0, "the new file is as it was");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_path_is_no_text_confirms_nothing_either_when_it_is_gone() {
    use std::os::unix::ffi::OsStrExt;

    let (folder, _) = file();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"queue\xff.db"));
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let error = queue.push(Item::new("2")).await.unwrap_err();
    let SqliteError::Replaced { path: named, log_of } = error else { panic!("{error}") };
    assert_eq!((&named, log_of.as_ref()), (&path, Some(&path)));
}

/// The names and the contents of all files in a folder.
fn contents(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder.path()).unwrap().filter_map(|file| {
        let file = file.unwrap();
        // A log that is being closed is gone meanwhile.
        let content = std::fs::read(file.path()).ok()?;
        Some((file.file_name().into_string().unwrap(), content))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_has_to_be_there_is_not_made_and_the_file_of_another_program_is_left_as_it_is()
{
    let (folder, path) = file();
    let refused = async |queue: &'static str| {
        let before = contents(&folder);
        let error = SqliteQueue::open_existing(&path, queue).await.unwrap_err();
        assert_eq!(contents(&folder), before, "{error}");
        error
    };
    let error = refused("numbers").await;
    assert!(matches!(error, SqliteError::Open { .. }), "{error}");

    std::fs::write(&path, "").unwrap();
    let error = refused("numbers").await.to_string();
    assert!(error.contains("queue.db: it has no table pipeline_queues"), "{error}");

    let program = Connection::open(&path).unwrap();
    program.execute_batch("CREATE TABLE others (id); INSERT INTO others VALUES (1)").unwrap();
    drop(program);
    let error = refused("numbers").await;
    assert!(matches!(error, SqliteError::NotAQueue { .. }), "{error}");

    std::fs::remove_file(&path).unwrap();
    let queue = SqliteQueue::open(&path, "numbers").await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    drop(queue);
    // Its thread closes the file.
    let log = folder.path().join("queue.db-wal");
    until("the file is closed", async || !log.exists()).await;
    let error = refused("letters").await;
    let SqliteError::UnknownQueue { there, .. } = &error else { panic!("{error}") };
    assert_eq!(*there, ["numbers"]);
    assert!(error.to_string().contains(r#"no queue "letters" in "#), "{error}");

    let queue = SqliteQueue::open_existing(&path, "numbers").await.unwrap();
    assert_eq!(queue.backlog().await.unwrap().items, Some(1));
    let before = contents(&folder);
    queue.close().await;
    let names: Vec<_> = contents(&folder).into_iter().map(|it| it.0).collect();
    assert_eq!(names, ["queue.db", "queue.db-reserve"], "it is closed");
    assert_eq!(contents(&folder)[0], before[0], "nothing was changed");
}

#[tokio::test]
async fn a_table_of_another_program_with_the_name_of_ours_is_named_with_what_it_lacks() {
    let (folder, path) = file();
    let with_table = async |columns: &str| {
        let program = Connection::open(&path).unwrap();
        program.execute_batch("DROP TABLE IF EXISTS pipeline_items").unwrap();
        program.execute_batch(&format!("CREATE TABLE pipeline_items ({columns})")).unwrap();
        drop(program);
        let before = contents(&folder);
        let error = SqliteQueue::open(&path, "numbers").await.unwrap_err();
        assert!(matches!(error, SqliteError::NotAQueue { .. }), "{error}");
        assert_eq!(contents(&folder), before, "{error}");
        let error = error.to_string();
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
        error
    };
    let error = with_table(
        "id INTEGER PRIMARY KEY, queue, key, headers, trace, enqueued_at, \
         available_at, deliveries",
    )
    .await;
    assert!(error.contains("table pipeline_items is not that of a queue"), "{error}");
    assert!(error.contains("it lacks payload, lease: expected the columns id, queue, "), "{error}");
    let error = with_table(
        "id TEXT PRIMARY KEY, queue, key, payload, headers, trace, enqueued_at, \
         available_at, lease, deliveries",
    )
    .await;
    assert!(error.contains("expected the column id to be its INTEGER PRIMARY KEY"), "{error}");
}

#[tokio::test]
async fn a_push_that_is_refused_is_counted_by_its_reason() {
    let (folder, path) = file();
    let refusals = Refusals::default();
    let queue = {
        let _recorder = metrics::set_default_local_recorder(&refusals);
        SqliteQueue::open(&path, "numbers").await.unwrap()
    };
    let counted = || {
        ["failed", "full", "replaced"].map(|reason| refusals.counted("sqlite", "numbers", reason))
    };
    queue.push(Item::new("1")).await.unwrap();
    assert_eq!(counted(), [0, 0, 0]);

    let program = Connection::open(&path).unwrap();
    program
        .execute_batch(
            "CREATE TRIGGER refused BEFORE INSERT ON pipeline_items WHEN NEW.key = 'refused'
             BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )
        .unwrap();
    let items = ["a", "refused", "b"].map(|key| Item::new("2").key(key)).to_vec();
    queue.push_all(items).await.unwrap_err();
    assert_eq!(counted(), [3, 0, 0]);

    // Another process that has found no room gives up the reserve.
    std::fs::remove_file(folder.path().join("queue.db-reserve")).unwrap();
    let error = queue.push(Item::new("3")).await.unwrap_err();
    assert!(matches!(error, SqliteError::Full), "{error}");
    assert_eq!(counted(), [3, 1, 0]);

    #[cfg(unix)]
    {
        std::fs::remove_file(&path).unwrap();
        queue.push(Item::new("4")).await.unwrap_err();
        assert_eq!(counted(), [3, 1, 1]);
    }
}
