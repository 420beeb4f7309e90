//! A server that is killed, frozen or absent while items flow, for the tests of any broker behind one.
//!
//! `RESTARTS=10 ITEMS=20000` in the environment make a longer run, and with `--nocapture` a test prints its
//! figures.
#![allow(dead_code, reason = "a broker's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::HashMap,
    env,
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
    processing::{Message, Processors},
};
use pipeline_sources::{Broker, BrokerError, Item, Source, SourceOptions};
use pipeline_test_support::servers::Server;
use tokio::time::{Instant, sleep, timeout};

/// A queue at a server.
pub(crate) trait Queue: Clone + Send + Sync + 'static {
    /// Its broker.
    type Broker: Broker;

    /// The broker, for a source of the queue. Its calls and connections should end within a second or two.
    fn broker(&self) -> Self::Broker;

    /// Adds an item, and returns when it is durable, or why it is not known to be.
    fn try_push(&self, item: Item) -> impl Future<Output = Result<(), String>> + Send;
}

const PATIENCE: Duration = Duration::from_secs(120);

/// How many tasks add items.
const PUSHERS: usize = 8;

fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A broker that counts how often it was connected to.
#[derive(Debug)]
struct Counted<B> {
    broker: B,
    attempts: Arc<AtomicUsize>,
}

impl<B: Broker> Broker for Counted<B> {
    type Receipt = B::Receipt;
    type Fetch = B::Fetch;
    type Settle = B::Settle;

    async fn connect(&self) -> Result<(B::Fetch, B::Settle), BrokerError> {
        self.attempts.fetch_add(1, SeqCst);
        self.broker.connect().await
    }

    fn lease(&self) -> Option<Duration> {
        self.broker.lease()
    }

    fn outlives_sessions(&self) -> bool {
        self.broker.outlives_sessions()
    }
}

/// A pipeline that counts how often it has handled each number, and how often its source has connected.
struct Running {
    pipeline: Pipeline,
    handled: Arc<Mutex<HashMap<usize, usize>>>,
    attempts: Arc<AtomicUsize>,
}

impl Running {
    fn start<Q: Queue>(queue: &Q) -> Self {
        let (handled, attempts) = (Arc::<Mutex<HashMap<_, _>>>::default(), Arc::default());
        let log = handled.clone();
        let handle = async move |message: &mut Message<Item>| {
            let n = String::from_utf8(message.payload.to_vec())?.parse::<usize>()?;
            *log.lock().entry(n).or_default() += 1;
            Ok(())
        };
        let reconnect = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
        // All others are the defaults: an item that does not fail survives that its server is away.
        let options = SourceOptions::new().reconnect_after(reconnect.jitter(Jitter::None));
        let broker = Counted { broker: queue.broker(), attempts: Arc::clone(&attempts) };
        let pipeline = Pipeline::of_messages("numbers")
            .source(Source::new(broker, options))
            .processors(Processors::from_fn(handle).concurrency(4).max_demand(20))
            .start()
            .unwrap();
        Self { pipeline, handled, attempts }
    }

    fn count(&self) -> usize {
        self.handled.lock().len()
    }

    fn attempts(&self) -> usize {
        self.attempts.load(SeqCst)
    }

    async fn drain(self) {
        let report = self.pipeline.drain(PATIENCE).await;
        assert!(report.is_clean(), "{report:?}");
    }
}

/// Adds an item, again and again until it is known to be durable. Returns how often it has failed.
async fn push<Q: Queue>(queue: &Q, n: usize) -> usize {
    let mut failed = 0;
    let begun = Instant::now();
    while let Err(error) = queue.try_push(Item::new(n.to_string())).await {
        assert!(begun.elapsed() < PATIENCE, "it cannot be added: {error}");
        failed += 1;
        sleep(Duration::from_millis(20)).await;
    }
    failed
}

/// The server is killed and started again while items flow. None is lost.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn killed<Q: Queue>(server: &mut Server, queue: Q) {
    let (restarts, items) = (number("RESTARTS", 3), number("ITEMS", 3000));
    let running = Running::start(&queue);
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    // The items are spread over the restarts: each round may begin when the server was killed once more.
    let allowed = Arc::new(AtomicUsize::new(0));
    let pushers: Vec<_> = (0..PUSHERS)
        .map(|_| {
            let (queue, next, allowed) = (queue.clone(), next.clone(), allowed.clone());
            tokio::spawn(async move {
                let mut failed = 0;
                loop {
                    let n = next.fetch_add(1, SeqCst);
                    if n >= items {
                        return failed;
                    }
                    while n >= allowed.load(SeqCst) {
                        sleep(Duration::from_millis(2)).await;
                    }
                    failed += push(&queue, n).await;
                }
            })
        })
        .collect();
    for round in 0..restarts {
        allowed.store(items * (round + 1) / (restarts + 1), SeqCst);
        let before = items * round / (restarts + 1);
        // It is killed when a part of the round's items was handled, and others are on the way.
        let enough = before + items / (restarts + 1) / 4;
        until("items are handled", async || running.count() > enough).await;
        server.kill();
        sleep(Duration::from_millis(100)).await;
        server.start_again().await;
    }
    allowed.store(items, SeqCst);
    let mut failed = 0;
    for pusher in pushers {
        failed += pusher.await.unwrap();
    }
    until("all are handled", async || running.count() == items).await;
    assert!(running.attempts() > restarts, "the source has connected again after each");
    let again = running.handled.lock().values().sum::<usize>() - items;
    running.drain().await;
    println!(
        "{items} items, {restarts} restarts of the server: {failed} pushes failed and were made again, \
         {again} items were handled again, in {:?}",
        begun.elapsed()
    );
}

/// The server stops to run and keeps its connections. Calls end, the source connects again, and the rest
/// is handled when the server runs again.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn frozen<Q: Queue>(server: &Server, queue: Q) {
    let running = Running::start(&queue);
    push(&queue, 0).await;
    until("it is handled", async || running.count() == 1).await;
    let before = running.attempts();
    server.freeze();
    // A server of several processes may answer once more before all of them stand still.
    let pushes = async { while queue.try_push(Item::new("1")).await.is_ok() {} };
    assert!(timeout(PATIENCE, pushes).await.is_ok(), "a push must end with an error");
    until("the source connects again", async || running.attempts() >= before + 2).await;
    server.thaw();
    push(&queue, 2).await;
    until("it is handled", async || running.handled.lock().contains_key(&2)).await;
    running.drain().await;
}

/// The server is not there when the source starts.
///
/// # Panics
///
/// If items are not handled when it comes.
pub(crate) async fn absent<Q: Queue>(server: &mut Server, queue: Q) {
    server.kill();
    let running = Running::start(&queue);
    assert!(queue.try_push(Item::new("1")).await.is_err(), "a push must end with an error");
    until("it tries to connect", async || running.attempts() >= 2).await;
    server.start_again().await;
    push(&queue, 2).await;
    until("it is handled", async || running.handled.lock().contains_key(&2)).await;
    running.drain().await;
}
