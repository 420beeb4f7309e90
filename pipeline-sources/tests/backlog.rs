//! The memory of a process that reads from a queue with a backlog.
//!
//! Each measurement is a process of its own, which runs the test again. `BACKLOG=1000000 BYTES=100` in the environment
//! make a longer run, and with `--nocapture` the tests print their figures.
#![cfg(all(
    feature = "sqlite",
    feature = "postgres",
    feature = "redis",
    feature = "nats",
    feature = "rabbitmq",
    feature = "kafka",
    feature = "test-kit",
    target_os = "linux"
))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;

use std::{
    env, fs,
    future::{Future, pending},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures::{StreamExt, stream};
use pipeline_core::{
    Pipeline,
    processing::{Failure, Message, Processors},
};
use pipeline_sources::{
    Broker, Item, Source, SourceOptions,
    kafka::{KafkaBroker, KafkaOptions, KafkaQueue},
    nats::{NatsOptions, NatsQueue},
    postgres::{PostgresOptions, PostgresQueue},
    rabbitmq::{RabbitOptions, RabbitQueue},
    redis::{RedisOptions, RedisQueue},
    sqlite::SqliteQueue,
};
use pipeline_test_support::servers::{Kind, Server};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use tokio::time::sleep;

use self::common::until;

/// How many items the pipeline asks for.
const DEMAND: u64 = 10;

/// The items of a small backlog.
const FEW: usize = 100;

/// How many items are pushed at the same time.
const AT_ONCE: usize = 200;

/// How long a server may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The address of the queue, in a process that is measured.
const ADDRESS: &str = "BACKLOG_QUEUE";

/// The file for what was measured there.
const REPORT: &str = "BACKLOG_REPORT";

/// A queue that any process can open at its address.
trait Queue: Clone + Send + Sync + 'static {
    type Broker: Broker;

    fn open(address: &str) -> impl Future<Output = Self> + Send;

    fn broker(&self) -> Self::Broker;

    fn push_all(&self, items: Vec<Item>) -> impl Future<Output = ()> + Send;

    fn count(&self) -> impl Future<Output = u64> + Send;
}

/// An address and the name of a queue there.
fn parts(address: &str) -> (&str, &str) {
    address.rsplit_once('#').unwrap()
}

macro_rules! queue {
    ($queue:ty, $broker:ty, $get:expr, $address:ident => $open:expr, $push:expr) => {
        impl Queue for $queue {
            type Broker = $broker;

            async fn open($address: &str) -> Self {
                $open
            }

            fn broker(&self) -> $broker {
                $get(self)
            }

            async fn push_all(&self, items: Vec<Item>) {
                $push(self, items).await;
            }

            async fn count(&self) -> u64 {
                self.backlog().await.unwrap().items.unwrap()
            }
        }
    };
}

/// Pushes items of a queue that takes one at a time.
macro_rules! one_by_one {
    () => {
        async |queue: &Self, items: Vec<Item>| {
            let pushes = stream::iter(items).map(|item| queue.push(item));
            pushes.buffer_unordered(AT_ONCE).for_each(async |pushed| assert!(pushed.is_ok())).await;
        }
    };
}

/// Pushes items of a queue that takes many.
macro_rules! together {
    () => {
        async |queue: &Self, items: Vec<Item>| drop(Self::push_all(queue, items).await.unwrap())
    };
}

queue!(SqliteQueue, Self, Self::clone, address => {
    let (file, name) = parts(address);
    Self::open(file, name).await.unwrap()
}, together!());

queue!(PostgresQueue, Self, Self::clone, address => {
    let (url, name) = parts(address);
    Self::open_with(url, name, PostgresOptions::new().call_timeout(TIMEOUT)).unwrap()
}, together!());

queue!(RedisQueue, Self, Self::clone, address => {
    let (url, name) = parts(address);
    Self::open_with(url, name, RedisOptions::new().call_timeout(TIMEOUT)).unwrap()
}, together!());

queue!(NatsQueue, Self, Self::clone, address => {
    let (url, name) = parts(address);
    Self::with(url, name, NatsOptions::new().timeout(TIMEOUT)).unwrap()
}, one_by_one!());

queue!(RabbitQueue, Self, Self::clone, address => {
    let (url, name) = parts(address);
    Self::with(url, name, RabbitOptions::new().timeout(TIMEOUT)).unwrap()
}, one_by_one!());

queue!(KafkaQueue, KafkaBroker, Self::broker, address => {
    let (servers, topic) = parts(address);
    // A partition is read ahead by so many bytes, or by what was added to it at once.
    let options = KafkaOptions::new().prefetch(64 * 1024).push_timeout(TIMEOUT);
    let options = options.set("fetch.message.max.bytes", "65536");
    // In a group of its own, since the mock cluster waits for members that have died.
    Self::open_with(servers, topic, topic, options.call_timeout(TIMEOUT)).await.unwrap()
}, together!());

/// A number of bytes of this process, out of what the system knows about it.
fn memory(of: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// If this is the process that is measured, reads from its queue until as many items are in work as are asked for,
/// and returns true.
async fn inside<Q: Queue>() -> bool {
    let (Ok(address), Ok(report)) = (env::var(ADDRESS), env::var(REPORT)) else { return false };
    let queue = Q::open(&address).await;
    queue.count().await;
    let before = memory("VmRSS:");
    let handle = async |_: &mut Message<Item>| pending::<Result<(), Failure>>().await;
    let pipeline = Pipeline::of_messages("test")
        .source(Source::new(queue.broker(), SourceOptions::new()))
        .processors(
            Processors::from_fn(handle).concurrency(1).max_demand(usize::try_from(DEMAND).unwrap()),
        )
        .start()
        .unwrap();
    let held = || pipeline.snapshot().stages[0].source.as_ref().map_or(0, |source| source.held);
    until("what is asked for is fetched", async || held() >= DEMAND).await;
    // What nothing has asked for would come now.
    sleep(Duration::from_secs(1)).await;
    let most = memory("VmHWM:");
    fs::write(report, format!("{} {before} {most}", held())).unwrap();
    true
}

/// What a process holds of a queue, and by how much its memory has grown to the most that it was, from its connection on.
async fn measured(test: &str, address: &str) -> (u64, u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ADDRESS, address)
        .env(REPORT, &report)
        .stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
    assert!(status.success(), "the process at {address} has failed");
    let text = fs::read_to_string(report).unwrap();
    let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

/// Adds items, and returns how many the queue has.
async fn fill<Q: Queue>(address: &str, items: usize, bytes: usize) -> u64 {
    let queue = Q::open(address).await;
    for at in (0..items).step_by(10_000) {
        let payload = |n: usize| format!("{n:0bytes$}");
        queue.push_all((at..items.min(at + 10_000)).map(|n| Item::new(payload(n))).collect()).await;
    }
    queue.count().await
}

/// Compares a queue with few items with one that has many.
async fn compare<Q: Queue>(test: &str, [few, many]: [&str; 2]) {
    let (items, bytes) = (number("BACKLOG", 20_000), number("BYTES", 2_000));
    fill::<Q>(few, FEW, bytes).await;
    // A table of PostgreSQL is counted up to 10,000, and the mock cluster of Kafka drops some.
    let there = fill::<Q>(many, items, bytes).await;
    assert!(there > 5_000, "{there} of {items} are there");
    let mut growths = Vec::new();
    for address in [few, many] {
        let (held, before, most) = measured(test, address).await;
        assert_eq!(held, DEMAND, "it holds what it has asked for");
        println!("{test}: {before} bytes, then {most} at most");
        growths.push(most.saturating_sub(before));
    }
    println!(
        "{test}: {there} of {items} items of {bytes} bytes; {growths:?} bytes more with {FEW} and with all"
    );
    // Half of all, and far more than what a run differs from another by.
    let all = there * bytes as u64;
    assert!(growths[1] < growths[0] + all / 2, "{growths:?} bytes more, of {all}");
}

/// A server's two queues.
async fn compare_at<Q: Queue>(test: &str, kind: Kind) {
    if inside::<Q>().await {
        return;
    }
    let Some(server) = Server::start(kind).await else { return };
    let [few, many] = ["few", "many"].map(|name| format!("{}#{name}", server.url()));
    compare::<Q>(test, [&few, &many]).await;
}

fn in_file(folder: &Path, name: &str) -> String {
    format!("{}#numbers", folder.join(name).display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_sqlite_takes_no_memory() {
    if inside::<SqliteQueue>().await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [few, many] = ["few", "many"].map(|name| in_file(folder.path(), name));
    compare::<SqliteQueue>("a_backlog_in_sqlite_takes_no_memory", [&few, &many]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_postgres_takes_no_memory() {
    compare_at::<PostgresQueue>("a_backlog_in_postgres_takes_no_memory", Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_redis_takes_no_memory() {
    compare_at::<RedisQueue>("a_backlog_in_redis_takes_no_memory", Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_nats_takes_no_memory() {
    compare_at::<NatsQueue>("a_backlog_in_nats_takes_no_memory", Kind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_rabbitmq_takes_no_memory() {
    compare_at::<RabbitQueue>("a_backlog_in_rabbitmq_takes_no_memory", Kind::RabbitMq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_in_kafka_takes_no_memory() {
    if inside::<KafkaQueue>().await {
        return;
    }
    let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    // The mock cluster keeps the last 5 MB of a partition, so less than all.
    for topic in ["few", "many"] {
        cluster.create_topic(topic, 6, 1).unwrap();
        cluster.create_topic(&format!("{topic}.dead-letters"), 1, 1).unwrap();
    }
    let servers = cluster.bootstrap_servers();
    let [few, many] = ["few", "many"].map(|name| format!("{servers}#{name}"));
    compare::<KafkaQueue>("a_backlog_in_kafka_takes_no_memory", [&few, &many]).await;
}
