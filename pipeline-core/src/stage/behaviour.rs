//! The internal interface of all kinds of stages.

use std::{
    future::{Future, pending},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{Emitter, Phase, StageContext, StageHandle};
use crate::{
    exit::ExitReason,
    report::StageReport,
    snapshot::StageKind,
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    wiring::Unprocessed,
};

/// A stage of one kind. The public traits are small and only cover their own kind; each has an
/// adapter to this one.
pub(crate) trait Behaviour: Send + 'static {
    /// The type that handles the users' messages.
    type Stage: Send + 'static;
    type In: Send + 'static;
    type Out: Send + 'static;

    const KIND: StageKind;

    fn stage(&mut self) -> &mut Self::Stage;

    /// What the pipeline awaits at its end.
    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    fn init(&mut self, context: &StageContext<HandleOf<Self>>) -> Result<(), ExitReason>;

    fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    fn handle_events(
        &mut self,
        _events: Vec<Self::In>,
        _from: &Subscription,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// This stage has subscribed to another.
    fn handle_subscribe(
        &mut self,
        _options: &SubscribeOptions,
        _from: &Subscription,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<DemandControl, ExitReason>> + Send {
        async { Ok(DemandControl::Automatic) }
    }

    /// A subscription of this stage has ended.
    fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _from: &Subscription,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// Another stage has subscribed to this one.
    fn handle_consumer(
        &mut self,
        _options: &SubscribeOptions,
        _to: &Subscription,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// A subscription to this stage has ended.
    fn handle_consumer_gone(
        &mut self,
        _ended: &Cancellation,
        _to: &Subscription,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// Whether `ready` is to be awaited.
    fn awaits_ready(&self, _owed: usize) -> bool {
        false
    }

    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    fn handle_ready(
        &mut self,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// The stage must take nothing new; a stage that receives gets no more events.
    fn handle_drain(
        &mut self,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// Whether to report and log that events were discarded.
    fn format_discarded(&mut self, _count: usize) -> bool {
        true
    }

    /// How long its workers have to stop, if it has any.
    fn workers_stop_within(&self) -> Duration {
        Duration::ZERO
    }

    /// The stage's own count of the events that a callback received and did not finish.
    fn unprocessed(&self) -> Option<Unprocessed> {
        None
    }

    /// The stage is about to end and must send no more demand.
    fn asks_no_more(&mut self) {}

    /// Whether it still works on events it has taken.
    fn is_busy(&self) -> bool {
        false
    }

    /// Whether that work occupies it. Work that only waits may have left its place.
    fn is_occupied(&self) -> bool {
        self.is_busy()
    }

    fn terminate(
        &mut self,
        _reason: &ExitReason,
        _phase: &mut watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Adds the unprocessed events that the stage itself knows of. Called once, when it has ended.
    fn report(&mut self, _report: &mut StageReport) {}
}

pub(crate) type HandleOf<B> =
    StageHandle<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>;
