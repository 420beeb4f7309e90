//! The items that were fetched and whose outcome is not stored.

use std::{collections::HashMap, hash::Hash};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The items that were fetched and whose outcome is not stored.
pub(crate) struct HeldItems<R> {
    state: Mutex<State<R>>,
    settled: Notify,
}

struct State<R> {
    items: HashMap<R, HeldItem>,
    bytes: usize,
}

struct HeldItem {
    bytes: usize,
    /// Whether its outcome is being stored.
    is_stored_now: bool,
}

impl<R> Default for HeldItems<R> {
    fn default() -> Self {
        let state = State { items: HashMap::new(), bytes: 0 };
        Self { state: Mutex::new(state), settled: Notify::new() }
    }
}

impl<R: Clone + Eq + Hash> HeldItems<R> {
    /// An item of so many bytes was fetched.
    pub(crate) fn insert(&self, receipt: R, bytes: usize) {
        let mut state = self.state.lock();
        let State { items, bytes: all } = &mut *state;
        *all = all.saturating_add(bytes);
        if let Some(before) = items.insert(receipt, HeldItem { bytes, is_stored_now: false }) {
            *all = all.saturating_sub(before.bytes);
        }
    }

    /// Removes items whose outcome is stored.
    pub(crate) fn forget<'a>(&self, receipts: impl Iterator<Item = &'a R>)
    where
        R: 'a,
    {
        let mut state = self.state.lock();
        let State { items, bytes } = &mut *state;
        for forgotten in receipts.filter_map(|receipt| items.remove(receipt)) {
            *bytes = bytes.saturating_sub(forgotten.bytes);
        }
        drop(state);
        self.settled.notify_one();
    }

    /// Removes all of them.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.items.clear();
        state.bytes = 0;
        drop(state);
        self.settled.notify_one();
    }

    /// Says that no outcome is being stored.
    pub(crate) fn none_is_stored_now(&self) {
        let items = &mut self.state.lock().items;
        items.values_mut().for_each(|item| item.is_stored_now = false);
    }

    /// Says that the outcomes of these items are being stored.
    pub(crate) fn are_stored_now<'a>(&self, receipts: impl Iterator<Item = &'a R>)
    where
        R: 'a,
    {
        let mut state = self.state.lock();
        for receipt in receipts {
            if let Some(item) = state.items.get_mut(receipt) {
                item.is_stored_now = true;
            }
        }
    }

    /// The items whose lease is to be renewed: those whose outcome is not being stored.
    pub(crate) fn to_renew(&self) -> Vec<R> {
        let state = self.state.lock();
        let kept = state.items.iter().filter(|(_, item)| !item.is_stored_now);
        kept.map(|(receipt, _)| receipt.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// How many more there may be, and waits until there may be one. A broker that stores outcomes more
    /// slowly than it delivers would have them pile up here.
    pub(crate) async fn room(&self, limit: usize, limit_of_bytes: usize) -> usize {
        loop {
            let settled = self.settled.notified();
            let room = {
                let state = self.state.lock();
                let room = limit.saturating_sub(state.items.len());
                if state.bytes < limit_of_bytes { room } else { 0 }
            };
            if room > 0 {
                return room;
            }
            settled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn there_is_room_for_items_and_for_bytes() {
        let held = HeldItems::default();
        assert_eq!(held.room(2, 100).now_or_never(), Some(2));
        held.insert(1, 60);
        held.insert(1, 50);
        assert_eq!((held.len(), held.bytes()), (1, 50));
        assert_eq!(held.room(2, 100).now_or_never(), Some(1));
        held.insert(2, 50);
        assert_eq!(held.room(2, 1000).now_or_never(), None);
        assert_eq!(held.room(10, 100).now_or_never(), None);
        held.forget([2, 3].iter());
        assert_eq!(held.room(10, 100).now_or_never(), Some(9));
        held.clear();
        assert_eq!((held.len(), held.bytes()), (0, 0));
    }

    #[test]
    fn an_item_whose_outcome_is_being_stored_is_not_renewed() {
        let held = HeldItems::default();
        (1..=3).for_each(|receipt| held.insert(receipt, 0));
        held.are_stored_now([2].iter());
        let renewed = |held: &HeldItems<i32>| {
            let mut receipts = held.to_renew();
            receipts.sort_unstable();
            receipts
        };
        assert_eq!(renewed(&held), [1, 3]);
        held.none_is_stored_now();
        assert_eq!(renewed(&held), [1, 2, 3]);
    }
}
