//! Heartbeats.

use serde_json::{Value, json};

use crate::app::{App, unmatched};

fn answer(reference: Value) -> Value {
    json!([null, reference, "phoenix", "phx_reply", {"status": "ok", "response": {}}])
}

#[tokio::test]
async fn c_061_a_heartbeat_is_answered_without_a_join() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, "1", "phoenix", "heartbeat", {}])).await;
    client.expect([answer(json!("1"))]).await;
}

#[tokio::test]
async fn c_062_its_join_ref_and_its_payload_do_not_matter() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    for payload in [json!({"any": [1]}), json!("text")] {
        client.send(json!(["7", "1", "phoenix", "heartbeat", payload])).await;
        client.expect([answer(json!("1"))]).await;
    }
}

#[tokio::test]
async fn c_063_a_heartbeat_without_a_ref_is_answered_without_one() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, null, "phoenix", "heartbeat", null])).await;
    client.expect([answer(json!(null))]).await;
}

#[tokio::test]
async fn c_064_version_1_has_heartbeats_too() {
    let app = App::start().await;
    let mut client = app.v1("ada").await;
    let message = |event: &str, payload: Value| json!({"topic": "phoenix", "event": event, "payload": payload, "ref": "5"});
    client.send(message("heartbeat", json!({}))).await;
    client.expect([message("phx_reply", json!({"status": "ok", "response": {}}))]).await;
}

#[tokio::test]
async fn c_065_the_topic_of_heartbeats_is_otherwise_like_any_other() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.send(json!([null, "1", "phoenix", "other", {}])).await;
    client.send(json!(["2", "2", "phoenix", "phx_join", {}])).await;
    client.expect([unmatched("1", "phoenix"), unmatched("2", "phoenix")]).await;
}
