//! Installs dependencies of the tests that cargo does not provide.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{Failure, Outcome, cargo, is_installed, program, root, step};

/// The folders with packages from npm.
const NPM_FOLDERS: [&str; 2] = ["examples/support", "tests/interop"];

/// The version of cargo-deny.
const CARGO_DENY: &str = "0.20.2";

pub(crate) fn all() -> Outcome {
    npm_packages()?;
    browser()?;
    netdata()?;
    cargo_deny()?;
    Ok(())
}

/// The official Phoenix client, and the original StatsD daemon.
fn npm_packages() -> Outcome {
    if !is_installed("node") || !is_installed("npm") {
        return Err(Failure::new(
            "node and npm are needed to test with the official JavaScript client: install Node.js 20 or newer",
        ));
    }
    for folder in NPM_FOLDERS {
        let folder = root().join(folder);
        if is_current(&folder) {
            continue;
        }
        let mut npm = program("npm");
        // No package here needs its install scripts.
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder);
        step(&format!("npm ci in {}", folder.display()), &mut npm)?;
    }
    Ok(())
}

/// Whether npm has installed the versions of the lock file.
fn is_current(folder: &Path) -> bool {
    let modified = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let installed = modified(folder.join("node_modules/.package-lock.json"));
    installed.is_some() && installed >= modified(folder.join("package-lock.json"))
}

/// Chromium and its driver, from the system's packages.
fn browser() -> Outcome {
    if is_installed("chromium") && is_installed("chromedriver") {
        return Ok(());
    }
    if !is_installed("apt-get") {
        return Err(Failure::new(
            "chromium and chromedriver are needed to test the page: install them so that they are found in PATH",
        ));
    }
    apt_get_install("chromium", &["chromium", "chromium-driver"])
}

/// A second StatsD server, from the system's packages. Its test is skipped where it is not installed.
fn netdata() -> Outcome {
    // It has no `--version`, and is in a folder that is not always in PATH.
    let is_there = |name| program(name).arg("-v").output().is_ok_and(|run| run.status.success());
    if is_there("netdata") || is_there("/usr/sbin/netdata") {
        return Ok(());
    }
    if !is_installed("apt-get") {
        println!("\nnetdata is not installed: its test will be skipped");
        return Ok(());
    }
    apt_get_install("netdata", &["netdata-core"])?;
    // The test starts its own instance. Without systemd, no service was started.
    if is_installed("systemctl") {
        let mut disable = as_root("systemctl", &["disable", "--quiet", "--now", "netdata"]);
        println!("netdata's own service is not needed: {:?}", disable.status()?);
    }
    Ok(())
}

fn apt_get_install(what: &str, packages: &[&str]) -> Outcome {
    step("apt-get update", &mut as_root("apt-get", &["update", "-qq"]))?;
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    let install: Vec<&str> = install.into_iter().chain(packages.iter().copied()).collect();
    step(&format!("apt-get install {what}"), &mut as_root("apt-get", &install))
}

/// Root needs no sudo, which may be missing.
fn as_root(name: &str, arguments: &[&str]) -> Command {
    let sudo = is_installed("sudo").then_some("sudo");
    let words: Vec<&str> =
        sudo.into_iter().chain([name]).chain(arguments.iter().copied()).collect();
    let mut command = program(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The checker of licences and sources. Returns its path.
pub(crate) fn cargo_deny() -> Outcome<PathBuf> {
    if is_installed("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let folder = root().join("target/tools");
    let tool = folder.join("bin/cargo-deny");
    if !is_installed(&tool) {
        let mut install = cargo();
        // Unoptimised: it is built more often than it runs.
        install.args(["install", "--quiet", "--locked", "--debug", "--version", CARGO_DENY]);
        install.arg("--root").arg(&folder).arg("cargo-deny");
        step("install cargo-deny", &mut install)?;
    }
    Ok(tool)
}
