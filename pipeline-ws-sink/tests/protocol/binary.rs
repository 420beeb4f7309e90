//! Binary messages.

use futures::SinkExt;
use pipeline_test_support::Client;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::app::{App, T, joined, ok, send, unmatched, v1};

const BYTES: &[u8] = &[1, 2, 3, 0xff];

/// Sends an event with a binary payload.
async fn send_bytes(
    client: &mut Client,
    [join_ref, reference, topic, event]: [&str; 4],
    payload: &[u8],
) {
    let fields = [join_ref, reference, topic, event];
    let mut frame = vec![0];
    frame.extend(fields.map(|field| u8::try_from(field.len()).unwrap()));
    frame.extend(fields.map(str::as_bytes).concat());
    frame.extend(payload);
    client.stream.send(Message::binary(frame)).await.unwrap();
}

/// Asserts that the next frame is this binary frame.
async fn expect_bytes(client: &mut Client, frame: &[u8]) {
    assert_eq!(client.next().await, Message::binary(frame.to_vec()));
}

#[tokio::test]
async fn c_141_a_binary_event_gets_a_binary_reply() {
    let (_app, mut client) = joined().await;
    let event = b"\x00\x01\x01\x0a\x0b12room:lobbyreply_bytes\x01\x02\x03\xff";
    client.stream.send(Message::binary(event.to_vec())).await.unwrap();
    expect_bytes(&mut client, b"\x01\x01\x01\x0a\x0212room:lobbyok\x01\x02\x03\xff").await;
}

#[tokio::test]
async fn c_142_an_empty_binary_event_gets_an_empty_reply() {
    let (_app, mut client) = joined().await;
    send_bytes(&mut client, ["1", "2", T, "ping"], b"").await;
    expect_bytes(&mut client, b"\x01\x01\x01\x0a\x0212room:lobbyok").await;
}

#[tokio::test]
async fn c_143_a_binary_event_can_get_a_text_reply() {
    let (_app, mut client) = joined().await;
    send_bytes(&mut client, ["1", "2", T, "size"], BYTES).await;
    client.expect([ok("2", json!({"size": 4}))]).await;
}

#[tokio::test]
async fn c_144_a_text_event_can_get_a_binary_reply() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "reply_bytes", json!({})).await;
    expect_bytes(&mut client, b"\x01\x01\x01\x0a\x0212room:lobbyok\x07\x08\x09").await;
}

#[tokio::test]
async fn c_145_a_binary_push_has_no_ref() {
    let (_app, mut client) = joined().await;
    send_bytes(&mut client, ["1", "2", T, "push_bytes"], BYTES).await;
    expect_bytes(&mut client, b"\x00\x01\x0a\x061room:lobbypushed\x01\x02\x03\xff").await;
    client.expect([ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_146_a_binary_broadcast_reaches_all_clients() {
    let (app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send_bytes(&mut ada, ["1", "2", T, "shout"], BYTES).await;
    for client in [&mut ada, &mut joe] {
        expect_bytes(client, b"\x02\x0a\x07room:lobbyshouted\x01\x02\x03\xff").await;
    }
    ada.expect([ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_147_an_empty_ref_is_returned_empty() {
    let (_app, mut client) = joined().await;
    send_bytes(&mut client, ["1", "", T, "ping"], BYTES).await;
    expect_bytes(&mut client, b"\x01\x01\x00\x0a\x021room:lobbyok\x01\x02\x03\xff").await;
    // In text, too, it is empty and not null.
    send_bytes(&mut client, ["1", "", T, "size"], BYTES).await;
    client.expect([ok("", json!({"size": 4}))]).await;
}

#[tokio::test]
async fn c_148_an_empty_join_ref_belongs_to_another_join() {
    let (_app, mut client) = joined().await;
    send_bytes(&mut client, ["", "2", T, "ping"], BYTES).await;
    send(&mut client, "3", "ping", json!({})).await;
    client.expect([ok("3", json!({}))]).await;
}

#[tokio::test]
async fn c_149_bytes_for_a_topic_that_is_not_joined_are_unmatched_in_text() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    send_bytes(&mut client, ["1", "2", T, "ping"], BYTES).await;
    client.expect([unmatched("2", T)]).await;
}

#[tokio::test]
async fn c_150_a_topic_is_no_longer_than_binary_frames_allow() {
    let app = App::start().await;
    let topic = &format!("room:{}", "x".repeat(251));
    let mut client = app.client("ada").await;
    client.send(json!(["1", "1", topic, "phx_join", {}])).await;
    assert_eq!(client.closed().await, 1011);

    let mut client = app.client("ada").await;
    let fits = &topic[..255];
    client.join("1", fits).await;
    client.send(json!(["1", "2", fits, "reply_bytes", {}])).await;
    let frame = [b"\x01\x01\x01\xff\x0212", fits.as_bytes(), b"ok\x07\x08\x09"].concat();
    expect_bytes(&mut client, &frame).await;
}

#[tokio::test]
async fn c_151_a_client_of_version_1_does_not_receive_binary_broadcasts() {
    let (app, mut ada) = joined().await;
    let mut old = app.v1("eve").await;
    old.send(v1("phx_join", json!("1"), json!({}))).await;
    let done = json!({"status": "ok", "response": {}});
    old.expect([v1("phx_reply", json!("1"), done)]).await;
    let mut joe = app.joined("joe", "3").await;

    send_bytes(&mut ada, ["1", "2", T, "shout"], BYTES).await;
    for client in [&mut ada, &mut joe] {
        expect_bytes(client, b"\x02\x0a\x07room:lobbyshouted\x01\x02\x03\xff").await;
    }
    ada.expect([ok("2", json!({}))]).await;
    // The next one reaches all three.
    send(&mut ada, "4", "shout", json!({"m": 1})).await;
    old.expect([v1("shouted", json!(null), json!({"m": 1}))]).await;
}
