//! Version 1 of the channel protocol: objects, `{"topic", "event", "payload", "ref"}`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    frame::Frame,
    message::{Body, ClientMessage, write_string},
    reference::Ref,
};

/// A client's message. Unknown keys are ignored.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    topic: &'a RawValue,
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow, rename = "ref")]
    reference: &'a RawValue,
    /// Clients of this version rarely send one.
    #[serde(borrow, default)]
    join_ref: Option<&'a RawValue>,
}

/// Decodes a message; `None` if the text is not a message.
pub(super) fn decode(text: &str) -> Option<ClientMessage<'_>> {
    // Serde would also accept an array of the values.
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let object: Object<'_> = serde_json::from_str(text).ok()?;
    Some(ClientMessage {
        join_ref: Cow::Borrowed(object.join_ref.map_or("null", RawValue::get)),
        reference: Cow::Borrowed(object.reference.get()),
        topic: Cow::Borrowed(object.topic.get()),
        event: Cow::Borrowed(object.event.get()),
        payload: Body::Json(object.payload.get()),
    })
}

/// Encodes a message. It has no join reference.
pub(super) fn text<E>(
    reference: &Ref,
    topic: &str,
    event: &str,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Frame, E> {
    Frame::text(|out| {
        out.extend_from_slice(b"{\"topic\":");
        out.extend_from_slice(topic.as_bytes());
        out.extend_from_slice(b",\"event\":");
        write_string(event, out);
        out.extend_from_slice(b",\"ref\":");
        out.extend_from_slice(reference.json().as_bytes());
        out.extend_from_slice(b",\"payload\":");
        payload(out)?;
        out.push(b'}');
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_message_is_an_object_with_four_keys_and_maybe_more() {
        let text = r#" {"ref":"5","more":1,"payload":{"a":[1]},"event":"ping","topic":"room:1"} "#;
        let message = decode(text).unwrap();
        assert_eq!((message.join_ref().json(), message.reference().json()), ("null", "\"5\""));
        assert_eq!(message.topic().as_deref(), Some("room:1"));
        assert_eq!(message.event().as_deref(), Some("ping"));
        assert!(matches!(message.payload, Body::Json(r#"{"a":[1]}"#)));

        let nulls = r#"{"topic":null,"event":null,"payload":null,"ref":null,"join_ref":9}"#;
        let message = decode(nulls).unwrap();
        assert_eq!((message.join_ref().json(), message.reference().json()), ("9", "null"));
        assert_eq!((message.topic(), message.event()), (None, None));
    }

    #[test]
    fn c_046_an_array_is_not_a_message() {
        assert!(decode(r#"["1","2","room:1","ping",{}]"#).is_none());
        assert!(decode(r#"["room:1","ping",{},"2","1"]"#).is_none());
    }

    #[test]
    fn c_047_a_missing_key_is_not_a_message() {
        let whole = r#"{"topic":"t","event":"e","payload":{},"ref":"1"}"#;
        assert!(decode(whole).is_some());
        for key in ["topic", "event", "payload", "ref"] {
            let without = whole.replacen(&format!("\"{key}\""), "\"other\"", 1);
            assert!(decode(&without).is_none(), "{without}");
        }
    }
}
