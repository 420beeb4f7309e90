//! The topics that clients can join.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::topic::TopicPattern;

/// How many kinds of topics are remembered that clients cannot join.
const MISTAKES: usize = 64;

/// The topics that clients can join, and those that were pushed to and they cannot.
pub(super) struct Served {
    patterns: Vec<TopicPattern>,
    /// The beginnings of topics, each up to its first colon.
    mistakes: Mutex<HashSet<Box<str>>>,
}

impl Served {
    pub(super) fn new(patterns: Vec<TopicPattern>) -> Self {
        Self { patterns, mistakes: Mutex::default() }
    }

    /// Whether clients can join a topic.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.is_joined_as(topic))
    }

    /// Whether clients cannot join a topic, and none that begins as it does was asked for before. A node without routes
    /// serves no clients, so none of its topics is a mistake.
    pub(super) fn is_new_mistake(&self, topic: &str) -> bool {
        if self.patterns.is_empty() || self.has(topic) {
            return false;
        }
        let kind = topic.split_inclusive(':').next().unwrap_or_default();
        let mut mistakes = self.mistakes.lock();
        mistakes.len() < MISTAKES && mistakes.insert(kind.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(patterns: &[&str]) -> Served {
        Served::new(patterns.iter().map(|pattern| TopicPattern::parse(pattern).unwrap()).collect())
    }

    #[test]
    fn a_topic_is_known_if_a_route_matches_it_and_clients_may_join_it() {
        let served = served(&["room:lobby", "user:*"]);
        let known = |topics: [&str; 4]| topics.map(|topic| served.has(topic));
        assert_eq!(known(["room:lobby", "user:7", "user:", "user:a:b"]), [true; 4]);
        assert_eq!(known(["room:attic", "users:7", "User:7", ""]), [false; 4]);
        let all = self::served(&["*"]);
        assert!(all.has("") && !all.has("phx_presence:users"));
    }

    #[test]
    fn each_kind_of_mistake_is_new_once_and_there_are_so_many_at_most() {
        let served = served(&["user:*"]);
        assert!(served.is_new_mistake("users:7"));
        assert!(!served.is_new_mistake("users:8"));
        assert!(!served.is_new_mistake("user:7"));
        let new = |n: usize| served.is_new_mistake(&format!("{n}:7"));
        assert_eq!((0..1000).filter(|n| new(*n)).count(), MISTAKES - 1);
        assert!(!self::served(&[]).is_new_mistake("users:7"));
    }
}
