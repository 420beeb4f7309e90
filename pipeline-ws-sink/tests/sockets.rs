//! Sockets: connecting, closing, and errors of clients.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures::SinkExt;
use pipeline_test_support::{connect, reply};
use pipeline_ws_sink::{
    Endpoint, Mount, Socket,
    endpoint::{BuildError, PathError},
    mount::LongPoll,
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::json;
use support::{
    channels::{NamedSocket, Room, endpoint, endpoint_with},
    cluster::Cluster,
    poller::{body_of, request},
    server::Server,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
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

#[tokio::test]
async fn a_refused_client_gets_403_and_is_counted() {
    let server = Server::start(endpoint().0).await;
    for query in ["vsn=2.0.0", "vsn=2.0.0&name=panic", "vsn=2.0.0&name=no-id"] {
        assert_eq!(server.try_connect(query).await.err(), Some(403), "{query}");
    }
    server.connect("name=ada").await;
    assert_eq!(
        server.recorded.counters("socket_connect"),
        [
            ("socket=NamedSocket,status=fail".into(), 3),
            ("socket=NamedSocket,status=success".into(), 1)
        ]
    );
    for query in ["vsn=1.1.0&name=ada", "vsn=2&name=ada", "vsn=3.0.0&name=ada"] {
        assert_eq!(server.try_connect(query).await.err(), Some(403), "{query}");
    }
}

#[tokio::test]
async fn a_request_without_an_upgrade_gets_an_explanation() {
    let server = Server::start(endpoint().0).await;
    let request = async |request: &str| {
        let mut stream = server.connect_tcp().await;
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let path = "/socket/websocket?vsn=2.0.0&name=a";
    assert!(request(&format!("POST {path}")).await.starts_with("HTTP/1.1 400"));
    let plain = request(&format!("GET {path}")).await;
    assert!(plain.starts_with("HTTP/1.1 400") && plain.len() > 80, "with an explanation: {plain}");
    assert!(request("GET /socket").await.starts_with("HTTP/1.1 404"));
    assert!(server.recorded.counters("socket_connect").is_empty(), "connect was not called");
}

#[tokio::test]
async fn protocol_violations_close_with_their_code() {
    let (builder, _gate) = endpoint_with(|mount| mount.max_message_size(1024));
    let server = Server::start(builder).await;

    let mut client = server.connect("name=ada").await;
    client.send_text(&"x".repeat(2000)).await;
    assert_eq!(client.closed().await, 1009);

    let mut client = server.connect("name=ada").await;
    let frame = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    client.stream.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(client.closed().await, 1007);

    let mut client = server.connect("name=ada").await;
    let frame = Frame::message(vec![b'x'], OpCode::Data(Data::Continue), true);
    client.stream.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(client.closed().await, 1002);
}

#[tokio::test]
async fn pings_are_answered_and_a_close_is_answered_with_1000() {
    let server = Server::start(endpoint().0).await;
    let mut client = server.connect("name=ada").await;
    client.stream.send(Message::Ping("hello".into())).await.unwrap();
    assert_eq!(client.next().await, Message::Pong("hello".into()));
    let close = CloseFrame { code: 4001.into(), reason: "bye".into() };
    client.stream.close(Some(close)).await.unwrap();
    assert_eq!(client.closed().await, 1000);
    server.open_sockets(0).await;
}

#[tokio::test]
async fn disconnecting_by_id_closes_those_sockets_and_no_others() {
    let server = Server::start(endpoint().0).await;
    let mut phone = server.connect("name=ada").await;
    let mut laptop = server.connect("name=ada").await;
    let mut joe = server.connect("name=joe").await;
    joe.join("1", T).await;
    server.open_sockets(3).await;
    assert_eq!(server.endpoint.disconnect("named:absent"), 0);
    assert_eq!(server.endpoint.disconnect("named:ada"), 2);
    assert_eq!(phone.closed().await, 1001);
    assert_eq!(laptop.closed().await, 1001);
    joe.expect_nothing_else().await;
}

/// Its `connect` tells that it runs, and returns when the test allows it.
#[derive(Clone)]
struct Gated {
    runs: Arc<Semaphore>,
    gate: Arc<Semaphore>,
}

impl Socket for Gated {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        self.runs.add_permits(1);
        self.gate.acquire().await?.forget();
        Ok(())
    }

    fn id(&self, (): &()) -> Result<Option<String>, ConnectError> {
        Ok(Some("gated".to_owned()))
    }
}

#[tokio::test]
async fn a_client_is_disconnected_by_its_id_although_it_is_only_connecting() {
    let gated = Gated { runs: Arc::new(Semaphore::new(0)), gate: Arc::new(Semaphore::new(0)) };
    let cluster = Cluster::default();
    let mount = Mount::new(gated.clone()).longpoll(LongPoll::new());
    let endpoint = Endpoint::builder().mount("/socket", mount).adapter(cluster.node("here"));
    let server = Server::start(endpoint).await;
    let there = cluster.join("there");
    let here = server.endpoint.clone();
    let begun = async || gated.runs.acquire().await.unwrap().forget();
    for elsewhere in [false, true] {
        let url = server.url("vsn=2.0.0");
        let client = tokio::spawn(async move { connect(&url).await.unwrap() });
        begun().await;
        let node = if elsewhere { &there } else { &here };
        assert_eq!(node.disconnect("gated"), 0, "it has no id yet");
        gated.gate.add_permits(1);
        assert_eq!(client.await.unwrap().closed().await, 1001, "elsewhere: {elsewhere}");

        let stream = server.connect_tcp().await;
        let polls = tokio::spawn(async {
            request(stream, "GET", "/socket/longpoll?vsn=2.0.0", &[], "").await
        });
        begun().await;
        node.disconnect("gated");
        gated.gate.add_permits(1);
        assert_eq!(body_of(&polls.await.unwrap())["status"], 410);
        server.open_sockets(0).await;
    }
    gated.gate.add_permits(1);
    let mut later = connect(&server.url("vsn=2.0.0")).await.unwrap();
    server.open_sockets(1).await;
    later.expect_nothing_else().await;
}

#[tokio::test]
async fn draining_closes_all_sockets_with_1012_and_refuses_new_ones() {
    let server = Server::start(endpoint().0).await;
    let mut ada = server.connect("name=ada").await;
    let mut joe = server.connect("name=joe").await;
    ada.join("1", T).await;
    server.open_sockets(2).await;
    let endpoint = server.endpoint.clone();
    let draining = tokio::spawn(async move { endpoint.drain(Duration::from_secs(3600)).await });
    assert_eq!(ada.closed().await, 1012);
    assert_eq!(joe.closed().await, 1012);
    assert_eq!(server.try_connect("vsn=2.0.0&name=eve").await.err(), Some(503));
    drop((ada, joe));
    let report = draining.await.unwrap();
    assert_eq!((report.closed, report.aborted), (2, 0));
}

#[tokio::test]
async fn sockets_that_do_not_close_in_time_are_aborted_with_their_channels() {
    let (builder, gate) = endpoint();
    let server = Server::start(builder).await;
    let mut client = server.connect("name=ada").await;
    gate.add_permits(1);
    client.join("1", "slow:in").await;
    client.send(json!(["1", "2", "slow:in", "wait", {}])).await;
    client.expect_nothing_else().await;
    let report = server.endpoint.drain(Duration::from_millis(10)).await;
    assert_eq!((report.closed, report.aborted), (0, 1));
    assert_eq!(server.endpoint.open_sockets(), 0);
}

#[tokio::test]
async fn dropping_the_endpoint_closes_its_sockets() {
    let (builder, _gate) = endpoint();
    let endpoint = builder.build().unwrap();
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/socket/websocket?vsn=2.0.0&name=a", listener.local_addr().unwrap());
    let app: axum::Router = axum::Router::new().fallback_service(endpoint);
    let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    let mut client = connect(&url).await.unwrap();
    client.expect_nothing_else().await;
    serving.abort();
    assert_eq!(client.closed().await, 1001);
}

#[tokio::test]
async fn several_sockets_are_served_at_their_paths() {
    let mount = || Mount::new(NamedSocket).channel::<Room>("room:*");
    let builder = Endpoint::builder().mount("/socket", mount()).mount("admin/socket/", mount());
    let server = Server::start(builder).await;
    let url = server.url("vsn=2.0.0&name=a").replace("/socket/", "/admin/socket/");
    let mut admin = connect(&url).await.unwrap();
    admin.join("1", T).await;
    let mut user = server.connect("name=b").await;
    user.join("1", T).await;
    user.send(json!(["1", "2", T, "shout", {}])).await;
    let shouted = json!([null, null, T, "shouted", {}]);
    user.expect([shouted.clone(), reply("1", "2", T, "ok", json!({}))]).await;
    admin.expect([shouted]).await;
}

#[test]
fn invalid_declarations_are_refused_at_once() {
    let build = |mounts: &[(&str, &str)]| {
        let builder = mounts.iter().fold(Endpoint::builder(), |builder, (path, pattern)| {
            builder.mount(path, Mount::new(NamedSocket).channel::<Room>(pattern))
        });
        builder.build().unwrap_err()
    };
    let error = build(&[("/socket", "room:*:x")]);
    assert_eq!(
        error.to_string(),
        "the topic pattern \"room:*:x\" has a * that is not its last character"
    );
    let error = build(&[("/socket", "a"), ("socket", "b")]);
    assert_eq!(error, BuildError::PathTaken { path: "/socket/websocket".into() });
}

#[test]
fn an_invalid_pattern_is_an_error_of_the_endpoint() {
    for (pattern, why) in [
        ("room:*", "is registered twice: only the first one would be reached"),
        ("user:{id}", "has a variable in braces: use a * at its end for the rest of the topic"),
    ] {
        let mount = Mount::new(NamedSocket).channel::<Room>("room:*").channel::<Room>(pattern);
        let error = Endpoint::builder().mount("/socket", mount).build().unwrap_err();
        assert_eq!(error.to_string(), format!("the topic pattern {pattern:?} {why}"));
    }
}

#[test]
fn an_unreachable_path_is_an_error_of_the_endpoint() {
    let mount = Mount::new(NamedSocket).path("/websocket?vsn=2.0.0");
    let error = Endpoint::builder().mount("/socket", mount).build().unwrap_err();
    assert!(matches!(error, BuildError::Path(PathError::NoPath { .. })), "{error}");
}

/// The message of its panic.
fn panics(option: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(option)).expect_err("the option was accepted");
    let text = panic.downcast_ref::<String>().cloned();
    text.unwrap_or_else(|| (*panic.downcast_ref::<&str>().expect("a text")).to_owned())
}

#[test]
fn options_that_would_refuse_every_client_are_refused() {
    let mount = || Mount::new(NamedSocket);
    let polled = LongPoll::new;
    let (zero, long) = (Duration::ZERO, Duration::from_secs(20));
    let millis = Duration::from_millis(999);
    for (said, starts_with) in [
        (panics(|| drop(Endpoint::builder().max_sockets(0))), "max_sockets must be at least 1"),
        (panics(|| drop(mount().max_channels(0))), "max_channels must be at least 1"),
        (panics(|| drop(mount().max_message_size(0))), "max_message_size must be at least 1"),
        (panics(|| drop(mount().max_frame_size(6))), "max_frame_size must be at least 7"),
        (panics(|| drop(mount().idle_timeout(zero))), "idle_timeout must be longer than zero"),
        (
            panics(|| drop(mount().receive_timeout(zero))),
            "receive_timeout must be longer than zero",
        ),
        (panics(|| drop(mount().frame_rate_limit(0))), "frame_rate_limit must be at least 1"),
        (panics(|| drop(polled().window(zero))), "window must be longer than zero"),
        (panics(|| drop(polled().window(long))), "window must be shorter than 20 seconds"),
        (panics(|| drop(polled().max_sessions(0))), "max_sessions must be at least 1"),
        (panics(|| drop(polled().max_age(millis))), "max_age must be at least one second"),
    ] {
        assert!(said.starts_with(starts_with), "{said}");
    }
    drop(polled().window(Duration::MAX).max_age(Duration::from_secs(1)));
    drop(mount().max_frame_size(7).send_timeout(zero).max_inbox(0).max_outbox(0, 0));
}
