//! A process that is killed again and again while it adds or handles the items of a queue, for the tests
//! of any broker.
//!
//! A test calls [`inside`] first, for it is also what the killed process runs, and then [`handling`] or
//! [`pushing`] with its own name. `KILLS=50 ITEMS=20000` in the environment make a longer run of it, and
//! with `--nocapture` the test prints its figures.
#![allow(dead_code, reason = "a broker's tests may use a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    collections::{HashMap, HashSet},
    env,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use pipeline_core::{
    Pipeline,
    processing::{Batch, Batcher, Failure, Message, Processors},
};
use pipeline_sources::{Broker, Item, Source, SourceOptions};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// A queue that any process can open at its address.
pub(crate) trait Queue: Clone + Send + Sync + 'static {
    /// Its broker.
    type Broker: Broker;

    /// How often a process is killed, if the environment does not say it.
    const KILLS: usize = 6;

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

/// How many messages the pipeline asks for, and so how many a death may deliver again.
const IN_WORK: usize = 4 * 20 + 200;

/// How many tasks of a process add items.
const PUSHERS: usize = 8;

/// How many keys the items have.
const KEYS: usize = 50;

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The folder of the files, in a process that is killed.
const FOLDER: &str = "KILLED_IN";

/// The address of the queue, in a process that is killed.
const ADDRESS: &str = "KILLED_QUEUE";

/// What a process does until it is killed.
const WORK: &str = "KILLED_WORK";

/// If this is the process that is to be killed, does its work, and returns true if it ends.
pub(crate) async fn inside<Q: Queue>() -> bool {
    let (Ok(work), Ok(address)) = (env::var(WORK), env::var(ADDRESS)) else { return false };
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let queue = Q::open(&address).await;
    if work == "push" {
        push_until_killed(queue, &folder).await;
    } else {
        handle_until_killed(queue, &folder).await;
    }
    true
}

fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

fn appending(folder: &Path, name: &str) -> Arc<File> {
    Arc::new(OpenOptions::new().append(true).open(folder.join(name)).unwrap())
}

/// Handles items until it is killed: writes each number to a file, and acknowledges it then.
async fn handle_until_killed<Q: Queue>(queue: Q, folder: &Path) {
    let done = appending(folder, "done");
    let text = async |message: &mut Message<Item>| {
        Ok::<_, Failure>(String::from_utf8(message.payload.to_vec())?)
    };
    let write = Batcher::from_fn(async move |batch: &mut Batch<Item, String>| {
        let lines: String = batch.outputs().map(|number| format!("{number}\n")).collect();
        // One write, which is whole or not at all when the process is killed.
        (&*done).write_all(lines.as_bytes())?;
        Ok(())
    });
    // With the default options, an item that does not fail survives the deaths.
    let options = SourceOptions::new();
    let mut pipeline = Pipeline::of_messages("numbers")
        .source(Source::new(queue.broker(), options))
        .processors(Processors::from_fn(text).concurrency(4).max_demand(20))
        .batcher(write.size(100).within(Duration::from_millis(5)).max_demand(50))
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
    fn start(test: &str, work: &str, address: &str, folder: &Path) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(WORK, work)
            .env(ADDRESS, address)
            .env(FOLDER, folder)
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

/// The numbers in the order in which they were handled.
fn handled(folder: &Path) -> Vec<usize> {
    lines(folder, "done").iter().map(|line| line.parse().unwrap()).collect()
}

/// The lines that were written to a file in this folder.
fn lines(folder: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join(name)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A random time of less than 60 ms.
fn random() -> Duration {
    let random = std::collections::hash_map::RandomState::new();
    Duration::from_millis(std::hash::BuildHasher::hash_one(&random, 0) % 60)
}

/// A process that handles the items of a new queue is killed again and again. Every item is handled, and
/// no more come again than were in work.
///
/// # Panics
///
/// If it is not so.
pub(crate) async fn handling<Q: Queue>(test: &str, address: &str, order: Order) {
    let (kills, items) = (number("KILLS", Q::KILLS), number("ITEMS", 3000));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    File::create(folder.join("done")).unwrap();
    let queue = Q::open(address).await;
    // A task adds all items of a key, in their order.
    let pushing: Vec<_> = (0..PUSHERS)
        .map(|task| {
            let queue = queue.clone();
            tokio::spawn(async move {
                for n in (0..items).filter(|n| n % KEYS % PUSHERS == task) {
                    let item = Item::new(n.to_string()).key((n % KEYS).to_string());
                    queue.push(item).await;
                }
            })
        })
        .collect();
    let start = || Killed::start(test, "handle", address, folder);
    let begun = Instant::now();
    for _ in 0..kills {
        let child = start();
        let before = handled(folder).len();
        // Each lives until it has handled something, and then for a random time.
        let is_pushed = || pushing.iter().all(JoinHandle::is_finished);
        let is_done = async || is_pushed() && queue.is_empty().await;
        while handled(folder).len() == before && !is_done().await {
            assert!(begun.elapsed() < PATIENCE, "the process handles nothing");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(random()).await;
        child.kill();
    }
    let last = start();
    for pushing in pushing {
        pushing.await.unwrap();
    }
    while !queue.is_empty().await {
        assert!(begun.elapsed() < PATIENCE, "items are left");
        sleep(Duration::from_millis(20)).await;
    }
    last.kill();

    let handled = handled(folder);
    let mut firsts = HashMap::<usize, usize>::new();
    let mut latest = [None; KEYS];
    for n in &handled {
        let is_first = !firsts.contains_key(n);
        *firsts.entry(*n).or_default() += 1;
        if order == Order::OfFirsts && !is_first {
            continue;
        }
        // A number may come again, and then no later one of its key has come before.
        let latest = &mut latest[n % KEYS];
        let in_order = latest.is_none_or(|latest| latest <= *n);
        assert!(in_order || order == Order::None, "{n} after {latest:?}");
        *latest = Some(*n);
    }
    assert_eq!(firsts.len(), items, "every item was handled");
    let again = handled.len() - items;
    assert!(again <= kills * IN_WORK, "{again} were handled again after {kills} deaths");
    println!("{items} items, {kills} kills: {again} handled again, in {:?}", begun.elapsed());
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
    for name in ["pushed", "done"] {
        File::create(folder.join(name)).unwrap();
    }
    let queue = Q::open(address).await;
    let begun = Instant::now();
    for _ in 0..number("KILLS", Q::KILLS) {
        let before = lines(folder, "pushed").len();
        let child = Killed::start(test, "push", address, folder);
        // Each lives until it has added items, and then for a random time.
        while lines(folder, "pushed").len() == before {
            assert!(begun.elapsed() < PATIENCE, "the process adds nothing");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(random()).await;
        child.kill();
    }
    let pushed = lines(folder, "pushed");
    let (handled, done) = (queue.clone(), folder.to_owned());
    let mut handling = tokio::spawn(async move { handle_until_killed(handled, &done).await });
    while !queue.is_empty().await {
        let ended = timeout(Duration::from_millis(20), &mut handling).await;
        assert!(ended.is_err(), "the pipeline has ended");
        assert!(begun.elapsed() < PATIENCE, "items are left");
    }
    handling.abort();

    let delivered: HashSet<_> = lines(folder, "done").into_iter().collect();
    let lost: Vec<_> = pushed.iter().filter(|item| !delivered.contains(*item)).collect();
    assert!(lost.is_empty(), "{} of {} items are lost: {lost:?}", lost.len(), pushed.len());
    // An item whose process was killed before its push had returned may be there.
    println!("{} items were pushed, {} delivered", pushed.len(), delivered.len());
}
