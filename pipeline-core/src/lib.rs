//! Demand-driven stages: producers, consumers and supervised workers.
//!
//! A *producer* emits events, a *consumer* takes them. Demand flows up and events flow down: a
//! consumer says how many events it will take, and the producer never sends more. That one rule
//! makes the whole pipeline as fast as its slowest part and no faster, with bounded memory.
//!
//! The semantics and the names are those of Elixir's GenStage. The [`guide`] builds a pipeline step
//! by step.
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
//! // Close the queue: the pipeline handles all pushed items and ends.
//! queue.close();
//! let report = pipeline.join().await;
//! assert_eq!(report.unprocessed(), 0);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Arithmetic on instants and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod adaptive;
mod backoff;
mod buffer;
mod deadline;
mod demand;
mod discarding;
mod dispatcher;
mod error;
mod event_stream;
mod exit;
mod graph;
#[cfg(doctest)]
mod impossible;
mod inlet;
mod observer;
mod outlet;
mod pipeline;
mod rate_limit;
mod running;
// Public for the other crates of this workspace, like `Deadline`.
#[doc(hidden)]
pub mod shown;
mod snapshot;
mod source;
mod stage;
mod step;
mod subscription;
mod sync;
mod tally;
mod telemetry;
#[cfg(any(test, feature = "test-kit"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-kit")))]
pub mod testkit;
mod timed;
mod timeline;
mod trace_context;
mod wiring;

#[doc = include_str!("docs/guide.md")]
pub mod guide {}

// Public for the other crates of this workspace.
#[doc(hidden)]
pub use self::deadline::Deadline;
// The type of a hidden callback that gives the library's own consumers an exact count.
#[doc(hidden)]
pub use self::stage::Unprocessed;
pub use self::{
    adaptive::Adaptive,
    backoff::{Backoff, Jitter},
    buffer::BufferKeep,
    dispatcher::{
        BroadcastDispatcher, Deliveries, Delivery, DemandDispatcher, Dispatcher, Marker,
        PartitionDispatcher, Subscriber,
    },
    error::StartError,
    event_stream::EventStream,
    exit::ExitReason,
    graph::Graph,
    observer::PipelineObserver,
    outlet::{DemandMode, WhenUnsubscribed},
    pipeline::{Complete, Empty, Open, PipelineBuilder},
    rate_limit::RateLimit,
    running::{NotClean, Pipeline, PipelineReport},
    snapshot::{
        Activity, PipelinePhase, PipelineSnapshot, StageKind, StageSnapshot, SubscriptionSnapshot,
    },
    source::{
        Closed, FairQueue, FairQueueOptions, FairQueueProducer, FromIter, FromStream, OfferOutcome,
        Queue, QueueOptions, QueueProducer, TryPushError, fair_queue, from_iter, from_stream,
        queue,
    },
    stage::{
        Admission, CallError, Caller, ChildContext, ChildCount, ChildId, ChildState, Consumer,
        ConsumerHandle, ConsumerSupervisor, Emitter, HandleCall, HandleCast, HandleInfo, Job,
        Producer, ProducerConsumer, ProducerConsumerHandle, ProducerHandle, Reserved, Restart,
        Stage, StageContext, StageHandle, StageReport, SupervisorHandle, TerminateError,
        TooManyRestarts, Worker,
    },
    step::{
        Batch, Filter, ForEach, ForEachBatch, IntoSink, Map, Outcome, batch, filter, for_each,
        for_each_batch, into_sink, map,
    },
    subscription::{
        BadPartition, Cancel, Cancellation, DemandControl, StageId, SubscribeError,
        SubscribeOptions, Subscription, SubscriptionId,
    },
    telemetry::Telemetry,
    timed::Timed,
    timeline::Timeline,
    trace_context::{TraceContext, TraceContextError, TraceId},
    wiring::{ConsumerOf, Events, Flow, HasEnd, NoInput, ProducerConsumerOf},
};
