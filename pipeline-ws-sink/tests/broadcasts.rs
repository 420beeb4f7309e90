//! Broadcasts: receivers, formats, how often they are encoded, and when they are timed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use pipeline_test_support::Recorded;
use pipeline_ws_sink::{
    channel_test::{TestEndpoint, TestSocket, assert_push, assert_reply, refute_push},
    mount::WhenFull,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    server::Server,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

const T: &str = "room:lobby";

/// A client without a network, and its recorded metrics.
fn ada() -> (TestEndpoint, TestSocket, Recorded) {
    let (telemetry, recorded) = Recorded::new();
    let kit = TestEndpoint::of(endpoint().0.telemetry(telemetry).build().unwrap());
    let ada = kit.socket::<NamedSocket>(None, "ada".to_owned());
    (kit, ada, recorded)
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_crashes_on_a_broadcast_crashes_alone() {
    let (_, ada, _) = ada();
    let other = ada.join("room:other", json!({})).await.unwrap();
    let room = ada.join(T, json!({})).await.unwrap();
    room.unlink();
    let curse = room.push("curse", json!({}));
    assert_reply!(room, curse, "ok");
    assert_push!(room, "farewell", { "reason": "panicked: crash requested" });
    assert_push!(room, "phx_error", { "reason": "channel_crash" });
    let ping = other.push("ping", json!({}));
    assert_reply!(other, ping, "ok");
}

/// Counts how often it is encoded.
struct Counted<'a>(&'a AtomicUsize);

impl Serialize for Counted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        serializer.serialize_map(Some(0))?.end()
    }
}

#[tokio::test]
async fn a_timed_broadcast_is_encoded_once_and_timed_for_each_socket() {
    const SOCKETS: usize = 20;
    let server = Server::start(endpoint().0).await;
    let mut clients = Vec::new();
    for n in 0..SOCKETS {
        let mut client = server.connect(&format!("name={n}")).await;
        client.join("1", T).await;
        clients.push(client);
    }
    let encoded = AtomicUsize::new(0);
    let enqueued_at = Instant::now() - Duration::from_millis(250);
    server.endpoint.broadcast_timed(enqueued_at, T, "news", Counted(&encoded)).unwrap();
    for client in &mut clients {
        client.expect([json!([null, null, T, "news", {}])]).await;
    }
    assert_eq!(encoded.load(Ordering::SeqCst), 1);
    let samples = server.recorded.samples("pipeline.push_delivered");
    assert_eq!(samples.len(), SOCKETS);
    assert!(samples.iter().all(|&ms| ms >= 250.0), "in milliseconds: {samples:?}");

    // An untimed broadcast leaves no sample.
    server.endpoint.broadcast(T, "news", json!({})).unwrap();
    clients[0].expect([json!([null, null, T, "news", {}])]).await;
    assert_eq!(server.recorded.samples("pipeline.push_delivered").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_intercepted_broadcast_is_timed_to_its_push() {
    let (kit, ada, recorded) = ada();
    let room = ada.join(T, json!({})).await.unwrap();
    kit.endpoint().broadcast_timed(Instant::now(), T, "stamped", json!({})).unwrap();
    assert_push!(room, "stamped", == json!({"for": "ada", "was": {}}));
    assert_eq!(recorded.samples("pipeline.push_delivered").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_not_an_object_is_an_error_and_is_not_sent() {
    let (kit, ada, _) = ada();
    let room = ada.join(T, json!({})).await.unwrap();
    let error = kit.endpoint().broadcast(T, "news", json!([1])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the payload of a push or a broadcast has to be a JSON object, or binary"
    );
    refute_push!(room, "news");
}

/// Connects and joins without a library, with the smallest possible receive window, and reads nothing
/// more.
async fn lazy_client(server: &Server) -> tokio::net::TcpStream {
    let mut stream = server.connect_tcp().await;
    let request = "GET /socket/websocket?vsn=2.0.0&name=lazy HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let join = br#"["1","1","room:lobby","phx_join",{}]"#;
    let header = [0x81, 0x80 | u8::try_from(join.len()).unwrap(), 0, 0, 0, 0];
    stream.write_all(&[&header, &join[..]].concat()).await.unwrap();
    let mut answer = vec![0; 8192];
    let mut length = 0;
    while !answer[..length].windows(9).any(|w| w == b"phx_reply") {
        length += stream.read(&mut answer[length..]).await.unwrap();
    }
    stream
}

/// Sorted times.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

/// The times of broadcasts to a client that reads, from the call to its end, and to the client; next to a
/// client that does not read, or without one.
async fn broadcast_times(when_full: WhenFull, next_to_a_lazy_one: bool) -> [Times; 2] {
    let (builder, _gate) =
        endpoint_with(|mount| mount.max_outbox(16, 1 << 30).when_full(when_full));
    let server = Server::start(builder).await;
    let _lazy = match next_to_a_lazy_one {
        true => Some(lazy_client(&server).await),
        false => None,
    };
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let payload = json!({"d": "x".repeat(65_536)});
    let (mut calls, mut arrivals) = (Vec::new(), Vec::new());
    // More than the system and the outbox take for a client that does not read.
    const FILLING: usize = 100;
    for n in 0..FILLING + 60 {
        let seen = server.endpoint.snapshot();
        let is_slow = !seen.dropped.is_empty() || seen.frames_waiting >= 16;
        if n == FILLING {
            assert_eq!(is_slow, next_to_a_lazy_one, "{when_full:?}: {seen:?}");
        }
        let begun = Instant::now();
        server.endpoint.broadcast(T, "big", &payload).unwrap();
        let called = begun.elapsed();
        while ada.receive().await[3] != "big" {}
        // A client that is disconnected is slow only until then.
        if n >= FILLING || when_full == WhenFull::Disconnect {
            calls.push(called);
            arrivals.push(begun.elapsed());
        }
    }
    [calls, arrivals].map(|mut times| {
        times.sort();
        Times(times)
    })
}

/// The median may be twice, and the 99th percentile five times, that without the slow client, and as much more as
/// the system may give to other programs. These disturb a measurement, and do not disturb all of them.
#[tokio::test]
async fn a_broadcast_takes_no_longer_next_to_a_client_that_does_not_read() {
    const NOISE: [Duration; 2] = [Duration::from_millis(6), Duration::from_millis(30)];
    let block = WhenFull::Block { timeout: Duration::from_secs(60) };
    for when_full in [
        WhenFull::Disconnect,
        WhenFull::DropOldest,
        WhenFull::DropNewest,
        WhenFull::KeepLatest,
        block,
    ] {
        let mut seen = Vec::new();
        loop {
            let [calls, arrivals] = broadcast_times(when_full, true).await;
            let control = broadcast_times(when_full, false).await;
            let is_fast = |times: &Times, control: &Times| {
                times.at(50) <= control.at(50) * 2 + NOISE[0]
                    && times.at(99) <= control.at(99) * 5 + NOISE[1]
            };
            if is_fast(&calls, &control[0]) && is_fast(&arrivals, &control[1]) {
                break;
            }
            let of = |times: &Times| (times.at(50), times.at(99));
            seen.push([&calls, &control[0], &arrivals, &control[1]].map(of));
            assert!(seen.len() < 6, "{when_full:?}: median and 99th percentile: {seen:#?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_counted_and_delays_no_other() {
    const FRAMES: usize = 64;
    let (builder, _gate) = endpoint_with(|mount| mount.max_outbox(FRAMES, 1 << 30));
    let server = Server::start(builder).await;
    let mut lazy = lazy_client(&server).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;

    // 64 KiB each: more than the kernel buffers for a client that does not read.
    let payload = json!({"d": "x".repeat(65_536)});
    let mut sent = 0;
    let dropped = loop {
        server.endpoint.broadcast_timed(Instant::now(), T, "big", &payload).unwrap();
        ada.expect([json!([null, null, T, "big", payload])]).await;
        sent += 1;
        let dropped = server.recorded.counters("socket.frames_dropped");
        if !dropped.is_empty() {
            break dropped;
        }
        assert!(sent < 1000, "the kernel buffers everything");
    };
    // A full queue and one above the limit; but the first of the queue may be partly written, and is not
    // dropped then.
    let count = dropped[0].1;
    assert!(count == FRAMES as u64 || count == FRAMES as u64 + 1, "{dropped:?}");

    // Unwritten frames are not timed: one sample for each frame that ada received, and one for each that
    // the kernel accepted for the other client.
    let samples = server.recorded.samples("pipeline.push_delivered").len();
    assert!(samples >= sent && samples <= 2 * sent - FRAMES, "{samples} of {sent}");

    // Its channel ends, as with any closed socket.
    ada.expect([json!([null, null, T, "gone", {"reason": "shutdown: closed"}])]).await;

    // When it reads at last, it receives the frames in the kernel's buffer, and then the close: 1011.
    let (mut received, mut chunk) = (Vec::new(), vec![0; 65_536]);
    while !received.ends_with(&[0x88, 2, 0x03, 0xf3]) {
        let read = tokio::time::timeout(Duration::from_secs(20), lazy.read(&mut chunk));
        let count = read.await.unwrap().unwrap();
        assert!(count > 0, "the stream ended without a close");
        received.extend_from_slice(&chunk[..count]);
    }
    drop(lazy);
    server.open_sockets(1).await;
    ada.expect_nothing_else().await;
}
