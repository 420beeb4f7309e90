//! The host names that an inspector answers for. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The hosts that requests may name.
///
/// Any page on the web can make its own host name resolve to an address inside of a network (DNS
/// rebinding), and then read the pages served there. The request still names that page's host, so it is
/// refused. Addresses and `localhost` cannot be rebound.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) known: Vec<String>,
    pub(crate) any: bool,
}

impl Hosts {
    /// Whether a request for this authority, a host with or without a port, is answered.
    pub(crate) fn allow(&self, authority: &str) -> bool {
        let is_named = |host: String| {
            let is_local = host == "localhost" || host.ends_with(".localhost");
            is_local || is_address(&host) || self.known.contains(&host)
        };
        self.any || host(authority).is_some_and(is_named)
    }

    /// Whether an origin is that of a page of a known host.
    pub(crate) fn have_page(&self, origin: &str) -> bool {
        self.known.iter().any(|known| is_of_host(origin, known))
    }
}

/// Whether an origin, as sent by a browser, has the host of this authority. Scheme and port are ignored:
/// a proxy in front may change them.
pub(crate) fn is_of_host(origin: &str, authority: &str) -> bool {
    let page = origin.split_once("://").and_then(|(_, page)| host(page));
    page.is_some() && page == host(authority)
}

/// Whether a host is an address, IPv6 in brackets.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The host of an authority in lower case, IPv6 in brackets. `None` if something other than a port is
/// behind it: another reader might find another host there.
fn host(authority: &str) -> Option<String> {
    let end = match authority.strip_prefix('[') {
        Some(inner) => inner.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    let digits = if port.is_empty() { "" } else { port.strip_prefix(':')? };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let host = host.to_ascii_lowercase();
    Some(host.strip_suffix('.').map(str::to_owned).unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_known_hosts_are_allowed_and_others_are_not() {
        let hosts = Hosts { known: vec!["ops.example.com".into()], any: false };
        for good in [
            "localhost",
            "LOCALHOST:4001",
            "app.localhost:80",
            "127.0.0.1:4001",
            "10.1.2.3",
            "[::1]:4001",
            "[::1]",
            "ops.example.com",
            "Ops.Example.com.:8443",
        ] {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:4001",
            "localhost.evil.example",
            "1.2.3.4.evil",
            "127.0.0.1]evil.example",
            "127.0.0.1:80@evil.example",
            "[::1].evil.example",
            "[127.0.0.1]",
            "::1",
            "localhost:http",
            "",
            ":80",
        ] {
            assert!(!hosts.allow(bad), "{bad:?}");
        }
        assert!(Hosts { any: true, ..hosts }.allow("evil.example"));
    }

    #[test]
    fn an_origin_matches_its_host_with_any_scheme_and_port() {
        for (origin, authority) in [
            ("https://ops.example.com", "ops.example.com"),
            ("https://ops.example.com:8443", "Ops.example.com.:4001"),
            ("http://[::1]:4001", "[::1]"),
        ] {
            assert!(is_of_host(origin, authority), "{origin} {authority}");
        }
        for (origin, authority) in [
            ("https://evil.example", "ops.example.com"),
            ("https://ops.example.com.evil.example", "ops.example.com"),
            ("null", "null"),
            ("ops.example.com", "ops.example.com"),
            ("https://ops.example.com:80@evil.example", "ops.example.com"),
            ("https://ops.example.com:x", "ops.example.com:x"),
        ] {
            assert!(!is_of_host(origin, authority), "{origin} {authority}");
        }
    }
}
