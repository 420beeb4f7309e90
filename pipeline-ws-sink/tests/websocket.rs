//! The WebSocket layer: frames, limits and negotiation.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use futures::SinkExt;
use pipeline_test_support::{Client, reply};
use pipeline_ws_sink::{Mount, Payload};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    raw::{COMPRESSED, CONTINUE, FIN, RawClient, TEXT, deflate, inflate},
    server::Server,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{
        CloseFrame,
        frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

const T: &str = "room:lobby";
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

async fn start(options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>) -> Server {
    Server::start(endpoint_with(options).0).await
}

async fn send_frame(client: &mut Client, payload: &[u8], kind: Data, fin: bool) {
    let frame = Frame::message(payload.to_vec(), OpCode::Data(kind), fin);
    client.stream.send(Message::Frame(frame)).await.unwrap();
}

#[tokio::test]
async fn c_057_a_text_that_is_not_utf_8_closes_with_1007() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    send_frame(&mut client, &[b'"', 0xc3, 0x28, b'"'], Data::Text, true).await;
    assert_eq!(client.closed().await, 1007);
}

#[tokio::test]
async fn c_058_a_fragmented_text_is_one_message() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    client.join("1", T).await;
    let text = json!(["1", "2", T, "ping", {"text": "é".repeat(100)}]).to_string();
    let pieces: Vec<_> = text.as_bytes().chunks(21).collect();
    for (n, piece) in pieces.iter().enumerate() {
        let kind = if n == 0 { Data::Text } else { Data::Continue };
        send_frame(&mut client, piece, kind, n == pieces.len() - 1).await;
    }
    client.expect([reply("1", "2", T, "ok", json!({"text": "é".repeat(100)}))]).await;
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_059_a_ping_is_answered_with_its_own_bytes() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    client.stream.send(Message::Pong("unasked".into())).await.unwrap();
    client.stream.send(Message::Ping("hello".into())).await.unwrap();
    assert_eq!(client.next().await, Message::Pong("hello".into()));
}

#[tokio::test]
async fn c_060_a_close_is_answered_with_1000_whatever_its_code() {
    let server = Server::start(endpoint().0).await;
    for code in [1000, 4001] {
        let mut client = server.connect("name=ada").await;
        let close = CloseFrame { code: code.into(), reason: "bye".into() };
        client.stream.close(Some(close)).await.unwrap();
        assert_eq!(client.closed().await, 1000, "{code}");
    }
    server.open_sockets(0).await;
}

/// A heartbeat of this many bytes.
fn heartbeat(length: usize) -> String {
    let heartbeat =
        |pad: &str| json!([null, "1", "phoenix", "heartbeat", {"pad": pad}]).to_string();
    let text = heartbeat(&"x".repeat(length - heartbeat("").len()));
    assert_eq!(text.len(), length);
    text
}

#[tokio::test]
async fn c_157_the_limit_of_a_frame_counts_its_header_and_its_mask() {
    let server = start(|mount| mount.max_frame_size(1024)).await;
    let mut client = server.connect("name=ada").await;
    client.send_text(&heartbeat(1016)).await;
    client
        .expect([json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}])])
        .await;
    // Several frames together may be larger.
    let long = heartbeat(1500);
    send_frame(&mut client, &long.as_bytes()[..1000], Data::Text, false).await;
    send_frame(&mut client, &long.as_bytes()[1000..], Data::Continue, true).await;
    client
        .expect([json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}])])
        .await;
    client.send_text(&heartbeat(1017)).await;
    assert_eq!(client.closed().await, 1009);
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn c_158_messages_are_compressed_both_ways_if_negotiated() {
    let server = start(|mount| mount.compress(true)).await;
    let mut client = RawClient::connect(server.connect_tcp().await, OFFER).await;
    assert!(client.head.starts_with("http/1.1 101"), "{}", client.head);
    let agreed = "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; \
                  client_no_context_takeover\r\n";
    assert!(client.head.contains(agreed), "{}", client.head);
    // A client without compression shares the topic.
    let mut plain = server.connect("name=joe").await;
    plain.join("1", T).await;

    let join = json!(["1", "1", T, "phx_join", {}]).to_string();
    client.send(FIN | COMPRESSED | TEXT, &deflate(&join)).await;
    let (first, payload) = client.next().await;
    assert_eq!(first, FIN | TEXT, "small messages are not compressed");
    let payload = String::from_utf8(payload).unwrap();
    assert_eq!(parsed(&payload), reply("1", "1", T, "ok", json!({})));

    // A reply to this client alone, to a message in fragments; and uncompressed messages are accepted,
    // too.
    let long = json!({"text": "tell me ".repeat(100)});
    let ping = json!(["1", "2", T, "ping", long]).to_string();
    let zipped = deflate(&ping);
    client.send(COMPRESSED | TEXT, &zipped[..20]).await;
    client.send(FIN | CONTINUE, &zipped[20..]).await;
    client.send(FIN | TEXT, ping.as_bytes()).await;
    for _ in 0..2 {
        let (first, payload) = client.next().await;
        assert_eq!(first, FIN | COMPRESSED | TEXT);
        assert!(payload.len() < 200, "{}", payload.len());
        assert_eq!(parsed(&inflate(&payload)), reply("1", "2", T, "ok", long.clone()));
    }

    let long = Payload::new(&long).unwrap();
    server.endpoint.broadcast(T, "news", &long).unwrap();
    let news = json!([null, null, T, "news", parsed(long.json().unwrap())]);
    let (first, payload) = client.next().await;
    assert_eq!((first, parsed(&inflate(&payload))), (FIN | COMPRESSED | TEXT, news.clone()));
    plain.expect([news]).await;
}

#[tokio::test]
async fn c_159_an_offer_to_compress_is_ignored_unless_enabled() {
    let server = Server::start(endpoint().0).await;
    let mut client = RawClient::connect(server.connect_tcp().await, OFFER).await;
    assert!(client.head.starts_with("http/1.1 101"), "{}", client.head);
    assert!(!client.head.contains("sec-websocket-extensions"), "{}", client.head);
    let pad = "x".repeat(500);
    client.send(FIN | TEXT, heartbeat(500).as_bytes()).await;
    assert_eq!(client.next().await.0, FIN | TEXT);
    client.send(FIN | TEXT, json!(["1", "1", T, "phx_join", {}]).to_string().as_bytes()).await;
    client.next().await;
    let ping = json!(["1", "2", T, "ping", {"pad": pad}]).to_string();
    client.send(FIN | TEXT, ping.as_bytes()).await;
    let (first, payload) = client.next().await;
    let payload = String::from_utf8(payload).unwrap();
    assert_eq!(first, FIN | TEXT);
    assert_eq!(parsed(&payload), reply("1", "2", T, "ok", json!({"pad": pad})));
    client.send(FIN | COMPRESSED | TEXT, &deflate(&ping)).await;
    assert_eq!(client.closed().await, 1002, "it was not negotiated");
}

#[tokio::test]
async fn a_small_message_that_inflates_above_the_limit_closes_with_1009() {
    let server = start(|mount| mount.compress(true).max_message_size(10_000)).await;
    let mut client = RawClient::connect(server.connect_tcp().await, OFFER).await;
    client.send(FIN | COMPRESSED | TEXT, &deflate(&"x".repeat(1 << 20))).await;
    assert_eq!(client.closed().await, 1009);
}

#[tokio::test]
async fn a_channels_pushes_are_compressed_too() {
    let server = start(|mount| mount.compress(true)).await;
    let mut client = RawClient::connect(server.connect_tcp().await, OFFER).await;
    client.send(FIN | TEXT, json!(["1", "1", T, "phx_join", {}]).to_string().as_bytes()).await;
    client.next().await;
    let long = json!({"text": "tell me ".repeat(100)});
    let push = json!(["1", "2", T, "push", long]).to_string();
    client.send(FIN | TEXT, push.as_bytes()).await;
    let (first, payload) = client.next().await;
    assert_eq!(first, FIN | COMPRESSED | TEXT);
    assert_eq!(parsed(&inflate(&payload)), json!(["1", null, T, "pushed", long]));
}
