//! A terminal view of running pipelines: stages, bottlenecks, and delivery times.
//!
//! `cargo run -p top -- http://127.0.0.1:4000/inspect` watches the program with an inspector at
//! that URL, for instance `push_to_users`. With `--once` it prints one frame as text and exits.
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod fetch;
mod frame;
mod terminal;

use std::{error::Error, process::ExitCode};

use clap::Parser;

use self::{fetch::Source, frame::Screen};

/// Watches running pipelines and their sockets. `q` or Ctrl-C exits.
#[derive(Parser)]
struct Args {
    /// The URL of an inspector: `http://127.0.0.1:4000/inspect`.
    url: String,
    /// Prints one frame as plain text and exits.
    #[arg(long)]
    once: bool,
    /// The width of a printed frame in columns.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(20..=1000))]
    width: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let source = Source::new(&args.url)?;
    // If the first view cannot be fetched, the program fails.
    let view = source.view().await?;
    let screen = Screen { url: args.url, view: Some(view), trouble: None };
    if args.once {
        print!("{}", terminal::plain(&screen, args.width)?);
    } else {
        terminal::run(source, screen).await?;
    }
    Ok(())
}
