//! Version 2 of the channel protocol as text: `[join_ref, ref, topic, event, payload]`.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    frame::Frame,
    message::{Body, ClientMessage, write_string},
    reference::Ref,
};

/// Decodes a message; `None` if the text is not a message.
pub(super) fn decode(text: &str) -> Option<ClientMessage<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let message = json.deserialize_seq(Elements).ok()?;
    json.end().ok()?;
    Some(message)
}

/// Five elements; further elements are ignored.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = ClientMessage<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of five elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut next = || -> Result<&'de str, A::Error> {
            let element = seq.next_element::<&RawValue>()?;
            Ok(element.ok_or_else(|| A::Error::custom("fewer than five elements"))?.get())
        };
        let message = ClientMessage {
            join_ref: Cow::Borrowed(next()?),
            reference: Cow::Borrowed(next()?),
            topic: Cow::Borrowed(next()?),
            event: Cow::Borrowed(next()?),
            payload: Body::Json(next()?),
        };
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(message)
    }
}

/// Encodes a message.
pub(super) fn text<E>(
    join_ref: &Ref,
    reference: &Ref,
    topic: &str,
    event: &str,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Frame, E> {
    Frame::text(|out| {
        out.push(b'[');
        out.extend_from_slice(join_ref.json().as_bytes());
        out.push(b',');
        out.extend_from_slice(reference.json().as_bytes());
        out.push(b',');
        out.extend_from_slice(topic.as_bytes());
        out.push(b',');
        write_string(event, out);
        out.push(b',');
        payload(out)?;
        out.push(b']');
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_message_is_an_array_of_at_least_five_elements() {
        let text = r#" [ "1" , "5", "room:lobby","new_msg", {"body":"hi"} , "more", 7] "#;
        let message = decode(text).unwrap();
        assert_eq!((message.join_ref().json(), message.reference().json()), ("\"1\"", "\"5\""));
        assert_eq!(message.topic().as_deref(), Some("room:lobby"));
        assert_eq!(message.event().as_deref(), Some("new_msg"));
        assert!(matches!(message.payload, Body::Json(r#"{"body":"hi"}"#)));
    }

    #[test]
    fn a_reference_a_topic_or_an_event_may_be_any_json_value() {
        let message = decode(r#"[9,null,5,null,"text"]"#).unwrap();
        assert_eq!((message.join_ref().json(), message.reference().json()), ("9", "null"));
        assert_eq!((message.topic(), message.topic_json(), message.event()), (None, "5", None));
    }

    #[test]
    fn invalid_messages_are_refused() {
        for text in [
            "",
            "not json",
            "null",
            "{}",
            "[1,2]",
            "[1,2,3,4]",
            r#"[1,2,"t","e",{}"#,
            r#"[1,2,"t","e",{}] x"#,
            r#"{"topic":"t","event":"e","payload":{},"ref":"1"}"#,
        ] {
            assert!(decode(text).is_none(), "{text}");
        }
    }
}
