//! Demand-driven stages: producers, consumers and supervised workers.
//!
//! A *producer* emits events, a *consumer* takes them. Demand flows up and events flow down: a
//! consumer says how many events it will take, and the producer never sends more. That one rule
//! makes the whole pipeline as fast as its slowest part and no faster, with bounded memory.
//!
//! The semantics are those of Elixir's GenStage, and so are the names.
//!
//! ```
//! use pipeline_core::{ConsumerSupervisor, Pipeline, QueueOptions, SubscribeOptions, queue};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any task may push; a full queue makes it wait.
//! let (queue, producer) = queue(QueueOptions::new());
//!
//! // One task per event, never more than ten at once.
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
//! // Nothing more comes: what was pushed is handled, then the pipeline ends.
//! queue.close();
//! let report = pipeline.ended().await;
//! assert_eq!(report.left_undone(), 0);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "no stage uses it yet"))]
mod adaptive;
#[cfg_attr(not(test), expect(dead_code, reason = "no stage uses it yet"))]
mod backoff;
mod buffer;
mod demand;
mod dispatcher;
mod error;
mod exit;
mod outlet;
mod pipeline;
#[cfg_attr(not(test), expect(dead_code, reason = "no stage uses it yet"))]
mod rate_limit;
mod running;
mod source;
mod stage;
mod subscription;
mod telemetry;
mod timed;

pub use self::{
    adaptive::Adaptive,
    backoff::{Backoff, Jitter},
    buffer::BufferKeep,
    dispatcher::{Deliveries, Delivery, DemandDispatcher, Dispatcher, Marker, Subscriber},
    error::StartError,
    exit::ExitReason,
    pipeline::{Complete, Empty, Open, PipelineBuilder},
    rate_limit::RateLimit,
    running::{Pipeline, PipelineReport},
    source::{Closed, Offer, Queue, QueueOptions, QueueProducer, TryPushError, queue},
    stage::{
        ChildContext, Consumer, ConsumerSupervisor, Emitter, Producer, Restart, StageContext,
        StageReport, Worker,
    },
    subscription::{Cancel, StageId, SubscribeError, SubscribeOptions, SubscriptionId},
    telemetry::Telemetry,
    timed::Timed,
};
