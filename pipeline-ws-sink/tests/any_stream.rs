//! Sockets over something that is not a TCP stream, on a clock that the test turns.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{io, net::SocketAddr, time::Duration};

use pipeline_test_support::{Client, Recorded};
use pipeline_ws_sink::Endpoint;
use serde_json::json;
use support::channels::endpoint_with;
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, advance, sleep},
};

const T: &str = "room:lobby";

/// Hands out streams that never leave the process.
struct Memory(mpsc::Receiver<DuplexStream>);

impl axum::serve::Listener for Memory {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
        match self.0.recv().await {
            Some(stream) => (stream, SocketAddr::from(([127, 0, 0, 1], 1))),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

struct Server {
    endpoint: Endpoint,
    streams: mpsc::Sender<DuplexStream>,
    recorded: Recorded,
}

/// A server for clients that may be silent for 60 seconds and fall 10 frames behind.
async fn server() -> Server {
    let (telemetry, recorded) = Recorded::new();
    let (builder, _gate) = endpoint_with(|mount| mount.max_outbox(10, 1 << 20));
    let endpoint = builder.telemetry(telemetry).build().unwrap();
    let (streams, listener) = mpsc::channel(1);
    let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
    tokio::spawn(async { axum::serve(Memory(listener), app).await.unwrap() });
    Server { endpoint, streams, recorded }
}

/// A client behind a stream that holds so many bytes.
async fn join(server: &Server, holds: usize) -> Client<DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(holds);
    server.streams.send(theirs).await.unwrap();
    let mut client = Client::over(ours, "ws://x/socket/websocket?vsn=2.0.0&name=ada").await;
    client.join("1", T).await;
    client
}

#[tokio::test(start_paused = true)]
async fn silence_closes_a_socket_after_its_time() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    let joined = Instant::now();
    assert_eq!(client.closed().await, 1002);
    let silent = joined.elapsed();
    assert!((60.0..61.0).contains(&silent.as_secs_f64()), "{silent:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_client_sends_or_gets_keeps_a_socket_open() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    for _ in 0..3 {
        sleep(Duration::from_secs(40)).await;
        client.send(json!([null, "2", "phoenix", "heartbeat", {}])).await;
        assert_eq!(client.receive().await[3], "phx_reply");
        sleep(Duration::from_secs(40)).await;
        server.endpoint.broadcast(T, "news", json!({})).unwrap();
        assert_eq!(client.receive().await[3], "news");
    }
    assert_eq!(client.closed().await, 1002);
}

#[tokio::test(start_paused = true)]
async fn a_push_is_timed_when_its_last_byte_is_taken() {
    let server = server().await;
    let mut client = join(&server, 1024).await;
    let payload = json!({"d": "x".repeat(2000)});
    server.endpoint.broadcast_timed(Instant::now(), T, "big", &payload).unwrap();
    advance(Duration::from_millis(1500)).await;
    assert_eq!(server.recorded.samples("pipeline.push_delivered").len(), 0, "it doesn't fit");
    assert_eq!(client.receive().await[4], payload);
    let samples = server.recorded.samples("pipeline.push_delivered");
    assert!(matches!(samples[..], [ms] if (1500.0..1600.0).contains(&ms)), "{samples:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gets_everything_in_order_as_long_as_it_keeps_up() {
    let server = server().await;
    let mut client = join(&server, 64).await;
    for round in 0..20 {
        for n in 0..10 {
            server.endpoint.broadcast(T, "news", json!({"round": round, "n": n})).unwrap();
        }
        for n in 0..10 {
            assert_eq!(client.receive().await[4], json!({"round": round, "n": n}));
        }
    }
    assert!(server.recorded.counters("socket.frames_dropped").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_behind_is_closed_with_1011() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    for n in 0..11 {
        server.endpoint.broadcast(T, "news", json!({"n": n})).unwrap();
    }
    let dropped = server.recorded.counters("socket.frames_dropped");
    assert_eq!(dropped, [("reason=overflow".to_owned(), 11)]);
    assert_eq!(client.closed().await, 1011);
}

#[tokio::test(start_paused = true)]
async fn a_closing_that_takes_too_long_is_cut_short() {
    let server = server().await;
    let client = join(&server, 4096).await;
    let asked = Instant::now();
    // The client is there, and says nothing.
    let report = server.endpoint.drain(Duration::from_secs(3600)).await;
    assert_eq!((report.closed, report.cut_off), (1, 0));
    assert!((5.0..6.0).contains(&asked.elapsed().as_secs_f64()));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_falls_behind_its_broadcasts_crashes_alone() {
    let server = server().await;
    let mut client = join(&server, 65_536).await;
    // All at once, so that the channel has no turn in between.
    for n in 0..300 {
        server.endpoint.broadcast(T, "private", json!({"to": "nobody", "n": n})).unwrap();
    }
    let reason = "failed: too many broadcasts to handle";
    assert_eq!(client.receive().await, json!(["1", null, T, "farewell", {"reason": reason}]));
    assert_eq!(client.receive().await[3], "phx_error");
    let dropped = server.recorded.counters("socket.frames_dropped");
    assert_eq!(dropped, [("reason=mailbox".to_owned(), 257)], "256 that waited, and one too many");
    client.send(json!(["2", "2", T, "phx_join", {}])).await;
    assert_eq!(client.receive().await[4]["status"], "ok");
}
