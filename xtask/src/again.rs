//! Runs all tests, and once more those that failed.
#![expect(clippy::disallowed_types, reason = "there is no tokio here")]

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader},
    process::Command,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use crate::run::{Failure, Outcome};

/// With more failures than these, the tests have failed.
const MOST: usize = 3;

/// How long the output may go on when the command has ended. A process that a test has left behind may keep it open.
const AFTER_THE_END: Duration = Duration::from_secs(2);

/// Runs the tests of `command`, all of them. Tests wait for servers, browsers and other processes that share two
/// processors, so up to [`MOST`] tests that failed run once more, alone. The end of the output names those that
/// passed then: each has a fault to be found, of its own or of what it tests.
///
/// # Errors
///
/// If a test fails both times, if more than [`MOST`] fail, and if something else than a test fails, such as a program of
/// tests that crashes.
pub(crate) fn run(command: impl Fn() -> Command) -> Outcome<Vec<String>> {
    println!("\n=== tests");
    let started = Instant::now();
    let mut first = command();
    first.arg("--no-fail-fast");
    let report = Report::of(first)?;
    println!("=== tests: {:.0} s", started.elapsed().as_secs_f64());
    if report.passed {
        return Ok(Vec::new());
    }
    report.is_explained()?;
    let names: Vec<_> = report.failed.iter().map(|(_, name)| name.clone()).collect();
    println!("\n=== once more, alone: {}", names.join(", "));
    let mut passed = BTreeSet::new();
    for target in &report.targets {
        let mut again = command();
        again.args(target).args(["--", "--test-threads", "1", "--exact"]).args(&names);
        let report = Report::of(again)?;
        if !report.passed {
            return Err(Failure::new(format!("tests: {} failed again", target.join(" "))));
        }
        passed.extend(report.succeeded);
    }
    let missing: Vec<_> = report.failed.difference(&passed).collect();
    if missing.is_empty() {
        Ok(names)
    } else {
        Err(Failure::new(format!("tests: {missing:?} failed, and did not run again")))
    }
}

/// A test: its program, as cargo names it, and its name.
type Test = (String, String);

/// What a run of tests has printed about itself.
#[derive(Debug, Default, PartialEq)]
struct Report {
    passed: bool,
    /// The program that runs.
    program: String,
    /// The options that name each program of tests that failed, without its package: another choice of packages would be
    /// built with other features. Programs of other packages with the same name run as well.
    targets: BTreeSet<Vec<String>>,
    /// How many programs failed, by cargo, and by their own last line, and how many tests by that.
    failed_programs: [usize; 2],
    failed_tests: usize,
    failed: BTreeSet<Test>,
    succeeded: BTreeSet<Test>,
}

impl Report {
    /// Runs a command, and prints what it prints.
    fn of(mut command: Command) -> Outcome<Self> {
        let (output, input) = io::pipe()?;
        let mut child = command.stdout(input.try_clone()?).stderr(input).spawn()?;
        // The command keeps the ends to write to, and the output would not end before it does.
        drop(command);
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            // A test may print what is not UTF-8.
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut report = Self::default();
        let mut has_ended = false;
        loop {
            match lines.recv_timeout(AFTER_THE_END) {
                Ok(line) => {
                    print!("{line}");
                    report.read(line.trim_end());
                }
                Err(RecvTimeoutError::Timeout) if has_ended => break,
                Err(RecvTimeoutError::Timeout) => has_ended = child.try_wait()?.is_some(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        report.passed = child.wait()?.success();
        Ok(report)
    }

    fn read(&mut self, line: &str) {
        let start = line.trim_start();
        if let Some(test) = line.strip_prefix("test ") {
            let of = |name: &str| (self.program.clone(), name.to_owned());
            if let Some(name) = test.strip_suffix(" ... FAILED") {
                self.failed.insert(of(name));
            } else if let Some(name) = test.strip_suffix(" ... ok") {
                self.succeeded.insert(of(name));
            } else if let Some(sums) = test.strip_prefix("result: FAILED. ") {
                let failed = sums.split("; ").find_map(|sum| sum.strip_suffix(" failed"));
                self.failed_tests += failed.and_then(|it| it.parse::<usize>().ok()).unwrap_or(0);
                self.failed_programs[1] += 1;
            }
        } else if start.starts_with("Running ") || start.starts_with("Doc-tests ") {
            start.clone_into(&mut self.program);
        } else if let Some(target) = start.strip_prefix("`-p ") {
            // cargo lists them at the end of its output.
            let target = target.trim_end_matches('`').split_whitespace().skip(1);
            self.targets.insert(target.map(str::to_owned).collect());
            self.failed_programs[0] += 1;
        }
    }

    /// Whether each failure is that of a test whose name is known.
    fn is_explained(&self) -> Outcome {
        let Self { failed, failed_tests, failed_programs: [of_cargo, of_their_own], .. } = self;
        if of_cargo != of_their_own || *failed_tests != failed.len() {
            return Err(Failure::new(format!(
                "tests: {of_cargo} programs failed, {of_their_own} of them by {failed_tests} tests: {failed:?}"
            )));
        }
        if failed.is_empty() || failed.len() > MOST {
            return Err(Failure::new(format!("tests: {} failed: {failed:?}", failed.len())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of a program with a test that fails, and of another that passes.
    const FAILED: &str = "     Running tests/y.rs (target/debug/deps/y-1)\n\
        test a ... FAILED\n\
        test b ... ok\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; finished in 1.2s\n\
        \x20    Running tests/y.rs (target/debug/deps/y-2)\n\
        test a ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored\n\
        error: 1 target failed:\n    `-p x --test y`\n";

    fn read(output: &str) -> Report {
        let mut report = Report::default();
        output.lines().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn a_report_names_the_tests_that_failed_and_their_programs() {
        let report = read(FAILED);
        let test = |program: &str, name: &str| {
            (format!("Running tests/y.rs ({program})"), name.to_owned())
        };
        let [y1, y2] = ["target/debug/deps/y-1", "target/debug/deps/y-2"];
        assert_eq!(report.failed, BTreeSet::from([test(y1, "a")]));
        assert_eq!(report.succeeded, BTreeSet::from([test(y1, "b"), test(y2, "a")]));
        assert_eq!(report.targets, BTreeSet::from([vec!["--test".to_owned(), "y".to_owned()]]));
        report.is_explained().unwrap();
    }

    #[test]
    fn a_program_that_crashes_and_a_failure_without_a_name_are_not_explained() {
        let crashed = FAILED.replace("1 target failed", "2 targets failed") + "    `-p z --lib`\n";
        for output in [crashed, FAILED.replace("test a ... FAILED\n", "test a ... \nFAILED\n")] {
            let error = read(&output).is_explained().unwrap_err();
            assert!(error.to_string().contains("of them by 1 tests"), "{error}");
        }
    }

    /// A run of a shell in place of cargo, which prints the first text, or the second when it runs again.
    fn with(first: &str, again: &str, script: &str) -> Outcome<Vec<String>> {
        run(|| {
            let mut shell = Command::new("sh");
            let script = format!(
                "{script} case \"$*\" in \
                    *--exact*) printf '%s' \"$AGAIN\"; case \"$AGAIN\" in *FAILED*) exit 101;; esac;; \
                    *) printf '%s' \"$FIRST\"; exit 101;; \
                esac"
            );
            // The arguments after the script are those that cargo would have.
            shell.args(["-c", &script, "cargo"]).env("FIRST", first).env("AGAIN", again);
            shell
        })
    }

    #[test]
    fn a_test_that_fails_once_is_named_and_one_that_fails_twice_fails_all() {
        let passed = "     Running tests/y.rs (target/debug/deps/y-1)\ntest a ... ok\n";
        // With a process that is left behind and keeps the output open.
        let named = with(FAILED, passed, "sleep 60 &").map_err(|error| error.to_string());
        assert_eq!(named, Ok(vec!["a".to_owned()]));
        let twice = with(FAILED, &passed.replace("ok", "FAILED"), "");
        assert!(twice.unwrap_err().to_string().contains("--test y failed again"));
        // Another program's test of the same name is another test.
        let other = with(FAILED, &passed.replace("y-1", "y-2"), "");
        assert!(other.unwrap_err().to_string().contains("did not run again"));
    }

    #[test]
    fn too_many_tests_fail_at_once() {
        let many: String = ["c", "d", "e"].map(|name| format!("test {name} ... FAILED\n")).concat();
        let output = FAILED.replace("test a ... FAILED\n", &format!("test a ... FAILED\n{many}"));
        let many = with(&output.replace("1 failed", "4 failed"), "", "");
        assert!(many.unwrap_err().to_string().contains("4 failed"));
    }
}
