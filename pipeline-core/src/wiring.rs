//! The bounds that decide which stages fit together, with their compiler messages, and other types
//! that are public only because a public trait names them.

use std::sync::Arc;

pub use crate::supervisor::worker::Job;
use crate::{
    builder::Complete,
    stage::{Consumer, ProducerConsumer, Target},
};

/// `Events: Flow<E, In>` means that events of type `E` can go to a stage that takes `In`: both are
/// the same type.
///
/// It is `E == In`, with a compiler message that names both types.
#[diagnostic::on_unimplemented(
    message = "events of type `{E}` cannot go to a stage that takes `{In}`",
    label = "this stage takes `{In}`, but would be given `{E}`",
    note = "a `map(..)` between the two can turn one type into the other"
)]
pub trait Flow<E, In>: Sealed {
    /// Returns the source unchanged.
    #[doc(hidden)]
    fn feed(source: Source<E>) -> Source<In>;
}

/// A marker type for events that flow between stages. It has no values and appears in bounds such
/// as `Events: Flow<E, In>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {}

// Not `E: Flow<E>`: the compiler could not infer the event type from the type that a stage takes.
impl<E> Flow<E, E> for Events {
    fn feed(source: Source<E>) -> Source<E> {
        source
    }
}

/// A [`Consumer`] of events of type `E`. Every consumer of such events implements it.
///
/// It is `Consumer<Event = E>`, with compiler messages as good as those of [`Flow`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a consumer",
    label = "takes no events",
    note = "`for_each(..)` makes a consumer of an async function, and `into_sink(..)` of a sink; others implement \
            `Consumer`; a `ConsumerSupervisor` is added by `consumer_supervisor(..)`"
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

/// A [`ProducerConsumer`] that takes events of type `E`. Every such producer-consumer implements
/// it.
///
/// It is `ProducerConsumer<In = E>`, with compiler messages as good as those of [`Flow`].
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

/// A stage that emits events of type `E`. Public only because a public trait names it.
#[expect(missing_debug_implementations, reason = "it cannot be obtained outside the crate")]
pub struct Source<E>(pub(crate) Arc<dyn Target<E>>);

/// The state of a [`PipelineBuilder`](crate::builder::PipelineBuilder) that can be started: it is
/// [`Complete`].
#[diagnostic::on_unimplemented(
    message = "this pipeline has no end yet, so it cannot be started",
    label = "it is `{Self}`, not `Complete`",
    note = "`Open<E>`: no stage takes its events of type `E`. End it with `.consumer(..)` or `.consumer_supervisor(..)`, \
            or take the events yourself with `.into_stream(..)`",
    note = "`Empty`: it has no producer either. Begin with `.producer(..)`"
)]
pub trait HasEnd: Sealed {}

impl HasEnd for Complete {}

/// Prevents implementations outside this module. Public only because a public trait names it.
pub trait Sealed {}

impl Sealed for Complete {}

impl Sealed for Events {}

/// The events that a callback received and has not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unprocessed {
    /// Events that were not begun.
    pub pending: usize,
    /// Events that were begun.
    pub in_progress: usize,
}
