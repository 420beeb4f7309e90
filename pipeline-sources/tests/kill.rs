//! A process that is killed again and again while it adds or handles the items of a queue loses none.
//!
//! `KILLS=50 ITEMS=20000 cargo test -p pipeline-sources --all-features --test kill -- --nocapture` prints
//! the figures of a longer run.
#![cfg(all(feature = "sqlite", unix))]
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
use pipeline_sources::{
    Item, SourceOptions,
    sqlite::{SqliteOptions, SqliteQueue},
};
use tokio::time::{Instant, sleep};

/// The folder of the queue, in the process that handles its items.
const INSIDE: &str = "KILLED_IN";

/// How long an item is kept from others after the death of its process.
const LEASE: Duration = Duration::from_millis(500);

/// How many messages the pipeline asks for, and so how many a death may deliver again.
const IN_WORK: usize = 4 * 20 + 200;

/// How many tasks of a process add items.
const PUSHERS: usize = 8;

fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

async fn open(folder: &Path) -> SqliteQueue {
    let options = SqliteOptions::new().lease(LEASE).ordered_by_key(true);
    SqliteQueue::open_with(folder.join("queue.db"), "numbers", options).await.unwrap()
}

/// Handles items until it is killed: writes each number to a file, and acknowledges it then.
async fn handle_until_killed(folder: PathBuf) {
    let queue = open(&folder).await;
    let done = OpenOptions::new().append(true).open(folder.join("done")).unwrap();
    let done = Arc::new(done);
    let text = async |message: &mut Message<Item>| {
        Ok::<_, Failure>(String::from_utf8(message.payload.to_vec())?)
    };
    let write = Batcher::from_fn(async move |batch: &mut Batch<Item, String>| {
        let lines: String = batch.outputs().map(|number| format!("{number}\n")).collect();
        // One write, which is whole or not at all when the process is killed.
        (&*done).write_all(lines.as_bytes())?;
        Ok(())
    });
    let options = SourceOptions::new().max_deliveries(u32::MAX);
    let mut pipeline = Pipeline::of_messages("numbers")
        .source(queue.source(options))
        .processors(Processors::from_fn(text).concurrency(4).max_demand(20))
        .batcher(write.size(100).within(Duration::from_millis(5)).max_demand(50))
        .start()
        .unwrap();
    pipeline.join().await;
}

/// Adds items until it is killed, from several tasks: writes each number to a file after its `push` has returned.
async fn push_until_killed(folder: PathBuf) {
    let queue = open(&folder).await;
    let pushed = OpenOptions::new().append(true).open(folder.join("pushed")).unwrap();
    let pushed = Arc::new(pushed);
    let tasks: Vec<_> = (0..PUSHERS)
        .map(|task| {
            let (queue, pushed) = (queue.clone(), pushed.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    let item = format!("{}-{task}-{n}", std::process::id());
                    queue.push(Item::new(item.clone())).await.unwrap();
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
struct Handler(Child);

impl Handler {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(test: &str, folder: &Path) -> Handler {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Handler(child)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item_and_keeps_the_order_of_each_key() {
    if let Some(folder) = env::var_os(INSIDE) {
        return handle_until_killed(folder.into()).await;
    }
    const KEYS: usize = 50;
    let (kills, items) = (number("KILLS", 6), number("ITEMS", 3000));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    File::create(folder.join("done")).unwrap();
    let queue = open(folder).await;
    let pushing = tokio::spawn({
        let queue = queue.clone();
        async move {
            for n in 0..items {
                let item = Item::new(n.to_string()).key((n % KEYS).to_string());
                queue.push(item).await.unwrap();
            }
        }
    });
    let test = "a_process_that_is_killed_loses_no_item_and_keeps_the_order_of_each_key";
    let begun = Instant::now();
    for _ in 0..kills {
        let child = start(test, folder);
        let before = handled(folder).len();
        // Each lives until it has handled something, and then for a random time.
        while handled(folder).len() == before && queue.backlog().await.unwrap().items != Some(0) {
            assert!(begun.elapsed() < Duration::from_secs(600), "the process handles nothing");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(random()).await;
        child.kill();
    }
    let last = start(test, folder);
    pushing.await.unwrap();
    while queue.backlog().await.unwrap().items != Some(0) {
        assert!(begun.elapsed() < Duration::from_secs(600), "items are left");
        sleep(Duration::from_millis(20)).await;
    }
    last.kill();

    let handled = handled(folder);
    let mut firsts = HashMap::<usize, usize>::new();
    let mut latest = [None; KEYS];
    for n in &handled {
        // A number may come again, and then no later one of its key has come before.
        let latest = &mut latest[n % KEYS];
        assert!(latest.is_none_or(|latest| latest <= *n), "{n} after {latest:?}");
        *latest = Some(*n);
        *firsts.entry(*n).or_default() += 1;
    }
    assert_eq!(firsts.len(), items, "every item was handled");
    let again = handled.len() - items;
    assert!(again <= kills * IN_WORK, "{again} were handled again after {kills} deaths");
    println!("{items} items, {kills} kills: {again} handled again, in {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed() {
    if let Some(folder) = env::var_os(INSIDE) {
        return push_until_killed(folder.into()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["pushed", "done"] {
        File::create(folder.join(name)).unwrap();
    }
    let begun = Instant::now();
    for _ in 0..number("KILLS", 6) {
        let before = lines(folder, "pushed").len();
        let test = "an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed";
        let child = start(test, folder);
        // Each lives until it has added items, and then for a random time.
        while lines(folder, "pushed").len() == before {
            assert!(begun.elapsed() < Duration::from_secs(600), "the process adds nothing");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(random()).await;
        child.kill();
    }
    let pushed = lines(folder, "pushed");
    let queue = open(folder).await;
    let mut handling = tokio::spawn(handle_until_killed(folder.to_owned()));
    while queue.backlog().await.unwrap().items != Some(0) {
        let ended = tokio::time::timeout(Duration::from_millis(20), &mut handling).await;
        assert!(ended.is_err(), "the pipeline has ended");
        assert!(begun.elapsed() < Duration::from_secs(600), "items are left");
    }
    handling.abort();

    let delivered: HashSet<_> = lines(folder, "done").into_iter().collect();
    let lost: Vec<_> = pushed.iter().filter(|item| !delivered.contains(*item)).collect();
    assert!(lost.is_empty(), "{} of {} items are lost: {lost:?}", lost.len(), pushed.len());
    // An item whose process was killed before its push had returned may be there.
    println!("{} items were pushed, {} delivered", pushed.len(), delivered.len());
}
