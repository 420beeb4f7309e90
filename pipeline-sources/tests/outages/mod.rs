//! A server that is killed, frozen or absent while items flow, for the tests of any broker behind one.
//!
//! `RESTARTS=10 ITEMS=20000` in the environment make a longer run, and with `--nocapture` a test prints its
//! figures. `cargo xtask kills` does that for each server.
#![allow(dead_code, reason = "a broker's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Message, Processors},
    snapshot::SourceSnapshot,
    telemetry::Telemetry,
};
use pipeline_sources::{Broker, BrokerError, Item, Source, SourceOptions};
use pipeline_test_support::servers::Server;
use tokio::time::{Instant, sleep, timeout};

/// A queue at a server.
pub(crate) trait Queue: Clone + Send + Sync + 'static {
    /// Its broker.
    type Broker: Broker;

    /// Whether the first deliveries of the items of each key are in their order, also when the server dies.
    const IS_ORDERED: bool = false;

    /// Whether a server that is killed may have forgotten the outcomes of its last moments, although it had
    /// taken them.
    const FORGETS: bool = false;

    /// The broker, for a source of the queue. Its calls and connections should end within a second or two.
    fn broker(&self) -> Self::Broker;

    /// Adds an item, and returns when it is durable, or why it is not known to be.
    fn try_push(&self, item: Item) -> impl Future<Output = Result<(), String>> + Send;
}

const PATIENCE: Duration = Duration::from_secs(120);

/// How many tasks add items.
const PUSHERS: usize = 8;

/// How many keys the items have.
const KEYS: usize = 397;

/// How many items the source holds without a stored outcome.
const MAX_UNSETTLED: usize = 100;

/// The first delay before the source connects again.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// How many connections the source may open in an attempt to connect, and its client library between two.
const CONNECTIONS: usize = 4;

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

/// The gauges and counters of a pipeline, by their names. It has one source.
#[derive(Clone, Debug, Default)]
struct Metrics(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Metrics {
    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().entry(key.name().to_owned()).or_default())
    }

    fn bits(&self, name: &str) -> u64 {
        self.0.lock()[name].load(SeqCst)
    }

    fn counter(&self, name: &str) -> u64 {
        self.bits(name)
    }

    fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.bits(name))
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// An item that was handled. What was added again, because it was not known to be durable, is another item
/// with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Handled {
    number: usize,
    attempt: usize,
}

impl Handled {
    fn item(self) -> Item {
        let Self { number, attempt } = self;
        Item::new(format!("{number} {attempt}")).key((number % KEYS).to_string())
    }

    fn of(text: &str) -> Option<Self> {
        let (number, attempt) = text.split_once(' ')?;
        Some(Self { number: number.parse().ok()?, attempt: attempt.parse().ok()? })
    }
}

/// What was handled, and after how many deaths of the server.
#[derive(Debug, Default)]
struct Log {
    all: Vec<(usize, Handled)>,
    numbers: HashSet<usize>,
}

/// A pipeline that keeps what it has handled, and how often its source has connected.
struct Running {
    pipeline: Pipeline,
    handled: Arc<Mutex<Log>>,
    /// How often the server has died.
    deaths: Arc<AtomicUsize>,
    attempts: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl Running {
    fn start<Q: Queue>(queue: &Q) -> Self {
        let (handled, attempts) = (Arc::<Mutex<Log>>::default(), Arc::default());
        let (metrics, deaths) = (Metrics::default(), Arc::<AtomicUsize>::default());
        let (log, died) = (handled.clone(), deaths.clone());
        let handle = async move |message: &mut Message<Item>| {
            let text = String::from_utf8(message.payload.to_vec())?;
            let handled = Handled::of(&text).ok_or("it is none of this test")?;
            let mut log = log.lock();
            log.all.push((died.load(SeqCst), handled));
            log.numbers.insert(handled.number);
            Ok(())
        };
        let reconnect = Backoff::new(FIRST_DELAY, FIRST_DELAY * 4).jitter(Jitter::None);
        // All others are the defaults: an item that does not fail survives that its server is away.
        let options = SourceOptions::new().reconnect_after(reconnect).max_unsettled(MAX_UNSETTLED);
        let broker = Counted { broker: queue.broker(), attempts: Arc::clone(&attempts) };
        let pipeline = Pipeline::of_messages("numbers")
            .source(Source::new(broker, options))
            .processors(Processors::from_fn(handle).concurrency(4).max_demand(20))
            .telemetry(Telemetry::with_recorder(metrics.clone()))
            .start()
            .unwrap();
        Self { pipeline, handled, deaths, attempts, metrics }
    }

    fn count(&self) -> usize {
        self.handled.lock().numbers.len()
    }

    fn has_handled(&self, number: usize) -> bool {
        self.handled.lock().numbers.contains(&number)
    }

    fn attempts(&self) -> usize {
        self.attempts.load(SeqCst)
    }

    /// What an inspector shows of the source.
    fn source(&self) -> SourceSnapshot {
        self.pipeline.snapshot().stages.swap_remove(0).source.unwrap()
    }

    fn errors(&self) -> u64 {
        self.metrics.counter("pipeline.source.connection_errors")
    }

    /// Waits until the metrics and the inspector show that the source is connected, or is not.
    async fn is_shown(&self, connected: bool) {
        let what = if connected { "it is shown as connected" } else { "its outage is shown" };
        until(what, async || {
            let gauge = self.metrics.gauge("pipeline.source.connected");
            let seen = self.source();
            let error = connected || (self.errors() > 0 && seen.last_error.is_some());
            gauge == f64::from(u8::from(connected)) && seen.connected == connected && error
        })
        .await;
        // The metric is recorded first.
        let errors = self.errors();
        assert!(self.source().connection_errors + 1 >= errors, "the inspector shows all of them");
    }

    /// While the server is away, the outage is shown, and the source and its client library try to connect
    /// no more often than the delays allow.
    async fn does_not_connect_all_the_time(&self, server: &Server) {
        self.is_shown(false).await;
        // What connects here is counted, and learns that the server is not there.
        let trap = Trap::at(server.port());
        let (begun, errors) = (Instant::now(), self.errors());
        let before = self.attempts();
        until("it tries to connect", async || self.attempts() >= before + 6).await;
        let (attempts, connections) = (self.attempts() - before, trap.connections());
        // A delay may be over at the start, and none is shorter than the first.
        let delays = begun.elapsed().as_millis() / FIRST_DELAY.as_millis();
        let most = 2 + usize::try_from(delays).unwrap();
        assert!(attempts <= most, "{attempts} attempts, and no more than {most} may be");
        assert!(
            connections <= most * CONNECTIONS,
            "{connections} connections in {attempts} attempts, {most} of which may be"
        );
        println!("{attempts} attempts with {connections} connections, of {most} that may be");
        assert!(self.errors() >= errors + 5, "each attempt is an error");
        self.is_shown(false).await;
    }

    async fn drain(self) {
        let report = self.pipeline.drain(PATIENCE).await;
        assert!(report.is_clean(), "{report:?}");
    }
}

/// A port at which connections are counted, and end at once.
struct Trap {
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    port: u16,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Trap {
    fn at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (connections, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (connections.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            for _connection in listener.incoming() {
                if end.load(SeqCst) {
                    return;
                }
                count.fetch_add(1, SeqCst);
            }
        });
        Self { connections, ended, port, thread: Some(thread) }
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // It waits for the next connection.
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

/// Adds an item, again and again until it is known to be durable. Returns how often it has failed.
async fn push<Q: Queue>(queue: &Q, number: usize) -> usize {
    let begun = Instant::now();
    let mut attempt = 0;
    while let Err(error) = queue.try_push(Handled { number, attempt }.item()).await {
        assert!(begun.elapsed() < PATIENCE, "it cannot be added: {error}");
        attempt += 1;
        sleep(Duration::from_millis(20)).await;
    }
    attempt
}

/// What became of the items in a run with deaths of the server.
#[derive(Debug, Default)]
struct Account {
    /// How many were handled again after so many deaths.
    again: Vec<usize>,
    /// How many were handled after so many deaths.
    handled: Vec<usize>,
    /// How many first deliveries came after those of a later item of their key.
    violations: usize,
}

impl Account {
    fn new(log: &Log, deaths: usize) -> Self {
        let (again, handled) = (vec![0; deaths + 1], vec![0; deaths + 1]);
        let mut account = Self { again, handled, violations: 0 };
        let (mut seen, mut numbers) = (HashSet::new(), HashSet::new());
        let mut latest = HashMap::new();
        for (after, handled) in &log.all {
            account.handled[*after] += 1;
            account.again[*after] += usize::from(!seen.insert(*handled));
            let number = handled.number;
            if numbers.insert(number) {
                let latest = latest.insert(number % KEYS, number);
                account.violations += usize::from(latest.is_some_and(|latest| latest > number));
            }
        }
        account
    }

    /// Checks that no more were handled again than the deaths until then allow. After one it is what the
    /// source held, and what the server has forgotten of the items that were handled before it. A busy
    /// machine may let leases run out once more.
    fn check(&self, forgets: bool) {
        let (mut again, mut allowed) = (0, MAX_UNSETTLED);
        for (after, (repeated, handled)) in self.again.iter().zip(&self.handled).enumerate() {
            again += repeated;
            assert!(again <= allowed, "{again} after {after} deaths, {allowed} may be: {self:?}");
            allowed += MAX_UNSETTLED + if forgets { *handled } else { 0 };
        }
    }
}

/// The server is killed and started again while items flow. None is lost, no more come again than the source
/// held and the server has forgotten, and the first deliveries of each key are in order if that is promised.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn killed<Q: Queue>(server: &mut Server, queue: Q) {
    let (restarts, items) = (number("RESTARTS", 3), number("ITEMS", 3000));
    let running = Running::start(&queue);
    let begun = Instant::now();
    // The items are spread over the restarts: each round may begin when the server was killed once more.
    let allowed = Arc::new(AtomicUsize::new(0));
    // A task adds all items of a key, in their order.
    let pushers: Vec<_> = (0..PUSHERS)
        .map(|task| {
            let (queue, allowed) = (queue.clone(), allowed.clone());
            tokio::spawn(async move {
                let mut failed = 0;
                for n in (0..items).filter(|n| n % KEYS % PUSHERS == task) {
                    while n >= allowed.load(SeqCst) {
                        sleep(Duration::from_millis(2)).await;
                    }
                    failed += push(&queue, n).await;
                }
                failed
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
        running.deaths.fetch_add(1, SeqCst);
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
    running.is_shown(true).await;
    until("all outcomes are stored", async || running.source().held == 0).await;
    let (account, all) = {
        let log = running.handled.lock();
        let different: HashSet<_> = log.all.iter().map(|(_, handled)| *handled).collect();
        (Account::new(&log, restarts), different.len())
    };
    println!(
        "kills: {items} items, {restarts} restarts of the server, {failed} pushes failed and were made again \
         ({} of them had succeeded), {items} done, {} again ({} after one death at most), {} order violations \
         (of first deliveries, {}), in {:?}",
        all - items,
        account.again.iter().sum::<usize>(),
        account.again.iter().max().unwrap(),
        account.violations,
        if Q::IS_ORDERED { "ordered by key" } else { "not promised" },
        begun.elapsed()
    );
    account.check(Q::FORGETS);
    assert!(!Q::IS_ORDERED || account.violations == 0, "{account:?}");
    server.kill();
    running.does_not_connect_all_the_time(server).await;
    server.start_again().await;
    running.is_shown(true).await;
    running.drain().await;
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
    running.is_shown(true).await;
    let before = running.attempts();
    server.freeze();
    // A server of several processes may answer once more before all of them stand still.
    let other = || Handled { number: 1, attempt: 0 }.item();
    let pushes = async { while queue.try_push(other()).await.is_ok() {} };
    assert!(timeout(PATIENCE, pushes).await.is_ok(), "a push must end with an error");
    until("the source connects again", async || running.attempts() >= before + 2).await;
    running.is_shown(false).await;
    server.thaw();
    push(&queue, 2).await;
    until("it is handled", async || running.has_handled(2)).await;
    running.is_shown(true).await;
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
    let refused = queue.try_push(Handled { number: 1, attempt: 0 }.item()).await;
    assert!(refused.is_err(), "a push must end with an error");
    until("it tries to connect", async || running.attempts() >= 2).await;
    running.does_not_connect_all_the_time(server).await;
    server.start_again().await;
    push(&queue, 2).await;
    until("it is handled", async || running.has_handled(2)).await;
    running.is_shown(true).await;
    running.drain().await;
}
