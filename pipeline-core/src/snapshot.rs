//! A look at a running pipeline.

use std::{sync::Arc, time::Duration};

use crate::subscription::SubscriptionId;

/// What a pipeline's stages are doing, at one moment. It is taken without stopping any of them, so
/// what one stage has just sent, the next may not have received.
///
/// ```
/// use pipeline_core::{Pipeline, QueueOptions, SubscribeOptions, for_each, queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (queue, producer) = queue::<u64>(QueueOptions::new());
/// let pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// queue.push(7).await?;
/// for stage in pipeline.snapshot().stages {
///     println!("{}: {:?}, {} events in, {} out", stage.stage, stage.activity, stage.events_in, stage.events_out);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipelineSnapshot {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// Its stages, in the order in which they were added.
    pub stages: Vec<StageSnapshot>,
}

/// What a stage is doing. Counts and times go on when it is restarted.
///
/// ```
/// use pipeline_core::{Activity, Pipeline, SubscribeOptions, for_each, from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..10))
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// pipeline.ended().await;
///
/// let stages = pipeline.snapshot().stages;
/// assert_eq!((stages[0].events_out, stages[1].events_in), (10, 10));
/// assert_eq!((stages[1].activity, stages[1].waiting), (Activity::Ended, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StageSnapshot {
    /// The stage's name.
    pub stage: Arc<str>,
    /// What it is doing now.
    pub activity: Activity,
    /// Events that have arrived.
    pub events_in: u64,
    /// Events that were sent to its consumers; to several, each counts.
    pub events_out: u64,
    /// Events that have arrived and wait to be handled.
    pub waiting: usize,
    /// Events that were emitted and wait for demand, in its buffer or its dispatcher.
    pub buffered: usize,
    /// Events that were thrown away.
    pub discarded: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// How long it has worked.
    pub busy: Duration,
    /// How long it has waited for events, or for messages.
    pub waiting_for_events: Duration,
    /// How long it has waited for demand.
    pub waiting_for_demand: Duration,
    /// Who has subscribed to it.
    pub subscriptions: Vec<SubscriptionSnapshot>,
}

/// A subscription, at its producer's end.
///
/// ```
/// use pipeline_core::{Graph, QueueOptions, SubscribeOptions, for_each, queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", producer);
/// let print = graph.consumer("print", for_each(async |n| println!("{n}")));
/// let pipeline = graph.start()?;
/// let subscription = print.subscribe(&numbers, SubscribeOptions::new().max_demand(50)).await?;
/// # numbers.estimate_buffered_count().await?;
///
/// // Nothing has come yet, so all that was asked for is still to come.
/// let seen = &pipeline.snapshot().stages[0].subscriptions[0];
/// assert_eq!((&*seen.consumer, seen.pending), ("print", 50));
/// assert_eq!(seen.id, subscription.id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubscriptionSnapshot {
    /// Its name.
    pub id: SubscriptionId,
    /// The stage that has subscribed.
    pub consumer: Arc<str>,
    /// Events that it has asked for and not been sent.
    pub pending: usize,
}

/// What a stage is doing.
///
/// ```
/// use pipeline_core::{Activity, Graph, QueueOptions, queue};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", producer);
/// let pipeline = graph.start()?;
/// assert_eq!(pipeline.snapshot().stages[0].activity, Activity::Starting);
///
/// // Nobody has subscribed.
/// # numbers.estimate_buffered_count().await?;
/// assert_eq!(pipeline.snapshot().stages[0].activity, Activity::WaitingForDemand);
///
/// numbers.pause();
/// # numbers.estimate_buffered_count().await?;
/// assert_eq!(pipeline.snapshot().stages[0].activity, Activity::Paused);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// It is not there yet, or is being started again.
    #[default]
    Starting,
    /// It works.
    Busy,
    /// It would go on if there were events.
    WaitingForEvents,
    /// It would go on if there were demand.
    WaitingForDemand,
    /// It was told to wait.
    Paused,
    /// It has ended for good.
    Ended,
}
