//! An item and when it was where.

use std::ops::Deref;

use tokio::time::Instant;

use crate::{stage::started_at, timeline::Timeline, trace_context::TraceContext};

/// An item with the moment it entered the pipeline, so that its way can be timed to the end.
///
/// It derefs to the item.
///
/// ```
/// use pipeline_core::Timed;
///
/// let timed = Timed::now("hello");
/// assert_eq!(timed.len(), 5);
/// println!("{} has waited {:?}", *timed, timed.enqueued_at().elapsed());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed<T> {
    item: T,
    timeline: Timeline,
}

impl<T> Timed<T> {
    /// Stamps an item with this moment.
    #[must_use]
    pub fn now(item: T) -> Self {
        Self { item, timeline: Instant::now().into() }
    }

    /// Has the item belong to a trace, by which it can be followed: at the level `trace` it is logged,
    /// with the field `trace_id`, when it leaves its queue, when it is broadcast, and when it is
    /// written to a socket. Nothing is logged of an item that belongs to none.
    ///
    /// ```
    /// use pipeline_core::{QueueOptions, Timed, TraceContext, queue};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, _producer) = queue(QueueOptions::new());
    /// let queue = queue.timed();
    /// let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
    /// queue.push(Timed::now("hello").with_trace(trace)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_trace(self, trace: TraceContext) -> Self {
        Self { timeline: self.timeline.with_trace(trace), ..self }
    }

    /// When the item was enqueued.
    #[must_use]
    pub fn enqueued_at(&self) -> Instant {
        self.timeline.enqueued_at()
    }

    /// The trace that the item belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.timeline.trace()
    }

    /// When the item was where.
    ///
    /// When it left its queue is known if that is a [queue of timed items](crate::Queue::timed). When
    /// its worker was started is known in the worker: in the future that
    /// [`Worker::run`](crate::Worker::run) returns, and not in tasks that it spawns.
    ///
    /// ```
    /// use pipeline_core::{
    ///     ConsumerSupervisor, Pipeline, QueueOptions, SubscribeOptions, Timed, queue,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = queue(QueueOptions::new());
    /// let work = async |item: &Timed<&str>| {
    ///     let timeline = item.timeline();
    ///     println!("{} was in the queue for {:?}", **item, timeline.queued());
    ///     println!("and waited for a worker for {:?}", timeline.waited());
    /// #   assert!(timeline.queued().is_some() && timeline.waited().is_some());
    ///     Ok(())
    /// };
    /// let mut pipeline = Pipeline::builder("work")
    ///     .producer(producer)
    ///     .consumer_supervisor(ConsumerSupervisor::new(work), SubscribeOptions::new())
    ///     .start()?;
    /// queue.push_timed("hello").await?;
    /// # drop(queue);
    /// # assert_eq!(pipeline.ended().await.left_undone(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline.started(started_at())
    }

    /// The item.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Takes note that the item leaves a queue.
    pub(crate) fn demanded(&mut self, at: Instant) {
        self.timeline.demanded(at);
        if let Some(trace) = self.timeline.trace() {
            tracing::trace!(trace_id = %trace.trace_id(), "left the queue");
        }
    }
}

impl<T> Deref for Timed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}
