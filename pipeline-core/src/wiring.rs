//! What may be put together, and what the compiler says of the rest.

use std::sync::Arc;

use crate::{
    pipeline::Complete,
    stage::{Consumer, ProducerConsumer, Target},
};

/// `Events: Flow<E, In>` says that events of type `E` can go to a stage that takes `In`: the two are
/// the same type.
///
/// It is `E == In`, in words that tell those who wire stages what did not meet.
#[diagnostic::on_unimplemented(
    message = "events of type `{E}` cannot go to a stage that takes `{In}`",
    label = "this stage takes `{In}`, but would be given `{E}`",
    note = "a `map(..)` between the two can turn one type into the other"
)]
pub trait Flow<E, In>: Sealed {
    /// The same source, and the same events.
    #[doc(hidden)]
    fn feed(source: Source<E>) -> Source<In>;
}

/// What flows from stage to stage. It has no values: it stands in bounds, as in `Events: Flow<E, In>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {}

// It is not `E: Flow<E>`: the compiler could not conclude from what a stage takes what comes.
impl<E> Flow<E, E> for Events {
    fn feed(source: Source<E>) -> Source<E> {
        source
    }
}

/// A [`Consumer`] of events of type `E`. Every consumer of such events is one.
///
/// It is `Consumer<Event = E>`, in words as good as those of [`Flow`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a consumer",
    label = "takes no events",
    note = "`for_each(..)` makes a consumer of an async function, and `into_sink(..)` of a sink; others implement `Consumer`"
)]
pub trait ConsumerOf<E>: Consumer {
    /// The source, as the consumer sees it.
    #[doc(hidden)]
    fn feed(source: Source<E>) -> Source<Self::Event>;
}

impl<C, E> ConsumerOf<E> for C
where
    C: Consumer,
    Events: Flow<E, C::Event>,
{
    fn feed(source: Source<E>) -> Source<C::Event> {
        Events::feed(source)
    }
}

/// A [`ProducerConsumer`] that takes events of type `E`. Every producer-consumer that does is one.
///
/// It is `ProducerConsumer<In = E>`, in words as good as those of [`Flow`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a producer-consumer",
    label = "does not turn events into others",
    note = "`map(..)` and `filter(..)` make a producer-consumer of a function, and `batch(..)` puts events together; others \
            implement `ProducerConsumer`"
)]
pub trait ProducerConsumerOf<E>: ProducerConsumer {
    /// The source, as the stage sees it.
    #[doc(hidden)]
    fn feed(source: Source<E>) -> Source<Self::In>;
}

impl<T, E> ProducerConsumerOf<E> for T
where
    T: ProducerConsumer,
    Events: Flow<E, T::In>,
{
    fn feed(source: Source<E>) -> Source<T::In> {
        Events::feed(source)
    }
}

/// What can be subscribed to for events of type `E`. Public only because a public trait names it.
#[expect(missing_debug_implementations, reason = "nobody can have one")]
pub struct Source<E>(pub(crate) Arc<dyn Target<E>>);

/// A [`PipelineBuilder`](crate::PipelineBuilder) in this state can be started: it is [`Complete`].
#[diagnostic::on_unimplemented(
    message = "this pipeline has no end yet, so it cannot be started",
    label = "it is `{Self}`, not `Complete`",
    note = "`Open<E>`: nobody takes its events of type `E`. End it with `.consumer(..)` or `.consumer_supervisor(..)`, \
            or take the events yourself with `.into_stream(..)`",
    note = "`Empty`: it has no source either. Begin with `.producer(..)`"
)]
pub trait HasEnd: Sealed {}

impl HasEnd for Complete {}

/// Only what is here decides what fits. Public only because a public trait names it.
pub trait Sealed {}

impl Sealed for Complete {}

impl Sealed for Events {}

/// What a producer receives: it has no values.
///
/// It is not [`Infallible`](std::convert::Infallible), what a consumer emits, or else a producer
/// could subscribe to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {}
