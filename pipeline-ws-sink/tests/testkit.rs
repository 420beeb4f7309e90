//! The test kit for channels: its matches, and its failures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::time::Duration;

use pipeline_core::ExitReason;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, SendError, Stop},
    channel_test::{
        TestChannel, TestEndpoint, WireFrame, assert_broadcast, assert_push, assert_reply,
        refute_broadcast, refute_push, refute_reply,
    },
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep};

const SECOND: Duration = Duration::from_secs(1);

struct UserSocket;

/// The params and the path of the connected client.
struct User(Value, String);

impl Socket for UserSocket {
    type Assigns = User;

    async fn connect(&self, params: &Params, info: &ConnectInfo) -> Result<User, ConnectError> {
        params.require("user")?;
        Ok(User(json!(params), info.uri.path().to_owned()))
    }

    fn id(&self, user: &User) -> Result<Option<String>, ConnectError> {
        Ok(user.0["user"].as_str().map(|user| format!("users:{user}")))
    }
}

/// Does what its client requests.
struct Room;

struct Note(u64);

impl Channel for Room {
    type Socket = UserSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["stamped"];

    async fn join(
        topic: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        match topic.rest() {
            "crash" => panic!("crash requested"),
            "secret" => Err(JoinError::unauthorized()),
            "never" => std::future::pending().await,
            _ => {
                cx.reply(&payload);
                Ok(Self)
            }
        }
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "who" => {
                Ok(Reply::ok().with(json!({"params": cx.assigns().0, "path": cx.assigns().1})))
            }
            "ping" => Ok(Reply::ok().with(payload)),
            "push" => {
                cx.push("pushed", &payload)?;
                Ok(Reply::none())
            }
            "shout" => {
                cx.broadcast("shouted", &payload)?;
                Ok(Reply::none())
            }
            "stamp" => {
                cx.broadcast("stamped", &payload)?;
                Ok(Reply::none())
            }
            "later" => {
                cx.send_after(SECOND, Note(1))?;
                Ok(Reply::ok())
            }
            "crash" => panic!("crash requested"),
            "hang" => std::future::pending().await,
            "stop" => Err(Stop::normal()),
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn terminate(&mut self, reason: &ExitReason, cx: &ChannelContext<Self>) {
        sleep(SECOND).await;
        cx.broadcast_from("gone", json!({"reason": reason.to_string()})).unwrap();
    }
}

impl HandleMessage<Note> for Room {
    async fn handle_message(&mut self, note: Note, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        Ok(cx.push("note", json!({"n": note.0}))?)
    }
}

fn mount() -> Mount<UserSocket> {
    Mount::new(UserSocket).channel::<Room>("room:*")
}

fn kit() -> TestEndpoint {
    TestEndpoint::new(mount())
}

/// A kit, and a joined channel of its client.
async fn both() -> (TestEndpoint, TestChannel) {
    let kit = kit();
    let socket = kit.connect(json!({"user": "ada"})).await.unwrap();
    let room = socket.join("room:1", json!({})).await.unwrap();
    (kit, room)
}

/// The channel alone.
async fn room() -> TestChannel {
    both().await.1
}

#[tokio::test(start_paused = true)]
async fn expected_messages_are_found_in_any_order_and_others_are_kept() {
    let room = room().await;
    for n in 1..=3 {
        room.push("push", json!({"n": n, "deep": {"list": [n, "x"]}}));
    }
    let ping = room.push("ping", json!([1, null, {"a": 1}]));
    assert_reply!(room, ping, "ok", [1, null, { "a": _ }]);
    assert_push!(room, "pushed", { "deep": { "list": [3, _] } });
    let two = assert_push!(room, "pushed", { "n": 1 + 1 });
    assert_eq!(two["deep"]["list"], json!([2, "x"]));
    refute_push!(room, "pushed", { "n": 2 });
    assert_push!(room, "pushed", == json!({"n": 1, "deep": {"list": [1, "x"]}}));
    refute_push!(room, "pushed");
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Pushed {
    n: u64,
    name: String,
}

#[tokio::test(start_paused = true)]
async fn payloads_match_patterns_of_types_and_guards_and_closures() {
    let room = room().await;
    room.push("push", json!({"other": true}));
    room.push("push", json!({"n": 1, "name": "ada"}));
    room.push("push", json!({"n": 20, "name": "joe"}));
    let Pushed { n, .. } = assert_push!(room, "pushed", Pushed { name, .. } if name == "joe");
    assert_eq!(n, 20);
    refute_push!(room, "pushed", Pushed { n: 2.., .. });
    let ada = assert_push!(room, "pushed", Pushed { n: 1, name } if name.len() > 2, within: SECOND);
    assert_eq!(ada, Pushed { n: 1, name: "ada".to_owned() });
    let other = assert_push!(room, "pushed", |payload| payload.json() == Some(r#"{"other":true}"#));
    assert!(!other.is_binary());
}

#[tokio::test(start_paused = true)]
async fn replies_are_distinguished_by_reference_and_status() {
    let room = room().await;
    let (one, two) = (room.push("ping", json!(1)), room.push("ping", json!("two")));
    assert_ne!(one, two);
    refute_reply!(room, two, "error");
    assert_reply!(room, two, "ok", "two");
    assert_reply!(room, &one, "ok", 1);
    refute_reply!(room, one, "ok");
    let (unanswered, answered) = (room.push("push", json!({})), room.push("ping", json!({})));
    refute_reply!(room, unanswered, "ok");
    assert_reply!(room, answered, "ok");
    let null = room.push("ping", json!(null));
    assert_reply!(room, null, "ok", null);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_is_a_push_to_clients_and_a_broadcast_to_subscribers() {
    let (kit, room) = both().await;
    let elsewhere = kit.subscribe("room:2");
    room.push("shout", json!({"body": "hi"}));
    assert_broadcast!(room, "shouted", { "body": "hi" });
    assert_push!(room, "shouted", { "body": "hi" });
    refute_push!(room, "shouted");
    refute_broadcast!(room, "shouted");
    refute_broadcast!(elsewhere, "shouted");

    // An intercepted broadcast reaches the client through the channel.
    room.push("stamp", json!({}));
    assert_broadcast!(room, "stamped");
    assert_push!(room, "stamped");

    // The test itself is excluded.
    room.broadcast_from("news", json!({"n": 1}));
    assert_push!(room, "news", { "n": 1 });
    refute_broadcast!(room, "news");
    kit.endpoint().broadcast("room:2", "news", json!({})).unwrap();
    assert_broadcast!(elsewhere, "news");
    elsewhere.broadcast_from("news", json!({}));
    refute_broadcast!(elsewhere, "news");

    // A client with both topics distinguishes them.
    let joe = kit.connect(json!({"user": "joe"})).await.unwrap();
    let one = joe.join("room:1", json!({})).await.unwrap();
    let two = joe.join("room:2", json!({})).await.unwrap();
    elsewhere.broadcast_from("opened", json!({}));
    refute_push!(one, "opened");
    assert_push!(two, "opened");
}

#[tokio::test(start_paused = true)]
async fn binary_payloads_work_in_both_directions() {
    let room = room().await;
    let bytes = || Payload::binary(vec![1, 2, 0xff]);
    let ping = room.push("ping", bytes());
    assert_eq!(assert_reply!(room, ping, "ok"), bytes());
    room.push("push", bytes());
    assert_push!(room, "pushed", |payload| *payload == bytes());
    room.push("shout", bytes());
    assert_push!(room, "shouted", |payload| payload.is_binary());
    assert_broadcast!(room, "shouted", |payload| payload.is_binary());
    room.push("push", json!({}));
    refute_push!(room, "pushed", |payload| payload.is_binary());
}

#[tokio::test(start_paused = true)]
async fn an_assertion_waits_100_ms_by_default() {
    let room = room().await;
    let begun = Instant::now();
    refute_push!(room, "note");
    assert_eq!(begun.elapsed().as_millis(), 100);
    refute_push!(room, "note", within: SECOND);
    assert_eq!(begun.elapsed().as_millis(), 1100);
    let later = room.push("later", json!({}));
    assert_reply!(room, later, "ok");
    assert_push!(room, "note", { "n": 1 }, within: SECOND * 2);
    assert_eq!(begun.elapsed().as_millis(), 2100);
}

#[tokio::test]
async fn assertions_also_work_on_a_running_clock() {
    let room = room().await;
    let ping = room.push("ping", json!({}));
    assert_reply!(room, ping, "ok", {}, within: SECOND * 30);
    refute_push!(room, "pushed", within: Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn messages_and_timers_reach_the_channel() {
    let room = room().await;
    let handle = room.handle::<Room>();
    handle.send(Note(7)).await.unwrap();
    assert_push!(room, "note", { "n": 7 });
    let later = room.push("later", json!({}));
    assert_reply!(room, later, "ok");
    advance(SECOND).await;
    assert_push!(room, "note", { "n": 1 });
    room.push("stop", json!({}));
    assert!(matches!(room.exit_reason().await, ExitReason::Normal));
    assert_eq!(handle.send(Note(8)).await, Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn connect_and_id_identify_the_client() {
    let kit = kit();
    let socket = kit.connect(json!({"user": 42, "tags": ["a", true], "n": {"x": null}})).await;
    let socket = socket.unwrap();
    assert_eq!(socket.id(), Some("users:42"));
    let room = socket.join("room:1", json!({"page": 1})).await.unwrap();
    assert_eq!(room.joined().json(), Some(r#"{"page":1}"#));
    let who = room.push("who", json!({}));
    let params = json!({"user": "42", "tags": ["a", "true"], "n": {"x": "null"}});
    assert_reply!(room, who, "ok", { "params": params, "path": "/socket/websocket" });

    let refused = kit.connect(json!({})).await.unwrap_err();
    assert_eq!(refused.to_string(), "refused: the parameter \"user\" is missing");
    assert_eq!(kit.endpoint().snapshot().sockets[0].refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_found_by_its_path_and_its_type() {
    let other = Mount::new(UserSocket).channel::<Room>("*");
    let builder = Endpoint::builder().mount("/first", mount()).mount("/tenant/:name", other);
    let kit = TestEndpoint::of(builder.build().unwrap());
    let asked = http::Request::get("/tenant/acme/websocket").body(()).unwrap();
    let socket = kit.connect_with(json!({"user": 1}), &ConnectInfo::of(&asked)).await.unwrap();
    // Only this one has it.
    let room = socket.join("anything", json!({})).await.unwrap();
    let who = room.push("who", json!({}));
    let params = json!({"user": "1", "name": "acme"});
    assert_reply!(room, who, "ok", { "params": params, "path": "/tenant/acme/websocket" });

    let socket = kit.socket::<UserSocket>("eve", User(json!("eve"), String::new()));
    assert_eq!((socket.id(), kit.endpoint().open_sockets()), (Some("eve"), 2));
    let room = socket.join("room:1", json!({})).await.unwrap();
    let who = room.push("who", json!({}));
    assert_reply!(room, who, "ok", { "params": "eve", "path": "" });
    assert_eq!(kit.endpoint().disconnect("eve"), 1);
    assert_eq!(socket.closed().await, Some(1001));
    assert_eq!(kit.socket::<UserSocket>(None, User(json!(1), String::new())).id(), None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_join_returns_the_clients_error() {
    let (kit, room) = both().await;
    let socket = kit.connect(json!({"user": "ada"})).await.unwrap();
    let refused = socket.join("room:secret", json!({})).await.unwrap_err();
    assert_eq!(refused.json(), json!({"reason": "unauthorized"}));
    assert_eq!(refused.to_string(), r#"the join was refused with {"reason":"unauthorized"}"#);
    let refused = socket.join("other:1", json!({})).await.unwrap_err();
    assert_eq!(refused.json(), json!({"reason": "unmatched topic"}));

    // A crashed join does not count as a crash of a joined channel.
    let crashed = socket.join("room:crash", json!({})).await.unwrap_err();
    assert_eq!(
        crashed.to_string(),
        "the join was refused with {\"reason\":\"join crashed\"}, because it panicked: crash requested"
    );
    refute_push!(room, "pushed");
}

#[tokio::test(start_paused = true)]
async fn a_client_leaves_is_replaced_and_closes() {
    let (kit, room) = both().await;
    let leave = room.leave();
    assert_reply!(room, leave, "ok", {});
    assert_push!(room, "phx_close");
    assert_eq!(room.exit_reason().await.to_string(), "shutdown: left");
    assert_broadcast!(room, "gone", { "reason": "shutdown: left" });

    let socket = kit.connect(json!({"user": "joe"})).await.unwrap();
    let first = socket.join("room:1", json!({})).await.unwrap();
    let second = socket.join("room:1", json!({})).await.unwrap();
    assert_push!(first, "phx_close");
    assert!(matches!(first.exit_reason().await, ExitReason::Killed), "without terminate");
    refute_broadcast!(second, "gone");

    second.close().await;
    assert_broadcast!(second, "gone", { "reason": "shutdown: closed" }, within: Duration::ZERO);
    assert_eq!((socket.closed().await, kit.endpoint().open_sockets()), (Some(1000), 1));
    // A disconnected client sends nothing.
    let ping = second.push("ping", json!({}));
    refute_reply!(second, ping, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_hangs_is_killed_when_its_client_closes() {
    let room = room().await;
    room.push("hang", json!({}));
    let begun = Instant::now();
    room.close().await;
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert!(matches!(room.exit_reason().await, ExitReason::Killed));
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_closed_by_the_endpoint_and_by_an_invalid_message() {
    let (kit, room) = both().await;
    let socket = kit.connect(json!({"user": "joe"})).await.unwrap();
    assert_eq!(kit.endpoint().disconnect("users:ada"), 1);
    assert_eq!(room.exit_reason().await.to_string(), "shutdown: disconnected");
    socket.send("nonsense");
    assert_eq!(socket.closed().await, Some(1011));

    let socket = kit.connect(json!({"user": "eve"})).await.unwrap();
    let report = kit.endpoint().drain(SECOND).await;
    assert_eq!((report.closed, report.aborted), (1, 0));
    assert_eq!(socket.closed().await, Some(1012));
}

#[tokio::test(start_paused = true)]
async fn a_socket_lives_as_long_as_it_is_held() {
    let (kit, room) = both().await;
    sleep(SECOND * 3600).await;
    assert_eq!(kit.endpoint().open_sockets(), 1);
    let listening = kit.subscribe("room:1");
    drop(room);
    assert_broadcast!(listening, "gone", { "reason": "shutdown: closed" }, within: SECOND * 2);
    assert_eq!(kit.endpoint().open_sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn frames_have_the_wire_format() {
    let kit = kit();
    let socket = kit.connect(json!({"user": "ada"})).await.unwrap();
    socket.send(json!(["7", "8", "room:1", "phx_join", {"a": 1}]));
    let joined = json!(["7", "8", "room:1", "phx_reply", {"status": "ok", "response": {"a": 1}}]);
    assert_eq!(socket.frame().await.json(), joined);
    socket.send(WireFrame::Binary(b"\x00\x01\x01\x06\x0479room:1ping\xff".to_vec().into()));
    let pong = WireFrame::Binary(b"\x01\x01\x01\x06\x0279room:1ok\xff".to_vec().into());
    assert_eq!(socket.frame().await, pong);

    // A channel joined like this is not linked to the test.
    socket.send(json!(["7", "9", "room:1", "crash", {}]));
    sleep(SECOND * 2).await;
    let crashed = json!(["7", "7", "room:1", "phx_error", {"reason": "channel_crash"}]);
    let frames: Vec<_> = socket.frames().iter().map(WireFrame::json).collect();
    assert_eq!(frames, [crashed]);
    let room = socket.join("room:1", json!({})).await.unwrap();
    refute_push!(room, "phx_error");
}

#[tokio::test(start_paused = true)]
async fn an_expected_crash_does_not_fail_the_test() {
    let room = room().await;
    room.unlink();
    let crash = room.push("crash", json!({}));
    refute_reply!(room, crash, "ok");
    assert_push!(room, "phx_error", { "reason": "channel_crash" }, within: SECOND);
    assert_eq!(room.exit_reason().await.to_string(), "panicked: crash requested");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the channel on room:1 crashed: panicked: crash requested")]
async fn a_crash_fails_the_next_assertion() {
    let room = room().await;
    let crash = room.push("crash", json!({}));
    assert_reply!(room, crash, "ok");
}

#[tokio::test(start_paused = true)]
#[should_panic(
    expected = "the channel on room:1 crashed: failed: the channel has no event \"what\""
)]
async fn a_crash_fails_a_passing_assertion_on_another_channel() {
    let (kit, room) = both().await;
    let other = kit.subscribe("other");
    room.push("what", json!({}));
    refute_broadcast!(other, "anything");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no push of \"pushed\" on room:1 like { \"n\": 2 } came within 100ms\n\
    in the mailbox:\n  \
    push of \"pushed\" on room:1: {\"n\":1}\n  \
    reply \"ok\" to \"3\" on room:1: {}")]
async fn a_missing_push_fails_with_the_received_messages() {
    let room = room().await;
    room.push("push", json!({"n": 1}));
    room.push("ping", json!({}));
    assert_push!(room, "pushed", { "n": 2 });
}

#[tokio::test(start_paused = true)]
#[should_panic(
    expected = "no push of \"pushed\" on room:1 like Pushed { n: 2, .. } came within 1s"
)]
async fn a_push_with_another_value_fails() {
    let room = room().await;
    room.push("push", json!({"n": 1, "name": "ada"}));
    assert_push!(room, "pushed", Pushed { n: 2, .. }, within: SECOND);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no push of \"pushed\" on room:1 came within 100ms\n\
    in the mailbox:\n  \
    push of \"pushed\" on room:1: {\"of\":\"joe\"}\n  \
    push of \"pushed\" on room:2: {}")]
async fn a_push_to_another_client_or_topic_does_not_match() {
    let (kit, room) = both().await;
    let joe = kit.connect(json!({"user": "joe"})).await.unwrap();
    for topic in ["room:1", "room:2"] {
        let other = joe.join(topic, json!({})).await.unwrap();
        other.push("push", if topic == "room:1" { json!({"of": "joe"}) } else { json!({}) });
    }
    assert_push!(room, "pushed");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no push of \"phx_close\" on room:1 came within 100ms\n\
    the mailbox is empty")]
async fn a_missing_push_reports_an_empty_mailbox() {
    let room = room().await;
    assert_push!(room, "phx_close");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a push of \"pushed\" on room:1 like { \"n\": _ } came: {\"n\":1}")]
async fn refuting_a_received_push_fails() {
    let room = room().await;
    room.push("push", json!({"n": 1}));
    refute_push!(room, "pushed", { "n": _ });
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no reply \"error\" to \"2\" on room:1 came within 100ms\n\
    in the mailbox:\n  reply \"ok\" to \"2\" on room:1: {\"a\":1}")]
async fn a_reply_of_another_status_fails() {
    let room = room().await;
    let ping = room.push("ping", json!({"a": 1}));
    assert_reply!(room, ping, "error");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a reply \"ok\" to \"2\" on room:1 came: {}")]
async fn refuting_a_received_reply_fails() {
    let room = room().await;
    let ping = room.push("ping", json!({}));
    refute_reply!(room, ping, "ok");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no broadcast of \"pushed\" on room:1 came within 100ms\n\
    in the mailbox:\n  push of \"pushed\" on room:1: {}")]
async fn a_push_is_not_a_broadcast() {
    let room = room().await;
    room.push("push", json!({}));
    assert_broadcast!(room, "pushed");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a broadcast of \"shouted\" on room:1 like |payload|")]
async fn refuting_a_received_broadcast_fails() {
    let room = room().await;
    room.push("shout", json!({}));
    refute_broadcast!(room, "shouted", |payload| !payload.is_binary());
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the channel on room:1 has ended: normal")]
async fn a_missing_push_reports_an_ended_channel() {
    let room = room().await;
    room.push("stop", json!({}));
    assert_push!(room, "pushed");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the join of room:never is not answered within 10s, at pipeline-ws-sink")]
async fn a_join_without_a_reply_fails_at_its_call() {
    let socket = kit().connect(json!({"user": "ada"})).await.unwrap();
    let _ = socket.join("room:never", json!({})).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the channel on room:1 has not ended within 10s, at")]
async fn waiting_for_the_end_of_a_live_channel_fails() {
    let room = room().await;
    room.exit_reason().await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "there is no channel Other on room:1")]
async fn a_channel_of_another_type_has_no_handle() {
    struct Other;

    impl Channel for Other {
        type Socket = UserSocket;
        type Config = ();

        async fn join(
            _: &Topic,
            _: Payload,
            _: &mut JoinContext<'_, Self>,
        ) -> Result<Self, JoinError> {
            Ok(Self)
        }
    }

    let room = room().await;
    let _ = room.handle::<Other>();
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "1 messages are lost: too many were waiting")]
async fn more_than_10_000_messages_are_too_many() {
    let (kit, room) = both().await;
    for n in 0..10_001 {
        kit.endpoint().broadcast("lobby", "news", json!({})).unwrap();
        room.push("push", json!({}));
        if n % 100 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    refute_push!(room, "other");
}
