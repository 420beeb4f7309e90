//! Log lines and metrics of clients that connect, join and send events.

mod support;

use std::time::Duration;

use pipeline_core::ExitReason;
use pipeline_test_support::{Log, eventually, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    mount::{Drainer, LongPoll, MessageRateLimit, OnLimit, ParamFilter},
};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint, endpoint_with},
    memory::MemoryServer,
    poller::{Poller, request},
    server::Server,
};
use tokio::time::sleep;
use tracing::{level_filters::LevelFilter, subscriber::DefaultGuard};

const T: &str = "room:lobby";
const P: &str = "plain:one";

/// Does what its client requests, without replies.
struct Plain;

impl Channel for Plain {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        assert_ne!(event, "crash", "requested");
        match event {
            // Until the client has disconnected.
            "push" => loop {
                cx.push("pushed", &payload)?;
                sleep(Duration::from_secs(1)).await;
            },
            "stop" => Err(Stop::normal().reply(Reply::ok())),
            "fail" => Err(Stop::because(ExitReason::failed("requested"))),
            _ => Ok(Reply::ok().with(payload)),
        }
    }
}

fn plain() -> MemoryServer {
    let mount = Mount::new(NamedSocket).channel::<Plain>("plain:*").channel::<Plain>("phoenix:*");
    MemoryServer::start(Endpoint::builder().mount("/socket", mount))
}

/// Log lines about clients, without durations.
struct ClientLog(Log, #[expect(dead_code, reason = "it is dropped")] DefaultGuard);

impl ClientLog {
    fn keep() -> Self {
        let (log, guard) = Log::keep();
        Self(log, guard)
    }

    /// The lines since the last call that contain this.
    fn take(&self, messages: &[&str]) -> Vec<String> {
        let lines = self.0.take().into_iter();
        let said = lines.filter(|line| {
            messages.iter().any(|message| line.contains(&format!(" message={message} ")))
        });
        let untimed = |line: String| {
            assert!(line.contains(" took="), "{line}");
            let fields = line.split(' ').filter(|field| !field.starts_with("took="));
            fields.collect::<Vec<_>>().join(" ")
        };
        said.map(untimed).collect()
    }

    fn connects(&self) -> Vec<String> {
        self.take(&["connected", "refused a connection"])
    }

    fn joins(&self) -> Vec<String> {
        self.take(&["joined", "refused a join"])
    }

    fn events(&self) -> Vec<String> {
        self.take(&["handled"])
    }
}

#[tokio::test]
async fn c_201_a_connection_is_logged_unless_its_version_is_unknown() {
    let log = ClientLog::keep();
    let server = Server::start(endpoint().0).await;
    let _ada = server.connect("name=ada&user_token=s3cret").await;
    let params = r#"{"name":"ada","user_token":"[FILTERED]","vsn":"2.0.0"}"#;
    let of = r#"transport="websocket" version=V2"#;
    assert_eq!(
        log.connects(),
        [format!(r#"INFO message=connected params="{}" {of}"#, params.escape_debug())]
    );
    assert_eq!(server.try_connect("vsn=2.0.0").await.err(), Some(403));
    let refused = log.connects();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("INFO error="), "{refused:?}");
    assert!(
        refused[0].ends_with(&format!(r#"params="{{\"vsn\":\"2.0.0\"}}" {of}"#)),
        "{refused:?}"
    );
    assert_eq!(server.try_connect("vsn=3.0.0&name=ada").await.err(), Some(403));
    assert_eq!(log.connects(), [""; 0]);
    assert_eq!(server.try_connect("vsn=2.0.0&name=panic").await.err(), Some(403));
    assert_eq!(log.connects().len(), 1);
    let of = |status: &str| format!("socket=NamedSocket,status={status}");
    let times = server.recorded.sample_counts("socket.connect_time");
    assert_eq!(times, [(of("crash"), 1), (of("fail"), 1), (of("success"), 1)]);
}

#[tokio::test(start_paused = true)]
async fn c_202_a_join_is_logged_unless_it_crashes() {
    let log = ClientLog::keep();
    let server = MemoryServer::start(endpoint().0);
    let mut ada = server.connect(1 << 16).await;
    let of = |message: &str, level: &str, params: &str| {
        let params = params.escape_debug();
        format!(r#"{level} message={message} params="{params}""#)
    };
    ada.send(json!(["1", "1", T, "phx_join", { "password": "x", "a": 1 }])).await;
    ada.expect([reply("1", "1", T, "ok", json!({}))]).await;
    assert_eq!(log.joins(), [of("joined", "INFO", r#"{"a":1,"password":"[FILTERED]"}"#)]);
    ada.send(json!(["2", "2", "room:other", "phx_join", { "refuse": "full" }])).await;
    ada.expect([reply("2", "2", "room:other", "error", json!({ "reason": "full" }))]).await;
    assert_eq!(log.joins(), [of("refused a join", "INFO", r#"{"refuse":"full"}"#)]);
    ada.send(json!(["3", "3", "room:other", "phx_join", { "crash": true }])).await;
    ada.expect([reply("3", "3", "room:other", "error", json!({ "reason": "join crashed" }))]).await;
    assert_eq!(log.joins(), [""; 0]);
    let of = |status: &str| format!("channel=Room,status={status}");
    let times = server.recorded.sample_counts("channel.join_time");
    assert_eq!(times, [(of("crash"), 1), (of("fail"), 1), (of("success"), 1)]);
}

#[tokio::test(start_paused = true)]
async fn c_203_an_event_is_logged_when_it_is_handled_and_a_leave_is_not() {
    let log = ClientLog::keep();
    let server = plain();
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", P).await;
    let of = |event: &str, reference: &str, params: &str| {
        let (params, reference) = (params.escape_debug(), format!("ref=\"{reference}\""));
        format!(r#"DEBUG event="{event}" message=handled params="{params}" {reference}"#)
    };
    ada.send(json!(["1", "2", P, "ping", { "token": "x", "n": 1 }])).await;
    ada.expect([reply("1", "2", P, "ok", json!({ "token": "x", "n": 1 }))]).await;
    assert_eq!(log.events(), [of("ping", "2", r#"{"n":1,"token":"[FILTERED]"}"#)]);
    ada.send(json!(["1", "3", P, "stop", {}])).await;
    ada.expect([reply("1", "3", P, "ok", json!({}))]).await;
    assert_eq!(log.events(), [of("stop", "3", "{}")]);
    ada.expect([json!(["1", "1", P, "phx_close", {}])]).await;

    ada.join("4", P).await;
    ada.send(json!(["4", "5", P, "phx_leave", {}])).await;
    ada.expect([reply("4", "5", P, "ok", json!({})), json!(["4", "4", P, "phx_close", {}])]).await;
    ada.join("6", P).await;
    ada.send(json!(["6", "7", P, "crash", {}])).await;
    ada.expect([json!(["6", "6", P, "phx_error", { "reason": "channel_crash" }])]).await;
    assert_eq!(log.events(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn c_204_each_batch_of_a_drain_is_logged() {
    let log = ClientLog::keep();
    let drainer = Drainer::new().batch_size(2).batch_interval(Duration::from_millis(300));
    let server = MemoryServer::start(endpoint_with(|mount| mount.drainer(drainer)).0);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = server.connect(1 << 16).await;
        client.join("1", T).await;
        clients.push(client);
    }
    let endpoint = server.endpoint.clone();
    let draining = tokio::spawn(async move { endpoint.drain(Duration::from_secs(60)).await });
    for client in &mut clients {
        assert_eq!(client.closed().await, 1012);
    }
    draining.await.unwrap();
    let lines = log.0.take().into_iter().filter(|line| line.contains("message=draining batch"));
    let batch = |count, index| {
        format!(
            r#"INFO count={count} index={index} interval=300ms message=draining batch rounds=3 socket="NamedSocket" total=5"#
        )
    };
    assert_eq!(lines.collect::<Vec<_>>(), [batch(2, 1), batch(2, 2), batch(1, 3)]);
}

#[tokio::test(start_paused = true)]
async fn topics_of_the_server_itself_are_not_logged() {
    let log = ClientLog::keep();
    let server = plain();
    let mut ada = server.connect(1 << 16).await;
    ada.join("1", "phoenix:live_reload").await;
    ada.send(json!(["1", "2", "phoenix:live_reload", "ping", {}])).await;
    ada.expect([reply("1", "2", "phoenix:live_reload", "ok", json!({}))]).await;
    assert_eq!(log.take(&["joined", "handled"]), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_mount_sets_what_is_logged() {
    let log = ClientLog::keep();
    let filter = ParamFilter::keep(["n"]);
    let server = MemoryServer::start(endpoint_with(|mount| mount.filter_params(filter)).0);
    let mut ada = server.connect(1 << 16).await;
    let connected = log.connects();
    assert!(
        connected[0].contains(r#"{\"name\":\"[FILTERED]\",\"vsn\":\"[FILTERED]\"}"#),
        "{connected:?}"
    );
    ada.join("1", T).await;
    ada.send(json!(["1", "2", T, "ping", { "text": "x", "n": 1 }])).await;
    ada.next().await;
    let handled = log.events();
    assert!(handled[0].contains(r#"{\"n\":1,\"text\":\"[FILTERED]\"}"#), "{handled:?}");
}

#[tokio::test]
async fn one_event_in_sixteen_is_timed_whether_it_is_logged_or_not() {
    let server = Server::start(endpoint().0).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    for n in 0..1600 {
        ada.send(json!([null, null, T, "ping", { "n": n }])).await;
    }
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    let last = reply("1", "2", T, "ok", json!({}));
    while ada.receive().await != last {}
    let times = server.recorded.sample_counts("channel.handle_in_time");
    let [(labels, count)] = &times[..] else { unreachable!("{times:?}") };
    assert_eq!(labels, "channel=Room,status=success");
    assert!((90..=110).contains(count), "{count}");
}

#[tokio::test(start_paused = true)]
async fn the_result_of_an_event_is_a_tag_of_its_time() {
    let server = plain();
    let mut ada = server.connect(1 << 16).await;
    let of = |status: &str| format!("channel=Plain,status={status}");
    // Until one of each has been timed.
    let mut joins = 0;
    let timed =
        |event: &'static str| (event, server.recorded.sample_counts("channel.handle_in_time"));
    for (event, status) in [("crash", "crash"), ("fail", "fail"), ("stop", "success")] {
        while !timed(event).1.iter().any(|(labels, _)| *labels == of(status)) {
            joins += 1;
            let reference = joins.to_string();
            ada.join(&reference, P).await;
            ada.send(json!([null, null, P, event, {}])).await;
            let end = if event == "stop" { "phx_close" } else { "phx_error" };
            while ada.receive().await[3] != end {}
            assert!(joins < 1000, "the join is not timed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_ends_with_its_socket_does_not_count_as_failed() {
    let server = plain();
    let times = || server.recorded.sample_counts("channel.handle_in_time");
    for n in 0.. {
        assert!(n < 1000, "the event is not timed");
        let mut ada = server.connect(1 << 16).await;
        ada.join("1", P).await;
        ada.send(json!([null, null, P, "push", {}])).await;
        ada.expect([json!(["1", null, P, "pushed", {}])]).await;
        drop(ada);
        eventually(|| server.endpoint.open_sockets() == 0).await;
        if let [(labels, _)] = &times()[..] {
            assert_eq!(labels, "channel=Plain,status=success");
            break;
        }
    }
}

#[tokio::test]
async fn an_unreachable_pattern_is_logged() {
    const NEVER: &str = "topic pattern is never reached: an earlier pattern matches its topics";
    let (log, _guard) = Log::keep();
    let mount = || Mount::new(NamedSocket);
    let first = mount().channel::<Plain>("room:one").channel::<Plain>("room:*");
    drop(Endpoint::builder().mount("/socket", first).build().unwrap());
    assert_eq!(lines(&log, "WARN", NEVER), 0);
    let last = mount().channel::<Plain>("room:*").channel::<Plain>("room:one");
    drop(Endpoint::builder().mount("/socket", last).build().unwrap());
    let log = log.take();
    let of = r#"pattern="room:one" socket="NamedSocket""#;
    assert!(log.contains(&format!(r#"WARN before="room:*" message={NEVER} {of}"#)), "{log:?}");
}

/// How often a client repeats what is logged.
const OFTEN: usize = 300;

/// The maximum number of written lines.
const WRITTEN: usize = 100;

/// The number of lines of a level that contain this since the last call.
fn lines(log: &Log, level: &str, message: &str) -> usize {
    let says = |line: &String| {
        line.starts_with(level) && format!("{line} ").contains(&format!(" message={message} "))
    };
    log.take().iter().filter(|line| says(line)).count()
}

#[tokio::test(start_paused = true)]
async fn refused_and_crashed_joins_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let server = MemoryServer::start(endpoint_with(|mount| mount.max_channels(1)).0);
    let mut ada = server.connect(1 << 16).await;
    let cases = [
        (json!({ "refuse": "full" }), "INFO", "refused a join"),
        (json!({ "crash": true }), "ERROR", "a join crashed"),
    ];
    for (params, level, message) in cases {
        for _ in 0..OFTEN {
            ada.send(json!(["1", "1", T, "phx_join", params])).await;
            assert_eq!(ada.receive().await[4]["status"], "error");
        }
        assert_eq!(lines(&log, level, message), WRITTEN, "{message}");
    }
    ada.join("1", T).await;
    for _ in 0..OFTEN {
        ada.send(json!(["2", "2", "room:other", "phx_join", {}])).await;
        assert_eq!(ada.receive().await[4]["response"]["reason"], "too many channels joined");
    }
    assert_eq!(lines(&log, "WARN", "refused a join: too many channels"), WRITTEN);
}

#[tokio::test(start_paused = true)]
async fn clients_that_connect_and_join_do_not_fill_the_log() {
    let written = async |log: Log| {
        let server = MemoryServer::start(endpoint_with(|mount| mount).0);
        for _ in 0..OFTEN {
            server.connect(1 << 16).await.join("1", T).await;
        }
        let lines = log.take();
        let of = |said: &str| lines.iter().filter(|line| line.contains(said)).count();
        (of(" message=connected "), of(" message=joined "))
    };
    let (log, guard) = Log::up_to(LevelFilter::INFO);
    assert_eq!(written(log).await, (WRITTEN, WRITTEN));
    drop(guard);
    let (log, _guard) = Log::keep();
    assert_eq!(written(log).await, (OFTEN, OFTEN), "each is logged at level DEBUG");
}

#[tokio::test(start_paused = true)]
async fn crashed_channels_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let server = plain();
    let mut ada = server.connect(1 << 16).await;
    for _ in 0..OFTEN {
        ada.join("1", P).await;
        ada.send(json!(["1", "2", P, "fail", {}])).await;
        assert_eq!(ada.receive().await[3], "phx_error");
    }
    assert_eq!(lines(&log, "ERROR", "a channel crashed"), WRITTEN);
}

#[tokio::test(start_paused = true)]
async fn crashed_joins_hide_no_crashed_channels_in_the_log() {
    let (log, _guard) = Log::keep();
    let server = MemoryServer::start(endpoint_with(|mount| mount).0);
    let mut ada = server.connect(1 << 16).await;
    for _ in 0..OFTEN {
        ada.send(json!(["1", "1", "room:other", "phx_join", { "crash": true }])).await;
        assert_eq!(ada.receive().await[4]["status"], "error");
    }
    ada.join("1", T).await;
    ada.send(json!(["1", "2", T, "crash", {}])).await;
    while ada.receive().await[3] != "phx_error" {}
    assert_eq!(lines(&log, "ERROR", "a channel crashed"), 1);
}

#[tokio::test(start_paused = true)]
async fn refused_requests_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let server = MemoryServer::start(endpoint_with(|mount| mount.longpoll(LongPoll::new())).0);
    let cases = [
        ("", "INFO", "refused a connection"),
        ("&vsn=9.0.0", "WARN", "refused a client: unsupported protocol version"),
        ("&a=%ff", "INFO", "refused a query that cannot be decoded"),
    ];
    for (query, level, message) in cases {
        let path = format!("/socket/longpoll?vsn=2.0.0{query}");
        for _ in 0..OFTEN {
            request(server.stream().await, "GET", &path, &[], "").await;
        }
        assert_eq!(lines(&log, level, message), WRITTEN, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn clients_closed_for_invalid_messages_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let limit = MessageRateLimit::per_second(1).burst(1).on_limit(OnLimit::Close);
    let server = MemoryServer::start(endpoint_with(|mount| mount.message_rate_limit(limit)).0);
    let long = format!("room:{}", "x".repeat(300));
    for _ in 0..OFTEN {
        let mut ada = server.connect(1 << 16).await;
        ada.send(json!(["1", "1", long, "phx_join", {}])).await;
        ada.closed().await;
    }
    let message = "closing socket: topic, event or reference longer than 255 bytes";
    assert_eq!(lines(&log, "WARN", message), WRITTEN);
    sleep(Duration::from_secs(60)).await;
    for _ in 0..OFTEN {
        let mut ada = server.connect(1 << 16).await;
        ada.join("1", T).await;
        ada.send(json!(["1", "2", T, "ping", {}])).await;
        ada.closed().await;
    }
    assert_eq!(lines(&log, "WARN", "closing socket: rate limit exceeded"), WRITTEN);
}

#[tokio::test(start_paused = true)]
async fn binary_frames_for_a_polling_client_do_not_fill_the_log() {
    let (log, _guard) = Log::keep();
    let server = MemoryServer::start(endpoint_with(|mount| mount.longpoll(LongPoll::new())).0);
    let poller = Poller::connect(&server, "vsn=2.0.0&name=ada").await;
    poller.join(T).await;
    for _ in 0..OFTEN {
        server.endpoint.broadcast(T, "picture", Payload::binary(vec![0xff])).unwrap();
        poller.poll().await;
    }
    assert_eq!(lines(&log, "WARN", "dropped binary frames: unsupported by long polling"), WRITTEN);
}
