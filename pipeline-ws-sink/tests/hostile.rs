//! Hostile clients next to a calm one, over real TCP, with the server on one worker thread and on two.
//!
//! Most attacks are in the tests of the whole, which measure the calm client more closely. Each attack
//! runs in separate threads, which the server's runtime cannot slow down. The calm client
//! sends one request after the other, and its median response time is compared with its own median
//! without the attack. The bound is wide: these tests detect a client that blocks the others, not one
//! that slows them down a little.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
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
    time::{Instant, sleep},
};

/// The number of requests of the calm client.
const QUESTIONS: usize = 20;

/// A minimum for the calm median, which is so small that another program on the machine can multiply it.
const FLOOR: Duration = Duration::from_millis(500);

/// One attack at a time, so that they do not affect each other's measurements.
static ARENA: Mutex<()> = Mutex::new(());

/// The number of hostile clients in each attack.
const HOSTILE: usize = 2;

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
            "large" => Ok(Reply::ok().with(json!({ "padding": "x".repeat(1 << 16) }))),
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

    /// The median response time: of the socket itself, and of a channel.
    fn median(&mut self) -> Duration {
        let event = json!(["1", "2", "room:calm", "ask", {}]);
        let mut waits: Vec<_> = (0..QUESTIONS)
            .map(|n| {
                let begun = Instant::now();
                let question = if n % 2 == 0 { &event } else { &heartbeat() };
                self.0.ask(question).expect("the calm client receives a reply");
                begun.elapsed()
            })
            .collect();
        waits.sort();
        waits[QUESTIONS / 2]
    }

    /// Asserts that its response time is about the same as without the attack.
    fn is_answered_nearly_as_fast_as(&mut self, calm: Duration) {
        let attacked = self.median();
        let bound = calm * 20 + FLOOR;
        assert!(attacked < bound, "a median of {attacked:?} under attack, and of {calm:?} without");
    }
}

/// Running hostile clients, until this is dropped.
struct Attack {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Attack {
    /// Each client sends the beginning once, then the rest repeatedly without a pause, and reads all
    /// frames. A closed client reconnects.
    fn begin(server: &Server, beginning: &[Vec<u8>], again: &[Vec<u8>]) -> Self {
        let (stopped, address) = (Arc::new(AtomicBool::new(false)), server.address);
        let (beginning, again) = (beginning.concat(), again.concat());
        // Many at once, so that a hostile client itself costs little.
        let times = (1 << 16) / again.len().max(1) + 1;
        let again = again.repeat(times);
        let before = server.endpoint.snapshot().frames_in;
        let threads = (0..HOSTILE).map(|_| {
            let (stopped, beginning, again) = (stopped.clone(), beginning.clone(), again.clone());
            thread::spawn(move || {
                while !stopped.load(Relaxed) {
                    let _ = Self::send(address, &stopped, &beginning, &again);
                }
            })
        });
        let threads = threads.collect();
        let attack = Self { stopped, threads };
        server.runtime.block_on(async {
            while server.endpoint.snapshot().frames_in < before + 10 {
                sleep(Duration::from_millis(1)).await;
            }
        });
        attack
    }

    fn send(
        address: SocketAddr,
        stopped: &AtomicBool,
        beginning: &[u8],
        again: &[u8],
    ) -> io::Result<()> {
        let Client(mut stream) = Client::connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        let mut reading = stream.try_clone()?;
        let reader = thread::spawn(move || {
            let mut answers = vec![0; 1 << 16];
            while reading.read(&mut answers).is_ok_and(|count| count > 0) {}
        });
        let mut left = beginning;
        while !stopped.load(Relaxed) {
            if left.is_empty() {
                left = again;
            }
            match stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reader.join();
        Ok(())
    }
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
    for workers in [1, 2] {
        let server = Server::start_with(workers, |mount| mount.frame_rate_limit(100));
        let mut client = CalmClient::connect(&server);
        let calm = client.median();
        let (begun, before) = (Instant::now(), server.endpoint.snapshot().frames_in);
        let attack = Attack::begin(&server, &[], &[text(&heartbeat())]);
        client.is_answered_nearly_as_fast_as(calm);
        server.runtime.block_on(async { sleep(Duration::from_secs(1)).await });
        let read = server.endpoint.snapshot().frames_in - before;
        // Each may be ahead by ten seconds' worth. Without the limit it is about ten thousand a second.
        let (clients, seconds) = (HOSTILE as u64 + 1, begun.elapsed().as_secs() + 1);
        assert!(read <= clients * (1000 + 100 * seconds), "{read} in {seconds} s");
        drains(&server);
        drop(attack);
    }
}

#[test]
fn k_601_clients_that_never_read_hold_no_more_than_the_endpoints_outboxes() {
    const OUTBOXES: usize = 1 << 20;
    let _alone = ARENA.lock();
    let large = text(&json!(["1", "2", "room:deaf", "large", {}]));
    for (again, times, clients) in [(large, 40, 10), (text(&heartbeat()), 20_000, 3)] {
        let builder = Endpoint::builder().max_outboxes(OUTBOXES);
        let server = Server::start_in(2, builder, |mount| mount.frame_rate_limit(u32::MAX));
        let mut client = CalmClient::connect(&server);
        let calm = client.median();
        let mut deaf: Vec<_> = (0..clients)
            .map(|_| {
                let Client(mut stream) = Client::connect_deaf(server.address).unwrap();
                stream.write_all(&text(&join("room:deaf"))).unwrap();
                stream
            })
            .collect();
        let again = again.repeat(times);
        let endpoint = server.endpoint.clone();
        let looking = server.runtime.spawn(async move {
            let mut most = 0;
            while endpoint.snapshot().closed_slow == 0 {
                most = most.max(endpoint.snapshot().outbox_bytes);
                sleep(Duration::from_millis(1)).await;
            }
            most
        });
        while !looking.is_finished() {
            // A closed client cannot write any more.
            deaf.iter_mut().for_each(|stream| drop(stream.write_all(&again)));
            client.is_answered_nearly_as_fast_as(calm);
        }
        let most = server.runtime.block_on(looking).unwrap();
        let bound = OUTBOXES + deaf.len() * (128 << 10);
        assert!(most <= bound, "{most} bytes are pending");
        drains(&server);
        drop(deaf);
    }
}
