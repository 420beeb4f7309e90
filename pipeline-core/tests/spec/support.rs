//! The notation of docs/spec/stages.md, section 5: stages, each in a pipeline of its own, so that the
//! case decides when they subscribe.

use std::{fmt, ops::Deref, sync::Arc};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    report::{PipelineReport, StageReport},
    stage::{Consumer, ConsumerHandle, Emitter, HandleInfo, Producer, Stage, StageHandle},
    subscription::{Cancellation, SubscribeOptions, Subscription},
    testkit::{
        Recording, RecordingConsumer, Script, ScriptedProducer, recording, scripted, settle,
    },
};
use pipeline_test_support::Log;

/// No demand.
pub(crate) const NO_DEMAND: [usize; 0] = [];

/// No events.
pub(crate) const NO_CHUNK: [Vec<u64>; 0] = [];

/// Options of `auto(max,min)`.
pub(crate) fn auto(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
}

/// `silent`.
pub(crate) fn silent() -> Source<u64> {
    let (producer, script) = scripted();
    Source::start(Stage::new(producer), script)
}

/// `silent`, with options.
pub(crate) fn silent_with<E: Send + 'static>(
    options: impl FnOnce(Stage<ScriptedProducer<E>, E>) -> Stage<ScriptedProducer<E>, E>,
) -> Source<E> {
    let (producer, script) = scripted();
    Source::start(options(Stage::new(producer)), script)
}

/// `finite k`. It is also the `counter` for a consumer that takes k events.
pub(crate) fn finite(k: u64) -> Source<u64> {
    counting(0..k)
}

/// `finite k`, with options.
pub(crate) fn finite_with(
    k: u64,
    options: impl FnOnce(Stage<ScriptedProducer<u64>, u64>) -> Stage<ScriptedProducer<u64>, u64>,
) -> Source<u64> {
    let (producer, script) = scripted();
    Source::start(options(Stage::new(producer.from_iter(0..k))), script)
}

/// A producer that emits exactly as many of these as requested.
pub(crate) fn counting<E: Send + 'static>(
    events: impl IntoIterator<Item = E, IntoIter: Send + 'static>,
) -> Source<E> {
    let (producer, script) = scripted();
    Source::start(Stage::new(producer.from_iter(events)), script)
}

/// A consumer, to be subscribed with `auto(max,min)`.
pub(crate) fn automatic<E: Send + 'static>() -> Sink<E> {
    Sink::start(recording())
}

/// `manual`, and `raw` too.
pub(crate) fn manual<E: Send + 'static>() -> Sink<E> {
    consumer_with(|consumer, _| consumer.manual())
}

/// A manual consumer of this stage.
pub(crate) async fn manual_of<P, In, E>(to: &StageHandle<P, In, E>) -> Sink<E>
where
    P: Send + 'static,
    In: Send + 'static,
    E: Send + 'static,
{
    let consumer = manual();
    consumer.subscribe(to, SubscribeOptions::new()).await;
    consumer
}

/// A consumer with options, which may read its recording.
pub(crate) fn consumer_with<E: Send + 'static>(
    options: impl FnOnce(RecordingConsumer<E>, &Recording<E>) -> RecordingConsumer<E>,
) -> Sink<E> {
    let (consumer, recording) = recording();
    Sink::start((options(consumer, &recording), recording))
}

/// A consumer that calls a function with each chunk.
pub(crate) fn acting(
    act: impl FnMut(&[u64], &Subscription) -> Result<(), ExitReason> + Send + 'static,
) -> Sink<u64> {
    consumer_with(|consumer, _| consumer.on_events(act))
}

/// A stage in a pipeline of its own.
pub(crate) fn alone<H>(add: impl FnOnce(&mut Graph) -> H) -> (H, Pipeline) {
    let mut graph = Graph::new("alone");
    let handle = add(&mut graph);
    (handle, graph.start().unwrap())
}

/// A running scripted producer.
pub(crate) struct Source<E: Send + 'static> {
    script: Script<E>,
    pub(crate) pipeline: Pipeline,
}

impl<E: Send + 'static> Source<E> {
    pub(crate) fn start(stage: Stage<ScriptedProducer<E>, E>, script: Script<E>) -> Self {
        let (_, pipeline) = alone(|graph| graph.producer_with(stage.named("source")));
        Self { script, pipeline }
    }

    /// Emits, and waits for the effects.
    pub(crate) async fn emit(&self, events: impl IntoIterator<Item = E>) {
        self.script.emit(events).await;
        settle().await;
    }

    /// `sync_info` of this name.
    pub(crate) async fn mark(&self, name: &str) {
        self.script.mark(name).await;
        settle().await;
    }

    /// `count`.
    pub(crate) async fn count(&self) -> usize {
        self.handle().estimate_buffered_count().await.unwrap()
    }
}

impl<E: Send + 'static> Deref for Source<E> {
    type Target = Script<E>;

    fn deref(&self) -> &Script<E> {
        &self.script
    }
}

/// A running recording consumer.
pub(crate) struct Sink<E: Send + 'static> {
    recording: Recording<E>,
    pub(crate) handle: ConsumerHandle<RecordingConsumer<E>>,
    pub(crate) pipeline: Pipeline,
}

impl<E: Send + 'static> Sink<E> {
    fn start((consumer, recording): (RecordingConsumer<E>, Recording<E>)) -> Self {
        let (handle, pipeline) = alone(|graph| graph.consumer("consumer", consumer));
        Self { recording, handle, pipeline }
    }

    /// Subscribes, and waits for the effects.
    pub(crate) async fn subscribe<P, PIn>(
        &self,
        producer: &StageHandle<P, PIn, E>,
        options: SubscribeOptions,
    ) -> Subscription
    where
        P: Send + 'static,
        PIn: Send + 'static,
    {
        let subscription = self.handle.subscribe(producer, options).await.unwrap();
        settle().await;
        subscription
    }

    /// Asks for events, and waits for the effects.
    pub(crate) async fn ask(&self, events: usize) {
        self.recording.allow(events);
        settle().await;
    }

    /// Asks for events, and returns the batches received in response.
    pub(crate) async fn asks(&self, events: usize) -> Vec<Vec<E>> {
        self.ask(events).await;
        self.chunks()
    }

    /// `alive`, or why it ended.
    pub(crate) async fn fate(&mut self) -> String {
        fate(&self.handle, &mut self.pipeline).await
    }
}

impl<E: Send + 'static> Deref for Sink<E> {
    type Target = Recording<E>;

    fn deref(&self) -> &Recording<E> {
        &self.recording
    }
}

/// `alive`, or why the only stage of a pipeline ended.
pub(crate) async fn fate<S, In, Out>(
    handle: &StageHandle<S, In, Out>,
    pipeline: &mut Pipeline,
) -> String
where
    S: Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    if handle.is_running() {
        return "alive".to_owned();
    }
    only(&pipeline.join().await).reason.to_string()
}

/// The report of the only stage of a pipeline.
pub(crate) fn only(report: &PipelineReport) -> &StageReport {
    assert_eq!(report.stages.len(), 1);
    &report.stages[0]
}

/// The ended subscriptions and their reasons: `[(a, "down (normal)")]`.
pub(crate) fn ended(cancelled: Vec<(Subscription, Cancellation)>) -> Vec<(Subscription, String)> {
    cancelled.into_iter().map(|(which, how)| (which, how.to_string())).collect()
}

/// The reasons of the ended subscriptions.
pub(crate) fn reasons(cancelled: Vec<(Subscription, Cancellation)>) -> Vec<String> {
    cancelled.into_iter().map(|(_, how)| how.to_string()).collect()
}

/// The warnings and errors logged since the last call.
pub(crate) fn complaints(log: &Log) -> Vec<String> {
    let complains = |line: &String| line.starts_with("WARN") || line.starts_with("ERROR");
    log.take().into_iter().filter(complains).collect()
}

/// The warning of a producer whose full buffer has discarded this many events.
pub(crate) fn dropped(events: usize) -> String {
    format!("WARN discarded={events} message=the buffer is full, discarding stage=source")
}

/// A range as the list of its numbers.
pub(crate) fn list(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    numbers.collect()
}

/// The numbers of a range, each twice.
pub(crate) fn doubled(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    numbers.flat_map(|n| [n, n]).collect()
}

/// The reasons that the cases about cancel modes use.
pub(crate) fn four_reasons() -> [ExitReason; 4] {
    [ExitReason::Normal, ExitReason::Shutdown, ExitReason::ShutdownWith("x".into()), oops()]
}

/// `Oops`.
pub(crate) fn oops() -> ExitReason {
    ExitReason::failed("oops")
}

/// The calls of several stages' callbacks, in one order.
#[derive(Clone, Default)]
pub(crate) struct CallLog(Arc<Mutex<Vec<String>>>);

impl CallLog {
    pub(crate) fn note(&self, line: impl fmt::Display) {
        self.0.lock().push(line.to_string());
    }

    /// The calls since the last `take`.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// A `silent` producer that logs its callbacks.
pub(crate) struct LoggingProducer(pub(crate) CallLog);

impl Producer for LoggingProducer {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.note(format_args!("demand {demand}"));
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.0.note(format_args!("producer: {to:?} {ended}"));
        Ok(())
    }
}

/// The events to emit.
impl HandleInfo<Vec<u64>, u64> for LoggingProducer {
    async fn handle_info(
        &mut self,
        events: Vec<u64>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

/// A consumer that logs its callbacks. Before it handles events it lets all other tasks run, so
/// that the effects of its demand are logged first.
pub(crate) struct LoggingConsumer(pub(crate) CallLog);

impl Consumer for LoggingConsumer {
    type Event = u64;

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        settle().await;
        self.0.note(format_args!("handle {events:?}"));
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        self.0.note(format_args!("consumer: {from:?} {ended}"));
        Ok(())
    }

    async fn terminate(&mut self, reason: &ExitReason) {
        self.0.note(format_args!("consumer ends: {reason}"));
    }
}
