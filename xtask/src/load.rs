//! Builds and runs the load tests.

use std::path::PathBuf;

use crate::run::{Outcome, cargo, program, root, step};

/// Builds the project's server and the load tool, and passes all other arguments to the tool.
pub(crate) fn run(mut arguments: Vec<String>) -> Outcome {
    let mut taken = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.map(|at| arguments.remove(at)).is_some()
    };
    let commands = [("--growth", "growth"), ("--scale", "scale"), ("--storm", "storm")];
    let asked = commands.into_iter().find(|(flag, _)| taken(flag));
    let command = asked.map_or("table", |(_, command)| command);
    step(
        "build the load tool and its server",
        cargo().args([
            "build",
            "--profile",
            "load",
            "--package",
            "load_target",
            "--package",
            "pipeline-load",
        ]),
    )?;
    let built = target_folder().join("load");
    step(
        "load",
        program(built.join("pipeline-load"))
            .arg(command)
            .arg("--target")
            .arg(built.join("load_target"))
            .args(arguments),
    )
}

/// The target folder of cargo.
pub(crate) fn target_folder() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
