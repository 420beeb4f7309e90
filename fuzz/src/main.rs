//! Runs fuzz targets without a special compiler.

use std::{
    env,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use pipeline_fuzz::{
    TARGETS, Target, corpus_folder, failures_folder, inputs, regressions_folder, run, store, target,
};

const HELP: &str = "\
Usage: fuzz [--seconds N] [--jobs N] [--seed N] [--shrink FILE] [TARGET]...

  --seconds N    how long each target runs; 10 by default
  --jobs N       how many targets run at the same time; 1 by default
  --seed N       repeats a run
  --input FILE   runs only this input, and shows how it fails
";

struct Options {
    targets: Vec<&'static Target>,
    time: Duration,
    jobs: usize,
    seed: u64,
    input: Option<String>,
}

fn main() -> ExitCode {
    let Some(options) = options(env::args().skip(1)) else {
        print!("{HELP}");
        return ExitCode::FAILURE;
    };
    if let Some(path) = &options.input {
        let input = std::fs::read(path).expect("the input can be read");
        options.targets.iter().for_each(|target| (target.run)(&input));
        return ExitCode::SUCCESS;
    }
    let queue = Mutex::new(options.targets.iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let Some(target) = queue.lock().next() else { break };
                    if !try_out(target, &options) {
                        failed.lock().push(target.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

/// Runs a target and reports the result. Returns whether all inputs passed.
fn try_out(target: &Target, options: &Options) -> bool {
    let folders = [corpus_folder(target.name), regressions_folder(target.name)];
    let corpus: Vec<Vec<u8>> = folders
        .iter()
        .flat_map(|folder| inputs(folder).expect("the corpus can be read").into_values())
        .collect();
    let outcome = run(target, &corpus, options.seed, options.time);
    let per_second = outcome.executions as f64 / outcome.time.as_secs_f64();
    println!(
        "{:16} seed {:20} {:12} executions {per_second:9.0}/s",
        target.name, options.seed, outcome.executions
    );
    let Some(failure) = outcome.failure else { return true };
    let stored = store(&failures_folder(target.name), &failure).expect("the input can be stored");
    println!(
        "{}: FAILED after {} executions with {:?}\n\
         cargo run --profile fuzz -p pipeline-fuzz -- {} --input {}",
        target.name,
        outcome.executions,
        failure.escape_ascii().to_string(),
        target.name,
        stored.display()
    );
    false
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut options = Options {
        targets: Vec::new(),
        time: Duration::from_secs(10),
        jobs: 1,
        seed: u64::try_from(now.as_nanos()).unwrap_or_default(),
        input: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                options.time = Duration::from_secs_f64(arguments.next()?.parse().ok()?);
            }
            "--jobs" => options.jobs = arguments.next()?.parse().ok()?,
            "--seed" => options.seed = arguments.next()?.parse().ok()?,
            "--input" => options.input = Some(arguments.next()?),
            name => options.targets.push(target(name)?),
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.iter().collect();
    }
    Some(options)
}
