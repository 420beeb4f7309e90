//! The store as a program.
//!
//! `cargo run --release -p store -- --help` explains the flags.

fn main() {}
