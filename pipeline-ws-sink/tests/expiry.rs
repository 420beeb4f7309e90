//! Sockets with an end: their clients are warned, may show a new token, and are closed if they
//! do not.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pipeline_core::ExitReason;
use pipeline_test_support::{PATIENCE, Recorded, eventually, interop, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    channel_test::{TestEndpoint, assert_push},
    endpoint::EndpointBuilder,
    mount::LongPoll,
    socket::{ConnectError, ConnectInfo, Params},
    token::{Signer, VerifiedToken},
};
use serde_json::{Value, json};
use support::{
    memory::MemoryServer,
    poller::{BATCH, body_of, request},
    server::Server,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

const T: &str = "user:1";
const OTHER: &str = "user:other";
const MINUTE: Duration = Duration::from_secs(60);

/// A socket that lives as long as its token.
struct TokenSocket(Signer);

impl Socket for TokenSocket {
    type Assigns = VerifiedToken<u64>;

    async fn connect(
        &self,
        params: &Params,
        _: &ConnectInfo,
    ) -> Result<Self::Assigns, ConnectError> {
        Ok(self.0.verify_with_expiry(params.require("name")?, SystemTime::now())?)
    }

    fn expires_at(&self, user: &Self::Assigns) -> Option<SystemTime> {
        user.expires_at
    }
}

/// What the test shares with its channels.
#[derive(Clone)]
struct Shared {
    ends: mpsc::Sender<String>,
    /// Lets the event `wait` end.
    gate: Arc<Semaphore>,
}

struct User(Shared);

impl Channel for User {
    type Socket = TokenSocket;
    type Config = Shared;

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
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "refresh" => {
                let refused = Reply::error().with(json!({ "reason": "invalid token" }));
                let Ok(token) = payload.parse::<String>() else { return Ok(refused) };
                match cx.socket().0.verify_with_expiry::<u64>(&token, SystemTime::now()) {
                    Ok(token) if token.data == cx.assigns().data => {
                        cx.set_expires_at(token.expires_at);
                        Ok(Reply::ok())
                    }
                    _ => Ok(refused),
                }
            }
            "end in" => {
                let left = Duration::from_millis(payload.parse()?);
                cx.set_expires_at(Some(SystemTime::now() + left));
                Ok(Reply::ok())
            }
            "never" => {
                cx.set_expires_at(None);
                Ok(Reply::ok().with(json!({ "is_none": cx.expires_in().is_none() })))
            }
            "wait" => {
                self.0.gate.acquire().await?.forget();
                Ok(Reply::ok())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn terminate(&mut self, reason: &ExitReason, _: &ChannelContext<Self>) {
        let _ = self.0.ends.try_send(reason.to_string());
    }
}

struct Ends {
    ended: mpsc::Receiver<String>,
    gate: Arc<Semaphore>,
}

fn signer() -> Signer {
    Signer::new("a secret of at least 20 bytes", "user socket").unwrap()
}

/// A token that is valid for this many seconds.
fn token(user: u64, seconds: u64) -> String {
    signer().max_age(Duration::from_secs(seconds)).sign(&user, SystemTime::now()).unwrap()
}

fn endpoint(
    options: impl FnOnce(Mount<TokenSocket>) -> Mount<TokenSocket>,
) -> (EndpointBuilder, Ends) {
    let (ends, ended) = mpsc::channel(16);
    let gate = Arc::new(Semaphore::new(0));
    let shared = Shared { ends, gate: gate.clone() };
    let mount = Mount::new(TokenSocket(signer())).channel_with::<User>("user:*", shared);
    (Endpoint::builder().mount("/socket", options(mount)), Ends { ended, gate })
}

/// What has become of ends since the last call.
fn outcomes(recorded: &Recorded) -> Vec<(String, u64)> {
    recorded.counters("socket.expiries")
}

/// Whether this is the event that warns of the end, on this topic.
fn is_warning(message: &Value, topic: &str, within: Duration) -> bool {
    let left = message[4]["expires_in"].as_u64();
    (&message[2], &message[3]) == (&json!(topic), &json!("socket_expiring"))
        && left.is_some_and(|left| left > 0 && u128::from(left) <= within.as_millis())
}

#[tokio::test]
async fn a_client_is_warned_on_each_channel_and_closed_with_4401_when_the_end_has_come() {
    let (builder, mut ends) = endpoint(|mount| mount);
    let server = Server::start(builder).await;
    let mut ada = server.connect(&format!("name={}", token(1, 3600))).await;
    ada.join("1", T).await;
    ada.join("2", OTHER).await;
    ada.send(json!(["1", "3", T, "end in", 6000])).await;
    ada.expect([reply("1", "3", T, "ok", json!({}))]).await;
    let mut told = [ada.receive().await, ada.receive().await];
    told.sort_by_key(|message| message[0].to_string());
    let half = Duration::from_secs(3);
    assert!(is_warning(&told[0], T, half) && is_warning(&told[1], OTHER, half), "{told:?}");
    assert_eq!((&told[0][0], &told[1][0]), (&json!("1"), &json!("2")));
    let Message::Close(Some(CloseFrame { code, reason })) = ada.next().await else {
        panic!("no close frame")
    };
    assert_eq!((u16::from(code), reason.as_str()), (4401, "the socket has expired"));
    for _ in 0..2 {
        assert_eq!(ends.ended.recv().await.unwrap(), "shutdown: expired");
    }
    eventually(|| server.endpoint.open_sockets() == 0).await;
    let once = ["ended", "renewed", "warned"].map(|outcome| (format!("outcome={outcome}"), 1));
    assert_eq!(outcomes(&server.recorded), once);
}

#[tokio::test]
async fn a_client_that_shows_a_new_token_stays_and_one_with_a_false_token_does_not() {
    let (builder, _ends) = endpoint(|mount| mount);
    let server = Server::start(builder).await;
    let mut ada = server.connect(&format!("name={}", token(1, 6))).await;
    ada.join("1", T).await;
    let told = ada.receive().await;
    assert!(is_warning(&told, T, Duration::from_secs(4)), "{told}");
    let refused = json!({ "reason": "invalid token" });
    // Of another user, forged, and none.
    for (at, wrong) in [json!(token(2, 3600)), json!("SFMyNTY.a.b"), json!(null)].iter().enumerate()
    {
        let reference = format!("wrong {at}");
        ada.send(json!(["1", reference, T, "refresh", wrong])).await;
        ada.expect([reply("1", &reference, T, "error", refused.clone())]).await;
    }
    ada.send(json!(["1", "2", T, "refresh", token(1, 3600)])).await;
    ada.expect([reply("1", "2", T, "ok", json!({}))]).await;
    let left = Duration::from_millis(told[4]["expires_in"].as_u64().unwrap());
    sleep(left + Duration::from_millis(500)).await;
    ada.expect_nothing_else().await;
    let once = ["renewed", "warned"].map(|outcome| (format!("outcome={outcome}"), 1));
    assert_eq!(outcomes(&server.recorded), once);
    // An end that has passed is one too.
    ada.send(json!(["1", "3", T, "end in", 0])).await;
    assert_eq!(ada.closed().await, 4401);
}

#[tokio::test]
async fn a_client_whose_token_has_expired_is_refused() {
    let (builder, _ends) = endpoint(|mount| mount);
    let server = Server::start(builder).await;
    let signed = SystemTime::now() - 2 * MINUTE;
    let old = signer().max_age(MINUTE).sign(&1, signed).unwrap();
    assert_eq!(server.try_connect(&format!("vsn=2.0.0&name={old}")).await.unwrap_err(), 403);
}

/// Lets every client connect whose end is `name` seconds from now, or before now.
struct Dated;

impl Socket for Dated {
    type Assigns = Option<SystemTime>;

    async fn connect(
        &self,
        params: &Params,
        _: &ConnectInfo,
    ) -> Result<Self::Assigns, ConnectError> {
        let seconds: i64 = params.require("name")?.parse()?;
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        Ok(if seconds < 0 { now.checked_sub(distance) } else { now.checked_add(distance) })
    }

    fn expires_at(&self, end: &Self::Assigns) -> Option<SystemTime> {
        assert!(end.is_some(), "an end that cannot be expressed");
        *end
    }
}

struct DatedUser;

impl Channel for DatedUser {
    type Socket = Dated;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        _: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let seconds: u64 = payload.parse::<String>()?.parse()?;
        cx.set_expires_at(SystemTime::now().checked_add(Duration::from_secs(seconds)));
        Ok(Reply::ok())
    }
}

#[tokio::test]
async fn an_end_that_has_passed_refuses_and_so_does_a_panic_and_a_far_one_never_comes() {
    let builder = Endpoint::builder().mount("/socket", Mount::new(Dated));
    let server = Server::start(builder).await;
    for refused in [-1, 0, i64::MAX] {
        let query = format!("vsn=2.0.0&name={refused}");
        assert_eq!(server.try_connect(&query).await.unwrap_err(), 403, "{refused}");
    }
    let mut far = server.connect(&format!("name={}", 400_000_000_000_u64)).await;
    far.expect_nothing_else().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_joined_late_is_warned_after_its_join() {
    let free = Mount::new(Free).channel::<Late>("*").expiry_warning(MINUTE);
    let free = free.idle_timeout(Duration::MAX);
    let server = MemoryServer::start(Endpoint::builder().mount("/free", free));
    let mut ada = server.connect_at("/free", 1 << 16).await;
    ada.send(json!(["1", "1", T, "phx_join", {}])).await;
    ada.expect([reply("1", "1", T, "ok", json!({}))]).await;
    ada.send(json!(["1", "2", T, "end in", 600_000])).await;
    ada.expect([reply("1", "2", T, "ok", json!({}))]).await;
    // The clock is paused, so this is the next thing that happens, nine minutes later.
    let told = ada.receive().await;
    assert!(is_warning(&told, T, MINUTE), "{told}");
    assert!(told[4]["expires_in"].as_u64().unwrap() > 58_000, "{told}");
    ada.send(json!(["2", "3", OTHER, "phx_join", {}])).await;
    ada.expect([reply("2", "3", OTHER, "ok", json!({}))]).await;
    let told = ada.receive().await;
    assert!(is_warning(&told, OTHER, MINUTE), "{told}");
    assert_eq!(ada.closed().await, 4401);
}

/// Lets every client connect, without an end.
struct Free;

impl Socket for Free {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        Ok(())
    }
}

struct Late;

impl Channel for Late {
    type Socket = Free;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        _: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let left = Duration::from_millis(payload.parse()?);
        cx.set_expires_at(Some(SystemTime::now() + left));
        Ok(Reply::ok())
    }
}

#[tokio::test]
async fn a_busy_channel_is_not_warned_of_an_end_that_was_taken_back() {
    let (builder, ends) = endpoint(|mount| mount);
    let server = Server::start(builder).await;
    let mut ada = server.connect(&format!("name={}", token(1, 3600))).await;
    ada.join("1", T).await;
    ada.join("2", OTHER).await;
    ada.send(json!(["1", "wait", T, "wait", {}])).await;
    // Each end replaces the one before; the other channel is warned of the last one, while the first is busy.
    for round in 0..3 {
        let reference = format!("end {round}");
        ada.send(json!(["2", reference, OTHER, "end in", 20_000 - 6000 * round])).await;
        ada.expect([reply("2", &reference, OTHER, "ok", json!({}))]).await;
    }
    let told = ada.receive().await;
    assert!(is_warning(&told, OTHER, Duration::from_secs(4)), "{told}");
    ada.send(json!(["2", "never", OTHER, "never", {}])).await;
    ada.expect([reply("2", "never", OTHER, "ok", json!({ "is_none": true }))]).await;
    ends.gate.add_permits(1);
    ada.expect([reply("1", "wait", T, "ok", json!({}))]).await;
    ada.send(json!(["1", "again", T, "never", {}])).await;
    ada.expect([reply("1", "again", T, "ok", json!({ "is_none": true }))]).await;
    let renewed = ("outcome=renewed".to_owned(), 5);
    assert_eq!(outcomes(&server.recorded), [renewed, ("outcome=warned".to_owned(), 1)]);
}

#[tokio::test]
async fn a_long_polling_session_ends_too_and_its_client_is_warned_by_a_poll() {
    let polled = LongPoll::new().window(Duration::from_secs(5));
    let (builder, mut ends) = endpoint(|mount| mount.longpoll(polled));
    let server = MemoryServer::start(builder);
    let query = format!("vsn=2.0.0&name={}", token(1, 6));
    let path = format!("/socket/longpoll?{query}");
    let opened = body_of(&request(server.stream().await, "GET", &path, &[], "").await);
    assert_eq!(opened["status"], 410);
    let path = format!("{path}&token={}", opened["token"].as_str().unwrap());
    let join = json!(["1", "1", T, "phx_join", {}]).to_string();
    let joined = body_of(&request(server.stream().await, "POST", &path, &[BATCH], &join).await);
    assert_eq!(joined["status"], 200);
    let mut messages: Vec<Value> = Vec::new();
    while !messages.iter().any(|message| is_warning(message, T, Duration::from_secs(4))) {
        let polled = body_of(&request(server.stream().await, "GET", &path, &[], "").await);
        assert!([200, 204].contains(&polled["status"].as_u64().unwrap()), "{polled}");
        let texts = polled["messages"].as_array().unwrap();
        messages
            .extend(texts.iter().map(|text| serde_json::from_str(text.as_str().unwrap()).unwrap()));
    }
    assert_eq!(ends.ended.recv().await.unwrap(), "shutdown: expired");
    eventually(|| server.endpoint.open_sockets() == 0).await;
    // The session is gone, and the token of its client is not valid any more.
    let posted = body_of(&request(server.stream().await, "POST", &path, &[BATCH], &join).await);
    assert_eq!(posted, json!({ "status": 410 }));
    let polled = body_of(&request(server.stream().await, "GET", &path, &[], "").await);
    assert_eq!(polled, json!({ "status": 403 }));
    let once = ["ended", "warned"].map(|outcome| (format!("outcome={outcome}"), 1));
    assert_eq!(outcomes(&server.recorded), once);
}

#[tokio::test(start_paused = true)]
async fn the_kit_warns_its_clients_too() {
    let (builder, _ends) = endpoint(|mount| mount.expiry_warning(MINUTE));
    let kit = TestEndpoint::of(builder.build().unwrap());
    // No token is needed: the socket's own data say when it ends.
    let user = VerifiedToken::new(1, Some(SystemTime::now() + 10 * MINUTE));
    let socket = kit.socket::<TokenSocket>(None, user);
    let channel = socket.join(T, json!({})).await.unwrap();
    sleep(9 * MINUTE + MINUTE / 2).await;
    assert_push!(channel, "socket_expiring", { "expires_in": _ });
    sleep(MINUTE).await;
    assert_eq!(socket.closed().await, Some(4401));
}

/// The official client under Node, with what it prints. Stopped on drop.
struct Official {
    _node: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Official {
    fn start(arguments: &[&str]) -> Self {
        let mut node = Command::new("node");
        node.arg("closes.mjs").args(arguments).current_dir(interop());
        let mut node = node.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { _node: node, said }
    }

    async fn says(&mut self) -> Value {
        let line = timeout(PATIENCE, self.said.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

#[tokio::test]
async fn the_official_client_hears_of_the_end_refreshes_and_connects_again_after_it() {
    let mount = Mount::new(Dated).channel::<DatedUser>("user:*");
    let server = Server::start(Endpoint::builder().mount("/socket", mount)).await;
    let base = format!("http://{}", server.address());
    let mut ada = Official::start(&[&base, "websocket", "6,6,-1", "6"]);
    assert_eq!(ada.says().await, json!({ "open": true }));
    assert_eq!(ada.says().await, json!({ "joined": true }));
    assert!(ada.says().await["told"].is_u64());
    assert_eq!(ada.says().await, json!({ "refreshed": true }));
    assert!(ada.says().await["told"].is_u64(), "of the second end");
    let expired = json!({ "closed": [4401, "the socket has expired"] });
    assert_eq!(ada.says().await, expired);
    assert_eq!(ada.says().await, json!({ "open": true }));
    assert_eq!(ada.says().await, json!({ "joined": true }));
    assert!(ada.says().await["told"].is_u64());
    assert_eq!(ada.says().await, expired);
    // Now its end has passed already: it is refused, and tries again and again.
    for _ in 0..3 {
        assert_eq!(ada.says().await["closed"][0], 1006);
    }
}
