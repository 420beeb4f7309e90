//! The life of channels: joins, events, replies, leaving, stopping, crashing.

mod support;

use pipeline_test_support::reply;
use serde_json::json;
use support::{
    channels::{endpoint, endpoint_with},
    server::Server,
};

const T: &str = "room:lobby";

fn unmatched(reference: &str, topic: &str) -> serde_json::Value {
    json!([null, reference, topic, "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}}])
}

fn close(join_ref: &str) -> serde_json::Value {
    json!([join_ref, join_ref, T, "phx_close", {}])
}

fn crash(join_ref: &str) -> serde_json::Value {
    json!([join_ref, join_ref, T, "phx_error", {"reason": "channel_crash"}])
}

fn farewell(join_ref: &str, reason: &str) -> serde_json::Value {
    json!([join_ref, null, T, "farewell", {"reason": reason}])
}

#[tokio::test]
async fn a_heartbeat_is_answered_whatever_is_joined() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["7", "1", "phoenix", "heartbeat", "anything"])).await;
    client.send(json!([null, null, "phoenix", "heartbeat", null])).await;
    let answer = |reference| json!([null, reference, "phoenix", "phx_reply", {"status": "ok", "response": {}}]);
    client.expect([answer(json!("1")), answer(json!(null))]).await;
    client.send(json!([null, "2", "phoenix", "other", {}])).await;
    client.expect([unmatched("2", "phoenix")]).await;
}

#[tokio::test]
async fn a_join_is_answered_by_what_the_channel_says() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    client.send(json!(["1", "1", T, "phx_join", {"tell": true}])).await;
    client.expect([reply("1", "1", T, "ok", json!({"rest": "lobby", "name": "ada"}))]).await;
    client.send(json!(["2", "2", "room:2", "phx_join", {"refuse": "unauthorized"}])).await;
    client.expect([reply("2", "2", "room:2", "error", json!({"reason": "unauthorized"}))]).await;
    client.send(json!(["3", "3", "room:2", "ping", {}])).await;
    client.expect([unmatched("3", "room:2")]).await;
    client.join("4", "room:2").await;
    client.send(json!(["5", "5", "nowhere", "phx_join", {}])).await;
    client.expect([unmatched("5", "nowhere")]).await;
}

#[tokio::test]
async fn a_join_that_crashes_says_so_and_harms_nothing() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    for params in [json!({"crash": true}), json!({"fail": "not a number"})] {
        client.send(json!(["1", "1", T, "phx_join", params])).await;
        client.expect([reply("1", "1", T, "error", json!({"reason": "join crashed"}))]).await;
    }
    client.join("2", T).await;
    assert_eq!(
        server.recorded.counters("channel_join"),
        [("channel=Room,status=fail".into(), 2), ("channel=Room,status=success".into(), 1)]
    );
}

#[tokio::test]
async fn events_are_answered_with_any_status_or_not_at_all() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.join("1", T).await;
    for (n, payload) in
        [json!({"x": 1}), json!([1, 2]), json!("text"), json!(null)].into_iter().enumerate()
    {
        client.send(json!(["1", n, T, "ping", payload])).await;
        let response = json!({"status": "ok", "response": payload});
        client.expect([json!(["1", n, T, "phx_reply", response])]).await;
    }
    client.send(json!([null, "2", T, "fail", {"why": "no"}])).await;
    client.send(json!(["1", "3", T, "later", {}])).await;
    client.send(json!(["1", "4", T, "silent", {}])).await;
    client.send(json!(["1", null, T, "push", {"a": 1}])).await;
    client
        .expect([
            reply("1", "2", T, "error", json!({"why": "no"})),
            reply("1", "3", T, "later", json!({})),
            json!(["1", null, T, "pushed", {"a": 1}]),
            json!(["1", null, T, "phx_reply", {"status": "ok", "response": {}}]),
        ])
        .await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn an_event_of_an_earlier_join_is_dropped() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.join("5", T).await;
    client.send(json!(["1", "6", T, "ping", {}])).await;
    client.send(json!([5, "7", T, "ping", {}])).await;
    client.send(json!(["1", "8", T, "phx_leave", {}])).await;
    client.send(json!(["5", "9", T, "ping", {}])).await;
    client.expect([reply("5", "9", T, "ok", json!({}))]).await;
}

#[tokio::test]
async fn leaving_is_answered_closed_and_final() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.join("1", T).await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client
        .expect([reply("1", "2", T, "ok", json!({})), close("1"), farewell("1", "shutdown: left")])
        .await;
    client.send(json!(["1", "3", T, "phx_leave", {}])).await;
    client.expect([reply("1", "3", T, "ok", json!({}))]).await;
    client.send(json!(["1", "4", T, "ping", {}])).await;
    client.expect([unmatched("4", T)]).await;
    server.endpoint.broadcast(T, "late", json!({})).unwrap();
    client.expect_nothing_else().await;
    client.join("5", T).await;
}

#[tokio::test]
async fn a_channel_that_stops_is_closed_and_one_that_crashes_is_an_error() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.join("0", "room:other").await;

    client.join("1", T).await;
    client.send(json!(["1", "2", T, "stop", {"bye": 1}])).await;
    client
        .expect([reply("1", "2", T, "ok", json!({"bye": 1})), close("1"), farewell("1", "normal")])
        .await;

    client.join("3", T).await;
    client.send(json!(["3", "4", T, "boom", {}])).await;
    let told = farewell("3", "failed: boom");
    client.expect([reply("3", "4", T, "error", json!({})), told, crash("3")]).await;

    client.join("5", T).await;
    client.send(json!(["5", "6", T, "crash", {}])).await;
    client.expect([farewell("5", "panicked: told to crash"), crash("5")]).await;

    client.join("7", T).await;
    client.send(json!(["7", "8", T, "no_such_event", {}])).await;
    let reason = "failed: the channel has no event \"no_such_event\"";
    client.expect([farewell("7", reason), crash("7")]).await;

    client.join("9", T).await;
    client.send(json!(["9", "10", T, "push", [1, 2]])).await;
    let reason = "failed: the payload of a push or a broadcast has to be a JSON object, or binary";
    client.expect([farewell("9", reason), crash("9")]).await;

    client.send(json!(["0", "11", "room:other", "ping", {"still": "here"}])).await;
    client.expect([reply("0", "11", "room:other", "ok", json!({"still": "here"}))]).await;
    client.send(json!(["9", "12", T, "ping", {}])).await;
    client.expect([unmatched("12", T)]).await;
}

#[tokio::test]
async fn joining_again_replaces_the_channel_without_its_terminate() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.join("1", T).await;
    client.send(json!(["2", "2", T, "phx_join", {}])).await;
    client.expect([reply("2", "2", T, "ok", json!({})), close("1")]).await;
    client.send(json!(["2", "3", T, "shout", {}])).await;
    client
        .expect([json!([null, null, T, "shouted", {}]), reply("2", "3", T, "ok", json!({}))])
        .await;

    client.send(json!(["4", "4", T, "phx_join", {"refuse": "full"}])).await;
    client.expect([reply("4", "4", T, "error", json!({"reason": "full"})), close("2")]).await;
    client.send(json!(["4", "5", T, "ping", {}])).await;
    client.expect([unmatched("5", T)]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn what_is_sent_during_a_join_waits_for_it_and_other_topics_do_not() {
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["1", "1", "slow:in", "phx_join", {}])).await;
    client.send(json!(["1", "2", "slow:in", "ping", {"n": 2}])).await;
    client.send(json!(["3", "3", "slow:refused", "phx_join", {}])).await;
    client.send(json!(["3", "4", "slow:refused", "ping", {}])).await;
    client.join("5", T).await;
    client.expect_nothing_else().await;

    gate.add_permits(1);
    client
        .expect([
            reply("1", "1", "slow:in", "ok", json!({})),
            reply("1", "2", "slow:in", "ok", json!({"n": 2})),
        ])
        .await;
    gate.add_permits(1);
    let refused = reply("3", "3", "slow:refused", "error", json!({"reason": "refused"}));
    client.expect([refused, unmatched("4", "slow:refused")]).await;
}

#[tokio::test]
async fn a_join_during_a_join_replaces_it_in_turn() {
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["1", "1", "slow:in", "phx_join", {}])).await;
    client.send(json!(["2", "2", "slow:in", "phx_join", {}])).await;
    client.send(json!(["2", "3", "slow:in", "ping", {"n": 3}])).await;
    client.expect_nothing_else().await;
    gate.add_permits(2);
    client
        .expect([
            reply("1", "1", "slow:in", "ok", json!({})),
            reply("2", "2", "slow:in", "ok", json!({})),
            json!(["1", "1", "slow:in", "phx_close", {}]),
            reply("2", "3", "slow:in", "ok", json!({"n": 3})),
        ])
        .await;
}

#[tokio::test]
async fn a_client_that_floods_a_busy_channel_or_a_join_waits_itself_and_loses_nothing() {
    const MANY: usize = 2000;
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["1", "1", "slow:in", "phx_join", {}])).await;
    for n in 0..MANY {
        client.send(json!(["1", n, "slow:in", "ping", {}])).await;
    }
    gate.add_permits(1);
    client.expect([reply("1", "1", "slow:in", "ok", json!({}))]).await;
    for n in 0..MANY {
        client
            .expect([json!(["1", n, "slow:in", "phx_reply", {"status": "ok", "response": {}}])])
            .await;
    }
}

#[tokio::test]
async fn a_client_may_have_only_so_many_channels() {
    let (builder, _gate) = endpoint_with(|mount| mount.max_channels(2));
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.join("1", "room:1").await;
    client.join("2", "room:2").await;
    client.send(json!(["3", "3", "room:3", "phx_join", {}])).await;
    client
        .expect([reply("3", "3", "room:3", "error", json!({"reason": "too many channels joined"}))])
        .await;
    client.send(json!(["4", "4", "nowhere", "phx_join", {}])).await;
    client.expect([unmatched("4", "nowhere")]).await;
    client.send(json!(["5", "5", "room:2", "phx_join", {}])).await;
    let closed = json!(["2", "2", "room:2", "phx_close", {}]);
    client.expect([reply("5", "5", "room:2", "ok", json!({})), closed]).await;
}

#[tokio::test]
async fn odd_references_and_topics_are_given_back_as_they_came() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.send_text(r#" [ 9 , 9, "room:num", "phx_join", {}, "more", 7 ] "#).await;
    client.expect([json!([9, 9, "room:num", "phx_reply", {"status": "ok", "response": {}}])]).await;
    client.send(json!([9, {"a": 1}, "room:num", "ping", {}])).await;
    client
        .expect([json!([9, {"a": 1}, "room:num", "phx_reply", {"status": "ok", "response": {}}])])
        .await;
    client.send(json!([null, "11", 5, "phx_join", {}])).await;
    client.send(json!([null, null, null, null, null])).await;
    let error = |reference, topic| json!([null, reference, topic, "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}}]);
    client.expect([error(json!("11"), json!(5)), error(json!(null), json!(null))]).await;
}

#[tokio::test]
async fn a_join_without_a_join_ref_goes_by_its_ref() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    client.send(json!([null, "12", T, "phx_join", {}])).await;
    client.expect([json!([null, "12", T, "phx_reply", {"status": "ok", "response": {}}])]).await;
    client.send(json!([null, "13", T, "push", {}])).await;
    client
        .expect([json!(["12", null, T, "pushed", {}]), reply("12", "13", T, "ok", json!({}))])
        .await;
    client.send(json!([null, "14", T, "stop", {}])).await;
    client
        .expect([reply("12", "14", T, "ok", json!({})), json!([null, null, T, "phx_close", {}])])
        .await;
}
