//! The project's own commands.

mod again;
mod book;
mod cases;
mod fuzz;
mod guarantees;
mod kills;
mod load;
mod packages;
mod run;
mod setup;
mod soak;
mod template;
mod test;
mod tidy;

use std::process::ExitCode;

use self::run::{Failure, Outcome};

const HELP: &str = "\
Usage: cargo xtask COMMAND

  test           run all checks and tests; installs missing tools first, with setup
  check          run the checks without the tests: tidy, format, lints, features, docs, packages
  tidy           check the project's own rules, and that its texts are true
  interleavings  test queues, mailboxes and gauges in every order in which their tasks can run
  fuzz           run the fuzz targets for a long time: --minutes N for each, --target NAME, --plain without
                 libFuzzer, --keep to keep what it has found
  load           measure the project and its baselines under load, and print a table;
                 --growth draws how cost grows with sockets and topics; --scale measures 100,000 sockets
                 of several nodes; --storm 20,000 that are cut off and come back at once; --help lists all options
  soak           run thousands of clients that join, leave, die and come back, and check every item;
                 --minutes 30; --help lists all options
  signals        stop a server under load at random moments, and account for every item; --stop 15
                 freezes it for that many seconds instead
  overload       offer up to 20 times what can be delivered, and print what becomes of it
  pushes         push a great number of items, and account for every one
  kills          kill the processes and the servers of durable sources while items flow, and account for
                 every item: --source NAME, or all; --kills 50, --restarts 10 of a server, --items 20000
  book           build the guide into target/book, and check its links
  template       copy the template out of the project, and run its tests
  setup          install the tools of the tests: npm packages, Chromium, netdata, mdBook, cargo-deny
  help           print this text
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let outcome = match command.as_deref() {
        Some("test") => test::all(),
        Some("book") => book::build(),
        Some("template") => template::works(),
        Some("setup") => setup::all(),
        // Not for users: `test` runs it.
        Some("behind-the-tests") => test::behind_the_tests(),
        Some("check") => test::quick(),
        Some("interleavings") => test::interleavings(),
        Some("fuzz") => fuzz::run(arguments.collect()),
        Some("load") => load::run(arguments.collect()),
        Some(soak @ ("soak" | "signals" | "overload" | "pushes")) => {
            soak::run(soak, arguments.collect())
        }
        Some("kills") => kills::run(arguments.collect()),
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
