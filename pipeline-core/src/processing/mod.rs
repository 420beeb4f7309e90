//! Pipelines of messages that are acknowledged: Broadway's layer over stages.
//!
//! A [`Message`] is an item whose outcome is acknowledged to its source. Processors handle messages one
//! by one, batchers collect them, batch processors handle the batches, and then the source learns which
//! messages were handled and which have failed. A message that is dropped without an outcome, because
//! of a panic or a killed stage, counts as failed.
//!
//! ```
//! use pipeline_core::{
//!     Pipeline,
//!     processing::{Batch, Batcher, Message, Processors},
//!     source::from_iter,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lines = ["three", "two", "one"].map(str::to_owned).map(Message::unacknowledged);
//!
//! // Four lines at a time are counted.
//! let count = Processors::from_fn(async |line: &mut Message<String>| Ok(line.len())).concurrency(4);
//!
//! // The counts are written in batches of 100, or of what came within a second.
//! let write = Batcher::from_fn(async |batch: &mut Batch<String, usize>| {
//!     println!("{} lines, {} bytes", batch.len(), batch.outputs().sum::<usize>());
//!     Ok(())
//! });
//!
//! let mut pipeline = Pipeline::of_messages("lines")
//!     .source(from_iter(lines))
//!     .processors(count)
//!     .batcher(write)
//!     .start()?;
//! assert_eq!(pipeline.join().await.unprocessed(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! The semantics and the names are those of Broadway, by section 4 of the specification in
//! `docs/spec/stages.md`. What differs is there, too: a stage that fails is restarted alone, a message is
//! borrowed by its callbacks and not passed through them, and a message that is lost is acknowledged as
//! failed.

mod acknowledge;
mod batch;
mod batcher_stage;
mod batching;
mod builder;
#[cfg(test)]
mod cases;
mod failure;
mod handling;
mod message;
mod messages;
mod metrics;
mod processor;
mod processor_stage;
mod wake;

pub use self::{
    acknowledge::{Acknowledgement, Acknowledger, NotConfigurable},
    batch::{Batch, BatchInfo, BatchProcessor, Batcher, FnBatchProcessor, Processed},
    batching::BatchTrigger,
    builder::{Batched, Handled, MessagePipelineBuilder, NoSource, OnlyBatcher, Routed, Sources},
    failure::{Failure, FailureKind, Redelivery},
    message::{BatchMode, Message, Metadata},
    messages::{MessagesHandle, NotRateLimited, TestOutcome, TestOutcomes},
    processor::{AsyncMut, FnProcessor, Processor, Processors},
    wake::{WaitsForWake, Wake},
};
