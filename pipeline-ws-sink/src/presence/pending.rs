//! Changes that have not been sent yet. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    sync::Arc,
};

use super::{
    phx_ref,
    tracker::{Diff, Diffs, Meta},
};

/// How many changes one diff has, so that encoding it takes a short time. A diff always has all
/// changes of a key, so it is larger if one key has more.
const MAX_CHANGES: usize = 1_000;

/// Changes that have not been sent yet, by topic.
///
/// Changes of one topic are merged, and two changes that cancel each other out are not sent, unless
/// the topic has been listed in between: the client that the list was sent to has seen the first of
/// them. So there are never more changes than current presences plus presences that clients know of.
#[derive(Debug, Default)]
pub(super) struct PendingDiffs {
    /// The topics in the order in which they are sent. Each has at least one change.
    topics: BTreeMap<u64, Arc<str>>,
    changes: HashMap<Arc<str>, Changes>,
    next: u64,
}

impl PendingDiffs {
    pub(super) fn add(&mut self, diffs: Diffs) {
        for (topic, Diff { joins, leaves }) in diffs {
            let changes = self.changes.entry(topic.clone()).or_insert_with(|| {
                self.next += 1;
                self.topics.insert(self.next, topic.clone());
                Changes::in_turn(self.next)
            });
            joins.into_iter().for_each(|(key, meta)| changes.add(ChangeKind::Join, key, meta));
            leaves.into_iter().for_each(|(key, meta)| changes.add(ChangeKind::Leave, key, meta));
            if changes.is_empty() {
                self.topics.remove(&changes.turn);
                self.changes.remove(&topic);
            }
        }
    }

    /// A list of the topic has been made, with the changes so far.
    pub(super) fn listed(&mut self, topic: &str) {
        if let Some(changes) = self.changes.get_mut(topic) {
            changes.listed = changes.next;
        }
    }

    /// The topic of the next diff.
    pub(super) fn next_topic(&self) -> Option<&Arc<str>> {
        self.topics.first_key_value().map(|(_, topic)| topic)
    }

    /// Takes the next diff: the first changes of a topic. The other changes of that topic are sent
    /// after those of the other topics.
    pub(super) fn next(&mut self) -> Option<(Arc<str>, Diff)> {
        let (_, topic) = self.topics.pop_first()?;
        let changes = self.changes.get_mut(&topic)?;
        let diff = changes.take(MAX_CHANGES);
        if changes.is_empty() {
            self.changes.remove(&topic);
        } else {
            self.next += 1;
            changes.turn = self.next;
            self.topics.insert(self.next, topic.clone());
        }
        Some((topic, diff))
    }
}

/// The changes of one topic. Adding a change takes about the same time for any number of
/// changes.
#[derive(Debug)]
struct Changes {
    /// The topic's position among the others.
    turn: u64,
    /// All changes, grouped by key, in the order in which the keys first changed.
    changes: BTreeMap<Position, Change>,
    /// The first part of the positions of a key's changes, and their number.
    keys: HashMap<Arc<str>, (u64, usize)>,
    /// The position of each meta's change.
    positions: HashMap<KeyedMeta, Position>,
    next: u64,
    /// Changes with lower numbers are in a list that a client may have.
    listed: u64,
}

/// The number of the key, and the number of the change.
type Position = (u64, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangeKind {
    Join,
    Leave,
}

#[derive(Debug)]
struct Change {
    kind: ChangeKind,
    of: KeyedMeta,
    /// The opposite change of the same meta, which was listed and has to be sent first.
    after: Option<Position>,
}

/// A meta of a key. Two are equal if they have the same key and the same reference.
#[derive(Clone, Debug)]
struct KeyedMeta {
    key: Arc<str>,
    meta: Meta,
}

impl Changes {
    fn in_turn(turn: u64) -> Self {
        let (changes, keys, positions) = Default::default();
        Self { turn, changes, keys, positions, next: 0, listed: 0 }
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds a change, unless it cancels one that has been neither sent nor listed: a join and a
    /// leave of the same meta cancel out.
    fn add(&mut self, kind: ChangeKind, key: Arc<str>, meta: Meta) {
        let of = KeyedMeta { key, meta };
        let after = self.positions.get(&of).copied();
        if let Some(position) = after {
            if self.changes.get(&position).is_some_and(|pending| pending.kind == kind) {
                return;
            }
            if position.1 >= self.listed {
                self.remove(position);
                return;
            }
        }
        let number = self.next;
        self.next += 1;
        let (group, count) = self.keys.entry(of.key.clone()).or_insert((number, 0));
        *count += 1;
        let position = (*group, number);
        self.positions.insert(of.clone(), position);
        self.changes.insert(position, Change { kind, of, after });
    }

    fn remove(&mut self, position: Position) -> Option<Change> {
        let change = self.changes.remove(&position)?;
        let before = change.after.filter(|before| self.changes.contains_key(before));
        if let Some(before) = before {
            self.positions.insert(change.of.clone(), before);
        } else if self.positions.get(&change.of) == Some(&position) {
            self.positions.remove(&change.of);
        }
        if let Some((_, count)) = self.keys.get_mut(&change.of.key) {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&change.of.key);
            }
        }
        Some(change)
    }

    /// Takes whole keys until there are at least this many changes. Clients apply joins before
    /// leaves, so a meta that has left and joined again joins in the next diff.
    fn take(&mut self, most: usize) -> Diff {
        let (mut diff, mut taken, mut last_group) = (Diff::default(), 0, None);
        while let Some((&position, change)) = self.changes.first_key_value() {
            let rejoins = change.kind == ChangeKind::Join && change.after.is_some();
            if taken >= most && last_group != Some(position.0) || taken > 0 && rejoins {
                break;
            }
            let Some(Change { kind, of: KeyedMeta { key, meta }, .. }) = self.remove(position)
            else {
                break;
            };
            match kind {
                ChangeKind::Join => diff.joins.push((key, meta)),
                ChangeKind::Leave => diff.leaves.push((key, meta)),
            }
            (taken, last_group) = (taken + 1, Some(position.0));
        }
        diff
    }
}

impl PartialEq for KeyedMeta {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && phx_ref::of(&self.meta) == phx_ref::of(&other.meta)
    }
}

impl Eq for KeyedMeta {}

impl Hash for KeyedMeta {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        phx_ref::of(&self.meta).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    fn who(key: &str, reference: &str) -> (Arc<str>, Meta) {
        let meta = json!({ "phx_ref": reference });
        (key.into(), Arc::new(meta.as_object().unwrap().clone()))
    }

    fn diff(joins: &[(&str, &str)], leaves: &[(&str, &str)]) -> Diff {
        let all = |of: &[(&str, &str)]| of.iter().map(|(key, meta)| who(key, meta)).collect();
        Diff { joins: all(joins), leaves: all(leaves) }
    }

    fn add(
        waiting: &mut PendingDiffs,
        topic: &str,
        joins: &[(&str, &str)],
        leaves: &[(&str, &str)],
    ) {
        waiting.add(Diffs::from_iter([(topic.into(), diff(joins, leaves))]));
    }

    #[test]
    fn a_join_and_a_leave_before_the_diff_cancel_out() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "t", &[("ada", "1"), ("ben", "2")], &[]);
        add(&mut waiting, "u", &[("ada", "3")], &[]);
        // An update, and a leave of a meta that was sent before.
        add(&mut waiting, "t", &[("ada", "4")], &[("ada", "1")]);
        add(&mut waiting, "t", &[], &[("eve", "0")]);
        add(&mut waiting, "u", &[], &[("ada", "3")]);
        let t = diff(&[("ada", "4"), ("ben", "2")], &[("eve", "0")]);
        assert_eq!(waiting.next(), Some(("t".into(), t)));
        assert_eq!(waiting.next(), None);
        assert!(waiting.topics.is_empty() && waiting.changes.is_empty());
    }

    #[test]
    fn a_leave_and_a_join_before_the_diff_cancel_out() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "t", &[], &[("ada", "1"), ("ben", "2")]);
        add(&mut waiting, "t", &[("ada", "1")], &[]);
        assert_eq!(waiting.next().unwrap().1, diff(&[], &[("ben", "2")]));
        // The meta leaves again.
        add(&mut waiting, "t", &[], &[("ada", "1")]);
        add(&mut waiting, "t", &[("ada", "1")], &[]);
        add(&mut waiting, "t", &[], &[("ada", "1")]);
        assert_eq!(waiting.next().unwrap().1, diff(&[], &[("ada", "1")]));
    }

    #[test]
    fn changes_that_were_listed_do_not_cancel_out() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "t", &[("ada", "1")], &[("ben", "2")]);
        waiting.listed("t");
        // The list has ada's meta, and not that of ben. These are not in it.
        add(&mut waiting, "t", &[("ben", "2"), ("eve", "3")], &[("ada", "1")]);
        add(&mut waiting, "t", &[], &[("eve", "3")]);
        // Taken back before they were listed, and made again.
        add(&mut waiting, "t", &[("ada", "1")], &[("ben", "2")]);
        add(&mut waiting, "t", &[("ben", "2")], &[("ada", "1")]);
        let first = diff(&[("ada", "1")], &[("ada", "1"), ("ben", "2")]);
        assert_eq!(waiting.next(), Some(("t".into(), first)));
        // Joins are applied before leaves, so this one is not in the same diff.
        let second = diff(&[("ben", "2")], &[]);
        assert_eq!(waiting.next(), Some(("t".into(), second)));
        assert_eq!(waiting.next(), None);
        assert!(waiting.topics.is_empty() && waiting.changes.is_empty());
    }

    #[test]
    fn diffs_of_topics_are_sent_in_turn() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "b", &[("ada", "1")], &[]);
        add(&mut waiting, "a", &[("ada", "2")], &[]);
        add(&mut waiting, "b", &[("ben", "3")], &[]);
        assert_eq!(waiting.next().unwrap().0, "b".into());
        add(&mut waiting, "b", &[("eve", "4")], &[]);
        assert_eq!(waiting.next().unwrap().0, "a".into());
        assert_eq!(waiting.next().unwrap().1, diff(&[("eve", "4")], &[]));
    }

    #[test]
    fn a_topic_whose_changes_cancel_out_takes_no_memory() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "first", &[("ada", "0")], &[]);
        for n in 0..100 {
            let topic = format!("t:{n}");
            add(&mut waiting, &topic, &[("ada", "1")], &[]);
            add(&mut waiting, &topic, &[], &[("ada", "1")]);
        }
        assert_eq!((waiting.topics.len(), waiting.changes.len()), (1, 1));
    }

    #[test]
    fn many_changes_are_sent_in_parts_that_split_no_key_with_other_topics_in_between() {
        let mut waiting = PendingDiffs::default();
        let user = |n: usize| format!("user:{n}");
        for n in 0..MAX_CHANGES + 10 {
            add(&mut waiting, "big", &[], &[(&user(n), "1")]);
        }
        add(&mut waiting, "small", &[("ada", "1")], &[]);
        // The second half of an update belongs to the first part, however late it comes.
        add(&mut waiting, "big", &[(&user(MAX_CHANGES - 1), "2")], &[]);
        let (topic, first) = waiting.next().unwrap();
        assert_eq!((&*topic, first.leaves.len(), first.joins.len()), ("big", MAX_CHANGES, 1));
        assert_eq!(waiting.next_topic().map(|topic| &**topic), Some("small"));
        assert_eq!(waiting.next().unwrap().0, "small".into());
        let (topic, rest) = waiting.next().unwrap();
        assert_eq!((&*topic, rest.leaves.len(), rest.joins.len()), ("big", 10, 0));
        assert_eq!(waiting.next(), None);
    }

    #[test]
    fn adding_a_change_takes_constant_time() {
        // Each meta leaves before its join was sent, the last one first.
        let per_change = |count: usize| {
            let mut waiting = PendingDiffs::default();
            let topic: Arc<str> = "t".into();
            let all: Vec<_> =
                (0..count).map(|n| who(&format!("user:{n}"), &n.to_string())).collect();
            let one = |joins: Vec<_>, leaves: Vec<_>| {
                Diffs::from_iter([(topic.clone(), Diff { joins, leaves })])
            };
            let begun = Instant::now();
            all.iter().for_each(|who| waiting.add(one(vec![who.clone()], vec![])));
            all.iter().rev().for_each(|who| waiting.add(one(vec![], vec![who.clone()])));
            assert_eq!(waiting.next(), None);
            begun.elapsed() / u32::try_from(count).unwrap()
        };
        let least = |count| (0..3).map(|_| per_change(count)).min().unwrap();
        let (few, many) = (least(1_000), least(30_000));
        assert!(many < few * 8, "{many:?} a change with many, {few:?} with few");
    }
}
