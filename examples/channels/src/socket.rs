//! The socket: authenticates a connection.

use axum::http::{HeaderName, HeaderValue, StatusCode};
use pipeline::ws::{
    Socket,
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Map, Value, json};

/// A user or a guest. Each mount has its own socket.
pub struct UserSocket {
    /// The connection info that is kept for `info`.
    pub info: &'static [Info],
}

/// One piece of connection info.
#[derive(Clone, Copy)]
pub enum Info {
    PeerData,
    XHeaders,
    Uri,
    UserAgent,
    TraceContext,
    SecWebSocket,
    AuthToken,
    Custom,
}

/// The socket's assigns, which channels read.
pub struct User {
    pub user_id: Option<String>,
    pub params: Map<String, Value>,
    pub info: Map<String, Value>,
}

impl Socket for UserSocket {
    type Assigns = User;

    async fn connect(&self, params: &Params, info: &ConnectInfo) -> Result<User, ConnectError> {
        match params.get("reject") {
            None => {}
            Some("limit") => {
                let refused = ConnectError::because("too many requests");
                return Err(refused.respond(StatusCode::TOO_MANY_REQUESTS, "Too many requests"));
            }
            Some("crash") => panic!("crash requested"),
            Some(other) => {
                return Err(ConnectError::because(format!("refusal requested: {other}")));
            }
        }
        Ok(User {
            user_id: params.get("user_id").map(str::to_owned),
            params: params.as_map().clone(),
            info: self.info.iter().filter_map(|kept| kept.of(info)).collect(),
        })
    }

    fn id(&self, user: &User) -> Result<Option<String>, ConnectError> {
        if user.params.get("id").is_some_and(|id| id == "bad") {
            return Err(ConnectError::because("invalid id requested"));
        }
        Ok(user.user_id.as_ref().map(|id| format!("users_socket:{id}")))
    }
}

impl Info {
    /// The name and the value. A polling client has no WebSocket headers.
    fn of(self, info: &ConnectInfo) -> Option<(String, Value)> {
        let (name, value) = match self {
            Self::SecWebSocket if info.sec_websocket_headers().next().is_none() => return None,
            Self::PeerData => (
                "peer_data",
                match info.peer_addr {
                    Some(peer) => json!({ "address": peer.ip(), "port": peer.port() > 0 }),
                    None => Value::Null,
                },
            ),
            Self::XHeaders => ("x_headers", pairs(info.x_headers())),
            Self::Uri => (
                "uri",
                json!({
                    "scheme": info.uri.scheme_str(),
                    "path": info.uri.path(),
                    "query": info.uri.query(),
                }),
            ),
            Self::UserAgent => ("user_agent", json!(info.user_agent)),
            Self::TraceContext => ("trace_context_headers", pairs(info.trace_context_headers())),
            Self::SecWebSocket => (
                "sec_websocket_headers",
                pairs(info.sec_websocket_headers().filter(|(name, _)| {
                    ["sec-websocket-protocol", "sec-websocket-version"].contains(&name.as_str())
                })),
            ),
            Self::AuthToken => ("auth_token", json!(info.auth_token)),
            Self::Custom => ("custom", json!("tag")),
        };
        Some((name.into(), value))
    }
}

fn pairs<'a>(headers: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Value {
    headers.map(|(name, value)| json!([name.as_str(), value.to_str().ok()])).collect()
}
