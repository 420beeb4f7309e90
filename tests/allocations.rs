//! The number of allocations per broadcast, which must not grow with the number of sockets, and the memory that
//! the head of a request takes.
//!
//! Only the server is counted: it runs on a single-threaded runtime, and allocations of other threads
//! are ignored. Its clock is paused, so that the pace of broadcasts does not depend on the machine.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, extract::Request};
use pipeline::{
    serve,
    statsd::{StatsdFlusher, StatsdRecorder, cadence::NopMetricSink},
    telemetry::Telemetry,
    ws::{
        Endpoint, Mount,
        endpoint::EndpointBuilder,
        listen,
        pubsub::{Adapter, AdapterError, Broadcast, LocalNode, PreparedBroadcast},
    },
};
use pipeline_test_support::{AnyChannel, AnySocket};
use serde::Serialize;
use tokio::{
    runtime::{Builder, Runtime},
    task::spawn_blocking,
    time::{Instant, sleep},
};

const TOPIC: &str = "room:1";

/// The number of broadcasts that are counted.
const BROADCASTS: u64 = 100;

/// The number of broadcasts before them, after which all reused memory is allocated.
const BEFORE: u64 = 300;

#[derive(Serialize)]
struct Message {
    text: &'static str,
    n: u64,
}

/// A server with joined sockets.
struct Server {
    runtime: Runtime,
    endpoint: Endpoint,
    clients: Vec<TcpStream>,
    /// Another node, if its broadcasts are counted.
    other: Option<Endpoint>,
    /// Whether the outcome of each is counted.
    counts_outcomes: bool,
    /// Deliveries are timed, and the times are kept until they are flushed.
    _statsd: StatsdFlusher,
}

/// A node that receives broadcasts, and one that sends them there.
#[derive(Clone)]
struct Cable {
    name: &'static str,
    here: Arc<OnceLock<LocalNode>>,
}

impl Adapter for Cable {
    fn node_name(&self) -> &str {
        self.name
    }

    fn start(&self, node: LocalNode) {
        if self.name == "here" {
            self.here.set(node).unwrap();
        }
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        self.here.get().unwrap().deliver(broadcast)?;
        Ok(())
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// The pace of broadcasts.
#[derive(Clone, Copy)]
enum Pace {
    /// Each is written by the task that broadcasts it.
    Slow,
    /// Ten at once. All but the first are left to the flusher, which joins them into one write.
    TenAtOnce,
}

impl Server {
    fn start(sockets: usize) -> Self {
        Self::start_with(sockets, |builder| builder)
    }

    fn start_with(sockets: usize, more: impl FnOnce(EndpointBuilder) -> EndpointBuilder) -> Self {
        let runtime =
            Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let statsd = StatsdRecorder::sink(NopMetricSink).flush_every(Duration::from_secs(3600));
        let (recorder, statsd) = statsd.build().unwrap();
        let mount = Mount::new(AnySocket).channel::<AnyChannel>("room:*");
        let builder = Endpoint::builder().mount("/socket", mount);
        let builder = more(builder.telemetry(Telemetry::with_recorder(recorder)));
        let endpoint = runtime.block_on(async { builder.build() }).unwrap();
        let clients = runtime.block_on(async {
            let listener = listen("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app: Router = Router::new().fallback_service(endpoint.clone());
            tokio::spawn(async { axum::serve(listener, app).await });
            let joining = move || (0..sockets).map(|_| join(address)).collect();
            spawn_blocking(joining).await.unwrap()
        });
        let (other, counts_outcomes) = (None, false);
        Self { runtime, endpoint, clients, other, counts_outcomes, _statsd: statsd }
    }

    /// The same, and what is broadcast comes from another node.
    fn with_other_node(sockets: usize) -> Self {
        let here = Cable { name: "here", here: Arc::default() };
        let there = Cable { name: "there", ..here.clone() };
        let mut server = Self::start_with(sockets, |builder| builder.adapter(here));
        let _runtime = server.runtime.enter();
        server.other = Some(Endpoint::builder().adapter(there).build().unwrap());
        server
    }

    fn broadcast(&self, count: u64, pace: Pace) {
        self.runtime.block_on(async {
            for n in 0..count {
                let message = Message { text: "hello", n };
                let by = self.other.as_ref().unwrap_or(&self.endpoint);
                if self.counts_outcomes {
                    let push = PreparedBroadcast::new(TOPIC, "said", message).unwrap();
                    let outcome = by.pubsub().deliver(push.timed(Instant::now())).await.unwrap();
                    assert_eq!(outcome.await.written, self.clients.len());
                } else {
                    by.broadcast_timed(Instant::now(), TOPIC, "said", message).unwrap();
                }
                let at_once = match pace {
                    Pace::Slow => 1,
                    Pace::TenAtOnce => 10,
                };
                if n % at_once == at_once - 1 {
                    sleep(Duration::from_millis(2)).await;
                }
            }
            // All pending frames are written.
            sleep(Duration::from_millis(20)).await;
        });
    }

    /// The number of allocations of all broadcasts.
    fn allocations(&mut self, pace: Pace) -> u64 {
        self.broadcast(BEFORE, pace);
        let counted = allocation_counter::measure(|| self.broadcast(BROADCASTS, pace));
        for client in &mut self.clients {
            for _ in 0..BEFORE + BROADCASTS {
                assert!(read_frame(client).ends_with(b"}]"));
            }
        }
        counted.count_total
    }
}

/// Connects and joins.
fn join(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let text = format!(r#"["1","1","{TOPIC}","phx_join",{{}}]"#);
    // A mask of zeros leaves the text unchanged.
    let head = [0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    stream.write_all(&[&head, text.as_bytes()].concat()).unwrap();
    assert!(read_frame(&mut stream).ends_with(br#"{"status":"ok","response":{}}]"#));
    stream
}

/// Reads a short frame.
fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    assert!(head[1] < 126);
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn a_broadcast_does_not_allocate_per_socket() {
    let [one, many] = [1, 101].map(|sockets| Server::start(sockets).allocations(Pace::Slow));
    assert!(one <= 10 * BROADCASTS, "{one} for {BROADCASTS} broadcasts to one socket");
    // Timers and the like allocate, too, but less than once per hundred frames.
    let frames = 100 * BROADCASTS;
    assert!(many < one + frames / 100, "{one} for one socket, {many} for {frames} frames more");
}

#[test]
fn a_push_whose_outcome_is_counted_does_not_allocate_per_socket() {
    let allocations = |sockets| {
        let mut server = Server::start(sockets);
        server.counts_outcomes = true;
        server.allocations(Pace::Slow)
    };
    let [one, many] = [1, 101].map(allocations);
    assert!(one <= 15 * BROADCASTS, "{one} for {BROADCASTS} pushes to one socket");
    let frames = 100 * BROADCASTS;
    assert!(many < one + frames / 100, "{one} for one socket, {many} for {frames} frames more");
}

/// A broadcast of another node is put in a frame once for this node, too.
#[test]
fn a_broadcast_of_another_node_does_not_allocate_per_socket() {
    let allocations = |sockets| Server::with_other_node(sockets).allocations(Pace::Slow);
    let [one, many] = [1, 101].map(allocations);
    assert!(one <= 20 * BROADCASTS, "{one} for {BROADCASTS} broadcasts to one socket");
    let frames = 100 * BROADCASTS;
    assert!(many < one + frames / 100, "{one} for one socket, {many} for {frames} frames more");
}

/// Such sockets keep their buffers while frames come fast, so they allocate a backlog once, and again as
/// it grows.
#[test]
fn sockets_with_steady_writes_do_not_allocate_per_frame() {
    let [one, many] = [1, 101].map(|sockets| Server::start(sockets).allocations(Pace::TenAtOnce));
    let (sockets, frames) = (100, 100 * BROADCASTS);
    assert!(many < one + 5 * sockets, "{one} for one socket, {many} for {frames} frames more");
}

#[test]
fn the_allocations_of_a_join_do_not_depend_on_other_sockets() {
    let endpoint = Endpoint::builder().build().unwrap();
    let come_and_go = || drop(endpoint.subscribe(TOPIC));
    let allocations = || {
        // All tables have grown by now.
        come_and_go();
        allocation_counter::measure(come_and_go).count_total
    };
    let alone = allocations();
    let _topics: Vec<_> = (0..10_000).map(|n| endpoint.subscribe(&format!("other:{n}"))).collect();
    assert_eq!(allocations(), alone, "with 10,000 other topics");
    let _first = endpoint.subscribe(TOPIC);
    let second = allocations();
    let _others: Vec<_> = (0..1000).map(|_| endpoint.subscribe(TOPIC)).collect();
    assert_eq!(allocations(), second, "with 1000 others on the topic");
}

/// The most memory that a server holds at a time, while a client sends these bytes in pieces of this size, to
/// a handler that answers none of its requests.
fn most_held(bytes: &[u8], piece: usize) -> u64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let app = Router::new().fallback(|request: Request| async move {
        std::future::pending::<()>().await;
        drop(request);
    });
    let mut client = runtime.block_on(async {
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, app).until(std::future::pending()).into_future());
        spawn_blocking(move || TcpStream::connect(address)).await.unwrap().unwrap()
    });
    // It is accepted, and the tasks of the connection exist.
    runtime.block_on(async { sleep(Duration::from_millis(5)).await });
    let held = allocation_counter::measure(|| {
        for piece in bytes.chunks(piece) {
            // A server that has refused a head need not read the rest.
            let _ = client.write_all(piece);
            runtime.block_on(async { sleep(Duration::from_millis(2)).await });
        }
    });
    held.bytes_max
}

#[test]
fn the_head_of_a_request_takes_192_kib_at_most() {
    const LIMIT: usize = 64 << 10;
    let (start, end) = ("GET / HTTP/1.1\r\nHost: here\r\nLong: ", "\r\n\r\n");
    let small = [start, end].concat();
    let large = [start, &"a".repeat(LIMIT - small.len()), end].concat();
    // The second request is read while the first one has not been answered, and a third one would not be.
    let next = [&large[..], &large, &large].concat();
    let endless = [start, &"a".repeat(1 << 18)].concat();
    let least = most_held(small.as_bytes(), LIMIT);
    for piece in [3000, 5000, 9000, 20_000, 50_000, LIMIT, 192 << 10] {
        for sent in [&next, &endless] {
            let held = most_held(sent.as_bytes(), piece) - least;
            let bounds = LIMIT as u64..192 << 10;
            assert!(bounds.contains(&held), "{held} bytes of {} in pieces of {piece}", sent.len());
        }
    }
}
