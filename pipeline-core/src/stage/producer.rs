//! The first stage of a pipeline.

use std::future::{Future, pending};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{Emitter, Phase, ProducerHandle, StageContext, behaviour::Behaviour};
use crate::{
    exit::ExitReason,
    report::StageReport,
    snapshot::StageKind,
    subscription::{Cancellation, SubscribeOptions, Subscription},
};

/// A stage that emits events and receives none.
///
/// Demand flows up: [`handle_demand`](Self::handle_demand) receives how many more events the
/// consumers will take. Emitting fewer is fine; the rest stays owed, and the producer is not asked
/// for it again. Emitting more is allowed too; events without demand wait in a bounded buffer.
///
/// Callbacks never overlap: while one runs, the stage does nothing else. So a source that has to
/// wait does not wait in `handle_demand`. It returns a future from [`ready`](Self::ready), which
/// the stage awaits together with its mailbox.
///
/// A callback ends the stage by returning an [`ExitReason`]; the events it emitted are still sent
/// as far as there is demand, and the rest of the buffer is lost. To deliver the buffer first, call
/// [`Emitter::finish`]. A panic ends the stage too, and nothing else.
///
/// To receive messages, a producer implements [`HandleCall`](crate::stage::HandleCall),
/// [`HandleCast`](crate::stage::HandleCast) or [`HandleInfo`](crate::stage::HandleInfo).
///
/// The callbacks and their contract are GenStage's.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Emitter, Producer},
/// };
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
    /// The type of the emitted events.
    type Event: Send + 'static;

    /// Runs before the stage starts: first during the pipeline's start, and again before each
    /// restart.
    ///
    /// # Errors
    ///
    /// An error fails the start.
    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        let _ = context;
        Ok(())
    }

    /// Called once for each new demand: `demand` more events will be taken.
    fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;

    /// Completes when a waiting source has events, or has ended.
    ///
    /// Awaited only while demand is owed and a consumer would take the events, or while
    /// [`has_begun`](Self::has_begun), and followed by [`handle_ready`](Self::handle_ready). The default never
    /// completes.
    ///
    /// # Cancel safety
    ///
    /// It must be cancel safe: the stage drops it whenever a message comes first, and calls `ready`
    /// again. Messages come first, but not indefinitely: after at most 16 callbacks, `ready` is
    /// polled before the next one, unless demand that came while the stage accumulated is still
    /// being passed on.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Whether [`ready`](Self::ready) is to be awaited although no demand is owed, because of something that has
    /// begun and is to end. What is emitted then waits in the stage's buffer. The default is `false`.
    fn has_begun(&self) -> bool {
        false
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

    /// Called when a subscription has ended. The subscription is already removed: events emitted
    /// here go to the others.
    fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        let _ = (ended, to, out);
        async { Ok(()) }
    }

    /// Called when the pipeline begins to drain: the producer must take nothing new from now on.
    ///
    /// It continues to emit events it has already accepted, as demand comes, and then ends with
    /// [`Emitter::finish`]. The default has accepted nothing, and finishes at once.
    fn handle_drain(
        &mut self,
        out: &mut Emitter<'_, Self::Event>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send {
        out.finish();
        async { Ok(()) }
    }

    /// Called with the number of events that the stage's buffer discarded. Returns whether the
    /// stage logs it; the default returns `true`.
    fn format_discarded(&mut self, count: usize) -> bool {
        let _ = count;
        true
    }

    /// Called after any end of the stage: no items may be added from now on, so that
    /// [`pending`](Self::pending) stays accurate. Only a source that other tasks push to needs it;
    /// the default does nothing. Each incarnation of a
    /// [restarting](crate::stage::Stage::restarting) stage is closed separately: a source that they
    /// share is closed by the first one that ends.
    fn close(&mut self) {}

    /// The number of events it has accepted and not emitted, for the report. Called after
    /// [`close`](Self::close).
    fn pending(&self) -> usize {
        0
    }

    /// Returns a future that completes when the stage has ended and everything that was acknowledged
    /// to it has been stored. Called once, after [`init`](Self::init). The pipeline awaits it at its
    /// end, when all stages have ended, until the deadline of the drain.
    ///
    /// It is for sources whose events are acknowledged when they have been handled, such as the
    /// messages of [`processing`](crate::processing). The default is `None`: nothing is to be stored.
    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
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

/// The input type of a producer. It has no values.
///
/// It is not [`Infallible`](std::convert::Infallible), the output type of a consumer, because then
/// a producer could subscribe to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoInput {}

/// A producer, as the runtime sees it.
pub(crate) struct AsProducer<P>(pub(crate) P);

impl<P: Producer> Behaviour for AsProducer<P> {
    type Stage = P;
    type In = NoInput;
    type Out = P::Event;

    const KIND: StageKind = StageKind::Producer;

    fn stage(&mut self) -> &mut P {
        &mut self.0
    }

    fn settled(&mut self) -> Option<BoxFuture<'static, ()>> {
        self.0.settled()
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

    fn awaits_ready(&self, owed: usize) -> bool {
        owed > 0 || self.0.has_begun()
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
        report.pending += self.0.pending();
    }
}
