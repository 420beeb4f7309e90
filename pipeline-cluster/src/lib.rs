//! Broadcasts between the nodes of a cluster, through a server that is there already: Redis or NATS.
//!
//! A [`Cluster`] is the [`Adapter`] of an endpoint, and nothing else in the program changes: a broadcast
//! reaches the subscribers on all nodes, presences are one list, and `disconnect` closes the sockets of
//! an id wherever they are.
//!
//! | server | feature | |
//! | --- | --- | --- |
//! | Redis 6 or later | `redis` | `Cluster::redis("redis://127.0.0.1", options)` |
//! | NATS | `nats` | `Cluster::nats("nats://127.0.0.1", options)` |
//!
//! ```no_run
//! # #[cfg(feature = "redis")]
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! use pipeline_cluster::{Cluster, ClusterOptions};
//! use pipeline_ws_sink::Endpoint;
//!
//! let cluster = Cluster::redis("redis://127.0.0.1", ClusterOptions::new("shop")).await?;
//! let endpoint = Endpoint::builder().adapter(cluster).build()?;
//! # drop(endpoint);
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! | item | what it is |
//! | --- | --- |
//! | [`Cluster`] | the adapter: `redis` and `nats` connect it; `is_connected` for readiness, `gaps` for what was missed, `receives` |
//! | [`ClusterOptions`] | the node's name, the prefix, bounds and times |
//! | [`Gap`] | what a node has missed, and of which node |
//! | [`ClusterError`] | why a node could not start |
//!
//! # What travels
//!
//! A node receives the topics that have subscribers on it, what is for every node (messages between the
//! trackers of presences, and `disconnect`), and what is sent to it alone. Topics are hashed to 1,048,576
//! channels, and a node subscribes to the channel of a topic when its first subscriber comes, and
//! unsubscribes [a while](ClusterOptions::linger) after the last has left. A broadcast is a small header
//! and the payload as it was encoded on the first node. Broadcasts to one channel that wait at the same
//! time are one message of the server, of up to 16 KiB.
//!
//! JSON is parsed once on each node that receives it, to check that it is JSON before it is put in the frames of
//! clients: nothing is built from it, and it is not encoded again. The frame is made once for all sockets of the
//! node. Bytes are not looked at.
//!
//! # What is promised
//!
//! - A broadcast arrives **at most once** on each node. The broadcasts of one node to one topic arrive in
//!   order; those of different nodes or topics have no order.
//! - A client's join is answered when its node receives the topic, so that what is broadcast after the
//!   answer arrives. It waits for [a second](ClusterOptions::join_wait) at most, and not while the node is
//!   not connected. What `Channel::join` itself has read may miss what another node broadcasts between the
//!   reading and the subscription; a state that is read in a message after the join, by
//!   `JoinContext::send_after` with no delay, misses nothing. A topic whose first subscriber is a task may
//!   miss the first broadcasts: [`Cluster::receives`] waits for it. In a cluster of NATS servers, a
//!   subscription is known to the others a moment after it is to one.
//! - No broadcast waits for the server or for another node. What cannot be sent now waits, up to
//!   [a number](ClusterOptions::max_waiting) and [so many bytes](ClusterOptions::max_waiting_bytes);
//!   beyond them the oldest are dropped and counted. Subscribers on the same node receive a broadcast in
//!   any case, unless [`refuse_when_full`](ClusterOptions::refuse_when_full) is set.
//! - A server that is away, that is restarted or that does not answer is connected to again, and
//!   everything is subscribed to again. What waited is sent then, after [a while](ClusterOptions::settle)
//!   in which the other nodes connect again too. What the server had taken and not passed on is lost.
//! - A broadcast has 24 MiB at most, with its header, and what the server takes (NATS: `max_payload`, 1 MiB
//!   by default). A longer one is dropped and counted. Redis ends the connection of a node for which more
//!   than 32 MiB wait (`client-output-buffer-limit pubsub 32mb 8mb 60`): programs with broadcasts of more
//!   than a few MiB raise that.
//! - What is lost is noticed: frames have a number for each channel, also those that are too long to be sent, and a
//!   missing one is a [`Gap`]. The last ones before a pause are noticed when the next one arrives.
//! - A `disconnect` during an outage waits like a broadcast. When it arrives, it also closes the sockets that the user has
//!   opened meanwhile on other nodes, and their clients connect again.
//!
//! # Time between nodes
//!
//! `pipeline.cluster.lag` is the time from a broadcast on one node to its delivery on another, and a timed push
//! that comes from another node is recorded in `pipeline.push_delivered` with the whole way since it was
//! enqueued there. The part of it between the nodes is `pipeline.cluster.push_lag`, which has a sample for each
//! timed push and none for other broadcasts. All need a clock that the nodes share. With Redis it is the
//! server's: each node asks for its time at every ping, and the error is at most half of the time that the
//! answer took. With NATS it is the wall clock of each node, so these times are wrong by the difference
//! between these clocks, and a negative lag counts as 0.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(
    not(all(feature = "redis", feature = "nats")),
    allow(
        dead_code,
        unused_imports,
        reason = "each server uses its part, and without one nothing does"
    )
)]

mod channels;
mod clock;
mod cluster;
mod core;
mod driver;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod frame;
#[cfg(not(feature = "fuzzing"))]
mod frame;
mod gap;
#[cfg(any(feature = "nats", test))]
mod inbound;
mod interest;
mod log;
mod metrics;
#[cfg(feature = "nats")]
mod nats;
mod options;
mod pace;
mod packing;
mod queue;
mod receiving;
#[cfg(feature = "redis")]
mod redis;
mod sequence;
#[cfg(test)]
mod simulation;

#[cfg(doc)]
use pipeline_ws_sink::pubsub::Adapter;

pub use self::{
    cluster::{Cluster, ClusterError},
    gap::{Gap, Gaps, Missing},
    options::ClusterOptions,
};
