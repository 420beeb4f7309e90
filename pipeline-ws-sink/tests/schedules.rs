//! The promised orders of channels and presences, and the end of an endpoint, over real connections
//! and in random schedules on several threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use pipeline_test_support::{Client, PATIENCE, Schedule, on_any_schedule};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Presence, Socket, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    presence::{PresenceDiff, PresenceList},
    pubsub::TopicSubscription,
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use support::server::Server;
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::Message;

const T: &str = "room:lobby";

/// The number of a client's events behind each join.
const EVENTS: u64 = 10;

/// The number of messages of a task to each channel.
const TOLD: u64 = 10;

const SENDERS: u64 = 2;

/// The number of broadcasts of each sender.
const NEWS: u64 = 30;

/// Accepts every client, sometimes after a while.
struct AnySocket(Mutex<Schedule>);

impl Socket for AnySocket {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        let mut schedule = self.0.lock().fork();
        for _ in 0..schedule.pick(..4) {
            schedule.pause().await;
        }
        Ok(())
    }
}

/// Asserts the order of its events and messages, and pauses between its steps.
struct Room {
    name: String,
    schedule: Schedule,
    events: u64,
    told: u64,
}

/// A numbered message of a task.
struct Told(u64);

impl Channel for Room {
    type Socket = AnySocket;
    type Config = ();

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        let mut schedule = Schedule::new(params["seed"].as_u64().unwrap_or_default());
        let (handle, mut telling) = (cx.handle(), schedule.fork());
        // Messages of a task wait for the join, and end with the channel.
        tokio::spawn(async move {
            for number in 0..TOLD {
                if handle.send(Told(number)).await.is_err() {
                    return;
                }
                telling.pause().await;
            }
        });
        for _ in 0..schedule.pick(..4) {
            schedule.pause().await;
        }
        let name = params["name"].as_str().unwrap_or_default().to_owned();
        Ok(Self { name, schedule, events: 0, told: 0 })
    }

    async fn handle_in(
        &mut self,
        _: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let params: Value = payload.parse()?;
        let number = params["number"].as_u64();
        assert_eq!(number, Some(self.events), "events are handled in order");
        self.events += 1;
        cx.push("echo", json!({ "number": number }))?;
        self.schedule.pause().await;
        cx.broadcast("shout", json!({ "sender": self.name, "number": number }))?;
        self.schedule.pause().await;
        Ok(Reply::ok().with(json!({ "number": number })))
    }
}

impl HandleMessage<Told> for Room {
    async fn handle_message(
        &mut self,
        Told(number): Told,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        assert_eq!(number, self.told, "messages are handled in order");
        self.told += 1;
        self.schedule.pause().await;
        Ok(cx.push("told", json!({ "number": number }))?)
    }
}

fn endpoint(schedule: &mut Schedule) -> pipeline_ws_sink::endpoint::EndpointBuilder {
    let socket = AnySocket(Mutex::new(schedule.fork()));
    Endpoint::builder().mount("/socket", Mount::new(socket).channel::<Room>("room:*"))
}

/// What a client has received until now.
#[derive(Default)]
struct Received {
    /// The current join, by its reference.
    join: u64,
    /// Whether the channel before this one has ended.
    former_ended: bool,
    /// The numbers that come next: of pushes, of replies, and of messages of a task.
    echo: u64,
    reply: u64,
    told: u64,
    /// The next number of the own broadcasts, and whether it may come.
    shouts: HashMap<String, Vec<u64>>,
    news: HashMap<u64, Vec<u64>>,
}

impl Received {
    /// Asserts that a message may come next. Returns whether it is the last.
    fn take(&mut self, message: &Value) -> bool {
        let [join_ref, reference, topic, event, payload] = message.as_array().unwrap().as_slice()
        else {
            panic!("{message}")
        };
        assert_eq!(topic, T);
        let join = join_ref.as_str().map(|join| join.parse::<u64>().unwrap());
        let number = || payload["number"].as_u64().unwrap();
        let Some(join) = join else {
            assert!(self.join > 0, "{message} before the reply to the first join");
            match event.as_str().unwrap() {
                "news" => {
                    let sender = payload["sender"].as_u64().unwrap();
                    self.news.entry(sender).or_default().push(number());
                }
                "shout" => {
                    let sender = payload["sender"].as_str().unwrap().to_owned();
                    self.shouts.entry(sender).or_default().push(number());
                }
                "over" => return true,
                _ => panic!("{message}"),
            }
            return false;
        };
        match event.as_str().unwrap() {
            "phx_reply" if reference == join_ref => {
                assert_eq!((payload["status"].as_str(), join), (Some("ok"), self.join + 1));
                let former_ended = self.join == 0;
                let (shouts, news) =
                    (std::mem::take(&mut self.shouts), std::mem::take(&mut self.news));
                *self = Self { join, former_ended, shouts, news, ..Self::default() };
            }
            "phx_close" => {
                assert!(join + 1 == self.join && !self.former_ended, "{message}");
                self.former_ended = true;
            }
            event => {
                assert!(join == self.join && self.former_ended, "{message} of another channel");
                let next = match event {
                    "echo" => &mut self.echo,
                    "told" => &mut self.told,
                    "phx_reply" => {
                        assert!(self.reply < self.echo, "a reply before the push: {message}");
                        &mut self.reply
                    }
                    _ => panic!("{message}"),
                };
                let number = payload["number"].as_u64();
                let number = number.or_else(|| payload["response"]["number"].as_u64());
                assert_eq!(number, Some(*next), "{message}");
                *next += 1;
            }
        }
        false
    }

    fn is_complete(&self, join: u64) -> bool {
        (self.join, self.echo, self.reply, self.told) == (join, EVENTS, EVENTS, TOLD)
    }
}

/// A client that joins, sometimes again, sends events without waiting, and receives until the end.
async fn visit(client: Client, name: String, done: mpsc::Sender<()>, mut schedule: Schedule) {
    let (mut sink, mut stream) = client.stream.split();
    let (joins, mut sending) = (schedule.pick(1..=3) as u64, schedule.fork());
    let sender = name.clone();
    let sending = async move {
        for join in 1..=joins {
            let join_ref = join.to_string();
            let params = json!({ "name": sender, "seed": sending.pick(..) });
            let message = json!([join_ref, join_ref, T, "phx_join", params]);
            sink.send(Message::text(message.to_string())).await.unwrap();
            // An earlier join ends at any place.
            let events = if join == joins { EVENTS } else { sending.pick(..5) as u64 };
            for number in 0..events {
                sending.pause().await;
                let reference = format!("{join}-{number}");
                let message = json!([join_ref, reference, T, "event", { "number": number }]);
                sink.send(Message::text(message.to_string())).await.unwrap();
            }
        }
        sink
    };
    let receiving = async move {
        let (mut received, mut is_complete) = (Received::default(), false);
        loop {
            let message = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
            let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            if received.take(&message) {
                break;
            }
            if !is_complete && received.is_complete(joins) {
                is_complete = true;
                done.send(()).await.unwrap();
            }
            schedule.pause().await;
        }
        assert!(is_complete);
        received
    };
    let (received, _sink) = tokio::join!(receiving, sending);
    for (sender, numbers) in &received.news {
        let from = numbers[0];
        let expected: Vec<u64> = (from..NEWS).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?} of {sender}");
        assert!(joins > 1 || *numbers == expected, "{numbers:?} of {sender}");
    }
    for (sender, numbers) in &received.shouts {
        let falls = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count();
        assert!(falls <= 2, "{numbers:?} of {sender}, whose three channels count from 0");
    }
    let own = &received.shouts[&name];
    assert!(own.ends_with(&(0..EVENTS).collect::<Vec<_>>()), "{own:?}");
}

async fn channels(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let server = Server::start(endpoint(&mut schedule)).await;
    let (done, mut all_done) = mpsc::channel(8);
    let clients: Vec<_> = (0..schedule.pick(1..=3))
        .map(|n| {
            let (name, url, done) = (n.to_string(), server.url("vsn=2.0.0"), done.clone());
            let schedule = schedule.fork();
            tokio::spawn(async move {
                let client = pipeline_test_support::connect(&url).await.unwrap();
                visit(client, name, done, schedule).await;
            })
        })
        .collect();
    drop(done);
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (endpoint, mut schedule) = (server.endpoint.clone(), schedule.fork());
            tokio::spawn(async move {
                for number in 0..NEWS {
                    let news = json!({ "sender": sender, "number": number });
                    endpoint.broadcast(T, "news", news).unwrap();
                    schedule.pause().await;
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    for _ in &clients {
        let done = timeout(PATIENCE, all_done.recv()).await;
        // A client that has failed says why.
        if !matches!(done, Ok(Some(()))) {
            break;
        }
    }
    server.endpoint.broadcast(T, "over", json!({})).unwrap();
    for client in clients {
        client.await.unwrap();
    }
}

#[test]
fn events_replies_pushes_and_broadcasts_keep_their_orders_whichever_threads_run_a_channel() {
    on_any_schedule(60, channels);
}

/// Clients that connect while a drain begins. Returns how each ended: refused, or closed with a code.
async fn connect_and_drain(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let server = Server::start(endpoint(&mut schedule)).await;
    let connected = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..schedule.pick(1..=8))
        .map(|_| {
            let (url, connected) = (server.url("vsn=2.0.0"), connected.clone());
            let mut schedule = schedule.fork();
            tokio::spawn(async move {
                for _ in 0..schedule.pick(..10) {
                    schedule.pause().await;
                }
                match pipeline_test_support::connect(&url).await {
                    Err(status) => assert_eq!(status, 503),
                    Ok(mut client) => {
                        connected.fetch_add(1, SeqCst);
                        assert_eq!(client.closed().await, 1012);
                    }
                }
            })
        })
        .collect();
    for _ in 0..schedule.pick(..40) {
        schedule.pause().await;
    }
    let report = server.endpoint.drain(PATIENCE).await;
    let snapshot = server.endpoint.snapshot();
    assert!(snapshot.draining && report.aborted == 0, "{report:?}");
    for client in clients {
        timeout(PATIENCE, client).await.expect("no client stays").unwrap();
    }
    server.open_sockets(0).await;
    assert!(report.closed <= connected.load(SeqCst), "{report:?}");
    let mounted = &server.endpoint.snapshot().sockets[0];
    assert_eq!((mounted.open, mounted.refused), (0, 0));
    assert!(server.try_connect("vsn=2.0.0").await.is_err(), "it stays closed");
}

#[test]
fn a_client_that_connects_while_a_drain_begins_is_refused_or_closed_and_never_left_open() {
    on_any_schedule(100, connect_and_drain);
}

/// The references of the present metas, as a client knows them that applies diffs to a list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present(BTreeSet<String>);

fn references(list: &PresenceList) -> Vec<String> {
    let of_key = |key: &str| -> Vec<String> {
        list.metas(key).map(|meta| meta["phx_ref"].as_str().unwrap().to_owned()).collect()
    };
    list.keys().flat_map(of_key).collect()
}

impl Present {
    /// Applies a diff. With `exact`, it knows every meta from its join on.
    fn apply(&mut self, diff: &Value, exact: bool) {
        let references = |side: &str| -> Vec<String> {
            let metas = diff[side].as_object().unwrap().values();
            let metas = metas.flat_map(|key| key["metas"].as_array().unwrap());
            metas.map(|meta| meta["phx_ref"].as_str().unwrap().to_owned()).collect()
        };
        for joined in references("joins") {
            assert!(self.0.insert(joined.clone()) || !exact, "{joined} joins twice");
        }
        for left in references("leaves") {
            assert!(self.0.remove(&left) || !exact, "{left} leaves before its join");
        }
    }
}

/// A client with a list of any time, to which it applies the diffs.
async fn follow(
    presence: &Presence,
    mut diffs: TopicSubscription,
    lists: bool,
    schedule: &mut Schedule,
    is_over: &mpsc::Sender<()>,
) -> (Present, TopicSubscription) {
    let mut present = Present::default();
    if lists {
        for _ in 0..schedule.pick(..20) {
            schedule.pause().await;
        }
        present.0.extend(references(&presence.list(T).await));
    }
    while !is_over.is_closed() {
        tokio::select! {
            diff = diffs.recv() => present.apply(&diff.unwrap().payload().parse().unwrap(), !lists),
            () = is_over.closed() => {}
        }
        schedule.pause().await;
    }
    (present, diffs)
}

async fn presences(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let told = Arc::<Mutex<Vec<Value>>>::default();
    let note = told.clone();
    let mut builder = Presence::builder().on_diff(move |diff: &PresenceDiff| {
        note.lock().push(json!(diff));
    });
    if schedule.once_in(2) {
        let fetching = Mutex::new(schedule.fork());
        builder = builder.fetch(move |_, who| {
            let mut schedule = fetching.lock().fork();
            async move {
                schedule.pause().await;
                who
            }
        });
    }
    let presence = builder.build();
    let endpoint = Endpoint::builder().presence(&presence).build().unwrap();
    let mut first = endpoint.subscribe(T);
    let (over, is_over) = mpsc::channel::<()>(1);
    let followers: Vec<_> = [false, true, true]
        .into_iter()
        .map(|lists| {
            let (presence, over) = (presence.clone(), over.clone());
            let (diffs, mut schedule) = (endpoint.subscribe(T), schedule.fork());
            tokio::spawn(async move { follow(&presence, diffs, lists, &mut schedule, &over).await })
        })
        .collect();
    let visitors: Vec<_> = (0..3)
        .map(|n| {
            let (presence, mut schedule) = (presence.clone(), schedule.fork());
            tokio::spawn(async move {
                let mut stays = Vec::new();
                for visit in 0..10 {
                    let key = format!("{}", schedule.pick(n..n + 2));
                    let meta = json!({ "visit": visit });
                    let guard = presence.track_detached(T, &key, &meta).unwrap();
                    schedule.pause().await;
                    if schedule.once_in(3) {
                        guard.update(&json!({ "visit": visit, "again": true })).unwrap();
                        schedule.pause().await;
                    }
                    if schedule.once_in(4) {
                        stays.push(guard);
                    }
                }
                stays
            })
        })
        .collect();
    let mut staying = Vec::new();
    for visitor in visitors {
        staying.extend(timeout(PATIENCE, visitor).await.unwrap().unwrap());
    }
    // All diffs of earlier changes are sent before this one's.
    let _last = presence.track_detached(T, "last", &json!({})).unwrap();
    let mut sent = Vec::new();
    loop {
        let diff = timeout(PATIENCE, first.recv()).await.expect("the last diff").unwrap();
        let diff: Value = diff.payload().parse().unwrap();
        let is_last = !diff["joins"]["last"].is_null();
        sent.push(diff);
        if is_last {
            break;
        }
    }
    let listed: BTreeSet<_> = references(&presence.list(T).await).into_iter().collect();
    assert_eq!(listed.len(), staying.len() + 1);
    pipeline_test_support::eventually(|| told.lock().len() == sent.len()).await;
    assert_eq!(*told.lock(), sent, "on_diff is called in the order of the diffs");
    drop(is_over);
    for follower in followers {
        let (mut present, mut diffs) = follower.await.unwrap();
        while let Some(diff) = futures::FutureExt::now_or_never(diffs.recv()) {
            present.apply(&diff.unwrap().payload().parse().unwrap(), false);
        }
        assert_eq!(present.0, listed);
    }
    drop(staying);
    timeout(Duration::from_secs(30), async {
        while presence.tracked() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[test]
fn diffs_are_sent_in_the_order_of_the_changes_however_many_tasks_make_them() {
    on_any_schedule(200, presences);
}
