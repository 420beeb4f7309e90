//! Queries: exactly those are accepted that are encoded, and have few parameters that nest a little. Their leaves
//! are strings, and they are the same when they are written and decoded again.

use pipeline_ws_sink::fuzzing::decode_query;
use serde_json::{Map, Value};

use super::paths;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"a[b]=c",
    b"l[]=1&l[]=2",
    b"[][]",
    b"&",
    b"=",
    b"%5B",
    b"%5D",
    b"%ff",
    b"%C3%BC",
    b"+",
    b"vsn=2.0.0",
    b"[a][b][c][d][e][f][g][h]",
    b"a[][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][]=",
    b"a[][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][]=",
];

pub(crate) fn run(data: &[u8]) {
    let query = String::from_utf8_lossy(data);
    let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    let plus = |text: &str| paths::decode(&text.replace('+', "%20"));
    let parts = pairs.iter().flat_map(|pair| pair.splitn(2, '='));
    let is_encoded = parts.map(plus).all(|part| part.is_some());
    let names = pairs.iter().map(|pair| plus(pair.split('=').next().unwrap_or_default()));
    let is_flat = names.flatten().all(|name| nesting(&name) <= 32);
    let is_valid = is_encoded && is_flat && pairs.len() <= 1000;
    let decoded = decode_query(&query);
    assert_eq!(decoded.is_some(), is_valid, "whether {query:?} is accepted");
    let Some(params) = decoded else { return };
    let mut leaves = Vec::new();
    for (name, value) in &params {
        collect(name.clone(), value, 1, &mut leaves);
    }
    assert!(leaves.len() <= pairs.len(), "{query:?} has {leaves:?}");
    if let Some(pair) = pairs.last() {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let last = (plus(name).unwrap_or_default(), plus(value).unwrap_or_default());
        assert!(leaves.contains(&last), "{query:?}: the last pair {last:?} is not in {leaves:?}");
    }

    let written: Vec<String> =
        leaves.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    let again: Option<Map<String, Value>> = decode_query(&written.join("&"));
    assert_eq!(again, Some(params), "{query:?}, written as {written:?}");
}

/// How deep a parameter of this name is nested. Only what is between the first `[` and a last `]` nests.
fn nesting(name: &str) -> usize {
    let inner = name.strip_suffix(']').and_then(|name| name.find('[').map(|at| &name[at + 1..]));
    inner.map_or(1, |inner| 2 + inner.matches("][").count())
}

/// The leaves with their names, in order.
fn collect(name: String, value: &Value, depth: usize, leaves: &mut Vec<(String, String)>) {
    assert!(depth <= 33, "{name} nests too deep");
    match value {
        Value::String(text) => leaves.push((name, text.clone())),
        Value::Array(list) => {
            for value in list {
                collect(format!("{name}[]"), value, depth + 1, leaves);
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                collect(format!("{name}[{key}]"), value, depth + 1, leaves);
            }
        }
        other => unreachable!("{name} is {other}"),
    }
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
