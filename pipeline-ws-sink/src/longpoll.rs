//! How clients that poll are served.

use std::time::Duration;

/// After how long the official client no longer waits for an answer to its poll.
const GIVES_UP: Duration = Duration::from_secs(20);

/// Long polling: how clients connect that cannot keep a WebSocket open, for instance behind a proxy
/// that does not let one through. Off, unless a mount is [given it](crate::Mount::longpoll).
///
/// The client asks for its messages again and again, and each time waits until there are some. What
/// it says itself comes in requests of their own. The official client does this by choice, or by
/// itself when a WebSocket fails: see its option `longPollFallbackMs`.
///
/// The client's session lives between its requests, in this process: behind a load balancer, all
/// requests of a client have to come to one server. The token that names the session is signed with
/// a key that the endpoint makes when it is built, so after a restart clients connect anew.
///
/// An answer that does not reach its client is lost, with the messages in it, where the server does not
/// see that the connection broke. The official client then begins a new session and joins its channels
/// again, so what has to arrive is for `join` to tell. Where the server sees it, the messages wait for
/// the next poll.
///
/// The same limits hold as for a WebSocket: how large a message may be, how many are taken in a second, how
/// much may wait, and what happens when more does. A client may send eight requests at once that say
/// something, more than the official one ever does; the next is answered with 429. Binary messages cannot be sent to a client that polls; they are left out.
///
/// ```
/// # use pipeline_ws_sink::*;
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

    /// Where it is, below the path of the mount. Default `/longpoll`, where the official client looks
    /// for it. It may have variables, as [`Mount::path`](crate::Mount::path) may.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// How long a poll waits for messages, how long the body of a request may take to come, and how long a
    /// client waits for all that it sends in one to be taken. Default ten seconds. It has to be less than 20,
    /// after which the official client gives up.
    ///
    /// A session that is not polled for one and a half windows ends. With [`Duration::MAX`] a poll waits
    /// until there is something, and no session ends for want of polls: that is for clients of one's own.
    ///
    /// # Panics
    ///
    /// If it is zero, or 20 seconds or more and not [`Duration::MAX`].
    ///
    /// This is `:window_ms` of Phoenix's long polling.
    ///
    /// ```
    /// # use pipeline_ws_sink::LongPoll;
    /// # use std::time::Duration;
    /// let often = LongPoll::new().window(Duration::from_secs(5));
    /// ```
    pub fn window(mut self, window: Duration) -> Self {
        assert!(!window.is_zero(), "a session with a window of no time ends at once");
        assert!(
            window < GIVES_UP || window == Duration::MAX,
            "a window is shorter than 20 seconds, after which the official client gives up: {window:?}"
        );
        self.window = window;
        self
    }

    /// How many clients may have a session at once. Default 10,000. A client beyond that is answered
    /// with 503 before `connect` is asked, and counted in `socket.polled_refused`; the official client
    /// tries again by itself.
    ///
    /// A session takes several kilobytes and outlives its connection by up to one and a half
    /// [windows](Self::window), so without a bound one client could open any number of them.
    ///
    /// # Panics
    ///
    /// If it is zero: every client that polls would be refused.
    ///
    /// ```
    /// # use pipeline_ws_sink::LongPoll;
    /// let few = LongPoll::new().max_sessions(500);
    /// ```
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        assert!(sessions > 0, "a mount without sessions refuses every client that polls");
        self.max_sessions = sessions;
        self
    }

    /// How long the token of a session is good for, in whole seconds. Default two weeks; then the client gets
    /// a new session.
    ///
    /// # Panics
    ///
    /// If it is less than a second: no request would find its session.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        assert!(max_age.as_secs() > 0, "a token is good for a second at least: {max_age:?}");
        self.max_age = max_age;
        self
    }
}

impl Default for LongPoll {
    fn default() -> Self {
        Self::new()
    }
}
