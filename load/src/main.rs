//! Load tests of the project, compared with hand-written programs.
//!
//! `cargo xtask load` builds this and the server `examples/load_target`, and prints the table in
//! `docs/performance.md`, which describes the method. It runs on Linux.

mod bench;
mod client;
mod figure;
mod growth;
mod nodes;
mod peers;
mod rows;
mod scale;
mod sources;
mod stages;
mod table;

use std::{error::Error, fs, path::PathBuf, thread, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use mimalloc::MiMalloc;
use pipeline_load::{descriptors, error, server, usage};
use tokio::{runtime::Runtime, time::Instant};

use self::{
    bench::{Bench, Broker, Size},
    error::LoadError,
    rows::Rows,
    usage::Machine,
};

/// The same allocator as the project's own server.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The number of sockets in the largest load.
const MOST_SOCKETS: usize = 18_000;

/// Load tests of the project, compared with hand-written programs
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and print the table
    Table(Table),
    /// Measure how cost grows with sockets and topics, and draw a chart
    Growth {
        #[command(flatten)]
        how: How,
        /// The folder for the chart and its figures
        #[arg(long, default_value = "docs")]
        into: PathBuf,
    },
    /// Measure many sockets over several nodes, with pushes from a pipeline on one of them
    Scale(scale::Asked),
    /// Measure sockets that are all cut off at once and come back, next to calm ones that receive pushes
    Storm(scale::AskedStorm),
    /// Run the sockets of one node, told what to do by lines of the standard input
    Crowd(scale::Crowd),
    /// Run the hand-written baseline server
    Baseline {
        /// The port to serve on; a free one by default
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Run the server of raw writes: one thread with the least possible work
    Raw {
        /// The port to serve on; a free one by default
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// How many frames are written at once
        #[arg(long, default_value_t = 1)]
        glue: u64,
    },
}

/// The options of all measurements.
#[derive(Debug, clap::Args)]
struct How {
    /// The program of the server to measure, `examples/load_target`
    #[arg(long)]
    target: PathBuf,
    /// The number of rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure smaller loads, for a first impression
    #[arg(long)]
    quick: bool,
    /// Measure minimal loads, only to check that everything arrives
    #[arg(long, conflicts_with = "quick")]
    tiny: bool,
}

/// The options of the table.
#[derive(Debug, clap::Args)]
struct Table {
    #[command(flatten)]
    how: How,
    /// Only these rows
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Rows>,
    /// Of the rows of brokers, only those of this one
    #[arg(long)]
    broker: Option<Broker>,
    /// Also write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also replace the table in this file
    #[arg(long)]
    write: Option<PathBuf>,
    /// Say of each target whether it is met, and fail if one is not
    #[arg(long)]
    require: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    match Args::parse().command {
        Command::Table(asked) => table(&asked)?,
        Command::Growth { how, into } => growth::measure(&how.bench(), &into)?,
        Command::Scale(asked) => scale::measure(&asked)?,
        Command::Storm(asked) => scale::measure_storm(&asked)?,
        Command::Crowd(asked) => scale::run_crowd(&asked)?,
        Command::Baseline { port } => Runtime::new()?.block_on(peers::baseline::serve(port))?,
        Command::Raw { port, glue } => peers::raw::serve(port, glue)?,
    }
    Ok(())
}

impl How {
    fn bench(&self) -> Bench {
        let descriptors = descriptors::raise();
        if descriptors < MOST_SOCKETS {
            eprintln!("limited to {descriptors} sockets by the limit of open files");
        }
        let size = match (self.quick, self.tiny) {
            (true, _) => Size::Quick,
            (_, true) => Size::Tiny,
            _ => Size::Full,
        };
        let rounds = if size == Size::Full { self.rounds.max(1) } else { 1 };
        Bench { target: self.target.clone(), rounds, size, descriptors, broker: None }
    }
}

fn table(asked: &Table) -> Result<(), LoadError> {
    let (began, before) = (Instant::now(), Machine::now()?);
    let bench = Bench { broker: asked.broker, ..asked.how.bench() };
    let all = Rows::value_variants();
    let rows = if asked.rows.is_empty() { all } else { &asked.rows };
    let mut lines = Vec::new();
    for rows in rows {
        let (began, before) = (Instant::now(), Machine::now()?);
        lines.extend(rows.measure(&bench)?);
        let (took, others) = (round(began.elapsed()), Machine::now()?.others_since(&before));
        eprintln!(
            "measured {rows:?} in {took:.0?}; other programs used {others:.0} % of the machine"
        );
    }
    if let Some(file) = &asked.json {
        fs::write(file, serde_json::to_string_pretty(&lines)?)?;
    }
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let (rounds, took) = (bench.rounds, round(began.elapsed()));
    let others = Machine::now()?.others_since(&before);
    let text = format!(
        "{}\nMedians of {rounds} rounds on {cores} cores. All rounds took {took:.0?}, and other programs used \
         {others:.0} % of the machine meanwhile. BEAM: Phoenix 1.7 and GenStage 1.3, measured once on another \
         machine with two cores.\n",
        table::markdown(&lines)
    );
    print!("{text}");
    if let Some(file) = &asked.write {
        let before = fs::read_to_string(file)?;
        let after = table::replaced(&before, &text);
        fs::write(file, after.ok_or_else(|| LoadError::NoTable(file.clone()))?)?;
    }
    if asked.require {
        let (text, met) = table::require(&lines);
        print!("\n{text}");
        met?;
    }
    Ok(())
}

fn round(time: Duration) -> Duration {
    Duration::from_secs_f64(time.as_secs_f64().round())
}
