//! A process that is killed again and again while it adds or handles the items of a queue, for the tests
//! of any broker.
//!
//! A test calls [`inside`] first, for it is also what the killed process runs, and then [`handling`] or
//! [`pushing`] with its own name. `KILLS=50 ITEMS=20000` in the environment make a longer run of it, and
//! with `--nocapture` the test prints its figures. `cargo xtask kills` does that for each source.
#![allow(dead_code, reason = "a broker's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::{HashMap, HashSet},
    env,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_core::{
    Pipeline,
    backoff::Backoff,
    processing::{Batch, Batcher, Failure, Message, Processors},
};
use pipeline_sources::{Broker, Item, Source, SourceOptions};
use tokio::time::{Instant, sleep, timeout};

/// A queue that any process can open at its address.
pub(crate) trait Queue: Clone + Send + Sync + 'static {
    /// Its broker.
    type Broker: Broker;

    /// How often a process is killed, if the environment does not say it.
    const KILLS: usize = 6;

    /// How many items a process may have handled whose outcome is not stored: so many may come again after
    /// its death. A source holds no more than
    /// [`max_unsettled`](pipeline_sources::SourceOptions::max_unsettled).
    const HELD: usize = MAX_UNSETTLED;

    /// Opens it. Where it has leases, they should be short, such as [`LEASE`].
    fn open(address: &str) -> impl Future<Output = Self> + Send;

    /// The broker, for a source of the queue.
    fn broker(&self) -> Self::Broker;

    /// Adds an item, and returns when it is durable.
    fn push(&self, item: Item) -> impl Future<Output = ()> + Send;

    /// Whether all items are done.
    fn is_empty(&self) -> impl Future<Output = bool> + Send;
}

/// Whether the items of a key are handled in their order, also when a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// They are.
    OfEachKey,
    /// They are, but what comes again after a death may be earlier than what has been handled.
    OfFirsts,
    /// They are not.
    None,
}

/// How long an item is kept from others after the death of its process.
pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// How many items a source holds without a stored outcome.
pub(crate) const MAX_UNSETTLED: usize = 100;

/// How many tasks of a process add items.
const PUSHERS: usize = 8;

/// How many keys the items have. They are more than a source holds, so that those of a dead process, which
/// wait for the end of its lease, keep no others waiting.
const KEYS: usize = 397;

/// One of so many items fails when it is handled first.
const FAILING: usize = 50;

/// How many items wait while processes are killed.
const WAITING: usize = 1000;

/// A process is killed so soon after its start, or after it has handled its share, at the latest.
const LATEST: Duration = Duration::from_millis(500);

/// How long a death and what follows may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of the files, in a process that is killed.
const FOLDER: &str = "KILLED_IN";

/// The address of the queue, in a process that is killed.
const ADDRESS: &str = "KILLED_QUEUE";

/// What a process does until it is killed.
const WORK: &str = "KILLED_WORK";

/// The number of the process.
const LIFE: &str = "KILLED_LIFE";

/// If this is the process that is to be killed, does its work, and returns true if it ends.
pub(crate) async fn inside<Q: Queue>() -> bool {
    let (Ok(work), Ok(address)) = (env::var(WORK), env::var(ADDRESS)) else { return false };
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let queue = Q::open(&address).await;
    if work == "push" {
        push_until_killed(queue, &folder).await;
    } else {
        handle_until_killed(queue, &folder, number(LIFE, 0)).await;
    }
    true
}

fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

fn appending(folder: &Path, name: &str) -> Arc<File> {
    Arc::new(OpenOptions::new().append(true).open(folder.join(name)).unwrap())
}

/// Whether an item fails when it is handled first.
fn fails(item: &str) -> bool {
    let last = item.rsplit('-').next().and_then(|n| n.parse::<usize>().ok());
    last.is_some_and(|n| n % FAILING == 7)
}

/// Handles items until it is killed: writes each with the number of its process to a file, and acknowledges
/// it then. Those that fail once are in another file, so that no process lets them fail again.
async fn handle_until_killed<Q: Queue>(queue: Q, folder: &Path, life: usize) {
    let (done, failed) = (appending(folder, "done"), appending(folder, "failed"));
    let have_failed = Mutex::new(lines(folder, "failed").into_iter().collect::<HashSet<_>>());
    let have_failed = Arc::new(have_failed);
    let text = async move |message: &mut Message<Item>| {
        let text = String::from_utf8(message.payload.to_vec())?;
        if fails(&text) && have_failed.lock().insert(text.clone()) {
            (&*failed).write_all(format!("{text}\n").as_bytes())?;
            return Err(Failure::new("it fails once"));
        }
        Ok(text)
    };
    let write = Batcher::from_fn(async move |batch: &mut Batch<Item, String>| {
        let lines: String = batch.outputs().map(|item| format!("{life} {item}\n")).collect();
        // One write, which is whole or not at all when the process is killed.
        (&*done).write_all(lines.as_bytes())?;
        Ok(())
    });
    let retry = Backoff::new(Duration::from_millis(20), Duration::from_millis(50));
    // With the other options as they are by default, an item that does not fail again survives the deaths.
    let options = SourceOptions::new().redeliver_after(retry).max_unsettled(MAX_UNSETTLED);
    let mut pipeline = Pipeline::of_messages("numbers")
        .source(Source::new(queue.broker(), options))
        .processors(Processors::from_fn(text).concurrency(4).max_demand(10))
        .batcher(write.size(25).within(Duration::from_millis(5)).max_demand(25))
        .start()
        .unwrap();
    pipeline.join().await;
}

/// Adds items until it is killed, from several tasks: writes each number to a file after its `push` has
/// returned.
async fn push_until_killed<Q: Queue>(queue: Q, folder: &Path) {
    let pushed = appending(folder, "pushed");
    let tasks: Vec<_> = (0..PUSHERS)
        .map(|task| {
            let (queue, pushed) = (queue.clone(), pushed.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    let item = format!("{}-{task}-{n}", std::process::id());
                    queue.push(Item::new(item.clone())).await;
                    // One write, which is whole or not at all when the process is killed.
                    (&*pushed).write_all(format!("{item}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// A process that is killed at the latest when the test ends.
struct Killed(Child);

impl Killed {
    /// Starts the test in a process of its own, where [`inside`] does this work.
    fn start(test: &str, work: &str, address: &str, folder: &Path, life: usize) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(WORK, work)
            .env(ADDRESS, address)
            .env(FOLDER, folder)
            .env(LIFE, life.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that were written to a file in this folder.
fn lines(folder: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// What the processes have handled, as far as it was read.
struct Handled {
    file: File,
    /// The beginning of a line.
    rest: String,
    /// The numbers of the processes and of the items that they have handled, in this order.
    all: Vec<(usize, usize)>,
    items: HashSet<usize>,
}

impl Handled {
    fn of(folder: &Path) -> Self {
        let file = File::open(folder.join("done")).unwrap();
        Self { file, rest: String::new(), all: Vec::new(), items: HashSet::new() }
    }

    fn read(&mut self) {
        self.file.read_to_string(&mut self.rest).unwrap();
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        for line in self.rest[..whole].lines() {
            let (life, item) = line.split_once(' ').unwrap();
            let (life, item) = (life.parse().unwrap(), item.parse().unwrap());
            self.all.push((life, item));
            self.items.insert(item);
        }
        self.rest.drain(..whole);
    }
}

/// What was handled again, and whether the order was kept.
#[derive(Debug, Default)]
struct Account {
    /// How many items that each process had handled were handled again by another.
    of_deaths: HashMap<usize, usize>,
    /// How many items a process has handled again itself: a busy machine may let a lease run out.
    within_lives: usize,
    /// How many items came after a later one of their key.
    violations: usize,
}

impl Account {
    fn new(handled: &[(usize, usize)], order: Order) -> Self {
        let mut account = Self::default();
        let mut handlers = HashMap::new();
        let mut latest = [None; KEYS];
        for (life, n) in handled {
            let before = handlers.insert(*n, *life);
            match before {
                Some(before) if before == *life => account.within_lives += 1,
                Some(before) => *account.of_deaths.entry(before).or_default() += 1,
                None => {}
            }
            if order == Order::OfFirsts && before.is_some() {
                continue;
            }
            // A number may come again, and then no later one of its key has come before.
            let latest = &mut latest[n % KEYS];
            account.violations += usize::from(latest.is_some_and(|latest| latest > *n));
            *latest = Some(*n);
        }
        account
    }

    fn most_of_one_death(&self) -> usize {
        self.of_deaths.values().copied().max().unwrap_or_default()
    }
}

/// A random time up to this one.
fn random(most: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new();
    let most = u64::try_from(most.as_micros()).unwrap();
    Duration::from_micros(std::hash::BuildHasher::hash_one(&random, 0) % most)
}

/// How many items are added, from several tasks.
#[derive(Debug, Default)]
struct Flow {
    /// Items from this number wait until it is higher.
    limit: AtomicUsize,
    /// How many pushes have returned.
    pushed: AtomicUsize,
    /// Whether the limit is the last one.
    ended: AtomicBool,
}

impl Flow {
    /// Adds the items of some keys, each key in its order.
    async fn push<Q: Queue>(&self, queue: Q, task: usize) {
        for n in (0..).filter(|n| n % KEYS % PUSHERS == task) {
            loop {
                let ended = self.ended.load(SeqCst);
                if n < self.limit.load(SeqCst) {
                    break;
                }
                if ended {
                    return;
                }
                sleep(Duration::from_millis(2)).await;
            }
            queue.push(Item::new(n.to_string()).key((n % KEYS).to_string())).await;
            self.pushed.fetch_add(1, SeqCst);
        }
    }

    /// Reads what was handled, and lets as many more be added.
    fn refill(&self, handled: &mut Handled) {
        handled.read();
        self.limit.fetch_max(handled.items.len() + WAITING, SeqCst);
    }
}

/// A process that handles the items of a new queue is killed again and again while items wait, and one item
/// in fifty fails once. Every item is handled, and no more come again after a death than its process held.
///
/// The processes are killed in turn at a random moment of the first half second after their start, so also
/// while they connect, and at one after they have handled their share.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn handling<Q: Queue>(test: &str, address: &str, order: Order) {
    let (kills, items) = (number("KILLS", Q::KILLS), number("ITEMS", 3000));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["done", "failed"] {
        File::create(folder.join(name)).unwrap();
    }
    let queue = Q::open(address).await;
    let (begun, flow, mut handled) = (Instant::now(), Arc::<Flow>::default(), Handled::of(folder));
    flow.refill(&mut handled);
    let pushing: Vec<_> = (0..PUSHERS)
        .map(|task| {
            let (queue, flow) = (queue.clone(), flow.clone());
            tokio::spawn(async move { flow.push(queue, task).await })
        })
        .collect();
    let start = |life| Killed::start(test, "handle", address, folder, life);
    // A kill counts if items were left.
    let (mut lives, mut under_flow, mut early) = (0, 0, 0);
    while under_flow < kills {
        lives += 1;
        let before = handled.all.len();
        let (child, started) = (start(lives), Instant::now());
        let mut moment = (lives % 2 == 1).then(|| started + random(LATEST));
        let share = items * under_flow / (kills + 1);
        while moment.is_none_or(|moment| Instant::now() < moment) {
            assert!(started.elapsed() < PATIENCE, "the process does not handle its share");
            flow.refill(&mut handled);
            if moment.is_none() && handled.all.len() > before && handled.items.len() >= share {
                moment = Some(Instant::now() + random(LATEST));
            }
            sleep(Duration::from_millis(5)).await;
        }
        let pushed = flow.pushed.load(SeqCst);
        child.kill();
        flow.refill(&mut handled);
        under_flow += usize::from(handled.items.len() < pushed);
        early += usize::from(handled.all.len() == before);
        assert!(lives <= 3 * kills + 10, "no items are left when a process is killed");
    }
    flow.limit.fetch_max(items, SeqCst);
    flow.ended.store(true, SeqCst);
    let last = start(lives + 1);
    for pushing in pushing {
        pushing.await.unwrap();
    }
    let pushed = flow.pushed.load(SeqCst);
    let (mut latest, mut since) = (0, Instant::now());
    while handled.items.len() < pushed || !queue.is_empty().await {
        handled.read();
        if handled.all.len() > latest {
            (latest, since) = (handled.all.len(), Instant::now());
        }
        let left = pushed - handled.items.len().min(pushed);
        assert!(since.elapsed() < PATIENCE, "{left} items are left");
        sleep(Duration::from_millis(20)).await;
    }
    last.kill();
    handled.read();

    let done = handled.items.len();
    assert_eq!(done, pushed, "every item was handled");
    let account = Account::new(&handled.all, order);
    let (most, within) = (account.most_of_one_death(), account.within_lives);
    let failed = lines(folder, "failed").len();
    println!(
        "kills: {pushed} items, {failed} failed once, {lives} kills, {under_flow} under flow, {early} before \
         the first item of their process, {done} done, {} again ({most} after one death at most, {} may be, \
         and {within} in one process), {} order violations ({order:?}), in {:?}",
        handled.all.len() - done,
        Q::HELD,
        account.violations,
        begun.elapsed()
    );
    assert!(most <= Q::HELD, "so many were handled again after one death: {account:?}");
    assert!(within <= Q::HELD * (lives + 1), "so many were handled again by their process");
    assert!(order == Order::None || account.violations == 0, "{account:?}");
}

/// A process that adds items to a new queue is killed again and again. Every item whose push has returned
/// is delivered.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn pushing<Q: Queue>(test: &str, address: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["pushed", "done", "failed"] {
        File::create(folder.join(name)).unwrap();
    }
    let queue = Q::open(address).await;
    let kills = number("KILLS", Q::KILLS);
    let mut early = 0;
    for life in 1..=kills {
        let before = lines(folder, "pushed").len();
        let child = Killed::start(test, "push", address, folder, life);
        let started = Instant::now();
        if life % 2 == 1 {
            sleep(random(LATEST)).await;
        } else {
            while lines(folder, "pushed").len() == before {
                assert!(started.elapsed() < PATIENCE, "the process adds nothing");
                sleep(Duration::from_millis(2)).await;
            }
            sleep(random(LATEST / 8)).await;
        }
        child.kill();
        early += usize::from(lines(folder, "pushed").len() == before);
    }
    let pushed = lines(folder, "pushed");
    let (handled, done) = (queue.clone(), folder.to_owned());
    let mut handling = tokio::spawn(async move { handle_until_killed(handled, &done, 0).await });
    let begun = Instant::now();
    while !queue.is_empty().await {
        let ended = timeout(Duration::from_millis(20), &mut handling).await;
        assert!(ended.is_err(), "the pipeline has ended");
        assert!(begun.elapsed() < PATIENCE * 5, "items are left");
    }
    handling.abort();

    let done = lines(folder, "done");
    let delivered: HashSet<_> = done.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    let lost: Vec<_> = pushed.iter().filter(|item| !delivered.contains(&***item)).collect();
    assert!(lost.is_empty(), "{} of {} items are lost: {lost:?}", lost.len(), pushed.len());
    // An item whose process was killed before its push had returned may be there.
    println!(
        "kills: {} items whose push has returned, {kills} kills, {early} before the first push of their \
         process, {} delivered",
        pushed.len(),
        delivered.len()
    );
}
