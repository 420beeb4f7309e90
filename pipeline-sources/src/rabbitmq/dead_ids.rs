//! The ids of dead letters, as a queue is walked through from its first one on. Pure.
//!
//! The server can neither number them nor find one: each look begins at the first. Several may have the same id, such as
//! messages of other programs that the server itself has moved, so those behind the first of them get a number in
//! addition. It says which of them it is, and becomes smaller when one before it is taken away.

use std::{collections::HashMap, sync::Arc};

use super::headers::hash;

/// What comes between an id and the number of those with it.
pub(super) const NUMBERED: char = '~';

/// A walk through the dead letters of a queue.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// How many of each id have come, by the hash of the id.
    seen: HashMap<u64, u32>,
    /// The id behind which the page begins.
    after: Option<Arc<str>>,
}

impl Walk {
    /// A walk to the page that begins behind this id, or with the first dead letter.
    pub(super) fn to(after: Option<&str>) -> Self {
        Self { seen: HashMap::new(), after: after.map(Arc::from) }
    }

    /// The id of the next dead letter, which is no other one's in this walk.
    pub(super) fn name(&mut self, id: &Arc<str>) -> Arc<str> {
        let number = self.seen.entry(hash(id.as_bytes())).or_default();
        *number += 1;
        numbered(id, *number)
    }

    /// The id behind which the page begins, if it has not come yet.
    pub(super) fn awaited(&self) -> Option<Arc<str>> {
        self.after.clone()
    }

    /// The id of the next dead letter, if it is on the page.
    pub(super) fn step(&mut self, id: &Arc<str>) -> Option<Arc<str>> {
        let id = self.name(id);
        match &self.after {
            None => Some(id),
            Some(after) => {
                if *after == id {
                    self.after = None;
                }
                None
            }
        }
    }
}

fn numbered(id: &Arc<str>, number: u32) -> Arc<str> {
    if number > 1 { format!("{id}{NUMBERED}{number}").into() } else { id.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A page of a queue.
    fn page(queue: &[Arc<str>], after: Option<&str>, limit: usize) -> Vec<Arc<str>> {
        let mut walk = Walk::to(after);
        queue.iter().filter_map(|id| walk.step(id)).take(limit).collect()
    }

    /// Where the dead letter with this id is.
    fn find(queue: &[Arc<str>], id: &str) -> Option<usize> {
        let mut walk = Walk::default();
        queue.iter().position(|it| *walk.name(it) == *id)
    }

    #[test]
    fn equal_ids_are_numbered() {
        let queue = ["a", "b", "a", "", "a", ""].map(Arc::from);
        let names = ["a", "b", "a~2", "", "a~3", "~2"].map(Arc::from);
        assert_eq!(page(&queue, None, 10), names);
        assert_eq!(page(&queue, Some("a~2"), 2), names[3..5]);
        assert!(page(&queue, Some("~2"), 1).is_empty() && page(&queue, Some("x"), 1).is_empty());
        for (after, awaited) in [("~2", None), ("x", Some("x".into()))] {
            let mut walk = Walk::to(Some(after));
            queue.iter().for_each(|id| drop(walk.step(id)));
            assert_eq!(walk.awaited(), awaited);
        }
        assert_eq!(find(&queue, "a~3"), Some(4));
        assert_eq!(find(&queue, "a~4"), None);
    }

    proptest! {
        #[test]
        fn pages_have_each_dead_letter_once_and_end(
            queue in vec(prop::sample::select(vec!["", "a", "b", "a-b"]), 0..40),
            limit in 1usize..5,
        ) {
            let queue: Vec<Arc<str>> = queue.into_iter().map(Arc::from).collect();
            let mut listed: Vec<Arc<str>> = Vec::new();
            for _ in 0..=queue.len() {
                let next = page(&queue, listed.last().map(|id| &**id), limit);
                if next.is_empty() {
                    break;
                }
                listed.extend(next);
            }
            prop_assert_eq!(listed.len(), queue.len());
            prop_assert_eq!(listed.iter().collect::<HashSet<_>>().len(), queue.len());
            for (at, id) in listed.iter().enumerate() {
                prop_assert_eq!(find(&queue, id), Some(at));
                prop_assert!(id.starts_with(&*queue[at]));
            }
        }
    }
}
