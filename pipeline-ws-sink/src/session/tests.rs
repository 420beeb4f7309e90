//! A client without WebSocket and HTTP: the tests pass messages to its session, and fetch frames.

use std::{future::poll_fn, time::SystemTime};

use pipeline_test_support::{Recorded, reply, settle};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{inbox::Inbox, *};
use crate::{
    channel::{Channel, ChannelContext, JoinContext, JoinError, Reply, Stop},
    clock::Clock,
    endpoint::{
        mount::Mount,
        state::{EndpointLimits, EndpointState},
    },
    handshake::{connect_info::ConnectInfo, params::Params},
    outbox::{OutboxLimits, Writer},
    protocol::frame::Frame,
    pubsub::topic::Topic,
    socket::ConnectError,
};

const T: &str = "room:lobby";

const MINUTE: Duration = Duration::from_secs(60);

struct Lobby;

impl Socket for Lobby {
    type Assigns = &'static str;

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<&'static str, ConnectError> {
        unreachable!("no client connects")
    }
}

struct Room;

impl Channel for Room {
    type Socket = Lobby;
    type Config = ();

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "name": cx.assigns() }));
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if event == "shout" {
            cx.broadcast("shouted", &payload)?;
        }
        Ok(Reply::ok().with(payload))
    }

    async fn terminate(&mut self, reason: &ExitReason, cx: &ChannelContext<Self>) {
        let gone = json!({ "name": cx.assigns(), "reason": reason.to_string() });
        cx.broadcast_from("gone", gone).unwrap();
    }
}

/// The state that all clients share.
struct House {
    state: EndpointState,
    routes: Arc<Routes<Lobby>>,
    recorded: Recorded,
    /// The inbox limit of each client.
    inbox: usize,
    /// The number of frames that each client's outbox may hold.
    frames: usize,
}

impl House {
    fn new() -> Self {
        let (telemetry, recorded) = Recorded::new();
        let mount = Mount::new(Lobby).channel::<Room>("room:*");
        let (_, routes) = mount.into_routes(&telemetry).unwrap();
        let state = EndpointState::new(
            &telemetry,
            None,
            None,
            vec![],
            EndpointLimits {
                sockets: 8,
                inboxes: 64 << 20,
                outboxes: 64 << 20,
                confirmations: 8,
                tell_refused: None,
                connects: None,
                joins: None,
            },
            None,
        );
        Self { state, routes: Arc::new(routes), recorded, inbox: 1 << 20, frames: 100 }
    }

    fn enter(&self, name: &'static str, version: Version) -> Visitor {
        let limits = OutboxLimits { frames: self.frames, bytes: self.frames << 14 };
        let metrics = self.state.metrics.clone();
        let outbox = Arc::new(Outbox::new(Writer::Fetched, limits, metrics.clone()));
        let connection = Arc::new(Connection {
            socket: Arc::new(Lobby),
            assigns: name,
            id: None,
            version,
            transport: "websocket",
            outbox: outbox.clone(),
            inbox: Arc::new(Inbox::new(self.inbox, self.state.inboxes.clone())),
            pubsub: self.state.pubsub.clone(),
            events: SessionEvents::default(),
            expiry: Expiry::new(None, MINUTE),
            metrics,
        });
        let session = Session::new(connection, self.routes.clone());
        Visitor { session, outbox, fetched: VecDeque::new() }
    }
}

struct Visitor {
    session: Session<Lobby>,
    outbox: Arc<Outbox>,
    fetched: VecDeque<Value>,
}

impl Visitor {
    async fn send(&mut self, message: Value) -> Result<(), SocketEnd> {
        let received = Received::Text(message.to_string().into());
        let held = self.session.hold(&received);
        self.session.receive(received, held).await
    }

    /// The next message, as a transport would send it.
    async fn next(&mut self) -> Value {
        loop {
            if let Some(message) = self.fetched.pop_front() {
                return message;
            }
            tokio::select! {
                () = self.session.changed() => self.session.catch_up().await,
                fetched = poll_fn(|cx| self.outbox.poll_fetch(cx)) => {
                    let bodies = fetched.iter().map(Frame::body);
                    let messages = bodies.map(|body| serde_json::from_slice(&body).unwrap());
                    self.fetched.extend(messages);
                }
            }
        }
    }

    async fn expect(&mut self, messages: impl IntoIterator<Item = Value>) {
        for message in messages {
            assert_eq!(self.next().await, message);
        }
    }

    async fn join(&mut self, name: &str) {
        self.send(json!(["1", "1", T, "phx_join", {}])).await.unwrap();
        self.expect([reply("1", "1", T, "ok", json!({ "name": name }))]).await;
    }

    /// Asserts that no frame is waiting or on its way.
    async fn expect_nothing_else(&mut self) {
        settle().await;
        assert!(self.fetched.is_empty(), "{:?}", self.fetched);
        assert!(futures::poll!(poll_fn(|cx| self.outbox.poll_fetch(cx))).is_pending());
    }
}

#[tokio::test]
async fn a_client_joins_is_answered_receives_events_and_leaves() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    ada.join("ada").await;
    assert_eq!(ada.outbox.channels(), 1);
    ada.send(json!(["1", "2", T, "ping", {"n": 2}])).await.unwrap();
    ada.expect([reply("1", "2", T, "ok", json!({"n": 2}))]).await;
    house.state.pubsub.broadcast(T, "news", json!({"n": 3})).unwrap();
    ada.expect([json!([null, null, T, "news", {"n": 3}])]).await;

    ada.send(json!(["1", "4", T, "phx_leave", {}])).await.unwrap();
    let closed = json!(["1", "1", T, "phx_close", {}]);
    ada.expect([reply("1", "4", T, "ok", json!({})), closed]).await;
    house.state.pubsub.broadcast(T, "late", json!({})).unwrap();
    ada.send(json!([null, "5", "phoenix", "heartbeat", {}])).await.unwrap();
    ada.expect([json!([null, "5", "phoenix", "phx_reply", {"status": "ok", "response": {}}])])
        .await;
    ada.expect_nothing_else().await;
    assert_eq!(ada.outbox.channels(), 0);
}

#[tokio::test]
async fn a_broadcast_waits_for_each_client_in_its_version() {
    let house = House::new();
    let (mut ada, mut old) = (house.enter("ada", Version::V2), house.enter("old", Version::V1));
    ada.join("ada").await;
    let message = |event: &str, reference: Value, payload: Value| json!({"topic": T, "event": event, "ref": reference, "payload": payload});
    old.send(message("phx_join", json!("1"), json!({}))).await.unwrap();
    let joined = json!({"status": "ok", "response": {"name": "old"}});
    old.expect([message("phx_reply", json!("1"), joined)]).await;

    ada.send(json!(["1", "2", T, "shout", {"n": 1}])).await.unwrap();
    let shouted = json!([null, null, T, "shouted", {"n": 1}]);
    ada.expect([shouted, reply("1", "2", T, "ok", json!({"n": 1}))]).await;
    old.expect([message("shouted", json!(null), json!({"n": 1}))]).await;
}

#[tokio::test(start_paused = true)]
async fn messages_behind_a_join_are_handled_although_the_socket_ends_while_they_are_routed() {
    let mut house = House::new();
    house.frames = 1_000;
    let mut ada = house.enter("ada", Version::V2);
    ada.send(json!(["1", "1", T, "phx_join", {}])).await.unwrap();
    // More than a task handles without a pause.
    for n in 0..200 {
        ada.send(json!(["1", n.to_string(), T, "ping", { "n": n }])).await.unwrap();
    }
    ada.session.changed().await;
    assert!(futures::poll!(Box::pin(ada.session.catch_up())).is_pending());
    let Visitor { session, outbox, .. } = ada;
    assert!(session.rest.is_some(), "some are not routed");
    session.end(&ExitReason::ShutdownWith("closed".into())).await;
    let mut answers = 0;
    while let Poll::Ready(fetched) = futures::poll!(poll_fn(|cx| outbox.poll_fetch(cx))) {
        answers += fetched.iter().count();
    }
    assert_eq!(answers, 1 + 200, "to the join and the messages");
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_warned_once_of_each_end() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    ada.join("ada").await;
    let connection = ada.session.connection().clone();
    let mut expired = Box::pin(connection.expired());
    for _ in 0..2 {
        let now = SystemTime::UNIX_EPOCH + Clock::start().since_1970();
        connection.expiry.set(Some(now + 10 * MINUTE));
        assert!(timeout(9 * MINUTE + MINUTE / 2, &mut expired).await.is_err());
        assert_eq!(ada.next().await[3], "socket_expiring");
        // As it comes once more where the channel joined at the same moment.
        connection.events.send(SessionEvent::Expiring);
        ada.session.catch_up().await;
        ada.expect_nothing_else().await;
    }
}

#[tokio::test]
async fn an_invalid_message_is_an_error() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    assert!(ada.send(json!({"not": "a message"})).await.is_err());
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn the_channels_of_a_session_end_with_it() {
    let house = House::new();
    let (mut ada, mut joe) = (house.enter("ada", Version::V2), house.enter("joe", Version::V2));
    ada.join("ada").await;
    joe.join("joe").await;
    ada.session.end(&ExitReason::ShutdownWith("inactive".into())).await;
    let gone = json!({"name": "ada", "reason": "shutdown: inactive"});
    joe.expect([json!([null, null, T, "gone", gone])]).await;

    // If the session is dropped, its channels are aborted.
    let mut eve = house.enter("eve", Version::V2);
    eve.join("eve").await;
    let outbox = joe.outbox.clone();
    drop(joe);
    settle().await;
    house.state.pubsub.broadcast(T, "news", json!({})).unwrap();
    eve.expect([json!([null, null, T, "news", {}])]).await;
    assert!(futures::poll!(poll_fn(|cx| outbox.poll_fetch(cx))).is_pending());
}

#[tokio::test]
async fn events_sent_during_a_join_are_handled_although_the_client_leaves_before_it_ends() {
    let house = House::new();
    let (mut ada, mut joe) = (house.enter("ada", Version::V2), house.enter("joe", Version::V2));
    joe.join("joe").await;
    ada.send(json!(["1", "1", T, "phx_join", {}])).await.unwrap();
    ada.send(json!(["1", "2", T, "shout", { "n": 1 }])).await.unwrap();
    assert!(ada.session.is_joining());
    ada.session.end(&ExitReason::ShutdownWith("closed".into())).await;
    let gone = json!({ "name": "ada", "reason": "shutdown: closed" });
    joe.expect([
        json!([null, null, T, "shouted", { "n": 1 }]),
        json!([null, null, T, "gone", gone]),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_counts_as_delivered_when_it_is_fetched() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    ada.join("ada").await;
    house.state.pubsub.broadcast_timed(Instant::now(), T, "news", json!({})).unwrap();
    time::advance(Duration::from_secs(2)).await;
    assert!(house.recorded.samples("pipeline.push_delivered").is_empty());
    ada.expect([json!([null, null, T, "news", {}])]).await;
    assert_eq!(house.recorded.samples("pipeline.push_delivered"), [2000.0]);
}

#[tokio::test]
async fn handling_a_message_takes_little_of_the_task_of_a_socket() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    let received = Received::Text("[]".into());
    let held = ada.session.hold(&received);
    // The future is part of each socket's task, and takes memory while the socket is idle.
    let size = size_of_val(&ada.session.receive(received, held));
    assert!(size <= 600, "{size}");
}

/// Sends this many messages without waiting for the answers, and returns how often one of them was
/// decoded. The last one is a join.
async fn decoded_of(messages: usize, message: impl Fn(usize) -> Value) -> usize {
    let mut house = House::new();
    house.frames = 2 * messages;
    let mut ada = house.enter("ada", Version::V2);
    let outbox = ada.outbox.clone();
    // A client that reads while it sends.
    let reading = tokio::spawn(async move {
        let last = messages.to_string();
        loop {
            for frame in poll_fn(|cx| outbox.poll_fetch(cx)).await.iter() {
                let answer: Value = serde_json::from_slice(&frame.body()).unwrap();
                if answer[1] == last && answer[4]["status"] == "ok" {
                    return;
                }
            }
        }
    });
    for at in 1..=messages {
        ada.send(message(at)).await.unwrap();
        let decoded = ada.session.decoded;
        assert!(decoded <= 3 * at, "{decoded} times, after {at} messages");
    }
    let mut answered = std::pin::pin!(timeout(PATIENCE * 6, reading));
    loop {
        tokio::select! {
            () = ada.session.changed() => ada.session.catch_up().await,
            read = &mut answered => break read.unwrap().unwrap(),
        }
        let decoded = ada.session.decoded;
        assert!(decoded <= 3 * messages, "{decoded} times, and more messages wait");
    }
    ada.session.decoded
}

#[tokio::test]
async fn joins_that_wait_for_joins_are_decoded_three_times_each_however_many_there_are() {
    // When it arrives, when there is room for it, and when the join before it has ended.
    for joins in [1_000, 10_000] {
        let of_one_topic = decoded_of(joins, |at| {
            let reference = at.to_string();
            json!([reference, reference, T, "phx_join", {}])
        });
        let decoded = of_one_topic.await;
        assert!((joins..=3 * joins).contains(&decoded), "{decoded} for {joins} joins");

        let of_fifty = decoded_of(joins, |at| {
            let (reference, topic) = (at.to_string(), format!("room:{}", at % 50));
            json!([reference, reference, topic, "phx_join", {}])
        });
        let decoded = of_fifty.await;
        assert!((joins..=3 * joins).contains(&decoded), "{decoded} for {joins} joins");
    }
}

#[tokio::test]
async fn messages_that_waited_for_a_join_cost_by_their_size() {
    let house = House::new();
    let mut ada = house.enter("ada", Version::V2);
    ada.send(json!(["1", "1", T, "phx_join", {}])).await.unwrap();
    // The budget of one poll is 128 units, and this costs 129.
    let long = "x".repeat(1 << 20);
    ada.send(json!(["1", "2", T, "ping", { "long": long }])).await.unwrap();
    ada.session.changed().await;
    let mut polls = 0;
    let mut late = std::pin::pin!(ada.session.catch_up());
    poll_fn(|cx| {
        polls += 1;
        late.as_mut().poll(cx)
    })
    .await;
    assert!(polls >= 2, "129 units are paid in {polls} turns");
}
