//! Leaving, stopping, crashing.

use pipeline_test_support::reply;
use serde_json::json;

use crate::app::{App, T, broadcast, close, error, joined, ok, send, unmatched, v1};

#[tokio::test]
async fn c_109_leaving_is_answered_and_then_the_channel_closed() {
    let (_app, mut client) = joined().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    let left = json!(["1", "2", T, "phx_reply", {"status": "ok", "response": {}}]);
    client.expect([left, json!(["1", "1", T, "phx_close", {}])]).await;
}

#[tokio::test]
async fn c_110_leaving_twice_is_allowed() {
    let (_app, mut client) = joined().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([ok("2", json!({})), close("1")]).await;
    client.send(json!(["1", "3", T, "phx_leave", {}])).await;
    client.expect([ok("3", json!({}))]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_111_leaving_without_a_join_is_allowed() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for topic in [T, "nowhere"] {
        client.send(json!(["7", "8", topic, "phx_leave", {}])).await;
        client.expect([reply("7", "8", topic, "ok", json!({}))]).await;
    }
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_112_after_leaving_no_broadcasts_arrive() {
    let (app, mut client) = joined().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([ok("2", json!({})), close("1")]).await;
    app.server.endpoint.broadcast(T, "late", json!({})).unwrap();
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_113_leaving_another_join_does_nothing() {
    let app = App::start().await;
    let mut client = app.joined("ada", "5").await;
    client.send(json!(["1", "6", T, "phx_leave", {}])).await;
    client.send(json!(["5", "7", T, "ping", {}])).await;
    client.expect([reply("5", "7", T, "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_114_leaving_without_a_join_ref_leaves() {
    let (_app, mut client) = joined().await;
    client.send(json!([null, "2", T, "phx_leave", {}])).await;
    client.expect([ok("2", json!({})), close("1")]).await;
}

#[tokio::test]
async fn c_115_a_channel_can_reply_and_stop() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "stop", json!({"bye": 1})).await;
    client.expect([ok("2", json!({"bye": 1})), close("1")]).await;
}

#[tokio::test]
async fn c_116_a_channel_can_stop_without_a_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "stop_silent", json!({})).await;
    client.expect([close("1")]).await;
}

#[tokio::test]
async fn c_117_a_shutdown_is_a_stop() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "stop_shutdown", json!({"bye": 1})).await;
    client.expect([ok("2", json!({"bye": 1})), close("1")]).await;
}

#[tokio::test]
async fn c_118_a_timer_may_stop_a_channel() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "stop_later", json!({})).await;
    client.expect([ok("2", json!({})), close("1")]).await;
}

#[tokio::test]
async fn c_119_a_channel_that_stops_for_another_reason_has_crashed() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "stop_abnormal", json!({"why": "boom"})).await;
    client.expect([reply("1", "2", T, "error", json!({"why": "boom"})), error("1")]).await;
}

#[tokio::test]
async fn c_120_a_panic_is_a_crash_without_a_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "crash", json!({})).await;
    client.expect([json!(["1", "1", T, "phx_error", {"reason": "channel_crash"}])]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_121_a_panic_in_a_timer_is_a_crash() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "crash_later", json!({})).await;
    client.expect([ok("2", json!({})), error("1")]).await;
}

#[tokio::test]
async fn c_122_pushing_a_list_crashes_the_channel() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "push_list", json!({})).await;
    client.expect([error("1")]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_123_a_channel_crashes_alone() {
    let (_app, mut client) = joined().await;
    client.join("0", "room:other").await;
    send(&mut client, "2", "crash", json!({})).await;
    client.expect([error("1")]).await;
    client.send(json!(["0", "3", "room:other", "ping", {"still": "here"}])).await;
    client.expect([reply("0", "3", "room:other", "ok", json!({"still": "here"}))]).await;
}

#[tokio::test]
async fn c_124_after_a_crash_the_topic_is_not_joined_and_can_be() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "crash", json!({})).await;
    client.expect([error("1")]).await;
    send(&mut client, "3", "ping", json!({})).await;
    client.expect([unmatched("3", T)]).await;
    client.join("4", T).await;
}

#[tokio::test]
async fn c_125_in_version_1_the_end_has_no_ref_where_the_join_had_no_join_ref() {
    let app = App::start().await;
    let mut client = app.v1("ada").await;
    let done = json!({"status": "ok", "response": {}});
    client.send(v1("phx_join", json!("1"), json!({}))).await;
    client.expect([v1("phx_reply", json!("1"), done.clone())]).await;
    client.send(v1("crash", json!("2"), json!({}))).await;
    client.expect([v1("phx_error", json!(null), json!({"reason": "channel_crash"}))]).await;

    client.send(v1("phx_join", json!("3"), json!({}))).await;
    client.expect([v1("phx_reply", json!("3"), done.clone())]).await;
    client.send(v1("phx_leave", json!("4"), json!({}))).await;
    let closed = v1("phx_close", json!(null), json!({}));
    client.expect([v1("phx_reply", json!("4"), done), closed]).await;
}

#[tokio::test]
async fn c_126_in_version_1_the_end_has_the_join_ref_that_the_join_had() {
    let app = App::start().await;
    let mut client = app.v1("ada").await;
    let message = |event: &str, reference: &str| {
        let payload = json!({});
        json!({"topic": T, "event": event, "payload": payload, "ref": reference, "join_ref": "10"})
    };
    let done = json!({"status": "ok", "response": {}});
    client.send(message("phx_join", "11")).await;
    client.expect([v1("phx_reply", json!("11"), done.clone())]).await;
    client.send(message("stop", "12")).await;
    let closed = v1("phx_close", json!("10"), json!({}));
    client.expect([v1("phx_reply", json!("12"), done), closed]).await;
}

const BYE: &str = "bye:x";

#[tokio::test]
async fn c_127_pushes_of_terminate_come_after_the_close() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.join("1", BYE).await;
    client.send(json!(["1", "2", BYE, "phx_leave", {}])).await;
    client
        .expect([
            reply("1", "2", BYE, "ok", json!({})),
            json!(["1", "1", BYE, "phx_close", {}]),
            json!(["1", null, BYE, "farewell", {"topic": BYE, "reason": "shutdown: left"}]),
        ])
        .await;
}

#[tokio::test]
async fn c_128_after_a_panic_they_come_before_the_error() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.join("1", BYE).await;
    client.send(json!(["1", "2", BYE, "crash", {}])).await;
    let farewell = json!({"topic": BYE, "reason": "panicked: crash requested"});
    client
        .expect([
            json!(["1", null, BYE, "farewell", farewell]),
            json!(["1", "1", BYE, "phx_error", {"reason": "channel_crash"}]),
        ])
        .await;
}

#[tokio::test]
async fn c_129_broadcasts_of_terminate_reach_others_after_a_disconnect() {
    let (app, mut ada) = joined().await;
    let terminated = broadcast("terminated", json!({"topic": BYE, "reason": "shutdown: closed"}));
    for closes in [true, false] {
        let mut joe = app.client("joe").await;
        joe.send(json!(["1", "1", BYE, "phx_join", {"tell": T}])).await;
        joe.expect([reply("1", "1", BYE, "ok", json!({}))]).await;
        if closes {
            joe.stream.close(None).await.unwrap();
        }
        // Also without a close frame.
        drop(joe);
        ada.expect([terminated.clone()]).await;
    }
}
