//! The server side of the Phoenix Channels protocol: sockets, channels, topics and broadcasts.
//!
//! A client connects once, by a WebSocket, and joins *topics* on it, such as `user:42`. For each
//! topic it has a *channel* on the server, which decides whether it may join, answers its events,
//! and pushes to it. Anyone who holds the [`Endpoint`] can *broadcast* to all that have joined a
//! topic. The official JavaScript client, npm's `phoenix`, works with it unmodified.
//!
//! A broadcast is encoded once, and its frame is shared by all sockets. The way of a push can be
//! timed to the moment when the operating system has taken its last byte, for each socket on its
//! own; see [`Endpoint::broadcast_timed`].
//!
//! A client that does not keep up harms no one: what waits for it is bounded, and when there is too
//! much, it is disconnected, to connect again.
//!
//! So far: WebSockets, and version 2 of the protocol in text frames.
//!
//! ```no_run
//! use pipeline_ws_sink::{
//!     Channel, ConnectError, ConnectInfo, Endpoint, JoinContext, JoinError, Mount, Params, Payload,
//!     Socket, Topic,
//! };
//! use serde_json::json;
//!
//! struct GuestSocket;
//!
//! impl Socket for GuestSocket {
//!     type Assigns = ();
//!
//!     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
//!         Ok(())
//!     }
//! }
//!
//! struct RoomChannel;
//!
//! impl Channel for RoomChannel {
//!     type Socket = GuestSocket;
//!     type Config = ();
//!
//!     async fn join(
//!         _: &Topic,
//!         _: Payload,
//!         _: &mut JoinContext<'_, Self>,
//!     ) -> Result<Self, JoinError> {
//!         Ok(RoomChannel)
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mount = Mount::new(GuestSocket).channel::<RoomChannel>("room:*");
//! let endpoint = Endpoint::builder().mount("/socket", mount).build()?;
//!
//! let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
//! let listener = pipeline_ws_sink::listen("127.0.0.1:4000").await?;
//! tokio::spawn(async { axum::serve(listener, app).await });
//!
//! endpoint.broadcast("room:lobby", "greeting", json!({ "text": "hello" }))?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod channel;
mod drainer;
mod end;
mod endpoint;
mod hub;
mod listen;
mod mount;
mod outbox;
mod payload;
mod protocol;
mod pubsub;
mod session;
mod socket;
mod sockets;
mod telemetry;
mod token;
mod topic;
mod transport;

pub use self::{
    channel::{Channel, ChannelContext, JoinContext, JoinError, Reply, Stop},
    drainer::Drainer,
    endpoint::{BuildError, Endpoint, EndpointBuilder, EndpointReport},
    listen::listen,
    mount::Mount,
    outbox::WhenFull,
    payload::{IntoPayload, Payload, PayloadError},
    socket::{ConnectError, ConnectInfo, MissingParam, Params, Socket},
    token::{Signer, SignerError, TokenError},
    topic::{PatternError, Topic},
};
