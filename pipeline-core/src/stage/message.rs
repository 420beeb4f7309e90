//! The messages that a program sends to a running stage.

use std::{
    convert::Infallible,
    future::{Future, ready},
};

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Emitter, catch_panic};
use crate::exit::ExitReason;

/// Answers messages of type `M`, sent by [`StageHandle::call`](crate::stage::StageHandle::call).
///
/// `E` is the stage's event type; omit it for a consumer. The callback and its contract are those
/// of GenStage's `handle_call`.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Caller, Emitter, HandleCall, Producer},
/// };
///
/// /// Emits the numbers that it receives.
/// struct Numbers;
///
/// impl Producer for Numbers {
///     type Event = u64;
///
///     async fn handle_demand(&mut self, _: usize, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
///         Ok(())
///     }
/// }
///
/// impl HandleCall<Vec<u64>, u64> for Numbers {
///     type Reply = usize;
///
///     async fn handle_call(
///         &mut self,
///         events: Vec<u64>,
///         caller: &mut Caller<usize>,
///         out: &mut Emitter<'_, u64>,
///     ) -> Result<(), ExitReason> {
///         caller.reply(events.len());
///         out.emit_all(events);
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer calls of type `{M}`",
    label = "this stage has no `HandleCall<{M}, {E}>`",
    note = "`HandleCall<M, E>` is for messages of type `M` to a stage that emits `E`; `HandleCall<M>` is for a consumer, \
            which emits nothing"
)]
pub trait HandleCall<M, E = Infallible>: Send + 'static {
    /// The type of the answer.
    type Reply: Send + 'static;

    /// Handles the message. It may emit events, may reply now, later, or not at all, and may end
    /// the stage.
    fn handle_call(
        &mut self,
        message: M,
        caller: &mut Caller<Self::Reply>,
        out: &mut Emitter<'_, E>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;
}

/// Handles messages of type `M`, sent by [`StageHandle::cast`](crate::stage::StageHandle::cast),
/// which have no answer.
///
/// `E` is the stage's event type; omit it for a consumer.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Consumer, Emitter, HandleCast},
///     subscription::Subscription,
/// };
/// use std::convert::Infallible;
///
/// struct Log { verbose: bool }
/// struct Verbose(bool);
///
/// impl Consumer for Log {
///     type Event = String;
///
///     async fn handle_events(&mut self, lines: Vec<String>, _: &Subscription) -> Result<(), ExitReason> {
///         if self.verbose { println!("{lines:?}"); }
///         Ok(())
///     }
/// }
///
/// impl HandleCast<Verbose> for Log {
///     async fn handle_cast(&mut self, verbose: Verbose, _: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
///         self.verbose = verbose.0;
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take casts of type `{M}`",
    label = "this stage has no `HandleCast<{M}, {E}>`",
    note = "`HandleCast<M, E>` is for messages of type `M` to a stage that emits `E`; `HandleCast<M>` is for a consumer, \
            which emits nothing"
)]
pub trait HandleCast<M, E = Infallible>: Send + 'static {
    /// Handles the message. It may emit events, and may end the stage.
    fn handle_cast(
        &mut self,
        message: M,
        out: &mut Emitter<'_, E>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;
}

/// Handles messages of type `M` that were queued behind the events that the stage held, by
/// [`StageHandle::sync_info`](crate::stage::StageHandle::sync_info) or
/// [`async_info`](crate::stage::StageHandle::async_info).
///
/// `E` is the stage's event type; omit it for a consumer.
///
/// ```
/// use pipeline_core::{
///     ExitReason,
///     stage::{Emitter, HandleInfo, Producer},
/// };
///
/// struct Prices;
/// struct EndOfDay;
///
/// impl Producer for Prices {
///     type Event = u64;
///
///     async fn handle_demand(&mut self, _: usize, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
///         Ok(())
///     }
/// }
///
/// impl HandleInfo<EndOfDay, u64> for Prices {
///     async fn handle_info(&mut self, _: EndOfDay, _: &mut Emitter<'_, u64>) -> Result<(), ExitReason> {
///         println!("all prices are out");
///         Err(ExitReason::Normal)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take infos of type `{M}`",
    label = "this stage has no `HandleInfo<{M}, {E}>`",
    note = "`HandleInfo<M, E>` is for messages of type `M` to a stage that emits `E`; `HandleInfo<M>` is for a consumer, \
            which emits nothing"
)]
pub trait HandleInfo<M, E = Infallible>: Send + 'static {
    /// Handles the message. It may emit events, and may end the stage.
    fn handle_info(
        &mut self,
        message: M,
        out: &mut Emitter<'_, E>,
    ) -> impl Future<Output = Result<(), ExitReason>> + Send;
}

/// The caller that waits for the answer to a call. [`HandleCall`] has an example.
///
/// ```
/// # use std::convert::Infallible;
/// # use pipeline_core::{
/// #     ExitReason, Pipeline,
/// #     source::{QueueOptions, queue},
/// #     stage::{Consumer, Emitter, HandleCall},
/// #     subscription::{SubscribeOptions, Subscription},
/// # };
/// use pipeline_core::stage::{Caller, ConsumerHandle};
///
/// /// Answers callers with the next event.
/// #[derive(Default)]
/// struct Watch {
///     waiting: Vec<Caller<u64>>,
/// }
///
/// struct Next;
///
/// impl HandleCall<Next> for Watch {
///     type Reply = u64;
///
///     async fn handle_call(
///         &mut self,
///         _: Next,
///         caller: &mut Caller<u64>,
///         _out: &mut Emitter<'_, Infallible>,
///     ) -> Result<(), ExitReason> {
///         self.waiting.push(caller.take());
///         Ok(())
///     }
/// }
///
/// impl Consumer for Watch {
///     type Event = u64;
///
///     async fn handle_events(
///         &mut self,
///         events: Vec<u64>,
///         _from: &Subscription,
///     ) -> Result<(), ExitReason> {
///         for mut caller in self.waiting.drain(..) {
///             caller.reply_now(events[0]);
///         }
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (queue, producer) = queue(QueueOptions::new());
/// # let pipeline = Pipeline::builder("prices")
/// #     .producer(producer)
/// #     .consumer(Watch::default(), SubscribeOptions::new())
/// #     .start()?;
/// # let watch: ConsumerHandle<Watch> = pipeline.stage("consumer").ok_or("no watch")?;
/// let (next, pushed) = tokio::join!(watch.call(Next), queue.push(7));
/// assert_eq!(next?, 7);
/// # pushed?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Caller<R> {
    sender: Option<oneshot::Sender<R>>,
    reply: Option<R>,
}

impl<R> Caller<R> {
    /// Replies after the events of the callback have been sent, even if the callback ends the
    /// stage.
    pub fn reply(&mut self, reply: R) {
        self.reply = Some(reply);
    }

    /// Replies at once, before the events of the callback are sent.
    pub fn reply_now(&mut self, reply: R) {
        if let Some(sender) = self.sender.take() {
            // A caller that no longer waits is ignored.
            let _ = sender.send(reply);
        }
    }

    /// Takes the caller out of the callback, to reply later from another callback or task. Dropping
    /// it without a reply gives the caller [`CallError::NoReply`].
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { sender: self.sender.take(), reply: None }
    }
}

impl<R> Drop for Caller<R> {
    fn drop(&mut self) {
        if let (Some(sender), Some(reply)) = (self.sender.take(), self.reply.take()) {
            let _ = sender.send(reply);
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// The stage is not running, or ended before it handled the message.
    #[error("the stage is not running")]
    NotRunning,
    /// The stage handled the message and did not answer.
    #[error("the stage did not reply")]
    NoReply,
    /// Too many messages are queued for the stage.
    #[error("too many messages are queued for the stage")]
    Full,
    /// The answer did not arrive in time.
    #[error("the stage did not reply in time")]
    TimedOut,
    /// The stage called itself in its own callback, which would have waited forever.
    #[error("a stage cannot wait for itself in its own callback")]
    OwnCallback,
}

/// A message in the mailbox of a stage of type `S`, of any type.
pub(crate) trait UserMessage<S, E>: Send {
    fn handle<'a, 'e: 'a>(
        self: Box<Self>,
        stage: &'a mut S,
        out: &'a mut Emitter<'e, E>,
    ) -> BoxFuture<'a, Handled>;
}

/// The result of handling a message.
pub(crate) struct Handled {
    pub(crate) outcome: Result<(), ExitReason>,
    /// To be dropped when the emitted events have been sent.
    pub(crate) answer: Option<Box<dyn Send>>,
}

/// A message with its permit to be in the mailbox.
pub(crate) struct Envelope<S, E> {
    pub(crate) message: Box<dyn UserMessage<S, E>>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

pub(crate) struct Call<M, R> {
    pub(crate) message: M,
    pub(crate) answer: oneshot::Sender<R>,
}

impl<S, E, M> UserMessage<S, E> for Call<M, S::Reply>
where
    S: HandleCall<M, E>,
    E: Send + 'static,
    M: Send + 'static,
{
    fn handle<'a, 'e: 'a>(
        self: Box<Self>,
        stage: &'a mut S,
        out: &'a mut Emitter<'e, E>,
    ) -> BoxFuture<'a, Handled> {
        let Self { message, answer } = *self;
        let mut caller = Caller { sender: Some(answer), reply: None };
        Box::pin(async move {
            let outcome =
                catch_panic(async { stage.handle_call(message, &mut caller, out).await }).await;
            Handled { outcome, answer: Some(Box::new(caller)) }
        })
    }
}

/// Events that the stage emits although they are not its own.
pub(crate) struct Emit<E> {
    pub(crate) events: Vec<E>,
    pub(crate) emitted: oneshot::Sender<()>,
}

impl<S: Send, E: Send + 'static> UserMessage<S, E> for Emit<E> {
    fn handle<'a, 'e: 'a>(
        self: Box<Self>,
        _stage: &'a mut S,
        out: &'a mut Emitter<'e, E>,
    ) -> BoxFuture<'a, Handled> {
        let Self { events, emitted } = *self;
        out.emit_all(events);
        let caller = Caller { sender: Some(emitted), reply: Some(()) };
        Box::pin(ready(Handled { outcome: Ok(()), answer: Some(Box::new(caller)) }))
    }
}

pub(crate) struct Cast<M>(pub(crate) M);

impl<S, E, M> UserMessage<S, E> for Cast<M>
where
    S: HandleCast<M, E>,
    E: Send + 'static,
    M: Send + 'static,
{
    fn handle<'a, 'e: 'a>(
        self: Box<Self>,
        stage: &'a mut S,
        out: &'a mut Emitter<'e, E>,
    ) -> BoxFuture<'a, Handled> {
        Box::pin(async move {
            let outcome = catch_panic(async { stage.handle_cast(self.0, out).await }).await;
            Handled { outcome, answer: None }
        })
    }
}

pub(crate) struct Info<M>(pub(crate) M);

impl<S, E, M> UserMessage<S, E> for Info<M>
where
    S: HandleInfo<M, E>,
    E: Send + 'static,
    M: Send + 'static,
{
    fn handle<'a, 'e: 'a>(
        self: Box<Self>,
        stage: &'a mut S,
        out: &'a mut Emitter<'e, E>,
    ) -> BoxFuture<'a, Handled> {
        Box::pin(async move {
            let outcome = catch_panic(async { stage.handle_info(self.0, out).await }).await;
            Handled { outcome, answer: None }
        })
    }
}
