//! Test stages, each in a pipeline of its own, so that the case decides when they subscribe.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    stage::{
        Caller, ConsumerHandle, Emitter, HandleCall, HandleInfo, ProducerConsumer,
        ProducerConsumerHandle, ProducerHandle, Stage, StageContext, StageHandle,
    },
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    testkit::{
        Recording, RecordingConsumer, Script, ScriptedProducer, recording, scripted, settle,
    },
};
use pipeline_test_support::Log;

/// `auto(max,min)`, and the demand pair of any other subscription.
pub(crate) fn auto(max: usize, min: usize) -> SubscribeOptions {
    SubscribeOptions::new().max_demand(max).min_demand(min)
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

/// A producer controlled by the test.
pub(crate) struct Source<E: Send + 'static> {
    pub(crate) script: Script<E>,
    pub(crate) pipeline: Pipeline,
}

impl<E: Send + 'static> Source<E> {
    /// `silent`.
    pub(crate) fn silent() -> Self {
        Self::with(|stage| stage)
    }

    /// `silent`, with options.
    pub(crate) fn with(
        options: impl FnOnce(Stage<ScriptedProducer<E>, E>) -> Stage<ScriptedProducer<E>, E>,
    ) -> Self {
        let (producer, script) = scripted();
        Self::of(options(Stage::new(producer)), script)
    }

    /// Starts this producer.
    pub(crate) fn of(stage: Stage<ScriptedProducer<E>, E>, script: Script<E>) -> Self {
        let mut graph = Graph::new("source");
        graph.producer_with(stage.named("source"));
        Self { script, pipeline: graph.start().unwrap() }
    }

    pub(crate) fn handle(&self) -> &ProducerHandle<ScriptedProducer<E>> {
        self.script.handle()
    }

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

impl Source<u64> {
    /// `finite k`, which also serves as `counter` where `k` exceeds the demand.
    pub(crate) fn finite(k: u64) -> Self {
        Self::finite_with(k, |stage| stage)
    }

    /// `finite k`, with options.
    pub(crate) fn finite_with(
        k: u64,
        options: impl FnOnce(Stage<ScriptedProducer<u64>, u64>) -> Stage<ScriptedProducer<u64>, u64>,
    ) -> Self {
        let (producer, script) = scripted();
        Self::of(options(Stage::new(producer.from_iter(0..k))), script)
    }
}

/// A consumer that records its events.
pub(crate) struct Reader<E: Send + 'static> {
    pub(crate) recording: Recording<E>,
    pub(crate) handle: ConsumerHandle<RecordingConsumer<E>>,
    _pipeline: Pipeline,
}

impl<E: Send + 'static> Reader<E> {
    /// An automatic consumer.
    pub(crate) fn auto() -> Self {
        Self::with(|consumer, _| consumer)
    }

    /// A manual consumer.
    pub(crate) fn raw() -> Self {
        Self::with(|consumer, _| consumer.manual())
    }

    pub(crate) fn with(
        options: impl FnOnce(RecordingConsumer<E>, &Recording<E>) -> RecordingConsumer<E>,
    ) -> Self {
        let (consumer, recording) = recording();
        let mut graph = Graph::new("reader");
        let handle = graph.consumer("reader", options(consumer, &recording));
        Self { recording, handle, _pipeline: graph.start().unwrap() }
    }

    pub(crate) async fn subscribe<P, In>(
        &self,
        to: &StageHandle<P, In, E>,
        options: SubscribeOptions,
    ) where
        P: Send + 'static,
        In: Send + 'static,
    {
        self.handle.subscribe(to, options).await.unwrap();
        settle().await;
    }

    /// A manual consumer of this stage.
    pub(crate) async fn raw_of<P, In>(to: &StageHandle<P, In, E>) -> Self
    where
        P: Send + 'static,
        In: Send + 'static,
    {
        let reader = Self::raw();
        reader.subscribe(to, SubscribeOptions::new()).await;
        reader
    }

    /// Asks, and returns the messages received in response.
    pub(crate) async fn asks(&self, events: usize) -> Vec<Vec<E>> {
        self.recording.allow(events);
        settle().await;
        self.got()
    }

    /// The messages received since the last call.
    pub(crate) fn got(&self) -> Vec<Vec<E>> {
        self.recording.batches()
    }

    /// The ends of its subscriptions since the last call.
    pub(crate) fn cancelled(&self) -> Vec<String> {
        self.recording.cancelled().into_iter().map(|(_, how)| how.to_string()).collect()
    }
}

/// The records of a [`Relay`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Events(Vec<u64>),
    Info(String),
    Cancelled(String),
    Terminated(String),
}

/// A producer-consumer that records what it receives.
pub(crate) struct RelayStage {
    shared: Arc<Shared>,
    each: Box<dyn FnMut(u64) -> Vec<u64> + Send>,
    demand_control: DemandControl,
    later: bool,
    farewell: Vec<u64>,
}

#[derive(Default)]
struct Shared {
    handle: OnceLock<ProducerConsumerHandle<RelayStage>>,
    seen: Mutex<Vec<Seen>>,
    upstream: Mutex<Option<Subscription>>,
}

impl RelayStage {
    /// Makes it manual.
    pub(crate) fn manual(mut self) -> Self {
        self.demand_control = DemandControl::Manual;
        self
    }

    /// Makes it emit from `handle_info`, through a message to itself.
    pub(crate) fn later(mut self) -> Self {
        self.later = true;
        self
    }

    /// Makes it emit these events when one of its subscriptions ends.
    pub(crate) fn farewell(mut self, events: impl IntoIterator<Item = u64>) -> Self {
        self.farewell = events.into_iter().collect();
        self
    }

    fn note(&self, seen: Seen) {
        self.shared.seen.lock().push(seen);
    }
}

impl ProducerConsumer for RelayStage {
    type In = u64;
    type Out = u64;

    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        self.shared.handle.set(context.handle().clone()).unwrap();
        Ok(())
    }

    async fn handle_events(
        &mut self,
        events: Vec<u64>,
        _from: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.note(Seen::Events(events.clone()));
        let results = events.into_iter().flat_map(&mut self.each);
        if self.later {
            self.shared.handle.get().unwrap().async_info(results.collect::<Vec<_>>())?;
        } else {
            out.emit_all(results);
        }
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        from: &Subscription,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<DemandControl, ExitReason> {
        *self.shared.upstream.lock() = Some(from.clone());
        Ok(self.demand_control)
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        _from: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.note(Seen::Cancelled(ended.to_string()));
        out.emit_all(self.farewell.drain(..));
        Ok(())
    }

    async fn terminate(&mut self, reason: &ExitReason) {
        self.note(Seen::Terminated(reason.to_string()));
    }
}

impl HandleInfo<String, u64> for RelayStage {
    async fn handle_info(
        &mut self,
        name: String,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.note(Seen::Info(name));
        Ok(())
    }
}

impl HandleInfo<Vec<u64>, u64> for RelayStage {
    async fn handle_info(
        &mut self,
        events: Vec<u64>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

impl HandleCall<Vec<u64>, u64> for RelayStage {
    type Reply = ();

    async fn handle_call(
        &mut self,
        events: Vec<u64>,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        caller.reply(());
        out.emit_all(events);
        Ok(())
    }
}

/// A running [`RelayStage`].
pub(crate) struct Relay {
    shared: Arc<Shared>,
    pub(crate) pipeline: Pipeline,
}

impl Relay {
    /// A relay that emits these events for each one.
    pub(crate) fn new(each: impl FnMut(u64) -> Vec<u64> + Send + 'static) -> Self {
        Self::with(each, Stage::new)
    }

    /// A relay that emits the events it receives.
    pub(crate) fn identity() -> Self {
        Self::new(|n| vec![n])
    }

    /// A relay that emits these events for each one, with options.
    pub(crate) fn with(
        each: impl FnMut(u64) -> Vec<u64> + Send + 'static,
        options: impl FnOnce(RelayStage) -> Stage<RelayStage, u64>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let stage = RelayStage {
            shared: shared.clone(),
            each: Box::new(each),
            demand_control: DemandControl::Automatic,
            later: false,
            farewell: Vec::new(),
        };
        let mut graph = Graph::new("relay");
        graph.producer_consumer_with(options(stage).named("relay"));
        Self { shared, pipeline: graph.start().unwrap() }
    }

    pub(crate) fn handle(&self) -> &ProducerConsumerHandle<RelayStage> {
        self.shared.handle.get().unwrap()
    }

    /// Subscribes it to a source.
    pub(crate) async fn subscribe(&self, to: &Source<u64>, options: SubscribeOptions) {
        self.handle().subscribe(to.handle(), options).await.unwrap();
        settle().await;
    }

    /// Its newest subscription to a source.
    pub(crate) fn upstream(&self) -> Subscription {
        self.shared.upstream.lock().clone().unwrap()
    }

    /// Makes it emit these events, whatever the demand.
    pub(crate) async fn emit(&self, events: impl IntoIterator<Item = u64>) {
        self.handle().call(events.into_iter().collect::<Vec<_>>()).await.unwrap();
        settle().await;
    }

    /// `sync_info` of this name.
    pub(crate) async fn mark(&self, name: &str) {
        self.handle().sync_info(name.to_owned()).await.unwrap();
        settle().await;
    }

    /// The records since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock())
    }

    /// The events handled since the last call. Panics on any other record.
    pub(crate) fn handled(&self) -> Vec<Vec<u64>> {
        let events = |seen| match seen {
            Seen::Events(events) => events,
            other => panic!("expected events only, found {other:?}"),
        };
        self.seen().into_iter().map(events).collect()
    }

    /// `count`.
    pub(crate) async fn count(&self) -> usize {
        self.handle().estimate_buffered_count().await.unwrap()
    }
}
