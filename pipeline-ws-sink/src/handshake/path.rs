//! The path that a socket is mounted at, and its variables. Pure.

use std::fmt;

use thiserror::Error;

use super::query::percent_decode;

/// A path, segment by segment. Repeated, leading and trailing slashes are ignored.
#[derive(Clone, Debug)]
pub(crate) struct MountPath {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug)]
enum Segment {
    Literal(String),
    /// `:name`.
    Variable(String),
}

/// A path that a socket cannot be mounted at.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// A `:` without a name.
    #[error("the path {path:?} has a variable without a name")]
    Nameless {
        /// The whole path.
        path: String,
    },
    /// Two variables with one name.
    #[error("the path {path:?} has two variables named {name:?}")]
    Twice {
        /// The whole path.
        path: String,
        /// Their name.
        name: String,
    },
    /// A client cannot request this path.
    #[error(
        "invalid path {path:?}: expected a path such as \"/socket\", without scheme, host, query, spaces, \
         wildcards and braces"
    )]
    NoPath {
        /// The path that was given.
        path: String,
    },
}

/// A segment of a request's path is not percent-encoded UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadSegment;

impl MountPath {
    /// Parses the mount's path, and the transport's path below it.
    pub(crate) fn parse(mount: &str, transport: &str) -> Result<Self, PathError> {
        let path = || {
            let mut path = String::new();
            for segment in segments(mount).chain(segments(transport)) {
                path.push('/');
                path.push_str(segment);
            }
            path
        };
        if let Some(path) = [mount, transport].into_iter().find(|path| !is_path(path)) {
            return Err(PathError::NoPath { path: path.to_owned() });
        }
        let mut parsed: Vec<Segment> = Vec::new();
        for segment in segments(mount).chain(segments(transport)) {
            let Some(name) = segment.strip_prefix(':') else {
                parsed.push(Segment::Literal(segment.to_owned()));
                continue;
            };
            if name.is_empty() {
                return Err(PathError::Nameless { path: path() });
            }
            let taken =
                |other: &Segment| matches!(other, Segment::Variable(other) if other == name);
            if !name.starts_with('_') && parsed.iter().any(taken) {
                return Err(PathError::Twice { path: path(), name: name.to_owned() });
            }
            parsed.push(Segment::Variable(name.to_owned()));
        }
        Ok(Self { segments: parsed })
    }

    /// The variables of a request's path, if this path matches it. Variables whose names begin with
    /// `_` are left out.
    pub(crate) fn matches(&self, path: &str) -> Option<Result<Vec<(&str, String)>, BadSegment>> {
        let mut variables = Vec::new();
        let mut asked = segments(path);
        for segment in &self.segments {
            match (segment, percent_decode(asked.next()?, false)) {
                (Segment::Literal(literal), Some(asked)) if *literal == asked => {}
                (Segment::Literal(_), _) => return None,
                (Segment::Variable(name), value) => variables.push((&**name, value)),
            }
        }
        if asked.next().is_some() {
            return None;
        }
        let decoded = variables.into_iter().map(|(name, value)| Some((name, value?)));
        let decoded: Option<Vec<_>> = decoded.collect();
        Some(decoded.ok_or(BadSegment).map(|mut variables| {
            variables.retain(|(name, _)| !name.starts_with('_'));
            variables
        }))
    }

    /// Whether the two paths match the same requests: the names of variables do not matter.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(a), Segment::Literal(b)) => a == b,
                (Segment::Variable(_), Segment::Variable(_)) => true,
                _ => false,
            })
    }
}

/// Whether a request may have this path, with literals in decoded form. Wildcards and braces are
/// the syntax of other routers: they would be taken literally.
fn is_path(path: &str) -> bool {
    let is_foreign = |character: char| {
        matches!(character, '?' | '#' | '*' | '{' | '}')
            || character.is_whitespace()
            || character.is_control()
    };
    !path.contains("://") && !path.contains(is_foreign)
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(literal) => write!(f, "/{literal}")?,
                Segment::Variable(name) => write!(f, "/:{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(mount: &str, transport: &str) -> MountPath {
        MountPath::parse(mount, transport).unwrap()
    }

    fn variables(path: &MountPath, asked: &str) -> Option<Vec<(String, String)>> {
        let matched = path.matches(asked)?.unwrap();
        Some(matched.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn c_011_a_path_matches_segment_by_segment() {
        let path = parse("/socket", "/websocket");
        assert_eq!(variables(&path, "/socket/websocket"), Some(vec![]));
        for other in [
            "/socket",
            "/socket/",
            "/socket/websocket/more",
            "/socket/longpoll",
            "/socketwebsocket",
            "/more/socket/websocket",
            "/socket/Websocket",
            "/socket%2Fwebsocket",
            "/",
            "",
        ] {
            assert_eq!(variables(&path, other), None, "{other}");
        }
    }

    #[test]
    fn superfluous_slashes_are_ignored() {
        for (mount, transport) in [("socket", "websocket"), ("//socket//", "//websocket/")] {
            let path = parse(mount, transport);
            assert_eq!(path.to_string(), "/socket/websocket");
            assert_eq!(variables(&path, "/socket/websocket"), Some(vec![]));
        }
        assert_eq!(variables(&parse("/", "/websocket"), "/websocket"), Some(vec![]));
        assert_eq!(variables(&parse("/", "/"), "/"), Some(vec![]));
    }

    #[test]
    fn variables_take_a_segment_each_and_are_decoded() {
        let path = parse("/tenant/:tenant", "/live/:lane");
        let expected = |tenant: &str, lane: &str| {
            Some(vec![
                ("tenant".to_owned(), tenant.to_owned()),
                ("lane".to_owned(), lane.to_owned()),
            ])
        };
        assert_eq!(variables(&path, "/tenant/acme/live/fast"), expected("acme", "fast"));
        assert_eq!(variables(&path, "/tenant/a%2Fb%C3%BC+/live/:x"), expected("a/bü+", ":x"));
        assert_eq!(variables(&path, "/tenant//live/fast"), None, "a variable is not empty");
        assert_eq!(path.matches("/tenant/%ff/live/fast"), Some(Err(BadSegment)));
        assert_eq!(path.matches("/tenant/%ff/other/fast"), None);
    }

    #[test]
    fn a_variable_that_begins_with_an_underscore_is_not_exported() {
        let path = parse("/:_version/:tenant/:_version", "/websocket");
        let expected = vec![("tenant".to_owned(), "acme".to_owned())];
        assert_eq!(variables(&path, "/v1/acme/x/websocket"), Some(expected));
        assert_eq!(path.matches("/%ff/acme/x/websocket"), Some(Err(BadSegment)));
    }

    #[test]
    fn literals_are_compared_decoded() {
        let path = parse("/straße", "/websocket");
        assert_eq!(variables(&path, "/stra%C3%9Fe/websocket"), Some(vec![]));
    }

    #[test]
    fn variables_have_distinct_names() {
        let error = MountPath::parse("a/:", "b").unwrap_err();
        assert_eq!(error.to_string(), "the path \"/a/:/b\" has a variable without a name");
        let error = MountPath::parse("/:a", "/:a").unwrap_err();
        assert_eq!(error.to_string(), "the path \"/:a/:a\" has two variables named \"a\"");
    }

    #[test]
    fn an_invalid_path_is_refused() {
        let error = MountPath::parse("http://x/socket", "websocket").unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid path \"http://x/socket\": expected a path such as \"/socket\", without scheme, \
             host, query, spaces, wildcards and braces"
        );
        for path in ["/so cket", "/socket?x=1", "/socket#x", "/a/*", "/{id}", "/a\n"] {
            let error = PathError::NoPath { path: path.to_owned() };
            assert_eq!(MountPath::parse(path, "websocket").unwrap_err(), error);
            assert_eq!(MountPath::parse("/socket", path).unwrap_err(), error);
        }
    }

    #[test]
    fn names_of_variables_do_not_distinguish_paths() {
        let same = |a: &str, b: &str| parse(a, "ws").is_same(&parse(b, "ws"));
        assert!(same("/a/:x", "a/:y/"));
        assert!(!same("/a/:x", "/a/b") && !same("/a", "/a/b") && !same("/a", "/b"));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_it_matches_or_does_not(path in "([/:%a-c_]|.|%[0-9a-f]{2}){0,40}") {
            let _ = parse("/a/:b", "/:_c").matches(&path);
        }
    }
}
