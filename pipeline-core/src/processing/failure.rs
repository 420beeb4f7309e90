//! Why a message failed, and what its source should do with it.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use thiserror::Error;

use super::wake::Wake;
use crate::exit::{ExitReason, is_final};

/// Why a message failed, and what its source should do with it.
///
/// Callbacks fail a message by returning one as the error of their `Result`. `?` converts any error
/// into it, also a boxed one, an `anyhow::Error` and a text, which is why this type does not implement
/// [`Error`] itself; its cause is in [`source`](Self::source). An [`ExitReason::give_up`] is not tried again here either.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_core::processing::{Failure, FailureKind, Redelivery};
///
/// fn amount(text: &str) -> Result<u64, Failure> {
///     // Another try would not help.
///     text.parse().map_err(|error| Failure::from(error).give_up())
/// }
/// let failure = amount("twelve").unwrap_err();
/// assert_eq!(failure.to_string(), "invalid digit found in string");
/// assert_eq!((failure.kind(), failure.redelivery()), (FailureKind::Failed, Redelivery::Never));
///
/// let busy = Failure::new("the bank is closed").retry_after(Duration::from_secs(3600));
/// assert_eq!(busy.redelivery(), Redelivery::After(Duration::from_secs(3600)));
/// ```
#[derive(Clone)]
pub struct Failure {
    kind: FailureKind,
    cause: Arc<dyn Error + Send + Sync>,
    redelivery: Redelivery,
    wake: Option<Wake>,
}

/// The kind of a [`Failure`]: a closed list for metrics, and for sources that treat kinds differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// A callback said so.
    Failed,
    /// A callback panicked.
    Panicked,
    /// The message was dropped before a processor had begun with it, or in a stage of the program's own.
    Dropped,
    /// The message was dropped after a processor had begun with it: its stage was killed meanwhile, or code
    /// that had taken its acknowledgement forgot it.
    Forgotten,
    /// The source's stage discarded it: its buffer had no space, or it had no consumers.
    Overflow,
    /// There is no batcher for the message in the pipeline.
    NoBatcher,
    /// A callback wants the message [later](Failure::later).
    Postponed,
}

impl FailureKind {
    /// The kind as the value of a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::Dropped => "dropped",
            Self::Forgotten => "forgotten",
            Self::Overflow => "overflow",
            Self::NoBatcher => "no_batcher",
            Self::Postponed => "postponed",
        }
    }

    /// Whether the message itself was not the cause: it was not handled, or not to the end.
    #[must_use]
    pub const fn is_unhandled(self) -> bool {
        matches!(self, Self::Dropped | Self::Overflow)
    }
}

/// The further treatment of a failed message by its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Redelivery {
    /// What the source does by default: usually, it delivers the message again after a delay, and
    /// gives it up after a number of deliveries.
    #[default]
    Usual,
    /// Deliver it again after this delay, if it may be delivered again at all.
    After(Duration),
    /// Deliver it again after this delay, as if it had not been delivered: it has not failed, and this
    /// delivery counts for nothing. A source whose server counts each delivery itself says so.
    Later(Duration),
    /// Give it up now. A source with a place for dead letters puts it there.
    Never,
}

impl Failure {
    /// A failure with a message, or with a boxed error.
    #[must_use]
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of_kind(FailureKind::Failed, cause)
    }

    /// The failure of a message that was not handled, of this kind.
    pub(super) fn of_kind(
        kind: FailureKind,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let redelivery = Redelivery::Usual;
        Self { kind, cause: Arc::from(cause.into()), redelivery, wake: None }
    }

    /// The failure of a message whose callback panicked.
    pub(super) fn from_panic(reason: &ExitReason) -> Self {
        let message = match reason {
            ExitReason::Panicked(message) => message.to_string(),
            other => other.to_string(),
        };
        Self::of_kind(FailureKind::Panicked, Panicked(message))
    }

    /// The same, but the source should give the message up now: another try would not help.
    #[must_use]
    pub fn give_up(mut self) -> Self {
        self.redelivery = Redelivery::Never;
        self
    }

    /// The same, but the source should deliver the message again after this delay. The processor's own
    /// tries end.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.redelivery = Redelivery::After(delay);
        self
    }

    /// The same, but the message has not failed: its time has not come yet, and the source should deliver
    /// it again after this delay without counting this delivery. The processor's own tries end.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pipeline_core::processing::{Failure, FailureKind, Redelivery};
    ///
    /// let minute = Duration::from_secs(60);
    /// let absent = Failure::new("the user is not there").later(minute);
    /// assert_eq!(absent.redelivery(), Redelivery::Later(minute));
    /// assert_eq!(absent.kind(), FailureKind::Postponed);
    /// ```
    #[must_use]
    pub fn later(mut self, delay: Duration) -> Self {
        self.kind = FailureKind::Postponed;
        self.redelivery = Redelivery::Later(delay);
        self
    }

    /// The same, but the delay of [`later`](Self::later) ends when this signal is given. A source that cannot end
    /// a delay delivers the message after it: those of SQLite, PostgreSQL and Redis can.
    #[must_use]
    pub fn woken_by(mut self, wake: &Wake) -> Self {
        self.wake = Some(wake.clone());
        self
    }

    /// What ends the delay of [`later`](Self::later), if anything does.
    #[must_use]
    pub fn wake(&self) -> Option<&Wake> {
        self.wake.as_ref()
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// What the source should do with the message.
    #[must_use]
    pub fn redelivery(&self) -> Redelivery {
        self.redelivery
    }

    /// The error behind it.
    #[must_use]
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }
}

/// The error of a failure whose cause is a panic.
#[derive(Debug, Error)]
#[error("panicked: {0}")]
struct Panicked(String);

/// `?` converts errors, boxed errors, `anyhow::Error` and texts. One with an [`ExitReason::give_up`] among its causes is
/// not tried again.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if is_final(&*error) { Self::new(error).give_up() } else { Self::new(error) }
    }
}

/// A failure of a worker or a stage is one of the message that it handled.
impl From<ExitReason> for Failure {
    fn from(reason: ExitReason) -> Self {
        match reason {
            ExitReason::Panicked(_) => Self::from_panic(&reason),
            reason => Self::from(reason.into_error()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("kind", &self.kind)
            .field("cause", &self.cause.to_string())
            .field("redelivery", &self.redelivery)
            .finish()
    }
}
