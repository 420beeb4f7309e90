//! The short program with a durable source, as a process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{collections::HashMap, fs, time::Duration};

use pipeline::sources::{Item, sqlite::SqliteQueue};
use pipeline_test_support::{Example, PATIENCE};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

async fn start(file: &str) -> Child {
    let mut command = Command::new(Example::program("enrich").await);
    command.arg(file).kill_on_drop(true).spawn().unwrap()
}

/// Waits until this holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn orders_are_enriched_and_written_in_batches_and_none_is_lost_by_a_kill() {
    const MANY: usize = 500;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("orders.db").to_str().unwrap().to_owned();
    let queue = SqliteQueue::open(&file, "orders").await.unwrap();
    let order = |n: usize| Item::new(format!(r#"{{"article":"{}"}}"#, ["tea", "cup"][n % 2]));
    queue.push_all((0..MANY).map(order).collect()).await.unwrap();
    queue.push(Item::new(r#"{"article":"gold"}"#)).await.unwrap();
    let lines = || fs::read_to_string(format!("{file}.priced")).unwrap_or_default();

    let mut killed = start(&file).await;
    until("some are written", async || !lines().is_empty()).await;
    killed.kill().await.unwrap();
    let expire = "UPDATE pipeline_items SET available_at = 1 WHERE lease IS NOT NULL";
    rusqlite::Connection::open(&file).unwrap().execute(expire, []).unwrap();
    let program = start(&file).await;
    until("all are done", async || queue.backlog().await.unwrap().items == Some(0)).await;

    let mut counts = HashMap::<String, usize>::new();
    lines().lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    let priced = ["tea 450", "cup 1250"].map(|line| counts.remove(line).unwrap_or_default());
    // Some were written by the first process, which did not live to say so.
    assert!(priced.iter().all(|count| *count >= MANY / 2), "{priced:?}");
    assert!(counts.is_empty(), "{counts:?}");
    let dead = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(dead.iter().map(|dead| &*dead.reason).collect::<Vec<_>>(), ["no such article"]);

    let id = program.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let mut program = program;
    assert!(timeout(PATIENCE, program.wait()).await.unwrap().unwrap().success());
}

#[test]
fn the_program_has_fewer_than_forty_lines() {
    let program = include_str!("../examples/enrich/src/main.rs");
    let code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    let lines = program.lines().filter(code).count();
    assert!(lines < 40, "{lines}");
}
