//! The log of an example.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::output;

/// Writes log lines to standard error. `RUST_LOG` selects them, by level and target; this is what it is
/// without it, such as `info` or `info,hyper=off`.
///
/// # Panics
///
/// If the program has a log already.
pub fn log_to_stderr(lines: &str) {
    let targets = std::env::var("RUST_LOG").ok().and_then(|it| it.parse::<Targets>().ok());
    let targets = targets.unwrap_or_else(|| lines.parse().expect("levels of targets"));
    let layer = fmt::layer().with_writer(output::err).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(layer).with(targets).init();
}
