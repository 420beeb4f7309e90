//! The end of connections: idle timeouts, and draining in batches, on a paused clock.
#![allow(clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use futures::SinkExt;
use pipeline_test_support::{Client, Log, settle};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{JoinContext, JoinError},
    endpoint::{EndpointReport, Shed},
    mount::Drainer,
};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint_with},
    memory::MemoryServer,
};
use tokio::{
    io::DuplexStream,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_tungstenite::tungstenite::Message;

const T: &str = "room:lobby";
const INTERVAL: Duration = Duration::from_millis(300);

fn impatient() -> MemoryServer {
    let timeout = Duration::from_millis(700);
    MemoryServer::start(endpoint_with(|mount| mount.idle_timeout(timeout)).0)
}

#[tokio::test(start_paused = true)]
async fn c_154_silence_closes_a_socket_with_1002() {
    let server = impatient();
    let mut client = server.connect(4096).await;
    client.join("1", T).await;
    let joined = Instant::now();
    assert_eq!(client.closed().await, 1002);
    let silent = joined.elapsed().as_millis();
    assert!((700..720).contains(&silent), "{silent}");
}

#[tokio::test(start_paused = true)]
async fn c_155_a_client_that_sends_heartbeats_stays_connected() {
    let server = impatient();
    let mut client = server.connect(4096).await;
    for _ in 0..5 {
        sleep(Duration::from_millis(400)).await;
        client.expect_nothing_else().await;
    }
    assert_eq!(client.closed().await, 1002, "without heartbeats it is closed");
}

#[tokio::test(start_paused = true)]
async fn c_156_frames_of_the_server_and_pings_of_the_client_keep_it_connected() {
    let server = impatient();
    let mut client = server.connect(4096).await;
    client.join("1", T).await;
    for _ in 0..5 {
        sleep(Duration::from_millis(400)).await;
        server.endpoint.broadcast(T, "tick", json!({})).unwrap();
        client.expect([json!([null, null, T, "tick", {}])]).await;
    }
    for _ in 0..5 {
        sleep(Duration::from_millis(400)).await;
        client.stream.send(Message::Ping("p".into())).await.unwrap();
        assert_eq!(client.next().await, Message::Pong("p".into()));
    }
    assert_eq!(client.closed().await, 1002, "without them it is closed");
}

#[tokio::test(start_paused = true)]
async fn frames_of_a_client_keep_it_connected_without_replies() {
    let server = impatient();
    let mut client = server.connect(4096).await;
    for _ in 0..5 {
        sleep(Duration::from_millis(400)).await;
        client.stream.send(Message::Pong("unasked".into())).await.unwrap();
    }
    client.expect_nothing_else().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed_even_if_it_receives_frames() {
    let within = Duration::from_millis(700);
    let server = MemoryServer::start(endpoint_with(|mount| mount.receive_timeout(within)).0);
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let joined = Instant::now();
    let endpoint = server.endpoint.clone();
    let broadcasting = tokio::spawn(async move {
        loop {
            endpoint.broadcast(T, "tick", json!({})).unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    });
    assert_eq!(client.closed().await, 1002);
    let unheard = joined.elapsed().as_millis();
    assert!((700..720).contains(&unheard), "{unheard}");
    broadcasting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_mount_can_allow_unlimited_silence() {
    let server = MemoryServer::start(endpoint_with(|mount| mount.idle_timeout(Duration::MAX)).0);
    let mut client = server.connect(4096).await;
    client.join("1", T).await;
    sleep(Duration::from_secs(2 * 3600)).await;
    client.expect_nothing_else().await;
}

/// Sends nothing, not even when it terminates.
struct Quiet;

impl Channel for Quiet {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

/// An endpoint that closes this many channels every 300 ms.
fn mount(batch_size: usize) -> Mount<NamedSocket> {
    let drainer = Drainer::new().batch_size(batch_size).batch_interval(INTERVAL);
    Mount::new(NamedSocket).channel::<Quiet>("quiet:*").drainer(drainer)
}

fn server(batch_size: usize) -> MemoryServer {
    MemoryServer::start(Endpoint::builder().mount("/socket", mount(batch_size)))
}

/// A client that has joined this many topics. The task waits for its end: it returns the time, and
/// expects only a close frame with code 1012.
async fn client(server: &MemoryServer, path: &str, topics: usize) -> JoinHandle<Instant> {
    let mut client = server.connect_at(path, 4096).await;
    for n in 0..topics {
        client.join(&n.to_string(), &format!("quiet:{n}")).await;
    }
    tokio::spawn(ended(client))
}

async fn ended(mut client: Client<DuplexStream>) -> Instant {
    match client.next().await {
        Message::Close(Some(close)) => {
            assert_eq!((u16::from(close.code), close.reason.as_str()), (1012, ""));
        }
        other => panic!("expected a close, got {other:?}"),
    }
    Instant::now()
}

fn drain(endpoint: &Endpoint, within: Duration) -> JoinHandle<EndpointReport> {
    let endpoint = endpoint.clone();
    tokio::spawn(async move { endpoint.drain(within).await })
}

const AN_HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn c_160_no_more_channels_than_a_batch_are_closed_at_a_time() {
    let server = server(2);
    let mut clients = vec![];
    for topics in [1, 1, 1, 2, 1, 1, 1, 1] {
        clients.push((topics, client(&server, "/socket", topics).await));
    }
    let began = Instant::now();
    let draining = drain(&server.endpoint, AN_HOUR);
    let mut closed = vec![];
    for (topics, client) in clients {
        closed.push((client.await.unwrap() - began, topics));
    }
    for (at, _) in &closed {
        let together = closed.iter().filter(|(other, _)| *at <= *other && *other < *at + INTERVAL);
        assert!(together.map(|(_, topics)| topics).sum::<usize>() <= 2, "{closed:?}");
    }
    let last = closed.iter().map(|(at, _)| *at).max().unwrap();
    assert!(last < 6 * INTERVAL, "not longer than necessary: {closed:?}");
    let report = draining.await.unwrap();
    assert_eq!((report.closed, report.aborted), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn c_161_a_socket_with_two_channels_closes_once() {
    let server = server(1);
    let other = client(&server, "/socket", 1).await;
    let both = client(&server, "/socket", 2).await;
    let draining = drain(&server.endpoint, AN_HOUR);
    let (other, both) = (other.await.unwrap(), both.await.unwrap());
    assert!(both - other >= INTERVAL, "in a separate batch");
    let report = draining.await.unwrap();
    assert_eq!((report.closed, report.aborted), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn c_162_a_socket_without_channels_closes_with_the_last_batch() {
    let server = server(1);
    let bare = client(&server, "/socket", 0).await;
    // A socket whose channel has ended counts as one without channels.
    let mut left = server.connect(4096).await;
    left.join("1", "quiet:1").await;
    left.send(json!(["1", "2", "quiet:1", "phx_leave", {}])).await;
    left.receive().await;
    left.receive().await;
    left.expect_nothing_else().await;
    let left = tokio::spawn(ended(left));
    let mut others = vec![];
    for _ in 0..3 {
        others.push(client(&server, "/socket", 1).await);
    }
    let began = Instant::now();
    let draining = drain(&server.endpoint, AN_HOUR);
    let mut last = began;
    for other in others {
        last = last.max(other.await.unwrap());
    }
    assert!(last >= began + 2 * INTERVAL);
    let (bare, left) = (bare.await.unwrap(), left.await.unwrap());
    assert!(bare + INTERVAL > last && left + INTERVAL > last, "{:?}", last - bare);
    assert_eq!(draining.await.unwrap().closed, 5);
}

#[tokio::test(start_paused = true)]
async fn mounts_are_drained_concurrently() {
    let server =
        MemoryServer::start(Endpoint::builder().mount("/a", mount(1)).mount("/b", mount(1)));
    let mut clients = vec![];
    for path in ["/a", "/a", "/b", "/b"] {
        clients.push(client(&server, path, 1).await);
    }
    let began = Instant::now();
    drain(&server.endpoint, AN_HOUR);
    let mut closed = vec![];
    for client in clients {
        closed.push((client.await.unwrap() - began).as_millis() / INTERVAL.as_millis());
    }
    assert_eq!(closed, [0, 1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn sockets_that_do_not_close_in_time_are_aborted() {
    let server = server(1);
    let mut clients = vec![];
    for _ in 0..3 {
        clients.push(server.connect(4096).await);
        clients.last_mut().unwrap().join("1", "quiet:1").await;
    }
    let mut clients = clients.into_iter();
    let first = tokio::spawn(ended(clients.next().unwrap()));
    let report = server.endpoint.drain(Duration::from_millis(100)).await;
    first.await.unwrap();
    assert_eq!((report.closed, report.aborted), (1, 2));
    assert_eq!(server.endpoint.open_sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn frames_that_a_client_does_not_read_are_counted_and_its_socket_as_aborted() {
    let server = server(1);
    let mut deaf = server.connect(4096).await;
    deaf.join("1", "quiet:1").await;
    let before = server.endpoint.snapshot().frames_out;
    for n in 0..20 {
        let padded = json!({ "n": n, "padding": "x".repeat(1000) });
        server.endpoint.broadcast("quiet:1", "tick", padded).unwrap();
    }
    let report = server.endpoint.drain(AN_HOUR).await;
    assert_eq!((report.closed, report.aborted), (0, 1));
    let after = server.endpoint.snapshot();
    assert_eq!(after.dropped.len(), 1, "{:?}", after.dropped);
    assert_eq!(
        after.frames_out - before + after.dropped["ended"],
        21,
        "the events and the close frame"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_after_a_dropped_one_reports_the_sockets_of_both() {
    let one_at_a_time = Drainer::new().batch_size(1).batch_interval(AN_HOUR);
    let mount = Mount::new(NamedSocket).channel::<Quiet>("quiet:*").drainer(one_at_a_time);
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let mut deaf = server.connect(4096).await;
    deaf.join("1", "quiet:1").await;
    for n in 0..20 {
        let padded = json!({ "n": n, "padding": "x".repeat(1000) });
        server.endpoint.broadcast("quiet:1", "tick", padded).unwrap();
    }
    let others = [client(&server, "/socket", 2).await, client(&server, "/socket", 1).await];
    let draining = drain(&server.endpoint, 24 * AN_HOUR);
    // The first batch is the deaf client, which is given up; the next one is an hour later.
    while server.endpoint.open_sockets() > 2 {
        sleep(INTERVAL).await;
    }
    draining.abort();
    for other in others {
        other.await.unwrap();
    }
    let report = server.endpoint.drain(AN_HOUR).await;
    assert_eq!((report.closed, report.aborted), (2, 1));
    let again = server.endpoint.drain(AN_HOUR).await;
    assert_eq!(again, report);
}

#[tokio::test(start_paused = true)]
async fn sockets_that_were_aborted_stay_so_in_the_next_report() {
    let server = server(1);
    let mut deaf = server.connect(4096).await;
    deaf.join("1", "quiet:1").await;
    let calm = client(&server, "/socket", 1).await;
    let report = server.endpoint.drain(Duration::from_millis(100)).await;
    calm.await.unwrap();
    assert_eq!((report.closed, report.aborted), (1, 1));
    assert_eq!(server.endpoint.drain(AN_HOUR).await, report);
}

#[tokio::test(start_paused = true)]
async fn late_batches_are_closed_shortly_before_the_deadline() {
    let server = server(1);
    let mut clients = vec![];
    for topics in [1, 1, 1, 1, 1, 1, 0] {
        clients.push(client(&server, "/socket", topics).await);
    }
    let began = Instant::now();
    let draining = drain(&server.endpoint, Duration::from_secs(1));
    let mut closed = vec![];
    for client in clients {
        closed.push((client.await.unwrap() - began).as_millis() / 100);
    }
    // A batch at 0, 300 and 600 ms; and at a fifth of the time before the deadline, all remaining ones.
    assert_eq!(closed, [0, 3, 6, 8, 8, 8, 8]);
    let report = draining.await.unwrap();
    assert_eq!((report.closed, report.aborted), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_sockets_have_at_most_a_second_and_their_number_is_logged() {
    const WITHIN: Duration = Duration::from_secs(20);
    const WARNS: &str = "drain batches exceed the time limit";
    let (log, _guard) = Log::keep();
    let slow = Drainer::new().batch_size(1).batch_interval(Duration::from_secs(15));
    let slow = Mount::new(NamedSocket).channel::<Quiet>("quiet:*").drainer(slow);
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", slow));
    let mut clients = vec![];
    for _ in 0..4 {
        clients.push(client(&server, "/socket", 1).await);
    }
    let began = Instant::now();
    let draining = drain(&server.endpoint, WITHIN);
    let mut closed = vec![];
    for client in clients {
        closed.push((client.await.unwrap() - began).as_secs());
    }
    assert_eq!(closed, [0, 15, 19, 19]);
    assert_eq!(draining.await.unwrap().closed, 4);
    let warned: Vec<_> = log.take().into_iter().filter(|line| line.contains(WARNS)).collect();
    let expected =
        format!("WARN message={WARNS}: closing the remaining sockets at once sockets=2 within=20s");
    assert_eq!(warned, [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_whose_batches_fit_into_the_time_logs_no_warning() {
    let (log, _guard) = Log::keep();
    let server = server(1);
    let clients = [client(&server, "/socket", 1).await, client(&server, "/socket", 1).await];
    assert_eq!(server.endpoint.drain(AN_HOUR).await.closed, 2);
    for client in clients {
        client.await.unwrap();
    }
    let lines = log.take();
    assert!(!lines.iter().any(|line| line.starts_with("WARN")), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_drain_closes_the_rest_at_once() {
    let server = server(1);
    let first = client(&server, "/socket", 1).await;
    let second = client(&server, "/socket", 1).await;
    let began = Instant::now();
    let draining = drain(&server.endpoint, AN_HOUR);
    first.await.unwrap();
    settle().await;
    assert!(!second.is_finished());
    // A second drain does not speed it up.
    let again = drain(&server.endpoint, AN_HOUR);
    settle().await;
    assert!(!second.is_finished());
    draining.abort();
    assert!(second.await.unwrap() < began + INTERVAL);
    assert_eq!(again.await.unwrap().aborted, 0);
}

#[tokio::test(start_paused = true)]
async fn a_part_of_the_sockets_is_closed_slowly_and_the_oldest_first() {
    let server = server(1);
    let mut clients = vec![];
    for _ in 0..10 {
        clients.push(client(&server, "/socket", 1).await);
        sleep(Duration::from_secs(1)).await;
    }
    let began = Instant::now();
    assert_eq!(server.endpoint.shed(Shed::share(0.5).per_second(2)).await, 5);
    assert_eq!(server.recorded.counters("socket.shed"), [(String::new(), 5)]);
    let mut closed = vec![];
    for client in clients.drain(..5) {
        closed.push((client.await.unwrap() - began).as_millis() / 500);
    }
    assert_eq!(closed, [0, 1, 2, 3, 4]);
    // The others stay, and new ones are accepted.
    clients.push(client(&server, "/socket", 1).await);
    assert!(clients.iter().all(|client| !client.is_finished()));
    assert_eq!(server.endpoint.open_sockets(), 6);
    assert_eq!(server.endpoint.shed(Shed::down_to(4)).await, 2);
    for client in clients.drain(..2) {
        client.await.unwrap();
    }
    assert_eq!(server.endpoint.shed(Shed::down_to(4)).await, 0);
    // Three have been open for at least five seconds, and one is new.
    assert_eq!(server.endpoint.shed(Shed::older_than(Duration::from_secs(3))).await, 3);
    assert!(!clients.pop().unwrap().is_finished());
}

#[tokio::test(start_paused = true)]
async fn fewer_are_closed_when_clients_leave_or_the_endpoint_drains() {
    let server = server(1);
    let mut clients = vec![];
    for _ in 0..4 {
        clients.push(server.connect(4096).await);
    }
    let endpoint = server.endpoint.clone();
    let slowly = Shed::down_to(1).per_second(1);
    let shedding = tokio::spawn(async move { endpoint.shed(slowly).await });
    let mut clients = clients.into_iter();
    ended(clients.next().unwrap()).await;
    // Two leave by themselves, and one is left, as asked for.
    drop((clients.next(), clients.next()));
    assert_eq!(shedding.await.unwrap(), 1);
    assert_eq!(server.endpoint.open_sockets(), 1);

    let endpoint = server.endpoint.clone();
    let mut more = vec![];
    for _ in 0..9 {
        more.push(server.connect(4096).await);
    }
    let all = Shed::share(1.0).per_second(1);
    let shedding = tokio::spawn(async move { endpoint.shed(all).await });
    ended(clients.next().unwrap()).await;
    drain(&server.endpoint, AN_HOUR);
    for client in more {
        ended(client).await;
    }
    assert!(shedding.await.unwrap() <= 2, "the rest is closed by the drain");
}
