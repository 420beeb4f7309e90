//! What runs, in a terminal: the stages of pipelines, what holds them up, how long deliveries take.
//!
//! `cargo run --example top -- http://127.0.0.1:4000/inspect` watches whoever has mounted an inspector
//! there, `push_to_users` for instance. With `--once` it prints one frame as text and ends.
#![allow(unreachable_pub, reason = "nobody but the program itself uses its modules")]

mod fetch;
mod frame;
mod terminal;

use std::{error::Error, process::ExitCode};

use clap::Parser;

use self::{fetch::Source, frame::Screen};

/// Watches running pipelines and their sockets. `q` or Ctrl-C ends it.
#[derive(Parser)]
struct Args {
    /// Where an inspector is mounted: `http://127.0.0.1:4000/inspect`.
    url: String,
    /// Prints one frame as plain text, and ends.
    #[arg(long)]
    once: bool,
    /// How many columns a printed frame has.
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
    // What cannot be had at the beginning is not waited for.
    let view = source.view().await?;
    let screen = Screen { url: args.url, view: Some(view), trouble: None };
    if args.once {
        print!("{}", terminal::plain(&screen, args.width)?);
    } else {
        terminal::run(source, screen).await?;
    }
    Ok(())
}
