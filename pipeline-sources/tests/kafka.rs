//! The queue in a topic of Kafka, on the mock cluster of the client, which speaks the protocol.
//!
//! The cluster is in the process of the test. `RESTARTS=10`, and `KILLS=50 ITEMS=20000`, make longer runs.
#![cfg(all(feature = "kafka", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;
mod kills;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Processors},
    telemetry::Telemetry,
    timed::TraceContext,
};
use pipeline_sources::{
    Broker, BrokerError, DeadLetter, Item, Source, SourceOptions,
    contract::{Subject, check},
    kafka::{
        KafkaBroker, KafkaError, KafkaFetch, KafkaId, KafkaOptions, KafkaQueue, KafkaReceipt,
        KafkaSettle,
    },
};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureProducer, FutureRecord},
    types::RDKafkaRespErr,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

type Call = Box<dyn FnOnce(&MockCluster<'static, DefaultProducerContext>) + Send>;

/// A cluster on a thread of its own, which it does not leave.
#[derive(Clone)]
struct Cluster {
    servers: String,
    calls: mpsc::Sender<Call>,
}

impl Cluster {
    fn start() -> Self {
        let (calls, received) = mpsc::channel::<Call>();
        let (started, servers) = mpsc::channel();
        thread::spawn(move || {
            let cluster = MockCluster::new(1).unwrap();
            started.send(cluster.bootstrap_servers()).unwrap();
            received.iter().for_each(|call| call(&cluster));
        });
        Self { servers: servers.recv().unwrap(), calls }
    }

    fn call(
        &self,
        call: impl FnOnce(&MockCluster<'static, DefaultProducerContext>) + Send + 'static,
    ) {
        let (done, is_done) = mpsc::channel();
        let call: Call = Box::new(move |cluster| {
            call(cluster);
            done.send(()).unwrap();
        });
        self.calls.send(call).unwrap();
        is_done.recv().unwrap();
    }

    /// Creates a topic and the one of its dead letters.
    fn topic(&self, name: &str, partitions: i32) {
        let name = name.to_owned();
        self.call(move |cluster| {
            cluster.create_topic(&name, partitions, 1).unwrap();
            cluster.create_topic(&format!("{name}.dead-letters"), 2, 1).unwrap();
        });
    }

    /// The broker's connections end, and it can be reached no more.
    fn down(&self) {
        self.call(|cluster| cluster.broker_down(1).unwrap());
    }

    fn up(&self) {
        self.call(|cluster| cluster.broker_up(1).unwrap());
    }

    /// Dead letters of a topic cannot be written, or can again.
    fn refuse_dead_letters(&self, topic: &str, refused: bool) {
        let topic = format!("{topic}.dead-letters");
        self.call(move |cluster| {
            let code = if refused {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            } else {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            };
            cluster.topic_error(&topic, code).unwrap();
        });
    }

    /// How long the broker takes to answer.
    fn delay(&self, time: Duration) {
        self.call(move |cluster| cluster.broker_round_trip_time(1, time).unwrap());
    }

    fn queue(&self, topic: &str, options: KafkaOptions) -> KafkaQueue {
        KafkaQueue::new(&self.servers, topic, "test", options)
    }
}

/// The protocol in which the broker assigns the partitions. The mock cluster lets a group of the other one
/// wait for three seconds first.
fn options() -> KafkaOptions {
    KafkaOptions::new()
        .set("group.protocol", "consumer")
        .set("reconnect.backoff.max.ms", "200")
        .call_timeout(Duration::from_secs(5))
}

/// A queue of a new topic with this many partitions.
async fn queue(partitions: i32, options: KafkaOptions) -> (Cluster, KafkaQueue) {
    let cluster = Cluster::start();
    cluster.topic("numbers", partitions);
    let queue = cluster.queue("numbers", options);
    (cluster, queue)
}

/// The delay before a source connects again.
const RECONNECT: Duration = Duration::from_millis(50);

fn quick() -> SourceOptions {
    let backoff = |delay| Backoff::new(delay, delay).jitter(Jitter::None);
    let again = backoff(Duration::from_millis(10));
    SourceOptions::new()
        .max_deliveries(3)
        .redeliver_after(again)
        .reconnect_after(backoff(RECONNECT))
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

type Seen = Arc<Mutex<Vec<String>>>;

fn text(message: &Message<Item>) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Starts a pipeline that keeps the texts, and fails those for which the function says so.
fn keep(
    queue: &KafkaQueue,
    options: SourceOptions,
    fails: fn(&str) -> Option<Failure>,
) -> (Pipeline, Seen) {
    let seen = Seen::default();
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

async fn is_empty(queue: &KafkaQueue) -> bool {
    queue.backlog().await.is_ok_and(|backlog| backlog.items == Some(0))
}

/// A topic of a cluster that all checks of a contract share.
struct InCluster {
    queue: KafkaQueue,
    cluster: Cluster,
    partitions: i32,
}

impl Subject for InCluster {
    type Broker = KafkaBroker;

    fn broker(&self) -> KafkaBroker {
        self.queue.broker()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    async fn fill_graves(&self) -> bool {
        self.cluster.refuse_dead_letters(self.queue.topic(), true);
        true
    }

    async fn empty_graves(&self) {
        self.cluster.refuse_dead_letters(self.queue.topic(), false);
    }

    async fn dead_letters(&self) -> Vec<String> {
        let dead = self.queue.dead_letters(None, 100).await.unwrap_or_default();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }

    async fn push_malformed(&self) -> bool {
        let other = other_client(&self.cluster);
        let record = FutureRecord::<[u8], str>::to(self.queue.topic()).key(&[0xff]).payload("x");
        other.send(record, PATIENCE).await.unwrap();
        true
    }

    fn counts_deaths(&self) -> bool {
        false
    }

    fn is_ordered(&self) -> bool {
        self.partitions == 1
    }
}

/// A producer that knows nothing of the library.
fn other_client(cluster: &Cluster) -> FutureProducer {
    ClientConfig::new().set("bootstrap.servers", &cluster.servers).create().unwrap()
}

/// Checks the contract with topics of so many partitions.
async fn check_contract(partitions: i32, options: fn() -> KafkaOptions) {
    let cluster = Cluster::start();
    let topics = AtomicUsize::new(0);
    check(async || {
        let topic = format!("numbers-{}", topics.fetch_add(1, SeqCst));
        cluster.topic(&topic, partitions);
        let queue = KafkaQueue::new(&cluster.servers, &*topic, topic.clone(), options());
        InCluster { queue, cluster: cluster.clone(), partitions }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_one_partition_or_several_keeps_the_contract() {
    let by_key = check_contract(3, || options().ordered_by_key(true));
    tokio::join!(check_contract(1, options), by_key);
}

/// Adds numbers, eight at a time, each with one of this many keys.
async fn push_numbers(queue: &KafkaQueue, numbers: std::ops::Range<usize>, keys: usize) {
    let pushing = futures::stream::iter(numbers).map(|n| async move {
        let item = Item::new(n.to_string()).key((n % keys).to_string());
        queue.push(item).await.unwrap();
    });
    pushing.buffered(8).collect::<Vec<_>>().await;
}

fn numbers(seen: &Seen) -> Vec<usize> {
    seen.lock().iter().map(|text| text.parse().unwrap()).collect()
}

/// A broker that counts how often it is connected to.
struct Watched(KafkaBroker, Arc<AtomicUsize>);

impl Broker for Watched {
    type Receipt = KafkaReceipt;
    type Fetch = KafkaFetch;
    type Settle = KafkaSettle;

    async fn connect(&self) -> Result<(KafkaFetch, KafkaSettle), BrokerError> {
        self.1.fetch_add(1, SeqCst);
        self.0.connect().await
    }

    fn lease(&self) -> Option<Duration> {
        self.0.lease()
    }
}

/// As [`keep`], with the number of attempts to connect.
fn watch(queue: &KafkaQueue, options: SourceOptions) -> (Pipeline, Seen, Arc<AtomicUsize>) {
    let (seen, attempts) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push(text(message));
        Ok(())
    };
    let source = Source::new(Watched(queue.broker(), attempts.clone()), options);
    let pipeline = Pipeline::of_messages("test")
        .source(source)
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    (pipeline, seen, attempts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_and_comes_back_again_and_again_loses_nothing() {
    const PARTITIONS: usize = 3;
    const UNCOMMITTED: usize = 20;
    const UNSETTLED: usize = 50;
    const KEYS: usize = 20;
    // The mock cluster adds those twice whose confirmation was lost.
    const PUSHES: usize = 8;
    // What was done beyond the committed offset, what has no stored outcome, and what was added twice.
    const AGAIN: usize = PARTITIONS * UNCOMMITTED + UNSETTLED + PUSHES;
    let number = |name, otherwise| env::var(name).map_or(otherwise, |it| it.parse().unwrap());
    let restarts = number("RESTARTS", 3);
    let items = number("ITEMS", 400 * restarts) / restarts;
    let options = options().max_uncommitted(UNCOMMITTED);
    let (cluster, queue) = queue(PARTITIONS.try_into().unwrap(), options).await;
    let (pipeline, seen, attempts) = watch(&queue, quick().max_unsettled(UNSETTLED));
    let begun = Instant::now();
    let check_again = |deaths: usize| {
        let handled = numbers(&seen);
        let again = handled.len() - handled.iter().collect::<BTreeSet<_>>().len();
        // On a busy machine a session may end once more.
        let most = (deaths + 1) * AGAIN;
        assert!(again <= most, "{again} were handled again after {deaths} deaths");
        again
    };
    for restart in 0..restarts {
        let first = restart * items;
        let pushing = tokio::spawn({
            let queue = queue.clone();
            async move { push_numbers(&queue, first..first + items, KEYS).await }
        });
        let enough = first + items / 4;
        until("some are handled", async || numbers(&seen).iter().any(|n| *n > enough)).await;
        check_again(restart);
        let before = attempts.load(SeqCst);
        cluster.down();
        until("it is noticed", async || attempts.load(SeqCst) > before + 1).await;
        cluster.up();
        pushing.await.unwrap();
    }
    until("all are handled", async || is_empty(&queue).await).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
    let again = check_again(restarts);
    let (mut handled, mut latest) = (BTreeSet::new(), BTreeMap::new());
    // The first deliveries of a key, which has one partition, are in order.
    for n in numbers(&seen).into_iter().filter(|n| handled.insert(*n)) {
        let before = latest.insert(n % KEYS, n);
        assert!(before.is_none_or(|before| before < n), "{n} after {before:?}");
    }
    assert_eq!(handled.len(), restarts * items, "every item was handled");
    println!(
        "kills: {} items, the broker goes away {restarts} times, {} done, {again} again ({AGAIN} may be each \
         time), 0 order violations (of first deliveries), in {:?}",
        restarts * items,
        handled.len(),
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_answer_is_noticed_and_served_again_when_it_does() {
    let options = options().call_timeout(Duration::from_millis(500));
    let options = options.push_timeout(Duration::from_millis(500));
    let (cluster, queue) = queue(1, options).await;
    let (pipeline, seen, attempts) = watch(&queue, quick());
    // A busy machine may take longer than the time of these options.
    push_numbers(&cluster.queue("numbers", self::options()), 0..10, 5).await;
    until("they are handled", async || seen.lock().len() == 10).await;
    let before = attempts.load(SeqCst);
    cluster.delay(Duration::from_secs(60));
    until("it is noticed", async || attempts.load(SeqCst) > before + 1).await;
    // No call waits for ever.
    let refused = timeout(PATIENCE, queue.push(Item::new("10"))).await.unwrap();
    assert!(refused.is_err(), "{refused:?}");
    let refused = timeout(PATIENCE, queue.dead_letters(None, 1)).await.unwrap();
    assert!(refused.is_err(), "{refused:?}");
    cluster.delay(Duration::ZERO);
    until("it answers", async || queue.push(Item::new("11")).await.is_ok()).await;
    until("it is handled", async || numbers(&seen).contains(&11)).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_waits_for_a_broker_that_is_absent_and_for_a_topic() {
    let cluster = Cluster::start();
    cluster.down();
    let queue = cluster.queue("numbers", options());
    let (pipeline, seen, attempts) = watch(&queue, quick());
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    let begun = Instant::now();
    until("it tries", async || attempts.load(SeqCst) > 2).await;
    let most = 2 + begun.elapsed().as_millis() / RECONNECT.as_millis();
    let tried = attempts.load(SeqCst);
    assert!(tried as u128 <= most, "{tried} attempts, and no more than {most} may be");
    until("the outage is shown", async || {
        let seen = source();
        !seen.connected && seen.connection_errors >= 2 && seen.last_error.is_some()
    })
    .await;
    cluster.up();
    cluster.topic("numbers", 1);
    push_numbers(&queue, 0..3, 1).await;
    until("they are handled", async || numbers(&seen) == [0, 1, 2]).await;
    assert!(source().connected);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_given_up_is_listed_replayed_and_dropped() {
    let (_cluster, queue) = queue(1, options()).await;
    let trace = TraceContext::random();
    let bad = |n: usize| Item::new(format!("bad {n}")).key(n.to_string()).header("kind", "test");
    for n in 0..5 {
        queue.push(bad(n).trace(trace)).await.unwrap();
    }
    let fails = |text: &str| text.starts_with("bad").then(|| Failure::new("it is bad"));
    let (pipeline, seen) = keep(&queue, quick(), fails);
    until("all are given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len(), 15);

    let dead = queue.dead_letters(None, 100).await.unwrap();
    assert_eq!(dead.len(), 5);
    assert!(dead.is_sorted_by_key(|letter| letter.id));
    for letter in &dead {
        let number = letter.item.key.as_ref().unwrap().parse().unwrap();
        let item = Item { trace: letter.item.trace, ..bad(number) };
        assert_eq!(letter.item, item);
        assert_eq!(letter.item.trace.map(|it| it.to_string()), Some(trace.to_string()));
        assert_eq!((letter.deliveries, &*letter.reason), (3, "it is bad"));
        assert!(letter.enqueued_at.is_some() && letter.enqueued_at <= letter.given_up_at);
    }
    // By pages.
    let mut pages = Vec::new();
    loop {
        let page = queue.dead_letters(pages.last().copied(), 2).await.unwrap();
        assert!(page.len() <= 2);
        pages.extend(page.iter().map(|letter| letter.id));
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(pages, dead.iter().map(|letter| letter.id).collect::<Vec<_>>());

    let nowhere = KafkaId { partition: 0, offset: 1000 };
    assert_eq!(queue.replay(nowhere).await.unwrap(), None);
    assert_eq!(queue.replay(KafkaId { partition: 77, offset: 0 }).await.unwrap(), None);
    assert!(!queue.drop_dead_letter(nowhere).await.unwrap());
    assert!(queue.drop_dead_letter(dead[0].id).await.unwrap());
    assert!(!queue.drop_dead_letter(dead[0].id).await.unwrap());
    let new = queue.replay(dead[1].id).await.unwrap().unwrap();
    assert_eq!(new, KafkaId { partition: 0, offset: 5 });
    assert_eq!(queue.replay(dead[1].id).await.unwrap(), None);
    let left = queue.dead_letters(None, 100).await.unwrap();
    let ids = |letters: &[DeadLetter<KafkaId>]| letters.iter().map(|it| it.id).collect::<Vec<_>>();
    assert_eq!(ids(&left), ids(&dead[2..]));
    assert_eq!(queue.backlog().await.unwrap().items, Some(1));

    // It comes again as it was. Its age begins anew.
    let metadata = Arc::new(Mutex::new(None));
    let (log, item) = (metadata.clone(), dead[1].item.clone());
    let handle = async move |message: &mut Message<Item>| {
        *log.lock() = Some((message.metadata().clone(), (**message).clone()));
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle))
        .start()
        .unwrap();
    until("it is handled", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let (metadata, again) = metadata.lock().clone().unwrap();
    assert_eq!(again, item);
    assert!(metadata.enqueued_at >= dead[1].given_up_at, "{metadata:?}");
    assert_eq!((metadata.id.as_deref(), metadata.deliveries), (Some("0-5"), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let (_cluster, queue) = queue(2, options()).await;
    common::a_drop_of_all_takes_what_was_there(
        queue.source(quick()),
        async |item| {
            queue.push(item).await.unwrap();
        },
        async || common::payloads(&queue.dead_letters(None, 300).await.unwrap()),
        async |which| queue.drop_all_dead_letters(|dead| which(&dead.item)).await.unwrap(),
    )
    .await;
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 2);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_refused_is_counted_at_the_recorder_of_its_queue() {
    let (_cluster, queue) = queue(1, options()).await;
    let refusals = common::Refusals::default();
    let queue = queue.telemetry(&Telemetry::with_recorder(refusals.clone()));
    let counted = || ["failed", "full"].map(|why| refusals.counted("kafka", "numbers", why));
    let refused = Item::new("2").header("pipeline-reason", "no item has this header");
    queue.push(refused.clone()).await.unwrap_err();
    assert_eq!(counted(), [1, 0]);
    let items = vec![Item::new("1"), refused, Item::new("3")];
    queue.push_all(items).await.unwrap_err();
    assert_eq!(counted(), [3, 0], "the last one may be added");
    queue.push_all(vec![Item::new("4"), Item::new("5")]).await.unwrap();
    assert_eq!(counted(), [3, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_too_large_is_kept_without_its_payload() {
    let options = options().set("message.max.bytes", "1000");
    let (_cluster, queue) = queue(1, options).await;
    let large = Item::new("x".repeat(900)).header("kind", "test");
    queue.push(large).await.unwrap();
    let (pipeline, _) = keep(&queue, quick(), |_| Some(Failure::new("it is bad").give_up()));
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters(None, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].item.payload.len()), (1, 0));
    assert_eq!(dead[0].item.headers.get("kind").map(|it| &**it), Some("test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_headers_are_too_large_is_kept_without_them() {
    let (cluster, queue) = queue(1, options().set("message.max.bytes", "1000")).await;
    let large = "x".repeat(900);
    let headers = OwnedHeaders::new().insert(Header { key: "large", value: Some(&large) });
    let record = FutureRecord::<str, str>::to("numbers").key("k").payload("x").headers(headers);
    other_client(&cluster).send(record, PATIENCE).await.unwrap();
    let long = |_: &str| Some(Failure::new("it is bad ".repeat(1000)).give_up());
    let (pipeline, _) = keep(&queue, quick(), long);
    until("it is given up", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters(None, 10).await.unwrap().remove(0);
    assert_eq!(dead.item, Item::new("").key("k"));
    assert!(dead.reason.starts_with("it is bad it is bad"), "{}", dead.reason);
    assert!(dead.reason.ends_with(" (its payload and headers did not fit)"), "{}", dead.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_cannot_be_stored_holds_up_its_own_offset_alone() {
    let (cluster, queue) = queue(2, options()).await;
    cluster.refuse_dead_letters("numbers", true);
    push_numbers(&queue, 0..100, 20).await;
    let fails = |text: &str| (text == "7").then(|| Failure::new("it is bad").give_up());
    let (pipeline, seen) = keep(&queue, quick(), fails);
    until("all are handled", async || seen.lock().len() == 100).await;
    push_numbers(&queue, 100..200, 20).await;
    until("more are handled", async || seen.lock().len() == 200).await;
    // One partition has nothing left, and of the other one all was handled.
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    until("all others are stored", async || source().done == 199).await;
    assert!(source().given_up == 0 && !is_empty(&queue).await, "{:?}", source());
    assert_eq!(source().connection_errors, 0, "the session continues");
    cluster.refuse_dead_letters("numbers", false);
    until("all are done", async || is_empty(&queue).await).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    assert_eq!(seen.lock().len(), 200, "none was handled twice");
    assert_eq!(queue.dead_letters(None, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_that_cannot_be_reckoned_is_a_long_one() {
    let (_cluster, queue) = queue(1, options()).await;
    queue.push(Item::new("1")).await.unwrap();
    let later = |_: &str| Some(Failure::new("later").retry_after(Duration::MAX));
    let (pipeline, seen) = keep(&queue, quick(), later);
    until("it is handled", async || seen.lock().len() == 1).await;
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    until("its outcome is stored", async || source().held == 0).await;
    assert_eq!((source().connection_errors, source().last_error), (0, None));
    drop(pipeline);
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    until("it is delivered again", async || seen.lock().len() == 1).await;
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_other_clients_are_items_or_given_up() {
    let (cluster, queue) = queue(1, options()).await;
    let other = other_client(&cluster);
    let send = async |key: Option<&[u8]>, payload: Option<&[u8]>, headers| {
        let mut record = FutureRecord::<[u8], [u8]>::to("numbers");
        (record.key, record.payload, record.headers) = (key, payload, headers);
        other.send(record, PATIENCE).await.unwrap();
    };
    let header = |key, value| Header { key, value };
    let headers = OwnedHeaders::new()
        .insert(header("kind", Some(&b"plain"[..])))
        .insert(header("bytes", Some(&[0xff][..])))
        .insert(header("nothing", None))
        .insert(header("pipeline-key", Some(&b"of the library"[..])))
        .insert(header("traceparent", Some(&b"no trace"[..])));
    send(None, Some(b"plain"), None).await;
    send(Some(b"k"), Some(&[0xff]), Some(headers)).await;
    send(Some(&[0xff]), Some(b"x"), None).await;
    send(Some(b"only a key"), None, None).await;
    let items = Arc::new(Mutex::new(Vec::new()));
    let log = items.clone();
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push((**message).clone());
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("all are done", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    let second = Item::new(vec![0xff]).key("k").header("kind", "plain");
    let second = second.header("traceparent", "no trace");
    assert_eq!(*items.lock(), [Item::new("plain"), second]);
    let mut reasons: Vec<_> = queue.dead_letters(None, 10).await.unwrap();
    reasons.sort_by_key(|letter| letter.reason.clone());
    assert!(reasons[0].reason.contains("not UTF-8"), "{:?}", reasons[0]);
    assert!(reasons[1].reason.contains("no payload"), "{:?}", reasons[1]);
    assert_eq!(reasons[1].item.key.as_deref(), Some("only a key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_with_a_header_of_the_library_is_refused() {
    let (_cluster, queue) = queue(1, options()).await;
    let refused = queue.push(Item::new("x").header("pipeline-reason", "none")).await;
    assert!(matches!(refused, Err(KafkaError::OwnHeader(_))), "{refused:?}");
    let topic = KafkaQueue::open(&*_cluster.servers, "numbers", "test").await;
    assert!(topic.is_ok(), "{topic:?}");
}

/// A handler that waits at some items until they are let through.
#[derive(Clone)]
struct Gate {
    held: Arc<[&'static str]>,
    seen: Seen,
    opened: Arc<Semaphore>,
    waiting: Arc<Notify>,
}

impl Gate {
    fn at(held: &[&'static str]) -> Self {
        Self {
            held: held.into(),
            seen: Seen::default(),
            opened: Arc::new(Semaphore::new(0)),
            waiting: Arc::new(Notify::new()),
        }
    }

    async fn pass(&self, text: String) -> Result<(), Failure> {
        if self.held.contains(&&*text) {
            self.waiting.notify_one();
            self.opened.acquire().await?.forget();
        }
        self.seen.lock().push(text);
        Ok(())
    }

    fn start(&self, queue: &KafkaQueue) -> Pipeline {
        let gate = self.clone();
        let handle = async move |message: &mut Message<Item>| gate.pass(text(message)).await;
        Pipeline::of_messages("test")
            .source(queue.source(quick()))
            .processors(Processors::from_fn(handle).concurrency(4).max_demand(2))
            .start()
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_is_committed_only_as_far_as_everything_before_it_is_done() {
    let (_cluster, queue) = queue(1, options()).await;
    push_numbers(&queue, 0..20, 20).await;
    let gate = Gate::at(&["3"]);
    let pipeline = gate.start(&queue);
    // The one that waits is not handled, nor is the one that its processor has as well.
    until("most are handled", async || gate.seen.lock().len() >= 18).await;
    until("three are committed", async || queue.backlog().await.unwrap().items == Some(17)).await;
    // As the death of its process.
    drop(pipeline);
    let (pipeline, seen) = keep(&queue, quick(), |_| None);
    until("the others come again", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(numbers(&seen), (3..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_of_a_partition_is_read_than_may_be_uncommitted() {
    let (_cluster, queue) = queue(1, options().max_uncommitted(10)).await;
    push_numbers(&queue, 0..100, 100).await;
    let gate = Gate::at(&["0"]);
    let pipeline = gate.start(&queue);
    let handled = || gate.seen.lock().len();
    until("those that may be are handled", async || handled() >= 8).await;
    sleep(Duration::from_millis(300)).await;
    let so_far = handled();
    assert!(so_far <= 9, "{so_far} of the ten are handled, and one waits");
    gate.opened.add_permits(1);
    until("all are handled", async || is_empty(&queue).await).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(handled(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_one_key_are_handled_in_order_although_one_fails() {
    let (_cluster, queue) = queue(2, options().ordered_by_key(true)).await;
    push_numbers(&queue, 0..40, 2).await;
    let failed = Arc::new(Mutex::new(false));
    let seen = Arc::new(Mutex::new(Vec::<usize>::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let n = text(message).parse::<usize>()?;
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
    assert_eq!(of(0), (0..40).step_by(2).collect::<Vec<_>>());
    assert_eq!(of(1), (1..40).step_by(2).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_come_and_go_lose_nothing_and_handle_nothing_twice() {
    let (_cluster, queue) = queue(4, options()).await;
    let ended = Arc::new(AtomicBool::new(false));
    let pushing = tokio::spawn({
        let (queue, ended) = (queue.clone(), ended.clone());
        async move {
            let mut pushed = 0;
            while !ended.load(SeqCst) {
                push_numbers(&queue, pushed..pushed + 20, 40).await;
                pushed += 20;
            }
            pushed
        }
    });
    let all = Seen::default();
    let join = || {
        let (log, count) = (all.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        let handle = async move |message: &mut Message<Item>| {
            sleep(Duration::from_millis(2)).await;
            log.lock().push(text(message));
            counted.fetch_add(1, SeqCst);
            Ok(())
        };
        let pipeline = Pipeline::of_messages("test")
            .source(queue.source(quick()))
            .processors(Processors::from_fn(handle).concurrency(4).max_demand(4))
            .start()
            .unwrap();
        (pipeline, count)
    };
    let handled = |who: &(Pipeline, Arc<AtomicUsize>)| who.1.load(SeqCst);
    let first = join();
    until("the first has some", async || handled(&first) > 50).await;
    let second = join();
    until("the second has some", async || handled(&second) > 20).await;
    let third = join();
    until("the third has some", async || handled(&third) > 20).await;
    first.0.drain(PATIENCE).await;
    let (second_had, third_had) = (handled(&second), handled(&third));
    let both_go_on = || handled(&second) > second_had && handled(&third) > third_had;
    until("the others go on", async || both_go_on()).await;
    second.0.drain(PATIENCE).await;
    ended.store(true, SeqCst);
    let pushed = pushing.await.unwrap();
    until("all are handled", async || is_empty(&queue).await).await;
    third.0.drain(PATIENCE).await;
    let mut handled = numbers(&all);
    handled.sort_unstable();
    assert_eq!(handled, (0..pushed).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_comes_after_the_partition_was_given_up_changes_nothing() {
    let (_cluster, queue) = queue(2, options().revoke_wait(Duration::from_millis(100))).await;
    let items: BTreeMap<_, _> = [("0", 0), ("1", 1)].into();
    // Keys of different partitions.
    let mut places = BTreeMap::new();
    for key in 0.. {
        let id = queue.push(Item::new(key.to_string()).key(key.to_string())).await.unwrap();
        places.entry(id.partition).or_insert(key);
        if places.len() == items.len() {
            break;
        }
    }
    let pushed = queue.backlog().await.unwrap().items.unwrap();
    let names: Vec<&'static str> =
        (0..pushed).map(|n| &*Box::leak(n.to_string().into_boxed_str())).collect();
    let gate = Gate::at(&names);
    let first = gate.start(&queue);
    gate.waiting.notified().await;
    let (second, seen) = keep(&queue, quick(), |_| None);
    // It gets a partition although its items are in work at the first.
    until("the second has some", async || !seen.lock().is_empty()).await;
    gate.opened.add_permits(100);
    until("all are done", async || is_empty(&queue).await).await;
    first.drain(PATIENCE).await;
    second.drain(PATIENCE).await;
    let both: BTreeSet<_> = numbers(&seen).into_iter().chain(numbers(&gate.seen)).collect();
    assert_eq!(both.len() as u64, pushed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_wait_has_no_end_is_kept_until_its_items_are_done() {
    const ITEMS: usize = 20;
    let (_cluster, queue) = queue(2, options().revoke_wait(Duration::MAX)).await;
    push_numbers(&queue, 0..ITEMS, ITEMS).await;
    let names: Vec<&'static str> =
        (0..ITEMS).map(|n| &*Box::leak(n.to_string().into_boxed_str())).collect();
    let gate = Gate::at(&names);
    let first = gate.start(&queue);
    gate.waiting.notified().await;
    let (second, seen) = keep(&queue, quick(), |_| None);
    // It would get the partitions within this time, with the items that are in work.
    sleep(Duration::from_secs(1)).await;
    gate.opened.add_permits(100);
    until("all are done", async || is_empty(&queue).await).await;
    first.drain(PATIENCE).await;
    second.drain(PATIENCE).await;
    let both = numbers(&seen).len() + numbers(&gate.seen).len();
    assert_eq!(both, ITEMS, "none is handled twice");
}

/// The older protocol, in which one of the group's members assigns the partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_the_older_protocol_loses_nothing_when_its_members_change() {
    // At the same time, as the mock cluster lets each wait for seconds.
    tokio::join!(change_members("cooperative-sticky"), change_members("range"));
}

async fn change_members(strategy: &str) {
    const ITEMS: usize = 300;
    let options = KafkaOptions::new()
        .set("session.timeout.ms", "4000")
        .set("heartbeat.interval.ms", "100")
        .set("partition.assignment.strategy", strategy);
    let (_cluster, queue) = queue(4, options).await;
    push_numbers(&queue, 0..ITEMS, 40).await;
    let (first, begun) = keep(&queue, quick(), |_| None);
    until("the first has all", async || begun.lock().len() >= ITEMS).await;
    let (second, then) = keep(&queue, quick(), |_| None);
    let mut pushed = ITEMS;
    until("the second has some", async || {
        push_numbers(&queue, pushed..pushed + 10, 40).await;
        pushed += 10;
        !then.lock().is_empty()
    })
    .await;
    until("all are handled", async || is_empty(&queue).await).await;
    first.drain(PATIENCE).await;
    push_numbers(&queue, pushed..pushed + 50, 40).await;
    pushed += 50;
    until("the second has the rest", async || is_empty(&queue).await).await;
    second.drain(PATIENCE).await;
    let both = numbers(&begun).into_iter().chain(numbers(&then)).collect::<BTreeSet<_>>();
    assert_eq!(both, (0..pushed).collect::<BTreeSet<_>>(), "{strategy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pushers_share_the_way_to_the_broker() {
    let (_cluster, queue) = queue(1, options()).await;
    queue.push(Item::new("first")).await.unwrap();
    let begun = Instant::now();
    for n in 0..50 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let one_by_one = begun.elapsed();
    let begun = Instant::now();
    let items = (0..1000).map(|n| Item::new(n.to_string())).collect();
    let places = queue.push_all(items).await.unwrap();
    let together = begun.elapsed();
    assert!(places.is_sorted() && places.len() == 1000);
    // Twenty times as many items in less than ten times as long.
    assert!(together < one_by_one * 10, "{together:?} and {one_by_one:?}");
}

/// How many items of a partition are read beyond the first one that is not done, while processes are killed.
const UNCOMMITTED: usize = 100;

/// How many partitions the topic has, while processes are killed.
const PARTITIONS: usize = 4;

impl kills::Queue for KafkaQueue {
    type Broker = KafkaBroker;

    // After each, the mock cluster lets the next process wait for some seconds.
    const KILLS: usize = 2;

    // What was done beyond the committed offset comes again, of each of the partitions.
    const HELD: usize = kills::MAX_UNSETTLED + PARTITIONS * UNCOMMITTED;

    async fn open(address: &str) -> Self {
        // With the newer protocol, the mock cluster notices a death after half a minute.
        let options = KafkaOptions::new()
            .set("session.timeout.ms", "3500")
            .set("heartbeat.interval.ms", "300")
            .set("partition.assignment.strategy", "range")
            .max_uncommitted(UNCOMMITTED)
            .ordered_by_key(true);
        Self::new(address, "numbers", "test", options)
    }

    fn broker(&self) -> KafkaBroker {
        Self::broker(self)
    }

    async fn push(&self, item: Item) {
        Self::push(self, item).await.unwrap();
    }

    async fn is_empty(&self) -> bool {
        is_empty(self).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item() {
    if kills::inside::<KafkaQueue>().await {
        return;
    }
    let cluster = Cluster::start();
    cluster.topic("numbers", PARTITIONS.try_into().unwrap());
    let test = "a_process_that_is_killed_loses_no_item";
    kills::handling::<KafkaQueue>(test, &cluster.servers, kills::Order::OfFirsts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed() {
    if kills::inside::<KafkaQueue>().await {
        return;
    }
    let cluster = Cluster::start();
    cluster.topic("numbers", PARTITIONS.try_into().unwrap());
    let test = "an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed";
    kills::pushing::<KafkaQueue>(test, &cluster.servers).await;
}
