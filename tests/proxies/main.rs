//! Two or three nodes behind a real load balancer, with the configuration files of `docs/deploy`: the official client's
//! suite and the recorded conversations with requests on different nodes, a rolling restart under load, and what clients
//! see of faults.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![allow(unreachable_pub, reason = "its modules are used by the test only")]
#![cfg(unix)]

mod clients;
mod faults;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    time::Duration,
};

use pipeline_test_support::{
    PATIENCE, get, interop, project,
    proxies::{Backend, Balancer, Proxy},
    request,
    servers::{Kind, Server},
};
use serde_json::json;
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{connect_async, tungstenite::Error};

use self::{
    clients::{Clients, Run, Summary, all_joined, quantile, sorted},
    nodes::{Nodes, between},
};

/// The check of the suite that is left out: it stops the server.
const SKIPPED: &str = "server_restart";

/// Runs the suite of the official client. Nothing else is skipped, not even by the suite itself.
async fn suite(address: &str) {
    let run = async |flags: &[&str]| {
        let mut node = Command::new("node");
        node.arg("suite.mjs").arg(format!("ws://{address}/socket")).args(flags);
        let output = timeout(4 * PATIENCE, node.current_dir(interop()).kill_on_drop(true).output());
        let output = output.await.unwrap().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (_, checks) = run(&["--list"]).await;
    let (passed, said) = run(&["--skip", SKIPPED]).await;
    let failed: Vec<_> = said.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(passed && failed.is_empty(), "{failed:#?}");
    let verdicts = said.lines().filter_map(|line| {
        let (verdict, rest) = line.split_once(' ')?;
        let name = rest.split(':').next()?;
        ["ok", "skip"].contains(&verdict).then_some((name, verdict))
    });
    let expected = checks.lines().map(|name| (name, if name == SKIPPED { "skip" } else { "ok" }));
    assert_eq!(verdicts.collect::<BTreeMap<_, _>>(), expected.collect());
}

/// The recording that is not replayed: it stops the server.
const LEFT_OUT: &str = "48_drain_on_shutdown.jsonl";

/// The recording in which a pause would be the silence that it measures.
const WITHOUT_PAUSES: &str = "40a_idle_timer_resets.jsonl";

/// Replays the recorded conversations.
async fn recordings(address: &str) {
    let files = fs::read_dir(project().join("tests/golden")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".jsonl") && !name.ends_with(".v17.jsonl") && name != LEFT_OUT
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
    node.args(["replay.mjs", &format!("http://{address}"), "--concurrent-joins", "--nodes"]);
    node.args(["--settle", pause]).args(files);
    let output = timeout(6 * PATIENCE, node.current_dir(interop()).kill_on_drop(true).output());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let failed: Vec<_> = said.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?}");
    assert_eq!(said.lines().count(), files.len());
}

async fn everything(kind: Kind, balancer: Balancer) {
    let Some(nodes) = Nodes::start_with(kind, 2, balancer, &[]).await else { return };
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
    everything(Kind::Redis, Balancer::Haproxy).await;
}

#[tokio::test]
async fn the_official_client_and_the_recordings_pass_through_nginx() {
    everything(Kind::Redis, Balancer::Nginx).await;
}

#[tokio::test]
async fn the_official_client_and_the_recordings_pass_through_nginx_with_nats() {
    everything(Kind::Nats, Balancer::Nginx).await;
}

/// The number of clients: `CLIENTS=2000` is the long form.
fn clients() -> usize {
    env::var("CLIENTS").map_or(200, |clients| clients.parse().unwrap())
}

/// Restarts all nodes, one after the other, while clients are there and broadcasts are sent.
async fn rolling_restart(kind: Kind, count: usize, balancer: Balancer) {
    let Some(mut nodes) = Nodes::start_with(kind, count, balancer, &[]).await else { return };
    let count_of_clients = clients();
    let address = [nodes.proxy.address.clone()];
    let mut clients = Clients::arrive(&address, count_of_clients).await;
    clients.broadcast_through(&address);
    let run = clients.run.clone();
    // The control, for the times during the restart.
    sleep(Duration::from_secs(3)).await;
    let restart = run.now();
    for at in 0..count {
        nodes.stop(at).await;
        let back = all_joined(&run, count_of_clients).await;
        println!("node {at} has ended, all are back after {back:?}");
        nodes.run(at).await;
        nodes.is_given_clients(at).await;
    }
    // The node that was restarted last has none of them, until the others give it its part.
    let sockets = even_out(&nodes, &run, count_of_clients).await;
    let summary = Summary::of(&format!("{kind:?}, sockets {sockets:?}"), clients).await;
    let times = summary.times.iter();
    let (before, since): (Vec<_>, Vec<_>) = times.partition(|(at, _)| *at < restart);
    let p99 = |of: Vec<(u64, u64)>| quantile(&sorted(of.into_iter().map(|(_, took)| took)), 990);
    let (before, since) = (p99(before), p99(since));
    println!("p99 of the time to a client: {before} ms before the restart, {since} ms since");
    assert!(since <= 30 * before.max(100), "{since} ms, and {before} ms before the restart");
    assert!(summary.all.iter().all(|seen| seen.joined.len() >= 2), "each node was restarted");
    summary.is_complete();
    are_even(&sockets);
}

/// Nodes that have more sockets than the mean of all give the rest to the others, at a quarter of it in a second.
/// Returns how many each has then.
async fn even_out(nodes: &Nodes, run: &Run, clients: usize) -> Vec<usize> {
    let count = nodes.backends.len();
    let mean = nodes.all_sockets().await.iter().sum::<usize>() / count;
    let path = format!("/ctl/shed?sockets={mean}&per_second={}", mean.div_ceil(4));
    for at in 0..count {
        if nodes.sockets(at).await > mean {
            println!("node {at} sheds: {}", nodes.ask(at, &path).await);
        }
        all_joined(run, clients).await;
    }
    sleep(Duration::from_secs(1)).await;
    nodes.all_sockets().await
}

fn are_even(sockets: &[usize]) {
    let mean = sockets.iter().sum::<usize>() / sockets.len();
    let is_even = sockets.iter().all(|count| count.abs_diff(mean) * 10 <= mean);
    assert!(is_even, "within a tenth of the mean: {sockets:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_haproxy_loses_no_client() {
    rolling_restart(between(Kind::Redis), 2, Balancer::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_nginx_loses_no_client() {
    rolling_restart(between(Kind::Redis), 2, Balancer::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_nodes_loses_no_client() {
    rolling_restart(between(Kind::Nats), 3, Balancer::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_gets_its_part_when_the_others_shed_down_to_the_mean() {
    let Some(mut nodes) = Nodes::start_many(3, Balancer::Haproxy, &[]).await else { return };
    nodes.stop(2).await;
    let count = clients();
    let address = [nodes.proxy.address.clone()];
    let mut clients = Clients::arrive(&address, count).await;
    clients.broadcast_through(&address);
    let run = clients.run.clone();
    nodes.run(2).await;
    nodes.is_given_clients(2).await;
    assert_eq!(nodes.sockets(2).await, 0, "clients stay where they are");
    let sockets = even_out(&nodes, &run, count).await;
    let summary = Summary::of(&format!("a node was added, sockets {sockets:?}"), clients).await;
    summary.is_complete();
    are_even(&sockets);
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
    let count = clients();
    let rate = count / 4;
    let flags = ["--arrivals", &rate.to_string()];
    let Some(mut nodes) = Nodes::start(Balancer::Haproxy, &flags).await else { return };
    let mut clients = Clients::arrive(std::slice::from_ref(&nodes.proxy.address), count).await;
    let run = clients.run.clone();
    let own = nodes.sockets(1).await;
    // What a node has accepted and not sent when it is killed would reach its own clients only.
    clients.broadcast_through(&[nodes.address(1)]);
    sleep(Duration::from_secs(1)).await;
    // The first come back before the end of the node is known here.
    let killed = Instant::now();
    run.kills();
    nodes.running[0].take().unwrap().kill().await;
    let back = async {
        while nodes.sockets(1).await < count {
            sleep(Duration::from_millis(20)).await;
        }
        all_joined(&run, count).await;
    };
    timeout(4 * PATIENCE, back).await.expect("all are back");
    let took = killed.elapsed();
    let summary = Summary::of(&format!("back in {took:?}"), clients).await;
    summary.is_complete();
    let both = summary.all.iter().zip(&summary.missed);
    let stayed: Vec<_> = both.filter(|(seen, _)| seen.joined.len() == 1).collect();
    assert!(stayed.len() >= own, "{} of {own} have stayed", stayed.len());
    let missed = stayed.iter().map(|(_, missed)| missed.absent + missed.on_the_way);
    assert_eq!(missed.sum::<usize>(), 0, "they miss nothing");
    // After the first tenth of a second's number.
    let least = (count - own).saturating_sub(rate / 10) * 1000 / rate;
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

/// A polling client whose requests meet the node of its session and another one in turn. Prints how long they take.
async fn relayed_polls(kind: Kind) {
    let nodes = Nodes::start_with(kind, 2, Balancer::Haproxy, &[]).await;
    let Some(nodes) = nodes else { return };
    let rounds = clients() / 4;
    let mut client = Polling::default();
    assert_eq!(client.ask(&nodes.address(0), "GET", "").await, 410, "a new session");
    let heartbeat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    let mut times = [vec![], vec![]];
    for _ in 0..rounds {
        for (at, times) in times.iter_mut().enumerate() {
            let address = nodes.address(at);
            for (method, body) in [("POST", &*heartbeat), ("GET", "")] {
                let since = Instant::now();
                assert_eq!(client.ask(&address, method, body).await, 200, "{method} at {at}");
                times.push(u64::try_from(since.elapsed().as_micros()).unwrap());
            }
        }
    }
    let [direct, relayed] = times.map(|times| sorted(times.into_iter()));
    let quantiles = |times: &[u64]| [500, 990].map(|part| quantile(times, part));
    println!(
        "{kind:?}: requests of a polling client, p50 and p99 in us: {:?} at its node, {:?} at another one",
        quantiles(&direct),
        quantiles(&relayed)
    );
    assert_eq!(nodes.ask(1, "/ctl/relayed").await, 2 * rounds);
    assert_eq!(nodes.ask(0, "/ctl/relayed").await, 0);
}

#[tokio::test]
async fn polls_that_meet_another_node_are_answered_with_redis() {
    relayed_polls(Kind::Redis).await;
}

#[tokio::test]
async fn polls_that_meet_another_node_are_answered_with_nats() {
    relayed_polls(Kind::Nats).await;
}

/// Polling clients stay at their nodes while there is no way between these.
async fn sticky_polls(balancer: Balancer) {
    let backends = vec![Backend::free(), Backend::free()];
    let Some(proxy) = Proxy::start_sticky(balancer, &backends).await else { return };
    let Some(server) = Server::start(between(Kind::Redis)).await else { return };
    let Some(mut nodes) = Nodes::behind(proxy, server, backends, &[]).await else { return };
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
    nodes.server.kill();
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
