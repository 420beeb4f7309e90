//! Deserializes values whose leaves are all strings. Pure.

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, Error, IntoDeserializer, Unexpected, Visitor,
        value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

/// The error, as a serde message.
pub(crate) type LeafError = serde::de::value::Error;

/// Deserializes an object whose leaves are strings.
pub(crate) fn read<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, LeafError> {
    T::deserialize(MapAccessDeserializer::new(entries(object)))
}

fn entries<'de>(
    object: &'de Map<String, Value>,
) -> MapDeserializer<'de, impl Iterator<Item = (&'de str, Node<'de>)>, LeafError> {
    MapDeserializer::new(object.iter().map(|(name, value)| (&**name, Node(value))))
}

/// A nested value.
#[derive(Clone, Copy)]
struct Node<'de>(&'de Value);

impl<'de> Node<'de> {
    /// Parses a leaf.
    fn leaf<T: std::str::FromStr>(self, what: &str) -> Result<T, LeafError> {
        match self.0 {
            Value::String(text) => {
                text.parse().map_err(|_| Error::invalid_value(Unexpected::Str(text), &what))
            }
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &what)),
            _ => Err(Error::invalid_type(Unexpected::Map, &what)),
        }
    }
}

macro_rules! leaves {
    ($($deserialize:ident $visit:ident $what:literal,)*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LeafError> {
            visitor.$visit(self.leaf($what)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = LeafError;

    leaves! {
        deserialize_bool visit_bool "true or false",
        deserialize_i8 visit_i8 "a number",
        deserialize_i16 visit_i16 "a number",
        deserialize_i32 visit_i32 "a number",
        deserialize_i64 visit_i64 "a number",
        deserialize_i128 visit_i128 "a number",
        deserialize_u8 visit_u8 "a number",
        deserialize_u16 visit_u16 "a number",
        deserialize_u32 visit_u32 "a number",
        deserialize_u64 visit_u64 "a number",
        deserialize_u128 visit_u128 "a number",
        deserialize_f32 visit_f32 "a number",
        deserialize_f64 visit_f64 "a number",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LeafError> {
        match self.0 {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(list) => {
                SeqDeserializer::new(list.iter().map(Node)).deserialize_any(visitor)
            }
            Value::Object(object) => visitor.visit_map(entries(object)),
            // Queries contain only the kinds above; a test may construct others.
            other => other.deserialize_any(visitor).map_err(Error::custom),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LeafError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, LeafError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, LeafError> {
        match self.0 {
            Value::Object(object) => {
                visitor.visit_enum(MapAccessDeserializer::new(entries(object)))
            }
            _ => visitor.visit_enum(self.leaf::<String>("a variant")?.into_deserializer()),
        }
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

impl<'de> IntoDeserializer<'de, LeafError> for Node<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn of<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
        read(value.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Phone,
        Desk { floor: u8 },
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Id(u64);

    #[derive(Debug, Deserialize, PartialEq)]
    struct Asked {
        id: Id,
        name: String,
        loud: bool,
        gain: Option<f64>,
        none: Option<i8>,
        rooms: Vec<u16>,
        kind: Kind,
        other: Kind,
        pair: (char, i64),
        rest: BTreeMap<String, String>,
    }

    #[test]
    fn leaves_are_parsed_as_the_expected_type() {
        let asked = of::<Asked>(&json!({
            "id": "42", "name": "7", "loud": "true", "gain": "0.5", "rooms": ["1", "2"], "kind": "phone",
            "other": {"desk": {"floor": "3"}}, "pair": ["x", "-1"], "rest": {"a": "b"},
            "vsn": "2.0.0", "unknown": {"a": ["b"]},
        }));
        let expected = Asked {
            id: Id(42),
            name: "7".into(),
            loud: true,
            gain: Some(0.5),
            none: None,
            rooms: vec![1, 2],
            kind: Kind::Phone,
            other: Kind::Desk { floor: 3 },
            pair: ('x', -1),
            rest: BTreeMap::from([("a".into(), "b".into())]),
        };
        assert_eq!(asked, Ok(expected));
    }

    #[test]
    fn a_mismatch_is_an_error() {
        let number = |value| of::<BTreeMap<String, u8>>(&json!({"a": value})).unwrap_err();
        assert_eq!(number(json!("x")), "invalid value: string \"x\", expected a number");
        assert_eq!(number(json!("256")), "invalid value: string \"256\", expected a number");
        assert_eq!(number(json!("")), "invalid value: string \"\", expected a number");
        assert_eq!(number(json!(["1"])), "invalid type: sequence, expected a number");
        assert_eq!(number(json!({"b": "1"})), "invalid type: map, expected a number");
        assert_eq!(of::<Asked>(&json!({})).unwrap_err(), "missing field `id`");
        assert!(of::<BTreeMap<String, Kind>>(&json!({"a": "fax"})).is_err());
        assert!(of::<BTreeMap<String, Vec<u8>>>(&json!({"a": "1"})).is_err());
    }

    #[test]
    fn without_an_expected_type_a_leaf_is_a_string() {
        let value = json!({"a": {"b": ["c", {"d": ""}]}});
        assert_eq!(of::<Value>(&value), Ok(value));
    }
}
