//! The entries that can be listed, by topic, by key and by actor. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use foldhash::quality::RandomState;

use super::Meta;

type ByName<T> = HashMap<Arc<str>, T, RandomState>;

/// An entry's position in the list of its topic: entries of this node come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Position {
    Here(u64),
    Elsewhere(u64),
}

/// A listed entry.
#[derive(Debug)]
pub(super) struct ListedEntry {
    pub(super) key: Arc<str>,
    pub(super) meta: Meta,
    /// The change of this node that added it. Meaningless for entries of other nodes.
    pub(super) clock: u64,
}

/// The entries that can be listed.
#[derive(Default)]
pub(super) struct Store {
    topics: ByName<TopicEntries>,
    /// The entries of each actor of this node.
    actors: HashMap<u64, ByName<ByName<Position>>, RandomState>,
    next: u64,
    len: usize,
}

#[derive(Default)]
struct TopicEntries {
    entries: BTreeMap<Position, ListedEntry>,
    keys: ByName<BTreeSet<Position>>,
}

impl Store {
    /// Adds an entry of this node, which must not exist yet.
    pub(super) fn track(
        &mut self,
        actor: u64,
        topic: &Arc<str>,
        key: &Arc<str>,
        meta: Meta,
        clock: u64,
    ) {
        let position = Position::Here(self.next);
        self.put(position, topic, ListedEntry { key: key.clone(), meta, clock });
        let topics = self.actors.entry(actor).or_default();
        topics.entry(topic.clone()).or_default().insert(key.clone(), position);
    }

    /// Adds an entry of another node.
    pub(super) fn put_elsewhere(
        &mut self,
        topic: &Arc<str>,
        key: &Arc<str>,
        meta: &Meta,
    ) -> Position {
        let position = Position::Elsewhere(self.next);
        self.put(position, topic, ListedEntry { key: key.clone(), meta: meta.clone(), clock: 0 });
        position
    }

    fn put(&mut self, position: Position, topic: &Arc<str>, entry: ListedEntry) {
        let topic = self.topics.entry(topic.clone()).or_default();
        topic.keys.entry(entry.key.clone()).or_default().insert(position);
        topic.entries.insert(position, entry);
        self.next += 1;
        self.len += 1;
    }

    /// Removes an entry.
    pub(super) fn take(&mut self, topic: &str, position: Position) -> Option<ListedEntry> {
        let on_topic = self.topics.get_mut(topic)?;
        let entry = on_topic.entries.remove(&position)?;
        if let Some(positions) = on_topic.keys.get_mut(&entry.key) {
            positions.remove(&position);
            if positions.is_empty() {
                on_topic.keys.remove(&entry.key);
            }
        }
        if on_topic.entries.is_empty() {
            self.topics.remove(topic);
        }
        self.len -= 1;
        Some(entry)
    }

    pub(super) fn untrack(&mut self, actor: u64, topic: &str, key: &str) -> Option<ListedEntry> {
        let topics = self.actors.get_mut(&actor)?;
        let keys = topics.get_mut(topic)?;
        let position = keys.remove(key)?;
        if keys.is_empty() {
            topics.remove(topic);
        }
        if topics.is_empty() {
            self.actors.remove(&actor);
        }
        self.take(topic, position)
    }

    /// Removes all entries of an actor on a topic, in the order in which they were tracked.
    pub(super) fn untrack_topic(&mut self, actor: u64, topic: &str) -> Vec<ListedEntry> {
        let Some(topics) = self.actors.get_mut(&actor) else { return Vec::new() };
        let keys = topics.remove(topic).unwrap_or_default();
        if topics.is_empty() {
            self.actors.remove(&actor);
        }
        let mut positions: Vec<Position> = keys.into_values().collect();
        positions.sort_unstable();
        positions.into_iter().filter_map(|position| self.take(topic, position)).collect()
    }

    /// The topics with entries of an actor.
    pub(super) fn topics_of(&self, actor: u64) -> Vec<Arc<str>> {
        self.actors.get(&actor).map_or_else(Vec::new, |topics| topics.keys().cloned().collect())
    }

    pub(super) fn get(&self, actor: u64, topic: &str, key: &str) -> Option<&ListedEntry> {
        let position = self.position(actor, topic, key)?;
        self.topics.get(topic)?.entries.get(&position)
    }

    /// The entry, with its topic.
    pub(super) fn get_mut(
        &mut self,
        actor: u64,
        topic: &str,
        key: &str,
    ) -> Option<(&Arc<str>, &mut ListedEntry)> {
        let position = self.position(actor, topic, key)?;
        let (topic, _) = self.actors.get(&actor)?.get_key_value(topic)?;
        let entry = self.topics.get_mut(topic)?.entries.get_mut(&position)?;
        Some((topic, entry))
    }

    fn position(&self, actor: u64, topic: &str, key: &str) -> Option<Position> {
        self.actors.get(&actor)?.get(topic)?.get(key).copied()
    }

    pub(super) fn list(&self, topic: &str) -> impl Iterator<Item = (&Arc<str>, &Meta)> {
        let entries = self.topics.get(topic).into_iter().flat_map(|topic| topic.entries.values());
        entries.map(|entry| (&entry.key, &entry.meta))
    }

    pub(super) fn get_by_key(&self, topic: &str, key: &str) -> impl Iterator<Item = &Meta> {
        let topic = self.topics.get(topic);
        let found = topic.and_then(|topic| Some((topic, topic.keys.get(key)?)));
        found.into_iter().flat_map(move |(topic, positions)| {
            positions.iter().filter_map(move |position| Some(&topic.entries.get(position)?.meta))
        })
    }

    pub(super) fn count_of_key(&self, topic: &str, key: &str) -> usize {
        self.topics.get(topic).and_then(|topic| topic.keys.get(key)).map_or(0, BTreeSet::len)
    }

    pub(super) fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    pub(super) fn count(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, |topic| topic.entries.len())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}
