//! The queue in front of a producer.

use std::{fmt, sync::Arc};

/// The queue in front of a stage, if there is one, or its last state.
#[derive(Default)]
pub(super) struct Front {
    queue: Option<Arc<dyn Queue>>,
    last: Queued,
    /// The items discarded by earlier queues of the same stage.
    before: u64,
}

/// A queue as its stage's gauges see it.
pub(crate) trait Queue: Send + Sync {
    fn look(&self) -> Queued;

    /// Closes the queue, and wakes the tasks that wait to push.
    fn close(&self);
}

/// The state of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) items: usize,
    /// The capacity of the queue; `None` if there is no queue.
    pub(crate) capacity: Option<usize>,
    pub(crate) discarded: u64,
}

impl Front {
    /// Sets the current queue.
    pub(super) fn stand(&mut self, queue: Arc<dyn Queue>) {
        self.before = self.queued().discarded;
        self.queue = Some(queue);
    }

    /// Drops the queue and keeps its last state.
    pub(super) fn leave(&mut self) {
        self.last = self.queued();
        self.before = 0;
        self.queue = None;
    }

    /// The current queue, if there is one.
    pub(super) fn queue(&self) -> Option<Arc<dyn Queue>> {
        self.queue.clone()
    }

    pub(super) fn queued(&self) -> Queued {
        let now = self.queue.as_ref().map_or(self.last, |queue| queue.look());
        Queued { discarded: self.before + now.discarded, ..now }
    }
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queued().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Holding(Arc<usize>, u64);

    impl Queue for Holding {
        fn look(&self) -> Queued {
            Queued { items: *self.0, capacity: Some(9), discarded: self.1 }
        }

        fn close(&self) {}
    }

    fn queue(items: usize, discarded: u64) -> Arc<dyn Queue> {
        Arc::new(Holding(Arc::new(items), discarded))
    }

    #[test]
    fn the_last_state_of_a_dropped_queue_is_kept() {
        let mut front = Front::default();
        assert_eq!(front.queued(), Queued::default());
        let items = Arc::new(3);
        front.stand(Arc::new(Holding(items.clone(), 1)));
        front.leave();
        assert_eq!(front.queued(), Queued { items: 3, capacity: Some(9), discarded: 1 });
        assert_eq!(Arc::strong_count(&items), 1, "the queue must be dropped");
    }

    #[test]
    fn discarded_items_are_counted_across_queues() {
        let mut front = Front::default();
        front.stand(queue(3, 5));
        front.leave();
        front.stand(queue(1, 2));
        assert_eq!(front.queued(), Queued { items: 1, capacity: Some(9), discarded: 7 });
        front.leave();
        assert_eq!(front.queued().discarded, 7);
    }
}
