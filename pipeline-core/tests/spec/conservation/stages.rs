//! The stages of the random pipelines, with injected faults.

use std::{convert::Infallible, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pipeline_core::{
    ExitReason,
    stage::{Consumer, Emitter, HandleCast, HandleInfo, Producer, ProducerConsumer},
    subscription::{Cancellation, SubscribeOptions, Subscription},
    supervisor::{Admission, ChildContext, Worker},
};
use tokio::time::{self, Instant};

use super::ledger::{Event, Ledger};

/// A fault in the next callback.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Fail,
    Panic,
    /// Ends the stage gracefully.
    Leave,
    /// Never returns.
    Stick,
}

/// The injected fault of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Option<Fault>>>);

impl Faults {
    pub(super) fn set(&self, fault: Fault) {
        *self.0.lock() = Some(fault);
    }

    /// Executes the injected fault. Returns whether the stage is to leave.
    async fn strike(&self) -> Result<bool, ExitReason> {
        let fault = self.0.lock().take();
        match fault {
            None => Ok(false),
            Some(Fault::Leave) => Ok(true),
            Some(Fault::Fail) => Err(ExitReason::failed("a fault")),
            Some(Fault::Panic) => panic!("a fault"),
            Some(Fault::Stick) => std::future::pending().await,
        }
    }
}

/// The arguments for creating a stage, each time.
#[derive(Clone)]
pub(super) struct Kit {
    pub(super) ledger: Ledger,
    pub(super) faults: Faults,
    /// The duration of a callback.
    pub(super) pace: Duration,
}

impl Kit {
    async fn take_time(&self) {
        if !self.pace.is_zero() {
            time::sleep(self.pace).await;
        }
    }
}

fn left(leaves: bool) -> Result<(), ExitReason> {
    if leaves { Err(ExitReason::Shutdown) } else { Ok(()) }
}

/// Creates the events of an incarnation.
struct Origin {
    origin: u64,
    next: u64,
}

impl Origin {
    fn new(kit: &Kit) -> Self {
        Self { origin: kit.ledger.incarnation(), next: 0 }
    }

    fn emit(&mut self, count: usize, kit: &Kit, out: &mut Emitter<'_, Event>) {
        kit.ledger.emitted(count);
        for _ in 0..count {
            out.emit(Event { origin: self.origin, n: self.next });
            self.next += 1;
        }
    }
}

/// How a source answers demand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// At once, with `extra` more events than requested.
    Prompt { extra: usize },
    /// Later, in steps of this size.
    Slow { step: usize },
}

/// A producer of a fixed number of events.
pub(super) struct Source {
    kit: Kit,
    style: Style,
    total: usize,
    origin: Origin,
    backlog: usize,
    due: Option<Instant>,
}

impl Source {
    pub(super) fn new(kit: &Kit, style: Style, total: usize) -> Self {
        let origin = Origin::new(kit);
        Self { kit: kit.clone(), style, total, origin, backlog: 0, due: None }
    }

    fn emit(&mut self, count: usize, out: &mut Emitter<'_, Event>) {
        let count = count.min(self.total);
        self.total -= count;
        self.origin.emit(count, &self.kit, out);
        if self.total == 0 {
            out.finish();
        }
    }
}

impl Producer for Source {
    type Event = Event;

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.received(demand);
        match self.style {
            Style::Prompt { extra } => {
                self.emit(demand, out);
                let leaves = self.kit.faults.strike().await?;
                self.kit.take_time().await;
                self.emit(extra, out);
                left(leaves)
            }
            Style::Slow { .. } => {
                self.backlog += demand;
                Ok(())
            }
        }
    }

    async fn ready(&mut self) {
        if self.backlog == 0 {
            return std::future::pending().await;
        }
        let pace = self.kit.pace.max(Duration::from_millis(1));
        time::sleep_until(*self.due.get_or_insert_with(|| Instant::now() + pace)).await;
    }

    async fn handle_ready(&mut self, out: &mut Emitter<'_, Event>) -> Result<(), ExitReason> {
        self.due = None;
        let Style::Slow { step } = self.style else { return Ok(()) };
        let count = step.min(self.backlog);
        self.backlog -= count;
        self.emit(count, out);
        left(self.kit.faults.strike().await?)
    }

    async fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        to: &Subscription,
        _out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.subscribed(to);
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        to: &Subscription,
        _out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.ended(to);
        Ok(())
    }
}

/// Emits this many events, whatever the demand.
pub(super) struct Burst(pub(super) usize);

impl HandleCast<Burst, Event> for Source {
    async fn handle_cast(
        &mut self,
        Burst(count): Burst,
        out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.emit(count, out);
        Ok(())
    }
}

/// A message that waits behind the events.
pub(super) struct Mark;

macro_rules! takes_marks {
    ($stage:ty, $out:ty) => {
        impl HandleInfo<Mark, $out> for $stage {
            async fn handle_info(
                &mut self,
                Mark: Mark,
                _out: &mut Emitter<'_, $out>,
            ) -> Result<(), ExitReason> {
                Ok(())
            }
        }
    };
}

takes_marks!(Source, Event);
takes_marks!(Relay, Event);
takes_marks!(Sink, Infallible);

/// How many events a relay emits for each one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// One for each.
    Same,
    /// One for every second one.
    Half,
    /// This many for each.
    Times(usize),
    /// None.
    Nothing,
}

impl Shape {
    fn of(self, event: &Event) -> usize {
        match self {
            Self::Same => 1,
            Self::Half => usize::from(event.n.is_multiple_of(2)),
            Self::Times(count) => count,
            Self::Nothing => 0,
        }
    }
}

/// A producer-consumer.
pub(super) struct Relay {
    kit: Kit,
    shape: Shape,
    origin: Origin,
}

impl Relay {
    pub(super) fn new(kit: &Kit, shape: Shape) -> Self {
        Self { kit: kit.clone(), shape, origin: Origin::new(kit) }
    }
}

impl ProducerConsumer for Relay {
    type In = Event;
    type Out = Event;

    async fn handle_events(
        &mut self,
        events: Vec<Event>,
        from: &Subscription,
        out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.arrived(Some(from.id()), &events);
        let mut leaves = false;
        for (place, event) in events.iter().enumerate() {
            self.origin.emit(self.shape.of(event), &self.kit, out);
            // In the middle, so that only some events are emitted.
            if place == events.len() / 2 {
                leaves = self.kit.faults.strike().await?;
                self.kit.take_time().await;
            }
        }
        self.kit.ledger.handled(&events);
        left(leaves)
    }

    async fn handle_consumer(
        &mut self,
        _options: &SubscribeOptions,
        to: &Subscription,
        _out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.subscribed(to);
        Ok(())
    }

    async fn handle_consumer_gone(
        &mut self,
        _ended: &Cancellation,
        to: &Subscription,
        _out: &mut Emitter<'_, Event>,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.ended(to);
        Ok(())
    }
}

/// A consumer.
pub(super) struct Sink {
    kit: Kit,
}

impl Sink {
    pub(super) fn new(kit: &Kit) -> Self {
        Self { kit: kit.clone() }
    }
}

impl Consumer for Sink {
    type Event = Event;

    async fn handle_events(
        &mut self,
        events: Vec<Event>,
        from: &Subscription,
    ) -> Result<(), ExitReason> {
        self.kit.ledger.arrived(Some(from.id()), &events);
        let leaves = self.kit.faults.strike().await?;
        self.kit.take_time().await;
        self.kit.ledger.handled(&events);
        left(leaves)
    }
}

/// The worker of a supervisor.
pub(super) struct Work {
    kit: Kit,
    /// How often the children of some events fail.
    failures: u32,
}

impl Work {
    pub(super) fn new(kit: &Kit, failures: u32) -> Self {
        Self { kit: kit.clone(), failures }
    }
}

impl Worker<Event> for Work {
    fn admit(&self, event: &Event, context: &ChildContext) -> Result<Admission, ExitReason> {
        if context.restarts() == 0 {
            self.kit.ledger.arrived(None, &[*event]);
        }
        match event.n % 13 {
            5 => {
                self.kit.ledger.handled(&[*event]);
                Ok(Admission::Ignore)
            }
            7 if context.restarts() == 0 => {
                self.kit.ledger.handled(&[*event]);
                Err(ExitReason::failed("no start"))
            }
            n if context.restarts() == 1 && n % 2 == 0 => Err(ExitReason::failed("no restart")),
            _ => Ok(Admission::Run),
        }
    }

    async fn run(&self, event: &Event, context: ChildContext) -> Result<(), ExitReason> {
        if !event.n.is_multiple_of(3) {
            self.kit.take_time().await;
        }
        if event.n % 5 == 2 && context.restarts() < self.failures {
            return Err(ExitReason::failed("try again"));
        }
        // A supervisor's children have no callback to fail in, but one of them may hang.
        if self.kit.faults.0.lock().take().is_some() {
            return std::future::pending().await;
        }
        self.kit.ledger.handled(&[*event]);
        Ok(())
    }
}
