//! The life cycle of channels beyond the cases of the specification.

mod support;

use pipeline_test_support::{Recorded, reply, settle};
use pipeline_ws_sink::channel_test::{TestEndpoint, WireFrame, assert_push};
use serde_json::json;
use support::{channels::endpoint, server::Server};

const T: &str = "room:lobby";

#[tokio::test(start_paused = true)]
async fn joins_are_counted_by_result() {
    let (telemetry, recorded) = Recorded::new();
    let kit = TestEndpoint::of(endpoint().0.telemetry(telemetry).build().unwrap());
    let socket = kit.connect(json!({"name": "a"})).await.unwrap();
    let crashed = socket.join(T, json!({"crash": true})).await.unwrap_err();
    assert_eq!(crashed.json(), json!({"reason": "join crashed"}));
    let refused = socket.join(T, json!({"refuse": "full"})).await.unwrap_err();
    assert_eq!(refused.json(), json!({"reason": "full"}));
    socket.join(T, json!({})).await.unwrap();
    assert_eq!(
        recorded.counters("channel_join"),
        [("channel=Room,status=fail".into(), 2), ("channel=Room,status=success".into(), 1)]
    );
}

#[tokio::test(start_paused = true)]
async fn terminate_receives_the_exit_reason() {
    let kit = TestEndpoint::of(endpoint().0.build().unwrap());
    let socket = kit.connect(json!({"name": "a"})).await.unwrap();
    let no_event = "failed: the channel has no event \"no_such_event\"";
    let no_object =
        "failed: the payload of a push or a broadcast has to be a JSON object, or binary";
    for (event, reason, last_word) in [
        ("stop", "normal", "phx_close"),
        ("boom", "failed: boom", "phx_error"),
        ("crash", "panicked: crash requested", "phx_error"),
        ("no_such_event", no_event, "phx_error"),
        ("push", no_object, "phx_error"),
        ("phx_leave", "shutdown: left", "phx_close"),
    ] {
        let room = socket.join(T, json!({})).await.unwrap();
        room.push(event, json!([1, 2]));
        assert_eq!(room.exit_reason().await.to_string(), reason);
        assert_push!(room, "farewell", == json!({"reason": reason}));
        assert_push!(room, last_word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_join_during_a_join_replaces_it_in_order() {
    let (builder, gate) = endpoint();
    let kit = TestEndpoint::of(builder.build().unwrap());
    let socket = kit.connect(json!({"name": "a"})).await.unwrap();
    socket.send(json!(["1", "1", "slow:in", "phx_join", {}]));
    socket.send(json!(["2", "2", "slow:in", "phx_join", {}]));
    socket.send(json!(["2", "3", "slow:in", "ping", {"n": 3}]));
    settle().await;
    assert_eq!(socket.frames(), []);
    gate.add_permits(2);
    settle().await;
    assert_eq!(
        socket.frames().iter().map(WireFrame::json).collect::<Vec<_>>(),
        [
            reply("1", "1", "slow:in", "ok", json!({})),
            reply("2", "2", "slow:in", "ok", json!({})),
            json!(["1", "1", "slow:in", "phx_close", {}]),
            reply("2", "3", "slow:in", "ok", json!({"n": 3})),
        ]
    );
}

#[tokio::test]
async fn a_client_that_floods_a_busy_channel_is_slowed_down_and_loses_nothing() {
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
