//! Tests of the room through its clients.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pipeline::ws::{
    channel_test::{
        TestChannel, TestEndpoint, TestSocket, assert_broadcast, assert_push, assert_reply,
        refute_push, refute_reply,
    },
    socket::ConnectError,
    token::Signer,
};
use serde_json::json;

use crate::history::History;

/// The room, and a signer of tokens.
struct Lobby {
    kit: TestEndpoint,
    signer: Signer,
}

impl Lobby {
    fn open() -> Self {
        let signer = Signer::new("a secret for tests, long enough", "visitor").unwrap();
        Self { kit: TestEndpoint::of(crate::endpoint(&signer).build().unwrap()), signer }
    }

    async fn connect(&self, name: &str, device: &str) -> Result<TestSocket, ConnectError> {
        let token = self.signer.sign(name, SystemTime::now()).unwrap();
        self.kit.connect(json!({ "token": token, "device": device })).await
    }

    async fn enter(&self, name: &str, device: &str) -> (TestSocket, TestChannel) {
        let socket = self.connect(name, device).await.unwrap();
        let room = socket.join("room:lobby", json!({})).await.unwrap();
        assert_push!(room, "presence_state", |payload| payload.json().is_some());
        (socket, room)
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_reaches_all_visitors_and_later_ones() {
    let lobby = Lobby::open();
    let (_ada, room) = lobby.enter("ada", "phone").await;
    let said = room.push("say", json!({ "text": "hello" }));
    assert_reply!(room, said, "ok");
    let hello = assert_broadcast!(room, "said", |payload| payload.json().is_some());
    let hello: serde_json::Value = hello.parse().unwrap();
    let at = hello["at_ms"].clone();
    assert_eq!(hello, json!({ "number": 1, "name": "ada", "text": "hello", "at_ms": at }));
    let (_ben, room) = lobby.enter("ben", "laptop").await;
    assert_eq!(room.joined().parse::<serde_json::Value>().unwrap(), json!({ "messages": [hello] }));
}

#[tokio::test(start_paused = true)]
async fn a_visitor_is_shown_as_typing_until_the_message_is_sent() {
    let lobby = Lobby::open();
    let ((_ada, room), (_ben, other)) =
        (lobby.enter("ada", "phone").await, lobby.enter("ben", "laptop").await);
    let typed = room.push("typing", json!({ "typing": true }));
    assert_push!(other, "presence_diff", { "joins": { "ada": { "metas": [{ "typing": true }] } } });
    refute_reply!(room, typed, "ok");
    room.push("say", json!({ "text": "hello" }));
    let diff = assert_push!(other, "presence_diff", { "leaves": { "ada": _ } });
    assert_eq!(diff["joins"]["ada"]["metas"][0]["typing"], false);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_message_is_refused_with_a_reason_and_not_broadcast() {
    let lobby = Lobby::open();
    let (_ada, room) = lobby.enter("ada", "phone").await;
    for (text, reason) in [
        (json!(""), "expected a text of 1 to 1000 characters"),
        (json!("x".repeat(1001)), "expected a text of 1 to 1000 characters"),
        (json!(5), "expected a text"),
    ] {
        let said = room.push("say", json!({ "text": text }));
        assert_reply!(room, said, "error", == json!({ "reason": reason }));
    }
    refute_push!(room, "said");
    for (name, device) in [("ada", ""), ("ada", &*"x".repeat(31))] {
        assert!(lobby.connect(name, device).await.is_err(), "{device:?}");
    }
    let forged = lobby.kit.connect(json!({ "token": "ada", "device": "phone" })).await;
    assert!(forged.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_visitor_who_sends_too_much_is_rate_limited() {
    let lobby = Lobby::open();
    let (_ada, room) = lobby.enter("ada", "phone").await;
    let last = (0..100).map(|n| room.push("say", json!({ "text": n.to_string() }))).last().unwrap();
    assert_reply!(room, last, "error", { "reason": "rate limited", "retry_after": _ });
}

#[test]
fn only_the_last_messages_are_kept() {
    let mut history = History::default();
    for n in 0..History::MAX + 10 {
        let at = UNIX_EPOCH + Duration::from_millis(n as u64);
        history.add("ada", n.to_string(), at);
    }
    let messages = history.messages();
    assert_eq!((messages.len(), messages[0].number), (History::MAX, 11));
    assert_eq!(messages[0].at_ms, 10, "when it was said");
}
