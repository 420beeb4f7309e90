//! Builds and runs the soak, and the other runs under adverse conditions.

use crate::{
    load::target_folder,
    run::{Outcome, cargo, program, step},
};

/// Builds the program, and passes the command and all other arguments to it.
pub(crate) fn run(command: &str, arguments: Vec<String>) -> Outcome {
    step(
        "build the soak",
        cargo().args(["build", "--profile", "load", "--package", "pipeline-soak"]),
    )?;
    let built = target_folder().join("load").join("pipeline-soak");
    step(command, program(built).arg(command).args(arguments))
}
