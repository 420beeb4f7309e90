//! Topics, and the patterns that route them to channels. Pure.

use std::{fmt, ops::Deref, sync::Arc};

use thiserror::Error;

use crate::{presence::tracker::TRACKERS, transport::longpoll_relay::RELAYS};

/// The name of a topic, such as `user:42`, with the part that matches its route's wildcard.
///
/// It derefs to the whole topic. Cheap to clone.
///
/// ```
/// use pipeline_ws_sink::Topic;
///
/// // Of a topic that a route for `user:*` has matched:
/// fn user_id(topic: &Topic) -> Option<u64> {
///     topic.rest().parse().ok()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    whole: Arc<str>,
    rest: usize,
}

impl Topic {
    /// The whole topic.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The part that matches the `*` of the route: `42` in `user:42` routed by `user:*`. Empty for
    /// a route without a `*`.
    #[must_use]
    pub fn rest(&self) -> &str {
        &self.whole[self.rest..]
    }

    pub(crate) fn shared(&self) -> &Arc<str> {
        &self.whole
    }
}

impl Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

/// Whether a topic is for messages between nodes. Clients cannot join it.
pub(crate) fn is_reserved(topic: &str) -> bool {
    topic.starts_with(TRACKERS) || topic == RELAYS
}

/// A topic, or all topics with a prefix: `room:lobby`, `room:*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopicPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl TopicPattern {
    pub(crate) fn parse(pattern: &str) -> Result<Self, PatternError> {
        let (prefix, wildcard) = match pattern.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (pattern, false),
        };
        let refused = |why| Err(PatternError { pattern: pattern.into(), why });
        if prefix.contains('*') {
            return refused(Refusal::Wildcard);
        }
        if prefix.split_once('{').is_some_and(|(_, rest)| rest.contains('}')) {
            return refused(Refusal::Variable);
        }
        if is_reserved(prefix) {
            return refused(Refusal::Reserved);
        }
        Ok(if wildcard { Self::Prefix(prefix.into()) } else { Self::Exact(prefix.into()) })
    }

    /// The topic as this pattern sees it, if it matches. The comparison is by bytes and
    /// case-sensitive.
    pub(crate) fn matches(&self, topic: &str) -> Option<Topic> {
        Some(Topic { whole: topic.into(), rest: self.rest_of(topic)? })
    }

    /// Where the rest of a topic begins that this pattern matches.
    fn rest_of(&self, topic: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (**exact == *topic).then_some(topic.len()),
            Self::Prefix(prefix) => topic.starts_with(&**prefix).then_some(prefix.len()),
        }
    }

    /// Whether clients may join a topic by this pattern.
    pub(super) fn is_joined_as(&self, topic: &str) -> bool {
        !is_reserved(topic) && self.rest_of(topic).is_some()
    }

    /// Whether this pattern matches all topics that the other one matches.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(exact), Self::Exact(other)) => exact == other,
            (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Exact(other) | Self::Prefix(other)) => {
                other.starts_with(&**prefix)
            }
        }
    }

    /// Refuses a pattern that is already in this list.
    pub(crate) fn once_among<'a>(
        self,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Result<Self, PatternError> {
        if others.any(|other| *other == self) {
            return Err(PatternError { pattern: self.to_string().into(), why: Refusal::Twice });
        }
        Ok(self)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// A topic pattern is invalid.
///
/// It has a `*` that is not its last character, or a variable such as `{id}`; it is registered
/// twice at one mount; or its topics are reserved for messages between nodes, which no client may
/// join.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the topic pattern {pattern:?} {why}")]
pub struct PatternError {
    pattern: Box<str>,
    why: Refusal,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum Refusal {
    #[error("has a * that is not its last character")]
    Wildcard,
    #[error("has a variable in braces: use a * at its end for the rest of the topic")]
    Variable,
    #[error("is registered twice: only the first one would be reached")]
    Twice,
    #[error(
        "is for topics that clients may not join: they are reserved for messages between nodes"
    )]
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(pattern: &str, topic: &str) -> Option<String> {
        let topic = TopicPattern::parse(pattern).unwrap().matches(topic)?;
        Some(topic.rest().to_owned())
    }

    #[test]
    fn a_wildcard_matches_any_rest_even_an_empty_one() {
        let matches = |pattern, topic, expected: &str| {
            assert_eq!(rest(pattern, topic).as_deref(), Some(expected), "{pattern} {topic}");
        };
        matches("room:*", "room:", "");
        matches("room:*", "room:a:b:c", "a:b:c");
        matches("room:*", "room:*", "*");
        matches("feed*", "feed", "");
        matches("feed*", "feedback", "back");
        matches("*", "anything", "anything");
        matches("plain", "plain", "");
        for (pattern, topic) in
            [("room:*", "room"), ("room:*", "ROOM:x"), ("plain", "plainer"), ("plain", "plai")]
        {
            assert_eq!(rest(pattern, topic), None, "{pattern} {topic}");
        }
    }

    #[test]
    fn an_invalid_pattern_is_refused_with_a_hint() {
        for (pattern, why) in [
            ("user:{id}", "has a variable in braces: use a * at its end for the rest of the topic"),
            (
                "phx_presence:*",
                "is for topics that clients may not join: they are reserved for messages between nodes",
            ),
            (
                "phx_longpoll:relay",
                "is for topics that clients may not join: they are reserved for messages between nodes",
            ),
        ] {
            let error = TopicPattern::parse(pattern).unwrap_err();
            assert_eq!(error.to_string(), format!("the topic pattern {pattern:?} {why}"));
        }
        for pattern in ["open{", "}{", "user::id", ""] {
            assert!(TopicPattern::parse(pattern).is_ok(), "{pattern} is an ordinary topic");
        }
    }

    #[test]
    fn a_pattern_covers_patterns_whose_topics_it_all_matches() {
        let covers = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|pattern| TopicPattern::parse(pattern).unwrap());
            one.covers(&other)
        };
        for (one, other) in [("*", "a:*"), ("a:*", "a:b"), ("a:*", "a:"), ("a", "a"), ("a*", "a*")]
        {
            assert!(covers(one, other), "{one} {other}");
        }
        for (one, other) in [("a:b", "a:*"), ("a:*", "a"), ("a:*", "*"), ("a", "b"), ("a", "a*")] {
            assert!(!covers(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_wildcard_elsewhere_is_refused_by_name() {
        for pattern in ["a*b", "*:b", "**"] {
            let error = TopicPattern::parse(pattern).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the topic pattern {pattern:?} has a * that is not its last character")
            );
        }
    }
}
