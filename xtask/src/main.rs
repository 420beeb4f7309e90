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

  test    set up what the tests need, and run everything that has to pass
  setup   only install what the tests need: npm packages, a browser, cargo-deny
  check   the quick part of test: tidiness, format, lints, docs
  interleavings
          only the tests that try every order in which the tasks at a queue can meet
  load    measure, beside what one would write by hand, and print the table of the README;
          with --growth, measure how cost grows, and draw it (--help says what else there is)
  tidy    only the checks of what no other tool knows: invariants, and that texts tell the truth
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
