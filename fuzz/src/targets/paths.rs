//! The paths of mounts, and the paths of requests, matched by a naive matcher.
//!
//! The input has three lines: the mount's path, the transport's path below it, and the request's path.

use pipeline_ws_sink::fuzzing::SocketPath;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"/socket\n/websocket\n/socket/websocket",
    b"/:tenant",
    b"/:_version",
    b"%2F",
    b"%3A",
    b"%ff",
    b"%C3%BC",
    b"//",
    b"\n",
    b"+",
    b"..",
];

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (mount, transport, asked) = (line(), line(), line());
    let Ok(path) = SocketPath::parse(mount, transport) else {
        assert!(!mount.is_empty() || !transport.is_empty(), "the path of the root is refused");
        return;
    };
    let segments: Vec<&str> = mount.split('/').chain(transport.split('/')).collect();
    let segments: Vec<&str> = segments.into_iter().filter(|it| !it.is_empty()).collect();
    assert_eq!(path.variables(asked), matched(&segments, asked), "{segments:?} asked for {asked:?}");

    let again = SocketPath::parse(&path.shown(), "").expect("a shown path is a path");
    assert!(path.is_same(&again) && again.shown() == path.shown(), "{:?}", path.shown());

    // Any values of the variables lead there.
    let value = |at: usize| format!("{at}{asked}");
    let mut url = String::new();
    for (at, segment) in segments.iter().enumerate() {
        let value = if segment.starts_with(':') { value(at) } else { (*segment).to_owned() };
        url.push('/');
        value.bytes().for_each(|byte| url.push_str(&format!("%{byte:02x}")));
    }
    let named = segments.iter().enumerate().filter(|(_, it)| it.starts_with(':'));
    let named = named.filter(|(_, it)| !it.starts_with(":_"));
    let expected = named.map(|(at, name)| (name[1..].to_owned(), value(at))).collect();
    assert_eq!(path.variables(&url), Some(Ok(expected)), "{segments:?} asked for {url:?}");
}

type Variables = Result<Vec<(String, String)>, ()>;

/// The variables of a request's path, if the segments match.
fn matched(segments: &[&str], asked: &str) -> Option<Variables> {
    let asked: Vec<&str> = asked.split('/').filter(|it| !it.is_empty()).collect();
    if asked.len() != segments.len() {
        return None;
    }
    let mut variables = Ok(Vec::new());
    for (segment, asked) in segments.iter().zip(asked) {
        let decoded = decode(asked);
        match segment.strip_prefix(':') {
            None if decoded.as_deref() == Some(*segment) => {}
            None => return None,
            Some(name) => match (decoded, &mut variables) {
                (None, _) => variables = Err(()),
                (Some(value), Ok(variables)) if !name.starts_with('_') => {
                    variables.push((name.to_owned(), value));
                }
                _ => {}
            },
        }
    }
    Some(variables)
}

/// A percent-encoded text.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest);
    }
    String::from_utf8(bytes).ok()
}
