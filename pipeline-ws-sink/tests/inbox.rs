//! How much memory a client can occupy in the server, on a paused clock.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::SinkExt;
use pipeline_test_support::{Client, eventually, reply};
use pipeline_ws_sink::Mount;
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint_with},
    memory::MemoryServer,
    raw::{CLOSE, COMPRESSED, FIN, RawClient, TEXT, deflate},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

const T: &str = "room:lobby";
const BUSY: &str = "slow:busy";

/// How long the server does not read from a client with a full inbox.
const PATIENCE: Duration = Duration::from_secs(5);

fn server(options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>) -> MemoryServer {
    let (builder, gate) = endpoint_with(options);
    gate.add_permits(1000);
    MemoryServer::start(builder)
}

/// A client with a channel that is always busy, and one that is idle.
async fn busy(server: &MemoryServer) -> Client<DuplexStream> {
    let mut ada = server.connect(1 << 24).await;
    ada.join("1", BUSY).await;
    ada.join("2", T).await;
    ada.send(json!(["1", "0", BUSY, "wait", {}])).await;
    ada
}

fn event(reference: usize, bytes: usize) -> Value {
    json!(["1", reference.to_string(), BUSY, "ping", { "padding": "x".repeat(bytes) }])
}

fn refused(reference: usize) -> Value {
    let response = json!({ "reason": "too many messages are waiting" });
    reply("1", &reference.to_string(), BUSY, "error", response)
}

fn limited_by_inbox(server: &MemoryServer) -> u64 {
    let counters = server.recorded.counters("socket.messages_refused").into_iter();
    counters.filter(|(labels, _)| labels.contains("reason=inbox")).map(|(_, count)| count).sum()
}

#[tokio::test(start_paused = true)]
async fn c_103_any_number_of_events_for_a_busy_channel_delay_no_other() {
    let server = server(|mount| mount);
    let mut ada = busy(&server).await;
    let begun = Instant::now();
    for n in 1..=1000 {
        ada.send(event(n, 1)).await;
    }
    ada.expect_nothing_else().await;
    ada.stream.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(ada.next().await, Message::Pong("p".into()));
    ada.send(json!(["2", "2", T, "ping", {}])).await;
    ada.expect([reply("2", "2", T, "ok", json!({}))]).await;
    ada.send(json!(["2", "3", T, "phx_leave", {}])).await;
    ada.expect([reply("2", "3", T, "ok", json!({}))]).await;
    assert!(begun.elapsed() < PATIENCE, "no event was delayed");
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_first_delays_and_then_refuses_events_so_that_heartbeats_pass() {
    let server = server(|mount| mount.max_inbox(10_000));
    let mut ada = busy(&server).await;
    let begun = Instant::now();
    for n in 1..=20 {
        ada.send(event(n, 1000)).await;
    }
    // Each counts as about 1300.
    ada.expect((9..=20).map(refused)).await;
    assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    ada.expect_nothing_else().await;
    assert_eq!(limited_by_inbox(&server), 12);
    let paused = server.recorded.counters("socket.reads_paused");
    assert_eq!(paused, [("reason=inbox".to_owned(), 1)]);
    // There is no room for other topics either, until the busy channel has ended.
    ada.send(json!(["2", "30", T, "ping", {}])).await;
    let response = json!({ "reason": "too many messages are waiting" });
    ada.expect([reply("2", "30", T, "error", response)]).await;
    ada.send(json!(["2", "31", T, "phx_leave", {}])).await;
    ada.expect([reply("2", "31", T, "ok", json!({}))]).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_has_room_again_after_a_channel_has_handled_an_event() {
    let (builder, gate) = endpoint_with(|mount| mount.max_inbox(10_000));
    let server = MemoryServer::start(builder);
    let mut ada = server.connect(1 << 24).await;
    ada.send(json!(["1", "join", BUSY, "phx_join", {}])).await;
    for n in 1..=20 {
        ada.send(event(n, 1000)).await;
    }
    sleep(PATIENCE / 2).await;
    gate.add_permits(1);
    ada.expect([reply("1", "join", BUSY, "ok", json!({}))]).await;
    for n in 1..=20 {
        let answer = ada.receive().await;
        assert_eq!((&answer[1], &answer[4]["status"]), (&json!(n.to_string()), &json!("ok")));
    }
    assert_eq!(limited_by_inbox(&server), 0);
}

#[tokio::test(start_paused = true)]
async fn slow_joins_count_as_well() {
    let (builder, _gate) = endpoint_with(|mount| mount.max_inbox(10_000));
    let server = MemoryServer::start(builder);
    let mut ada = server.connect(1 << 24).await;
    let topic = |n: usize| format!("slow:{n}");
    for n in 1..=12 {
        let padding = "x".repeat(1000);
        ada.send(json!(["1", n.to_string(), topic(n), "phx_join", { "padding": padding }])).await;
    }
    let response = json!({ "reason": "too many messages are waiting" });
    let answer = |n: usize| reply("1", &n.to_string(), &topic(n), "error", response.clone());
    ada.expect((9..=12).map(answer)).await;
}

/// A topic whose join takes as long as the test wants.
const SLOW: &str = "slow:join";

/// A client that has joined a topic, and is joining another, behind which it sends as many events.
async fn joining(server: &MemoryServer, events: usize, bytes: usize) -> Client<DuplexStream> {
    let mut ada = server.connect(1 << 24).await;
    ada.join("2", T).await;
    ada.send(json!(["1", "join", SLOW, "phx_join", {}])).await;
    for n in 1..=events {
        let padding = "x".repeat(bytes);
        ada.send(json!(["1", n.to_string(), SLOW, "ping", { "padding": padding }])).await;
    }
    ada
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_read_while_256_messages_wait_behind_a_join_and_then_they_are_refused() {
    let (builder, gate) = endpoint_with(|mount| mount);
    let server = MemoryServer::start(builder);
    let mut ada = joining(&server, 300, 1).await;
    let begun = Instant::now();
    ada.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
    let response = json!({ "reason": "too many messages are waiting" });
    let refused = |n: usize| reply("1", &n.to_string(), SLOW, "error", response.clone());
    ada.expect((257..=300).map(refused)).await;
    let beaten = json!([null, "beat", "phoenix", "phx_reply", {"status": "ok", "response": {}}]);
    ada.expect([beaten]).await;
    assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let paused = server.recorded.counters("socket.reads_paused");
    assert_eq!(paused, [("reason=join".to_owned(), 1)]);
    let refused = server.recorded.counters("socket.messages_refused");
    assert!(refused.iter().any(|(labels, n)| labels.contains("reason=join") && *n == 44));

    // Other topics have room.
    let begun = Instant::now();
    ada.send(json!(["2", "3", T, "ping", {}])).await;
    ada.expect([reply("2", "3", T, "ok", json!({}))]).await;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());

    gate.add_permits(1);
    ada.expect([reply("1", "join", SLOW, "ok", json!({}))]).await;
    let answer = |n: usize| reply("1", &n.to_string(), SLOW, "ok", json!({ "padding": "x" }));
    ada.expect((1..=256).map(answer)).await;
    // There is room again.
    ada.send(json!(["1", "last", SLOW, "ping", {}])).await;
    ada.expect([reply("1", "last", SLOW, "ok", json!({}))]).await;
    ada.expect_nothing_else().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_128_kib_wait_behind_a_join_and_nothing_is_lost_if_it_ends_in_time() {
    let (builder, gate) = endpoint_with(|mount| mount);
    let server = MemoryServer::start(builder);
    let mut ada = joining(&server, 250, 1000).await;
    sleep(PATIENCE / 2).await;
    // The join, and the message that waits for room, count as well.
    let (held, share) = (server.endpoint.snapshot().inbox_bytes, 16 << 10);
    assert!((100_000..(128 << 10) + 4_000).contains(&(held + share)), "{held}");
    gate.add_permits(1);
    ada.expect([reply("1", "join", SLOW, "ok", json!({}))]).await;
    for n in 1..=250 {
        let answer = ada.receive().await;
        assert_eq!((&answer[1], &answer[4]["status"]), (&json!(n.to_string()), &json!("ok")));
    }
    ada.expect_nothing_else().await;
}

#[tokio::test(start_paused = true)]
async fn joins_of_a_topic_that_wait_for_each_other_are_bounded_and_all_answered() {
    let (builder, gate) = endpoint_with(|mount| mount);
    let server = MemoryServer::start(builder);
    let mut ada = server.connect(1 << 24).await;
    for n in 1..=1000 {
        let reference = n.to_string();
        ada.send(json!([reference, reference, SLOW, "phx_join", {}])).await;
    }
    sleep(PATIENCE / 2).await;
    assert!(server.endpoint.snapshot().inbox_bytes < 128 << 10);
    gate.add_permits(1000);
    for n in 1..=1000 {
        let reference = n.to_string();
        ada.expect([reply(&reference, &reference, SLOW, "ok", json!({}))]).await;
        if n > 1 {
            let before = (n - 1).to_string();
            ada.expect([json!([before, before, SLOW, "phx_close", {}])]).await;
        }
    }
    ada.expect_nothing_else().await;
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_is_noticed_while_a_channel_is_busy() {
    let server = server(|mount| mount.max_inbox(10_000).idle_timeout(Duration::MAX));
    let mut ada = busy(&server).await;
    let gone = Instant::now();
    for n in 1..=20 {
        ada.send(event(n, 1000)).await;
    }
    drop(ada);
    // Reading resumes after the wait for room; the channels have five seconds to end.
    eventually(|| server.endpoint.open_sockets() == 0).await;
    assert!(gone.elapsed() <= PATIENCE * 3, "{:?}", gone.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_leaves_is_closed_eventually() {
    let server = server(|mount| mount.max_inbox(10_000));
    let mut ada = busy(&server).await;
    for n in 0..100 {
        ada.send(json!(["1", n.to_string(), BUSY, "phx_leave", {}])).await;
    }
    assert_eq!(ada.closed().await, 1008);
}

#[tokio::test(start_paused = true)]
async fn clients_that_fill_the_endpoints_limit_leave_others_their_share() {
    let (builder, gate) = endpoint_with(|mount| mount);
    gate.add_permits(1000);
    let server = MemoryServer::start(builder.max_inboxes(1 << 20));
    let mut greedy = busy(&server).await;
    // Each counts as about 4100. A larger message arrives in parts.
    for n in 1..=300 {
        greedy.send(event(n, 3800)).await;
    }
    while limited_by_inbox(&server) < 30 {
        assert_eq!(greedy.receive().await[4]["status"], "error");
    }
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!((1 << 20..(1 << 20) + 10_000).contains(&held), "{held}");

    let mut calm = busy(&server).await;
    calm.send(json!(["2", "2", T, "ping", { "padding": "x".repeat(10_000) }])).await;
    assert_eq!(calm.receive().await[4]["status"], "ok");
    // Partial messages are not kept for long.
    let header = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
    calm.stream.get_mut().write_all(&header).await.unwrap();
    calm.stream.get_mut().write_all(&[0; 40_000]).await.unwrap();
    assert_eq!(calm.closed().await, 1013);

    drop((greedy, calm));
    eventually(|| server.endpoint.open_sockets() == 0).await;
    assert_eq!(server.endpoint.snapshot().inbox_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn compressed_messages_stay_within_the_endpoints_limit() {
    let (builder, gate) = endpoint_with(|mount| mount.compress(true));
    gate.add_permits(1000);
    let server = MemoryServer::start(builder.max_inboxes(1 << 20));
    let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let large = deflate(&event(3, (1 << 20) - 100).to_string());
    assert!(large.len() < 2000, "{}", large.len());
    let mut greedy = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(server.stream().await, extension).await;
        let join = json!(["1", "1", BUSY, "phx_join", {}]);
        client.send(FIN | TEXT, join.to_string().as_bytes()).await;
        client.next().await;
        let wait = json!(["1", "2", BUSY, "wait", {}]);
        client.send(FIN | TEXT, wait.to_string().as_bytes()).await;
        client.send(FIN | COMPRESSED | TEXT, &large).await;
        greedy.push(client);
    }
    sleep(PATIENCE / 2).await;
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!((1 << 19..3 << 20).contains(&held), "{held}");
    // The endpoint is full, and a small compressed message still has room.
    let mut calm = RawClient::connect(server.stream().await, extension).await;
    let beat = json!([null, "1", "phoenix", "heartbeat", { "padding": "x".repeat(2000) }]);
    calm.send(FIN | COMPRESSED | TEXT, &deflate(&beat.to_string())).await;
    calm.next().await;
    // The clients without room are closed.
    sleep(PATIENCE).await;
    let mut closed = 0;
    for client in &mut greedy {
        let next = timeout(PATIENCE / 5, client.next()).await;
        closed += usize::from(next.is_ok_and(|(_, payload)| payload.starts_with(&[3, 0xf5])));
    }
    assert!(closed >= 15, "{closed} of 20 were closed with 1013");
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!(held < 3 << 20, "{held}");
}

#[tokio::test(start_paused = true)]
async fn a_message_counts_while_it_waits_for_room() {
    let server = server(|mount| mount.max_inbox(10_000));
    let mut ada = busy(&server).await;
    for n in 1..=8 {
        ada.send(event(n, 1000)).await;
    }
    ada.send(event(9, 500_000)).await;
    sleep(PATIENCE / 2).await;
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!(held > 400_000, "{held}");
    ada.expect([refused(9)]).await;
    let held = server.endpoint.snapshot().inbox_bytes;
    assert_eq!(held, 0, "above the share of each");
}

#[tokio::test(start_paused = true)]
async fn small_frames_are_rate_limited_as_well() {
    let server = server(|mount| mount.frame_rate_limit(50));
    let mut ada = server.connect(1 << 20).await;
    let begun = Instant::now();
    // About 680 of them arrive in one read.
    let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(2000);
    ada.stream.get_mut().write_all(&pings).await.unwrap();
    for _ in 0..2000 {
        assert_eq!(ada.next().await, Message::Pong("".into()));
    }
    let took = begun.elapsed().as_secs();
    assert!((28..=32).contains(&took), "500 at once, the rest at the rate: {took}");
}

#[tokio::test(start_paused = true)]
async fn after_a_close_frames_are_not_decompressed_and_the_clients_close_is_read() {
    let server = server(|mount| mount.compress(true));
    let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut client = RawClient::connect(server.stream().await, extension).await;
    eventually(|| server.endpoint.disconnect("named:ada") == 1).await;
    let (first, _) = client.next().await;
    assert_eq!(first, FIN | CLOSE);
    let begun = Instant::now();
    client.send(FIN | COMPRESSED | TEXT, &[0xff; 10]).await;
    client.send(FIN | CLOSE, &[]).await;
    eventually(|| server.endpoint.open_sockets() == 0).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn frames_after_a_close_are_rate_limited_as_well() {
    // 150 units in the five seconds: of parsed frames, and of unparsed bytes.
    for (said, most) in [(&[0x89, 0x80, 0, 0, 0, 0][..], 20_000), (&[0xff; 6][..], 700_000)] {
        let server = server(|mount| mount.frame_rate_limit(10));
        let mut client = RawClient::connect(server.stream_of(4096).await, "").await;
        eventually(|| server.endpoint.disconnect("named:ada") == 1).await;
        client.next().await;
        let mut stream = client.into_stream();
        let (said, mut sent) = (said.repeat(1 << 20), 0);
        while let Ok(bytes @ 1..) = stream.write(&said[sent..]).await {
            sent += bytes;
        }
        assert!(sent < most, "{sent} bytes were read");
    }
}

#[tokio::test]
async fn other_tasks_run_between_pipelined_requests() {
    const REQUESTS: usize = 1000;
    let server = server(|mount| mount);
    let mut stream = server.stream_of(1 << 20).await;
    let request = "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request.repeat(REQUESTS).as_bytes()).await.unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let other = tokio::spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.fetch_add(1, Relaxed);
                yield_now().await;
            }
        }
    });
    let mut answers = String::new();
    while answers.matches("HTTP/1.1 404").count() < REQUESTS {
        let mut some = [0; 4096];
        let bytes = stream.read(&mut some).await.unwrap();
        answers += std::str::from_utf8(&some[..bytes]).unwrap();
    }
    other.abort();
    let turns = turns.load(Relaxed);
    assert!(turns >= REQUESTS / 16, "{turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_not_read_for_long_does_not_count_as_silent() {
    let server = server(|mount| mount.frame_rate_limit(1));
    let mut ada = server.connect(1 << 22).await;
    let begun = Instant::now();
    let large = json!([null, "1", "phoenix", "heartbeat", { "padding": "x".repeat(1_000_000) }]);
    ada.send(large).await;
    ada.receive().await;
    ada.send(json!([null, "2", "phoenix", "heartbeat", {}])).await;
    ada.receive().await;
    assert!(begun.elapsed() > Duration::from_secs(100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_name_or_a_reference_of_more_than_255_bytes_is_a_bad_message() {
    let server = server(|mount| mount);
    let long = "x".repeat(256);
    for (message, field) in [
        (json!([long, "1", T, "phx_join", {}]), "join_ref"),
        (json!(["1", long, T, "phx_join", {}]), "ref"),
        (json!(["1", "1", long, "phx_join", {}]), "topic"),
        (json!(["1", "1", T, long, {}]), "event"),
    ] {
        let mut ada = server.connect(4096).await;
        ada.send(message).await;
        let Message::Close(Some(close)) = ada.next().await else { panic!("expected a close") };
        assert_eq!(u16::from(close.code), 1011);
        assert_eq!(close.reason.as_str(), format!("the {field} is longer than 255 bytes"));
    }
    let mut ada = server.connect(4096).await;
    ada.join(&"x".repeat(255), &format!("room:{}", "x".repeat(250))).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_above_the_rate_is_slowed_down_and_loses_nothing() {
    let server = server(|mount| mount.frame_rate_limit(100));
    let mut ada = server.connect(1 << 24).await;
    let begun = Instant::now();
    let (count, beat) = (3000, json!([null, "1", "phoenix", "heartbeat", {}]));
    for _ in 0..count {
        ada.send(beat.clone()).await;
    }
    for _ in 0..count {
        ada.receive().await;
    }
    let took = begun.elapsed().as_secs();
    assert!((15..=21).contains(&took), "1000 at once, the rest at the rate: {took}");
    ada.expect_nothing_else().await;
    let paused = server.recorded.counters("socket.reads_paused");
    assert!(paused.iter().any(|(labels, count)| labels == "reason=rate" && *count > 10));
}
