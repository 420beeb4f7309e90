//! The notation of docs/spec/stages.md, section 5.

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

/// No demand.
pub(crate) const NOTHING: [usize; 0] = [];

/// No events.
pub(crate) const NO_BATCH: [Vec<u64>; 0] = [];

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
pub(crate) fn silent_with(
    options: impl FnOnce(Stage<ScriptedProducer<u64>, u64>) -> Stage<ScriptedProducer<u64>, u64>,
) -> Source<u64> {
    let (producer, script) = scripted();
    Source::start(options(Stage::new(producer)), script)
}

/// `finite k`. It is also the `counter` for a consumer that takes k events.
pub(crate) fn finite(k: u64) -> Source<u64> {
    counting(0..k)
}

/// A producer that emits exactly as many of these as requested.
pub(crate) fn counting<E: Send + 'static>(
    events: impl IntoIterator<Item = E, IntoIter: Send + 'static>,
) -> Source<E> {
    let (producer, script) = scripted();
    Source::start(Stage::new(producer.from_iter(events)), script)
}

/// A consumer, to be subscribed with `auto(max,min)`.
pub(crate) fn automatic<E: Send + 'static>() -> Drain<E> {
    Drain::start(recording())
}

/// `manual`, and `raw` too.
pub(crate) fn manual() -> Drain<u64> {
    let (consumer, recording) = recording();
    Drain::start((consumer.manual(), recording))
}

/// A consumer that calls a function with each chunk.
pub(crate) fn acting(
    act: impl FnMut(&[u64], &Subscription) -> Result<(), ExitReason> + Send + 'static,
) -> Drain<u64> {
    let (consumer, recording) = recording();
    Drain::start((consumer.on_events(act), recording))
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
    fn start(stage: Stage<ScriptedProducer<E>, E>, script: Script<E>) -> Self {
        let (_, pipeline) = alone(|graph| graph.producer_with(stage));
        Self { script, pipeline }
    }
}

impl<E: Send + 'static> Deref for Source<E> {
    type Target = Script<E>;

    fn deref(&self) -> &Script<E> {
        &self.script
    }
}

/// A running recording consumer.
pub(crate) struct Drain<E: Send + 'static> {
    recording: Recording<E>,
    pub(crate) handle: ConsumerHandle<RecordingConsumer<E>>,
    pub(crate) pipeline: Pipeline,
}

impl<E: Send + 'static> Drain<E> {
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

    /// `alive`, or why it ended.
    pub(crate) async fn fate(&mut self) -> String {
        fate(&self.handle, &mut self.pipeline).await
    }
}

impl<E: Send + 'static> Deref for Drain<E> {
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

/// Emits, and waits for the effects.
pub(crate) async fn emit<E: Send + 'static>(
    script: &Script<E>,
    events: impl IntoIterator<Item = E>,
) {
    script.emit(events).await;
    settle().await;
}

/// `count n`.
pub(crate) async fn count<E: Send + 'static>(script: &Script<E>) -> usize {
    script.handle().estimate_buffered_count().await.unwrap()
}

/// The ended subscriptions and their reasons: `[(a, "down (normal)")]`.
pub(crate) fn ended(cancelled: Vec<(Subscription, Cancellation)>) -> Vec<(Subscription, String)> {
    cancelled.into_iter().map(|(which, how)| (which, how.to_string())).collect()
}

/// The reasons that the cases about cancel modes use.
pub(crate) fn four_reasons() -> [ExitReason; 4] {
    [ExitReason::Normal, ExitReason::Shutdown, ExitReason::ShutdownWith("x".into()), oops()]
}

/// `Oops`.
pub(crate) fn oops() -> ExitReason {
    ExitReason::failed("oops")
}

/// The records of several stages in one order.
#[derive(Clone, Default)]
pub(crate) struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    pub(crate) fn note(&self, line: impl fmt::Display) {
        self.0.lock().push(line.to_string());
    }

    /// The records since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// A `silent` producer that records its callbacks.
pub(crate) struct NotingProducer(pub(crate) Diary);

impl Producer for NotingProducer {
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
impl HandleInfo<Vec<u64>, u64> for NotingProducer {
    async fn handle_info(
        &mut self,
        events: Vec<u64>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

/// A consumer that records its callbacks. Before it handles events it lets all other tasks run, so
/// that the effects of its demand are recorded first.
pub(crate) struct NotingConsumer(pub(crate) Diary);

impl Consumer for NotingConsumer {
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
