//! Putting stages together.

use std::{fmt, future::Future, marker::PhantomData, pin::Pin, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::{
    error::StartError,
    running::{Pipeline, Role, Stages},
    stage::{
        Consumer, ConsumerSupervisor, ConsumerTask, Link, Phase, Producer, ProducerTask,
        StageContext, StageReport, SupervisorTask, ToConsumer, ToProducer, Worker,
    },
    subscription::{SubscribeOptions, SubscriptionId},
    telemetry::Telemetry,
};

/// Builds a [`Pipeline`] from its source to its end.
///
/// What comes next is checked by the compiler: a pipeline begins with a producer, each stage takes
/// the events of the one before, and only a pipeline with an end can be started.
///
/// ```compile_fail
/// # use pipeline_core::{Pipeline, QueueOptions, queue};
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let unfinished = Pipeline::builder("unfinished").producer(producer).start();
/// ```
#[must_use]
pub struct PipelineBuilder<S> {
    name: Arc<str>,
    telemetry: Telemetry,
    stages: Vec<Planned>,
    subscriptions: u64,
    /// The first subscription that cannot work. Kept for `start`, so that building reads as prose.
    refused: Option<StartError>,
    state: S,
}

/// Nothing in it yet: a [`PipelineBuilder`] that wants a producer.
#[derive(Debug)]
pub struct Empty(());

/// A [`PipelineBuilder`] whose last stage emits events of type `E`, which somebody has to take.
pub struct Open<E> {
    producer: mpsc::UnboundedSender<ToProducer<E>>,
}

/// A [`PipelineBuilder`] that has all it needs.
#[derive(Debug)]
pub struct Complete(());

/// A stage that will be started with the pipeline.
struct Planned {
    stage: Arc<str>,
    role: Role,
    prepare: Prepare,
}

/// Runs a stage's `init`, and makes the task that runs the stage.
type Prepare =
    Box<dyn FnOnce(&StageContext, watch::Receiver<Phase>) -> Result<StageTask, StartError> + Send>;
type StageTask = Pin<Box<dyn Future<Output = StageReport> + Send>>;

impl Pipeline {
    /// Begins a pipeline with this name. It labels the pipeline's metrics, so it should be one of
    /// few.
    pub fn builder(name: impl Into<Arc<str>>) -> PipelineBuilder<Empty> {
        PipelineBuilder {
            name: name.into(),
            telemetry: Telemetry::global(),
            stages: Vec::new(),
            subscriptions: 0,
            refused: None,
            state: Empty(()),
        }
    }
}

impl<S> PipelineBuilder<S> {
    /// Where the stages record their metrics. Default [`Telemetry::global`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    fn then<N>(
        mut self,
        stage: &str,
        role: Role,
        prepare: Prepare,
        state: N,
    ) -> PipelineBuilder<N> {
        self.stages.push(Planned { stage: stage.into(), role, prepare });
        PipelineBuilder {
            name: self.name,
            telemetry: self.telemetry,
            stages: self.stages,
            subscriptions: self.subscriptions,
            refused: self.refused,
            state,
        }
    }
}

impl PipelineBuilder<Empty> {
    /// Adds the producer that the events come from.
    pub fn producer<P: Producer>(self, mut producer: P) -> PipelineBuilder<Open<P::Event>> {
        let (sender, mailbox) = demand_bounded();
        let prepare: Prepare = Box::new(move |context, phase| {
            producer.init(context).map_err(|reason| StartError::init(context, reason))?;
            Ok(Box::pin(ProducerTask::new(producer, context).run(mailbox, phase)))
        });
        self.then("producer", Role::Producer, prepare, Open { producer: sender })
    }
}

impl<E: Send + 'static> PipelineBuilder<Open<E>> {
    /// Ends the pipeline in a consumer.
    ///
    /// # Errors
    ///
    /// Options that cannot work are an error of [`start`](PipelineBuilder::start).
    pub fn consumer<C>(
        mut self,
        mut consumer: C,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Complete>
    where
        C: Consumer<Event = E>,
    {
        let subscribe = self.subscribe("consumer", options);
        let prepare: Prepare = Box::new(move |context, phase| {
            let (link, mailbox) = subscribe();
            consumer.init(context).map_err(|reason| StartError::init(context, reason))?;
            Ok(Box::pin(ConsumerTask::new(consumer, link, context).run(mailbox, phase)))
        });
        self.then("consumer", Role::Consumer, prepare, Complete(()))
    }

    /// Ends the pipeline in supervised workers, one for each event, `max_demand` of them at once.
    ///
    /// # Errors
    ///
    /// Options that cannot work are an error of [`start`](PipelineBuilder::start).
    pub fn consumer_supervisor<W>(
        mut self,
        supervisor: ConsumerSupervisor<E, W>,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Complete>
    where
        E: Sync,
        W: Worker<E>,
    {
        let subscribe = self.subscribe("consumer_supervisor", options);
        let prepare: Prepare = Box::new(move |context, phase| {
            let (link, mailbox) = subscribe();
            Ok(Box::pin(SupervisorTask::new(supervisor, link, context).run(mailbox, phase)))
        });
        self.then("consumer_supervisor", Role::Consumer, prepare, Complete(()))
    }

    /// Makes the subscription to the stage before, to be taken up when the pipeline starts.
    fn subscribe(
        &mut self,
        stage: &str,
        options: SubscribeOptions,
    ) -> impl FnOnce() -> Subscription<E> + use<E> {
        if let Err(source) = options.check()
            && self.refused.is_none()
        {
            self.refused = Some(StartError::Subscribe { stage: stage.into(), source });
        }
        self.subscriptions += 1;
        let id = SubscriptionId::new(self.subscriptions);
        let producer = self.state.producer.clone();
        move || {
            let (sender, mailbox) = demand_bounded();
            (Link::subscribe(id, options, producer, sender), mailbox)
        }
    }
}

/// A subscription at its consumer's end.
type Subscription<E> = (Link<E>, mpsc::UnboundedReceiver<ToConsumer<E>>);

impl PipelineBuilder<Complete> {
    /// Starts all stages, each in a task of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`] if there is no tokio runtime, if a subscription has options that cannot work,
    /// or if the `init` of a stage fails. Then nothing runs.
    pub fn start(self) -> Result<Pipeline, StartError> {
        Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let phase = watch::Sender::new(Phase::Run);
        let mut prepared = Vec::with_capacity(self.stages.len());
        for Planned { stage, role, prepare } in self.stages {
            let context = StageContext {
                pipeline: self.name.clone(),
                stage: stage.clone(),
                telemetry: self.telemetry.clone(),
            };
            let task = prepare(&context, phase.subscribe())?;
            prepared.push((stage, role, task));
        }
        let mut stages = Stages::new(phase);
        for (stage, role, task) in prepared {
            stages.spawn(stage, role, task);
        }
        Ok(Pipeline::supervise(self.name, stages))
    }
}

/// A channel between two stages. Demand is its bound: no more events are sent than were asked for,
/// and an ask is sent only when events have been handled.
#[expect(clippy::disallowed_methods, reason = "bounded by demand")]
fn demand_bounded<M>() -> (mpsc::UnboundedSender<M>, mpsc::UnboundedReceiver<M>) {
    mpsc::unbounded_channel()
}

impl<S> fmt::Debug for PipelineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.stages.iter().map(|planned| &planned.stage).collect();
        f.debug_struct("PipelineBuilder")
            .field("name", &self.name)
            .field("stages", &stages)
            .finish()
    }
}

impl<E> fmt::Debug for Open<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Open").field(&PhantomData::<E>).finish()
    }
}
