//! The error of a push.

use thiserror::Error;

use crate::payload::PayloadError;

/// An event was not sent to a client.
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::{ChannelContext, PushError}};
/// use serde_json::json;
///
/// /// Whether the client is still connected.
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
