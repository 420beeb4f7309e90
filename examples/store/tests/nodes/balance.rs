//! Which node has how many shoppers, and how they come to others. `SOCKETS=2000` before the command makes it the long form.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use pipeline_test_support::{
    proxies::{Backend, Balancer, Proxy},
    servers::Kind,
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{LONG, Node, Shop, eventually, request};

/// How many sockets there are.
pub(crate) fn sockets() -> usize {
    std::env::var("SOCKETS").map_or(200, |count| count.parse().unwrap())
}

/// Pages that connect again as soon as they are closed.
struct Crowd {
    seen: Arc<Seen>,
    /// Where they knock, each time at one of these.
    doors: Arc<Mutex<Vec<String>>>,
    pages: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Those that are connected, and have the state of their product.
    open: AtomicUsize,
    closed: AtomicUsize,
    /// How often a page was away, by the number of tries that it took to come back.
    tries: Mutex<HashMap<usize, usize>>,
    /// The longest time that a page was away.
    longest: Mutex<Duration>,
}

impl Crowd {
    fn at(doors: &[&str]) -> Self {
        let doors = doors.iter().map(|&door| door.to_owned()).collect();
        Self { seen: Arc::default(), doors: Arc::new(Mutex::new(doors)), pages: JoinSet::new() }
    }

    /// So many more, and waits until they are there.
    async fn come(&mut self, count: usize) {
        let wanted = self.seen.open.load(Relaxed) + count;
        for _ in 0..count {
            self.pages.spawn(page(self.seen.clone(), self.doors.clone()));
        }
        self.are_open(wanted).await;
    }

    async fn are_open(&self, count: usize) {
        eventually(async || self.seen.open.load(Relaxed) == count).await;
    }

    /// Waits until so many were closed in all, and this number is open.
    async fn are_back(&self, closed: usize, open: usize) {
        eventually(async || self.closed() >= closed).await;
        self.are_open(open).await;
    }

    fn closed(&self) -> usize {
        self.seen.closed.load(Relaxed)
    }

    /// From now on, they knock here.
    fn go_to(&self, doors: &[&str]) {
        *self.doors.lock() = doors.iter().map(|&door| door.to_owned()).collect();
    }

    /// How often a page needed so many tries, as text.
    fn tries(&self) -> String {
        let mut tries: Vec<_> = self.seen.tries.lock().clone().into_iter().collect();
        tries.sort_unstable();
        format!("{tries:?}, the longest {:.2} s", self.seen.longest.lock().as_secs_f64())
    }

    fn most_tries(&self) -> usize {
        self.seen.tries.lock().keys().copied().max().unwrap_or_default()
    }
}

async fn page(seen: Arc<Seen>, doors: Arc<Mutex<Vec<String>>>) {
    let mut away_since: Option<Instant> = None;
    loop {
        let mut tries = 0;
        let mut stream = loop {
            tries += 1;
            let door = fastrand::choice(&*doors.lock()).unwrap().clone();
            let url = format!("ws://{door}/product_socket/websocket?vsn=2.0.0");
            match timeout(LONG, connect_async(url)).await.unwrap() {
                Ok((stream, _)) => break stream,
                // The official client waits 10 ms, then longer.
                Err(_) => sleep(Duration::from_millis(10 * tries as u64)).await,
            }
        };
        let join = json!(["1", "1", "product:1", "phx_join", {}]).to_string();
        if stream.send(Message::text(join)).await.is_err() {
            continue;
        }
        let mut heartbeat = interval(Duration::from_secs(25));
        let mut is_open = false;
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                _ = heartbeat.tick() => {
                    let beat = json!([null, "2", "phoenix", "heartbeat", {}]).to_string();
                    let _ = stream.send(Message::text(beat)).await;
                    continue;
                }
            };
            let Some(Ok(message)) = message else { break };
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message[1] == "1" {
                assert_eq!(message[4]["status"], "ok", "{message}");
                assert!(message[4]["response"]["rev"].is_i64(), "{message}");
                seen.open.fetch_add(1, Relaxed);
                is_open = true;
                if let Some(since) = away_since.take() {
                    *seen.tries.lock().entry(tries).or_default() += 1;
                    let mut longest = seen.longest.lock();
                    *longest = since.elapsed().max(*longest);
                }
            }
        }
        away_since.get_or_insert_with(Instant::now);
        if is_open {
            seen.open.fetch_sub(1, Relaxed);
            seen.closed.fetch_add(1, Relaxed);
        }
    }
}

impl Node {
    /// How many sockets it has.
    pub(crate) async fn sockets(&self) -> usize {
        let answer = request(&self.operator, "GET", "/balance", &[], "").await;
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        usize::try_from(answer["sockets"].as_u64().unwrap()).unwrap()
    }

    /// Has an operator close some. How many were, if the answer says it.
    async fn balance(&self, what: &str) -> Option<usize> {
        let path = format!("/balance/{what}");
        let answer = request(&self.operator, "POST", &path, &[], "").await;
        assert!(answer.head.contains(" 20"), "{}", answer.head);
        let answer: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        answer["closed"].as_u64().map(|closed| usize::try_from(closed).unwrap())
    }

    /// The seconds of CPU time that it has used.
    #[cfg(target_os = "linux")]
    fn cpu(&self) -> f64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.process.id().unwrap())).unwrap();
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        (fields[11] + fields[12]) / 100.0
    }
}

impl Shop {
    /// A node on ports that a load balancer knows.
    async fn node_at(&self, at: Backend, name: &str, flags: &[&str]) -> Node {
        let (port, admin_port) = (at.port.to_string(), at.admin_port.to_string());
        let ports = ["--port", &port, "--admin-port", &admin_port];
        self.node(name, &[&ports, flags].concat()).await
    }
}

async fn counts(nodes: &[Node]) -> Vec<usize> {
    let mut counts = Vec::new();
    for node in nodes {
        counts.push(node.sockets().await);
    }
    counts
}

/// Whether none is further than a tenth from the mean.
fn are_even(counts: &[usize]) -> bool {
    let total: usize = counts.iter().sum();
    counts.iter().all(|count| (count * counts.len()).abs_diff(total) * 10 <= total)
}

/// Waits until the load balancer gives pages to this node.
async fn is_given_pages(node: &Node, door: &str) {
    let before = node.sockets().await;
    eventually(async || {
        let url = format!("ws://{door}/product_socket/websocket?vsn=2.0.0");
        let probe = connect_async(url).await;
        let is_given = node.sockets().await > before;
        drop(probe);
        is_given
    })
    .await;
    // That one is gone again.
    eventually(async || node.sockets().await == before).await;
}

/// A third node comes to two that have all pages. It gets new ones only, until an operator gives it a part.
#[tokio::test(flavor = "multi_thread")]
async fn p_004_a_node_that_comes_gets_new_pages_only() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let backends = [Backend::free(), Backend::free(), Backend::free()];
    let a = shop.node_at(backends[0], "a", &["--fresh"]).await;
    let b = shop.node_at(backends[1], "b", &[]).await;
    let Some(proxy) = Proxy::start(Balancer::Haproxy, &backends).await else { return };
    for node in [&a, &b] {
        is_given_pages(node, &proxy.address).await;
    }
    let mut crowd = Crowd::at(&[&proxy.address]);
    crowd.come(sockets()).await;
    let mut nodes = vec![a, b];
    let before = counts(&nodes).await;
    nodes.push(shop.node_at(backends[2], "c", &[]).await);
    is_given_pages(&nodes[2], &proxy.address).await;
    assert_eq!(counts(&nodes).await, [before[0], before[1], 0], "open ones do not move");
    crowd.come(sockets() / 10).await;
    let after = counts(&nodes).await;
    assert_eq!(after, [before[0], before[1], sockets() / 10]);
    assert_eq!(crowd.closed(), 0);
    // The load balancer counts, so one round is enough.
    let (total, mean) = (sockets() * 11 / 10, sockets() * 11 / 30);
    let mut closed = 0;
    for node in &nodes[..2] {
        closed += node.balance(&format!("shed?down_to={mean}")).await.unwrap();
    }
    crowd.are_back(closed, total).await;
    let even = counts(&nodes).await;
    println!("P-004: {before:?}, a third node {after:?}, after one round {even:?}");
    assert!(are_even(&even), "{even:?}");
}

/// Pages choose a node at random, so a round gives the new node a third of what the others close.
#[tokio::test(flavor = "multi_thread")]
async fn p_005_an_operator_makes_nodes_even_in_rounds() {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let mut nodes = vec![shop.node("a", &["--fresh"]).await, shop.node("b", &[]).await];
    let mut crowd = Crowd::at(&[&nodes[0].address, &nodes[1].address]);
    crowd.come(sockets()).await;
    nodes.push(shop.node("c", &[]).await);
    crowd.go_to(&[&nodes[0].address, &nodes[1].address, &nodes[2].address]);
    let mean = sockets().div_ceil(3);
    let (mut rounds, mut closed) = (vec![counts(&nodes).await], 0);
    while !are_even(rounds.last().unwrap()) {
        assert!(rounds.len() < 20, "{rounds:?}");
        for node in &nodes {
            let request = format!("shed?down_to={mean}&per_second=500");
            closed += node.balance(&request).await.unwrap();
        }
        crowd.are_back(closed, sockets()).await;
        rounds.push(counts(&nodes).await);
    }
    println!("P-005: {rounds:?}");
    let first = rounds[1][2];
    assert!(first > 0 && first * 4 < mean * 3, "one round is not enough: {rounds:?}");
    // Here or everywhere: one node is asked, and all of them close a share. The pages stay away.
    crowd.go_to(&["127.0.0.1:1"]);
    let before = counts(&nodes).await;
    assert_eq!(nodes[0].balance("shed?share=0.5&per_second=1000&everywhere=true").await, None);
    let left: Vec<usize> = before.iter().map(|count| count - count.div_ceil(2)).collect();
    eventually(async || counts(&nodes).await == left).await;
}

/// Also shows P-007: what an age costs, next to a node without.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn an_age_of_sockets_costs_their_joins_and_no_page_a_second_try() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let aging = Node::start(&path("a.db"), &["--max-age", "4"]).await;
    let control = Node::start(&path("b.db"), &[]).await;
    let count = sockets() / 2;
    let mut crowds = Vec::new();
    for node in [&aging, &control] {
        let mut crowd = Crowd::at(&[&node.address]);
        crowd.come(count).await;
        crowds.push(crowd);
    }
    let before = [aging.cpu(), control.cpu()];
    // Each page comes back twice.
    eventually(async || crowds[0].closed() >= 2 * count).await;
    crowds[0].are_open(count).await;
    let used = [aging.cpu() - before[0], control.cpu() - before[1]];
    println!(
        "P-007: {} reconnects of {count} pages took {:.2} s of CPU, none took {:.2} s; tries {}",
        crowds[0].closed(),
        used[0],
        used[1],
        crowds[0].tries()
    );
    assert_eq!(crowds[1].closed(), 0);
    assert_eq!(crowds[0].most_tries(), 1, "{}", crowds[0].tries());
}

/// Three nodes are restarted one after the other.
async fn rolling(balancer: &str, start: impl AsyncFn(&[Backend]) -> Option<Proxy>) {
    let Some(shop) = Shop::over(Kind::Redis).await else { return };
    let backends = [Backend::free(), Backend::free(), Backend::free()];
    // HAProxy notices after two seconds that a node is not ready.
    let flags = ["--linger-secs", "3"];
    let mut nodes = Vec::new();
    for (at, name) in backends.iter().zip(["a", "b", "c"]) {
        nodes.push(shop.node_at(*at, name, &flags).await);
    }
    let Some(proxy) = start(&backends).await else { return };
    for node in &nodes {
        is_given_pages(node, &proxy.address).await;
    }
    let mut crowd = Crowd::at(&[&proxy.address]);
    crowd.come(sockets()).await;
    let mut rounds = vec![counts(&nodes).await];
    for at in 0..3 {
        let closed = crowd.closed() + nodes[at].sockets().await;
        nodes[at].terminate();
        assert!(timeout(LONG, nodes[at].process.wait()).await.unwrap().unwrap().success());
        eventually(async || crowd.closed() >= closed).await;
        crowd.are_open(sockets()).await;
        nodes[at] = shop.node_at(backends[at], ["a", "b", "c"][at], &flags).await;
        is_given_pages(&nodes[at], &proxy.address).await;
        rounds.push(counts(&nodes).await);
    }
    println!("P-008: {balancer}: {rounds:?}; tries {}", crowd.tries());
    let last = rounds.last().unwrap();
    assert_eq!(last.iter().sum::<usize>(), sockets());
    assert!(last[0] >= last[1] && last[1] >= last[2], "the first has most: {rounds:?}");
    assert!(last[2] * 10 <= sockets(), "the last has fewest: {rounds:?}");
    assert_eq!(crowd.most_tries(), 1, "one reconnect: {}", crowd.tries());
}

#[tokio::test(flavor = "multi_thread")]
async fn p_008_after_a_rolling_deploy_the_first_node_has_most_pages() {
    rolling("least connections", async |backends| Proxy::start(Balancer::Haproxy, backends).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rolling_deploy_in_turns_the_first_node_has_most_pages() {
    rolling("round robin", async |backends| Proxy::start_in_turns(backends).await).await;
}

/// All pages go from one node to another, a part of the shards at a time. The old node ends empty.
#[tokio::test(flavor = "multi_thread")]
async fn p_009_all_pages_move_to_another_node_in_parts() {
    let Some(shop) = Shop::over(Kind::Nats).await else { return };
    let mut blue = shop.node("blue", &["--fresh"]).await;
    let mut crowd = Crowd::at(&[&blue.address]);
    crowd.come(sockets()).await;
    let green = shop.node("green", &[]).await;
    crowd.go_to(&[&green.address]);
    let mut moved = Vec::new();
    for first in (0..100).step_by(20) {
        let closed = crowd.closed();
        blue.balance(&format!("shards?first={first}&count=20")).await;
        eventually(async || {
            let (here, there) = (blue.sockets().await, green.sockets().await);
            let is_open = crowd.seen.open.load(Relaxed) == sockets();
            let is_done = crowd.closed() > closed && there == crowd.closed();
            here + there == sockets() && is_done && is_open
        })
        .await;
        moved.push(green.sockets().await);
    }
    println!("P-009: {moved:?} of {}", sockets());
    let parts: Vec<usize> = [0].iter().chain(&moved).zip(&moved).map(|(a, b)| b - a).collect();
    assert!(parts.iter().all(|part| *part > 0), "{parts:?}");
    assert!(parts.iter().all(|part| part * 2 < sockets()), "too many at once: {parts:?}");
    eventually(async || (blue.sockets().await, green.sockets().await) == (0, sockets())).await;
    blue.terminate();
    assert!(timeout(LONG, blue.process.wait()).await.unwrap().unwrap().success());
    crowd.are_open(sockets()).await;
    assert_eq!(crowd.closed(), sockets(), "each page was closed once");
}
