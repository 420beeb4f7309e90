//! A client that reads is never closed as slow, however large the burst: over real connections, with
//! default options.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use pipeline_core::{
    Pipeline, source::from_iter, subscription::SubscribeOptions, supervisor::ConsumerSupervisor,
};
use pipeline_test_support::PATIENCE;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Presence, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
    mount::WhenFull,
    pubsub::PreparedBroadcast,
};
use serde_json::json;
use support::{
    channels::{NamedSocket, Room, endpoint_with},
    raw::{FIN, RawClient, TEXT},
    server::Server,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};

const T: &str = "room:a";

/// A timeout far longer than any of these tests.
const LONG: Duration = PATIENCE.saturating_mul(6);

/// Joins a topic, and leaves the connection behind the reply.
async fn join(stream: TcpStream, topic: &str) -> TcpStream {
    let mut client = RawClient::connect(stream, "").await;
    client.send(FIN | TEXT, json!(["1", "1", topic, "phx_join", {}]).to_string().as_bytes()).await;
    let (_, answer) = client.next().await;
    assert!(String::from_utf8(answer).unwrap().contains("phx_reply"));
    client.into_stream()
}

/// Reads frames until it has this many numbered events, in order, or until the end. The connection stays
/// open: its end would reach the others on the topic.
async fn read_numbers(mut stream: TcpStream, count: u64) -> (u64, TcpStream) {
    let (mut buffer, mut next) = (Vec::with_capacity(1 << 20), 0);
    while next < count {
        if stream.read_buf(&mut buffer).await.unwrap() == 0 {
            break;
        }
        let mut rest = &buffer[..];
        while let [_, length @ ..126, body @ ..] = rest {
            let Some((payload, more)) = body.split_at_checked(usize::from(*length)) else { break };
            let expected = format!("{{\"i\":{next}}}]");
            if !payload.ends_with(expected.as_bytes()) {
                return (next, stream);
            }
            (next, rest) = (next + 1, more);
        }
        let read = buffer.len() - rest.len();
        buffer.drain(..read);
    }
    (next, stream)
}

async fn readers(server: &Server, count: usize, events: u64) -> Vec<JoinHandle<(u64, TcpStream)>> {
    let mut readers = vec![];
    for _ in 0..count {
        let stream = join(server.connect_tcp().await, T).await;
        readers.push(tokio::spawn(read_numbers(stream, events)));
    }
    readers
}

async fn all_have_got(readers: Vec<JoinHandle<(u64, TcpStream)>>, events: u64, server: &Server) {
    let mut open = vec![];
    for reader in readers {
        let (got, stream) = timeout(LONG, reader).await.unwrap().unwrap();
        let dropped = server.recorded.counters("socket.frames_dropped");
        assert_eq!((got, dropped), (events, vec![]));
        open.push(stream);
    }
}

/// Broadcasts in a loop that neither waits nor yields.
async fn a_loop_of(events: u64, clients: usize) {
    a_loop_with(|mount| mount, events, clients).await;
}

async fn a_loop_with(
    options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>,
    events: u64,
    clients: usize,
) {
    let server = Server::start(endpoint_with(options).0).await;
    let readers = readers(&server, clients, events).await;
    for i in 0..events {
        server.endpoint.broadcast(T, "e", json!({ "i": i })).unwrap();
    }
    all_have_got(readers, events, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_1100_broadcasts_reaches_a_client_that_reads() {
    a_loop_of(1_100, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_100_000_broadcasts_reaches_a_client_that_reads() {
    a_loop_of(100_000, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_broadcasts_reaches_ten_clients_that_read() {
    a_loop_of(1_100, 10).await;
    a_loop_of(20_000, 10).await;
}

/// A small outbox makes no difference: only the system's buffers matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_many_times_the_outbox_reaches_clients_that_read() {
    for clients in [1, 10] {
        a_loop_with(|mount| mount.max_outbox(10, 1 << 20), 1_100, clients).await;
    }
}

/// The clients read when the loop has ended: they receive the contents of the system's buffers.
#[tokio::test]
async fn a_loop_that_occupies_the_only_thread_reaches_clients_on_it() {
    a_loop_of(1_100, 10).await;
    a_loop_of(20_000, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_pushes_as_fast_as_it_can_closes_no_client_that_reads() {
    const EVENTS: u64 = 20_000;
    for when_full in [WhenFull::Disconnect, WhenFull::block()] {
        let server = Server::start(endpoint_with(|mount| mount.when_full(when_full)).0).await;
        let readers = readers(&server, 2, EVENTS).await;
        let push = |i: &u64| PreparedBroadcast::new(T, "e", json!({ "i": i }));
        let mut pipeline = Pipeline::builder("numbers")
            .producer(from_iter(0..EVENTS))
            .consumer_supervisor(
                ConsumerSupervisor::new(server.endpoint.pubsub().broadcast_worker(push)),
                SubscribeOptions::new().max_demand(50),
            )
            .start()
            .unwrap();
        assert_eq!(pipeline.join().await.unprocessed(), 0);
        all_have_got(readers, EVENTS, &server).await;
    }
}

/// Occupies a core for 0 to 60 µs, by the number of the event.
fn work(i: u64) {
    let busy = Duration::from_micros(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58);
    let begun = Instant::now();
    while begun.elapsed() < busy {
        std::hint::spin_loop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_to_a_topic_arrive_in_order_with_any_processing_time() {
    const EVENTS: u64 = 3_000;
    for workers in [2, 50, 1_000] {
        let server = Server::start(endpoint_with(|mount| mount).0).await;
        let readers = readers(&server, 1, EVENTS).await;
        let push = |i: &u64| {
            work(*i);
            // To the topic, and to others in between.
            let (topic, i) = if i.is_multiple_of(2) { (T, i / 2) } else { ("room:b", *i) };
            PreparedBroadcast::new(topic, "e", json!({ "i": i }))
        };
        let mut pipeline = Pipeline::builder("numbers")
            .producer(from_iter(0..2 * EVENTS))
            .consumer_supervisor(
                ConsumerSupervisor::new(server.endpoint.pubsub().broadcast_worker(push)),
                SubscribeOptions::new().max_demand(workers),
            )
            .start()
            .unwrap();
        assert_eq!(pipeline.join().await.unprocessed(), 0);
        all_have_got(readers, EVENTS, &server).await;
    }
}

/// Replies to a join with 6 MB.
struct Large;

impl Channel for Large {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "d": "x".repeat(6_000_000) }));
        Ok(Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_larger_than_the_outbox_reaches_a_slow_client() {
    let mount = Mount::new(NamedSocket).channel::<Room>("room:*").channel::<Large>("large:*");
    let server = Server::start(Endpoint::builder().mount("/socket", mount)).await;
    let slow = TcpSocket::new_v4().unwrap();
    slow.set_recv_buffer_size(16_384).unwrap();
    let stream = slow.connect(server.address()).await.unwrap();
    let mut client = RawClient::connect(stream, "").await;
    client.send(FIN | TEXT, json!(["1", "1", T, "phx_join", {}]).to_string().as_bytes()).await;
    client.next().await;
    // Two of them, followed by a heartbeat.
    for topic in ["large:1", "large:2"] {
        let join = json!(["1", topic, topic, "phx_join", {}]).to_string();
        client.send(FIN | TEXT, join.as_bytes()).await;
    }
    let beat = json!([null, "beat", "phoenix", "heartbeat", {}]).to_string();
    client.send(FIN | TEXT, beat.as_bytes()).await;
    let mut stream = client.into_stream();
    let mut received = vec![];
    while received.len() < 12_000_000 {
        for i in 0..10 {
            server.endpoint.broadcast(T, "e", json!({ "i": i })).unwrap();
        }
        let mut some = vec![0; 100_000];
        let count = timeout(LONG, stream.read(&mut some)).await.unwrap().unwrap();
        assert!(count > 0, "closed after {}", received.len());
        received.extend_from_slice(&some[..count]);
    }
    assert_eq!(server.endpoint.open_sockets(), 1);
    assert!(server.recorded.counters("socket.closed_slow").is_empty());
}

/// Broadcasts every event to its topic.
struct Present(Presence);

struct Entered;

impl Channel for Present {
    type Socket = NamedSocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::ZERO, Entered)?;
        Ok(Self(cx.config().clone()))
    }
}

impl HandleMessage<Entered> for Present {
    async fn handle_message(&mut self, _: Entered, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let name = format!("{:?}", cx.id());
        self.0.track(cx, &name, &json!({}))?;
        cx.push("presence_state", self.0.list(cx.topic()).await)?;
        Ok(())
    }
}

/// Every join sends a diff to all members. 2,000 need more open files than many systems allow:
/// `BURST_JOINS=2000` tries that, and takes about four seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_simultaneous_joins_with_presence_all_stay_open() {
    let joins = std::env::var("BURST_JOINS").ok().map_or(200, |joins| joins.parse().unwrap());
    let presence = Presence::new();
    let mount = Mount::new(NamedSocket).channel_with::<Present>("room:*", presence.clone());
    let endpoint = Endpoint::builder().presence(&presence).mount("/socket", mount);
    let server = Server::start(endpoint).await;
    let mut clients = vec![];
    for _ in 0..joins {
        clients.push(RawClient::connect(server.connect_tcp().await, "").await);
    }
    let reading = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let join = json!(["1", "1", T, "phx_join", {}]).to_string();
            client.send(FIN | TEXT, join.as_bytes()).await;
            let (mut stream, mut some) = (client.into_stream(), vec![0; 65_536]);
            while stream.read(&mut some).await.unwrap() > 0 {}
        })
    });
    let reading: Vec<_> = reading.collect();
    let all_are_there = async {
        while presence.tracked() < joins {
            assert_eq!(server.endpoint.open_sockets(), joins);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while server.endpoint.snapshot().frames_waiting > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, all_are_there).await.unwrap();
    assert_eq!(server.endpoint.open_sockets(), joins);
    assert!(server.recorded.counters("socket.frames_dropped").is_empty());
    reading.iter().for_each(JoinHandle::abort);
}
