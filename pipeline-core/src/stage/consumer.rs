//! The stage that events end in.

use std::{convert::Infallible, future::Future};

use tokio::sync::watch;

use super::{ConsumerHandle, Emitter, InHand, Phase, StageContext, behaviour::Behaviour};
use crate::{
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Asking, Cancellation, SubscribeOptions, Subscription},
};

/// A stage that receives events and emits none.
///
/// It asks for `max_demand` events, and for more whenever it has handled so many that only
/// `min_demand` are to come; see [`SubscribeOptions`](crate::SubscribeOptions). What arrives is
/// handled in chunks of at most `max_demand - min_demand` events, one chunk at a time.
///
/// For one task per event, with as many at once as there is demand, use a
/// [`ConsumerSupervisor`](crate::ConsumerSupervisor). For a function, [`for_each`](crate::for_each).
///
/// The callbacks and the arithmetic are GenStage's.
///
/// ```
/// use pipeline_core::{Consumer, ExitReason, Subscription};
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
    note = "`for_each(..)` makes a consumer of an async function, and `into_sink(..)` of a sink; others implement `Consumer`"
)]
pub trait Consumer: Sized + Send + 'static {
    /// What it receives.
    type Event: Send + 'static;

    /// Runs before the stage does: for the first time while the pipeline is started, and again
    /// before each restart.
    ///
    /// # Errors
    ///
    /// An error makes the start fail.
    fn init(&mut self, context: &StageContext<ConsumerHandle<Self>>) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Handles a chunk of events, never an empty one. More are asked for when it returns.
    fn handle_events(
        &mut self,
        events: Vec<Self::Event>,
        from: &Subscription,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Called when it has subscribed to a producer. Says who asks for events from now on; by default
    /// the stage does.
    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
    ) -> impl Future<Output = Result<Asking, ExitReason>> + Send {
        let _ = (options, from);
        async { Ok(Asking::Automatic) }
    }

    /// Called when a subscription has ended and its last event has been handled. What follows is
    /// up to the subscription's [`Cancel`](crate::Cancel) mode.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, from);
        async { Ok(()) }
    }

    /// What it knows of the events that `handle_events` was given and did not bring to an end. The
    /// default does not know, and then they count as begun if the callback failed.
    #[doc(hidden)]
    fn in_hand(&self) -> Option<InHand> {
        None
    }

    /// Called last, however the stage ended, unless it was killed. After a failure it has as long as the
    /// stages have to stop ([`Graph::stop_within`](crate::Graph::stop_within)), and is dropped then.
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
    ) -> impl Future<Output = Result<Asking, ExitReason>> + Send {
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

    fn in_hand(&self) -> Option<InHand> {
        self.0.in_hand()
    }

    async fn terminate(&mut self, reason: &ExitReason, _phase: &mut watch::Receiver<Phase>) {
        self.0.terminate(reason).await;
    }
}
