//! Just enough of Erlang's external term format for tokens. Pure.
//!
//! Written by hand, because it reads what a token's holder may have influenced: it knows a closed
//! list of types, it never allocates more than the input is long, and its depth is bounded.

use serde_json::{Map, Number, Value};

const VERSION: u8 = 131;
const NEW_FLOAT: u8 = 70;
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const ATOM: u8 = 100;
const SMALL_TUPLE: u8 = 104;
const LARGE_TUPLE: u8 = 105;
const NIL: u8 = 106;
const STRING: u8 = 107;
const LIST: u8 = 108;
const BINARY: u8 = 109;
const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const SMALL_ATOM: u8 = 115;
const MAP: u8 = 116;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;

/// How deep lists and maps may be nested.
const MAX_DEPTH: usize = 64;

/// How old a token made elsewhere may be if it does not say, in seconds.
const DEFAULT_MAX_AGE: i64 = 86_400;

/// What a token says: the data, when it was signed, and how long it was meant to be valid.
#[derive(Debug, PartialEq)]
pub(super) struct SignedTerm {
    pub(super) data: Value,
    pub(super) signed_at_ms: i64,
    pub(super) max_age: MaxAge,
}

/// How long a token was meant to be valid, by whoever signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaxAge {
    Seconds(i64),
    Infinity,
}

/// A term, as far as tokens have them.
#[derive(Debug, PartialEq)]
enum Term {
    Integer(i128),
    Float(f64),
    Atom(String),
    Binary(Vec<u8>),
    List(Vec<Term>),
    Tuple(Vec<Term>),
    Map(Vec<(Term, Term)>),
}

impl SignedTerm {
    /// `{data, signed_at_ms, max_age_s}`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, SMALL_TUPLE, 3];
        encode_value(&self.data, &mut out);
        encode_integer(self.signed_at_ms.into(), &mut out);
        match self.max_age {
            MaxAge::Seconds(seconds) => encode_integer(seconds.into(), &mut out),
            MaxAge::Infinity => encode_atom("infinity", &mut out),
        }
        out
    }

    /// The same, and the two older forms: `{data, signed_at_ms}`, and a map of both.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        if reader.byte()? != VERSION {
            return None;
        }
        let term = reader.term(0)?;
        if !reader.rest.is_empty() {
            return None;
        }
        let (data, signed_at, max_age) = match term {
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
                    let named = |(key, _): &(Term, Term)| *key == Term::Atom(name.to_owned());
                    let at = pairs.iter().position(named)?;
                    Some(pairs.swap_remove(at).1)
                };
                (take("data")?, take("signed")?, None)
            }
            _ => return None,
        };
        let max_age = match max_age {
            None => MaxAge::Seconds(DEFAULT_MAX_AGE),
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
        Some(Self { data: data.into_value()?, signed_at_ms, max_age })
    }
}

impl Term {
    /// The JSON that stands for the same, if there is any.
    fn into_value(self) -> Option<Value> {
        Some(match self {
            Self::Integer(n) => {
                let number = u64::try_from(n).map(Number::from);
                number.or_else(|_| i64::try_from(n).map(Number::from)).ok()?.into()
            }
            Self::Float(x) => Number::from_f64(x)?.into(),
            Self::Atom(name) => match &*name {
                "nil" => Value::Null,
                "true" => true.into(),
                "false" => false.into(),
                _ => name.into(),
            },
            Self::Binary(bytes) => String::from_utf8(bytes).ok()?.into(),
            Self::List(terms) | Self::Tuple(terms) => {
                terms.into_iter().map(Self::into_value).collect::<Option<Vec<_>>>()?.into()
            }
            Self::Map(pairs) => {
                let mut map = Map::new();
                for (key, value) in pairs {
                    let Value::String(key) = key.into_value()? else {
                        return None;
                    };
                    map.insert(key, value.into_value()?);
                }
                map.into()
            }
        })
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn term(&mut self, depth: usize) -> Option<Term> {
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match self.byte()? {
            SMALL_INTEGER => Term::Integer(self.byte()?.into()),
            INTEGER => Term::Integer(i32::from_be_bytes(self.array()?).into()),
            SMALL_BIG => {
                let length = self.byte()?.into();
                self.big(length)?
            }
            LARGE_BIG => {
                let length = self.length()?;
                self.big(length)?
            }
            NEW_FLOAT => Term::Float(f64::from_be_bytes(self.array()?)),
            BINARY => {
                let length = self.length()?;
                Term::Binary(self.take(length)?.to_vec())
            }
            STRING => {
                let length = self.short()?;
                let bytes = self.take(length)?;
                Term::List(bytes.iter().map(|&byte| Term::Integer(byte.into())).collect())
            }
            NIL => Term::List(Vec::new()),
            LIST => {
                let length = self.length()?;
                let elements = self.terms(length, depth)?;
                match self.term(depth + 1)? {
                    Term::List(tail) if tail.is_empty() => Term::List(elements),
                    _ => return None,
                }
            }
            SMALL_TUPLE => {
                let length = self.byte()?.into();
                Term::Tuple(self.terms(length, depth)?)
            }
            LARGE_TUPLE => {
                let length = self.length()?;
                Term::Tuple(self.terms(length, depth)?)
            }
            MAP => {
                let length = self.length()?;
                let mut pairs = Vec::new();
                for _ in 0..length {
                    pairs.push((self.term(depth + 1)?, self.term(depth + 1)?));
                }
                Term::Map(pairs)
            }
            ATOM => {
                let length = self.short()?;
                Term::Atom(self.take(length)?.iter().map(|&byte| char::from(byte)).collect())
            }
            SMALL_ATOM => {
                let length = self.byte()?.into();
                Term::Atom(self.take(length)?.iter().map(|&byte| char::from(byte)).collect())
            }
            ATOM_UTF8 => {
                let length = self.short()?;
                Term::Atom(std::str::from_utf8(self.take(length)?).ok()?.to_owned())
            }
            SMALL_ATOM_UTF8 => {
                let length = self.byte()?.into();
                Term::Atom(std::str::from_utf8(self.take(length)?).ok()?.to_owned())
            }
            // Functions, processes, ports, references: nothing that a token has business with.
            _ => return None,
        })
    }

    fn terms(&mut self, count: usize, depth: usize) -> Option<Vec<Term>> {
        // Every term takes a byte at least, so a false count cannot make this large.
        let mut terms = Vec::with_capacity(count.min(self.rest.len()));
        for _ in 0..count {
            terms.push(self.term(depth + 1)?);
        }
        Some(terms)
    }

    /// An integer of any length, as far as it fits: a sign, and the bytes from the lowest up.
    fn big(&mut self, length: usize) -> Option<Term> {
        let negative = self.byte()? != 0;
        let bytes = self.take(length)?;
        let mut digits = [0; 16];
        digits.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let magnitude = i128::try_from(u128::from_le_bytes(digits)).ok()?;
        Some(Term::Integer(if negative { -magnitude } else { magnitude }))
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Option<usize> {
        Some(u16::from_be_bytes(self.array()?).into())
    }

    fn length(&mut self) -> Option<usize> {
        u32::from_be_bytes(self.array()?).try_into().ok()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => encode_atom("nil", out),
        Value::Bool(true) => encode_atom("true", out),
        Value::Bool(false) => encode_atom("false", out),
        Value::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(integer), _) => encode_integer(integer, out),
            (None, float) => {
                out.push(NEW_FLOAT);
                out.extend_from_slice(&float.unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(text) => encode_binary(text, out),
        Value::Array(values) => encode_list(values, out),
        Value::Object(map) => {
            out.push(MAP);
            encode_length(map.len(), out);
            for (key, value) in map {
                encode_binary(key, out);
                encode_value(value, out);
            }
        }
    }
}

fn encode_list(values: &[Value], out: &mut Vec<u8>) {
    // A list of nothing but bytes is written as Erlang writes it.
    let byte = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok());
    let bytes: Option<Vec<u8>> = values.iter().map(byte).collect();
    match (bytes, u16::try_from(values.len())) {
        (Some(bytes), Ok(length)) if length > 0 => {
            out.push(STRING);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        _ => {
            if !values.is_empty() {
                out.push(LIST);
                encode_length(values.len(), out);
                values.iter().for_each(|value| encode_value(value, out));
            }
            out.push(NIL);
        }
    }
}

fn encode_integer(integer: i128, out: &mut Vec<u8>) {
    if let Ok(byte) = u8::try_from(integer) {
        out.extend_from_slice(&[SMALL_INTEGER, byte]);
    } else if let Ok(short) = i32::try_from(integer) {
        out.push(INTEGER);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        let digits = integer.unsigned_abs().to_le_bytes();
        let length = digits.iter().rposition(|&digit| digit != 0).map_or(0, |last| last + 1);
        let length_byte = u8::try_from(length).expect("16 at most");
        out.extend_from_slice(&[SMALL_BIG, length_byte, u8::from(integer < 0)]);
        out.extend_from_slice(&digits[..length]);
    }
}

/// Atoms as all releases of Erlang can read them.
fn encode_atom(name: &str, out: &mut Vec<u8>) {
    out.push(ATOM);
    let length = u16::try_from(name.len()).expect("only short names are written");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn encode_binary(text: &str, out: &mut Vec<u8>) {
    out.push(BINARY);
    encode_length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn encode_length(length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("a token of 4 GiB is out of the question");
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A term of a token signed at 1 second, with this data.
    fn with_data(data: &[u8]) -> Vec<u8> {
        [&[VERSION, SMALL_TUPLE, 3], data, &[INTEGER, 0, 0, 3, 232, SMALL_INTEGER, 9]].concat()
    }

    fn data(bytes: &[u8]) -> Option<Value> {
        SignedTerm::decode(&with_data(bytes)).map(|signed| signed.data)
    }

    #[test]
    fn every_spelling_of_a_value_is_read() {
        assert_eq!(data(&[INTEGER, 255, 255, 255, 255]), Some(json!(-1)));
        assert_eq!(data(&[SMALL_BIG, 1, 1, 5]), Some(json!(-5)));
        assert_eq!(data(&[LARGE_BIG, 0, 0, 0, 2, 0, 0, 1]), Some(json!(256)));
        assert_eq!(data(&[SMALL_BIG, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0]), Some(json!(7)));
        assert_eq!(data(&[SMALL_ATOM_UTF8, 4, b't', b'r', b'u', b'e']), Some(json!(true)));
        assert_eq!(data(&[ATOM_UTF8, 0, 3, b'n', b'i', b'l']), Some(json!(null)));
        assert_eq!(data(&[SMALL_ATOM, 2, b'o', b'k']), Some(json!("ok")));
        assert_eq!(data(&[LARGE_TUPLE, 0, 0, 0, 1, SMALL_INTEGER, 1]), Some(json!([1])));
        assert_eq!(data(&[NIL]), Some(json!([])));
    }

    #[test]
    fn the_time_may_be_a_float_and_the_age_may_be_infinite_or_absent() {
        let float =
            [&[VERSION, SMALL_TUPLE, 2, NIL, NEW_FLOAT][..], &1500.0f64.to_be_bytes()].concat();
        let signed = SignedTerm::decode(&float).unwrap();
        assert_eq!((signed.signed_at_ms, signed.max_age), (1500, MaxAge::Seconds(86_400)));

        let infinite = SignedTerm { data: json!(1), signed_at_ms: 2, max_age: MaxAge::Infinity };
        assert_eq!(SignedTerm::decode(&infinite.encode()), Some(infinite));

        let atom = |name: &[u8]| [&[ATOM, 0, u8::try_from(name.len()).unwrap()], name].concat();
        let pairs =
            [atom(b"signed"), vec![SMALL_INTEGER, 7], atom(b"data"), vec![SMALL_INTEGER, 8]];
        let map = [&[VERSION, MAP, 0, 0, 0, 2][..], &pairs.concat()].concat();
        let signed = SignedTerm::decode(&map).unwrap();
        assert_eq!((signed.data, signed.signed_at_ms), (json!(8), 7));
    }

    #[test]
    fn what_a_token_has_no_business_with_is_refused() {
        const FUN: u8 = 112;
        const PID: u8 = 103;
        for bytes in [
            &[FUN][..],
            &[PID],
            &[LIST, 255, 255, 255, 255],
            &[BINARY, 255, 255, 255, 255],
            &[MAP, 0, 0, 0, 1, SMALL_INTEGER, 1, SMALL_INTEGER, 1],
            &[BINARY, 0, 0, 0, 1, 0xff],
            &[LIST, 0, 0, 0, 1, NIL, SMALL_INTEGER, 1],
            &[SMALL_BIG, 17, 0],
        ] {
            assert_eq!(data(bytes), None, "{bytes:?}");
        }
        assert_eq!(data(&[&[LIST, 0, 0, 0, 1][..]].concat().repeat(100_000)), None, "too deep");
        let trailing = [with_data(&[NIL]), vec![0]].concat();
        assert_eq!(SignedTerm::decode(&trailing), None);
    }

    fn json_values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(data in json_values(), signed_at_ms: i64, age: i64) {
            let signed = SignedTerm { data, signed_at_ms, max_age: MaxAge::Seconds(age) };
            prop_assert_eq!(SignedTerm::decode(&signed.encode()), Some(signed));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SignedTerm::decode(&bytes);
            let _ = data(&bytes);
        }
    }
}
