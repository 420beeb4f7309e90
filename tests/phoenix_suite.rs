//! All features of the unmodified official JavaScript client, against the example `channels`.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
};

use pipeline_test_support::{Example, PATIENCE, interop};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// The skipped checks, with reasons.
const LEFT_OUT: [(&str, &str); 1] =
    [("server_restart", "it needs a caller that restarts the server: separate tests below")];

/// A running suite. Stopped on drop.
struct Suite {
    node: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Suite {
    fn start(flags: &[&str]) -> Self {
        let mut node = Command::new("node");
        node.arg("suite.mjs").args(flags).current_dir(interop());
        let mut node = node.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { node, said }
    }

    /// The next line, or None at the end.
    async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.said.next_line());
        line.await.expect("the suite prints a line").unwrap()
    }

    /// Runs the suite to its end. Returns whether it succeeded, and its output.
    async fn run(flags: &[&str]) -> (bool, Vec<String>) {
        let mut suite = Self::start(flags);
        let mut lines = vec![];
        while let Some(line) = suite.line().await {
            println!("{line}");
            lines.push(line);
        }
        (suite.node.wait().await.unwrap().success(), lines)
    }
}

fn url(example: &Example) -> String {
    format!("ws://{}/socket", example.address)
}

#[tokio::test]
async fn all_features_of_the_official_client_work() {
    let example = Example::channels(&[]).await;
    let left_out = LEFT_OUT.map(|(name, _)| name);
    let (_, checks) = Suite::run(&[&url(&example), "--list"]).await;
    let (passed, lines) = Suite::run(&[&url(&example), "--skip", &left_out.join(",")]).await;
    let failed: Vec<_> = lines.iter().filter(|line| line.starts_with("FAIL ")).collect();
    assert!(passed && failed.is_empty(), "{failed:#?}");
    // No other check was skipped, not even by the suite itself.
    let outcome = |line: &String| {
        let (verdict, rest) = line.split_once(' ')?;
        let name = rest.split(':').next()?;
        ["ok", "skip"].contains(&verdict).then(|| (name.to_owned(), verdict.to_owned()))
    };
    let outcomes: BTreeMap<_, _> = lines.iter().filter_map(outcome).collect();
    let expected = |name: String| {
        let verdict = if left_out.contains(&&*name) { "skip" } else { "ok" };
        (name, verdict.to_owned())
    };
    assert_eq!(outcomes, checks.into_iter().map(expected).collect());
}

#[tokio::test]
async fn the_suite_fails_if_the_server_behaves_differently() {
    let example = Example::channels(&[]).await;
    // A mount with other limits, and no mount at all.
    let few = format!("ws://{}/few", example.address);
    let (passed, lines) = Suite::run(&[&few, "--only", "several_channels"]).await;
    let why = "FAIL several_channels_on_one_socket: join of room:";
    assert!(!passed && lines[0].starts_with(why), "{lines:?}");
    let nowhere = format!("ws://{}/nowhere", example.address);
    let (passed, lines) = Suite::run(&[&nowhere, "--only", "connect_and_close"]).await;
    let why = ["FAIL connect_and_close: timed out: socket open", "0 passed, 1 failed"];
    assert!(!passed && lines == why, "{lines:?}");
}

#[tokio::test]
async fn an_unknown_check_cannot_be_skipped() {
    let flags = ["ws://127.0.0.1:1/socket", "--skip", "join_refused,no_such_check"];
    let (passed, lines) = Suite::run(&flags).await;
    assert!(!passed);
    assert_eq!(lines, ["FAIL no_such_check: there is no such check"]);
    let names: BTreeSet<_> = LEFT_OUT.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), LEFT_OUT.len());
}

/// Restarts the server while two tabs with two channels each are connected. Returns the close codes of
/// the sockets.
async fn restarted(signal: &str) -> String {
    let mut example = Example::channels(&[]).await;
    let port = example.address.rsplit(':').next().unwrap().to_owned();
    let mut suite = Suite::start(&[&url(&example), "--only", "server_restart", "--restarts"]);
    assert_eq!(suite.line().await.unwrap(), "restart now");
    example.signal(signal).await;
    example.wait().await;
    example = Example::channels(&["--port", &port]).await;
    let closed = suite.line().await.unwrap();
    assert_eq!(suite.line().await.unwrap(), "ok server_restart");
    assert_eq!(suite.line().await.unwrap(), "1 passed, 0 failed");
    drop(example);
    closed
}

#[tokio::test]
async fn the_official_client_reconnects_after_a_clean_restart() {
    assert_eq!(restarted("-TERM").await, "closed 1012,1012");
}

#[tokio::test]
async fn the_official_client_reconnects_after_the_server_was_killed() {
    assert_eq!(restarted("-KILL").await, "closed 1006,1006");
}
