//! A stage before it runs: where it comes from, and how it hands on its events.

use std::{fmt, sync::Arc, time::Duration};

use super::restart::RestartBudget;
use crate::{
    buffer::{Buffer, BufferKeep},
    dispatcher::{DemandDispatcher, Dispatcher},
    outlet::{DemandMode, Outlet, Unsubscribed},
    rate_limit::RateLimit,
    snapshot::StageKind,
};

/// How many events without demand a producer keeps. GenStage's default.
const PRODUCER_BUFFER: usize = 10_000;

/// A stage that is to run, with its options: what a pipeline's `_with` methods take.
///
/// The options are about the events that leave the stage, `E`; a consumer has none to set.
///
/// ```
/// use pipeline_core::{BroadcastDispatcher, BufferKeep, DemandMode, Stage, from_iter};
///
/// let ticks = Stage::new(from_iter(0..100))
///     .named("ticks")
///     .buffer_size(500)
///     .buffer_keep(BufferKeep::First)
///     .dispatcher(BroadcastDispatcher::new)
///     .demand(DemandMode::Accumulate);
///
/// // One that fails is made anew.
/// let stubborn = Stage::restarting(|| from_iter(0..100));
/// # fn stage<S, E>(_: &Stage<S, E>) {}
/// # stage::<_, i32>(&ticks);
/// # stage::<_, i32>(&stubborn);
/// ```
#[must_use]
pub struct Stage<S, E> {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) make: Box<dyn FnMut() -> Option<S> + Send>,
    pub(crate) budget: RestartBudget,
    pub(crate) options: StageOptions<E>,
}

/// How a stage hands on its events.
pub(crate) struct StageOptions<E> {
    /// `None` for what is usual for the kind.
    buffer_size: Option<usize>,
    keep: BufferKeep,
    dispatcher: Box<dyn Fn() -> Box<dyn Dispatcher<E>> + Send>,
    mode: DemandMode,
    unsubscribed: Unsubscribed,
    pub(crate) rate_limit: Option<RateLimit>,
}

impl<S: Send + 'static, E: 'static> Stage<S, E> {
    /// A stage that ends for good when it ends.
    pub fn new(stage: S) -> Self {
        let mut stage = Some(stage);
        // The first start takes it; then there is nothing to restart with.
        Self::made_by(move || stage.take(), 0)
    }

    /// A stage that is made anew when it fails, up to 3 times within 5 seconds: then the whole
    /// pipeline stops. One that ends gracefully is not made anew.
    ///
    /// Its subscriptions to others are made again. Those of others to it end, with what was on its
    /// way to them delivered; see [`Cancel::Reconnect`](crate::Cancel::Reconnect). The events it had
    /// in hand, in its buffer and in its mailbox are lost, and reported.
    ///
    /// ```
    /// use pipeline_core::{Pipeline, Stage, SubscribeOptions, for_each, from_iter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let consumer = Stage::restarting(|| for_each(async |n: u64| println!("{n}")))
    ///     .named("print")
    ///     .max_restarts(10, std::time::Duration::from_secs(60));
    /// let mut pipeline = Pipeline::builder("numbers")
    ///     .producer(from_iter(0..10))
    ///     .consumer_with(consumer, SubscribeOptions::new())
    ///     .start()?;
    /// assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restarting(mut make: impl FnMut() -> S + Send + 'static) -> Self {
        Self::made_by(move || Some(make()), 3)
    }

    fn made_by(make: impl FnMut() -> Option<S> + Send + 'static, restarts: usize) -> Self {
        Self {
            name: None,
            make: Box::new(make),
            budget: RestartBudget::new(restarts, Duration::from_secs(5)),
            options: StageOptions::default(),
        }
    }

    /// How many restarts within which time are too many by one. Default 3 within 5 seconds, for a
    /// stage that is [`restarting`](Self::restarting).
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = RestartBudget::new(restarts, within);
        self
    }

    /// What the stage is called, in metrics, logs and reports. Default its kind.
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many emitted events wait while nobody can take them. Default 10,000 for a producer; no
    /// bound for a producer-consumer, which handles no more than one message too early. With 0,
    /// every event without demand is discarded.
    pub fn buffer_size(mut self, events: usize) -> Self {
        self.options.buffer_size = Some(events);
        self
    }

    /// Which events a full buffer keeps. Default [`BufferKeep::Last`].
    pub fn buffer_keep(mut self, keep: BufferKeep) -> Self {
        self.options.keep = keep;
        self
    }

    /// Which consumer gets which event. Default a [`DemandDispatcher`]. A stage that is made anew
    /// gets a new one.
    pub fn dispatcher<D: Dispatcher<E>>(mut self, make: impl Fn() -> D + Send + 'static) -> Self {
        self.options.dispatcher = Box::new(move || Box::new(make()));
        self
    }

    /// Whether demand is acted upon from the start. Default [`DemandMode::Forward`]; only a producer
    /// can accumulate it.
    pub fn demand(mut self, mode: DemandMode) -> Self {
        self.options.mode = mode;
        self
    }

    /// What happens to events while nobody is subscribed. Default [`Unsubscribed::Buffer`].
    pub fn unsubscribed(mut self, events: Unsubscribed) -> Self {
        self.options.unsubscribed = events;
        self
    }

    /// How many events may leave the stage in an interval. Default no limit. It can be changed while
    /// the stage runs, by [`StageHandle::rate_limit`](crate::StageHandle::rate_limit).
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.options.rate_limit = Some(limit);
        self
    }

    /// The same, of another type.
    pub(crate) fn map<T>(self, wrap: impl Fn(S) -> T + Send + 'static) -> Stage<T, E> {
        let Self { name, mut make, budget, options } = self;
        Stage { name, make: Box::new(move || make().map(&wrap)), budget, options }
    }
}

impl<E: 'static> StageOptions<E> {
    fn buffer_size(&self, kind: StageKind) -> usize {
        let usual = if kind == StageKind::Producer { PRODUCER_BUFFER } else { usize::MAX };
        self.buffer_size.unwrap_or(usual)
    }

    /// How many events the buffer of a stage of this kind holds, if it has one with a bound.
    pub(crate) fn buffer_capacity(&self, kind: StageKind) -> Option<usize> {
        let size = self.buffer_size(kind);
        (kind.emits() && size != usize::MAX).then_some(size)
    }

    pub(crate) fn outlet(&self, kind: StageKind) -> Outlet<E> {
        let buffer = Buffer::new(self.buffer_size(kind), self.keep);
        let mode = if kind == StageKind::Producer { self.mode } else { DemandMode::Forward };
        Outlet::new((self.dispatcher)(), buffer, mode, self.unsubscribed)
    }
}

impl<E: 'static> Default for StageOptions<E> {
    fn default() -> Self {
        Self {
            buffer_size: None,
            keep: BufferKeep::default(),
            dispatcher: Box::new(|| Box::new(DemandDispatcher::new())),
            mode: DemandMode::default(),
            unsubscribed: Unsubscribed::default(),
            rate_limit: None,
        }
    }
}

impl<S, E> fmt::Debug for Stage<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("name", &self.name).finish_non_exhaustive()
    }
}
