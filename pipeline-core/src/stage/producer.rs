//! The stage that events come from.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, pending},
};

use tokio::sync::{mpsc, watch};

use super::{Phase, StageContext, StageReport, ToConsumer, ToProducer, contained};
use crate::{
    buffer::{Buffer, BufferKeep},
    dispatcher::{Deliveries, Delivery, DemandDispatcher, Subscriber},
    exit::ExitReason,
    outlet::Outlet,
    subscription::{StageId, SubscribeOptions, SubscriptionId},
    telemetry::{Discard, StageMetrics},
};

/// How many events without demand a producer keeps. GenStage's default.
pub(crate) const DEFAULT_BUFFER: usize = 10_000;

/// A stage that emits events and receives none.
///
/// Demand flows up: [`handle_demand`](Self::handle_demand) is told how many more events the
/// consumers will take. Emitting fewer is fine; the rest stays owed, and the producer is not asked
/// for it again. Emitting more is allowed too; what nobody can take waits in a bounded buffer.
///
/// Callbacks never overlap: while one runs, nothing else of the stage does. So a source that has
/// to wait for something does not wait in `handle_demand`. It offers a future by
/// [`ready`](Self::ready), which the stage awaits beside its mailbox.
///
/// A callback ends the stage by returning an [`ExitReason`]; what it emitted before is still
/// delivered. A panic ends it too, and nothing else.
///
/// The callbacks and their contract are GenStage's.
///
/// ```
/// use pipeline_core::{Emitter, ExitReason, Producer};
///
/// struct Counter {
///     next: u64,
/// }
///
/// impl Producer for Counter {
///     type Event = u64;
///
///     async fn handle_demand(
///         &mut self,
///         demand: usize,
///         out: &mut Emitter<'_, u64>,
///     ) -> Result<(), ExitReason> {
///         let end = self.next + demand as u64;
///         out.emit_all(self.next..end);
///         self.next = end;
///         Ok(())
///     }
/// }
/// ```
pub trait Producer: Send + 'static {
    /// What it emits.
    type Event: Send + 'static;

    /// Runs before the pipeline starts, while [`start`](crate::PipelineBuilder::start) is called.
    ///
    /// # Errors
    ///
    /// An error makes the start fail.
    fn init(&mut self, context: &StageContext) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Called with new demand, once for each: `demand` more events will be taken.
    fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Completes when a source that waits has something, or has come to its end.
    ///
    /// Awaited only while demand is owed, and followed by [`handle_ready`](Self::handle_ready).
    /// The default never completes.
    ///
    /// # Cancel safety
    ///
    /// It must be cancel safe: the stage drops it whenever a message comes first, and calls `ready`
    /// again.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Called when [`ready`](Self::ready) has completed, to emit up to
    /// [`owed`](Emitter::owed) events. The default does nothing.
    fn handle_ready(
        &mut self,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = out;
        async { Ok(()) }
    }

    /// Called when the pipeline begins to drain: take nothing new from now on.
    ///
    /// The producer goes on to emit what it has already accepted, as demand comes, and ends with
    /// [`ExitReason::Normal`] when that is done. The default has accepted nothing, and ends at once.
    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = out;
        async { Err(ExitReason::Normal) }
    }

    /// How many events it has accepted and not emitted, for the report on what was left undone.
    fn held(&self) -> usize {
        0
    }

    /// Called last, however the stage ended.
    fn terminate(&mut self, reason: &ExitReason) -> impl Future<Output = ()> + Send {
        let _ = reason;
        async {}
    }
}

/// Where a callback puts the events it emits.
///
/// They leave the stage when the callback returns, in the order they were emitted. [`Producer`] has
/// an example.
#[derive(Debug)]
pub struct Emitter<'a, E> {
    staged: &'a mut VecDeque<E>,
    owed: usize,
}

impl<E> Emitter<'_, E> {
    /// Emits one event.
    pub fn emit(&mut self, event: E) {
        self.staged.push_back(event);
    }

    /// Emits events in order.
    pub fn emit_all(&mut self, events: impl IntoIterator<Item = E>) {
        self.staged.extend(events);
    }

    /// How many more events there is demand for. What is emitted beyond it goes to the buffer.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.saturating_sub(self.staged.len())
    }

    /// The events emitted so far, for a source that can fill them in bulk.
    pub(crate) fn staged(&mut self) -> &mut VecDeque<E> {
        self.staged
    }
}

/// The task of a producer.
pub(crate) struct ProducerTask<P: Producer> {
    producer: P,
    outlet: Outlet<P::Event, DemandDispatcher>,
    consumers: HashMap<SubscriptionId, mpsc::UnboundedSender<ToConsumer<P::Event>>>,
    staged: VecDeque<P::Event>,
    deliveries: Deliveries<P::Event>,
    metrics: StageMetrics,
    report: StageReport,
}

/// Which callback to run.
enum Callback {
    Demand(usize),
    Ready,
    Drain,
}

/// Waits until a source has something; a panic in it ends the stage like one in a callback.
async fn is_ready(producer: &mut impl Producer) -> Result<(), ExitReason> {
    contained(async {
        producer.ready().await;
        Ok(())
    })
    .await
}

impl<P: Producer> ProducerTask<P> {
    pub(crate) fn new(producer: P, context: &StageContext) -> Self {
        let buffer = Buffer::new(DEFAULT_BUFFER, BufferKeep::default());
        Self {
            producer,
            outlet: Outlet::new(DemandDispatcher::default(), buffer),
            consumers: HashMap::new(),
            staged: VecDeque::new(),
            deliveries: Deliveries::new(),
            metrics: StageMetrics::register(&context.telemetry, &context.labels()),
            report: StageReport::new(context.stage.clone(), ExitReason::Normal),
        }
    }

    pub(crate) async fn run(
        mut self,
        mut mailbox: mpsc::UnboundedReceiver<ToProducer<P::Event>>,
        mut phase: watch::Receiver<Phase>,
    ) -> StageReport {
        let reason = loop {
            if let Err(reason) = self.step(&mut mailbox, &mut phase).await {
                break reason;
            }
        };
        let _ = contained(async {
            self.producer.terminate(&reason).await;
            Ok(())
        })
        .await;
        for consumer in self.consumers.values() {
            let _ = consumer.send(ToConsumer::Down { reason: reason.clone() });
        }
        self.report.held += self.outlet.buffered() + self.producer.held();
        self.report.reason = reason;
        self.report
    }

    /// Waits for one thing to happen, and does what follows from it.
    async fn step(
        &mut self,
        mailbox: &mut mpsc::UnboundedReceiver<ToProducer<P::Event>>,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<(), ExitReason> {
        tokio::select! {
            biased;
            changed = phase.changed() => {
                let phase = changed.map_or(Phase::Kill, |()| *phase.borrow_and_update());
                match phase {
                    Phase::Run => {}
                    Phase::Drain => self.call(Callback::Drain).await?,
                    Phase::Stop => return Err(ExitReason::Shutdown),
                    Phase::Kill => return Err(ExitReason::Killed),
                }
            }
            Some(message) = mailbox.recv() => self.receive(message),
            ready = is_ready(&mut self.producer), if self.outlet.owed() > 0 => {
                ready?;
                self.call(Callback::Ready).await?;
            }
        }
        loop {
            let demand = self.outlet.settle(&mut self.deliveries);
            self.deliver();
            if demand == 0 {
                return Ok(());
            }
            self.call(Callback::Demand(demand)).await?;
        }
    }

    /// Takes in one message of a consumer.
    fn receive(&mut self, message: ToProducer<P::Event>) {
        match message {
            ToProducer::Subscribe { id, consumer } => {
                self.consumers.insert(id, consumer);
                let options = SubscribeOptions::new();
                let subscriber = Subscriber::new(id, StageId::new(0), &options);
                let _ = self.outlet.subscribe(subscriber);
            }
            ToProducer::Ask { id, demand } => self.outlet.ask(id, demand, &mut self.deliveries),
            ToProducer::Down { id } => {
                self.consumers.remove(&id);
                self.outlet.cancel(id, &mut self.deliveries);
            }
        }
    }

    /// Runs a callback and sends off what it emitted, also when it ends the stage.
    async fn call(&mut self, callback: Callback) -> Result<(), ExitReason> {
        let mut out = Emitter { staged: &mut self.staged, owed: self.outlet.owed() };
        let producer = &mut self.producer;
        let outcome = contained(async {
            match callback {
                Callback::Demand(demand) => producer.handle_demand(demand, &mut out).await,
                Callback::Ready => producer.handle_ready(&mut out).await,
                Callback::Drain => producer.handle_drain(&mut out).await,
            }
        })
        .await;
        let discarded = self.outlet.emit(&mut self.staged, &mut self.deliveries);
        if discarded > 0 {
            self.report.discarded += discarded;
            self.metrics.discarded(Discard::BufferFull, discarded as u64);
            tracing::warn!(stage = %self.report.stage, discarded, "the buffer is full");
        }
        self.deliver();
        outcome
    }

    fn deliver(&mut self) {
        for delivery in self.deliveries.drain() {
            let Delivery::Events { to, events } = delivery else { continue };
            let message = ToConsumer::Events { from: to, events };
            let undelivered = match self.consumers.get(&to) {
                Some(consumer) => consumer.send(message).err().map(|error| error.0),
                None => Some(message),
            };
            // Its consumer has just ended; the end is in the mailbox.
            if let Some(ToConsumer::Events { events, .. }) = undelivered {
                self.report.held += events.len();
            }
        }
    }
}
