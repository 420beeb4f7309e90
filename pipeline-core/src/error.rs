//! What can go wrong when a pipeline is put together.

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
///     "there are two stages called numbers, expected different names"
/// );
/// # }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// `start` was called outside a tokio runtime.
    #[error("a pipeline has to be started within a tokio runtime")]
    NoRuntime,
    /// A stage's subscription has options that cannot work.
    #[error("{stage} cannot subscribe")]
    Subscribe {
        /// The consumer's name.
        stage: Arc<str>,
        /// What is wrong with the options.
        #[source]
        source: SubscribeError,
    },
    /// A stage is to subscribe to one that does not run.
    #[error("{stage} cannot subscribe: {producer} does not run")]
    NoProcess {
        /// The consumer's name.
        stage: Arc<str>,
        /// The producer's name.
        producer: Arc<str>,
    },
    /// Two stages have the same name.
    #[error("there are two stages called {stage}, expected different names")]
    NameTaken {
        /// The name.
        stage: Arc<str>,
    },
    /// A stage's `init` failed.
    #[error("{stage} did not start: {reason}")]
    Init {
        /// The stage's name.
        stage: Arc<str>,
        /// What `init` returned, or panicked with.
        reason: ExitReason,
    },
}
