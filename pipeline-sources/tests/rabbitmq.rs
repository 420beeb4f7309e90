//! The queue of RabbitMQ.
#![cfg(all(feature = "rabbitmq", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod kills;
mod outages;

mod common;

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Metadata, Processors},
    telemetry::Telemetry,
};
use pipeline_sources::{
    Broker, DeadLetter, Delivery, Fetch, Item, Outcome, Settle, Settlement, Source, SourceOptions,
    contract::{Faulty, Subject, check_one_by_one},
    rabbitmq::{RabbitError, RabbitOptions, RabbitQueue, RabbitQueueKind},
};
use pipeline_test_support::{
    Recorded,
    servers::{Kind, Server},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{Semaphore, watch},
    task::{JoinHandle, block_in_place},
    time::{Instant, sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The server that the tests share, for it takes seconds to start. The last test that uses it kills it.
static SHARED: tokio::sync::Mutex<Weak<Server>> = tokio::sync::Mutex::const_new(Weak::new());

async fn shared() -> Option<Arc<Server>> {
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(Server::start(Kind::RabbitMq).await?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

/// The server of a test, or the end of the test if there is none.
macro_rules! server {
    () => {
        match shared().await {
            Some(server) => server,
            None => return,
        }
    };
}

fn short() -> RabbitOptions {
    RabbitOptions::new().timeout(Duration::from_secs(3))
}

/// For tests that count deliveries, or the errors of connections: one that is lost on a busy machine would add some.
fn patient() -> RabbitOptions {
    RabbitOptions::new().timeout(Duration::from_secs(20))
}

fn queue(server: &Server, name: &str) -> RabbitQueue {
    RabbitQueue::with(&server.url(), name, short()).unwrap()
}

fn quick() -> SourceOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
    let backoff = backoff.jitter(Jitter::None);
    SourceOptions::new().redeliver_after(backoff).reconnect_after(backoff).max_deliveries(3)
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

type Seen = Arc<Mutex<Vec<(String, Metadata)>>>;

fn texts(seen: &Seen) -> Vec<String> {
    seen.lock().iter().map(|(text, _)| text.clone()).collect()
}

/// Starts a pipeline that keeps what arrives, and fails what is "bad".
fn keep(queue: &RabbitQueue, options: SourceOptions) -> (Pipeline, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text.clone(), message.metadata().clone()));
        if text == "bad" { Err(Failure::new("it is bad")) } else { Ok(()) }
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(options))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    (pipeline, seen)
}

async fn reasons(queue: &RabbitQueue) -> Vec<String> {
    let dead = queue.dead_letters(None, 100).await.unwrap();
    dead.iter().map(|dead| dead.reason.to_string()).collect()
}

/// A program that speaks AMQP and knows nothing of the queue.
async fn publish(server: &Server, queue: &str, payload: &str, headers: Option<FieldTable>) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&server.url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    let properties = BasicProperties::default();
    let properties = headers.into_iter().fold(properties, BasicProperties::with_headers);
    let options = BasicPublishOptions::default();
    let sent =
        channel.basic_publish("".into(), queue.into(), options, payload.as_bytes(), properties);
    assert!(sent.await.unwrap().await.unwrap().is_ack());
    connection.close(200, "done".into()).await.unwrap();
}

fn headers(of: &[(&str, &[u8])]) -> Option<FieldTable> {
    let mut headers = FieldTable::default();
    for (name, value) in of {
        headers.insert((*name).into(), AMQPValue::LongString(value.to_vec().into()));
    }
    Some(headers)
}

/// A queue of a server that the checks share.
struct OfServer {
    server: Arc<Server>,
    queue: RabbitQueue,
    kind: RabbitQueueKind,
}

impl OfServer {
    /// Removes the queue of the dead letters, and makes one in which there is no space.
    async fn replace_dead_letters(&self, full: bool) {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&self.server.url(), properties).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let queue = self.queue.name();
        let dead = format!("{queue}.dead");
        channel.queue_delete(dead.clone().into(), Default::default()).await.unwrap();
        if full {
            let mut arguments = FieldTable::default();
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
            let refuse = AMQPValue::LongString("reject-publish".into());
            arguments.insert("x-overflow".into(), refuse);
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(dead.clone().into(), durable, arguments).await.unwrap();
            let (to, key, none) = (dead.clone().into(), queue.into(), FieldTable::default());
            channel.queue_bind(dead.into(), to, key, Default::default(), none).await.unwrap();
        }
        connection.close(200, "done".into()).await.unwrap();
    }
}

impl Subject for OfServer {
    type Broker = RabbitQueue;

    fn broker(&self) -> RabbitQueue {
        self.queue.clone()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    async fn push_malformed(&self) -> bool {
        // The queue is made by the first call.
        self.queue.backlog().await.unwrap();
        let key = headers(&[("pipeline-key", b"\xff")]);
        publish(&self.server, self.queue.name(), "x", key).await;
        true
    }

    async fn fill_graves(&self) -> bool {
        // The queues are made by the first call.
        self.queue.backlog().await.unwrap();
        self.replace_dead_letters(true).await;
        true
    }

    async fn empty_graves(&self) {
        self.replace_dead_letters(false).await;
        // It is made again.
        self.queue.backlog().await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        // They may be replaced at this moment.
        let dead = self.queue.dead_letters(None, 100).await.unwrap_or_default();
        dead.iter().map(|dead| dead.reason.to_string()).collect()
    }

    fn gives_up_after_deaths(&self) -> bool {
        self.kind == RabbitQueueKind::Quorum
    }

    fn uncounts_drains(&self) -> bool {
        false
    }

    fn outlives_sessions(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_keeps_the_contract() {
    let server = server!();
    let made = AtomicUsize::new(0);
    let check = async |kind| {
        check_one_by_one(async || {
            let name = format!("contract{}", made.fetch_add(1, SeqCst));
            let queue = RabbitQueue::with(&server.url(), &name, patient().kind(kind)).unwrap();
            OfServer { server: server.clone(), queue, kind }
        })
        .await;
    };
    // They wait more than they compute.
    tokio::join!(check(RabbitQueueKind::Quorum), check(RabbitQueueKind::Classic));
}

impl outages::Queue for RabbitQueue {
    type Broker = Self;

    const FORGETS: bool = true;

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn try_push(&self, item: Item) -> Result<(), String> {
        self.push(item).await.map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_or_absent_loses_no_item() {
    let Some(mut server) = Server::start(Kind::RabbitMq).await else { return };
    // A quorum queue of this server may have no leader after its death.
    let options = short().kind(RabbitQueueKind::Classic);
    let queue = |name| RabbitQueue::with(&server.url(), name, options.clone()).unwrap();
    let [killed, absent] = ["killed", "absent"].map(queue);
    outages::killed(&mut server, killed).await;
    outages::absent(&mut server, absent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_or_short_of_memory_loses_no_item() {
    let Some(server) = Server::start(Kind::RabbitMq).await else { return };
    let options = RabbitOptions::new().timeout(Duration::from_secs(1));
    let queue = |name| RabbitQueue::with(&server.url(), name, options.clone()).unwrap();
    outages::frozen(&server, queue("frozen")).await;
    a_server_that_is_short_of_memory_takes_no_items_and_says_so(&server, queue("blocked")).await;
    an_item_that_is_in_work_for_too_long_is_shown(&server).await;
}

/// The server closes the channel of a consumer that does not acknowledge an item in time.
async fn an_item_that_is_in_work_for_too_long_is_shown(server: &Server) {
    // It is checked each time a channel is idle, a minute by default.
    let set = "application:set_env(rabbit, consumer_timeout, 1000),
        application:set_env(rabbit, channel_tick_interval, 200).";
    server.rabbitmqctl(&["eval", set]);
    // The argument means nothing to a server of this version, and is no error.
    let options = short().consumer_timeout(Duration::from_secs(3600));
    let queue = RabbitQueue::with(&server.url(), "slow", options).unwrap();
    for text in ["slow", "1", "2"] {
        queue.push(Item::new(text)).await.unwrap();
    }
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (seen.clone(), gate.clone());
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text.clone(), message.metadata().clone()));
        if text == "slow" {
            gate.acquire().await?.forget();
        }
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(4).max_demand(1))
        .start()
        .unwrap();
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    until("it is shown", async || source().last_error.is_some()).await;
    let error = source().last_error.unwrap_or_default();
    assert!(error.contains("longer than its consumer_timeout"), "{error}");
    let slow = || texts(&seen).iter().filter(|text| *text == "slow").count();
    until("it is delivered again", async || slow() >= 2).await;
    server.rabbitmqctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1800000)."]);
    opened.add_permits(100);
    assert!(pipeline.drain(PATIENCE).await.completed);
    // The others are not concerned.
    let mut others = texts(&seen);
    others.retain(|text| text != "slow");
    others.sort_unstable();
    assert_eq!(others, ["1", "2"]);
}

async fn a_server_that_is_short_of_memory_takes_no_items_and_says_so(
    server: &Server,
    queue: RabbitQueue,
) {
    // More than the pipeline asks for at one time.
    for text in [["bad"; 25].as_slice(), &["1", "2"]].concat() {
        queue.push(Item::new(text)).await.unwrap();
    }
    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]);
    let blocked = timeout(PATIENCE, async {
        loop {
            // The alarm begins a little later.
            match queue.push(Item::new("3")).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        }
    });
    let blocked = blocked.await.unwrap();
    assert!(matches!(blocked, RabbitError::Blocked), "{blocked:?}");
    // Items are handled meanwhile, although others have failed and cannot be added again.
    let (pipeline, seen) = keep(&queue, quick());
    let good = || texts(&seen).into_iter().filter(|text| text != "bad").collect::<Vec<_>>();
    until("they are handled", async || good().len() >= 2).await;
    assert_eq!(good()[..2], ["1", "2"]);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    assert_eq!((source_errors(&seen), source().given_up), (25, 0));
    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.9"]);
    until("an item is added", async || queue.push(Item::new("4")).await.is_ok()).await;
    until("it is handled", async || texts(&seen).contains(&"4".to_owned())).await;
    pipeline.drain(PATIENCE).await;
}

/// A queue whose items are known to be done when none has waited for a while: the server does not tell how
/// many are being handled.
const QUIET: usize = 50;

impl kills::Queue for RabbitQueue {
    type Broker = Self;

    async fn open(address: &str) -> Self {
        let (url, name) = address.rsplit_once('#').unwrap();
        let options = short().delivery_limit(1_000_000);
        Self::with(url, name, options).unwrap()
    }

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn push(&self, item: Item) {
        Self::push(self, item).await.unwrap();
    }

    async fn is_empty(&self) -> bool {
        for _ in 0..QUIET {
            if self.backlog().await.unwrap().items != Some(0) {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item() {
    if kills::inside::<RabbitQueue>().await {
        return;
    }
    let server = server!();
    let test = "a_process_that_is_killed_loses_no_item";
    let address = format!("{}#handling", server.url());
    kills::handling::<RabbitQueue>(test, &address, kills::Order::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed() {
    if kills::inside::<RabbitQueue>().await {
        return;
    }
    let server = server!();
    let test = "an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed";
    let address = format!("{}#pushing", server.url());
    kills::pushing::<RabbitQueue>(test, &address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_replayed_and_dropped() {
    let server = server!();
    let queue = queue(&server, "dead letters");
    let item = Item::new("bad").key("k").header("kind", "test").header("x-odd", "a\nb");
    for item in [item.clone(), Item::new("good"), Item::new("bad"), Item::new("bad")] {
        queue.push(item).await.unwrap();
    }
    let (pipeline, seen) = keep(&queue, quick());
    let dead_letters = async || queue.backlog().await.unwrap().dead_letters;
    until("three are given up", async || dead_letters().await == Some(3)).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(texts(&seen).iter().filter(|text| *text == "bad").count(), 9);

    // They are given back after each look.
    let dead = queue.dead_letters(None, 2).await.unwrap();
    assert_eq!(dead.len(), 2);
    let all = queue.dead_letters(None, 100).await.unwrap();
    assert_eq!(all.len(), 3);
    let first = all.iter().find(|dead| dead.item.key.is_some()).unwrap();
    assert_eq!((first.deliveries, &*first.reason), (3, "it is bad"));
    assert_eq!(first.item, item);
    assert!(first.enqueued_at.is_some() && first.enqueued_at <= first.given_up_at);
    let rest = queue.dead_letters(Some(&all[1].id), 100).await.unwrap();
    assert_eq!(rest.iter().map(|dead| &dead.id).collect::<Vec<_>>(), [&all[2].id]);
    assert!(queue.dead_letters(Some(&all[2].id), 100).await.unwrap().is_empty());
    // Behind one that was taken away, none would be missed.
    let missed = queue.dead_letters(Some("none"), 100).await.unwrap_err();
    assert!(matches!(missed, RabbitError::NotAmongDead { looked: 3, .. }), "{missed}");
    assert!(queue.dead_letters(Some(&all[0].id), 0).await.unwrap().is_empty());

    assert_eq!(queue.replay("none").await.unwrap(), None);
    assert!(queue.replay(&first.id).await.unwrap().is_some());
    assert_eq!(queue.replay(&first.id).await.unwrap(), None);
    let other = all.iter().find(|dead| dead.id != first.id).unwrap();
    assert!(queue.drop_dead_letter(&other.id).await.unwrap());
    assert!(!queue.drop_dead_letter(&other.id).await.unwrap());
    assert_eq!(queue.dead_letters(None, 100).await.unwrap().len(), 1);

    // What was replayed is delivered as a new item, and given up once more.
    let (pipeline, seen) = keep(&queue, quick());
    until("it is given up again", async || dead_letters().await == Some(2)).await;
    pipeline.drain(PATIENCE).await;
    let (_, metadata) = seen.lock()[0].clone();
    assert_eq!((metadata.key, metadata.deliveries), (item.key.clone(), 1));

    assert_eq!(queue.replay_all(|dead| dead.item.key.is_some()).await.unwrap(), 1);
    assert_eq!(queue.dead_letters(None, 100).await.unwrap().len(), 1);
}

/// Adds messages to a queue, and waits until the server has them.
async fn add(server: &Server, queue: &str, payloads: impl Iterator<Item = String>) {
    let (_connection, channel) = operator(server).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for payload in payloads {
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_message_id(payload.as_str().into());
        let sent =
            channel.basic_publish("".into(), queue.into(), options, payload.as_bytes(), properties);
        sent.await.unwrap();
    }
    channel.wait_for_confirms().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_dead_letters_is_among_the_dead_letters() {
    let server = server!();
    for kind in [RabbitQueueKind::Classic, RabbitQueueKind::Quorum] {
        let name = format!("rejected {kind:?}");
        let queue = RabbitQueue::with(&server.url(), &name, short().kind(kind)).unwrap();
        queue.push(Item::new("it").key("k")).await.unwrap();
        let (_connection, channel) = operator(&server).await;
        let got = channel.basic_get(name.into(), BasicGetOptions::default());
        let got = got.await.unwrap().expect("it is there");
        got.reject(BasicRejectOptions { requeue: false }).await.unwrap();
        until("it is moved", async || queue.backlog().await.unwrap().dead_letters == Some(1)).await;
        let dead = queue.dead_letters(None, 10).await.unwrap();
        let reason = "the server has given it up: rejected";
        assert_eq!((&dead[0].item, &*dead[0].reason), (&Item::new("it").key("k"), reason));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_replayed_although_another_program_drops_one_meanwhile() {
    let server = server!();
    let queue = queue(&server, "many dead");
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
    add(&server, "many dead.dead", (0..250).map(|n| n.to_string())).await;
    let other = queue.clone();
    let mut looked = 0;
    let replayed = queue.replay_all(|dead| {
        looked += 1;
        if looked == 100 {
            // Another page began behind it.
            let dropping = other.drop_dead_letter(&dead.id);
            block_in_place(|| Handle::current().block_on(dropping)).unwrap();
        }
        looked % 10 > 0
    });
    assert_eq!((replayed.await.unwrap(), looked), (225, 250));
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(225), Some(25)));
    let left = queue.dead_letters(None, 100).await.unwrap();
    let left: Vec<_> = left.iter().map(|dead| &*dead.item.payload).collect();
    assert_eq!((left[0], left[24]), (&b"9"[..], &b"249"[..]), "they are in their order");

    // When it stops, it says after how many.
    let mut looked = 0;
    let stopped = queue.replay_all(|_| {
        looked += 1;
        if looked == 3 {
            let deleting = async {
                let (_connection, channel) = operator(&server).await;
                let options = QueueDeleteOptions::default();
                channel.queue_delete("many dead".into(), options).await.unwrap();
            };
            block_in_place(|| Handle::current().block_on(deleting));
        }
        true
    });
    let stopped = stopped.await.unwrap_err();
    let is_missing = |error: &RabbitError| matches!(error, RabbitError::Unroutable);
    assert!(
        matches!(&stopped, RabbitError::Stopped { taken: 2, source } if is_missing(source)),
        "{stopped}"
    );
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(23));
    let odd = |dead: &DeadLetter<Arc<str>>| dead.item.payload.len() == 3;
    assert_eq!(queue.drop_all_dead_letters(odd).await.unwrap(), 15);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 8);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let server = server!();
    let queue = queue(&server, "dropped meanwhile");
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
async fn a_queue_that_is_not_there_is_not_opened_as_an_existing_one_and_not_made() {
    let server = server!();
    let open = async || RabbitQueue::open_existing(&server.url(), "existing", short()).await;
    for _ in 0..2 {
        let missing = open().await.unwrap_err();
        assert!(matches!(missing, RabbitError::UnknownQueue { .. }), "{missing}");
    }
    queue(&server, "existing").push(Item::new("1")).await.unwrap();
    let existing = open().await.unwrap();
    assert_eq!(existing.backlog().await.unwrap().items, Some(1));
    // One that goes is not made again.
    let (_connection, channel) = operator(&server).await;
    channel.queue_delete("existing".into(), QueueDeleteOptions::default()).await.unwrap();
    assert!(matches!(existing.push(Item::new("2")).await, Err(RabbitError::Unroutable)));
    let missing = open().await.unwrap_err().to_string();
    assert_eq!(missing, r#"there is no queue "existing" at the server"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_ten_thousand_dead_letters_are_no_page_and_no_end() {
    let server = server!();
    let queue = queue(&server, "very many dead");
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
    add(&server, "very many dead.dead", (0..10_050).map(|n| n.to_string())).await;
    let unknown = queue.dead_letters(Some("none"), 1).await.unwrap_err();
    assert!(matches!(unknown, RabbitError::NotAmongDead { looked: 10_000, .. }), "{unknown}");
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 10_050);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_other_programs_are_delivered_and_malformed_ones_are_given_up() {
    let server = server!();
    let queue = queue(&server, "others");
    queue.push(Item::new("first")).await.unwrap();
    publish(&server, "others", "payload only", None).await;
    let mut given = headers(&[("pipeline-key", "к".as_bytes()), ("bytes", b"\xff")]).unwrap();
    given.insert("n".into(), AMQPValue::LongInt(7));
    given.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
    publish(&server, "others", "with headers", Some(given)).await;
    publish(&server, "others", "odd key", headers(&[("pipeline-key", b"\xff")])).await;
    publish(&server, "others", "not valid", headers(&[("pipeline-item", b"[")])).await;
    queue.push(Item::new("last")).await.unwrap();
    let (pipeline, seen) = keep(&queue, quick());
    until("the others are handled", async || seen.lock().len() == 4).await;
    until("two are given up", async || reasons(&queue).await.len() == 2).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    assert_eq!(texts(&seen), ["first", "payload only", "with headers", "last"]);
    let seen = seen.lock().clone();
    assert_eq!(seen[2].1.key.as_deref(), Some("к"));
    assert_eq!(seen[2].1.headers, [("n".into(), "7".into())]);
    assert!(seen.iter().all(|(_, metadata)| metadata.id.as_ref().is_some_and(|id| !id.is_empty())));
    let mut why = reasons(&queue).await;
    why.sort_unstable();
    assert_eq!(
        why[0],
        "the header pipeline-item is not valid: EOF while parsing a list at line 1 column 1"
    );
    assert_eq!(why[1], "the header pipeline-key is not text");
}

/// A program that writes the frames of AMQP itself, so that they may have anything in them.
struct Raw(TcpStream);

impl Raw {
    async fn connect(server: &Server) -> Self {
        let url = server.url();
        let address = url.split(['@', '/']).find(|part| part.starts_with("127.0.0.1")).unwrap();
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        raw.until([0, 10, 0, 10]).await;
        let login = b"\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0guest\x05en_US";
        raw.method(0, [0, 10, 0, 11], login).await;
        let tune = raw.until([0, 10, 0, 30]).await;
        // Without heartbeats.
        raw.method(0, [0, 10, 0, 31], &[&tune[..6], &[0, 0]].concat()).await;
        raw.method(0, [0, 10, 0, 40], b"\x01/\0\0").await;
        raw.until([0, 10, 0, 41]).await;
        raw.method(1, [0, 20, 0, 10], b"\0").await;
        raw.until([0, 20, 0, 11]).await;
        raw.method(1, [0, 85, 0, 10], b"\0").await;
        raw.until([0, 85, 0, 11]).await;
        raw
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let frame = [&[kind, 0, channel], &*long(payload), &[0xce]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    async fn method(&mut self, channel: u8, method: [u8; 4], arguments: &[u8]) {
        self.frame(1, channel, &[&method, arguments].concat()).await;
    }

    /// Waits for this method of the server, and returns its arguments.
    async fn until(&mut self, method: [u8; 4]) -> Vec<u8> {
        let read = async {
            loop {
                let mut head = [0; 7];
                self.0.read_exact(&mut head).await.unwrap();
                let size = u32::from_be_bytes(head[3..].try_into().unwrap());
                let mut payload = vec![0; usize::try_from(size).unwrap() + 1];
                self.0.read_exact(&mut payload).await.unwrap();
                if head[0] == 1 && payload.starts_with(&method) {
                    return payload[4..].to_vec();
                }
            }
        };
        timeout(PATIENCE, read).await.unwrap()
    }

    /// Adds a message with these properties, of which the flags come first, and waits until it is confirmed.
    async fn publish(&mut self, to: (&str, &[u8]), properties: &[u8], payload: &str) {
        let names = [&[0, 0], &*short_text(to.0.as_bytes()), &short_text(to.1), &[0]].concat();
        self.method(1, PUBLISH, &names).await;
        let size = u64::try_from(payload.len()).unwrap().to_be_bytes();
        self.frame(2, 1, &[&[0, 60, 0, 0], &size[..], properties].concat()).await;
        self.frame(3, 1, payload.as_bytes()).await;
        self.until([0, 60, 0, 80]).await;
    }
}

fn short_text(of: &[u8]) -> Vec<u8> {
    [&[u8::try_from(of.len()).unwrap()], of].concat()
}

fn long(of: &[u8]) -> Vec<u8> {
    [&u32::try_from(of.len()).unwrap().to_be_bytes(), of].concat()
}

/// The properties of a message, of which only the headers are there.
fn only_headers(table: &[u8]) -> Vec<u8> {
    [&[0x20, 0], &*long(table)].concat()
}

/// The properties of a message in whose headers tables are in each other.
fn nested(levels: u32) -> Vec<u8> {
    let sizes = (0..levels).rev().map(|inner| (inner * 7).to_be_bytes());
    only_headers(&sizes.flat_map(|size| [b"\x01aF", &size[..]].concat()).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_whose_headers_cannot_be_read_are_given_up_and_stop_nothing() {
    const NAME: &str = "hostile headers";
    const NESTED: &str = "its headers are nested deeper than 32 tables";
    let server = server!();
    let queue = queue(&server, NAME);
    queue.push(Item::new("first")).await.unwrap();
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&server.url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (fanout, none) = ("amq.fanout".into(), FieldTable::default());
    channel.queue_bind(NAME.into(), fanout, "".into(), Default::default(), none).await.unwrap();
    let mut raw = Raw::connect(&server).await;
    let odd_id = [&[0, 0x80], &*short_text(b"\xff")].concat();
    let odd_name = only_headers(b"\x01\xffV");
    let messages = [
        ("500 levels", nested(500), NESTED),
        ("18,000 levels", nested(18_000), NESTED),
        ("an odd name", odd_name.clone(), "the name of one of its headers is not UTF-8"),
        ("an odd id", odd_id, "its property message-id is not UTF-8"),
    ];
    for (payload, properties, _) in &messages {
        raw.publish(("", NAME.as_bytes()), properties, payload).await;
    }
    // What it was routed by is no part of an item.
    raw.publish(("amq.fanout", b"\xff"), &nested(32), "an odd routing key").await;
    queue.push(Item::new("last")).await.unwrap();
    let (pipeline, seen) = keep(&queue, quick());
    until("the others are handled", async || seen.lock().len() == 3).await;
    until("four are given up", async || reasons(&queue).await.len() == 4).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    assert_eq!(texts(&seen), ["first", "an odd routing key", "last"]);
    let dead = queue.dead_letters(None, 100).await.unwrap();
    for (payload, _, reason) in &messages {
        let dead = dead.iter().find(|dead| dead.item.payload == *payload).unwrap();
        assert_eq!((&*dead.reason, dead.deliveries), (*reason, 1));
    }
    // One that the server itself has moved there is as it was published.
    let dead_name = format!("{NAME}.dead");
    raw.publish(("", dead_name.as_bytes()), &odd_name, "moved").await;
    let dead = queue.dead_letters(None, 100).await.unwrap();
    let moved = dead.iter().find(|dead| dead.item.payload == "moved").unwrap();
    assert_eq!(&*moved.reason, "the name of one of its headers is not UTF-8");
    assert!(queue.replay(&moved.id).await.unwrap().is_some());
    assert_eq!(queue.replay_all(|dead| dead.reason.starts_with(NESTED)).await.unwrap(), 2);
    // They are items without headers then.
    let (pipeline, seen) = keep(&queue, quick());
    until("they are handled", async || seen.lock().len() == 3).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    let mut handled = texts(&seen);
    handled.sort_unstable();
    assert_eq!(handled, ["18,000 levels", "500 levels", "moved"]);
    assert_eq!(queue.dead_letters(None, 100).await.unwrap().len(), 2);
    equal_dead_letters_are_listed_and_replayed(&queue, raw, &odd_name).await;
}

/// The server itself moves messages that are alike, among others.
async fn equal_dead_letters_are_listed_and_replayed(
    queue: &RabbitQueue,
    mut raw: Raw,
    unreadable: &[u8],
) {
    let dead_name = format!("{}.dead", queue.name());
    let without_an_id: &[u8] = &[0, 0];
    let moved = ["twin", "nameless", "twin", "other", "nameless", "twin"];
    for payload in moved {
        let properties = if payload == "nameless" { without_an_id } else { unreadable };
        raw.publish(("", dead_name.as_bytes()), properties, payload).await;
    }
    let mut listed: Vec<DeadLetter<Arc<str>>> = Vec::new();
    loop {
        let after = listed.last().map(|dead| &*dead.id);
        let page = queue.dead_letters(after, 1).await.unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page);
        assert!(listed.len() < 20, "there is no end");
    }
    let before = listed.len() - moved.len();
    assert!(listed[before..].iter().map(|dead| &dead.item.payload).eq(moved));
    let ids: HashSet<_> = listed.iter().map(|dead| &dead.id).collect();
    assert_eq!(ids.len(), listed.len());
    assert!(queue.drop_dead_letter(&listed[before + 5].id).await.unwrap(), "the last twin");
    let all = queue.replay_all(|dead| dead.item.payload != "other" && dead.deliveries == 0).await;
    assert_eq!(all.unwrap(), 4);
    assert_eq!(queue.backlog().await.unwrap().items, Some(4));
    let left = queue.dead_letters(None, 100).await.unwrap();
    assert_eq!((left.len(), &*left[before].item.payload), (before + 1, &b"other"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_without_a_time_is_as_old_as_its_first_delivery() {
    let server = server!();
    let queue = queue(&server, "timeless");
    queue.backlog().await.unwrap();
    publish(&server, "timeless", "7", None).await;
    let seen = Arc::<Mutex<Vec<Metadata>>>::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        log.lock().push(message.metadata().clone());
        Err::<(), _>(Failure::new("its user is away").later(Duration::from_millis(300)))
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    // It is postponed more often than it may fail.
    until("it has come again and again", async || seen.lock().len() == 6).await;
    drop(pipeline);
    let added = |metadata: &Metadata| {
        let added = metadata.enqueued_at.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        added.as_secs()
    };
    let seen = seen.lock();
    let first = added(&seen[0]);
    assert!(seen.iter().all(|metadata| added(metadata) == first), "{seen:?}");
    assert!(seen.iter().all(|metadata| metadata.deliveries == 1), "{seen:?}");
    assert!(seen[0].enqueued_at.unwrap().elapsed().unwrap().as_secs() >= 1, "{seen:?}");
}

/// Headers of 110 KB, which the server takes, and in which there is no space for more.
fn large_headers() -> Option<FieldTable> {
    let value = "x".repeat(10_000);
    let mut large = headers(&[("pipeline-key", b"k"), ("kind", b"order")]).unwrap();
    let mut table = FieldTable::default();
    for n in 0..5 {
        large.insert(format!("h{n}").into(), AMQPValue::LongString(value.clone().into()));
        table.insert(format!("t{n}").into(), AMQPValue::LongString(value.clone().into()));
    }
    large.insert("one".into(), AMQPValue::LongString(value.into()));
    large.insert("table".into(), AMQPValue::FieldTable(table));
    Some(large)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_with_large_headers_is_given_up_alone() {
    const GOOD: usize = 200;
    let server = server!();
    let queue = queue(&server, "large headers");
    queue.push(Item::new("0")).await.unwrap();
    // One is given up at once, and the other has to be delivered again first.
    for text in ["hopeless", "bad"] {
        publish(&server, "large headers", text, large_headers()).await;
    }
    for n in 1..GOOD {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let seen = Seen::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text.clone(), message.metadata().clone()));
        match &*text {
            "hopeless" => Err(Failure::new("it is hopeless").give_up()),
            "bad" => Err(Failure::new("it is bad")),
            _ => Ok(()),
        }
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(4).max_demand(20))
        .start()
        .unwrap();
    until("all are handled", async || seen.lock().len() >= GOOD + 2).await;
    until("two are given up", async || reasons(&queue).await.len() == 2).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    let mut handled = texts(&seen);
    handled.sort_by_key(|text| text.parse::<usize>().ok());
    let good = (0..GOOD).map(|n| n.to_string());
    assert!(handled[2..].iter().cloned().eq(good), "{handled:?}");
    let dead = queue.dead_letters(None, 10).await.unwrap();
    let of = |text: &str| dead.iter().find(|dead| dead.item.payload == text).unwrap();
    let expected = "it is hopeless (1 of its headers did not fit)";
    assert_eq!(&*of("hopeless").reason, expected);
    assert!(of("bad").reason.contains("cannot be added again: headers of"), "{dead:?}");
    for dead in &dead {
        assert_eq!(dead.item.key.as_deref(), Some("k"));
        assert_eq!(dead.item.headers.get("kind").map(|kind| &**kind), Some("order"));
    }
    assert_eq!(queue.backlog().await.unwrap().items, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_items_and_keeps_those_that_it_has() {
    let server = server!();
    let options = short().max_items(10);
    let refusals = common::Refusals::default();
    let queue = RabbitQueue::with(&server.url(), "full", options).unwrap();
    let queue = queue.telemetry(&Telemetry::with_recorder(refusals.clone()));
    let mut pushed = Vec::new();
    let refused = loop {
        let text = pushed.len().to_string();
        match queue.push(Item::new(text.clone())).await {
            Ok(_) => pushed.push(text),
            Err(error) => break error,
        }
        assert!(pushed.len() < 50, "it is never full");
    };
    assert!(matches!(refused, RabbitError::Refused), "{refused:?}");
    assert_eq!(refusals.counted("rabbitmq", "full", "full"), 1);
    assert_eq!(refusals.counted("rabbitmq", "full", "failed"), 0);
    let (pipeline, seen) = keep(&queue, quick());
    until("all are handled", async || seen.lock().len() == pushed.len()).await;
    until("there is space", async || queue.push(Item::new("space")).await.is_ok()).await;
    until("it is handled", async || texts(&seen).contains(&"space".to_owned())).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(texts(&seen)[..pushed.len()], pushed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_to_a_full_queue_is_neither_lost_nor_refused() {
    let server = server!();
    for kind in [RabbitQueueKind::Quorum, RabbitQueueKind::Classic] {
        let name = format!("full{kind:?}");
        let options = short().kind(kind).max_items(3);
        let queue = RabbitQueue::with(&server.url(), &name, options).unwrap();
        queue.push(Item::new("again")).await.unwrap();
        let (mut fetch, settle) = queue.connect().await.unwrap();
        let taken = fetch.fetch(1).await.unwrap();
        assert_eq!(taken[0].item.payload, "again");
        // It is filled while the item is in work.
        for text in ["1", "2", "3"] {
            queue.push(Item::new(text)).await.unwrap();
        }
        let refused = queue.push(Item::new("too many")).await;
        assert!(matches!(refused, Err(RabbitError::Refused)), "{refused:?}");
        let outcome = Outcome::Retry { after: Duration::from_millis(100), failures: 1 };
        let receipt = taken[0].receipt.clone();
        assert!(settle.settle(&[Settlement { receipt, outcome }]).await.unwrap().is_empty());
        drop((fetch, settle));
        let items = async || queue.backlog().await.unwrap().items;
        until("it comes back in its time", async || items().await == Some(4)).await;
        let refused = queue.push(Item::new("too many")).await;
        assert!(matches!(refused, Err(RabbitError::Refused)), "{refused:?}");
        // No time ends the queue in which it has waited.
        let listed = server.rabbitmqctl(&["-q", "list_queues", "name", "arguments"]);
        let waited: Vec<_> =
            listed.lines().filter(|line| line.starts_with(&format!("{name}.later."))).collect();
        assert_eq!(waited.len(), 1, "{listed}");
        assert!(!waited[0].contains("x-expires"), "{waited:?}");
        let (pipeline, seen) = keep(&queue, quick());
        until("all are handled", async || seen.lock().len() == 4).await;
        pipeline.drain(PATIENCE).await;
        let mut handled = texts(&seen);
        handled.sort_unstable();
        assert_eq!(handled, ["1", "2", "3", "again"]);
        assert_eq!(items().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_push_at_the_same_time_add_no_more_than_there_are_places() {
    let server = server!();
    let queue = RabbitQueue::with(&server.url(), "places", patient().max_items(20)).unwrap();
    let pushing = (0..60).map(|n| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.push(Item::new(n.to_string())).await })
    });
    let mut added = 0;
    for task in pushing.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(_) => added += 1,
            Err(error) => assert!(matches!(error, RabbitError::Refused), "{error:?}"),
        }
    }
    assert!((1..=20).contains(&added), "{added} were added");
    assert_eq!(queue.backlog().await.unwrap().items, Some(added));
    // All places can be taken, and a deleted queue has all of them.
    while queue.push(Item::new("more")).await.is_ok() {
        assert!(queue.backlog().await.unwrap().items <= Some(20));
    }
    assert_eq!(queue.backlog().await.unwrap().items, Some(20));
    let (connection, channel) = operator(&server).await;
    channel.queue_delete("places".into(), QueueDeleteOptions::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    queue.push(Item::new("the first")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_queue_with_a_limit_at_the_server_is_not_used_as_one_that_loses_nothing() {
    let server = server!();
    let (connection, channel) = operator(&server).await;
    for kind in ["classic", "quorum"] {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let name = format!("limited {kind}");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text(kind));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments.insert("x-dead-letter-exchange".into(), text(&format!("{name}.dead")));
        arguments.insert("x-dead-letter-routing-key".into(), text(&name));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(10));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
    let with = |name, options| RabbitQueue::with(&server.url(), name, options).unwrap();
    let classic = || short().kind(RabbitQueueKind::Classic);
    let refused = with("limited classic", classic().max_items(10)).push(Item::new("1")).await;
    assert!(matches!(refused, Err(RabbitError::HasLimit { .. })), "{refused:?}");
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("leave out max_items"), "{error}");
    // It is used as it is without the option, and what a quorum queue refuses is kept.
    with("limited classic", classic()).push(Item::new("1")).await.unwrap();
    with("limited quorum", short().max_items(10)).push(Item::new("1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_costs_nothing_until_it_is_asked_for() {
    const ITEMS: usize = 5000;
    let server = server!();
    let queue = queue(&server, "backlog");
    // Pushes are under way together.
    let pushing = (0..50).map(|task| {
        let queue = queue.clone();
        tokio::spawn(async move {
            for n in 0..ITEMS / 50 {
                queue.push(Item::new(format!("{task} {n}"))).await.unwrap();
            }
        })
    });
    for task in pushing.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let items = async || usize::try_from(queue.backlog().await.unwrap().items.unwrap()).unwrap();
    assert_eq!(items().await, ITEMS);
    let (broker, faults) = Faulty::new(queue.clone());
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handle = async move |_: &mut Message<Item>| {
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(Source::new(broker, quick()))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(10))
        .start()
        .unwrap();
    until("it fetches what is asked for", async || faults.fetched() == 10).await;
    // The server has delivered no more than that.
    assert_eq!(items().await, ITEMS - 10);
    opened.add_permits(500);
    until("it fetches on", async || faults.fetched() == 510).await;
    // It has no more ahead than are in work.
    until("they are acknowledged", async || items().await <= ITEMS - 510).await;
    sleep(Duration::from_millis(300)).await;
    assert!(items().await >= ITEMS - 520, "{}", items().await);
    opened.add_permits(ITEMS);
    pipeline.drain(PATIENCE).await;
}

/// The names of the consumers of a queue. Those that are cancelled are not among them.
fn consumers(server: &Server, queue: &str) -> Vec<String> {
    let listed = server.rabbitmqctl(&["-q", "list_consumers", "queue_name", "consumer_tag"]);
    let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
    pairs.filter(|(of, _)| *of == queue).map(|(_, tag)| tag.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_stays_open_over_many_fetches_and_keeps_the_order() {
    const ITEMS: usize = 400;
    let server = server!();
    for kind in [RabbitQueueKind::Quorum, RabbitQueueKind::Classic] {
        let name = format!("open{kind:?}");
        let queue = RabbitQueue::with(&server.url(), &name, patient().kind(kind)).unwrap();
        for n in 0..ITEMS {
            queue.push(Item::new(n.to_string())).await.unwrap();
        }
        let seen = Seen::default();
        let log = seen.clone();
        let handle = async move |message: &mut Message<Item>| {
            let text = String::from_utf8(message.payload.to_vec())?;
            log.lock().push((text, message.metadata().clone()));
            Ok(())
        };
        let (broker, faults) = Faulty::new(queue.clone());
        let pipeline = Pipeline::of_messages("test")
            // There are a hundred fetches at least.
            .source(Source::new(broker, quick().fetch_at_once(4)))
            .processors(Processors::from_fn(handle).concurrency(1).max_demand(20))
            .start()
            .unwrap();
        let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
        until("all are done", async || source().done == ITEMS as u64).await;
        assert_eq!(faults.fetched(), ITEMS, "none was delivered twice");
        let tags = consumers(&server, &name);
        assert_eq!(tags.len(), 1, "{tags:?}");
        let opened = tags[0].strip_prefix("pipeline-").unwrap();
        // A part of the demand may come before the first is opened, and the rest after it.
        assert!(opened.parse::<u32>().unwrap() <= 3, "{opened} consumers were opened");
        assert!(texts(&seen).iter().cloned().eq((0..ITEMS).map(|n| n.to_string())));
        assert!(pipeline.drain(PATIENCE).await.is_clean());
        until("it has no consumer", async || consumers(&server, &name).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_has_no_more_items_than_its_largest_prefetch() {
    const ITEMS: usize = 100;
    let server = server!();
    let options = short().max_prefetch(10);
    let queue = RabbitQueue::with(&server.url(), "ten at most", options).unwrap();
    for number in 0..ITEMS {
        queue.push(Item::new(number.to_string())).await.unwrap();
    }
    let gate = Arc::new(Semaphore::new(0));
    let (opened, done) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let count = done.clone();
    let handle = async move |_: &mut Message<Item>| {
        gate.acquire().await?.forget();
        count.fetch_add(1, SeqCst);
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(50).max_demand(1))
        .start()
        .unwrap();
    let waiting = async || usize::try_from(queue.backlog().await.unwrap().items.unwrap()).unwrap();
    for finished in [0, 15, 40] {
        opened.add_permits(finished - done.load(SeqCst));
        until("they are done", async || done.load(SeqCst) == finished).await;
        until("it takes what it may", async || waiting().await == ITEMS - 10 - finished).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(waiting().await, ITEMS - 10 - finished);
    }
    opened.add_permits(ITEMS);
    until("all are done", async || done.load(SeqCst) == ITEMS).await;
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_given_back_is_not_done_with_those_behind_it() {
    const ITEMS: usize = 60;
    let server = server!();
    for kind in [RabbitQueueKind::Quorum, RabbitQueueKind::Classic] {
        let options = short().kind(kind);
        let queue = RabbitQueue::with(&server.url(), &format!("back.{kind:?}"), options).unwrap();
        let (mut fetch, settle) = queue.connect().await.unwrap();
        for number in 0..ITEMS {
            queue.push(Item::new(number.to_string())).await.unwrap();
        }
        let mut take = async |count: usize| {
            let mut taken = Vec::new();
            while taken.len() < count {
                let fetched = timeout(PATIENCE, fetch.fetch(count - taken.len())).await.unwrap();
                taken.extend(fetched.unwrap());
            }
            taken
        };
        // The first and every third of them is given back, in the same call as the others are done.
        let taken = take(ITEMS).await;
        let is_back = |at: usize| at.is_multiple_of(3);
        let outcomes: Vec<_> = taken
            .iter()
            .enumerate()
            .map(|(at, delivery)| {
                let back = Outcome::Release { after: Duration::ZERO };
                let outcome = if is_back(at) { back } else { Outcome::Done };
                Settlement { receipt: delivery.receipt.clone(), outcome }
            })
            .collect();
        // Two calls at once, as a source makes when it stops.
        let (front, rear) = outcomes.split_at(ITEMS / 2);
        let (front, rear) = tokio::join!(settle.settle(rear), settle.settle(front));
        assert!(front.unwrap().is_empty() && rear.unwrap().is_empty());
        let text =
            |delivery: &Delivery<_>| String::from_utf8(delivery.item.payload.to_vec()).unwrap();
        let again: HashSet<String> = take(ITEMS / 3).await.iter().map(text).collect();
        let expected: HashSet<_> = taken
            .iter()
            .enumerate()
            .filter(|(at, _)| is_back(*at))
            .map(|(_, it)| text(it))
            .collect();
        assert_eq!(again, expected);
        assert!(timeout(Duration::from_millis(300), fetch.fetch(1)).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_back_at_once_what_was_taken_ahead() {
    const ITEMS: usize = 60;
    let server = server!();
    let (mut kinds, mut attempt) = (vec![RabbitQueueKind::Quorum, RabbitQueueKind::Classic], 0);
    while let Some(kind) = kinds.pop() {
        attempt += 1;
        let name = format!("ahead{attempt}");
        let queue = RabbitQueue::with(&server.url(), &name, patient().kind(kind)).unwrap();
        for n in 0..ITEMS {
            queue.push(Item::new(n.to_string())).await.unwrap();
        }
        let items =
            async || usize::try_from(queue.backlog().await.unwrap().items.unwrap()).unwrap();
        let (broker, faults) = Faulty::new(queue.clone());
        let (gate, handled) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opened, count) = (gate.clone(), handled.clone());
        let handle = async move |_: &mut Message<Item>| {
            gate.acquire().await?.forget();
            count.fetch_add(1, SeqCst);
            Ok(())
        };
        let pipeline = Pipeline::of_messages("test")
            // Each fetch is for one, so that items are done one by one.
            .source(Source::new(broker, quick().fetch_at_once(1)))
            .processors(Processors::from_fn(handle).concurrency(1).max_demand(10).min_demand(1))
            .start()
            .unwrap();
        until("it fetches what is asked for", async || faults.fetched() == 10).await;
        // No more are asked for before most of them are done.
        opened.add_permits(5);
        let some_more = async {
            while items().await >= ITEMS - 10 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(Duration::from_secs(5), some_more).await.is_err() && attempt < 6 {
            // On a busy machine the processor may get several together, which are done together too.
            opened.add_permits(2 * ITEMS);
            pipeline.drain(PATIENCE).await;
            kinds.push(kind);
            continue;
        }
        assert_eq!(faults.fetched(), 10);
        let mut pipeline = pipeline;
        pipeline.begin_drain(PATIENCE);
        // Those that were asked for are handled.
        until("the others are given back", async || items().await == ITEMS - 10).await;
        until("it has no consumer", async || consumers(&server, &name).is_empty()).await;
        assert_eq!(handled.load(SeqCst), 5);
        opened.add_permits(ITEMS);
        assert!(pipeline.join().await.completed);
        assert_eq!(handled.load(SeqCst), 10);
        let (pipeline, seen) = keep(&queue, quick());
        until("the others are handled", async || seen.lock().len() >= ITEMS - 10).await;
        pipeline.drain(PATIENCE).await;
        assert_eq!(seen.lock().len(), ITEMS - 10, "none is handled twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_takes_no_more_ahead_than_it_has_in_work() {
    const ITEMS: usize = 200;
    const ASKED: usize = 40;
    let server = server!();
    for kind in [RabbitQueueKind::Quorum, RabbitQueueKind::Classic] {
        let name = format!("prefetch{kind:?}");
        let queue = RabbitQueue::with(&server.url(), &name, patient().kind(kind)).unwrap();
        for n in 0..ITEMS {
            queue.push(Item::new(n.to_string())).await.unwrap();
        }
        let (broker, faults) = Faulty::new(queue.clone());
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let handle = async move |_: &mut Message<Item>| {
            gate.acquire().await?.forget();
            Ok(())
        };
        let pipeline = Pipeline::of_messages("test")
            .source(Source::new(broker, quick().fetch_at_once(6)))
            .processors(Processors::from_fn(handle).concurrency(4).max_demand(ASKED / 4))
            .start()
            .unwrap();
        // None of them is done. The source asks for all of them at once, although each fetch is for a few.
        until("all that is asked for is fetched", async || faults.fetched() == ASKED).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(faults.fetched(), ASKED);
        let items = queue.backlog().await.unwrap().items.unwrap();
        // A part of the demand may come before the first consumer is opened, and the rest after it.
        assert!(items >= (ITEMS - ASKED - ASKED / 4) as u64, "{items}");
        // One that is too small may be cancelled already.
        let tags = consumers(&server, &name);
        assert!(tags.len() <= 1, "{tags:?}");
        opened.add_permits(ITEMS);
        until("all are fetched", async || faults.fetched() >= ITEMS).await;
        assert!(pipeline.drain(PATIENCE).await.is_clean());
        until("it has no consumer", async || consumers(&server, &name).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_without_an_outcome_take_no_more_memory_than_they_may() {
    const ITEMS: usize = 40;
    let server = server!();
    let queue = queue(&server, "memory");
    for _ in 0..ITEMS {
        queue.push(Item::new(vec![b'x'; 10_000])).await.unwrap();
    }
    let (broker, faults) = Faulty::new(queue.clone());
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handle = async move |_: &mut Message<Item>| {
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        // Three items and what a fetch brings.
        .source(Source::new(broker, quick().fetch_at_once(2).max_unsettled_bytes(25_000)))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(ITEMS))
        .start()
        .unwrap();
    until("it fetches what it may hold", async || faults.fetched() == 4).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(faults.fetched(), 4);
    opened.add_permits(ITEMS);
    until("all are fetched", async || faults.fetched() == ITEMS).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_delay_waits_for_no_longer_one_and_all_arrive() {
    let server = server!();
    let queue = queue(&server, "delays");
    let begun = Instant::now();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let ms = String::from_utf8(message.payload.to_vec())?.parse::<u64>()?;
        if message.metadata().deliveries == 1 {
            return Err(Failure::new("later").retry_after(Duration::from_millis(ms)));
        }
        log.lock().push((ms, begun.elapsed()));
        Ok(())
    };
    let delays = [20_000, 1500, 500, 100, 10];
    for ms in delays {
        queue.push(Item::new(ms.to_string())).await.unwrap();
    }
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("the shorter ones arrive", async || seen.lock().len() >= 4).await;
    pipeline.drain(PATIENCE).await;
    let seen = seen.lock();
    let arrived: HashSet<_> = seen.iter().map(|(ms, _)| *ms).collect();
    assert_eq!(arrived, HashSet::from([10, 100, 500, 1500]));
    assert!(seen.iter().all(|(ms, after)| *after >= Duration::from_millis(*ms)), "{seen:?}");
}

#[tokio::test]
async fn odd_names_and_addresses_are_refused() {
    let long = "n".repeat(201);
    for (address, name) in [
        ("http://localhost", "a"),
        ("amqp://localhost", ""),
        ("amqp://localhost", "amq.a"),
        ("amqp://localhost", &long),
    ] {
        assert!(RabbitQueue::new(address, name).is_err(), "{address} {name}");
    }
    RabbitQueue::new("amqp://localhost", "orders").unwrap();
}

#[test]
fn a_password_is_neither_shown_nor_in_an_error() {
    let queue = RabbitQueue::new("amqp://user:hidden@localhost", "orders").unwrap();
    let source = queue.source(SourceOptions::new());
    let error = RabbitQueue::new("amqp:user:hidden@localhost", "orders").unwrap_err();
    for shown in [format!("{queue:?}"), format!("{source:?}"), format!("{error} {error:?}")] {
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

/// A relay between a queue and its server. It keeps back what the server says on a connection on which a message
/// was added after the test has asked for it.
struct Relay {
    address: String,
    /// Whether it keeps back, and how many connections it keeps something back on.
    holding: watch::Sender<bool>,
    held: Arc<AtomicUsize>,
    /// Whether it passes on what the server says at [`SLOW`].
    is_slow: Arc<AtomicBool>,
    /// Whether it keeps back what clients say.
    is_mute: Arc<AtomicBool>,
    /// Says that the connections are cut.
    cutting: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// How many bytes a slow way has in a millisecond.
const SLOW: u64 = 3000;

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What begins the method of a message that is added: its class and its number.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];

impl Relay {
    async fn start(server: &Server) -> Self {
        let url = server.url();
        let (before, to) = url.rsplit_once("127.0.0.1:").unwrap();
        let to = format!("127.0.0.1:{to}");
        let to = to.split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("{before}{}/%2f?heartbeat=600", listener.local_addr().unwrap());
        let (holding, _) = watch::channel(false);
        let (cutting, _) = watch::channel(());
        let held = Arc::<AtomicUsize>::default();
        let is_slow = Arc::<AtomicBool>::default();
        let (watched, count, cuts) = (holding.clone(), held.clone(), cutting.clone());
        let is_mute = Arc::<AtomicBool>::default();
        let (slow, mute) = (is_slow.clone(), is_mute.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (watched, count, to) = (watched.clone(), count.clone(), to.clone());
                let (slow, mute) = (slow.clone(), mute.clone());
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let server = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        () = relay(client, server, &watched, &count, [&slow, &mute]) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, holding, held, is_slow, is_mute, cutting, task }
    }

    /// Ends all connections that there are.
    fn cut(&self) {
        self.cutting.send_replace(());
    }
}

async fn relay(
    client: TcpStream,
    server: TcpStream,
    holding: &watch::Sender<bool>,
    count: &AtomicUsize,
    [slow, mute]: [&AtomicBool; 2],
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (holds, mut is_held) = watch::channel(false);
    let up = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
            let adds = bytes[..read].windows(4).any(|four| four == PUBLISH);
            if adds && *holding.borrow() && !holds.send_replace(true) {
                count.fetch_add(1, SeqCst);
            }
            while mute.load(SeqCst) {
                sleep(Duration::from_millis(5)).await;
            }
            if to_server.write_all(&bytes[..read]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
            if *is_held.borrow_and_update() {
                let _ = holding.subscribe().wait_for(|holding| !holding).await;
            }
            if slow.load(SeqCst) {
                sleep(Duration::from_millis(read as u64 / SLOW)).await;
            }
            if to_client.write_all(&bytes[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_retry_is_confirmed_late_is_added_again_once() {
    let server = server!();
    let relay = Relay::start(&server).await;
    let queue = RabbitQueue::with(&relay.address, "late", short()).unwrap();
    let direct = self::queue(&server, "late");
    direct.push(Item::new("1")).await.unwrap();
    direct.push(Item::new("bad")).await.unwrap();
    relay.holding.send_replace(true);
    let (pipeline, seen) = keep(&queue, quick().max_deliveries(2));
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("the confirmation does not come", async || relay.held.load(SeqCst) > 0).await;
    until("the outcome is not stored in time", async || source().set_aside == 1).await;
    // It is tried again, more than once.
    sleep(Duration::from_secs(7)).await;
    relay.holding.send_replace(false);
    until("it is given up", async || source().given_up > 0).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
    assert_eq!(source_errors(&seen), 2, "it was delivered once and once again");
    assert_eq!(reasons(&direct).await, ["it is bad"]);
    let backlog = direct.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(0), Some(1)));
}

/// How often the bad item was handled.
fn source_errors(seen: &Seen) -> usize {
    texts(seen).iter().filter(|text| *text == "bad").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_calls_share_a_connection() {
    let server = server!();
    // The server closes the channels on which it is asked for what is missing yet. It allows 2047 at a time.
    let queue = queue(&server, "channels");
    for _ in 0..2100 {
        assert_eq!(queue.backlog().await.unwrap().items, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_counted_again_when_a_missing_queue_is_back() {
    let server = server!();
    let queue = queue(&server, "counted");
    queue.push(Item::new("1")).await.unwrap();
    let (pipeline, _) = keep(&queue, quick());
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("it is counted", async || source().dead_letters == Some(0)).await;
    let (url, properties) = (server.url(), ConnectionProperties::default());
    let operator = Connection::connect(&url, properties).await.unwrap();
    let channel = operator.create_channel().await.unwrap();
    let dead = "counted.dead";
    channel.queue_delete(dead.into(), QueueDeleteOptions::default()).await.unwrap();
    until("it is not known", async || source().dead_letters.is_none()).await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(dead.into(), options, FieldTable::default()).await.unwrap();
    until("it is counted again", async || source().dead_letters == Some(0)).await;
    assert_eq!(source().connection_errors, 0, "it is the same session");
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_may_have_no_end() {
    let server = server!();
    let never = Duration::MAX;
    let options = RabbitOptions::new().timeout(never).consumer_timeout(never);
    let queue = RabbitQueue::with(&server.url(), "never", options).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let (pipeline, seen) = keep(&queue, quick().call_timeout(never));
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("it is handled", async || texts(&seen) == ["1"]).await;
    until("it is done", async || source().done == 1).await;
    assert_eq!((source().connection_errors, source().last_error), (0, None));
    assert!(pipeline.drain(PATIENCE).await.completed);
}

/// An operator with a connection of its own.
async fn operator(server: &Server) -> (Connection, Channel) {
    let (url, properties) = (server.url(), ConnectionProperties::default());
    let connection = Connection::connect(&url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Starts a pipeline that keeps one item in work for each permit it lacks, and asks for no other.
fn hold(queue: &RabbitQueue) -> (Pipeline, Seen, Arc<Semaphore>) {
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (seen.clone(), gate.clone());
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text, message.metadata().clone()));
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1).max_demand(1))
        .start()
        .unwrap();
    (pipeline, seen, opened)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_the_server_cancels_is_noticed_at_once_and_opened_again() {
    let server = server!();
    let (_operator, channel) = operator(&server).await;
    let queue = queue(&server, "cancelled");
    queue.push(Item::new("1")).await.unwrap();
    let (pipeline, seen, gate) = hold(&queue);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    let delete = async || {
        channel.queue_delete("cancelled".into(), QueueDeleteOptions::default()).await.unwrap();
    };
    until("it is in work", async || texts(&seen) == ["1"]).await;
    // Nothing is asked for now.
    delete().await;
    until("it is noticed", async || source().connection_errors == 1).await;
    let error = source().last_error.unwrap_or_default();
    assert!(error.contains("the server cancelled the consumer"), "{error}");
    assert_eq!(texts(&seen), ["1"]);
    until("it is connected again", async || source().connected).await;
    gate.add_permits(1);
    queue.push(Item::new("2")).await.unwrap();
    until("the next one is in work", async || texts(&seen) == ["1", "2"]).await;
    gate.add_permits(1);
    until("it is done", async || source().done == 1).await;
    // The source waits for items.
    delete().await;
    until("it is noticed", async || source().connection_errors >= 2).await;
    let error = source().last_error.unwrap_or_default();
    assert!(error.contains("the server cancelled the consumer"), "{error}");
    queue.push(Item::new("3")).await.unwrap();
    gate.add_permits(10);
    until("the next one is handled", async || texts(&seen) == ["1", "2", "3"]).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_is_noticed_although_nothing_is_asked_for() {
    let server = server!();
    let queue = queue(&server, "idle");
    for text in ["1", "2"] {
        queue.push(Item::new(text)).await.unwrap();
    }
    let relay = Relay::start(&server).await;
    let queue = RabbitQueue::with(&relay.address, "idle", patient()).unwrap();
    // Without a consumer, and with one that has delivered what was asked for.
    for text in [None, Some("1")] {
        let (mut fetch, _settle) = queue.connect().await.unwrap();
        if let Some(text) = text {
            let fetched = timeout(PATIENCE, fetch.fetch(1)).await.unwrap().unwrap();
            assert_eq!(fetched[0].item.payload, text);
        }
        assert!(timeout(Duration::from_millis(200), fetch.idle()).await.is_err());
        relay.cut();
        let error = timeout(Duration::from_secs(10), fetch.idle()).await.unwrap().to_string();
        assert!(!error.is_empty());
    }
    // A source shows it, and delivers again what it had in work.
    let (pipeline, seen, gate) = hold(&queue);
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("one is in work", async || seen.lock().len() == 1).await;
    relay.cut();
    until("it is noticed", async || source().connection_errors > 0).await;
    until("it is connected again", async || source().connected).await;
    gate.add_permits(10);
    until("both are done", async || source().done == 2).await;
    assert!(pipeline.drain(PATIENCE).await.completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_channels_are_used_up_is_replaced() {
    const CHANNELS: usize = 20;
    let server = server!();
    let (_operator, channel) = operator(&server).await;
    let address = format!("{}?channel_max={CHANNELS}", server.url());
    let queue = RabbitQueue::with(&address, "used up", patient()).unwrap();
    let delete = async || {
        channel.queue_delete("used up.dead".into(), QueueDeleteOptions::default()).await.unwrap();
    };
    // Each call finds the queue missing, for which the server closes two channels at least.
    for _ in 0..CHANNELS {
        assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(0));
        delete().await;
    }
    queue.push(Item::new("1")).await.unwrap();
    assert_eq!(queue.backlog().await.unwrap().items, Some(1));
    // That of a source ends, so that the source connects again.
    let (mut fetch, settle) = queue.connect().await.unwrap();
    delete().await;
    for _ in 0..2 * CHANNELS {
        assert!(settle.backlog().await.is_err());
    }
    let ended = timeout(Duration::from_secs(10), fetch.idle()).await;
    assert!(ended.is_ok(), "the source would never count its backlog again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_bytes_are_delivered_before_they_are_asked_for_than_may_be() {
    const ITEMS: usize = 120;
    const SIZE: usize = 100_000;
    // About ten of them.
    const BYTES: usize = 1_000_000;
    let server = server!();
    let options = patient().max_prefetch_bytes(BYTES);
    let queue = RabbitQueue::with(&server.url(), "bytes", options).unwrap();
    for _ in 0..ITEMS {
        queue.push(Item::new(vec![b'x'; SIZE])).await.unwrap();
    }
    let (telemetry, recorded) = Recorded::new();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handle = async move |_: &mut Message<Item>| {
        gate.acquire().await?.forget();
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .telemetry(telemetry)
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(50).max_demand(1))
        .start()
        .unwrap();
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    let waiting = async || usize::try_from(queue.backlog().await.unwrap().items.unwrap()).unwrap();
    // A first prefetch is of items of 64 KiB.
    for done in [0, 30, 60] {
        opened.add_permits(done - usize::try_from(source().done).unwrap());
        until("they are done", async || source().done == done as u64).await;
        until("some are delivered", async || waiting().await <= ITEMS - done - 5).await;
        sleep(Duration::from_millis(300)).await;
        let delivered = ITEMS - done - waiting().await;
        assert!(delivered * SIZE <= BYTES * 2, "{delivered} items of {SIZE} bytes");
    }
    let gauges = |name| {
        recorded.look();
        recorded.gauges(name).iter().map(|(_, value)| *value).sum::<f64>()
    };
    let held = gauges("pipeline.source.held_bytes") + gauges("pipeline.source.ahead_bytes");
    assert!(held <= (BYTES * 2) as f64, "{held}");
    opened.add_permits(ITEMS);
    until("all are done", async || source().done == ITEMS as u64).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_take_long_to_arrive_end_no_session_and_their_size_is_known_in_the_next_one() {
    const ITEMS: usize = 40;
    const SIZE: usize = 300_000;
    let server = server!();
    // Those that have come with a consumer that is too large for them take longer than an answer may.
    let options = RabbitOptions::new().timeout(Duration::from_millis(1500));
    let options = options.max_prefetch_bytes(10 * SIZE);
    let direct = queue(&server, "slow way");
    for _ in 0..ITEMS {
        direct.push(Item::new(vec![b'x'; SIZE])).await.unwrap();
    }
    let waiting = async || usize::try_from(direct.backlog().await.unwrap().items.unwrap()).unwrap();
    let relay = Relay::start(&server).await;
    let queue = RabbitQueue::with(&relay.address, "slow way", options).unwrap();
    let connect = async || {
        for _ in 0..10 {
            // On a busy machine it may not be in time.
            if let Ok(connected) = queue.connect().await {
                return connected;
            }
        }
        panic!("not connected");
    };
    let (mut fetch, settle) = connect().await;
    relay.is_slow.store(true, SeqCst);
    let mut fetched = Vec::new();
    let mut fetch_to = async |count: usize| {
        while fetched.len() < count {
            let more = fetch.fetch(ITEMS - fetched.len()).await;
            fetched.extend(more.expect("the session has ended"));
        }
        fetched[0].receipt.clone()
    };
    let receipt = fetch_to(1).await;
    let first = Settlement { receipt, outcome: Outcome::Done };
    let settled = async { assert!(settle.settle(&[first]).await.unwrap().is_empty()) };
    timeout(PATIENCE, async { tokio::join!(fetch_to(ITEMS), settled) }).await.unwrap();
    relay.is_slow.store(false, SeqCst);
    drop((fetch, settle));
    until("the others wait again", async || waiting().await == ITEMS - 1).await;
    let (mut fetch, _settle) = connect().await;
    fetch.fetch(ITEMS).await.unwrap();
    until("some are delivered", async || waiting().await < ITEMS - 5).await;
    sleep(Duration::from_millis(300)).await;
    assert!(waiting().await > ITEMS / 2, "as many as before are delivered at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_at_the_end_of_a_source_are_read_before_they_count_as_stored() {
    const ITEMS: usize = 40;
    const SIZE: usize = 300_000;
    const LIMIT: Duration = Duration::from_millis(1500);
    let server = server!();
    let direct = queue(&server, "read at the end");
    for _ in 0..ITEMS {
        direct.push(Item::new(vec![b'x'; SIZE])).await.unwrap();
    }
    let waiting = async || usize::try_from(direct.backlog().await.unwrap().items.unwrap()).unwrap();
    let relay = Relay::start(&server).await;
    let options = RabbitOptions::new().timeout(LIMIT);
    let queue = RabbitQueue::with(&relay.address, "read at the end", options).unwrap();
    let connect = async || {
        for _ in 0..10 {
            // On a busy machine it may not be in time.
            if let Ok(connected) = queue.connect().await {
                return connected;
            }
        }
        panic!("not connected");
    };
    let (mut fetch, settle) = connect().await;
    relay.is_slow.store(true, SeqCst);
    let receipt = fetch.fetch(ITEMS).await.unwrap()[0].receipt.clone();
    // The server reads nothing for longer than an answer may take, while items arrive.
    relay.is_mute.store(true, SeqCst);
    let heard = async {
        sleep(2 * LIMIT).await;
        relay.is_mute.store(false, SeqCst);
    };
    let outcome = [Settlement { receipt, outcome: Outcome::Done }];
    let settled = async {
        let settled = settle.settle(&outcome).await;
        // What was not read is lost with the connection.
        relay.cut();
        settled
    };
    let (_, settled, ()) = tokio::join!(fetch.stop(), settled, heard);
    assert!(settled.unwrap().is_empty());
    drop((fetch, settle));
    until("all others wait again", async || waiting().await == ITEMS - 1).await;
}
