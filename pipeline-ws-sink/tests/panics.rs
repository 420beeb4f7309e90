//! Panics of the application's code: the metrics recorder, the log's subscriber, and callbacks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{future::Future, panic::panic_any, time::Duration};

use pipeline_test_support::{Client, Log, eventually, reply};
use pipeline_ws_sink::{
    Channel, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    mount::LongPoll,
    pubsub::{Adapter, AdapterError, Broadcast},
    testkit::TestEndpoint,
};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    memory::MemoryServer,
    poller::Poller,
};
use tokio::{io::DuplexStream, time::Instant};

const T: &str = "room:lobby";
const HASTY: &str = "hasty:1";

/// A panic payload that panics again when it is dropped.
struct PanicsAgain;

impl Drop for PanicsAgain {
    fn drop(&mut self) {
        panic!("a bug in a bug");
    }
}

/// A channel whose callbacks may panic before they return their futures.
struct Hasty;

impl Channel for Hasty {
    type Socket = NamedSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["cursed"];

    fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> impl Future<Output = Result<Self, JoinError>> + Send {
        let params: Value = payload.parse().unwrap_or_default();
        assert!(params["crash"].is_null(), "a bug before the future");
        if !params["twice"].is_null() {
            panic_any(PanicsAgain);
        }
        cx.subscribe("elsewhere");
        async { Ok(Self) }
    }

    fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<Reply, Stop>> + Send {
        if event == "twice" {
            panic_any(PanicsAgain);
        }
        assert!(event == "ping", "a bug before the future");
        async { Ok(Reply::ok()) }
    }

    fn handle_out(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        assert!(HASTY.is_empty(), "a bug before the future");
        async { Ok(()) }
    }

    fn handle_broadcast(
        &mut self,
        _: Broadcast,
        _: &ChannelContext<Self>,
    ) -> impl Future<Output = Result<(), Stop>> + Send {
        assert!(HASTY.is_empty(), "a bug before the future");
        async { Ok(()) }
    }
}

fn server() -> MemoryServer {
    let longpoll = LongPoll::new().window(Duration::from_secs(1));
    let options = |mount: pipeline_ws_sink::Mount<NamedSocket>| {
        mount.longpoll(longpoll).channel::<Hasty>("hasty:*")
    };
    MemoryServer::start(endpoint_with(options).0)
}

/// Asserts that the client receives the end of its channel, and can join again.
async fn expect_an_end(client: &mut Client<DuplexStream>, topic: &str) {
    let mut message = client.receive().await;
    while message[3] == "farewell" {
        message = client.receive().await;
    }
    let crashed = json!({"reason": "channel_crash"});
    assert_eq!(message, json!(["1", "1", topic, "phx_error", crashed]));
    client.join("1", topic).await;
}

/// Asserts that clients are served from their connection to their end.
async fn expect_service(server: &MemoryServer) {
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let poller = Poller::connect(server, "vsn=2.0.0&name=eve").await;
    poller.join(T).await;
    server.endpoint.broadcast_timed(Instant::now(), T, "news", json!({})).unwrap();
    let news = json!([null, null, T, "news", {}]);
    client.expect([news.clone()]).await;
    assert_eq!(poller.messages().await, [news]);
    for n in 0..20 {
        client.send(json!(["1", n, T, "ping", {}])).await;
        let answer = json!({"status": "ok", "response": {}});
        client.expect([json!(["1", n, T, "phx_reply", answer])]).await;
    }
    client.expect_nothing_else().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([reply("1", "2", T, "ok", json!({}))]).await;
    client.expect([json!(["1", "1", T, "phx_close", {}])]).await;
    assert_eq!(client.receive().await[3], "farewell");
    client.join("3", T).await;
    drop(client);
    eventually(|| server.endpoint.open_sockets() == 1).await;
    poller.messages().await;
    let report = server.endpoint.drain(Duration::from_secs(60)).await;
    assert_eq!((report.closed, report.aborted), (1, 0));
    let seen = server.endpoint.snapshot();
    assert_eq!((seen.topics, seen.channels[0].open), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_always_panics_costs_clients_nothing() {
    let server = server();
    server.recorded.panic_at("");
    expect_service(&server).await;
    assert!(server.recorded.panics() > 50, "{}", server.recorded.panics());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_always_panics_costs_clients_nothing() {
    let (log, _guard) = Log::keep();
    let server = server();
    log.always_panic();
    expect_service(&server).await;
    assert!(log.panics() > 50, "{}", log.panics());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_in_spans_costs_clients_nothing() {
    let (log, _guard) = Log::keep();
    let server = server();
    for text in
        ["closing a span", "leaving a span", "entering a span", "a field of a span", "a new span"]
    {
        log.panic_at(text);
        let mut client = server.connect(1 << 16).await;
        client.join("1", T).await;
        client.send(json!(["1", "2", T, "ping", {}])).await;
        client.expect([reply("1", "2", T, "ok", json!({}))]).await;
        client.send(json!(["1", "3", T, "crash", {}])).await;
        expect_an_end(&mut client, T).await;
        drop(client);
        eventually(|| server.endpoint.open_sockets() == 0).await;
    }
    assert_eq!(log.panics(), 5);
}

/// An adapter that cannot broadcast a disconnect to the other nodes.
struct KeepsClients;

impl Adapter for KeepsClients {
    fn node_name(&self) -> &str {
        "alone"
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        if broadcast.event() == "disconnect" {
            Err(AdapterError::new("no other node"))
        } else {
            Ok(())
        }
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_at_a_disconnect_keeps_no_client_connected() {
    let (log, _guard) = Log::keep();
    let server = MemoryServer::start(endpoint().0.adapter(KeepsClients));
    for text in ["socket closed", "failed to broadcast a disconnect"] {
        let mut client = server.connect(1 << 16).await;
        client.join("1", T).await;
        log.panic_at(text);
        assert_eq!(server.endpoint.disconnect("named:ada"), 1);
        assert_eq!(client.closed().await, 1001);
        eventually(|| server.endpoint.snapshot().topics == 0).await;
    }
    assert_eq!(log.panics(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_at_a_skipped_client_keeps_no_event_from_the_others() {
    let (log, _guard) = Log::keep();
    let server = server();
    let url = "ws://x/socket/websocket?vsn=1.0.0&name=old";
    let mut old = Client::over(server.stream().await, url).await;
    old.send(json!({"topic": T, "event": "phx_join", "payload": {}, "ref": "1", "join_ref": "1"}))
        .await;
    old.receive().await;
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    log.panic_at("skipped clients of protocol version 1");
    server.endpoint.broadcast(T, "news", Payload::binary(b"abc".to_vec())).unwrap();
    server.endpoint.broadcast(T, "more", json!({})).unwrap();
    assert_eq!(old.receive().await["event"], "more");
    assert!(client.next().await.into_data().ends_with(b"newsabc"));
    assert_eq!(log.panics(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_panics_before_its_future_ends_its_channel_as_any_panic_does() {
    let server = server();
    let mut client = server.connect(1 << 16).await;
    client.send(json!(["1", "1", HASTY, "phx_join", {"crash": true}])).await;
    let crashed = json!({"reason": "join crashed"});
    client.expect([reply("1", "1", HASTY, "error", crashed)]).await;
    client.join("1", HASTY).await;
    client.send(json!(["1", "2", HASTY, "boom", {}])).await;
    expect_an_end(&mut client, HASTY).await;
    server.endpoint.broadcast(HASTY, "cursed", json!({})).unwrap();
    expect_an_end(&mut client, HASTY).await;
    server.endpoint.broadcast("elsewhere", "news", json!({})).unwrap();
    expect_an_end(&mut client, HASTY).await;
}

#[tokio::test(start_paused = true)]
async fn a_join_that_panics_before_its_future_does_not_stop_a_polling_client() {
    let server = server();
    let poller = Poller::connect(&server, "vsn=2.0.0&name=eve").await;
    let join = json!(["1", "1", HASTY, "phx_join", {"crash": true}]).to_string();
    assert_eq!(poller.post(&join).await, json!({ "status": 200 }));
    let crashed = json!({"reason": "join crashed"});
    assert_eq!(poller.messages().await, [reply("1", "1", HASTY, "error", crashed)]);
    let beat = json!([null, "2", "phoenix", "heartbeat", {}]).to_string();
    assert_eq!(poller.post(&beat).await, json!({ "status": 200 }));
    poller.messages().await;
    poller.join(HASTY).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_outside_of_a_callback_refuses_the_join_or_ends_the_channel() {
    let server = server();
    let mut client = server.connect(1 << 16).await;
    client.send(json!(["1", "1", HASTY, "phx_join", {"twice": true}])).await;
    let crashed = json!({"reason": "join crashed"});
    client.expect([reply("1", "1", HASTY, "error", crashed)]).await;
    assert_eq!(server.endpoint.snapshot().topics, 0);
    client.join("1", HASTY).await;
    client.send(json!(["1", "2", HASTY, "twice", {}])).await;
    expect_an_end(&mut client, HASTY).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_during_a_join_does_not_change_its_outcome() {
    let (log, _guard) = Log::keep();
    let server = server();
    let mut client = server.connect(1 << 16).await;
    log.panic_at("message=joined");
    client.join("1", T).await;
    let crashed = json!({"reason": "join crashed"});
    client.send(json!(["2", "2", T, "phx_join", {"crash": true}])).await;
    log.panic_at("a join crashed");
    client.expect([reply("2", "2", T, "error", crashed)]).await;
    client.expect([json!(["1", "1", T, "phx_close", {}])]).await;
    client.join("1", T).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_during_an_event_does_not_end_the_channel() {
    let (log, _guard) = Log::keep();
    let server = server();
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    log.panic_at("message=handled");
    for n in ["2", "3"] {
        client.send(json!(["1", n, T, "ping", {}])).await;
        client.expect([reply("1", n, T, "ok", json!({}))]).await;
    }
    assert_eq!((log.panics(), server.endpoint.snapshot().channels[0].open), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_causes_errors_keeps_no_panic_out_of_the_log() {
    let (log, _guard) = Log::keep();
    let kit = TestEndpoint::of(endpoint().0.build().unwrap());
    let socket = kit.connect(json!({"name": "eve"})).await.unwrap();
    for _ in 0..150 {
        socket.join(T, json!({})).await.unwrap().push("no_such_event", json!({}));
        kit.connect(json!({})).await.unwrap_err();
    }
    eventually(|| kit.endpoint().snapshot().topics == 0).await;
    let lines = log.take();
    let of = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!((of("a channel crashed"), of("refused a connection")), (100, 100));
    socket.join(T, json!({})).await.unwrap().push("crash", json!({}));
    kit.connect(json!({"name": "panic"})).await.unwrap_err();
    eventually(|| kit.endpoint().snapshot().topics == 0).await;
    let lines = log.take();
    let of = |text: &str| lines.iter().any(|line| line.contains(text));
    assert!(of("reason=\"panicked: crash requested\"") && of("no luck"), "{lines:?}");
}
