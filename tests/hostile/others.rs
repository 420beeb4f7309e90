//! Other implementations of WebSockets as clients: `ws` under Node, and Python's `websockets`.

use std::{env, process::Command};

use pipeline_test_support::{interop, project};

use crate::{arena::Arena, case::ALONE, client::SOCKET};

/// Runs a client, and expects each of its messages to be answered.
fn answers(program: &str, script: &str, python: Option<&str>, messages: usize) {
    let _together = ALONE.read();
    let arena = Arena::start(2);
    let mut command = Command::new(program);
    command.arg(script).arg(format!("ws://{}{SOCKET}", arena.address)).current_dir(interop());
    if let Some(python) = python {
        command.env("PYTHONPATH", python);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim(), format!("{messages} messages"), "{complained}");
    arena.is_at_rest().unwrap();
}

#[test]
fn messages_of_ws_are_answered() {
    answers("node", "messages.mjs", None, 300);
}

#[test]
fn messages_of_pythons_websockets_are_answered() {
    let python = project().join("target/tools/python");
    if !python.is_dir() {
        assert!(env::var_os("CI").is_none(), "websockets is installed: see CONTRIBUTING.md");
        eprintln!("skipped: there is no Python with pip");
        return;
    }
    answers("python3", "messages.py", python.to_str(), 360);
}
