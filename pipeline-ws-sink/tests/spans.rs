//! Log lines carry the spans of their socket and channel.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{io, sync::Arc};

use http::Request;
use parking_lot::Mutex;
use pipeline_test_support::{Log, eventually, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    socket::{ConnectError, ConnectInfo, Params, PeerAddr},
};
use serde_json::json;
use support::{channels::endpoint, server::Server};
use tower_service::Service;
use tracing::{Level, subscriber::DefaultGuard};
use tracing_subscriber::layer::SubscriberExt;

const T: &str = "room:lobby";

/// The output of a subscriber, with the spans of each line.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Starts recording on this thread, until the guard is dropped.
    fn at(level: Level) -> (Self, [DefaultGuard; 2]) {
        // The comments of `Log` explain why a single subscriber is not enough.
        let (_, other) = Log::keep();
        let written = Self::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        (written, [tracing::subscriber::set_default(subscriber), other])
    }

    fn lines(&self) -> Vec<String> {
        let written = String::from_utf8(self.0.lock().clone()).unwrap();
        written.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The first line that contains this.
    fn line(&self, message: &str) -> String {
        self.lines().into_iter().find(|line| line.contains(message)).unwrap()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn events_of_a_socket_or_a_channel_are_logged_in_its_span() {
    let (written, _guards) = Written::at(Level::DEBUG);
    let server = Server::start(endpoint().0).await;
    let mut ada = server.connect("name=ada").await;
    let socket = r#"socket{socket="NamedSocket" path="/socket/websocket" id="named:ada"}"#;
    let connected = written.line("connected");
    // No line repeats what its spans say.
    let expected = format!(r#"INFO {socket}: connected transport="websocket" "#);
    assert!(connected.starts_with(&expected), "{connected}");
    ada.join("1", T).await;
    let channel = r#"channel{channel="Room" topic="room:lobby"}"#;
    let joined = written.line(" joined ");
    assert!(joined.starts_with(&format!("INFO {socket}:{channel}: joined params=")), "{joined}");
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    ada.next().await;
    let handled = written.line(" handled ");
    let expected = format!(r#"DEBUG {socket}:{channel}: handled event="ping" ref="2" "#);
    assert!(handled.starts_with(&expected), "{handled}");
    ada.send(json!(["1", "3", T, "crash", {}])).await;
    eventually(|| written.lines().iter().any(|line| line.contains("a channel crashed"))).await;
    let crash = written.line("a channel crashed");
    assert!(crash.starts_with(&format!("ERROR {socket}:{channel}: ")), "{crash}");
    drop(ada);
    eventually(|| written.lines().iter().any(|line| line.contains("closing socket"))).await;
    let end = written.line("closing socket");
    assert!(end.starts_with(&format!("DEBUG {socket}: ")), "{end}");
}

#[tokio::test]
async fn lines_without_their_spans_have_the_fields_of_these() {
    let (_, other) = Log::keep();
    let written = Written::default();
    let writer = written.clone();
    // As `RUST_LOG=warn,pipeline_ws_sink::connect=info,..` does.
    let filter = tracing_subscriber::filter::Targets::new().with_default(Level::WARN);
    let filter = filter
        .with_target("pipeline_ws_sink::connect", Level::INFO)
        .with_target("pipeline_ws_sink::join", Level::INFO)
        .with_target("pipeline_ws_sink::handle_in", Level::DEBUG);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).without_time();
    let lines = lines.with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    let _guards = [tracing::subscriber::set_default(subscriber), other];
    let server = Server::start(endpoint().0).await;
    assert_eq!(server.try_connect("vsn=2.0.0").await.err(), Some(403));
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    ada.next().await;
    for (line, fields) in [
        ("refused a connection", r#"socket="NamedSocket""#),
        ("connected", r#"socket="NamedSocket" id="named:ada""#),
        ("joined", r#"channel="Room" topic="room:lobby""#),
        ("handled", r#"channel="Room" topic="room:lobby""#),
    ] {
        let line = written.line(line);
        assert!(line.contains(fields), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_is_logged_in_the_span_of_the_refused_socket() {
    let (written, _guards) = Written::at(Level::INFO);
    let server = Server::start(endpoint().0).await;
    assert_eq!(server.try_connect("vsn=2.0.0").await.err(), Some(403));
    let refused = written.line("refused a connection");
    let span = r#"socket{socket="NamedSocket" path="/socket/websocket"}"#;
    assert!(refused.starts_with(&format!("INFO {span}: ")), "{refused}");
}

#[tokio::test]
async fn a_span_contains_the_peer_address_if_the_server_sets_it() {
    let (written, _guards) = Written::at(Level::INFO);
    let mut endpoint = endpoint().0.build().unwrap();
    let request = Request::get("/socket/websocket?vsn=2.0.0")
        .header("host", "x")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .extension(PeerAddr("192.0.2.1:50000".parse().unwrap()));
    let answer = endpoint
        .call(request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 403);
    let refused = written.line("refused a connection");
    assert!(refused.contains(r#" peer=192.0.2.1:50000}: "#), "{refused}");
}

#[tokio::test]
async fn frames_are_logged_only_on_request() {
    let (written, _guards) = Written::at(Level::INFO);
    let server = Server::start(endpoint().0).await;
    let mut ada = server.connect("name=ada").await;
    ada.join("1", T).await;
    let before = written.lines().len();
    for n in 0..10 {
        ada.send(json!(["1", "2", T, "ping", { "n": n }])).await;
        ada.expect([reply("1", "2", T, "ok", json!({ "n": n }))]).await;
        server.endpoint.broadcast(T, "news", json!({})).unwrap();
        ada.expect([json!([null, null, T, "news", {}])]).await;
    }
    assert_eq!(written.lines()[before..], [""; 0]);
}

/// Logs in its callbacks.
struct LogsInCallbacks;

impl Socket for LogsInCallbacks {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        tracing::info!("in connect");
        Ok(())
    }
}

impl Channel for LogsInCallbacks {
    type Socket = Self;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        tracing::info!("in join");
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        tracing::info!("in handle_in");
        Ok(Reply::ok())
    }
}

#[tokio::test]
async fn callbacks_have_nested_spans() {
    let (written, _guards) = Written::at(Level::DEBUG);
    let mount = Mount::new(LogsInCallbacks).channel::<LogsInCallbacks>("room:*");
    let server = Server::start(Endpoint::builder().mount("/socket", mount)).await;
    let mut ada = server.connect("").await;
    ada.join("1", T).await;
    ada.send(json!(["1", "2", T, "ping", {}])).await;
    ada.expect([reply("1", "2", T, "ok", json!({}))]).await;
    let socket = r#"socket{socket="LogsInCallbacks" path="/socket/websocket"}"#;
    let channel = r#"channel{channel="LogsInCallbacks" topic="room:lobby"}"#;
    assert_eq!(written.line("in connect"), format!("INFO {socket}:connect: in connect"));
    assert_eq!(written.line("in join"), format!("INFO {socket}:{channel}:join: in join"));
    let event = r#"handle_in{event="ping" ref="2"}"#;
    let handled = format!("INFO {socket}:{channel}:{event}: in handle_in");
    assert_eq!(written.line("in handle_in"), handled);
}

#[tokio::test]
async fn a_client_cannot_inject_log_lines_or_long_ones() {
    const FORGED: &str = "\nERROR bank: all money is gone";
    let (written, _guards) = Written::at(Level::TRACE);
    let server = Server::start(endpoint().0).await;
    let encoded = FORGED.replace('\n', "%0A").replace(' ', "%20");
    let long = "x".repeat(5000);
    for vsn in [&encoded, &long] {
        let refused = server.try_connect(&format!("vsn={vsn}&name=ada")).await;
        assert_eq!(refused.err(), Some(403));
    }
    let mut ada = server.connect(&format!("name={encoded}&more={long}")).await;
    let topic = format!("room:{FORGED}");
    ada.join("1", &topic).await;
    ada.send(json!(["1", FORGED, topic, "ping", {}])).await;
    ada.expect([reply("1", FORGED, &topic, "ok", json!({}))]).await;
    // The channel crashes with the event's name in its reason.
    ada.send(json!(["1", "2", topic, FORGED, {}])).await;
    eventually(|| written.lines().iter().any(|line| line.contains("a channel crashed"))).await;
    ada.send(json!(["3", "3", topic, "phx_join", { "crash": true }])).await;
    eventually(|| written.lines().iter().any(|line| line.contains("a join crashed"))).await;
    for line in written.lines() {
        assert!(!line.starts_with("ERROR bank"), "{line}");
        assert!(line.len() < 4 * 1024, "{line}");
    }
    let versions =
        written.lines().into_iter().filter(|line| line.contains("unsupported protocol version"));
    assert_eq!(versions.count(), 2);
}

#[tokio::test]
async fn a_refused_origin_is_escaped_and_truncated() {
    let (written, _guards) = Written::at(Level::INFO);
    let mut endpoint = endpoint().0.host("example.com").build().unwrap();
    for origin in ["http://a\u{1b}[31m".to_owned(), format!("http://{}", "a".repeat(60_000))] {
        // A header's value may contain any bytes above 0x7f, and thus an escape through the lossy text.
        let request = Request::get("/socket/websocket?vsn=2.0.0")
            .header("host", "example.com")
            .header("origin", origin.replace('\u{1b}', "\u{9b}"))
            .body(http_body_util::Empty::<bytes::Bytes>::new());
        assert_eq!(endpoint.call(request.unwrap()).await.unwrap().status(), 403);
    }
    let lines = written.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(r#"origin="http://a\u{9b}[31m""#), "{lines:?}");
    assert!(lines[1].len() < 2 * 1024, "{lines:?}");
}
