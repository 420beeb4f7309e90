//! Kills processes and servers of durable sources, many times.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use crate::{
    load::target_folder,
    run::{Failure, Outcome, cargo},
};

/// The sources, and the tests that they are in.
const SOURCES: [(&str, &str); 6] = [
    ("sqlite", "kill"),
    ("postgres", "postgres"),
    ("redis", "redis"),
    ("nats", "nats"),
    ("rabbitmq", "rabbitmq"),
    ("kafka", "kafka"),
];

/// The tests of deaths have one of these in their names.
const TESTS: [&str; 2] = ["killed", "goes_away_and_comes_back"];

/// The lines of figures have this.
const FIGURES: &str = "kills: ";

struct Options {
    sources: Vec<(&'static str, &'static str)>,
    kills: String,
    items: String,
    restarts: String,
}

/// Runs the tests of deaths of each source, one after the other, and prints their figures. All that they print
/// is kept in files.
pub(crate) fn run(arguments: Vec<String>) -> Outcome {
    let options = options(arguments)?;
    let folder = target_folder().join("kills");
    fs::create_dir_all(&folder)?;
    let mut failed = Vec::new();
    for (source, test) in &options.sources {
        let kept = folder.join(format!("{source}.txt"));
        println!("=== {source}; the output is kept in {}", kept.display());
        if !run_one(test, &options, File::create(&kept)?)? {
            failed.push(*source);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the tests of {}", failed.join(", "))))
}

/// Runs the tests of one source. False if they have failed.
fn run_one(test: &str, options: &Options, mut kept: File) -> Outcome<bool> {
    let mut command = cargo();
    command
        .args(["test", "--package", "pipeline-sources", "--all-features", "--test", test, "--"])
        .args(["--nocapture", "--test-threads", "1"])
        .args(TESTS)
        .env("KILLS", &options.kills)
        .env("ITEMS", &options.items)
        .env("RESTARTS", &options.restarts)
        // A server that is missing fails the run.
        .env("CI", "1")
        .stdout(Stdio::piped());
    let mut running = command.spawn()?;
    let output = running.stdout.take().ok_or_else(|| Failure::new("it has no output"))?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(kept, "{line}")?;
        let figures = line.split_once(FIGURES).map(|(_, figures)| figures);
        let outcome = || Some(&*line).filter(|line| line.starts_with("test result: "));
        if let Some(shown) = figures.or_else(outcome) {
            println!("{shown}");
        }
    }
    Ok(running.wait()?.success())
}

fn options(arguments: Vec<String>) -> Outcome<Options> {
    let mut options = Options {
        sources: Vec::new(),
        kills: "50".to_owned(),
        items: "20000".to_owned(),
        restarts: "10".to_owned(),
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let value =
            arguments.next().ok_or_else(|| Failure::new(format!("{argument} has no value")))?;
        let number = || match value.parse::<u32>() {
            Ok(1..) => Ok(value.clone()),
            _ => Err(Failure::new(format!("{argument} needs a number, which {value:?} is not"))),
        };
        match &*argument {
            "--source" => {
                let source = SOURCES.into_iter().find(|(name, _)| *name == value);
                let unknown = || Failure::new(format!("there is no source {value:?}"));
                options.sources.push(source.ok_or_else(unknown)?);
            }
            "--kills" => options.kills = number()?,
            "--items" => options.items = number()?,
            "--restarts" => options.restarts = number()?,
            other => return Err(Failure::new(format!("there is no option {other:?}"))),
        }
    }
    if options.sources.is_empty() {
        options.sources = SOURCES.to_vec();
    }
    Ok(options)
}
