//! Under which names an inspector may be asked for. Pure.

use std::net::IpAddr;

/// The hosts that requests may name.
///
/// A page from anywhere can have its own name lead to an address inside of a network, and then read what is
/// served there. The request still names the host of that page, so it is refused. Addresses and
/// `localhost` cannot be made to lead elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) known: Vec<String>,
    pub(crate) any: bool,
}

impl Hosts {
    /// Whether a request for this authority, host and perhaps port, is answered.
    pub(crate) fn allow(&self, authority: &str) -> bool {
        let host = host(authority).to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_local = host == "localhost" || host.ends_with(".localhost");
        self.any || is_address || is_local || self.known.iter().any(|known| known == host)
    }
}

/// The host of an authority, IPv6 in its brackets.
fn host(authority: &str) -> &str {
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    &authority[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_what_is_known_are_allowed_and_other_names_are_not() {
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
            "",
            ":80",
        ] {
            assert!(!hosts.allow(bad), "{bad:?}");
        }
        assert!(Hosts { any: true, ..hosts }.allow("evil.example"));
    }
}
