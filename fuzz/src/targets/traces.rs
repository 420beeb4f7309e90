//! Trace contexts: exactly the valid values of a `traceparent` header are accepted, with their ids, and are written
//! as version 00.

use pipeline_core::timed::TraceContext;

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    b"cc-",
    b"ff-",
    b"-00",
    b"-03",
    b"-what-the-future-will-be-like",
    b"0000000000000000",
    b"-",
    b"A",
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        written(input);
    } else {
        check(&String::from_utf8_lossy(input.rest()));
    }
}

/// A valid value in most cases, with any ids.
fn written(mut input: Input<'_>) {
    let version = input.choice(&[0, 0, 0, 1, 0xcc, 0xfe, 0xff]);
    let [high, low, parent] = [0; 3].map(|_: u8| input.odd_number());
    let flags = input.byte();
    let behind = input.choice(&["", "", "-", "-more", "more", "\u{fc}"]);
    check(&format!("{version:02x}-{high:016x}{low:016x}-{parent:016x}-{flags:02x}{behind}"));
}

fn check(text: &str) {
    let parsed = text.parse::<TraceContext>().ok();
    let expected = fields(text);
    let seen = parsed.map(|trace| {
        let id = u128::from_be_bytes(trace.trace_id().to_bytes());
        (id, trace.parent_id(), trace.is_sampled())
    });
    assert_eq!(seen, expected.map(|(id, parent, flags)| (id, parent, flags & 1 == 1)), "{text:?}");
    let (Some(trace), Some((id, parent, flags))) = (parsed, expected) else { return };
    let again = format!("00-{id:032x}-{parent:016x}-{:02x}", flags & 3);
    assert_eq!(trace.to_string(), again, "{text:?}");
    assert_eq!(again.parse(), Ok(trace), "{text:?}, written as {again:?}");
    assert_eq!(trace.trace_id().to_string(), again[3..35], "{text:?}");
}

/// The trace id, the parent id and the flags of a valid value.
fn fields(text: &str) -> Option<(u128, u64, u8)> {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let [version, id, parent, flags, rest @ ..] = &parts[..] else { return None };
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let has = |text: &str, digits| text.len() == digits && text.chars().all(is_digit);
    if !(has(version, 2) && has(id, 32) && has(parent, 16) && has(flags, 2)) {
        return None;
    }
    let is_known = match *version {
        "00" => rest.is_empty(),
        version => version != "ff",
    };
    let id = u128::from_str_radix(id, 16).ok().filter(|id| *id > 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id > 0)?;
    is_known.then_some((id, parent, u8::from_str_radix(flags, 16).ok()?))
}
