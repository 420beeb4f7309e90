//! Rate limits of clients, on a paused clock.

mod support;

use std::time::Duration;

use pipeline_test_support::{Client, reply};
use pipeline_ws_sink::{
    Mount,
    mount::{LongPoll, MessageRateLimit, OnLimit},
};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint_with},
    memory::MemoryServer,
    poller::Poller,
};
use tokio::{io::DuplexStream, time::advance};

const T: &str = "room:lobby";
const OTHER: &str = "room:other";

fn server(options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>) -> MemoryServer {
    MemoryServer::start(endpoint_with(options).0)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limited(retry_after: u64) -> Value {
    json!({ "reason": "rate limited", "retry_after": retry_after })
}

/// The reply to a ping on a topic.
async fn ping(client: &mut Client<DuplexStream>, topic: &str) -> Value {
    client.send(json!(["1", "p", topic, "ping", { "n": 1 }])).await;
    let mut answer = client.receive().await;
    let response = answer[4]["response"].take();
    let status = if response == pong() { "ok" } else { "error" };
    answer[4]["response"] = json!({});
    assert_eq!(answer, reply("1", "p", topic, status, json!({})));
    response
}

fn pong() -> Value {
    json!({ "n": 1 })
}

fn counted(server: &MemoryServer) -> Vec<(String, u64)> {
    let series = server.recorded.counters("socket.messages_refused").into_iter();
    series
        .map(|(labels, count)| {
            (labels.replace("reason=", "").replace(",socket=NamedSocket", ""), count)
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_and_excess_events_pass_after_a_delay() {
    let server =
        server(|mount| mount.message_rate_limit(MessageRateLimit::per_second(10).burst(4)));
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
    for _ in 0..3 {
        assert_eq!(ping(&mut ada, T).await, pong());
    }
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    ada.expect([reply("1", "2", T, "error", limited(100))]).await;
    ada.send(json!([null, "3", T, "ping", {}])).await;
    ada.expect([reply("1", "3", T, "error", limited(100))]).await;
    advance(ms(99)).await;
    assert_eq!(ping(&mut ada, T).await, limited(1));
    advance(ms(1)).await;
    assert_eq!(ping(&mut ada, T).await, pong());
    assert_eq!(ping(&mut ada, T).await, limited(100));
    advance(ms(1000)).await;
    for _ in 0..4 {
        assert_eq!(ping(&mut ada, T).await, pong());
    }
    assert_eq!(ping(&mut ada, T).await, limited(100));
    assert_eq!(counted(&server), [("socket".to_owned(), 5)]);
    assert_eq!(server.endpoint.snapshot().sockets[0].messages_refused, 5);
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_per_client() {
    let server = server(|mount| mount.message_rate_limit(MessageRateLimit::per_second(1).burst(2)));
    let [mut ada, mut bob] = [server.connect(1 << 16).await, server.connect(1 << 16).await];
    ada.join("1", T).await;
    bob.join("1", T).await;
    assert_eq!(ping(&mut ada, T).await, pong());
    assert_eq!(ping(&mut ada, T).await, limited(1000));
    assert_eq!(ping(&mut bob, T).await, pong());
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_per_topic() {
    let server =
        server(|mount| mount.topic_message_rate_limit(MessageRateLimit::per_second(1).burst(2)));
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
    ada.join("1", OTHER).await;
    for _ in 0..2 {
        assert_eq!(ping(&mut ada, T).await, pong());
    }
    assert_eq!(ping(&mut ada, T).await, limited(1000));
    for _ in 0..2 {
        assert_eq!(ping(&mut ada, OTHER).await, pong());
    }
    assert_eq!(counted(&server), [("topic".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn rejoining_a_topic_does_not_reset_its_limit() {
    let server = server(|mount| mount.topic_message_rate_limit(MessageRateLimit::per_second(1)));
    let mut ada = server.connect(1 << 16).await;
    for joined in 0..3 {
        ada.join("1", T).await;
        let expected = if joined == 0 { pong() } else { limited(1000) };
        assert_eq!(ping(&mut ada, T).await, expected);
        ada.send(json!(["1", "l", T, "phx_leave", {}])).await;
        while ada.receive().await[3] != "phx_close" {}
        ada.receive().await;
    }
}

#[tokio::test(start_paused = true)]
async fn joins_are_limited_and_heartbeats_and_leaves_are_not() {
    let server = server(|mount| mount.message_rate_limit(MessageRateLimit::per_second(2)));
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
    ada.send(json!(["2", "2", "unknown", "phx_join", {}])).await;
    ada.expect([json!([
        null, "2", "unknown", "phx_reply",
        { "status": "error", "response": { "reason": "unmatched topic" } }
    ])])
    .await;
    ada.send(json!(["3", "3", OTHER, "phx_join", {}])).await;
    ada.expect([reply("3", "3", OTHER, "error", limited(500))]).await;
    for _ in 0..10 {
        ada.expect_nothing_else().await;
    }
    ada.send(json!(["1", "4", T, "phx_leave", {}])).await;
    ada.expect([reply("1", "4", T, "ok", json!({}))]).await;
    while ada.receive().await[3] != "phx_close" {}
    // The official client retries these by itself.
    advance(ms(500)).await;
    ada.send(json!(["3", "5", OTHER, "phx_join", {}])).await;
    while ada.receive().await != reply("3", "5", OTHER, "ok", json!({})) {}
}

#[tokio::test(start_paused = true)]
async fn an_event_without_a_reference_is_dropped_and_counted() {
    let server = server(|mount| mount.topic_message_rate_limit(MessageRateLimit::per_second(1)));
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
    for n in 0..3 {
        ada.send(json!(["1", null, T, "shout", { "n": n }])).await;
    }
    ada.expect([
        json!([null, null, T, "shouted", { "n": 0 }]),
        json!(["1", null, T, "phx_reply", { "status": "ok", "response": {} }]),
    ])
    .await;
    ada.expect_nothing_else().await;
    assert_eq!(counted(&server), [("topic".to_owned(), 2)]);
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_for_a_join_count_once_on_arrival() {
    let limit = MessageRateLimit::per_second(1).burst(2);
    let (builder, gate) = endpoint_with(|mount| mount.topic_message_rate_limit(limit));
    let server = MemoryServer::start(builder);
    let mut ada = server.connect(1 << 16).await;
    let topic = "slow:one";
    ada.send(json!(["1", "1", topic, "phx_join", {}])).await;
    for reference in ["2", "3", "4"] {
        ada.send(json!(["1", reference, topic, "ping", { "was": reference }])).await;
    }
    ada.expect([reply("1", "4", topic, "error", limited(1000))]).await;
    gate.add_permits(1);
    ada.expect([
        reply("1", "1", topic, "ok", json!({})),
        reply("1", "2", topic, "ok", json!({ "was": "2" })),
        reply("1", "3", topic, "ok", json!({ "was": "3" })),
    ])
    .await;
    assert_eq!(ping(&mut ada, topic).await, limited(1000));
    advance(ms(1000)).await;
    assert_eq!(ping(&mut ada, topic).await, pong());
}

#[tokio::test(start_paused = true)]
async fn a_client_above_the_limit_can_be_closed_and_may_reconnect() {
    let limit = MessageRateLimit::per_second(1).burst(2).on_limit(OnLimit::Close);
    let server = server(|mount| mount.message_rate_limit(limit));
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
    assert_eq!(ping(&mut ada, T).await, pong());
    ada.send(json!([null, "h", "phoenix", "heartbeat", {}])).await;
    ada.receive().await;
    let mut bob = server.connect(1 << 16).await;
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    assert_eq!(ada.closed().await, 1008);
    assert_eq!(counted(&server), [("socket".to_owned(), 1)]);
    bob.expect_nothing_else().await;
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", T).await;
}

const V2: &str = "vsn=2.0.0&name=ada";

/// Joins, and sends this many events.
async fn polls(server: &MemoryServer, pings: usize) -> (Poller<'_>, Value) {
    let poller = Poller::connect(server, V2).await;
    poller.join(T).await;
    let ping = json!(["1", "p", T, "ping", { "n": 1 }]).to_string();
    let taken = poller.post(&vec![ping; pings].join("\n")).await;
    (poller, taken)
}

#[tokio::test(start_paused = true)]
async fn polling_clients_are_limited_too() {
    let limit = MessageRateLimit::per_second(1).burst(2);
    let server = server(|mount| mount.longpoll(LongPoll::new()).message_rate_limit(limit));
    let (poller, taken) = polls(&server, 2).await;
    assert_eq!(taken, json!({ "status": 200 }));
    let mut answers = poller.messages().await;
    while answers.len() < 2 {
        answers.extend(poller.messages().await);
    }
    let answer = |status, response| reply("1", "p", T, status, response);
    assert!(answers.contains(&answer("ok", pong())), "{answers:?}");
    assert!(answers.contains(&answer("error", limited(1000))), "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_polling_client_above_the_limit_ends() {
    let limit = MessageRateLimit::per_second(1).burst(2).on_limit(OnLimit::Close);
    let server = server(|mount| mount.longpoll(LongPoll::new()).message_rate_limit(limit));
    let (poller, taken) = polls(&server, 2).await;
    assert_eq!(taken, json!({ "status": 408 }));
    let again = poller.poll().await;
    assert_eq!(again["status"], 410);
    assert_ne!(again["token"], poller.token);
    assert_eq!(counted(&server), [("socket".to_owned(), 1)]);
}
