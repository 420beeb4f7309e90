//! The query of a request, decoded as a form with nested names. Pure.

use serde_json::{Map, Value, map::Entry};

/// The maximum number of parameters in a query.
const MAX_PARAMETERS: usize = 1000;

/// The maximum nesting of a parameter's name. Decoded values are dropped, cloned and written
/// recursively.
const MAX_DEPTH: usize = 32;

/// A query cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryError {
    /// A name or a value is not percent-encoded UTF-8.
    Encoding,
    /// There are more than 1000 parameters.
    TooMany,
    /// A name nests deeper than 32.
    TooDeep,
}

/// Decodes a query as `Plug.Conn.Query` does: `a[b]=c` is an object, `l[]=1&l[]=2` a list, a bare
/// `flag` is `""`, and all leaves are strings.
///
/// The last value of a name wins, and so does its shape, if a name is used as a string, a list or
/// an object: values of another shape are dropped.
pub(crate) fn decode(query: &str) -> Result<Map<String, Value>, QueryError> {
    let mut params = Map::new();
    let mut count = 0;
    // From the last to the first, so that existing values win. Lists are built in reverse.
    for pair in query.rsplit('&').filter(|pair| !pair.is_empty()) {
        count += 1;
        if count > MAX_PARAMETERS {
            return Err(QueryError::TooMany);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text| percent_decode(text, true).ok_or(QueryError::Encoding);
        let (name, value) = (decode(name)?, decode(value)?);
        let mut keys = keys(&name);
        if keys.len() > MAX_DEPTH {
            return Err(QueryError::TooDeep);
        }
        let first = keys.remove(0);
        insert(&mut params, first, &keys, value);
    }
    params.values_mut().for_each(put_lists_in_order);
    Ok(params)
}

/// `a[b][]` has the keys `a`, `b` and the empty one. There is always a first key.
fn keys(name: &str) -> Vec<&str> {
    let nested = name.strip_suffix(']').and_then(|name| name.split_once('['));
    match nested {
        Some((first, rest)) => std::iter::once(first).chain(rest.split("][")).collect(),
        None => vec![name],
    }
}

fn insert(params: &mut Map<String, Value>, key: &str, below: &[&str], value: String) {
    match (params.entry(key), below) {
        (Entry::Vacant(place), below) => {
            place.insert(nested(below, value));
        }
        (Entry::Occupied(mut place), ["", below @ ..]) => {
            if let Value::Array(list) = place.get_mut() {
                list.push(nested(below, value));
            }
        }
        (Entry::Occupied(mut place), [key, below @ ..]) => {
            if let Value::Object(object) = place.get_mut() {
                insert(object, key, below, value);
            }
        }
        // A later value has won.
        (Entry::Occupied(_), []) => {}
    }
}

/// Wraps a value in keys that do not exist yet.
fn nested(keys: &[&str], value: String) -> Value {
    keys.iter().rev().fold(Value::String(value), |value, key| match *key {
        "" => Value::Array(vec![value]),
        key => Value::Object(Map::from_iter([(key.to_owned(), value)])),
    })
}

fn put_lists_in_order(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.reverse();
            list.iter_mut().for_each(put_lists_in_order);
        }
        Value::Object(object) => object.values_mut().for_each(put_lists_in_order),
        _ => {}
    }
}

/// Decodes `%XX`, and with `plus` a `+` as a space. `None` if a `%` is not followed by two hex
/// digits, or if the result is not UTF-8.
pub(super) fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| value.try_into().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decoded(query: &str) -> Value {
        Value::Object(decode(query).unwrap())
    }

    #[test]
    fn c_019_nested_names_are_decoded() {
        assert_eq!(
            decoded("vsn=2.0.0&a[b]=c&l[]=1&l[]=2&sp=x+y&pct=%C3%BC&flag"),
            json!({
                "vsn": "2.0.0", "a": {"b": "c"}, "l": ["1", "2"], "sp": "x y", "pct": "ü", "flag": "",
            })
        );
    }

    #[test]
    fn names_nest_as_they_do_in_plug() {
        let cases = [
            ("", json!({})),
            ("&&", json!({})),
            ("=", json!({"": ""})),
            ("a=b=c", json!({"a": "b=c"})),
            ("a%5Bb%5D=c", json!({"a": {"b": "c"}})),
            ("a[b][c]=1&a[b][d]=2&a[e]=3", json!({"a": {"b": {"c": "1", "d": "2"}, "e": "3"}})),
            ("a[][b]=1&a[][b]=2", json!({"a": [{"b": "1"}, {"b": "2"}]})),
            ("a[][]=1&a[][]=2", json!({"a": [["1"], ["2"]]})),
            ("a[b][]=1&a[b][]=2", json!({"a": {"b": ["1", "2"]}})),
            ("a[b=c", json!({"a[b": "c"})),
            ("a]=c", json!({"a]": "c"})),
            ("[a]=c", json!({"": {"a": "c"}})),
            ("a[b]c=d", json!({"a[b]c": "d"})),
        ];
        for (query, expected) in cases {
            assert_eq!(decoded(query), expected, "{query}");
        }
    }

    #[test]
    fn the_last_of_a_name_wins_and_so_does_its_shape() {
        let cases = [
            ("a=1&a=2", json!({"a": "2"})),
            ("a=1&a[b]=2", json!({"a": {"b": "2"}})),
            ("a[b]=1&a=2", json!({"a": "2"})),
            ("a[]=1&a[b]=2", json!({"a": {"b": "2"}})),
            ("a[b]=1&a[]=2", json!({"a": ["2"]})),
            ("a[b]=1&a=2&a[c]=3", json!({"a": {"b": "1", "c": "3"}})),
        ];
        for (query, expected) in cases {
            assert_eq!(decoded(query), expected, "{query}");
        }
    }

    #[test]
    fn invalid_encodings_are_refused() {
        for query in ["a=%ff", "%ff=a", "ok=1&a=%", "a[%zz]=1"] {
            assert_eq!(decode(query), Err(QueryError::Encoding), "{query}");
        }
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let deep = |depth| format!("a{}=1", "[b]".repeat(depth - 1));
        assert!(decode(&deep(MAX_DEPTH)).is_ok());
        assert_eq!(decode(&deep(MAX_DEPTH + 1)), Err(QueryError::TooDeep));
        assert_eq!(decode(&deep(20_000)), Err(QueryError::TooDeep));
        assert!(decode(&"l[]=1&".repeat(MAX_PARAMETERS)).is_ok());
        assert_eq!(decode(&"a&".repeat(MAX_PARAMETERS + 1)), Err(QueryError::TooMany));
    }

    fn leaves_are_strings(value: &Value) -> bool {
        match value {
            Value::String(_) => true,
            Value::Array(list) => !list.is_empty() && list.iter().all(leaves_are_strings),
            Value::Object(object) => !object.is_empty() && object.values().all(leaves_are_strings),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_it_is_decoded_or_refused(query in "([ab\\[\\]=&+%0-9ü]|%[0-9a-f]{2}|.){0,60}") {
            if let Ok(params) = decode(&query) {
                prop_assert!(params.values().all(leaves_are_strings));
            }
        }

        #[test]
        fn plain_pairs_come_out_as_they_went_in(
            pairs in proptest::collection::btree_map("[a-zü &=+%]{1,5}", "[a-zü &=+%\\[\\]]{0,5}", 0..8),
        ) {
            let encode = |text: &str| -> String {
                text.bytes().map(|byte| format!("%{byte:02X}")).collect()
            };
            let query: Vec<_> =
                pairs.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
            prop_assert_eq!(decoded(&query.join("&")), json!(pairs));
        }
    }

    #[test]
    fn valid_percent_encodings_are_decoded() {
        let cases = [
            ("", ""),
            ("plain", "plain"),
            ("x+y", "x y"),
            ("%2B%2b", "++"),
            ("%C3%BC%e2%82%ac", "ü€"),
            ("ü", "ü"),
            ("a%00b", "a\0b"),
        ];
        for (text, decoded) in cases {
            assert_eq!(percent_decode(text, true).as_deref(), Some(decoded), "{text}");
        }
        assert_eq!(percent_decode("x+y", false).as_deref(), Some("x+y"));
    }

    #[test]
    fn invalid_percent_encodings_are_refused() {
        for text in ["%", "%2", "a%2", "%zz", "%2g", "%+1", "%-1", "%C3", "%ff", "%ü0", "%C3%28"] {
            assert_eq!(percent_decode(text, true), None, "{text}");
        }
    }
}
