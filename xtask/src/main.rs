//! The project's own commands.

mod cases;
mod load;
mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use self::run::{Failure, Outcome};

const HELP: &str = "\
cargo xtask COMMAND

  test    run setup, then all checks and tests
  setup   install dependencies of the tests: npm packages, a browser, cargo-deny
  check   the fast checks of test: tidiness, format, lints, docs
  interleavings
          only the tests that explore all interleavings of tasks at a queue
  load    run the load tests, and print the table of the README; with --growth, measure how cost
          grows, and draw a chart (--help lists further options)
  tidy    only the checks of the project's own invariants, and of the claims in its texts
  help    this text
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let outcome = match command.as_deref() {
        Some("test") => test::all(),
        Some("setup") => setup::all(),
        Some("check") => test::quick(),
        Some("interleavings") => test::interleavings(),
        Some("load") => load::run(arguments.collect()),
        Some("tidy") => tidy::all(),
        Some("help") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(Failure::new(format!("there is no command {other:?}\n\n{HELP}"))),
    };
    report(outcome)
}

fn report(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nFAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}
