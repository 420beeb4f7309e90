//! Runs a server under adverse conditions, and accounts for every item.
//!
//! `cargo xtask` builds this and runs it: `cargo xtask soak`, `signals`, `overload` or `pushes`. It starts itself a
//! second time as the server under test. It runs on Linux.

mod client;
mod endings;
mod excuse;
mod lateness;
mod overload;
mod presence;
mod process;
mod pushes;
mod random;
mod reader;
mod sequence;
mod server;
mod signals;
mod soak;
mod trend;
mod visitor;

use std::{error::Error, process::ExitCode};

use cap::Cap;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use pipeline_load::descriptors;
use tokio::runtime::Runtime;

/// The same allocator as the load tests, with a count of the bytes that are allocated.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// Runs a server under adverse conditions, and accounts for every item
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Soak(soak::Soak),
    Signals(signals::Signals),
    Overload(overload::Overload),
    Pushes(pushes::Pushes),
    #[command(hide = true)]
    Server(server::Options),
}

fn main() -> ExitCode {
    let command = Args::parse().command;
    let is_server = matches!(command, Command::Server(_));
    match run(command) {
        Ok(()) if is_server => ExitCode::SUCCESS,
        Ok(()) => {
            println!("passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    // For this process and the server.
    descriptors::raise();
    match command {
        Command::Server(options) => server::run(&options)?,
        Command::Soak(soak) => Runtime::new()?.block_on(soak.run())?,
        Command::Pushes(pushes) => Runtime::new()?.block_on(pushes.run())?,
        Command::Overload(overload) => Runtime::new()?.block_on(overload.run())?,
        Command::Signals(signals) => Runtime::new()?.block_on(signals.run())?,
    }
    Ok(())
}
