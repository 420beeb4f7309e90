//! References: they identify a client's messages, and its joins of a topic.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// The reference of a message or of a join, chosen by the client: any JSON value, sent back
/// unchanged. Most references are strings.
///
/// Its display and its serialization are that value.
///
/// ```
/// use pipeline_ws_sink::{Channel, channel::ChannelContext};
/// use serde_json::json;
///
/// fn who<C: Channel>(cx: &ChannelContext<C>) -> serde_json::Value {
///     json!({ "ref": cx.reference(), "join_ref": cx.join_ref() })
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ref(Option<Arc<str>>);

impl Ref {
    pub(crate) const NULL: Self = Self(None);

    /// Parses a JSON value. A string is normalized, so that two strings compare equal by content.
    pub(crate) fn new(json: &str) -> Self {
        match json {
            "null" => Self::NULL,
            escaped if escaped.contains('\\') => match string(escaped) {
                Some(text) => Self(Some(quoted(&text).into())),
                None => Self(Some(json.into())),
            },
            plain => Self(Some(plain.into())),
        }
    }

    /// Whether the client sent no reference.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The reference as JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        self.0.as_deref().unwrap_or("null")
    }

    /// This reference, or the other one if this is null.
    pub(crate) fn or(&self, other: &Self) -> Self {
        if self.is_null() { other.clone() } else { self.clone() }
    }

    /// The reference as a field of a binary frame: a string without its quotes, and empty for null.
    pub(crate) fn plain(&self) -> Cow<'_, str> {
        match &self.0 {
            None => Cow::Borrowed(""),
            Some(json) => string(json).unwrap_or(Cow::Borrowed(json)),
        }
    }
}

/// Decodes a JSON string, without copying it if it has no escapes.
pub(crate) fn string(json: &str) -> Option<Cow<'_, str>> {
    match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        Some(_) => serde_json::from_str(json).ok().map(Cow::Owned),
        None => None,
    }
}

/// Encodes a string as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.json())
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.json())
    }
}

impl Serialize for Ref {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue =
            serde_json::from_str(self.json()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_sent_back_unchanged() {
        for json in ["\"1\"", "7", "1.0", "[1,2]", "{\"a\":null}", "null"] {
            let reference = Ref::new(json);
            assert_eq!((reference.json(), reference.is_null()), (json, json == "null"));
            assert_eq!(serde_json::to_string(&reference).unwrap(), json);
        }
    }

    #[test]
    fn references_are_equal_if_their_content_is() {
        assert_eq!(Ref::new(r#""\u00e9\/""#), Ref::new("\"é/\""));
        assert_ne!(Ref::new("\"1\""), Ref::new("1"));
    }

    #[test]
    fn in_a_binary_frame_a_string_has_no_quotes() {
        let plain = |json| Ref::new(json).plain().into_owned();
        assert_eq!(plain("\"1\""), "1");
        assert_eq!(plain(r#""a\"b\u00e9""#), "a\"bé");
        assert_eq!(plain("\"\""), "");
        assert_eq!(plain("7"), "7");
        assert_eq!(plain("null"), "");
    }
}
