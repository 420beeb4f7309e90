//! A stage before it runs, with its options.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    buffer::DiscardFn,
    limiting::{Limiting, SharedLimiter},
    restart::RestartBudget,
};
use crate::{
    dispatcher::{DemandDispatcher, Dispatcher},
    snapshot::StageKind,
    stage::{BufferKeep, DemandMode, RateLimit, WhenUnsubscribed, buffer::Buffer, outlet::Outlet},
};

/// The default buffer size of a producer. It is GenStage's.
const PRODUCER_BUFFER: usize = 10_000;

/// A stage before it runs, with its options: the argument of a pipeline's `_with` methods.
///
/// The options concern the events that leave the stage, of type `E`; a consumer has none.
///
/// ```
/// use pipeline_core::{
///     dispatcher::BroadcastDispatcher,
///     source::from_iter,
///     stage::{BufferKeep, DemandMode, Stage},
/// };
///
/// let ticks = Stage::new(from_iter(0..100))
///     .named("ticks")
///     .buffer_size(500)
///     .buffer_keep(BufferKeep::First)
///     .dispatcher(BroadcastDispatcher::new)
///     .demand_mode(DemandMode::Accumulate);
///
/// // It is restarted when it fails.
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

/// Makes the dispatcher of a stage.
type MakeDispatcher<E> = Box<dyn Fn() -> Box<dyn Dispatcher<E>> + Send>;

/// Options for the events that a stage emits.
pub(crate) struct StageOptions<E> {
    /// `None` for the default of the kind.
    buffer_size: Option<usize>,
    keep: BufferKeep,
    /// By default a [`DemandDispatcher`].
    dispatcher: Option<MakeDispatcher<E>>,
    mode: DemandMode,
    when_unsubscribed: WhenUnsubscribed,
    pub(crate) rate_limit: Option<Limiting>,
    /// Makes the function that receives the events that are discarded.
    discard: Option<Box<dyn Fn() -> DiscardFn<E> + Send>>,
}

impl<S: Send + 'static, E: 'static> Stage<S, E> {
    /// A stage that is not restarted.
    pub fn new(stage: S) -> Self {
        let mut stage = Some(stage);
        // The first start takes it; a restart has nothing to start.
        Self::made_by(move || stage.take(), 0)
    }

    /// A stage that `make` creates again when it fails, up to 3 times within 5 seconds: after that
    /// the whole pipeline stops. After a graceful end it is not restarted.
    ///
    /// Its own subscriptions are made again. Those of its consumers end after the events in transit
    /// have been delivered; see [`Cancel::Reconnect`](crate::subscription::Cancel::Reconnect).
    /// Events in its callback, in its buffer and in its mailbox are lost and reported.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline, source::from_iter, stage::Stage, step::for_each,
    ///     subscription::SubscribeOptions,
    /// };
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
    /// assert_eq!(pipeline.join().await.unprocessed(), 0);
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

    /// The maximum number of restarts within a time. Default 3 within 5 seconds, for a
    /// [`restarting`](Self::restarting) stage.
    pub fn max_restarts(mut self, restarts: usize, within: Duration) -> Self {
        self.budget = RestartBudget::new(restarts, within);
        self
    }

    /// The stage's name in metrics, logs and reports. Default its kind.
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The capacity of the buffer for emitted events without demand. Default 10,000 for a producer;
    /// unbounded for a producer-consumer, which handles at most one message too early. With 0,
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

    /// The dispatcher, which decides which consumer gets which event. Default a
    /// [`DemandDispatcher`]. A restarted stage gets a new one.
    pub fn dispatcher<D: Dispatcher<E>>(mut self, make: impl Fn() -> D + Send + 'static) -> Self {
        self.options.dispatcher = Some(Box::new(move || Box::new(make())));
        self
    }

    /// The same for a stage that has not been given a dispatcher.
    pub(crate) fn default_dispatcher<D: Dispatcher<E>>(
        self,
        make: impl Fn() -> D + Send + 'static,
    ) -> Self {
        if self.options.dispatcher.is_some() { self } else { self.dispatcher(make) }
    }

    /// The initial demand mode. Default [`DemandMode::Forward`]; only a producer can accumulate
    /// demand.
    pub fn demand_mode(mut self, mode: DemandMode) -> Self {
        self.options.mode = mode;
        self
    }

    /// What happens to events while there are no subscribers. Default [`WhenUnsubscribed::Buffer`].
    pub fn when_unsubscribed(mut self, events: WhenUnsubscribed) -> Self {
        self.options.when_unsubscribed = events;
        self
    }

    /// The maximum number of events that leave the stage per interval. Default no limit. It can be
    /// changed at runtime with [`StageHandle::rate_limit`](crate::stage::StageHandle::rate_limit).
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.options.rate_limit = Some(Limiting::Own(limit));
        self
    }

    /// The same with a limiter that several stages share.
    pub(crate) fn shares(mut self, limiter: SharedLimiter) -> Self {
        self.options.rate_limit = Some(Limiting::Shared(limiter));
        self
    }

    /// The same with a function that receives the events that the stage discards.
    pub(crate) fn on_discard(mut self, discard: fn(E)) -> Self {
        self.options.discard = Some(Box::new(move || Box::new(discard)));
        self
    }

    /// The same with the stage wrapped in another type.
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

    /// The capacity of the buffer of a stage of this kind, if it is bounded.
    pub(crate) fn buffer_capacity(&self, kind: StageKind) -> Option<usize> {
        let size = self.buffer_size(kind);
        (kind.emits() && size != usize::MAX).then_some(size)
    }

    pub(crate) fn outlet(&self, kind: StageKind) -> Outlet<E> {
        let buffer = Buffer::new(self.buffer_size(kind), self.keep)
            .on_discard(self.discard.as_ref().map(|make| make()));
        let mode = if kind == StageKind::Producer { self.mode } else { DemandMode::Forward };
        let dispatcher = match &self.dispatcher {
            Some(make) => make(),
            None => Box::new(DemandDispatcher::new()),
        };
        Outlet::new(dispatcher, buffer, mode, self.when_unsubscribed)
    }
}

impl<E: 'static> Default for StageOptions<E> {
    fn default() -> Self {
        Self {
            buffer_size: None,
            keep: BufferKeep::default(),
            dispatcher: None,
            mode: DemandMode::default(),
            when_unsubscribed: WhenUnsubscribed::default(),
            rate_limit: None,
            discard: None,
        }
    }
}

impl<S, E> fmt::Debug for Stage<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("name", &self.name).finish_non_exhaustive()
    }
}
