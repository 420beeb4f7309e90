//! What clients see when the server between the nodes or one of the nodes fails. `docs/deploys.md` has a table of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, slice,
    time::Duration,
};

use pipeline_test_support::{
    PATIENCE, Way,
    proxies::{Backend, Balancer, Proxy},
    servers::{Kind, Server},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    clients::{Arrived, Clients, Seen},
    nodes::{Nodes, between},
};

/// How many clients there are, half of them at each node.
const CLIENTS: usize = 40;

/// For how long the server is away, or a node cut off.
const OUTAGE: Duration = Duration::from_secs(10);

/// Broadcasts of one node to the clients of one node.
#[derive(Debug, Default)]
struct Group {
    sent: usize,
    /// Those that took no longer than the slowest before the fault, or a second.
    prompt: usize,
    late: usize,
    /// When those were sent that have not arrived, in milliseconds since the fault.
    missing: Vec<i64>,
}

/// A time in which something has failed.
struct Fault {
    from: u64,
    /// When it was known.
    noticed: u64,
    until: u64,
}

impl Fault {
    /// Groups by the node of the client and the node that broadcasts, where numbers are those of two nodes in turn.
    fn groups(&self, all: &[Seen], sent: &BTreeMap<u64, u64>) -> [[Group; 2]; 2] {
        let mut groups = <[[Group; 2]; 2]>::default();
        let slow = self.slowest_before(all).max(1_000);
        for seen in all {
            for (&n, &at) in sent {
                let group = &mut groups[seen.client % 2][usize::from(n % 2 == 1)];
                group.sent += 1;
                match seen.arrived.get(&n) {
                    Some(arrived) if arrived.took() <= slow => group.prompt += 1,
                    Some(_) => group.late += 1,
                    None => group.missing.push(at.cast_signed() - self.from.cast_signed()),
                }
            }
        }
        for (at, of) in groups.iter().enumerate() {
            for (by, group) in of.iter().enumerate() {
                let missing = group.missing.iter();
                let range = missing.clone().min().zip(missing.max());
                println!(
                    "  clients of node {at}, broadcasts of node {by}: {} sent, {} prompt, {} late, {} missing, sent {range:?} ms \
                     after the fault",
                    group.sent,
                    group.prompt,
                    group.late,
                    group.missing.len(),
                );
            }
        }
        groups
    }

    /// The slowest delivery of what was sent before the fault.
    fn slowest_before(&self, all: &[Seen]) -> u64 {
        let times = all.iter().flat_map(|seen| seen.arrived.values());
        let before = times.filter(|arrived| arrived.at < self.from);
        before.map(Arrived::took).max().unwrap()
    }

    /// Nodes go on serving their own clients, who keep their connections. Returns the groups.
    fn is_survived(&self, all: &[Seen], sent: &BTreeMap<u64, u64>) -> [[Group; 2]; 2] {
        println!(
            "  it lasted {} ms, and was noticed after {} ms; {} users have left at a client",
            self.until - self.from,
            self.noticed - self.from,
            all[0].presence.iter().filter(|told| told.has_left).count()
        );
        let groups = self.groups(all, sent);
        for seen in all {
            let of = seen.client;
            assert_eq!(seen.joined.len(), 1, "client {of} keeps its connection");
            assert_eq!(seen.twice, 0, "nothing comes twice to client {of}");
            // A client is served meanwhile, if it lasts.
            let own = sent.keys().filter(|n| **n % 2 == of as u64 % 2);
            let mut own = own.filter_map(|n| seen.arrived.get(n));
            let lasts = self.until - self.from >= u64::try_from(OUTAGE.as_millis()).unwrap();
            let is_served = own.any(|it| it.sent > self.from && it.at < self.until);
            assert!(is_served || !lasts, "client {of} receives what its node broadcasts");
        }
        for (at, of) in groups.iter().enumerate() {
            assert_eq!(of[at].missing, [0; 0], "clients receive what their node broadcasts");
        }
        groups
    }
}

/// Two nodes that say that they are not ready without the server, with clients at each and broadcasts of each.
async fn served(kind: Kind) -> Option<(Nodes, Way, Clients)> {
    let backends = vec![Backend::free(), Backend::free()];
    let proxy = Proxy::start(Balancer::Haproxy, &backends).await?;
    let server = Server::start(kind).await?;
    let way = Way::to(server.port()).await;
    let through = server.url().replace(&server.port().to_string(), &way.port.to_string());
    let urls = vec![through, server.url()];
    let flags = ["--requires-cluster"];
    let nodes = Nodes::with_ways(proxy, server, urls, backends, &flags).await?;
    let addresses = [nodes.address(0), nodes.address(1)];
    let mut clients = Clients::beating(&addresses, CLIENTS, Duration::from_secs(30), true).await;
    clients.broadcast_through(&addresses);
    // The control.
    sleep(Duration::from_secs(2)).await;
    Some((nodes, way, clients))
}

/// The server is away for a while. Only what was on the way is lost; what is sent meanwhile comes late.
async fn away(kind: Kind, how: fn(&mut Server), outage: Duration) {
    let Some((mut nodes, _way, clients)) = served(kind).await else { return };
    let run = clients.run.clone();
    let from = run.now();
    how(&mut nodes.server);
    let begun = Instant::now();
    for at in 0..2 {
        nodes.is_ready(at, false).await;
    }
    let noticed = run.now();
    sleep(outage.saturating_sub(begun.elapsed())).await;
    nodes.server.start_again().await;
    let until = run.now();
    for at in 0..2 {
        nodes.is_ready(at, true).await;
    }
    println!("  ready again after {} ms", run.now() - until);
    sleep(Duration::from_secs(2)).await;
    let (all, sent) = clients.leave().await;
    let fault = Fault { from, noticed, until };
    let slowest = fault.slowest_before(&all).cast_signed();
    let groups = fault.is_survived(&all, &sent);
    for missing in [&groups[0][1].missing, &groups[1][0].missing] {
        let on_the_way = -slowest..=(noticed - from).cast_signed();
        let lost: Vec<_> = missing.iter().filter(|at| !on_the_way.contains(*at)).collect();
        assert!(lost.is_empty(), "what is sent meanwhile comes late: {lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_keep_their_connections_while_redis_is_stopped_for_ten_seconds() {
    away(Kind::Redis, Server::stop, OUTAGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_keep_their_connections_while_nats_is_stopped_for_ten_seconds() {
    away(Kind::Nats, Server::stop, OUTAGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_keep_their_connections_while_redis_is_killed_and_started_again() {
    away(Kind::Redis, Server::kill, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_keep_their_connections_while_nats_is_killed_and_started_again() {
    away(Kind::Nats, Server::kill, Duration::ZERO).await;
}

/// Nothing passes between one node and the server, and no connection is closed.
async fn silent(kind: Kind) {
    let Some((nodes, way, clients)) = served(kind).await else { return };
    let run = clients.run.clone();
    let from = run.now();
    way.silence();
    let begun = Instant::now();
    nodes.is_ready(0, false).await;
    let noticed = run.now();
    sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    nodes.is_ready(1, true).await;
    way.heal();
    let until = run.now();
    nodes.is_ready(0, true).await;
    let back = run.now();
    println!("  ready again after {} ms", back - until);
    sleep(Duration::from_secs(2)).await;
    let (all, sent) = clients.leave().await;
    let fault = Fault { from, noticed, until };
    let slowest = fault.slowest_before(&all).cast_signed();
    let groups = fault.is_survived(&all, &sent);
    // What waits at the node is sent when it is connected again. What the other one has sent meanwhile is lost.
    assert_eq!(
        groups[1][0].missing, [0; 0],
        "what was sent by the node that was cut off comes late"
    );
    let away = -slowest..=(back - from).cast_signed();
    let missing = &groups[0][1].missing;
    let lost: Vec<_> = missing.iter().filter(|at| !away.contains(*at)).collect();
    assert!(lost.is_empty(), "what was sent before and after it arrives: {lost:?}");
    assert!(!missing.is_empty(), "it was cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_hears_nothing_of_redis_keep_their_connections() {
    silent(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_hears_nothing_of_nats_keep_their_connections() {
    silent(Kind::Nats).await;
}

/// The times that nodes and clients have by default are longer: `DEFAULT_TIMES=1`.
fn has_default_times() -> bool {
    env::var_os("DEFAULT_TIMES").is_some()
}

/// Two nodes behind a load balancer, with clients, and broadcasts of the second node.
async fn balanced(kind: Kind, heartbeat: Duration) -> Option<(Nodes, Clients)> {
    let nodes = Nodes::start_with(kind, 2, Balancer::Haproxy, &[]).await?;
    let address = [nodes.proxy.address.clone()];
    let mut clients = Clients::beating(&address, CLIENTS, heartbeat, true).await;
    clients.broadcast_through(&[nodes.address(1)]);
    sleep(Duration::from_secs(2)).await;
    Some((nodes, clients))
}

/// A node stands still, for less time than its clients need to notice it.
async fn frozen(kind: Kind) {
    let Some((nodes, clients)) = balanced(kind, Duration::from_secs(30)).await else { return };
    let (run, at_both) = (clients.run.clone(), [nodes.sockets(0).await, nodes.sockets(1).await]);
    let node = nodes.running[0].as_ref().unwrap();
    let from = run.now();
    node.signal("-STOP").await;
    // HAProxy takes it out after two seconds.
    sleep(Duration::from_secs(4)).await;
    let come = Instant::now();
    let new = Clients::arrive(slice::from_ref(&nodes.proxy.address), 4).await;
    println!("  four new clients have joined after {:?}", come.elapsed());
    let frozen = Duration::from_secs(if has_default_times() { 30 } else { 8 });
    sleep(frozen.saturating_sub(Duration::from_millis(run.now() - from))).await;
    let until = run.now();
    node.signal("-CONT").await;
    sleep(Duration::from_secs(7)).await;
    new.leave().await;
    let lost = nodes.ask(0, "/ctl/lost").await;
    let (all, sent) = clients.leave().await;
    let fault = Fault { from, noticed: from, until };
    // Where other programs keep the machine busy, one may have been very slow.
    let slow = fault.slowest_before(&all).clamp(1_000, 3_000);
    let (mut waiting, mut late, mut missing) = (BTreeSet::new(), 0, BTreeSet::new());
    for seen in &all {
        let arrived = |at: u64| (from + slow..until).contains(&at);
        let has_waited = !seen.arrived.values().any(|it| arrived(it.at));
        if !has_waited {
            let missed = seen.missed(&sent, slow);
            assert_eq!((missed.lost.len(), seen.joined.len()), (0, 1), "{missed:?}");
            continue;
        }
        waiting.insert(seen.client);
        late += seen.arrived.values().filter(|it| it.took() > slow).count();
        missing.extend(seen.missed(&sent, slow).lost.into_keys());
        let ends =
            sent.iter().filter(|(_, at)| !(from.saturating_sub(slow)..until + 5_000).contains(*at));
        for (n, at) in ends {
            assert!(seen.arrived.contains_key(n), "{n} of {at} was sent before or after");
        }
        assert_eq!(
            (seen.joined.len(), seen.twice),
            (1, 0),
            "a client that waits keeps its connection"
        );
    }
    assert!(
        missing.len() <= lost,
        "what is missing is counted: {missing:?}, and the node has counted {lost}"
    );
    let missing = missing.len();
    println!(
        "  {kind:?}: {at_both:?} sockets, of which {} have received nothing for {} ms; then {late} came late, and \
         {missing} broadcasts are missing, {lost} are counted",
        waiting.len(),
        until - from
    );
    users_leave_once_and_come_back(&all, &waiting);
    assert_eq!([waiting.len(), all.len() - waiting.len()], at_both);
}

/// How many connections are in the list that Redis answers.
async fn subscribers(stream: &mut TcpStream) -> usize {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    // After the end of the list.
    let mut list =
        vec![0; line.trim_start_matches(['$', '=']).trim_end().parse::<usize>().unwrap() + 2];
    stream.read_exact(&mut list).await.unwrap();
    String::from_utf8(list).unwrap().lines().filter(|line| !line.is_empty()).count()
}

/// More is sent to a node that stands still than Redis keeps for it: it ends the connection, and the rest is lost. The node knows
/// how much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_node_is_not_kept_by_redis_is_missing_and_counted() {
    let backends = vec![Backend::free(), Backend::free()];
    let Some(proxy) = Proxy::start(Balancer::Haproxy, &backends).await else { return };
    let Some(server) = Server::start(Kind::Redis).await else { return };
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let limit = b"CONFIG SET client-output-buffer-limit \"pubsub 1mb 0 0\"\r\n";
    stream.write_all(limit).await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    let Some(nodes) = Nodes::behind(proxy, server, backends, &[]).await else { return };
    let addresses = [nodes.address(0), nodes.address(1)];
    let mut clients = Clients::beating(&addresses, 4, Duration::from_secs(60), false).await;
    clients.broadcast_through(&addresses[1..]);
    let node = nodes.running[0].as_ref().unwrap();
    node.signal("-STOP").await;
    // The buffers of the system may take a part of each megabyte.
    for step in 0.. {
        assert!(step < 40, "the server keeps the connection");
        clients.flood(&addresses[1], step, 40_000).await;
        stream.write_all(b"CLIENT LIST TYPE pubsub\r\n").await.unwrap();
        if subscribers(&mut stream).await == 1 {
            break;
        }
    }
    node.signal("-CONT").await;
    let counted = timeout(PATIENCE, async {
        while nodes.ask(0, "/ctl/lost").await == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    counted.await.expect("the node counts what is missing");
    let (all, sent) = clients.leave().await;
    let lost = nodes.ask(0, "/ctl/lost").await;
    let mut missing = BTreeSet::<u64>::new();
    for seen in &all {
        assert_eq!((seen.joined.len(), seen.twice), (1, 0), "clients stay");
        let missed = sent.keys().filter(|n| !seen.arrived.contains_key(n));
        let before = missing.len();
        missing.extend(missed);
        assert!(seen.client % 2 == 0 || missing.len() == before, "its own clients miss nothing");
    }
    println!("  {} of {} are missing, {lost} are counted", missing.len(), sent.len());
    assert!(!missing.is_empty(), "the server has ended the connection");
    assert!(missing.len() <= lost, "{} are missing, and {lost} are counted", missing.len());
}

/// At the other node, each user of the node that stood still has left once and has come back once, and those of its own
/// stay. At the node that stood still, its own stay, and those of the other node have left once at most.
fn users_leave_once_and_come_back(all: &[Seen], waiting: &BTreeSet<usize>) {
    for seen in all {
        let was_frozen = waiting.contains(&seen.client);
        for client in 0..all.len() {
            let user = format!("client-{client}");
            let told = seen.comings_and_goings(&user);
            let (stays, once) = (told.is_empty(), told == [true, false]);
            let as_it_was = match (was_frozen, waiting.contains(&client)) {
                (false, true) => once,
                (true, false) => stays || once,
                (true, true) | (false, false) => stays,
            };
            assert!(as_it_was, "{user} has left, and joined, at client {}: {told:?}", seen.client);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_is_frozen_wait_and_others_do_not_with_redis() {
    frozen(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_is_frozen_wait_and_others_do_not_with_nats() {
    frozen(Kind::Nats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_whose_heartbeats_a_frozen_node_does_not_answer_come_to_the_other_node() {
    let heartbeat = Duration::from_secs(if has_default_times() { 30 } else { 5 });
    let Some((nodes, clients)) = balanced(between(Kind::Redis), heartbeat).await else { return };
    let (run, own) = (clients.run.clone(), nodes.sockets(1).await);
    let node = nodes.running[0].as_ref().unwrap();
    let from = run.now();
    node.signal("-STOP").await;
    let all_there = timeout(4 * PATIENCE, async {
        while nodes.sockets(1).await < CLIENTS {
            sleep(Duration::from_millis(50)).await;
        }
    });
    all_there.await.expect("they have come to the other node");
    crate::clients::all_joined(&run, CLIENTS).await;
    println!("  all are at the other node after {} ms", run.now() - from);
    node.signal("-CONT").await;
    sleep(Duration::from_secs(3)).await;
    let summary = crate::clients::Summary::of("a node was frozen", clients).await;
    let stayed = summary.all.iter().filter(|seen| seen.joined.len() == 1).count();
    assert_eq!(stayed, own, "the clients of the other node stay");
    let twice: usize = summary.all.iter().map(|seen| seen.twice).sum();
    assert_eq!(twice, 0);
    for (seen, missed) in summary.all.iter().zip(&summary.missed) {
        // What was sent while it waited for a heartbeat's answer is lost.
        let lost = missed.lost.values().filter(|at| **at + 1_000 < from || seen.joined.len() == 1);
        assert_eq!(lost.count(), 0, "{missed:?}");
    }
}
