//! Which pages may open sockets. Pure.

use std::{fmt, net::IpAddr, sync::Arc};

use thiserror::Error;

/// Which pages may open sockets, by the `origin` header that browsers send.
///
/// A browser lets any page open a socket to any server, and sends the server's cookies along. So a
/// server that trusts anything that the browser adds by itself has to check the page's origin. A
/// request without the header is always allowed: it is not from a browser's page.
///
/// Refused clients receive status 403, and an ERROR log line says what was expected.
///
/// The semantics are those of `check_origin` in `Phoenix.Endpoint`, with one difference in
/// [`host`](Self::host).
///
/// ```
/// # use pipeline_ws_sink::{
/// #     Endpoint, Mount, Socket,
/// #     endpoint::BuildError,
/// #     mount::CheckOrigin,
/// #     socket::{ConnectError, ConnectInfo, Params},
/// # };
/// # struct UserSocket;
/// # impl Socket for UserSocket {
/// #     type Assigns = ();
/// #     async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> { Ok(()) }
/// # }
/// let pages = CheckOrigin::list(["https://example.com", "//*.example.org"]);
/// let endpoint = Endpoint::builder()
///     .host("example.com")
///     .mount("/socket", Mount::new(UserSocket).check_origin(pages))
///     .mount("/bots", Mount::new(UserSocket).check_origin(CheckOrigin::off()))
///     .build()?;
/// # Ok::<(), BuildError>(())
/// ```
#[derive(Clone)]
pub struct CheckOrigin(Rule);

#[derive(Clone)]
enum Rule {
    Host,
    List(Result<Arc<[Entry]>, OriginError>),
    Connection,
    Function(Arc<dyn Fn(&Origin) -> bool + Send + Sync>),
    Off,
}

/// An entry of a list. Parts that it does not name are not compared.
#[derive(Clone, Debug)]
struct Entry {
    scheme: Option<String>,
    host: HostPattern,
    port: Option<u16>,
    text: String,
}

#[derive(Clone, Debug)]
enum HostPattern {
    Exactly(String),
    /// `*.example.com`, without the `*.`.
    AtOrBelow(String),
}

impl CheckOrigin {
    /// Allows pages from the endpoint's own host, with any scheme and port. This is the default.
    ///
    /// The host is the one given to
    /// [`EndpointBuilder::host`](crate::endpoint::EndpointBuilder::host). If none was given, it is
    /// the host in the request's own `host` header, provided that this is `localhost` or an IP
    /// address. A name would prove nothing: the owner of `evil.com` can point it at any server, one
    /// behind a firewall too, and a page from there then sends `host: evil.com` itself (DNS
    /// rebinding). So a server that is reached by a name has to be configured with that name.
    /// Phoenix allows all pages if no host is configured, but configures `localhost` by default.
    #[must_use]
    pub fn host() -> Self {
        Self(Rule::Host)
    }

    /// Allows pages from any of these origins.
    ///
    /// - `https://example.com` is this scheme, this host, and the scheme's own port.
    /// - `//example.com:8080` is this host and port, with any scheme.
    /// - `//example.com` is this host, with any scheme and port.
    /// - `//*.example.com` is this host and every host below it.
    ///
    /// An entry without a host is an error of
    /// [`EndpointBuilder::build`](crate::endpoint::EndpointBuilder::build).
    #[must_use]
    pub fn list<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Self {
        Self(Rule::List(entries.into_iter().map(|entry| Entry::parse(entry.as_ref())).collect()))
    }

    /// Allows pages whose scheme, host and port are those of the request itself.
    ///
    /// Host and port are read from the `host` header. The scheme is `http`, unless the server sets
    /// another: a server that speaks TLS itself puts [`http::uri::Scheme::HTTPS`] into the
    /// request's extensions. Behind a proxy that terminates TLS, use [`list`](Self::list) instead.
    #[must_use]
    pub fn connection() -> Self {
        Self(Rule::Connection)
    }

    /// Allows pages for which this function returns true.
    ///
    /// It runs for every client that connects, so it should be quick. A panic refuses the client.
    ///
    /// ```
    /// # use pipeline_ws_sink::mount::CheckOrigin;
    /// let tenants = CheckOrigin::function(|origin| {
    ///     origin.host().is_some_and(|host| host.ends_with(".example.com"))
    /// });
    /// ```
    #[must_use]
    pub fn function(allows: impl Fn(&Origin) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::Function(Arc::new(allows)))
    }

    /// Allows all pages. For sockets that require a token which other pages cannot have.
    #[must_use]
    pub fn off() -> Self {
        Self(Rule::Off)
    }

    /// The error in a list, if there is one.
    pub(crate) fn checked(&self) -> Result<(), OriginError> {
        match &self.0 {
            Rule::List(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Whether a page may open a socket. The error says what was expected.
    pub(crate) fn check(&self, origin: &Origin, own: &OwnHost<'_>) -> Result<(), String> {
        let allowed = match &self.0 {
            Rule::Host => own.public_host().is_some() && own.public_host() == origin.host(),
            Rule::List(Ok(entries)) => entries.iter().any(|entry| entry.matches(origin)),
            Rule::List(Err(_)) => false,
            Rule::Connection => {
                origin.host.is_some()
                    && origin.host() == own.host.as_deref()
                    && origin.scheme() == Some(own.scheme)
                    && origin.port == own.port.or(default_port(own.scheme))
            }
            Rule::Function(allows) => allows(origin),
            Rule::Off => true,
        };
        if allowed { Ok(()) } else { Err(self.expected(own)) }
    }

    fn expected(&self, own: &OwnHost<'_>) -> String {
        match &self.0 {
            Rule::Host => match own.public_host() {
                Some(host) if own.configured.is_some() => {
                    format!("the host {host}, set by EndpointBuilder::host")
                }
                Some(host) => format!("the host {host}; set another with EndpointBuilder::host"),
                None => {
                    "the host that EndpointBuilder::host sets: none is set, and then only pages \
                         of localhost and of IP addresses connect"
                        .to_owned()
                }
            },
            Rule::List(Ok(entries)) => {
                let entries: Vec<_> = entries.iter().map(|entry| &*entry.text).collect();
                format!("one of {}", entries.join(", "))
            }
            Rule::List(Err(error)) => error.to_string(),
            Rule::Connection => {
                let port = own.port.map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}://{}{port}", own.scheme, own.host.as_deref().unwrap_or_default())
            }
            Rule::Function(_) => "an origin that the function allows".to_owned(),
            Rule::Off => "anything".to_owned(),
        }
    }
}

impl Default for CheckOrigin {
    /// [`CheckOrigin::host`].
    fn default() -> Self {
        Self::host()
    }
}

impl fmt::Debug for CheckOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Host => f.write_str("Host"),
            Rule::List(entries) => f.debug_tuple("List").field(entries).finish(),
            Rule::Connection => f.write_str("Connection"),
            Rule::Function(_) => f.write_str("Function(..)"),
            Rule::Off => f.write_str("Off"),
        }
    }
}

/// An entry of a list of origins has no host.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the origin {entry:?} has no host: expected \"//example.com\" or \"https://example.com\"")]
pub struct OriginError {
    entry: String,
}

impl Entry {
    fn parse(text: &str) -> Result<Self, OriginError> {
        let Origin { scheme, host, port, text } = Origin::parse(text);
        // Configuration may use any case; browsers send hosts in lower case.
        let host = host.map(|host| host.to_ascii_lowercase());
        let host = match host {
            Some(host) => match host.strip_prefix("*.") {
                Some("") => None,
                Some(above) => Some(HostPattern::AtOrBelow(above.to_owned())),
                None => Some(HostPattern::Exactly(host)),
            },
            None => None,
        };
        match host {
            Some(host) => Ok(Self { scheme, host, port, text }),
            None => Err(OriginError { entry: text }),
        }
    }

    fn matches(&self, origin: &Origin) -> bool {
        let host = origin.host().is_some_and(|host| match &self.host {
            HostPattern::Exactly(expected) => host == expected,
            HostPattern::AtOrBelow(above) => host
                .strip_suffix(&**above)
                .is_some_and(|below| below.is_empty() || below.ends_with('.')),
        });
        host && (self.scheme.is_none() || self.scheme == origin.scheme)
            && (self.port.is_none() || self.port == origin.port)
    }
}

/// The origin of a page: a parsed `origin` header.
///
/// ```
/// # use pipeline_ws_sink::mount::CheckOrigin;
/// let secure = CheckOrigin::function(|origin| {
///     origin.scheme() == Some("https") && origin.port() == Some(443)
/// });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    text: String,
}

impl Origin {
    pub(crate) fn parse(text: &str) -> Self {
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme.to_ascii_lowercase()), rest),
            _ => (None, text),
        };
        let authority = rest.strip_prefix("//").and_then(|rest| rest.split(['/', '?', '#']).next());
        let (host, port) = match authority.and_then(split_authority) {
            Some((host, port)) => (Some(host.to_owned()), port),
            None => (None, None),
        };
        let port = port.or_else(|| default_port(scheme.as_deref()?));
        Self { scheme, host, port, text: text.to_owned() }
    }

    /// The scheme, in lower case.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        self.scheme.as_deref()
    }

    /// The host as it was sent: browsers send it in lower case. An IPv6 address has no brackets. A
    /// page without an origin, such as a file, has none.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The port; the scheme's default port if none was sent.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for Origin {
    /// Writes the header as it was sent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The server's own host and scheme, by configuration and by the request.
#[derive(Clone, Debug)]
pub(crate) struct OwnHost<'a> {
    /// The host that the endpoint is configured with.
    configured: Option<&'a str>,
    scheme: &'a str,
    host: Option<String>,
    port: Option<u16>,
}

impl<'a> OwnHost<'a> {
    /// `authority` is the value of the `host` header.
    pub(crate) fn new(
        configured: Option<&'a str>,
        scheme: &'a str,
        authority: Option<&str>,
    ) -> Self {
        let (host, port) = match authority.and_then(split_authority) {
            Some((host, port)) => (Some(host.to_ascii_lowercase()), port),
            None => (None, None),
        };
        Self { configured, scheme, host, port }
    }

    /// The host that pages have to be from. A host that only the request names has to be one where
    /// an attacker cannot have a page.
    fn public_host(&self) -> Option<&str> {
        self.configured
            .or_else(|| self.host.as_deref().filter(|host| is_localhost_or_address(host)))
    }
}

/// Parses a host for the builder: a name or an address, and nothing else. IPv6 without its
/// brackets.
pub(crate) fn parse_host(host: &str) -> Option<String> {
    let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    let host = if is_v6 { format!("[{host}]") } else { host.to_ascii_lowercase() };
    match split_authority(&host) {
        Some((parsed, None)) if host.trim_matches(['[', ']']) == parsed => Some(parsed.to_owned()),
        _ => None,
    }
}

/// Splits `user@host:port` into host and port. `None` without a host, or if the port is not a
/// number.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']')?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', ' ', '[', ']', ',']);
    let port = match port {
        "" => None,
        port => Some(port.parse().ok()?),
    };
    is_host.then_some((host, port))
}

fn is_localhost_or_address(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        "ftp" => Some(21),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asserts the rule's answer for each origin, at an endpoint whose host is `localhost`.
    fn all(rule: &CheckOrigin, allowed: bool, origins: &[&str]) {
        let own = OwnHost::new(Some("localhost"), "http", Some("127.0.0.1:4010"));
        for origin in origins {
            let checked = rule.check(&Origin::parse(origin), &own);
            assert_eq!(checked.is_ok(), allowed, "{origin}: {checked:?}");
        }
    }

    fn list() -> CheckOrigin {
        CheckOrigin::list([
            "//localhost",
            "https://secure.test",
            "//ported.test:8443",
            "//*.wild.test",
        ])
    }

    #[test]
    fn c_022_scheme_and_port_of_the_own_host_do_not_matter() {
        all(&CheckOrigin::host(), true, &["http://localhost", "https://localhost:9999"]);
    }

    #[test]
    fn without_a_configured_host_a_host_name_is_not_trusted() {
        let check = |host: &str| {
            let own = OwnHost::new(None, "http", Some(host));
            CheckOrigin::host().check(&Origin::parse(&format!("http://{host}")), &own)
        };
        for host in ["localhost", "localhost:4000", "app.localhost", "192.0.2.7:80", "[::1]:4000"] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for host in ["evil.com", "evil.com:4000", "127.0.0.1.evil.com", "notlocalhost", "1.2.3"] {
            let expected = check(host).unwrap_err();
            assert!(expected.contains("EndpointBuilder::host"), "{host}: {expected}");
        }
    }

    #[test]
    fn c_023_other_hosts_are_refused() {
        let others = ["http://evil.test", "http://127.0.0.1:4010", "http://sub.localhost"];
        all(&CheckOrigin::host(), false, &others);
        let near = ["http://localhost.evil.test", "http://evil.test?localhost", "http://LOCALHOST"];
        all(&CheckOrigin::host(), false, &near);
    }

    #[test]
    fn c_024_a_page_without_an_origin_is_refused() {
        let nowhere = ["null", "", "localhost", "localhost:4010", "file://", "http:localhost"];
        all(&CheckOrigin::host(), false, &nowhere);
        all(&list(), false, &nowhere);
    }

    #[test]
    fn c_025_origins_in_the_list_are_allowed() {
        all(
            &list(),
            true,
            &["http://localhost:3000", "https://secure.test", "http://ported.test:8443"],
        );
    }

    #[test]
    fn c_026_all_parts_that_an_entry_names_have_to_match() {
        all(
            &list(),
            false,
            &["http://secure.test", "https://secure.test:444", "https://ported.test"],
        );
    }

    #[test]
    fn c_027_a_wildcard_matches_a_host_and_everything_below_it() {
        all(&list(), true, &["http://a.wild.test", "http://a.b.wild.test:81", "http://wild.test"]);
    }

    #[test]
    fn c_028_a_wildcard_does_not_match_a_mere_suffix() {
        all(&list(), false, &["http://badwild.test", "http://evil.test", "HTTPS://SECURE.TEST"]);
    }

    #[test]
    fn c_029_scheme_host_and_port_of_the_connection_have_to_match() {
        let rule = CheckOrigin::connection();
        all(&rule, true, &["http://127.0.0.1:4010"]);
        let others =
            ["http://127.0.0.1", "http://localhost:4010", "https://127.0.0.1:4010", "null"];
        all(&rule, false, &others);
        let own = OwnHost::new(None, "https", Some("example.com"));
        assert!(rule.check(&Origin::parse("https://example.com"), &own).is_ok());
        assert!(rule.check(&Origin::parse("http://example.com"), &own).is_err());
        assert!(rule.check(&Origin::parse("//"), &OwnHost::new(None, "http", None)).is_err());
    }

    #[test]
    fn c_030_a_function_decides_by_the_parts_of_an_origin() {
        let rule = CheckOrigin::function(|origin| origin.host() == Some("allowed.test"));
        all(&rule, true, &["http://allowed.test:77", "https://allowed.test"]);
        all(&rule, false, &["http://other.test", "null"]);
    }

    #[test]
    fn c_031_all_origins_are_allowed_when_the_check_is_off() {
        all(&CheckOrigin::off(), true, &["http://evil.test", "null", ""]);
    }

    #[test]
    fn without_a_configured_host_the_host_of_the_request_counts() {
        let rule = CheckOrigin::host();
        let own = OwnHost::new(None, "http", Some("LocalHost:4000"));
        assert!(rule.check(&Origin::parse("https://localhost"), &own).is_ok());
        let refused = rule.check(&Origin::parse("https://evil.test"), &own);
        let expected = "the host localhost; set another with EndpointBuilder::host";
        assert_eq!(refused, Err(expected.to_owned()));
        let nameless = OwnHost::new(None, "http", None);
        assert!(rule.check(&Origin::parse("null"), &nameless).is_err());
        assert!(rule.check(&Origin::parse("https://evil.test"), &nameless).is_err());
    }

    #[test]
    fn a_refusal_says_what_was_expected() {
        let evil = Origin::parse("http://evil.test");
        let own = OwnHost::new(Some("localhost"), "http", Some("127.0.0.1:4010"));
        let cases = [
            (CheckOrigin::host(), "the host localhost, set by EndpointBuilder::host"),
            (CheckOrigin::list(["//a.test", "//*.b.test"]), "one of //a.test, //*.b.test"),
            (CheckOrigin::connection(), "http://127.0.0.1:4010"),
            (CheckOrigin::function(|_| false), "an origin that the function allows"),
        ];
        for (rule, expected) in cases {
            assert_eq!(rule.check(&evil, &own), Err(expected.to_owned()));
        }
    }

    #[test]
    fn an_entry_has_a_host() {
        for entry in ["example.com", "https://", "", "*.example.com", "//*.", "https:example.com"] {
            let error = CheckOrigin::list(["//ok.test", entry]).checked().unwrap_err();
            let expected = format!(
                "the origin {entry:?} has no host: expected \"//example.com\" or \
                 \"https://example.com\""
            );
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(list().checked(), Ok(()));
        all(&CheckOrigin::list(["//LocalHost"]), true, &["http://localhost"]);
    }

    #[test]
    fn origins_are_parsed_into_parts() {
        let parts = |text: &str| {
            let Origin { scheme, host, port, .. } = Origin::parse(text);
            (scheme.unwrap_or_default(), host.unwrap_or_default(), port.unwrap_or_default())
        };
        let cases = [
            ("HTTP://a.test", ("http", "a.test", 80)),
            ("wss://A.test:1/x?y#z", ("wss", "A.test", 1)),
            ("https://me:secret@a.test:8443", ("https", "a.test", 8443)),
            ("http://[::1]:4000", ("http", "::1", 4000)),
            ("http://[::1]", ("http", "::1", 80)),
            ("http://[::1", ("http", "", 80)),
            ("http://[::1]x", ("http", "", 80)),
            ("//a.test", ("", "a.test", 0)),
            ("app://a.test", ("app", "a.test", 0)),
            ("http://a.test:99999", ("http", "", 80)),
            ("http://a.test:", ("http", "a.test", 80)),
            ("http://a.test\\@b.test", ("http", "b.test", 80)),
            ("null", ("", "", 0)),
        ];
        for (text, (scheme, host, port)) in cases {
            assert_eq!(parts(text), (scheme.to_owned(), host.to_owned(), port), "{text}");
        }
    }

    #[test]
    fn a_public_host_has_no_scheme_port_or_path() {
        for (host, parsed) in [
            ("example.com", "example.com"),
            ("Example.COM", "example.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(parse_host(host).as_deref(), Some(parsed), "{host}");
        }
        for other in ["", "https://example.com", "example.com:4000", "me@example.com", "a/b", "a b"]
        {
            assert_eq!(parse_host(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_it_is_taken_apart(text in "([a-z:/@\\[\\]*.0-9]|.){0,40}") {
            let origin = Origin::parse(&text);
            let own = OwnHost::new(None, "http", Some(&text));
            for rule in [CheckOrigin::host(), list(), CheckOrigin::connection()] {
                let _ = rule.check(&origin, &own);
            }
            let _ = (CheckOrigin::list([&text]), parse_host(&text));
        }
    }
}
