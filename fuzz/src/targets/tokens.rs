//! Phoenix's tokens and the term format in them: altered tokens are refused, any signed term is refused or
//! says what was written, and its times are kept.

use std::{
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use pipeline_ws_sink::{
    fuzzing::sign_term,
    token::{KeyOptions, Signer, TokenError},
};
use serde_json::Value;

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"SFMyNTY.",
    b"SFMzODQ.",
    b"SFM1MTI.",
    b"\x83h\x03",
    b"\x83h\x02",
    b"m\0\0\0\x03ada",
    b"n\x06\x00\xd2\x02\x96\x49\x00\x00",
    b"w\x08infinity",
    b"d\x00\x03nil",
    b"t\0\0\0\x01",
    b"l\0\0\0\x01",
    b"k\x00\x03abc",
    b"F\x40\x09\x21\xfb\x54\x44\x2d\x18",
    b"b\xff\xff\xff\xff",
    b"o\0\0\0\x09",
    b"j",
    b"P\0\0\0\x10",
    b"x\x9c",
    b"w\x04data",
    b"w\x06signed",
];

const NOW: Duration = Duration::from_secs(1_700_000_000);

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let secret = "a secret of at least twenty bytes";
    Signer::with_options(secret, "user socket", KeyOptions::default().iterations(1))
        .expect("the secret is long enough")
});

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => {
            let text = String::from_utf8_lossy(input.rest());
            let verified = SIGNER.verify::<Value>(&text, UNIX_EPOCH + NOW);
            assert!(matches!(verified, Err(TokenError::Invalid)), "{text:?}: {verified:?}");
        }
        1 => signed(input.rest()),
        2 => written(input),
        _ => altered(input),
    }
}

/// Any bytes, signed: a value that is read can be signed and read again.
fn signed(term: &[u8]) {
    let token = sign_term(&SIGNER, term);
    let lasting = SIGNER.clone().never_expires();
    let Ok(value) = lasting.verify::<Value>(&token, UNIX_EPOCH + NOW) else { return };
    let again = lasting.sign(&value, UNIX_EPOCH + NOW).expect("it is JSON");
    let read = lasting.verify::<Value>(&again, UNIX_EPOCH + NOW).expect("it was signed");
    assert_eq!(read, value, "a value is another one when it is signed again");
}

/// A term in any of its forms, and the value that it has.
fn written(mut input: Input<'_>) {
    let mut term = vec![131, 104, 3];
    let value = write_term(&mut input, &mut term, 4);
    let signed_at = match input.below(3) {
        0 => NOW.as_millis() as i64 - i64::from(input.byte()) * 1000,
        1 => NOW.as_millis() as i64 + i64::from(input.byte()) * 500,
        _ => input.odd_number().cast_signed(),
    };
    write_integer(&mut input, signed_at.into(), &mut term);
    let max_age = match input.below(4) {
        0 => None,
        1 => Some(i64::from(input.byte())),
        _ => Some(input.odd_number().cast_signed()),
    };
    match max_age {
        None => term.extend_from_slice(b"w\x08infinity"),
        Some(seconds) => write_integer(&mut input, seconds.into(), &mut term),
    }
    let verified = SIGNER.verify::<Value>(&sign_term(&SIGNER, &term), UNIX_EPOCH + NOW);
    let now = NOW.as_millis() as i128;
    let is_over = max_age.is_some_and(|seconds| {
        seconds <= 0 || i128::from(signed_at) + i128::from(seconds) * 1000 < now
    });
    let shown = format!("{term:?}: {verified:?}");
    match (verified, value) {
        (Err(TokenError::Invalid), _) => assert!(i128::from(signed_at) > now + 60_000, "{shown}"),
        (Err(TokenError::Expired), _) => assert!(is_over, "{shown}"),
        (Err(TokenError::Data(_)), value) => assert_eq!(value, None, "{shown}"),
        (Ok(read), Some(value)) => {
            assert!(!is_over && i128::from(signed_at) <= now + 60_000, "{shown}");
            assert_eq!(read, value, "{shown}");
        }
        _ => unreachable!("{shown}"),
    }
}

/// A valid token with one part altered.
fn altered(mut input: Input<'_>) {
    let value = input.json(2);
    let token = SIGNER.sign(&value, UNIX_EPOCH + NOW).expect("it is JSON");
    let (at, with) = (input.below(256), input.byte());
    let mut bytes = token.clone().into_bytes();
    match input.below(3) {
        0 => {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        1 => bytes.truncate(at % bytes.len()),
        _ => bytes.insert(at % (bytes.len() + 1), with),
    }
    let Ok(altered) = String::from_utf8(bytes) else { return };
    if altered != token {
        let verified = SIGNER.verify::<Value>(&altered, UNIX_EPOCH + NOW);
        assert!(matches!(verified, Err(TokenError::Invalid)), "{altered:?}: {verified:?}");
    }
}

/// Writes a term, and returns its value, if JSON can express it.
fn write_term(input: &mut Input<'_>, out: &mut Vec<u8>, depth: usize) -> Option<Value> {
    match input.below(if depth == 0 { 5 } else { 9 }) {
        0 => {
            let number = match input.below(3) {
                0 => input.byte().into(),
                1 => i128::from(input.number().cast_signed()),
                _ => i128::from(input.number()) - i128::from(input.number()) + (1 << 63),
            };
            write_integer(input, number, out);
            let unsigned = u64::try_from(number).map(Value::from);
            unsigned.or_else(|_| i64::try_from(number).map(Value::from)).ok()
        }
        1 => {
            let float = input.float();
            out.push(70);
            out.extend_from_slice(&float.to_be_bytes());
            serde_json::Number::from_f64(float).map(Value::Number)
        }
        2 => {
            let bytes = input.bytes(30);
            write_binary(bytes, out);
            std::str::from_utf8(bytes).ok().map(Value::from)
        }
        3 => {
            let name = input.choice(&["nil", "true", "false", "ok", "ümlaut", "infinity", ""]);
            let is_latin = input.flag() && name.is_ascii();
            let short = u8::try_from(name.len()).unwrap_or_default();
            if input.flag() {
                out.extend_from_slice(&[if is_latin { 100 } else { 118 }, 0, short]);
            } else {
                out.extend_from_slice(&[if is_latin { 115 } else { 119 }, short]);
            }
            out.extend_from_slice(name.as_bytes());
            Some(match name {
                "nil" => Value::Null,
                "true" => true.into(),
                "false" => false.into(),
                other => other.into(),
            })
        }
        4 => {
            let bytes = input.bytes(30);
            out.extend_from_slice(&[107, 0, u8::try_from(bytes.len()).unwrap_or_default()]);
            out.extend_from_slice(bytes);
            Some(bytes.iter().map(|byte| Value::from(*byte)).collect())
        }
        5 => {
            let count = input.below(5);
            if count == 0 && input.flag() {
                out.push(106);
                return Some(Value::Array(Vec::new()));
            }
            out.push(108);
            write_length(count, out);
            let values: Vec<_> = (0..count).map(|_| write_term(input, out, depth - 1)).collect();
            out.push(106);
            values.into_iter().collect()
        }
        6 | 7 => {
            let count = input.below(5);
            if input.flag() {
                out.extend_from_slice(&[104, u8::try_from(count).unwrap_or_default()]);
            } else {
                out.push(105);
                write_length(count, out);
            }
            let values: Vec<_> = (0..count).map(|_| write_term(input, out, depth - 1)).collect();
            values.into_iter().collect()
        }
        _ => {
            let count = input.below(4);
            out.push(116);
            write_length(count, out);
            let mut map = serde_json::Map::new();
            let mut is_json = true;
            for _ in 0..count {
                let key = input.text(6);
                write_binary(key.as_bytes(), out);
                match write_term(input, out, depth - 1) {
                    Some(value) => is_json &= map.insert(key, value).is_none(),
                    None => is_json = false,
                }
            }
            is_json.then(|| map.into())
        }
    }
}

/// Writes an integer in any of the forms that it fits.
fn write_integer(input: &mut Input<'_>, number: i128, out: &mut Vec<u8>) {
    let form = input.below(4);
    match (u8::try_from(number), i32::try_from(number)) {
        (Ok(byte), _) if form == 0 => out.extend_from_slice(&[97, byte]),
        (_, Ok(number)) if form <= 1 => {
            out.push(98);
            out.extend_from_slice(&number.to_be_bytes());
        }
        _ => {
            // Leading zeros are allowed.
            let digits = number.unsigned_abs().to_le_bytes();
            let sign = u8::from(number < 0);
            if form == 2 {
                out.push(111);
                write_length(digits.len(), out);
                out.push(sign);
            } else {
                out.extend_from_slice(&[110, 16, sign]);
            }
            out.extend_from_slice(&digits);
        }
    }
}

fn write_binary(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(109);
    write_length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(length).unwrap_or_default().to_be_bytes());
}
