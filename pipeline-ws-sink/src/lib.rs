//! The server side of the Phoenix Channels protocol: sockets, channels, topics and broadcasts.
//!
//! A client connects once, by WebSocket, and joins *topics* on that connection, such as `user:42`.
//! For each joined topic the server has a *channel*, which authorizes the join, answers the
//! client's events and pushes to it. Any holder of the [`Endpoint`] can *broadcast* to all clients
//! that have joined a topic. The official JavaScript client, npm's `phoenix`, works unmodified.
//!
//! A broadcast is encoded once, and all sockets share its frame. A push can be timed up to the
//! moment when the operating system has taken its last byte, for each socket separately; see
//! [`Endpoint::broadcast_timed`].
//!
//! A slow client does not harm the others: its outbox is bounded. When the outbox is full, the
//! client is disconnected so that it connects again, or [`WhenFull`](mount::WhenFull) selects
//! another policy. A pipeline that ends in a [`PubSub::broadcast_worker`] can wait for its clients:
//! its demand then follows the room in their outboxes. [`Mount::message_rate_limit`] limits the
//! rate of events from a client. The file `docs/guarantees.md` in the repository lists what is promised
//! about order, delivery, memory, and what a client can and cannot cause.
//!
//! [`Presence`] tracks who is on a topic, on which device, and sends changes to all clients on that
//! topic. A pipeline can ask [whether a topic has subscribers](PubSub::filter_subscribed) and skip
//! work for offline users. The nodes of a cluster are connected by an [`Adapter`](pubsub::Adapter).
//!
//! Clients may speak version 1 or 2 of the protocol, and version 2 in text and binary frames.
//! Clients that cannot keep a WebSocket open may use long polling instead: see
//! [`LongPoll`](mount::LongPoll).
//!
//! ```
//! use pipeline_ws_sink::{
//!     Channel, Endpoint, Mount, Payload, Socket, Topic,
//!     channel::{JoinContext, JoinError},
//!     socket::{ConnectError, ConnectInfo, Params},
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
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mount = Mount::new(GuestSocket).channel::<RoomChannel>("room:*");
//!     let endpoint = Endpoint::builder().mount("/socket", mount).build()?;
//!
//!     let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
//!     let listener = pipeline_ws_sink::listen("127.0.0.1:0").await?; // a free port
//!     println!("ws://{}/socket/websocket", listener.local_addr()?);
//!     tokio::spawn(async { axum::serve(listener, app).await });
//!
//!     // A task of the server may listen, too, as every client that has joined does.
//!     let mut lobby = endpoint.subscribe("room:lobby");
//!     endpoint.broadcast("room:lobby", "greeting", json!({ "text": "hello" }))?;
//!     assert_eq!(lobby.recv().await?.event(), "greeting");
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! | module | what is there |
//! | --- | --- |
//! | [`endpoint`] | the endpoint: its builder, limits, drain, snapshot |
//! | [`mount`] | a kind of socket: its channels, origins, limits, long polling |
//! | [`socket`] | who may connect: parameters, facts about the connection, refusals |
//! | [`channel`] | joins, events, replies, timers, and why a channel stops |
//! | [`pubsub`] | topics, broadcasts, outcomes of pushes, pipelines as senders, adapters for other nodes |
//! | [`presence`] | who is on a topic, on all nodes |
//! | [`payload`] | JSON and bytes |
//! | [`token`] | signed tokens that Phoenix reads too, and JSON Web Tokens |
//! | `channel_test` | tests of channels, with the feature `test-kit` |
//!
//! # Which pages may connect
//!
//! A browser lets any page open a socket to any server. By default, therefore, only pages from the
//! endpoint's own host may connect, which is the host given to
//! [`EndpointBuilder::host`](endpoint::EndpointBuilder::host); see
//! [`CheckOrigin`](mount::CheckOrigin). Without a host, only pages of `localhost` and of IP
//! addresses may connect, each to its own host. Set the host behind a proxy that sends another `host`
//! header than the browser did.
//!
//! # TLS
//!
//! TLS usually ends in a proxy, which passes plain HTTP on to the endpoint. The proxy has to let
//! upgrades through and keep a silent connection open for longer than 30 seconds, the interval of
//! the clients' heartbeats. The endpoint does not see the public scheme and port, so check origins
//! with [`CheckOrigin::host`](mount::CheckOrigin::host) or
//! [`CheckOrigin::list`](mount::CheckOrigin::list).
//!
//! An endpoint can also be served over TLS directly, or over any other stream, by any server that
//! supports HTTP upgrades. This example uses rustls and hyper; the server passes on the peer's
//! address and the scheme, which the endpoint cannot see:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use http::{Request, uri::Scheme};
//! use hyper::{body::Incoming, service::service_fn};
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto};
//! use pipeline_ws_sink::{Endpoint, socket::PeerAddr};
//! use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
//! use tower_service::Service;
//!
//! async fn serve(endpoint: Endpoint, config: ServerConfig) -> std::io::Result<()> {
//!     let acceptor = TlsAcceptor::from(Arc::new(config));
//!     let listener = pipeline_ws_sink::listen("0.0.0.0:443").await?;
//!     loop {
//!         let (stream, peer) = listener.accept().await?;
//!         let (acceptor, endpoint) = (acceptor.clone(), endpoint.clone());
//!         tokio::spawn(async move {
//!             // A connection that fails the TLS handshake is dropped.
//!             let Ok(stream) = acceptor.accept(stream).await else { return };
//!             let service = service_fn(|mut request: Request<Incoming>| {
//!                 request.extensions_mut().insert(PeerAddr(peer));
//!                 request.extensions_mut().insert(Scheme::HTTPS);
//!                 endpoint.clone().call(request)
//!             });
//!             let server = auto::Builder::new(TokioExecutor::new());
//!             let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
//!         });
//!     }
//! }
//! ```
//!
//! Broadcasting tasks write to a plain TCP stream directly while its outbox is empty; any other
//! stream is written to only by the socket's own task.
//!
//! # Features
//!
//! - `axum`: [`ConnectInfo`](socket::ConnectInfo) takes the peer's address and the full request
//!   path from axum's extensions. Off by default; sockets work behind axum without it.
//! - `jwt`: `token::JwtVerifier`, for JSON Web Tokens, where [`Signer`](token::Signer) is for Phoenix
//!   tokens. Off by default; this one is for a shared secret.
//! - `jwt-public-keys`: the same for RSA, ECDSA and Ed25519. Off by default, because it brings about 60 crates.
//! - `test-kit`: the module `channel_test`, for tests of channels. Off by default.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Moments and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod channel;
#[cfg(feature = "test-kit")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod channel_test;
mod clock;
pub mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod outbox;
pub mod payload;
pub mod presence;
mod protocol;
pub mod pubsub;
mod session;
pub mod socket;
mod telemetry;
pub mod token;
mod transport;

/// A kind of socket with its channels, and its options.
pub mod mount {
    pub use crate::{
        endpoint::{drainer::Drainer, longpoll::LongPoll, mount::Mount},
        handshake::origin::{CheckOrigin, Origin, OriginError},
        outbox::WhenFull,
        session::rate_limit::{MessageRateLimit, OnLimit},
        telemetry::ParamFilter,
    };
}

pub use self::{
    channel::Channel,
    endpoint::{Endpoint, listen},
    mount::Mount,
    payload::Payload,
    presence::Presence,
    pubsub::{PubSub, Topic},
    socket::Socket,
};
