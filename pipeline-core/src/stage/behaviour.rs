//! What the runtime asks of a stage, whatever its kind.

use std::{
    future::{Future, pending},
    time::Duration,
};

use tokio::sync::watch;

use super::{Emitter, InHand, Phase, StageContext, StageHandle, StageReport};
use crate::{
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Asking, Cancellation, SubscribeOptions, Subscription},
};

/// A stage of one kind. The public traits are small and know of their own kind only; each has an
/// adapter to this one.
pub(crate) trait Behaviour: Send + 'static {
    /// What users send messages to.
    type Stage: Send + 'static;
    type In: Send + 'static;
    type Out: Send + 'static;

    const KIND: StageKind;

    fn stage(&mut self) -> &mut Self::Stage;

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
    ) -> impl Future<Output = Result<Asking, ExitReason>> + Send {
        async { Ok(Asking::Automatic) }
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

    /// Whether `ready` is worth waiting for.
    fn waits(&self, _owed: usize) -> bool {
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

    /// Nothing new is to be taken; for a stage that receives, nothing more will come.
    fn handle_drain(
        &mut self,
        _out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        async { Ok(()) }
    }

    /// Whether to report and log that so many events were discarded.
    fn format_discarded(&mut self, _count: usize) -> bool {
        true
    }

    /// How long its workers have when they are told to stop, if it has any.
    fn workers_stop_within(&self) -> Duration {
        Duration::ZERO
    }

    /// What it knows itself of the events that a callback was given and did not bring to an end.
    fn in_hand(&self) -> Option<InHand> {
        None
    }

    /// It is about to end. If it asks for events itself, it does so no more.
    fn asks_no_more(&mut self) {}

    /// Whether it is still at work on events it has taken.
    fn is_busy(&self) -> bool {
        false
    }

    fn terminate(
        &mut self,
        _reason: &ExitReason,
        _phase: &mut watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Adds what the stage itself knows to be undone. Called once, when it has ended.
    fn report(&mut self, _report: &mut StageReport) {}
}

pub(crate) type HandleOf<B> =
    StageHandle<<B as Behaviour>::Stage, <B as Behaviour>::In, <B as Behaviour>::Out>;
