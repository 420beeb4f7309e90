//! The stage that events come from.

use std::future::{Future, pending};

use tokio::sync::watch;

use super::{Emitter, Phase, ProducerHandle, StageContext, StageReport, behaviour::Behaviour};
use crate::{
    exit::ExitReason,
    snapshot::StageKind,
    subscription::{Cancellation, SubscribeOptions, Subscription},
    wiring::Nothing,
};

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
/// A callback ends the stage by returning an [`ExitReason`]; what it emitted is still sent as far as
/// there is demand, and what is left in the buffer is lost. To deliver the buffer first, call
/// [`Emitter::finish`]. A panic ends the stage too, and nothing else.
///
/// To be sent messages, a producer implements [`HandleCall`](crate::HandleCall),
/// [`HandleCast`](crate::HandleCast) or [`HandleInfo`](crate::HandleInfo).
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a producer",
    label = "emits no events",
    note = "`from_iter(..)` makes a producer of an iterator, `from_stream(..)` of a stream, and `queue(..)` one that any task \
            may push to; others implement `Producer`"
)]
pub trait Producer: Sized + Send + 'static {
    /// What it emits.
    type Event: Send + 'static;

    /// Runs before the stage does: for the first time while the pipeline is started, and again
    /// before each restart.
    ///
    /// # Errors
    ///
    /// An error makes the start fail.
    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
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
    /// Awaited only while demand is owed and a consumer would take the events, and followed by [`handle_ready`](Self::handle_ready).
    /// The default never completes.
    ///
    /// # Cancel safety
    ///
    /// It must be cancel safe: the stage drops it whenever a message comes first, and calls `ready`
    /// again. Messages come first, but never for long: after 16 callbacks at most, `ready` is polled
    /// before the next one, unless demand that came while the stage accumulated is being handed out.
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

    /// Called when a consumer has subscribed.
    fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (options, to, out);
        async { Ok(()) }
    }

    /// Called when a subscription has ended. It is out of the way already: what this emits goes to
    /// the others.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, to, out);
        async { Ok(()) }
    }

    /// Called when the pipeline begins to drain: take nothing new from now on.
    ///
    /// The producer goes on to emit what it has already accepted, as demand comes, and ends by
    /// [`Emitter::finish`] when that is done. The default has accepted nothing, and finishes.
    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        out.finish();
        async { Ok(()) }
    }

    /// Called when the stage's buffer had to discard events, with how many. Whether the stage is to
    /// log it; the default says yes.
    fn format_discarded(&mut self, count: usize) -> bool {
        let _ = count;
        true
    }

    /// Called when the stage has ended, however it did: nothing can be put in any more, so that
    /// [`held`](Self::held) stays true. Only a source that others put events into has something to do here;
    /// the default does nothing. Of a [restarting](crate::Stage::restarting) stage, each incarnation is
    /// closed by itself: a source that all of them share is closed by the first that ends.
    fn close(&mut self) {}

    /// How many events it has accepted and not emitted, for the report on what was left undone. Asked for
    /// after [`close`](Self::close).
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

/// A producer, as the runtime sees it.
pub(crate) struct AsProducer<P>(pub(crate) P);

impl<P: Producer> Behaviour for AsProducer<P> {
    type Stage = P;
    type In = Nothing;
    type Out = P::Event;

    const KIND: StageKind = StageKind::Producer;

    fn stage(&mut self) -> &mut P {
        &mut self.0
    }

    fn init(&mut self, context: &StageContext<ProducerHandle<P>>) -> Result<(), ExitReason> {
        self.0.init(context)
    }

    fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, P::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_demand(demand, out)
    }

    fn handle_consumer(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        out: &mut Emitter<'_, P::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_subscribe(options, to, out)
    }

    fn handle_consumer_gone(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, P::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_cancel(ended, to, out)
    }

    fn waits(&self, owed: usize) -> bool {
        owed > 0
    }

    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        self.0.ready()
    }

    fn handle_ready(
        &mut self,
        out: &mut Emitter<'_, P::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        self.0.handle_ready(out)
    }

    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, P::Event>,
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
        self.0.close();
        report.held += self.0.held();
    }
}
