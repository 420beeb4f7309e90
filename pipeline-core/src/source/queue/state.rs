//! What a queue holds, and who waits for what. Pure: it says whom to wake, and wakes nobody.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    task::{Poll, Waker},
};

use crate::buffer::BufferKeep;

/// A bounded first-in-first-out queue with many pushers and one taker.
///
/// A pusher that finds it full leaves its item here, in line, and the item moves up by itself when
/// there is room: the pusher has only to be told. So nobody waits while there is room, and
/// `waiting` is empty unless the queue is full or closed.
#[derive(Debug)]
pub(super) struct State<T> {
    items: VecDeque<T>,
    capacity: usize,
    keep: BufferKeep,
    /// In the order they came.
    waiting: BTreeMap<Ticket, Waiting<T>>,
    next_ticket: u64,
    /// The taker, while it waits for items.
    taker: Option<Waker>,
    closed: bool,
    /// How many offered items were discarded since there was last room.
    discarded: usize,
}

/// A place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    waker: Waker,
}

/// Why an item was not taken in; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused<T> {
    Full(T),
    Closed(T),
}

/// What happened to an item that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<T> {
    Kept,
    /// It was kept, and this older one made room.
    Displaced(T),
    Refused(T),
}

/// What a call to [`State::take`] leads to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Pushers whose items have moved up.
    pub(super) wake: Vec<Waker>,
    /// Items that were discarded while there was no room, told once when there is room again.
    pub(super) discarded: usize,
}

impl<T> State<T> {
    pub(super) fn new(capacity: usize, keep: BufferKeep) -> Self {
        Self {
            items: VecDeque::new(),
            capacity,
            keep,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            taker: None,
            closed: false,
            discarded: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes an item in if there is room. Returns the taker, if it waits.
    pub(super) fn try_push(&mut self, item: T) -> Result<Option<Waker>, Refused<T>> {
        if self.closed {
            Err(Refused::Closed(item))
        } else if self.items.len() == self.capacity {
            Err(Refused::Full(item))
        } else {
            self.items.push_back(item);
            Ok(self.taker.take())
        }
    }

    /// Takes an item in, or has one discarded as the policy says. Returns the taker, if it waits.
    pub(super) fn offer(&mut self, item: T) -> Result<(Offered<T>, Option<Waker>), T> {
        match self.try_push(item) {
            Ok(taker) => Ok((Offered::Kept, taker)),
            Err(Refused::Closed(item)) => Err(item),
            Err(Refused::Full(item)) => {
                self.discarded += 1;
                let offered = match self.keep {
                    BufferKeep::First => Offered::Refused(item),
                    BufferKeep::Last => {
                        self.items.push_back(item);
                        self.items.pop_front().map_or(Offered::Kept, Offered::Displaced)
                    }
                };
                Ok((offered, None))
            }
        }
    }

    /// Whether the last `offer` was the first to discard something since there was room.
    pub(super) fn began_discarding(&self) -> bool {
        self.discarded == 1
    }

    /// Puts an item in line behind a full queue.
    pub(super) fn wait(&mut self, item: T, waker: Waker) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.insert(ticket, Waiting { item, waker });
        ticket
    }

    /// How it stands with an item in line: taken in, refused by a closed queue, or still waiting.
    pub(super) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Result<(), T>> {
        if self.closed {
            return match self.waiting.remove(&ticket) {
                Some(waiting) => Poll::Ready(Err(waiting.item)),
                None => Poll::Ready(Ok(())),
            };
        }
        match self.waiting.get_mut(&ticket) {
            Some(waiting) => {
                waiting.waker.clone_from(waker);
                Poll::Pending
            }
            None => Poll::Ready(Ok(())),
        }
    }

    /// Gives up a place in line, with the item, if it has not moved up yet.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        self.waiting.remove(&ticket).map(|waiting| waiting.item)
    }

    /// Moves up to `count` items, oldest first, to the end of `out`.
    pub(super) fn take(&mut self, count: usize, out: &mut VecDeque<T>) -> Taken {
        let mut taken = Taken::default();
        let count = count.min(self.items.len());
        if count == self.items.len() && out.is_empty() {
            // `out` is usually an empty queue with some capacity: swap, don't copy.
            mem::swap(&mut self.items, out);
        } else {
            out.extend(self.items.drain(..count));
        }
        while !self.closed && self.items.len() < self.capacity {
            let Some((_, Waiting { item, waker })) = self.waiting.pop_first() else {
                break;
            };
            self.items.push_back(item);
            taken.wake.push(waker);
        }
        if self.items.len() < self.capacity {
            taken.discarded = mem::take(&mut self.discarded);
        }
        taken
    }

    /// Whether there is something for the taker: items, or the end. Otherwise it will be woken.
    pub(super) fn poll_ready(&mut self, waker: &Waker) -> Poll<()> {
        if !self.items.is_empty() || self.closed {
            return Poll::Ready(());
        }
        match &mut self.taker {
            Some(taker) => taker.clone_from(waker),
            None => self.taker = Some(waker.clone()),
        }
        Poll::Pending
    }

    /// Takes nothing in any more. Returns all who wait.
    pub(super) fn close(&mut self) -> Vec<Waker> {
        self.closed = true;
        let waiting = self.waiting.values().map(|waiting| waiting.waker.clone());
        waiting.chain(self.taker.take()).collect()
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
        state.wait(item, Waker::noop().clone())
    }

    fn poll(state: &mut State<u32>, ticket: Ticket) -> Poll<Result<(), u32>> {
        state.poll(ticket, Waker::noop())
    }

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        assert_eq!(state.try_push(2).unwrap_err(), Refused::Full(2));
        assert_eq!(take(&mut state, 9).0, [1]);
        assert!(state.try_push(3).is_ok());
    }

    #[test]
    fn items_in_line_move_up_in_order_when_there_is_room() {
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
    fn who_leaves_the_line_takes_the_item_along() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        let (second, third) = (wait(&mut state, 2), wait(&mut state, 3));
        assert_eq!(state.leave(second), Some(2));
        assert_eq!(take(&mut state, 1).0, [1]);
        assert_eq!(state.leave(third), None, "it has moved up already");
        assert_eq!(take(&mut state, 9).0, [3]);
    }

    #[test]
    fn a_closed_queue_gives_back_what_waits_and_lets_out_what_it_holds() {
        let mut state = state(1, BufferKeep::Last);
        assert!(state.try_push(1).is_ok());
        let second = wait(&mut state, 2);
        assert_eq!(state.close().len(), 1);
        assert_eq!(poll(&mut state, second), Poll::Ready(Err(2)));
        assert_eq!(state.try_push(3).unwrap_err(), Refused::Closed(3));
        assert_eq!(state.offer(4).unwrap_err(), 4);
        assert_eq!(take(&mut state, 9).0, [1]);
    }

    #[test]
    fn an_offer_to_a_full_queue_discards_as_the_policy_says() {
        let offers = |keep| {
            let mut state = state(2, keep);
            let offered: Vec<_> = (1..=4).map(|item| state.offer(item).unwrap().0).collect();
            (offered, take(&mut state, 9))
        };
        let (offered, (kept, taken)) = offers(BufferKeep::Last);
        assert_eq!(offered[2..], [Offered::Displaced(1), Offered::Displaced(2)]);
        assert_eq!((kept, taken.discarded), (vec![3, 4], 2));
        let (offered, (kept, taken)) = offers(BufferKeep::First);
        assert_eq!(offered[2..], [Offered::Refused(3), Offered::Refused(4)]);
        assert_eq!((kept, taken.discarded), (vec![1, 2], 2));
    }

    #[test]
    fn discarding_is_told_when_it_begins_and_when_there_is_room_again() {
        let mut state = state(1, BufferKeep::First);
        let began = |state: &mut State<u32>| {
            let _ = state.offer(1).unwrap();
            state.began_discarding()
        };
        assert_eq!([began(&mut state), began(&mut state), began(&mut state)], [false, true, false]);
        assert_eq!(take(&mut state, 1).1.discarded, 2);
        assert_eq!([began(&mut state), began(&mut state)], [false, true]);
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
        /// Whatever is done to a queue: it keeps to its bound, nobody waits while there is room,
        /// and every item comes out once, or is given back, or is counted as discarded. Items that
        /// were pushed keep their order, and so do those that were offered.
        #[test]
        fn items_are_conserved(
            capacity in 1usize..5, last: bool,
            steps in prop::collection::vec((0u8..5, 0usize..4), 0..80)
        ) {
            let keep = if last { BufferKeep::Last } else { BufferKeep::First };
            let mut state = state(capacity, keep);
            let mut line: VecDeque<Ticket> = VecDeque::new();
            let (mut next, mut out, mut back, mut discarded) = (0u32, VecDeque::new(), 0u32, 0u32);
            let mut offered = std::collections::HashSet::new();
            for (step, n) in steps {
                match step {
                    0 => { next += 1; back += u32::from(state.try_push(next).is_err()); }
                    1 => {
                        next += 1;
                        offered.insert(next);
                        match state.offer(next) {
                            Ok((Offered::Kept, _)) => {}
                            Ok(_) => discarded += 1,
                            Err(_) => back += 1,
                        }
                    }
                    2 => {
                        next += 1;
                        if let Err(Refused::Full(item)) = state.try_push(next) {
                            line.push_back(state.wait(item, Waker::noop().clone()));
                        }
                    }
                    3 => { state.take(n, &mut out); }
                    _ => if let Some(ticket) = line.pop_back() {
                        back += u32::from(state.leave(ticket).is_some());
                    },
                }
                prop_assert!(state.len() <= capacity);
                prop_assert!(state.waiting.is_empty() || state.len() == capacity);
            }
            while state.len() > 0 {
                state.take(usize::MAX, &mut out);
            }
            prop_assert!(state.waiting.is_empty());
            let (jumped, queued): (Vec<u32>, Vec<u32>) =
                out.iter().partition(|item| offered.contains(item));
            prop_assert!(jumped.is_sorted() && queued.is_sorted());
            prop_assert_eq!(next as usize, out.len() + (back + discarded) as usize);
        }
    }
}
