//! What messages carry.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The payload of a message: JSON that is parsed only when somebody asks for it.
///
/// ```
/// use pipeline_ws_sink::Payload;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Greeting {
///     name: String,
/// }
///
/// let payload = Payload::new(&Greeting { name: "Ada".into() })?;
/// assert_eq!(payload.json(), r#"{"name":"Ada"}"#);
/// let greeting: Greeting = payload.parse()?;
/// # Ok::<(), pipeline_ws_sink::PayloadError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    /// Valid JSON, and so valid UTF-8.
    json: Bytes,
}

impl Payload {
    /// The JSON of a value.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Encode`] if the value has no JSON form.
    pub fn new(value: &(impl Serialize + ?Sized)) -> Result<Self, PayloadError> {
        let json = serde_json::to_vec(value).map_err(PayloadError::Encode)?;
        Ok(Self { json: json.into() })
    }

    /// `{}`.
    #[must_use]
    pub fn empty() -> Self {
        Self { json: Bytes::from_static(b"{}") }
    }

    /// Takes text that is known to be JSON.
    pub(crate) fn from_json(json: Bytes) -> Self {
        Self { json }
    }

    /// The JSON text.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it cannot panic")]
    pub fn json(&self) -> &str {
        std::str::from_utf8(&self.json).expect("JSON is UTF-8")
    }

    /// Reads the payload as a type of the caller's choice, which may borrow from it.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Decode`] says what is wrong, and where.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, PayloadError> {
        serde_json::from_slice(&self.json).map_err(PayloadError::Decode)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.json())
    }
}

/// What can be sent as a payload: any value that serde can turn into JSON, or a [`Payload`], which
/// is passed on as it is.
pub trait IntoPayload {
    /// Appends the JSON.
    #[doc(hidden)]
    fn write_json(self, out: &mut Vec<u8>) -> Result<(), PayloadError>;
}

impl<T: Serialize> IntoPayload for T {
    fn write_json(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        serde_json::to_writer(out, &self).map_err(PayloadError::Encode)
    }
}

impl IntoPayload for &Payload {
    fn write_json(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        out.extend_from_slice(&self.json);
        Ok(())
    }
}

impl IntoPayload for Payload {
    fn write_json(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        (&self).write_json(out)
    }
}

/// What is wrong with a payload.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The value has no JSON form.
    #[error("the payload cannot be encoded as JSON")]
    Encode(#[source] serde_json::Error),
    /// The payload is not what the receiver expected.
    #[error("the payload is not as expected")]
    Decode(#[source] serde_json::Error),
    /// Pushes and broadcasts carry objects, `{..}`, because clients look into them.
    #[error("the payload of a push or a broadcast has to be a JSON object")]
    NotAnObject,
}
