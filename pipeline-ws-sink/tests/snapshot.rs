//! Snapshots of an endpoint.

mod support;

use std::time::Duration;

use pipeline_test_support::{connect, eventually};
use pipeline_ws_sink::{Endpoint, Mount, endpoint::EndpointSnapshot, mount::WhenFull};
use serde_json::json;
use support::{
    channels::{NamedSocket, Room, endpoint, endpoint_with},
    server::Server,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

const T: &str = "room:lobby";

/// Per route: joined channels, their topics, accepted joins and refused ones.
fn routes(seen: &EndpointSnapshot) -> Vec<(usize, usize, u64, u64)> {
    let routes = seen.channels.iter();
    routes.map(|route| (route.open, route.topics, route.joined, route.refused)).collect()
}

#[tokio::test]
async fn sockets_are_counted_by_mount_and_connections_by_result() {
    let mount = || Mount::new(NamedSocket).channel::<Room>("room:*");
    let builder = Endpoint::builder().mount("/socket", mount()).mount("/other", mount());
    let server = Server::start(builder).await;
    let (ada, _bob) = (server.connect("name=ada").await, server.connect("name=bob").await);
    assert_eq!(server.try_connect("vsn=2.0.0").await.err(), Some(403));
    let url = server.url("vsn=2.0.0&name=eve").replace("/socket/", "/other/");
    let _eve = connect(&url).await.unwrap();
    server.open_sockets(3).await;

    let seen = server.endpoint.snapshot();
    let mounts: Vec<_> = seen
        .sockets
        .iter()
        .map(|mount| (&*mount.path, &*mount.socket, mount.open, mount.connected, mount.refused))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/socket/websocket", "NamedSocket", 2, 2, 1),
            ("/other/websocket", "NamedSocket", 1, 1, 0)
        ]
    );
    drop(ada);
    eventually(|| server.endpoint.snapshot().sockets[0].open == 1).await;
    assert_eq!(server.endpoint.snapshot().sockets[0].connected, 2);
}

#[tokio::test]
async fn channels_and_their_topics_are_counted_by_route_and_joins_by_result() {
    let mount = || Mount::new(NamedSocket).channel::<Room>("room:vip").channel::<Room>("room:*");
    let builder = Endpoint::builder().mount("/socket", mount()).mount("/other", mount());
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    let mut bob = server.connect("name=bob").await;
    let url = server.url("vsn=2.0.0&name=eve").replace("/socket/", "/other/");
    let mut eve = connect(&url).await.unwrap();
    ada.join("1", "room:a").await;
    ada.join("2", "room:b").await;
    ada.join("3", "room:vip").await;
    bob.join("1", "room:a").await;
    eve.join("1", "room:a").await;
    for params in [json!({ "refuse": "no" }), json!({ "crash": true })] {
        bob.send(json!(["2", "2", "room:c", "phx_join", params])).await;
        assert_eq!(bob.receive().await[4]["status"], "error");
    }

    let seen = server.endpoint.snapshot();
    let names: Vec<_> = seen
        .channels
        .iter()
        .map(|route| (&*route.path, &*route.pattern, &*route.channel))
        .collect();
    assert_eq!(
        names,
        [
            ("/socket/websocket", "room:vip", "Room"),
            ("/socket/websocket", "room:*", "Room"),
            ("/other/websocket", "room:vip", "Room"),
            ("/other/websocket", "room:*", "Room")
        ]
    );
    assert_eq!(routes(&seen), [(1, 1, 1, 0), (3, 2, 3, 2), (0, 0, 0, 0), (1, 1, 1, 0)]);
    assert_eq!(seen.topics, 3);

    // A rejoin replaces the first channel.
    bob.send(json!(["3", "3", "room:a", "phx_join", {}])).await;
    assert_eq!(bob.receive().await[4]["status"], "ok");
    assert_eq!(routes(&server.endpoint.snapshot())[1], (3, 2, 4, 2));
    ada.send(json!(["1", "4", "room:a", "phx_leave", {}])).await;
    eventually(|| routes(&server.endpoint.snapshot())[1] == (2, 2, 4, 2)).await;
    bob.send(json!(["3", "4", "room:a", "phx_leave", {}])).await;
    eventually(|| routes(&server.endpoint.snapshot())[1] == (1, 1, 4, 2)).await;
    assert_eq!(server.endpoint.snapshot().topics, 3, "the other mount has another");
    drop((ada, eve));
    let gone = [(0, 0, 1, 0), (0, 0, 4, 2), (0, 0, 0, 0), (0, 0, 1, 0)];
    eventually(|| routes(&server.endpoint.snapshot()) == gone).await;
    eventually(|| server.endpoint.snapshot().topics == 0).await;
}

#[tokio::test]
async fn a_topic_with_only_a_task_subscribed_belongs_to_no_route() {
    let server = Server::start(endpoint().0).await;
    let listening = server.endpoint.subscribe(T);
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.topics, routes(&seen)[0].1), (1, 0));
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    drop(listening);
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.topics, routes(&seen)[0].1), (1, 1));
}

#[tokio::test]
async fn frames_and_broadcasts_are_counted_and_deliveries_timed() {
    let server = Server::start(endpoint().0).await;
    let (mut ada, mut bob) = (server.connect("name=ada").await, server.connect("name=bob").await);
    ada.join("1", T).await;
    bob.join("1", T).await;
    let before = server.endpoint.snapshot();
    assert_eq!((before.broadcasts, before.frames_in, before.frames_out), (0, 2, 2));
    assert_eq!(before.delivered.count(), 0);

    let enqueued_at = Instant::now();
    for n in 0..100 {
        server.endpoint.broadcast_timed(enqueued_at, T, "news", json!({ "n": n })).unwrap();
        server.endpoint.broadcast("room:empty", "news", json!({})).unwrap();
    }
    for n in 0..100 {
        let news = json!([null, null, T, "news", { "n": n }]);
        ada.expect([news.clone()]).await;
        bob.expect([news]).await;
    }
    eventually(|| server.endpoint.snapshot().frames_out == 202).await;
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.broadcasts, seen.frames_in), (200, 2));
    let delivered = seen.delivered.since(&before.delivered);
    assert_eq!(delivered.count(), 200);
    let recorded = server.recorded.samples("pipeline.push_delivered");
    assert_eq!(recorded.len(), 200);
    let longest = Duration::from_secs_f64(recorded.into_iter().fold(0.0, f64::max) / 1e3);
    let reported = delivered.max().unwrap();
    assert!(reported.abs_diff(longest) <= longest / 64, "{reported:?} instead of {longest:?}");
    assert_eq!(server.recorded.counters("socket.frames_in"), [(String::new(), 2)]);
    assert_eq!(server.recorded.counters("socket.frames_out"), [(String::new(), 202)]);
    assert_eq!(server.recorded.counters("socket.broadcasts"), [(String::new(), 200)]);
}

#[tokio::test]
async fn pending_frames_of_a_slow_client_are_shown_until_they_are_read() {
    let (builder, _gate) = endpoint_with(|mount| mount.max_outbox(10_000, 1 << 30));
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let text = "x".repeat(64 << 10);
    let mut sent = 0;
    while server.endpoint.snapshot().frames_waiting < 3 {
        server.endpoint.broadcast(T, "news", json!({ "text": text })).unwrap();
        sent += 1;
        tokio::task::yield_now().await;
    }
    let seen = server.endpoint.snapshot();
    assert!(seen.frames_out < sent);
    assert!(seen.bytes_waiting >= 3 * (64 << 10), "{seen:?}");
    for _ in 0..sent {
        assert_eq!(ada.receive().await[3], "news");
    }
    eventually(|| server.endpoint.snapshot().frames_waiting == 0).await;
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.bytes_waiting, seen.frames_out), (0, sent + 1));
}

#[tokio::test]
async fn dropped_frames_are_counted_by_reason() {
    let policy = |mount: Mount<NamedSocket>| mount.max_outbox(2, 1 << 30);
    let (builder, _gate) = endpoint_with(|mount| policy(mount).when_full(WhenFull::DropOldest));
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    assert!(server.endpoint.snapshot().dropped.is_empty());
    let text = "x".repeat(64 << 10);
    let mut sent = 0u64;
    let mut send = |server: &Server| {
        let news = json!({ "n": sent, "text": text });
        server.endpoint.broadcast(T, "news", news).unwrap();
        sent += 1;
        sent
    };
    while server.endpoint.snapshot().dropped.values().sum::<u64>() < 10 {
        send(&server);
    }
    let last = send(&server) - 1;
    // Each broadcast is received or counted, and none is both.
    let (mut received, mut n) = (0, 0);
    while n < last {
        n = ada.receive().await[4]["n"].as_u64().unwrap();
        received += 1;
    }
    let seen = server.endpoint.snapshot();
    assert_eq!(seen.dropped, [("drop_oldest".into(), last + 1 - received)].into(), "{seen:?}");
    assert_eq!(seen.closed_slow, 0);

    let (builder, _gate) = endpoint_with(policy);
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let mut sent = 0;
    while server.endpoint.snapshot().closed_slow == 0 {
        server.endpoint.broadcast(T, "news", json!({ "text": text })).unwrap();
        sent += 1;
    }
    let mut received = 0;
    while let Message::Text(text) = ada.next().await {
        received += u64::from(text.contains("news"));
    }
    let seen = server.endpoint.snapshot();
    assert_eq!(seen.dropped, [("overflow".into(), sent - received)].into(), "{seen:?}");
}

#[tokio::test]
async fn an_observer_keeps_no_sockets_open() {
    let server = Server::start(endpoint().0).await;
    let observer = server.endpoint.observer();
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let seen = observer.clone().snapshot().unwrap();
    assert_eq!((seen.sockets[0].open, seen.draining), (1, false));
    drop(server);
    assert_eq!(ada.closed().await, 1001);
    assert!(observer.snapshot().is_none());
}

#[tokio::test]
async fn a_draining_endpoint_is_shown_as_draining() {
    let server = Server::start(endpoint().0).await;
    let observer = server.endpoint.observer();
    server.endpoint.drain(Duration::from_secs(1)).await;
    assert!(observer.snapshot().unwrap().draining);
}
