//! The hosts of an inspector: exactly the requests are answered whose authority is a known host, an address or
//! `localhost`, and a port or none. A page is of a host exactly if both are the same host.

use std::net::{Ipv4Addr, Ipv6Addr};

use pipeline_inspect::fuzzing::{allows_host, is_of_host};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"localhost",
    b".localhost",
    b"ops.example.com",
    b"127.0.0.1",
    b"[::1]",
    b"[::ffff:127.0.0.1]",
    b"evil.example",
    b"://",
    b"https://",
    b":80",
    b":",
    b"@",
    b"[",
    b"]",
    b".",
    b"/",
    b"#",
];

const KNOWN: &[&str] = &["ops.example.com", "other"];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() { named(input) } else { raw(input) }
}

/// Any texts.
fn raw(mut input: Input<'_>) {
    let authority = input.text(60);
    let page = String::from_utf8_lossy(input.rest()).into_owned();
    let is_allowed = hosts(&authority).iter().any(|host| is_known(host));
    assert_eq!(allows_host(KNOWN, &authority), is_allowed, "{authority:?}");
    let own = hosts(&authority);
    let is_own = page
        .split_once("://")
        .is_some_and(|(_, of)| hosts(of).iter().any(|host| own.contains(host)));
    assert_eq!(is_of_host(&page, &authority), is_own, "{page:?} of {authority:?}");
}

/// Authorities as clients name them, and the same with something behind them.
fn named(mut input: Input<'_>) {
    let known = ["ops.example.com", "OTHER.", "localhost", "a.localhost", "10.1.2.3", "[fe80::1]"];
    let unknown = ["evil.example", "xops.example.com", "ops.example.com.evil.example", "10.1.2", "::1"];
    let is_known = input.flag();
    let host = if is_known { input.choice(&known) } else { input.choice(&unknown) };
    let port = if input.flag() { format!(":{}", input.number() as u16) } else { String::new() };
    let authority = format!("{host}{port}");
    assert_eq!(allows_host(KNOWN, &authority), is_known, "{authority:?}");
    assert_eq!(is_of_host(&format!("https://{host}"), &authority), host != "::1", "{authority:?}");
    let behind = input.choice(&["@evil.example", "]", "x", "/", "#", "?", "\\", " ", "\0"]);
    let longer = format!("{host}:80{behind}");
    assert!(!allows_host(KNOWN, &longer), "{longer:?}");
    assert!(!is_of_host(&format!("https://{longer}"), host), "{longer:?} of {host:?}");
}

/// The hosts that an authority may name: what is before a port, or all of it.
fn hosts(authority: &str) -> Vec<String> {
    let is_port = |text: &str| {
        text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let cuts = authority.char_indices().map(|(at, _)| authority.split_at(at));
    let mut hosts: Vec<_> = cuts.filter(|(_, port)| is_port(port)).map(|(host, _)| host).collect();
    hosts.push(authority);
    // A name may end with a dot.
    let name = |host: &str| match host.strip_suffix('.') {
        Some(name) if !host.starts_with('[') => name.to_ascii_lowercase(),
        _ => host.to_ascii_lowercase(),
    };
    let lower = hosts.into_iter().map(name);
    lower.filter(|host| is_host(host)).collect()
}

/// Whether a text can be a host: brackets are only around all of it, and colons only between them.
fn is_host(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(inner) => !inner.contains(']'),
        None => !host.starts_with('[') && !host.contains(':'),
    }
}

fn is_known(host: &str) -> bool {
    KNOWN.contains(&host)
        || host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<Ipv4Addr>().is_ok()
        || host.strip_prefix('[').is_some_and(|host| {
            host.strip_suffix(']').is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
        })
}
