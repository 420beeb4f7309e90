//! Many sockets over several nodes that one server connects, each joined to the topic of a user of its own, and
//! pushes to all of them from the pipeline of one node.

mod crowd;
mod storm;

use std::{
    fmt::Write as _, net::SocketAddr, path::PathBuf, process::Command, thread, time::Duration,
};

use clap::ValueEnum;
use pipeline_load::{
    descriptors,
    latency::Latencies,
    server::Server,
    usage::{ProcessorTime, resident},
};
use pipeline_test_support::servers;
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};

use self::crowd::{AT_ONCE, CrowdProcess};
pub(crate) use self::{
    crowd::{Crowd, run as run_crowd},
    storm::{Asked as AskedStorm, measure as measure_storm},
};
use crate::{client::get, error::LoadError, figure::Short, nodes};

/// Which server connects the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Between {
    Redis,
    Nats,
}

impl Between {
    fn kind(self) -> servers::Kind {
        match self {
            Self::Redis => servers::Kind::Redis,
            Self::Nats => servers::Kind::Nats,
        }
    }
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Asked {
    /// The program of the nodes, `examples/load_target`
    #[arg(long)]
    target: PathBuf,
    /// The number of sockets of all nodes
    #[arg(long, default_value_t = 100_000)]
    sockets: usize,
    /// The number of nodes
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    /// The server that connects them
    #[arg(long, value_enum, default_value_t = Between::Redis)]
    server: Between,
    /// Pushes a second of the paced loads
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000])]
    rates: Vec<u64>,
    /// How long each of them takes, and how long the nodes are measured while only heartbeats arrive, in seconds
    #[arg(long, default_value_t = 30)]
    secs: u64,
}

/// A node, and the sockets that are connected to it.
struct Node {
    // Dropped in this order, so that the sockets are not surprised by the node's end.
    crowd: CrowdProcess,
    server: Server,
    empty: u64,
}

/// The processor time of the first node, of all others, and of the server between them.
struct Used([Vec<ProcessorTime>; 3]);

impl Used {
    fn now(nodes: &[Node], between: u32) -> Result<Self, LoadError> {
        let of = |nodes: &[Node]| -> Result<Vec<_>, LoadError> {
            nodes.iter().map(|node| Ok(ProcessorTime::of(node.server.process())?)).collect()
        };
        let (first, others) = nodes.split_at(nodes.len().min(1));
        Ok(Self([of(first)?, of(others)?, vec![ProcessorTime::of(between)?]]))
    }

    /// Seconds since an earlier moment.
    fn since(&self, earlier: &Self) -> [f64; 3] {
        let spent = |now: &[ProcessorTime], was: &[ProcessorTime]| {
            now.iter().zip(was).map(|(now, was)| now.since(was)).sum::<Duration>().as_secs_f64()
        };
        [0, 1, 2].map(|part| spent(&self.0[part], &earlier.0[part]))
    }
}

/// Measures, and prints a table.
pub(crate) fn measure(asked: &Asked) -> Result<(), LoadError> {
    let each = asked.sockets.div_ceil(asked.nodes.max(1));
    let allowed = descriptors::raise();
    if allowed < each {
        let needed = asked.sockets.div_ceil(allowed.max(1));
        return Err(LoadError::Stage(format!(
            "the limit of open files allows {allowed} sockets of a node: use --nodes {needed} or more"
        )));
    }
    let kind = asked.server.kind();
    // It has to live as long as the server.
    let runtime = Runtime::new()?;
    let between = runtime.block_on(nodes::server(kind))?;
    let process = between.process().ok_or_else(|| LoadError::Stage("the server ended".into()))?;
    let mut table = String::from("| what | figure |\n| --- | --- |\n");
    let mut row = |what: &str, figure: String| {
        eprintln!("{what}: {figure}");
        writeln!(table, "| {what} | {figure} |").expect("a String takes any text");
    };

    let mut addresses = Vec::new();
    let mut programs = Vec::new();
    for _ in 0..asked.nodes {
        let node = Server::start(Command::new(&asked.target).args([
            "--port",
            "0",
            "--cluster",
            &between.url(),
        ]))?;
        addresses.push(node.address);
        programs.push((resident(node.process())?, node));
    }
    let began = Instant::now();
    let mut nodes = Vec::new();
    for (n, (empty, server)) in programs.into_iter().enumerate() {
        let users = users_of(n as u64, asked.nodes as u64, asked.sockets as u64);
        let sockets = usize::try_from(users).unwrap_or(usize::MAX);
        let crowd = CrowdProcess::start(addresses[n], n, asked.nodes, sockets, AT_ONCE)?;
        nodes.push(Node { server, crowd, empty });
    }
    for node in &mut nodes {
        node.crowd.joined()?;
    }
    row("sockets connected and joined, seconds", format!("{:.1}", began.elapsed().as_secs_f64()));
    for (n, node) in nodes.iter().enumerate() {
        let users = format!("first={n}&step={}&count={}", asked.nodes, node.crowd.sockets);
        get(node.server.address, &format!("/receives?{users}"))?;
    }
    row(
        "until all nodes received the topics of their users, seconds",
        format!("{:.1}", began.elapsed().as_secs_f64()),
    );

    let memory: Vec<_> = nodes
        .iter()
        .map(|node| Ok((node.empty, resident(node.server.process())?, node.crowd.sockets)))
        .collect::<Result<_, LoadError>>()?;
    let (all, empty) = memory.iter().fold((0, 0), |(all, empty), of| (all + of.1, empty + of.0));
    let largest = memory.iter().map(|of| of.1).max().unwrap_or_default();
    row("memory of a node, MB (largest)", format!("{:.0}", mb(largest)));
    row(
        "of that per socket, kB",
        format!("{:.1}", (all - empty) as f64 / 1024.0 / asked.sockets as f64),
    );
    row("memory of the server between them, MB", format!("{:.0}", mb(resident(process)?)));

    let used = Used::now(&nodes, process)?;
    let idle = Duration::from_secs(asked.secs);
    runtime.block_on(async { sleep(idle).await });
    let [first, others, server] = Used::now(&nodes, process)?.since(&used);
    row(
        "processor time while only heartbeats arrive, % of a core: all nodes; the server",
        format!(
            "{:.1}; {:.1}",
            (first + others) * 100.0 / idle.as_secs_f64(),
            server * 100.0 / idle.as_secs_f64()
        ),
    );

    let (users, pushes) = (asked.sockets, 2 * asked.sockets as u64);
    let burst = format!("/pipe?users={users}&n={pushes}");
    load(&mut nodes, process, &mut row, "a burst of two pushes to each user", &burst, pushes)?;
    for rate in &asked.rates {
        let paced = format!("/paced?users={users}&rate={rate}&secs={}", asked.secs);
        let what = format!("{rate} pushes a second");
        load(&mut nodes, process, &mut row, &what, &paced, rate * asked.secs)?;
    }
    let (sockets, count, cores) =
        (asked.sockets, asked.nodes, thread::available_parallelism().map_or(0, usize::from));
    println!(
        "{table}\n{sockets} sockets of {count} nodes, connected by {kind:?}. All of it, the clients included, had \
         {cores} cores."
    );
    Ok(())
}

/// Pushes from the first node, and waits until all have arrived.
fn load(
    nodes: &mut [Node],
    between: u32,
    row: &mut impl FnMut(&str, String),
    what: &str,
    request: &str,
    pushes: u64,
) -> Result<(), LoadError> {
    let users: u64 = nodes.iter().map(|node| node.crowd.sockets as u64).sum();
    let count = nodes.len() as u64;
    for (n, node) in nodes.iter_mut().enumerate() {
        // The pushes go to the users in turn.
        let of = |users| users_of(n as u64, count, users);
        node.crowd.collect(pushes / users * of(users) + of(pushes % users))?;
    }
    let (used, began) = (Used::now(nodes, between)?, Instant::now());
    get(address(nodes)?, request)?;
    let (mut ages, mut arrived) = (Vec::new(), 0);
    for node in nodes.iter_mut() {
        let (frames, of) = node.crowd.collected()?;
        arrived += frames;
        ages.extend(of.iter().map(|age| age.micros));
    }
    let took = began.elapsed().as_secs_f64();
    let [first, others, server] = Used::now(nodes, between)?.since(&used);
    let ages = Latencies::new(ages);
    row(
        &format!("{what}: arrived, of {pushes}"),
        format!("{arrived}, {} missing", pushes.saturating_sub(arrived)),
    );
    row(&format!("{what}: pushes/s"), Short(arrived as f64 / took).to_string());
    row(
        &format!("{what}: ms from enqueue to client, p50; p99; the longest"),
        [500, 990, 1000].map(|at| format!("{:.1}", ages.at(at))).join("; "),
    );
    let each = |seconds: f64| format!("{:.1}", seconds * 1e6 / pushes as f64);
    row(
        &format!(
            "{what}: µs of processor time for each, of the node with the pipeline; the others; the server"
        ),
        [first, others, server].map(each).join("; "),
    );
    Ok(())
}

/// How many of the first users are at a node: user U joins at node U modulo the number of nodes.
fn users_of(node: u64, nodes: u64, users: u64) -> u64 {
    (users + nodes.saturating_sub(1)).saturating_sub(node) / nodes.max(1)
}

fn address(nodes: &[Node]) -> Result<SocketAddr, LoadError> {
    let first = nodes.first().ok_or_else(|| LoadError::Stage("there is no node".into()))?;
    Ok(first.server.address)
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_is_at_one_node() {
        for (nodes, users) in [(1, 7), (3, 61), (8, 100_000), (5, 2)] {
            let counted = |node| (0..users).filter(|user| user % nodes == node).count() as u64;
            for node in 0..nodes {
                assert_eq!(users_of(node, nodes, users), counted(node));
            }
        }
    }
}
