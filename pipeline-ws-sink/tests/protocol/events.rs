//! Events and replies.

use pipeline_test_support::reply;
use pipeline_ws_sink::channel::Reply;
use serde_json::json;

use crate::app::{App, T, error, joined, ok, push, send, unmatched};

#[tokio::test]
async fn c_091_an_event_is_answered_with_the_channels_reply() {
    let (_app, mut client) = joined().await;
    client.send(json!(["1", "2", T, "ping", {"x": 1}])).await;
    let response = json!({"status": "ok", "response": {"x": 1}});
    client.expect([json!(["1", "2", T, "phx_reply", response])]).await;
}

#[tokio::test]
async fn c_092_a_reply_without_a_payload_has_an_empty_response() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "ack", json!({"x": 1})).await;
    client.expect([ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_093_a_channel_survives_an_error_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "fail", json!({"why": "no"})).await;
    send(&mut client, "3", "ping", json!({})).await;
    client.expect([reply("1", "2", T, "error", json!({"why": "no"})), ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_094_a_response_may_be_a_list() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "list", json!({})).await;
    client.expect([ok("2", json!([1, "two", null]))]).await;
}

#[tokio::test]
async fn c_095_a_channel_may_send_no_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "silent", json!({})).await;
    send(&mut client, "3", "ping", json!({})).await;
    client.expect([ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_096_a_status_may_have_any_name() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "later", json!({"x": 1})).await;
    client.expect([reply("1", "2", T, "later", json!({"x": 1}))]).await;
}

#[tokio::test]
async fn c_097_a_push_of_a_handler_comes_before_its_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "push", json!({"x": 1})).await;
    client.expect([push("1", "pushed", json!({"x": 1})), ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_098_the_pushes_of_a_handler_come_in_order_before_its_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "push_many", json!({})).await;
    client.expect([1, 2, 3, 4].map(|i| push("1", "tick", json!({"i": i})))).await;
    client.expect([ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_099_an_unknown_event_crashes_the_channel() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "no_such_event", json!({})).await;
    client.expect([error("1")]).await;
    // The same holds for any event of a channel without handlers.
    client.send(json!(["3", "3", "feed", "phx_join", {}])).await;
    assert_eq!(client.receive().await[4]["status"], "ok");
    client.send(json!(["3", "4", "feed", "ping", {}])).await;
    client.expect([json!(["3", "3", "feed", "phx_error", {"reason": "channel_crash"}])]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_100_an_error_in_a_handler_crashes_the_channel() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "nonsense", json!({"not": "a number"})).await;
    client.expect([error("1")]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_101_later_replies_come_in_the_order_of_sending() {
    let (mut app, mut client) = joined().await;
    send(&mut client, "2", "ask", json!({})).await;
    send(&mut client, "3", "ask", json!({})).await;
    let (first, second) = (app.asked().await, app.asked().await);
    second.to.reply(Reply::ok().with(json!({"nth": 2}))).unwrap();
    first.to.reply(Reply::error().with(json!({"nth": 1}))).unwrap();
    let late = reply("1", "2", T, "error", json!({"nth": 1}));
    client.expect([ok("3", json!({"nth": 2})), late]).await;
}

#[tokio::test]
async fn c_102_an_event_may_be_answered_more_than_once() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "double", json!({})).await;
    client.expect([1, 2, 3].map(|nth| ok("2", json!({"nth": nth})))).await;
}

#[tokio::test]
async fn c_103_a_busy_channel_handles_its_events_in_order_and_delays_no_other() {
    let (app, mut client) = joined().await;
    client.join("0", "room:other").await;
    send(&mut client, "2", "wait", json!({})).await;
    send(&mut client, "3", "ping", json!({})).await;
    client.send(json!(["0", "4", "room:other", "ping", {}])).await;
    client.expect([reply("0", "4", "room:other", "ok", json!({}))]).await;
    client.expect_nothing_else().await;
    app.gate.add_permits(1);
    client.expect([ok("2", json!({})), ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_104_the_state_of_a_channel_is_its_own() {
    let (_app, mut client) = joined().await;
    client.join("0", "room:other").await;
    send(&mut client, "2", "set", json!({"k": "v"})).await;
    send(&mut client, "3", "get", json!({})).await;
    client.expect([ok("2", json!({})), ok("3", json!({"k": "v"}))]).await;
    client.send(json!(["0", "4", "room:other", "get", {}])).await;
    client.expect([reply("0", "4", "room:other", "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_105_an_event_on_a_topic_that_is_not_joined_is_unmatched() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for topic in [T, "nowhere"] {
        client.send(json!(["1", "2", topic, "ping", {}])).await;
        client.expect([unmatched("2", topic)]).await;
    }
}

#[tokio::test]
async fn c_106_an_event_of_another_join_is_dropped() {
    let (_app, mut client) = joined().await;
    client.send(json!(["0", "2", T, "ping", {}])).await;
    client.send(json!(["1", "3", T, "ping", {}])).await;
    client.expect([ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_107_a_join_ref_of_another_type_is_another_one() {
    let (_app, mut client) = joined().await;
    client.send(json!([1, "2", T, "ping", {}])).await;
    client.send(json!(["1", "3", T, "ping", {}])).await;
    client.expect([ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_108_protocol_events_sent_by_a_client_are_ordinary_events() {
    let (_app, mut client) = joined().await;
    for event in ["phx_close", "phx_error", "phx_reply"] {
        send(&mut client, "2", event, json!({})).await;
        client.expect([ok("2", json!({"event": event}))]).await;
    }
}
