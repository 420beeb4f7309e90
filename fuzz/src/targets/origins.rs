//! The origins of pages: each rule allows exactly the pages that it names.

use std::sync::LazyLock;

use pipeline_ws_sink::{
    fuzzing::{allows_origin, configured_host, parse_origin},
    mount::CheckOrigin,
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"http://",
    b"https://",
    b"//localhost",
    b"https://secure.test",
    b"//ported.test:8443",
    b"//*.wild.test",
    b".wild.test",
    b"localhost",
    b"127.0.0.1",
    b"[::1]",
    b":8443",
    b"@",
    b"null",
    b"file://",
    b"\\",
    b"\0",
];

static LIST: LazyLock<CheckOrigin> = LazyLock::new(|| {
    CheckOrigin::list(["//localhost", "https://secure.test", "//ported.test:8443", "//*.wild.test"])
});

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(3) {
        0 => raw(input),
        1 => entries(input),
        _ => pages(input),
    }
}

/// Any texts: a page that is allowed has a host that the rule names.
fn raw(mut input: Input<'_>) {
    let (authority, configured) = (input.text(40), input.text(20));
    let text = String::from_utf8_lossy(input.rest()).into_owned();
    let origin = parse_origin(&text);
    let host = origin.host();
    assert_eq!(origin.to_string(), text);
    if let Some(host) = host {
        assert!(!host.is_empty() && text.contains(host), "{text:?} has the host {host:?}");
        assert!(!host.contains(['/', '?', '#', '@', '[', ']']), "{text:?} has the host {host:?}");
    }
    let allows = |rule: &CheckOrigin, configured: Option<&str>| {
        allows_origin(rule, &text, configured, "http", Some(&authority))
    };
    if allows(&CheckOrigin::host(), Some("example.com")) {
        assert_eq!(host, Some("example.com"), "{text:?} may connect");
    }
    if let Some(own) = configured_host(&configured)
        && allows(&CheckOrigin::host(), Some(&own))
    {
        assert_eq!(host, Some(&*own), "{text:?} may connect");
    }
    if allows(&CheckOrigin::host(), None) {
        let host = host.unwrap_or_default();
        let is_own = host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<std::net::IpAddr>().is_ok();
        assert!(is_own, "{text:?} may connect to {authority:?}");
        assert!(authority.to_ascii_lowercase().contains(host), "{text:?} and {authority:?}");
    }
    if allows(&LIST, None) {
        let named = match host.unwrap_or_default() {
            "localhost" | "wild.test" => true,
            "secure.test" => origin.scheme() == Some("https") && origin.port() == Some(443),
            "ported.test" => origin.port() == Some(8443),
            host => host.ends_with(".wild.test"),
        };
        assert!(named, "{text:?} may connect");
    }
    if allows(&CheckOrigin::connection(), None) {
        assert_eq!(origin.scheme(), Some("http"), "{text:?} may connect to {authority:?}");
        let host = host.unwrap_or_default();
        assert!(authority.to_ascii_lowercase().contains(host), "{text:?} and {authority:?}");
    }
    assert!(allows(&CheckOrigin::off(), None));
}

/// An entry of a list allows the page of the same text, if it has a host.
fn entries(mut input: Input<'_>) {
    let (scheme, _) = scheme(&mut input);
    let host = host(&mut input);
    let port = input.number() as u16;
    let page = format!("{scheme}://{host}:{port}");
    for (entry, expected) in [
        (page.clone(), true),
        (format!("//{host}"), true),
        (format!("//{host}:{port}"), true),
        (format!("//*.{host}"), true),
        (format!("//{host}x"), false),
        (format!("//{host}:{}", port.wrapping_add(1)), false),
        (format!("x{scheme}://{host}:{port}"), false),
    ] {
        let rule = CheckOrigin::list([&entry]);
        let allowed = allows_origin(&rule, &page, None, "http", None);
        assert_eq!(allowed, expected, "{page:?} with the entry {entry:?}");
    }
    let below = format!("{scheme}://a.{host}:{port}");
    assert!(allows_origin(&CheckOrigin::list([format!("//*.{host}")]), &below, None, "http", None));
    let similar = format!("{scheme}://a{host}:{port}");
    assert!(!allows_origin(&CheckOrigin::list([format!("//*.{host}")]), &similar, None, "http", None));
}

/// Pages as browsers name them, and each rule.
fn pages(mut input: Input<'_>) {
    let (scheme, default) = scheme(&mut input);
    let (host, own) = (host(&mut input), host(&mut input));
    let port = (input.flag()).then(|| input.number() as u16);
    let shown = port.map(|port| format!(":{port}")).unwrap_or_default();
    let page = format!("{scheme}://{host}{shown}");
    let origin = parse_origin(&page);
    assert_eq!(
        (origin.scheme(), origin.host(), origin.port()),
        (Some(scheme), Some(&*host), port.or(Some(default))),
        "{page:?}"
    );
    let by_host = CheckOrigin::host();
    assert!(allows_origin(&by_host, &page, Some(&host), "http", None), "{page:?}");
    let by_own = allows_origin(&by_host, &page, Some(&own), "http", Some(&host));
    assert_eq!(by_own, own == host, "{page:?} of {own:?}");

    let connection = CheckOrigin::connection();
    let authority = format!("{host}{shown}");
    assert!(allows_origin(&connection, &page, None, scheme, Some(&authority)), "{page:?}");
    let elsewhere = format!("{own}{shown}");
    let by_other = allows_origin(&connection, &page, None, scheme, Some(&elsewhere));
    assert_eq!(by_other, own == host, "{page:?} on {elsewhere:?}");
}

fn scheme(input: &mut Input<'_>) -> (&'static str, u16) {
    input.choice(&[("http", 80), ("https", 443), ("ws", 80), ("wss", 443)])
}

/// A host's name.
fn host(input: &mut Input<'_>) -> String {
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789-";
    let labels = 1 + input.below(3);
    let label = |input: &mut Input<'_>| -> String {
        let length = 1 + input.below(6);
        (0..length).map(|_| char::from(input.choice(letters))).collect()
    };
    let labels: Vec<String> = (0..labels).map(|_| label(input)).collect();
    format!("{}.test", labels.join("."))
}
