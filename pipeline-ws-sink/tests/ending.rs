//! When a socket ends, its connection is closed, even while references to it are held; and its
//! channels and tasks end with it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use pipeline_core::ExitReason;
use pipeline_test_support::{Client, PATIENCE, eventually, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, SocketRef, Stop},
    mount::Drainer,
};
use serde_json::json;
use support::{
    channels::NamedSocket,
    memory::MemoryServer,
    raw::{FIN, RawClient, TEXT},
    server::Server,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

const T: &str = "lasting:1";
const AN_HOUR: Duration = Duration::from_secs(3600);

/// What the channels of a test have reported.
#[derive(Default)]
struct Seen {
    /// Reply references that are never used.
    unanswered: Mutex<Vec<SocketRef>>,
    terminates: AtomicBool,
    /// The channel's value was dropped, however the channel ended.
    gone: AtomicBool,
}

/// Keeps a reply reference to each event, and terminates when the test allows it.
struct Lasting {
    seen: Arc<Seen>,
    gate: Arc<Semaphore>,
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.seen.gone.store(true, Ordering::SeqCst);
    }
}

impl Channel for Lasting {
    type Socket = NamedSocket;
    type Config = (Arc<Seen>, Arc<Semaphore>);

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let (seen, gate) = cx.config().clone();
        Ok(Self { seen, gate })
    }

    async fn handle_in(
        &mut self,
        _: &str,
        _: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        self.seen.unanswered.lock().push(cx.socket_ref()?);
        Ok(Reply::none())
    }

    async fn terminate(&mut self, _: &ExitReason, _: &ChannelContext<Self>) {
        self.seen.terminates.store(true, Ordering::SeqCst);
        let _ = self.gate.acquire().await;
    }
}

/// Takes 10 ms for each event.
struct SlowChannel(Arc<SlowReports>);

/// Reports of a slow channel.
#[derive(Default)]
struct SlowReports {
    events: AtomicUsize,
    terminates: AtomicUsize,
}

impl Channel for SlowChannel {
    type Socket = NamedSocket;
    type Config = Arc<SlowReports>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        Ok(Self(cx.config().clone()))
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if event == "stuck" {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(10)).await;
        self.0.events.fetch_add(1, Ordering::SeqCst);
        Ok(Reply::none())
    }

    async fn terminate(&mut self, _: &ExitReason, _: &ChannelContext<Self>) {
        sleep(Duration::from_secs(3)).await;
        self.0.terminates.fetch_add(1, Ordering::SeqCst);
    }
}

/// A client sends this many events and disconnects. Returns the reports of its channel, and the time.
async fn plods(event: &str, count: usize) -> (Arc<SlowReports>, Duration) {
    let plodded = Arc::<SlowReports>::default();
    let mount = Mount::new(NamedSocket).channel_with::<SlowChannel>("plodding:*", plodded.clone());
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let mut client = server.connect(1 << 20).await;
    client.join("1", "plodding:1").await;
    for _ in 0..count {
        client.send(json!(["1", null, "plodding:1", event, {}])).await;
    }
    let gone = Instant::now();
    client.stream.close(None).await.unwrap();
    assert_eq!(client.closed().await, 1000);
    eventually(|| server.endpoint.open_sockets() == 0).await;
    (plodded, gone.elapsed())
}

fn lasting(open: bool) -> (Mount<NamedSocket>, Arc<Seen>, Arc<Semaphore>) {
    let (seen, gate) = (Arc::<Seen>::default(), Arc::new(Semaphore::new(0)));
    if open {
        gate.close();
    }
    let config = (seen.clone(), gate.clone());
    (Mount::new(NamedSocket).channel_with::<Lasting>("lasting:*", config), seen, gate)
}

async fn start(mount: Mount<NamedSocket>) -> Server {
    Server::start(Endpoint::builder().mount("/socket", mount)).await
}

/// Waits for the end of the stream, after the closing handshake.
async fn ended(client: &mut Client) {
    assert!(timeout(PATIENCE, client.stream.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_missing_reply_does_not_keep_a_connection_open() {
    let (mount, seen, _) = lasting(true);
    let server = start(mount).await;
    let mut client = server.connect("name=ada").await;
    client.join("1", T).await;
    client.send(json!(["1", "2", T, "question", {}])).await;
    eventually(|| seen.unanswered.lock().len() == 1).await;
    client.stream.close(None).await.unwrap();
    assert_eq!(client.closed().await, 1000);
    ended(&mut client).await;
    let unanswered = seen.unanswered.lock().pop().unwrap();
    unanswered.reply(Reply::ok()).unwrap();
}

#[tokio::test]
async fn a_channel_that_terminates_slowly_does_not_keep_a_connection_open() {
    let (mount, seen, gate) = lasting(false);
    let server = start(mount).await;
    let mut client = server.connect("name=ada").await;
    client.join("1", T).await;
    client.stream.close(None).await.unwrap();
    assert_eq!(client.closed().await, 1000);
    ended(&mut client).await;
    eventually(|| seen.terminates.load(Ordering::SeqCst)).await;
    assert!(!seen.gone.load(Ordering::SeqCst), "the channel is still terminating");
    gate.close();
    server.open_sockets(0).await;
}

#[tokio::test]
async fn a_batch_of_a_drain_is_closed_before_the_next_one_begins() {
    let (mount, _, _) = lasting(true);
    let drainer = Drainer::new().batch_size(1).batch_interval(AN_HOUR);
    let server = start(mount.drainer(drainer)).await;
    let mut clients = Vec::new();
    for name in ["ada", "joe"] {
        let mut client = server.connect(&format!("name={name}")).await;
        client.join("1", T).await;
        clients.push(Box::pin(async move {
            assert_eq!(client.closed().await, 1012);
            ended(&mut client).await;
        }));
    }
    let endpoint = server.endpoint.clone();
    let draining = tokio::spawn(async move { endpoint.drain(Duration::MAX).await });
    let ((), _, rest) = futures::future::select_all(clients).await;
    server.open_sockets(1).await;
    draining.abort();
    futures::future::join_all(rest).await;
}

#[tokio::test]
async fn after_a_protocol_error_the_stream_ends_without_a_reset() {
    let (mount, _, _) = lasting(true);
    let server = start(mount).await;
    let mut client = RawClient::connect(server.connect_tcp().await, "").await;
    // A reserved bit, followed by many bytes that the server does not parse.
    client.send_bytes(&[&[FIN | 0x20 | TEXT, 0x80, 1, 2, 3, 4], &[0; 200_000][..]].concat()).await;
    assert_eq!(client.closed().await, 1002);
    assert_eq!(client.ended().await.map_err(|error| error.kind()), Ok(()));
    // Not even by later bytes.
    client.send_bytes(&[0; 200_000]).await;
    drop(client);
    server.open_sockets(0).await;
}

#[tokio::test]
async fn text_that_is_not_utf_8_in_a_binary_message_closes_with_1007() {
    let (mount, _, _) = lasting(true);
    let server = start(mount).await;
    let mut client = server.connect("name=ada").await;
    let latin1 = b"\x00\x01\x01\x05\x0112caf\xe9:e".to_vec();
    client.stream.send(Message::binary(latin1)).await.unwrap();
    assert_eq!(client.closed().await, 1007);
}

#[tokio::test(start_paused = true)]
async fn a_drain_also_waits_for_a_channel_that_was_left() {
    let (mount, seen, gate) = lasting(false);
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client
        .expect([reply("1", "2", T, "ok", json!({})), json!(["1", "1", T, "phx_close", {}])])
        .await;
    client.expect_nothing_else().await;
    let endpoint = server.endpoint.clone();
    let draining = tokio::spawn(async move { endpoint.drain(AN_HOUR).await });
    assert_eq!(client.closed().await, 1012);
    assert!(client.stream.next().await.is_none(), "the closing handshake is complete");
    assert!(seen.terminates.load(Ordering::SeqCst));
    pipeline_test_support::settle().await;
    assert!(!draining.is_finished(), "the drain waits for its end");
    gate.close();
    assert_eq!(draining.await.unwrap().closed, 1);
    assert!(seen.gone.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn terminating_channels_count_as_channels() {
    let (mount, _, gate) = lasting(false);
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount.max_channels(2)));
    let mut client = server.connect(1 << 16).await;
    for n in ["1", "2"] {
        client.join(n, T).await;
        client.send(json!([n, "l", T, "phx_leave", {}])).await;
        let left = reply(n, "l", T, "ok", json!({}));
        client.expect([left, json!([n, n, T, "phx_close", {}])]).await;
        client.expect_nothing_else().await;
    }
    let reason = json!({ "reason": "too many channels joined" });
    client.send(json!(["3", "3", T, "phx_join", {}])).await;
    client.expect([reply("3", "3", T, "error", reason)]).await;
    let joins = server.recorded.counters("channel_join");
    assert!(joins.iter().any(|(labels, n)| labels.contains("status=fail") && *n == 1), "{joins:?}");
    gate.close();
    pipeline_test_support::settle().await;
    client.join("4", T).await;
}

#[tokio::test]
async fn a_mount_without_a_time_limit_has_none() {
    let (mount, _, _) = lasting(true);
    let server = start(mount.idle_timeout(Duration::MAX)).await;
    let mut client = server.connect("name=ada").await;
    client.join("1", T).await;
}

#[tokio::test(start_paused = true)]
async fn events_sent_right_before_a_disconnect_are_handled() {
    let (plodded, _) = plods("say", 50).await;
    assert_eq!(plodded.events.load(Ordering::SeqCst), 50);
    assert_eq!(plodded.terminates.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_channel_terminates_despite_many_queued_events() {
    let (plodded, took) = plods("say", 5000).await;
    let events = plodded.events.load(Ordering::SeqCst);
    assert!(
        (50..=200).contains(&events),
        "{events} were handled after the client had disconnected"
    );
    assert_eq!(plodded.terminates.load(Ordering::SeqCst), 1);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_stuck_is_aborted() {
    let (plodded, took) = plods("stuck", 5).await;
    assert_eq!(plodded.terminates.load(Ordering::SeqCst), 0);
    assert!(took < Duration::from_secs(6), "{took:?}");
}
