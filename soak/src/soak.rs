//! The soak: thousands of clients that misbehave, for minutes or hours.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    client::Http,
    presence::people,
    process::{RunError, Server},
    server::{Options, Stats},
    trend::{mean, slope},
    visitor::{Expected, Phase, Visitor},
};

/// Run thousands of clients that join, leave, die, freeze and come back, and check everything that they receive
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How many minutes the clients misbehave
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The number of clients: four in five over WebSocket, the others over long polling
    #[arg(long, default_value_t = 2000)]
    clients: usize,
    /// Items per second, in turn to each user; there are half as many users as clients
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Seconds between the actions of a client, at most
    #[arg(long, default_value_t = 20)]
    calm: u64,
    /// One freeze in this many is with a burst that overflows the client's connection
    #[arg(long, default_value_t = 20)]
    bursts: u64,
    /// The seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How often the resources of the server are read.
const SAMPLE: Duration = Duration::from_secs(1);

/// The first part of a run, which is not measured: at most this long, and at most a third of it.
const WARM_UP: Duration = Duration::from_secs(120);

/// The clients that share a room.
const ROOM: usize = 20;

/// How long nothing may change before the server has done everything, or all clients are done.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// By how much a resource may grow during the measured time, as a part of its mean, and in all. The clients come and
/// go at random, so no resource is quite level.
const GROWTH: f64 = 0.1;
const SPARE_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
const SPARE_COUNT: f64 = 100.0;

/// By how many descriptors and tasks the server may exceed its start once all clients have left.
const LEFT_OVER: usize = 4;

/// The number of violations that are kept. All are counted.
const KEPT: usize = 20;

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Counts of all clients.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) items: Count,
    pub(crate) connects: Count,
    pub(crate) joins: Count,
    pub(crate) leaves: Count,
    pub(crate) resets: Count,
    pub(crate) closes: Count,
    pub(crate) freezes: Count,
    pub(crate) bursts: Count,
    /// Connections that were closed with 1011.
    pub(crate) overflowed: Count,
    /// Long-polling sessions that expired while the client was frozen.
    pub(crate) expired: Count,
    /// Connections that the client has not ended, and that had no close.
    pub(crate) broken: Count,
    pub(crate) refused: Count,
    /// Clients that have compared their state with the server's.
    pub(crate) checked: Count,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) address: SocketAddr,
    pub(crate) users: usize,
    pub(crate) rooms: usize,
    pub(crate) calm_millis: u64,
    pub(crate) bursts: u64,
    pub(crate) seed: u64,
    pub(crate) totals: Totals,
    subscribed: AtomicUsize,
    violations: Mutex<(usize, Vec<String>)>,
}

impl Run {
    pub(crate) fn violated(&self, client: usize, what: &str) {
        let mut violations = self.violations.lock();
        violations.0 += 1;
        if violations.1.len() < KEPT {
            violations.1.push(format!("client {client}: {what}"));
        }
    }

    /// Counts a client that has joined everything, or has not any more.
    pub(crate) fn subscribed(&self, is_subscribed: bool) {
        if is_subscribed {
            self.subscribed.fetch_add(1, Relaxed);
        } else {
            self.subscribed.fetch_sub(1, Relaxed);
        }
    }
}

/// The resources of the server over time: minutes and values.
#[derive(Debug, Default)]
struct Resources {
    bytes: Vec<(f64, f64)>,
    descriptors: Vec<(f64, f64)>,
    tasks: Vec<(f64, f64)>,
}

/// One of them.
struct Resource<'a> {
    name: &'static str,
    points: &'a [(f64, f64)],
    /// What it is shown in.
    unit: f64,
    /// By how much it may grow in any case.
    spare: f64,
}

impl Soak {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let users = (self.clients / 2).max(1);
        let options = Options {
            users,
            rate: self.rate,
            failing: true,
            work_us: 0,
            max_demand: 100,
            queue: 10_000,
            outbox: 256,
            drain_secs: 10,
        };
        let server = Server::start(&options).await?;
        let before = server.stats().await?;
        let descriptors = server.descriptors()?;
        let run = Arc::new(Run {
            address: server.address,
            users,
            rooms: self.clients.div_ceil(ROOM),
            calm_millis: self.calm * 1000,
            bursts: self.bursts,
            seed: self.seed,
            totals: Totals::default(),
            subscribed: AtomicUsize::default(),
            violations: Mutex::default(),
        });
        server.request("/start").await?;
        let (phase, phases) = watch::channel(Phase::Churn);
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            clients.spawn(Visitor::new(run.clone(), number).live(phases.clone()));
        }
        let intake = tokio::spawn(push(run.clone(), phases.clone()));

        let resources = self.measure(&server, &run).await?;
        phase.send_replace(Phase::Quiet);
        self.all_subscribed(&run).await;
        // The last items are pushed to clients that all read.
        sleep(Duration::from_secs(2)).await;
        server.request("/pause").await?;
        intake.abort();
        settle(&server).await?;
        let numbers: Vec<u64> = server.get("/numbers").await?;
        let numbered: u64 = numbers.iter().sum();
        let rooms: Value = server.get(&format!("/presences?rooms={}", run.rooms)).await?;
        let rooms = (0..run.rooms).map(|room| people(&rooms[format!("room:{room}")])).collect();
        phase.send_replace(Phase::Check(Arc::new(Expected { numbers, rooms })));
        self.all_checked(&run).await;
        phase.send_replace(Phase::Leave);
        clients.join_all().await;
        let mut faults = resources.faults();
        faults.extend(left_over(&server, &before, descriptors).await?);
        server.signal(Signal::TERM)?;
        let last = server.ended().await?;
        faults.extend(self.faults(&run, &last.stats));
        let (accepted, lost) = (last.stats.accepted, last.unprocessed as u64);
        if accepted != numbered + lost || last.stats.handled != numbered {
            faults.push(format!(
                "{accepted} items were accepted, {numbered} were numbered, {} were broadcast, and {lost} are \
                 counted as lost by the stage that fails: {}",
                last.stats.handled, last.report
            ));
        }
        let totals = &run.totals;
        println!(
            "\n{accepted} items accepted = {numbered} broadcast + {lost} lost and counted in {} restarts of a \
             stage; {} refused as the queue was full.\n\
             {} deliveries checked. {} connects, {} joins, {} leaves, {} resets, {} closes, {} freezes, {} bursts.\n\
             {} connections closed as too slow (1011), {} broken, {} long-polling sessions expired, {} refused; the \
             server counts {} as too slow.\n\
             {} clients compared their last item and their presences with the server's.",
            last.stats.restarts,
            last.stats.refused_full,
            totals.items,
            totals.connects,
            totals.joins,
            totals.leaves,
            totals.resets,
            totals.closes,
            totals.freezes,
            totals.bursts,
            totals.overflowed,
            totals.broken,
            totals.expired,
            totals.refused,
            last.stats.closed_slow,
            totals.checked,
        );
        resources.print();
        if faults.is_empty() {
            println!("\nNo item was lost, doubled, out of order or with another user.");
            return Ok(());
        }
        Err(RunError::Violated(faults.join("\n")))
    }

    /// Lets the clients run, and reads the server's resources.
    async fn measure(&self, server: &Server, run: &Run) -> Result<Resources, RunError> {
        let length = Duration::from_secs_f64(self.minutes * 60.0);
        let warm_up = WARM_UP.min(length / 3);
        let line = Duration::from_secs(60).min(length / 4);
        let began = Instant::now();
        let mut resources = Resources::default();
        let mut next_line = line;
        let mut sample = interval(SAMPLE);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        println!(
            "| minute | sockets | items received | restarts | too slow | MiB | descriptors | tasks |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        while began.elapsed() < length {
            sample.tick().await;
            let stats = server.stats().await?;
            let (bytes, descriptors) = (server.resident()?, server.descriptors()?);
            let at = began.elapsed().as_secs_f64() / 60.0;
            if began.elapsed() >= warm_up {
                resources.bytes.push((at, bytes as f64));
                resources.descriptors.push((at, descriptors as f64));
                resources.tasks.push((at, stats.tasks as f64));
            }
            if began.elapsed() >= next_line {
                next_line += line;
                println!(
                    "| {at:.1} | {} | {} | {} | {} | {:.1} | {descriptors} | {} |",
                    stats.sockets,
                    run.totals.items,
                    stats.restarts,
                    stats.closed_slow,
                    bytes as f64 / 1024.0 / 1024.0,
                    stats.tasks,
                );
            }
        }
        Ok(resources)
    }

    async fn all_subscribed(&self, run: &Run) {
        let all = async {
            while run.subscribed.load(Relaxed) < self.clients {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(SETTLES_WITHIN, all).await.is_err() {
            let subscribed = run.subscribed.load(Relaxed);
            run.violated(0, &format!("{subscribed} of {} clients could join", self.clients));
        }
    }

    async fn all_checked(&self, run: &Run) {
        let all = async {
            while run.totals.checked.get() < self.clients as u64 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(SETTLES_WITHIN, all).await.is_err() {
            run.violated(
                0,
                &format!("{} of {} clients could check", run.totals.checked, self.clients),
            );
        }
    }

    /// The faults that the clients found.
    fn faults(&self, run: &Run, last: &Stats) -> Vec<String> {
        let (count, mut faults) = run.violations.lock().clone();
        if count > faults.len() {
            faults.push(format!("{count} violations in all"));
        }
        let totals = &run.totals;
        let unexplained = totals.overflowed.get() + totals.broken.get();
        if unexplained > last.closed_slow {
            faults.push(format!(
                "{unexplained} connections ended that the client has not ended, and the server counts {} as too slow",
                last.closed_slow
            ));
        }
        if totals.refused.get() > 0 {
            faults.push(format!("{} connections were refused", totals.refused));
        }
        if totals.items.get() == 0 {
            faults.push("no item arrived".to_owned());
        }
        faults
    }
}

impl Resources {
    fn all(&self) -> [Resource<'_>; 3] {
        let count = |name, points| Resource { name, points, unit: 1.0, spare: SPARE_COUNT };
        let (points, unit) = (&*self.bytes, 1024.0 * 1024.0);
        [
            Resource { name: "memory in MiB", points, unit, spare: SPARE_BYTES },
            count("descriptors", &self.descriptors),
            count("tasks", &self.tasks),
        ]
    }

    fn faults(&self) -> Vec<String> {
        let grows = |Resource { name, points, unit, spare }: Resource<'_>| {
            let minutes = points.last()?.0 - points.first()?.0;
            let (growth, bound) = (slope(points) * minutes, GROWTH * mean(points) + spare);
            (growth > bound).then(|| {
                format!("{name} grew by {:.1}, more than {:.1}", growth / unit, bound / unit)
            })
        };
        self.all().into_iter().filter_map(grows).collect()
    }

    fn print(&self) {
        println!("\n| resource | mean | slope per minute |\n| --- | ---: | ---: |");
        for Resource { name, points, unit, .. } in self.all() {
            println!("| {name} | {:.1} | {:+.3} |", mean(points) / unit, slope(points) / unit);
        }
    }
}

/// Pushes items through the server's intake.
async fn push(run: Arc<Run>, phases: watch::Receiver<Phase>) {
    let mut pace = interval(Duration::from_millis(10));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Ok(mut http) = Http::connect(run.address).await else {
        return run.violated(0, "the intake cannot be reached");
    };
    let mut numbers = vec![0_u64; run.users];
    for user in (0..run.users).cycle() {
        pace.tick().await;
        let path = format!("/push?user={user}&n={}", numbers[user] + 1);
        match http.request("POST", &path, "").await {
            Ok((202, _)) => numbers[user] += 1,
            Ok((503, _)) => {}
            _ if matches!(*phases.borrow(), Phase::Leave) => return,
            other => return run.violated(0, &format!("the intake answered {other:?}")),
        }
    }
}

/// Waits until all items are handled and all frames are written.
async fn settle(server: &Server) -> Result<Stats, RunError> {
    let mut progress = Instant::now();
    let mut before = Stats::default();
    loop {
        let stats = server.stats().await?;
        if stats.handled > before.handled {
            progress = Instant::now();
        }
        let begun = stats.accepted + stats.refused_full + stats.refused_closed;
        let is_idle = stats.pushing == 0
            && stats.held() == 0
            && stats.frames_waiting == 0
            && stats.begun == begun
            && stats.handled == before.handled;
        if is_idle || progress.elapsed() > SETTLES_WITHIN {
            return Ok(stats);
        }
        before = stats;
        sleep(Duration::from_secs(1)).await;
    }
}

/// The descriptors and tasks that are left once all clients have gone.
async fn left_over(
    server: &Server,
    before: &Stats,
    descriptors: usize,
) -> Result<Option<String>, RunError> {
    let began = Instant::now();
    loop {
        let (stats, now) = (server.stats().await?, server.descriptors()?);
        let is_as_before = stats.sockets == 0
            && stats.presences == 0
            && stats.tasks <= before.tasks + LEFT_OVER
            && now <= descriptors + LEFT_OVER;
        if is_as_before {
            println!(
                "\nAfter all clients have left: {} tasks ({} before), {now} descriptors ({descriptors} before).",
                stats.tasks, before.tasks
            );
            return Ok(None);
        }
        if began.elapsed() > SETTLES_WITHIN {
            return Ok(Some(format!(
                "all clients have left: {} sockets, {} presences, {} tasks ({} before), {now} descriptors \
                 ({descriptors} before)",
                stats.sockets, stats.presences, stats.tasks, before.tasks
            )));
        }
        sleep(Duration::from_secs(1)).await;
    }
}
