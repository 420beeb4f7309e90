//! Pushes, broadcasts, intercepted broadcasts.

use pipeline_test_support::{Client, reply};
use serde_json::{Value, json};

use crate::app::{App, T, broadcast, joined, ok, push, send, v1};

/// Two clients of version 2 and one of version 1, all joined.
async fn three() -> (App, [Client; 2], Client) {
    let app = App::start().await;
    let clients = [app.joined("ada", "1").await, app.joined("joe", "2").await];
    let mut old = app.v1("eve").await;
    old.send(v1("phx_join", json!("3"), json!({}))).await;
    old.expect([v1("phx_reply", json!("3"), json!({"status": "ok", "response": {}}))]).await;
    (app, clients, old)
}

#[tokio::test]
async fn c_130_a_push_has_the_join_ref_and_no_ref() {
    let (_app, mut client) = joined().await;
    send(&mut client, "2", "push", json!({"x": 1})).await;
    client.expect([json!(["1", null, T, "pushed", {"x": 1}]), ok("2", json!({}))]).await;
}

#[tokio::test]
async fn c_131_a_broadcast_reaches_all_in_their_version_and_the_sender_before_its_reply() {
    let (_app, [mut ada, mut joe], mut old) = three().await;
    send(&mut ada, "4", "shout", json!({"m": 1})).await;
    let shouted = json!([null, null, T, "shouted", {"m": 1}]);
    ada.expect([shouted.clone(), ok("4", json!({}))]).await;
    joe.expect([shouted]).await;
    old.expect([json!({"topic": T, "event": "shouted", "payload": {"m": 1}, "ref": null})]).await;
    for client in [&mut ada, &mut joe] {
        client.expect_nothing_else().await;
    }
}

#[tokio::test]
async fn c_132_the_endpoint_broadcasts_the_same_frames() {
    let (app, [mut ada, mut joe], mut old) = three().await;
    app.server.endpoint.broadcast(T, "news", json!({"m": 1})).unwrap();
    app.server.endpoint.local_broadcast(T, "news", json!({"m": 2})).unwrap();
    for m in [1, 2] {
        for client in [&mut ada, &mut joe] {
            client.expect([broadcast("news", json!({"m": m}))]).await;
        }
        old.expect([v1("news", json!(null), json!({"m": m}))]).await;
    }
}

#[tokio::test]
async fn c_133_a_broadcast_on_another_topic_is_not_received() {
    let (app, mut client) = joined().await;
    for topic in ["room:other", "room:lobby2", "room:", "nowhere"] {
        app.server.endpoint.broadcast(topic, "news", json!({})).unwrap();
    }
    client.expect_nothing_else().await;
}

#[tokio::test]
async fn c_134_a_channel_may_broadcast_to_all_but_its_own_client() {
    let (app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send(&mut ada, "3", "others", json!({"m": 1})).await;
    ada.expect([ok("3", json!({}))]).await;
    joe.expect([broadcast("othered", json!({"m": 1}))]).await;
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn c_135_the_endpoint_may_broadcast_to_all_but_one_channel() {
    let (mut app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send(&mut ada, "3", "ask", json!({})).await;
    let room = app.asked().await.room;
    app.server.endpoint.broadcast_from(room, T, "news", json!({"m": 1})).unwrap();
    joe.expect([broadcast("news", json!({"m": 1}))]).await;
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn c_136_an_intercepted_broadcast_can_be_changed_for_each_client() {
    let (app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send(&mut ada, "3", "stamp", json!({"m": 1})).await;
    let stamped = |join_ref, name: &str| push(join_ref, "stamped", json!({"m": 1, "for": name}));
    ada.expect([ok("3", json!({})), stamped("1", "ada")]).await;
    joe.expect([stamped("2", "joe")]).await;
}

#[tokio::test]
async fn c_137_an_intercepted_broadcast_can_be_renamed() {
    let (app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send(&mut ada, "3", "rename", json!({"m": 1})).await;
    ada.expect([ok("3", json!({})), push("1", "renamed_out", json!({"m": 1}))]).await;
    joe.expect([push("2", "renamed_out", json!({"m": 1}))]).await;
}

#[tokio::test]
async fn c_138_an_intercepted_broadcast_can_be_dropped_for_a_client() {
    let (app, mut ada) = joined().await;
    let mut joe = app.joined("joe", "2").await;
    send(&mut ada, "3", "private", json!({"to": "joe"})).await;
    joe.expect([push("2", "private", json!({"to": "joe"}))]).await;
    // The same channel handles this after the broadcast that it drops.
    send(&mut ada, "4", "ping", json!({})).await;
    ada.expect([ok("3", json!({})), ok("4", json!({}))]).await;
}

const EXT: &str = "ext:today";

fn relayed(n: u64) -> Value {
    let payload = json!({"topic": "news:today", "event": "headline", "payload": {"n": n}});
    json!(["1", null, EXT, "relayed", payload])
}

#[tokio::test]
async fn c_139_a_broadcast_on_another_topic_reaches_a_subscribed_channel() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.join("1", EXT).await;
    app.server.endpoint.broadcast("news:today", "headline", json!({"n": 1})).unwrap();
    client.expect([relayed(1)]).await;
    client.send(json!(["1", "2", EXT, "ping", {}])).await;
    client.expect([reply("1", "2", EXT, "ok", json!({}))]).await;
}

#[tokio::test]
async fn c_140_an_unsubscribed_channel_receives_nothing() {
    let app = App::start().await;
    let mut client = app.client("ada").await;
    client.join("1", EXT).await;
    // It subscribes twice, and receives everything twice.
    client.send(json!(["1", "2", EXT, "again", {}])).await;
    client.expect([reply("1", "2", EXT, "ok", json!({}))]).await;
    app.server.endpoint.broadcast("news:today", "headline", json!({"n": 1})).unwrap();
    client.expect([relayed(1), relayed(1)]).await;

    client.send(json!(["1", "3", EXT, "unsubscribe", {}])).await;
    client.expect([reply("1", "3", EXT, "ok", json!({}))]).await;
    app.server.endpoint.broadcast("news:today", "headline", json!({"n": 2})).unwrap();
    client.send(json!(["1", "4", EXT, "ping", {}])).await;
    client.expect([reply("1", "4", EXT, "ok", json!({}))]).await;
}
