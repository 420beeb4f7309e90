//! The queue in a table of PostgreSQL.
//!
//! `KILLS=50 RESTARTS=10 ITEMS=20000 cargo test -p pipeline-sources --all-features --test postgres --
//! --nocapture` prints the figures of longer runs.
#![cfg(all(feature = "postgres", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;
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
    processing::{Failure, Message, Processors},
    telemetry::Telemetry,
};
use pipeline_sources::{
    Broker, Fetch, Item, Outcome, QueuedState, Settle, Settlement,
    contract::{Subject, check},
    postgres::{PostgresError, PostgresOptions, PostgresQueue, SCHEMA, forward_in, push_in},
};
use pipeline_test_support::servers::{Kind, Server};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls, types::ToSql};

use self::common::{Numbers, PATIENCE, assert_dead, keep, payloads, quick, stuck, text, until};

/// Options of tests: short leases, and calls that end soon.
fn options() -> PostgresOptions {
    PostgresOptions::new()
        .lease(Duration::from_millis(800))
        .poll_interval(Duration::from_millis(100))
        .call_timeout(Duration::from_secs(2))
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
        let headers = r#"{"n": 7}"#;
        let insert = format!(
            "INSERT INTO pipeline_items (queue, payload, headers) VALUES ($1, '', '{headers}')"
        );
        self.client.execute(&insert, &[&self.queue.name()]).await.unwrap();
        true
    }

    async fn fill_graves(&self) -> bool {
        let name = self.queue.name();
        let full = format!(
            "CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE 'there is no room'; END $$;
             CREATE TRIGGER no_room BEFORE INSERT ON pipeline_dead_letters
                FOR EACH ROW WHEN (NEW.queue = '{name}') EXECUTE FUNCTION no_room();"
        );
        self.client.batch_execute(&full).await.unwrap();
        true
    }

    async fn empty_graves(&self) {
        let empty = "DROP TRIGGER no_room ON pipeline_dead_letters";
        self.client.batch_execute(empty).await.unwrap();
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

    const IS_ORDERED: bool = true;

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
    let queue = open(&server, options().ordered_by_key(true)).await;
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
    let (pipeline, seen) = keep(queue.source(quick()), |_| Some(Failure::new("it is \0 bad")));
    until("all are given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len(), 9);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(3));

    let mut dead = queue.dead_letters(0, 2).await.unwrap();
    assert_eq!(dead.len(), 2);
    dead.extend(queue.dead_letters(dead[1].id, 2).await.unwrap());
    assert_eq!(dead.iter().map(|dead| dead.id).collect::<Vec<_>>(), ids);
    for (dead, item) in dead.iter().zip(&items) {
        assert_dead(dead, item, 3, "it is \u{fffd} bad");
    }

    let new = queue.replay(ids[0]).await.unwrap().unwrap();
    assert!(new > ids[2]);
    assert_eq!(queue.replay(ids[0]).await.unwrap(), None);
    assert!(queue.drop_dead_letter(ids[1]).await.unwrap());
    assert!(!queue.drop_dead_letter(ids[1]).await.unwrap());
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(1), Some(1)));
    // It is as it was, and is tried again from the first time on. Its age begins anew.
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let again = fetch.fetch(10).await.unwrap();
    assert_eq!((again.len(), &again[0].item, again[0].deliveries), (1, &items[0], 1));
    assert!(again[0].enqueued_at.unwrap() >= dead[0].given_up_at.unwrap());

    assert_eq!(queue.replay_all(|_| false).await.unwrap(), 0);
    assert_eq!(queue.replay_all(|dead| &*dead.reason == "it is \u{fffd} bad").await.unwrap(), 1);
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(2), Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
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
async fn a_queue_that_is_not_there_is_not_opened_as_an_existing_one_and_not_made() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let options = options().ordered_by_key(true);
    let open = async |name: &str| PostgresQueue::open_existing(&server.url(), name, options).await;
    for _ in 0..2 {
        let missing = open("orders").await.unwrap_err();
        assert!(matches!(missing, PostgresError::UnknownQueue { .. }), "no tables: {missing}");
    }
    let queue = PostgresQueue::open_with(&server.url(), "others", options).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    for _ in 0..2 {
        let missing = open("orders").await.unwrap_err();
        assert!(matches!(missing, PostgresError::UnknownQueue { .. }), "no such queue: {missing}");
    }
    assert_eq!(open("others").await.unwrap().backlog().await.unwrap().items, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_refused_is_counted_at_the_recorder_of_its_queue() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let refusals = common::Refusals::default();
    let queue = open(&server, options()).await;
    let queue = queue.telemetry(&Telemetry::with_recorder(refusals.clone()));
    let program = client(&server.url()).await;
    program.batch_execute("ALTER TABLE pipeline_items ADD CHECK (key <> 'refused')").await.unwrap();
    let counted = || ["failed", "full"].map(|why| refusals.counted("postgres", queue.name(), why));
    queue.push(Item::new("1").key("a")).await.unwrap();
    assert_eq!(counted(), [0, 0]);
    let refused = Item::new("2").key("refused");
    queue.push(refused.clone()).await.unwrap_err();
    assert_eq!(counted(), [1, 0]);
    queue.push_all(vec![Item::new("3"), refused.clone()]).await.unwrap_err();
    assert_eq!(counted(), [3, 0]);
    // The program has the error, and may roll its transaction back for another reason.
    push_in(&program, queue.name(), &refused).await.unwrap_err();
    assert_eq!(counted(), [3, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_has_no_more_large_items_than_it_has_bytes() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    for ordered in [false, true] {
        let options = options().ordered_by_key(ordered);
        let queue = PostgresQueue::open_with(&server.url(), format!("{ordered}"), options).unwrap();
        for n in 0..3_u8 {
            queue.push(Item::new(vec![n; 9_000_000]).key(n.to_string())).await.unwrap();
        }
        let (mut fetch, _settle) = queue.connect().await.unwrap();
        let mut fetched = Vec::new();
        while fetched.len() < 2 {
            let items = fetch.fetch(10).await.unwrap();
            fetched.push(items.iter().map(|it| it.item.payload[0]).collect::<Vec<_>>());
        }
        assert_eq!(fetched, [vec![0, 1], vec![2]], "ordered by key: {ordered}");
    }
    // The server keeps these compressed.
    for large in [
        "headers) SELECT jsonb_build_object('h', repeat('x', 9000000))",
        "trace) SELECT repeat('x', 9000000)",
    ] {
        for ordered in [false, true] {
            let name = format!("{} {ordered}", &large[..5]);
            let queue =
                PostgresQueue::open_with(&server.url(), &*name, options().ordered_by_key(ordered))
                    .unwrap();
            let (mut fetch, _settle) = queue.connect().await.unwrap();
            let insert = format!(
                "INSERT INTO pipeline_items (queue, payload, {large} FROM generate_series(1, 3)"
            );
            let insert = insert.replace("SELECT ", &format!("SELECT '{name}', '', "));
            client(&server.url()).await.batch_execute(&insert).await.unwrap();
            assert_eq!(fetch.fetch(10).await.unwrap().len(), 2, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_items_and_dead_letters_are_listed_by_pages() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = PostgresQueue::open_with(&server.url(), "orders", options()).unwrap();
    for _ in 0..5 {
        queue.push(Item::new(vec![0; 1_700_000])).await.unwrap();
    }
    let page = queue.items(0, 100).await.unwrap();
    let rest = queue.items(page[2].id, 100).await.unwrap();
    assert_eq!((page.len(), rest.len()), (3, 2));
    let give_up = "INSERT INTO pipeline_dead_letters
            (id, queue, payload, headers, enqueued_at, deliveries, reason)
        SELECT id, queue, payload, headers, enqueued_at, 1, 'no' FROM pipeline_items";
    client(&server.url()).await.batch_execute(give_up).await.unwrap();
    common::large_letters_are_listed_by_pages(5, async |after: Option<i64>| {
        queue.dead_letters(after.unwrap_or(0), 100).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_moved_to_the_next_queue_once() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let ordered = options().ordered_by_key(true);
    let orders = PostgresQueue::open_with(&server.url(), "orders", ordered).unwrap();
    let pushes = PostgresQueue::open_with(&server.url(), "pushes", options()).unwrap();
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
async fn a_program_adds_items_in_its_own_transaction_and_wakes_the_source() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    // Only a notification can wake it in time.
    let queue = open(&server, options().poll_interval(PATIENCE * 10)).await;
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
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
async fn a_signal_ends_the_delay_of_an_item() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let push = async |item| {
        queue.push(item).await.unwrap();
    };
    common::a_signal_ends_a_delay(queue.source(quick()), push).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_found_without_notifications() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let program = client(&server.url()).await;
    let disable = "ALTER TABLE pipeline_items DISABLE TRIGGER pipeline_items_added";
    program.batch_execute(disable).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
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
        let n = text(message).parse::<u64>()?;
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
async fn the_next_item_of_a_key_is_not_found_by_polling_alone() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    // Nothing would be found by polling in time.
    let queue = open(&server, options().ordered_by_key(true).poll_interval(PATIENCE * 10)).await;
    queue.push_all((0..50).map(|n| Item::new(n.to_string()).key("k")).collect()).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("all are handled", async || seen.lock().len() == 50).await;
    assert_eq!(*seen.lock(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
    pipeline.drain(PATIENCE).await;
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
    let retry = Outcome::Retry { after: Duration::ZERO, failures: 1 };
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

/// What another program and an operator do to a queue that is ordered by key, and what sources do, one
/// after the other, by the functions that sources call.
struct Disorder {
    numbers: Numbers,
    /// Programs, and whether each has a transaction open.
    programs: Vec<(Client, bool)>,
    operator: Client,
    /// What sources have taken: ids and leases.
    held: Vec<(i64, i64)>,
    /// What programs move in open transactions: ids, and which program.
    moving: Vec<(i64, usize)>,
    token: i64,
    log: Vec<String>,
}

const KEYS: [&str; 2] = ["a", "b"];

impl Disorder {
    async fn ids(&self, which: &str) -> Vec<i64> {
        let select = format!("SELECT id FROM pipeline_items WHERE {which} ORDER BY id");
        let rows = self.operator.query(&select, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn add(&mut self) {
        let (key, which) = (self.numbers.below(2), self.numbers.below(3));
        let begins = self.numbers.below(2) == 0;
        let (program, is_open) = &mut self.programs[which];
        if begins && !*is_open {
            program.batch_execute("BEGIN").await.unwrap();
            *is_open = true;
        }
        let add = "INSERT INTO pipeline_items (queue, key, payload) VALUES ('numbers', $1, '') RETURNING id";
        let id: i64 = program.query_one(add, &[&KEYS[key]]).await.unwrap().get(0);
        self.log.push(format!("program {which} adds {id} of {}, open: {is_open}", KEYS[key]));
    }

    /// Moves an item that is in work to another queue, in a transaction that may go on.
    async fn forward(&mut self) {
        let idle: Vec<_> = self
            .held
            .iter()
            .map(|held| held.0)
            .filter(|id| self.moving.iter().all(|moving| moving.0 != *id))
            .collect();
        let (which, begins) = (self.numbers.below(3), self.numbers.below(4) > 0);
        let Some(id) = self.numbers.one_of(&idle) else { return };
        let (program, is_open) = &mut self.programs[which];
        if begins && !*is_open {
            program.batch_execute("BEGIN").await.unwrap();
            *is_open = true;
        }
        let moved = forward_in(program, "numbers", &id.to_string(), "pushes", &Item::new("")).await;
        let is_moved = moved.unwrap().is_some();
        program.batch_execute("DELETE FROM pipeline_items WHERE queue = 'pushes'").await.unwrap();
        self.log.push(format!("program {which} moves {id}: {is_moved}, open: {is_open}"));
        if is_moved && *is_open {
            self.moving.push((id, which));
        }
    }

    async fn commit(&mut self, which: usize) {
        let end = if self.numbers.below(4) == 0 { "ROLLBACK" } else { "COMMIT" };
        let (program, is_open) = &mut self.programs[which];
        if std::mem::take(is_open) {
            program.batch_execute(end).await.unwrap();
            self.log.push(format!("program {which}: {end}"));
            self.moving.retain(|moving| moving.1 != which);
            // While an item was moved, others may have been noted as waiting for it.
            self.operator.execute("SELECT pipeline_sweep('numbers', NULL)", &[]).await.unwrap();
        }
    }

    /// Takes items. None is taken before an earlier one of its key.
    async fn take(&mut self) -> Vec<i64> {
        let most = i64::try_from(self.numbers.below(4) + 1).unwrap();
        self.token += 1;
        let take =
            "SELECT id FROM pipeline_take('numbers', $1, 60000, $2, NULL) WHERE id IS NOT NULL";
        let rows = self.operator.query(take, &[&most, &self.token]).await.unwrap();
        let taken: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        self.log.push(format!("a source takes {taken:?}"));
        let early = "lease = $1 AND EXISTS (SELECT FROM pipeline_items e
            WHERE e.key = pipeline_items.key AND e.id < pipeline_items.id)";
        let early = self.ids(&early.replace("$1", &self.token.to_string())).await;
        assert!(early.is_empty(), "taken before their turn: {early:?}, {:#?}", self.log);
        self.held.extend(taken.iter().map(|id| (*id, self.token)));
        taken
    }

    async fn settle(&mut self, (id, lease): (i64, i64), outcome: &str) {
        let settle = "SELECT FROM pipeline_settle('numbers', $1, $2, $3, $4, $5, $6)
            WHERE error IS NOT NULL";
        let (zero, failures, reason) = (vec![0_i64], vec![1_i32], vec!["it is bad"]);
        let (ids, leases, outcomes) = (vec![id], vec![lease], vec![outcome]);
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&ids, &leases, &outcomes, &zero, &failures, &reason];
        let not_stored = self.operator.query(settle, &parameters).await.unwrap();
        if not_stored.is_empty() {
            self.held.retain(|held| *held != (id, lease));
        }
        let is_moving = self.moving.iter().any(|moving| moving.0 == id);
        assert_eq!(is_moving, !not_stored.is_empty(), "{id}: {:#?}", self.log);
        self.log.push(format!("{outcome}: {id}, is moved: {is_moving}"));
    }

    /// A source dies, and its leases end.
    async fn die(&mut self) {
        let Some((_, lease)) = self.numbers.one_of(&self.held) else { return };
        let end = "UPDATE pipeline_items SET available_at = now() - interval '1 s' WHERE id IN
            (SELECT id FROM pipeline_items WHERE lease = $1 FOR UPDATE SKIP LOCKED)";
        self.operator.execute(end, &[&lease]).await.unwrap();
        let moving = &self.moving;
        self.held.retain(|held| held.1 != lease || moving.iter().any(|it| it.0 == held.0));
        self.log.push(format!("the source of lease {lease} dies"));
    }

    async fn disturb(&mut self) {
        let all = self.ids("true").await;
        let idle = self.ids("lease IS NULL").await;
        let (what, id) = match self.numbers.below(4) {
            0 => ("DELETE FROM pipeline_items WHERE id = $1", self.numbers.one_of(&all)),
            1 => ("UPDATE pipeline_items SET key = 'a' WHERE id = $1", self.numbers.one_of(&idle)),
            2 => ("UPDATE pipeline_items SET key = NULL WHERE id = $1", self.numbers.one_of(&idle)),
            _ => {
                let infinity = "UPDATE pipeline_items SET available_at = 'infinity' WHERE id = $1";
                (infinity, self.numbers.one_of(&idle))
            }
        };
        let Some(id) = id else { return };
        // Not what a transaction of a program holds.
        let free = "(SELECT id FROM pipeline_items WHERE id = $1 FOR UPDATE SKIP LOCKED)";
        let changed = self.operator.execute(&what.replace("$1", free), &[&id]).await.unwrap();
        self.log.push(format!("{what}: {id}, changed: {changed}"));
        if changed > 0 && what.starts_with("DELETE") {
            self.held.retain(|held| held.0 != id);
        }
        self.operator.execute("SELECT pipeline_sweep('numbers', NULL)", &[]).await.unwrap();
    }

    /// If a key has items, one of them is available, in work, or waits for a time that comes. At most one is
    /// in work.
    async fn check(&self) {
        let count = |having: &str| {
            format!(
                "SELECT key FROM pipeline_items WHERE key IS NOT NULL GROUP BY key HAVING {having}"
            )
        };
        let stuck = self.operator.query(&count("bool_and(available_at = 'infinity')"), &[]).await;
        assert!(stuck.unwrap().is_empty(), "all items of a key wait: {:#?}", self.log);
        let in_work = "count(*) FILTER (WHERE lease IS NOT NULL AND available_at > now()) > 1";
        let many = self.operator.query(&count(in_work), &[]).await.unwrap();
        assert!(many.is_empty(), "several items of a key are in work: {:#?}", self.log);
    }

    async fn run(&mut self) {
        for _ in 0..60 {
            match self.numbers.below(11) {
                0..=2 => self.add().await,
                3 => {
                    let which = self.numbers.below(3);
                    self.commit(which).await;
                }
                4 | 5 => {
                    self.take().await;
                }
                6 | 7 => {
                    let outcomes = ["done", "done", "retry", "release", "give up"];
                    if let Some(held) = self.numbers.one_of(&self.held) {
                        let outcome = self.numbers.one_of(&outcomes).unwrap();
                        self.settle(held, outcome).await;
                    }
                }
                8 => self.die().await,
                9 => self.forward().await,
                _ => self.disturb().await,
            }
            self.check().await;
        }
        for which in 0..3 {
            self.commit(which).await;
        }
        for held in self.held.clone() {
            self.settle(held, "done").await;
        }
        // What is left is handled, without a sweep.
        while !self.ids("true").await.is_empty() {
            let taken = self.take().await;
            assert!(!taken.is_empty(), "items are left: {:#?}", self.log);
            for id in taken {
                self.settle((id, self.token), "done").await;
            }
            self.check().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_never_stuck_whatever_is_committed_late_dies_or_is_deleted() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    open(&server, options().ordered_by_key(true)).await;
    let mut programs = Vec::new();
    for _ in 0..3 {
        programs.push((client(&server.url()).await, false));
    }
    let operator = client(&server.url()).await;
    let (numbers, held, log) = (Numbers::new(0), Vec::new(), Vec::new());
    let mut disorder =
        Disorder { numbers, programs, operator, held, moving: Vec::new(), token: 0, log };
    let rounds = std::env::var("ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        disorder.numbers = Numbers::new(seed);
        disorder.log = vec![format!("round {seed}")];
        disorder.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_not_stuck_after_a_late_commit_and_a_death() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true)).await;
    let mut program = client(&server.url()).await;
    let early = program.transaction().await.unwrap();
    push_in(&early, "numbers", &Item::new("1").key("k")).await.unwrap();
    // Its id is greater, and it is committed and in work before.
    queue.push(Item::new("2").key("k")).await.unwrap();
    let dying = stuck(queue.source(quick())).await;
    early.commit().await.unwrap();
    queue.push(Item::new("3").key("k")).await.unwrap();
    let all_wait = async || {
        let items = queue.items(0, 10).await.unwrap();
        items.iter().map(|it| it.state == QueuedState::Blocked).collect::<Vec<_>>()
    };
    // Another source sees that it is not their turn.
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("the others wait", async || all_wait().await == [true, false, true]).await;
    drop(dying);
    until("all are handled", async || is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), ["1", "2", "3"]);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_not_stuck_after_an_operator_has_deleted_its_first_item() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true).lease(PATIENCE * 10)).await;
    for n in 1..=3 {
        queue.push(Item::new(n.to_string()).key("k")).await.unwrap();
    }
    let first = stuck(queue.source(quick())).await;
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    let blocked = async || {
        let items = queue.items(0, 10).await.unwrap();
        items.iter().filter(|it| it.state == QueuedState::Blocked).count()
    };
    until("the others wait", async || blocked().await == 2).await;
    let operator = client(&server.url()).await;
    let delete = "DELETE FROM pipeline_items WHERE payload = '1'";
    assert_eq!(operator.execute(delete, &[]).await.unwrap(), 1);
    until("the others are handled", async || *seen.lock() == ["2", "3"]).await;
    drop(first);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_behind_many_of_one_key_do_not_wait_until_all_of_them_were_looked_at() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let options = options().ordered_by_key(true).lease(PATIENCE * 10).call_timeout(PATIENCE);
    let queue = open(&server, options).await;
    let operator = client(&server.url()).await;
    let fill = "INSERT INTO pipeline_items (queue, key, payload)
        SELECT 'numbers', 'hot', 'x' FROM generate_series(1, 30000)";
    operator.execute(fill, &[]).await.unwrap();
    for n in 0..100 {
        queue.push(Item::new(n.to_string()).key(n.to_string())).await.unwrap();
    }
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let mut keys = Vec::new();
    while keys.len() < 101 {
        let fetched = timeout(PATIENCE, fetch.fetch(20)).await.unwrap().unwrap();
        keys.extend(fetched.into_iter().map(|it| it.item.key.unwrap().to_string()));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 101, "one of each key");
    let count = "SELECT count(*) FROM pipeline_items WHERE available_at <= now()";
    let not_looked_at: i64 = operator.query_one(count, &[]).await.unwrap().get(0);
    assert!(not_looked_at > 15_000, "{not_looked_at} were not looked at");
}

fn done<R>(receipt: R) -> Settlement<R> {
    Settlement { receipt, outcome: Outcome::Done }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_another_transaction_holds_delays_no_other_outcome_and_no_other_lease() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let mut operator = client(&server.url()).await;
    let observer = client(&server.url()).await;
    for ordered in [false, true] {
        let queue = open(&server, options().ordered_by_key(ordered)).await;
        let begun = Arc::new(Mutex::new(Vec::<String>::new()));
        let (go_on, may_go_on) = tokio::sync::watch::channel("");
        let log = begun.clone();
        let handle = async move |message: &mut Message<Item>| {
            let text = text(message);
            log.lock().push(text.clone());
            if text == "held" || text == "slow" {
                let mut may_go_on = may_go_on.clone();
                may_go_on.wait_for(|it| it.contains(&text)).await.unwrap();
            }
            Ok::<_, Failure>(())
        };
        let processors = Processors::from_fn(handle).concurrency(4).max_demand(1);
        let source = queue.source(quick());
        let pipeline =
            Pipeline::of_messages("test").source(source).processors(processors).start().unwrap();
        for text in ["held", "slow"] {
            queue.push(Item::new(text).key(text)).await.unwrap();
        }
        until("both are in work", async || begun.lock().len() == 2).await;
        let transaction = operator.transaction().await.unwrap();
        let hold = "SELECT FROM pipeline_items WHERE payload = 'held' FOR UPDATE";
        assert_eq!(transaction.execute(hold, &[]).await.unwrap(), 1);
        // Its outcome cannot be stored.
        go_on.send("held").unwrap();
        let lease = async || {
            let lease = "SELECT available_at::text FROM pipeline_items WHERE payload = 'slow'";
            observer.query_one(lease, &[]).await.unwrap().get::<_, String>(0)
        };
        let (mut last, mut renewals, mut n) = (lease().await, 0, 0);
        while renewals < 10 {
            queue.push(Item::new(n.to_string()).key(n.to_string())).await.unwrap();
            until("it is done", async || queue.items(0, 10).await.unwrap().len() == 2).await;
            let now = lease().await;
            renewals += usize::from(now != last);
            (last, n) = (now, n + 1);
        }
        go_on.send("held slow").unwrap();
        until("the slow one is done", async || queue.items(0, 10).await.unwrap().len() == 1).await;
        transaction.rollback().await.unwrap();
        until("all are done", async || is_empty(&queue).await).await;
        pipeline.drain(PATIENCE).await;
        // The lease of the one that was held may have ended meanwhile.
        let mut begun: Vec<_> = begun.lock().iter().filter(|it| *it != "held").cloned().collect();
        begun.sort_by_key(|text| text.parse().unwrap_or(n));
        let once = (0..n).map(|n| n.to_string()).chain(["slow".to_owned()]);
        assert_eq!(begun, once.collect::<Vec<_>>(), "each was handled once, ordered: {ordered}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_while_an_outcome_waits() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true).call_timeout(PATIENCE)).await;
    for key in ["a", "b"] {
        queue.push(Item::new("").key(key)).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(2).await.unwrap();
    let operator = client(&server.url()).await;
    let lock = "SELECT pg_advisory_lock(hashtext('pipeline_items'), hashtext('numbers'))";
    operator.batch_execute(lock).await.unwrap();
    let outcome = [done(fetched[0].receipt)];
    let mut settling = std::pin::pin!(settle.settle(&outcome));
    let receipts = [fetched[1].receipt];
    let renewing = async {
        let is_waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        until("an outcome waits", async || operator.execute(is_waiting, &[]).await.unwrap() == 1)
            .await;
        settle.renew(&receipts).await
    };
    tokio::select! {
        settled = &mut settling => panic!("{settled:?}"),
        renewed = renewing => renewed.unwrap(),
    }
    operator.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    assert!(settling.await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_moved_in_a_long_transaction_while_others_are_handled() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true)).await;
    let item = |text: &'static str| Item::new(text).key(&text[..1]);
    for text in ["a1", "a2"] {
        queue.push(item(text)).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let first = fetch.fetch(10).await.unwrap().remove(0);
    assert_eq!(&first.item.payload[..], b"a1");
    let mut program = client(&server.url()).await;
    for commits in [false, true] {
        let transaction = program.transaction().await.unwrap();
        let moved = forward_in(&transaction, "numbers", &first.id, "pushes", &item("a1")).await;
        assert!(moved.unwrap().is_some());
        // The program works on. Items of another key are handled meanwhile.
        for text in ["b1", "b2"] {
            queue.push(item(text)).await.unwrap();
            let fetched = timeout(PATIENCE, fetch.fetch(10)).await.unwrap().unwrap();
            assert_eq!((fetched.len(), &fetched[0].item.payload[..]), (1, text.as_bytes()));
            settle.renew(&[first.receipt, fetched[0].receipt]).await.unwrap();
            assert!(settle.settle(&[done(fetched[0].receipt)]).await.unwrap().is_empty());
        }
        let not_stored = settle.settle(&[done(first.receipt)]).await.unwrap();
        assert_eq!(not_stored.len(), 1);
        assert!(not_stored[0].error.to_string().contains("another transaction holds"));
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
            settle.renew(&[first.receipt]).await.unwrap();
        }
    }
    let next = timeout(PATIENCE, fetch.fetch(10)).await.unwrap().unwrap();
    assert_eq!((next.len(), &next[0].item.payload[..]), (1, &b"a2"[..]));
    let outcomes = [done(first.receipt), done(next[0].receipt)];
    assert!(settle.settle(&outcomes).await.unwrap().is_empty());
    assert!(is_empty(&queue).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_of_a_program_that_moves_an_item_wakes_the_source_for_the_next_of_its_key() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    // Nothing would be found by polling in time.
    let options = options().ordered_by_key(true).poll_interval(PATIENCE * 10).lease(PATIENCE);
    let queue = open(&server, options).await;
    let items = (0..20).map(|n| Item::new(n.to_string()).key("k"));
    queue.push_all(items.collect()).await.unwrap();
    let moved = Arc::new(Mutex::new(Vec::new()));
    let (log, from) = (moved.clone(), queue.clone());
    let handle = async move |message: &mut Message<Item>| {
        let id = message.metadata().id.clone().unwrap_or_default();
        let new = from.forward(&id, "pushes", Item::new("")).await?;
        assert!(new.is_some());
        log.lock().push(text(message));
        Ok::<_, Failure>(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("all are moved", async || moved.lock().len() == 20).await;
    assert_eq!(*moved.lock(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_table_of_dead_letters_is_locked_other_outcomes_are_stored() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let options = options().ordered_by_key(true).lease(PATIENCE);
    let queue = open(&server, options).await;
    for key in ["a", "b", "c"] {
        queue.push(Item::new(key).key(key)).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(10).await.unwrap();
    let given_up = |n: usize| Settlement {
        receipt: fetched[n].receipt,
        outcome: Outcome::GiveUp { reason: "it is bad".into() },
    };
    // As the build of an index does.
    let mut operator = client(&server.url()).await;
    let transaction = operator.transaction().await.unwrap();
    let lock = "LOCK TABLE pipeline_dead_letters IN SHARE MODE";
    transaction.batch_execute(lock).await.unwrap();
    let outcomes = [given_up(0), done(fetched[1].receipt), given_up(2)];
    let not_stored = settle.settle(&outcomes).await.unwrap();
    assert_eq!(not_stored.iter().map(|it| it.index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(queue.items(0, 10).await.unwrap().len(), 2);
    transaction.rollback().await.unwrap();
    assert!(settle.settle(&[given_up(0), given_up(2)]).await.unwrap().is_empty());
    assert_eq!(queue.dead_letters(0, 10).await.unwrap().len(), 2);
}

/// Rows that cannot be read are given up with a reason, and the others go on.
async fn odd_rows(address: &str, options: PostgresOptions) {
    let queue = PostgresQueue::open_with(address, "numbers", options).unwrap();
    queue.prepare().await.unwrap();
    let operator = client(address).await;
    // Tables of version 1 have no constraints, and an operator may drop them.
    let drop = "ALTER TABLE pipeline_items DROP CONSTRAINT pipeline_items_headers_check,
        DROP CONSTRAINT pipeline_items_enqueued_at_check";
    operator.batch_execute(drop).await.unwrap();
    for odd in [
        "('numbers', '1', DEFAULT, DEFAULT, 'infinity', DEFAULT)",
        "('numbers', '2', DEFAULT, DEFAULT, '-infinity', DEFAULT)",
        "('numbers', '3', DEFAULT, '[]', DEFAULT, DEFAULT)",
        "('numbers', '4', DEFAULT, '{\"kind\": \"order\", \"n\": 7}', DEFAULT, DEFAULT)",
        "('numbers', '5', DEFAULT, DEFAULT, DEFAULT, 2147483647)",
    ] {
        let columns = "queue, payload, key, headers, enqueued_at, deliveries";
        let insert = format!("INSERT INTO pipeline_items ({columns}) VALUES {odd}");
        operator.batch_execute(&insert).await.unwrap();
    }
    let good =
        "INSERT INTO pipeline_items (queue, payload, trace, deliveries, enqueued_at, available_at)
        VALUES ('numbers', 'good', 'no trace', -5, '4713-01-01 BC', '-infinity')";
    operator.batch_execute(good).await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*seen.lock(), ["good"]);
    let dead = queue.dead_letters(0, 10).await.unwrap();
    let reasons: Vec<_> = dead.iter().map(|it| &*it.reason).collect();
    assert_eq!(reasons[..2], ["its enqueued_at is no time"; 2]);
    assert!(reasons[2..4].iter().all(|it| it.contains("not an object of texts")), "{reasons:?}");
    assert!(reasons[4].contains("2147483646"), "{reasons:?}");
    assert_eq!(dead.len(), 5);
    assert_eq!(&dead[3].item.payload[..], b"4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_are_given_up_and_the_others_go_on() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    odd_rows(&server.url(), options()).await;
    // New tables refuse the plain mistakes.
    let operator = client(&server.url()).await;
    operator.batch_execute("DROP TABLE pipeline_items").await.unwrap();
    operator.batch_execute(SCHEMA).await.unwrap();
    for refused in ["headers) VALUES ('q', '', '[]')", "enqueued_at) VALUES ('q', '', 'infinity')"]
    {
        let insert = format!("INSERT INTO pipeline_items (queue, payload, {refused}");
        assert!(operator.batch_execute(&insert).await.is_err(), "{refused}");
    }
    let database = "CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0
        LC_COLLATE 'C' LC_CTYPE 'C'";
    operator.batch_execute(database).await.unwrap();
    let url = server.url();
    let address = format!("{}/plain", url.rsplit_once('/').unwrap().0);
    odd_rows(&address, options().ordered_by_key(true)).await;
    // Where there is no encoding, a text may be of any bytes.
    let operator = client(&address).await;
    let insert = "INSERT INTO pipeline_items (queue, payload, key, trace)
        VALUES ('bytes', 'x', convert_from('\\xff'::bytea, 'SQL_ASCII'), NULL),
            ('bytes', 'y', NULL, convert_from('\\xff'::bytea, 'SQL_ASCII'))";
    operator.batch_execute(insert).await.unwrap();
    let queue = PostgresQueue::open_with(&address, "bytes", options()).unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("both are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*seen.lock(), ["y"]);
    assert_eq!(&*queue.dead_letters(0, 10).await.unwrap()[0].reason, "its key is not UTF-8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_id_is_taken_gets_another_and_a_long_reason_is_cut() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let operator = client(&server.url()).await;
    let fails = |text: &str| Some(Failure::new(text.repeat(3000)).give_up());
    let (pipeline, _) = keep(queue.source(quick()), fails);
    for n in 0..3 {
        let insert =
            format!("INSERT INTO pipeline_items (id, queue, payload) VALUES (7, 'numbers', '{n}')");
        operator.batch_execute(&insert).await.unwrap();
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
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    open(&server, options().ordered_by_key(true)).await;
    let queue = open(&server, options().lease(PATIENCE * 10)).await;
    for n in 0..6 {
        queue.push(Item::new(n.to_string()).key("k")).await.unwrap();
    }
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    assert_eq!(fetch.fetch(10).await.unwrap().len(), 1, "it is ordered");
    let unordered = open(&server, options().ordered_by_key(false)).await;
    let (mut fetch, _settle) = unordered.connect().await.unwrap();
    let mut fetched = 0;
    while fetched < 5 {
        fetched += timeout(PATIENCE, fetch.fetch(10)).await.unwrap().unwrap().len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_not_done_are_listed_with_what_they_wait_for_and_the_first_is_the_oldest() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().ordered_by_key(true).lease(PATIENCE * 10)).await;
    for (text, key) in [("later", "a"), ("in work", "b"), ("blocked", "b"), ("available", "c")] {
        queue.push(Item::new(text).key(key)).await.unwrap();
    }
    let first = queue.items(0, 1).await.unwrap().remove(0);
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(2).await.unwrap();
    let retry = Outcome::Retry { after: PATIENCE * 10, failures: 1 };
    settle.settle(&[Settlement { receipt: fetched[0].receipt, outcome: retry }]).await.unwrap();
    // It is looked at, and then the last one is taken and given back.
    let last = fetch.fetch(2).await.unwrap();
    let release = Outcome::Release { after: Duration::ZERO };
    settle.settle(&[Settlement { receipt: last[0].receipt, outcome: release }]).await.unwrap();
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
async fn tables_of_older_versions_become_those_of_version_6() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let operator = client(&server.url()).await;
    operator.batch_execute(include_str!("fixtures/postgres_1.sql")).await.unwrap();
    // A function of version 3, which has other columns.
    let take = "CREATE FUNCTION pipeline_take(
            of_queue text, most int8, lease_ms int8, token int8, after_key text
        ) RETURNS TABLE (id int8, key text) LANGUAGE sql AS $$ SELECT 1::int8, '' $$";
    operator.batch_execute(take).await.unwrap();
    // Of one key, the first is gone and the others wait for ever; of another, one is leased by a process
    // that has died.
    let old = "INSERT INTO pipeline_items (queue, key, payload, available_at, lease) VALUES
        ('numbers', 'a', '1', 'infinity', NULL), ('numbers', 'b', '2', now(), NULL),
        ('numbers', 'a', '3', 'infinity', 7), ('numbers', 'b', '4', now(), 7),
        ('numbers', NULL, '5', now(), NULL)";
    operator.batch_execute(old).await.unwrap();
    let queue = open(&server, options().ordered_by_key(true)).await;
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let seen = seen.lock();
    assert_eq!(seen.len(), 5);
    let place = |text: &str| seen.iter().position(|seen| seen == text);
    assert!(place("1") < place("3") && place("2") < place("4"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_always_due_again_leave_room_for_new_ones() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    for ordered in [false, true] {
        let name = if ordered { "ordered" } else { "plain" };
        let options = options().ordered_by_key(ordered);
        let queue = PostgresQueue::open_with(&server.url(), name, options).unwrap();
        for n in 0..50 {
            queue.push(Item::new("again").key(format!("again-{n}"))).await.unwrap();
        }
        let fails = |text: &str| (text == "again").then(|| Failure::new("not yet"));
        let (pipeline, seen) = keep(queue.source(quick().max_deliveries(1_000_000)), fails);
        until("all have failed more than once", async || seen.lock().len() > 150).await;
        let before = seen.lock().len();
        for n in 0..20 {
            queue.push(Item::new(n.to_string()).key(format!("new-{n}"))).await.unwrap();
        }
        let new = || seen.lock().iter().filter(|text| *text != "again").count();
        until("the new ones are handled", async || new() == 20).await;
        let between = seen.lock().len() - before;
        assert!(between < 500, "{name}: {between} were handled until 20 new ones were");
        pipeline.drain(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_items_that_are_due_again_and_of_new_ones_each_get_half_of_the_places() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let operator = client(&server.url()).await;
    let many = "INSERT INTO pipeline_items (queue, payload, enqueued_at, available_at)
        SELECT 'numbers', 'again', now() - interval '10 min', now() - interval '1 min' FROM generate_series(1, 5000)";
    operator.batch_execute(many).await.unwrap();
    let new = "INSERT INTO pipeline_items (queue, payload) SELECT 'numbers', 'new' FROM generate_series(1, 100)";
    operator.batch_execute(new).await.unwrap();
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let mut new_of = async |max| {
        let taken = fetch.fetch(max).await.unwrap();
        assert_eq!(taken.len(), max);
        taken.iter().filter(|taken| taken.item.payload == "new").count()
    };
    assert_eq!(new_of(40).await, 20);
    assert!([10, 11].contains(&new_of(21).await));
    // Either may be the first of all: of a hundred that are taken one by one, all are of one kind once in 2^99 times.
    let mut ones = 0;
    for _ in 0..100 {
        ones += new_of(1).await;
        if (1..100).contains(&ones) {
            break;
        }
    }
    assert!(ones < 100);
}

/// How many rows of the table of items the server has read from its beginning to its end, and how often an index was used.
async fn read(operator: &Client) -> (i64, i64) {
    let read =
        "SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'pipeline_items'";
    let row = operator.query_one(read, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_began_with_a_small_table_does_not_read_all_of_a_large_one() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    for ordered in [false, true] {
        let name = if ordered { "ordered" } else { "plain" };
        let options = options().ordered_by_key(ordered);
        let queue = PostgresQueue::open_with(&server.url(), name, options).unwrap();
        let operator = client(&server.url()).await;
        let (pipeline, seen) = keep(queue.source(quick()), |_| None);
        // The server keeps the plans of what a session has executed a few times.
        for n in 1..=30 {
            queue.push(Item::new(n.to_string())).await.unwrap();
            until("it is handled", async || seen.lock().len() == n).await;
        }
        let many = "INSERT INTO pipeline_items (queue, key, payload)
            SELECT 'other', n::text, '1' FROM generate_series(1, 20000) AS n";
        operator.batch_execute(many).await.unwrap();
        let (before, index) = read(&operator).await;
        for n in 31..=90 {
            queue.push(Item::new(n.to_string())).await.unwrap();
            until("it is handled", async || seen.lock().len() == n).await;
        }
        // The server publishes its statistics some time later.
        until("the statistics are there", async || read(&operator).await.1 > index + 60).await;
        let all = read(&operator).await.0 - before;
        assert!(all < 60 * 20_000 / 4, "{name}: {all} rows were read");
        pipeline.drain(PATIENCE).await;
    }
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
    let begun = Instant::now();
    let backlog = settle.backlog().await.unwrap();
    let sample = begun.elapsed();
    assert!(backlog.items.unwrap() > 10_000, "{backlog:?}");
    // Each is found before its turn once.
    let blocked = async || {
        let count = "SELECT count(*) FROM pipeline_items WHERE available_at = 'infinity'";
        program.query_one(count, &[]).await.unwrap().get::<_, i64>(0)
    };
    let all = async {
        while blocked().await < items - 2 {
            let _ = timeout(Duration::from_millis(500), fetch.fetch(1)).await;
        }
    };
    timeout(PATIENCE * 20, all).await.unwrap();
    let with = times().await;
    println!(
        "{items} items: the first fetch took {first:?}, the first sample {sample:?}; then {with:?} an \
         item, alone {alone:?}"
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
    // What an operator has dropped is made again, without a restart.
    for dropped in ["pipeline_items", "pipeline_dead_letters", "pipeline_queues"] {
        program.batch_execute(&format!("DROP TABLE {dropped}")).await.unwrap();
        until("it is made again", async || {
            queues[0].push(Item::new("1")).await.is_ok() && queues[0].backlog().await.is_ok()
        })
        .await;
        let is_there = format!("SELECT to_regclass('{dropped}') IS NOT NULL");
        let again = PostgresQueue::open(&server.url(), "a").unwrap();
        again.prepare().await.unwrap();
        assert!(program.query_one(&is_there, &[]).await.unwrap().get::<_, bool>(0), "{dropped}");
    }
    // A copy of the tables has no functions.
    for dropped in [
        "FUNCTION pipeline_take(text, int8, int8, int8, text)",
        "FUNCTION pipeline_sweep(text, text)",
        "TRIGGER pipeline_items_added ON pipeline_items",
    ] {
        program.batch_execute(&format!("DROP {dropped}")).await.unwrap();
        let again = PostgresQueue::open(&server.url(), "a").unwrap();
        again.push(Item::new("1")).await.unwrap();
        let (pipeline, _) = keep(again.source(quick()), |_| None);
        until("it is made again", async || is_empty(&again).await).await;
        pipeline.drain(PATIENCE).await;
        let missing = program.batch_execute(&format!("DROP {dropped}")).await;
        assert!(missing.is_ok(), "{dropped}: {missing:?}");
    }
    program.batch_execute("UPDATE pipeline_schema SET version = 7").await.unwrap();
    let newer = PostgresQueue::open(&server.url(), "a").unwrap().prepare().await.unwrap_err();
    assert!(matches!(newer, PostgresError::Version { version: 7 }), "{newer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_ordered_again_when_what_was_said_of_it_is_gone() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue =
        PostgresQueue::open_with(&server.url(), "a", options().ordered_by_key(true)).unwrap();
    let (_fetch, settle) = queue.connect().await.unwrap();
    let program = client(&server.url()).await;
    for gone in ["DELETE FROM pipeline_queues", "DROP TABLE pipeline_queues"] {
        program.batch_execute(gone).await.unwrap();
        // A source counts its backlog once a second, and connects for it again.
        until("it is counted", async || settle.backlog().await.is_ok()).await;
        let ordered = "SELECT ordered FROM pipeline_queues WHERE queue = 'a'";
        assert!(program.query_one(ordered, &[]).await.unwrap().get::<_, bool>(0), "{gone}");
    }
    // What an operator says stays.
    program.batch_execute("UPDATE pipeline_queues SET ordered = false").await.unwrap();
    settle.backlog().await.unwrap();
    let ordered = program.query_one("SELECT ordered FROM pipeline_queues", &[]).await.unwrap();
    assert!(!ordered.get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_over_a_connection_that_was_closed_while_it_was_idle_connects_again() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options()).await;
    let operator = client(&server.url()).await;
    let before = connections(&operator).await - 1;
    let mut refused = 0;
    for _ in 0..10 {
        queue.push(Item::new("1")).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        operator.query(end, &[]).await.unwrap();
        until("it is closed", async || connections(&operator).await == before).await;
        // What has arrived is read by another task.
        sleep(Duration::from_millis(50)).await;
        refused += usize::from(queue.push(Item::new("2")).await.is_err());
    }
    assert!(refused < 5, "{refused} of 10 pushes after the connection was closed were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_of_a_database_whose_transactions_are_serializable_lose_no_connection() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let operator = client(&server.url()).await;
    let serializable = "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'";
    operator.batch_execute(serializable).await.unwrap();
    let queue = open(&server, options().ordered_by_key(true)).await;
    let sources = [(); 2].map(|()| keep(queue.source(quick()), |_| None));
    for n in 0..200 {
        queue.push(Item::new(n.to_string()).key((n % 20).to_string())).await.unwrap();
    }
    until("all are done", async || is_empty(&queue).await).await;
    for (pipeline, _) in sources {
        let source = pipeline.snapshot().stages.swap_remove(0).source.unwrap();
        assert_eq!((source.connection_errors, source.last_error), (0, None));
        pipeline.drain(PATIENCE).await;
    }
}

/// How many connections programs have to the server.
async fn connections(observer: &Client) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    observer.query_one(count, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_tables_that_takes_long_is_completed_by_the_server() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let operator = client(&server.url()).await;
    operator.batch_execute(include_str!("fixtures/postgres_1.sql")).await.unwrap();
    // An index takes until this lock is free.
    let slow = "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN
            WHILE NOT pg_try_advisory_xact_lock_shared(7) LOOP
                PERFORM pg_sleep(0.02);
            END LOOP;
        END $$;
        CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE PROCEDURE slow();
        SELECT pg_advisory_lock(7)";
    operator.batch_execute(slow).await.unwrap();
    let observer = client(&server.url()).await;
    let before = connections(&observer).await;
    let options = options().call_timeout(Duration::from_millis(500));
    let queue = PostgresQueue::open_with(&server.url(), "numbers", options).unwrap();
    for _ in 0..3 {
        let error = queue.prepare().await.unwrap_err();
        assert!(matches!(error, PostgresError::TimedOut), "{error}");
    }
    // The first one continues, and the others were not left behind there.
    until("one is left", async || connections(&observer).await == before + 1).await;
    // A statement with a limit of its own would have ended too.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(connections(&observer).await, before + 1);
    operator.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    until("the tables are of version 6", async || {
        let version = "SELECT version FROM pipeline_schema";
        operator.query_one(version, &[]).await.unwrap().get::<_, i32>(0) == 6
    })
    .await;
    queue.prepare().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_tables_that_waits_for_a_transaction_is_given_up_and_made_later() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let mut operator = client(&server.url()).await;
    operator.batch_execute(include_str!("fixtures/postgres_1.sql")).await.unwrap();
    let observer = client(&server.url()).await;
    let before = connections(&observer).await;
    let transaction = operator.transaction().await.unwrap();
    let insert = "INSERT INTO pipeline_items (queue, payload) VALUES ('numbers', '1')";
    transaction.batch_execute(insert).await.unwrap();
    let options = options().call_timeout(Duration::from_secs(1));
    let queue = PostgresQueue::open_with(&server.url(), "numbers", options).unwrap();
    let preparing = (0..4).map(|_| queue.prepare());
    for prepared in futures::future::join_all(preparing).await {
        assert!(prepared.is_err());
    }
    // Nothing waits there, and nothing that uses the table waits for it.
    until("nothing is left", async || connections(&observer).await == before).await;
    observer.batch_execute(insert).await.unwrap();
    transaction.commit().await.unwrap();
    let (pipeline, seen) = keep(queue.source(quick()), |_| None);
    until("both are done", async || is_empty(&queue).await).await;
    assert_eq!(*seen.lock(), ["1", "1"]);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_any_length_keeps_an_item_in_work() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let queue = open(&server, options().lease(Duration::MAX)).await;
    queue.push(Item::new("1")).await.unwrap();
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(1).await.unwrap();
    settle.renew(&[fetched[0].receipt]).await.unwrap();
    let state = queue.items(0, 1).await.unwrap()[0].state;
    assert!(matches!(state, QueuedState::InWork { .. }), "{state:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_may_have_no_end() {
    let Some(server) = Server::start(Kind::Postgres).await else { return };
    let never = Duration::MAX;
    let options = PostgresOptions::new().lease(never).call_timeout(never).poll_interval(never);
    let queue = open(&server, options).await;
    let (pipeline, seen) = keep(queue.source(quick().call_timeout(never)), |_| None);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    for n in 1..=2 {
        queue.push(Item::new(n.to_string())).await.unwrap();
        until("it is handled", async || seen.lock().len() == n).await;
        until("it is done", async || source().done == n as u64).await;
    }
    assert_eq!((source().connection_errors, source().last_error), (0, None));
    assert!(pipeline.drain(PATIENCE).await.completed);
}
