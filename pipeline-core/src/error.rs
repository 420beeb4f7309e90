//! What can go wrong when a pipeline is put together.

use std::sync::Arc;

use thiserror::Error;

use crate::{exit::ExitReason, stage::StageContext, subscription::SubscribeError};

/// Why a pipeline did not start.
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
    /// A stage's `init` failed.
    #[error("{stage} did not start: {reason}")]
    Init {
        /// The stage's name.
        stage: Arc<str>,
        /// What `init` returned.
        reason: ExitReason,
    },
}

impl StartError {
    pub(crate) fn init(context: &StageContext, reason: ExitReason) -> Self {
        Self::Init { stage: context.stage.clone(), reason }
    }
}
