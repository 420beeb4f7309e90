//! Durable sources: pipelines that read from a queue which survives them.
//!
//! A [`Source`] is a producer of [messages](pipeline_core::processing::Message) from a [`Broker`]. It
//! fetches what its pipeline asks for, and stores the outcome of each item. An item is delivered at least
//! once: also when its process is killed, or the broker.
//!
//! | broker | feature |
//! | --- | --- |
//! | a stream of NATS JetStream, [`nats`] | `nats` |
//! | a topic of Kafka, [`kafka`] | `kafka` |
//! | a queue of RabbitMQ, [`rabbitmq`] | `rabbitmq` |
//! | a table in a SQLite file, [`sqlite`] | `sqlite` |
//! | a stream of Redis, [`redis`] | `redis` |
//! | a table of PostgreSQL, [`postgres`] | `postgres` |
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use pipeline_core::{Pipeline, processing::{Message, Processors}};
//! use pipeline_sources::{Item, SourceOptions, sqlite::SqliteQueue};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("mails.db");
//! let mails = SqliteQueue::open(&path, "mails").await?;
//! // On the disk when this returns. Another process may push too.
//! mails.push(Item::new("welcome ada")).await?;
//!
//! let pipeline = Pipeline::of_messages("mails")
//!     .source(mails.source(SourceOptions::new()))
//!     .processors(Processors::from_fn(async |mail: &mut Message<Item>| {
//!         println!("{}", String::from_utf8_lossy(&mail.payload));
//!         Ok(()) // done: an error, a panic or a crash would deliver it again
//!     }))
//!     .start()?;
//! # while mails.backlog().await?.items != Some(0) { tokio::time::sleep(Duration::from_millis(5)).await; }
//! pipeline.drain(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "sqlite"))]
//! # fn main() {}
//! ```
//!
//! # Modules
//!
//! The modules of the brokers are in the table above. At the root of the crate is what they share:
//!
//! | item | what it is |
//! | --- | --- |
//! | [`Source`], [`SourceOptions`] | the producer, and its options |
//! | [`Item`] | an item: its payload, and its key if it has one |
//! | [`QueuedItem`], [`DeadLetter`], [`Backlog`] | what operators look at: what waits, what was given up, and how much |
//! | [`Broker`], [`Fetch`], [`Settle`], [`Delivery`] | what a broker of one's own implements, and what it delivers |
//! | [`BrokerError`], [`Outcome`], [`Settlement`], [`NotStored`] | its errors, and what it stores |
//! | `own_source` | a guide, with the feature `test-kit`: it builds such a broker, of a folder of files |
//! | `contract` | with the feature `test-kit`: the tests that every broker has to pass, and a broker whose failures the test chooses |
//!
//! [`SourceOptions`] say how many deliveries an item has, and how the source connects again; the options of
//! each queue say how long a lease lasts. [`QueuedItem`] and [`DeadLetter`] are for operators.
//!
//! A broker of one's own implements [`Broker`], [`Fetch`] and [`Settle`]; the guide
//! `own_source`, with the feature `test-kit`, builds one.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Times that are too long for the clock mean "never".
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod broker;
mod clock;
#[cfg(any(test, feature = "test-kit"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod contract;
mod demand;
mod fetch_size;
#[cfg(any(test, feature = "nats", feature = "postgres", feature = "redis"))]
mod giving_back;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod heard;
mod held;
mod item;
#[cfg(feature = "kafka")]
#[cfg_attr(docsrs, doc(cfg(feature = "kafka")))]
pub mod kafka;
mod log;
mod metrics;
#[cfg(feature = "nats")]
#[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
pub mod nats;
mod options;
mod outcomes;
#[doc = include_str!("docs/own_source.md")]
#[doc = "```"]
#[doc = include_str!("../examples/folder.rs")]
#[doc = "```"]
#[cfg(any(test, feature = "test-kit"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod own_source {}
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres;
#[cfg(feature = "rabbitmq")]
#[cfg_attr(docsrs, doc(cfg(feature = "rabbitmq")))]
pub mod rabbitmq;
mod random;
mod reason;
mod reconnects;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
#[cfg(any(
    feature = "kafka",
    feature = "nats",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqlite"
))]
mod replaying;
mod source;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub mod sqlite;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod unix_ms;
mod unsettled;
mod woken;
mod worker;

pub use self::{
    broker::{
        Ahead, Backlog, Broker, BrokerError, Fetch, NotStored, Outcome, Settle, Settlement, Wanted,
    },
    item::{DeadLetter, Delivery, Item, QueuedItem, QueuedState},
    options::SourceOptions,
    source::Source,
};
