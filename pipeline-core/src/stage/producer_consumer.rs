//! A stage between two others.

use std::future::{Future, pending};

use tokio::sync::watch;

use super::{Emitter, Phase, ProducerConsumerHandle, StageContext, behaviour::Behaviour};
use crate::{
    exit::ExitReason,
    report::StageReport,
    snapshot::StageKind,
    subscription::{Cancellation, DemandControl, SubscribeOptions, Subscription},
    wiring::Unprocessed,
};

/// A stage that receives events and emits others.
///
/// Upstream it behaves like any [`Consumer`](crate::stage::Consumer). Received messages wait until
/// there is demand downstream; then a message is handled, in chunks of at most
/// `max_demand - min_demand` events. The stage may emit fewer events than it received, or more:
/// events without demand wait in a buffer, which has no bound of its own, because at most one
/// message is handled too early.
///
/// When its producer ends gracefully, the stage delivers all its events before it ends too.
///
/// For a function of one event, see [`map`](crate::builder::PipelineBuilder::map) and
/// [`filter`](crate::builder::PipelineBuilder::filter).
///
/// The callbacks and their contract are GenStage's, except for the end: GenStage would drop the
/// buffer.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Emitter, ProducerConsumer},
///     subscription::Subscription,
/// };
///
/// struct Words;
///
/// impl ProducerConsumer for Words {
///     type In = String;
///     type Out = String;
///
///     async fn handle_events(
///         &mut self,
///         lines: Vec<String>,
///         _from: &Subscription,
///         out: &mut Emitter<'_, String>,
///     ) -> Result<(), ExitReason> {
///         for line in &lines {
///             out.emit_all(line.split_whitespace().map(str::to_owned));
///         }
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a producer-consumer",
    label = "does not turn events into others",
    note = "`map(..)` and `filter(..)` make a producer-consumer of a function, and `batch(..)` puts events together; others \
            implement `ProducerConsumer`"
)]
pub trait ProducerConsumer: Sized + Send + 'static {
    /// The type of the received events.
    type In: Send + 'static;
    /// The type of the emitted events.
    type Out: Send + 'static;

    /// Runs before the stage starts: first during the pipeline's start, and again before each
    /// restart.
    ///
    /// # Errors
    ///
    /// An error fails the start.
    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Handles a chunk of events, never an empty one. When it returns, its emitted events are sent,
    /// and then more events are asked for.
    fn handle_events(
        &mut self,
        events: Vec<Self::In>,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Completes when there are events to emit without new input, for example after a timeout.
    /// Followed by [`handle_ready`](Self::handle_ready). The default never completes.
    ///
    /// # Cancel safety
    ///
    /// It must be cancel safe: the stage drops it whenever a message comes first, and calls `ready`
    /// again. Messages come first, but not indefinitely: after at most 16 callbacks, `ready` is
    /// polled before the next one.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Called when [`ready`](Self::ready) has completed. The default does nothing.
    fn handle_ready(
        &mut self,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = out;
        async { Ok(()) }
    }

    /// Called when the stage has subscribed to a producer. Returns who sends the demand: by default
    /// the stage does.
    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<DemandControl, ExitReason>> + Send {
        let _ = (options, from, out);
        async { Ok(DemandControl::Automatic) }
    }

    /// Called when a subscription to a producer has ended and its last event has been handled. Then
    /// the subscription's [`Cancel`](crate::subscription::Cancel) mode applies.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, from, out);
        async { Ok(()) }
    }

    /// Called when a consumer has subscribed.
    fn handle_consumer(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (options, to, out);
        async { Ok(()) }
    }

    /// Called when a consumer's subscription has ended.
    fn handle_consumer_gone(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, to, out);
        async { Ok(()) }
    }

    /// Called when no more events will arrive, before the stage delivers its events and ends. Emit
    /// retained events here.
    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = out;
        async { Ok(()) }
    }

    /// Called with the number of events that the stage's buffer discarded. Returns whether the
    /// stage logs it; the default returns `true`.
    fn format_discarded(&mut self, count: usize) -> bool {
        let _ = count;
        true
    }

    /// The number of received events that it retains, for the report.
    fn pending(&self) -> usize {
        0
    }

    /// The stage's own count of the events that `handle_events` received and did not finish. By default
    /// there is none, and then all of them count as begun if the callback failed.
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

/// A producer-consumer, as the runtime sees it.
pub(crate) struct AsProducerConsumer<T>(pub(crate) T);

impl<T: ProducerConsumer> Behaviour for AsProducerConsumer<T> {
    type Stage = T;
    type In = T::In;
    type Out = T::Out;

    const KIND: StageKind = StageKind::ProducerConsumer;

    fn stage(&mut self) -> &mut T {
        &mut self.0
    }

    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<T>>,
    ) -> Result<(), ExitReason> {
        self.0.init(context)
    }

    fn handle_events(
        &mut self,
        events: Vec<T::In>,
        from: &Subscription,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_events(events, from, out)
    }

    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<DemandControl, ExitReason>> + Send {
        self.0.handle_subscribe(options, from, out)
    }

    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_cancel(ended, from, out)
    }

    fn handle_consumer(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_consumer(options, to, out)
    }

    fn handle_consumer_gone(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_consumer_gone(ended, to, out)
    }

    fn awaits_ready(&self, _owed: usize) -> bool {
        true
    }

    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        self.0.ready()
    }

    fn handle_ready(
        &mut self,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_ready(out)
    }

    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, T::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_drain(out)
    }

    fn format_discarded(&mut self, count: usize) -> bool {
        self.0.format_discarded(count)
    }

    async fn terminate(&mut self, reason: &ExitReason, _phase: &mut watch::Receiver<Phase>) {
        self.0.terminate(reason).await;
    }

    fn unprocessed(&self) -> Option<Unprocessed> {
        self.0.unprocessed()
    }

    fn report(&mut self, report: &mut StageReport) {
        report.pending += self.0.pending();
    }
}
