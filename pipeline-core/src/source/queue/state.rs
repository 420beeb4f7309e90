//! The state of a queue. Pure: it returns the wakers and wakes none itself.

use std::{
    collections::VecDeque,
    mem,
    task::{Poll, Waker},
};

use crate::{
    discarding::Discarding,
    source::{
        Closed, TryPushError,
        store::{Bounded, Offered, Pushed, Store, Taken},
        wait_list::{ReaderWaker, Ticket, Tickets, WaitList},
    },
    stage::BufferKeep,
};

/// A bounded FIFO queue.
///
/// `wait_list` is empty unless the queue is full or closed.
#[derive(Debug)]
pub(in crate::source) struct State<T> {
    items: VecDeque<T>,
    capacity: usize,
    keep: BufferKeep,
    wait_list: WaitList<T>,
    tickets: Tickets,
    reader: ReaderWaker,
    closed: bool,
    discarding: Discarding,
}

impl<T> State<T> {
    pub(super) fn new(capacity: usize, keep: BufferKeep) -> Self {
        Self {
            items: VecDeque::new(),
            capacity,
            keep,
            wait_list: WaitList::new(),
            tickets: Tickets::default(),
            reader: ReaderWaker::default(),
            closed: false,
            discarding: Discarding::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.items.len() == self.capacity
    }

    /// Inserts an item. Returns the waker of the reader, if it waits.
    fn insert(&mut self, item: T) -> Option<Waker> {
        self.items.push_back(item);
        self.reader.take()
    }
}

impl<T> Bounded for State<T> {
    type Item = T;

    fn len(&self) -> usize {
        self.items.len()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn close(&mut self) -> Vec<Waker> {
        self.closed = true;
        self.wait_list.wakers().chain(self.reader.take()).collect()
    }
}

impl<T> Store for State<T> {
    type Entry = T;
    type Ticket = Ticket;

    const DISCARDING: &'static str = "the queue is full, discarding";

    fn try_push(&mut self, item: T) -> Result<Option<Waker>, TryPushError<T>> {
        if self.closed {
            Err(TryPushError::Closed(item))
        } else if self.is_full() {
            Err(TryPushError::Full(item))
        } else {
            Ok(self.insert(item))
        }
    }

    fn push(&mut self, item: T, waker: &Waker) -> Pushed<T, Ticket> {
        if self.closed {
            Pushed::Closed(item)
        } else if self.is_full() {
            let ticket = self.tickets.draw();
            self.wait_list.join(ticket, item, waker.clone());
            Pushed::Waits(ticket)
        } else {
            Pushed::In(self.insert(item))
        }
    }

    fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Result<(), Closed<T>>> {
        self.wait_list.poll(ticket, waker, self.closed)
    }

    fn leave(&mut self, ticket: Ticket) -> Option<T> {
        self.wait_list.leave(ticket)
    }

    fn offer(&mut self, item: T) -> Result<Offered<T>, Closed<T>> {
        if self.closed {
            return Err(Closed(item));
        }
        if !self.is_full() {
            return Ok(Offered::Kept(self.insert(item)));
        }
        let first = self.discarding.add(1);
        let displaced = match self.keep {
            BufferKeep::First => None,
            BufferKeep::Last => self.items.pop_front(),
        };
        Ok(match displaced {
            None => Offered::Discarded { item, displaced: false, first },
            Some(oldest) => {
                self.items.push_back(item);
                Offered::Discarded { item: oldest, displaced: true, first }
            }
        })
    }

    fn take(&mut self, count: usize, out: &mut VecDeque<T>) -> Taken {
        let mut taken = Taken::default();
        let count = count.min(self.items.len());
        if count == self.items.len() && out.is_empty() {
            // `out` is usually an empty queue with some capacity: swap, don't copy.
            mem::swap(&mut self.items, out);
        } else {
            out.extend(self.items.drain(..count));
        }
        while !self.closed && !self.is_full() {
            let Some((item, waker)) = self.wait_list.pop() else {
                break;
            };
            self.items.push_back(item);
            taken.wake.push(waker);
        }
        taken.discarded = if self.closed {
            self.discarding.end()
        } else {
            self.discarding.over(self.items.len() <= self.capacity / 2)
        };
        taken
    }

    fn poll_ready(&mut self, waker: &Waker) -> Poll<()> {
        self.reader.poll(!self.items.is_empty() || self.closed, waker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(capacity: usize, keep: BufferKeep) -> State<u32> {
        State::new(capacity, keep)
    }

    /// Takes up to `count` items.
    fn take(state: &mut State<u32>, count: usize) -> (Vec<u32>, Taken) {
        let mut out = VecDeque::new();
        let taken = state.take(count, &mut out);
        (out.into(), taken)
    }

    fn wait(state: &mut State<u32>, item: u32) -> Ticket {
        match state.push(item, Waker::noop()) {
            Pushed::Waits(ticket) => ticket,
            other => panic!("{other:?} instead of waiting"),
        }
    }

    fn poll(state: &mut State<u32>, ticket: Ticket) -> Poll<Result<(), Closed<u32>>> {
        state.poll(ticket, Waker::noop())
    }

    /// The item that is discarded for an offered one, and whether it is an older one.
    fn offer(state: &mut State<u32>, item: u32) -> Option<(u32, bool)> {
        match state.offer(item).unwrap() {
            Offered::Kept(_) => None,
            Offered::Discarded { item, displaced, .. } => Some((item, displaced)),
        }
    }

    #[test]
    fn a_full_queue_returns_the_item() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        assert_eq!(state.try_push(2).unwrap_err(), TryPushError::Full(2));
        assert_eq!(take(&mut state, 9).0, [1]);
        assert!(state.try_push(3).is_ok());
    }

    #[test]
    fn waiting_items_move_up_in_order_when_there_is_room() {
        let mut state = state(2, BufferKeep::Last);
        assert!(state.try_push(1).is_ok() && state.try_push(2).is_ok());
        let (third, fourth) = (wait(&mut state, 3), wait(&mut state, 4));
        let (items, taken) = take(&mut state, 1);
        assert_eq!((items, taken.wake.len()), (vec![1], 1));
        assert_eq!(poll(&mut state, third), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut state, fourth), Poll::Pending);
        assert_eq!(take(&mut state, 9).0, [2, 3]);
        assert_eq!(take(&mut state, 9).0, [4]);
    }

    #[test]
    fn leaving_the_wait_list_returns_the_item() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        let (second, third) = (wait(&mut state, 2), wait(&mut state, 3));
        assert_eq!(state.leave(second), Some(2));
        assert_eq!(take(&mut state, 1).0, [1]);
        assert_eq!(state.leave(third), None, "the item has moved up already");
        assert_eq!(take(&mut state, 9).0, [3]);
    }

    #[test]
    fn a_closed_queue_returns_waiting_items_and_emits_the_queued_ones() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        let second = wait(&mut state, 2);
        assert_eq!(state.close().len(), 1);
        assert_eq!(poll(&mut state, second), Poll::Ready(Err(Closed(2))));
        assert_eq!(state.try_push(3).unwrap_err(), TryPushError::Closed(3));
        assert_eq!(state.offer(4).unwrap_err(), Closed(4));
        assert_eq!(take(&mut state, 9).0, [1]);
    }

    #[test]
    fn an_offer_to_a_full_queue_discards_as_the_policy_says() {
        let offers = |keep| {
            let mut state = state(2, keep);
            let offered: Vec<_> = (1..=4).map(|item| offer(&mut state, item)).collect();
            (offered, take(&mut state, 9))
        };
        let (offered, (kept, taken)) = offers(BufferKeep::Last);
        assert_eq!(offered[2..], [Some((1, true)), Some((2, true))]);
        assert_eq!((kept, taken.discarded), (vec![3, 4], 0), "discarding has not ended");
        let (offered, (kept, taken)) = offers(BufferKeep::First);
        assert_eq!(offered[2..], [Some((3, false)), Some((4, false))]);
        assert_eq!((kept, taken.discarded), (vec![1, 2], 0), "discarding has not ended");
    }

    #[test]
    fn discarding_is_logged_when_it_begins_and_ends_however_often_items_leave() {
        let mut state = state(4, BufferKeep::First);
        let began = |state: &mut State<u32>, offers: usize| {
            let first = |_: &usize| {
                matches!(state.offer(1).unwrap(), Offered::Discarded { first: true, .. })
            };
            (0..offers).filter(first).count()
        };
        assert_eq!(began(&mut state, 6), 1);
        // It is emptied, and filled again at once.
        for _ in 0..1000 {
            assert_eq!(take(&mut state, 4).1.discarded, 0);
            assert_eq!(began(&mut state, 5), 0);
        }
        assert_eq!(take(&mut state, 1).1.discarded, 0, "an item was discarded since the last take");
        assert_eq!(take(&mut state, 0).1.discarded, 0, "less than half of the room is free");
        assert_eq!(take(&mut state, 1).1.discarded, 1002);
        assert_eq!(began(&mut state, 3), 1);
        state.close();
        assert_eq!(take(&mut state, 0).1.discarded, 1);
    }

    #[test]
    fn the_taker_is_woken_by_the_first_item_only() {
        let mut state = state(3, BufferKeep::Last);
        assert!(state.poll_ready(Waker::noop()).is_pending());
        assert!(state.try_push(1).unwrap().is_some());
        assert!(state.try_push(2).unwrap().is_none());
        assert!(state.poll_ready(Waker::noop()).is_ready());
    }

    proptest! {
        /// For any sequence of operations: the queue keeps to its bound, no pusher waits while
        /// there is room, and every item comes out once, or is returned, or is counted as
        /// discarded. Pushed items keep their order, and so do offered ones.
        #[test]
        fn items_are_conserved(
            capacity in 1usize..5, last: bool,
            steps in prop::collection::vec((0u8..5, 0usize..4), 0..80)
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut state = state(capacity, keep);
            let mut waiting: VecDeque<Ticket> = VecDeque::new();
            let (mut next, mut out, mut back, mut discarded) = (0u32, VecDeque::new(), 0u32, 0u32);
            let mut offered = std::collections::HashSet::new();
            for (step, n) in steps {
                match step {
                    0 => { next += 1; back += u32::from(state.try_push(next).is_err()); }
                    1 => {
                        next += 1;
                        offered.insert(next);
                        match state.offer(next) {
                            Ok(Offered::Kept(_)) => {}
                            Ok(_) => discarded += 1,
                            Err(_) => back += 1,
                        }
                    }
                    2 => {
                        next += 1;
                        if let Pushed::Waits(ticket) = state.push(next, Waker::noop()) {
                            waiting.push_back(ticket);
                        }
                    }
                    3 => { state.take(n, &mut out); }
                    _ => if let Some(ticket) = waiting.pop_back() {
                        back += u32::from(state.leave(ticket).is_some());
                    },
                }
                prop_assert!(state.len() <= capacity);
                prop_assert!(state.wait_list.is_empty() || state.len() == capacity);
            }
            while state.len() > 0 {
                state.take(usize::MAX, &mut out);
            }
            prop_assert!(state.wait_list.is_empty());
            let (jumped, queued): (Vec<u32>, Vec<u32>) =
                out.iter().partition(|item| offered.contains(item));
            prop_assert!(jumped.is_sorted() && queued.is_sorted());
            prop_assert_eq!(next as usize, out.len() + (back + discarded) as usize);
        }
    }
}
