//! What every server of a cluster has to do, for the tests of each.
#![allow(dead_code, unreachable_pub, reason = "a server's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

pub mod faults;

use std::{
    collections::{BTreeSet, HashMap},
    env,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use pipeline_cluster::{Cluster, ClusterOptions, Gap};
use pipeline_core::{
    Pipeline,
    backoff::Backoff,
    source::{QueueOptions, timed_queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
};
use pipeline_test_support::{
    PATIENCE, Recorded, connect, request,
    servers::{Kind, Server},
};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Presence, Socket, Topic,
    channel::{JoinContext, JoinError},
    endpoint::EndpointBuilder,
    mount::LongPoll,
    presence::{PresenceDiff, TrackerOptions},
    pubsub::{PreparedBroadcast, TopicSubscription},
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

const T: &str = "room:lobby";

/// A node of a cluster.
pub struct Node {
    pub cluster: Cluster,
    pub endpoint: Endpoint,
    pub recorded: Recorded,
}

/// Whether nodes have the times that they have by default, which are longer: `DEFAULT_TIMES=1`.
fn has_default_times() -> bool {
    env::var_os("DEFAULT_TIMES").is_some()
}

/// Options with short times.
fn options(name: &str) -> ClusterOptions {
    options_of("test", name)
}

/// The same, of an application with this prefix.
fn options_of(prefix: &str, name: &str) -> ClusterOptions {
    let options = ClusterOptions::new(prefix).node(name);
    if has_default_times() {
        return options;
    }
    options
        .backoff(Backoff::new(Duration::from_millis(20), Duration::from_millis(200)))
        .ping_interval(Duration::from_millis(100))
        .timeout(Duration::from_millis(1_000))
}

async fn join(url: &str, options: ClusterOptions) -> Cluster {
    if url.starts_with("redis") {
        Cluster::redis(url, options).await.unwrap()
    } else {
        Cluster::nats(url, options).await.unwrap()
    }
}

impl Node {
    pub async fn start(server: &Server, name: &str) -> Self {
        let node = Self::with(server, options(name), Endpoint::builder()).await;
        within(node.cluster.connected()).await;
        node
    }

    pub async fn with(server: &Server, options: ClusterOptions, endpoint: EndpointBuilder) -> Self {
        Self::at(&server.url(), options, endpoint).await
    }

    async fn at(url: &str, options: ClusterOptions, endpoint: EndpointBuilder) -> Self {
        let (telemetry, recorded) = Recorded::new();
        let cluster = join(url, options.telemetry(telemetry)).await;
        let endpoint = endpoint
            .adapter(cluster.clone())
            .cluster_secret("a secret of the nodes of this test")
            .build()
            .unwrap();
        Self { cluster, endpoint, recorded }
    }

    /// Subscribes, and waits until the server knows.
    async fn subscribe(&self, topic: &str) -> TopicSubscription {
        let subscription = self.endpoint.subscribe(topic);
        within(self.cluster.receives(topic)).await;
        subscription
    }

    fn say(&self, topic: &str, n: usize) {
        let said = json!({ "from": self.cluster.node(), "n": n });
        self.endpoint.broadcast(topic, "said", said).unwrap();
    }

    /// The sum of a counter since the last call.
    fn count(&self, name: &str) -> u64 {
        self.recorded.counters(name).iter().map(|(_, count)| count).sum()
    }

    /// Waits until so many broadcasts have been received: one is counted after it has been delivered.
    async fn has_received(&self, broadcasts: u64) {
        let mut counted = 0;
        let waiting = async {
            while counted < broadcasts {
                counted += self.count("pipeline.cluster.received");
                sleep(Duration::from_millis(1)).await;
            }
        };
        // The assertion tells what is missing.
        let _ = timeout(PATIENCE, waiting).await;
        assert_eq!(counted, broadcasts);
    }

    /// Waits until so many times between the nodes have been recorded, after the broadcasts were counted.
    async fn has_lags(&self, broadcasts: usize) -> Vec<f64> {
        let mut lags = Vec::new();
        let waiting = async {
            while lags.len() < broadcasts {
                lags.extend(self.recorded.samples("pipeline.cluster.lag"));
                sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(PATIENCE, waiting).await;
        assert_eq!(lags.len(), broadcasts);
        lags
    }
}

async fn within<T>(waited: impl Future<Output = T>) -> T {
    let times = if has_default_times() { 4 } else { 1 };
    timeout(times * PATIENCE, waited).await.unwrap()
}

/// Waits until the condition holds.
async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(waiting).await;
}

/// The next broadcast: its event and its payload.
async fn next(subscription: &mut TopicSubscription) -> (String, Value) {
    let broadcast = within(subscription.recv()).await.unwrap();
    let payload = broadcast.payload();
    let payload =
        payload.as_binary().map_or_else(|| payload.parse().unwrap(), |bytes| json!(bytes.to_vec()));
    (broadcast.event().to_owned(), payload)
}

/// Where a broadcast arrives, and where it does not.
pub async fn broadcasts(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let (left, right) = (Node::start(&server, "left").await, Node::start(&server, "right").await);
    let other = Node::with(&server, options("left").node("alone"), Endpoint::builder()).await;
    let mut here = left.subscribe(T).await;
    let (mut there, mut also) = (right.subscribe(T).await, right.endpoint.subscribe(T));
    let _other = other.subscribe("room:other").await;

    left.endpoint.broadcast(T, "news", json!({ "n": 1 })).unwrap();
    for subscription in [&mut here, &mut there, &mut also] {
        assert_eq!(next(subscription).await, ("news".to_owned(), json!({ "n": 1 })));
    }
    // The excluded subscriber is excluded on its node, and a local broadcast stays there.
    right.endpoint.broadcast_from(there.id(), T, "from", json!({})).unwrap();
    right.endpoint.local_broadcast(T, "local", json!({})).unwrap();
    right.endpoint.broadcast(T, "bytes", Payload::binary(vec![0, 255])).unwrap();
    for expected in ["from", "bytes"] {
        assert_eq!(next(&mut here).await.0, expected);
    }
    for expected in ["local", "bytes"] {
        assert_eq!(next(&mut there).await.0, expected);
    }
    for expected in ["from", "local", "bytes"] {
        assert_eq!(next(&mut also).await.0, expected);
    }
    // A broadcast to one node, which may be the sender.
    let pubsub = left.endpoint.pubsub();
    pubsub.direct_broadcast("right", T, "direct", json!({})).unwrap();
    pubsub.direct_broadcast("left", T, "own", json!({})).unwrap();
    pubsub.direct_broadcast("nowhere", T, "lost", json!({})).unwrap();
    left.endpoint.broadcast(T, "last", json!({})).unwrap();
    for expected in ["direct", "last"] {
        assert_eq!(next(&mut there).await.0, expected);
    }
    for expected in ["own", "last"] {
        assert_eq!(next(&mut here).await.0, expected);
    }
    left.has_received(2).await;
    right.has_received(3).await;
    right.has_lags(3).await;
    // It has no subscribers of the topic, so it was sent nothing.
    other.endpoint.broadcast(T, "end", json!({})).unwrap();
    assert_eq!(next(&mut there).await.0, "end");
    assert_eq!(other.count("pipeline.cluster.received"), 0);
    let gaps = [&left, &right, &other].map(|node| node.count("pipeline.cluster.gaps"));
    assert_eq!(gaps, [0, 0, 0]);
}

/// A topic that is given up and wanted again, while another node broadcasts to it: what is sent in between is not missing.
pub async fn wanted_again(kind: Kind) {
    const TIMES: usize = 1_000;
    let Some(server) = Server::start(kind).await else { return };
    let left = Node::start(&server, "left").await;
    let short = options("right").linger(Duration::ZERO);
    let right = Node::with(&server, short, Endpoint::builder()).await;
    within(right.cluster.connected()).await;
    let is_over = AtomicBool::new(false);
    let saying = async {
        let mut n = 0;
        while !is_over.load(Relaxed) {
            for _ in 0..20 {
                left.say(T, n);
                n += 1;
            }
            sleep(Duration::from_micros(200)).await;
        }
    };
    let changing = async {
        for _ in 0..TIMES {
            let mut there = right.subscribe(T).await;
            next(&mut there).await;
            drop(there);
            // The next one is to come as soon as this one is given up.
            let given_up = async {
                while timeout(Duration::ZERO, right.cluster.receives(T)).await.is_ok() {
                    yield_now().await;
                }
            };
            within(given_up).await;
        }
        is_over.store(true, Relaxed);
    };
    tokio::join!(saying, changing);
    let received = right.count("pipeline.cluster.received");
    let counted =
        ["gaps", "lost", "dropped"].map(|it| right.count(&format!("pipeline.cluster.{it}")));
    println!("{kind:?}: {received} received, gaps, lost and dropped: {counted:?}");
    assert!(received >= TIMES as u64, "{received}");
    assert_eq!(counted, [0, 0, 0], "what was sent while it was given up is no gap");
}

/// Topics are subscribed to while they have subscribers, and a while longer.
pub async fn interest(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let left = Node::start(&server, "left").await;
    let linger = options("right").linger(Duration::from_millis(300));
    let right = Node::with(&server, linger, Endpoint::builder()).await;
    within(right.cluster.connected()).await;
    let mut all = right.subscribe("all").await;
    let mut many = Vec::new();
    for n in 0..2_000 {
        many.push(right.endpoint.subscribe(&format!("user:{n}")));
    }
    within(right.cluster.receives("user:1999")).await;
    for n in 0..2_000 {
        within(right.cluster.receives(&format!("user:{n}"))).await;
        left.say(&format!("user:{n}"), n);
    }
    for (n, user) in many.iter_mut().enumerate() {
        assert_eq!(next(user).await.1["n"], n);
    }
    // A user who comes back at once has missed nothing.
    drop(many);
    let mut user = right.endpoint.subscribe("user:7");
    left.say("user:7", 7);
    assert_eq!(next(&mut user).await.1["n"], 7);
    // In the end, what is sent to a user who is gone does not arrive.
    eventually(async || {
        right.count("pipeline.cluster.received");
        left.say("user:8", 8);
        left.say("all", 1);
        assert_eq!(next(&mut all).await.1["n"], 1);
        right.count("pipeline.cluster.received") == 1
    })
    .await;
}

struct NamedSocket;

impl Socket for NamedSocket {
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        Ok(params.get("name").unwrap_or_default().to_owned())
    }

    fn id(&self, name: &String) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("named:{name}")))
    }
}

struct Room;

impl Channel for Room {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

/// The address of the clients of a node. They are served to the end of the test.
async fn served(node: &Node) -> String {
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app: axum::Router = axum::Router::new().fallback_service(node.endpoint.clone());
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    format!("ws://{address}/socket/websocket?vsn=2.0.0&name=ada")
}

/// A node with clients, and the address of their socket.
async fn serving(
    server: &Server,
    options: ClusterOptions,
) -> (Node, String, tokio::task::AbortHandle) {
    let mount = Mount::new(NamedSocket).channel::<Room>("room:*");
    let node = Node::with(server, options, Endpoint::builder().mount("/socket", mount)).await;
    within(node.cluster.connected()).await;
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app: axum::Router = axum::Router::new().fallback_service(node.endpoint.clone());
    let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&name=ada");
    (node, url, serving.abort_handle())
}

/// What another node broadcasts right after a join was answered arrives, each time: of topics that are new
/// to the node, and of one that it unsubscribes from and subscribes to all the time.
pub async fn joins(kind: Kind) {
    const JOINS: usize = 1_000;
    let Some(server) = Server::start(kind).await else { return };
    let left = Node::start(&server, "left").await;
    let options = options("right").linger(Duration::ZERO).join_wait(PATIENCE);
    let (right, url, serving) = serving(&server, options).await;
    let mut ada = connect(&url).await.unwrap();
    for n in 0..JOINS {
        let (topic, reference) = (format!("room:{}", n % 2 * n), n.to_string());
        ada.join(&reference, &topic).await;
        left.say(&topic, n);
        let said = json!({ "from": "left", "n": n });
        ada.expect([json!([null, null, topic, "said", said])]).await;
        ada.send(json!([reference, reference, topic, "phx_leave", {}])).await;
        let left = json!({ "status": "ok", "response": {} });
        ada.expect([
            json!([reference, reference, topic, "phx_reply", left]),
            json!([reference, reference, topic, "phx_close", {}]),
        ])
        .await;
    }
    assert_eq!(right.count("pipeline.cluster.joins_early"), 0);
    let mut waited = right.recorded.samples("pipeline.cluster.join_waited");
    waited.sort_unstable_by(f64::total_cmp);
    println!(
        "joins waited, ms: p50 {:.2}, p99 {:.2}",
        quantile(&waited, 50),
        quantile(&waited, 99)
    );
    // A topic that the node has already is not waited for.
    let _here = right.subscribe(T).await;
    ada.join("again", T).await;
    assert_eq!(right.recorded.samples("pipeline.cluster.join_waited"), [0.0; 0]);
    serving.abort();
}

/// A quantile, in hundredths, of sorted times.
fn quantile(times: &[f64], part: usize) -> f64 {
    times[(times.len() - 1) * part / 100]
}

/// A join is answered when the server takes too long, and at once when the node is not connected.
pub async fn joins_of_a_node_alone(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    let options = options("right").join_wait(Duration::from_millis(50));
    let patient = options.ping_interval(PATIENCE).timeout(PATIENCE);
    let (right, url, serving) = serving(&server, patient).await;
    let mut ada = connect(&url).await.unwrap();
    server.freeze();
    ada.join("1", T).await;
    assert!(right.cluster.is_connected());
    assert_eq!(right.count("pipeline.cluster.joins_early"), 1);
    server.kill();
    eventually(async || !right.cluster.is_connected()).await;
    ada.join("2", "room:2").await;
    assert_eq!(right.count("pipeline.cluster.joins_early"), 1);
    right.say("room:2", 1);
    ada.expect([json!([null, null, "room:2", "said", { "from": "right", "n": 1 }])]).await;
    serving.abort();
}

/// Clients of another node receive broadcasts, timed, and are disconnected by their id.
pub async fn clients(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let left = Node::start(&server, "left").await;
    let (telemetry, recorded) = Recorded::new();
    let mount = Mount::new(NamedSocket).channel::<Room>("room:*");
    let builder = Endpoint::builder().mount("/socket", mount).telemetry(telemetry);
    let right = Node::with(&server, options("right"), builder).await;
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app: axum::Router = axum::Router::new().fallback_service(right.endpoint.clone());
    let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&name=ada");
    let mut ada = connect(&url).await.unwrap();
    ada.join("1", T).await;
    within(right.cluster.receives(T)).await;
    let enqueued_at = Instant::now() - Duration::from_millis(250);
    left.endpoint.broadcast_timed(enqueued_at, T, "news", json!({ "n": 1 })).unwrap();
    ada.expect([json!([null, null, T, "news", { "n": 1 }])]).await;
    // A frame may arrive before its write is recorded.
    let mut delivered = Vec::new();
    eventually(async || {
        delivered.extend(recorded.samples("pipeline.push_delivered"));
        !delivered.is_empty()
    })
    .await;
    assert!(matches!(delivered[..], [ms] if (250.0..20_000.0).contains(&ms)), "{delivered:?}");
    let lag = right.has_lags(1).await[0];
    assert!(lag <= delivered[0] - 249.0, "{lag:?} and {delivered:?}");

    assert_eq!(left.endpoint.disconnect("named:ada"), 0, "the socket is on another node");
    assert_eq!(ada.closed().await, 1001);
    serving.abort();
}

/// A pipeline on one node pushes to clients of both, and is timed on both. What its worker says is for here only stays on
/// its node.
pub async fn pushes(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let mut nodes = Vec::new();
    for name in ["left", "right"] {
        let (telemetry, recorded) = Recorded::new();
        let mount = Mount::new(NamedSocket).channel::<Room>("room:*");
        let builder = Endpoint::builder().mount("/socket", mount).telemetry(telemetry);
        let node = Node::with(&server, options(name), builder).await;
        within(node.cluster.connected()).await;
        let url = served(&node).await;
        let mut client = connect(&url).await.unwrap();
        client.join("1", T).await;
        within(node.cluster.receives(T)).await;
        nodes.push((node, client, recorded));
    }
    let [(left, ada, at_left), (right, eve, at_right)] = &mut nodes[..] else { panic!("two") };
    let (queue, producer) = timed_queue(QueueOptions::new());
    let worker = left.endpoint.pubsub().broadcast_worker(|n: &Timed<u64>| {
        let push = PreparedBroadcast::new(T, "news", json!({ "n": **n }))?;
        let push = if **n % 2 == 1 { push.here_only() } else { push };
        Ok(push.timed(n))
    });
    for n in 0..4 {
        queue.push_timed(n).await.unwrap();
    }
    sleep(Duration::from_millis(250)).await;
    let _pipeline = Pipeline::builder("news")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new())
        .start()
        .unwrap();
    for (client, numbers) in [(ada, &[0, 1, 2, 3][..]), (eve, &[0, 2])] {
        let news = numbers.iter().map(|n| json!([null, null, T, "news", { "n": n }]));
        client.expect(news).await;
    }
    // A frame may arrive before its write is recorded.
    let samples = async |recorded: &Recorded, name: &str, count: usize| {
        let mut samples = Vec::new();
        eventually(async || {
            samples.extend(recorded.samples(name));
            samples.len() >= count
        })
        .await;
        assert_eq!(samples.len(), count, "{name}");
        samples
    };
    samples(at_left, "pipeline.push_delivered", 4).await;
    let delivered = samples(at_right, "pipeline.push_delivered", 2).await;
    let written = samples(at_right, "pipeline.push_written", 2).await;
    let between = samples(&right.recorded, "pipeline.cluster.push_lag", 2).await;
    println!("{kind:?}: delivered {delivered:?}, written {written:?}, between {between:?}");
    for ((delivered, written), between) in delivered.iter().zip(&written).zip(&between) {
        assert!(*delivered >= 250.0, "the time in the queue of the other node is a part of it");
        assert!(between + written + 249.0 <= *delivered, "the whole way has more than these parts");
    }
    // What is not timed is no push.
    left.say(T, 9);
    right.has_received(3).await;
    right.has_lags(3).await;
    assert_eq!(right.recorded.samples("pipeline.cluster.push_lag"), [0.0; 0]);
}

/// A long-polling client whose requests take turns between two nodes.
pub async fn polling(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
    for name in ["left", "right"] {
        let mount = Mount::new(NamedSocket).channel::<Room>("room:*").longpoll(LongPoll::new());
        let builder = Endpoint::builder().mount("/socket", mount);
        let node = Node::with(&server, options(name), builder).await;
        within(node.cluster.connected()).await;
        let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap().to_string());
        let app: axum::Router = axum::Router::new().fallback_service(node.endpoint.clone());
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        nodes.push(node);
    }
    let mut turns = addresses.iter().cycle();
    let mut request = async |method: &str, token: &Value, lines: &str| {
        let token = token.as_str().unwrap_or_default();
        let path = format!("/socket/longpoll?vsn=2.0.0&name=ada&token={token}");
        let headers = [("content-type", "application/x-ndjson")];
        request(turns.next().unwrap(), method, &path, &headers, lines).await.json()
    };
    let opened = request("GET", &json!(""), "").await;
    let token = opened["token"].clone();
    let join = json!(["1", "1", T, "phx_join", {}]).to_string();
    assert_eq!(request("POST", &token, &join).await, json!({ "status": 200 }));
    // Longer than what a server of NATS takes in one message. The answer is passed on.
    let reply = request("GET", &token, "").await;
    assert_eq!((&reply["status"], reply["messages"].as_array().unwrap().len()), (&json!(200), 1));
    let long = json!({ "text": "x".repeat(3_000_000) });
    nodes[0].endpoint.broadcast(T, "long", long.clone()).unwrap();
    let answer = request("GET", &token, "").await;
    let messages: Value = serde_json::from_str(answer["messages"][0].as_str().unwrap()).unwrap();
    assert_eq!(messages, json!([null, null, T, "long", long]));
    for n in 0..20 {
        let reference = n.to_string();
        let heartbeat = json!([null, reference, "phoenix", "heartbeat", {}]).to_string();
        assert_eq!(request("POST", &token, &heartbeat).await, json!({ "status": 200 }));
        let polled = request("GET", &token, "").await;
        assert!(polled["messages"][0].as_str().unwrap().contains(&reference), "{polled}");
        // So that both kinds of request meet both nodes.
        if n == 10 {
            assert_eq!(request("POST", &token, "").await, json!({ "status": 200 }));
        }
    }
    let open: Vec<_> = nodes.iter().map(|node| node.endpoint.open_sockets()).collect();
    assert_eq!(open, [1, 0]);
}

/// Many messages of several nodes: none is lost, and those of a topic and an origin keep their order.
pub async fn order(kind: Kind) {
    const EACH: usize = 8_000;
    let Some(server) = Server::start(kind).await else { return };
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        nodes.push(Node::start(&server, name).await);
    }
    let receiver = Node::start(&server, "receiver").await;
    let topics = ["room:1", "room:2", "room:3", "room:4"];
    let (mut reading, arrived) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for topic in topics {
        let (mut subscription, arrived) = (receiver.subscribe(topic).await, arrived.clone());
        reading.push(tokio::spawn(async move {
            let mut last = HashMap::new();
            for _ in 0..EACH / topics.len() * 3 {
                let (_, said) = next(&mut subscription).await;
                let n = said["n"].as_u64().unwrap();
                let before = last.insert(said["from"].to_string(), n);
                assert!(before.is_none_or(|before| before < n), "{before:?} before {n}");
                arrived.fetch_add(1, SeqCst);
            }
        }));
    }
    for n in 0..EACH {
        for node in &nodes {
            node.say(topics[n % topics.len()], n);
        }
        // A subscription holds 1024 broadcasts, so the senders do not run away from it.
        if n % 200 == 199 {
            eventually(async || arrived.load(SeqCst) == 3 * (n + 1)).await;
        }
    }
    for reading in reading {
        within(reading).await.unwrap();
    }
    assert_eq!(
        (receiver.count("pipeline.cluster.gaps"), receiver.count("pipeline.cluster.dropped")),
        (0, 0)
    );
    receiver.has_received(3 * EACH as u64).await;
}

/// A server that is killed: broadcasts still arrive here, what has no room is dropped and seen as a gap,
/// and everything works again when the server is back.
pub async fn restart(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    let small = options("left").max_waiting(10);
    let left = Node::with(&server, small, Endpoint::builder()).await;
    within(left.cluster.connected()).await;
    let right = Node::start(&server, "right").await;
    let (mut here, mut there) = (left.subscribe(T).await, right.subscribe(T).await);
    let mut gaps = right.cluster.gaps();
    left.say(T, 0);
    assert_eq!(
        (next(&mut here).await.1["n"].clone(), next(&mut there).await.1["n"].clone()),
        (json!(0), json!(0))
    );

    server.kill();
    eventually(async || !left.cluster.is_connected() && !right.cluster.is_connected()).await;
    for n in 1..=30 {
        left.say(T, n);
        assert_eq!(next(&mut here).await.1["n"], n, "local subscribers miss nothing");
    }
    let dropped = left.recorded.counters("pipeline.cluster.dropped");
    let dropped: u64 =
        dropped.iter().filter(|(label, _)| label.contains("not_connected")).map(|(_, n)| n).sum();
    assert_eq!(dropped, 20);
    server.start_again().await;
    within(right.cluster.connected()).await;
    assert!(matches!(within(gaps.next()).await, Some(Gap::Disconnected(gone)) if !gone.is_zero()));
    within(left.cluster.connected()).await;
    within(right.cluster.receives(T)).await;
    // What the server had taken and not passed on when it was killed is lost, and is seen when the next
    // broadcast arrives.
    left.say(T, 31);
    let (mut received, mut missing) = (1, 0);
    loop {
        let said = next(&mut there).await.1["n"].as_u64().unwrap();
        received += 1;
        assert!(said > 20, "the oldest were dropped");
        if said == 31 {
            break;
        }
    }
    while let Ok(gap) = timeout(Duration::from_millis(1), gaps.next()).await {
        let Some(Gap::Missing(gap)) = gap else { panic!("{gap:?}") };
        assert_eq!(gap.origin(), "left");
        missing += gap.count();
    }
    assert_eq!(received + missing, 32, "what has not arrived is known to be missing");
    assert_eq!(right.count("pipeline.cluster.lost"), missing);
}

/// What waits during an outage arrives at a node that connects again later than the one that sends it.
pub async fn outage(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    // Redis tells how many nodes there are. With NATS, it is waited for as long as the outage was.
    let tells = matches!(kind, Kind::Redis);
    let (outage, delay) = if tells { (0, 2_000) } else { (5_000, 200) };
    let delay = Duration::from_millis(delay);
    let slow = options("right").backoff(Backoff::new(delay, delay));
    let right = Node::with(&server, slow, Endpoint::builder()).await;
    within(right.cluster.connected()).await;
    let patient = options("left").settle(PATIENCE);
    let left = Node::with(&server, patient, Endpoint::builder()).await;
    within(left.cluster.connected()).await;
    let mut there = right.subscribe(T).await;
    left.say(T, 0);
    assert_eq!(next(&mut there).await.1["n"], 0);
    if tells {
        eventually(async || {
            left.recorded.look();
            left.recorded.gauges("pipeline.cluster.nodes").iter().any(|(_, nodes)| *nodes == 2.0)
        })
        .await;
    }
    server.kill();
    eventually(async || !left.cluster.is_connected() && !right.cluster.is_connected()).await;
    for n in 1..=300 {
        left.say(T, n);
    }
    sleep(Duration::from_millis(outage)).await;
    server.start_again().await;
    for n in 1..=300 {
        assert_eq!(next(&mut there).await.1["n"], n);
    }
    assert_eq!(right.count("pipeline.cluster.lost"), 0);
}

/// A server that does not answer is noticed, and what was sent meanwhile arrives once.
pub async fn frozen(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let (left, right) = (Node::start(&server, "left").await, Node::start(&server, "right").await);
    let (mut here, mut there) = (left.subscribe(T).await, right.subscribe(T).await);
    server.freeze();
    for n in 0..50 {
        left.say(T, n);
        assert_eq!(next(&mut here).await.1["n"], n);
    }
    eventually(async || !left.cluster.is_connected()).await;
    for n in 50..100 {
        left.say(T, n);
        assert_eq!(next(&mut here).await.1["n"], n);
    }
    // Both have noticed, so that the one that receives has subscribed again before the other sends.
    eventually(async || !right.cluster.is_connected()).await;
    server.thaw();
    within(left.cluster.connected()).await;
    within(right.cluster.connected()).await;
    left.say(T, 100);
    let mut last = None;
    while last != Some(100) {
        let n = next(&mut there).await.1["n"].as_u64().unwrap();
        assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
        last = Some(n);
    }
}

/// A server that is not there when the program starts.
pub async fn absent(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    server.kill();
    let mut nodes = Vec::new();
    for name in ["left", "right"] {
        nodes.push(Node::with(&server, options(name), Endpoint::builder()).await);
    }
    let (left, right) = (&nodes[0], &nodes[1]);
    let (mut here, mut there) = (left.endpoint.subscribe(T), right.endpoint.subscribe(T));
    left.say(T, 1);
    assert_eq!(next(&mut here).await.1["n"], 1);
    assert!(!left.cluster.is_connected());
    server.start_again().await;
    within(right.cluster.receives(T)).await;
    within(left.cluster.connected()).await;
    left.say(T, 2);
    while next(&mut there).await.1["n"] != 2 {}
}

/// Nodes whose users at a server of NATS may not do all that a node does. The server answers as if they did.
pub async fn permissions() {
    const MANY: u64 = 1_000;
    const USERS: &str = r#"
        authorization { users = [
            { user: may, password: "se:cret" }
            { user: deaf, password: "se:cret", permissions: { subscribe: { deny: "test.1.t.>" } } }
            { user: mute, password: "se:cret", permissions: { publish: { deny: "test.1.t.>" } } }
        ] }
    "#;
    let Some(server) = Server::start_nats(USERS).await else { return };
    let mut nodes = Vec::new();
    for user in ["may", "deaf", "mute"] {
        let url = server.url().replace("//", &format!("//{user}:se%3Acret@"));
        let node = Node::at(&url, options(user), Endpoint::builder()).await;
        within(node.cluster.connected()).await;
        nodes.push(node);
    }
    let [may, deaf, mute] = &nodes[..] else { panic!("three") };
    let _user = deaf.endpoint.subscribe(T);
    let mut errors = 0;
    eventually(async || {
        errors += deaf.count("pipeline.cluster.connection_errors");
        errors >= 3 && !deaf.cluster.is_connected()
    })
    .await;
    let refused_are = async |count: u64| {
        let mut refused = 0;
        eventually(async || {
            let dropped = mute.recorded.counters("pipeline.cluster.dropped");
            assert!(dropped.iter().all(|(reason, _)| reason == "reason=refused"), "{dropped:?}");
            refused += dropped.iter().map(|(_, count)| count).sum::<u64>();
            refused >= count
        })
        .await;
        assert_eq!(refused, count);
    };
    // The first refusal may be heard after it was counted as sent.
    mute.say(T, 0);
    refused_are(1).await;
    mute.count("pipeline.cluster.sent");
    // They are fewer messages, and those in one message are refused together.
    (0..20).for_each(|n| mute.say(T, n));
    refused_are(20).await;
    assert_eq!(mute.count("pipeline.cluster.sent"), 0);
    // What it may publish is published.
    assert_eq!(mute.count("pipeline.cluster.connection_errors"), 0);
    // More refusals at once than the client keeps.
    (0..MANY).for_each(|n| mute.say(&format!("room:{n}"), 1));
    refused_are(MANY).await;
    // Another node of the same server notices nothing.
    let mut here = may.subscribe(T).await;
    may.say(T, 2);
    assert_eq!(next(&mut here).await.1["n"], 2);
    assert_eq!(may.count("pipeline.cluster.connection_errors"), 0);
}

/// A program listens to all subjects of a server of NATS, as an auditor or a bridge does.
pub async fn audited() {
    let Some(server) = Server::start(Kind::Nats).await else { return };
    let auditor = async_nats::connect(server.url()).await.unwrap();
    let mut all = auditor.subscribe(">").await.unwrap();
    auditor.flush().await.unwrap();
    let (left, right) = (Node::start(&server, "left").await, Node::start(&server, "right").await);
    for node in [&left, &right] {
        within(node.cluster.connected()).await;
    }
    let mut there = right.subscribe(T).await;
    for n in 0..20 {
        left.say(T, n);
        assert_eq!(next(&mut there).await.1["n"], n);
    }
    let (mut broadcasts, mut pings) = (0, 0);
    while broadcasts < 20 || pings < 10 {
        let subject = within(all.next()).await.unwrap().subject;
        broadcasts += usize::from(subject.starts_with("test.1.t."));
        pings += usize::from(subject.starts_with("test.1.ping."));
    }
    for node in [&left, &right] {
        assert!(node.cluster.is_connected());
        assert_eq!(node.count("pipeline.cluster.connection_errors"), 0);
    }
}

/// A node whose user at a server of Redis may publish to half of the channels.
pub async fn channels_of_a_user() {
    const TOPICS: u64 = 100;
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let allowed = ["&test.1.all", "&test.1.n.*", "&test.1.t.[0-7]*"];
    let mut user = redis::cmd("ACL");
    user.arg(&["SETUSER", "half", "on", ">secret", "~*", "+@all", "resetchannels"]).arg(&allowed);
    user.exec_async(&mut connection).await.unwrap();
    let may = Node::start(&server, "may").await;
    let url = server.url().replace("//", "//half:secret@");
    let half = Node::at(&url, options("half"), Endpoint::builder()).await;
    within(half.cluster.connected()).await;
    let topics: Vec<_> = (0..TOPICS).map(|n| format!("room:{n}")).collect();
    let mut subscriptions = Vec::new();
    for topic in &topics {
        subscriptions.push(may.subscribe(topic).await);
    }
    topics.iter().for_each(|topic| half.say(topic, 1));
    let (mut sent, mut refused) = (0, 0);
    eventually(async || {
        sent += half.count("pipeline.cluster.sent");
        refused += half.count("pipeline.cluster.dropped");
        sent + refused >= TOPICS
    })
    .await;
    assert!(sent > 20 && refused > 20, "{sent} sent and {refused} refused");
    may.has_received(sent).await;
    assert_eq!(sent + refused, TOPICS);
    assert_eq!(half.count("pipeline.cluster.connection_errors"), 0);
}

/// A node that sends no more than the options say refuses the rest.
pub async fn refusal(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    let strict = options("left").max_waiting(2).refuse_when_full();
    let left = Node::with(&server, strict, Endpoint::builder()).await;
    within(left.cluster.connected()).await;
    server.kill();
    eventually(async || !left.cluster.is_connected()).await;
    let mut here = left.endpoint.subscribe(T);
    left.say(T, 1);
    left.say(T, 2);
    let refused = left.endpoint.broadcast(T, "said", json!({})).unwrap_err();
    let expected =
        "failed to reach the other nodes: too many broadcasts wait to be sent to the other nodes";
    assert_eq!(refused.to_string(), expected);
    assert_eq!(
        (next(&mut here).await.1["n"].clone(), next(&mut here).await.1["n"].clone()),
        (json!(1), json!(2))
    );
}

/// Short periods of a tracker.
fn tracker() -> TrackerOptions {
    let options = TrackerOptions::new();
    if has_default_times() {
        return options;
    }
    options
        .broadcast_period(Duration::from_millis(50))
        .max_silent_periods(4)
        .down_period(Duration::from_millis(1_000))
        .permdown_period(Duration::from_millis(3_000))
}

/// The same, of a node that waits four times as long for others. It is the control of what others notice in time.
fn patient_tracker() -> TrackerOptions {
    let times = tracker();
    if has_default_times() {
        return times.down_period(Duration::from_secs(120));
    }
    times.down_period(Duration::from_secs(4)).permdown_period(Duration::from_secs(12))
}

/// How long it takes until the condition holds, and until that of the control does.
async fn noticed(mut so: impl AsyncFnMut() -> bool, mut control: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    let (took, control) = tokio::join!(
        async {
            eventually(&mut so).await;
            since.elapsed()
        },
        async {
            eventually(&mut control).await;
            since.elapsed()
        }
    );
    println!("noticed after {took:?}, and by one that waits four times as long after {control:?}");
    assert!(2 * took < control, "{took:?}, and {control:?} with four times the period");
}

/// A part of the time after which a node counts as down: three processes have a part in each sign of life.
const STALL: Duration = Duration::from_millis(200);

/// How often a process, or the server that it asks, was not run for so long that its node may count as down, and once more
/// for each second of that.
struct Stalls(Arc<AtomicU64>);

impl Stalls {
    /// Counts to the end of the test.
    async fn watch(url: &str) -> Self {
        let address = url.split("//").nth(1).unwrap().trim_end_matches('/');
        let mut server = TcpStream::connect(address).await.unwrap();
        let stalls = Arc::<AtomicU64>::default();
        let counts = stalls.clone();
        tokio::spawn(async move {
            loop {
                let (since, mut said) = (Instant::now(), Vec::new());
                // At the end of the test, the server ends.
                if server.write_all(b"PING\r\n").await.is_err() {
                    return;
                }
                while !said.windows(4).any(|it| it == b"PONG") {
                    let Ok(1..) = server.read_buf(&mut said).await else { return };
                }
                sleep(Duration::from_millis(50)).await;
                if since.elapsed() > STALL {
                    counts.fetch_add(1 + since.elapsed().as_secs(), SeqCst);
                }
            }
        });
        Self(stalls)
    }

    fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// How often each user has joined and left, as its clients see it.
#[derive(Clone, Default)]
struct Changes(Arc<Mutex<HashMap<String, (usize, usize)>>>);

impl Changes {
    fn count(&self, diff: &PresenceDiff) {
        let mut changes = self.0.lock();
        for user in diff.joins.keys() {
            changes.entry(user.to_owned()).or_default().0 += 1;
        }
        for user in diff.leaves.keys() {
            changes.entry(user.to_owned()).or_default().1 += 1;
        }
    }

    fn of(&self, user: &str) -> (usize, usize) {
        self.0.lock().get(user).copied().unwrap_or_default()
    }
}

/// Presences of all nodes are one list; a node that says goodbye leaves at once, and one that dies later;
/// each leaves once.
pub async fn presence(kind: Kind, test: &str) {
    if inside_of_another().await {
        return;
    }
    let Some(server) = Server::start(kind).await else { return };
    let changes = Changes::default();
    let counted = changes.clone();
    let presence =
        Presence::builder().tracker(tracker()).on_diff(move |diff| counted.count(diff)).build();
    let builder = Endpoint::builder().presence(&presence);
    let here = Node::with(&server, options("here"), builder).await;
    within(here.cluster.connected()).await;
    let patient = Presence::builder().tracker(patient_tracker()).build();
    let builder = Endpoint::builder().presence(&patient);
    let control = Node::with(&server, options("patient"), builder).await;
    within(control.cluster.connected()).await;
    let _ada = presence.track_detached(T, "ada", &json!({})).unwrap();
    let mut said = here.subscribe(T).await;
    let (stalls, mut stalls_of) = (Stalls::watch(&server.url()).await, HashMap::new());
    let mut nodes: Vec<_> = (0..4).map(|n| faults::Process(spawn(&server, test, n))).collect();
    let mut round = 0;
    // Each of the others broadcasts that it has heard, and whom it lists.
    let mut are_listed_by = async |users: &[&str], others: &[u64]| {
        eventually(async || {
            round += 1;
            here.say(T, round);
            let (mut heard, mut alike) = (BTreeSet::new(), true);
            // A node that was away for a moment has missed it.
            let hearing = timeout(Duration::from_secs(1), async {
                while heard.len() < others.len() {
                    let (event, payload) = next(&mut said).await;
                    if event == "heard" && payload["n"] == round {
                        let node = payload["node"].as_u64().unwrap();
                        heard.insert(node);
                        stalls_of.insert(node, payload["stalls"].as_u64().unwrap());
                        alike &= payload["users"] == json!(users);
                    }
                }
            });
            if hearing.await.is_err() {
                return false;
            }
            assert!(heard.iter().eq(others), "{heard:?}");
            let own = presence.list(T).await;
            alike && own.keys().eq(users.iter().copied())
        })
        .await;
    };
    eventually(async || presence.list(T).await.len() == 5).await;
    are_listed_by(&["ada", "user 0", "user 1", "user 2", "user 3"], &[0, 1, 2, 3]).await;
    eventually(async || patient.list(T).await.len() == 5).await;

    // A process that is killed, and one that ends. Where a process is not run for longer than the tracker waits, its user
    // leaves and joins again: so a user leaves as often as it has joined, and once when its process is gone.
    let all_are_there = async |users: &[&str]| {
        let is_there = |(joins, leaves): (usize, usize)| joins == leaves + 1;
        eventually(async || users.iter().all(|user| is_there(changes.of(user)))).await;
    };
    all_are_there(&["user 0", "user 1", "user 2", "user 3"]).await;
    let before = ["user 0", "user 1"].map(|user| changes.of(user));
    drop(nodes.remove(0));
    let left = |(joins, leaves): (usize, usize)| (joins, leaves + 1);
    let has_left = async || changes.of("user 0").1 > before[0].1;
    noticed(has_left, async || patient.list(T).await.len() == 4).await;
    are_listed_by(&["ada", "user 1", "user 2", "user 3"], &[1, 2, 3]).await;
    let before = [before[0], changes.of("user 1")];
    here.endpoint.broadcast("control", "end", json!({ "node": 1 })).unwrap();
    assert!(nodes.remove(0).0.wait().unwrap().success());
    eventually(async || changes.of("user 1").1 > before[1].1).await;
    are_listed_by(&["ada", "user 2", "user 3"], &[2, 3]).await;
    // Longer than the permanent-down period: nothing leaves twice.
    sleep(Duration::from_millis(3_500)).await;
    are_listed_by(&["ada", "user 2", "user 3"], &[2, 3]).await;
    assert_eq!(["user 0", "user 1"].map(|user| changes.of(user)), before.map(left));
    // On a machine that is calm, no user leaves whose process is there.
    all_are_there(&["ada", "user 2", "user 3"]).await;
    let again = before.iter().map(|(_, leaves)| leaves).sum::<usize>();
    let again = again + changes.of("user 2").1 + changes.of("user 3").1;
    let stalls = stalls.count() + stalls_of.values().sum::<u64>();
    println!("{again} have left and joined again, with {stalls} stalls");
    assert!(again as u64 <= stalls, "{again} have left and joined again, with {stalls} stalls");
    assert_eq!(changes.of("ada"), (1, 0), "it is here");
}

/// Two applications with prefixes of their own share a server, and nothing else, although their nodes, topics
/// and users have the same names.
pub async fn applications(kind: Kind) {
    // Of the clients, who get nothing of presences there.
    const TALK: &str = "room:talk";
    let Some(server) = Server::start(kind).await else { return };
    let mut applications = Vec::new();
    for prefix in ["shop", "shop2"] {
        let mut nodes = Vec::new();
        for name in ["left", "right"] {
            let presence = Presence::builder().tracker(tracker()).build();
            let mount = Mount::new(NamedSocket).channel::<Room>("room:*");
            let builder = Endpoint::builder().presence(&presence).mount("/socket", mount);
            let node = Node::with(&server, options_of(prefix, name), builder).await;
            within(node.cluster.connected()).await;
            let user = format!("{name} of {prefix}");
            let user = presence.track_detached(T, &user, &json!({})).unwrap();
            nodes.push((node, presence, user));
        }
        let (right, ..) = &nodes[1];
        let url = served(right).await;
        let mut ada = connect(&url).await.unwrap();
        ada.join("1", TALK).await;
        within(right.cluster.receives(TALK)).await;
        applications.push((prefix, nodes, ada));
    }
    for (prefix, nodes, _) in &applications {
        for (node, presence, _) in nodes {
            let both = [format!("left of {prefix}"), format!("right of {prefix}")];
            eventually(async || presence.list(T).await.keys().eq(both.iter())).await;
            assert_eq!(node.count("pipeline.cluster.gaps"), 0);
        }
    }
    // The first application disconnects its client. The other's client gets its own broadcasts alone.
    let [(_, shop, gone), (_, other, stays)] = &mut applications[..] else { panic!("two") };
    for (nodes, n) in [(&*shop, 1), (&*other, 2)] {
        nodes[0].0.say(TALK, n);
    }
    for (client, n) in [(&mut *gone, 1), (&mut *stays, 2)] {
        let said = json!({ "from": "left", "n": n });
        client.expect([json!([null, null, TALK, "said", said])]).await;
    }
    shop[0].0.endpoint.disconnect("named:ada");
    let closed = within(gone.next()).await;
    assert!(closed.is_close(), "{closed:?}");
    other[0].0.say(TALK, 3);
    stays.expect([json!([null, null, TALK, "said", { "from": "left", "n": 3 }])]).await;
}

fn spawn(server: &Server, test: &str, n: usize) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).stdout(Stdio::null());
    command.env("CLUSTER_NODE", server.url()).env("CLUSTER_NUMBER", n.to_string());
    command.spawn().unwrap()
}

/// Whether this process is one of several, which the test has started. It has ended then.
async fn inside_of_another() -> bool {
    let url = env::var_os("CLUSTER_NODE");
    if let Some(url) = &url {
        inside(url.to_str().unwrap()).await;
    }
    url.is_some()
}

/// A node in a process of its own.
async fn inside(url: &str) {
    let n: u64 = env::var("CLUSTER_NUMBER").unwrap().parse().unwrap();
    let cluster = join(url, options(&format!("node {n}"))).await;
    let presence = Presence::builder().tracker(tracker()).build();
    let builder = Endpoint::builder().adapter(cluster.clone()).presence(&presence);
    let endpoint = builder.build().unwrap();
    let (mut said, mut control) = (endpoint.subscribe(T), endpoint.subscribe("control"));
    within(cluster.receives(T)).await;
    within(cluster.receives("control")).await;
    let stalls = Stalls::watch(url).await;
    let guard = presence.track_detached(T, &format!("user {n}"), &json!({})).unwrap();
    loop {
        tokio::select! {
            said = next(&mut said) => if said.0 == "said" {
                let users: Vec<_> = presence.list(T).await.keys().map(str::to_owned).collect();
                let (said, stalls) = (&said.1["n"], stalls.count());
                let heard = json!({ "node": n, "users": users, "n": said, "stalls": stalls });
                endpoint.broadcast(T, "heard", heard).unwrap();
            },
            control = next(&mut control) => if control.1["node"] == n {
                break;
            },
        }
    }
    drop(guard);
    endpoint.drain(Duration::from_secs(1)).await;
    assert!(cluster.flush(PATIENCE).await);
}
