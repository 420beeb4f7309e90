//! Sockets: a kind of client connection and its authentication.

use std::{error::Error, fmt, future::Future, time::SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

pub use crate::handshake::{
    connect_info::{ConnectInfo, PeerAddr},
    params::{MissingParam, Params, ParamsError},
};
use crate::telemetry::short_type_name;

/// A kind of client connection: it authenticates and authorizes clients.
///
/// One value serves all clients, so it holds their shared state: a [`Signer`](crate::token::Signer) to
/// verify tokens with, a database pool. The callbacks are those of `Phoenix.Socket`.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::{Socket, socket::{ConnectError, ConnectInfo, Params}, token::Signer};
///
/// struct UserSocket {
///     signer: Signer,
/// }
///
/// impl Socket for UserSocket {
///     type Assigns = u64;
///
///     async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
///         let token = params.require("token")?;
///         Ok(self.signer.verify(token, SystemTime::now())?)
///     }
///
///     fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
///         Ok(Some(format!("users_socket:{user}")))
///     }
/// }
/// ```
pub trait Socket: Send + Sync + Sized + 'static {
    /// The state of a connection, set by [`connect`](Self::connect); its channels can read it.
    type Assigns: Send + Sync + 'static;

    /// The socket's name in metrics. Default: the name of the type.
    #[must_use]
    fn name(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// Lets a client connect, or refuses it with status 403.
    ///
    /// An error or a panic refuses too; it is logged, and the client receives nothing more, unless
    /// the error [has a response](ConnectError::respond).
    ///
    /// It is not called for requests that could not become a WebSocket anyway. Phoenix calls it for
    /// those too.
    fn connect(
        &self,
        params: &Params,
        info: &ConnectInfo,
    ) -> impl Future<Output = Result<Self::Assigns, ConnectError>> + Send;

    /// The id shared by connections that [`Endpoint::disconnect`](crate::Endpoint::disconnect)
    /// closes together. None by default.
    ///
    /// # Errors
    ///
    /// An error refuses the connection.
    fn id(&self, assigns: &Self::Assigns) -> Result<Option<String>, ConnectError> {
        let _ = assigns;
        Ok(None)
    }

    /// The end of the client's socket, usually that of its token. None by default: a token is then
    /// checked when the client connects, and not again.
    ///
    /// At that time the socket is closed with the code 4401 and the reason `the socket has expired`,
    /// and its channels terminate with `shutdown: expired`. The official client connects again, with
    /// the parameters that it has then, and `connect` decides anew. Some time before,
    /// [`Channel::handle_expiring`](crate::Channel::handle_expiring) tells the client, which may show
    /// a new token on a channel and stay:
    /// [`ChannelContext::set_expires_at`](crate::channel::ChannelContext::set_expires_at). A
    /// long-polling client's session ends in the same way, and its next poll begins a new one.
    ///
    /// A client whose end has passed already is refused. The wall clock is read once for each end;
    /// a clock that is set later moves no end.
    ///
    /// ```
    /// use std::time::SystemTime;
    ///
    /// use pipeline_ws_sink::{
    ///     Socket,
    ///     socket::{ConnectError, ConnectInfo, Params},
    ///     token::{Signer, VerifiedToken},
    /// };
    ///
    /// struct UserSocket {
    ///     signer: Signer,
    /// }
    ///
    /// impl Socket for UserSocket {
    ///     type Assigns = VerifiedToken<u64>;
    ///
    ///     async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<Self::Assigns, ConnectError> {
    ///         Ok(self.signer.verify_with_expiry(params.require("token")?, SystemTime::now())?)
    ///     }
    ///
    ///     fn expires_at(&self, user: &Self::Assigns) -> Option<SystemTime> {
    ///         user.expires_at
    ///     }
    /// }
    /// ```
    fn expires_at(&self, assigns: &Self::Assigns) -> Option<SystemTime> {
        let _ = assigns;
        None
    }
}

/// The content type of a text response.
pub(crate) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Why a client may not connect. The client receives status 403 for any cause, unless
/// [`respond`](Self::respond) sets another response; the cause is logged.
///
/// Any error converts with `?`, also a boxed one, an `anyhow::Error` and a text.
///
/// A browser hides status and body from its page: for the page, any refusal is a connection that
/// failed, and the official client tries again and again. So a response is useful for other clients
/// and for debugging. To tell a page why, [`close_with`](Self::close_with).
///
/// ```
/// # use pipeline_ws_sink::socket::ConnectError;
/// use http::StatusCode;
///
/// fn admit(waiting: usize) -> Result<(), ConnectError> {
///     if waiting > 100 {
///         let status = StatusCode::TOO_MANY_REQUESTS;
///         return Err(ConnectError::refused().respond(status, "Too many requests"));
///     }
///     Ok(())
/// }
/// # assert!(admit(101).is_err());
/// ```
pub struct ConnectError {
    cause: Option<Box<dyn Error + Send + Sync>>,
    answer: Option<Box<Response<Bytes>>>,
    close: Option<Box<Close>>,
}

/// The close frame of a refused client.
#[derive(Clone, Debug)]
pub(crate) struct Close {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

/// The code of the close frame of a refused client without one of its own.
const POLICY: u16 = 1008;

/// How many bytes the reason in a close frame may have.
const LONGEST_REASON: usize = 123;

impl ConnectError {
    /// Refuses without a cause.
    #[must_use]
    pub fn refused() -> Self {
        Self { cause: None, answer: None, close: None }
    }

    /// Refuses with a cause.
    #[must_use]
    pub fn because(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), answer: None, close: None }
    }

    /// Refuses with this status and this text, in place of an empty 403.
    ///
    /// See [`ConnectError`] for an example. Phoenix calls the `:error_handler` of the socket for this.
    #[must_use]
    pub fn respond(self, status: StatusCode, text: impl Into<Bytes>) -> Self {
        let mut answer = Response::new(text.into());
        *answer.status_mut() = status;
        if !answer.body().is_empty() {
            answer.headers_mut().insert(CONTENT_TYPE, TEXT);
        }
        self.respond_with(answer)
    }

    /// Refuses with this response. An informational response, such as 101, is replaced by 403,
    /// because the client would not take it for a refusal.
    ///
    /// ```
    /// # use pipeline_ws_sink::socket::ConnectError;
    /// # fn error() -> Result<ConnectError, http::Error> {
    /// let later = http::Response::builder().status(503).header("retry-after", "60");
    /// let error = ConnectError::because("the database is away").respond_with(later.body("".into())?);
    /// # Ok(error)
    /// # }
    /// ```
    #[must_use]
    pub fn respond_with(mut self, response: Response<Bytes>) -> Self {
        self.answer = Some(Box::new(response));
        self
    }

    /// Refuses with this close code and this reason, if the endpoint
    /// [tells](crate::endpoint::EndpointBuilder::tell_refused) refused clients: a page sees both, and it
    /// sees no status. Without that option it changes nothing.
    ///
    /// The code is one of those for applications, 4000 to 4999; any other is replaced by 1008. The reason
    /// is cut after 123 bytes. Do not put into it what the client must not know.
    ///
    /// ```
    /// # use pipeline_ws_sink::socket::ConnectError;
    /// fn admit(is_banned: bool) -> Result<(), ConnectError> {
    ///     if is_banned {
    ///         return Err(ConnectError::because("banned").close_with(4403, "banned"));
    ///     }
    ///     Ok(())
    /// }
    /// # assert!(admit(true).is_err());
    /// ```
    #[must_use]
    pub fn close_with(mut self, code: u16, reason: impl Into<String>) -> Self {
        let code = if (4000..5000).contains(&code) { code } else { POLICY };
        let mut reason = reason.into();
        let mut end = reason.len().min(LONGEST_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        self.close = Some(Box::new(Close { code, reason }));
        self
    }

    /// The close frame for the client, if it may be closed after the upgrade: it has a frame of its own,
    /// or neither a frame nor a response.
    pub(crate) fn close(&self) -> Option<Close> {
        match (&self.close, &self.answer) {
            (Some(close), _) => Some((**close).clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Close { code: POLICY, reason: String::new() }),
        }
    }

    /// The cause, if one was given.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// The response to the client.
    pub(crate) fn into_answer(self) -> Response<Bytes> {
        match self.answer {
            Some(answer) if !answer.status().is_informational() => *answer,
            _ => {
                let mut forbidden = Response::new(Bytes::new());
                *forbidden.status_mut() = StatusCode::FORBIDDEN;
                forbidden
            }
        }
    }
}

impl<E> From<E> for ConnectError
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn from(error: E) -> Self {
        Self::because(error)
    }
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectError").field("cause", &self.cause).finish()
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "refused: {cause}"),
            None => f.write_str("refused"),
        }
    }
}
