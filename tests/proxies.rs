//! Two or three nodes behind a real load balancer, with the configuration files of `docs/deploy`: the official client's
//! suite and the recorded conversations with requests on different nodes, and a rolling restart under load.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![cfg(unix)]

use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use pipeline_test_support::{
    Example, PATIENCE, get, interop, project,
    proxies::{Backend, Balancer, Proxy},
    request,
    servers::{Kind, Server},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    process::Command,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message},
};

/// Nodes behind a load balancer.
struct Nodes {
    redis: Server,
    proxy: Proxy,
    backends: Vec<Backend>,
    running: Vec<Option<Example>>,
    /// More flags of the nodes.
    flags: Vec<String>,
}

impl Nodes {
    /// Two nodes. None if a server is not installed.
    async fn start(balancer: Balancer, flags: &[&str]) -> Option<Self> {
        Self::start_many(2, balancer, flags).await
    }

    async fn start_many(count: usize, balancer: Balancer, flags: &[&str]) -> Option<Self> {
        let backends: Vec<_> = (0..count).map(|_| Backend::free()).collect();
        let proxy = Proxy::start(balancer, &backends).await?;
        Self::behind(proxy, backends, flags).await
    }

    async fn behind(proxy: Proxy, backends: Vec<Backend>, flags: &[&str]) -> Option<Self> {
        let redis = Server::start(Kind::Redis).await?;
        let running = backends.iter().map(|_| None).collect();
        let mut nodes = Self { redis, proxy, backends, running, flags: vec![] };
        nodes.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        for at in 0..nodes.backends.len() {
            nodes.run(at).await;
        }
        for at in 0..nodes.backends.len() {
            nodes.is_given_clients(at).await;
        }
        Some(nodes)
    }

    /// Starts a node, and waits until it is ready.
    async fn run(&mut self, at: usize) {
        let Backend { port, admin_port } = self.backends[at];
        let [port, admin_port] = [port, admin_port].map(|port| port.to_string());
        let (url, name) = (self.redis.url(), format!("node-{at}"));
        let flags =
            ["--port", &port, "--admin-port", &admin_port, "--redis", &url, "--node", &name];
        // HAProxy notices within two seconds that a node is not ready.
        let times = ["--linger", "3", "--close-within", "8"];
        let more: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.running[at] = Some(Example::channels(&[&flags[..], &times, &more].concat()).await);
        let admin = format!("127.0.0.1:{admin_port}");
        let is_ready = async || {
            TcpStream::connect(&admin).await.is_ok() && get(&admin, "/readyz").await.status == 200
        };
        let ready = timeout(PATIENCE, async {
            while !is_ready().await {
                sleep(Duration::from_millis(20)).await;
            }
        });
        ready.await.expect("the node is ready");
    }

    /// Waits until the load balancer sends clients to a node.
    async fn is_given_clients(&self, at: usize) {
        let port = self.backends[at].port.to_string();
        let given = timeout(PATIENCE, async {
            while get(&self.proxy.address, "/ctl/port").await.body != port {
                sleep(Duration::from_millis(50)).await;
            }
        });
        given.await.expect("the load balancer sends clients to it");
    }

    /// How many sockets a node has.
    async fn sockets(&self, at: usize) -> usize {
        self.ask(at, "/ctl/sockets").await
    }

    async fn ask(&self, at: usize, path: &str) -> usize {
        get(&format!("127.0.0.1:{}", self.backends[at].port), path).await.body.parse().unwrap()
    }

    /// Stops a node as an operator would, and waits until it has ended.
    async fn stop(&mut self, at: usize) {
        let node = self.running[at].take().unwrap();
        node.signal("-TERM").await;
        let (status, said) = node.wait().await;
        assert!(status.success(), "{said:?}");
        let aborted = said.iter().any(|line| line.contains("sockets closed, 0 aborted"));
        assert!(aborted, "{said:?}");
    }
}

/// Runs the suite of the official client.
async fn suite(address: &str) {
    let mut node = Command::new("node");
    node.args(["suite.mjs", &format!("ws://{address}/socket"), "--skip", "server_restart"]);
    let output = timeout(4 * PATIENCE, node.current_dir(interop()).kill_on_drop(true).output());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let failed: Vec<_> = said.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?}");
}

/// The recordings that are not replayed, with reasons.
const LEFT_OUT: [(&str, &str); 4] = [
    ("48_drain_on_shutdown.jsonl", "it stops the server"),
    ("27_connect_info.jsonl", "load balancers add a header that it shows"),
    (
        "16_broadcast_two_clients.jsonl",
        "it has a local broadcast, which reaches the clients of one node",
    ),
    (
        "28_presence_two_devices.jsonl",
        "it has an order of devices, which a node lists with its own first",
    ),
];

/// The recording in which a pause would be the silence that it measures.
const WITHOUT_PAUSES: &str = "40a_idle_timer_resets.jsonl";

/// Replays the recorded conversations.
async fn recordings(address: &str) {
    let files = fs::read_dir(project().join("tests/golden")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_left_out = LEFT_OUT.iter().any(|(left_out, _)| *left_out == name);
        name.ends_with(".jsonl") && !name.ends_with(".v17.jsonl") && !is_left_out
    });
    let (without, files): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|path| path.ends_with(WITHOUT_PAUSES));
    assert_eq!(without.len(), 1);
    replay(address, "400", &files).await;
    replay(address, "0", &without).await;
}

/// Replays recordings, with a pause of milliseconds before each line of another connection.
async fn replay(address: &str, pause: &str, files: &[PathBuf]) {
    let mut node = Command::new("node");
    node.args(["replay.mjs", &format!("http://{address}"), "--concurrent-joins"]);
    node.args(["--settle", pause]).args(files);
    let output = timeout(6 * PATIENCE, node.current_dir(interop()).kill_on_drop(true).output());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let failed: Vec<_> = said.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?}");
    assert_eq!(said.lines().count(), files.len());
}

async fn everything(balancer: Balancer) {
    let Some(nodes) = Nodes::start(balancer, &[]).await else { return };
    suite(&nodes.proxy.address).await;
    recordings(&nodes.proxy.address).await;
    // What was seen was seen by both, and some requests of long-polling clients have met the other node.
    let mut passed_on = 0;
    for at in 0..2 {
        let requests = nodes.ask(at, "/ctl/connected").await;
        assert!(requests > 50, "node {at} has connected {requests} clients");
        let relayed = nodes.ask(at, "/ctl/relayed").await;
        println!(
            "node {at}: {requests} clients, {relayed} requests that the other one has answered"
        );
        passed_on += relayed;
    }
    assert!(passed_on > 0, "no request was passed on");
}

#[tokio::test]
async fn the_official_client_and_the_recordings_pass_through_haproxy() {
    everything(Balancer::Haproxy).await;
}

#[tokio::test]
async fn the_official_client_and_the_recordings_pass_through_nginx() {
    everything(Balancer::Nginx).await;
}

/// What a client has seen.
#[derive(Debug, Default)]
struct Seen {
    /// How often it has joined.
    joins: usize,
    /// Broadcasts that it has received.
    received: usize,
    /// Those that were sent while it was not joined.
    absent: usize,
    /// Those that are missing between two that it has received over one connection.
    lost: usize,
    /// When each was sent, in milliseconds since the beginning of the run, and the milliseconds from the
    /// call to the arrival.
    times: Vec<(u64, u32)>,
    last: Option<u64>,
}

/// All clients of a run.
struct Run {
    address: String,
    begun: Instant,
    joined: AtomicUsize,
    is_over: AtomicBool,
}

/// A client that connects again as the official one does.
async fn client(run: Arc<Run>) -> Seen {
    let mut seen = Seen::default();
    let url = format!("ws://{}/few/websocket?vsn=2.0.0", run.address);
    let mut tries = 0;
    while !run.is_over.load(Relaxed) {
        // The official client's delays.
        let delay = [10, 50, 100, 150, 200, 250, 500, 1000, 2000].get(tries).unwrap_or(&5000);
        sleep(Duration::from_millis(*delay)).await;
        tries += 1;
        if let Ok(Ok((mut stream, _))) = timeout(PATIENCE, connect_async(&url)).await {
            let join = json!(["1", "1", "room:restart", "phx_join", {}]).to_string();
            if stream.send(Message::text(join)).await.is_ok() {
                session(&run, &mut seen, &mut tries, stream).await;
            }
        }
    }
    seen
}

async fn session<S>(run: &Run, seen: &mut Seen, tries: &mut usize, mut stream: S)
where
    S: StreamExt<Item = Result<Message, Error>> + Unpin,
{
    let (mut got, mut is_joined) = (BTreeSet::new(), false);
    while !run.is_over.load(Relaxed) {
        let next = timeout(Duration::from_millis(500), stream.next()).await;
        let Ok(next) = next else { continue };
        let Some(Ok(message)) = next else { break };
        let Message::Text(text) = message else { break };
        let message: Value = serde_json::from_str(&text).unwrap();
        match message[3].as_str().unwrap() {
            "phx_reply" => {
                assert_eq!(message[4]["status"], "ok", "{message}");
                (*tries, is_joined) = (0, true);
                seen.joins += 1;
                run.joined.fetch_add(1, Relaxed);
            }
            "tick" => {
                let n = message[4]["n"].as_u64().unwrap();
                let at = message[4]["at"].as_u64().unwrap();
                let now = u64::try_from(run.begun.elapsed().as_millis()).unwrap();
                seen.times.push((at, u32::try_from(now.saturating_sub(at)).unwrap()));
                // Broadcasts of different nodes have no order.
                got.insert(n);
                seen.received += 1;
            }
            _ => {}
        }
    }
    if is_joined {
        run.joined.fetch_sub(1, Relaxed);
    }
    if let (Some(first), Some(last)) = (got.first(), got.last()) {
        let between = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap();
        seen.absent += seen.last.map_or(0, |before| between(before + 1, *first));
        seen.lost += between(*first, last + 1) - got.len();
        seen.last = Some(*last);
    }
}

/// Broadcasts through the load balancer until the run is over. Returns how many were accepted.
async fn broadcast(run: Arc<Run>) -> u64 {
    let mut n = 0;
    while !run.is_over.load(Relaxed) {
        sleep(Duration::from_millis(50)).await;
        let at = run.begun.elapsed().as_millis();
        let path = format!(
            "/ctl/broadcast?topic=room:restart&event=tick&payload=%7B%22n%22%3A{n}%2C%22at%22%3A{at}%7D"
        );
        // A node that ends just now may not answer.
        if get(&run.address, &path).await.status == 200 {
            n += 1;
        }
    }
    n
}

/// Waits until this number of clients has joined.
async fn all_joined(run: &Run, clients: usize) -> Duration {
    let since = Instant::now();
    let joined = timeout(4 * PATIENCE, async {
        while run.joined.load(Relaxed) < clients {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let joined = joined.await;
    assert!(joined.is_ok(), "{} of {clients} have joined", run.joined.load(Relaxed));
    since.elapsed()
}

/// The number of clients: `CLIENTS=2000` is the long form.
fn clients() -> usize {
    env::var("CLIENTS").map_or(200, |clients| clients.parse().unwrap())
}

/// Lets clients come, and waits until all have joined.
async fn arrive(nodes: &Nodes, clients: usize) -> (Arc<Run>, Vec<JoinHandle<Seen>>) {
    let run = Arc::new(Run {
        address: nodes.proxy.address.clone(),
        begun: Instant::now(),
        joined: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let members = (0..clients).map(|_| tokio::spawn(client(run.clone()))).collect();
    all_joined(&run, clients).await;
    (run, members)
}

/// What all clients have seen, printed in one line, and the times of all.
async fn summary(what: &str, members: Vec<JoinHandle<Seen>>) -> (Vec<Seen>, Vec<(u64, u32)>) {
    let (clients, mut all, mut times) = (members.len(), Vec::new(), Vec::new());
    for member in members {
        let mut seen = member.await.unwrap();
        times.append(&mut seen.times);
        all.push(seen);
    }
    let all_times = sorted(times.iter().map(|(_, took)| *took));
    let quantile = |part| quantile(&all_times, part);
    let sum = |of: fn(&Seen) -> usize| all.iter().map(of).sum::<usize>();
    println!(
        "{clients} clients, {what}: {} received, {} sent while their client was away, {} lost; {} joins; \
         p50 {} ms, p99 {} ms, most {} ms",
        sum(|seen| seen.received),
        sum(|seen| seen.absent),
        sum(|seen| seen.lost),
        sum(|seen| seen.joins),
        quantile(500),
        quantile(990),
        quantile(1000),
    );
    (all, times)
}

fn sorted(times: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times
}

/// A quantile, in thousandths, of sorted times.
fn quantile(times: &[u32], part: usize) -> u32 {
    times[(times.len() - 1) * part / 1000]
}

/// Restarts all nodes, one after the other, while clients are there and broadcasts are sent.
async fn rolling_restart(count: usize, balancer: Balancer) {
    let Some(mut nodes) = Nodes::start_many(count, balancer, &[]).await else { return };
    let clients = clients();
    let (run, members) = arrive(&nodes, clients).await;
    let broadcasting = tokio::spawn(broadcast(run.clone()));
    // The control, for the times during the restart.
    sleep(Duration::from_secs(3)).await;
    let restart = u64::try_from(run.begun.elapsed().as_millis()).unwrap();
    for at in 0..count {
        nodes.stop(at).await;
        println!("node {at} has ended, all are back after {:?}", all_joined(&run, clients).await);
        nodes.run(at).await;
        nodes.is_given_clients(at).await;
    }
    // The node that was restarted last has none of them, until the others give it its part.
    let mean = clients / count;
    let rate = mean.div_ceil(4);
    let path = format!("/ctl/shed?sockets={mean}&per_second={rate}");
    for at in 0..count {
        if nodes.sockets(at).await > mean {
            println!("node {at} sheds: {}", nodes.ask(at, &path).await);
        }
        all_joined(&run, clients).await;
    }
    sleep(Duration::from_secs(1)).await;
    let mut sockets = Vec::new();
    for at in 0..count {
        sockets.push(nodes.sockets(at).await);
    }
    run.is_over.store(true, Relaxed);
    let sent = broadcasting.await.unwrap();
    let (all, times) = summary(&format!("{sent} broadcasts, sockets {sockets:?}"), members).await;
    let (before, since): (Vec<_>, Vec<_>) = times.into_iter().partition(|(at, _)| *at < restart);
    let p99 = |of: Vec<(u64, u32)>| quantile(&sorted(of.into_iter().map(|(_, took)| took)), 990);
    let (before, since) = (p99(before), p99(since));
    println!("p99 of the time to a client: {before} ms before the restart, {since} ms since");
    assert!(since <= 30 * before.max(100), "{since} ms, and {before} ms before the restart");
    assert!(all.iter().all(|seen| seen.joins >= 2), "each node was restarted");
    let lost: usize = all.iter().map(|seen| seen.lost).sum();
    assert_eq!(lost, 0, "a client that is connected receives everything");
    let is_even = sockets.iter().all(|count| count.abs_diff(mean) * 10 <= mean);
    assert!(is_even, "within a tenth of the mean: {sockets:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_haproxy_loses_no_client() {
    rolling_restart(2, Balancer::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_nginx_loses_no_client() {
    rolling_restart(2, Balancer::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_nodes_loses_no_client() {
    rolling_restart(3, Balancer::Haproxy).await;
}

/// More clients come than both nodes let in, and requests of others are answered by both nodes meanwhile.
async fn refused_clients(balancer: Balancer) {
    // One in a second, and those that wait at most five: the others are refused at once.
    let Some(nodes) = Nodes::start(balancer, &["--arrivals", "1"]).await else { return };
    let url = format!("ws://{}/few/websocket?vsn=2.0.0", nodes.proxy.address);
    let come = (0..60).map(|_| {
        let url = url.clone();
        tokio::spawn(async move {
            match timeout(PATIENCE, connect_async(&url)).await.unwrap() {
                Ok(_) => 101,
                Err(Error::Http(answer)) => answer.status().as_u16(),
                Err(error) => panic!("{error}"),
            }
        })
    });
    let come: Vec<_> = come.collect();
    let (mut refused, mut met) = (0, BTreeSet::new());
    for client in come {
        let status = client.await.unwrap();
        assert!([101, 503].contains(&status), "the load balancer has no node left: {status}");
        refused += usize::from(status == 503);
        let answer = get(&nodes.proxy.address, "/ctl/port").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        met.insert(answer.body);
    }
    assert!(refused > 20, "only {refused} were refused");
    assert_eq!(met.len(), 2, "each node is there for others: {met:?}");
}

#[tokio::test]
async fn clients_that_are_refused_behind_haproxy_take_no_node_from_others() {
    refused_clients(Balancer::Haproxy).await;
}

#[tokio::test]
async fn clients_that_are_refused_behind_nginx_take_no_node_from_others() {
    refused_clients(Balancer::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_fails_come_to_the_other_at_its_rate_and_its_own_do_not_notice() {
    let clients = clients();
    let rate = clients / 4;
    let flags = ["--arrivals", &rate.to_string()];
    let Some(mut nodes) = Nodes::start(Balancer::Haproxy, &flags).await else { return };
    let (run, members) = arrive(&nodes, clients).await;
    let own = nodes.sockets(1).await;
    let broadcasting = tokio::spawn(broadcast(run.clone()));
    sleep(Duration::from_secs(1)).await;
    nodes.running[0].take().unwrap().kill().await;
    let back = async {
        while nodes.sockets(1).await < clients {
            sleep(Duration::from_millis(20)).await;
        }
        all_joined(&run, clients).await;
    };
    let killed = Instant::now();
    timeout(4 * PATIENCE, back).await.expect("all are back");
    let took = killed.elapsed();
    run.is_over.store(true, Relaxed);
    let sent = broadcasting.await.unwrap();
    let (all, _) = summary(&format!("{sent} broadcasts, back in {took:?}"), members).await;
    let stayed: Vec<_> = all.iter().filter(|seen| seen.joins == 1).collect();
    assert!(stayed.len() >= own, "{} of {own} have stayed", stayed.len());
    assert!(stayed.iter().all(|seen| (seen.absent, seen.lost) == (0, 0)), "they miss nothing");
    // After the first tenth of a second's number.
    let least = (clients - own).saturating_sub(rate / 10) * 1000 / rate;
    assert!(took.as_millis() >= least as u128, "{took:?}, and at least {least} ms");
}

/// A polling client, which keeps its cookie as a browser does.
#[derive(Default)]
struct Polling {
    token: String,
    cookie: String,
}

impl Polling {
    /// The status in the answer to a request.
    async fn ask(&mut self, address: &str, method: &str, body: &str) -> u64 {
        let path = format!("/strict/longpoll?vsn=2.0.0&token={}", self.token);
        let headers = [("cookie", &*self.cookie), ("content-type", "application/x-ndjson")];
        let answer = request(address, method, &path, &headers, body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let set = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        if let Some(cookie) = set.and_then(|set| set.split(';').next()) {
            cookie.clone_into(&mut self.cookie);
        }
        let body = answer.json();
        if let Some(token) = body["token"].as_str() {
            token.clone_into(&mut self.token);
        }
        body["status"].as_u64().unwrap()
    }
}

/// Polling clients stay at their nodes while there is no way between these.
async fn sticky_polls(balancer: Balancer) {
    let backends = vec![Backend::free(), Backend::free()];
    let Some(proxy) = Proxy::start_sticky(balancer, &backends).await else { return };
    let Some(mut nodes) = Nodes::behind(proxy, backends, &[]).await else { return };
    let address = nodes.proxy.address.clone();
    let mut clients = Vec::new();
    let at_both = timeout(PATIENCE, async {
        while nodes.sockets(0).await == 0 || nodes.sockets(1).await == 0 {
            let mut client = Polling::default();
            assert_eq!(client.ask(&address, "GET", "").await, 410, "a new session");
            clients.push(client);
            // nginx chooses by chance.
            sleep(Duration::from_millis(10)).await;
        }
    });
    at_both.await.expect("both nodes have clients");
    nodes.redis.kill();
    let heartbeat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    // Sessions live for fifteen seconds without polls, so not all of them are asked.
    let few = clients.len().saturating_sub(4);
    for client in &mut clients[few..] {
        for n in 0..4 {
            let status = client.ask(&address, "POST", &heartbeat).await;
            assert_eq!(status, 200, "request {n} has met the node of the session");
        }
        assert_eq!(client.ask(&address, "GET", "").await, 200);
    }
}

#[tokio::test]
async fn polling_clients_stay_at_their_nodes_behind_haproxy_with_the_option() {
    sticky_polls(Balancer::Haproxy).await;
}

#[tokio::test]
async fn polling_clients_stay_at_their_nodes_behind_nginx_with_the_option() {
    sticky_polls(Balancer::Nginx).await;
}
