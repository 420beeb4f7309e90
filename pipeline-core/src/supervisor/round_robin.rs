//! Events that wait for a child. Pure.

use std::collections::VecDeque;

use crate::subscription::SubscriptionId;

/// Events that wait for a child. Subscriptions take turns, one event each, so that the events of
/// one do not wait behind all events of another; those of one subscription keep their order.
#[derive(Debug)]
pub(super) struct RoundRobin<E> {
    /// The next one is first. No queue in it is empty.
    queues: VecDeque<(SubscriptionId, VecDeque<E>)>,
    len: usize,
}

impl<E> RoundRobin<E> {
    pub(super) fn new() -> Self {
        Self { queues: VecDeque::new(), len: 0 }
    }

    /// Puts events behind those of the same subscription.
    pub(super) fn extend(&mut self, from: SubscriptionId, events: Vec<E>) {
        if events.is_empty() {
            return;
        }
        self.len += events.len();
        match self.queues.iter_mut().find(|(other, _)| *other == from) {
            Some((_, queue)) => queue.extend(events),
            None => self.queues.push_back((from, events.into())),
        }
    }

    /// Takes the next event.
    pub(super) fn pop(&mut self) -> Option<(E, SubscriptionId)> {
        let (from, queue) = self.queues.front_mut()?;
        let (event, from) = (queue.pop_front()?, *from);
        self.len -= 1;
        if queue.is_empty() {
            self.queues.pop_front();
        } else if self.queues.len() > 1 {
            self.queues.rotate_left(1);
        }
        Some((event, from))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_take_turns_and_each_keeps_its_order() {
        let [many, few] = [1, 2].map(SubscriptionId::new);
        let mut events = RoundRobin::new();
        events.extend(many, vec![1, 2, 3, 4]);
        events.extend(few, vec![10]);
        events.extend(few, vec![11]);
        events.extend(few, vec![]);
        assert_eq!(events.len(), 6);
        let taken: Vec<u32> = std::iter::from_fn(|| events.pop()).map(|(event, _)| event).collect();
        assert_eq!(taken, [1, 10, 2, 11, 3, 4]);
        assert_eq!(events.len(), 0);
    }
}
