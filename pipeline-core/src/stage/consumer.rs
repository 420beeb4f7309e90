//! The last stage of a pipeline.

use std::{convert::Infallible, future::Future};

use tokio::sync::watch;

use super::{ConsumerHandle, Emitter, Phase, StageContext, behaviour::Behaviour};
use crate::{
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    wiring::Unprocessed,
};

/// A stage that receives events and emits none.
///
/// It asks for `max_demand` events, and for more whenever only `min_demand` of them are
/// outstanding; see [`SubscribeOptions`](crate::subscription::SubscribeOptions).
/// Received events are handled in chunks of at most `max_demand - min_demand`, one chunk at a time.
///
/// To run one task per event, as many at once as there is demand, use a
/// [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor). For a function, see
/// [`for_each`](crate::step::for_each).
///
/// The callbacks and the arithmetic are GenStage's.
///
/// ```
/// use pipeline_core::{ExitReason, stage::Consumer, subscription::Subscription};
///
/// struct Sum(u64);
///
/// impl Consumer for Sum {
///     type Event = u64;
///
///     async fn handle_events(
///         &mut self,
///         events: Vec<u64>,
///         _from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         self.0 += events.iter().sum::<u64>();
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a consumer",
    label = "takes no events",
    note = "`for_each(..)` makes a consumer of an async function, and `into_sink(..)` of a sink; others implement \
            `Consumer`; a `ConsumerSupervisor` is added by `consumer_supervisor(..)`"
)]
pub trait Consumer: Sized + Send + 'static {
    /// The type of the received events.
    type Event: Send + 'static;

    /// Runs before the stage starts: first during the pipeline's start, and again before each
    /// restart.
    ///
    /// # Errors
    ///
    /// An error fails the start.
    fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Handles a chunk of events, never an empty one. More events are asked for when it returns.
    fn handle_events(
        &mut self,
        events: Vec<Self::Event>,
        from: &Subscription,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Called when the stage has subscribed to a producer. Returns who sends the demand: by default
    /// the stage does.
    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
    ) -> impl Future<Output = Result<DemandControl, ExitReason>> + Send {
        let _ = (options, from);
        async { Ok(DemandControl::Automatic) }
    }

    /// Called when a subscription has ended and its last event has been handled. Then the
    /// subscription's [`Cancel`](crate::subscription::Cancel) mode applies.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, from);
        async { Ok(()) }
    }

    /// The consumer's own count of the events that `handle_events` received and did not finish. By
    /// default there is none, and then all of them count as begun if the callback failed.
    #[doc(hidden)]
    fn unprocessed(&self) -> Option<Unprocessed> {
        None
    }

    /// Called last, after any end of the stage except a kill. After a failure it may take as long
    /// as the stages have to stop ([`Graph::stop_within`](crate::Graph::stop_within)), and is then
    /// dropped.
    fn terminate(&mut self, reason: &ExitReason) -> impl Future<Output = ()> + Send {
        let _ = reason;
        async {}
    }
}

/// A consumer, as the runtime sees it.
pub(crate) struct AsConsumer<C>(pub(crate) C);

impl<C: Consumer> Behaviour for AsConsumer<C> {
    type Stage = C;
    type In = C::Event;
    type Out = Infallible;

    const KIND: StageKind = StageKind::Consumer;

    fn stage(&mut self) -> &mut C {
        &mut self.0
    }

    fn init(&mut self, context: &StageContext<ConsumerHandle<C>>) -> Result<(), ExitReason> {
        self.0.init(context)
    }

    fn handle_events(
        &mut self,
        events: Vec<C::Event>,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_events(events, from)
    }

    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> impl Future<Output = Result<DemandControl, ExitReason>> + Send {
        self.0.handle_subscribe(options, from)
    }

    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_cancel(ended, from)
    }

    fn unprocessed(&self) -> Option<Unprocessed> {
        self.0.unprocessed()
    }

    async fn terminate(&mut self, reason: &ExitReason, _phase: &mut watch::Receiver<Phase>) {
        self.0.terminate(reason).await;
    }
}
