//! The references of metas. Pure.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

const REF: &str = "phx_ref";
const PREVIOUS: &str = "phx_ref_prev";

/// A unique reference: the time since 1970, the giver's number, and a count, as Phoenix makes them.
pub(super) fn make(time: Duration, giver: u16, count: u16) -> String {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&time.to_be_bytes());
    bytes[8..10].copy_from_slice(&giver.to_be_bytes());
    bytes[10..].copy_from_slice(&count.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A meta's reference.
pub(super) fn of(meta: &Map<String, Value>) -> Option<&str> {
    meta.get(REF)?.as_str()
}

/// Sets a meta's reference, and the reference of the meta that it replaces.
pub(super) fn set(meta: &mut Map<String, Value>, name: &str, before: Option<&str>) {
    meta.insert(REF.to_owned(), name.into());
    match before {
        Some(before) => drop(meta.insert(PREVIOUS.to_owned(), before.into())),
        None => drop(meta.remove(PREVIOUS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_sixteen_characters_that_need_no_escape() {
        let names = [(0, 0, 0), (1_700_000_000, u16::MAX, 7), (u64::MAX, 1, 2)];
        for (seconds, giver, count) in names {
            let name = make(Duration::from_secs(seconds), giver, count);
            assert_eq!(name.len(), 16, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        }
        let time = Duration::from_nanos(1_795_316_697_000_000_000);
        assert_ne!(make(time, 1, 2), make(time, 1, 3));
        assert_ne!(make(time, 1, 2), make(time, 2, 2));
    }
}
