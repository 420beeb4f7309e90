//! What waits in front of a stage, in a queue that others push into.

use std::fmt;

/// The queue in front of a stage, if there is one, or what was left in it.
#[derive(Default)]
pub(super) struct Front {
    look: Option<Box<dyn Fn() -> Queued + Send>>,
    last: Queued,
    /// What earlier queues of the same place have discarded.
    before: u64,
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
    pub(super) fn stand(&mut self, look: Box<dyn Fn() -> Queued + Send>) {
        self.before = self.queued().discarded;
        self.look = Some(look);
    }

    /// Keeps no queue alive, but what it was like.
    pub(super) fn leave(&mut self) {
        self.last = self.queued();
        self.before = 0;
        self.look = None;
    }

    pub(super) fn queued(&self) -> Queued {
        let now = self.look.as_ref().map_or(self.last, |look| look());
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
    use std::sync::Arc;

    use super::*;

    fn queue(items: usize, discarded: u64) -> Box<dyn Fn() -> Queued + Send> {
        Box::new(move || Queued { items, capacity: Some(9), discarded })
    }

    #[test]
    fn what_was_left_in_a_queue_is_seen_when_it_is_gone() {
        let mut front = Front::default();
        assert_eq!(front.queued(), Queued::default());
        let items = Arc::new(3);
        let held = items.clone();
        front.stand(Box::new(move || Queued { items: *held, capacity: Some(9), discarded: 1 }));
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
