//! The stage of a processor.

use std::sync::Arc;

use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug_span};

use super::{
    batch::Processed,
    failure::{Failure, FailureKind},
    handling::{acknowledge_all, contained, contained_now, settle_failed},
    message::Message,
    metrics::MessageMetrics,
    processor::{Processor, Tries},
};
use crate::{
    deadline::Deadline,
    exit::ExitReason,
    stage::{Consumer, Emitter, ProducerConsumer, random},
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
pub(super) struct Work<P> {
    pub(super) processor: Arc<P>,
    pub(super) tries: Tries,
    pub(super) metrics: MessageMetrics,
    /// The number of the processor.
    pub(super) index: usize,
}

impl<P> Clone for Work<P> {
    fn clone(&self) -> Self {
        let Self { processor, tries, metrics, index } = self;
        Self {
            processor: processor.clone(),
            tries: *tries,
            metrics: metrics.clone(),
            index: *index,
        }
    }
}

impl<P> Work<P> {
    /// Handles a chunk. Returns the handled messages and the failed ones, each in order. Messages of a
    /// dropped future are acknowledged as failed.
    async fn handle_chunk<T>(
        &self,
        mut messages: Vec<Message<T>>,
    ) -> (Vec<Processed<T, P::Output>>, Vec<Message<T>>)
    where
        P: Processor<T>,
    {
        let (mut handled, mut failed) = (Vec::with_capacity(messages.len()), Vec::new());
        let prepared = contained(async { self.processor.prepare_messages(&mut messages).await });
        if let Err(failure) = prepared.await {
            for message in &mut messages {
                message.fail(failure.clone());
            }
            return (handled, messages);
        }
        for mut message in messages {
            let span = debug_span!("message", failure = tracing::field::Empty);
            let output = self.handle(&mut message).instrument(span.clone()).await;
            match output {
                Some(output) if message.failure().is_none() => {
                    handled.push(Processed { message, output });
                }
                _ => {
                    span.record("failure", message.failure().map(|failure| failure.kind().name()));
                    failed.push(message);
                }
            }
        }
        (handled, failed)
    }

    /// Handles a message, as often as it may be tried. If there is no output, it has failed.
    async fn handle<T>(&self, message: &mut Message<T>) -> Option<P::Output>
    where
        P: Processor<T>,
    {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let limit = Deadline::after(begun, self.tries.within);
            let tried =
                limit.limit(contained(async { self.processor.handle_message(message).await }));
            let tried = tried.await.unwrap_or_else(|_| {
                let within = self.tries.within;
                Err(Failure::new(format!("handle_message took longer than {within:?}")))
            });
            self.metrics.handled(begun.elapsed());
            let failure = match tried {
                Ok(output) => return Some(output),
                Err(failure) => failure,
            };
            failures += 1;
            let backoff = self.tries.backoff_after(failures, &failure);
            let Some(backoff) = backoff else {
                message.fail(failure);
                return None;
            };
            self.metrics.retries.increment(1);
            sleep(backoff.nth_delay(failures, random())).await;
        }
    }

    /// Tells the program and the sources about failed messages, and the sources about handled ones.
    async fn settle<T>(
        &self,
        mut failed: Vec<Message<T>>,
        handled: impl IntoIterator<Item = Message<T>>,
    ) where
        P: Processor<T>,
    {
        if !failed.is_empty() {
            let span = debug_span!("handle_failed", messages = failed.len());
            let handle = async |failed: &mut [Message<T>]| {
                self.processor.handle_failed(failed).await;
            };
            settle_failed(&mut failed, handle).instrument(span).await;
        }
        acknowledge_all(handled.into_iter().chain(failed), &self.metrics);
    }
}

/// A processor before batchers.
pub(super) struct ProcessorStage<P, U> {
    pub(super) work: Work<P>,
    pub(super) route: Route<U>,
}

impl<P, U> ProcessorStage<P, U> {
    /// Finds the batchers of handled messages. Those without one have failed.
    fn forward<T>(
        &self,
        handled: Vec<Processed<T, U>>,
        failed: &mut Vec<Message<T>>,
    ) -> Vec<Forwarded<T, U>> {
        let routed = handled.into_iter().filter_map(|mut processed| {
            let to = contained_now(|| (self.route)(&processed.output));
            match to.and_then(|to| to) {
                Ok(to) => Some(Forwarded { to, processed }),
                Err(failure) => {
                    processed.message.fail(failure);
                    failed.push(processed.message);
                    None
                }
            }
        });
        routed.collect()
    }
}

/// A processor in the last layer.
pub(super) struct LastProcessorStage<P> {
    pub(super) work: Work<P>,
}

/// The span of a chunk in a processor.
macro_rules! span_of_chunk {
    ($work:expr, $messages:expr) => {
        debug_span!("processor", index = $work.index, messages = $messages.len())
    };
}

/// `T` is part of the type, because a processor may process messages with several types of data.
pub(super) struct Typed<S, T>(pub(super) S, pub(super) std::marker::PhantomData<fn(T)>);

impl<T, P> ProducerConsumer for Typed<ProcessorStage<P, P::Output>, T>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    type In = Message<T>;
    type Out = Forwarded<T, P::Output>;

    async fn handle_events(
        &mut self,
        messages: Vec<Message<T>>,
        _from: &Subscription,
        out: &mut Emitter<'_, Self::Out>,
    ) -> Result<(), ExitReason> {
        let span = span_of_chunk!(self.0.work, messages);
        let chunk = async {
            let (handled, mut failed) = self.0.work.handle_chunk(messages).await;
            let forwarded = self.0.forward(handled, &mut failed);
            self.0.work.settle(failed, []).await;
            forwarded
        };
        out.emit_all(chunk.instrument(span).await);
        Ok(())
    }
}

impl<T, P> Consumer for Typed<LastProcessorStage<P>, T>
where
    T: Send + Sync + 'static,
    P: Processor<T>,
{
    type Event = Message<T>;

    async fn handle_events(
        &mut self,
        messages: Vec<Message<T>>,
        _from: &Subscription,
    ) -> Result<(), ExitReason> {
        let span = span_of_chunk!(self.0.work, messages);
        let chunk = async {
            let (handled, failed) = self.0.work.handle_chunk(messages).await;
            let handled = handled.into_iter().map(|processed| processed.message);
            self.0.work.settle(failed, handled).await;
        };
        chunk.instrument(span).await;
        Ok(())
    }
}

/// The failure of a message for a batcher that does not exist.
pub(super) fn no_batcher(wanted: &str, known: &str) -> Failure {
    let why = format!("there is no batcher {wanted}, expected one of {known}");
    Failure::of_kind(FailureKind::NoBatcher, why)
}
