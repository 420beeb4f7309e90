//! Facts about a connection besides its parameters.

use std::{fmt, net::SocketAddr};

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Request, Uri,
    header::{HOST, USER_AGENT},
    uri::{PathAndQuery, Scheme},
};

/// Facts about a connection besides its parameters.
///
/// Cookies and the `authorization` header are left out on purpose: a browser sends them with
/// requests that other sites make, too. A layer in front of the endpoint may read them, and pass
/// what it has found by an [`extension`](Self::extension). Anything else that a `connect` needs can be
/// in the [`Socket`](crate::Socket)'s own value.
///
/// This is `connect_info` of `Phoenix.Endpoint.socket/3`, with all of its keys that apply here; what
/// a plug has put into the session is an extension here.
///
/// ```
/// use pipeline_ws_sink::socket::ConnectInfo;
///
/// # fn main() -> Result<(), http::Error> {
/// let request = http::Request::get("/socket/websocket?vsn=2.0.0")
///     .header("host", "example.com:4000")
///     .header("user-agent", "curl")
///     .header("x-forwarded-for", "1.2.3.4")
///     .body(())?;
/// let info = ConnectInfo::of(&request);
/// assert_eq!(info.uri, "http://example.com:4000/socket/websocket?vsn=2.0.0");
/// assert_eq!(info.user_agent.as_deref(), Some("curl"));
/// assert_eq!(info.x_headers().next().unwrap().1, "1.2.3.4");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectInfo {
    /// The requested URI, with the host that the client named. The scheme is `http`, unless the
    /// server has put a [`Scheme`] into the request's extensions. Below a nested router, the path
    /// lacks the router's prefix; with the feature `axum`, it is whole.
    pub uri: Uri,
    /// The header `user-agent`.
    pub user_agent: Option<String>,
    /// The address that the client, or the proxy in front, connected from. `None`, unless the
    /// server provides it; see [`PeerAddr`].
    pub peer_addr: Option<SocketAddr>,
    /// The client's `authToken`. `None` without [`Mount::auth_token`](crate::Mount::auth_token).
    pub auth_token: Option<String>,
    headers: HeaderMap,
    extensions: Extensions,
}

/// The address that a client connected from. A server puts it into the extensions of each request,
/// and [`ConnectInfo::peer_addr`] holds it.
///
/// With the feature `axum`, the extension of
/// `Router::into_make_service_with_connect_info::<SocketAddr>` is used too.
///
/// ```
/// use pipeline_ws_sink::socket::{ConnectInfo, PeerAddr};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut request = http::Request::get("/socket/websocket").body(())?;
/// request.extensions_mut().insert(PeerAddr("192.0.2.1:50000".parse()?));
/// let info = ConnectInfo::of(&request);
/// assert_eq!(info.peer_addr, Some("192.0.2.1:50000".parse()?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl ConnectInfo {
    /// The facts in a request. Endpoints call this; it is public for tests of a
    /// [`Socket::connect`](crate::Socket::connect). See [`ConnectInfo`] for an example.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let user_agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
        let kept = headers
            .iter()
            .filter(|(name, _)| is_x(name) || is_trace_context(name) || is_sec_websocket(name));
        Self {
            uri: uri(request),
            user_agent: user_agent.map(str::to_owned),
            peer_addr: peer_addr(request),
            auth_token: None,
            headers: kept.map(|(name, value)| (name.clone(), value.clone())).collect(),
            extensions: request.extensions().clone(),
        }
    }

    /// What a layer in front of the endpoint has put into the request's extensions, such as the user
    /// of a session.
    ///
    /// A browser sends the cookie of a session also with a connection that a foreign page opens. So a
    /// user who was found by a cookie may be trusted only where
    /// [`check_origin`](crate::endpoint::EndpointBuilder::check_origin) refuses foreign pages, as it does by
    /// default.
    ///
    /// With long polling, the extensions are those of the request that begins the session.
    ///
    /// ```
    /// use pipeline_ws_sink::socket::{ConnectError, ConnectInfo};
    ///
    /// /// The user of a session, set by a layer.
    /// #[derive(Clone)]
    /// struct User(u64);
    ///
    /// fn user(info: &ConnectInfo) -> Result<u64, ConnectError> {
    ///     let User(id) = info.extension().ok_or("the client has no session")?;
    ///     Ok(*id)
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut request = http::Request::get("/socket/websocket").body(())?;
    /// assert!(user(&ConnectInfo::of(&request)).is_err());
    /// request.extensions_mut().insert(User(7));
    /// assert!(user(&ConnectInfo::of(&request)).is_ok_and(|id| id == 7));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// The headers whose names begin with `x-`. Any client can send them; trust only those that a
    /// proxy in front sets.
    pub fn x_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.headers.iter().filter(|(name, _)| is_x(name))
    }

    /// The headers `traceparent` and `tracestate`, if they are there.
    pub fn trace_context_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.headers.iter().filter(|(name, _)| is_trace_context(name))
    }

    /// The headers whose names begin with `sec-websocket-`, without the
    /// [`auth_token`](Self::auth_token).
    pub fn sec_websocket_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.headers.iter().filter(|(name, _)| is_sec_websocket(name))
    }
}

impl fmt::Debug for ConnectInfo {
    /// Without the values of headers, the token and the query, because any of them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectInfo")
            .field("path", &self.uri.path())
            .field("user_agent", &self.user_agent)
            .field("peer_addr", &self.peer_addr)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

fn is_x(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-")
}

fn is_trace_context(name: &HeaderName) -> bool {
    matches!(name.as_str(), "traceparent" | "tracestate")
}

fn is_sec_websocket(name: &HeaderName) -> bool {
    name.as_str().starts_with("sec-websocket-")
}

/// The whole URI of a request: a client sends its path, and the host in a header or not at all.
pub(crate) fn uri<B>(request: &Request<B>) -> Uri {
    let mut parts = original_uri(request).clone().into_parts();
    let host = request.headers().get(HOST);
    parts.authority =
        parts.authority.or_else(|| host.and_then(|host| host.as_bytes().try_into().ok()));
    let scheme = request.extensions().get::<Scheme>().cloned();
    parts.scheme = scheme.or(parts.scheme).or(Some(Scheme::HTTP));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Without a host, there is no whole URI.
    Uri::from_parts(parts).unwrap_or_else(|_| original_uri(request).clone())
}

#[cfg(feature = "axum")]
fn original_uri<B>(request: &Request<B>) -> &Uri {
    let original = request.extensions().get::<axum::extract::OriginalUri>();
    original.map_or(request.uri(), |original| &original.0)
}

#[cfg(not(feature = "axum"))]
fn original_uri<B>(request: &Request<B>) -> &Uri {
    request.uri()
}

fn peer_addr<B>(request: &Request<B>) -> Option<SocketAddr> {
    let address = request.extensions().get::<PeerAddr>().map(|PeerAddr(address)| *address);
    #[cfg(feature = "axum")]
    let address = address.or_else(|| {
        let info = request.extensions().get::<axum::extract::ConnectInfo<SocketAddr>>();
        info.map(|info| info.0)
    });
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::get(uri);
        let with = |request: http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, with).body(()).unwrap()
    }

    #[test]
    fn the_uri_is_whole_if_the_request_has_a_host() {
        let cases = [
            ("/a?b", Some("h.test:1"), "http://h.test:1/a?b"),
            ("/a", None, "/a"),
            ("/a", Some("no host"), "/a"),
            ("https://h.test/a", Some("other.test"), "https://h.test/a"),
        ];
        for (asked, host, whole) in cases {
            let headers: Vec<_> = host.iter().map(|host| ("host", *host)).collect();
            assert_eq!(uri(&request(asked, &headers)), whole);
        }
        let mut request = request("/a", &[("host", "h.test")]);
        request.extensions_mut().insert(Scheme::HTTPS);
        assert_eq!(uri(&request), "https://h.test/a");
    }

    #[test]
    fn no_secret_is_shown() {
        let headers = [("x-key", "s3cret"), ("sec-websocket-protocol", "s3cret")];
        let mut info = ConnectInfo::of(&request("/a?token=s3cret", &headers));
        info.auth_token = Some("s3cret".into());
        let shown = format!("{info:?}");
        assert!(shown.contains("x-key") && !shown.contains("s3cret"), "{shown}");
    }
}
