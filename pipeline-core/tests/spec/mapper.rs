//! A producer-consumer in a pipeline of its own, so that the case decides when it subscribes.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    stage::{
        Caller, Emitter, HandleCall, HandleInfo, ProducerConsumer, ProducerConsumerHandle, Stage,
        StageContext,
    },
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    testkit::settle,
};

use crate::support::Source;

/// The records of a [`Mapper`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Events(Vec<u64>),
    Info(String),
    Cancelled(String),
    Terminated(String),
}

/// A producer-consumer that records what it receives.
pub(crate) struct MapperStage {
    shared: Arc<Shared>,
    each: Box<dyn FnMut(u64) -> Vec<u64> + Send>,
    demand_control: DemandControl,
    later: bool,
    farewell: Vec<u64>,
}

#[derive(Default)]
struct Shared {
    handle: OnceLock<ProducerConsumerHandle<MapperStage>>,
    seen: Mutex<Vec<Seen>>,
    upstream: Mutex<Option<Subscription>>,
}

impl MapperStage {
    /// The mapper with manual demand.
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

impl ProducerConsumer for MapperStage {
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

impl HandleInfo<String, u64> for MapperStage {
    async fn handle_info(
        &mut self,
        name: String,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        self.note(Seen::Info(name));
        Ok(())
    }
}

impl HandleInfo<Vec<u64>, u64> for MapperStage {
    async fn handle_info(
        &mut self,
        events: Vec<u64>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit_all(events);
        Ok(())
    }
}

impl HandleCall<Vec<u64>, u64> for MapperStage {
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

/// A running [`MapperStage`].
pub(crate) struct Mapper {
    shared: Arc<Shared>,
    pub(crate) pipeline: Pipeline,
}

impl Mapper {
    /// Emits these events for each one.
    pub(crate) fn new(each: impl FnMut(u64) -> Vec<u64> + Send + 'static) -> Self {
        Self::with(each, Stage::new)
    }

    /// Emits the events it receives.
    pub(crate) fn identity() -> Self {
        Self::new(|n| vec![n])
    }

    /// The same with options.
    pub(crate) fn with(
        each: impl FnMut(u64) -> Vec<u64> + Send + 'static,
        options: impl FnOnce(MapperStage) -> Stage<MapperStage, u64>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let stage = MapperStage {
            shared: shared.clone(),
            each: Box::new(each),
            demand_control: DemandControl::Automatic,
            later: false,
            farewell: Vec::new(),
        };
        let mut graph = Graph::new("mapper");
        graph.producer_consumer_with(options(stage).named("mapper"));
        Self { shared, pipeline: graph.start().unwrap() }
    }

    pub(crate) fn handle(&self) -> &ProducerConsumerHandle<MapperStage> {
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
