//! Why a client is not sent an event.

use thiserror::Error;

use crate::payload::PayloadError;

/// Why a client was not sent an event.
///
/// ```
/// use pipeline_ws_sink::{Channel, ChannelContext, PushError};
/// use serde_json::json;
///
/// /// Whether the client is still there.
/// fn greet<C: Channel>(cx: &ChannelContext<C>) -> bool {
///     !matches!(cx.push("hello", json!({})), Err(PushError::Ended))
/// }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PushError {
    /// The socket has ended.
    #[error("the socket has ended")]
    Ended,
    /// The event cannot be sent.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}
