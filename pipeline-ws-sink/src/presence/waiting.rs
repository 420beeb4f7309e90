//! Changes that have not been told yet. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::phx_ref;
use crate::tracker::{Diff, Diffs, Meta};

/// Changes that have not been told yet, by topic.
///
/// Those of one topic are put together: who came and went meanwhile, or went and came, is not told of. So there are never
/// more of them than there are presences, and than have been told of before.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The topics in the order in which they are to be told of.
    topics: VecDeque<Arc<str>>,
    diffs: HashMap<Arc<str>, Diff>,
}

impl Waiting {
    pub(super) fn add(&mut self, diffs: Diffs) {
        for (topic, Diff { joins, leaves }) in diffs {
            let waiting = self.diffs.entry(topic.clone()).or_insert_with(|| {
                self.topics.push_back(topic);
                Diff::default()
            });
            // Clients take in joins before leaves, so no meta may be both: one that went and is back, with
            // its node, has never gone, and one that came and went has never come.
            for join in joins {
                match waiting.leaves.iter().position(|leave| is_same(leave, &join)) {
                    Some(untold) => drop(waiting.leaves.remove(untold)),
                    None => waiting.joins.push(join),
                }
            }
            for leave in leaves {
                match waiting.joins.iter().position(|join| is_same(join, &leave)) {
                    Some(untold) => drop(waiting.joins.remove(untold)),
                    None => waiting.leaves.push(leave),
                }
            }
        }
    }

    /// What is to be told next.
    pub(super) fn next(&mut self) -> Option<(Arc<str>, Diff)> {
        loop {
            let topic = self.topics.pop_front()?;
            let diff = self.diffs.remove(&topic).unwrap_or_default();
            if diff != Diff::default() {
                return Some((topic, diff));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }
}

/// Whether two are one meta of one key.
fn is_same(one: &(Arc<str>, Meta), other: &(Arc<str>, Meta)) -> bool {
    one.0 == other.0 && phx_ref::of(&one.1) == phx_ref::of(&other.1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn who(key: &str, reference: &str) -> (Arc<str>, Meta) {
        let meta = json!({ "phx_ref": reference });
        (key.into(), Arc::new(meta.as_object().unwrap().clone()))
    }

    fn diff(joins: &[(&str, &str)], leaves: &[(&str, &str)]) -> Diff {
        let all = |of: &[(&str, &str)]| of.iter().map(|(key, meta)| who(key, meta)).collect();
        Diff { joins: all(joins), leaves: all(leaves) }
    }

    fn add(waiting: &mut Waiting, topic: &str, joins: &[(&str, &str)], leaves: &[(&str, &str)]) {
        waiting.add(Diffs::from_iter([(topic.into(), diff(joins, leaves))]));
    }

    #[test]
    fn who_came_and_went_before_it_was_told_is_not_told_of() {
        let mut waiting = Waiting::default();
        add(&mut waiting, "t", &[("ada", "1"), ("ben", "2")], &[]);
        add(&mut waiting, "u", &[("ada", "3")], &[]);
        // An update, and one who has been told of before.
        add(&mut waiting, "t", &[("ada", "4")], &[("ada", "1")]);
        add(&mut waiting, "t", &[], &[("eve", "0")]);
        add(&mut waiting, "u", &[], &[("ada", "3")]);
        let t = diff(&[("ben", "2"), ("ada", "4")], &[("eve", "0")]);
        assert_eq!(waiting.next(), Some(("t".into(), t)));
        assert_eq!(waiting.next(), None);
        assert!(waiting.is_empty() && waiting.diffs.is_empty());
    }

    #[test]
    fn who_went_and_is_back_before_it_was_told_is_not_told_of() {
        let mut waiting = Waiting::default();
        add(&mut waiting, "t", &[], &[("ada", "1"), ("ben", "2")]);
        add(&mut waiting, "t", &[("ada", "1")], &[]);
        assert_eq!(waiting.next().unwrap().1, diff(&[], &[("ben", "2")]));
        // And gone again, for good.
        add(&mut waiting, "t", &[], &[("ada", "1")]);
        add(&mut waiting, "t", &[("ada", "1")], &[]);
        add(&mut waiting, "t", &[], &[("ada", "1")]);
        assert_eq!(waiting.next().unwrap().1, diff(&[], &[("ada", "1")]));
    }

    #[test]
    fn topics_are_told_of_in_turn() {
        let mut waiting = Waiting::default();
        add(&mut waiting, "b", &[("ada", "1")], &[]);
        add(&mut waiting, "a", &[("ada", "2")], &[]);
        add(&mut waiting, "b", &[("ben", "3")], &[]);
        assert_eq!(waiting.next().unwrap().0, "b".into());
        add(&mut waiting, "b", &[("eve", "4")], &[]);
        assert_eq!(waiting.next().unwrap().0, "a".into());
        assert_eq!(waiting.next().unwrap().1, diff(&[("eve", "4")], &[]));
    }
}
