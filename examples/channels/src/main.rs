//! A server with one example of each channel feature, for any client of Phoenix Channels.
//!
//! `cargo run -p channels -- --port 4010`, then connect to `ws://127.0.0.1:4010/socket`.
//!
//! It is the application of the recorded conversations in `tests/golden/`, whose README describes it,
//! with some more channels. A test replays the recordings against it.
#![allow(clippy::panic, reason = "clients can request a crash")]
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod control;
mod dedup;
mod farewell;
mod mounts;
mod present;
mod room;
mod slow;
mod small;
mod socket;
#[cfg(test)]
mod tests;
mod token;

use std::{error::Error, sync::Arc, time::Duration};

use clap::Parser;
use pipeline::{
    serve, shutdown_signal,
    ws::{listen, token::Signer},
};
use pipeline_example_support::{finish, log_to_stderr, say};
use tokio::sync::Notify;

/// A server with one example of each channel feature.
#[derive(Debug, Parser)]
#[command(name = "channels")]
struct Args {
    /// The port to serve on; 0 picks a free one
    #[arg(long, default_value_t = 4010)]
    port: u16,

    /// The secret that signs tokens, at least 20 bytes
    #[arg(long, env = "SECRET_KEY_BASE", default_value = "a secret for trying things out only")]
    secret: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    log_to_stderr("warn");
    let args = Args::parse();
    let listener = listen(("127.0.0.1", args.port)).await?;
    let endpoint = mounts::endpoint(&Signer::new(&args.secret, "user socket")?)?;
    say(format!("sockets  ws://{}/socket", listener.local_addr()?));

    let stop = Arc::new(Notify::new());
    let app = control::router(&endpoint, stop.clone()).fallback_service(endpoint.clone());
    let signal = shutdown_signal()?;
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => {}
            () = signal => {}
        }
    };
    let report = serve(listener, app)
        .endpoint(endpoint)
        .close_within(Duration::from_secs(5))
        .until(stopped)
        .await?;
    say(report.to_string());
    finish();
    Ok(())
}
