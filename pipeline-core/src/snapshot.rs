//! A look at a running pipeline.

use std::{sync::Arc, time::Duration};

use crate::{exit::ExitReason, subscription::SubscriptionId};

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
    /// How far it is between its start and its end.
    pub phase: PipelinePhase,
    /// Whether a stage has failed for good, which is known as soon as it has. A stage that failed and
    /// was started again does not count.
    pub failed: bool,
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
    /// What kind of stage it is.
    pub kind: StageKind,
    /// What it is doing now.
    pub activity: Activity,
    /// Events that have arrived.
    pub events_in: u64,
    /// Events that were sent to its consumers; to several, each counts.
    pub events_out: u64,
    /// Items that wait in the [`queue`](crate::queue()) or [`fair_queue`](crate::fair_queue()) that it
    /// takes from; 0 if it takes from none.
    pub queued: usize,
    /// How many items that queue holds at most; `None` if there is no queue.
    pub queue_capacity: Option<usize>,
    /// Events that have arrived and wait to be handled.
    pub waiting: usize,
    /// Events that were emitted and wait for demand, in its buffer or its dispatcher.
    pub buffered: usize,
    /// How many events its buffer holds at most; `None` if it has no bound, or no buffer.
    pub buffer_capacity: Option<usize>,
    /// Events that were thrown away, by its queue too.
    pub discarded: u64,
    /// The same by reason, of those for which there were any. The words are those of the label
    /// `reason` of the metric `pipeline.events_discarded`.
    pub discarded_by: Vec<(&'static str, u64)>,
    /// How many of its children are alive, if it is a consumer supervisor. One that is done at once is
    /// never seen.
    pub workers: Option<usize>,
    /// How often a child has failed, or was not started although it should have been.
    pub worker_failures: u64,
    /// How many events were given up, because their workers failed too often; see
    /// [`ConsumerSupervisor::tries`](crate::ConsumerSupervisor::tries).
    pub given_up: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// How often it has failed, whether it was started again or not.
    pub failures: u64,
    /// Why it has failed for good, if it has.
    pub failure: Option<ExitReason>,
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
    /// Events that it was sent so far.
    pub sent: u64,
}

/// How far a pipeline is between its start and its end.
///
/// ```
/// use pipeline_core::{Pipeline, PipelinePhase, SubscribeOptions, for_each, from_iter};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..))
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let observer = pipeline.observer();
/// assert_eq!(observer.snapshot().phase, PipelinePhase::Starting);
/// pipeline.drain(Duration::from_secs(1)).await;
/// assert_eq!(observer.snapshot().phase, PipelinePhase::Ended);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PipelinePhase {
    /// Not all stages have made their first subscriptions yet.
    Starting,
    /// It works. One of its stages may be about to be started again.
    Running,
    /// It takes nothing new: it was told to drain, or it stops because a stage has failed.
    Draining,
    /// All its stages have ended.
    Ended,
}

/// The kinds of stage.
///
/// ```
/// use pipeline_core::{Pipeline, StageKind, SubscribeOptions, for_each, from_iter, map};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..10))
///     .producer_consumer(map(|n: u64| n + 1), SubscribeOptions::new())
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let kinds: Vec<_> = pipeline.snapshot().stages.iter().map(|stage| stage.kind).collect();
/// assert_eq!(kinds, [StageKind::Producer, StageKind::ProducerConsumer, StageKind::Consumer]);
/// assert_eq!(kinds[1].name(), "producer_consumer");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StageKind {
    /// Emits events.
    Producer,
    /// Receives events and emits others.
    ProducerConsumer,
    /// Receives events.
    Consumer,
    /// Receives events, and starts a child for each.
    ConsumerSupervisor,
}

impl StageKind {
    /// What a stage of this kind is called unless it is given a name: `producer`,
    /// `producer_consumer`, `consumer` or `consumer_supervisor`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::ProducerConsumer => "producer_consumer",
            Self::Consumer => "consumer",
            Self::ConsumerSupervisor => "consumer_supervisor",
        }
    }

    /// Whether it has consumers.
    pub(crate) const fn emits(self) -> bool {
        matches!(self, Self::Producer | Self::ProducerConsumer)
    }
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
