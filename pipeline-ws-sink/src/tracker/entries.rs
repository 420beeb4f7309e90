//! Entries, and how they are found. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::Meta;

/// Somebody on a topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) topic: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) meta: Meta,
}

/// The entries of one replica, each by the number of the change that has added it.
#[derive(Debug, Default)]
pub(super) struct Entries {
    by_number: BTreeMap<u64, Entry>,
    by_topic: HashMap<Arc<str>, BTreeSet<u64>>,
}

impl Entries {
    pub(super) fn add(&mut self, number: u64, entry: Entry) {
        self.by_topic.entry(entry.topic.clone()).or_default().insert(number);
        self.by_number.insert(number, entry);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.by_number.remove(&number)?;
        if let Some(numbers) = self.by_topic.get_mut(&entry.topic) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_topic.remove(&entry.topic);
            }
        }
        Some(entry)
    }

    pub(super) fn get(&self, number: u64) -> Option<&Entry> {
        self.by_number.get(&number)
    }

    pub(super) fn on(&self, topic: &str) -> impl Iterator<Item = &Entry> {
        let numbers = self.by_topic.get(topic).into_iter().flatten();
        numbers.filter_map(|number| self.by_number.get(number))
    }

    pub(super) fn has(&self, topic: &str) -> bool {
        self.by_topic.contains_key(topic)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.by_number.iter().map(|(number, entry)| (*number, entry))
    }

    /// The numbers of those that came after this change.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = u64> {
        self.by_number.range(number + 1..).map(|(number, _)| *number)
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
