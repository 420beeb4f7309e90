//! What the project's own tests share: a client that says what the test says, a recorder and a log
//! to look into, workers that wait at a gate, and an example that runs as a process.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "when something here goes wrong, the test has failed"
)]
#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads best where it stands")]

mod client;
mod example;
mod gate;
mod http;
mod log;
mod recorded;

use std::time::Duration;

pub use self::{
    client::{Client, connect, reply},
    example::{Example, interop, project},
    gate::{Gate, Keeper, eventually, gate, settle},
    http::{Response, get, request},
    log::{Log, Spans},
    recorded::{Recorded, Series},
};

/// Longer than anything takes. When it is over, the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
