//! Runs the fuzz targets.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    load::target_folder,
    run::{Failure, Outcome, cargo, program, root, step},
};

/// How long each target runs in `cargo xtask test`, in seconds. The environment variable `FUZZ_SECONDS` changes
/// it.
const SECONDS: &str = "30";

/// How long each target runs in `cargo xtask fuzz`.
const MINUTES: u64 = 10;

/// How many of the found inputs a target keeps in the repository, in addition to those that it has.
const KEPT: usize = 40;

/// Each target for a short time, without a special compiler.
pub(crate) fn quick() -> Outcome {
    let seconds = std::env::var("FUZZ_SECONDS").unwrap_or_else(|_| SECONDS.to_owned());
    build()?;
    step("fuzzing", &mut plain(&["run", "--quiet", "--", "--jobs", "2", "--seconds", &seconds]))
}

pub(crate) fn build() -> Outcome {
    step("build the fuzz targets", &mut plain(&["build"]))
}

/// Each target, or one, for a long time: with libFuzzer, if there is a nightly compiler and cargo-fuzz.
pub(crate) fn run(arguments: Vec<String>) -> Outcome {
    let Options { targets, minutes, plain: is_plain, keep } = options(arguments)?;
    let guided = !is_plain && has_cargo_fuzz();
    if !guided && keep {
        return Err(Failure::new("--keep needs a nightly compiler and cargo-fuzz"));
    }
    println!("{}", if guided { "with libFuzzer" } else { "with the plain runner" });
    for target in targets {
        let what = format!("{target}, {minutes} min");
        if keep {
            keep_found(&target)?;
        } else if guided {
            let time = format!("-max_total_time={}", minutes * 60);
            let found = found(&target);
            fs::create_dir_all(&found)?;
            let folders = [found, root().join("fuzz/corpus").join(&target)];
            step(&what, lib_fuzzer(&target, &folders, &[&time])?.arg("-print_final_stats=1"))?;
        } else {
            let seconds = (minutes * 60).to_string();
            step(&what, &mut plain(&["run", "--quiet", "--", "--seconds", &seconds, &target]))?;
        }
    }
    Ok(())
}

struct Options {
    targets: Vec<String>,
    minutes: u64,
    plain: bool,
    keep: bool,
}

fn options(arguments: Vec<String>) -> Outcome<Options> {
    let mut options = Options { targets: Vec::new(), minutes: MINUTES, plain: false, keep: false };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value =
            || arguments.next().ok_or_else(|| Failure::new(format!("{argument} has no value")));
        match argument.as_str() {
            "--minutes" => {
                let minutes = value()?;
                let parsed = minutes.parse();
                options.minutes =
                    parsed.map_err(|_| Failure::new(format!("{minutes:?} is no number")))?;
            }
            "--target" => options.targets.push(value()?),
            "--plain" => options.plain = true,
            "--keep" => options.keep = true,
            other => return Err(Failure::new(format!("there is no option {other:?}"))),
        }
    }
    if options.minutes == 0 {
        return Err(Failure::new("a target runs for a minute at least"));
    }
    if options.targets.is_empty() {
        options.targets = targets()?;
    }
    Ok(options)
}

/// All targets: each has a folder with its corpus.
fn targets() -> Outcome<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/corpus"))? {
        targets.push(entry?.file_name().to_string_lossy().into_owned());
    }
    targets.sort();
    Ok(targets)
}

/// A command of cargo for the plain runner.
fn plain(arguments: &[&str]) -> Command {
    let mut command = cargo();
    let (first, rest) = arguments.split_first().unwrap_or((&"build", &[]));
    command.args([first, "--profile", "fuzz", "--package", "pipeline-fuzz"]).args(rest);
    command
}

fn has_cargo_fuzz() -> bool {
    let mut command = program("cargo");
    command.args(["+nightly", "fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The inputs that libFuzzer has found, which are not in the repository.
fn found(target: &str) -> PathBuf {
    target_folder().join("fuzz-corpus").join(target)
}

/// libFuzzer with one of the targets. It reads all folders, and writes to the first.
fn lib_fuzzer(target: &str, folders: &[PathBuf], options: &[&str]) -> Outcome<Command> {
    let failures = root().join("fuzz/failures").join(target);
    fs::create_dir_all(&failures)?;
    let mut command = program("cargo");
    command
        .args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz/coverage", "--sanitizer", "none"])
        .arg("selected")
        .args(folders)
        .args(["--", "-max_len=4095", "-timeout=30"])
        .arg(format!("-artifact_prefix={}/", failures.display()))
        .args(options)
        .env("FUZZ_TARGET", target);
    Ok(command)
}

/// Adds some of the found inputs that reach something new to the repository's corpus, from the smallest to the
/// largest.
fn keep_found(target: &str) -> Outcome {
    let minimal = found(target).with_extension("minimal");
    if minimal.exists() {
        fs::remove_dir_all(&minimal)?;
    }
    fs::create_dir_all(&minimal)?;
    let corpus = root().join("fuzz/corpus").join(target);
    let folders = [minimal.clone(), corpus.clone(), found(target)];
    step(&format!("the corpus of {target}"), &mut lib_fuzzer(target, &folders, &["-merge=1"])?)?;
    let known: Vec<Vec<u8>> = contents(&corpus)?.into_iter().map(|(_, input)| input).collect();
    let mut new = contents(&minimal)?;
    new.retain(|(_, input)| !known.contains(input));
    new.sort_by_key(|(_, input)| input.len());
    let step = new.len().div_ceil(KEPT).max(1);
    for (name, input) in new.into_iter().step_by(step) {
        fs::write(corpus.join(&name[..name.len().min(16)]), input)?;
    }
    Ok(())
}

/// The files of a folder with their names.
fn contents(folder: &Path) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        contents.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    Ok(contents)
}
