//! JSON to bytes, encoded as Erlang does. Pure.

use serde_json::Value;

use super::{MaxAge, VERSION, tag};

/// `{data, signed_at_ms, max_age_s}`.
pub(in crate::token) fn encode(data: &Value, signed_at_ms: i64, max_age: MaxAge) -> Vec<u8> {
    let mut out = vec![VERSION, tag::SMALL_TUPLE, 3];
    encode_value(data, &mut out);
    encode_integer(signed_at_ms.into(), &mut out);
    match max_age {
        MaxAge::Seconds(seconds) => encode_integer(seconds.into(), &mut out),
        MaxAge::Infinity => encode_atom("infinity", &mut out),
    }
    out
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => encode_atom("nil", out),
        Value::Bool(true) => encode_atom("true", out),
        Value::Bool(false) => encode_atom("false", out),
        Value::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(integer), _) => encode_integer(integer, out),
            (None, float) => {
                out.push(tag::NEW_FLOAT);
                out.extend_from_slice(&float.unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(text) => encode_binary(text, out),
        Value::Array(values) => encode_list(values, out),
        Value::Object(map) => {
            out.push(tag::MAP);
            encode_length(map.len(), out);
            // Erlang sorts the keys, and the order of a map here depends on a feature of serde_json.
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in pairs {
                encode_binary(key, out);
                encode_value(value, out);
            }
        }
    }
}

fn encode_list(values: &[Value], out: &mut Vec<u8>) {
    // Erlang encodes a list of bytes as a string.
    let byte = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok());
    let bytes: Option<Vec<u8>> = values.iter().map(byte).collect();
    match (bytes, u16::try_from(values.len())) {
        (Some(bytes), Ok(length)) if length > 0 => {
            out.push(tag::STRING);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        _ => {
            if !values.is_empty() {
                out.push(tag::LIST);
                encode_length(values.len(), out);
                values.iter().for_each(|value| encode_value(value, out));
            }
            out.push(tag::NIL);
        }
    }
}

fn encode_integer(integer: i128, out: &mut Vec<u8>) {
    if let Ok(byte) = u8::try_from(integer) {
        out.extend_from_slice(&[tag::SMALL_INTEGER, byte]);
    } else if let Ok(short) = i32::try_from(integer) {
        out.push(tag::INTEGER);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        let digits = integer.unsigned_abs().to_le_bytes();
        let length = digits.iter().rposition(|&digit| digit != 0).map_or(0, |last| last + 1);
        let length_byte = u8::try_from(length).expect("at most 16");
        out.extend_from_slice(&[tag::SMALL_BIG, length_byte, u8::from(integer < 0)]);
        out.extend_from_slice(&digits[..length]);
    }
}

/// Atoms in the encoding that all releases of Erlang can read.
fn encode_atom(name: &str, out: &mut Vec<u8>) {
    out.push(tag::ATOM);
    let length = u16::try_from(name.len()).expect("only short names are written");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn encode_binary(text: &str, out: &mut Vec<u8>) {
    out.push(tag::BINARY);
    encode_length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn encode_length(length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("a token is smaller than 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
}
