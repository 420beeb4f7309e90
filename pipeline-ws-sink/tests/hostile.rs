//! Hostile clients next to a calm one, over real TCP, with the server on one worker thread and on two.
//!
//! Most attacks are in the tests of the whole. Each attack runs in separate threads, which the server's
//! runtime cannot slow down. The calm client sends one request after the other. Its response times are
//! compared with its own while the same attack goes to another server in the same process: the
//! attackers' use of the machine is in both.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_test_support::{AnySocket, PATIENCE};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    endpoint::EndpointBuilder,
};
use serde_json::{Value, json};
use socket2::{Domain, Socket as Socket2, Type};
use support::raw::{FIN, TEXT};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep, timeout},
};

/// The number of requests of the calm client in each measurement.
const QUESTIONS: usize = 100;

/// How often an attack is measured at most: another program on the machine may disturb one measurement,
/// and does not disturb all of them.
const ROUNDS: usize = 6;

/// What the median and the 99th percentile may take in addition to the factors: the time for which the
/// system may run other threads before one that is ready.
const NOISE: [Duration; 2] = [Duration::from_millis(6), Duration::from_millis(30)];

/// One attack at a time, so that they do not affect each other's measurements.
static ARENA: Mutex<()> = Mutex::new(());

/// A payload that takes no time to be encoded: an answer is to cost memory here, and not time.
static LARGE: LazyLock<Payload> =
    LazyLock::new(|| Payload::new(&json!({ "padding": "x".repeat(1 << 16) })).unwrap());

/// Replies at once, at length, or never, depending on the event.
struct Room;

impl Channel for Room {
    type Socket = AnySocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "stall" => std::future::pending().await,
            "large" => Ok(Reply::ok().with(&*LARGE)),
            _ => Ok(Reply::ok()),
        }
    }
}

/// A server with this many worker threads.
struct Server {
    runtime: Runtime,
    endpoint: Endpoint,
    address: SocketAddr,
}

impl Server {
    fn start_with(
        workers: usize,
        options: impl FnOnce(Mount<AnySocket>) -> Mount<AnySocket>,
    ) -> Self {
        Self::start_in(workers, Endpoint::builder(), options)
    }

    fn start_in(
        workers: usize,
        builder: EndpointBuilder,
        options: impl FnOnce(Mount<AnySocket>) -> Mount<AnySocket>,
    ) -> Self {
        let runtime =
            Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
        let mount = Mount::new(AnySocket).channel::<Room>("room:*").compress(true);
        let endpoint = builder.mount("/socket", options(mount)).build().unwrap();
        let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
        let listener = runtime.block_on(pipeline_ws_sink::listen("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { runtime, endpoint, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A failing test must not wait for the cause of its failure.
        let other = Builder::new_current_thread().build().unwrap();
        std::mem::replace(&mut self.runtime, other).shutdown_background();
    }
}

/// A client with blocking I/O.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_by(TcpStream::connect(address)?, address, "permessage-deflate")
    }

    /// A client with a small receive buffer that does not read.
    fn connect_deaf(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket2::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&address.into())?;
        Self::connect_by(socket.into(), address, "")
    }

    fn connect_by(
        mut stream: TcpStream,
        address: SocketAddr,
        extensions: &str,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!(
            "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: {extensions}\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(Self(stream))
    }

    /// The payload of the next frame.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head)?;
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length)?;
                u16::from_be_bytes(length).into()
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            length => length.into(),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn ask(&mut self, question: &Value) -> io::Result<Vec<u8>> {
        self.0.write_all(&text(question))?;
        self.next()
    }
}

/// A masked frame. The mask is 0, so the payload is unchanged.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ ..65536 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

fn text(message: &Value) -> Vec<u8> {
    frame(FIN | TEXT, message.to_string().as_bytes())
}

fn heartbeat() -> Value {
    json!([null, "1", "phoenix", "heartbeat", {}])
}

fn join(topic: &str) -> Value {
    json!(["1", "1", topic, "phx_join", {}])
}

/// The measurements of the calm client.
struct CalmClient(Client);

impl CalmClient {
    fn connect(server: &Server) -> Self {
        let mut client = Client::connect(server.address).unwrap();
        client.ask(&join("room:calm")).unwrap();
        Self(client)
    }

    /// Its response times: of the socket itself, and of a channel.
    fn times(&mut self) -> Times {
        let event = json!(["1", "2", "room:calm", "ask", {}]);
        let mut times: Vec<_> = (0..QUESTIONS)
            .map(|n| {
                let begun = Instant::now();
                let question = if n % 2 == 0 { &event } else { &heartbeat() };
                self.0.ask(question).expect("the calm client receives a reply");
                begun.elapsed()
            })
            .collect();
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Times { median: at(50), p99: at(99) }
    }
}

/// Response times.
#[derive(Debug)]
struct Times {
    median: Duration,
    p99: Duration,
}

impl Times {
    fn are_nearly_as_short_as(&self, control: &Self) -> bool {
        self.median <= control.median * 2 + NOISE[0] && self.p99 <= control.p99 * 5 + NOISE[1]
    }
}

/// The calm client of a server is answered during an attack as fast as while the same attack goes to
/// another server. A measurement that something else on the machine disturbs is repeated.
fn does_not_delay(hostile: &Arc<Hostile>, [server, other]: [&Server; 2]) {
    let mut client = CalmClient::connect(server);
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let [control, attacked] = [other, server].map(|attacked| {
            let _attack = hostile.attack(attacked);
            client.times()
        });
        if attacked.are_nearly_as_short_as(&control) {
            return;
        }
        seen.push(format!("{attacked:?}, and {control:?} without"));
    }
    panic!("the calm client is delayed: {seen:#?}");
}

/// Each client sends the beginning once, then the rest repeatedly without a pause. It reads all frames, or
/// none. A closed client reconnects.
struct Hostile {
    clients: usize,
    reads: bool,
    beginning: Vec<u8>,
    again: Vec<u8>,
}

impl Hostile {
    /// Many messages at once, so that a hostile client itself costs little.
    fn new(clients: usize, reads: bool, beginning: Vec<u8>, again: &[u8]) -> Arc<Self> {
        let again = again.repeat((1 << 16) / again.len() + 1);
        Arc::new(Self { clients, reads, beginning, again })
    }

    /// Begins the attack, which lasts until it is dropped.
    fn attack(self: &Arc<Self>, server: &Server) -> Attack {
        let (stopped, address) = (Arc::new(AtomicBool::new(false)), server.address);
        let before = server.endpoint.snapshot().frames_in;
        let threads = (0..self.clients).map(|_| {
            let (stopped, hostile) = (stopped.clone(), self.clone());
            thread::spawn(move || {
                while !stopped.load(Relaxed) {
                    let _ = hostile.send(address, &stopped);
                }
            })
        });
        let attack = Attack { threads: threads.collect(), stopped };
        server.runtime.block_on(async {
            while server.endpoint.snapshot().frames_in < before + 10 {
                sleep(Duration::from_millis(1)).await;
            }
        });
        attack
    }

    fn send(&self, address: SocketAddr, stopped: &AtomicBool) -> io::Result<()> {
        let connect = if self.reads { Client::connect } else { Client::connect_deaf };
        let Client(mut stream) = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        let reader = self.reads.then(|| stream.try_clone()).transpose()?.map(|mut reading| {
            thread::spawn(move || {
                let mut answers = vec![0; 1 << 16];
                while reading.read(&mut answers).is_ok_and(|count| count > 0) {}
            })
        });
        let mut left = &self.beginning[..];
        while !stopped.load(Relaxed) {
            if left.is_empty() {
                left = &self.again;
            }
            match stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reader.map(JoinHandle::join);
        Ok(())
    }
}

/// Running hostile clients, until this is dropped.
struct Attack {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The shutdown is not delayed by the clients.
fn drains(server: &Server) {
    let endpoint = server.endpoint.clone();
    let (done, drained) = mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(endpoint.drain(Duration::from_millis(200)));
        let _ = done.send(report);
    });
    drained.recv_timeout(PATIENCE).expect("it drains during the attack");
}

#[test]
fn k_600_clients_that_send_too_fast_are_slowed_down() {
    let _alone = ARENA.lock();
    let hostile = Hostile::new(2, true, Vec::new(), &text(&heartbeat()));
    for workers in [1, 2] {
        let start = || Server::start_with(workers, |mount| mount.frame_rate_limit(100));
        let (server, other) = (start(), start());
        let (begun, before) = (Instant::now(), other.endpoint.snapshot().frames_in);
        let attack = hostile.attack(&other);
        other.runtime.block_on(async { sleep(Duration::from_secs(1)).await });
        let read = other.endpoint.snapshot().frames_in - before;
        // Each may be ahead by ten seconds' worth. Without the limit it is about ten thousand a second.
        let (clients, seconds) = (hostile.clients as u64, begun.elapsed().as_secs() + 1);
        assert!(read <= clients * (1000 + 100 * seconds), "{read} in {seconds} s");
        drop(attack);
        does_not_delay(&hostile, [&server, &other]);
        let _attack = hostile.attack(&server);
        drains(&server);
    }
}

#[test]
fn k_601_clients_that_never_read_hold_no_more_than_the_endpoints_outboxes() {
    const OUTBOXES: usize = 1 << 20;
    const CLOSES: u64 = 2;
    let _alone = ARENA.lock();
    let (beginning, large) =
        (text(&join("room:deaf")), text(&json!(["1", "2", "room:deaf", "large", {}])));
    for hostile in [
        Hostile::new(10, false, beginning.clone(), &large),
        Hostile::new(3, false, beginning, &text(&heartbeat())),
    ] {
        let start = || {
            let builder = Endpoint::builder().max_outboxes(OUTBOXES);
            Server::start_in(2, builder, |mount| mount.frame_rate_limit(u32::MAX))
        };
        let (server, other) = (start(), start());
        let endpoint = server.endpoint.clone();
        // Closed clients connect again, so each of them has been full several times.
        let closes = CLOSES * hostile.clients as u64;
        let looking = server.runtime.spawn(async move {
            let mut most = 0;
            loop {
                let seen = endpoint.snapshot();
                most = most.max(seen.outbox_bytes);
                if seen.closed_slow >= closes {
                    return most;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        does_not_delay(&hostile, [&server, &other]);
        let _attack = hostile.attack(&server);
        let looked = server.runtime.block_on(async { timeout(PATIENCE, looking).await });
        let most = looked.expect("the clients are closed again and again").unwrap();
        let bound = OUTBOXES + hostile.clients * (128 << 10);
        assert!(most <= bound, "{most} bytes are pending");
        drains(&server);
    }
}
