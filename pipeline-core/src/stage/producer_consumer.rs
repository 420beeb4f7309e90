//! The stage between two others.

use std::future::{Future, pending};

use tokio::sync::watch;

use super::{
    Emitter, Phase, ProducerConsumerHandle, StageContext, StageReport, behaviour::Behaviour,
};
use crate::{
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Asking, Cancellation, SubscribeOptions, Subscription},
};

/// A stage that receives events and emits others.
///
/// Upstream it is like any [`Consumer`](crate::Consumer). What arrives waits, in whole messages,
/// until there is demand downstream; then a message is handled, in chunks of at most
/// `max_demand - min_demand` events. It may emit fewer events than it was given, or more: what
/// nobody downstream can take yet waits in a buffer, which has no bound of its own, because no more
/// than one message is handled too early.
///
/// When its producer ends gracefully, it delivers what it holds before it ends too.
///
/// For a function of one event, see [`map`](crate::PipelineBuilder::map) and
/// [`filter`](crate::PipelineBuilder::filter).
///
/// The callbacks and their contract are GenStage's, but for the end: GenStage would drop the buffer.
///
/// ```
/// use pipeline_core::{Emitter, ExitReason, ProducerConsumer, Subscription};
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
    /// What it receives.
    type In: Send + 'static;
    /// What it emits.
    type Out: Send + 'static;

    /// Runs before the stage does: for the first time while the pipeline is started, and again
    /// before each restart.
    ///
    /// # Errors
    ///
    /// An error makes the start fail.
    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Handles a chunk of events, never an empty one. What it emits is sent off when it returns, and
    /// then more events are asked for.
    fn handle_events(
        &mut self,
        events: Vec<Self::In>,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Completes when there is something to emit although nothing has come, such as when a time is
    /// up. Followed by [`handle_ready`](Self::handle_ready). The default never completes.
    ///
    /// # Cancel safety
    ///
    /// It must be cancel safe: the stage drops it whenever a message comes first, and calls `ready`
    /// again. Messages come first, but never for long: after 16 callbacks at most, `ready` is polled
    /// before the next one.
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

    /// Called when it has subscribed to a producer. Says who asks for events from now on; by default
    /// the stage does.
    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<Asking, ExitReason>> + Send {
        let _ = (options, from, out);
        async { Ok(Asking::Automatic) }
    }

    /// Called when a subscription to a producer has ended and its last event has been handled. What
    /// follows is up to the subscription's [`Cancel`](crate::Cancel) mode.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, from, out);
        async { Ok(()) }
    }

    /// Called when a consumer has subscribed to it.
    fn handle_consumer(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (options, to, out);
        async { Ok(()) }
    }

    /// Called when a consumer's subscription to it has ended.
    fn handle_consumer_gone(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, to, out);
        async { Ok(()) }
    }

    /// Called when nothing more will come, before the stage delivers what it holds and ends: the
    /// place to emit what was kept back.
    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Self::Out>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = out;
        async { Ok(()) }
    }

    /// Called when the stage's buffer had to discard events, with how many. Whether the stage is to
    /// log it; the default says yes.
    fn format_discarded(&mut self, count: usize) -> bool {
        let _ = count;
        true
    }

    /// How many events it has taken and keeps back, for the report on what was left undone.
    fn held(&self) -> usize {
        0
    }

    /// Called last, however the stage ended, unless it was killed. After a failure it has as long as the
    /// stages have to stop ([`Graph::stop_within`](crate::Graph::stop_within)), and is dropped then.
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
    ) -> impl Future<Output = Result<Asking, ExitReason>> + Send {
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

    fn waits(&self, _owed: usize) -> bool {
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

    fn report(&mut self, report: &mut StageReport) {
        report.held += self.0.held();
    }
}
