//! A server with one example of each channel feature, for any client of Phoenix Channels.
//!
//! `cargo run --example channels -- --port 4010`, then connect to `ws://127.0.0.1:4010/socket`.
//!
//! It is the application of the recorded conversations in `tests/golden/`, whose README describes it,
//! with some more channels. A test replays the recordings against it.
#![allow(clippy::panic, reason = "clients can request a crash")]
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod control;
mod dedup;
mod farewell;
mod mounts;
#[path = "../push_to_users/output.rs"]
mod output;
mod present;
mod room;
mod slow;
mod small;
mod socket;
#[cfg(all(test, feature = "test-kit"))]
mod tests;
mod token;

use std::{error::Error, io::IsTerminal, sync::Arc, time::Duration};

use clap::Parser;
use pipeline::{
    serve, shutdown_signal,
    ws::{listen, token::Signer},
};
use tokio::sync::Notify;

use self::output::say;

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
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(output::err)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let args = Args::parse();
    let listener = listen(("127.0.0.1", args.port)).await?;
    let endpoint = mounts::endpoint(&Signer::new(&args.secret, "user socket")?)?;
    say(format!("sockets  ws://{}/socket", listener.local_addr()?));

    let stop = Arc::new(Notify::new());
    let app = control::router(&endpoint, stop.clone()).fallback_service(endpoint.clone());
    let signal = shutdown_signal()?;
    let told = async move {
        tokio::select! {
            () = stop.notified() => {}
            () = signal => {}
        }
    };
    let report = serve(listener, app)
        .endpoint(endpoint)
        .close_within(Duration::from_secs(5))
        .until(told)
        .await?;
    say(report.to_string());
    output::finish();
    Ok(())
}
