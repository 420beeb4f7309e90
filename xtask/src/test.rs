//! All checks and tests.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::{
    book, fuzz, load, packages,
    run::{Failure, Outcome, cargo, program, step},
    setup, template, tidy,
};

pub(crate) fn all() -> Outcome {
    setup::if_needed()?;
    quick()?;
    book::build()?;
    step("tests", cargo().args(["test", "--workspace", "--all-features"]))?;
    interleavings()?;
    fuzz::quick()?;
    step(
        "each bench once",
        cargo().args(["test", "--package", "pipeline-benches", "--benches", "--quiet"]),
    )?;
    template::works()?;
    first_command()?;
    let mut deny = program(setup::cargo_deny());
    step("licences and sources", deny.args(["check", "bans", "licenses", "sources"]))?;
    println!("\neverything passed");
    Ok(())
}

pub(crate) fn quick() -> Outcome {
    tidy::all()?;
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "lints",
        cargo()
            .args(["clippy", "--workspace", "--all-targets", "--all-features"])
            .args(["--", "--deny", "warnings"]),
    )?;
    packages::features()?;
    step(
        "documentation",
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--all-features"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    packages::contents()
}

/// The tests that explore all interleavings of tasks. Their build shares nothing with other builds, so
/// it has its own folder.
pub(crate) fn interleavings() -> Outcome {
    step(
        "queues, mailboxes and gauges in every order",
        cargo()
            .args(["test", "--package", "pipeline-core", "--lib"])
            .args(["--profile", "interleavings", "interleavings"])
            .arg("--target-dir")
            .arg(load::target_folder().join("interleavings"))
            .env("RUSTFLAGS", "--cfg interleavings"),
    )
}

/// Whether a line of the example reports handled pushes. Pushes arrive only where a page is open.
fn was_handled(line: &str) -> bool {
    line.starts_with("pushes   ") && line.contains(" handled") && !line.contains("; 0 handled")
}

/// The README's first command, except for the port: it has to start, push an item, and end cleanly on
/// SIGTERM.
fn first_command() -> Outcome {
    let build = ["build", "--release", "--package", "push_to_users"];
    step("build the README's first command", cargo().args(build))?;
    println!("\n=== the README's first command");
    let mut child = cargo()
        .args(["run", "--release", "--quiet", "--package", "push_to_users"])
        .args(["--", "--port", "0", "--demo"])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines();
    let worked = lines
        .by_ref()
        .map_while(Result::ok)
        .inspect(|line| println!("{line}"))
        .any(|line| was_handled(&line));
    // `cargo run` replaces itself by the program.
    let signalled = program("kill").args(["-TERM", &child.id().to_string()]).status();
    if !signalled.is_ok_and(|status| status.success()) {
        child.kill()?;
    }
    lines.map_while(Result::ok).for_each(|line| println!("{line}"));
    let status = child.wait()?;
    if worked && status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("the README's first command: worked: {worked}, {status}")))
    }
}
