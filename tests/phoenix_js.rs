//! The example with the unmodified official JavaScript client, under Node.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::process::Stdio;

use pipeline_test_support::{Example, PATIENCE, interop};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// A user with the official client. Stopped on drop.
struct User {
    _node: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl User {
    fn start(example: &Example, user: &str, topic: &str) -> Self {
        let mut node = Command::new("node");
        let base = format!("http://{}", example.address);
        node.args(["user.mjs", &base, user, topic]).current_dir(interop());
        let mut node = node.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { _node: node, said }
    }

    /// The next line with this key. Lines before it must be among the allowed ones.
    async fn says(&mut self, key: &str, allowed: &[&str]) -> Value {
        loop {
            let line = timeout(PATIENCE, self.said.next_line()).await.unwrap().unwrap().unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            if let Some(value) = said.get(key) {
                return value.clone();
            }
            let other = said.as_object().unwrap().keys().next().unwrap();
            assert!(allowed.contains(&other.as_str()), "said {line} instead of {key}");
        }
    }
}

async fn push(example: &Example, user: u64, n: u64) {
    let body = json!({"user_id": user, "event": "push_timed", "data": {"n": n}});
    assert_eq!(example.push(&body.to_string()).await.status, 202);
}

#[tokio::test]
async fn the_official_client_joins_and_receives_its_own_pushes_in_order() {
    let example = Example::start(&["--max-demand", "1"]).await;
    let mut ada = User::start(&example, "1", "user:1");
    let mut joe = User::start(&example, "2", "user:2");
    assert_eq!(ada.says("joined", &["open"]).await, json!({}));
    assert_eq!(joe.says("joined", &["open"]).await, json!({}));
    for n in 0..50 {
        push(&example, 1, n).await;
    }
    push(&example, 2, 99).await;
    // Joe's push is the last one: a push of ada's for joe would have come before it.
    assert_eq!(joe.says("push", &["ping"]).await, json!({"n": 99}));
    for n in 0..50 {
        assert_eq!(ada.says("push", &["ping"]).await, json!({"n": n}));
    }
    // Heartbeats are answered, or the client would have closed the connection by now.
    for _ in 0..3 {
        ada.says("ping", &[]).await;
    }
}

#[tokio::test]
async fn the_official_client_receives_the_error_of_a_refused_join() {
    let example = Example::start(&[]).await;
    let mut ada = User::start(&example, "1", "user:2");
    assert_eq!(ada.says("refused", &["open"]).await, json!({"reason": "unauthorized"}));
    let mut eve = User::start(&example, "1", "room:1");
    assert_eq!(eve.says("refused", &["open"]).await, json!({"reason": "unmatched topic"}));
}

#[tokio::test]
async fn the_official_client_reconnects_and_rejoins_after_the_server_restarts() {
    let secret = ["--secret", "the same secret before and after"];
    let mut example = Example::start(&secret).await;
    let mut ada = User::start(&example, "1", "user:1");
    ada.says("joined", &["open"]).await;
    push(&example, 1, 1).await;
    assert_eq!(ada.says("push", &["ping"]).await, json!({"n": 1}));

    let port = example.address.rsplit(':').next().unwrap().to_owned();
    for (round, signal) in [(2, "-TERM"), (3, "-KILL")] {
        example.signal(signal).await;
        // A killed server sends no close frame, and the client sees the connection break.
        let code = if signal == "-TERM" { json!(1012) } else { json!(1006) };
        assert_eq!(ada.says("closed", &["ping"]).await, code);
        example.wait().await;
        example = Example::start(&["--port", &port, secret[0], secret[1]]).await;
        assert_eq!(ada.says("joined", &["open", "closed"]).await, json!({}));
        push(&example, 1, round).await;
        assert_eq!(ada.says("push", &["ping"]).await, json!({"n": round}));
    }
}
