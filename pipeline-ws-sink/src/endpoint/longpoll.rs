//! The options of long polling.

use std::time::Duration;

/// How long the official client waits for the answer to a poll.
const GIVES_UP: Duration = Duration::from_secs(20);

/// Long polling: for clients that cannot keep a WebSocket open, for instance behind a proxy that
/// does not support it. Off, unless a mount [enables it](crate::Mount::longpoll).
///
/// The client polls for its messages, and each poll waits until there are some. The client's own
/// messages are sent in separate requests. The official client uses long polling by choice, or as a
/// fallback when a WebSocket fails: see its option `longPollFallbackMs`.
///
/// The client's session lives between its requests, in this process. The token that names the
/// session is signed with a key that the endpoint generates when it is built, so after a restart
/// clients connect anew.
///
/// # Behind a load balancer
///
/// With an [`Adapter`](crate::pubsub::Adapter) and a secret that all nodes share
/// ([`EndpointBuilder::cluster_secret`](crate::endpoint::EndpointBuilder::cluster_secret)), a client's requests
/// may reach any node of the cluster: sticky sessions are not needed. The token has the name of its node, and
/// another node passes the request on to it and the answer back. That costs three messages between the
/// nodes, a fourth for a request or an answer with messages, and one more for each further 256 KiB.
///
/// If the node of the session does not know it any more, or if there is no way to that node, the client gets
/// a new session at once, on the node that its request has met; if that node does not say within two
/// seconds that it has heard, the same. (Within up to six, where other requests have shown that the way is slow.)
/// The official client then joins its channels again. So does a client whose answer may have been lost
/// between the nodes: it may have had messages. While there is no way between the nodes, a client begins
/// anew with each request that meets another one than the last, unless the load balancer keeps it at one.
///
/// All nodes have to have the mount, with the same window; a poll that is passed on waits for 11 seconds at
/// most. `socket.longpoll_relayed` counts these requests by outcome. Without an adapter or without the
/// secret, all requests of a client have to reach the same server.
///
/// The secret lets no client make nodes ask each other for sessions that were never there. It does not hide
/// anything from the server between the nodes: requests, answers and tokens pass it as they are, so who can
/// read there can take over sessions.
///
/// # What may be lost
///
/// If an answer does not reach its client and the server does not notice the broken connection, the
/// messages in it are lost. The official client then begins a new session and joins its channels
/// again, so `join` should send the messages that must not be lost. If the server notices, the
/// messages wait for the next poll.
///
/// The limits of a WebSocket apply here too: the size of a message, the number of messages per
/// second, the size of the outbox, and the policy when it is full. A client may have eight requests
/// with messages in progress, more than the official client ever has; the next is answered with
/// 429. Binary messages cannot be sent to a long-polling client; they are dropped.
///
/// ```
/// # use pipeline_ws_sink::{Endpoint, Mount, Socket, endpoint::BuildError, mount::LongPoll};
/// # fn mount<S: Socket>(mount: Mount<S>) -> Result<Endpoint, BuildError> {
/// // Served at `/socket/websocket` and at `/socket/longpoll`.
/// Endpoint::builder().mount("/socket", mount.longpoll(LongPoll::new())).build()
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct LongPoll {
    pub(crate) path: String,
    pub(crate) window: Duration,
    pub(crate) max_age: Duration,
    pub(crate) max_sessions: usize,
}

impl LongPoll {
    /// Long polling at `/longpoll`, with a window of ten seconds.
    pub fn new() -> Self {
        Self {
            path: "longpoll".to_owned(),
            window: Duration::from_secs(10),
            max_age: Duration::from_secs(1_209_600),
            max_sessions: 10_000,
        }
    }

    /// The path below the path of the mount. Default `/longpoll`, where the official client looks
    /// for it. It may have variables, as [`Mount::path`](crate::Mount::path) may.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// How long a poll waits for messages, how long a request's body may take to arrive, and how
    /// long a request waits until all of its messages are accepted. Default ten seconds. It has to
    /// be shorter than 20 seconds, after which the official client gives up.
    ///
    /// A session that is not polled for one and a half windows ends. With [`Duration::MAX`] a poll
    /// waits until there is a message, and no session ends for lack of polls: use it only with
    /// clients of your own.
    ///
    /// # Panics
    ///
    /// If it is zero, or 20 seconds or more and not [`Duration::MAX`].
    ///
    /// This is `:window_ms` of Phoenix's long polling.
    pub fn window(mut self, window: Duration) -> Self {
        assert!(!window.is_zero(), "window must be longer than zero");
        assert!(
            window < GIVES_UP || window == Duration::MAX,
            "window must be shorter than 20 seconds, when the official client gives up: {window:?}"
        );
        self.window = window;
        self
    }

    /// How many clients may have a session at once. Default 10,000. Further clients are answered
    /// with 503 before `connect` is called, and counted in `socket.longpoll_refused`; the official
    /// client tries again by itself.
    ///
    /// A session takes several kilobytes and outlives its connection by up to one and a half
    /// [windows](Self::window), so without a limit one client could open any number of them.
    ///
    /// # Panics
    ///
    /// If it is zero: every long-polling client would be refused.
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        assert!(sessions > 0, "max_sessions must be at least 1");
        self.max_sessions = sessions;
        self
    }

    /// How long a session's token is valid, in whole seconds. Default two weeks; then the client
    /// gets a new session. Setting the system's clock does not change it.
    ///
    /// # Panics
    ///
    /// If it is less than a second: no request would find its session.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        assert!(max_age.as_secs() > 0, "max_age must be at least one second: {max_age:?}");
        self.max_age = max_age;
        self
    }
}

impl Default for LongPoll {
    fn default() -> Self {
        Self::new()
    }
}
