//! The last changes of a replica, for the others. Pure.

use std::collections::VecDeque;

use super::{entries::Entries, message::Changes};

/// What was done, by numbers that follow each other.
#[derive(Clone, Copy, Debug)]
enum Change {
    Added,
    Removed(u64),
}

/// The last changes, as many as are remembered.
#[derive(Debug)]
pub(super) struct Log {
    /// The number of the last change.
    last: u64,
    changes: VecDeque<Change>,
    max: usize,
}

impl Log {
    pub(super) fn new(max: usize) -> Self {
        Self { last: 0, changes: VecDeque::new(), max }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Something is added. Returns the number of this change.
    pub(super) fn add(&mut self) -> u64 {
        self.note(Change::Added)
    }

    /// What the change of this number had added is removed.
    pub(super) fn remove(&mut self, number: u64) {
        self.note(Change::Removed(number));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    fn note(&mut self, change: Change) -> u64 {
        self.last += 1;
        self.changes.push_back(change);
        if self.changes.len() > self.max {
            self.changes.pop_front();
        }
        self.last
    }

    /// What has changed since the change of this number, if that is still remembered.
    pub(super) fn since(&self, number: u64, entries: &Entries) -> Option<Changes> {
        let first = self.last - self.changes.len() as u64;
        if number < first || number > self.last {
            return None;
        }
        let mut changes = Changes { since: number, ..Changes::default() };
        let numbered = (first + 1..).zip(&self.changes).filter(|(at, _)| *at > number);
        for (at, change) in numbered {
            match change {
                // One that is gone again is not told of.
                Change::Added => {
                    changes.added.extend(entries.get(at).map(|entry| (at, entry.clone())));
                }
                Change::Removed(added) if *added <= number => changes.removed.push(*added),
                Change::Removed(_) => {}
            }
        }
        Some(changes)
    }
}
