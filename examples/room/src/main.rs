//! A chat room that shows its visitors, their devices, and who is typing.
//!
//! `cargo run -p room`, then open the printed page in two windows, as two visitors.
//!
//! The page uses the official Phoenix client: its sockets, its `Presence`, and its fallback to long
//! polling where WebSockets are blocked.
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod history;
mod http;
mod room;
#[cfg(test)]
mod tests;
mod visitor;

use std::{error::Error, sync::Arc};

use clap::Parser;
use pipeline::{
    serve,
    ws::{
        Endpoint, Mount, Presence,
        endpoint::EndpointBuilder,
        listen,
        mount::{LongPoll, MessageRateLimit},
        token::Signer,
    },
};
use pipeline_example_support::{PhoenixClient, finish, log_to_stderr, say};

use self::{
    room::{Lobby, Room},
    visitor::VisitorSocket,
};

/// A chat room.
#[derive(Debug, Parser)]
#[command(name = "room")]
struct Args {
    /// The port to serve on; 0 picks a free one
    #[arg(long, default_value_t = 4020)]
    port: u16,

    /// The secret that signs tokens, at least 20 bytes
    #[arg(long, env = "SECRET_KEY_BASE", default_value = "a secret for trying things out only")]
    secret: String,
}

/// The endpoint with the room, over WebSocket or long polling.
fn endpoint(signer: &Signer) -> EndpointBuilder {
    let presence = Presence::new();
    let sockets = Mount::new(VisitorSocket::new(signer.clone()))
        .message_rate_limit(MessageRateLimit::per_second(20).burst(60))
        .channel_with::<Room>("room:lobby", Arc::new(Lobby::new(presence.clone())))
        .longpoll(LongPoll::new());
    Endpoint::builder().presence(&presence).mount("/socket", sockets)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    log_to_stderr("warn");
    let args = Args::parse();
    let listener = listen(("127.0.0.1", args.port)).await?;
    let signer = Signer::new(&args.secret, "visitor")?;
    let endpoint = endpoint(&signer).build()?;

    let address = listener.local_addr()?;
    say(format!("page     http://{address}/?name=ada&device=phone"));
    say(format!("another  http://{address}/?name=ben&device=laptop"));
    let client = PhoenixClient::find_or_install(|reason| {
        say(format!("client   {reason}; the page shows nothing without it"));
    });
    let app = http::router(signer, client).fallback_service(endpoint.clone());
    let report = serve(listener, app).endpoint(endpoint).await?;
    say(report.to_string());
    finish();
    Ok(())
}
