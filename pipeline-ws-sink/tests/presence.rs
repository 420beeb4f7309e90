//! Presence as tracked by channels and received by clients.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Presence, Socket, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    channel_test::{
        TestChannel, TestEndpoint, TestSocket, WireFrame, assert_push, assert_reply, refute_push,
    },
    endpoint::BuildError,
    presence::{PresenceDiff, PresenceError, PresenceList, TrackerOptions},
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use support::cluster::Cluster;
use tokio::{sync::Semaphore, time::sleep};

const T: &str = "room:lobby";

struct UserSocket;

impl Socket for UserSocket {
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        Ok(params.require("user")?.to_owned())
    }
}

/// Tracks its client by name, unless the client only watches, and handles its requests.
struct Room(Presence);

struct Joined {
    device: Option<String>,
}

impl Channel for Room {
    type Socket = UserSocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        let device = params["device"].as_str().map(str::to_owned);
        cx.send_after(Duration::ZERO, Joined { device })?;
        Ok(Self(cx.config().clone()))
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let Self(presence) = self;
        let params: Value = payload.parse()?;
        let key = params["key"].as_str().unwrap_or(cx.assigns());
        let tracked = match event {
            "track" => presence.track(cx, key, &params["meta"]),
            "update" => presence.update(cx, key, &params["meta"]),
            "away" => presence.update_with(cx, key, |meta| {
                meta.insert("status".to_owned(), "away".into());
            }),
            // Reads the presence from inside of the function that changes a meta.
            "asking" => presence.update_with(cx, key, |meta| {
                let other = presence.track(cx, "other", &json!({ "device": "bot" }));
                meta.insert("asked".to_owned(), other.is_ok().into());
                meta.insert("tracked".to_owned(), presence.tracked().into());
            }),
            "twice" => presence.update_with(cx, key, |meta| {
                let inner = presence.update(cx, key, &json!({ "device": "inner" }));
                meta.insert("inner".to_owned(), inner.is_ok().into());
            }),
            "untrack" => {
                presence.untrack(cx, key);
                return Ok(Reply::ok());
            }
            "list" => return Ok(Reply::ok().with(presence.list(cx.topic()).await)),
            "get" => return Ok(Reply::ok().with(presence.get_by_key(cx.topic(), key).await)),
            "stop" => return Err(Stop::normal()),
            "panic" => panic!("requested"),
            other => return Err(Stop::unknown_event(other)),
        };
        Ok(match tracked {
            Ok(reference) => Reply::ok().with(json!({ "ref": reference })),
            Err(error) => Reply::error().with(json!({ "reason": error.to_string() })),
        })
    }
}

impl HandleMessage<Joined> for Room {
    async fn handle_message(
        &mut self,
        Joined { device }: Joined,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        if let Some(device) = device {
            self.0.track(cx, cx.assigns(), &json!({ "device": device }))?;
        }
        cx.push("presence_state", self.0.list(cx.topic()).await)?;
        Ok(())
    }
}

fn kit(presence: &Presence) -> TestEndpoint {
    let sockets = Mount::new(UserSocket).channel_with::<Room>("room:*", presence.clone());
    let endpoint = Endpoint::builder().presence(presence).mount("/socket", sockets);
    TestEndpoint::of(endpoint.build().unwrap())
}

async fn enter(kit: &TestEndpoint, user: &str, device: &str) -> (TestSocket, TestChannel) {
    let socket = kit.connect(json!({ "user": user })).await.unwrap();
    let room = socket.join(T, json!({ "device": device })).await.unwrap();
    (socket, room)
}

/// A client that only watches, and has received the state.
async fn watch(kit: &TestEndpoint) -> (TestSocket, TestChannel) {
    let socket = kit.connect(json!({ "user": "watcher" })).await.unwrap();
    let room = socket.join(T, json!({})).await.unwrap();
    assert_push!(room, "presence_state");
    (socket, room)
}

/// The next diff: joins and leaves, each key with its metas, without their references.
async fn diff(room: &TestChannel) -> (Value, Value) {
    let diff = assert_push!(room, "presence_diff", { "joins": _, "leaves": _ });
    (plain(&diff["joins"]), plain(&diff["leaves"]))
}

/// Keys with their metas, without references.
fn plain(presences: &Value) -> Value {
    let metas = |entry: &Value| -> Value {
        let metas = entry["metas"].as_array().unwrap().iter().map(|meta| {
            assert_eq!(meta["phx_ref"].as_str().unwrap().len(), 16);
            let fields = meta.as_object().unwrap().iter();
            let own = fields.filter(|(name, _)| !name.starts_with("phx_ref"));
            own.map(|(name, value)| (name.clone(), value.clone())).collect::<Value>()
        });
        metas.collect()
    };
    presences.as_object().unwrap().iter().map(|(key, entry)| (key.clone(), metas(entry))).collect()
}

/// The server's list of the topic.
async fn listed(presence: &Presence) -> Value {
    plain(&json!(presence.list(T).await))
}

#[tokio::test(start_paused = true)]
async fn c_183_a_join_receives_the_state_and_is_broadcast() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let socket = kit.connect(json!({ "user": "ada" })).await.unwrap();
    socket.send(json!(["1", "1", T, "phx_join", { "device": "phone" }]));
    sleep(Duration::from_millis(1)).await;
    // In the order on the wire: the reply, then the two in either order, a push and a broadcast.
    let frames: Vec<_> = socket.frames().iter().map(WireFrame::json).collect();
    let [answer, rest @ ..] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(answer[3], "phx_reply");
    let state = rest.iter().find(|frame| frame[3] == "presence_state").unwrap();
    let diff = rest.iter().find(|frame| frame[3] == "presence_diff").unwrap();
    assert_eq!((rest.len(), &state[0], &state[1]), (2, &answer[0], &Value::Null));
    assert_eq!((&diff[0], &diff[1]), (&Value::Null, &Value::Null));
    assert_eq!(plain(&state[4]), json!({ "ada": [{ "device": "phone" }] }));
    assert_eq!(state[4], diff[4]["joins"]);
    assert_eq!(diff[4]["leaves"], json!({}));
}

#[tokio::test(start_paused = true)]
async fn c_184_a_second_device_joins_under_the_same_key_alone() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_phone, first) = enter(&kit, "ada", "phone").await;
    assert_eq!(diff(&first).await, (json!({ "ada": [{ "device": "phone" }] }), json!({})));
    let (_laptop, second) = enter(&kit, "ada", "laptop").await;
    assert_eq!(diff(&first).await, (json!({ "ada": [{ "device": "laptop" }] }), json!({})));
    let state = assert_push!(second, "presence_state", == json!(presence.list(T).await));
    let both = json!({ "ada": [{ "device": "phone" }, { "device": "laptop" }] });
    assert_eq!(plain(&json!(state)), both);
}

#[tokio::test(start_paused = true)]
async fn c_185_another_user_is_broadcast_and_receives_the_state() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_ada, first) = enter(&kit, "ada", "phone").await;
    diff(&first).await;
    let (_ben, second) = enter(&kit, "ben", "laptop").await;
    let came = (json!({ "ben": [{ "device": "laptop" }] }), json!({}));
    assert_eq!(diff(&first).await, came);
    assert_eq!(diff(&second).await, came);
    let both = json!({ "ada": [{ "device": "phone" }], "ben": [{ "device": "laptop" }] });
    let state = assert_push!(second, "presence_state", { "ada": _, "ben": _ });
    assert_eq!(plain(&json!(state)), both);
}

#[tokio::test(start_paused = true)]
async fn c_186_an_update_of_a_meta_is_one_diff_with_the_old_reference() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_ada, room) = enter(&kit, "ada", "phone").await;
    let came: Value = assert_push!(room, "presence_diff", { "leaves": {} });
    let old = &came["joins"]["ada"]["metas"][0];
    let away = room.push("away", json!({}));
    let reply = assert_reply!(room, away, "ok", { "ref": _ });
    let diff =
        assert_push!(room, "presence_diff", { "joins": { "ada": _ }, "leaves": { "ada": _ } });
    let expected = json!({
        "device": "phone", "status": "away", "phx_ref": reply["ref"], "phx_ref_prev": old["phx_ref"],
    });
    assert_eq!(diff["joins"], json!({ "ada": { "metas": [expected] } }));
    assert_eq!(diff["leaves"], json!({ "ada": { "metas": [old] } }));
    refute_push!(room, "presence_diff");
}

#[tokio::test(start_paused = true)]
async fn c_187_a_replacing_meta_contains_nothing_of_the_old_one() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_ada, room) = enter(&kit, "ada", "phone").await;
    diff(&room).await;
    room.push("update", json!({ "meta": { "mood": "good" } }));
    let (joins, leaves) = diff(&room).await;
    assert_eq!(joins, json!({ "ada": [{ "mood": "good" }] }));
    assert_eq!(leaves, json!({ "ada": [{ "device": "phone" }] }));
    let list = presence.list(T).await;
    assert!(list.metas("ada").next().unwrap().contains_key("phx_ref_prev"));
}

#[tokio::test(start_paused = true)]
async fn c_188_of_two_devices_only_the_disconnected_one_leaves() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_phone, first) = enter(&kit, "ada", "phone").await;
    diff(&first).await;
    let (laptop, _second) = enter(&kit, "ada", "laptop").await;
    diff(&first).await;
    laptop.close().await;
    assert_eq!(diff(&first).await, (json!({}), json!({ "ada": [{ "device": "laptop" }] })));
    assert_eq!(listed(&presence).await, json!({ "ada": [{ "device": "phone" }] }));
}

#[tokio::test(start_paused = true)]
async fn c_189_untracking_and_leaving_remove_the_presence() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_watcher, watching) = watch(&kit).await;
    let (_ada, room) = enter(&kit, "ada", "phone").await;
    let gone = (json!({}), json!({ "ada": [{ "device": "phone" }] }));
    diff(&watching).await;
    room.push("untrack", json!({}));
    assert_eq!(diff(&watching).await, gone);
    assert_eq!(listed(&presence).await, json!({}));
    // Untracking again has no effect, and is not broadcast.
    let again = room.push("untrack", json!({}));
    assert_reply!(room, again, "ok");
    refute_push!(watching, "presence_diff");
    room.push("track", json!({ "meta": { "device": "phone" } }));
    diff(&watching).await;
    room.leave();
    assert_eq!(diff(&watching).await, gone);
}

#[tokio::test(start_paused = true)]
async fn c_190_a_tracked_key_cannot_be_tracked_again() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_ada, room) = enter(&kit, "ada", "phone").await;
    diff(&room).await;
    let again = room.push("track", json!({ "meta": {} }));
    let why = assert_reply!(room, again, "error", { "reason": _ });
    assert_eq!(why["reason"], r#""ada" is tracked on "room:lobby" already"#);
    refute_push!(room, "presence_diff");
    // Under another key, or by another channel, it can.
    let other = room.push("track", json!({ "key": "pet", "meta": {} }));
    assert_reply!(room, other, "ok");
    enter(&kit, "ada", "laptop").await;
}

#[tokio::test(start_paused = true)]
async fn c_191_updating_an_untracked_key_fails() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_watcher, room) = watch(&kit).await;
    for event in ["update", "away"] {
        let changed = room.push(event, json!({ "meta": {} }));
        let why = assert_reply!(room, changed, "error", { "reason": _ });
        assert_eq!(why["reason"], r#""watcher" is not tracked on "room:lobby" by this channel"#);
    }
    refute_push!(room, "presence_diff");
}

#[tokio::test(start_paused = true)]
async fn c_192_an_unknown_key_is_not_found() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_ada, room) = enter(&kit, "ada", "phone").await;
    diff(&room).await;
    let absent = room.push("get", json!({ "key": "absent" }));
    assert_reply!(room, absent, "ok", == json!(null));
    let found = room.push("get", json!({}));
    assert_reply!(room, found, "ok", { "metas": [{ "device": "phone", "phx_ref": _ }] });
}

#[tokio::test(start_paused = true)]
async fn c_193_a_watching_client_receives_the_state_and_is_not_listed() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let socket = kit.connect(json!({ "user": "watcher" })).await.unwrap();
    let room = socket.join(T, json!({})).await.unwrap();
    assert_push!(room, "presence_state", == json!({}));
    let (_ada, _) = enter(&kit, "ada", "phone").await;
    diff(&room).await;
    let second = socket.join("room:empty", json!({})).await.unwrap();
    assert_push!(second, "presence_state", == json!({}));
    assert_eq!(listed(&presence).await, json!({ "ada": [{ "device": "phone" }] }));
}

#[tokio::test(start_paused = true)]
async fn c_194_all_keys_of_a_crashed_channel_leave_in_one_diff() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_watcher, watching) = watch(&kit).await;
    let (ada, room) = enter(&kit, "ada", "phone").await;
    diff(&watching).await;
    room.push("track", json!({ "key": "pet", "meta": { "is": "cat" } }));
    diff(&watching).await;
    room.unlink();
    room.push("panic", json!({}));
    room.exit_reason().await;
    let both = json!({ "ada": [{ "device": "phone" }], "pet": [{ "is": "cat" }] });
    assert_eq!(diff(&watching).await, (json!({}), both));
    let frames: Vec<_> = ada.frames().iter().map(WireFrame::json).collect();
    assert_eq!(frames.last().unwrap()[3], "phx_error");
    let leaves = frames.iter().filter(|frame| frame[3] == "presence_diff");
    let mut leaves = leaves.map(|frame| &frame[4]["leaves"]);
    assert!(leaves.all(|leaves| *leaves == json!({})), "it received its own leave: {frames:?}");
}

/// Adds a name to each key, as often as there are permits.
fn named(calls: &Arc<Mutex<Vec<Vec<String>>>>, permits: &Arc<Semaphore>) -> Presence {
    let (calls, permits) = (calls.clone(), permits.clone());
    let fetch = move |_, mut who: PresenceList| {
        let (calls, permits) = (calls.clone(), permits.clone());
        async move {
            permits.acquire().await.unwrap().forget();
            let keys: Vec<_> = who.keys().map(str::to_owned).collect();
            assert!(!keys.contains(&"trouble".to_owned()), "requested");
            for key in &keys {
                who.add(key, "name", key.to_uppercase());
            }
            calls.lock().push(keys);
            who
        }
    };
    Presence::builder().fetch(fetch).build()
}

#[tokio::test(start_paused = true)]
async fn c_195_fetched_data_is_in_states_and_in_diffs() {
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(1000)));
    let presence = named(&calls, &permits);
    let kit = kit(&presence);
    let (ada, room) = enter(&kit, "ada", "phone").await;
    let state = assert_push!(room, "presence_state", { "ada": { "name": "ADA", "metas": _ } });
    assert_push!(room, "presence_diff", { "joins": { "ada": { "name": "ADA", "metas": _ } } });
    assert_eq!(plain(&json!(state)), json!({ "ada": [{ "device": "phone" }] }));
    let (_watcher, watching) = watch(&kit).await;
    ada.close().await;
    assert_push!(watching, "presence_diff", { "leaves": { "ada": { "name": "ADA" } } });
    let entry = presence.get_by_key(T, "ada").await;
    assert_eq!(entry, None);
}

#[tokio::test(start_paused = true)]
async fn fetch_is_batched_and_diffs_wait_for_it_in_order() {
    let (calls, permits) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(Semaphore::new(0)));
    let presence = named(&calls, &permits);
    let kit = kit(&presence);
    let mut watching = kit.endpoint().subscribe(T);
    let mut entered = vec![presence.track_detached(T, "first", &json!({})).unwrap()];
    sleep(Duration::from_secs(1)).await;
    // While fetch is busy with the first, many join, and one of them leaves.
    for n in 0..100 {
        entered.push(presence.track_detached(T, &format!("n{n:02}"), &json!({})).unwrap());
    }
    drop(entered.remove(50));
    permits.add_permits(100);
    for expected in [1, 99] {
        let diff = watching.recv().await.unwrap();
        let diff: Value = diff.payload().parse().unwrap();
        assert_eq!(diff["joins"].as_object().unwrap().len(), expected);
        assert_eq!(diff["leaves"], json!({}));
    }
    let counts: Vec<_> = calls.lock().iter().map(Vec::len).collect();
    assert_eq!(counts, [1, 0, 99, 0], "joins and leaves of two diffs");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_listed_a_presence_during_a_slow_fetch_sees_it_leave() {
    for of_key in [false, true] {
        let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let presence = named(&calls, &permits);
        let kit = kit(&presence);
        let mut watching = kit.endpoint().subscribe(T);
        let _first = presence.track_detached(T, "first", &json!({})).unwrap();
        sleep(Duration::from_secs(1)).await;
        let ada = presence.track_detached(T, "ada", &json!({})).unwrap();
        let lister = presence.clone();
        let listed = tokio::spawn(async move {
            if of_key {
                lister.get_by_key(T, "ada").await.is_some()
            } else {
                lister.list(T).await.get("ada").is_some()
            }
        });
        sleep(Duration::from_secs(1)).await;
        drop(ada);
        permits.add_permits(100);
        assert!(listed.await.unwrap());
        watching.recv().await.unwrap();
        let diff = tokio::time::timeout(Duration::from_secs(60), watching.recv()).await;
        let diff: Value = diff.expect("ada leaves").unwrap().payload().parse().unwrap();
        assert_eq!(plain(&diff["leaves"]), json!({ "ada": [{}] }), "of one key: {of_key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_diff_is_sent_without_fetched_data_if_fetch_panics() {
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(1000)));
    let presence = named(&calls, &permits);
    let kit = kit(&presence);
    let mut watching = kit.endpoint().subscribe(T);
    let _trouble = presence.track_detached(T, "trouble", &json!({})).unwrap();
    let diff: Value = watching.recv().await.unwrap().payload().parse().unwrap();
    assert_eq!(plain(&diff["joins"]), json!({ "trouble": [{}] }));
    // And later diffs work.
    let _ada = presence.track_detached("room:other", "ada", &json!({})).unwrap();
    assert_eq!(json!(presence.get_by_key("room:other", "ada").await)["name"], "ADA");
}

#[tokio::test(start_paused = true)]
async fn on_diff_is_called_after_each_diff_was_sent_to_the_clients() {
    let diffs = Arc::<Mutex<Vec<PresenceDiff>>>::default();
    let note = diffs.clone();
    let on_diff = move |diff: &PresenceDiff| {
        note.lock().push(diff.clone());
        assert!(diff.joins.get("trouble").is_none(), "requested");
    };
    let presence = Presence::builder().on_diff(on_diff).build();
    let kit = kit(&presence);
    let mut watching = kit.endpoint().subscribe(T);
    drop(presence.track_detached(T, "trouble", &json!({})).unwrap());
    let _ada = presence.track_detached(T, "ada", &json!({ "device": "bot" })).unwrap();
    let diffs: Vec<_> = diffs.lock().iter().map(|diff| json!(diff)).collect();
    assert_eq!(diffs.len(), 3);
    for diff in diffs {
        assert_eq!(watching.recv().await.unwrap().payload().parse::<Value>().unwrap(), diff);
    }
}

#[tokio::test(start_paused = true)]
async fn a_diff_names_the_users_who_have_come_and_who_have_gone() {
    let seen = Arc::<Mutex<Vec<(String, String)>>>::default();
    let note = seen.clone();
    let on_diff = move |diff: &PresenceDiff| {
        note.lock().push((diff.first_joins.join(" "), diff.last_leaves.join(" ")));
    };
    let presence = Presence::builder().on_diff(on_diff).build();
    let _kit = kit(&presence);
    let track = |key: &str, device: &str| {
        presence.track_detached(T, key, &json!({ "device": device })).unwrap()
    };
    let phone = track("ada", "phone");
    let laptop = track("ada", "laptop");
    let ben = track("ben", "phone");
    laptop.update(&json!({ "device": "laptop", "away": true })).unwrap();
    drop(phone);
    drop(laptop);
    drop(ben);
    let come = |who: &str| (who.to_owned(), String::new());
    let gone = |who: &str| (String::new(), who.to_owned());
    let expected =
        [come("ada"), come(""), come("ben"), come(""), gone(""), gone("ada"), gone("ben")];
    assert_eq!(*seen.lock(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_presence_leaves_however_its_channel_ends() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_watcher, watching) = watch(&kit).await;
    for how in ["leave", "stop", "panic", "close", "disconnect", "again"] {
        let (socket, room) = enter(&kit, "ada", how).await;
        assert_eq!(diff(&watching).await.0, json!({ "ada": [{ "device": how }] }));
        room.unlink();
        match how {
            "leave" => drop(room.leave()),
            "close" => socket.close().await,
            "disconnect" => drop(room.push("panic", json!({}))),
            "again" => drop(socket.join(T, json!({})).await.unwrap()),
            event => drop(room.push(event, json!({}))),
        }
        assert_eq!(diff(&watching).await.1, json!({ "ada": [{ "device": how }] }), "{how}");
        assert_eq!(presence.tracked(), 0, "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_are_listed_under_their_keys() {
    let presence = Presence::new();
    let _kit = kit(&presence);
    let entered: Vec<_> = (0..1000)
        .map(|n| presence.track_detached(T, &format!("u{}", n % 500), &json!({ "n": n })).unwrap())
        .collect();
    let list = presence.list(T).await;
    assert_eq!((list.len(), presence.tracked()), (500, 1000));
    let metas = list.metas("u7").map(|meta| meta["n"].as_u64().unwrap());
    assert_eq!(metas.collect::<Vec<_>>(), [7, 507]);
    drop(entered);
    assert!(presence.list(T).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nodes_replicate_presences_and_remove_those_of_a_lost_node() {
    let cluster = Cluster::default();
    let node = |name: &str| {
        let presence = Presence::new();
        let sockets = Mount::new(UserSocket).channel_with::<Room>("room:*", presence.clone());
        let builder = Endpoint::builder().adapter(cluster.node(name)).presence(&presence);
        let endpoint = builder.mount("/socket", sockets).build().unwrap();
        (presence, TestEndpoint::of(endpoint))
    };
    let ((here, near), (there, far)) = (node("here"), node("there"));
    let (_ben, watching) = enter(&far, "ben", "laptop").await;
    diff(&watching).await;
    let (ada, room) = enter(&near, "ada", "phone").await;
    let came = (json!({ "ada": [{ "device": "phone" }] }), json!({}));
    assert_eq!(diff(&room).await, came);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(diff(&watching).await, came);
    assert_eq!(listed(&here).await, listed(&there).await);
    assert_eq!(there.tracked(), 2);

    ada.close().await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(diff(&watching).await, (json!({}), json!({ "ada": [{ "device": "phone" }] })));

    // The presences of a silent node leave after a while, and are back when it is heard again.
    let (_eve, _room) = enter(&near, "eve", "tv").await;
    sleep(Duration::from_secs(2)).await;
    let eve = json!({ "eve": [{ "device": "tv" }] });
    assert_eq!(diff(&watching).await.0, eve);
    cluster.down(true);
    sleep(Duration::from_secs(32)).await;
    assert_eq!(diff(&watching).await, (json!({}), eve.clone()));
    cluster.down(false);
    sleep(Duration::from_secs(16)).await;
    assert_eq!(diff(&watching).await, (eve, json!({})));
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_announces_it_if_configured() {
    let cluster = Cluster::default();
    let node = |name: &str| {
        let options = TrackerOptions::new().permdown_on_shutdown(true);
        let presence = Presence::builder().tracker(options).build();
        let builder = Endpoint::builder().adapter(cluster.node(name)).presence(&presence);
        (presence.clone(), builder.build().unwrap())
    };
    let ((here, near), (there, _far)) = (node("here"), node("there"));
    let _bot = here.track_detached(T, "bot", &json!({})).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(there.tracked(), 1);
    near.drain(Duration::from_secs(1)).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(there.tracked(), 0);
}

#[tokio::test(start_paused = true)]
async fn replication_messages_are_not_sent_to_clients() {
    let presence = Presence::new();
    let sockets = Mount::new(UserSocket).channel_with::<Room>("*", presence.clone());
    let kit = TestEndpoint::of(Endpoint::builder().mount("/socket", sockets).build().unwrap());
    let socket = kit.connect(json!({ "user": "eve" })).await.unwrap();
    let refused = socket.join("phx_presence:presence", json!({})).await.unwrap_err();
    assert_eq!(refused.json(), json!({ "reason": "unmatched topic" }));
}

#[tokio::test]
async fn invalid_calls_are_refused_with_a_reason() {
    let presence = Presence::new();
    let refused = presence.track_detached(T, "ada", &json!({})).unwrap_err();
    assert!(matches!(refused, PresenceError::NotAttached), "{refused}");
    let _endpoint = Endpoint::builder().presence(&presence).build().unwrap();
    let refused = presence.track_detached(T, "ada", &json!([])).unwrap_err();
    assert!(matches!(refused, PresenceError::NotAnObject), "{refused}");

    let taken = Endpoint::builder().presence(&presence).build().unwrap_err();
    assert_eq!(taken, BuildError::PresenceTaken { name: "presence".into() });
    // A presence that was given along with it is still free.
    let free = Presence::builder().name("free").build();
    Endpoint::builder().presence(&free).presence(&presence).build().unwrap_err();
    let endpoint = Endpoint::builder().presence(&free).build().unwrap();
    drop(endpoint);
    let refused = free.track_detached(T, "ada", &json!({})).unwrap_err();
    assert!(matches!(refused, PresenceError::NotAttached), "{refused}");

    let twins = [Presence::new(), Presence::new()];
    let twins = Endpoint::builder().presence(&twins[0]).presence(&twins[1]).build().unwrap_err();
    assert_eq!(twins, BuildError::PresenceName { name: "presence".into() });
    let options = TrackerOptions::new().down_period(Duration::ZERO);
    let never = Presence::builder().tracker(options).build();
    let refused = Endpoint::builder().presence(&never).build().unwrap_err();
    assert!(matches!(refused, BuildError::Tracker(_)), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_presence_that_is_hidden_and_back_during_a_slow_fetch_stays_for_clients() {
    let cluster = Cluster::default();
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(1000)));
    let (near, far) = (Presence::new(), named(&calls, &permits));
    let node = |name: &str, presence: &Presence| {
        Endpoint::builder().adapter(cluster.node(name)).presence(presence).build().unwrap()
    };
    let (_here, there) = (node("here", &near), node("there", &far));
    let mut watching = there.subscribe(T);
    let _ada = near.track_detached(T, "ada", &json!({})).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(watching.recv().await.unwrap().event(), "presence_diff");
    // fetch is busy for as long as the network is down, and longer.
    permits.forget_permits(1000);
    let _bot = far.track_detached("room:other", "bot", &json!({})).unwrap();
    cluster.down(true);
    sleep(Duration::from_secs(32)).await;
    assert_eq!(far.tracked(), 1, "ada is hidden");
    cluster.down(false);
    sleep(Duration::from_secs(16)).await;
    assert_eq!(far.tracked(), 2, "ada is back");
    let _ben = far.track_detached(T, "ben", &json!({})).unwrap();
    permits.add_permits(1000);
    // Clients apply joins before leaves: if she were in both, she would be gone for them.
    let diff: Value = watching.recv().await.unwrap().payload().parse().unwrap();
    assert_eq!((plain(&diff["joins"]), &diff["leaves"]), (json!({ "ben": [{}] }), &json!({})));
}

#[tokio::test]
async fn an_update_function_may_use_the_presence() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_socket, room) = enter(&kit, "ada", "phone").await;
    assert_push!(room, "presence_state");
    let asked = room.push("asking", json!({}));
    assert_reply!(room, asked, "ok", { "ref": _ });
    let ada = json!([{ "device": "phone", "asked": true, "tracked": 2 }]);
    assert_eq!(listed(&presence).await, json!({ "ada": ada, "other": [{ "device": "bot" }] }));
}

#[tokio::test]
async fn an_update_of_the_same_key_inside_the_function_is_kept_and_broadcast() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let (_socket, room) = enter(&kit, "ada", "phone").await;
    assert_push!(room, "presence_state");
    let reason = r#"the meta of "ada" on "room:lobby" was changed while update_with ran"#;
    let twice = room.push("twice", json!({}));
    let reply = assert_reply!(room, twice, "error", { "reason": _ });
    assert_eq!(reply["reason"], reason);
    assert_eq!(listed(&presence).await, json!({ "ada": [{ "device": "inner" }] }));
}

/// A meta whose serialization reads the presence.
struct Asking(Presence);

impl serde::Serialize for Asking {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({ "tracked": self.0.tracked() }).serialize(serializer)
    }
}

#[tokio::test]
async fn a_meta_may_read_the_presence_while_it_is_serialized() {
    let presence = Presence::new();
    let _kit = kit(&presence);
    let bot = presence.track_detached(T, "bot", &Asking(presence.clone())).unwrap();
    bot.update(&Asking(presence.clone())).unwrap();
    assert_eq!(listed(&presence).await, json!({ "bot": [{ "tracked": 1 }] }));
}

/// Tasks subscribed to the topic: more than receive a change at once.
fn many_listeners(kit: &TestEndpoint) -> Vec<pipeline_ws_sink::pubsub::TopicSubscription> {
    (0..150).map(|_| kit.endpoint().subscribe(T)).collect()
}

#[tokio::test]
async fn simultaneous_changes_with_many_subscribers_are_sent_in_one_diff() {
    let presence = Presence::new();
    let kit = kit(&presence);
    let mut listeners = many_listeners(&kit);
    let user = |n: u32| presence.track_detached(T, &format!("user:{n}"), &json!({})).unwrap();
    let _users: Vec<_> = (0..500).map(user).collect();
    let nothing = futures::FutureExt::now_or_never(listeners[0].recv());
    assert!(nothing.is_none(), "the caller does not send 500 diffs to 150 tasks");
    for listener in &mut listeners {
        let diff: Value = listener.recv().await.unwrap().payload().parse().unwrap();
        assert_eq!(diff["joins"].as_object().unwrap().len(), 500);
    }
    let _last = user(500);
    let diff: Value = listeners[0].recv().await.unwrap().payload().parse().unwrap();
    assert_eq!(diff["joins"].as_object().unwrap().len(), 1, "and there are no more");
}

#[tokio::test]
async fn a_caller_does_not_send_the_changes_of_others_endlessly() {
    // Each change causes the next one, on another topic.
    const CHANGES: usize = 100;
    let made = Arc::<Mutex<Vec<_>>>::default();
    let next = Arc::<std::sync::OnceLock<Presence>>::default();
    let (mine, making) = (made.clone(), next.clone());
    let change = move |_: &PresenceDiff| {
        let count = mine.lock().len();
        if count < CHANGES {
            let tracked =
                making.get().unwrap().track_detached(&format!("t:{count}"), "ada", &json!({}));
            mine.lock().push(tracked.unwrap());
        }
    };
    let presence = Presence::builder().on_diff(change).build();
    assert!(next.set(presence.clone()).is_ok());
    let _kit = kit(&presence);
    let _first = presence.track_detached(T, "ada", &json!({})).unwrap();
    let at_once = made.lock().len();
    assert!(at_once < 10, "the caller sent {at_once} changes of others");
    while made.lock().len() < CHANGES {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn concurrent_requests_of_a_long_list_share_it() {
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(1_000)));
    let presence = named(&calls, &permits);
    let _kit = kit(&presence);
    let user = |n: u32| presence.track_detached(T, &format!("user:{n}"), &json!({})).unwrap();
    let _users: Vec<_> = (0..150).map(user).collect();
    while calls.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    let before = calls.lock().len();
    let lists = futures::future::join_all((0..100).map(|_| presence.list(T))).await;
    assert!(lists.iter().all(|list| list.len() == 150 && *list == lists[0]));
    assert_eq!(calls.lock().len() - before, 1, "the database is queried once");
    let (stale, _late) = (presence.list(T).await, user(150));
    assert_eq!((stale.len(), presence.list(T).await.len()), (150, 151));
}

#[tokio::test]
async fn other_tasks_run_between_two_replies_with_a_long_list() {
    let presence = Presence::new();
    let _kit = kit(&presence);
    let user = |n: u32| presence.track_detached(T, &format!("user:{n}"), &json!({})).unwrap();
    let _users: Vec<_> = (0..150).map(user).collect();
    let at_a_time = std::thread::available_parallelism().unwrap().get().div_ceil(2);
    let mut lists = tokio::task::JoinSet::new();
    let given = Arc::<Mutex<usize>>::default();
    for _ in 0..at_a_time * 20 {
        let (presence, given) = (presence.clone(), given.clone());
        lists.spawn(async move {
            presence.list(T).await;
            *given.lock() += 1;
        });
    }
    let mut seen = 0;
    while seen < at_a_time * 20 {
        tokio::task::yield_now().await;
        let now = *given.lock();
        assert!(now - seen <= at_a_time * 2, "{} were given in one go", now - seen);
        seen = now;
    }
}
