//! The queue in a stream of Redis.
//!
//! `KILLS=50 RESTARTS=10 ITEMS=20000 cargo test -p pipeline-sources --all-features --test redis --
//! --nocapture` prints the figures of longer runs.
#![cfg(all(feature = "redis", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;
mod kills;
mod outages;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
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
    redis::{RedisOptions, RedisQueue, RedisQueueError},
};
use pipeline_test_support::servers::{Kind, Server};
use redis::aio::MultiplexedConnection;
use tokio::time::{sleep, timeout};

use self::outages::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// Options of tests: short leases, and calls that end soon.
fn options() -> RedisOptions {
    RedisOptions::new().lease(Duration::from_millis(800)).call_timeout(Duration::from_secs(1))
}

/// Retries without much delay.
fn quick() -> SourceOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    SourceOptions::new().redeliver_after(backoff.jitter(Jitter::None)).max_deliveries(3)
}

/// The connection of another program.
async fn client(server: &Server) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Executes a command of another program, whose words are separated by spaces.
async fn execute<T: redis::FromRedisValue>(server: &Server, command: &str) -> T {
    let mut words = command.split(' ');
    let mut call = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        call.arg(word);
    });
    call.query_async(&mut client(server).await).await.unwrap()
}

/// Starts a pipeline that keeps the texts, and fails those for which the function says so.
fn keep(
    queue: &RedisQueue,
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

async fn is_empty(queue: &RedisQueue) -> bool {
    queue.backlog().await.is_ok_and(|backlog| backlog.items == Some(0))
}

/// A queue of a name of its own.
struct AtServer {
    queue: RedisQueue,
    client: MultiplexedConnection,
}

impl Subject for AtServer {
    type Broker = RedisQueue;

    fn broker(&self) -> RedisQueue {
        self.queue.clone()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    async fn push_malformed(&self) -> bool {
        let mut add = redis::cmd("XADD");
        add.arg(self.queue.name()).arg("*").arg("kind").arg("order");
        add.query_async::<()>(&mut self.client.clone()).await.unwrap();
        true
    }

    async fn fill_graves(&self) -> bool {
        // What is there is no stream.
        let mut set = redis::cmd("SET");
        set.arg(format!("{}:pipeline:dead", self.queue.name())).arg("text");
        set.query_async::<()>(&mut self.client.clone()).await.unwrap();
        true
    }

    async fn empty_graves(&self) {
        let mut delete = redis::cmd("DEL");
        delete.arg(format!("{}:pipeline:dead", self.queue.name()));
        delete.query_async::<()>(&mut self.client.clone()).await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        let dead = self.queue.dead_letters("", 100).await.unwrap_or_default();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_in_redis_keeps_the_contract() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let number = AtomicUsize::new(0);
    for shared in [false, true] {
        check(async || {
            let name = format!("queue{}", number.fetch_add(1, SeqCst));
            let options = options().shared(shared);
            let queue = RedisQueue::open_with(&server.url(), name, options).unwrap();
            AtServer { queue, client: client(&server).await }
        })
        .await;
    }
}

impl outages::Queue for RedisQueue {
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
    let Some(mut server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    outages::killed(&mut server, queue.clone()).await;
    until("all are done", async || is_empty(&queue).await).await;
    assert!(queue.dead_letters("", 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_is_noticed_and_used_again() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    outages::frozen(&server, queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_absent_at_the_start_is_waited_for() {
    let Some(mut server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    outages::absent(&mut server, queue).await;
}

impl kills::Queue for RedisQueue {
    type Broker = Self;

    async fn open(address: &str) -> Self {
        let options = RedisOptions::new().lease(kills::LEASE);
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
async fn a_process_that_is_killed_loses_no_item_of_redis() {
    if kills::inside::<RedisQueue>().await {
        return;
    }
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let test = "a_process_that_is_killed_loses_no_item_of_redis";
    kills::handling::<RedisQueue>(test, &server.url(), kills::Order::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_to_redis_has_returned_is_delivered_although_its_process_was_killed() {
    if kills::inside::<RedisQueue>().await {
        return;
    }
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let test =
        "an_item_whose_push_to_redis_has_returned_is_delivered_although_its_process_was_killed";
    kills::pushing::<RedisQueue>(test, &server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_by_pages_replayed_and_dropped() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let items: Vec<_> =
        (0..3).map(|n| Item::new(n.to_string()).key("k").header("kind", "test")).collect();
    let ids = queue.push_all(items.clone()).await.unwrap();
    assert!(ids.is_sorted() && ids.len() == 3, "{ids:?}");
    let (pipeline, seen) = keep(&queue, quick(), |_| Some(Failure::new("it is bad")));
    until("all are given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len(), 9);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(3));

    let mut first = queue.dead_letters("", 2).await.unwrap();
    let second = queue.dead_letters(&first[1].id, 2).await.unwrap();
    assert_eq!((first.len(), second.len()), (2, 1));
    first.extend(second);
    for (dead, item) in first.iter().zip(&items) {
        assert_eq!(&dead.item, item);
        assert_eq!((dead.deliveries, &*dead.reason), (3, "it is bad"));
        assert!(dead.enqueued_at.unwrap() <= dead.given_up_at.unwrap());
    }

    let new = queue.replay(&first[0].id).await.unwrap().unwrap();
    assert!(!ids.contains(&new));
    assert_eq!(queue.replay(&first[0].id).await.unwrap(), None);
    assert!(queue.drop_dead_letter(&first[1].id).await.unwrap());
    assert!(!queue.drop_dead_letter(&first[1].id).await.unwrap());
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(1), Some(1)));
    // It is as it was, and is tried again from the first time on. Its age begins anew.
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let again = fetch.fetch(10).await.unwrap();
    assert_eq!((again.len(), &again[0].item, again[0].deliveries), (1, &items[0], 1));
    assert!(again[0].enqueued_at >= first[0].given_up_at, "{again:?}");

    assert_eq!(queue.replay_all(|_| false).await.unwrap(), 0);
    assert_eq!(queue.replay_all(|dead| &*dead.reason == "it is bad").await.unwrap(), 1);
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(2), Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    common::a_drop_of_all_takes_what_was_there(
        queue.source(quick()),
        async |item| {
            queue.push(item).await.unwrap();
        },
        async || common::payloads(&queue.dead_letters("", 300).await.unwrap()),
        async |which| queue.drop_all_dead_letters(|dead| which(&dead.item)).await.unwrap(),
    )
    .await;
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 2);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_not_there_is_not_opened_as_an_existing_one_and_not_made() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let open = async || RedisQueue::open_existing(&server.url(), "numbers", options()).await;
    for _ in 0..2 {
        let missing = open().await.unwrap_err();
        assert!(matches!(missing, RedisQueueError::UnknownQueue { .. }), "{missing}");
    }
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    assert_eq!(open().await.unwrap().backlog().await.unwrap().items, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_has_no_more_large_items_than_it_has_bytes() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options().lease(PATIENCE)).unwrap();
    for n in 0..3_u8 {
        queue.push(Item::new(vec![n; 9_000_000])).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let (mut fetched, mut receipts) = (Vec::new(), Vec::new());
    // New ones, and then those that were given back.
    while fetched.len() < 4 {
        let items = fetch.fetch(10).await.unwrap();
        fetched.push(items.iter().map(|it| it.item.payload[0]).collect::<Vec<_>>());
        receipts.extend(items.into_iter().map(|it| it.receipt));
        if fetched.len() == 2 {
            let outcome = Outcome::Release { after: Duration::ZERO };
            let given_back = receipts.drain(..);
            let given_back =
                given_back.map(|receipt| Settlement { receipt, outcome: outcome.clone() });
            settle.settle(&given_back.collect::<Vec<_>>()).await.unwrap();
        }
    }
    let groups = [vec![0, 1], vec![2]];
    assert_eq!(fetched, [groups.clone(), groups].concat());
    // Those of a consumer that is gone.
    drop((fetch, settle));
    let options = options().lease(Duration::from_millis(1));
    let other = RedisQueue::open_with(&server.url(), "numbers", options).unwrap();
    sleep(Duration::from_millis(5)).await;
    let (mut fetch, _settle) = other.connect().await.unwrap();
    let items = fetch.fetch(10).await.unwrap();
    assert_eq!(items.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_items_of_a_dead_consumer_behind_those_in_work_are_taken_one_after_the_other() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options().lease(PATIENCE)).unwrap();
    let (mut fetch, settle) = queue.connect().await.unwrap();
    for n in 0..200_u8 {
        queue.push(Item::new(vec![n])).await.unwrap();
    }
    assert_eq!(fetch.fetch(200).await.unwrap().len(), 200);
    let mut ids = String::new();
    for n in 0..3_u8 {
        let id = queue.push(Item::new(vec![n; 9_000_000])).await.unwrap();
        ids = format!("{ids} {id}");
        fetch.fetch(1).await.unwrap();
    }
    drop((fetch, settle));
    let claim = format!("XCLAIM numbers pipeline gone 0{ids} IDLE 3600000 JUSTID");
    assert_eq!(execute::<Vec<String>>(&server, &claim).await.len(), 3);
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    assert_eq!(fetch.fetch(100).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_dead_letters_are_listed_by_pages() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "orders", options()).unwrap();
    let large = format!("XADD orders:pipeline:dead * payload {}", "x".repeat(3_000_000));
    for _ in 0..5 {
        execute::<String>(&server, &large).await;
    }
    common::large_letters_are_listed_by_pages(5, async |after: Option<Arc<str>>| {
        queue.dead_letters(after.as_deref().unwrap_or_default(), 100).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_adds_items_by_plain_commands() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "orders", options()).unwrap();
    execute::<()>(&server, "XADD orders * payload 1").await;
    execute::<()>(&server, "XADD orders * payload 2 key k kind order headers {\"a\":\"b\"}").await;
    execute::<()>(&server, "XADD orders * payload 3 headers {\"a\":7}").await;
    execute::<()>(&server, "XADD orders * no payload").await;
    let fails = |text: &str| (text == "2").then(|| Failure::new("no").give_up());
    let (pipeline, seen) = keep(&queue, quick(), fails);
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(*seen.lock(), ["1", "2"]);
    let mut dead = queue.dead_letters("", 10).await.unwrap();
    dead.sort_by_key(|dead| dead.reason.len());
    let reasons: Vec<_> = dead.iter().map(|dead| &*dead.reason).collect();
    assert_eq!(reasons[..2], ["no", "it has no field `payload`"]);
    assert!(reasons[2].starts_with("its headers are not an object of texts"), "{reasons:?}");
    let item = Item::new("2").key("k").header("kind", "order").header("a", "b");
    assert_eq!(dead[0].item, item);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_costs_nothing_until_it_is_asked_for() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    const ITEMS: usize = 100_000;
    let options = options().call_timeout(PATIENCE);
    let queue = RedisQueue::open_with(&server.url(), "numbers", options).unwrap();
    for chunk in 0..ITEMS / 10_000 {
        let items = (0..10_000).map(|n| Item::new((chunk * 10_000 + n).to_string()));
        queue.push_all(items.collect()).await.unwrap();
    }
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let at_work = begun.clone();
    let handle = async move |_: &mut Message<Item>| {
        at_work.add_permits(1);
        std::future::pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(2).max_demand(10))
        .start()
        .unwrap();
    begun.acquire_many(2).await.unwrap().forget();
    let pending = async || {
        let pending: Vec<redis::Value> = execute(&server, "XPENDING numbers pipeline").await;
        pending[0].clone()
    };
    let asked_for = redis::Value::Int(20);
    until("what is asked for is fetched", async || pending().await == asked_for).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(pending().await, asked_for, "two processors ask for ten each");
    assert_eq!(queue.backlog().await.unwrap().items, Some(ITEMS as u64));
    drop(pipeline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_stores_outcomes_nevertheless() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    for text in ["later", "bad", "1", "2"] {
        queue.push(Item::new(text)).await.unwrap();
    }
    execute::<()>(&server, "CONFIG SET maxmemory 1").await;
    let refused = queue.push(Item::new("3")).await;
    assert!(refused.is_err(), "the server has no memory for it");
    // It connects and handles all the same. The first outcome of all is no removal.
    let fails = |text: &str| match text {
        "bad" => Some(Failure::new("it is bad").give_up()),
        "later" => Some(Failure::new("not now")),
        _ => None,
    };
    let (pipeline, seen) = keep(&queue, quick(), fails);
    until("all are done", async || is_empty(&queue).await).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    assert_eq!(seen.lock().len(), 6, "one was tried three times");
    let dead = queue.dead_letters("", 10).await.unwrap();
    let mut reasons: Vec<_> = dead.iter().map(|dead| &*dead.reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["it is bad", "not now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_cannot_be_stored_holds_up_no_other_one() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    for text in ["0", "1", "2"] {
        queue.push(Item::new(text)).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let fetched = fetch.fetch(10).await.unwrap();
    execute::<()>(&server, "SET numbers:pipeline:dead text").await;
    let outcomes = [
        Outcome::GiveUp { reason: "bad".into() },
        Outcome::Retry { after: Duration::ZERO, failures: 1 },
        Outcome::Done,
    ];
    let receipts = fetched.iter().map(|it| it.receipt.clone());
    let settlements: Vec<_> =
        receipts.zip(outcomes).map(|(receipt, outcome)| Settlement { receipt, outcome }).collect();
    let not_stored = settle.settle(&settlements).await.unwrap();
    assert_eq!(not_stored.iter().map(|it| it.index).collect::<Vec<_>>(), [0]);
    let why = not_stored[0].error.to_string();
    assert!(why.contains("WRONGTYPE"), "{why}");
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(2), None));
    assert_eq!(fetch.fetch(1).await.unwrap()[0].item.payload, "1", "it is delivered again");
    execute::<()>(&server, "DEL numbers:pipeline:dead").await;
    assert!(settle.settle(&settlements[..1]).await.unwrap().is_empty());
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_a_dead_letter_is_said() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let mut add = redis::cmd("XADD");
    add.arg("numbers").arg("*").arg("payload").arg("x");
    (0..2500).for_each(|n| {
        add.arg(format!("field {n}")).arg(n);
    });
    add.query_async::<()>(&mut client(&server).await).await.unwrap();
    let long = |_: &str| Some(Failure::new("é".repeat(5000)).give_up());
    let (pipeline, _) = keep(&queue, quick(), long);
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters("", 10).await.unwrap().remove(0);
    assert_eq!(dead.item.headers.len(), 1999);
    let reason = format!("{} (501 of its fields did not fit)", "é".repeat(1000));
    assert_eq!(*dead.reason, *reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_age_is_that_of_the_oldest_item_that_is_not_done() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    for shared in [false, true] {
        let name = format!("shared-{shared}");
        let options = options().shared(shared);
        let queue = RedisQueue::open_with(&server.url(), name.clone(), options).unwrap();
        let (mut fetch, settle) = queue.connect().await.unwrap();
        // Another group reads the stream, so what is done in this one stays.
        execute::<()>(&server, &format!("XGROUP CREATE {name} other 0")).await;
        let oldest = async || queue.backlog().await.unwrap().oldest;
        assert_eq!(oldest().await, None);
        execute::<()>(&server, &format!("XADD {name} 1000-0 payload 1")).await;
        execute::<()>(&server, &format!("XADD {name} 2000-0 payload 2 enqueued_at 1500")).await;
        execute::<()>(&server, &format!("XADD {name} 3000-0 payload 3")).await;
        let at = |ms| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(oldest().await, at(1000));
        let fetched = fetch.fetch(2).await.unwrap();
        assert_eq!(oldest().await, at(1000), "it is in work");
        let receipts: Vec<_> = fetched.into_iter().map(|it| it.receipt).collect();
        let outcome = Outcome::Retry { after: PATIENCE, failures: 1 };
        settle.settle(&[Settlement { receipt: receipts[0].clone(), outcome }]).await.unwrap();
        assert_eq!(oldest().await, at(1000), "it waits for its delay");
        for (receipt, then) in receipts.into_iter().zip([1500, 3000]) {
            settle.settle(&[Settlement { receipt, outcome: Outcome::Done }]).await.unwrap();
            assert_eq!(oldest().await, at(then));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_items_than_the_server_takes_in_one_call_are_refused() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let refused = queue.push_all(vec![Item::new("x"); 400_000]).await;
    assert!(matches!(refused, Err(RedisQueueError::TooMany { .. })), "{refused:?}");
    queue.push_all(vec![Item::new("x"); 10_000]).await.unwrap();
    assert_eq!(queue.backlog().await.unwrap().items, Some(10_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_beyond_the_most_items_is_refused_and_nothing_is_removed() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    for shared in [false, true] {
        let options = options().max_items(5).shared(shared);
        let (refusals, name) = (common::Refusals::default(), format!("shared {shared}"));
        let queue = metrics::with_local_recorder(&refusals, || {
            RedisQueue::open_with(&server.url(), &*name, options).unwrap()
        });
        let (mut fetch, settle) = queue.connect().await.unwrap();
        for n in 0..5 {
            queue.push(Item::new(n.to_string())).await.unwrap();
        }
        let full = |error: RedisQueueError| matches!(error, RedisQueueError::Full { max: 5 });
        assert!(queue.push(Item::new("5")).await.is_err_and(full));
        let fetched = fetch.fetch(10).await.unwrap();
        assert_eq!(fetched.len(), 5);
        // What is in work takes its place.
        assert!(queue.push(Item::new("5")).await.is_err_and(full));
        let done = |receipt| Settlement { receipt, outcome: Outcome::Done };
        settle.settle(&[done(fetched[0].receipt.clone())]).await.unwrap();
        let both = ["5", "6"].map(Item::new).to_vec();
        assert!(queue.push_all(both).await.is_err_and(full), "all of them or none");
        queue.push(Item::new("5")).await.unwrap();
        assert!(queue.push(Item::new("6")).await.is_err_and(full));
        assert_eq!(refusals.counted("redis", &name, "full"), 5);
        assert_eq!(refusals.counted("redis", &name, "failed"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_stream_is_trimmed_up_to_what_any_group_has_not_done() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let open = |group: &str| {
        let options = options().shared(true).group(group);
        RedisQueue::open_with(&server.url(), "events", options).unwrap()
    };
    let (one, two) = (open("one"), open("two"));
    let (mut fetch_one, settle_one) = one.connect().await.unwrap();
    let (mut fetch_two, settle_two) = two.connect().await.unwrap();
    for n in 0..10 {
        one.push(Item::new(n.to_string())).await.unwrap();
    }
    let left = async || -> u64 { execute(&server, "XLEN events").await };
    let done = |receipt| Settlement { receipt, outcome: Outcome::Done };
    let of_one: Vec<_> =
        fetch_one.fetch(10).await.unwrap().into_iter().map(|it| it.receipt).collect();
    let of_two: Vec<_> =
        fetch_two.fetch(6).await.unwrap().into_iter().map(|it| it.receipt).collect();
    assert_eq!((of_one.len(), of_two.len()), (10, 6));
    for receipt in &of_one {
        settle_one.settle(&[done(receipt.clone())]).await.unwrap();
    }
    assert_eq!(settle_one.backlog().await.unwrap().items, Some(0));
    assert_eq!(left().await, 10, "the other group has done none");
    // All but the third, and the last four are not delivered.
    for (n, receipt) in of_two.iter().enumerate() {
        if n != 2 {
            settle_two.settle(&[done(receipt.clone())]).await.unwrap();
        }
    }
    assert_eq!(settle_two.backlog().await.unwrap().items, Some(5));
    assert_eq!(left().await, 8);
    settle_two.settle(&[done(of_two[2].clone())]).await.unwrap();
    settle_two.backlog().await.unwrap();
    assert_eq!(left().await, 4);
    let rest = fetch_two.fetch(10).await.unwrap();
    let texts: Vec<_> = rest.iter().map(|it| it.item.payload.clone()).collect();
    assert_eq!(texts, ["6", "7", "8", "9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_created_again_after_the_server_has_lost_its_data() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    queue.push(Item::new("1")).await.unwrap();
    until("the first is handled", async || *seen.lock() == ["1"]).await;
    execute::<()>(&server, "FLUSHALL").await;
    queue.push(Item::new("2")).await.unwrap();
    until("the second is handled", async || seen.lock().contains(&"2".to_owned())).await;
    // Also without the scripts, which a server loses when it starts again.
    execute::<()>(&server, "SCRIPT FLUSH").await;
    until("a third is added", async || queue.push(Item::new("3")).await.is_ok()).await;
    until("the third is handled", async || seen.lock().contains(&"3".to_owned())).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_is_measured_by_the_server_and_outlasts_the_lease() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let (mut fetch, settle) = queue.connect().await.unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let first = fetch.fetch(1).await.unwrap().remove(0);
    let delay = Duration::from_millis(1500);
    let begun = SystemTime::now();
    let outcome = Outcome::Retry { after: delay, failures: 1 };
    settle.settle(&[Settlement { receipt: first.receipt.clone(), outcome }]).await.unwrap();
    // The lease of 300 ms is over five times, and other consumers look for it.
    let (mut other, _settle) = queue.connect().await.unwrap();
    let again = tokio::select! {
        again = fetch.fetch(1) => again,
        again = other.fetch(1) => again,
    };
    let again = again.unwrap().remove(0);
    assert!(begun.elapsed().unwrap() + Duration::from_millis(2) >= delay, "{:?}", begun.elapsed());
    assert_eq!((again.deliveries, &again.id), (2, &first.id));
    // The outcome of the earlier delivery does not concern this one.
    let outcome = Outcome::GiveUp { reason: "late".into() };
    settle.settle(&[Settlement { receipt: first.receipt, outcome }]).await.unwrap();
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_the_delay_of_an_item() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    let push = async |item| {
        queue.push(item).await.unwrap();
    };
    common::a_signal_ends_a_delay(queue.source(quick()), push).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_dropped_gives_back_what_it_takes() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let lease = Duration::from_secs(600);
    let open = |poll| {
        let options = options().lease(lease).poll_interval(poll).call_timeout(PATIENCE);
        RedisQueue::open_with(&server.url(), "numbers", options).unwrap()
    };
    // It waits for a minute if its call does not end.
    let (mut dropped, _settle) = open(Duration::from_secs(60)).connect().await.unwrap();
    let queue = open(Duration::from_millis(10));
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let mut handled = HashSet::new();
    for n in 0..50_usize {
        // It waits for items when it is dropped, or has just got one.
        let added = async {
            sleep(Duration::from_millis(n as u64 % 3)).await;
            if n % 2 == 0 {
                queue.push(Item::new(n.to_string())).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            () = added => {}
            fetched = dropped.fetch(1) => {
                let receipt = fetched.unwrap().remove(0).receipt;
                let released = Settlement { receipt, outcome: Outcome::Release { after: Duration::ZERO } };
                settle.settle(&[released]).await.unwrap();
            }
        }
        if n % 2 == 1 {
            queue.push(Item::new(n.to_string())).await.unwrap();
        }
        let fetched = timeout(PATIENCE, fetch.fetch(1)).await.unwrap().unwrap().remove(0);
        assert_eq!(fetched.deliveries, 1, "it was not delivered before");
        handled.insert(fetched.item.payload.clone());
        let done = Settlement { receipt: fetched.receipt, outcome: Outcome::Done };
        settle.settle(&[done]).await.unwrap();
    }
    assert_eq!(handled.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_always_due_again_leave_room_for_new_ones() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let queue = RedisQueue::open_with(&server.url(), "numbers", options()).unwrap();
    for _ in 0..50 {
        queue.push(Item::new("again")).await.unwrap();
    }
    let fails = |text: &str| (text == "again").then(|| Failure::new("not yet"));
    let (pipeline, seen) = keep(&queue, quick().max_deliveries(1_000_000), fails);
    until("all have failed more than once", async || seen.lock().len() > 150).await;
    let before = seen.lock().len();
    for n in 0..20 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let new = || seen.lock().iter().filter(|text| *text != "again").cloned().collect::<Vec<_>>();
    until("the new ones are handled", async || new().len() == 20).await;
    let between = seen.lock().len() - before;
    assert!(between < 500, "{between} were handled until 20 new ones were");
    assert_eq!(new(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_the_server_is_not_shown() {
    let queue = RedisQueue::open("redis://user:secret@127.0.0.1/", "numbers").unwrap();
    assert!(!format!("{queue:?}").contains("secret"));
    let error = RedisQueue::open("redis://user:secret@", "numbers").unwrap_err();
    assert!(!format!("{error:?}{error}").contains("secret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_may_have_no_end() {
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let never = Duration::MAX;
    let options = RedisOptions::new().lease(never).call_timeout(never).poll_interval(never);
    let queue = RedisQueue::open_with(&server.url(), "never", options).unwrap();
    let (pipeline, seen) = keep(&queue, quick().call_timeout(never), |_| None);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    for n in 1..=2 {
        queue.push(Item::new(n.to_string())).await.unwrap();
        until("it is handled", async || seen.lock().len() == n).await;
        until("it is done", async || source().done == n as u64).await;
    }
    assert_eq!((source().connection_errors, source().last_error), (0, None));
    assert!(pipeline.drain(PATIENCE).await.completed);
}
