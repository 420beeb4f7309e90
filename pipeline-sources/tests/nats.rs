//! The queue in a stream of NATS JetStream.
#![cfg(all(feature = "nats", feature = "test-kit", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod common;
mod kills;
mod outages;

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Failure, Message, Metadata, Processors},
    telemetry::Telemetry,
};
use pipeline_sources::{
    Broker, Fetch, Item, Outcome, Settle, Settlement, Source, SourceOptions,
    contract::{Faulty, Subject, check},
    nats::{NatsError, NatsOptions, NatsQueue, NatsStorage},
};
use pipeline_test_support::{
    Recorded,
    servers::{Kind, Server},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream as AsyncStream},
    runtime::Runtime,
    sync::{Notify, Semaphore},
    task::JoinHandle,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The server of a test, or the end of the test if there is none.
macro_rules! server {
    () => {
        match Server::start(Kind::Nats).await {
            Some(server) => server,
            None => return,
        }
    };
}

/// Options with short times.
fn short() -> NatsOptions {
    let (lease, timeout) = (Duration::from_millis(800), Duration::from_secs(1));
    NatsOptions::new().lease(lease).timeout(timeout)
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
fn keep(queue: &NatsQueue) -> (Pipeline, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        log.lock().push((text.clone(), message.metadata().clone()));
        if text == "bad" { Err(Failure::new("it is bad")) } else { Ok(()) }
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    (pipeline, seen)
}

async fn items(queue: &NatsQueue) -> u64 {
    queue.backlog().await.unwrap().items.unwrap()
}

async fn reasons(queue: &NatsQueue) -> Vec<String> {
    let dead = queue.dead_letters(0, 100).await.unwrap();
    dead.iter().map(|dead| dead.reason.to_string()).collect()
}

/// A program that speaks NATS and knows nothing of the queue.
struct Other(TcpStream);

impl Other {
    fn connect(server: &Server) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.write_all(b"CONNECT {\"headers\":true,\"verbose\":false}\r\n").unwrap();
        Self(stream)
    }

    /// Sends a request, and returns its answer.
    fn request(&mut self, subject: &str, payload: &str) -> String {
        let size = payload.len();
        write!(self.0, "SUB answers 1\r\nPUB {subject} answers {size}\r\n{payload}\r\n").unwrap();
        let line = loop {
            let line = self.line();
            if line.starts_with("MSG answers") {
                break line;
            }
        };
        let size = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let mut answer = vec![0; size];
        self.0.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn publish(&mut self, subject: &str, headers: &[u8], payload: &str) {
        self.publish_raw(subject, &[b"NATS/1.0\r\n", headers, b"\r\n"].concat(), payload);
    }

    fn publish_raw(&mut self, subject: &str, head: &[u8], payload: &str) {
        let (inner, total) = (head.len(), head.len() + payload.len());
        write!(self.0, "HPUB {subject} {inner} {total}\r\n").unwrap();
        self.0.write_all(&[head, payload.as_bytes(), b"\r\nPING\r\n"].concat()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"PONG\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
    }
}

/// A queue of a server that the checks share.
struct OfServer {
    server: Arc<Server>,
    queue: NatsQueue,
}

impl OfServer {
    /// Lets the stream of the dead letters take messages of this size only.
    async fn dead_letters_of(&self, size: i32) {
        // The streams are made by the first call.
        self.queue.backlog().await.unwrap();
        let dead = format!("{}_dead", self.queue.name());
        let config = format!(
            "{{\"name\": \"{dead}\", \"subjects\": [\"{dead}\"], \"max_msg_size\": {size}, \
             \"max_msgs\": -1, \"max_bytes\": -1, \"max_consumers\": -1, \"num_replicas\": 1, \
             \"retention\": \"limits\", \"storage\": \"file\", \"discard\": \"new\", \
             \"duplicate_window\": 120000000000}}"
        );
        let mut other = Other::connect(&self.server);
        let answer = other.request(&format!("$JS.API.STREAM.UPDATE.{dead}"), &config);
        assert!(!answer.contains("error"), "{answer}");
    }
}

impl Subject for OfServer {
    type Broker = NatsQueue;

    fn broker(&self) -> NatsQueue {
        self.queue.clone()
    }

    async fn push(&self, item: Item) {
        self.queue.push(item).await.unwrap();
    }

    fn uncounts_releases(&self) -> bool {
        false
    }

    async fn fill_graves(&self) -> bool {
        self.dead_letters_of(1).await;
        true
    }

    async fn empty_graves(&self) {
        self.dead_letters_of(-1).await;
    }

    async fn push_malformed(&self) -> bool {
        // The stream is made by the first call.
        self.queue.backlog().await.unwrap();
        let mut other = Other::connect(&self.server);
        other.publish(self.queue.name(), b"Pipeline-Item: {\r\n", "x");
        true
    }

    async fn dead_letters(&self) -> Vec<String> {
        reasons(&self.queue).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_keeps_the_contract() {
    let server = Arc::new(server!());
    let made = AtomicUsize::new(0);
    check(async || {
        let name = format!("contract{}", made.fetch_add(1, SeqCst));
        let queue = NatsQueue::with(&server.url(), &name, short()).unwrap();
        OfServer { server: server.clone(), queue }
    })
    .await;
}

impl outages::Queue for NatsQueue {
    type Broker = Self;

    const FORGETS: bool = true;

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn try_push(&self, item: Item) -> Result<(), String> {
        Self::push(self, item).await.map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_no_item() {
    let mut server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    outages::killed(&mut server, queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_is_noticed_and_connected_to_again() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    outages::frozen(&server, queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_begins_when_its_server_is_there() {
    let mut server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    outages::absent(&mut server, queue).await;
}

impl kills::Queue for NatsQueue {
    type Broker = Self;

    async fn open(address: &str) -> Self {
        Self::with(address, "numbers", short().lease(kills::LEASE)).unwrap()
    }

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn push(&self, item: Item) {
        Self::push(self, item).await.unwrap();
    }

    async fn is_empty(&self) -> bool {
        items(self).await == 0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item() {
    if kills::inside::<NatsQueue>().await {
        return;
    }
    let server = server!();
    let test = "a_process_that_is_killed_loses_no_item";
    kills::handling::<NatsQueue>(test, &server.url(), kills::Order::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed() {
    if kills::inside::<NatsQueue>().await {
        return;
    }
    let server = server!();
    let test = "an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed";
    kills::pushing::<NatsQueue>(test, &server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_replayed_and_dropped() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    let item = Item::new("bad").key("k").header("kind", "test").header("lines", "a\nb");
    for item in [item.clone(), Item::new("good"), Item::new("bad"), Item::new("bad")] {
        queue.push(item).await.unwrap();
    }
    let (pipeline, seen) = keep(&queue);
    until("three are given up", async || reasons(&queue).await.len() == 3).await;
    until("all are done", async || items(&queue).await == 0).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(texts(&seen).iter().filter(|text| *text == "bad").count(), 9);
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(3));

    let dead = queue.dead_letters(0, 2).await.unwrap();
    assert_eq!(dead.len(), 2);
    let first = dead.iter().find(|dead| dead.item.key.is_some()).unwrap();
    assert_eq!((first.deliveries, &*first.reason), (3, "it is bad"));
    assert_eq!(first.item, item);
    assert!(first.enqueued_at.is_some() && first.enqueued_at <= first.given_up_at);
    let rest = queue.dead_letters(dead[1].id, 100).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert!(rest[0].id > dead[1].id);

    assert_eq!(queue.replay(first.id + 1000).await.unwrap(), None);
    let new = queue.replay(first.id).await.unwrap();
    assert_eq!(new, Some(5));
    assert_eq!(queue.replay(first.id).await.unwrap(), None);
    assert_eq!(items(&queue).await, 1);
    assert!(queue.drop_dead_letter(rest[0].id).await.unwrap());
    assert!(!queue.drop_dead_letter(rest[0].id).await.unwrap());
    assert_eq!(queue.backlog().await.unwrap().dead_letters, Some(1));

    // What was replayed is delivered as a new item, and given up once more.
    let (pipeline, seen) = keep(&queue);
    until("it is given up again", async || reasons(&queue).await.len() == 2).await;
    pipeline.drain(PATIENCE).await;
    let (_, metadata) = seen.lock()[0].clone();
    assert_eq!((metadata.key, metadata.deliveries), (item.key.clone(), 1));

    assert_eq!(queue.replay_all(|dead| dead.item.key.is_some()).await.unwrap(), 1);
    assert_eq!((items(&queue).await, reasons(&queue).await.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_of_all_takes_the_dead_letters_that_are_there_when_it_begins() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    common::a_drop_of_all_takes_what_was_there(
        queue.source(quick()),
        async |item| {
            queue.push(item).await.unwrap();
        },
        async || common::payloads(&queue.dead_letters(0, 300).await.unwrap()),
        async |which| queue.drop_all_dead_letters(|dead| which(&dead.item)).await.unwrap(),
    )
    .await;
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 2);
    assert_eq!(queue.drop_all_dead_letters(|_| true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_not_there_is_not_opened_as_an_existing_one_and_not_made() {
    let server = server!();
    let open = async || NatsQueue::open_existing(&server.url(), "numbers", short()).await;
    for _ in 0..2 {
        let missing = open().await.unwrap_err();
        assert!(matches!(missing, NatsError::UnknownStream { .. }), "{missing}");
    }
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let existing = open().await.unwrap();
    assert_eq!(existing.backlog().await.unwrap().items, Some(1));
    // One that goes is not made again.
    Other::connect(&server).request("$JS.API.STREAM.DELETE.numbers_dead", "");
    assert!(existing.dead_letters(0, 10).await.is_err());
    let missing = open().await.unwrap_err().to_string();
    assert_eq!(missing, r#"there is no stream "numbers_dead" at the server"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_dead_letters_are_listed_by_pages() {
    const ALL: usize = 20;
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    queue.backlog().await.unwrap();
    let (large, mut other) = ("x".repeat(900_000), Other::connect(&server));
    for _ in 0..ALL {
        other.publish("numbers_dead", b"", &large);
    }
    let stored = async || queue.backlog().await.unwrap().dead_letters == Some(ALL as u64);
    until("all are stored", stored).await;
    common::large_letters_are_listed_by_pages(ALL, async |after: Option<u64>| {
        queue.dead_letters(after.unwrap_or(0), 100).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_other_programs_are_delivered_and_malformed_ones_are_given_up() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    queue.push(Item::new("first")).await.unwrap();
    let mut other = Other::connect(&server);
    other.publish("numbers", b"", "payload only");
    other.publish("numbers", b"Pipeline-Key: \xd0\xba\r\nkind: a\r\nkind: b\r\n", "with headers");
    other.publish("numbers", b"traceparent: nonsense\r\nNats-Msg-Id: 7\r\n", "odd trace");
    other.publish("numbers", b"Pipeline-Item: [1\r\n", "not valid");
    // The client library closes its connection at these.
    other.publish("numbers", b"kind: \xff\xfe\r\n", "not text");
    other.publish("numbers", b"no colon\r\n", "no header");
    other.publish_raw("numbers", b"NATS/1.0 abc\r\n\r\n", "no status");
    // The statuses of answers of the server.
    other.publish_raw("numbers", b"NATS/1.0 404 No Messages\r\n\r\n", "as if none were there");
    other.publish_raw("numbers", b"NATS/1.0 503\r\n\r\n", "as if no server answered");
    queue.push(Item::new("last")).await.unwrap();
    let (pipeline, seen) = keep(&queue);
    until("the others are handled", async || texts(&seen).contains(&"last".to_owned())).await;
    until("all are done", async || items(&queue).await == 0).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    let good = [
        "first",
        "payload only",
        "with headers",
        "odd trace",
        "as if none were there",
        "as if no server answered",
        "last",
    ];
    let mut handled = texts(&seen);
    handled.sort_by_key(|text| good.iter().position(|good| good == text));
    handled.dedup();
    assert_eq!(handled, good);
    let seen = seen.lock().clone();
    let (_, with_headers) = seen.iter().find(|(text, _)| text == "with headers").unwrap();
    assert_eq!(with_headers.key.as_deref(), Some("к"));
    assert_eq!(with_headers.headers, [("kind".into(), "a, b".into())]);
    let (_, odd) = seen.iter().find(|(text, _)| text == "odd trace").unwrap();
    assert!(odd.headers.is_empty() && odd.trace.is_none());
    let dead = queue.dead_letters(0, 10).await.unwrap();
    let mut why: Vec<_> = dead
        .iter()
        .map(|dead| (String::from_utf8_lossy(&dead.item.payload).into_owned(), &*dead.reason))
        .collect();
    why.sort_unstable();
    let names: Vec<_> = why.iter().map(|(text, _)| &**text).collect();
    assert_eq!(names, ["no header", "no status", "not text", "not valid"]);
    assert!(why[..3].iter().all(|(_, why)| *why == "its headers are not valid"), "{why:?}");
    assert!(why[3].1.starts_with("the header Pipeline-Item is not valid"), "{why:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_with_large_headers_fits_and_its_stream_is_made_again() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let mut other = Other::connect(&server);
    // The server stores headers of up to 64 KiB.
    let value = "x".repeat(65_000);
    let large = format!("Pipeline-Key: k\r\nkind: order\r\nlarge: {value}\r\n");
    let (pipeline, seen) = keep(&queue);
    until("the first is handled", async || texts(&seen).contains(&"1".to_owned())).await;
    // An operator removes the stream of the dead letters.
    let removed = other.request("$JS.API.STREAM.DELETE.numbers_dead", "");
    assert!(removed.contains("success"), "{removed}");
    other.publish("numbers", large.as_bytes(), "bad");
    until("it is given up", async || reasons(&queue).await.len() == 1).await;
    until("all are done", async || items(&queue).await == 0).await;
    assert!(pipeline.drain(PATIENCE).await.is_clean());
    let dead = queue.dead_letters(0, 10).await.unwrap().remove(0);
    assert_eq!(dead.item, Item::new("bad").key("k").header("kind", "order"));
    assert_eq!(&*dead.reason, "it is bad (1 of its headers did not fit)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_refuses_items_and_keeps_those_that_it_has() {
    let server = server!();
    let options = short().max_bytes(10_000);
    let refusals = common::Refusals::default();
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    let queue = queue.telemetry(&Telemetry::with_recorder(refusals.clone()));
    let mut stored = 0;
    let refused = loop {
        match queue.push(Item::new(vec![b'x'; 1000])).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 20, "it is never full");
    };
    assert!(matches!(refused, NatsError::Refused { .. }), "{refused:?}");
    assert_eq!(refusals.counted("nats", "numbers", "full"), 1);
    assert_eq!(refusals.counted("nats", "numbers", "failed"), 0);
    assert_eq!(items(&queue).await, stored);
    let (pipeline, seen) = keep(&queue);
    until("all are done", async || items(&queue).await == 0).await;
    queue.push(Item::new("space")).await.unwrap();
    until("all are done", async || items(&queue).await == 0).await;
    pipeline.drain(PATIENCE).await;
    assert_eq!(seen.lock().len() as u64, stored + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_have_no_more_items_in_work_is_not_taken_for_gone() {
    let server = server!();
    let options = short().lease(Duration::from_secs(60)).max_pending(3);
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    for n in 0..5 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    // It asks for ten.
    let (pipeline, seen) = keep(&queue);
    until("all are done", async || items(&queue).await == 0).await;
    let source = pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    assert_eq!(source.connection_errors, 0);
    pipeline.drain(PATIENCE).await;
    // What comes for a pull that was given up meanwhile is given back, and comes again.
    let mut seen = texts(&seen);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_shows_that_postponed_items_leave_no_room_for_others() {
    let server = server!();
    let options = short().max_pending(3);
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    for n in 0..3 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let postpone = async move |_: &mut Message<Item>| -> Result<(), Failure> {
        Err(Failure::new("not yet").later(Duration::from_secs(3600)))
    };
    let (telemetry, recorded) = Recorded::new();
    let pipeline = Pipeline::of_messages("test")
        .telemetry(telemetry)
        .source(queue.source(quick()))
        .processors(Processors::from_fn(postpone))
        .start()
        .unwrap();
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    until("all are postponed", async || source().released == 3).await;
    assert_eq!(queue.backlog().await.unwrap().stalled, None, "nothing waits for room");
    queue.push(Item::new("new")).await.unwrap();
    let stalled = || {
        recorded.look();
        recorded.gauges("pipeline.source.stalled")[0].1
    };
    until("it is shown", async || stalled() > 0.0).await;
    assert_eq!(source().last_error, None, "no call has failed");
    assert_eq!((source().released, source().connection_errors), (3, 0));
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_few_places_are_taken_by_new_items_is_not_stalled() {
    let server = server!();
    let options = short().max_pending(3).lease(Duration::from_secs(60));
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    for n in 0..9 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let (mut fetch, settle) = queue.connect().await.unwrap();
    let is_stalled = async || settle.backlog().await.unwrap().stalled.is_some();
    for _ in 0..2 {
        let fetched = fetch.fetch(3).await.unwrap();
        assert_eq!(fetched.len(), 3);
        assert!(!is_stalled().await, "three were delivered since the last count");
        let settled = fetched
            .into_iter()
            .map(|it| Settlement { receipt: it.receipt, outcome: Outcome::Done });
        settle.settle(&settled.collect::<Vec<_>>()).await.unwrap();
    }
    assert_eq!(fetch.fetch(2).await.unwrap().len(), 2);
    assert!(!is_stalled().await, "there is room for one");
    assert_eq!(fetch.fetch(1).await.unwrap().len(), 1);
    queue.push(Item::new("9")).await.unwrap();
    assert_eq!((is_stalled().await, is_stalled().await), (false, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_takes_no_items_leaves_the_lease_of_those_that_do_as_it_is() {
    const LEASE: Duration = Duration::from_secs(7);
    let server = server!();
    let lease = async || {
        let told = Other::connect(&server).request("$JS.API.CONSUMER.INFO.numbers.pipeline", "");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["config"]["ack_wait"].as_u64().map(Duration::from_nanos)
    };
    let queue = NatsQueue::with(&server.url(), "numbers", short().lease(LEASE)).unwrap();
    let (pipeline, seen) = keep(&queue);
    until("the source is connected", async || lease().await == Some(LEASE)).await;
    let other = NatsQueue::new(&server.url(), "numbers").unwrap();
    other.push(Item::new("1")).await.unwrap();
    other.backlog().await.unwrap();
    other.dead_letters(0, 1).await.unwrap();
    until("it is handled", async || texts(&seen) == ["1"]).await;
    assert_eq!(lease().await, Some(LEASE));
    // Another source decides.
    let (other, _) = keep(&other);
    until("it has its lease", async || lease().await == Some(Duration::from_secs(30))).await;
    other.drain(PATIENCE).await;
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_that_are_always_due_again_leave_room_for_new_ones() {
    const MANY: usize = 300;
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    for _ in 0..MANY {
        queue.push(Item::new("again")).await.unwrap();
    }
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let log = seen.clone();
    // It takes far fewer than are due.
    let handle = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        sleep(Duration::from_millis(2)).await;
        log.lock().push(text.clone());
        let soon = Duration::from_millis(20);
        if text == "again" { Err(Failure::new("not yet").later(soon)) } else { Ok(()) }
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("all have come again", async || seen.lock().len() > 2 * MANY).await;
    for n in 0..20 {
        queue.push(Item::new(n.to_string())).await.unwrap();
    }
    let new = || seen.lock().iter().filter(|text| *text != "again").cloned().collect::<Vec<_>>();
    until("the new ones are handled", async || new().len() == 20).await;
    assert_eq!(new(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    let before = seen.lock().len();
    until("the others still come again", async || seen.lock().len() > before + 20).await;
    assert_eq!(reasons(&queue).await, [""; 0]);
    drop(pipeline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_kept_however_often_it_and_many_others_are_postponed() {
    // More than are remembered of those that have failed.
    const MANY: usize = 4_500;
    let server = server!();
    let options = short().timeout(Duration::from_secs(10)).lease(Duration::from_secs(60));
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    assert_eq!(queue.held_back(), 100_000);
    let pushing = (0..MANY).map(|n| queue.push(Item::new(n.to_string())));
    let pushed = stream::iter(pushing).buffer_unordered(100);
    assert!(pushed.all(async |pushed| pushed.is_ok()).await);
    let postpone = async move |_: &mut Message<Item>| -> Result<(), Failure> {
        Err(Failure::new("not yet").later(Duration::from_millis(10)))
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick().max_unfinished(3)))
        .processors(Processors::from_fn(postpone).max_demand(100))
        .start()
        .unwrap();
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap();
    let looks = 5 * MANY as u64;
    let looked = async {
        while source().released < looks && source().given_up == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(4 * PATIENCE, looked).await.unwrap();
    assert_eq!(source().given_up, 0);
    pipeline.drain(PATIENCE).await;
    assert_eq!(reasons(&queue).await, [""; 0]);
}

/// A slow way to a server, and how many bytes of it have come.
struct SlowWay {
    address: String,
    come: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for SlowWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SlowWay {
    async fn to(server: &Server) -> Self {
        let port = server.port();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("nats://{}", listener.local_addr().unwrap());
        let come = Arc::<AtomicUsize>::default();
        let count = come.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut from_client, mut to_client) = client.into_split();
                let server = AsyncStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_client, &mut to_server).await },
                );
                let count = count.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
                        if to_client.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                        count.fetch_add(read, SeqCst);
                        sleep(Duration::from_millis(read as u64 >> 15)).await;
                    }
                });
            }
        });
        Self { address, come, task }
    }
}

/// How many items go over a slow way, and how large they are.
const ON_THE_WAY: usize = 8;
const LARGE: usize = 500_000;

/// Items whose lease lasts longer than the test.
fn for_long() -> NatsOptions {
    NatsOptions::new().lease(Duration::from_secs(600)).timeout(Duration::from_secs(25))
}

async fn push_large(queue: &NatsQueue) {
    for n in 0..ON_THE_WAY {
        let payload = n.to_string().repeat(LARGE);
        queue.push(Item::new(payload)).await.unwrap();
    }
}

/// Whether another source gets all of them now.
async fn all_are_delivered_again(queue: &NatsQueue) {
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let mut again = HashSet::new();
    until("all are delivered again", async || {
        let got = timeout(PATIENCE, fetch.fetch(ON_THE_WAY)).await.unwrap_or(Ok(Vec::new()));
        again.extend(got.unwrap().into_iter().map(|it| it.item.payload[0]));
        again.len() == ON_THE_WAY
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_dropped_gives_back_what_it_has_taken_and_what_is_on_its_way() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", for_long()).unwrap();
    push_large(&queue).await;
    let way = SlowWay::to(&server).await;
    let slow = NatsQueue::with(&way.address, "numbers", for_long()).unwrap();
    let (mut fetch, _settle) = slow.connect().await.unwrap();
    let fetching = fetch.fetch(2 * ON_THE_WAY);
    let some_have_come = until("some have come", async || way.come.load(SeqCst) > 3 * LARGE);
    tokio::select! {
        fetched = fetching => panic!("it has fetched {}", fetched.unwrap().len()),
        () = some_have_come => {}
    }
    all_are_delivered_again(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_until_what_a_fetch_was_taking_is_given_back() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", for_long()).unwrap();
    push_large(&queue).await;
    let way = SlowWay::to(&server).await;
    let (address, come) = (way.address.clone(), way.come.clone());
    // A program that ends as soon as it is drained.
    let program = thread::spawn(move || {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let slow = NatsQueue::with(&address, "numbers", for_long()).unwrap();
            let (pipeline, seen) = keep(&slow);
            until("some have come", async || come.load(SeqCst) > 3 * LARGE).await;
            assert!(pipeline.drain(PATIENCE).await.completed);
            assert_eq!(texts(&seen).len(), 0, "they have not been fetched");
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(move || program.join().unwrap()).await.unwrap();
    all_are_delivered_again(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_has_no_more_large_items_than_it_has_bytes_also_the_first_one() {
    const MIB: usize = 1024 * 1024;
    let Some(server) = Server::start_nats("max_payload: 20000000").await else { return };
    let queue = NatsQueue::with(&server.url(), "numbers", for_long()).unwrap();
    // One is larger than a fetch may be.
    for size in [2, 2, 2, 2, 2, 2, 2, 2, 2, 17, 1] {
        queue.push(Item::new(Bytes::from(vec![0; size * MIB]))).await.unwrap();
    }
    let (mut fetch, _settle) = queue.connect().await.unwrap();
    let mut fetched = Vec::new();
    while fetched.iter().map(Vec::len).sum::<usize>() < 11 {
        let items = fetch.fetch(100).await.unwrap();
        fetched.push(items.iter().map(|it| it.item.payload.len() / MIB).collect::<Vec<_>>());
    }
    assert_eq!(fetched, [vec![2; 7], vec![2; 2], vec![17], vec![1]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_with_an_id_is_added_once() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    let first = queue.push_with_id(Item::new("7"), "order 7").await.unwrap();
    let second = queue.push_with_id(Item::new("7"), "order 7").await.unwrap();
    assert_eq!(first, second);
    assert_eq!(items(&queue).await, 1);
    for odd in ["", " 7", "a\r\nb"] {
        let refused = queue.push_with_id(Item::new("7"), odd).await;
        assert!(matches!(refused, Err(NatsError::Name(_))), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_too_large_is_refused() {
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    let refused = queue.push(Item::new(vec![0; 1 << 20])).await;
    assert!(matches!(refused, Err(NatsError::TooLarge { .. })), "{refused:?}");
    // One that another program has added becomes a dead letter nevertheless.
    let (large, longest) = ("x".repeat((1 << 20) - 100), 1 << 20);
    Other::connect(&server).publish("numbers", b"Pipeline-Item: {\r\n", &large);
    let (pipeline, _) = keep(&queue);
    until("it is given up", async || !reasons(&queue).await.is_empty()).await;
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters(0, 1).await.unwrap();
    let kept = dead[0].item.payload.len();
    assert!((longest - 1000..longest).contains(&kept), "{kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_costs_nothing_until_it_is_asked_for() {
    const ITEMS: u64 = 20_000;
    let server = server!();
    let queue = NatsQueue::with(&server.url(), "numbers", short()).unwrap();
    // Pushes are under way together.
    let pushing = (0..100).map(|task| {
        let queue = queue.clone();
        tokio::spawn(async move {
            for n in 0..ITEMS / 100 {
                queue.push(Item::new(format!("{task} {n}"))).await.unwrap();
            }
        })
    });
    for task in pushing.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let backlog = queue.backlog().await.unwrap();
    assert_eq!((backlog.items, backlog.dead_letters), (Some(ITEMS), Some(0)));
    assert!(backlog.oldest.is_some());
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
    opened.add_permits(1000);
    until("the backlog shrinks", async || items(&queue).await <= ITEMS - 1000).await;
    assert!(faults.fetched() <= 1010, "{}", faults.fetched());
    opened.add_permits(20_000);
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_from_before_the_server_lost_its_data_concerns_no_other_item() {
    let mut server = server!();
    let options = short().storage(NatsStorage::Memory);
    let queue = NatsQueue::with(&server.url(), "numbers", options).unwrap();
    let (begun, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (at_work, opened) = (begun.clone(), gate.clone());
    let handle = async move |message: &mut Message<Item>| {
        at_work.notify_one();
        if message.payload == "old" {
            gate.acquire().await?.forget();
            return Ok(());
        }
        std::future::pending::<Result<(), Failure>>().await
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick()))
        .processors(Processors::from_fn(handle).concurrency(2).max_demand(1))
        .start()
        .unwrap();
    assert_eq!(queue.push(Item::new("old")).await.unwrap(), 1);
    begun.notified().await;
    server.kill();
    server.start_again().await;
    // The stream is made again, and begins with the same sequence.
    until("an item is added", async || match queue.push(Item::new("new")).await {
        Ok(sequence) => sequence == 1,
        Err(_) => false,
    })
    .await;
    begun.notified().await;
    opened.add_permits(1);
    // A source asks for the backlog after each outcome that it has stored.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(items(&queue).await, 1, "the new item is not done");
    drop(pipeline);
    let (pipeline, seen) = keep(&queue);
    until("it is delivered again", async || texts(&seen) == ["new"]).await;
    pipeline.drain(PATIENCE).await;
}

#[tokio::test]
async fn odd_names_and_addresses_are_refused() {
    for (address, stream) in [("http://localhost", "a"), ("localhost", "a.b"), ("localhost", "")] {
        assert!(NatsQueue::new(address, stream).is_err(), "{address} {stream}");
    }
    let subject = NatsOptions::new().subject("orders.*");
    assert!(NatsQueue::with("localhost", "orders", subject).is_err());
    NatsQueue::new("nats://a:4222, nats://b:4222", "orders").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_and_the_password_of_an_address_are_those_at_the_server() {
    const USERS: &str = r#"authorization { users = [ { user: may, password: "se:cret" } ] }"#;
    let Some(server) = Server::start_nats(USERS).await else { return };
    let queue_of = |user: &str| {
        let url = server.url().replace("//", &format!("//{user}"));
        NatsQueue::new(&url, "numbers").unwrap()
    };
    let queue = queue_of("may:se%3Acret@");
    queue.push(Item::new("1")).await.unwrap();
    assert_eq!(items(&queue).await, 1);
    for other in ["may:secret@", "se%3Acret@", ""] {
        assert!(queue_of(other).backlog().await.is_err(), "{other}");
    }
}

#[test]
fn a_password_is_neither_shown_nor_in_an_error() {
    let queue = NatsQueue::new("nats://user:hidden@localhost:4222", "orders").unwrap();
    let source = queue.source(SourceOptions::new());
    let error = NatsQueue::new("nats://user:hid/den@localhost:x", "orders").unwrap_err();
    for shown in [format!("{queue:?}"), format!("{source:?}"), format!("{error} {error:?}")] {
        assert!(!shown.contains("hid"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_may_have_no_end() {
    let server = server!();
    let never = Duration::MAX;
    let options = NatsOptions::new().lease(never).timeout(never).duplicate_window(never);
    let queue = NatsQueue::with(&server.url(), "never", options).unwrap();
    queue.push(Item::new("1")).await.unwrap();
    let seen = Arc::new(Mutex::new(0));
    let count = seen.clone();
    let handle = async move |_: &mut Message<Item>| {
        *count.lock() += 1;
        Ok(())
    };
    let pipeline = Pipeline::of_messages("test")
        .source(queue.source(quick().call_timeout(never)))
        .processors(Processors::from_fn(handle).concurrency(1))
        .start()
        .unwrap();
    until("it is handled", async || *seen.lock() == 1).await;
    let source = || pipeline.snapshot().stages.swap_remove(0).source.unwrap_or_default();
    until("it is done", async || source().done == 1).await;
    assert_eq!((source().connection_errors, source().last_error), (0, None));
    assert!(pipeline.drain(PATIENCE).await.completed);
}
