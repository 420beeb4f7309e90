//! The tasks that wait at a queue: pushers and the taker. Pure.

use std::{
    collections::BTreeMap,
    task::{Poll, Waker},
};

use super::outcome::Closed;

/// Items that wait for room, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Line<T> {
    places: BTreeMap<Ticket, Place<T>>,
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
struct Place<T> {
    item: T,
    waker: Waker,
}

/// The waker of the taker, while it waits for items.
#[derive(Debug, Default)]
pub(super) struct Taker {
    waker: Option<Waker>,
}

impl<T> Line<T> {
    pub(super) fn new() -> Self {
        Self { places: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.places.first_key_value().map(|(_, place)| &place.item)
    }

    pub(super) fn join(&mut self, ticket: Ticket, item: T, waker: Waker) {
        self.places.insert(ticket, Place { item, waker });
    }

    /// Removes the first waiting item, with the waker of its pusher.
    pub(super) fn pop(&mut self) -> Option<(T, Waker)> {
        self.places.pop_first().map(|(_, place)| (place.item, place.waker))
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
        match self.places.get_mut(&ticket) {
            Some(place) => {
                place.waker.clone_from(waker);
                Poll::Pending
            }
            None => Poll::Ready(Ok(())),
        }
    }

    /// Leaves the wait list, with the item if it has not moved up yet.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        self.places.remove(&ticket).map(|place| place.item)
    }

    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        self.places.values().map(|place| place.waker.clone())
    }
}

impl Tickets {
    pub(super) fn draw(&mut self) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        ticket
    }
}

impl Taker {
    /// Ready, or registers the waker.
    pub(super) fn poll(&mut self, is_ready: bool, waker: &Waker) -> Poll<()> {
        if is_ready {
            return Poll::Ready(());
        }
        match &mut self.waker {
            Some(taker) => taker.clone_from(waker),
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
        let mut line = Line::new();
        let ticket = Tickets::default().draw();
        line.join(ticket, 1, first.clone());
        assert!(line.poll(ticket, &last, false).is_pending());
        assert!(line.pop().unwrap().1.will_wake(&last));
        let mut taker = Taker::default();
        assert!(taker.poll(false, &first).is_pending() && taker.poll(false, &last).is_pending());
        assert!(taker.take().unwrap().will_wake(&last));
    }
}
