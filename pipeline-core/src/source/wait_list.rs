//! The tasks that wait at a queue: pushers, and its reader. Pure.

use std::{
    collections::BTreeMap,
    task::{Poll, Waker},
};

use super::Closed;

/// Items that wait for room, in the order of their arrival.
#[derive(Debug)]
pub(super) struct WaitList<T> {
    waiters: BTreeMap<Ticket, Waiter<T>>,
}

/// A place in the wait list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The ticket counter of a queue. Tickets are unique.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    next: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    item: T,
    waker: Waker,
}

/// The waker of the task that reads the queue, while it waits for items.
#[derive(Debug, Default)]
pub(super) struct ReaderWaker {
    waker: Option<Waker>,
}

impl<T> WaitList<T> {
    pub(super) fn new() -> Self {
        Self { waiters: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.waiters.first_key_value().map(|(_, waiter)| &waiter.item)
    }

    pub(super) fn join(&mut self, ticket: Ticket, item: T, waker: Waker) {
        self.waiters.insert(ticket, Waiter { item, waker });
    }

    /// Removes the first waiting item, with the waker of its pusher.
    pub(super) fn pop(&mut self) -> Option<(T, Waker)> {
        self.waiters.pop_first().map(|(_, waiter)| (waiter.item, waiter.waker))
    }

    /// The state of an item: moved up, still waiting, or returned because the queue is closed.
    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        waker: &Waker,
        closed: bool,
    ) -> Poll<Result<(), Closed<T>>> {
        if closed {
            return Poll::Ready(self.leave(ticket).map_or(Ok(()), |item| Err(Closed(item))));
        }
        match self.waiters.get_mut(&ticket) {
            Some(waiter) => {
                waiter.waker.clone_from(waker);
                Poll::Pending
            }
            None => Poll::Ready(Ok(())),
        }
    }

    /// Leaves the wait list, with the item if it has not moved up yet.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        self.waiters.remove(&ticket).map(|waiter| waiter.item)
    }

    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        self.waiters.values().map(|waiter| waiter.waker.clone())
    }
}

impl Tickets {
    pub(super) fn draw(&mut self) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        ticket
    }
}

impl ReaderWaker {
    /// Ready, or registers the waker.
    pub(super) fn poll(&mut self, is_ready: bool, waker: &Waker) -> Poll<()> {
        if is_ready {
            return Poll::Ready(());
        }
        match &mut self.waker {
            Some(reader) => reader.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
        Poll::Pending
    }

    /// Takes the waker.
    pub(super) fn take(&mut self) -> Option<Waker> {
        self.waker.take()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, task::Wake};

    use super::*;

    struct Task;

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn the_waker_of_the_last_poll_is_woken() {
        let [first, last]: [Waker; 2] = [Arc::new(Task).into(), Arc::new(Task).into()];
        let mut list = WaitList::new();
        let ticket = Tickets::default().draw();
        list.join(ticket, 1, first.clone());
        assert!(list.poll(ticket, &last, false).is_pending());
        assert!(list.pop().unwrap().1.will_wake(&last));
        let mut reader = ReaderWaker::default();
        assert!(reader.poll(false, &first).is_pending() && reader.poll(false, &last).is_pending());
        assert!(reader.take().unwrap().will_wake(&last));
    }
}
