use std::io::Write;

use super::*;
use flate2::{Compression, write::ZlibEncoder};
use proptest::prelude::*;
use serde_json::json;

/// A term of a token signed at 1 second, with this data.
fn with_data(data: &[u8]) -> Vec<u8> {
    let times = [tag::INTEGER, 0, 0, 3, 232, tag::SMALL_INTEGER, 9];
    [&[VERSION, tag::SMALL_TUPLE, 3], data, &times].concat()
}

fn data(bytes: &[u8]) -> Option<Result<Value, Inexpressible>> {
    SignedTerm::decode(&with_data(bytes)).map(|signed| signed.data.into_value())
}

/// The same term in compressed form, with this declared length.
fn compressed(term: &[u8], length: usize) -> Vec<u8> {
    let mut stream = ZlibEncoder::new(Vec::new(), Compression::best());
    stream.write_all(&term[1..]).unwrap();
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&[VERSION, tag::COMPRESSED][..], &length, &stream.finish().unwrap()].concat()
}

/// A token's term with a string of this many zeros.
fn zeros(count: usize) -> Vec<u8> {
    let length = u32::try_from(count).unwrap().to_be_bytes();
    with_data(&[&[tag::BINARY][..], &length, &vec![0; count]].concat())
}

#[test]
fn every_encoding_of_a_value_is_decoded() {
    for (bytes, value) in [
        (&[tag::INTEGER, 255, 255, 255, 255][..], json!(-1)),
        (&[tag::INTEGER, 0, 0, 0, 7], json!(7)),
        (&[tag::SMALL_BIG, 1, 1, 5], json!(-5)),
        (&[tag::LARGE_BIG, 0, 0, 0, 2, 0, 0, 1], json!(256)),
        (&[tag::SMALL_BIG, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0], json!(7)),
        (&[tag::NEW_FLOAT, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], json!(1.5)),
        (&[tag::SMALL_ATOM_UTF8, 4, b't', b'r', b'u', b'e'], json!(true)),
        (&[tag::ATOM_UTF8, 0, 3, b'n', b'i', b'l'], json!(null)),
        (&[tag::SMALL_ATOM, 2, b'o', 0xe9], json!("oé")),
        (&[tag::LARGE_TUPLE, 0, 0, 0, 1, tag::SMALL_INTEGER, 1], json!([1])),
        (&[tag::NIL], json!([])),
        (&[tag::LIST, 0, 0, 0, 1, tag::NIL, tag::STRING, 0, 2, 8, 9], json!([[], 8, 9])),
    ] {
        assert_eq!(data(bytes), Some(Ok(value)), "{bytes:?}");
    }
    let long_zero = [&[tag::SMALL_BIG, 200, 0, 7][..], &[0; 199]].concat();
    assert_eq!(data(&long_zero), Some(Ok(json!(7))), "leading zeros change nothing");
}

#[test]
fn the_time_may_be_a_float_and_the_age_may_be_infinite_or_absent() {
    let float = [&[VERSION, tag::SMALL_TUPLE, 2, tag::NIL, tag::NEW_FLOAT][..]];
    let float = [&float.concat()[..], &1500.0f64.to_be_bytes()].concat();
    let signed = SignedTerm::decode(&float).unwrap();
    assert_eq!((signed.signed_at_ms, signed.max_age), (1500, MaxAge::Seconds(86_400)));

    let infinite = SignedTerm::decode(&encode(&json!(1), 2, MaxAge::Infinity)).unwrap();
    assert_eq!((infinite.signed_at_ms, infinite.max_age), (2, MaxAge::Infinity));

    let atom = |name: &[u8]| [&[tag::ATOM, 0, u8::try_from(name.len()).unwrap()], name].concat();
    let signed = [atom(b"signed"), vec![tag::SMALL_INTEGER, 7]].concat();
    let pairs = [&signed[..], &atom(b"data"), &[tag::SMALL_INTEGER, 8]].concat();
    let map = [&[VERSION, tag::MAP, 0, 0, 0, 2][..], &pairs].concat();
    let signed = SignedTerm::decode(&map).unwrap();
    assert_eq!((signed.data, signed.signed_at_ms), (Term::Integer(8), 7));
}

#[test]
fn an_age_is_over_one_millisecond_after_it() {
    assert!(!MaxAge::Seconds(1).is_over(500, 1500));
    assert!(MaxAge::Seconds(1).is_over(500, 1501));
    assert!(MaxAge::Seconds(0).is_over(500, 500), "a limit of zero");
    assert!(MaxAge::Seconds(-1).is_over(500, 0), "a negative limit");
    assert!(!MaxAge::Infinity.is_over(0, i64::MAX));
    assert!(!MaxAge::Seconds(i64::MAX).is_over(i64::MAX, i64::MAX), "does not overflow");
    assert!(!MaxAge::Seconds(i64::MAX).is_over(-1, i64::MAX), "does not saturate");
}

#[test]
fn types_that_do_not_occur_in_tokens_are_refused() {
    const NEW_PID: u8 = 88;
    const NEW_PORT: u8 = 89;
    const NEWER_REFERENCE: u8 = 90;
    const REFERENCE: u8 = 101;
    const PORT: u8 = 102;
    const PID: u8 = 103;
    const NEW_FUN: u8 = 112;
    const EXPORT: u8 = 113;
    const NEW_REFERENCE: u8 = 114;
    for bytes in [
        &[NEW_FUN][..],
        &[EXPORT],
        &[PID],
        &[NEW_PID],
        &[PORT],
        &[NEW_PORT],
        &[REFERENCE],
        &[NEW_REFERENCE],
        &[NEWER_REFERENCE],
        &[VERSION],
        &[tag::COMPRESSED],
        &[tag::LIST, 255, 255, 255, 255],
        &[tag::BINARY, 255, 255, 255, 255],
        &[tag::ATOM_UTF8, 0, 1, 0xff],
        &[tag::LIST, 0, 0, 0, 1, tag::NIL, tag::SMALL_INTEGER, 1],
        &[tag::SMALL_BIG, 17, 0],
    ] {
        assert_eq!(data(bytes), None, "{bytes:?}");
    }
    let deep = |levels| [[tag::SMALL_TUPLE, 1].repeat(levels), vec![tag::NIL]].concat();
    assert!(data(&deep(63)).is_some());
    assert_eq!(data(&deep(64)), None, "too deep");
    assert_eq!(data(&deep(100_000)), None, "much too deep");
    let trailing = [with_data(&[tag::NIL]), vec![0]].concat();
    assert_eq!(SignedTerm::decode(&trailing), None);
    for bytes in [&[][..], &[VERSION], &[VERSION, tag::COMPRESSED], &[VERSION, tag::NIL]] {
        assert_eq!(SignedTerm::decode(bytes), None, "{bytes:?}");
    }
}

#[test]
fn data_that_json_cannot_express_is_distinguished() {
    let nan = [&[tag::NEW_FLOAT][..], &f64::NAN.to_be_bytes()].concat();
    let huge = [&[tag::LARGE_BIG, 0, 0, 1, 0, 1][..], &[1; 256]].concat();
    let atom = [tag::SMALL_ATOM, 1, b'a'];
    let binary = [tag::BINARY, 0, 0, 0, 1, b'a'];
    let one = [tag::SMALL_INTEGER, 1];
    let twice = [&[tag::MAP, 0, 0, 0, 2][..], &atom, &one, &binary, &one].concat();
    for (bytes, why) in [
        (&[tag::BINARY, 0, 0, 0, 1, 0xff][..], Inexpressible::Binary),
        (&[tag::MAP, 0, 0, 0, 1, tag::NIL, tag::NIL], Inexpressible::Key),
        (&twice, Inexpressible::SameKey),
        (&nan, Inexpressible::Float),
        (&huge, Inexpressible::Integer),
        (&[&[tag::SMALL_BIG, 9, 0][..], &[1; 9]].concat(), Inexpressible::Integer),
        (&[&[tag::SMALL_BIG, 16, 1][..], &[255; 16]].concat(), Inexpressible::Integer),
    ] {
        assert_eq!(data(bytes), Some(Err(why)), "{bytes:?}");
    }
}

#[test]
fn a_compressed_term_is_read_up_to_a_limit() {
    let short = with_data(&[tag::STRING, 0, 3, 1, 2, 3]);
    let read = |term: &[u8], length| SignedTerm::decode(&compressed(term, length));
    let length = short.len() - 1;
    assert_eq!(read(&short, length), SignedTerm::decode(&short));
    assert_eq!(read(&short, length - 1), None, "longer than declared");
    assert_eq!(read(&short, length + 1), None, "shorter than declared");
    let trailing = [compressed(&short, length), vec![0]].concat();
    assert_eq!(SignedTerm::decode(&trailing), None);
    let again = [vec![VERSION], compressed(&short, length)[1..].to_vec()].concat();
    assert_eq!(read(&again, again.len() - 1), None, "compressed twice");

    let around = zeros(0).len() - 1;
    let largest = zeros(64 * 1024 - around);
    assert_eq!(read(&largest, 64 * 1024), SignedTerm::decode(&largest));
    let bomb = zeros(64 * 1024 - around + 1);
    assert_eq!(read(&bomb, 64 * 1024 + 1), None);
    let liar = compressed(&zeros(10_000_000), 100);
    assert_eq!(SignedTerm::decode(&liar), None);
    assert!(allocated(&liar) < 100_000, "a term that is too large is not even inflated");
}

#[test]
fn maps_are_written_in_the_order_of_their_keys() {
    let mut map = Map::new();
    for key in ["b", "aa", "a", "B", "é"] {
        map.insert(key.into(), Value::Null);
    }
    let written = encode(&map.into(), 0, MaxAge::Infinity);
    let Some(Term::Map(pairs)) = SignedTerm::decode(&written).map(|signed| signed.data) else {
        panic!("not a map");
    };
    let keys: Vec<_> = pairs.into_iter().map(|(key, _)| key.into_value().unwrap()).collect();
    assert_eq!(keys, ["B", "a", "aa", "b", "é"]);
}

/// The number of bytes allocated while decoding.
fn allocated(bytes: &[u8]) -> u64 {
    let counted = allocation_counter::measure(|| {
        let _ = SignedTerm::decode(bytes).map(|signed| signed.data.into_value());
    });
    counted.bytes_total
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
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Bytes that often look like terms.
fn nearly_terms() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        0..4_u8,
        tag::SMALL_INTEGER..=tag::SMALL_ATOM_UTF8,
        Just(tag::SMALL_TUPLE),
        Just(tag::NEW_FLOAT),
        Just(255),
    ];
    prop::collection::vec(byte, 0..400)
}

proptest! {
    #[test]
    fn written_terms_are_read_back(data in json_values(), signed_at_ms: i64, age: i64) {
        let written = encode(&data, signed_at_ms, MaxAge::Seconds(age));
        let signed = SignedTerm::decode(&written).unwrap();
        prop_assert_eq!(signed.signed_at_ms, signed_at_ms);
        prop_assert_eq!(signed.max_age, MaxAge::Seconds(age));
        prop_assert_eq!(signed.data.into_value(), Ok(data));
    }

    #[test]
    fn garbage_takes_no_more_than_in_proportion_to_it(bytes in nearly_terms()) {
        for bytes in [bytes.clone(), [vec![VERSION], bytes.clone()].concat(), with_data(&bytes)] {
            let allowed = 1000 + 256 * bytes.len() as u64;
            prop_assert!(allocated(&bytes) <= allowed, "{} bytes", allocated(&bytes));
        }
    }

    #[test]
    fn a_compressed_term_that_was_damaged_does_no_harm(data in json_values(), at: usize, flip: u8) {
        let term = encode(&data, 0, MaxAge::Infinity);
        let mut bytes = compressed(&term, term.len() - 1);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let _ = SignedTerm::decode(&bytes);
    }
}
