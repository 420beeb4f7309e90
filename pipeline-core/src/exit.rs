//! Why a stage or a worker ended.

use std::{any::Any, error::Error, fmt, sync::Arc};

use crate::supervisor::TooManyRestarts;

/// The reason why a stage or a worker ended: a closed list, so that supervisors can match on it.
///
/// Callbacks end their stage by returning one as the error of their `Result`. `?` converts any
/// error into it, which is why this type does not implement [`Error`] itself; its cause is in
/// [`source`](Self::source).
///
/// `?` also converts it into a boxed error.
///
/// `Normal`, `Shutdown` and `ShutdownWith` are *graceful*: a transient child is not restarted after
/// one. The reasons and what counts as graceful are GenStage's.
///
/// ```
/// use pipeline_core::ExitReason;
///
/// fn parse(text: &str) -> Result<u64, ExitReason> {
///     Ok(text.parse()?)
/// }
/// let reason = parse("twelve").unwrap_err();
/// assert!(!reason.is_graceful());
/// assert_eq!(reason.to_string(), "failed: invalid digit found in string");
///
/// // In a program with other errors.
/// fn double(text: &str) -> Result<u64, Box<dyn std::error::Error>> {
///     Ok(2 * parse(text)?)
/// }
/// let error = double("twelve").unwrap_err();
/// assert!(error.source().unwrap().is::<std::num::ParseIntError>());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ExitReason {
    /// Nothing was left to do.
    Normal,
    /// The stage or worker was asked to stop, or stopped because of the rest of the pipeline.
    Shutdown,
    /// Like `Shutdown`, with a detail.
    ShutdownWith(Arc<str>),
    /// The stage or worker was killed from outside.
    Killed,
    /// A stage that it needed is not running.
    NotRunning,
    /// A panic, with its message.
    Panicked(Arc<str>),
    /// A failure, with its error.
    Failed(Arc<dyn Error + Send + Sync>),
}

impl ExitReason {
    /// A failure with a message only.
    #[must_use]
    pub fn failed(message: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(message.into()))
    }

    /// Whether this is a graceful end.
    ///
    /// ```
    /// # use pipeline_core::ExitReason;
    /// assert!(ExitReason::Normal.is_graceful());
    /// assert!(!ExitReason::Killed.is_graceful());
    /// ```
    #[must_use]
    pub fn is_graceful(&self) -> bool {
        matches!(self, Self::Normal | Self::Shutdown | Self::ShutdownWith(_))
    }

    /// The reason that the connected stages receive when a stage ends for this one. A supervisor
    /// that gives up has failed, but its peers see a shutdown, as in GenStage.
    pub(crate) fn for_peers(&self) -> Self {
        match self {
            Self::Failed(error) if error.is::<TooManyRestarts>() => Self::Shutdown,
            other => other.clone(),
        }
    }

    /// The error behind a failure.
    ///
    /// ```
    /// # use pipeline_core::ExitReason;
    /// let reason = ExitReason::from("x".parse::<u8>().unwrap_err());
    /// assert_eq!(reason.source().unwrap().to_string(), "invalid digit found in string");
    /// assert!(ExitReason::Normal.source().is_none());
    /// ```
    #[must_use]
    pub fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            _ => None,
        }
    }

    /// The reason for a panic's payload, as `catch_unwind` and a joined task return it.
    ///
    /// ```
    /// # use pipeline_core::ExitReason;
    /// # std::panic::set_hook(Box::new(|_| {}));
    /// let payload = std::panic::catch_unwind(|| panic!("no luck")).unwrap_err();
    /// assert_eq!(ExitReason::from_panic(&*payload).to_string(), "panicked: no luck");
    /// ```
    #[must_use]
    pub fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        Self::Panicked(message.into())
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::Shutdown => f.write_str("shutdown"),
            Self::ShutdownWith(detail) => write!(f, "shutdown: {detail}"),
            Self::Killed => f.write_str("killed"),
            Self::NotRunning => f.write_str("a needed stage is not running"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

impl<E> From<E> for ExitReason
where
    E: Error + Send + Sync + 'static,
{
    fn from(error: E) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// `?` converts a reason in a program with boxed errors.
impl From<ExitReason> for Box<dyn Error + Send + Sync> {
    fn from(reason: ExitReason) -> Self {
        Box::new(Boxed(reason))
    }
}

/// The same for a box that is not `Send`.
impl From<ExitReason> for Box<dyn Error> {
    fn from(reason: ExitReason) -> Self {
        Box::new(Boxed(reason))
    }
}

/// A reason as an [`Error`], which [`ExitReason`] itself cannot be.
#[derive(Debug)]
struct Boxed(ExitReason);

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Boxed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
