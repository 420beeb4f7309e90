//! Building pipelines of any shape.

use std::{collections::HashSet, convert::Infallible, fmt, mem, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::watch};

use crate::{
    builder::StartError,
    pipeline::{Ends, Pipeline, Stages},
    stage::{
        AsConsumer, AsProducer, AsProducerConsumer, Behaviour, Consumer, ConsumerHandle, Gauges,
        Origin, Phase, PipelineShared, Producer, ProducerConsumer, ProducerConsumerHandle,
        ProducerHandle, Slot, Stage, StageHandle, StageSpec, TypedStageSpec, next_id,
    },
    subscription::SubscribeOptions,
    supervisor::{ConsumerSupervisor, Supervision, SupervisorHandle, Worker},
    telemetry::Telemetry,
};

/// A pipeline of any shape before it runs: its stages and their subscriptions.
///
/// Adding a stage returns its handle, which names it before the start and after. For a pipeline
/// without branches, [`Pipeline::builder`] is shorter, and checks more at compile time.
///
/// The stages of a graph are independent: when one ends, the others are notified through their
/// subscriptions, and continue or end as their [`Cancel`](crate::subscription::Cancel) modes say.
/// The pipeline ends when all stages have ended. When a stage fails for good, the
/// [`snapshot`](Pipeline::snapshot) shows it at once, and
/// [`PipelineObserver::failed`](crate::snapshot::PipelineObserver::failed) completes: the program that runs
/// the pipeline decides what that means for the others. `serve` drains all, and ends.
///
/// ```
/// use pipeline_core::{
///     Graph,
///     source::from_iter,
///     step::for_each,
///     subscription::{Cancel, SubscribeOptions},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Two sources into one consumer.
/// let mut graph = Graph::new("fan-in");
/// let low = graph.producer("low", from_iter(0..5));
/// let high = graph.producer("high", from_iter(100..105));
/// let print = graph.consumer("print", for_each(async |n: i32| println!("{n}")));
/// graph.subscribe(&print, &low, SubscribeOptions::new().cancel(Cancel::Temporary));
/// graph.subscribe(&print, &high, SubscribeOptions::new().cancel(Cancel::Temporary));
/// let pipeline = graph.start()?;
/// # pipeline.drain(std::time::Duration::from_secs(1)).await;
/// # Ok(())
/// # }
/// ```
#[must_use = "a graph does nothing until it is started"]
pub struct Graph {
    name: Arc<str>,
    /// The id of the pipeline within the program.
    id: u64,
    telemetry: Telemetry,
    stop_within: Duration,
    stages: Vec<Box<dyn StageSpec>>,
}

impl Graph {
    /// A graph without stages. The name is used as a metric label; keep its cardinality low.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            id: next_id(),
            telemetry: Telemetry::global(),
            stop_within: Duration::from_secs(5),
            stages: Vec::new(),
        }
    }

    /// How long the stages may take to stop when the pipeline stops because one has failed. Default
    /// 5 seconds, as in OTP. The time that a supervisor gives its workers
    /// ([`ConsumerSupervisor::shutdown`]) is added.
    ///
    /// A stage that is in a callback at the deadline is aborted within another second, and the
    /// report says so. The same limit applies to the `terminate` of a failed stage, whether the
    /// others continue or not, and to a finishing stage that waits for producers that are in a
    /// callback: events that they emit for it after that are counted as pending. With
    /// [`Duration::MAX`] there is no limit.
    pub fn stop_within(&mut self, deadline: Duration) {
        self.stop_within = deadline;
    }

    /// The recorder of the stages' metrics. Default [`Telemetry::global`].
    pub fn telemetry(&mut self, telemetry: Telemetry) {
        self.telemetry = telemetry;
    }

    /// Adds a producer.
    pub fn producer<P: Producer>(
        &mut self,
        name: impl Into<Arc<str>>,
        producer: P,
    ) -> ProducerHandle<P> {
        self.producer_with(Stage::new(producer).named(name))
    }

    /// Adds a producer with options.
    pub fn producer_with<P, E>(&mut self, producer: Stage<P, E>) -> ProducerHandle<P>
    where
        P: Producer<Event = E>,
        E: Send + 'static,
    {
        self.add(producer.map(AsProducer))
    }

    /// Adds a producer-consumer.
    pub fn producer_consumer<T: ProducerConsumer>(
        &mut self,
        name: impl Into<Arc<str>>,
        stage: T,
    ) -> ProducerConsumerHandle<T> {
        self.producer_consumer_with(Stage::new(stage).named(name))
    }

    /// Adds a producer-consumer with options.
    pub fn producer_consumer_with<T: ProducerConsumer>(
        &mut self,
        stage: Stage<T, T::Out>,
    ) -> ProducerConsumerHandle<T> {
        self.add(stage.map(AsProducerConsumer))
    }

    /// Adds a consumer.
    pub fn consumer<C: Consumer>(
        &mut self,
        name: impl Into<Arc<str>>,
        consumer: C,
    ) -> ConsumerHandle<C> {
        self.consumer_with(Stage::new(consumer).named(name))
    }

    /// Adds a consumer with options.
    pub fn consumer_with<C: Consumer>(
        &mut self,
        consumer: Stage<C, Infallible>,
    ) -> ConsumerHandle<C> {
        self.add(consumer.map(AsConsumer))
    }

    /// Adds a supervisor of workers.
    pub fn consumer_supervisor<E, W>(
        &mut self,
        name: impl Into<Arc<str>>,
        supervisor: ConsumerSupervisor<E, W>,
    ) -> SupervisorHandle<E, W>
    where
        E: Send + Sync + 'static,
        W: Worker<E>,
    {
        self.consumer_supervisor_with(Stage::new(supervisor).named(name))
    }

    /// Adds a supervisor of workers with options.
    pub fn consumer_supervisor_with<E, W>(
        &mut self,
        supervisor: Stage<ConsumerSupervisor<E, W>, Infallible>,
    ) -> SupervisorHandle<E, W>
    where
        E: Send + Sync + 'static,
        W: Worker<E>,
    {
        self.add(supervisor.map(Supervision::new))
    }

    /// Subscribes a stage to a producer of its event type, whenever the stage starts.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](Self::start), and so is a producer of another
    /// pipeline that is not running, unless the subscription does not need it.
    pub fn subscribe<S, In, Out, P, PIn>(
        &mut self,
        consumer: &StageHandle<S, In, Out>,
        producer: &StageHandle<P, PIn, In>,
        options: SubscribeOptions,
    ) where
        In: Send + 'static,
        P: Send + 'static,
        PIn: Send + 'static,
    {
        consumer.slot.plan(producer.slot.clone(), options, Origin::planned());
    }

    /// Starts all stages, each in a task of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`] if there is no tokio runtime, if two stages have the same name, if a
    /// subscription is invalid or a producer's dispatcher would refuse it, or if the `init` of a stage
    /// fails. Then no stage runs.
    pub fn start(self) -> Result<Pipeline, StartError> {
        self.start_with(Ends::Apart)
    }

    /// Starts all stages, which end as told.
    pub(crate) fn start_with(mut self, ends: Ends) -> Result<Pipeline, StartError> {
        Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let mut names = HashSet::new();
        if let Some(twice) = self.stages.iter().find(|stage| !names.insert(stage.name().clone())) {
            return Err(StartError::NameTaken { stage: twice.name().clone() });
        }
        self.stages.iter().try_for_each(|stage| stage.check_options())?;
        let phase = watch::Sender::new(Phase::Run);
        let shared = PipelineShared {
            pipeline: self.name.clone(),
            telemetry: self.telemetry.clone(),
            phase,
            failing: Arc::default(),
            stop_within: self.stop_within,
            settling: Arc::default(),
        };
        let planned: Vec<_> = self.stages.iter().flat_map(|stage| stage.planned()).collect();
        let mut prepared = Vec::with_capacity(self.stages.len());
        let outcome = self.stages.iter_mut().try_for_each(|stage| {
            prepared.push(stage.prepare(&shared, Some(&planned))?);
            Ok(())
        });
        let producers = || self.stages.iter().try_for_each(|stage| stage.check_producers());
        let outcome = outcome.and_then(|()| producers());
        if let Err(error) = outcome {
            self.stages.iter().for_each(|stage| stage.vacate(false));
            return Err(error);
        }
        let mut stages = Stages::new(shared, ends);
        for (planned, prepared) in mem::take(&mut self.stages).into_iter().zip(prepared) {
            stages.add(planned, prepared);
        }
        Ok(stages.run())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn recorder(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn add<B: Behaviour>(
        &mut self,
        stage: Stage<B, B::Out>,
    ) -> StageHandle<B::Stage, B::In, B::Out> {
        let name = stage.name.clone().unwrap_or_else(|| self.free_name(B::KIND.name()));
        let gauges = Gauges::new(B::KIND, stage.options.buffer_capacity(B::KIND));
        let restarts = stage.budget.restarts() > 0;
        let slot = Arc::new(Slot::new(name, self.id, restarts, gauges));
        self.stages.push(Box::new(TypedStageSpec::new(stage, slot.clone())));
        StageHandle { slot }
    }

    /// An unused stage name.
    fn free_name(&self, kind: &str) -> Arc<str> {
        let taken = |name: &str| self.stages.iter().any(|stage| &**stage.name() == name);
        let numbered = (2..).map(|n| format!("{kind}_{n}"));
        let mut names = std::iter::once(kind.to_owned()).chain(numbered);
        names.find(|name| !taken(name)).expect("there is always another number").into()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.stages.iter().for_each(|stage| stage.abandon());
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.stages.iter().map(|stage| stage.name()).collect();
        f.debug_struct("Graph")
            .field("name", &self.name)
            .field("stages", &stages)
            .finish_non_exhaustive()
    }
}
