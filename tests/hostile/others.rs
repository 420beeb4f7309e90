//! Other implementations of WebSockets as clients: `ws` under Node, and Python's `websockets`.

use std::{env, fs, process::Command};

use pipeline_test_support::{interop, project};

use crate::{
    arena::Arena,
    autobahn::{Other, exchanges},
    case::ALONE,
    client::{SOCKET, TOPIC},
};

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

/// Tells a client the steps of all cases that it can exchange, and expects it to have had their answers.
fn exchange(other: Other, program: &str, script: &str, python: Option<&str>) {
    let _together = ALONE.read();
    let arena = Arena::start(2);
    let (exchanges, blob) = exchanges();
    let told: Vec<_> =
        exchanges.into_iter().filter(|exchange| exchange.by.contains(&other)).collect();
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<_> = told.iter().map(|exchange| exchange.steps.to_string()).collect();
    fs::write(folder.path().join("cases"), lines.join("\n")).unwrap();
    fs::write(folder.path().join("bytes"), blob).unwrap();
    let mut command = Command::new(program);
    command.arg(script).arg(format!("ws://{}{SOCKET}", arena.address)).arg(TOPIC);
    command.arg(folder.path()).current_dir(interop());
    if let Some(python) = python {
        command.env("PYTHONPATH", python);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    // The case that comes after the last one that is named has failed.
    let exchanged: Vec<_> = said.lines().collect();
    let expected: Vec<_> = told.iter().map(|exchange| exchange.id.as_str()).collect();
    assert_eq!(exchanged.len(), expected.len(), "after {:?}: {complained}", exchanged.last());
    assert_eq!(exchanged, expected, "{complained}");
    arena.is_at_rest().unwrap();
}

/// Where Python's packages are, if they are installed.
fn python() -> Option<String> {
    let python = project().join("target/tools/python");
    if !python.is_dir() {
        assert!(env::var_os("CI").is_none(), "websockets is installed: see CONTRIBUTING.md");
        eprintln!("skipped: there is no Python with pip");
        return None;
    }
    python.to_str().map(str::to_owned)
}

#[test]
fn ws_exchanges_the_cases_of_autobahn_that_a_client_can_send() {
    exchange(Other::Ws, "node", "cases.mjs", None);
}

#[test]
fn pythons_websockets_exchanges_the_cases_of_autobahn_that_a_client_can_send() {
    let Some(python) = python() else { return };
    exchange(Other::Websockets, "python3", "cases.py", Some(&python));
}

#[test]
fn messages_of_ws_are_answered() {
    answers("node", "messages.mjs", None, 300);
}

#[test]
fn messages_of_pythons_websockets_are_answered() {
    let Some(python) = python() else { return };
    answers("python3", "messages.py", Some(&python), 360);
}
