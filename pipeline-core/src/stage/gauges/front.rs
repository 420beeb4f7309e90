//! What waits in front of a stage, in a queue that others push into.

use std::{fmt, sync::Arc};

/// The queue in front of a stage, if there is one, or what was left in it.
#[derive(Default)]
pub(super) struct Front {
    queue: Option<Arc<dyn Queue>>,
    last: Queued,
    /// What earlier queues of the same place have discarded.
    before: u64,
}

/// A queue that others push into, as its stage's gauges know it.
pub(crate) trait Queue: Send + Sync {
    fn look(&self) -> Queued;

    /// Takes nothing from now on, and wakes the tasks that wait to push.
    fn close(&self);
}

/// What a queue shows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) items: usize,
    /// How many items it holds at most; `None` if there is no queue.
    pub(crate) capacity: Option<usize>,
    pub(crate) discarded: u64,
}

impl Front {
    /// A queue stands here from now on.
    pub(super) fn stand(&mut self, queue: Arc<dyn Queue>) {
        self.before = self.queued().discarded;
        self.queue = Some(queue);
    }

    /// Keeps no queue alive, but what it was like.
    pub(super) fn leave(&mut self) {
        self.last = self.queued();
        self.before = 0;
        self.queue = None;
    }

    /// The queue that stands here.
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
    fn what_was_left_in_a_queue_is_seen_when_it_is_gone() {
        let mut front = Front::default();
        assert_eq!(front.queued(), Queued::default());
        let items = Arc::new(3);
        front.stand(Arc::new(Holding(items.clone(), 1)));
        front.leave();
        assert_eq!(front.queued(), Queued { items: 3, capacity: Some(9), discarded: 1 });
        assert_eq!(Arc::strong_count(&items), 1, "nobody keeps it");
    }

    #[test]
    fn what_was_discarded_is_counted_from_one_queue_to_the_next() {
        let mut front = Front::default();
        front.stand(queue(3, 5));
        front.leave();
        front.stand(queue(1, 2));
        assert_eq!(front.queued(), Queued { items: 1, capacity: Some(9), discarded: 7 });
        front.leave();
        assert_eq!(front.queued().discarded, 7);
    }
}
