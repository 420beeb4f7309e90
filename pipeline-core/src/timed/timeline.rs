//! The times of an item on its way. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::{Timed, TraceContext};

/// The times at which an item was enqueued, left its queue, reached a worker, and was broadcast, as
/// far as they are known, and its trace.
///
/// [`Timed::timeline`] returns it in the worker. Broadcasting the item with it records the duration
/// of every leg: in the queue, waiting for a worker, in the worker, and from there to the socket.
/// An [`Instant`] converts into a timeline without other times.
///
/// The legs are contiguous, so they add up to the whole. An item that passes through several timed
/// queues has left them when it left the last one; a retried item was waiting until its worker was
/// restarted.
///
/// ```
/// use pipeline_core::timed::{Timed, Timeline};
///
/// let item = Timed::now("hello");
/// let timeline = item.timeline();
/// assert_eq!(timeline.enqueued_at(), item.enqueued_at());
/// // The item was in no queue, and no worker has it.
/// assert_eq!((timeline.dequeued_at(), timeline.started_at()), (None, None));
/// assert_eq!(timeline, Timeline::from(item.enqueued_at()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    enqueued_at: Instant,
    dequeued_at: Option<Instant>,
    started_at: Option<Instant>,
    broadcast_at: Option<Instant>,
    trace: Option<TraceContext>,
}

impl Timeline {
    /// When the item was enqueued.
    #[must_use]
    pub fn enqueued_at(&self) -> Instant {
        self.enqueued_at
    }

    /// When the item left its queue because there was demand for it.
    #[must_use]
    pub fn dequeued_at(&self) -> Option<Instant> {
        self.dequeued_at
    }

    /// When the worker of the item was started.
    #[must_use]
    pub fn started_at(&self) -> Option<Instant> {
        self.started_at
    }

    /// When the item was broadcast. Unknown in its worker.
    #[must_use]
    pub fn broadcast_at(&self) -> Option<Instant> {
        self.broadcast_at
    }

    /// The trace of the item, if it has one.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// How long the item waited in its queue, until there was demand for it: the metric
    /// `pipeline.push_queued`.
    #[must_use]
    pub fn queue_time(&self) -> Option<Duration> {
        Some(self.dequeued_at? - self.enqueued_at)
    }

    /// How long the item waited after its queue, until a worker was started for it: the metric
    /// `pipeline.push_waited`.
    #[must_use]
    pub fn dispatch_time(&self) -> Option<Duration> {
        Some(self.started_at? - self.dequeued_at?)
    }

    /// How long its worker had it, until the given time. Until the broadcast, this is the metric
    /// `pipeline.push_worked`.
    #[must_use]
    pub fn work_time(&self, until: Instant) -> Option<Duration> {
        Some(until.saturating_duration_since(self.started_at?))
    }

    /// How long it took to write the item to a socket, from the broadcast until the given time: the
    /// metric `pipeline.push_written`.
    #[must_use]
    pub fn write_time(&self, until: Instant) -> Option<Duration> {
        Some(until.saturating_duration_since(self.broadcast_at?))
    }

    /// How long the whole way took, until the given time. Until the write to a socket, this is the
    /// metric `pipeline.push_delivered`.
    #[must_use]
    pub fn total_time(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.enqueued_at)
    }

    /// Sets when its worker was started, for an item whose worker is not that of a
    /// [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor): a stage or a task of the program's own. A time
    /// before the item left its queue is ignored.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::timed::Timed;
    ///
    /// // An item of another program's queue, in which it has waited for 20 ms.
    /// let item = Timed::fetched("hello", Duration::from_millis(20));
    /// let timeline = item.timeline().with_started_at(tokio::time::Instant::now());
    /// assert!(timeline.dispatch_time().is_some());
    /// ```
    #[must_use]
    pub fn with_started_at(self, at: Instant) -> Self {
        self.started(Some(at))
    }

    /// Sets the time of the broadcast.
    #[must_use]
    pub fn with_broadcast_at(self, at: Instant) -> Self {
        Self { broadcast_at: Some(at), ..self }
    }

    /// Assigns the item to a trace.
    #[must_use]
    pub fn with_trace(self, trace: TraceContext) -> Self {
        Self { trace: Some(trace), ..self }
    }

    /// Records that the item leaves a queue.
    pub(crate) fn dequeued(&mut self, at: Instant) {
        self.dequeued_at = Some(at.max(self.enqueued_at));
    }

    /// Sets the start of the item's worker. Ignored if it is before the item was dequeued: then the
    /// worker creates the item and does not handle it.
    pub(crate) fn started(self, at: Option<Instant>) -> Self {
        let before = self.dequeued_at.unwrap_or(self.enqueued_at);
        Self { started_at: at.filter(|at| *at >= before), ..self }
    }
}

/// A timeline without other times.
impl From<Instant> for Timeline {
    fn from(enqueued_at: Instant) -> Self {
        Self { enqueued_at, dequeued_at: None, started_at: None, broadcast_at: None, trace: None }
    }
}

impl<T> From<&Timed<T>> for Timeline {
    fn from(item: &Timed<T>) -> Self {
        item.timeline()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moments() -> impl Fn(u64) -> Instant {
        let zero = Instant::now();
        move |nanoseconds| zero + Duration::from_nanos(nanoseconds)
    }

    #[test]
    fn a_leg_is_known_if_both_its_ends_are() {
        let at = moments();
        let mut timeline = Timeline::from(at(0));
        let legs = |timeline: &Timeline| {
            (timeline.queue_time(), timeline.dispatch_time(), timeline.work_time(at(9)))
        };
        let span = |nanoseconds| Some(Duration::from_nanos(nanoseconds));
        assert_eq!(timeline.write_time(at(9)), None);
        assert_eq!(timeline.with_broadcast_at(at(8)).write_time(at(9)), span(1));
        assert_eq!(legs(&timeline), (None, None, None));
        assert_eq!(legs(&timeline.started(Some(at(7)))), (None, None, span(2)));
        timeline.dequeued(at(4));
        assert_eq!(legs(&timeline), (span(4), None, None));
        assert_eq!(legs(&timeline.started(Some(at(7)))), (span(4), span(3), span(2)));
        assert_eq!(timeline.started(Some(at(7))).started(None), timeline);
    }

    #[test]
    fn a_worker_started_before_the_item_does_not_handle_it() {
        let at = moments();
        let mut timeline = Timeline::from(at(5));
        assert_eq!(timeline.started(Some(at(4))).started_at(), None);
        assert_eq!(timeline.started(Some(at(5))).started_at(), Some(at(5)));
        timeline.dequeued(at(7));
        assert_eq!(timeline.started(Some(at(6))).started_at(), None);
    }

    proptest! {
        /// Times in any order: no leg is negative, and contiguous legs add up.
        #[test]
        fn legs_add_up_to_the_whole(times in prop::array::uniform5(0u64..10_000)) {
            let at = moments();
            let [enqueued, dequeued, started, broadcast, written] = times.map(&at);
            let mut timeline = Timeline::from(enqueued);
            timeline.dequeued(dequeued);
            let timeline = timeline.started(Some(started)).with_broadcast_at(broadcast);
            let legs = [
                timeline.queue_time(),
                timeline.dispatch_time(),
                timeline.work_time(broadcast),
                timeline.write_time(written),
            ];
            if let [Some(queued), Some(waited), Some(worked), Some(wrote)] = legs
                && broadcast >= started
            {
                prop_assert_eq!(queued + waited + worked, broadcast - enqueued);
                if written >= broadcast {
                    prop_assert_eq!(queued + waited + worked + wrote, timeline.total_time(written));
                }
            }
            let in_order = times.is_sorted();
            prop_assert!(!in_order || legs.iter().all(Option::is_some));
        }
    }
}
