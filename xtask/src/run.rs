//! Runs other programs.
#![expect(clippy::disallowed_types, reason = "there is no tokio here")]

use std::{
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// An error message for the user of the command.
#[derive(Debug)]
pub(crate) struct Failure(String);

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the project").to_owned()
}

/// The cargo that runs this. It does not inherit what cargo sets for the program that it runs: build scripts
/// depend on these variables, and would run again each time that a program of another package calls cargo.
pub(crate) fn cargo() -> Command {
    let mut command = program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_a_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name
            .to_str()
            .is_some_and(|name| of_a_package.iter().any(|start| name.starts_with(start)))
        {
            command.env_remove(name);
        }
    }
    command
}

/// A program with the project's folder as its working directory.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// Runs a step of a command, and prints its name and duration.
pub(crate) fn step(what: &str, command: &mut Command) -> Outcome {
    println!("\n=== {what}");
    let started = Instant::now();
    let status = command.status().map_err(|error| {
        Failure::new(format!("{what}: cannot run {:?}: {error}", command.get_program()))
    })?;
    if !status.success() {
        return Err(Failure::new(format!("{what}: {status}")));
    }
    println!("=== {what}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Whether a program is installed.
pub(crate) fn is_installed(name: impl AsRef<OsStr>) -> bool {
    let mut command = Command::new(name);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
