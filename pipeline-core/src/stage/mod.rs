//! Stages: the traits that users implement, their options and handles.

mod behaviour;
pub(crate) mod buffer;
mod consumer;
mod context;
pub(crate) mod demand;
mod emitter;
mod event_stream;
mod gauges;
mod handle;
mod inlet;
mod limiting;
mod link;
mod mailbox;
mod message;
mod options;
pub(crate) mod outlet;
mod place;
mod producer;
mod producer_consumer;
mod rate_limit;
mod restart;
mod runtime;
#[cfg(test)]
mod runtime_tests;
mod slot;
mod spec;
mod time_limit;
mod timers;
mod times;

use std::{
    future::{Future, poll_fn},
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll},
};

pub(crate) use self::{
    behaviour::{Behaviour, HandleOf},
    consumer::AsConsumer,
    gauges::{Gauges, QueueProbe, QueueState},
    limiting::SharedLimiter,
    link::{EventPort, Phase, Ports, Subscribe, ToConsumer, ToProducer},
    place::PhaseOfPlace,
    producer::AsProducer,
    producer_consumer::AsProducerConsumer,
    rate_limit::RateLimiter,
    restart::RestartBudget,
    slot::{Kill, Occupant, Origin, Slot, Target, next_id},
    spec::{Observed, PipelineShared, Prepared, StageSpec, TypedStageSpec},
    time_limit::TimeLimit,
};
pub use self::{
    buffer::BufferKeep,
    consumer::Consumer,
    context::StageContext,
    emitter::Emitter,
    event_stream::EventStream,
    gauges::SourceReport,
    handle::{ConsumerHandle, ProducerConsumerHandle, ProducerHandle, StageHandle},
    message::{CallError, Caller, HandleCall, HandleCast, HandleInfo},
    options::Stage,
    outlet::{DemandMode, WhenUnsubscribed},
    place::Place,
    producer::{NoInput, Producer},
    producer_consumer::ProducerConsumer,
    rate_limit::RateLimit,
    timers::StageTimer,
};
use crate::exit::ExitReason;

/// Runs a callback and turns a panic in it into an [`ExitReason`].
///
/// A stage or worker that panicked is not called again, except for its `terminate`, so no code sees
/// state that the panic left inconsistent.
pub(crate) async fn catch_panic<F, T>(callback: F) -> Result<T, ExitReason>
where
    F: Future<Output = Result<T, ExitReason>>,
{
    let mut callback = pin!(callback);
    poll_fn(|context| poll_contained(callback.as_mut(), context)).await
}

/// Polls a callback, and turns a panic in it into its outcome.
pub(crate) fn poll_contained<T>(
    callback: Pin<&mut impl Future<Output = Result<T, ExitReason>>>,
    context: &mut Context<'_>,
) -> Poll<Result<T, ExitReason>> {
    let polled = catch_unwind(AssertUnwindSafe(|| callback.poll(context)));
    polled.unwrap_or_else(|payload| Poll::Ready(Err(ExitReason::from_panic(&*payload))))
}

/// The same for a synchronous callback.
pub(crate) fn catch_panic_now<T>(
    callback: impl FnOnce() -> Result<T, ExitReason>,
) -> Result<T, ExitReason> {
    let outcome = catch_unwind(AssertUnwindSafe(callback));
    outcome.unwrap_or_else(|payload| Err(ExitReason::from_panic(&*payload)))
}

/// A random number from 0 to 1, so that clients that fail together do not retry together.
pub(crate) fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

/// A random number below this, or 0.
pub(crate) fn random_below(count: usize) -> usize {
    usize::try_from(RandomState::new().hash_one(()) % count.max(1) as u64).unwrap_or_default()
}
