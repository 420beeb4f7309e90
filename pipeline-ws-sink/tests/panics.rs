//! Panics of the application's code: the metrics recorder, the log's subscriber, callbacks, adapters,
//! and values that are encoded.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use pipeline_core::ExitReason;
use pipeline_test_support::{Client, Log, eventually, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Payload, Presence, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    channel_test::TestEndpoint,
    mount::LongPoll,
    presence::TrackerOptions,
    pubsub::{Adapter, AdapterError, Broadcast},
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    cluster::events,
    memory::MemoryServer,
    poller::Poller,
};
use tokio::{
    io::DuplexStream,
    time::{Instant, sleep},
};

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

    fn terminate(
        &mut self,
        _: &ExitReason,
        _: &ChannelContext<Self>,
    ) -> impl Future<Output = ()> + Send {
        assert!(HASTY.is_empty(), "a bug before the future");
        async {}
    }
}

/// A value that panics while it is encoded.
struct Broken;

impl Serialize for Broken {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no form")
    }
}

/// A channel that sends broken values, and catches the panics of the presence's methods.
struct Fragile(Presence);

impl Channel for Fragile {
    type Socket = NamedSocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        match params["answer"].as_str() {
            Some("reply") => cx.reply(Broken),
            Some("refuse") => return Err(JoinError::with(Broken)),
            _ => {}
        }
        Ok(Self(cx.config().clone()))
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let Self(presence) = self;
        let home = json!({ "at": "home" });
        let tracking = || match event {
            "track" => presence.track(cx, "ada", &home),
            "track_broken" => presence.track(cx, "eve", &Broken),
            "track_again" => presence.track(cx, "eve", &home),
            "update_broken" => presence.update(cx, "ada", &Broken),
            "change_broken" => presence.update_with(cx, "ada", |meta| {
                meta.clear();
                panic!("no change")
            }),
            _ => presence.update_with(cx, "ada", |meta| drop(meta.insert("n".into(), 1.into()))),
        };
        match event {
            "push" => cx.push("pushed", Broken)?,
            "reply" => return Ok(Reply::ok().with(Broken)),
            "broadcast" => cx.broadcast("said", Broken)?,
            _ => {
                let panicked =
                    catch_unwind(AssertUnwindSafe(tracking)).map(Result::unwrap).is_err();
                return Ok(Reply::ok().with(json!({ "panicked": panicked })));
            }
        }
        Ok(Reply::ok())
    }
}

/// An adapter that panics whenever it sends, or only as often as the test says.
struct Panics(Arc<AtomicUsize>);

impl Panics {
    fn send(&self) -> Result<(), AdapterError> {
        let left = self.0.load(Relaxed);
        self.0.store(left.saturating_sub(1), Relaxed);
        assert!(left == 0, "the network is a bug");
        Ok(())
    }
}

impl Adapter for Panics {
    fn node_name(&self) -> &str {
        "here"
    }

    fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
        self.send()
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        self.send()
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
async fn a_log_that_always_panics_is_called_no_more_often_than_lines_are_written() {
    let (log, _guard) = Log::keep();
    let server = server();
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    log.always_panic();
    for n in 0..500 {
        client.send(json!(["1", n.to_string(), T, "ping", {}])).await;
        client.expect([reply("1", &n.to_string(), T, "ok", json!({}))]).await;
    }
    // One panic more for each span that was open at the limit: the socket's and the channel's.
    assert!((100..=110).contains(&log.panics()), "{}", log.panics());
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
    for text in ["closing socket", "failed to broadcast a disconnect"] {
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

#[tokio::test(start_paused = true)]
async fn a_terminate_that_panics_ends_its_channel_and_nothing_else() {
    let (log, _guard) = Log::keep();
    let server = server();
    let mut client = server.connect(1 << 16).await;
    client.join("1", HASTY).await;
    client.join("2", T).await;
    client.send(json!(["1", "3", HASTY, "phx_leave", {}])).await;
    client.expect([reply("1", "3", HASTY, "ok", json!({}))]).await;
    client.expect([json!(["1", "1", HASTY, "phx_close", {}])]).await;
    client.send(json!(["2", "4", T, "ping", {}])).await;
    client.expect([reply("2", "4", T, "ok", json!({}))]).await;
    client.join("5", HASTY).await;

    let mut leaving = server.connect(1 << 16).await;
    leaving.join("1", HASTY).await;
    drop(leaving);
    eventually(|| server.endpoint.open_sockets() == 1).await;
    let report = server.endpoint.drain(Duration::from_secs(60)).await;
    assert_eq!((report.closed, report.aborted), (1, 0), "{report:?}");
    let open: usize = server.endpoint.snapshot().channels.iter().map(|route| route.open).sum();
    assert_eq!(open, 0, "no channel is left");
    let lines = log.take();
    let crashed = lines.iter().filter(|line| line.contains("message=terminate crashed")).count();
    assert_eq!(crashed, 3, "one for the leave, the disconnect and the drain: {lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_while_it_is_encoded_costs_the_call_or_the_channel_that_sends_it() {
    const FRAGILE: &str = "fragile:1";
    let presence = Presence::new();
    let (builder, _gate) =
        endpoint_with(|mount| mount.channel_with::<Fragile>("fragile:*", presence.clone()));
    let server = MemoryServer::start(builder.presence(&presence));
    let mut client = server.connect(1 << 16).await;
    for answer in ["reply", "refuse"] {
        client.send(json!(["1", "1", FRAGILE, "phx_join", { "answer": answer }])).await;
        let crashed = json!({"reason": "join crashed"});
        client.expect([reply("1", "1", FRAGILE, "error", crashed)]).await;
    }
    client.join("1", FRAGILE).await;
    for event in ["push", "reply", "broadcast"] {
        client.send(json!(["1", "2", FRAGILE, event, {}])).await;
        expect_an_end(&mut client, FRAGILE).await;
    }
    // Outside of a channel it reaches the caller, and the topic still works.
    let broadcast = || server.endpoint.broadcast(FRAGILE, "said", Broken);
    assert!(catch_unwind(AssertUnwindSafe(broadcast)).is_err());
    server.endpoint.broadcast(FRAGILE, "said", json!({})).unwrap();
    client.expect([json!([null, null, FRAGILE, "said", {}])]).await;
}

#[tokio::test(start_paused = true)]
async fn a_meta_or_a_change_that_panics_reaches_its_caller_and_leaves_the_presence_as_it_was() {
    const FRAGILE: &str = "fragile:1";
    let presence = Presence::new();
    let (builder, _gate) =
        endpoint_with(|mount| mount.channel_with::<Fragile>("fragile:*", presence.clone()));
    let server = MemoryServer::start(builder.presence(&presence));
    let mut client = server.connect(1 << 16).await;
    client.join("1", FRAGILE).await;
    let mut diffs = server.endpoint.subscribe(FRAGILE);
    for (event, panics, tracked, sent) in [
        ("track", false, 1, 1),
        ("track_broken", true, 1, 0),
        ("update_broken", true, 1, 0),
        ("change_broken", true, 1, 0),
        ("track_again", false, 2, 1),
        ("change", false, 2, 1),
    ] {
        client.send(json!(["1", "2", FRAGILE, event, {}])).await;
        let mut answer = client.receive().await;
        while answer[3] == "presence_diff" {
            answer = client.receive().await;
        }
        assert_eq!(
            answer,
            reply("1", "2", FRAGILE, "ok", json!({ "panicked": panics })),
            "{event}"
        );
        assert_eq!(presence.tracked(), tracked, "after {event}");
        assert_eq!(events(&mut diffs), vec!["presence_diff"; sent], "after {event}");
        let listed = json!(presence.list(FRAGILE).await);
        assert_eq!(listed["ada"]["metas"][0]["at"], "home", "after {event}: {listed}");
    }
    assert!(
        catch_unwind(AssertUnwindSafe(|| presence.track_detached(FRAGILE, "x", &Broken))).is_err()
    );
    assert_eq!(presence.tracked(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_panics_fails_the_call_and_the_next_one_works() {
    let panics = Arc::new(AtomicUsize::new(0));
    let (builder, _gate) = endpoint_with(|mount| mount);
    let server = MemoryServer::start(builder.adapter(Panics(panics.clone())));
    let (endpoint, pubsub) = (&server.endpoint, server.endpoint.pubsub());
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let mut news = endpoint.subscribe(T);
    panics.store(2, Relaxed);
    for sent in [
        pubsub.broadcast(T, "lost", json!({})),
        pubsub.direct_broadcast("here", T, "lost", json!({})),
    ] {
        let error = sent.unwrap_err().to_string();
        assert!(error.ends_with("panicked: the network is a bug"), "{error}");
    }
    pubsub.broadcast(T, "news", json!({})).unwrap();
    assert_eq!(events(&mut news), ["news"], "failed broadcasts reach no subscriber here either");
    client.expect([json!([null, null, T, "news", {}])]).await;

    // An error of a channel's own broadcast ends the channel, whatever its kind.
    panics.store(1, Relaxed);
    client.send(json!(["1", "2", T, "shout", {}])).await;
    let mut message = client.receive().await;
    while message[3] == "farewell" {
        message = client.receive().await;
    }
    assert_eq!(message[3], "phx_error");
    client.join("3", T).await;

    // Sockets are disconnected here all the same.
    panics.store(1, Relaxed);
    assert_eq!(endpoint.disconnect("named:ada"), 1);
    assert_eq!(client.closed().await, 1001);
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_always_panics_stops_no_tracker_and_no_shutdown() {
    let (log, _guard) = Log::keep();
    let panics = Arc::new(AtomicUsize::new(usize::MAX));
    let presence = Presence::new();
    let (builder, _gate) = endpoint_with(|mount| mount);
    let options = TrackerOptions::new();
    let builder = builder.presence(&presence).sync_subscriptions(options);
    let server = MemoryServer::start(builder.adapter(Panics(panics.clone())));
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let _ada = presence.track_detached(T, "ada", &json!({})).unwrap();
    client.receive().await;
    let calls = || usize::MAX - panics.load(Relaxed);
    sleep(Duration::from_secs(60)).await;
    // A silent tracker sends every 15 seconds, and there are two.
    assert!(calls() >= 8, "the trackers sent {} times in a minute", calls());
    let report = server.endpoint.drain(Duration::from_secs(60)).await;
    assert_eq!((report.closed, report.aborted), (1, 0), "{report:?}");
    let lines = log.take();
    let failures = "failed to broadcast to the trackers of other nodes";
    let count = lines.iter().filter(|line| line.contains(failures)).count();
    assert!((1..=4).contains(&count), "one per tracker, and one more at its end: {lines:?}");
}

#[test]
fn an_adapter_that_panics_at_the_start_fails_the_build() {
    struct NoStart;
    impl Adapter for NoStart {
        fn node_name(&self) -> &str {
            "here"
        }
        fn start(&self, _: pipeline_ws_sink::pubsub::LocalNode) {
            panic!("no network");
        }
        fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
            Ok(())
        }
        fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
            Ok(())
        }
    }
    let building = || Endpoint::builder().adapter(NoStart).build();
    let panicked = catch_unwind(building).unwrap_err();
    assert_eq!(ExitReason::from_panic(&*panicked).to_string(), "panicked: no network");
}
