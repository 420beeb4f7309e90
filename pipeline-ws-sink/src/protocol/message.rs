//! Version 2 of the channel protocol as text: `[join_ref, ref, topic, event, payload]`.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{escape::surrogates_are_paired, frame::Frame};
use crate::{
    outbox::{EventKey, SharedFrame},
    payload::{IntoPayload, Payload, PayloadError},
};

/// The event of a join request.
pub(crate) const JOIN: &str = "phx_join";
/// The event of a leave request.
pub(crate) const LEAVE: &str = "phx_leave";
const REPLY: &str = "phx_reply";
const CLOSE: &str = "phx_close";
const ERROR: &str = "phx_error";

/// A message reference as the client sent it: any JSON value, and given back as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ref(Option<Arc<str>>);

impl Ref {
    pub(crate) const NULL: Self = Self(None);

    fn new(raw: &RawValue) -> Self {
        Self((raw.get() != "null").then(|| raw.get().into()))
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The reference as JSON.
    fn json(&self) -> &str {
        self.0.as_deref().unwrap_or("null")
    }

    /// This reference, or the other one if this is null.
    pub(crate) fn or(&self, other: &Self) -> Self {
        if self.is_null() { other.clone() } else { self.clone() }
    }
}

/// A message of a client. It borrows from the text that it came in.
#[derive(Debug)]
pub(crate) struct ClientMessage<'a> {
    join_ref: &'a RawValue,
    reference: &'a RawValue,
    topic: &'a RawValue,
    event: &'a RawValue,
    payload: &'a RawValue,
}

impl<'a> ClientMessage<'a> {
    /// Reads a message; `None` for a text that is none.
    pub(crate) fn decode(text: &'a str) -> Option<Self> {
        let message = serde_json::from_str(text).ok()?;
        surrogates_are_paired(text).then_some(message)
    }

    pub(crate) fn join_ref(&self) -> Ref {
        Ref::new(self.join_ref)
    }

    pub(crate) fn reference(&self) -> Ref {
        Ref::new(self.reference)
    }

    /// The topic; `None` if it is not a string, and so names no channel.
    pub(crate) fn topic(&self) -> Option<Cow<'a, str>> {
        string(self.topic)
    }

    /// The topic as JSON, to be given back as it came.
    pub(crate) fn topic_json(&self) -> &'a str {
        self.topic.get()
    }

    /// The event; `None` if it is not a string.
    pub(crate) fn event(&self) -> Option<Cow<'a, str>> {
        string(self.event)
    }

    /// The payload, sharing the memory of `text`, which is what the message was decoded from.
    pub(crate) fn payload(&self, text: &Bytes) -> Payload {
        Payload::from_json(text.slice_ref(self.payload.get().as_bytes()))
    }
}

/// The string that a JSON value is, without copying it if it has no escapes.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    struct Text;

    impl<'de> Visitor<'de> for Text {
        type Value = Cow<'de, str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(text))
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }

    serde_json::Deserializer::from_str(raw.get()).deserialize_str(Text).ok()
}

impl<'de> Deserialize<'de> for ClientMessage<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = ClientMessage<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of five elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut next = || {
                    seq.next_element()?.ok_or_else(|| A::Error::custom("fewer than five elements"))
                };
                let message = ClientMessage {
                    join_ref: next()?,
                    reference: next()?,
                    topic: next()?,
                    event: next()?,
                    payload: next()?,
                };
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(message)
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

/// Whom a message of a channel goes to: the topic, and the join that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) join_ref: &'a Ref,
    /// The topic as JSON.
    pub(crate) topic: &'a str,
}

impl Address<'_> {
    /// The answer to a client's message.
    pub(crate) fn reply(self, reference: &Ref, status: &str, response: &Payload) -> Frame {
        self.known(reference, REPLY, |out| {
            out.extend_from_slice(b"{\"status\":");
            write_string(status, out);
            out.extend_from_slice(b",\"response\":");
            out.extend_from_slice(response.json().as_bytes());
            out.push(b'}');
        })
    }

    /// The channel has ended in good order.
    pub(crate) fn close(self) -> Frame {
        self.known(self.join_ref, CLOSE, |out| out.extend_from_slice(b"{}"))
    }

    /// The channel has crashed.
    pub(crate) fn error(self) -> Frame {
        self.known(self.join_ref, ERROR, |out| {
            out.extend_from_slice(br#"{"reason":"channel_crash"}"#);
        })
    }

    /// A message of the server to this client alone.
    pub(crate) fn push(
        self,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<Frame, PayloadError> {
        self.frame(&Ref::NULL, event, |out| write_object(payload, out))
    }

    /// A frame whose payload cannot fail.
    fn known(self, reference: &Ref, event: &str, payload: impl FnOnce(&mut Vec<u8>)) -> Frame {
        let written: Result<Frame, std::convert::Infallible> =
            self.frame(reference, event, |out| {
                payload(out);
                Ok(())
            });
        match written {
            Ok(frame) => frame,
        }
    }

    fn frame<E>(
        self,
        reference: &Ref,
        event: &str,
        payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Frame, E> {
        Frame::text(|out| {
            out.push(b'[');
            out.extend_from_slice(self.join_ref.json().as_bytes());
            out.push(b',');
            out.extend_from_slice(reference.json().as_bytes());
            out.push(b',');
            out.extend_from_slice(self.topic.as_bytes());
            out.push(b',');
            write_string(event, out);
            out.push(b',');
            payload(out)?;
            out.push(b']');
            Ok(())
        })
    }
}

/// A broadcast, encoded: one frame for every subscriber, because it names no join.
#[derive(Clone, Debug)]
pub(crate) struct Broadcast {
    pub(crate) frame: SharedFrame,
    /// The payload alone, out of the frame's memory, for those who intercept it.
    pub(crate) payload: Payload,
}

impl Broadcast {
    pub(crate) fn encode(
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<Self, PayloadError> {
        let mut payload_length = 0;
        let key = EventKey::new(topic, event);
        let topic = topic_json(topic);
        let address = Address { join_ref: &Ref::NULL, topic: &topic };
        let frame = address.frame(&Ref::NULL, event, |out| {
            let start = out.len();
            write_object(payload, out)?;
            payload_length = out.len() - start;
            Ok(())
        })?;
        let body = frame.body();
        let end = body.len() - 1;
        let payload = Payload::from_json(body.slice(end - payload_length..end));
        Ok(Self { frame: SharedFrame::new(frame, key), payload })
    }
}

/// A topic as JSON.
pub(crate) fn topic_json(topic: &str) -> String {
    let mut json = Vec::with_capacity(topic.len() + 2);
    write_string(topic, &mut json);
    String::from_utf8(json).expect("JSON is UTF-8")
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string is always JSON, and memory takes it");
}

/// Writes a payload that has to be an object, as those of pushes and broadcasts do.
fn write_object(payload: impl IntoPayload, out: &mut Vec<u8>) -> Result<(), PayloadError> {
    let start = out.len();
    payload.write_json(out)?;
    if out[start..].first() == Some(&b'{') { Ok(()) } else { Err(PayloadError::NotAnObject) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refs(join_ref: &str, reference: &str) -> (Ref, Ref) {
        let raw = |json: &str| Ref::new(&RawValue::from_string(json.to_owned()).unwrap());
        (raw(join_ref), raw(reference))
    }

    fn parsed(frame: &Frame) -> Value {
        serde_json::from_slice(&frame.body()).unwrap()
    }

    #[test]
    fn a_client_message_is_an_array_of_at_least_five_elements() {
        let text = r#" [ "1" , "5", "room:lobby","new_msg", {"body":"hi"} , "more", 7] "#;
        let message = ClientMessage::decode(text).unwrap();
        assert_eq!((message.join_ref(), message.reference()), refs("\"1\"", "\"5\""));
        assert_eq!(message.topic().as_deref(), Some("room:lobby"));
        assert_eq!(message.event().as_deref(), Some("new_msg"));
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let shared = std::str::from_utf8(&bytes).unwrap();
        let message = ClientMessage::decode(shared).unwrap();
        assert_eq!(message.payload(&bytes).json(), r#"{"body":"hi"}"#);
    }

    #[test]
    fn any_json_value_will_do_for_a_reference_a_topic_or_an_event() {
        let message = ClientMessage::decode(r#"[9,null,5,null,"text"]"#).unwrap();
        assert_eq!((message.join_ref(), message.reference()), refs("9", "null"));
        assert_eq!((message.topic(), message.topic_json(), message.event()), (None, "5", None));
    }

    #[test]
    fn what_is_no_message_is_refused() {
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
            r#"[1,2,"t","e",{"lone":"\ud83d"}]"#,
            r#"["\ud83d",2,"t","e",{}]"#,
        ] {
            assert!(ClientMessage::decode(text).is_none(), "{text}");
        }
    }

    #[test]
    fn frames_carry_the_references_that_their_kind_has() {
        let (join_ref, reference) = refs("\"1\"", "7");
        let topic = topic_json("room:\"lobby\"");
        let address = Address { join_ref: &join_ref, topic: &topic };
        let response = Payload::new(&json!({"a": [1, null]})).unwrap();
        assert_eq!(
            parsed(&address.reply(&reference, "ok", &response)),
            json!(["1", 7, "room:\"lobby\"", "phx_reply", {"status": "ok", "response": {"a": [1, null]}}])
        );
        assert_eq!(parsed(&address.close()), json!(["1", "1", "room:\"lobby\"", "phx_close", {}]));
        assert_eq!(
            parsed(&address.error()),
            json!(["1", "1", "room:\"lobby\"", "phx_error", {"reason": "channel_crash"}])
        );
        assert_eq!(
            parsed(&address.push("tick", json!({"i": 1})).unwrap()),
            json!(["1", null, "room:\"lobby\"", "tick", {"i": 1}])
        );
        let broadcast = Broadcast::encode("room:1", "shouted", json!({"m": "é"})).unwrap();
        assert_eq!(
            parsed(broadcast.frame.get(false)),
            json!([null, null, "room:1", "shouted", {"m": "é"}])
        );
        assert_eq!(broadcast.payload.json(), r#"{"m":"é"}"#);
    }

    #[test]
    fn only_objects_are_pushed_and_broadcast() {
        let refused = |payload: Value| Broadcast::encode("t", "e", payload).unwrap_err();
        for payload in [json!([1]), json!("text"), json!(null), json!(7)] {
            assert!(matches!(refused(payload), PayloadError::NotAnObject));
        }
        let unspeakable = std::collections::HashMap::from([((1, 2), 3)]);
        let error = Broadcast::encode("t", "e", &unspeakable).unwrap_err();
        assert!(matches!(error, PayloadError::Encode(_)));
    }
}
