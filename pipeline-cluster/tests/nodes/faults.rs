//! Nodes and servers that fail, and what the others and their clients see of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    process::Child,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_cluster::Gap;
use pipeline_test_support::{
    PATIENCE, Way,
    servers::{Kind, Server},
};
use pipeline_ws_sink::{
    Endpoint, Presence,
    presence::{PresenceDiff, PresenceGuard, TrackerOptions},
    pubsub::Adapter,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Node, Stalls, T, eventually, next, noticed, options, options_of, patient_tracker, spawn,
    tracker, within,
};

/// A node with a user, whose key is its name.
struct Present {
    node: Node,
    presence: Presence,
    /// What its clients see, in order: `+ada` has joined, `-ada` has left.
    told: Arc<Mutex<Vec<String>>>,
    _user: PresenceGuard,
}

impl Present {
    async fn start(url: &str, name: &str, tracker: TrackerOptions) -> Self {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let tell = told.clone();
        let tell = move |diff: &PresenceDiff| {
            let left = diff.leaves.keys().map(|key| format!("-{key}"));
            let joined = diff.joins.keys().map(|key| format!("+{key}"));
            tell.lock().extend(left.chain(joined));
        };
        let presence = Presence::builder().tracker(tracker).on_diff(tell).build();
        let builder = Endpoint::builder().presence(&presence);
        let node = Node::at(url, options(name), builder).await;
        within(node.cluster.connected()).await;
        let user = presence.track_detached(T, name, &json!({})).unwrap();
        Self { node, presence, told, _user: user }
    }

    async fn lists(&self) -> Vec<String> {
        self.presence.list(T).await.keys().map(str::to_owned).collect()
    }

    /// Waits until these users are listed.
    async fn listing(&self, users: &[&str]) {
        eventually(async || self.lists().await == users).await;
    }

    /// Waits until clients have seen as much, and checks that it is this, in any order. A diff comes a
    /// moment after the list.
    async fn tells(&self, expected: &[&str]) {
        eventually(async || self.told.lock().len() >= expected.len()).await;
        let mut told = std::mem::take(&mut *self.told.lock());
        told.sort_unstable();
        assert_eq!(told, expected, "at {}", self.node.cluster.node());
    }
}

/// One node is cut off from the server, and comes back.
pub async fn netsplit(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let (proxy, direct) = (Way::to(server.port()).await, server.url());
    let through = direct.replace(&server.port().to_string(), &proxy.port.to_string());
    let one = Present::start(&direct, "one", tracker()).await;
    let two = Present::start(&direct, "two", tracker()).await;
    let far = Present::start(&through, "far", tracker()).await;
    let all = ["far", "one", "two"];
    for node in [&one, &two, &far] {
        node.listing(&all).await;
        node.tells(&["+far", "+one", "+two"]).await;
    }
    let mut at_one = one.node.subscribe(T).await;
    let mut at_far = far.node.subscribe(T).await;
    let mut said = async |of: &str, n: u64| {
        let at = if of == "one" { &mut at_one } else { &mut at_far };
        let said = async {
            loop {
                let (event, payload) = next(at).await;
                if event == "said" {
                    return payload["n"].as_u64().unwrap();
                }
            }
        };
        assert_eq!(within(said).await, n, "at {of}");
    };
    one.node.say(T, 1);
    said("one", 1).await;
    said("far", 1).await;
    let mut gaps = far.node.cluster.gaps();

    proxy.cut();
    one.listing(&["one", "two"]).await;
    two.listing(&["one", "two"]).await;
    far.listing(&["far"]).await;
    one.tells(&["-far"]).await;
    two.tells(&["-far"]).await;
    far.tells(&["-one", "-two"]).await;
    one.node.say(T, 2);
    said("one", 2).await;
    far.node.say(T, 3);
    said("far", 3).await;

    proxy.heal();
    for node in [&one, &two, &far] {
        node.listing(&all).await;
    }
    one.tells(&["+far"]).await;
    two.tells(&["+far"]).await;
    far.tells(&["+one", "+two"]).await;
    // What waited at the node that was cut off has arrived, late. What was sent to it is lost, and it
    // knows.
    said("one", 3).await;
    one.node.say(T, 4);
    said("far", 4).await;
    // Messages arrive while the channels are subscribed to, so a gap in another channel may be the first to be reported.
    let (mut was_away, mut misses) = (false, false);
    while !(was_away && misses) {
        match within(gaps.next()).await {
            Some(Gap::Disconnected(_)) => was_away = true,
            Some(gap @ Gap::Missing(_)) => misses |= gap.concerns(T),
            Some(_) => {}
            None => panic!("the gap is not reported"),
        }
    }
}

/// A node receives more slowly than others send: answers of the server are behind their broadcasts for longer than it may
/// take to answer.
pub async fn slow(kind: Kind) {
    const SENT: u64 = 150;
    let Some(server) = Server::start(kind).await else { return };
    let way = Way::to(server.port()).await;
    let through = server.url().replace(&server.port().to_string(), &way.port.to_string());
    let left = Node::start(&server, "left").await;
    let right = Node::at(&through, options("right"), Endpoint::builder()).await;
    within(right.cluster.connected()).await;
    let mut said = right.subscribe(T).await;
    let since = Instant::now();
    // 150 kB, which take two and a half seconds. The server may take one to answer, and is asked all the time.
    way.slow(60_000);
    for n in 0..SENT {
        left.endpoint.broadcast(T, "said", json!({ "n": n, "text": "x".repeat(1_000) })).unwrap();
    }
    for n in 0..SENT {
        assert_eq!(next(&mut said).await.1["n"], n);
    }
    println!("{SENT} broadcasts took {:?}", since.elapsed());
    assert_eq!(right.count("pipeline.cluster.connection_errors"), 0);
    assert_eq!(right.count("pipeline.cluster.connects"), 1);
}

/// The server takes what a node sends far more slowly than the node broadcasts. Subscribers on the node do not notice, a
/// bounded number waits, the oldest are dropped and counted, and what is left is sent while the server is still slow.
pub async fn slow_server(kind: Kind) {
    const WAITING: usize = 300;
    const CALM: usize = 300;
    const ALL: usize = 2_300;
    let Some(server) = Server::start(kind).await else { return };
    let way = Way::to(server.port()).await;
    let through = server.url().replace(&server.port().to_string(), &way.port.to_string());
    let bounded = options("left").max_waiting(WAITING);
    let left = Node::at(&through, bounded, Endpoint::builder()).await;
    let right = Node::start(&server, "right").await;
    within(left.cluster.connected()).await;
    let (mut here, mut there) = (left.subscribe(T).await, right.subscribe(T).await);
    let mut gaps = right.cluster.gaps();
    let waiting = || left.cluster.snapshot().unwrap().waiting;
    // How long each takes to a subscriber on the node, in the middle.
    let mut median = async |numbers: std::ops::Range<usize>| {
        let mut times = Vec::new();
        for n in numbers {
            let since = Instant::now();
            let said = json!({ "n": n, "text": "x".repeat(300) });
            left.endpoint.broadcast(T, "said", said).unwrap();
            assert_eq!(next(&mut here).await.1["n"], n);
            times.push(since.elapsed());
            let waiting = waiting();
            // As many as are sent again after a lost connection may be on the way.
            assert!(waiting <= WAITING + 512, "{waiting} wait");
        }
        times.sort_unstable();
        times[times.len() / 2]
    };
    let control = median(0..CALM).await;
    assert!(within(left.cluster.flush(PATIENCE)).await);
    // Those that wait take almost three seconds, and the server may take one to answer.
    way.slow(40_000);
    let slow = median(CALM..ALL).await;
    println!("{kind:?}: {control:?} before, and {slow:?} while the server is slow");
    assert!(slow <= 10 * control, "{slow:?}, and {control:?} while the server was well");
    assert!(left.cluster.flush(2 * PATIENCE).await, "{} wait", waiting());
    way.heal();
    within(left.cluster.connected()).await;
    left.say(T, ALL);
    let mut received = Vec::new();
    while received.last() != Some(&ALL) {
        received.push(usize::try_from(next(&mut there).await.1["n"].as_u64().unwrap()).unwrap());
    }
    assert!(received.is_sorted_by(|one, next| one < next), "each once, in order: {received:?}");
    // What was dropped, and nothing else, is missing, and the other node knows how many.
    let dropped = left.recorded.counters("pipeline.cluster.dropped");
    let missing = (ALL + 1 - received.len()) as u64;
    // The slow server may count as lost for a moment.
    assert!(dropped.iter().all(|(reason, _)| {
        ["reason=queue_full", "reason=not_connected"].contains(&reason.as_str())
    }));
    assert_eq!(dropped.iter().map(|(_, count)| count).sum::<u64>(), missing);
    assert_eq!(right.count("pipeline.cluster.lost"), missing);
    assert!(within(gaps.next()).await.unwrap().concerns(T));
}

/// A node, and four others that are processes with a user each.
struct Five {
    server: Server,
    here: Present,
    others: Vec<Process>,
    stalls: Stalls,
    /// Those of the other processes, as they have said them.
    stalls_of: HashMap<u64, u64>,
    rounds: usize,
    /// How often users have left and joined again who were there.
    again: u64,
}

impl Five {
    async fn start(kind: Kind, test: &str) -> Option<Self> {
        let server = Server::start(kind).await?;
        let here = Present::start(&server.url(), "here", tracker()).await;
        let stalls = Stalls::watch(&server.url()).await;
        let others = (0..4).map(|n| Process(spawn(&server, test, n))).collect();
        here.listing(&["here", "user 0", "user 1", "user 2", "user 3"]).await;
        let stalls_of = HashMap::new();
        let mut five = Self { server, here, others, stalls, stalls_of, rounds: 0, again: 0 };
        five.tells(&["+here", "+user 0", "+user 1", "+user 2", "+user 3"]).await;
        Some(five)
    }

    /// Waits until these nodes answer, and no others.
    async fn answer(&mut self, nodes: &[u64]) {
        let Self { here, stalls_of, rounds, .. } = self;
        let mut said = here.node.subscribe(T).await;
        eventually(async || {
            *rounds += 1;
            here.node.say(T, *rounds);
            let mut heard = BTreeSet::new();
            // A node that was away for a moment has missed it.
            let hearing = timeout(Duration::from_secs(1), async {
                while heard.len() < nodes.len() {
                    let (event, payload) = next(&mut said).await;
                    if event == "heard" && payload["n"] == *rounds {
                        let node = payload["node"].as_u64().unwrap();
                        heard.insert(node);
                        stalls_of.insert(node, payload["stalls"].as_u64().unwrap());
                    }
                }
            });
            hearing.await.is_ok() && heard.iter().eq(nodes)
        })
        .await;
    }

    /// Waits until clients have seen this, in any order. Users may have left and joined again meanwhile.
    async fn tells(&mut self, expected: &[&str]) {
        let balance = |told: &[&str]| {
            let mut users = BTreeMap::<String, i64>::new();
            for told in told {
                let (change, user) = told.split_at(1);
                *users.entry(user.to_owned()).or_default() += if change == "+" { 1 } else { -1 };
            }
            users.retain(|_, count| *count != 0);
            users
        };
        let all = balance(expected);
        eventually(async || {
            let told = self.here.told.lock();
            let told: Vec<_> = told.iter().map(String::as_str).collect();
            balance(&told) == all && expected.iter().all(|it| told.contains(it))
        })
        .await;
        let told = std::mem::take(&mut *self.here.told.lock());
        self.again += (told.len() - expected.len()) as u64 / 2;
    }

    /// Users who are there have not left and joined again more often than their nodes, the server or this process were not
    /// run, which does not happen on a machine that is calm.
    fn users_left_only_for_stalls(&self, nodes: &[u64]) {
        let (again, of) = (self.again, nodes.iter().filter_map(|node| self.stalls_of.get(node)));
        let stalls = self.stalls.count() + of.sum::<u64>();
        println!("{again} have left and joined again, with {stalls} stalls");
        assert!(again <= stalls, "{again} have left and joined again, with {stalls} stalls");
    }
}

/// A process of a test. Killed on drop.
pub(super) struct Process(pub(super) Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that is frozen for longer than its presences are kept, and runs again.
pub async fn frozen_node(kind: Kind, test: &str) {
    if super::inside_of_another().await {
        return;
    }
    let Some(mut five) = Five::start(kind, test).await else { return };
    five.others[0].signal(Signal::STOP);
    five.here.listing(&["here", "user 1", "user 2", "user 3"]).await;
    // The others are not delayed.
    five.answer(&[1, 2, 3]).await;
    // Longer than the permanent-down period.
    sleep(Duration::from_millis(3_500)).await;
    five.tells(&["-user 0"]).await;
    five.others[0].signal(Signal::CONT);
    five.here.listing(&["here", "user 0", "user 1", "user 2", "user 3"]).await;
    five.tells(&["+user 0"]).await;
    five.answer(&[0, 1, 2, 3]).await;
    five.users_left_only_for_stalls(&[1, 2, 3]);
}

/// A node that is killed, and one of the same name that is started at once.
pub async fn restarted_node(kind: Kind, test: &str) {
    if super::inside_of_another().await {
        return;
    }
    let Some(mut five) = Five::start(kind, test).await else { return };
    drop(five.others.remove(0));
    five.others.push(Process(spawn(&five.server, test, 0)));
    five.tells(&["+user 0", "-user 0"]).await;
    // Longer than the down period: its former life leaves no second time.
    sleep(Duration::from_millis(1_500)).await;
    five.tells(&[]).await;
    let here = &five.here;
    here.listing(&["here", "user 0", "user 1", "user 2", "user 3"]).await;
    assert_eq!(here.presence.list(T).await.metas("user 0").count(), 1);
    five.answer(&[0, 1, 2, 3]).await;
    five.tells(&[]).await;
    five.users_left_only_for_stalls(&[0, 1, 2, 3]);
}

/// A server that is stopped for longer than nodes are waited for.
pub async fn stopped_server(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    let one = Present::start(&server.url(), "one", tracker()).await;
    let two = Present::start(&server.url(), "two", tracker()).await;
    for node in [&one, &two] {
        node.listing(&["one", "two"]).await;
        node.tells(&["+one", "+two"]).await;
    }
    server.stop();
    one.listing(&["one"]).await;
    two.listing(&["two"]).await;
    one.tells(&["-two"]).await;
    two.tells(&["-one"]).await;
    let mut here = one.node.endpoint.subscribe(T);
    one.node.say(T, 1);
    assert_eq!(next(&mut here).await.1["n"], 1);
    server.start_again().await;
    one.listing(&["one", "two"]).await;
    two.listing(&["one", "two"]).await;
    one.tells(&["+two"]).await;
    two.tells(&["+one"]).await;
}

/// A server that is killed and back before nodes count as down: clients notice nothing.
pub async fn restarted_server(kind: Kind) {
    let Some(mut server) = Server::start(kind).await else { return };
    let patient = || tracker().permdown_period(Duration::from_secs(120));
    let patient = || patient().down_period(Duration::from_secs(60));
    let one = Present::start(&server.url(), "one", patient()).await;
    let two = Present::start(&server.url(), "two", patient()).await;
    one.listing(&["one", "two"]).await;
    two.listing(&["one", "two"]).await;
    one.tells(&["+one", "+two"]).await;
    two.tells(&["+one", "+two"]).await;
    server.kill();
    eventually(async || !one.node.cluster.is_connected()).await;
    // A change while the server is away is known everywhere when it is back.
    let _more = one.presence.track_detached(T, "zoe", &json!({})).unwrap();
    server.start_again().await;
    two.listing(&["one", "two", "zoe"]).await;
    one.tells(&["+zoe"]).await;
    two.tells(&["+zoe"]).await;
}

/// Whether a topic has subscribers on any node is known a period late, and while a node is away every topic
/// counts as subscribed.
pub async fn listening(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let proxy = Way::to(server.port()).await;
    let through = server.url().replace(&server.port().to_string(), &proxy.port.to_string());
    let synced = |options| Endpoint::builder().sync_subscriptions(options);
    let left = Node::at(&server.url(), options("left"), synced(tracker())).await;
    let patient = Node::at(&server.url(), options("patient"), synced(patient_tracker())).await;
    let right = Node::at(&through, options("right"), synced(tracker())).await;
    let knows = |node: &Node, topic: &str| node.endpoint.pubsub().has_subscribers(topic);
    let has = |topic: &str| knows(&left, topic);
    let user = right.endpoint.subscribe("user:1");
    eventually(async || has("user:1") && !has("user:2")).await;
    drop(user);
    eventually(async || !has("user:1") && !knows(&patient, "user:2")).await;
    // What the node that is cut off says now is not known.
    proxy.cut();
    noticed(async || has("user:2"), async || knows(&patient, "user:2")).await;
    let _user = right.endpoint.subscribe("user:3");
    proxy.heal();
    eventually(async || has("user:3") && !has("user:2")).await;
}

/// A "no" is at most a period old: it is wrong for longer with a longer period.
pub async fn age(kind: Kind) {
    const ROUNDS: usize = 5;
    let Some(server) = Server::start(kind).await else { return };
    let mut ages = Vec::new();
    for (prefix, period) in [("often", 50), ("seldom", 1_000)] {
        let period = Duration::from_millis(period);
        let builder = || {
            let tracker = TrackerOptions::new().broadcast_period(period);
            Endpoint::builder().sync_subscriptions(tracker)
        };
        let left = Node::with(&server, options_of(prefix, "left"), builder()).await;
        let right = Node::with(&server, options_of(prefix, "right"), builder()).await;
        let has = |topic: &str| left.endpoint.pubsub().has_subscribers(topic);
        eventually(async || !has("user:1")).await;
        let since = Instant::now();
        let mut users = Vec::new();
        for n in 0..ROUNDS {
            let user = format!("user:{n}");
            assert!(!has(&user));
            users.push(right.endpoint.subscribe(&user));
            eventually(async || has(&user)).await;
        }
        ages.push(since.elapsed() / u32::try_from(ROUNDS).unwrap());
    }
    let [often, seldom] = ages[..] else { panic!("two") };
    println!("a no is {often:?} old with a period of 50 ms, and {seldom:?} with one of 1 s");
    assert!(2 * often < seldom, "{often:?}, and {seldom:?} with twenty times the period");
}
