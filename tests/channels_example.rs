//! The example `channels`, used from a terminal with a plain WebSocket.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use pipeline_test_support::{Client, Example, connect, reply};
use serde_json::json;

async fn terminal(example: &Example) -> Client {
    connect(&format!("ws://{}/socket/websocket?vsn=2.0.0", example.address)).await.unwrap()
}

#[tokio::test]
async fn an_invalid_message_closes_the_connection_and_a_new_one_works() {
    let example = Example::channels(&[]).await;
    let mut bystander = terminal(&example).await;
    bystander.join("1", "room:lobby").await;
    for slip in ["hello?", r#"["1","1","room:lobby","phx_join",{}"#, r#"["1","1"]"#, "{}", ""] {
        let mut client = terminal(&example).await;
        client.join("1", "room:lobby").await;
        client.send_text(slip).await;
        assert_eq!(client.closed().await, 1011, "{slip:?}");
    }
    let mut client = terminal(&example).await;
    client.join("1", "room:lobby").await;
    client.send_text(r#"["1", "2", "room:lobby", "ping", {"hello": "again"}]"#).await;
    client.expect([reply("1", "2", "room:lobby", "ok", json!({"hello": "again"}))]).await;
    bystander.expect_nothing_else().await;
}

#[tokio::test]
async fn an_unknown_event_crashes_its_own_channel_only() {
    let example = Example::channels(&[]).await;
    let mut client = terminal(&example).await;
    client.join("1", "room:one").await;
    client.join("2", "room:two").await;
    client.send_text(r#"["1","3","room:one","no such event",{}]"#).await;
    client.expect([json!(["1", "1", "room:one", "phx_error", {"reason": "channel_crash"}])]).await;
    client.send_text(r#"["2","4","room:two","ping",{"still":"here"}]"#).await;
    client.expect([reply("2", "4", "room:two", "ok", json!({"still": "here"}))]).await;
    // The client has to join again, and can.
    client.send_text(r#"["1","5","room:one","ping",{}]"#).await;
    let unjoined = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    client.expect([json!([null, "5", "room:one", "phx_reply", unjoined])]).await;
    client.join("6", "room:one").await;
}

#[tokio::test]
async fn two_terminals_exchange_messages() {
    let example = Example::channels(&[]).await;
    let (mut ada, mut joe) = (terminal(&example).await, terminal(&example).await);
    ada.join("1", "room:lobby").await;
    joe.join("1", "room:lobby").await;
    ada.send_text(r#"["1","2","room:lobby","others",{"body":"hi"}]"#).await;
    joe.expect([json!([null, null, "room:lobby", "othered", {"body": "hi"}])]).await;
    ada.expect([reply("1", "2", "room:lobby", "ok", json!({}))]).await;
    ada.send_text(r#"["1","3","room:lobby","phx_leave",{}]"#).await;
    ada.expect([
        reply("1", "3", "room:lobby", "ok", json!({})),
        json!(["1", "1", "room:lobby", "phx_close", {}]),
    ])
    .await;
}
