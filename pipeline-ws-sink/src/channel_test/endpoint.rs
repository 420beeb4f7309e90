//! An endpoint without a network.

use std::sync::Arc;

use http::Request;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{connection::TestConnection, inbox::TestInbox, socket::TestSocket, topic::TestTopic};
use crate::{
    endpoint::{Endpoint, mount::Mount},
    handshake::{Connected, Mounted, connect_info::ConnectInfo, params::Params},
    session::expiry::Expiry,
    socket::{ConnectError, Socket},
};

/// An endpoint to which a test connects without a network.
///
/// The tested code is the real one: its sockets have the sessions and queues of WebSocket clients,
/// speak version 2 of the protocol, and are registered at the endpoint, for
/// [`disconnect`](Endpoint::disconnect) for instance. There are these differences: there is no
/// request, so neither origin nor subprotocols are checked; a client takes its frames at once; and
/// it may be silent without limit.
///
/// ```
#[doc = include_str!("../../tests/channel_test.rs")]
/// ```
#[derive(Debug)]
pub struct TestEndpoint {
    endpoint: Endpoint,
    inbox: Arc<TestInbox>,
}

impl TestEndpoint {
    /// An endpoint with one kind of socket.
    ///
    /// # Panics
    ///
    /// If the endpoint cannot be built.
    #[track_caller]
    pub fn new<S: Socket>(mount: Mount<S>) -> Self {
        let endpoint = Endpoint::builder().mount("/socket", mount).build();
        Self::of(endpoint.expect("the endpoint can be built"))
    }

    /// Wraps an endpoint that was built elsewhere: with several kinds of socket, or with all that
    /// an application has.
    #[must_use]
    pub fn of(endpoint: Endpoint) -> Self {
        Self { endpoint, inbox: TestInbox::new() }
    }

    /// The endpoint itself.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Connects to the first kind of socket, calling its `connect` and `id`.
    ///
    /// The params are an object. Its leaves become strings, as they do in the query of a request.
    ///
    /// # Errors
    ///
    /// The error of `connect` or `id`.
    ///
    /// # Panics
    ///
    /// If the params are not an object, or if nothing is mounted.
    ///
    /// ```
    /// # use pipeline_ws_sink::{socket::ConnectError, channel_test::TestEndpoint};
    /// # use serde_json::json;
    /// # async fn test(kit: TestEndpoint) -> Result<(), ConnectError> {
    /// let socket = kit.connect(json!({ "user": 42 })).await?;
    /// assert_eq!(socket.id(), Some("users_socket:42"));
    /// assert!(kit.connect(json!({})).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(&self, params: impl Serialize) -> Result<TestSocket, ConnectError> {
        let mount_point = self.endpoint.inner.mount_points.first().expect("a socket is mounted");
        let request = Request::get(mount_point.path.to_string()).body(());
        let info = ConnectInfo::of(&request.expect("the path of a mount is a path"));
        self.connect_with(params, &info).await
    }

    /// Connects to the socket that is mounted at the request's path, and passes it this
    /// information. The variables of the path are added to the params.
    ///
    /// # Errors
    ///
    /// The error of `connect` or `id`.
    ///
    /// # Panics
    ///
    /// If the params are not an object, or if nothing is mounted at the path.
    ///
    /// ```
    /// # use pipeline_ws_sink::{socket::ConnectInfo, channel_test::TestEndpoint};
    /// # use serde_json::json;
    /// # async fn test(kit: TestEndpoint) -> Result<(), http::Error> {
    /// let request = http::Request::get("/tenant/acme/websocket")
    ///     .header("x-forwarded-for", "192.0.2.1")
    ///     .body(())?;
    /// let mut info = ConnectInfo::of(&request);
    /// info.auth_token = Some("a token".to_owned());
    /// let socket = kit.connect_with(json!({ "user": 42 }), &info).await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_with(
        &self,
        params: impl Serialize,
        info: &ConnectInfo,
    ) -> Result<TestSocket, ConnectError> {
        let params = serde_json::to_value(params).expect("the params have a JSON form");
        let Value::Object(mut params) = leaves(params) else {
            panic!("the params have to be an object")
        };
        let path = info.uri.path();
        let inner = &self.endpoint.inner;
        let found = inner
            .mount_points
            .iter()
            .find_map(|mount_point| Some((mount_point, mount_point.path.matches(path)?)));
        let Some((mount_point, variables)) = found else {
            panic!("no socket is mounted at {path}")
        };
        let variables =
            variables.map_err(|_| ConnectError::because("a path segment is not valid UTF-8"))?;
        let owned = |(name, value): (&str, String)| (name.to_owned(), Value::String(value));
        params.extend(variables.into_iter().map(owned));
        let params = Params::from_iter(params);
        let (connection, number, commands) = TestConnection::new(&self.inbox);
        let id = mount_point
            .mount
            .clone()
            .connection(inner.state.clone(), &params, info, connection)
            .await?;
        let (inbox, endpoint) = (self.inbox.clone(), self.endpoint.clone());
        Ok(TestSocket::new(inbox, number, commands, endpoint, id))
    }

    /// A client that is already connected, with this id and these assigns: neither `connect` nor
    /// `id` of the socket is called.
    ///
    /// # Panics
    ///
    /// If no socket of this type is mounted, or outside of a tokio runtime.
    ///
    /// ```
    /// # use pipeline_ws_sink::{Socket, channel_test::TestEndpoint};
    /// # fn test<UserSocket: Socket<Assigns = u64>>(kit: TestEndpoint) {
    /// let ada = kit.socket::<UserSocket>("users_socket:42", 42);
    /// let guest = kit.socket::<UserSocket>(None, 0);
    /// # }
    /// ```
    #[must_use]
    #[track_caller]
    pub fn socket<'a, S: Socket>(
        &self,
        id: impl Into<Option<&'a str>>,
        assigns: S::Assigns,
    ) -> TestSocket {
        let id = id.into().map(str::to_owned);
        let inner = &self.endpoint.inner;
        let mut mounts = inner.mounts.iter();
        let mounted = mounts.find_map(|mount| mount.clone().any().downcast::<Mounted<S>>().ok());
        let Some(mounted) = mounted else { panic!("no {} is mounted", std::any::type_name::<S>()) };
        let (connection, number, commands) = TestConnection::new(&self.inbox);
        let end = mounted.socket.expires_at(&assigns);
        let expiry = Expiry::new(end, mounted.options.expiry_warning);
        let connected = Connected { assigns, id: id.clone(), expiry };
        connection.run(mounted, &inner.state, inner.state.sockets.enter(), connected);
        let (inbox, endpoint) = (self.inbox.clone(), self.endpoint.clone());
        TestSocket::new(inbox, number, commands, endpoint, id)
    }

    /// Subscribes to the broadcasts of a topic.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// ```
    /// # use pipeline_ws_sink::channel_test::{TestChannel, TestEndpoint, assert_broadcast};
    /// # use serde_json::json;
    /// # async fn test(kit: TestEndpoint, room: TestChannel) {
    /// let rooms = kit.subscribe("rooms");
    /// room.push("rename", json!({ "name": "blue" }));
    /// assert_broadcast!(rooms, "renamed", { "name": "blue" });
    /// # }
    /// ```
    #[must_use]
    pub fn subscribe(&self, topic: &str) -> TestTopic {
        TestTopic::new(&self.inbox, self.endpoint.pubsub(), topic)
    }
}

/// Converts the leaves of JSON to strings, as in a query.
fn leaves(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, leaves(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(leaves).collect()),
        Value::String(text) => Value::String(text),
        leaf => Value::String(leaf.to_string()),
    }
}
