//! A fair queue compared with a model.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
};

use proptest::prelude::*;

use super::state::{Entry, KeyTicket, Limits, State};
use crate::{
    source::{
        Closed, TryPushError,
        store::{Bounded, Offered, Pushed, Store},
    },
    stage::BufferKeep,
};

type Item = (char, u32);

/// Whether a waiting pusher was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A queue and the model of its contents.
struct Model {
    state: State<char, Item>,
    /// The items of each key, oldest first.
    held: BTreeMap<char, VecDeque<Item>>,
    /// The waiting pushers, in the order of their arrival.
    waiting: Vec<(KeyTicket, Item, Arc<Woken>)>,
    /// The items that left.
    out: VecDeque<Item>,
    next: u32,
}

impl Model {
    fn new(capacity: usize, key_capacity: usize, keep: BufferKeep) -> Self {
        let (held, waiting, out) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        let limits = Limits { capacity, key_capacity, keep, quantum: 2 };
        Self { state: State::new(limits), held, waiting, out, next: 0 }
    }

    fn entry(&mut self, key: char, weight: u32, cost: u32) -> Entry<char, Item> {
        self.next += 1;
        Entry { key, weight, item: (key, self.next), cost }
    }

    fn held(&mut self, key: char) -> &mut VecDeque<Item> {
        self.held.entry(key).or_default()
    }

    fn len(&self) -> usize {
        self.held.values().map(VecDeque::len).sum()
    }

    fn is_full(&mut self, key: char) -> bool {
        self.len() == self.state.limits.capacity
            || self.held(key).len() == self.state.limits.key_capacity
    }

    fn try_push(&mut self, entry: Entry<char, Item>) {
        let item = entry.item;
        let full = self.is_full(item.0);
        match self.state.try_push(entry) {
            Ok(_) => {
                assert!(!full);
                self.held(item.0).push_back(item);
            }
            Err(TryPushError::KeyFull(back)) => {
                assert_eq!(self.held(item.0).len(), self.state.limits.key_capacity);
                assert_eq!(back, item);
            }
            Err(TryPushError::Full(back)) => {
                assert_eq!(self.len(), self.state.limits.capacity);
                assert_eq!(back, item);
            }
            Err(TryPushError::Closed(back)) => {
                assert!(self.state.is_closed());
                assert_eq!(back, item);
            }
        }
    }

    fn push(&mut self, entry: Entry<char, Item>) {
        let item = entry.item;
        let full = self.is_full(item.0);
        let woken = Arc::new(Woken::default());
        match self.state.push(entry, &woken.clone().into()) {
            Pushed::In(_) => {
                assert!(!full);
                self.held(item.0).push_back(item);
            }
            Pushed::Waits(ticket) => {
                assert!(full);
                self.waiting.push((ticket, item, woken));
            }
            Pushed::Closed(back) => {
                assert!(self.state.is_closed());
                assert_eq!(back, item);
            }
        }
    }

    fn offer(&mut self, entry: Entry<char, Item>) {
        let (item, keep) = (entry.item, self.state.limits.keep);
        let full = self.is_full(item.0);
        let of_key = self.held(item.0).len();
        let most = self.held.values().map(VecDeque::len).max();
        match self.state.offer(entry) {
            Ok(Offered::Kept(_)) => {
                assert!(!full);
                self.held(item.0).push_back(item);
            }
            Ok(Offered::Discarded { item: gone, displaced: false, .. }) => {
                assert_eq!((full, keep, gone), (true, BufferKeep::First, item));
            }
            Ok(Offered::Discarded { item: gone, displaced: true, .. }) => {
                assert_eq!((full, keep), (true, BufferKeep::Last));
                if of_key == self.state.limits.key_capacity || Some(of_key) == most {
                    assert_eq!(gone.0, item.0);
                } else {
                    assert_eq!(Some(self.held(gone.0).len()), most);
                }
                assert_eq!(self.held(gone.0).pop_front(), Some(gone));
                self.held(item.0).push_back(item);
            }
            Err(Closed(back)) => {
                assert!(self.state.is_closed());
                assert_eq!(back, item);
            }
        }
    }

    fn take(&mut self, count: usize) {
        let before = self.out.len();
        let taken = self.state.take(count, &mut self.out);
        assert!(self.out.len() - before <= count);
        taken.wake.into_iter().for_each(Waker::wake);
        self.check_woken_pushers();
        for item in self.out.range(before..).copied().collect::<Vec<_>>() {
            assert_eq!(self.held(item.0).pop_front(), Some(item));
        }
    }

    /// Checks that exactly the woken pushers have moved up or have their item back.
    fn check_woken_pushers(&mut self) {
        for (ticket, item, woken) in mem::take(&mut self.waiting) {
            let outcome = self.state.poll(ticket, &woken.clone().into());
            assert_eq!(outcome.is_ready(), woken.0.load(Ordering::Relaxed), "{item:?}");
            match outcome {
                Poll::Pending => self.waiting.push((ticket, item, woken)),
                Poll::Ready(Ok(())) => self.held(item.0).push_back(item),
                Poll::Ready(Err(Closed(back))) => {
                    assert!(self.state.is_closed());
                    assert_eq!(back, item);
                }
            }
        }
    }

    fn leave(&mut self, n: usize) {
        if n < self.waiting.len() {
            let (ticket, item, _) = self.waiting.remove(n);
            assert_eq!(self.state.leave(ticket), Some(item));
        }
    }

    fn close(&mut self) {
        self.state.close().into_iter().for_each(Waker::wake);
        self.check_woken_pushers();
        assert!(self.waiting.is_empty());
    }

    fn check(&mut self) {
        assert_eq!(self.state.len(), self.len());
        assert!(self.len() <= self.state.limits.capacity);
        for (key, held) in &self.held {
            assert_eq!(self.state.len_of(key), held.len());
            assert!(held.len() <= self.state.limits.key_capacity);
        }
        for key in self.waiting.iter().map(|(_, item, _)| item.0).collect::<Vec<_>>() {
            assert!(self.is_full(key), "{key} waits while there is room");
        }
        let waits = |key: &char| self.waiting.iter().any(|(_, item, _)| item.0 == *key);
        let holds = |key: &char| self.held.get(key).is_some_and(|held| !held.is_empty());
        let busy = ('a'..='z').filter(|key| holds(key) || waits(key));
        assert_eq!(self.state.lanes.iter().count(), busy.count());
    }
}

proptest! {
    /// For any sequence of operations: the queue keeps to its bounds; every accepted item leaves
    /// once, after earlier ones of its key, or is still in the queue, or was reported as discarded;
    /// no pusher waits while there is room, and exactly those that can continue are woken; and only
    /// keys that need a lane have one.
    #[test]
    fn items_are_conserved(
        capacity in 1usize..8, key_capacity in 1usize..5, last: bool, close_after in 0usize..160,
        steps in prop::collection::vec(
            (0u8..5, prop::char::range('a', 'd'), 0usize..5, 1u32..4, 1u32..4), 0..120
        )
    ) {
        let keep = if last { BufferKeep::Last } else { BufferKeep::First };
        let mut model = Model::new(capacity, key_capacity, keep);
        for (number, (step, key, n, weight, cost)) in steps.into_iter().enumerate() {
            if number == close_after {
                model.close();
            }
            let entry = model.entry(key, weight, cost);
            match step {
                0 => model.try_push(entry),
                1 => model.offer(entry),
                2 => model.push(entry),
                3 => model.take(n),
                _ => model.leave(n),
            }
            model.check();
        }
        model.take(usize::MAX);
        model.check();
        prop_assert!(model.state.lanes.is_empty() && model.waiting.is_empty());
    }

    /// Pushed items leave in the same order, whether they had to wait for room or not.
    #[test]
    fn the_order_does_not_depend_on_the_bounds(
        capacity in 1usize..8, key_capacity in 1usize..5,
        steps in prop::collection::vec(
            (any::<bool>(), prop::char::range('a', 'd'), 0usize..5, 1u32..4, 1u32..4), 0..120
        )
    ) {
        let mut bounded = Model::new(capacity, key_capacity, BufferKeep::Last);
        let mut unbounded = Model::new(usize::MAX, usize::MAX, BufferKeep::Last);
        for (push, key, count, weight, cost) in steps {
            for model in [&mut bounded, &mut unbounded] {
                if push {
                    let entry = model.entry(key, weight, cost);
                    model.push(entry);
                } else {
                    model.take(count);
                }
            }
            prop_assert_eq!(&bounded.out, &unbounded.out);
        }
    }
}
