//! Demand-driven pipelines that push to users and time themselves.
//!
//! An item is pushed into a pipeline, waits in a bounded queue until there is demand, is handled
//! by one of a bounded number of workers, is broadcast to a topic, and arrives in the browsers that
//! have joined it, through the official Phoenix JavaScript client. The time from the push to the
//! write to each socket is measured, and goes to StatsD.
//!
//! This crate re-exports crates that can be used alone:
//!
//! - [`pipeline_core`], the stages: its modules are modules here. Its semantics are GenStage's.
//! - [`pipeline_ws_sink`], sockets and channels, as [`ws`]: the server side of Phoenix Channels.
//! - [`pipeline_statsd`], as [`statsd`]: a recorder for the `metrics` facade.
//! - [`pipeline_inspect`], as [`inspect`]: a live view of pipelines and sockets, mounted next to the
//!   endpoint.
//! - `pipeline_sources`, as `sources`: durable sources, whose items survive the process.
//! - `pipeline_cluster`, as `cluster`: broadcasts between nodes.
//!
//! The examples of these crates name them: with this one, `use pipeline_core::stage` is `use pipeline::stage`, and
//! `use pipeline_ws_sink::channel` is `use pipeline::ws::channel`. `pipeline::statsd`, `inspect`, `sources` and
//! `cluster` are the others. Only this crate has to be in `[dependencies]`.
//!
//! The crate itself adds [`serve`](serve()), which runs everything until the process is asked to stop
//! and then stops it in the right order, and [`Health`](health::Health), which reports liveness and
//! readiness. The file `docs/guarantees.md` in the repository lists what is promised, layer by layer.
//!
//! # A whole program
//!
#![doc = concat!("```no_run\n", include_str!("../examples/quickstart.rs"), "```")]
//!
//! # Modules
//!
//! | module | what is there |
//! | --- | --- |
//! | [`source`] | queues that any task may push to, and producers of iterators, streams and queries |
//! | [`step`] | functions as stages: `map`, `map_async`, `batch`, `for_each` |
//! | [`stage`] | the traits of stages with state: `Producer`, `ProducerConsumer`, `Consumer` |
//! | [`supervisor`] | a worker for each event, retried and bounded: `ConsumerSupervisor` |
//! | [`subscription`], [`dispatcher`] | how much a stage asks for, and who receives an event |
//! | [`processing`] | messages that are acknowledged: processors, batchers, failures |
//! | [`builder`], [`Graph`] | pipelines with one way, and with several |
//! | [`timed`], [`telemetry`], [`snapshot`], [`report`] | what a pipeline measures, shows, and says at its end |
//! | [`ws`] | sockets, channels, topics, broadcasts, presence, tokens |
//! | [`statsd`], [`inspect`] | metrics for a StatsD server; the live view |
//! | `sources`, `cluster` | queues that survive the process; other nodes |
//! | [`serve`](mod@serve), [`health`] | running it all, and ending it in order |
//! | `testkit`, `ws::channel_test` | tests of stages and of channels |
//!
//! # Features
//!
//! The first three are on by default.
//!
//! - `ws`: sockets, channels, and [`serve`](serve()).
//! - `statsd`: the StatsD recorder.
//! - `inspect`: the live view. It brings `ws`.
//! - `cluster-redis`, `cluster-nats`: broadcasts between the nodes of a cluster, as `cluster`. They bring
//!   `ws`.
//! - `sqlite`, `redis`, `postgres`, `nats`, `rabbitmq`, `kafka`: durable sources, as `sources`. `postgres-tls`: TLS to
//!   PostgreSQL.
//! - `jwt`: JSON Web Tokens that are signed with a shared secret. It brings `ws`.
//! - `jwt-public-keys`: JSON Web Tokens that are signed with a private key, by RSA, ECDSA or Ed25519. It brings `jwt`.
//! - `test-kit`: helpers for tests of stages, and with `ws` for tests of channels.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Instants and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

#[cfg(feature = "ws")]
mod connection;
#[cfg(feature = "ws")]
pub mod health;
#[cfg(feature = "ws")]
mod listener;
#[cfg(feature = "ws")]
pub mod serve;
#[cfg(feature = "ws")]
mod signal;

/// Broadcasts between the nodes of a cluster.
#[cfg(any(feature = "cluster-redis", feature = "cluster-nats"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "cluster-redis", feature = "cluster-nats"))))]
pub use pipeline_cluster as cluster;
#[cfg(feature = "test-kit")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub use pipeline_core::testkit;
pub use pipeline_core::{
    ExitError, ExitReason, Graph, Pipeline, backoff, builder, dispatcher, guide, prelude,
    processing, report, snapshot, source, stage, step, subscription, supervisor, telemetry, timed,
};
/// A live view of pipelines and sockets.
#[cfg(feature = "inspect")]
pub use pipeline_inspect as inspect;
/// Durable sources of messages.
#[cfg(feature = "sources")]
pub use pipeline_sources as sources;
/// StatsD for the `metrics` facade.
#[cfg(feature = "statsd")]
pub use pipeline_statsd as statsd;
/// Sockets, channels and broadcasts.
#[cfg(feature = "ws")]
pub use pipeline_ws_sink as ws;

#[cfg(feature = "ws")]
pub use self::{serve::serve, signal::shutdown_signal};
