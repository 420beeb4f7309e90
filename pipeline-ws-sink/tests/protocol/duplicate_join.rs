//! Joining a topic that is already joined.

use pipeline_test_support::reply;
use serde_json::json;

use crate::app::{App, T, broadcast, close, joined, push, unmatched};

#[tokio::test]
async fn c_087_the_new_join_is_answered_then_the_old_one_closed_then_the_new_one_pushes() {
    let (_app, mut client) = joined().await;
    client.send(json!(["2", "2", T, "phx_join", {"greet": true}])).await;
    let accepted = reply("2", "2", T, "ok", json!({}));
    client.expect([accepted, close("1"), push("2", "welcome", json!({"topic": T}))]).await;
}

#[tokio::test]
async fn c_088_a_refused_join_still_ends_the_old_channel() {
    let app = App::start().await;
    let mut client = app.joined("ada", "2").await;
    client.send(json!(["4", "4", T, "phx_join", {"reject": "full"}])).await;
    client.expect([reply("4", "4", T, "error", json!({"reason": "full"})), close("2")]).await;
    for join_ref in ["2", "4"] {
        client.send(json!([join_ref, "5", T, "ping", {}])).await;
        client.expect([unmatched("5", T)]).await;
    }
}

#[tokio::test]
async fn c_089_the_old_channel_ends_without_terminate() {
    let (app, mut ada) = joined().await;
    let mut joe = app.client("joe").await;
    for join_ref in ["1", "2"] {
        joe.send(json!([join_ref, join_ref, "bye:x", "phx_join", {"tell": T}])).await;
        joe.expect([reply(join_ref, join_ref, "bye:x", "ok", json!({}))]).await;
    }
    joe.expect([json!(["1", "1", "bye:x", "phx_close", {}])]).await;

    // Only the second one reports its end.
    joe.send(json!(["2", "3", "bye:x", "phx_leave", {}])).await;
    let farewell = json!({"topic": "bye:x", "reason": "shutdown: left"});
    joe.expect([
        reply("2", "3", "bye:x", "ok", json!({})),
        json!(["2", "2", "bye:x", "phx_close", {}]),
        json!(["2", null, "bye:x", "farewell", farewell]),
    ])
    .await;
    ada.expect([broadcast("terminated", farewell)]).await;
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn c_090_after_two_joins_a_broadcast_arrives_once() {
    let (app, mut client) = joined().await;
    client.send(json!(["2", "2", T, "phx_join", {}])).await;
    client.expect([reply("2", "2", T, "ok", json!({})), close("1")]).await;
    app.server.endpoint.broadcast(T, "news", json!({})).unwrap();
    client.expect([broadcast("news", json!({}))]).await;
    client.expect_nothing_else().await;
}
