//! An item with its times on its way through a pipeline.

mod timeline;
mod trace_context;

use std::{ops::Deref, time::Duration};

use tokio::time::Instant;

pub use self::{
    timeline::Timeline,
    trace_context::{TraceContext, TraceContextError, TraceId},
};
use crate::supervisor::started_at;

/// An item with the time at which it entered the pipeline, so that its whole way can be timed.
///
/// It derefs to the item.
///
/// ```
/// use pipeline_core::timed::Timed;
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
    /// Stamps an item with the current time.
    #[must_use]
    pub fn now(item: T) -> Self {
        Self { item, timeline: Instant::now().into() }
    }

    /// Stamps an item that has waited for so long in a queue outside of the process, such as a durable
    /// source, and leaves it now.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::timed::Timed;
    ///
    /// let waited = Duration::from_millis(20);
    /// assert_eq!(Timed::fetched("hello", waited).timeline().queue_time(), Some(waited));
    /// ```
    #[must_use]
    pub fn fetched(item: T, waited: Duration) -> Self {
        let now = Instant::now();
        let mut timeline = Timeline::from(now.checked_sub(waited).unwrap_or(now));
        timeline.dequeued(now);
        Self { item, timeline }
    }

    /// Assigns the item to a trace, to follow it in the log: at the level `trace` a line with the
    /// field `trace_id` is logged when it leaves a timed queue, when it is broadcast, and when it is
    /// written to a socket. Items without a trace are not logged.
    ///
    /// ```
    /// use pipeline_core::{
    ///     source::{QueueOptions, timed_queue},
    ///     timed::{Timed, TraceContext},
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, _producer) = timed_queue(QueueOptions::new());
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

    /// The trace of the item, if it has one.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.timeline.trace()
    }

    /// The times of the item on its way.
    ///
    /// The time at which it left its queue is known for a
    /// [`timed_queue`](crate::source::timed_queue()). The start of its worker is known in the worker: in the
    /// future that [`Worker::run`](crate::supervisor::Worker::run) returns, and not in tasks that
    /// it spawns.
    ///
    /// ```
    /// use pipeline_core::{
    ///     Pipeline,
    ///     source::{QueueOptions, timed_queue},
    ///     subscription::SubscribeOptions,
    ///     supervisor::ConsumerSupervisor,
    ///     timed::Timed,
    /// };
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (queue, producer) = timed_queue(QueueOptions::new());
    /// let work = async |item: &Timed<&str>| {
    ///     let timeline = item.timeline();
    ///     println!("{} was in the queue for {:?}", **item, timeline.queue_time());
    ///     println!("and waited for a worker for {:?}", timeline.dispatch_time());
    /// #   assert!(timeline.queue_time().is_some() && timeline.dispatch_time().is_some());
    ///     Ok(())
    /// };
    /// let mut pipeline = Pipeline::builder("work")
    ///     .producer(producer)
    ///     .consumer_supervisor(ConsumerSupervisor::new(work), SubscribeOptions::new())
    ///     .start()?;
    /// queue.push_timed("hello").await?;
    /// # drop(queue);
    /// # assert_eq!(pipeline.join().await.unprocessed(), 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline.started(started_at())
    }

    /// Makes another item of this one, with its times: for a stage between the queue and the workers.
    ///
    /// ```
    /// use pipeline_core::{step::map, timed::Timed};
    ///
    /// // A stage that turns each number into a text.
    /// let texts = map(|number: Timed<u64>| number.map(|number| format!("number {number}")));
    /// # let _ = texts;
    /// # assert_eq!(*Timed::now(7).map(|n: u64| n + 1), 8);
    /// ```
    #[must_use]
    pub fn map<U>(self, function: impl FnOnce(T) -> U) -> Timed<U> {
        Timed { item: function(self.item), timeline: self.timeline }
    }

    /// The item.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Records that the item leaves a queue.
    pub(crate) fn dequeued(&mut self, at: Instant) {
        self.timeline.dequeued(at);
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
