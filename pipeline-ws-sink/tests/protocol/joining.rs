//! Joining.

use pipeline_test_support::{Client, reply};
use serde_json::{Value, json};

use crate::app::{App, T, ok, push, send, unmatched};

async fn join(client: &mut Client, join_ref: &str, topic: &str, params: Value) {
    client.send(json!([join_ref, join_ref, topic, "phx_join", params])).await;
}

/// Asserts that a topic is joined by the pattern of this kind.
async fn assert_kind(client: &mut Client, topic: &str, kind: &str) {
    join(client, "1", topic, json!({})).await;
    client.expect([reply("1", "1", topic, "ok", json!({"kind": kind, "user": "ada"}))]).await;
}

#[tokio::test]
async fn c_066_a_client_joins() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", T, json!({})).await;
    client.expect([json!(["1", "1", T, "phx_reply", {"status": "ok", "response": {}}])]).await;
}

#[tokio::test]
async fn c_067_a_join_is_answered_with_the_channels_reply() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for (n, response) in [json!({"a": [1]}), json!([1, "two"]), json!("text")].iter().enumerate() {
        let topic = format!("room:{n}");
        join(&mut client, "1", &topic, json!({"reply": response})).await;
        client.expect([reply("1", "1", &topic, "ok", response.clone())]).await;
    }
}

#[tokio::test]
async fn c_068_pushes_after_the_join_come_after_its_reply() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", T, json!({"greet": true})).await;
    client.expect([ok("1", json!({})), push("1", "welcome", json!({"topic": T}))]).await;
}

#[tokio::test]
async fn c_069_a_refused_client_receives_the_reason_and_nothing_else() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", T, json!({"reject": "unauthorized"})).await;
    client.expect([reply("1", "1", T, "error", json!({"reason": "unauthorized"}))]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_070_after_a_refusal_the_topic_can_still_be_joined() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", T, json!({"reject": "unauthorized"})).await;
    client.expect([reply("1", "1", T, "error", json!({"reason": "unauthorized"}))]).await;
    send(&mut client, "2", "ping", json!({})).await;
    client.expect([unmatched("2", T)]).await;
    client.join("3", T).await;
}

#[tokio::test]
async fn c_071_a_crashed_join_is_reported_and_affects_nothing_else() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.join("0", "room:other").await;
    for params in [json!({"crash": true}), json!({"bad": "not a number"})] {
        join(&mut client, "1", T, params).await;
        client.expect([reply("1", "1", T, "error", json!({"reason": "join crashed"}))]).await;
    }
    client.join("2", T).await;
    client.send(json!(["0", "3", "room:other", "ping", {}])).await;
    client.expect([reply("0", "3", "room:other", "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_072_a_topic_without_a_pattern_is_unmatched() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", "nowhere", json!({})).await;
    let response = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    client.expect([json!([null, "1", "nowhere", "phx_reply", response])]).await;
}

#[tokio::test]
async fn c_073_a_pattern_matches_literally() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for topic in ["room", "ROOM:x"] {
        join(&mut client, "1", topic, json!({})).await;
        client.expect([unmatched("1", topic)]).await;
    }
}

#[tokio::test]
async fn c_074_a_wildcard_matches_any_rest() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for topic in ["room:", "room:a:b:c", "room:*"] {
        client.join("1", topic).await;
    }
}

#[tokio::test]
async fn c_075_a_wildcard_needs_no_colon() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for topic in ["feed", "feedback", "feed:1"] {
        assert_kind(&mut client, topic, "feed").await;
    }
}

#[tokio::test]
async fn c_076_a_wildcard_that_was_declared_first_wins() {
    let app = App::start().await;
    assert_kind(&mut app.client("ada").await, "late:special", "wildcard").await;
}

#[tokio::test]
async fn c_077_a_topic_that_was_declared_first_wins() {
    let app = App::start().await;
    assert_kind(&mut app.client("ada").await, "room:vip", "vip").await;
}

#[tokio::test]
async fn c_078_a_channel_sees_the_config_of_its_pattern_and_the_assigns_of_its_socket() {
    let app = App::start().await;
    let mut client = app.client("joe").await;
    join(&mut client, "1", "feed", json!({})).await;
    client.expect([reply("1", "1", "feed", "ok", json!({"kind": "feed", "user": "joe"}))]).await;
}

#[tokio::test]
async fn c_079_a_client_may_join_with_null() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", T, json!(null)).await;
    client.expect([ok("1", json!({}))]).await;
}

#[tokio::test]
async fn c_080_a_join_without_a_join_ref_uses_its_ref() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, "12", T, "phx_join", {"greet": true}])).await;
    let joined = json!([null, "12", T, "phx_reply", {"status": "ok", "response": {}}]);
    client.expect([joined, push("12", "welcome", json!({"topic": T}))]).await;
    client.send(json!(["12", "13", T, "ping", {}])).await;
    client.send(json!([null, "14", T, "stop", {}])).await;
    let closed = json!([null, null, T, "phx_close", {}]);
    client.expect([reply("12", "14", T, "ok", json!({})), closed]).await;
}

/// A client at its limit of two channels.
async fn full() -> (App, Client) {
    let app = App::with(|mount| mount.max_channels(2)).await;
    let mut client = app.client("ada").await;
    client.join("1", "room:1").await;
    client.join("2", "room:2").await;
    (app, client)
}

#[tokio::test]
async fn c_081_the_number_of_channels_of_a_client_is_limited() {
    let (_app, mut client) = full().await;
    join(&mut client, "3", "room:3", json!({})).await;
    let response = json!({"reason": "too many channels joined"});
    client.expect([reply("3", "3", "room:3", "error", response)]).await;
    client.send(json!(["3", "4", "room:3", "ping", {}])).await;
    client.expect([unmatched("4", "room:3")]).await;
}

#[tokio::test]
async fn c_082_a_rejoin_does_not_count_twice() {
    let (_app, mut client) = full().await;
    join(&mut client, "3", "room:2", json!({})).await;
    let closed = json!(["2", "2", "room:2", "phx_close", {}]);
    client.expect([reply("3", "3", "room:2", "ok", json!({})), closed]).await;
}

#[tokio::test]
async fn c_083_after_leaving_a_channel_another_can_be_joined() {
    let (_app, mut client) = full().await;
    client.send(json!(["1", "3", "room:1", "phx_leave", {}])).await;
    let closed = json!(["1", "1", "room:1", "phx_close", {}]);
    client.expect([reply("1", "3", "room:1", "ok", json!({})), closed]).await;
    client.join("4", "room:3").await;
}

#[tokio::test]
async fn c_084_at_the_limit_a_topic_without_a_pattern_is_unmatched() {
    let (_app, mut client) = full().await;
    join(&mut client, "3", "nowhere", json!({})).await;
    client.expect([unmatched("3", "nowhere")]).await;
}

#[tokio::test]
async fn c_085_a_slow_join_delays_neither_heartbeats_nor_other_topics() {
    let app = App::start().await;
    let mut client = app.joined("ada", "1").await;
    join(&mut client, "2", "slow:in", json!({})).await;
    send(&mut client, "3", "ping", json!({"n": 3})).await;
    client.expect([ok("3", json!({"n": 3}))]).await;
    client.expect_nothing_else().await;
    app.gate.add_permits(1);
    client.expect([reply("2", "2", "slow:in", "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_086_events_sent_during_a_join_are_handled_after_it() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    join(&mut client, "1", "slow:in", json!({})).await;
    client.send(json!(["1", "2", "slow:in", "ping", {"n": 2}])).await;
    join(&mut client, "3", "slow:refused", json!({})).await;
    client.send(json!(["3", "4", "slow:refused", "ping", {}])).await;
    client.expect_nothing_else().await;

    app.gate.add_permits(1);
    let answer = |reference, response| reply("1", reference, "slow:in", "ok", response);
    client.expect([answer("1", json!({})), answer("2", json!({"n": 2}))]).await;
    app.gate.add_permits(1);
    let refused = reply("3", "3", "slow:refused", "error", json!({"reason": "refused"}));
    client.expect([refused, unmatched("4", "slow:refused")]).await;
}
