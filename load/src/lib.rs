//! The parts of the load tests that other measurements of the project share: a server as a separate process, its
//! resource usage, the client's side of the protocol, percentiles, and a chart.

pub mod chart;
pub mod error;
pub mod frame;
pub mod latency;
pub mod server;
pub mod usage;

use std::time::{SystemTime, UNIX_EPOCH};

pub use pipeline_test_support::descriptors;

/// The Unix time, in microseconds.
#[must_use]
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
