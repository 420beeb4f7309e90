//! A mounted kind of socket, with its type erased.

use std::sync::Arc;

use async_trait::async_trait;
use http::Request;

#[cfg(feature = "test-kit")]
use crate::{
    channel_test::TestConnection,
    handshake::{WEBSOCKET, connect_info::ConnectInfo, params::Params},
    protocol::version::Version,
    socket::ConnectError,
    telemetry::log,
};
use crate::{
    endpoint::{
        snapshot::{MountSnapshot, RouteSnapshot},
        state::EndpointState,
    },
    handshake::{Answer, Mounted, Variables},
    pubsub::topic::TopicPattern,
    socket::Socket,
    transport::{longpoll::ReadBody, longpoll_relay as relay, longpoll_sessions::SessionHandle},
};

/// A mounted kind of socket, with its type erased.
#[async_trait]
pub(crate) trait ErasedMount: Send + Sync {
    async fn accept(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
    ) -> Answer;

    /// Answers a request of a long-polling client.
    async fn answer_poll(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
        body: ReadBody,
    ) -> Answer;

    /// The full path of its WebSockets, by which other nodes name the mount.
    fn path(&self) -> &str;

    /// The patterns of its routes.
    fn patterns(&self) -> Vec<TopicPattern>;

    /// The long-polling session with this token.
    fn polled(&self, token: &str) -> Option<SessionHandle>;

    /// Answers a request that another node has passed on. None if the session has ended meanwhile.
    async fn answer_relayed(
        self: Arc<Self>,
        session: SessionHandle,
        token: String,
        asked: relay::Request,
    ) -> Option<relay::Answered>;

    /// Snapshots of its sockets and their channels.
    fn snapshot(&self) -> (MountSnapshot, Vec<RouteSnapshot>);

    /// Connects or refuses a test's client. Returns the socket's id.
    #[cfg(feature = "test-kit")]
    async fn connection(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        params: &Params,
        info: &ConnectInfo,
        connection: TestConnection,
    ) -> Result<Option<String>, ConnectError>;

    /// The mount as `Any`, for a test that knows the type.
    #[cfg(feature = "test-kit")]
    fn any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync>;
}

#[async_trait]
impl<S: Socket> ErasedMount for Mounted<S> {
    async fn accept(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
    ) -> Answer {
        Mounted::accept(self, state, request, variables).await
    }

    async fn answer_poll(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        request: Request<()>,
        variables: Variables,
        body: ReadBody,
    ) -> Answer {
        Mounted::answer_poll(self, state, request, variables, body).await
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn patterns(&self) -> Vec<TopicPattern> {
        self.routes.patterns().collect()
    }

    fn polled(&self, token: &str) -> Option<SessionHandle> {
        self.session_of(token)
    }

    async fn answer_relayed(
        self: Arc<Self>,
        session: SessionHandle,
        token: String,
        asked: relay::Request,
    ) -> Option<relay::Answered> {
        Mounted::answer_relayed(self, session, token, asked).await
    }

    fn snapshot(&self) -> (MountSnapshot, Vec<RouteSnapshot>) {
        Mounted::snapshot(self)
    }

    #[cfg(feature = "test-kit")]
    async fn connection(
        self: Arc<Self>,
        state: Arc<EndpointState>,
        params: &Params,
        info: &ConnectInfo,
        connection: TestConnection,
    ) -> Result<Option<String>, ConnectError> {
        let span = log::socket_span(self.socket.name(), &self.path, info);
        let entrant = state.sockets.enter();
        let connected = self.connect(params, info, WEBSOCKET, Version::V2, &span).await?;
        let id = connected.id.clone();
        connection.run(self, &state, entrant, connected);
        Ok(id)
    }

    #[cfg(feature = "test-kit")]
    fn any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync> {
        self
    }
}
