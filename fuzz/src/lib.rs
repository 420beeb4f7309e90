//! Fuzz targets: each takes any bytes, and panics if the code under test does something wrong with them.
//!
//! `docs/fuzzing.md` says what each target checks and how to run it.
#![expect(
    clippy::cast_possible_truncation,
    clippy::disallowed_types,
    reason = "a target panics by design, cuts numbers by design, and knows no runtime"
)]

mod corpus;
mod input;
mod runner;
mod targets;

pub use self::{
    corpus::{corpus_folder, failures_folder, inputs, regressions_folder, store},
    runner::{Outcome, run},
    targets::TARGETS,
};

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name, which is also that of its folders.
    pub name: &'static str,
    /// Runs an input. Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Parts of inputs, for mutations.
    pub dictionary: &'static [&'static [u8]],
}

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
