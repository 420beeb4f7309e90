//! Just enough of Erlang's external term format for tokens. Pure.
//!
//! Written by hand, because its input comes from the token's holder: it knows a closed list of
//! types, it allocates in proportion to the input, and its depth is bounded.

mod read;
mod write;

use serde_json::{Map, Number, Value};
use thiserror::Error;

pub(super) use self::write::encode;

const VERSION: u8 = 131;

/// The tags of terms: their types.
mod tag {
    pub(super) const NEW_FLOAT: u8 = 70;
    pub(super) const COMPRESSED: u8 = 80;
    pub(super) const SMALL_INTEGER: u8 = 97;
    pub(super) const INTEGER: u8 = 98;
    pub(super) const ATOM: u8 = 100;
    pub(super) const SMALL_TUPLE: u8 = 104;
    pub(super) const LARGE_TUPLE: u8 = 105;
    pub(super) const NIL: u8 = 106;
    pub(super) const STRING: u8 = 107;
    pub(super) const LIST: u8 = 108;
    pub(super) const BINARY: u8 = 109;
    pub(super) const SMALL_BIG: u8 = 110;
    pub(super) const LARGE_BIG: u8 = 111;
    pub(super) const SMALL_ATOM: u8 = 115;
    pub(super) const MAP: u8 = 116;
    pub(super) const ATOM_UTF8: u8 = 118;
    pub(super) const SMALL_ATOM_UTF8: u8 = 119;
}

/// The content of a token: the data, the signing time, and the limit of its age.
#[derive(Debug, PartialEq)]
pub(super) struct SignedTerm {
    pub(super) data: Term,
    pub(super) signed_at_ms: i64,
    pub(super) max_age: MaxAge,
}

/// How long a token is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaxAge {
    Seconds(i64),
    Infinity,
}

/// The terms that occur in tokens.
#[derive(Debug, PartialEq)]
pub(super) enum Term {
    Integer(i128),
    /// An integer that does not fit.
    Huge,
    Float(f64),
    Atom(String),
    Binary(Vec<u8>),
    List(Vec<Term>),
    Tuple(Vec<Term>),
    Map(Vec<(Term, Term)>),
}

/// Data that JSON cannot express.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum Inexpressible {
    #[error("a binary is not text in UTF-8")]
    Binary,
    #[error("an integer has more than 64 bits")]
    Integer,
    #[error("a map has a key that is not a string")]
    Key,
    #[error("a map has two keys that read the same")]
    SameKey,
    #[error("a float is not a number")]
    Float,
}

/// A day, as in Phoenix.
impl Default for MaxAge {
    fn default() -> Self {
        Self::Seconds(86_400)
    }
}

impl MaxAge {
    /// Whether a token of this signing time has expired, to the millisecond.
    pub(super) fn is_over(self, signed_at_ms: i64, now_ms: i64) -> bool {
        match self {
            Self::Infinity => false,
            Self::Seconds(seconds) if seconds <= 0 => true,
            Self::Seconds(_) => self.end(signed_at_ms).is_some_and(|end| end <= i128::from(now_ms)),
        }
    }

    /// The first millisecond at which a token of this signing time has expired, if there is one.
    pub(super) fn end(self, signed_at_ms: i64) -> Option<i128> {
        match self {
            Self::Infinity => None,
            Self::Seconds(seconds) => {
                Some(i128::from(signed_at_ms) + i128::from(seconds) * 1000 + 1)
            }
        }
    }
}

impl SignedTerm {
    /// Decodes `{data, signed_at_ms, max_age_s}`, and the two older forms: `{data, signed_at_ms}`,
    /// and a map of both.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (data, signed_at, max_age) = match read::decode(bytes)? {
            Term::Tuple(parts) => {
                let mut parts = parts.into_iter();
                let found = (parts.next()?, parts.next()?, parts.next());
                if parts.next().is_some() {
                    return None;
                }
                found
            }
            Term::Map(mut pairs) => {
                let mut take = |name: &str| {
                    let named =
                        |(key, _): &(Term, Term)| matches!(key, Term::Atom(key) if key == name);
                    let at = pairs.iter().position(named)?;
                    Some(pairs.swap_remove(at).1)
                };
                (take("data")?, take("signed")?, None)
            }
            _ => return None,
        };
        let max_age = match max_age {
            None => MaxAge::default(),
            Some(Term::Integer(seconds)) => MaxAge::Seconds(seconds.try_into().ok()?),
            Some(Term::Atom(name)) if name == "infinity" => MaxAge::Infinity,
            Some(_) => return None,
        };
        #[expect(clippy::cast_possible_truncation, reason = "a time out of range saturates")]
        let signed_at_ms = match signed_at {
            Term::Integer(ms) => ms.try_into().ok()?,
            Term::Float(ms) => ms as i64,
            _ => return None,
        };
        Some(Self { data, signed_at_ms, max_age })
    }
}

impl Term {
    /// The equivalent JSON.
    pub(super) fn into_value(self) -> Result<Value, Inexpressible> {
        Ok(match self {
            Self::Integer(n) => {
                let number = u64::try_from(n).map(Number::from);
                let number = number.or_else(|_| i64::try_from(n).map(Number::from));
                number.map_err(|_| Inexpressible::Integer)?.into()
            }
            Self::Huge => return Err(Inexpressible::Integer),
            Self::Float(x) => Number::from_f64(x).ok_or(Inexpressible::Float)?.into(),
            Self::Atom(name) => match &*name {
                "nil" => Value::Null,
                "true" => true.into(),
                "false" => false.into(),
                _ => name.into(),
            },
            Self::Binary(bytes) => {
                String::from_utf8(bytes).map_err(|_| Inexpressible::Binary)?.into()
            }
            Self::List(terms) | Self::Tuple(terms) => {
                terms.into_iter().map(Self::into_value).collect::<Result<Vec<_>, _>>()?.into()
            }
            Self::Map(pairs) => {
                let mut map = Map::new();
                for (key, value) in pairs {
                    let Value::String(key) = key.into_value()? else {
                        return Err(Inexpressible::Key);
                    };
                    if map.insert(key, value.into_value()?).is_some() {
                        return Err(Inexpressible::SameKey);
                    }
                }
                map.into()
            }
        })
    }
}

#[cfg(test)]
mod tests;
