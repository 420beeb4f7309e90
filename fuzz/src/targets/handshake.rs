//! The headers of a handshake: extensions, subprotocols, the token among them, and the version.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use pipeline_ws_sink::fuzzing::{negotiate_deflate, select_subprotocol, take_token, version};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"permessage-deflate",
    b"server_no_context_takeover",
    b"client_no_context_takeover",
    b"server_max_window_bits=15",
    b"client_max_window_bits=10",
    b"client_max_window_bits",
    b"\"",
    b"\\",
    b"; ",
    b", ",
    b"base64url.bearer.phx.",
    b"dG9rZW4",
    b"phoenix",
    b"2.0.0",
    b"1.0.0",
    b"+build.1",
];

const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.below(4);
    let rest = String::from_utf8_lossy(input.rest()).into_owned();
    match what {
        0 => extensions(&rest),
        1 => token(&rest),
        2 => subprotocol(&rest),
        _ => vsn(&rest),
    }
}

/// The lines are headers.
fn extensions(text: &str) {
    let headers: Vec<&str> = text.lines().collect();
    let answer = negotiate_deflate(&headers);
    let has = |name: &str| text.to_ascii_lowercase().contains(name);
    match answer.as_deref() {
        None => {}
        Some(PLAIN) => assert!(has("permessage-deflate"), "accepted without an offer"),
        Some(answer) => {
            assert_eq!(answer, format!("{PLAIN}; server_max_window_bits=15"));
            assert!(has("permessage-deflate") && has("server_max_window_bits") && has("15"));
        }
    }
    let with_others: Vec<&str> =
        ["x-other", "x-quoted; a=\"permessage-deflate, \\\"\""].into_iter().chain(headers).collect();
    assert_eq!(negotiate_deflate(&with_others), answer, "offers of other extensions matter");
    let first: Vec<&str> = [PLAIN].into_iter().chain(with_others).collect();
    assert_eq!(negotiate_deflate(&first).as_deref(), Some(PLAIN), "the first offer counts");
}

fn token(header: &str) {
    let prefix = "base64url.bearer.phx.";
    let entries: Vec<&str> = header.split(',').map(str::trim).collect();
    let tokens = entries.iter().filter(|entry| entry.starts_with(prefix)).count();
    let Some((token, rest)) = take_token(header) else {
        assert_eq!(tokens, 1, "refused for a token that is not there");
        return;
    };
    let Some(token) = token else {
        assert_ne!(tokens, 1, "the token is not found");
        assert_eq!(rest.as_deref(), Some(header), "a header without a token");
        return;
    };
    assert_eq!(tokens, 1, "a token is found among several");
    let left: Vec<&str> = rest.iter().flat_map(|rest| rest.split(',').map(str::trim)).collect();
    let others: Vec<&str> =
        entries.into_iter().filter(|entry| !entry.starts_with(prefix)).collect();
    assert_eq!(left, others, "the other entries");
    let encoded = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(&token));
    let again = match &rest {
        Some(rest) => format!("{encoded}, {rest}"),
        None => encoded,
    };
    assert_eq!(take_token(&again), Some((Some(token), rest)), "{again:?}");
}

/// The first line is offered, the others are supported.
fn subprotocol(text: &str) {
    let mut lines = text.lines();
    let offered = lines.next();
    let ours: Vec<String> = lines.map(str::to_owned).collect();
    let is_offered = |our: &&String| {
        offered.is_some_and(|offered| offered.split(',').any(|entry| entry.trim() == **our))
    };
    let expected = match (offered, &ours[..]) {
        (None, _) | (_, []) => Some(None),
        _ => ours.iter().find(is_offered).map(|our| Some(&**our)),
    };
    assert_eq!(select_subprotocol(&ours, offered), expected);
}

fn vsn(text: &str) {
    assert_eq!(version(None), Some(1), "without a version");
    let is_numeric = |part: &str| {
        part.parse::<u128>().is_ok_and(|number| number.to_string() == part) || part.len() > 30
    };
    let (numbers, build) = match text.find('+') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let parts: Vec<&str> = numbers.split('.').collect();
    let selected = version(Some(text));
    let Some(major) = selected else {
        let plain = ["1.0.0", "2.0.0", "1.0.7", "2.0.10", "2.0.0+x-1.7"];
        assert!(!plain.contains(&text), "{text} is refused");
        return;
    };
    assert_eq!(parts.len(), 3, "{text}");
    assert!(parts[0] == major.to_string() && parts[1] == "0" && is_numeric(parts[2]), "{text}");
    let is_identifier =
        |part: &str| !part.is_empty() && part.chars().all(|c| c == '-' || c.is_ascii_alphanumeric());
    assert!(build.is_none_or(|build| build.split('.').all(is_identifier)), "{text}");
}
