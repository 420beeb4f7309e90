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
#[cfg(feature = "cluster")]
use pipeline::cluster::{Cluster, ClusterError, ClusterOptions};
use pipeline::{
    health::Health,
    serve, shutdown_signal,
    ws::{endpoint::ArrivalRate, listen, token::Signer},
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

    /// The server of Redis or NATS that connects this node with others: `redis://127.0.0.1:6379/`
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "URL")]
    cluster: Option<String>,

    /// Not ready while this node is not connected with others
    #[cfg(feature = "cluster")]
    #[arg(long, requires = "cluster")]
    requires_cluster: bool,

    /// The name of this node
    #[cfg(feature = "cluster")]
    #[arg(long, default_value = "channels")]
    node: String,

    /// The port of `/readyz` and `/livez`, for a load balancer
    #[arg(long)]
    admin_port: Option<u16>,

    /// How many seconds to keep serving as not ready before the end
    #[arg(long, default_value_t = 0)]
    linger: u64,

    /// How many clients may connect in a second, and how many channels they may join
    #[arg(long)]
    arrivals: Option<u32>,

    /// How many seconds the sockets have to close at the end
    #[arg(long, default_value_t = 5)]
    close_within: u64,
}

/// How long the end waits for the server between the nodes.
#[cfg(feature = "cluster")]
const LAST_WORDS: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    log_to_stderr("warn");
    let args = Args::parse();
    let listener = listen(("127.0.0.1", args.port)).await?;
    let builder = mounts::endpoint(&Signer::new(&args.secret, "user socket")?);
    let builder = match args.arrivals.map(ArrivalRate::new) {
        Some(rate) => builder.connect_rate(rate).join_rate(rate),
        None => builder,
    };
    #[cfg(feature = "cluster")]
    let cluster = match &args.cluster {
        Some(url) => Some(join(url, ClusterOptions::new("channels").node(&args.node)).await?),
        None => None,
    };
    #[cfg(feature = "cluster")]
    let endpoint = match &cluster {
        Some(cluster) => {
            let endpoint = builder.adapter(cluster.clone()).cluster_secret(&args.secret).build()?;
            cluster.connected().await;
            endpoint
        }
        None => builder.build()?,
    };
    #[cfg(not(feature = "cluster"))]
    let endpoint = builder.build()?;
    say(format!("sockets  ws://{}/socket", listener.local_addr()?));

    let port = listener.local_addr()?.port();
    let stop = Arc::new(Notify::new());
    let app = control::router(&endpoint, port, stop.clone()).fallback_service(endpoint.clone());
    let signal = shutdown_signal()?;
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => {}
            () = signal => {}
        }
    };
    let health = Health::new().endpoint(endpoint.observer());
    #[cfg(feature = "cluster")]
    let health = match cluster.clone().filter(|_| args.requires_cluster) {
        Some(cluster) => health.requires("cluster", move || cluster.is_connected()),
        None => health,
    };
    let mut server = serve(listener, app)
        .health(&health)
        .endpoint(endpoint)
        .linger(Duration::from_secs(args.linger))
        .close_within(Duration::from_secs(args.close_within))
        .until(stopped);
    if let Some(port) = args.admin_port {
        server = server.admin(listen(("127.0.0.1", port)).await?, health.router());
    }
    let report = server.await?;
    // What this node has said last may wait for the server.
    #[cfg(feature = "cluster")]
    if let Some(cluster) = cluster {
        cluster.flush(LAST_WORDS).await;
    }
    say(report.to_string());
    finish();
    Ok(())
}

#[cfg(feature = "cluster")]
async fn join(url: &str, options: ClusterOptions) -> Result<Cluster, ClusterError> {
    if url.starts_with("nats:") {
        Cluster::nats(url, options).await
    } else {
        Cluster::redis(url, options).await
    }
}
