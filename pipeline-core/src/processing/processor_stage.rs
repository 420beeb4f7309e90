//! The stage of a processor.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, coop::consume_budget},
    time::{Instant, sleep},
};
use tracing::{Instrument, debug_span};

use super::{
    batch::Processed,
    failure::{Failure, FailureKind},
    handling::{acknowledge_all, contained_in, contained_now, contained_within, settle_failed},
    message::Message,
    metrics::MessageMetrics,
    processor::{PartitionBy, Processor, Tries},
};
use crate::{
    exit::ExitReason,
    report::StageReport,
    snapshot::StageKind,
    stage::{
        Behaviour, Emitter, HandleOf, PhaseOfPlace, Place, ProducerConsumer,
        ProducerConsumerHandle, StageContext, random,
    },
    subscription::Subscription,
};

/// A message on its way to a batcher.
pub(super) struct Forwarded<T, U> {
    /// The number of the batcher.
    pub(super) to: usize,
    pub(super) processed: Processed<T, U>,
}

/// Which batcher gets a message: its number, or an error if there is none for it.
pub(super) type Route<U> = Arc<dyn Fn(&U) -> Result<usize, Failure> + Send + Sync>;

/// What a processor does with its messages, in the last layer or not.
pub(super) struct Work<T, P> {
    pub(super) processor: Arc<P>,
    pub(super) tries: Tries,
    pub(super) metrics: MessageMetrics,
    /// The partition function of the sources' dispatchers.
    pub(super) partition_by: Option<PartitionBy<T>>,
    /// The number of the processor.
    pub(super) index: usize,
    /// The places of all processors of the layer, one for each, if their messages may leave them.
    pub(super) places: Option<Arc<Semaphore>>,
}

impl<T, P> Clone for Work<T, P> {
    fn clone(&self) -> Self {
        let Self { processor, tries, metrics, partition_by, index, places } = self;
        Self {
            processor: processor.clone(),
            tries: *tries,
            metrics: metrics.clone(),
            partition_by: partition_by.clone(),
            index: *index,
            places: places.clone(),
        }
    }
}

/// The messages of a chunk, each kind in their order.
struct Handled<T, U> {
    forwarded: Vec<Forwarded<T, U>>,
    failed: Vec<Message<T>>,
}

impl<T, P: Processor<T>> Work<T, P> {
    /// Handles a chunk. If the future is dropped, its messages are acknowledged as failed.
    async fn handle_chunk(
        &self,
        mut messages: Vec<Message<T>>,
        route: impl Fn(&P::Output) -> Result<usize, Failure>,
    ) -> Handled<T, P::Output> {
        let mut handled =
            Handled { forwarded: Vec::with_capacity(messages.len()), failed: Vec::new() };
        drop_old(&mut messages);
        let prepare = self.processor.prepare_messages(&mut messages);
        let within = self.tries.within;
        if let Err(failure) = contained_within(within, "prepare_messages", prepare).await {
            for message in messages.iter_mut().filter(|message| message.failure().is_none()) {
                message.fail(failure.clone());
            }
            handled.failed = messages;
            return handled;
        }
        for mut message in messages {
            // A callback that never waits must not occupy its thread for a whole chunk.
            consume_budget().await;
            if !is_current(&message) {
                drop_contained(message);
                continue;
            }
            message.begin();
            let span = debug_span!("message", failure = tracing::field::Empty);
            let outcome = self.handle(&mut message).instrument(span.clone()).await;
            let routed = outcome.and_then(|output| {
                let to = contained_now(|| route(&output)).and_then(|to| to)?;
                Ok((to, output))
            });
            match routed {
                Ok((to, output)) if message.failure().is_none() => {
                    let processed = Processed { message, output };
                    handled.forwarded.push(Forwarded { to, processed });
                    continue;
                }
                Ok(_) => {}
                Err(failure) => message.fail(failure),
            }
            if let Some(failure) = message.failure() {
                span.record("failure", failure.kind().name());
            }
            handled.failed.push(message);
        }
        handled
    }

    /// Gives messages places that they cannot leave: that of their processor, or, if their time is limited, one of
    /// its own to each, since only its own waits are not counted.
    fn place_in(&self, place: &Place, messages: &mut [Message<T>]) {
        let is_limited = self.tries.within < Duration::MAX;
        for message in messages {
            message.set_place(if is_limited { place.next_fixed() } else { place.clone() });
        }
    }

    /// Handles a message, as often as it may be tried.
    async fn handle(&self, message: &mut Message<T>) -> Result<P::Output, Failure> {
        if let Some(partition_by) = &self.partition_by {
            // The dispatcher has sent it to any processor if the function panics for it.
            contained_now(|| partition_by(message))?;
        }
        let outcome = self.try_to_handle(message).await;
        message.release_held();
        outcome
    }

    async fn try_to_handle(&self, message: &mut Message<T>) -> Result<P::Output, Failure> {
        let before = message.failure().cloned();
        let mut failures = 0;
        loop {
            message.set_tried_again(self.tries.is_followed(failures));
            let (begun, place) = (Instant::now(), message.place());
            let tried = contained_in(&place, self.tries.within, "handle_message", async {
                self.processor.handle_message(message).await
            });
            let tried = tried.await;
            self.metrics.handled(begun.elapsed());
            let failure = match tried {
                Ok(output) => return Ok(output),
                Err(failure) => failure,
            };
            failures += 1;
            let Some(backoff) = self.tries.backoff_after(failures, &failure) else {
                return Err(failure);
            };
            self.metrics.retries.increment(1);
            sleep(backoff.nth_delay(failures, random())).await;
            self.take_place(message).await;
            // What an earlier try has said about the message is not said by this one.
            message.set_failure(before.clone());
        }
    }

    /// Waits for a place for a message that has left its own: it may wait outside, but the program's code
    /// runs in a place.
    async fn take_place(&self, message: &mut Message<T>) {
        let Some(places) = self.places.as_ref().filter(|_| message.place().is_left()) else {
            return;
        };
        // The semaphore is never closed.
        if let Ok(permit) = places.clone().acquire_owned().await {
            // A new one: what has kept the old place cannot leave this one.
            let place = message.place().next_holding(permit);
            message.set_place(place);
        }
    }

    /// Tells the program about failed messages, and the sources about these and the handled ones.
    async fn settle<'a>(
        &self,
        failed: &'a mut [Message<T>],
        handled: impl IntoIterator<Item = &'a mut Message<T>>,
    ) where
        T: 'a,
    {
        if !failed.is_empty() {
            for message in &mut *failed {
                self.take_place(message).await;
            }
            let span = debug_span!("handle_failed", messages = failed.len());
            let handle = async |failed: &mut [Message<T>]| {
                self.processor.handle_failed(failed).await;
            };
            settle_failed(failed, self.tries.within, handle).instrument(span).await;
        }
        acknowledge_all(handled.into_iter().chain(failed), &self.metrics);
    }
}

/// Drops the messages whose outcome does not matter any more.
fn drop_old<T>(messages: &mut Vec<Message<T>>) {
    if messages.iter().all(is_current) {
        return;
    }
    let (current, old) = std::mem::take(messages).into_iter().partition(is_current);
    *messages = current;
    old.into_iter().for_each(drop_contained);
}

/// An acknowledger that panics does not know.
fn is_current<T>(message: &Message<T>) -> bool {
    contained_now(|| message.is_current()).unwrap_or(true)
}

/// Drops a message. Its destructor is the program's.
fn drop_contained<T>(message: Message<T>) {
    let _ = contained_now(|| drop(message));
}

/// A processor before batchers.
pub(super) struct ProcessorStage<T, P: Processor<T>> {
    work: Work<T, P>,
    route: Route<P::Output>,
    place: Place,
}

impl<T, P: Processor<T>> ProcessorStage<T, P> {
    pub(super) fn new(work: Work<T, P>, route: Route<P::Output>) -> Self {
        Self { work, route, place: Place::default() }
    }
}

/// A processor in the last layer.
pub(super) struct LastProcessorStage<T, P> {
    work: Work<T, P>,
    place: Place,
    /// The handling of messages that have left their place. Dropping it drops them, as failed.
    waiting: JoinSet<()>,
}

impl<T, P> LastProcessorStage<T, P> {
    pub(super) fn new(work: Work<T, P>) -> Self {
        Self { work, place: Place::default(), waiting: JoinSet::new() }
    }
}

/// The span of a chunk in a processor.
macro_rules! span_of_chunk {
    ($work:expr, $messages:expr) => {
        debug_span!(
            "processor",
            index = $work.index,
            messages = $messages.len(),
            failed = tracing::field::Empty
        )
    };
}

impl<T, P> ProducerConsumer for ProcessorStage<T, P>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    type In = Message<T>;
    type Out = Forwarded<T, P::Output>;

    fn init(
        &mut self,
        context: &StageContext<ProducerConsumerHandle<Self>>,
    ) -> Result<(), ExitReason> {
        self.place = Place::fixed(&PhaseOfPlace::new(&context.phase));
        Ok(())
    }

    async fn handle_events(
        &mut self,
        mut messages: Vec<Message<T>>,
        _from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> Result<(), ExitReason> {
        self.work.place_in(&self.place, &mut messages);
        let span = span_of_chunk!(self.work, messages);
        let chunk = async {
            let mut handled = self.work.handle_chunk(messages, &*self.route).await;
            span.record("failed", handled.failed.len());
            self.work.settle(&mut handled.failed, []).await;
            handled
        };
        let Handled { forwarded, failed } = chunk.instrument(span.clone()).await;
        out.emit_all(forwarded);
        drop(failed);
        Ok(())
    }
}

impl<T, P> Work<T, P>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    /// Handles a chunk in the last layer, to the end.
    fn handle_to_the_end(&self, messages: Vec<Message<T>>) -> impl Future<Output = ()> + use<T, P> {
        let (work, span) = (self.clone(), span_of_chunk!(self, messages));
        let recorded = span.clone();
        let chunk = async move {
            let mut handled = work.handle_chunk(messages, |_| Ok(0)).await;
            let Handled { forwarded, failed } = &mut handled;
            recorded.record("failed", failed.len());
            drop(recorded);
            let done = forwarded.iter_mut().map(|forwarded| &mut forwarded.processed.message);
            work.settle(failed, done).await;
            let Handled { forwarded, failed } = &handled;
            let done = forwarded.iter().map(|forwarded| &forwarded.processed.message);
            let places: Vec<_> = done.chain(failed).map(Message::place).collect();
            // The program's destructors run when everything is acknowledged.
            drop(handled);
            places.iter().for_each(Place::leave);
        };
        chunk.instrument(span)
    }
}

/// Polls a future until it is ready, or until it has left its place.
async fn until_left(future: &mut (impl Future<Output = ()> + Unpin), place: &Place) -> bool {
    poll_fn(|cx| match future.poll_unpin(cx) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending if place.poll_left(cx) => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl<T, P> Behaviour for LastProcessorStage<T, P>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    type Stage = Self;
    type In = Message<T>;
    type Out = Infallible;

    const KIND: StageKind = StageKind::Consumer;

    fn stage(&mut self) -> &mut Self {
        self
    }

    fn init(&mut self, context: &StageContext<HandleOf<Self>>) -> Result<(), ExitReason> {
        self.place = Place::fixed(&PhaseOfPlace::new(&context.phase));
        Ok(())
    }

    async fn handle_events(
        &mut self,
        mut messages: Vec<Message<T>>,
        _from: &Subscription,
        _out: &mut Emitter<'_, Infallible>,
    ) -> Result<(), ExitReason> {
        let Some(places) = &self.work.places else {
            self.work.place_in(&self.place, &mut messages);
            self.work.handle_to_the_end(messages).await;
            return Ok(());
        };
        for message in messages {
            // One that had left may be tried again now. The semaphore is never closed.
            let Ok(permit) = places.clone().acquire_owned().await else { break };
            let place = self.place.next_holding(permit);
            let message = message.with_place(place.clone());
            let mut handling = Box::pin(self.work.handle_to_the_end(vec![message]));
            if until_left(&mut handling, &place).await {
                self.waiting.spawn(handling);
            } else {
                // The program may have kept it.
                place.leave();
            }
        }
        Ok(())
    }

    fn awaits_ready(&self, _owed: usize) -> bool {
        self.is_busy()
    }

    async fn ready(&mut self) {
        // A panic of the program is caught where it is called.
        let _ = self.waiting.join_next().await;
    }

    fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn is_occupied(&self) -> bool {
        // One that had left may be tried again.
        self.work.places.as_ref().is_some_and(|places| places.available_permits() == 0)
    }

    fn report(&mut self, report: &mut StageReport) {
        while self.waiting.try_join_next().is_some() {}
        report.in_progress += self.waiting.len();
    }
}

/// The failure of a message for a batcher that does not exist.
pub(super) fn no_batcher(wanted: &str, known: &str) -> Failure {
    let why = format!("there is no batcher {wanted}, expected one of {known}");
    Failure::of_kind(FailureKind::NoBatcher, why)
}
