//! The clients that are connecting, and the disconnects that concern them. Pure.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// How many disconnects are remembered for clients that are connecting. They are needed for as long
/// as a `connect` and an upgrade take.
const REMEMBERED: usize = 16 << 10;

/// The clients that are connecting: from before their `connect` until they are registered. Their
/// ids are not known, so each id that is disconnected meanwhile is remembered.
#[derive(Debug, Default)]
pub(super) struct Entrants {
    /// The number of disconnects until now.
    disconnects: u64,
    /// How many clients are connecting, by the number of disconnects before them.
    connecting: BTreeMap<u64, usize>,
    /// The number of the last disconnect of each remembered id.
    last: HashMap<Arc<str>, u64>,
    /// The remembered disconnects.
    in_order: VecDeque<(u64, Arc<str>)>,
    /// The number of the last disconnect that is not remembered although it may be needed.
    forgotten: u64,
}

impl Entrants {
    /// A client begins to connect. Returns its time: the number of disconnects before it.
    pub(super) fn enter(&mut self) -> u64 {
        *self.connecting.entry(self.disconnects).or_default() += 1;
        self.disconnects
    }

    /// Remembers that an id is disconnected, if a client is connecting.
    pub(super) fn disconnect(&mut self, id: &str) {
        if self.connecting.is_empty() {
            return;
        }
        self.disconnects += 1;
        let id: Arc<str> = id.into();
        self.last.insert(id.clone(), self.disconnects);
        self.in_order.push_back((self.disconnects, id));
        if self.in_order.len() > REMEMBERED
            && let Some(number) = self.forget_oldest()
        {
            self.forgotten = number;
        }
    }

    /// Whether this id has been disconnected since a client began to connect. Also true if that is
    /// not known any more: the client connects again.
    pub(super) fn is_disconnected(&self, since: u64, id: &str) -> bool {
        since < self.forgotten || self.last.get(id).is_some_and(|&last| since < last)
    }

    /// A client that began to connect at this time is registered, or does not connect.
    pub(super) fn leave(&mut self, since: u64) {
        if let Some(count) = self.connecting.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.connecting.remove(&since);
            }
        }
        let Some((&oldest, _)) = self.connecting.first_key_value() else {
            (self.last, self.in_order) = Default::default();
            return;
        };
        while self.in_order.front().is_some_and(|&(number, _)| number <= oldest) {
            self.forget_oldest();
        }
    }

    /// Returns its number, unless its id was disconnected again later.
    fn forget_oldest(&mut self) -> Option<u64> {
        let (number, id) = self.in_order.pop_front()?;
        let is_last = self.last.get(&id) == Some(&number);
        is_last.then(|| {
            self.last.remove(&id);
            number
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_knows_the_disconnects_since_it_began_to_connect_and_no_others() {
        let mut entrants = Entrants::default();
        entrants.disconnect("before all");
        let early = entrants.enter();
        entrants.disconnect("one");
        let late = entrants.enter();
        entrants.disconnect("two");
        for (id, concerns_early, concerns_late) in [
            ("before all", false, false),
            ("one", true, false),
            ("two", true, true),
            ("none", false, false),
        ] {
            assert_eq!(entrants.is_disconnected(early, id), concerns_early, "{id}");
            assert_eq!(entrants.is_disconnected(late, id), concerns_late, "{id}");
        }
        entrants.disconnect("one");
        assert!(entrants.is_disconnected(late, "one"), "again");
    }

    #[test]
    fn disconnects_are_forgotten_when_no_client_needs_them() {
        let mut entrants = Entrants::default();
        let early = entrants.enter();
        entrants.disconnect("one");
        let late = entrants.enter();
        let another = entrants.enter();
        entrants.disconnect("two");
        entrants.leave(early);
        assert_eq!((entrants.last.len(), entrants.in_order.len()), (1, 1));
        entrants.leave(late);
        assert!(entrants.is_disconnected(another, "two"));
        entrants.leave(another);
        assert!(entrants.last.is_empty() && entrants.in_order.is_empty());
        entrants.disconnect("three");
        assert!(entrants.in_order.is_empty() && entrants.connecting.is_empty());
    }

    #[test]
    fn a_client_that_connects_for_longer_than_disconnects_are_remembered_is_disconnected() {
        let mut entrants = Entrants::default();
        let early = entrants.enter();
        entrants.disconnect("first");
        let late = entrants.enter();
        for at in 1..REMEMBERED {
            entrants.disconnect(&at.to_string());
        }
        assert!(!entrants.is_disconnected(early, "none"));
        entrants.disconnect("last");
        assert_eq!((entrants.last.len(), entrants.in_order.len()), (REMEMBERED, REMEMBERED));
        assert!(entrants.is_disconnected(early, "first"));
        assert!(entrants.is_disconnected(early, "none"), "it may be one that was forgotten");
        assert!(!entrants.is_disconnected(late, "none"));
    }
}
