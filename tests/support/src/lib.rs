//! Shared helpers of the project's tests: a scriptable client, recorders of metrics and logs, workers
//! that wait at a gate, random schedules, sockets that accept every client, and examples, servers and a
//! browser as processes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "when something here goes wrong, the test has failed"
)]
#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads best where it stands")]

#[cfg(feature = "browser")]
mod chromium;
mod client;
mod clock;
pub mod descriptors;
mod example;
mod gate;
mod http;
mod log;
#[cfg(unix)]
pub mod proxies;
mod recorded;
mod schedule;
#[cfg(unix)]
pub mod servers;
#[cfg(feature = "ws")]
mod sockets;
mod way;

use std::time::Duration;

#[cfg(feature = "browser")]
pub use self::chromium::{Chromium, FAINT_TEXTS};
#[cfg(feature = "ws")]
pub use self::sockets::{AnyChannel, AnySocket};
pub use self::{
    client::{Client, connect, reply},
    clock::WallClock,
    example::{Example, interop, project},
    gate::{Gate, GateControl, eventually, gate, settle},
    http::{Response, get, request},
    log::{Log, Spans},
    recorded::{Recorded, Series},
    schedule::{Schedule, on_any_schedule},
    way::Way,
};

/// A timeout that is longer than any operation. A test that exceeds it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
