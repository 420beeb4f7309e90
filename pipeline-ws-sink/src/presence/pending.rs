//! Changes that have not been sent yet. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{Hash, Hasher},
    ops::Range,
    sync::Arc,
};

use super::{
    phx_ref,
    tracker::{Diff, Diffs, Meta},
};

/// How many changes one diff has, so that encoding it takes a short time. A diff always has all
/// changes of a key, so it is larger if one key has more.
const MAX_CHANGES: usize = 1_000;

/// How many visits wait until lists leave out new changes. A visit is a join and a leave of one meta
/// that both have to be sent, although the meta is gone.
const MAX_VISITS: usize = 10_000;

/// Changes that have not been sent yet, by topic.
///
/// Changes of one topic are merged, and each meta has one at most. Two changes that cancel each other
/// out are not sent, unless the meta has been listed in between: the client that the list was sent to
/// has seen the first of them. So the number of changes is bounded by the presences, those that
/// clients know of, and [`MAX_VISITS`].
#[derive(Debug, Default)]
pub(super) struct PendingDiffs {
    /// The topics in the order in which they are sent. Each has at least one change.
    topics: BTreeMap<u64, Arc<str>>,
    changes: HashMap<Arc<str>, Changes>,
    next: u64,
    /// The number of visits in all topics.
    visits: usize,
}

impl PendingDiffs {
    pub(super) fn add(&mut self, diffs: Diffs) {
        for (topic, Diff { joins, leaves }) in diffs {
            let changes = self.changes.entry(topic.clone()).or_insert_with(|| {
                self.next += 1;
                self.topics.insert(self.next, topic.clone());
                Changes::in_turn(self.next)
            });
            self.visits -= changes.visits;
            joins.into_iter().for_each(|(key, meta)| changes.add(Direction::Join, key, meta));
            leaves.into_iter().for_each(|(key, meta)| changes.add(Direction::Leave, key, meta));
            self.visits += changes.visits;
            if changes.is_empty() {
                self.topics.remove(&changes.turn);
                self.changes.remove(&topic);
            }
        }
    }

    /// The presences of a topic, or of one of its keys, for a list. Changes that are in the list and
    /// not sent yet are sent, even if they are taken back before: the client would never be notified
    /// otherwise.
    ///
    /// While too many visits wait, changes that no list has had so far are left out: clients learn
    /// of these when they are sent.
    pub(super) fn list<'a>(
        &mut self,
        topic: &str,
        key: Option<&str>,
        current: impl Iterator<Item = (&'a Arc<str>, &'a Meta)>,
    ) -> Vec<(Arc<str>, Meta)> {
        let current = current.map(|(key, meta)| (key.clone(), meta.clone()));
        let Some(changes) = self.changes.get_mut(topic) else { return current.collect() };
        if self.visits < MAX_VISITS {
            changes.listed(key);
            return current.collect();
        }
        let (mut joined, mut left) = (HashSet::new(), Vec::new());
        for change in changes.unlisted(key) {
            match change.kind {
                ChangeKind::Join => _ = joined.insert(&change.of),
                ChangeKind::Leave => left.push((change.of.key.clone(), change.of.meta.clone())),
                ChangeKind::Visit | ChangeKind::Return => {}
            }
        }
        let is_known = |(key, meta): &(Arc<str>, Meta)| {
            !joined.contains(&KeyedMeta { key: key.clone(), meta: meta.clone() })
        };
        current.filter(is_known).chain(left).collect()
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
        self.visits -= changes.visits;
        let diff = changes.take(MAX_CHANGES);
        self.visits += changes.visits;
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
    /// How many of the changes are visits.
    visits: usize,
}

/// The number of the key, and the number of the change.
type Position = (u64, u64);

/// A change of the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Join,
    Leave,
}

/// The changes of one meta since the last diff, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangeKind {
    /// A meta that clients do not know of has joined.
    Join,
    /// A meta that clients know of has left.
    Leave,
    /// A meta that only lists have shown has joined and left.
    Visit,
    /// A meta that only lists have lacked has left and joined.
    Return,
}

#[derive(Debug)]
struct Change {
    kind: ChangeKind,
    of: KeyedMeta,
    /// Whether a client may have a list with the meta's state after one of its changes.
    is_listed: bool,
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
        Self { turn, changes, keys, positions, next: 0, listed: 0, visits: 0 }
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds a change, unless it cancels one that has been neither sent nor listed: a join and a
    /// leave of the same meta cancel out.
    fn add(&mut self, direction: Direction, key: Arc<str>, meta: Meta) {
        let of = KeyedMeta { key, meta };
        let pending = self.positions.get(&of).and_then(|at| Some((*at, self.changes.get_mut(at)?)));
        let Some((position, change)) = pending else {
            let kind = match direction {
                Direction::Join => ChangeKind::Join,
                Direction::Leave => ChangeKind::Leave,
            };
            return self.insert(kind, of);
        };
        change.is_listed |= position.1 < self.listed;
        let kind = match (change.kind, direction) {
            (ChangeKind::Join | ChangeKind::Return, Direction::Join)
            | (ChangeKind::Leave | ChangeKind::Visit, Direction::Leave) => return,
            (ChangeKind::Join | ChangeKind::Leave, _) if !change.is_listed => {
                self.remove(position);
                return;
            }
            (ChangeKind::Join, Direction::Leave) => ChangeKind::Visit,
            (ChangeKind::Leave, Direction::Join) => ChangeKind::Return,
            (ChangeKind::Visit, Direction::Join) => ChangeKind::Join,
            (ChangeKind::Return, Direction::Leave) => ChangeKind::Leave,
        };
        self.visits += usize::from(kind == ChangeKind::Visit);
        self.visits -= usize::from(change.kind == ChangeKind::Visit);
        change.kind = kind;
    }

    fn insert(&mut self, kind: ChangeKind, of: KeyedMeta) {
        let number = self.next;
        self.next += 1;
        let (group, count) = self.keys.entry(of.key.clone()).or_insert((number, 0));
        *count += 1;
        let position = (*group, number);
        self.positions.insert(of.clone(), position);
        self.changes.insert(position, Change { kind, of, is_listed: false });
    }

    fn remove(&mut self, position: Position) -> Option<Change> {
        let change = self.changes.remove(&position)?;
        self.visits -= usize::from(change.kind == ChangeKind::Visit);
        self.positions.remove(&change.of);
        if let Some((_, count)) = self.keys.get_mut(&change.of.key) {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&change.of.key);
            }
        }
        Some(change)
    }

    /// The positions of a key's changes, or of all.
    fn range(&self, key: Option<&str>) -> Range<Position> {
        let Some(key) = key else { return (0, 0)..(u64::MAX, 0) };
        let group = self.keys.get(key).map_or(u64::MAX, |(group, _)| *group);
        (group, 0)..(group, u64::MAX)
    }

    /// A client may have a list of this key, or of all, with the changes so far.
    fn listed(&mut self, key: Option<&str>) {
        if key.is_none() {
            self.listed = self.next;
        } else {
            let changes = self.changes.range_mut(self.range(key));
            changes.for_each(|(_, change)| change.is_listed = true);
        }
    }

    /// The changes of a key, or all, that no list has had.
    fn unlisted(&self, key: Option<&str>) -> impl Iterator<Item = &Change> {
        let changes = self.changes.range(self.range(key));
        let unlisted =
            changes.filter(|((_, number), change)| !change.is_listed && *number >= self.listed);
        unlisted.map(|(_, change)| change)
    }

    /// Takes whole keys until there are at least this many changes. Clients apply joins before
    /// leaves, so a visit is both in one diff.
    fn take(&mut self, most: usize) -> Diff {
        let (mut diff, mut taken, mut last_group) = (Diff::default(), 0, None);
        while let Some((&position, _)) = self.changes.first_key_value() {
            if taken >= most && last_group != Some(position.0) {
                break;
            }
            let Some(Change { kind, of: KeyedMeta { key, meta }, .. }) = self.remove(position)
            else {
                break;
            };
            match kind {
                ChangeKind::Join | ChangeKind::Return => diff.joins.push((key, meta)),
                ChangeKind::Leave => diff.leaves.push((key, meta)),
                ChangeKind::Visit => {
                    diff.joins.push((key.clone(), meta.clone()));
                    diff.leaves.push((key, meta));
                    taken += 1;
                }
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
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};
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

    /// Makes a list of a topic in which these are present.
    fn list(
        waiting: &mut PendingDiffs,
        topic: &str,
        key: Option<&str>,
        present: &[(&str, &str)],
    ) -> Vec<(Arc<str>, Meta)> {
        let present: Vec<_> = present.iter().map(|(key, meta)| who(key, meta)).collect();
        waiting.list(topic, key, present.iter().map(|(key, meta)| (key, meta)))
    }

    #[test]
    fn changes_that_were_listed_do_not_cancel_out() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "t", &[("ada", "1")], &[("ben", "2")]);
        list(&mut waiting, "t", None, &[("ada", "1")]);
        // The list has ada's meta, and not that of ben. These are not in it.
        add(&mut waiting, "t", &[("ben", "2"), ("eve", "3")], &[("ada", "1")]);
        add(&mut waiting, "t", &[], &[("eve", "3")]);
        // Taken back, and made again.
        add(&mut waiting, "t", &[("ada", "1")], &[("ben", "2")]);
        add(&mut waiting, "t", &[("ben", "2")], &[("ada", "1")]);
        // Joins are applied before leaves.
        let all = diff(&[("ada", "1"), ("ben", "2")], &[("ada", "1")]);
        assert_eq!(waiting.next(), Some(("t".into(), all)));
        assert_eq!(waiting.next(), None);
        assert!(waiting.topics.is_empty() && waiting.changes.is_empty());
        assert_eq!(waiting.visits, 0);
    }

    #[test]
    fn changes_of_a_key_that_was_listed_do_not_cancel_out() {
        let mut waiting = PendingDiffs::default();
        add(&mut waiting, "t", &[("ada", "1"), ("ben", "2")], &[]);
        list(&mut waiting, "t", Some("ada"), &[("ada", "1")]);
        list(&mut waiting, "t", Some("eve"), &[]);
        add(&mut waiting, "t", &[], &[("ada", "1"), ("ben", "2")]);
        let of_ada = diff(&[("ada", "1")], &[("ada", "1")]);
        assert_eq!(waiting.next(), Some(("t".into(), of_ada)));
        assert_eq!(waiting.next(), None);
    }

    #[test]
    fn a_meta_that_flaps_between_lists_has_one_change() {
        let mut waiting = PendingDiffs::default();
        for _ in 0..100 {
            add(&mut waiting, "t", &[("ada", "1")], &[]);
            list(&mut waiting, "t", None, &[("ada", "1")]);
            add(&mut waiting, "t", &[], &[("ada", "1")]);
            list(&mut waiting, "t", None, &[]);
        }
        assert_eq!((waiting.changes["t"].changes.len(), waiting.visits), (1, 1));
        let visit = diff(&[("ada", "1")], &[("ada", "1")]);
        assert_eq!(waiting.next(), Some(("t".into(), visit)));
    }

    #[test]
    fn visits_that_were_listed_are_bounded_over_all_topics() {
        let mut waiting = PendingDiffs::default();
        let count = |waiting: &PendingDiffs| {
            waiting.changes.values().map(|changes| changes.changes.len()).sum::<usize>()
        };
        add(&mut waiting, "t:1", &[("known", "0")], &[]);
        let _ = waiting.next();
        for n in 0..MAX_VISITS + 500 {
            let (topic, reference) = (format!("t:{}", n % 7), n.to_string());
            let key = (n % 2 == 0).then_some("ada");
            add(&mut waiting, &topic, &[("ada", &reference)], &[]);
            list(&mut waiting, &topic, key, &[("ada", &reference)]);
            add(&mut waiting, &topic, &[], &[("ada", &reference)]);
        }
        assert_eq!((count(&waiting), waiting.visits), (MAX_VISITS, MAX_VISITS));
        // Lists are as if the last changes had not been made yet, and clients learn of these later.
        add(&mut waiting, "t:1", &[("ben", "1")], &[("known", "0")]);
        for key in [None, Some("known")] {
            let seen = list(&mut waiting, "t:1", key, &[]);
            assert_eq!(seen, [who("known", "0")]);
        }
        assert_eq!(list(&mut waiting, "t:1", None, &[("ben", "1")]), [who("known", "0")]);
        assert_eq!(list(&mut waiting, "t:1", Some("ben"), &[("ben", "1")]), []);
        let (mut joins, mut leaves) = (0, 0);
        while let Some((_, diff)) = waiting.next() {
            (joins, leaves) = (joins + diff.joins.len(), leaves + diff.leaves.len());
        }
        assert_eq!((joins, leaves, waiting.visits), (MAX_VISITS + 1, MAX_VISITS + 1, 0));
        // And then they have all again.
        add(&mut waiting, "t:1", &[("eve", "2")], &[]);
        assert_eq!(list(&mut waiting, "t:1", None, &[("eve", "2")]), [who("eve", "2")]);
    }

    proptest! {
        /// Each step toggles a meta, makes a list for another client, or sends a diff.
        #[test]
        fn clients_with_lists_of_any_time_end_with_the_same_presences(
            steps in vec((0..8_usize, 0..3_usize), 0..60),
            visits in prop_oneof![Just(0), Just(MAX_VISITS)],
        ) {
            let metas = [("ada", "1"), ("ada", "2"), ("ben", "3")];
            // More visits wait in another topic.
            let mut waiting = PendingDiffs { visits, ..PendingDiffs::default() };
            let (mut present, mut clients) = (BTreeSet::<usize>::new(), vec![BTreeSet::<usize>::new()]);
            let known = |(key, meta): &(Arc<str>, Meta)| {
                metas.iter().position(|of| *of == (&**key, phx_ref::of(meta).unwrap())).unwrap()
            };
            let send = |waiting: &mut PendingDiffs, clients: &mut Vec<BTreeSet<usize>>| {
                let Some((_, diff)) = waiting.next() else { return false };
                for client in clients {
                    client.extend(diff.joins.iter().map(known));
                    diff.leaves.iter().map(known).for_each(|meta| _ = client.remove(&meta));
                }
                true
            };
            for (action, meta) in steps {
                match action {
                    0 => {
                        send(&mut waiting, &mut clients);
                    }
                    1 | 2 => {
                        let shown: Vec<_> = present.iter().map(|at: &usize| metas[*at]).collect();
                        let list = list(&mut waiting, "t", None, &shown);
                        clients.push(list.iter().map(known).collect());
                    }
                    _ if present.remove(&meta) => add(&mut waiting, "t", &[], &[metas[meta]]),
                    _ => {
                        present.insert(meta);
                        add(&mut waiting, "t", &[metas[meta]], &[]);
                    }
                }
            }
            while send(&mut waiting, &mut clients) {}
            prop_assert!(clients.iter().all(|client| *client == present), "{:?}", clients);
            prop_assert_eq!(waiting.visits, visits);
        }
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
