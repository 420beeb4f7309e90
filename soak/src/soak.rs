//! The soak: thousands of clients that misbehave, for minutes or hours.

use std::{
    collections::BTreeMap,
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
    endings::user_of,
    excuse::WINDOW,
    lateness::{Lateness, Ticks},
    presence::people,
    process::{RunError, Server},
    server::{Options, Stats},
    trend::{Trend, Verdict, mean, rise},
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

/// The clients that share a room.
const ROOM: usize = 20;

/// How long nothing may change before the server has done everything, or all clients are done.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// What would be a leak: bytes of the heap for each connection, and descriptors or tasks.
const LEAKED_BYTES: f64 = 100.0;
const LEAKED_COUNT: f64 = 1.0 / 500.0;

/// A run that is at least this long has to show that there is no such leak. In a shorter one, it may be unclear.
const CLEAR_AFTER_MINUTES: f64 = 20.0;

/// By how much a resource may grow all the same in the second half of a run, as a part of its mean, and in all.
const GROWTH: f64 = 0.1;
const SPARE_BYTES: f64 = 8.0 * MIB;
const SPARE_COUNT: f64 = 100.0;

const MIB: f64 = 1024.0 * 1024.0;

/// By how many descriptors and tasks the server may exceed its start once all clients have left, and by how many bytes
/// of the heap: its tables keep their room.
const LEFT_OVER: usize = 4;
const LEFT_OVER_BYTES: usize = 8 << 20;

/// The reasons for which a connection ends here: the client closes it, or resets it, or reads too slowly, or a
/// long-polling client does not poll any more.
const REASONS: [(&str, &str); 4] = [
    ("Closed", "closed by their client"),
    ("Lost", "reset or broken"),
    ("Overflow", "too slow"),
    ("Inactive", "long-polling sessions that were not polled any more"),
];

/// The ends of connections by reason, in words.
fn ends(ended: &BTreeMap<String, u64>) -> String {
    let words = |reason: &str| {
        let known = REASONS.iter().find(|(known, _)| *known == reason);
        known.map_or(reason.to_owned(), |(_, words)| (*words).to_owned())
    };
    let ends = ended.iter().map(|(reason, count)| format!("{count} {}", words(reason)));
    ends.collect::<Vec<_>>().join(" + ")
}

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
    /// Connections that the client has ended when all left.
    pub(crate) left: Count,
    /// Connections that the server counts as too slow: those that were closed with 1011, those that broke, and
    /// those of both whose client read all the time.
    pub(crate) slow: Count,
    pub(crate) slow_and_broken: Count,
    pub(crate) slow_and_reading: Count,
    /// Long-polling sessions that expired, as the client had not polled.
    pub(crate) expired: Count,
    /// Sessions that the client has given up, as they did not take a message in time.
    pub(crate) untaken: Count,
    /// Marks that were answered: all items until then had arrived.
    pub(crate) marks: Count,
    /// Connections that were not accepted.
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
    /// The ticks of this process.
    pub(crate) ticks: Ticks,
    /// Where each client is.
    pub(crate) places: Vec<Mutex<&'static str>>,
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

    /// How many clients are at each place.
    fn places(&self) -> BTreeMap<&'static str, usize> {
        let mut places = BTreeMap::new();
        for place in &self.places {
            *places.entry(*place.lock()).or_default() += 1;
        }
        places
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

/// The resources of the server over time, in the second half of the run: minutes and values.
#[derive(Debug, Default)]
struct Resources {
    /// Bytes that are allocated, and bytes of memory that the process has.
    heap: Vec<(f64, f64)>,
    resident: Vec<(f64, f64)>,
    descriptors: Vec<(f64, f64)>,
    tasks: Vec<(f64, f64)>,
    /// Connections in a minute.
    connects: f64,
}

/// One of them.
struct Resource<'a> {
    name: &'static str,
    points: &'a [(f64, f64)],
    /// What it is shown in.
    unit: f64,
    /// The slope that a leak would cause. The process's memory also depends on the allocator, so it has none.
    leak: Option<f64>,
    /// By how much it may grow in any case.
    spare: f64,
}

impl Soak {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let users = user_of(self.clients.max(2) + 1);
        let options = Options {
            users,
            rate: self.rate,
            fail_millis: 4000,
            idle_secs: 60,
            window_millis: u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX),
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
            ticks: Ticks::start(),
            places: (0..self.clients).map(|_| Mutex::default()).collect(),
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
        settle(&server, self.clients).await?;
        // The last clients that were too slow are back.
        self.all_subscribed(&run).await;
        let numbers: Vec<u64> = server.get("/numbers").await?;
        let numbered: u64 = numbers.iter().sum();
        let rooms: Value = server.get(&format!("/presences?rooms={}", run.rooms)).await?;
        let rooms = (0..run.rooms).map(|room| people(&rooms[format!("room:{room}")])).collect();
        phase.send_replace(Phase::Check(Arc::new(Expected { numbers, rooms })));
        self.all_checked(&run).await;
        phase.send_replace(Phase::Leave);
        clients.join_all().await;
        let mut faults = resources.faults(self.minutes);
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
             {} deliveries checked. {} connects, {} joins, {} leaves, {} resets, {} closes, {} freezes, {} bursts. {} times \
             a client asked for the last item of its user, and had all until then.\n\
             The server ended {} connections as too slow, of which {} clients read the close (1011), {} only saw the \
             end, and the others had gone; {} of these clients had never paused. {} long-polling sessions \
             expired, {} did not take a message in time, {} connections were refused.\n\
             The server's counts: {} connections = {} + {} sessions that no client used; by \
             `socket.closed_slow`, {} were too slow.\n\
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
            totals.marks,
            last.stats.closed_slow,
            totals.slow,
            totals.slow_and_broken,
            totals.slow_and_reading,
            totals.expired,
            totals.untaken,
            totals.refused,
            last.stats.connected,
            ends(&last.stats.ended),
            last.stats.unused,
            last.stats.closed_slow,
            totals.checked,
        );
        resources.print(self.minutes);
        println!(
            "\nThe lateness of a tick of 100 ms:\n\n\
             | process | ticks | p50 | p99 | at most |\n| --- | ---: | ---: | ---: | ---: |"
        );
        for (process, lateness) in
            [("server", last.stats.lateness), ("clients", run.ticks.lateness())]
        {
            let Lateness { ticks, p50, p99, most } = lateness;
            println!("| {process} | {ticks} | {p50:.1} ms | {p99:.1} ms | {most:.1} ms |");
        }
        if faults.is_empty() {
            println!(
                "\nJudged: no item was lost, doubled, out of order or with another user; every connection has one \
                 end, with its reason; all clients had the last items and presences; nothing was left of them."
            );
            println!("{}", resources.judged(self.minutes));
            return Ok(());
        }
        Err(RunError::Violated(faults.join("\n")))
    }

    /// Lets the clients run, and reads the server's resources.
    async fn measure(&self, server: &Server, run: &Run) -> Result<Resources, RunError> {
        let length = Duration::from_secs_f64(self.minutes * 60.0);
        let line = Duration::from_secs(60).min(length / 4);
        let began = Instant::now();
        let mut resources = Resources::default();
        let mut half = None;
        let mut next_line = line;
        let mut sample = interval(SAMPLE);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        println!(
            "| minute | sockets | items received | restarts | too slow | heap MiB | memory MiB | descriptors | tasks | late, server | late, clients |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        while began.elapsed() < length {
            sample.tick().await;
            let stats = server.stats().await?;
            let (resident, descriptors) = (server.resident()? as f64, server.descriptors()?);
            let (at, heap) = (began.elapsed().as_secs_f64() / 60.0, stats.heap as f64);
            if began.elapsed() >= length / 2 {
                let connects = run.totals.connects.get() as f64;
                let (since, before) = *half.get_or_insert((at, connects));
                resources.connects =
                    (connects - before) / (at - since).max(SAMPLE.as_secs_f64() / 60.0);
                resources.heap.push((at, heap));
                resources.resident.push((at, resident));
                resources.descriptors.push((at, descriptors as f64));
                resources.tasks.push((at, stats.tasks as f64));
            }
            if began.elapsed() >= next_line {
                next_line += line;
                println!(
                    "| {at:.1} | {} | {} | {} | {} | {:.1} | {:.1} | {descriptors} | {} | {} ms | {} ms |",
                    stats.sockets,
                    run.totals.items,
                    stats.restarts,
                    stats.closed_slow,
                    heap / MIB,
                    resident / MIB,
                    stats.tasks,
                    stats.late_millis,
                    run.ticks.worst_within(Duration::from_secs(60)).as_millis(),
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
            let places = run.places();
            let what = format!("{subscribed} of {} clients could join: {places:?}", self.clients);
            run.violated(0, &what);
        }
    }

    async fn all_checked(&self, run: &Run) {
        let all = async {
            while run.totals.checked.get() < self.clients as u64 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(SETTLES_WITHIN, all).await.is_err() {
            let (checked, places) = (&run.totals.checked, run.places());
            run.violated(
                0,
                &format!("{checked} of {} clients could check: {places:?}", self.clients),
            );
        }
    }

    /// The faults that the clients found.
    fn faults(&self, run: &Run, last: &Stats) -> Vec<String> {
        let (count, mut faults) = run.violations.lock().clone();
        if count > faults.len() {
            faults.push(format!("{count} violations in all"));
        }
        faults.extend(sums(&run.totals, last));
        if run.totals.items.get() == 0 {
            faults.push("no item arrived".to_owned());
        }
        faults
    }
}

/// Compares the sums of the clients with those of the server.
fn sums(totals: &Totals, last: &Stats) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            faults.push(format!("{what}: {totals:?}, {last:?}"));
        }
    };
    let ended = |reason: &str| last.ended.get(reason).copied().unwrap_or_default();
    let slow = totals.slow.get() + totals.slow_and_broken.get();
    let by_client = totals.resets.get() + totals.closes.get() + totals.left.get();
    let connects = totals.connects.get();
    expect(totals.refused.get() == 0, "connections were refused");
    expect(
        connects == by_client + slow + totals.expired.get() + totals.untaken.get(),
        "a connection has no end, or two, at its client",
    );
    expect(
        connects + last.unused == last.connected,
        "clients and server count different connections",
    );
    expect(
        last.ended.values().sum::<u64>() + last.unused == last.connected,
        "a connection has no end, or two, at the server",
    );
    expect(
        last.ended.keys().all(|ended| REASONS.iter().any(|(reason, _)| reason == ended)),
        "a connection ended for another reason",
    );
    expect(ended("Overflow") == last.closed_slow, "the log and the counter of slow clients differ");
    expect(slow <= ended("Overflow"), "more clients were too slow than the server counts");
    expect(
        totals.expired.get() + totals.untaken.get() <= ended("Inactive"),
        "more sessions expired than the server counts",
    );
    faults
}

impl Resources {
    fn all(&self) -> [Resource<'_>; 4] {
        let connects = self.connects;
        let count = |name, points| Resource {
            name,
            points,
            unit: 1.0,
            leak: Some(LEAKED_COUNT * connects),
            spare: SPARE_COUNT,
        };
        let bytes =
            |name, points, leak| Resource { name, points, unit: MIB, leak, spare: SPARE_BYTES };
        [
            bytes("heap in MiB", &self.heap, Some(LEAKED_BYTES * connects)),
            bytes("memory in MiB", &self.resident, None),
            count("descriptors", &self.descriptors),
            count("tasks", &self.tasks),
        ]
    }

    fn faults(&self, minutes: f64) -> Vec<String> {
        let mut faults = Vec::new();
        for Resource { name, points, unit, leak, spare } in self.all() {
            let (rise, bound) = (rise(points), GROWTH * mean(points) + spare);
            if rise > bound {
                let (rise, bound) = (rise / unit, bound / unit);
                faults.push(format!("{name}: rose by {rise:.1}, more than {bound:.1}"));
            }
            let Some(leak) = leak else { continue };
            let trend = Trend::of(points);
            let what = match trend.verdict(leak) {
                Verdict::Leaks => "grows as a leak does",
                Verdict::Unclear if minutes >= CLEAR_AFTER_MINUTES => "may grow as a leak does",
                Verdict::Level | Verdict::Unclear => continue,
            };
            let Trend { low, high, .. } = trend;
            faults.push(format!(
                "{name}: {what}, by {:.3} to {:.3} a minute; a leak would be {:.3}",
                low / unit,
                high / unit,
                leak / unit
            ));
        }
        faults
    }

    /// Which leaks were looked for, and which could not be: the run does not fail for these.
    fn judged(&self, minutes: f64) -> String {
        let (mut level, mut unclear) = (Vec::new(), Vec::new());
        for Resource { name, points, leak, .. } in self.all() {
            let name = name.trim_end_matches(" in MiB");
            match leak.map(|leak| Trend::of(points).verdict(leak)) {
                Some(Verdict::Level) => level.push(name),
                Some(_) => unclear.push(name),
                None => {}
            }
        }
        let judged = match level.is_empty() {
            true => String::new(),
            false => format!("Judged: no leak of {}. ", level.join(", ")),
        };
        if unclear.is_empty() {
            return judged.trim_end().to_owned();
        }
        format!(
            "{judged}Not judged: leaks of {}. A run of {minutes} minutes is too short to judge leaks: that needs \
             {CLEAR_AFTER_MINUTES} minutes (`--minutes {CLEAR_AFTER_MINUTES}`).",
            unclear.join(", ")
        )
    }

    fn print(&self, minutes: f64) {
        println!(
            "\nThe second half of the run, with {:.0} connections a minute:\n\n\
             | resource | mean | growth of the floor per minute | from | to | a leak would be | |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | --- |",
            self.connects
        );
        for Resource { name, points, unit, leak, .. } in self.all() {
            let trend = Trend::of(points);
            let [low, slope, high] = [trend.low, trend.slope, trend.high].map(|slope| slope / unit);
            let (leak, verdict) = leak.map_or(("-".to_owned(), "-".to_owned()), |leak| {
                let verdict = match trend.verdict(leak) {
                    Verdict::Level => "no leak",
                    Verdict::Leaks => "leaks",
                    Verdict::Unclear if minutes < CLEAR_AFTER_MINUTES => "too short to judge",
                    Verdict::Unclear => "may leak",
                };
                (format!("{:.3}", leak / unit), verdict.to_owned())
            });
            println!(
                "| {name} | {:.1} | {slope:+.3} | {low:+.3} | {high:+.3} | {leak} | {verdict} |",
                mean(points) / unit
            );
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

/// Waits until all items are handled, all frames are written, and only the clients' sockets are open.
async fn settle(server: &Server, clients: usize) -> Result<(), RunError> {
    let mut settling = Settling::new();
    loop {
        let stats = server.stats().await?;
        match settling.look(Instant::now(), &stats, clients) {
            Settled::Idle => return Ok(()),
            Settled::Busy => sleep(Duration::from_secs(1)).await,
            Settled::Stuck => {
                return Err(RunError::Violated(format!(
                    "the server has handled and written nothing for {SETTLES_WITHIN:?}, and holds something: {stats:?}"
                )));
            }
        }
    }
}

/// Watches a server that has to become idle.
struct Settling {
    /// The handled items at the last look, the least that was left, and when either got better.
    handled: Option<u64>,
    left: usize,
    progress: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Settled {
    Idle,
    Busy,
    /// Nothing has changed for too long.
    Stuck,
}

impl Settling {
    fn new() -> Self {
        Self { handled: None, left: usize::MAX, progress: Instant::now() }
    }

    fn look(&mut self, now: Instant, stats: &Stats, clients: usize) -> Settled {
        let sockets = stats.sockets.abs_diff(clients);
        let left = stats.pushing + stats.held() + stats.frames_waiting + sockets;
        let is_unchanged = self.handled == Some(stats.handled);
        let begun = stats.accepted + stats.refused_full + stats.refused_closed;
        if left == 0 && stats.begun == begun && is_unchanged {
            return Settled::Idle;
        }
        if left < self.left || !is_unchanged {
            self.progress = now;
        }
        (self.handled, self.left) = (Some(stats.handled), left.min(self.left));
        if now - self.progress > SETTLES_WITHIN { Settled::Stuck } else { Settled::Busy }
    }
}

/// The descriptors, tasks and bytes that are left once all clients have gone.
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
            && now <= descriptors + LEFT_OVER
            && stats.heap <= before.heap + LEFT_OVER_BYTES;
        let [heap, heap_before] = [stats.heap, before.heap].map(|bytes| bytes as f64 / MIB);
        if is_as_before {
            println!(
                "\nAfter all clients have left: {} tasks ({} before), {now} descriptors ({descriptors} before), a heap of \
                 {heap:.1} MiB ({heap_before:.1} before).",
                stats.tasks, before.tasks
            );
            return Ok(None);
        }
        if began.elapsed() > SETTLES_WITHIN {
            return Ok(Some(format!(
                "all clients have left: {} sockets, {} presences, {} tasks ({} before), {now} descriptors \
                 ({descriptors} before), a heap of {heap:.1} MiB ({heap_before:.1} before)",
                stats.sockets, stats.presences, stats.tasks, before.tasks
            )));
        }
        sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten connections: two are too slow, and one of these clients had gone before; two of three that had not polled
    /// any more have noticed it.
    fn run() -> (Totals, Stats) {
        let totals = Totals::default();
        let counts = [
            (&totals.connects, 10),
            (&totals.resets, 3),
            (&totals.closes, 2),
            (&totals.left, 2),
            (&totals.slow, 1),
            (&totals.expired, 1),
            (&totals.untaken, 1),
        ];
        for (count, times) in counts {
            (0..times).for_each(|_| count.add());
        }
        let ended = [("Overflow", 2), ("Inactive", 3), ("Closed", 3), ("Lost", 2)];
        let ended = ended.map(|(reason, count)| (reason.to_owned(), count)).into();
        (totals, Stats { connected: 10, closed_slow: 2, ended, ..Stats::default() })
    }

    #[test]
    fn a_connection_that_is_in_no_sum_or_in_two_is_a_fault() {
        let (totals, last) = run();
        assert_eq!(sums(&totals, &last), [""; 0]);
        let with = |reason: &str, count| {
            let mut stats = last.clone();
            *stats.ended.entry(reason.to_owned()).or_default() += count;
            stats
        };
        assert_eq!(sums(&totals, &with("Lost", 1)).len(), 1, "one has ended twice");
        assert_eq!(sums(&totals, &with("Overflow", 1)).len(), 2, "one more was too slow");
        let idle = Stats { connected: 11, ..with("Idle", 1) };
        assert_eq!(sums(&totals, &idle).len(), 2, "one more, for another reason");
        let unused = Stats { unused: 1, connected: 11, ..last.clone() };
        assert_eq!(sums(&totals, &unused), [""; 0], "a session that was not used");
        totals.slow_and_broken.add();
        assert_eq!(sums(&totals, &last).len(), 1, "one end more than connections");
        totals.slow_and_broken.add();
        assert_eq!(sums(&totals, &last).len(), 2, "more slow clients than the server has");
        let (totals, last) = run();
        totals.refused.add();
        assert_eq!(sums(&totals, &last).len(), 1, "refused");
        let (totals, mut last) = run();
        last.closed_slow = 1;
        assert_eq!(sums(&totals, &last).len(), 1, "the counter has one less");
    }

    #[test]
    fn a_server_that_holds_something_and_makes_no_progress_is_stuck() {
        let (began, mut settling) = (Instant::now(), Settling::new());
        let mut look = |seconds, handled, frames_waiting| {
            let stats = Stats { handled, frames_waiting, sockets: 3, ..Stats::default() };
            settling.look(began + Duration::from_secs(seconds), &stats, 2)
        };
        assert_eq!(look(1, 10, 5), Settled::Busy);
        assert_eq!(look(50, 11, 5), Settled::Busy, "an item was handled");
        assert_eq!(look(100, 11, 4), Settled::Busy, "a frame was written");
        assert_eq!(look(159, 11, 5), Settled::Busy);
        assert_eq!(look(161, 11, 4), Settled::Stuck);
        assert_eq!(look(162, 12, 0), Settled::Busy, "an item was handled");
        assert_eq!(look(222, 12, 0), Settled::Busy);
        assert_eq!(look(223, 12, 0), Settled::Stuck, "a socket is left");
        let idle = Stats { handled: 12, sockets: 2, ..Stats::default() };
        assert_eq!(settling.look(began + Duration::from_secs(224), &idle, 2), Settled::Idle);
    }

    #[test]
    fn a_long_run_has_to_be_clear_and_a_short_one_need_not() {
        let mut resources = Resources { connects: 3800.0, ..Resources::default() };
        let with = |mib_a_minute: f64, minutes: u32| -> Vec<(f64, f64)> {
            let at = (0..minutes * 60).map(|second| f64::from(second) / 60.0);
            at.map(|at| (at, (60.0 + mib_a_minute * at) * MIB)).collect()
        };
        let level: Vec<_> = (0..900).map(|second| (f64::from(second) / 60.0, 2000.0)).collect();
        (resources.descriptors, resources.tasks) = (level.clone(), level);
        (resources.heap, resources.resident) = (with(0.0, 15), with(0.9, 15));
        assert_eq!(resources.faults(30.0), [""; 0]);
        resources.heap = with(0.37, 15);
        assert_eq!(resources.faults(30.0).len(), 1, "{:?}", resources.faults(30.0));
        resources.resident = with(3.0, 15);
        assert_eq!(resources.faults(30.0).len(), 2, "{:?}", resources.faults(30.0));
        (resources.heap, resources.resident) = (Vec::new(), Vec::new());
        assert_eq!(resources.faults(1.0), [""; 0]);
        let judged = resources.judged(1.0);
        assert!(judged.contains("no leak of descriptors, tasks."), "{judged}");
        assert!(judged.contains("Not judged: leaks of heap."), "{judged}");
        assert!(judged.contains("needs 20 minutes"), "{judged}");
        assert_eq!(resources.faults(30.0).len(), 1, "{:?}", resources.faults(30.0));
    }
}
