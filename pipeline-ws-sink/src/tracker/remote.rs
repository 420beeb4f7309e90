//! What is known of another replica. Pure.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Diffs,
    entries::{Entries, Entry},
    message::Changes,
};

/// What is known of another replica.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) version: u64,
    /// Up to which of its changes everything is known.
    pub(super) count: u64,
    pub(super) entries: Entries,
    /// When it last said something.
    pub(super) heard: Duration,
    pub(super) is_up: bool,
}

impl Remote {
    pub(super) fn new(version: u64, now: Duration) -> Self {
        Self { version, count: 0, entries: Entries::default(), heard: now, is_up: true }
    }

    /// It has said something.
    pub(super) fn hear(&mut self, now: Duration, diffs: &mut Diffs) {
        self.heard = now;
        if !std::mem::replace(&mut self.is_up, true) {
            self.entries.all().for_each(|(_, entry)| diffs.join(entry));
        }
    }

    /// It has said nothing for too long. It may be back.
    pub(super) fn down(&mut self, diffs: &mut Diffs) {
        if std::mem::replace(&mut self.is_up, false) {
            self.entries.all().for_each(|(_, entry)| diffs.leave(entry));
        }
    }

    /// Takes note of these changes, unless some before them are missing. A message may come twice, and
    /// late: what is known already is passed over.
    pub(super) fn change(&mut self, count: u64, changes: Changes, diffs: &mut Diffs) {
        if changes.since > self.count || count <= self.count {
            return;
        }
        // Of what was added since, it tells all that is still there: what is not told of is gone.
        let known = self.entries.after(changes.since);
        let mut gone: BTreeSet<u64> = known.chain(changes.removed).collect();
        for (number, entry) in changes.added {
            self.learn(number, entry, count, &mut gone, diffs);
        }
        self.forget(gone, diffs);
        self.count = count;
    }

    /// Takes note of all its entries. What is not among them is gone, if it is not newer.
    pub(super) fn replace(&mut self, count: u64, entries: Vec<(u64, Entry)>, diffs: &mut Diffs) {
        if count <= self.count {
            return;
        }
        let mut gone: BTreeSet<u64> = self.entries.after(0).collect();
        for (number, entry) in entries {
            self.learn(number, entry, count, &mut gone, diffs);
        }
        self.forget(gone, diffs);
        self.count = count;
    }

    /// This one is there. Adds it, unless it is known.
    fn learn(
        &mut self,
        number: u64,
        entry: Entry,
        count: u64,
        gone: &mut BTreeSet<u64>,
        diffs: &mut Diffs,
    ) {
        if !gone.remove(&number) && number > self.count && number <= count {
            if self.is_up {
                diffs.join(&entry);
            }
            self.entries.add(number, entry);
        }
    }

    fn forget(&mut self, gone: BTreeSet<u64>, diffs: &mut Diffs) {
        let gone = gone.into_iter().filter_map(|number| self.entries.remove(number));
        gone.filter(|_| self.is_up).for_each(|entry| diffs.leave(&entry));
    }
}

/// Takes note of who came and who went.
pub(super) trait Note {
    fn join(&mut self, entry: &Entry);
    fn leave(&mut self, entry: &Entry);
}

impl Note for Diffs {
    fn join(&mut self, entry: &Entry) {
        let diff = self.entry(entry.topic.clone()).or_default();
        diff.joins.push((entry.key.clone(), entry.meta.clone()));
    }

    fn leave(&mut self, entry: &Entry) {
        let diff = self.entry(entry.topic.clone()).or_default();
        diff.leaves.push((entry.key.clone(), entry.meta.clone()));
    }
}
