//! Demand-driven stages: producers, consumers and supervised workers.
//!
//! A *producer* emits events, a *consumer* takes them. Demand flows up and events flow down: a
//! consumer says how many events it will take, and the producer never sends more. That one rule
//! makes the whole pipeline as fast as its slowest part and no faster, with bounded memory. The file
//! `docs/guarantees.md` in the repository lists what is promised about order, overflow and failures.
//!
//! The semantics and the names are those of Elixir's GenStage. The [`guide`] builds a pipeline step
//! by step.
//!
//! ```
//! use pipeline_core::{
//!     Pipeline,
//!     source::{QueueOptions, queue},
//!     subscription::SubscribeOptions,
//!     supervisor::ConsumerSupervisor,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any task may push; a full queue makes it wait.
//! let (queue, producer) = queue(QueueOptions::new());
//!
//! // One worker per event, never more than ten at once.
//! let greet = async |name: &String| {
//!     println!("hello {name}");
//!     Ok(())
//! };
//! let mut pipeline = Pipeline::builder("greetings")
//!     .producer(producer)
//!     .consumer_supervisor(ConsumerSupervisor::new(greet), SubscribeOptions::new().max_demand(10))
//!     .start()?;
//!
//! queue.push("Ada".to_owned()).await?;
//! queue.push("Joe".to_owned()).await?;
//!
//! // Close the queue: the pipeline handles all pushed items and ends.
//! queue.close();
//! let report = pipeline.join().await;
//! assert_eq!(report.unprocessed(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! | module | what is there |
//! | --- | --- |
//! | [`source`] | queues that any task may push to, and producers of iterators, streams and queries |
//! | [`step`] | functions as stages: `map`, `map_async`, `batch`, `for_each` |
//! | [`stage`] | the traits of stages with state, their messages and options |
//! | [`supervisor`] | a worker for each event, retried and bounded |
//! | [`subscription`], [`dispatcher`] | how much a stage asks for, and who receives an event |
//! | [`processing`] | messages that are acknowledged: processors, batchers, failures |
//! | [`builder`], [`Graph`] | pipelines with one way, and with several |
//! | [`backoff`] | delays between attempts |
//! | [`timed`], [`telemetry`] | the times of an item, and where metrics go |
//! | [`snapshot`], [`report`] | a pipeline while it runs, and at its end |
//! | `testkit` | tests of stages, with the feature `test-kit` |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Arithmetic on instants and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod backoff;
pub mod builder;
#[cfg(doctest)]
mod compile_fail;
mod deadline;
mod discarding;
pub mod dispatcher;
mod exit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod operator;
mod pipeline;
pub mod processing;
pub mod report;
// Public for the other crates of this workspace, like `Deadline`.
#[doc(hidden)]
pub mod shown;
pub mod snapshot;
pub mod source;
pub mod stage;
pub mod step;
pub mod subscription;
pub mod supervisor;
mod sync;
mod tally;
pub mod telemetry;
#[cfg(any(test, feature = "test-kit"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod testkit;
pub mod timed;
#[doc(hidden)]
pub mod wiring;

/// The names that most programs use.
///
/// ```
/// use pipeline_core::prelude::*;
/// ```
pub mod prelude {
    pub use crate::{
        ExitReason, Graph, Pipeline,
        stage::{Consumer, Emitter, Producer, ProducerConsumer},
        subscription::{SubscribeOptions, Subscription},
        supervisor::{ConsumerSupervisor, Worker},
    };
}

#[doc = include_str!("docs/guide.md")]
pub mod guide {}

// Public for the other crates of this workspace.
#[doc(hidden)]
pub use self::deadline::Deadline;
pub use self::{
    exit::{ExitError, ExitReason},
    graph::Graph,
    operator::PipelineOperator,
    pipeline::Pipeline,
};
