//! A runtime that is dropped while everything runs on it: pipeline, endpoint, sockets, server, pushers and
//! the StatsD recorder. Each test counts in a process of its own, which other tests do not disturb.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "no runtime is left whose clock could be used"
)]

use std::{
    env, fs,
    net::UdpSocket,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use axum::Router;
use pipeline::{
    Pipeline, serve,
    source::{Queue, QueueOptions, TryPushError, queue},
    statsd::{StatsdFlusher, StatsdRecorder},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    telemetry::Telemetry,
    ws::{
        Channel, Endpoint, Mount, Payload, Presence, Topic,
        channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
        listen,
        mount::LongPoll,
        pubsub::PreparedBroadcast,
    },
};
use pipeline_test_support::{AnySocket, PATIENCE, connect};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

const TOPIC: &str = "room:1";

/// Set in the process that counts its own threads and descriptors.
const INSIDE: &str = "DROPPED_RUNTIME";

/// How many clients there are.
const CLIENTS: usize = 5;

/// Something that tasks own: the strong count is the number of those that are left.
type Alive = Arc<()>;

/// A channel with a presence and a timer that never stops.
struct Room {
    presence: Presence,
    _alive: Alive,
}

struct Tick;

impl Channel for Room {
    type Socket = AnySocket;
    type Config = (Presence, Alive);

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::from_millis(1), Tick)?;
        let (presence, alive) = cx.config().clone();
        Ok(Self { presence, _alive: alive })
    }
}

impl HandleMessage<Tick> for Room {
    async fn handle_message(&mut self, _: Tick, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        cx.send_after(Duration::from_millis(1), Tick)?;
        // The first tick tracks it, the others fail.
        let _ = self.presence.track(cx, "ada", &json!({}));
        Ok(())
    }
}

/// The handles that a program may keep for longer than its runtime.
struct Handles {
    pipeline: Pipeline,
    endpoint: Endpoint,
    numbers: Queue<u64>,
    statsd: StatsdFlusher,
}

/// Starts everything, and waits until each client has received events.
fn busy(runtime: &Runtime, alive: &Alive) -> Handles {
    let statsd_server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let statsd = StatsdRecorder::udp(statsd_server.local_addr().unwrap()).unwrap();
    let (recorder, statsd) = statsd.flush_every(Duration::from_millis(5)).build().unwrap();
    let telemetry = Telemetry::with_recorder(recorder);
    let presence = Presence::new();
    let mount = Mount::new(AnySocket)
        .longpoll(LongPoll::new())
        .channel_with::<Room>("room:*", (presence.clone(), alive.clone()));
    let endpoint = Endpoint::builder().mount("/socket", mount).presence(&presence);
    let endpoint = endpoint.telemetry(telemetry.clone()).build().unwrap();
    let (numbers, producer) = queue::<u64>(QueueOptions::new().capacity(10));
    let received = Arc::new(AtomicU64::new(0));
    let waiting = received.clone();
    let entered = runtime.enter();
    let pipeline = {
        let alive = alive.clone();
        let push = endpoint.pubsub().broadcast_worker(move |n: &u64| {
            let _held = &alive;
            PreparedBroadcast::new(TOPIC, "news", json!({ "n": n }))
        });
        let options = SubscribeOptions::new().max_demand(10);
        Pipeline::builder("numbers")
            .telemetry(telemetry.clone())
            .producer(producer)
            .consumer_supervisor(ConsumerSupervisor::new(push), options)
            .start()
            .unwrap()
    };
    let listener = runtime.block_on(listen("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback_service(endpoint.clone());
    let serving = serve(listener, app).telemetry(telemetry).until(std::future::pending());
    runtime.spawn(async move { serving.await });
    for _ in 0..CLIENTS {
        let (received, held) = (received.clone(), alive.clone());
        runtime.spawn(async move {
            let url = format!("ws://{address}/socket/websocket?vsn=2.0.0");
            let mut client = connect(&url).await.unwrap();
            client.join("1", TOPIC).await;
            loop {
                let is_news = client.receive().await[3] == "news";
                received.fetch_add(u64::from(is_news), Relaxed);
                let _held = &held;
            }
        });
    }
    for n in 0..20 {
        let (numbers, held) = (numbers.clone(), alive.clone());
        runtime.spawn(async move {
            while numbers.push(n).await.is_ok() {
                let _held = &held;
            }
        });
    }
    drop(entered);
    // Some pushers wait for room, some events wait for a worker, and some frames for a client.
    until("the clients receive events", || waiting.load(Relaxed) > 1_000);
    Handles { pipeline, endpoint, numbers, statsd }
}

fn until(what: &str, so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

fn threads() -> usize {
    entries("/proc/self/task")
}

/// The open files and sockets of this process.
fn descriptors() -> usize {
    entries("/proc/self/fd")
}

/// Runs a case several times in this process, and asserts that no thread is left, and no more descriptors
/// than after the first.
fn assert_nothing_is_left(case: impl Fn(Runtime, Handles)) {
    let threads_before = threads();
    let mut descriptors_before = None;
    for round in 0..3 {
        let alive = Alive::default();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handles = busy(&runtime, &alive);
        assert!(Arc::strong_count(&alive) > CLIENTS, "the tasks run");
        case(runtime, handles);
        until("all tasks are gone", || Arc::strong_count(&alive) == 1);
        // A runtime that shuts down in the background ends its threads after its tasks, and its last thread
        // closes what the runtime had open. Descriptors are counted once all threads are gone.
        until("all threads are gone", || threads() == threads_before);
        // The first round may open what is kept for the life of the process.
        let expected = *descriptors_before.get_or_insert_with(descriptors);
        assert_eq!(descriptors(), expected, "descriptors after round {round}");
    }
}

/// Runs a test again in a process of its own, unless this is that process.
fn in_its_own_process(test: &str, case: impl Fn(Runtime, Handles)) {
    if env::var_os(INSIDE).is_some() {
        return assert_nothing_is_left(case);
    }
    let mut again = Command::new(env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_runtime_that_is_dropped_after_its_handles_leaves_nothing() {
    in_its_own_process(
        "a_runtime_that_is_dropped_after_its_handles_leaves_nothing",
        |runtime, handles| {
            drop(handles);
            drop(runtime);
        },
    );
}

#[test]
fn a_runtime_that_is_dropped_before_its_handles_leaves_nothing_and_they_still_answer() {
    in_its_own_process(
        "a_runtime_that_is_dropped_before_its_handles_leaves_nothing_and_they_still_answer",
        |runtime, handles| {
            drop(runtime);
            let Handles { pipeline, endpoint, numbers, statsd } = handles;
            let pushed = numbers.try_push(1);
            assert!(matches!(pushed, Err(TryPushError::Closed(1))), "{pushed:?}");
            endpoint.broadcast(TOPIC, "news", json!({})).unwrap();
            assert_eq!((endpoint.open_sockets(), endpoint.snapshot().topics), (0, 0));
            assert_eq!(pipeline.snapshot().stages.len(), 2);
            statsd.flush();
            drop((pipeline, endpoint, numbers, statsd));
        },
    );
}

#[test]
fn a_runtime_that_shuts_down_in_the_background_leaves_nothing() {
    in_its_own_process(
        "a_runtime_that_shuts_down_in_the_background_leaves_nothing",
        |runtime, handles| {
            runtime.shutdown_background();
            drop(handles);
        },
    );
}
