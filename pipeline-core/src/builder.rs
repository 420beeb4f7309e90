//! Builders of linear pipelines, and the errors of a start.

use std::{convert::Infallible, fmt, marker::PhantomData, sync::Arc, time::Duration};

use thiserror::Error;

use crate::{
    exit::ExitReason,
    graph::Graph,
    pipeline::{Ends, Pipeline},
    stage::{
        AsConsumer, AsProducer, AsProducerConsumer, Behaviour, EventStream, Origin, Producer,
        Stage, Target,
    },
    step::{batch, filter, flat_map, map},
    subscription::{SubscribeError, SubscribeOptions},
    supervisor::{ConsumerSupervisor, Supervision, Worker},
    telemetry::Telemetry,
    wiring::{ConsumerOf, Events, Flow, HasEnd, ProducerConsumerOf, Source},
};

/// A builder of a linear [`Pipeline`], from its source to its last stage.
///
/// The compiler checks the order: a pipeline begins with a producer, each stage takes the events of
/// the one before, and only a pipeline with a last stage can be started.
///
/// ```compile_fail
/// # use pipeline_core::{
/// #     Pipeline,
/// #     source::{QueueOptions, queue},
/// # };
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let unfinished = Pipeline::builder("unfinished").producer(producer).start();
/// ```
///
/// A pipeline whose stages have options:
///
/// ```
///
/// use pipeline_core::{
///     Pipeline,
///     source::from_iter,
///     stage::{RateLimit, Stage},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let numbers = Stage::new(from_iter(1..=20))
///     .named("numbers")
///     .rate_limit(RateLimit::new(1000, Duration::from_secs(1)));
/// let mut pipeline = Pipeline::builder("squares")
///     .producer_with(numbers)
///     .map(|n: u64| n * n)
///     .filter(|n| n % 2 == 0)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let report = pipeline.join().await;
/// assert_eq!(&*report.stages[0].stage, "numbers");
/// assert_eq!(report.unprocessed(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct PipelineBuilder<S> {
    graph: Graph,
    state: S,
}

/// The state of a [`PipelineBuilder`] that has no producer yet.
#[derive(Debug)]
pub struct Empty(());

/// The state of a [`PipelineBuilder`] whose last stage emits events of type `E`, which need a
/// consumer.
pub struct Open<E> {
    last: Arc<dyn Target<E>>,
}

/// The state of a [`PipelineBuilder`] that can be started.
#[derive(Debug)]
pub struct Complete(());

impl Pipeline {
    /// A builder for a pipeline with this name. The name is used as a metric label; keep its
    /// cardinality low.
    pub fn builder(name: impl Into<Arc<str>>) -> PipelineBuilder<Empty> {
        PipelineBuilder { graph: Graph::new(name), state: Empty(()) }
    }
}

impl<S> PipelineBuilder<S> {
    /// The recorder of the stages' metrics. Default [`Telemetry::global`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.graph.telemetry(telemetry);
        self
    }

    /// How long the stages may take to stop when the pipeline stops because one has failed. Default
    /// 5 seconds; see [`Graph::stop_within`].
    pub fn stop_within(mut self, deadline: Duration) -> Self {
        self.graph.stop_within(deadline);
        self
    }
}

impl PipelineBuilder<Empty> {
    /// Adds the producer of the events.
    pub fn producer<P: Producer>(self, producer: P) -> PipelineBuilder<Open<P::Event>> {
        self.producer_with(Stage::new(producer))
    }

    /// Adds the producer of the events, with options.
    pub fn producer_with<P, E>(mut self, producer: Stage<P, E>) -> PipelineBuilder<Open<E>>
    where
        P: Producer<Event = E>,
        E: Send + 'static,
    {
        let slot = self.graph.add(producer.map(AsProducer)).slot;
        PipelineBuilder { graph: self.graph, state: Open { last: slot } }
    }
}

impl<E: Send + 'static> PipelineBuilder<Open<E>> {
    /// Adds a stage that receives events and emits others.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn producer_consumer<T>(
        self,
        stage: T,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Open<T::Out>>
    where
        T: ProducerConsumerOf<E>,
    {
        self.producer_consumer_with(Stage::new(stage), options)
    }

    /// Adds a stage that receives events and emits others, with options.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn producer_consumer_with<T>(
        self,
        stage: Stage<T, T::Out>,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Open<T::Out>>
    where
        T: ProducerConsumerOf<E>,
    {
        let Self { mut graph, state } = self;
        let slot = graph.add(stage.map(AsProducerConsumer)).slot;
        slot.plan(T::feed(Source(state.last)).0, options, Origin::linear());
        PipelineBuilder { graph, state: Open { last: slot } }
    }

    /// Maps each event to another. The stage asks for up to 1000 events at a time; for other
    /// options, see [`map`].
    pub fn map<T, F>(self, function: F) -> PipelineBuilder<Open<T>>
    where
        T: Send + 'static,
        F: FnMut(E) -> T + Send + 'static,
    {
        self.producer_consumer(map(function), SubscribeOptions::new())
    }

    /// Makes any number of events of each. The stage asks for up to 1000 events at a time; for other
    /// options, see [`flat_map`].
    pub fn flat_map<I, F>(self, function: F) -> PipelineBuilder<Open<I::Item>>
    where
        I: IntoIterator<Item: Send + 'static> + 'static,
        F: FnMut(E) -> I + Send + 'static,
    {
        self.producer_consumer(flat_map(function), SubscribeOptions::new())
    }

    /// Keeps the events for which the function returns `true`. The stage asks for up to 1000 events
    /// at a time; for other options, see [`filter`].
    pub fn filter<F>(self, function: F) -> PipelineBuilder<Open<E>>
    where
        F: FnMut(&E) -> bool + Send + 'static,
    {
        self.producer_consumer(filter(function), SubscribeOptions::new())
    }

    /// Collects events into batches of up to `size`. No event waits for longer than `within`. See
    /// [`batch`].
    ///
    /// # Panics
    ///
    /// If the size is 0.
    pub fn batch(self, size: usize, within: Duration) -> PipelineBuilder<Open<Vec<E>>> {
        self.producer_consumer(batch(size, within), SubscribeOptions::new())
    }

    /// Starts the pipeline and returns its events as a stream.
    ///
    /// # Errors
    ///
    /// As for [`start`](PipelineBuilder::start).
    ///
    /// ```
    /// use futures::TryStreamExt;
    /// use pipeline_core::{
    ///     Pipeline,
    ///     source::from_iter,
    ///     subscription::{Cancel, SubscribeOptions},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // The stream ends without an error when the pipeline ends normally.
    /// let options = SubscribeOptions::new().cancel(Cancel::Transient);
    /// let (_pipeline, mut words) = Pipeline::builder("words")
    ///     .producer(from_iter(["to", "the", "screen"]))
    ///     .into_stream(options)?;
    /// assert_eq!(words.try_next().await?, Some("to"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_stream(
        self,
        options: SubscribeOptions,
    ) -> Result<(Pipeline, EventStream<E>), StartError> {
        let Self { graph, state } = self;
        let refused = |source| StartError::Subscribe { stage: "stream".into(), source };
        EventStream::<E>::check(&options).map_err(refused)?;
        let pipeline = graph.start_with(Ends::Together)?;
        let mut stream = EventStream::new();
        stream.subscribe_to(&*state.last, options).map_err(refused)?;
        Ok((pipeline, stream))
    }

    /// Adds the consumer at the end of the pipeline.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn consumer<C>(self, consumer: C, options: SubscribeOptions) -> PipelineBuilder<Complete>
    where
        C: ConsumerOf<E>,
    {
        self.consumer_with(Stage::new(consumer), options)
    }

    /// Adds the consumer at the end of the pipeline, with options.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn consumer_with<C>(
        self,
        consumer: Stage<C, Infallible>,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Complete>
    where
        C: ConsumerOf<E>,
    {
        self.end(consumer.map(AsConsumer), options, C::feed)
    }

    /// Ends the pipeline with supervised workers, one for each event, up to `max_demand` at once.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn consumer_supervisor<W>(
        self,
        supervisor: ConsumerSupervisor<E, W>,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Complete>
    where
        E: Sync,
        W: Worker<E>,
    {
        self.consumer_supervisor_with(Stage::new(supervisor), options)
    }

    /// Ends the pipeline with supervised workers, with options.
    ///
    /// # Errors
    ///
    /// Invalid options are an error of [`start`](PipelineBuilder::start).
    pub fn consumer_supervisor_with<W>(
        self,
        supervisor: Stage<ConsumerSupervisor<E, W>, Infallible>,
        options: SubscribeOptions,
    ) -> PipelineBuilder<Complete>
    where
        E: Sync,
        W: Worker<E>,
    {
        self.end(supervisor.map(Supervision::new), options, Events::feed)
    }

    fn end<B>(
        self,
        stage: Stage<B, Infallible>,
        options: SubscribeOptions,
        feed: fn(Source<E>) -> Source<B::In>,
    ) -> PipelineBuilder<Complete>
    where
        B: Behaviour<Out = Infallible>,
    {
        let Self { mut graph, state } = self;
        let source = feed(Source(state.last));
        graph.add(stage).slot.plan(source.0, options, Origin::linear());
        PipelineBuilder { graph, state: Complete(()) }
    }
}

impl<S> PipelineBuilder<S> {
    /// Starts all stages, each in a task of its own.
    ///
    /// The stages end together: when one ends that is not a source at its end, the others are
    /// stopped.
    ///
    /// # Errors
    ///
    /// [`StartError`] if there is no tokio runtime, if two stages have the same name, if a
    /// subscription has invalid options, or if the `init` of a stage fails. Then no stage runs.
    pub fn start(self) -> Result<Pipeline, StartError>
    where
        S: HasEnd,
    {
        self.graph.start_with(Ends::Together)
    }
}

impl<S> fmt::Debug for PipelineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PipelineBuilder").field(&self.graph).finish()
    }
}

impl<E> fmt::Debug for Open<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Open").field(&PhantomData::<E>).finish()
    }
}

/// Why a pipeline did not start.
///
/// ```
/// use pipeline_core::{Graph, builder::StartError, source::from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut graph = Graph::new("numbers");
/// graph.producer("numbers", from_iter(0..5));
/// graph.producer("numbers", from_iter(5..9));
///
/// let error = graph.start().unwrap_err();
/// assert!(matches!(error, StartError::NameTaken { .. }));
/// assert_eq!(
///     error.to_string(),
///     "two stages are named numbers, expected unique names"
/// );
/// # }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// `start` was called outside a tokio runtime.
    #[error("a pipeline must be started within a tokio runtime")]
    NoRuntime,
    /// A stage's subscription has invalid options, or such that the producer's dispatcher would refuse it:
    /// a partition that does not exist, or is taken.
    #[error("{stage} cannot subscribe")]
    Subscribe {
        /// The consumer's name.
        stage: Arc<str>,
        /// The invalid option.
        #[source]
        source: SubscribeError,
    },
    /// A stage subscribes to a producer that is not running.
    #[error("{stage} cannot subscribe: {producer} is not running")]
    NotRunning {
        /// The consumer's name.
        stage: Arc<str>,
        /// The producer's name.
        producer: Arc<str>,
    },
    /// Two stages have the same name.
    #[error("two stages are named {stage}, expected unique names")]
    NameTaken {
        /// The name.
        stage: Arc<str>,
    },
    /// A stage's `init` failed.
    #[error("{stage} failed to start: {reason}")]
    Init {
        /// The stage's name.
        stage: Arc<str>,
        /// The error that `init` returned, or its panic.
        reason: ExitReason,
    },
}
