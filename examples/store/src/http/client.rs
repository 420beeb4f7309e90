//! Where a request comes from. Pure.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::HeaderMap;

/// The header in which a proxy notes the address that it was connected from, after those that it was sent.
const FORWARDED: &str = "x-forwarded-for";

/// The address of a client: that of its connection. If this is a trusted proxy's, it is the last one that the proxies have
/// noted and that is none of their own. Of an address of IPv6 it is the network, which one client has as a whole.
pub(super) fn address(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    trusted: &[IpAddr],
) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|it| it.to_canonical() == *address);
    let mut client = peer?.to_canonical();
    // A client may send any bytes, and a proxy adds to them. So each address is read by itself.
    let lists = headers.get_all(FORWARDED).iter();
    let noted: Vec<&[u8]> =
        lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b',')).collect();
    for noted in noted.into_iter().rev() {
        if !is_trusted(&client) {
            break;
        }
        // What a trusted proxy has not written so is not looked at.
        let Some(address) = parse(noted) else { break };
        client = address;
    }
    Some(match client {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    })
}

/// An address, with a port or without.
fn parse(noted: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(noted.trim_ascii()).ok()?;
    let with_port = || text.parse().map(|address: std::net::SocketAddr| address.ip()).ok();
    Some(text.parse::<IpAddr>().ok().or_else(with_port)?.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_address_is_what_a_trusted_proxy_says_or_that_of_the_connection() {
        let of = |peer: &str, forwarded: &[&str]| {
            let mut headers = HeaderMap::new();
            for list in forwarded {
                headers.append(FORWARDED, HeaderValue::from_bytes(list.as_bytes()).unwrap());
            }
            let trusted = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse().unwrap());
            address(peer.parse().ok(), &headers, &trusted).map(|address| address.to_string())
        };
        let cases: [(&str, &[&str], &str); 12] = [
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["203.0.113.5"], "192.0.2.1"),
            ("10.0.0.1", &["203.0.113.5"], "203.0.113.5"),
            ("::ffff:10.0.0.1", &["203.0.113.5:4711"], "203.0.113.5"),
            ("10.0.0.1", &["198.51.100.9, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &["198.51.100.9", "203.0.113.5, 10.0.0.2"], "203.0.113.5"),
            ("10.0.0.1", &["203.0.113.5, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["é, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &["198.51.100.9", "é, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &["198.51.100.9, é"], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
        ];
        for (peer, forwarded, expected) in cases {
            assert_eq!(of(peer, forwarded).as_deref(), Some(expected), "{peer} {forwarded:?}");
        }
        assert_eq!(of("", &["203.0.113.5"]), None);
    }
}
