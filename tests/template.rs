//! The template, copied as a user would copy it: it builds, its tests pass, and it runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pipeline_test_support::project;

/// Copies a folder, without what was built in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        if path.is_dir() {
            if !path.ends_with("target") {
                copy(&path, &copied);
            }
        } else {
            fs::copy(&path, &copied).unwrap();
        }
    }
}

/// The folder in which this test was built.
fn target() -> PathBuf {
    let program = env::current_exe().unwrap();
    program.ancestors().find(|folder| folder.ends_with("deps")).unwrap().join("../..")
}

/// Cargo in this folder. It has no network, and shares what the project has built of other packages.
fn cargo(folder: &Path, command: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        // Cargo sets these for the tests that it runs.
        let of_a_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name.to_str().is_some_and(|name| of_a_package.iter().any(|of| name.starts_with(of))) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(folder).arg(command).env("CARGO_TARGET_DIR", target());
    cargo
}

/// The project's own settings, without which nothing is shared.
const PROFILE: [&str; 4] = [
    "--config",
    "profile.dev.debug='line-tables-only'",
    "--config",
    "profile.dev.package.'*'.debug=false",
];

#[test]
fn the_template_passes_its_checks_and_its_tests_wherever_it_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    copy(&project().join("template"), &app);
    let manifest = fs::read_to_string(app.join("Cargo.toml")).unwrap();
    let checkout = project().canonicalize().unwrap();
    let moved = manifest.replace("path = \"..\"", &format!("path = {checkout:?}"));
    assert_eq!(moved.matches("path = \"/").count(), 2, "{moved}");
    fs::write(app.join("Cargo.toml"), moved).unwrap();
    // The versions that are there without a network.
    fs::copy(project().join("Cargo.lock"), app.join("Cargo.lock")).unwrap();

    let formatted = cargo(&app, "fmt").arg("--check").status().unwrap();
    assert!(formatted.success(), "the template is not formatted");
    let tested = cargo(&app, "test").args(["--offline", "--quiet"]).args(PROFILE).output().unwrap();
    let (out, log) =
        (String::from_utf8_lossy(&tested.stdout), String::from_utf8_lossy(&tested.stderr));
    assert!(tested.status.success() && out.contains("2 passed"), "{out}{log}");
    assert!(!log.contains("warning"), "{log}");

    // It says what is missing, and needs nothing else to start.
    let mut run = cargo(&app, "run");
    run.args(["--offline", "--quiet"]).args(PROFILE).env_remove("SECRET").stdin(Stdio::null());
    let refused = run.output().unwrap();
    let log = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && log.contains("SECRET is missing"), "{log}");
}
