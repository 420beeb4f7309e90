//! All checks and tests.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    again, book, fuzz, load, packages,
    run::{Failure, Outcome, cargo, is_installed, program, step},
    setup, template, tidy,
};

/// All of it. The tests wait for servers and for time more than they compute, so checks and further builds run
/// behind them, with the processors' idle time.
pub(crate) fn all() -> Outcome {
    setup::if_needed()?;
    tidy::all()?;
    format()?;
    // In one build, the tests and the programs that they start share the libraries.
    step("build the tests", whole("test").arg("--no-run"))?;
    step("build the examples", whole("build").arg("--bins"))?;
    let mut behind = Behind::start()?;
    let unsteady = again::run(|| {
        let mut tests = whole("test");
        tests.env("EXAMPLES_ARE_BUILT", "1");
        tests
    })?;
    behind.finish()?;
    fuzz::quick()?;
    step("each bench once", &mut benches())?;
    template::works()?;
    first_command()?;
    let mut deny = program(setup::cargo_deny());
    step("licences and sources", deny.args(["check", "bans", "licenses", "sources"]))?;
    if !unsteady.is_empty() {
        println!("\nthese tests failed once, and passed alone: {}", unsteady.join(", "));
    }
    println!("\neverything passed");
    Ok(())
}

/// What `all` runs behind the tests: nothing of it depends on how quick it is.
pub(crate) fn behind_the_tests() -> Outcome {
    lints_and_documents()?;
    book::build()?;
    interleavings()?;
    fuzz::build()?;
    step("build the benches", benches().arg("--no-run"))?;
    build_first_command()
}

/// The command that runs behind the tests. Dropping it ends it.
struct Behind {
    child: Child,
    log: PathBuf,
}

impl Behind {
    const COMMAND: &str = "behind-the-tests";

    /// Starts it in a process group of its own, for the time in which no processor has anything else to do.
    fn start() -> Outcome<Self> {
        let log = load::target_folder().join("behind-the-tests.log");
        let output = fs::File::create(&log)?;
        println!(
            "\n=== lints, documents and further builds run behind the tests: {}",
            log.display()
        );
        let idle = ["--idle", "0"];
        let mut behind = if is_installed("chrt") {
            let mut behind = program("chrt");
            behind.args(idle).arg(env::current_exe()?);
            behind
        } else {
            program(env::current_exe()?)
        };
        let child = behind
            .arg(Self::COMMAND)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        Ok(Self { child, log })
    }

    /// Waits for its end, and prints what it has printed.
    fn finish(&mut self) -> Outcome {
        let status = self.child.wait()?;
        print!("{}", fs::read_to_string(&self.log)?);
        if status.success() {
            Ok(())
        } else {
            Err(Failure::new(format!("{}: {status}", Self::COMMAND)))
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = format!("-{}", self.child.id());
            // The tests have failed already.
            let _ = program("kill").args(["-TERM", "--", &group]).status();
            let _ = self.child.wait();
        }
    }
}

/// A command of cargo for all packages with all features.
fn whole(command: &str) -> Command {
    let mut cargo = cargo();
    cargo.args([command, "--workspace", "--all-features"]);
    cargo
}

/// Runs each bench once.
fn benches() -> Command {
    let mut benches = whole("test");
    benches.args(["--bench", "*", "--quiet"]);
    benches
}

/// The checks without the tests.
pub(crate) fn quick() -> Outcome {
    tidy::all()?;
    format()?;
    lints_and_documents()
}

fn format() -> Outcome {
    step("format", cargo().args(["fmt", "--all", "--check"]))
}

fn lints_and_documents() -> Outcome {
    step("lints", whole("clippy").args(["--all-targets", "--", "--deny", "warnings"]))?;
    packages::features()?;
    step("documentation", whole("doc").arg("--no-deps").env("RUSTDOCFLAGS", "--deny warnings"))?;
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
    build_first_command()?;
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

fn build_first_command() -> Outcome {
    let build = ["build", "--release", "--package", "push_to_users"];
    step("build the README's first command", cargo().args(build))
}
