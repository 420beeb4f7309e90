//! Parsing of frames.

use serde_json::json;

use crate::app::{App, T, assert_closed, joined, ok, push, send, unmatched};

#[tokio::test]
async fn c_044_a_text_that_is_not_a_message_closes_with_1011() {
    let app = App::start().await;
    for text in [
        "not json",
        "",
        "null",
        "{}",
        "[1,2]",
        r#"["1","2","room:lobby","ping"]"#,
        r#"["1","2","room:lobby","ping",{"lone":"\ud83d"}]"#,
    ] {
        let mut client = app.client("ada").await;
        client.send_text(text).await;
        assert_closed(&mut client, 1011).await;
    }
}

#[tokio::test]
async fn c_045_a_client_of_version_2_is_not_understood_in_version_1() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    let join = json!({"topic": T, "event": "phx_join", "payload": {}, "ref": "1"});
    client.send(join).await;
    assert_closed(&mut client, 1011).await;
}

#[tokio::test]
async fn c_050_extra_elements_and_whitespace_are_ignored() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!(["1", "1", T, "phx_join", {}, "sixth", 7])).await;
    client.expect([ok("1", json!({}))]).await;
    client.send_text(r#" [ "1" , "2" , "room:lobby" , "ping" , { "sp" : 1 } ] "#).await;
    client.expect([ok("2", json!({"sp": 1}))]).await;
}

#[tokio::test]
async fn c_051_numeric_references_are_returned_as_numbers() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([9, 9, "room:num", "phx_join", {}])).await;
    let reply = |reference: u64| json!([9, reference, "room:num", "phx_reply", {"status": "ok", "response": {}}]);
    client.expect([reply(9)]).await;
    client.send(json!([9, 10, "room:num", "push", {}])).await;
    client.expect([json!([9, null, "room:num", "pushed", {}]), reply(10)]).await;
}

#[tokio::test]
async fn c_052_a_numeric_topic_is_unmatched_and_returned_unchanged() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, "11", 5, "phx_join", {}])).await;
    let response = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    client.expect([json!([null, "11", 5, "phx_reply", response])]).await;
    client.join("1", T).await;
}

#[tokio::test]
async fn c_053_a_message_of_nulls_is_unmatched() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, null, null, null, null])).await;
    let response = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    client.expect([json!([null, null, null, "phx_reply", response])]).await;
    client.join("1", T).await;
}

#[tokio::test]
async fn c_054_a_payload_of_any_kind_reaches_the_channel_unchanged() {
    let (_app, mut client) = joined().await;
    for payload in [json!([1, 2]), json!("text"), json!(null), json!(1.5), json!({"é": {}})] {
        send(&mut client, "2", "ping", payload.clone()).await;
        client.expect([ok("2", payload)]).await;
    }
}

#[tokio::test]
async fn c_055_an_event_without_a_ref_is_answered_without_one() {
    let (_app, mut client) = joined().await;
    client.send(json!(["1", null, T, "ping", {"x": 1}])).await;
    let response = json!({"status": "ok", "response": {"x": 1}});
    client.expect([json!(["1", null, T, "phx_reply", response])]).await;
}

#[tokio::test]
async fn c_056_an_event_without_a_join_ref_is_for_the_joined_channel() {
    let (_app, mut client) = joined().await;
    client.send(json!([null, "2", T, "push", {"x": 1}])).await;
    client.expect([push("1", "pushed", json!({"x": 1})), ok("2", json!({}))]).await;
    client.send(json!([null, "3", "room:other", "push", {}])).await;
    client.expect([unmatched("3", "room:other")]).await;
}
