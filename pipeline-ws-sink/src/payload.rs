//! The payload of messages.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use thiserror::Error;

use crate::protocol::escape::surrogates_are_paired;

/// The payload of a message: JSON that is parsed on demand, or bytes.
///
/// Bytes travel in the binary frames of the protocol's version 2.
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
/// assert_eq!(payload.json(), Some(r#"{"name":"Ada"}"#));
/// let greeting: Greeting = payload.parse()?;
///
/// let payload = Payload::binary(vec![1, 2, 3]);
/// assert_eq!(payload.as_binary().map(|bytes| bytes.len()), Some(3));
/// # Ok::<(), pipeline_ws_sink::payload::PayloadError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: Bytes,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Valid JSON, and so valid UTF-8.
    Json,
    Binary,
}

impl Payload {
    /// Encodes a value as JSON.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Encode`] if the value has no JSON form.
    pub fn new(value: &(impl Serialize + ?Sized)) -> Result<Self, PayloadError> {
        let json = serde_json::to_vec(value).map_err(PayloadError::Encode)?;
        Ok(Self::from_json(json.into()))
    }

    /// A binary payload.
    ///
    /// Only clients of version 2 can receive binary payloads. A broadcast skips the other clients.
    #[must_use]
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), kind: Kind::Binary }
    }

    /// `{}`.
    #[must_use]
    pub fn empty() -> Self {
        Self::from_json(Bytes::from_static(b"{}"))
    }

    /// Wraps JSON text that another program has written, such as another node. It is checked once and
    /// passed on as it is.
    ///
    /// ```
    /// use pipeline_ws_sink::Payload;
    ///
    /// let payload = Payload::json_text(r#"{"name": "Ada"}"#)?;
    /// assert_eq!(payload.json(), Some(r#"{"name": "Ada"}"#));
    /// assert!(Payload::json_text("{").is_err());
    /// # Ok::<(), pipeline_ws_sink::payload::PayloadError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`PayloadError::Decode`] if it is not JSON in UTF-8, or has half of a surrogate pair, which not
    /// every client can read.
    pub fn json_text(text: impl Into<Bytes>) -> Result<Self, PayloadError> {
        let bytes = text.into();
        let wrong = |what| PayloadError::Decode(serde::de::Error::custom(what));
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("the text is not UTF-8"))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(PayloadError::Decode)?;
        if !surrogates_are_paired(text) {
            return Err(wrong("the text has half of a surrogate pair"));
        }
        Ok(Self::from_json(bytes))
    }

    /// Wraps text that is known to be valid JSON.
    pub(crate) fn from_json(json: Bytes) -> Self {
        Self { bytes: json, kind: Kind::Json }
    }

    /// The JSON text, unless the payload is binary.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it cannot panic")]
    pub fn json(&self) -> Option<&str> {
        let json = self.kind == Kind::Json;
        json.then(|| std::str::from_utf8(&self.bytes).expect("JSON is UTF-8"))
    }

    /// The bytes of a binary payload.
    #[must_use]
    pub fn as_binary(&self) -> Option<&Bytes> {
        (self.kind == Kind::Binary).then_some(&self.bytes)
    }

    /// Whether the payload is binary.
    #[must_use]
    pub fn is_binary(&self) -> bool {
        self.kind == Kind::Binary
    }

    /// Deserializes the payload, borrowing from it where the type allows.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Decode`] says what is wrong, and where. [`PayloadError::NotJson`] if the
    /// payload is binary.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, PayloadError> {
        match self.kind {
            Kind::Json => serde_json::from_slice(&self.bytes).map_err(PayloadError::Decode),
            Kind::Binary => Err(PayloadError::NotJson),
        }
    }

    /// A copy of the payload in memory of its own.
    ///
    /// A payload shares the memory of the message that it arrived in, and keeps that memory alive,
    /// which may be far larger than the payload. Detach a payload that is kept for long, in a
    /// channel's history for example.
    ///
    /// ```
    /// # use pipeline_ws_sink::Payload;
    /// fn remember(history: &mut Vec<Payload>, said: &Payload) {
    ///     history.push(said.detached());
    /// }
    /// ```
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), kind: self.kind }
    }

    /// The bytes of either kind.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.json() {
            Some(json) => f.write_str(json),
            None => write!(f, "{} bytes", self.bytes.len()),
        }
    }
}

/// A value that can be sent as a payload: any value that serde can turn into JSON, or a
/// [`Payload`], which is passed on unchanged.
pub trait IntoPayload: Sized {
    /// Whether the value is binary rather than JSON.
    #[doc(hidden)]
    fn is_binary(&self) -> bool {
        false
    }

    /// Appends the JSON, or the bytes.
    #[doc(hidden)]
    fn write(self, out: &mut Vec<u8>) -> Result<(), PayloadError>;

    /// Converts the value into a payload.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Encode`] if the value has no JSON form.
    fn into_payload(self) -> Result<Payload, PayloadError> {
        let kind = if self.is_binary() { Kind::Binary } else { Kind::Json };
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(Payload { bytes: bytes.into(), kind })
    }
}

impl<T: Serialize> IntoPayload for T {
    fn write(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        serde_json::to_writer(out, &self).map_err(PayloadError::Encode)
    }
}

impl IntoPayload for &Payload {
    fn is_binary(&self) -> bool {
        Payload::is_binary(self)
    }

    fn write(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        out.extend_from_slice(&self.bytes);
        Ok(())
    }

    fn into_payload(self) -> Result<Payload, PayloadError> {
        Ok(self.clone())
    }
}

impl IntoPayload for Payload {
    fn is_binary(&self) -> bool {
        Payload::is_binary(self)
    }

    fn write(self, out: &mut Vec<u8>) -> Result<(), PayloadError> {
        (&self).write(out)
    }

    fn into_payload(self) -> Result<Payload, PayloadError> {
        Ok(self)
    }
}

/// An error of encoding, decoding or sending a payload.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The value has no JSON form.
    #[error("the payload cannot be encoded as JSON")]
    Encode(#[source] serde_json::Error),
    /// The payload does not match the type that the receiver expected.
    #[error("the payload does not match the expected type")]
    Decode(#[source] serde_json::Error),
    /// Pushes and broadcasts carry objects, `{..}`, because clients read their fields.
    #[error("the payload of a push or a broadcast has to be a JSON object, or binary")]
    NotAnObject,
    /// The receiver expected JSON, and the payload is binary.
    #[error("expected a JSON payload, found a binary one")]
    NotJson,
    /// The client speaks version 1 of the protocol, which has no binary payloads.
    #[error("the client speaks version 1 of the protocol, which has no binary payloads")]
    NoBinary,
    /// The event is reserved for the protocol. A client that received one from an application would
    /// take its channel for joined, answered, closed or crashed, or a user for present.
    #[error("the event {event:?} is reserved for the protocol")]
    Reserved {
        /// The event.
        event: String,
    },
    /// A binary frame has one byte for the length of each of its fields.
    #[error("the {field} of a binary frame has {length} bytes: the maximum is 255")]
    TooLong {
        /// Which field: `topic`, `event`, `ref`, `join_ref` or `status`.
        field: &'static str,
        /// The length in bytes.
        length: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_is_checked_and_kept_as_it_is() {
        for text in [r#"{"a": [1, 2]}"#, "{}", " [ 1 ]\n", r#""\ud83d\ude00""#, "1e5"] {
            assert_eq!(Payload::json_text(text).unwrap().json(), Some(text));
        }
        for text in ["", "{", "{} {}", "{'a':1}", r#""\ud83d""#, "nul"] {
            assert!(matches!(Payload::json_text(text), Err(PayloadError::Decode(_))), "{text}");
        }
        assert!(Payload::json_text(&b"\"\xff\""[..]).is_err());
    }

    #[test]
    fn a_detached_payload_shares_no_memory() {
        let message = Bytes::from(vec![b'1'; 4096]);
        for payload in [Payload::from_json(message.slice(..5)), Payload::binary(message.slice(..5))]
        {
            let detached = payload.detached();
            assert_eq!(detached, payload);
            assert_ne!(detached.bytes.as_ptr(), payload.bytes.as_ptr());
        }
    }
}
