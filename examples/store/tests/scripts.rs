//! The parts of the pages' scripts that need no browser, by node's own test runner.

use std::{fs, path::PathBuf, process::Command};

/// Also shows A-133: effects that run twice are in the tests of the client that the hooks use.
#[test]
fn the_scripts_pass_their_tests() {
    let web = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web");
    let mut tests: Vec<PathBuf> =
        fs::read_dir(web.join("test")).unwrap().map(|entry| entry.unwrap().path()).collect();
    tests.sort();
    assert!(!tests.is_empty());
    let mut node = Command::new("node");
    node.arg("--test").args(tests).current_dir(web);
    let output = node.output().expect("node is installed: see CONTRIBUTING.md");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("# fail 0") || said.contains("ℹ fail 0"), "{said}");
}
