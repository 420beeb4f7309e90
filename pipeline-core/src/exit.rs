//! Why a stage or a worker ended.

use std::{any::Any, error::Error, fmt, sync::Arc};

use crate::supervisor::TooManyRestarts;

/// The reason why a stage or a worker ended: a closed list, so that supervisors can match on it.
///
/// Callbacks end their stage by returning one as the error of their `Result`. `?` converts any error
/// into it, also a boxed one, an `anyhow::Error` and a text, which is why this type does not implement
/// [`Error`] itself. Its cause is in [`source`](Self::source), and [`into_error`](Self::into_error)
/// makes an [`Error`] of it, which `?` converts back.
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
/// fn positive(text: &str) -> Result<u64, ExitReason> {
///     match parse(text)? {
///         0 => Err("expected a number above 0")?,
///         number => Ok(number),
///     }
/// }
/// assert_eq!(positive("0").unwrap_err().to_string(), "failed: expected a number above 0");
///
/// // In a program with other errors.
/// fn double(text: &str) -> Result<u64, Box<dyn std::error::Error>> {
///     Ok(2 * parse(text).map_err(ExitReason::into_error)?)
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

    /// A failure that another try would not mend: a [`ConsumerSupervisor`](crate::supervisor::ConsumerSupervisor) gives
    /// the event of a worker that ends with it up at once, whatever its
    /// [`tries`](crate::supervisor::ConsumerSupervisor::tries). For a stage it is the same as [`failed`](Self::failed). In
    /// a pipeline of messages, [`Failure::give_up`](crate::processing::Failure::give_up) does this.
    ///
    /// ```
    /// # use pipeline_core::ExitReason;
    /// async fn profile(user: &u64) -> Result<String, ExitReason> {
    ///     match user {
    ///         0 => Err(ExitReason::give_up("there is no user 0")),
    ///         // A service that is away is asked again: `?` makes an error that is tried again.
    ///         _ => Ok(std::fs::read_to_string(format!("profiles/{user}"))?),
    ///     }
    /// }
    /// assert_eq!(ExitReason::give_up("no").to_string(), "failed: no");
    /// ```
    #[must_use]
    pub fn give_up(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::new(GiveUp(error.into())))
    }

    /// Whether another try would not help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is::<GiveUp>())
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
            Self::Failed(error) => Some(match error.downcast_ref::<GiveUp>() {
                Some(GiveUp(cause)) => &**cause,
                None => &**error,
            }),
            _ => None,
        }
    }

    /// The reason as an [`Error`], for a program whose functions return errors.
    #[must_use]
    pub fn into_error(self) -> ExitError {
        ExitError(self)
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

/// `?` converts errors, boxed errors, `anyhow::Error` and texts. An [`ExitError`] becomes its reason again.
impl<E> From<E> for ExitReason
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn from(error: E) -> Self {
        match error.into().downcast::<ExitError>() {
            Ok(error) => error.0,
            // Other errors may be around it: what is final stays final.
            Err(error) if is_final(&*error) => Self::give_up(error),
            Err(error) => Self::failed(error),
        }
    }
}

/// Whether this error, or one of its causes, is an [`ExitError`] of [`ExitReason::give_up`].
pub(crate) fn is_final(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|cause| cause.downcast_ref::<ExitError>())
        .any(|cause| cause.0.is_final())
}

/// The error of a failure that another try would not mend, with that error's text.
#[derive(Debug)]
struct GiveUp(Box<dyn Error + Send + Sync>);

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for GiveUp {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A reason as an [`Error`], which [`ExitReason`] itself cannot be.
#[derive(Clone, Debug)]
pub struct ExitError(ExitReason);

impl ExitError {
    /// The reason.
    #[must_use]
    pub const fn reason(&self) -> &ExitReason {
        &self.0
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ExitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::{Failure, FailureKind, Redelivery};

    type Boxed = Box<dyn Error + Send + Sync>;

    /// An error with another as its cause.
    #[derive(Debug, thiserror::Error)]
    #[error("no page")]
    struct NoPage<E: Error + 'static>(#[source] E);

    fn ended() -> Result<(), ExitReason> {
        Err(ExitReason::Shutdown)
    }

    #[test]
    fn errors_boxed_errors_and_texts_convert_into_reasons_and_failures() {
        let number = || "x".parse::<u8>().unwrap_err();
        let boxed = ExitReason::from(Boxed::from(number()));
        assert_eq!(boxed.to_string(), ExitReason::from(number()).to_string());
        // The box is not the cause, but what is in it.
        assert!(boxed.source().unwrap().is::<std::num::ParseIntError>());
        assert_eq!(ExitReason::from("no luck").to_string(), "failed: no luck");
        assert_eq!(Failure::from("no luck").to_string(), "no luck");
        assert_eq!(Failure::from(Boxed::from("no luck")).to_string(), "no luck");
        let stopped = || -> Result<(), ExitReason> {
            ended()?;
            Ok(())
        };
        assert!(stopped().unwrap_err().is_graceful(), "a reason stays what it is");
    }

    #[test]
    fn a_reason_as_an_error_has_its_text_and_its_cause() {
        let error = ExitReason::from("x".parse::<u8>().unwrap_err()).into_error();
        assert_eq!(error.to_string(), "failed: invalid digit found in string");
        assert!(error.source().unwrap().is::<std::num::ParseIntError>());
        assert!(!error.reason().is_graceful());
    }

    #[test]
    fn a_failure_that_is_not_tried_again_shows_the_error_in_it() {
        let reason = ExitReason::give_up("x".parse::<u8>().unwrap_err());
        assert_eq!(reason.to_string(), "failed: invalid digit found in string");
        assert!(reason.source().unwrap().is::<std::num::ParseIntError>());
        assert!(ExitReason::from(reason.clone().into_error()).is_final());
        // Also on its way through other errors.
        let outside = ExitReason::from(NoPage(NoPage(reason.clone().into_error())));
        assert!(outside.is_final());
        assert_eq!(outside.to_string(), "failed: no page");
        let given_up = [Failure::from(reason.clone()), Failure::from(NoPage(reason.into_error()))];
        for failure in given_up {
            assert_eq!(
                (failure.redelivery(), failure.kind()),
                (Redelivery::Never, FailureKind::Failed)
            );
        }
        let failed = || NoPage(ExitReason::failed("no luck").into_error());
        assert!(!ExitReason::from(failed()).is_final());
        assert_eq!(Failure::from(failed()).redelivery(), Redelivery::Usual);
        assert!(!ExitReason::failed("no luck").is_final());
    }

    #[test]
    fn an_error_of_a_reason_becomes_the_reason_again() {
        let again = || -> Result<(), ExitReason> {
            Err(ExitReason::Shutdown.into_error())?;
            Ok(())
        };
        assert!(matches!(again().unwrap_err(), ExitReason::Shutdown));
        let boxed = Boxed::from(ExitReason::from("no luck").into_error());
        assert_eq!(ExitReason::from(boxed).to_string(), "failed: no luck");
    }
}
