//! Snapshots of a running pipeline, and the observer that takes them.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    exit::ExitReason,
    stage::{Observed, Phase},
    subscription::SubscriptionId,
};

/// The state of a pipeline's stages at one moment. It is taken without stopping any of them, so
/// events that one stage has just sent may not have arrived at the next.
///
/// ```
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, queue},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
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
    /// The phase of the pipeline between its start and its end.
    pub phase: PipelinePhase,
    /// Whether a stage has failed for good. It is set as soon as the failure is known. A stage that
    /// failed and was restarted does not count.
    pub failed: bool,
    /// The stages, in the order in which they were added.
    pub stages: Vec<StageSnapshot>,
}

/// The state of a stage. Counts and times continue across restarts.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct StageSnapshot {
    /// The stage's name, serialized as `name`.
    #[cfg_attr(feature = "serde", serde(rename = "name"))]
    pub stage: Arc<str>,
    /// What kind of stage it is.
    pub kind: StageKind,
    /// The current activity.
    pub activity: Activity,
    /// The number of events received.
    pub events_in: u64,
    /// The number of events sent; an event sent to several consumers counts for each.
    pub events_out: u64,
    /// Items in the [`queue`](crate::source::queue()) or
    /// [`fair_queue`](crate::source::fair_queue()) of this producer; 0 for other stages.
    pub queued: usize,
    /// The capacity of that queue; `None` if there is no queue.
    pub queue_capacity: Option<usize>,
    /// What it reports about what it reads from, if it is a durable source.
    pub source: Option<SourceSnapshot>,
    /// Events that were received and wait to be handled.
    pub waiting: usize,
    /// Events that were emitted and wait for demand, in its buffer or its dispatcher.
    pub buffered: usize,
    /// The capacity of its buffer; `None` if it is unbounded or does not exist.
    pub buffer_capacity: Option<usize>,
    /// The number of discarded events, including items of its queue.
    pub discarded: u64,
    /// The discarded events by reason, without reasons that did not occur. The names are those of
    /// the label `reason` of the metric `pipeline.events_discarded`.
    pub discarded_by: BTreeMap<Cow<'static, str>, u64>,
    /// The number of items that its queue did not take because it was full: they went back to their senders, which
    /// answer 503 for instance, or the senders stopped waiting for room. They are not discarded events.
    pub refused: u64,
    /// The refused items by reason, without reasons that did not occur. The names are those of the label `reason` of
    /// the metric `pipeline.events_refused`.
    pub refused_by: BTreeMap<Cow<'static, str>, u64>,
    /// The number of its children, if it is a consumer supervisor. A child that completes at once
    /// never shows.
    pub workers: Option<usize>,
    /// How often a child has failed or failed to start.
    pub worker_failures: u64,
    /// How many events were given up because their workers failed too often; see
    /// [`ConsumerSupervisor::tries`](crate::supervisor::ConsumerSupervisor::tries).
    pub given_up: u64,
    /// How often it was restarted.
    pub restarts: u64,
    /// How often it has failed, whether it was restarted or not.
    pub failures: u64,
    /// Why it has failed for good, if it has. Not serialized: the text may have data of users.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub failure: Option<ExitReason>,
    /// The total time it has worked, serialized as `busy_seconds`.
    #[cfg_attr(feature = "serde", serde(rename = "busy_seconds", with = "seconds"))]
    pub busy: Duration,
    /// The total time it has waited for events or for messages, serialized as
    /// `waiting_for_events_seconds`.
    #[cfg_attr(feature = "serde", serde(rename = "waiting_for_events_seconds", with = "seconds"))]
    pub waiting_for_events: Duration,
    /// The total time it has waited for demand, serialized as `waiting_for_demand_seconds`.
    #[cfg_attr(feature = "serde", serde(rename = "waiting_for_demand_seconds", with = "seconds"))]
    pub waiting_for_demand: Duration,
    /// The subscriptions of its consumers. Not serialized.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub subscriptions: Vec<SubscriptionSnapshot>,
}

/// The state of a durable source, as far as its producer knows and
/// [reports](crate::stage::StageContext::source_report) it. Counts continue across restarts.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct SourceSnapshot {
    /// What it reads from, such as the kind of a broker and the name of a queue.
    pub broker: Arc<str>,
    /// Whether it is connected.
    pub connected: bool,
    /// The items at the broker that are not done.
    pub backlog: Option<u64>,
    /// The age of the oldest of them, serialized as `oldest_age_seconds`.
    #[cfg_attr(feature = "serde", serde(rename = "oldest_age_seconds", with = "optional_seconds"))]
    pub oldest_age: Option<Duration>,
    /// The items that were given up and are kept at the broker.
    pub dead_letters: Option<u64>,
    /// The items that it has fetched and whose outcome is not stored yet.
    pub held: u64,
    /// Those of them whose outcome the broker has refused, and that are tried again alone.
    pub set_aside: u64,
    /// The items that it has fetched.
    pub fetched: u64,
    /// Those of them that had been delivered before.
    pub redelivered: u64,
    /// The items that were stored as handled.
    pub done: u64,
    /// The items that have failed and are delivered again.
    pub retried: u64,
    /// The items that were given back, and count as not delivered.
    pub released: u64,
    /// The items that were given up.
    pub given_up: u64,
    /// How often it could not connect, or a call of its broker failed.
    pub connection_errors: u64,
    /// The text of the last of these errors, or why the broker has delivered no more. It may name the broker's address.
    pub last_error: Option<Arc<str>>,
}

/// A subscription, as seen by its producer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubscriptionSnapshot {
    /// The id of the subscription.
    pub id: SubscriptionId,
    /// The name of the subscribed stage.
    pub consumer: Arc<str>,
    /// The outstanding demand, in events.
    pub pending_demand: usize,
    /// The number of events sent to it so far.
    pub sent: u64,
}

/// The phase of a pipeline between its start and its end.
///
/// ```
/// use pipeline_core::{
///     Pipeline, snapshot::PipelinePhase, source::from_iter, step::for_each,
///     subscription::SubscribeOptions,
/// };
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PipelinePhase {
    /// Not all stages have made their first subscriptions yet.
    #[default]
    Starting,
    /// All stages run, or are being restarted.
    Running,
    /// The pipeline takes no new events: it drains, or it stops because a stage has failed.
    Draining,
    /// All stages have ended.
    Ended,
}

/// The kinds of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum StageKind {
    /// Emits events.
    #[default]
    Producer,
    /// Receives events and emits others.
    ProducerConsumer,
    /// Receives events.
    Consumer,
    /// Receives events and starts a child for each.
    ConsumerSupervisor,
}

impl StageKind {
    /// The default name of a stage of this kind: `producer`, `producer_consumer`, `consumer` or
    /// `consumer_supervisor`.
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

/// The activity of a stage.
///
/// ```
/// use pipeline_core::{
///     Graph,
///     snapshot::Activity,
///     source::{QueueOptions, queue},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let mut graph = Graph::new("numbers");
/// let numbers = graph.producer("numbers", producer);
/// let pipeline = graph.start()?;
/// assert_eq!(pipeline.snapshot().stages[0].activity, Activity::Starting);
///
/// // There are no subscribers.
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activity {
    /// The stage has not started yet, or is being restarted.
    #[default]
    Starting,
    /// The stage is working.
    Busy,
    /// The stage waits for events.
    WaitingForEvents,
    /// The stage waits for demand.
    WaitingForDemand,
    /// The stage is paused.
    Paused,
    /// The stage has ended for good.
    Ended,
}

/// A read-only observer of a pipeline, which also works after its end. Cheap to clone.
///
/// It keeps neither the pipeline nor its stages alive.
///
/// ```
/// use pipeline_core::{
///     Pipeline, snapshot::PipelinePhase, source::from_iter, step::for_each,
///     subscription::SubscribeOptions,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut pipeline = Pipeline::builder("numbers")
///     .producer(from_iter(0..10))
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let observer = pipeline.observer();
/// pipeline.join().await;
/// drop(pipeline);
///
/// let seen = observer.snapshot();
/// assert_eq!((observer.name(), seen.phase), ("numbers", PipelinePhase::Ended));
/// assert_eq!(seen.stages[1].events_in, 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PipelineObserver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    /// Closed when the pipeline has ended.
    phase: watch::Receiver<Phase>,
    /// Set as soon as a stage has failed for good.
    failed: watch::Receiver<bool>,
    stages: Vec<Observed>,
}

impl PipelineObserver {
    pub(crate) fn new(
        name: Arc<str>,
        phase: watch::Receiver<Phase>,
        failed: watch::Receiver<bool>,
        stages: Vec<Observed>,
    ) -> Self {
        Self(Arc::new(Inner { name, phase, failed, stages }))
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The current state of the stages, without stopping them. After the end, their final state.
    #[must_use]
    pub fn snapshot(&self) -> PipelineSnapshot {
        PipelineSnapshot {
            pipeline: self.0.name.clone(),
            phase: self.phase(),
            failed: *self.0.failed.borrow(),
            stages: self.stages().iter().map(Observed::snapshot).collect(),
        }
    }

    /// Waits until the pipeline takes no new events: it drains, it stops because a stage has failed, or
    /// it has ended.
    ///
    /// ```
    /// # use pipeline_core::{
    /// #     Pipeline, source::from_iter, step::for_each, subscription::SubscribeOptions,
    /// # };
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pipeline = Pipeline::builder("numbers")
    /// #     .producer(from_iter(0..))
    /// #     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
    /// #     .start()?;
    /// let observer = pipeline.observer();
    /// let waiting = tokio::spawn(async move { observer.draining().await });
    /// pipeline.drain(Duration::from_secs(1)).await;
    /// waiting.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn draining(&self) {
        // An error means that the pipeline has ended.
        let _ = self.0.phase.clone().wait_for(|phase| *phase >= Phase::Drain).await;
    }

    /// Waits until a stage has failed for good, although others may still run, and returns true. Returns
    /// false when the pipeline has ended without a failure.
    ///
    /// The stages of a [`Graph`](crate::Graph) are independent, so with one that has failed for good the
    /// others continue. A program that is not to run on without it waits for this, and then
    /// [drains](crate::Pipeline::drain) the pipeline.
    ///
    /// ```
    /// # use pipeline_core::{
    /// #     ExitReason, Graph, source::{QueueOptions, queue}, step::for_each,
    /// #     subscription::SubscribeOptions,
    /// # };
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue(QueueOptions::new());
    /// let mut graph = Graph::new("numbers");
    /// let numbers = graph.producer("numbers", producer);
    /// let fails = graph.consumer("fails", for_each(async |_: u64| Err(ExitReason::failed("no luck"))));
    /// graph.subscribe(&fails, &numbers, SubscribeOptions::new());
    /// let pipeline = graph.start()?;
    /// queue.push(7).await?;
    /// if pipeline.observer().failed().await {
    ///     let report = pipeline.drain(Duration::from_secs(10)).await;
    ///     assert!(report.failure().is_some());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn failed(&self) -> bool {
        // An error means that the pipeline has ended.
        self.0.failed.clone().wait_for(|failed| *failed).await.is_ok()
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.0.name.clone()
    }

    pub(crate) fn stages(&self) -> &[Observed] {
        &self.0.stages
    }

    fn phase(&self) -> PipelinePhase {
        let phase = *self.0.phase.borrow();
        if self.0.phase.has_changed().is_err() {
            PipelinePhase::Ended
        } else if phase >= Phase::Drain {
            PipelinePhase::Draining
        } else if self.stages().iter().all(Observed::has_begun) {
            PipelinePhase::Running
        } else {
            PipelinePhase::Starting
        }
    }
}

/// A duration as seconds with fractions, if there is one.
#[cfg(feature = "serde")]
mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        seconds.map(|s| Duration::try_from_secs_f64(s).map_err(D::Error::custom)).transpose()
    }
}

/// A duration as seconds with fractions.
#[cfg(feature = "serde")]
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}
