//! The life of channels, where the cases of the specification do not say it.

mod support;

use pipeline_test_support::reply;
use serde_json::json;
use support::{channels::endpoint, server::Server};

const T: &str = "room:lobby";

#[tokio::test]
async fn joins_are_counted_by_how_they_went() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    for params in [json!({"crash": true}), json!({"refuse": "full"})] {
        client.send(json!(["1", "1", T, "phx_join", params])).await;
        assert_eq!(client.receive().await[4]["status"], "error");
    }
    client.join("2", T).await;
    assert_eq!(
        server.recorded.counters("channel_join"),
        [("channel=Room,status=fail".into(), 2), ("channel=Room,status=success".into(), 1)]
    );
}

#[tokio::test]
async fn terminate_is_told_why_the_channel_ends() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=a").await;
    let no_event = "failed: the channel has no event \"no_such_event\"";
    let no_object =
        "failed: the payload of a push or a broadcast has to be a JSON object, or binary";
    for (event, reason) in [
        ("stop", "normal"),
        ("boom", "failed: boom"),
        ("crash", "panicked: told to crash"),
        ("no_such_event", no_event),
        ("push", no_object),
        ("phx_leave", "shutdown: left"),
    ] {
        client.join("1", T).await;
        client.send(json!(["1", "2", T, event, [1, 2]])).await;
        let mut told = Vec::new();
        // Its last word, and what terminate says: in this order, or after a crash in the other.
        while told.len() < 2 {
            let message = client.receive().await;
            if message[3] != "phx_reply" {
                told.push(message);
            }
        }
        let farewell = json!(["1", null, T, "farewell", {"reason": reason}]);
        assert!(told.contains(&farewell), "{told:?}");
    }
}

#[tokio::test]
async fn a_join_during_a_join_replaces_it_in_turn() {
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["1", "1", "slow:in", "phx_join", {}])).await;
    client.send(json!(["2", "2", "slow:in", "phx_join", {}])).await;
    client.send(json!(["2", "3", "slow:in", "ping", {"n": 3}])).await;
    client.expect_nothing_else().await;
    gate.add_permits(2);
    client
        .expect([
            reply("1", "1", "slow:in", "ok", json!({})),
            reply("2", "2", "slow:in", "ok", json!({})),
            json!(["1", "1", "slow:in", "phx_close", {}]),
            reply("2", "3", "slow:in", "ok", json!({"n": 3})),
        ])
        .await;
}

#[tokio::test]
async fn a_client_that_floods_a_busy_channel_or_a_join_waits_itself_and_loses_nothing() {
    const MANY: usize = 2000;
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=a").await;
    client.send(json!(["1", "1", "slow:in", "phx_join", {}])).await;
    for n in 0..MANY {
        client.send(json!(["1", n, "slow:in", "ping", {}])).await;
    }
    gate.add_permits(1);
    client.expect([reply("1", "1", "slow:in", "ok", json!({}))]).await;
    for n in 0..MANY {
        client
            .expect([json!(["1", n, "slow:in", "phx_reply", {"status": "ok", "response": {}}])])
            .await;
    }
}
