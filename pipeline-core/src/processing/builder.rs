//! The builder of pipelines of messages, and the handle of their sources.

use std::{fmt, hash::Hash, marker::PhantomData, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    batch::{Batch, BatchProcessor, Batcher},
    batcher_stage::{BatchProcessorStage, BatcherStage},
    handling::contained_now,
    message::{Message, overflowed},
    messages::{MessagesHandle, SourceHandle},
    metrics::{BatchMetrics, MessageMetrics},
    processor::{PartitionBy, Processor, Processors, partition_of},
    processor_stage::{Forwarded, LastProcessorStage, ProcessorStage, Route, Work, no_batcher},
};
use crate::{
    backoff::{Backoff, Jitter},
    builder::StartError,
    dispatcher::{DemandDispatcher, PartitionDispatcher},
    graph::Graph,
    pipeline::{Ends, Pipeline},
    stage::{
        AsConsumer, AsProducer, AsProducerConsumer, Origin, Producer, RateLimit, RateLimiter,
        SharedLimiter, Stage, Target,
    },
    subscription::{Cancel, SubscribeOptions},
    telemetry::{StageLabels, Telemetry, stage_labels},
};

/// A builder of a pipeline of [messages](Message): sources, processors, and batchers.
///
/// The stages are connected like this; a pipeline without batchers ends with its processors.
///
/// ```text
/// sources --> processors --> batcher (one for each name) --> batch processors
/// ```
///
/// It is the topology of Broadway. A stage that fails is restarted alone, and the messages that it held
/// are acknowledged as failed.
#[must_use]
pub struct MessagePipelineBuilder<S> {
    graph: Graph,
    options: Options,
    state: S,
}

/// The options of the whole pipeline.
struct Options {
    resubscribe: Backoff,
    restarts: (usize, Duration),
    rate_limit: Option<RateLimit>,
}

/// The state of a builder without sources.
#[derive(Debug)]
pub struct NoSource(());

/// The state of a builder with sources of messages with the data `T`.
pub struct Sources<T> {
    sources: Vec<AddSource<T>>,
    partition_by: Option<PartitionBy<T>>,
}

/// The state of a builder whose processors turn messages with the data `T` into `U`.
pub struct Handled<T, U> {
    sources: Sources<T>,
    partitions: Option<(PartitionBy<T>, usize)>,
    processors: AddProcessors<T, U>,
}

/// The state of a builder whose batchers are named by `N`, and that has none yet.
pub struct Routed<T, U, N> {
    handled: Handled<T, U>,
    route: Arc<dyn Fn(&U) -> N + Send + Sync>,
}

/// The state of a builder with batchers that are named by `N`.
pub struct Batched<T, U, N> {
    routed: Routed<T, U, N>,
    batchers: Vec<(N, AddBatcher<T, U>)>,
}

/// Adds a source to a graph.
type AddSource<T> =
    Box<dyn FnOnce(&mut Adding<'_>, SourcePlan<T>) -> Arc<dyn SourceHandle<T>> + Send>;

/// How often a source is restarted.
enum Restarts {
    /// As often as its stage says.
    OfStage,
    /// As often as the pipeline says, which may be said after the source was added.
    OfPipeline,
}

/// The number of a source, the limit that it shares, and the partitions of the processors.
struct SourcePlan<T> {
    number: usize,
    limiter: Option<SharedLimiter>,
    partitions: Option<(PartitionBy<T>, usize)>,
}

/// Adds processors to a graph, which take from these sources. They are the last layer unless they have
/// a route to a number of batchers.
type AddProcessors<T, U> = Box<
    dyn FnOnce(
            &mut Adding<'_>,
            &[Arc<dyn SourceHandle<T>>],
            Option<&(Route<U>, usize)>,
        ) -> Vec<Arc<dyn Target<Forwarded<T, U>>>>
        + Send,
>;

/// Adds a batcher to a graph, which takes from these processors.
type AddBatcher<T, U> =
    Box<dyn FnOnce(&mut Adding<'_>, &[Arc<dyn Target<Forwarded<T, U>>>], BatcherPlan<T>) + Send>;

/// A batcher's place among the others, and the partitions of the whole pipeline.
struct BatcherPlan<T> {
    name: Arc<str>,
    /// Its number, unless it is the only one.
    number: Option<usize>,
    partition_by: Option<PartitionBy<T>>,
}

/// A graph to which stages are added, and their options.
struct Adding<'a> {
    graph: &'a mut Graph,
    options: &'a Options,
}

impl Adding<'_> {
    /// A stage with the options of the pipeline.
    fn stage<S: Send + 'static, E: 'static>(
        &self,
        name: String,
        make: impl FnMut() -> S + Send + 'static,
    ) -> Stage<S, E> {
        let (restarts, within) = self.options.restarts;
        Stage::restarting(make).named(name).max_restarts(restarts, within)
    }

    /// The options of a subscription between two layers.
    fn subscribing(&self, demand: SubscribeOptions, partition: Option<usize>) -> SubscribeOptions {
        let options = demand.cancel(Cancel::Reconnect(self.options.resubscribe));
        match partition {
            Some(partition) => options.partition(partition),
            None => options,
        }
    }

    fn labels(&self, layer: &str) -> StageLabels {
        stage_labels(self.graph.name(), layer)
    }

    fn message_metrics(&self, layer: &str) -> MessageMetrics {
        MessageMetrics::register(self.graph.recorder(), &self.labels(layer))
    }
}

impl Pipeline {
    /// A builder for a pipeline of [messages](Message) with this name, whose sources receive the outcome
    /// of each. The name is used as a metric label; keep its cardinality low.
    ///
    /// The module [`processing`](crate::processing) has an example.
    pub fn of_messages(name: impl Into<Arc<str>>) -> MessagePipelineBuilder<NoSource> {
        let interval = Duration::from_millis(100);
        let options = Options {
            resubscribe: Backoff::new(interval, interval).jitter(Jitter::None),
            restarts: (3, Duration::from_secs(5)),
            rate_limit: None,
        };
        MessagePipelineBuilder { graph: Graph::new(name), options, state: NoSource(()) }
    }
}

impl<S> MessagePipelineBuilder<S> {
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

    /// How often each stage is restarted within a time before the pipeline fails. Default 3 times
    /// within 5 seconds.
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.options.restarts = (restarts, within);
        self
    }

    /// How long a processor waits before it tries to subscribe again to a source that has failed.
    /// Default 100 milliseconds.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn resubscribe_interval(mut self, interval: Duration) -> Self {
        self.options.resubscribe = Backoff::new(interval, interval).jitter(Jitter::None);
        self
    }

    /// The maximum number of messages that leave all sources together per interval. Default no limit.
    /// It can be changed at runtime with [`MessagesHandle::update_rate_limit`]. Sources then have no rate
    /// limits of their own.
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.options.rate_limit = Some(limit);
        self
    }

    fn with_state<Q>(self, change: impl FnOnce(S) -> Q) -> MessagePipelineBuilder<Q> {
        let Self { graph, options, state } = self;
        MessagePipelineBuilder { graph, options, state: change(state) }
    }
}

impl MessagePipelineBuilder<NoSource> {
    /// Adds the source of the messages: a producer of them. It is not restarted; if it fails, so does
    /// the pipeline.
    pub fn source<T, S>(self, source: S) -> MessagePipelineBuilder<Sources<T>>
    where
        T: Send + Sync + 'static,
        S: Producer<Event = Message<T>>,
    {
        self.source_with(Stage::new(source))
    }

    /// Adds the source of the messages with options. [`Stage::restarting`] makes it again when it fails.
    pub fn source_with<T, S>(
        self,
        source: Stage<S, Message<T>>,
    ) -> MessagePipelineBuilder<Sources<T>>
    where
        T: Send + Sync + 'static,
        S: Producer<Event = Message<T>>,
    {
        let state = |_| Sources { sources: Vec::new(), partition_by: None };
        self.with_state(state).and_source_with(source)
    }

    /// Adds this many sources, made by a function of their number, and made again when they fail.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn sources<T, S>(
        self,
        concurrency: usize,
        make: impl Fn(usize) -> S + Clone + Send + 'static,
    ) -> MessagePipelineBuilder<Sources<T>>
    where
        T: Send + Sync + 'static,
        S: Producer<Event = Message<T>>,
    {
        assert!(concurrency > 0, "a pipeline needs at least one source");
        let state = |_| Sources { sources: Vec::new(), partition_by: None };
        (0..concurrency).fold(self.with_state(state), |builder, n| {
            let make = make.clone();
            builder.add_source(Stage::restarting(move || make(n)), Restarts::OfPipeline)
        })
    }
}

impl<T: Send + Sync + 'static> MessagePipelineBuilder<Sources<T>> {
    /// Adds another source, of any kind, of messages with the same data.
    pub fn and_source<S: Producer<Event = Message<T>>>(self, source: S) -> Self {
        self.and_source_with(Stage::new(source))
    }

    /// Adds another source with options.
    pub fn and_source_with<S: Producer<Event = Message<T>>>(
        self,
        source: Stage<S, Message<T>>,
    ) -> Self {
        self.add_source(source, Restarts::OfStage)
    }

    fn add_source<S: Producer<Event = Message<T>>>(
        mut self,
        source: Stage<S, Message<T>>,
        restarts: Restarts,
    ) -> Self {
        self.state.sources.push(Box::new(move |adding, plan| {
            let mut stage = source.on_discard(overflowed);
            if let Restarts::OfPipeline = restarts {
                let (restarts, within) = adding.options.restarts;
                stage = stage.max_restarts(restarts, within);
            }
            if stage.name.is_none() {
                stage = stage.named(format!("source_{}", plan.number));
            }
            if let Some(limiter) = plan.limiter {
                stage = stage.shares(limiter);
            }
            let stage = match plan.partitions {
                Some((partition, count)) => stage.dispatcher(move || {
                    let partition = partition.clone();
                    PartitionDispatcher::by_key(0..count, move |message: &Message<T>| {
                        // The processor fails a message for which the function panics.
                        let number = contained_now(|| partition(message)).unwrap_or_default();
                        Some(place(number, count))
                    })
                }),
                None => stage.default_dispatcher(|| DemandDispatcher::new().spread()),
            };
            Arc::new(adding.graph.add(stage.map(AsProducer)))
        }));
        self
    }

    /// Messages with the same key are handled by the same processor and by the same batch processor
    /// of each batcher, in the order in which a source emits them. See
    /// [`Processors::partition_by`](super::Processors::partition_by), which is for the processors alone.
    pub fn partition_by<K: Hash>(
        mut self,
        key: impl Fn(&Message<T>) -> K + Send + Sync + 'static,
    ) -> Self {
        self.state.partition_by = Some(partition_of(key));
        self
    }

    /// Adds the processors.
    pub fn processors<P: Processor<T>>(
        self,
        processors: Processors<T, P>,
    ) -> MessagePipelineBuilder<Handled<T, P::Output>> {
        self.with_state(|sources| {
            let partition_by = processors.partition_by.clone().or(sources.partition_by.clone());
            let count = processors.concurrency;
            let partitions = partition_by.clone().map(|partition| (partition, count));
            let processors =
                Box::new(move |adding: &mut Adding<'_>, sources: &[_], next: Option<&_>| {
                    add_processors(adding, processors, partition_by.as_ref(), sources, next)
                });
            Handled { sources, partitions, processors }
        })
    }
}

/// The place of a partition's number among so many.
fn place(number: u64, count: usize) -> usize {
    usize::try_from(number % count as u64).expect("the remainder fits a usize")
}

fn add_processors<T, P>(
    adding: &mut Adding<'_>,
    processors: Processors<T, P>,
    partition_by: Option<&PartitionBy<T>>,
    sources: &[Arc<dyn SourceHandle<T>>],
    next: Option<&(Route<P::Output>, usize)>,
) -> Vec<Arc<dyn Target<Forwarded<T, P::Output>>>>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    let Processors { processor, concurrency, mut demand, tries, .. } = processors;
    if P::ONE_AT_A_TIME {
        demand = demand.max_demand(1).min_demand(0);
    }
    let (processor, metrics) = (Arc::new(processor), adding.message_metrics("processors"));
    let is_partitioned = partition_by.is_some();
    // The messages of a partition wait for the one before. A message that has left any processor comes back to
    // the first one that is free.
    let may_leave = P::ONE_AT_A_TIME && !is_partitioned && next.is_none();
    let places = may_leave.then(|| Arc::new(Semaphore::new(concurrency)));
    let mut targets: Vec<Arc<dyn Target<Forwarded<T, P::Output>>>> = Vec::new();
    for index in 0..concurrency {
        let work = Work {
            processor: processor.clone(),
            tries,
            metrics: metrics.clone(),
            partition_by: partition_by.cloned(),
            index,
            places: places.clone(),
        };
        let name = format!("processor_{index}");
        let options = adding.subscribing(demand.clone(), is_partitioned.then_some(index));
        match next {
            None => {
                let make = move || LastProcessorStage::new(work.clone());
                let stage = adding.stage(name, make);
                let slot = adding.graph.add(stage).slot;
                for source in sources {
                    slot.plan(source.target(), options.clone(), Origin::planned());
                }
            }
            Some((route, batchers)) => {
                let (route, batchers) = (route.clone(), *batchers);
                let make = move || {
                    let (work, route) = (work.clone(), route.clone());
                    AsProducerConsumer(ProcessorStage::new(work, route))
                };
                let mut stage = adding.stage(name, make);
                if batchers > 1 {
                    stage = stage.dispatcher(move || {
                        PartitionDispatcher::by_key(0..batchers, |message: &Forwarded<_, _>| {
                            Some(message.to)
                        })
                    });
                }
                let slot = adding.graph.add(stage).slot;
                for source in sources {
                    slot.plan(source.target(), options.clone(), Origin::planned());
                }
                targets.push(slot);
            }
        }
    }
    targets
}

impl<T: Send + Sync + 'static, U: Send + 'static> MessagePipelineBuilder<Handled<T, U>> {
    /// Ends the pipeline with a batcher and its batch processors.
    pub fn batcher<B, K>(
        self,
        batcher: Batcher<T, U, B, K>,
    ) -> MessagePipelineBuilder<Batched<T, U, OnlyBatcher>>
    where
        B: BatchProcessor<T, U>,
        K: Eq + Hash + Clone + Send + Sync + 'static,
    {
        self.route(|_| OnlyBatcher).batcher(OnlyBatcher, batcher)
    }

    /// Sends what the processors made of the messages to several batchers, by their names. They are of
    /// any type, usually an enum. A message for a batcher that was not added fails, and so does one for
    /// which the function panics.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline,
    ///     processing::{Batch, Batcher, Message, Processors},
    ///     source::from_iter,
    /// };
    ///
    /// #[derive(Clone, Debug, PartialEq)]
    /// enum Parity {
    ///     Even,
    ///     Odd,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let print = async |batch: &mut Batch<u64, u64>| {
    ///     println!("{}: {:?}", batch.info().batcher, batch.outputs().collect::<Vec<_>>());
    ///     Ok(())
    /// };
    /// let mut pipeline = Pipeline::of_messages("numbers")
    ///     .source(from_iter((1..=40).map(Message::unacknowledged)))
    ///     .processors(Processors::from_fn(async |n: &mut Message<u64>| Ok(**n)))
    ///     .route(|n| if n % 2 == 0 { Parity::Even } else { Parity::Odd })
    ///     .batcher(Parity::Even, Batcher::from_fn(print).size(5))
    ///     .batcher(Parity::Odd, Batcher::from_fn(print).size(10))
    ///     .start()?;
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn route<N>(
        self,
        route: impl Fn(&U) -> N + Send + Sync + 'static,
    ) -> MessagePipelineBuilder<Routed<T, U, N>> {
        let route = Arc::new(route);
        self.with_state(|handled| Routed { handled, route })
    }

    /// Starts all stages, each in a task of its own.
    ///
    /// The pipeline ends when all its sources have ended and everything has been handled and
    /// acknowledged, when it is drained, or when a stage has failed too often.
    ///
    /// # Errors
    ///
    /// As for [`Graph::start`].
    pub fn start(self) -> Result<Pipeline, StartError> {
        Ok(self.start_with_handle()?.0)
    }

    /// The same with a handle of the sources, to push messages and to change the rate limit.
    ///
    /// # Errors
    ///
    /// As for [`Graph::start`].
    pub fn start_with_handle(self) -> Result<(Pipeline, MessagesHandle<T>), StartError> {
        let Self { graph, options, state } = self;
        start(graph, &options, state, None, |_, _| ())
    }
}

/// The name of the batcher of a pipeline that has only one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OnlyBatcher;

impl fmt::Debug for OnlyBatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("default")
    }
}

impl<T, U, N> MessagePipelineBuilder<Routed<T, U, N>>
where
    T: Send + Sync + 'static,
    U: Send + 'static,
    N: Clone + PartialEq + fmt::Debug + Send + Sync + 'static,
{
    /// Adds the first batcher, with this name, and its batch processors.
    pub fn batcher<B, K>(
        self,
        name: N,
        batcher: Batcher<T, U, B, K>,
    ) -> MessagePipelineBuilder<Batched<T, U, N>>
    where
        B: BatchProcessor<T, U>,
        K: Eq + Hash + Clone + Send + Sync + 'static,
    {
        let batched = self.with_state(|routed| Batched { routed, batchers: Vec::new() });
        batched.batcher(name, batcher)
    }
}

impl<T, U, N> MessagePipelineBuilder<Batched<T, U, N>>
where
    T: Send + Sync + 'static,
    U: Send + 'static,
    N: Clone + PartialEq + fmt::Debug + Send + Sync + 'static,
{
    /// Adds a batcher with this name, and its batch processors.
    pub fn batcher<B, K>(mut self, name: N, batcher: Batcher<T, U, B, K>) -> Self
    where
        B: BatchProcessor<T, U>,
        K: Eq + Hash + Clone + Send + Sync + 'static,
    {
        let add: AddBatcher<T, U> = Box::new(move |adding, processors, plan| {
            add_batcher(adding, batcher, processors, plan);
        });
        self.state.batchers.push((name, add));
        self
    }

    /// Starts all stages, each in a task of its own.
    ///
    /// The pipeline ends when all its sources have ended and everything has been handled and
    /// acknowledged, when it is drained, or when a stage has failed too often.
    ///
    /// # Errors
    ///
    /// As for [`Graph::start`]; also if two batchers have the same name, as two stages would then.
    pub fn start(self) -> Result<Pipeline, StartError> {
        Ok(self.start_with_handle()?.0)
    }

    /// The same with a handle of the sources, to push messages and to change the rate limit.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn start_with_handle(self) -> Result<(Pipeline, MessagesHandle<T>), StartError> {
        let Self { graph, options, state: Batched { routed, batchers } } = self;
        let Routed { handled, route } = routed;
        let names: Vec<N> = batchers.iter().map(|(name, _)| name.clone()).collect();
        let shown = |name: &N| format!("{name:?}").trim_matches('"').to_owned();
        let known = names.iter().map(shown).collect::<Vec<_>>().join(", ");
        let count = names.len();
        let route: Route<U> = Arc::new(move |output| {
            let name = route(output);
            let place = names.iter().position(|known| *known == name);
            place.ok_or_else(|| no_batcher(&shown(&name), &known))
        });
        let partition_by = handled.sources.partition_by.clone();
        start(graph, &options, handled, Some(&(route, count)), |adding, targets| {
            for (number, (name, add)) in batchers.into_iter().enumerate() {
                let plan = BatcherPlan {
                    name: shown(&name).into(),
                    number: (count > 1).then_some(number),
                    partition_by: partition_by.clone(),
                };
                add(adding, targets, plan);
            }
        })
    }
}

fn add_batcher<T, U, B, K>(
    adding: &mut Adding<'_>,
    batcher: Batcher<T, U, B, K>,
    processors: &[Arc<dyn Target<Forwarded<T, U>>>],
    plan: BatcherPlan<T>,
) where
    T: Send + Sync + 'static,
    U: Send + 'static,
    B: BatchProcessor<T, U>,
    K: Eq + Hash + Clone + Send + Sync + 'static,
{
    let Batcher { processor, concurrency, limits, max_demand, key, partition_by, within } = batcher;
    let BatcherPlan { name, number, partition_by: of_all } = plan;
    let partition_by = partition_by.or(of_all).map(|partition| (partition, concurrency));
    let is_partitioned = partition_by.is_some();
    let messages = adding.message_metrics(&name);
    let batches = BatchMetrics::register(adding.graph.recorder(), &adding.labels(&name));
    let demand = SubscribeOptions::new().max_demand(max_demand.unwrap_or(limits.size));
    let of_stage = (messages.clone(), batches.clone());
    let stage_name = name.clone();
    let make = move || {
        let (messages, batches) = of_stage.clone();
        let (limits, key, partition_by) = (limits.clone(), key.clone(), partition_by.clone());
        let name = stage_name.clone();
        AsProducerConsumer(BatcherStage::new(name, limits, key, partition_by, messages, batches))
    };
    let mut stage = adding.stage(format!("batcher_{name}"), make);
    if is_partitioned {
        stage = stage.dispatcher(move || {
            let of_batch = |batch: &Batch<T, U>| batch.info().partition;
            PartitionDispatcher::by_key(0..concurrency, of_batch)
        });
    }
    let slot = adding.graph.add(stage).slot;
    for processor in processors {
        let options = adding.subscribing(demand.clone(), number);
        slot.plan(processor.clone(), options, Origin::planned());
    }
    let processor = Arc::new(processor);
    for index in 0..concurrency {
        let (processor, messages, batches) = (processor.clone(), messages.clone(), batches.clone());
        let make = move || {
            let (processor, messages, batches) =
                (processor.clone(), messages.clone(), batches.clone());
            let types = PhantomData;
            AsConsumer(BatchProcessorStage { processor, index, within, messages, batches, types })
        };
        let stage = adding.stage(format!("batch_processor_{name}_{index}"), make);
        let one = SubscribeOptions::new().max_demand(1).min_demand(0);
        let options = adding.subscribing(one, is_partitioned.then_some(index));
        adding.graph.add(stage).slot.plan(slot.clone(), options, Origin::planned());
    }
}

/// Adds all stages and starts them.
fn start<T, U>(
    mut graph: Graph,
    options: &Options,
    handled: Handled<T, U>,
    next: Option<&(Route<U>, usize)>,
    add_batchers: impl FnOnce(&mut Adding<'_>, &[Arc<dyn Target<Forwarded<T, U>>>]),
) -> Result<(Pipeline, MessagesHandle<T>), StartError>
where
    T: Send + Sync + 'static,
{
    let limiter = |limit| Arc::new(Mutex::new(RateLimiter::new(limit, Instant::now())));
    let limiter = options.rate_limit.map(limiter);
    let Handled { sources, partitions, processors } = handled;
    let mut adding = Adding { graph: &mut graph, options };
    let mut handles = Vec::new();
    for add in sources.sources {
        let (number, limiter, partitions) = (handles.len(), limiter.clone(), partitions.clone());
        handles.push(add(&mut adding, SourcePlan { number, limiter, partitions }));
    }
    let targets = processors(&mut adding, &handles, next);
    add_batchers(&mut adding, &targets);
    let pipeline = graph.start_with(Ends::AfterSources)?;
    Ok((pipeline, MessagesHandle::new(handles, limiter)))
}

impl<S> fmt::Debug for MessagePipelineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MessagePipelineBuilder").field(&self.graph).finish()
    }
}

impl<T> fmt::Debug for Sources<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

impl<T, U> fmt::Debug for Handled<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handled").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl<T, U, N> fmt::Debug for Routed<T, U, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routed").field("handled", &self.handled).finish_non_exhaustive()
    }
}

impl<T, U, N: fmt::Debug> fmt::Debug for Batched<T, U, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.batchers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Batched").field("batchers", &names).finish_non_exhaustive()
    }
}
