//! Gauges of an endpoint: open sockets and channels, and pending frames.

mod support;

use pipeline_test_support::{Recorded, connect, eventually};
use pipeline_ws_sink::{Endpoint, Mount};
use serde_json::json;
use support::{
    channels::{NamedSocket, Room, endpoint, endpoint_with},
    server::Server,
};

const T: &str = "room:lobby";

/// The value of a gauge without labels.
fn level(recorded: &Recorded, name: &str) -> f64 {
    recorded.levels(name).iter().map(|(_, level)| level).sum()
}

#[tokio::test]
async fn open_sockets_and_channels_are_counted_by_type_over_all_mounts() {
    let mount = || Mount::new(NamedSocket).channel::<Room>("room:vip").channel::<Room>("room:*");
    let builder = Endpoint::builder().mount("/socket", mount()).mount("/other", mount());
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    let url = server.url("vsn=2.0.0&name=eve").replace("/socket/", "/other/");
    let mut eve = connect(&url).await.unwrap();
    ada.join("1", T).await;
    ada.join("2", "room:vip").await;
    eve.join("1", T).await;
    assert_eq!(server.recorded.levels("channel.open"), [("channel=Room".to_owned(), 3.0)]);
    assert_eq!(server.recorded.levels("socket.open"), [("socket=NamedSocket".to_owned(), 2.0)]);
    drop(eve);
    eventually(|| level(&server.recorded, "channel.open") == 2.0).await;
    eventually(|| level(&server.recorded, "socket.open") == 1.0).await;
}

#[tokio::test]
async fn topics_are_recorded_while_sockets_are_open() {
    let server = Server::start(endpoint().0).await;
    let topics = || level(&server.recorded, "socket.topics");
    let (_news, _more) = (server.endpoint.subscribe("news"), server.endpoint.subscribe("more"));
    let mut ada = server.connect("name=ada").await;
    eventually(|| topics() == 2.0).await;
    ada.join("1", T).await;
    eventually(|| topics() == 3.0).await;
    // After the last socket has closed, one more sample is taken; sampling resumes with the next socket.
    drop(ada);
    eventually(|| topics() == 2.0).await;
    let _rest = server.endpoint.subscribe("rest");
    let _bob = server.connect("name=bob").await;
    eventually(|| topics() == 3.0).await;
}

#[tokio::test]
async fn pending_frames_are_recorded_until_they_are_written() {
    let (builder, _gate) = endpoint_with(|mount| mount.max_outbox(10_000, 1 << 30));
    let server = Server::start(builder).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let text = "x".repeat(64 << 10);
    let mut sent = 0;
    while server.endpoint.snapshot().frames_waiting < 3 {
        server.endpoint.broadcast(T, "news", json!({ "text": text })).unwrap();
        sent += 1;
    }
    eventually(|| level(&server.recorded, "socket.frames_waiting") >= 3.0).await;
    eventually(|| level(&server.recorded, "socket.bytes_waiting") >= f64::from(3 << 16)).await;
    for _ in 0..sent {
        assert_eq!(ada.receive().await[3], "news");
    }
    eventually(|| level(&server.recorded, "socket.frames_waiting") == 0.0).await;
    eventually(|| level(&server.recorded, "socket.bytes_waiting") == 0.0).await;
    assert!(!server.recorded.samples("socket.write_time").is_empty());
}

#[tokio::test]
async fn a_dropped_endpoint_leaves_no_gauges() {
    let mut server = Server::start(endpoint().0).await;
    let recorded = std::mem::replace(&mut server.recorded, Recorded::new().1);
    let _news = server.endpoint.subscribe("news");
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    eventually(|| level(&recorded, "socket.topics") == 2.0).await;
    drop(server);
    for name in ["socket.open", "channel.open", "socket.topics"] {
        eventually(|| level(&recorded, name) == 0.0).await;
    }
}
