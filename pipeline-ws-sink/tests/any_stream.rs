//! Sockets over streams other than TCP, on a paused clock.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use pipeline_test_support::{Client, settle};
use pipeline_ws_sink::{Mount, mount::WhenFull};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint_with},
    memory::MemoryServer,
};
use tokio::{
    io::DuplexStream,
    time::{Instant, advance, sleep},
};

const T: &str = "room:lobby";

/// A server that allows 60 seconds of silence and 10 pending frames per client.
async fn server() -> MemoryServer {
    server_with(|mount| mount).await
}

async fn server_with(
    options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>,
) -> MemoryServer {
    let (builder, _gate) = endpoint_with(|mount| options(mount.max_outbox(10, 1 << 20)));
    MemoryServer::start(builder)
}

/// A client behind a stream with a buffer of this many bytes.
async fn join(server: &MemoryServer, holds: usize) -> Client<DuplexStream> {
    let mut client = server.connect(holds).await;
    client.join("1", T).await;
    client
}

#[tokio::test(start_paused = true)]
async fn silence_closes_a_socket_after_its_timeout() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    let joined = Instant::now();
    assert_eq!(client.closed().await, 1002);
    let silent = joined.elapsed();
    assert!((60.0..61.0).contains(&silent.as_secs_f64()), "{silent:?}");
}

#[tokio::test(start_paused = true)]
async fn frames_in_both_directions_keep_a_socket_open() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    for _ in 0..3 {
        sleep(Duration::from_secs(31)).await;
        client.send(json!([null, "2", "phoenix", "heartbeat", {}])).await;
        assert_eq!(client.receive().await[3], "phx_reply");
        sleep(Duration::from_secs(31)).await;
        server.endpoint.broadcast(T, "news", json!({})).unwrap();
        assert_eq!(client.receive().await[3], "news");
    }
    assert_eq!(client.closed().await, 1002);
}

#[tokio::test(start_paused = true)]
async fn a_push_is_timed_when_its_last_byte_is_written() {
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
async fn a_slow_client_gets_everything_in_order_while_it_keeps_up() {
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

/// Sends more than the stream holds, so that it accepts no bytes until the client reads.
async fn fill(server: &MemoryServer) {
    server.endpoint.broadcast(T, "filler", json!({"d": "x".repeat(5_000)})).unwrap();
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_behind_is_closed_with_1011() {
    let server = server().await;
    let mut client = join(&server, 4096).await;
    fill(&server).await;
    for n in 0..10 {
        server.endpoint.broadcast(T, "news", json!({"n": n})).unwrap();
    }
    let dropped = server.recorded.counters("socket.frames_dropped");
    assert_eq!(dropped, [("reason=overflow".to_owned(), 10)]);
    assert_eq!(client.receive().await[3], "filler", "it was partly written");
    assert_eq!(client.closed().await, 1011);
}

/// Sends this many numbered broadcasts, with the events in turn, while the client does not read. Returns
/// the numbers that the client receives then, and the dropped ones.
async fn fall_behind(
    when_full: WhenFull,
    count: usize,
    events: &[&str],
) -> (Vec<u64>, Vec<(String, u64)>) {
    // Ten, and the one that is being written.
    let server = server_with(|mount| mount.max_outbox(11, 1 << 20).when_full(when_full)).await;
    let mut client = join(&server, 4096).await;
    fill(&server).await;
    for n in 0..count {
        server.endpoint.broadcast(T, events[n % events.len()], json!({"n": n})).unwrap();
    }
    // Now the socket's task runs; the last frame that it writes is the reply to this.
    settle().await;
    client.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
    assert_eq!(client.receive().await[3], "filler");
    let mut numbers = vec![];
    loop {
        let message = client.receive().await;
        match message[4]["n"].as_u64() {
            Some(number) => numbers.push(number),
            None => break,
        }
    }
    (numbers, server.recorded.counters("socket.frames_dropped"))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_behind_gets_the_newest_if_the_oldest_are_dropped() {
    let (numbers, dropped) = fall_behind(WhenFull::DropOldest, 30, &["news"]).await;
    assert_eq!(numbers, Vec::from_iter(20..30));
    assert_eq!(dropped, [("reason=drop_oldest".to_owned(), 20)]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_behind_gets_the_oldest_if_the_newest_are_dropped() {
    let (numbers, dropped) = fall_behind(WhenFull::DropNewest, 30, &["news"]).await;
    assert_eq!(numbers, Vec::from_iter(0..10));
    assert_eq!(dropped, [("reason=drop_newest".to_owned(), 20)]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_behind_gets_the_latest_of_each_event() {
    let (numbers, dropped) = fall_behind(WhenFull::KeepLatest, 11, &["a", "b"]).await;
    assert_eq!(numbers, [1, 3, 5, 7, 9, 10], "the tenth, an a, replaced all a before it");
    assert_eq!(dropped, [("reason=superseded".to_owned(), 5)]);
    let (numbers, _) = fall_behind(WhenFull::KeepLatest, 100, &["a", "b"]).await;
    assert!(numbers.is_sorted() && numbers.ends_with(&[98, 99]), "{numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_does_not_wait_for_a_client_that_falls_behind() {
    let (numbers, dropped) = fall_behind(WhenFull::block(), 20, &["news"]).await;
    assert_eq!((numbers, dropped), (Vec::from_iter(0..20), vec![]));
    let server = server_with(|mount| mount.when_full(WhenFull::block())).await;
    let mut client = join(&server, 4096).await;
    fill(&server).await;
    for n in 0..20 {
        server.endpoint.broadcast(T, "news", json!({"n": n})).unwrap();
    }
    assert_eq!(client.receive().await[3], "filler");
    assert_eq!(client.closed().await, 1011);
    assert_eq!(server.recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_takes_too_long_is_aborted() {
    let server = server().await;
    let client = join(&server, 4096).await;
    let asked = Instant::now();
    // The client stays connected and sends nothing.
    let report = server.endpoint.drain(Duration::from_secs(3600)).await;
    assert_eq!((report.closed, report.aborted), (1, 0));
    assert!((5.0..6.0).contains(&asked.elapsed().as_secs_f64()));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_falls_behind_its_broadcasts_crashes_alone() {
    let server = server().await;
    let mut client = join(&server, 65_536).await;
    // All at once, so that the channel does not run in between.
    for n in 0..300 {
        server.endpoint.broadcast(T, "stamped", json!({"n": n})).unwrap();
    }
    let farewell = client.receive().await;
    assert_eq!(farewell[3], "farewell");
    let reason = farewell[4]["reason"].as_str().unwrap();
    assert!(reason.starts_with("failed: too many broadcasts to handle; "), "{reason}");
    assert!(reason.contains("`WhenFull::Block`"), "{reason}");
    assert_eq!(client.receive().await[3], "phx_error");
    let dropped = server.recorded.counters("socket.frames_dropped");
    assert_eq!(
        dropped,
        [("reason=mailbox".to_owned(), 257)],
        "256 queued, and one above the limit"
    );
    client.send(json!(["2", "2", T, "phx_join", {}])).await;
    assert_eq!(client.receive().await[4]["status"], "ok");
}
