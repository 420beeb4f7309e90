//! Why a stage, or a worker under one, ended.

use std::{any::Any, error::Error, fmt, sync::Arc};

use crate::stage::TooManyRestarts;

/// Why a stage or a worker ended: a closed list, so that supervision can decide on it.
///
/// Callbacks end their stage by returning one as the error of their `Result`. Any error converts
/// with `?`, which is why this type does not implement [`Error`] itself; its cause is in
/// [`source`](Self::source).
///
/// It converts with `?` too, into a boxed error.
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
/// // In a program, among other errors.
/// fn double(text: &str) -> Result<u64, Box<dyn std::error::Error>> {
///     Ok(2 * parse(text)?)
/// }
/// let error = double("twelve").unwrap_err();
/// assert!(error.source().unwrap().is::<std::num::ParseIntError>());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ExitReason {
    /// It had nothing left to do.
    Normal,
    /// It was told to stop, or stopped for the good of the whole.
    Shutdown,
    /// The same, with a detail.
    ShutdownWith(Arc<str>),
    /// It was ended from outside without being asked.
    Killed,
    /// The stage it needed does not exist, or no longer does.
    NoProcess,
    /// It panicked; this is the panic's message.
    Panicked(Arc<str>),
    /// It failed with an error.
    Failed(Arc<dyn Error + Send + Sync>),
}

impl ExitReason {
    /// A failure told in words only.
    ///
    /// ```
    /// # use pipeline_core::ExitReason;
    /// assert_eq!(ExitReason::failed("no route").to_string(), "failed: no route");
    /// ```
    #[must_use]
    pub fn failed(message: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(message.into()))
    }

    /// Whether this is an ending in good order.
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

    /// What the stages are told that are connected to one that ends for this reason. A supervisor that
    /// gives up has failed, and is said to have shut down, as in GenStage.
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

    /// The reason that a panic's payload stands for, as `catch_unwind` and a joined task give it.
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
            Self::NoProcess => f.write_str("no such stage"),
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

/// `?` hands a reason on in a program whose errors are boxed.
impl From<ExitReason> for Box<dyn Error + Send + Sync> {
    fn from(reason: ExitReason) -> Self {
        Box::new(Boxed(reason))
    }
}

/// The same for a box that stays in its thread.
impl From<ExitReason> for Box<dyn Error> {
    fn from(reason: ExitReason) -> Self {
        Box::new(Boxed(reason))
    }
}

/// A reason as an error, which it cannot be itself.
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
