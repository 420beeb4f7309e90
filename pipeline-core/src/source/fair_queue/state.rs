//! The state of a fair queue. Pure: it returns the wakers and wakes none itself.

use std::{
    collections::VecDeque,
    hash::Hash,
    task::{Poll, Waker},
};

use super::{
    lane::{LaneId, Lanes, Parcel},
    lengths::Lengths,
    rounds::Rounds,
};
use crate::{
    discarding::Discarding,
    source::{
        Closed, TryPushError,
        store::{Bounded, Offered, Pushed, Store, Taken},
        wait_list::{ReaderWaker, Ticket, Tickets},
    },
    stage::BufferKeep,
};

/// A bounded queue for each key, with a common bound.
///
/// The order in which items leave does not depend on the bounds. A key is served even if all of
/// its items wait for room that others take up; its first waiting item then leaves directly. So the
/// bounds only decide which pushers wait, and for how long.
#[derive(Debug)]
pub(in crate::source) struct State<K, T> {
    pub(super) limits: Limits,
    pub(super) lanes: Lanes<K, T>,
    held: usize,
    /// The turns of lanes to emit an item: lanes with items or waiting pushers.
    leaving: Rounds,
    /// The turns of lanes to move up one waiting item: lanes with waiting pushers and room of their
    /// own. Empty unless the whole queue is full or closed.
    entering: Rounds,
    lengths: Lengths,
    tickets: Tickets,
    reader: ReaderWaker,
    closed: bool,
    discarding: Discarding,
}

/// Capacities and policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) capacity: usize,
    pub(super) key_capacity: usize,
    pub(super) keep: BufferKeep,
    pub(super) quantum: u32,
}

/// A pushed item with its weight and cost.
#[derive(Debug)]
pub(in crate::source) struct Entry<K, T> {
    pub(super) key: K,
    /// At least 1.
    pub(super) weight: u32,
    pub(super) item: T,
    /// At least 1.
    pub(super) cost: u32,
}

/// A ticket of the wait list of a key.
#[derive(Clone, Copy, Debug)]
pub(in crate::source) struct KeyTicket {
    lane: LaneId,
    ticket: Ticket,
}

/// The capacity that an item exceeds.
enum Bound {
    Key,
    Total,
}

impl<K, T> State<K, T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: Lanes::new(),
            held: 0,
            leaving: Rounds::new(limits.quantum),
            entering: Rounds::new(1),
            lengths: Lengths::default(),
            tickets: Tickets::default(),
            reader: ReaderWaker::default(),
            closed: false,
            discarding: Discarding::default(),
        }
    }

    pub(super) fn key_capacity(&self) -> usize {
        self.limits.key_capacity
    }
}

impl<K: Hash + Eq + Clone, T> State<K, T> {
    /// The number of items of a key.
    pub(super) fn len_of(&self, key: &K) -> usize {
        self.lanes.find(key).map_or(0, |lane| lane.items.len())
    }

    fn bound(&self, id: LaneId) -> Option<Bound> {
        if self.lanes[id].items.len() == self.limits.key_capacity {
            Some(Bound::Key)
        } else if self.held == self.limits.capacity {
            Some(Bound::Total)
        } else {
            None
        }
    }

    /// Inserts an item. Returns the waker of the reader, if it waits.
    fn insert(&mut self, id: LaneId, parcel: Parcel<T>) -> Option<Waker> {
        self.lanes[id].items.push_back(parcel);
        self.held += 1;
        self.settle(id);
        self.reader.take()
    }

    /// Moves up waiting items as far as there is room.
    fn move_up(&mut self, wake: &mut Vec<Waker>) {
        while !self.closed && self.held < self.limits.capacity {
            let next = self.entering.next(|_| 1);
            let Some((id, (parcel, waker))) =
                next.and_then(|id| Some((id, self.lanes[id].wait_list.pop()?)))
            else {
                break;
            };
            wake.push(waker);
            self.insert(id, parcel);
        }
    }

    /// Updates everything that depends on a lane, and removes the lane if it is empty.
    fn settle(&mut self, id: LaneId) {
        let lane = &self.lanes[id];
        let (held, waits) = (lane.items.len(), !lane.wait_list.is_empty());
        self.lengths.set(id, held);
        if held > 0 || waits && !self.closed {
            self.leaving.join(id, lane.weight);
        } else {
            self.leaving.leave(id);
        }
        if waits && held < self.limits.key_capacity {
            self.entering.join(id, 1);
        } else {
            self.entering.leave(id);
        }
        if lane.is_idle() {
            self.lanes.close(id);
        }
        if self.lanes.is_empty() {
            self.lanes.clear();
            self.leaving.shrink();
            self.entering.shrink();
            self.lengths.shrink();
        }
    }

    /// Whether half of the room is free.
    fn has_room(&self) -> bool {
        let Limits { capacity, key_capacity, .. } = self.limits;
        self.held <= capacity / 2 && self.lengths.max() <= key_capacity / 2
    }
}

impl<K, T> Bounded for State<K, T> {
    type Item = T;

    fn len(&self) -> usize {
        self.held
    }

    fn capacity(&self) -> usize {
        self.limits.capacity
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn close(&mut self) -> Vec<Waker> {
        self.closed = true;
        let mut wake: Vec<Waker> = self.reader.take().into_iter().collect();
        for (id, lane) in self.lanes.iter() {
            wake.extend(lane.wait_list.wakers());
            if lane.items.is_empty() {
                // Waiting items are returned, not emitted.
                self.leaving.leave(id);
            }
        }
        wake
    }
}

impl<K: Hash + Eq + Clone, T> Store for State<K, T> {
    type Entry = Entry<K, T>;
    type Ticket = KeyTicket;

    const DISCARDING: &'static str = "the queue or a key of it is full, discarding";

    fn try_push(&mut self, entry: Entry<K, T>) -> Result<Option<Waker>, TryPushError<T>> {
        let Entry { key, weight, item, cost } = entry;
        if self.closed {
            return Err(TryPushError::Closed(item));
        }
        let id = self.lanes.open(key, weight);
        match self.bound(id) {
            None => Ok(self.insert(id, Parcel { item, cost })),
            Some(bound) => {
                self.settle(id);
                Err(match bound {
                    Bound::Key => TryPushError::KeyFull(item),
                    Bound::Total => TryPushError::Full(item),
                })
            }
        }
    }

    fn push(&mut self, entry: Entry<K, T>, waker: &Waker) -> Pushed<T, KeyTicket> {
        let Entry { key, weight, item, cost } = entry;
        if self.closed {
            return Pushed::Closed(item);
        }
        let id = self.lanes.open(key, weight);
        if self.bound(id).is_none() {
            return Pushed::In(self.insert(id, Parcel { item, cost }));
        }
        let ticket = self.tickets.draw();
        self.lanes[id].wait_list.join(ticket, Parcel { item, cost }, waker.clone());
        self.settle(id);
        Pushed::Waits(KeyTicket { lane: id, ticket })
    }

    fn poll(&mut self, ticket: KeyTicket, waker: &Waker) -> Poll<Result<(), Closed<T>>> {
        let Some(lane) = self.lanes.get_mut(ticket.lane) else {
            return Poll::Ready(Ok(()));
        };
        let outcome = lane.wait_list.poll(ticket.ticket, waker, self.closed);
        if outcome.is_ready() {
            self.settle(ticket.lane);
        }
        outcome.map_err(|Closed(parcel)| Closed(parcel.item))
    }

    fn leave(&mut self, ticket: KeyTicket) -> Option<T> {
        let parcel = self.lanes.get_mut(ticket.lane)?.wait_list.leave(ticket.ticket)?;
        self.settle(ticket.lane);
        Some(parcel.item)
    }

    fn offer(&mut self, entry: Entry<K, T>) -> Result<Offered<T>, Closed<T>> {
        let Entry { key, weight, item, cost } = entry;
        if self.closed {
            return Err(Closed(item));
        }
        let id = self.lanes.open(key, weight);
        let payer = match self.bound(id) {
            None => return Ok(Offered::Kept(self.insert(id, Parcel { item, cost }))),
            Some(Bound::Key) => Some(id),
            Some(Bound::Total) if self.lengths.of(id) == self.lengths.max() => Some(id),
            Some(Bound::Total) => self.lengths.longest(),
        };
        let first = self.discarding.add(1);
        let payer = payer.filter(|_| self.limits.keep == BufferKeep::Last);
        let oldest = payer.and_then(|payer| self.lanes[payer].items.pop_front());
        let (Some(payer), Some(oldest)) = (payer, oldest) else {
            self.settle(id);
            return Ok(Offered::Discarded { item, displaced: false, first });
        };
        self.held -= 1;
        self.insert(id, Parcel { item, cost });
        if payer != id {
            self.settle(payer);
        }
        Ok(Offered::Discarded { item: oldest.item, displaced: true, first })
    }

    fn take(&mut self, count: usize, out: &mut VecDeque<T>) -> Taken {
        let mut taken = Taken::default();
        for _ in 0..count {
            let lanes = &self.lanes;
            let Some(id) = self.leaving.next(|id| lanes[id].cost()) else {
                break;
            };
            let lane = &mut self.lanes[id];
            if let Some(parcel) = lane.items.pop_front() {
                self.held -= 1;
                out.push_back(parcel.item);
            } else if let Some((parcel, waker)) = lane.wait_list.pop() {
                taken.wake.push(waker);
                out.push_back(parcel.item);
            }
            self.settle(id);
            self.move_up(&mut taken.wake);
        }
        taken.discarded = if self.closed {
            self.discarding.end()
        } else {
            let has_room = self.has_room();
            self.discarding.over(has_room)
        };
        taken
    }

    fn poll_ready(&mut self, waker: &Waker) -> Poll<()> {
        self.reader.poll(self.held > 0 || self.closed, waker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::fair_queue::lane::SPARE;

    type Item = (char, u32);
    type Fair = State<char, Item>;

    fn state(capacity: usize, key_capacity: usize, keep: BufferKeep) -> Fair {
        State::new(Limits { capacity, key_capacity, keep, quantum: 1 })
    }

    fn entry(key: char, n: u32) -> Entry<char, Item> {
        Entry { key, weight: 1, item: (key, n), cost: 1 }
    }

    #[test]
    fn with_one_item_at_a_time_only_its_lane_allocates() {
        let mut state = state(100, 10, BufferKeep::Last);
        let mut out = VecDeque::with_capacity(1);
        let mut pass = |items| {
            for n in 0..items {
                assert!(state.try_push(entry('a', n)).is_ok());
                state.take(1, &mut out);
                out.clear();
            }
        };
        pass(10);
        let counted = allocation_counter::measure(|| pass(100));
        assert_eq!(counted.count_total, 100);
    }

    fn fill(state: &mut Fair, items: &str) {
        for (n, key) in (1..).zip(items.chars()) {
            assert!(state.try_push(entry(key, n)).is_ok());
        }
    }

    fn wait(state: &mut Fair, entry: Entry<char, Item>) -> KeyTicket {
        match state.push(entry, Waker::noop()) {
            Pushed::Waits(ticket) => ticket,
            other => panic!("{other:?} instead of waiting"),
        }
    }

    fn poll(state: &mut Fair, ticket: KeyTicket) -> Poll<Result<(), Closed<Item>>> {
        state.poll(ticket, Waker::noop())
    }

    /// The keys and numbers of up to `count` items: `"a1 b2"`.
    fn take(state: &mut Fair, count: usize) -> String {
        let mut out = VecDeque::new();
        state.take(count, &mut out);
        let items: Vec<String> = out.into_iter().map(|(key, n)| format!("{key}{n}")).collect();
        items.join(" ")
    }

    /// The item that is discarded for an offered one, and whether it is an older one.
    fn offer(state: &mut Fair, key: char, n: u32) -> Option<(Item, bool)> {
        match state.offer(entry(key, n)).unwrap() {
            Offered::Kept(_) => None,
            Offered::Discarded { item, displaced, .. } => Some((item, displaced)),
        }
    }

    #[test]
    fn keys_take_turns_and_each_keeps_its_order() {
        let mut state = state(9, 9, BufferKeep::Last);
        fill(&mut state, "aaaabbc");
        assert_eq!(take(&mut state, 9), "a1 b5 c7 a2 b6 a3 a4");
    }

    #[test]
    fn the_error_names_the_bound_that_is_reached() {
        let mut state = state(3, 2, BufferKeep::Last);
        fill(&mut state, "aab");
        let refused = |state: &mut Fair, key| state.try_push(entry(key, 9)).unwrap_err();
        assert_eq!(refused(&mut state, 'a'), TryPushError::KeyFull(('a', 9)));
        assert_eq!(refused(&mut state, 'b'), TryPushError::Full(('b', 9)));
        assert_eq!(refused(&mut state, 'c'), TryPushError::Full(('c', 9)));
        assert_eq!(take(&mut state, 1), "a1");
        assert!(state.try_push(entry('c', 9)).is_ok());
        assert_eq!((state.len_of(&'a'), state.len_of(&'b'), state.len_of(&'x')), (1, 1, 0));
    }

    #[test]
    fn waiting_items_move_up_in_order_and_do_not_block_other_keys() {
        let mut state = state(9, 1, BufferKeep::Last);
        fill(&mut state, "a");
        let (second, third) = (wait(&mut state, entry('a', 2)), wait(&mut state, entry('a', 3)));
        assert!(state.try_push(entry('b', 1)).is_ok());
        assert_eq!(take(&mut state, 1), "a1");
        assert_eq!(poll(&mut state, second), Poll::Ready(Ok(())));
        assert_eq!(poll(&mut state, third), Poll::Pending);
        assert_eq!(take(&mut state, 9), "b1 a2 a3");
    }

    #[test]
    fn free_room_goes_to_keys_in_turn_regardless_of_their_wait_lists() {
        let mut state = state(3, 9, BufferKeep::Last);
        fill(&mut state, "aaa");
        let entry = |key| Entry { weight: if key == 'a' { 3 } else { 1 }, ..entry(key, 9) };
        let waiting: Vec<KeyTicket> =
            "aaaabb".chars().map(|key| wait(&mut state, entry(key))).collect();
        let mut moved_up = |count| {
            take(&mut state, count);
            let moved_up = waiting.iter().map(|ticket| poll(&mut state, *ticket).is_ready());
            moved_up.map(u8::from).collect::<Vec<_>>()
        };
        // The items of a leave and make room, three in its turn.
        assert_eq!(moved_up(1), [1, 0, 0, 0, 0, 0]);
        assert_eq!(moved_up(1), [1, 0, 0, 0, 1, 0]);
        assert_eq!(moved_up(1), [1, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn waiting_for_room_does_not_delay_an_item() {
        let mut state = state(3, 3, BufferKeep::Last);
        fill(&mut state, "aaa");
        for n in 4..9 {
            wait(&mut state, entry('a', n));
        }
        wait(&mut state, Entry { weight: 2, ..entry('b', 1) });
        wait(&mut state, Entry { weight: 2, ..entry('b', 2) });
        wait(&mut state, entry('c', 1));
        assert_eq!(take(&mut state, 6), "a1 b1 b2 c1 a2 a3");
    }

    #[test]
    fn the_turn_of_a_key_continues_with_its_waiting_items() {
        let mut state = state(9, 1, BufferKeep::Last);
        fill(&mut state, "a");
        for n in 2..5 {
            wait(&mut state, Entry { weight: 3, ..entry('a', n) });
        }
        fill(&mut state, "b");
        assert_eq!(take(&mut state, 9), "a1 a2 a3 b1 a4");
    }

    #[test]
    fn the_length_of_a_turn_depends_on_the_cost_of_its_items() {
        let limits =
            Limits { capacity: 99, key_capacity: 99, keep: BufferKeep::Last, quantum: 100 };
        let mut state = State::new(limits);
        for n in 1..7 {
            assert!(state.try_push(Entry { cost: 100, ..entry('a', n) }).is_ok());
            assert!(state.try_push(Entry { cost: 50, ..entry('b', n) }).is_ok());
        }
        assert_eq!(take(&mut state, 6), "a1 b1 b2 a2 b3 b4");
    }

    #[test]
    fn leaving_the_wait_list_returns_the_item() {
        let mut state = state(1, 1, BufferKeep::Last);
        fill(&mut state, "a");
        let (second, other) = (wait(&mut state, entry('a', 2)), wait(&mut state, entry('b', 1)));
        let third = wait(&mut state, entry('a', 3));
        assert_eq!(state.leave(second), Some(('a', 2)));
        assert_eq!(state.leave(other), Some(('b', 1)));
        assert_eq!(take(&mut state, 1), "a1");
        assert_eq!(state.leave(third), None, "the item has moved up already");
        assert_eq!(take(&mut state, 9), "a3");
    }

    #[test]
    fn a_place_in_a_wait_list_is_not_mistaken_for_one_of_a_later_key() {
        let mut state = state(1, 1, BufferKeep::Last);
        fill(&mut state, "a");
        let moved_up = wait(&mut state, entry('a', 2));
        assert_eq!(take(&mut state, 2), "a1 a2");
        fill(&mut state, "b");
        let waits = wait(&mut state, entry('b', 2));
        assert_eq!(moved_up.lane, waits.lane);
        assert_eq!(poll(&mut state, moved_up), Poll::Ready(Ok(())));
        assert_eq!(state.leave(moved_up), None);
        assert_eq!(poll(&mut state, waits), Poll::Pending);
    }

    #[test]
    fn a_closed_queue_returns_waiting_items_and_emits_the_queued_ones() {
        let mut state = state(1, 1, BufferKeep::Last);
        fill(&mut state, "a");
        let (second, other) = (wait(&mut state, entry('a', 2)), wait(&mut state, entry('b', 1)));
        assert_eq!(state.close().len(), 2);
        assert_eq!(take(&mut state, 9), "a1");
        assert_eq!(poll(&mut state, second), Poll::Ready(Err(Closed(('a', 2)))));
        assert_eq!(state.leave(other), Some(('b', 1)));
        assert_eq!(state.try_push(entry('a', 3)).unwrap_err(), TryPushError::Closed(('a', 3)));
        assert_eq!(state.offer(entry('a', 4)).unwrap_err(), Closed(('a', 4)));
        assert!(matches!(state.push(entry('a', 5), Waker::noop()), Pushed::Closed(('a', 5))));
        assert!(state.lanes.is_empty() && state.poll_ready(Waker::noop()).is_ready());
    }

    #[test]
    fn an_offer_to_a_full_key_discards_as_the_policy_says() {
        let mut last = state(9, 2, BufferKeep::Last);
        fill(&mut last, "aab");
        assert_eq!(offer(&mut last, 'a', 4), Some((('a', 1), true)));
        assert_eq!(offer(&mut last, 'b', 5), None);
        assert_eq!(take(&mut last, 9), "a2 b3 a4 b5");
        let mut first = state(9, 2, BufferKeep::First);
        fill(&mut first, "aab");
        assert_eq!(offer(&mut first, 'a', 4), Some((('a', 4), false)));
        assert_eq!(take(&mut first, 9), "a1 b3 a2");
    }

    #[test]
    fn an_offer_beyond_the_capacity_evicts_from_the_longest_key() {
        let mut last = state(6, 6, BufferKeep::Last);
        fill(&mut last, "abbacc");
        assert_eq!(offer(&mut last, 'a', 7), Some((('a', 1), true)), "no other key has more items");
        assert_eq!(
            offer(&mut last, 'd', 8),
            Some((('b', 2), true)),
            "b has had the most items for the longest time"
        );
        assert_eq!(offer(&mut last, 'b', 9), Some((('a', 4), true)));
        assert_eq!(offer(&mut last, 'd', 10), Some((('c', 5), true)));
        assert_eq!(take(&mut last, 9), "a7 b3 c6 d8 b9 d10");
        let mut first = state(3, 3, BufferKeep::First);
        fill(&mut first, "aaa");
        assert_eq!(offer(&mut first, 'b', 4), Some((('b', 4), false)));
        assert_eq!(take(&mut first, 9), "a1 a2 a3");
        assert!(first.lanes.is_empty());
    }

    #[test]
    fn discarding_is_logged_when_it_begins_and_ends_however_often_items_leave() {
        let mut state = state(9, 4, BufferKeep::First);
        fill(&mut state, "aaaa");
        let began = |state: &mut Fair| {
            matches!(state.offer(entry('a', 9)).unwrap(), Offered::Discarded { first: true, .. })
        };
        assert_eq!([began(&mut state), began(&mut state)], [true, false]);
        let mut out = VecDeque::new();
        assert_eq!(state.take(1, &mut out).discarded, 0);
        assert_eq!([began(&mut state), began(&mut state)], [false, false]);
        for _ in 0..1000 {
            assert_eq!(
                state.take(4, &mut out).discarded,
                0,
                "an item was discarded since the last take"
            );
            fill(&mut state, "aaaa");
            assert!(!began(&mut state));
        }
        assert_eq!(state.take(2, &mut out).discarded, 0);
        assert_eq!(state.take(0, &mut out).discarded, 1003);
        assert_eq!(state.take(2, &mut out).discarded, 0);
        fill(&mut state, "aabbccdda");
        assert!(began(&mut state));
        assert_eq!(state.take(4, &mut out).discarded, 0);
        assert_eq!(state.take(0, &mut out).discarded, 0, "five of nine places are taken");
        assert_eq!(state.take(1, &mut out).discarded, 1);
    }

    #[test]
    fn the_taker_is_woken_by_the_first_item_only() {
        let mut state = state(3, 3, BufferKeep::Last);
        assert!(state.poll_ready(Waker::noop()).is_pending());
        assert!(state.try_push(entry('a', 1)).unwrap().is_some());
        assert!(state.try_push(entry('b', 2)).unwrap().is_none());
        assert!(state.poll_ready(Waker::noop()).is_ready());
    }

    #[test]
    fn the_memory_of_many_keys_is_released() {
        const KEYS: u32 = 20_000;
        let capacity = KEYS as usize;
        let limits = Limits { capacity, key_capacity: 1, keep: BufferKeep::Last, quantum: 1 };
        let mut state: State<u32, u32> = State::new(limits);
        let entry = |item: u32| Entry { key: item % KEYS, weight: 1, item, cost: 1 };
        for item in 0..KEYS {
            assert!(state.try_push(entry(item)).is_ok());
        }
        for item in KEYS..2 * KEYS {
            assert!(matches!(state.push(entry(item), Waker::noop()), Pushed::Waits(_)));
        }
        let mut out = VecDeque::new();
        assert_eq!(state.take(usize::MAX, &mut out).wake.len(), capacity);
        assert_eq!(out, Vec::from_iter(0..2 * KEYS));
        assert!(state.lanes.is_empty());
        let entry = |item: u32| Entry { key: 0, weight: 1, item, cost: 1 };
        state.limits.key_capacity = capacity;
        for item in 0..KEYS {
            assert!(state.try_push(entry(item)).is_ok());
        }
        state.take(usize::MAX, &mut out);
        let room =
            [state.lanes.room(), state.leaving.room(), state.entering.room(), state.lengths.room()];
        assert!(room.iter().all(|room| *room <= 4 * SPARE), "{room:?}");
    }
}
