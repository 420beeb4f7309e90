//! Signals at random moments: every accepted item is delivered, or counted by reason.

use std::{collections::HashSet, fmt, net::SocketAddr, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    client::{Ended, Http, PATIENCE, Transport},
    process::{RunError, Server},
    random::Random,
    reader::{self, Read},
    server::{FAILING_DEMAND, Final, From as Source, Options},
};

/// Stop a server under load by signals at random moments, and account for every item
#[derive(Debug, clap::Args)]
pub(crate) struct Signals {
    /// How often a server is started and stopped
    #[arg(long, default_value_t = 500)]
    runs: u64,
    /// Instead, freeze a server with SIGSTOP for this many seconds, and let it continue
    #[arg(long)]
    stop: Option<u64>,
    /// The seconds of silence after which the server closes a socket: fewer than it is frozen for
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// The seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The number of users, each with one client.
const USERS: usize = 40;

/// How many clients use long polling.
const POLLING: usize = 5;

/// A run in this many has a stage that fails again and again, about ten times a second.
const FAILING: u64 = 2;
const FAIL_MILLIS: u64 = 160;

/// For how many milliseconds a poll waits. A shutdown waits for those that are under way, so it is short.
const WINDOW_MILLIS: u64 = 2000;

/// How many clients stop reading before two signals, until the server has ended. They do not answer the close.
const SLEEPING: usize = 2;

/// The number of tasks that push by HTTP.
const INTAKES: usize = 3;

/// How long the server runs before SIGSTOP, and after SIGCONT.
const BEFORE_STOP: Duration = Duration::from_secs(2);
const AFTER_STOP: Duration = Duration::from_secs(6);

/// Items that are accounted for, over all runs.
#[derive(Debug, Default)]
struct Sums {
    runs: u64,
    interrupted: u64,
    accepted: u64,
    /// Those of them that were accepted with a 2xx.
    by_http: u64,
    delivered: u64,
    /// Dropped before the numbering stage, before a worker, and in a worker.
    dropped: [u64; 3],
    left: usize,
    frames_dropped: u64,
    frames_waiting: usize,
    /// Items that the reports have as unprocessed.
    unprocessed: usize,
    /// Sockets that the reports have as closed and as aborted, and clients that have read the close.
    closed: usize,
    aborted: usize,
    notified: u64,
    /// Items that were delivered, although their worker had not returned.
    both: u64,
    /// Restarts of the stage that fails.
    restarts: u64,
    /// Items that ended with it, in runs without a second signal.
    failed: u64,
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| runs | interrupted by a second signal | items accepted | of these by HTTP | delivered |"
        )?;
        writeln!(f, "| ---: | ---: | ---: | ---: | ---: |")?;
        writeln!(
            f,
            "| {} | {} | {} | {} | {} |\n",
            self.runs, self.interrupted, self.accepted, self.by_http, self.delivered
        )?;
        writeln!(
            f,
            "| ended in the queue or before it is numbered | before a worker | in a worker | unprocessed, by the \
             reports | frames dropped | frames waiting | delivered by a worker that was ended |"
        )?;
        writeln!(f, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        let [queue, numbered, worker] = self.dropped;
        writeln!(
            f,
            "| {} | {numbered} | {worker} | {} | {} | {} | {} |\n",
            queue + self.left as u64,
            self.unprocessed,
            self.frames_dropped,
            self.frames_waiting,
            self.both
        )?;
        writeln!(
            f,
            "| sockets closed, by the reports | aborted | clients that read the close (1012) |"
        )?;
        writeln!(f, "| ---: | ---: | ---: |")?;
        writeln!(f, "| {} | {} | {} |\n", self.closed, self.aborted, self.notified)?;
        writeln!(
            f,
            "| restarts of a stage | items that ended with it, in shutdowns that were not interrupted |"
        )?;
        writeln!(f, "| ---: | ---: |\n| {} | {} |", self.restarts, self.failed)
    }
}

/// The items that an intake pushed by HTTP and that were accepted.
type Accepted = Vec<(usize, u64)>;

impl Signals {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let mut random = Random::new(self.seed);
        let mut sums = Sums::default();
        let mut faults = Vec::new();
        let began = Instant::now();
        if let Some(seconds) = self.stop {
            let load = Load::start(0, self.idle).await?;
            faults = load.freeze(Duration::from_secs(seconds), &mut sums).await?;
        } else {
            for run in 0..self.runs {
                let millis = if run % FAILING == 0 { FAIL_MILLIS } else { 0 };
                let load = Load::start(millis, self.idle).await?;
                let found = load.stop(&mut random, &mut sums).await?;
                faults.extend(found.into_iter().map(|fault| format!("run {run}: {fault}")));
            }
        }
        println!("{sums}\nIn {:.0} s.", began.elapsed().as_secs_f64());
        if faults.is_empty() {
            println!("Every accepted item was delivered, or is counted by reason.");
            return Ok(());
        }
        let count = faults.len();
        faults.truncate(20);
        Err(RunError::Violated(format!("{count} faults:\n{}", faults.join("\n"))))
    }
}

/// A server, its readers and its intakes.
struct Load {
    server: Server,
    /// Whether a stage fails.
    is_failing: bool,
    readers: Vec<JoinHandle<Read>>,
    intakes: Vec<JoinHandle<Accepted>>,
    asleep: watch::Sender<bool>,
}

impl Load {
    async fn start(fail_millis: u64, idle_secs: u64) -> Result<Self, RunError> {
        let options = Options {
            users: USERS,
            rate: 2000,
            fail_millis,
            idle_secs,
            window_millis: WINDOW_MILLIS,
            work_us: 4000,
            max_demand: 20,
            queue: 300,
            outbox: 256,
            drain_secs: 30,
        };
        let server = Server::start(&options).await?;
        let mut readers = Vec::new();
        let (asleep, sleeping) = watch::channel(false);
        let (_awake, waking) = watch::channel(false);
        for user in 0..USERS {
            let transport = if user < POLLING { Transport::LongPoll } else { Transport::WebSocket };
            let sleeps = if user >= USERS - SLEEPING { &sleeping } else { &waking };
            let beat = Duration::from_secs(5).min(Duration::from_secs(idle_secs) / 3);
            let starting = reader::start(server.address, transport, user, sleeps.clone(), beat);
            let reader = timeout(PATIENCE, starting).await?;
            readers.push(reader.map_err(|ended| {
                RunError::Violated(format!("a client could not join: {ended:?}"))
            })?);
        }
        server.request("/start").await?;
        let intake = |number| tokio::spawn(push(server.address, number));
        let intakes = (0..INTAKES).map(intake).collect();
        let is_failing = fail_millis > 0;
        Ok(Self { server, is_failing, readers, intakes, asleep })
    }

    /// Stops the server by one signal or two.
    async fn stop(self, random: &mut Random, sums: &mut Sums) -> Result<Vec<String>, RunError> {
        sleep(Duration::from_millis(50 + random.below(500))).await;
        let is_interrupted = random.one_in(2);
        self.asleep.send_replace(is_interrupted);
        self.server.signal(Signal::TERM)?;
        if is_interrupted {
            sleep(Duration::from_millis(random.below(120))).await;
            // The server may have ended.
            let _ = self.server.signal(Signal::TERM);
        }
        self.account(sums).await
    }

    /// Freezes the server for a while, and then stops it by one signal.
    async fn freeze(self, time: Duration, sums: &mut Sums) -> Result<Vec<String>, RunError> {
        sleep(BEFORE_STOP).await;
        self.server.signal(Signal::STOP)?;
        sleep(time).await;
        self.server.signal(Signal::CONT)?;
        let until = Instant::now() + AFTER_STOP;
        sleep_until(until).await;
        let gone: Vec<_> =
            self.readers.iter().enumerate().filter(|(_, reader)| reader.is_finished()).collect();
        let mut faults = Vec::new();
        if !gone.is_empty() {
            let users: Vec<_> = gone.iter().map(|(user, _)| *user).collect();
            faults.push(format!("clients that read lost their connection: {users:?}"));
        }
        self.server.signal(Signal::TERM)?;
        faults.extend(self.account(sums).await?);
        Ok(faults)
    }

    /// Waits for the end of everything, and compares the sums.
    async fn account(self, sums: &mut Sums) -> Result<Vec<String>, RunError> {
        let last = self.server.ended().await?;
        self.asleep.send_replace(false);
        let mut faults = Vec::new();
        let (mut delivered, mut notified, mut by_http) = (0_u64, 0, HashSet::new());
        for reader in self.readers {
            let read = timeout(PATIENCE, reader).await?.map_err(std::io::Error::other)?;
            let violations = read.violations.iter().map(|violation| format!("{violation:?}"));
            faults.extend(violations);
            let is_closed = matches!(read.ended, Ended::Closed(1012));
            if !last.interrupted && read.user >= POLLING && !is_closed {
                faults.push(format!("a client was not closed with 1012: {:?}", read.ended));
            }
            notified += u64::from(is_closed);
            delivered += read.items.len() as u64;
            let of_http = read.items.iter().filter(|item| item.from == Source::Http as usize);
            by_http.extend(of_http.map(|item| (read.user, item.n)));
        }
        let mut answered = Vec::new();
        for intake in self.intakes {
            answered.extend(timeout(PATIENCE, intake).await?.map_err(std::io::Error::other)?);
        }
        let undelivered = answered.iter().filter(|item| !by_http.contains(item)).count() as u64;
        faults.extend(compare(&last, self.is_failing, delivered, undelivered));
        faults.extend(compare_sockets(&last, notified));
        sums.add(&last, delivered, answered.len() as u64);
        sums.notified += notified;
        Ok(faults)
    }
}

/// Finds items that are in no sum, or in two.
fn compare(last: &Final, is_failing: bool, delivered: u64, undelivered: u64) -> Vec<String> {
    let mut faults = Vec::new();
    let stats = &last.stats;
    let refused = stats.refused_full + stats.refused_closed;
    let ended = last.dropped.iter().sum::<u64>() + last.left as u64;
    let frames = stats.frames_dropped + stats.frames_waiting as u64;
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            let (begun, accepted) = (stats.begun, stats.accepted);
            faults.push(format!(
                "{what}: {begun} pushes, {accepted} accepted, {refused} refused, {} broadcast, {ended} ended with the \
                 server, {delivered} delivered, {frames} frames not sent: {last:?}",
                stats.handled
            ));
        }
    };
    expect(stats.begun == refused + stats.handled + ended, "an item is in no sum or in two");
    expect(stats.accepted <= delivered + ended + frames, "an accepted item is missing");
    let reported = last.unprocessed as u64 == ended;
    expect(reported, "the report has another number of unprocessed items");
    // A worker may be ended after its broadcast.
    expect(delivered <= stats.handled + last.dropped[2], "an item is delivered twice");
    expect(undelivered <= ended + frames, "an item that was answered with 2xx is missing");
    if !last.interrupted {
        // A stage that fails takes along what it holds, which is counted.
        let [with_the_stage, ..] = last.dropped;
        let most = if is_failing { stats.restarts * FAILING_DEMAND as u64 } else { 0 };
        let is_clean = delivered + with_the_stage == stats.accepted
            && ended == with_the_stage
            && with_the_stage <= most;
        expect(is_clean, "an item is missing although the shutdown was not interrupted");
        expect(stats.held() == 0, "a gauge has items after the end");
    }
    faults
}

/// Finds sockets that are in no sum of the report, or in the wrong one.
fn compare_sockets(last: &Final, notified: u64) -> Option<String> {
    let Final { closed, aborted, interrupted, .. } = last;
    // A session over long polling is closed without a close frame.
    let may_be_closed = notified + POLLING as u64;
    let holds = closed + aborted == USERS
        && *closed as u64 <= may_be_closed
        && if *interrupted {
            *aborted >= SLEEPING
        } else {
            *aborted == 0 && may_be_closed == USERS as u64
        };
    (!holds).then(|| {
        format!(
            "of {USERS} sockets, the report has {closed} as closed and {aborted} as aborted, and {notified} clients \
             have read the close: {last:?}"
        )
    })
}

impl Sums {
    fn add(&mut self, last: &Final, delivered: u64, by_http: u64) {
        let stats = &last.stats;
        self.runs += 1;
        self.interrupted += u64::from(last.interrupted);
        self.accepted += stats.accepted;
        self.by_http += by_http;
        self.delivered += delivered;
        self.left += last.left;
        self.unprocessed += last.unprocessed;
        self.closed += last.closed;
        self.aborted += last.aborted;
        for (sum, dropped) in self.dropped.iter_mut().zip(last.dropped) {
            *sum += dropped;
        }
        self.frames_dropped += stats.frames_dropped;
        self.frames_waiting += stats.frames_waiting;
        self.both += delivered.saturating_sub(stats.handled);
        self.restarts += stats.restarts;
        self.failed += if last.interrupted { 0 } else { last.dropped[0] };
    }
}

/// Pushes by HTTP until the server is gone. Each intake has its own users.
async fn push(address: SocketAddr, number: usize) -> Accepted {
    let mut accepted = Vec::new();
    let Ok(mut http) = Http::connect(address).await else { return accepted };
    let users = (number..USERS).step_by(INTAKES);
    for (n, user) in (1_u64..).zip(users.cycle()) {
        let path = format!("/push?user={user}&n={n}");
        match http.request("POST", &path, "").await {
            Ok((202, _)) => accepted.push((user, n)),
            // The queue is full, or closed.
            Ok((503, _)) => sleep(Duration::from_millis(2)).await,
            // The server closes connections at its end, and answers with `connection: close` before.
            _ => match Http::connect(address).await {
                Ok(again) => http = again,
                Err(_) => return accepted,
            },
        }
    }
    accepted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Stats;

    /// A server that has taken ten items, of which eight were broadcast.
    fn last(interrupted: bool) -> Final {
        let stats =
            Stats { begun: 12, accepted: 10, refused_full: 2, handled: 8, ..Stats::default() };
        let (closed, aborted) = (USERS - 3, 3);
        let dropped = [1, 0, 1];
        Final { stats, interrupted, dropped, unprocessed: 2, closed, aborted, ..Final::default() }
    }

    #[test]
    fn a_socket_that_is_in_no_sum_or_in_the_wrong_one_is_a_fault() {
        // Of those that can be notified, all but so many were.
        let notified = |count: usize| (USERS - POLLING - count) as u64;
        assert_eq!(compare_sockets(&last(true), notified(3)), None);
        assert_eq!(compare_sockets(&last(true), notified(0)), None, "aborted after the close");
        assert!(compare_sockets(&last(true), notified(4)).is_some(), "closed without a close");
        assert!(compare_sockets(&last(false), notified(0)).is_some(), "aborted");
        let unnoticed = Final { closed: USERS - 1, aborted: 1, ..last(true) };
        assert!(compare_sockets(&unnoticed, notified(0)).is_some(), "two were asleep");
        let lost = Final { closed: USERS - 4, ..last(true) };
        assert!(compare_sockets(&lost, notified(3)).is_some(), "in no sum");
        let clean = Final { closed: USERS, aborted: 0, ..last(false) };
        assert_eq!(compare_sockets(&clean, notified(0)), None);
        assert!(compare_sockets(&clean, notified(1)).is_some(), "a client was not notified");
    }

    #[test]
    fn an_item_that_is_in_no_sum_or_in_two_is_a_fault() {
        assert_eq!(compare(&last(true), false, 8, 2), [""; 0]);
        assert_eq!(compare(&last(true), false, 9, 2), [""; 0], "by a worker that was ended");
        assert_eq!(compare(&last(true), false, 7, 2).len(), 1, "one is missing");
        assert_eq!(compare(&last(true), false, 10, 2).len(), 1, "one is too many");
        assert_eq!(compare(&last(true), false, 8, 3).len(), 1, "answered with 2xx, and missing");
        assert_eq!(compare(&last(false), false, 8, 2).len(), 1, "the shutdown was not interrupted");
        let lost = Final { dropped: [0; 3], unprocessed: 0, ..last(true) };
        assert_eq!(compare(&lost, false, 8, 0).len(), 2, "the server has lost two");
        let unreported = Final { unprocessed: 1, ..last(true) };
        assert_eq!(compare(&unreported, false, 8, 2).len(), 1, "the report has one less");
        let stats = Stats { handled: 9, restarts: 1, ..last(false).stats };
        let failed = Final { stats, dropped: [1, 0, 0], unprocessed: 1, ..last(false) };
        assert_eq!(compare(&failed, true, 9, 1), [""; 0], "one ended with the stage");
        assert_eq!(compare(&failed, false, 9, 1).len(), 1, "no stage could fail");
        assert_eq!(compare(&failed, true, 8, 1).len(), 2, "one is missing");
        let stats = Stats { restarts: 0, ..failed.stats.clone() };
        let unfailed = Final { stats, ..failed };
        assert_eq!(compare(&unfailed, true, 9, 1).len(), 1, "it has not failed");
    }
}
