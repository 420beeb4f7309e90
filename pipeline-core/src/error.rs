//! Errors of starting a pipeline.

use std::sync::Arc;

use thiserror::Error;

use crate::{exit::ExitReason, subscription::SubscribeError};

/// Why a pipeline did not start.
///
/// ```
/// use pipeline_core::{Graph, StartError, from_iter};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut graph = Graph::new("numbers");
/// graph.producer("numbers", from_iter(0..5));
/// graph.producer("numbers", from_iter(5..9));
///
/// let error = graph.start().unwrap_err();
/// assert!(matches!(error, StartError::NameTaken { .. }));
/// assert_eq!(
///     error.to_string(),
///     "two stages are named numbers, expected unique names"
/// );
/// # }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// `start` was called outside a tokio runtime.
    #[error("a pipeline must be started within a tokio runtime")]
    NoRuntime,
    /// A stage's subscription has invalid options.
    #[error("{stage} cannot subscribe")]
    Subscribe {
        /// The consumer's name.
        stage: Arc<str>,
        /// The invalid option.
        #[source]
        source: SubscribeError,
    },
    /// A stage subscribes to a producer that is not running.
    #[error("{stage} cannot subscribe: {producer} is not running")]
    NotRunning {
        /// The consumer's name.
        stage: Arc<str>,
        /// The producer's name.
        producer: Arc<str>,
    },
    /// Two stages have the same name.
    #[error("two stages are named {stage}, expected unique names")]
    NameTaken {
        /// The name.
        stage: Arc<str>,
    },
    /// A stage's `init` failed.
    #[error("{stage} failed to start: {reason}")]
    Init {
        /// The stage's name.
        stage: Arc<str>,
        /// The error that `init` returned, or its panic.
        reason: ExitReason,
    },
}
