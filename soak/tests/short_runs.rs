//! Short versions of all runs: each ends with a verdict.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use tokio::{process::Command, sync::Mutex, time::timeout};

/// A run loads the whole machine, so there is one at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// How long a run may take.
const WITHIN: Duration = Duration::from_secs(400);

/// Runs the program with these arguments, and returns its output.
async fn run(arguments: &[&str]) -> String {
    let _alone = ALONE.lock().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline-soak"));
    command.args(arguments).kill_on_drop(true);
    let output = timeout(WITHIN, command.output()).await.unwrap().unwrap();
    let (printed, failed) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert!(output.status.success(), "{arguments:?}: {printed}\n{failed}");
    assert!(printed.ends_with("\npassed\n"), "{arguments:?}: {printed}");
    printed.into_owned()
}

#[tokio::test]
async fn a_server_that_is_stopped_at_random_moments_delivers_or_counts_every_item() {
    let printed = run(&["signals", "--runs=10"]).await;
    assert!(printed.contains("| 10 |"), "{printed}");
}

#[tokio::test]
async fn a_server_that_is_frozen_for_a_while_keeps_its_clients_and_all_items() {
    // Its clients seem silent for longer than it waits for them.
    run(&["signals", "--stop=5", "--idle=2"]).await;
}

#[tokio::test]
async fn every_push_is_delivered_or_counted() {
    let printed = run(&["pushes", "--pushes=1e5"]).await;
    assert!(printed.contains("| `push` | 90000 | 89912 | 88 | 0 | 0 | 0 |"), "{printed}");
    let printed = run(&["pushes", "--pushes=1e5", "--plain"]).await;
    assert!(printed.contains("| `push` | 90000 | 90000 | 0 | 0 | 0 | 0 |"), "{printed}");
}

#[tokio::test]
async fn a_server_recovers_from_overload() {
    let printed = run(&["overload", "--seconds=1"]).await;
    assert_eq!(printed.matches(" × |").count(), 12, "{printed}");
}

#[tokio::test]
async fn in_a_minute_of_soak_no_item_is_lost_doubled_out_of_order_or_with_another_user() {
    // Without optimization, bursts take most of the time.
    let load = ["--clients=500", "--rate=250", "--calm=10", "--bursts=150"];
    let printed = run(&[&["soak", "--minutes=1"][..], &load[..]].concat()).await;
    assert!(printed.contains("500 clients compared"), "{printed}");
    assert!(printed.contains("A run of 1 minutes is too short to judge leaks"), "{printed}");
}
