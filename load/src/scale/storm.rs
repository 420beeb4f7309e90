//! Sockets that are all cut off at once and come back at once, next to calm ones that receive paced pushes.

use std::{
    collections::BTreeMap, fmt::Write as _, path::PathBuf, process::Command, thread, time::Duration,
};

use pipeline_load::{
    descriptors,
    latency::Latencies,
    server::Server,
    unix_micros,
    usage::{Machine, ProcessorTime, largest_resident, resident},
};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};

use super::{
    Between,
    crowd::{AT_ONCE, CrowdProcess},
    mb, users_of,
};
use crate::{
    client::{Age, get},
    error::LoadError,
    nodes,
};

/// How long pushes last beyond the time that the slowest rate needs, unless it is said.
const SPARE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Asked {
    /// The program of the nodes, `examples/load_target`
    #[arg(long)]
    target: PathBuf,
    /// The number of sockets that are cut off, on all nodes
    #[arg(long, default_value_t = 20_000)]
    sockets: usize,
    /// The number of sockets that stay, on all nodes
    #[arg(long, default_value_t = 200)]
    calm: usize,
    /// The number of nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// The server that connects them
    #[arg(long, value_enum, default_value_t = Between::Redis)]
    server: Between,
    /// How many may connect, and join, in a second and node: a run for each. 0 is the default of the library, no limit
    #[arg(long, value_delimiter = ',', default_values_t = [0, 2_000, 200])]
    arrivals: Vec<u32>,
    /// Pushes a second to those that stay
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// How long they are pushed to before the others are cut off, in seconds
    #[arg(long, default_value_t = 10)]
    before: u64,
    /// How long they are pushed to after it, in seconds. By default as long as it should take until all are back
    #[arg(long)]
    secs: Option<u64>,
}

/// A node, the sockets that stay, and those that are cut off.
struct Node {
    // Dropped in this order, so that the sockets are not surprised by the node's end.
    calm: CrowdProcess,
    crowd: CrowdProcess,
    server: Server,
}

/// The figures of a run, by what they are.
type Figures = Vec<(String, String)>;

/// Measures, and prints a table with a column for each rate.
pub(crate) fn measure(asked: &Asked) -> Result<(), LoadError> {
    let each = asked.sockets.div_ceil(asked.nodes.max(1)) + asked.calm;
    let allowed = descriptors::raise();
    if allowed < each {
        return Err(LoadError::Stage(format!(
            "the limit of open files allows {allowed} sockets of a node: use more --nodes"
        )));
    }
    // It has to live as long as the server.
    let runtime = Runtime::new()?;
    let between = runtime.block_on(nodes::server(asked.server.kind()))?;
    let (mut runs, mut rows) = (Vec::new(), Vec::new());
    for &rate in &asked.arrivals {
        let before = Machine::now()?;
        let mut figures = run(asked, rate, &between.url(), &runtime)?;
        // The processes of the run have ended, so they count as this one's.
        let others = Machine::now()?.others_since(&before);
        figures.push(("other programs, % of the machine".to_owned(), format!("{others:.0}")));
        for (what, figure) in &figures {
            eprintln!("{}: {what}: {figure}", named(rate));
            if !rows.contains(what) {
                rows.push(what.clone());
            }
        }
        runs.push(figures.into_iter().collect::<BTreeMap<_, _>>());
    }
    let columns: Vec<_> = asked.arrivals.iter().map(|&rate| named(rate)).collect();
    let mut table =
        format!("| what | {} |\n| ---{} |\n", columns.join(" | "), " | ---".repeat(columns.len()));
    for what in rows {
        let of: Vec<_> =
            runs.iter().map(|run| run.get(&what).map_or("0", String::as_str)).collect();
        writeln!(table, "| {what} | {} |", of.join(" | ")).expect("a String takes any text");
    }
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{table}\n{} sockets of {} nodes, connected by {:?}, were cut off at once, and {} stayed. All of it, the clients \
         included, had {cores} cores.",
        asked.sockets, asked.nodes, asked.server, asked.calm
    );
    Ok(())
}

fn named(rate: u32) -> String {
    if rate == 0 { "no limit".to_owned() } else { format!("{rate} a second") }
}

fn start(asked: &Asked, rate: u32, between: &str) -> Result<Vec<Node>, LoadError> {
    // So few that none is refused before the others are cut off: each of two processes has a quarter of a second's.
    let at_once = match usize::try_from(rate).unwrap_or(usize::MAX) {
        0 => AT_ONCE,
        rate => rate.div_ceil(4).min(AT_ONCE),
    };
    let mut nodes = Vec::new();
    for n in 0..asked.nodes {
        let mut command = Command::new(&asked.target);
        command.args(["--port", "0", "--cluster", between]);
        if rate > 0 {
            command.args(["--arrivals", &rate.to_string()]);
        }
        let server = Server::start(&mut command)?;
        // User U is at node U modulo the number of nodes, and the first ones are calm.
        let sockets = |users: usize| {
            let users = users_of(n as u64, asked.nodes as u64, users as u64);
            usize::try_from(users).unwrap_or(usize::MAX)
        };
        let (calm, all) = (sockets(asked.calm), sockets(asked.calm + asked.sockets));
        let first = n + calm * asked.nodes;
        let (address, step) = (server.address, asked.nodes);
        nodes.push(Node {
            calm: CrowdProcess::start(address, n, step, calm, at_once)?,
            crowd: CrowdProcess::start(address, first, step, all - calm, at_once)?,
            server,
        });
    }
    for node in &mut nodes {
        node.calm.joined()?;
        node.crowd.joined()?;
    }
    for (n, node) in nodes.iter().enumerate() {
        let users = format!("first={n}&step={}&count={}", asked.nodes, node.calm.sockets);
        get(node.server.address, &format!("/receives?{users}"))?;
    }
    Ok(nodes)
}

fn run(asked: &Asked, rate: u32, between: &str, runtime: &Runtime) -> Result<Figures, LoadError> {
    let mut nodes = start(asked, rate, between)?;
    let mut figures = Vec::new();
    let mut row = |what: &str, figure: String| figures.push((what.to_owned(), figure));
    let memory =
        |of: fn(u32) -> std::io::Result<u64>, nodes: &[Node]| -> Result<String, LoadError> {
            let of = nodes.iter().map(|node| of(node.server.process()));
            let largest = of.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
            Ok(format!("{:.0}", mb(largest)))
        };
    let before = memory(resident, &nodes)?;

    let each = asked.sockets as u64 / asked.nodes.max(1) as u64;
    let needed = each.checked_div(rate.into()).unwrap_or_default() * 2 + SPARE.as_secs();
    let secs = asked.before + asked.secs.unwrap_or(needed);
    let (calm, pushes) = (asked.calm.max(1) as u64, asked.rate * secs);
    let count = nodes.len() as u64;
    for (n, node) in nodes.iter_mut().enumerate() {
        let of = |users| users_of(n as u64, count, users);
        node.calm.collect(pushes / calm * of(calm) + of(pushes % calm))?;
    }
    let first = nodes.first().ok_or_else(|| LoadError::Stage("there is no node".into()))?;
    let address = first.server.address;
    let request = format!("/paced?users={calm}&rate={}&secs={secs}&due=true", asked.rate);
    let (pushing, began) = (thread::spawn(move || get(address, &request)), Instant::now());
    runtime.block_on(async { sleep(Duration::from_secs(asked.before)).await });

    let used = processor_times(&nodes)?;
    let (cut, cut_at) = (Instant::now(), unix_micros());
    for node in &mut nodes {
        node.crowd.cut_off()?;
    }
    let (mut away, mut failed) = (Vec::new(), BTreeMap::<_, u64>::new());
    for node in &mut nodes {
        let returned = node.crowd.returned()?;
        away.extend(returned.away_ms);
        for (why, count) in returned.failed {
            *failed.entry(why).or_default() += count;
        }
    }
    let took = cut.elapsed();
    let used: Duration =
        processor_times(&nodes)?.iter().zip(&used).map(|(now, was)| now.since(was)).sum();
    let back_at = cut_at + u64::try_from(took.as_micros()).unwrap_or_default();
    row("cut off at once, and all back", away.len().to_string());
    let micros = away.iter().map(|ms| ms * 1000).collect();
    let away = Latencies::new(micros);
    row(
        "until half, 99 %, all were back, seconds",
        [500, 990, 1000].map(|at| format!("{:.1}", away.at(at) / 1e3)).join("; "),
    );
    for (why, count) in failed {
        row(&format!("tries that ended: {why}"), count.to_string());
    }
    row(
        "processor time of all nodes meanwhile, seconds; % of a core",
        format!(
            "{:.1}; {:.0}",
            used.as_secs_f64(),
            used.as_secs_f64() * 100.0 / took.as_secs_f64()
        ),
    );

    let within = began.elapsed() < Duration::from_secs(secs);
    let (mut ages, mut arrived) = (Vec::new(), 0);
    for node in &mut nodes {
        let (frames, of) = node.calm.collected()?;
        arrived += frames;
        ages.extend(of);
    }
    pushing.join().map_err(|_| LoadError::Request("the request thread panicked".into()))??;
    row(
        "pushes to those that stayed: arrived",
        format!("{arrived}, {} missing", pushes.saturating_sub(arrived)),
    );
    let times = |is_part: &dyn Fn(&Age) -> bool| {
        let part: Vec<_> = ages.iter().filter(|age| is_part(age)).map(|age| age.micros).collect();
        let (count, times) = (part.len(), Latencies::new(part));
        let times = [500, 990, 1000].map(|at| format!("{:.1}", times.at(at))).join("; ");
        format!("{times} (of {count})")
    };
    row("the same: ms, p50; p99; the longest, before", times(&|age| age.made_at < cut_at));
    let second_at = cut_at + 1_000_000;
    let first = times(&|age| (cut_at..second_at).contains(&age.made_at));
    row("the same, in the first second", first);
    let meanwhile = times(&|age| (cut_at..back_at).contains(&age.made_at));
    let note = if within { "" } else { ", they ended before all were back" };
    row("the same, until all were back", format!("{meanwhile}{note}"));

    let largest = memory(largest_resident, &nodes)?;
    let users = asked.calm as u64 + asked.sockets as u64;
    for node in &mut nodes {
        let (calm, crowd) = (node.calm.sockets as u64, node.crowd.sockets as u64);
        node.calm.collect(calm)?;
        node.crowd.collect(crowd)?;
    }
    get(address, &format!("/pipe?users={users}&n={users}"))?;
    let mut arrived = 0;
    for node in &mut nodes {
        arrived += node.calm.collected()?.0 + node.crowd.collected()?.0;
    }
    row(
        "a push to each client afterwards: arrived",
        format!("{arrived}, {} missing", users.saturating_sub(arrived)),
    );
    row(
        "memory of a node, MB: before; at most; after",
        format!("{before}; {largest}; {}", memory(resident, &nodes)?),
    );
    Ok(figures)
}

fn processor_times(nodes: &[Node]) -> Result<Vec<ProcessorTime>, LoadError> {
    nodes.iter().map(|node| Ok(ProcessorTime::of(node.server.process())?)).collect()
}
