//! Sockets: who may connect, and as whom.

use std::{error::Error, fmt, future::Future};

use http::{Request, Uri, header::USER_AGENT};
use thiserror::Error;

use crate::telemetry::short_type_name;

/// A kind of client connection: it decides who may connect, and as whom.
///
/// One value serves all clients, so it holds what they have in common: a
/// [`Signer`](crate::Signer) to verify tokens with, a database pool. The callbacks are those of
/// `Phoenix.Socket`.
///
/// ```
/// use std::time::SystemTime;
///
/// use pipeline_ws_sink::{ConnectError, ConnectInfo, Params, Signer, Socket};
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
    /// What is known of a client from its connection on; its channels can read it.
    type Assigns: Send + Sync + 'static;

    /// What the socket is called in metrics: the name of the type, unless told otherwise.
    #[must_use]
    fn name(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// Lets a client connect, or refuses it with status 403.
    ///
    /// An error or a panic refuses too; it is logged, and the client is told nothing more.
    fn connect(
        &self,
        params: &Params,
        info: &ConnectInfo,
    ) -> impl Future<Output = Result<Self::Assigns, ConnectError>> + Send;

    /// Names the connections that belong together, so that they can be closed together by
    /// [`Endpoint::disconnect`](crate::Endpoint::disconnect). None by default.
    ///
    /// # Errors
    ///
    /// An error refuses the connection.
    fn id(&self, assigns: &Self::Assigns) -> Result<Option<String>, ConnectError> {
        let _ = assigns;
        Ok(None)
    }
}

/// The parameters that a client connects with: the query of its request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn decode(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The value of a parameter; the last one, if it was given several times.
    ///
    /// ```
    /// # use pipeline_ws_sink::Params;
    /// # let params = Params::default();
    /// let room = params.get("room").unwrap_or("lobby");
    /// ```
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// The value of a parameter that has to be there.
    ///
    /// # Errors
    ///
    /// [`MissingParam`] names the parameter; as the error of a `connect`, it refuses the client.
    pub fn require(&self, name: &str) -> Result<&str, MissingParam> {
        self.get(name).ok_or_else(|| MissingParam { name: name.into() })
    }
}

/// A parameter that has to be there is not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the parameter {name:?} is missing")]
pub struct MissingParam {
    name: Box<str>,
}

/// What is known of a connection besides its parameters.
///
/// Cookies and the `authorization` header are left out on purpose: a browser sends them with
/// requests that other sites make, too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectInfo {
    /// What the client asked for.
    pub uri: Uri,
    /// What the client says it is.
    pub user_agent: Option<String>,
}

impl ConnectInfo {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let user_agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        Self { uri: request.uri().clone(), user_agent: user_agent.map(str::to_owned) }
    }
}

/// Why a client may not connect. It is told status 403, whatever the cause; the cause is logged.
///
/// Any error converts with `?`.
pub struct ConnectError {
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl ConnectError {
    /// Refuses without a cause worth telling.
    #[must_use]
    pub fn refused() -> Self {
        Self { cause: None }
    }

    /// Refuses for this reason.
    #[must_use]
    pub fn because(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()) }
    }

    /// What was wrong, if it was told.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }
}

impl<E> From<E> for ConnectError
where
    E: Error + Send + Sync + 'static,
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
