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
//! much, it is disconnected, to connect again, or whatever else [`WhenFull`] says. A pipeline that ends
//! in a [`PubSub::pusher`] can wait for its clients: then its demand follows their room. How much a client
//! may say is limited where [`Mount::event_limit`] does so.
//!
//! [`Presence`] knows who is on a topic, on which device, and tells all who are; and a pipeline can ask
//! [whether anybody listens](PubSub::only_online), before it works for people who are away. Nodes know of
//! each other through an [`Adapter`].
//!
//! Clients may speak version 1 or 2 of the protocol, and version 2 in text and binary frames. Those that
//! cannot keep a WebSocket open may poll instead: see [`LongPoll`].
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
//!
//! # Which pages may connect
//!
//! A browser lets any page open a socket to any server. So by default only pages from the endpoint's
//! own host are let in, the one given to [`EndpointBuilder::host`]; see [`CheckOrigin`]. Behind a
//! proxy that asks with another `host` header than the browser did, that has to be set.
//!
//! # TLS
//!
//! Most often TLS ends in a proxy, which passes plain HTTP on to the endpoint. It has to let upgrades
//! through, and to keep a silent connection for longer than 30 seconds, after which clients send a
//! heartbeat. The scheme and the port that the endpoint sees are then not those of the public, so
//! pages are told apart by [`CheckOrigin::host`] or [`CheckOrigin::list`].
//!
//! An endpoint can also be served over TLS itself, or over any other stream, by any server that
//! supports HTTP upgrades. Here with rustls and hyper; the server tells the endpoint what it cannot
//! see by itself:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use http::{Request, uri::Scheme};
//! use hyper::{body::Incoming, service::service_fn};
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto};
//! use pipeline_ws_sink::{Endpoint, PeerAddr};
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
//!             // Who does not get through the handshake is gone.
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
//! A plain TCP stream is written to by whichever task broadcasts, as long as nothing waits there;
//! any other stream only by the socket's own task.
//!
//! # Features
//!
//! - `axum`: [`ConnectInfo`] finds the peer's address and the whole path of a request where axum
//!   keeps them. Off by default; sockets work behind axum without it.
//! - `jwt`: `JwtVerifier`, for JSON Web Tokens where [`Signer`] has tokens of Phoenix. Off by default.
//! - `test-kit`: what tests of channels need: `testkit`. Off by default.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Moments and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod admission;
mod broadcast;
mod channel;
mod connect_info;
mod drainer;
mod end;
mod endings;
mod endpoint;
mod erased_mount;
mod event_limit;
mod hub;
mod inbox;
mod late;
mod latencies;
mod listen;
mod longpoll;
mod mount;
mod origin;
mod outbox;
mod params;
mod path;
mod payload;
mod presence;
mod protocol;
mod pubsub;
mod sampler;
mod session;
mod since;
mod snapshot;
mod socket;
mod sockets;
mod telemetry;
#[cfg(feature = "test-kit")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod testkit;
mod timing;
mod token;
mod token_bucket;
mod topic;
mod tracker;
mod transport;

#[cfg(feature = "jwt")]
pub use self::token::{JwtAlgorithm, JwtKey, JwtKeyError, JwtVerifier};
pub use self::{
    broadcast::Broadcast,
    channel::{
        Channel, ChannelContext, ChannelHandle, HandleInfo, JoinContext, JoinError, NoReference,
        PushError, Reply, SendError, SocketRef, Stop, TooManyTimers,
    },
    connect_info::{ConnectInfo, PeerAddr},
    drainer::Drainer,
    endpoint::{BuildError, Endpoint, EndpointBuilder, EndpointReport},
    event_limit::{EventLimit, OnExcess},
    latencies::Latencies,
    listen::listen,
    longpoll::LongPoll,
    mount::Mount,
    origin::{CheckOrigin, Origin, OriginError},
    outbox::WhenFull,
    params::{MissingParam, Params, ParamsError},
    path::PathError,
    payload::{IntoPayload, Payload, PayloadError},
    presence::{Presence, PresenceBuilder, PresenceDiff, PresenceError, Presences, Tracked},
    protocol::reference::Ref,
    pubsub::{
        Adapter, AdapterError, BroadcastError, Lagged, LocalNode, OnlyOnline, PubSub, Push, Pusher,
        SubscriberId, Subscription,
    },
    snapshot::{EndpointObserver, EndpointSnapshot, MountSnapshot, RouteSnapshot},
    socket::{ConnectError, Socket},
    telemetry::ParamFilter,
    token::{KeyDigest, KeyOptions, Signer, SignerError, TokenError},
    topic::{PatternError, Topic},
    tracker::{TrackerOptions, TrackerOptionsError},
};
