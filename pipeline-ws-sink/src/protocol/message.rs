//! Messages of the channel protocol, in both versions.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use pipeline_core::timed::Timeline;
use thiserror::Error;

use super::{
    binary,
    escape::surrogates_are_paired,
    frame::Frame,
    reference::{Ref, quoted, string},
    v1, v2,
    version::Version,
};
use crate::{
    outbox::{CountedPush, EventKey, SharedFrame},
    payload::{IntoPayload, Payload, PayloadError},
};

/// The maximum length of a client's names and references, in bytes: the capacity of a field in a
/// binary frame.
const LONGEST_NAME: usize = 255;

/// The event of a join request.
pub(crate) const JOIN: &str = "phx_join";
/// The event of a leave request.
pub(crate) const LEAVE: &str = "phx_leave";
const REPLY: &str = "phx_reply";
const CLOSE: &str = "phx_close";
const ERROR: &str = "phx_error";

/// The events of presences, which all clients on a topic trust.
const PRESENCE: [&str; 2] = ["presence_state", "presence_diff"];

/// A message field that holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    JoinRef,
    Reference,
    Topic,
    Event,
}

/// A message as received from the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Valid UTF-8.
    Text(Bytes),
    Binary(Bytes),
}

/// Received data that is not a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Unreadable {
    #[error("not a message of the channel protocol")]
    NotAMessage,
    /// Text is UTF-8, and so are the fields of a binary message.
    #[error("not valid UTF-8")]
    NotUtf8,
}

impl Received {
    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        let (Self::Text(bytes) | Self::Binary(bytes)) = self;
        bytes.len()
    }
}

/// A client's message, borrowed from the received data.
#[derive(Debug)]
pub(crate) struct ClientMessage<'a> {
    // All of these are JSON.
    pub(super) join_ref: Cow<'a, str>,
    pub(super) reference: Cow<'a, str>,
    pub(super) topic: Cow<'a, str>,
    pub(super) event: Cow<'a, str>,
    pub(super) payload: Body<'a>,
}

#[derive(Debug)]
pub(super) enum Body<'a> {
    Json(&'a str),
    Binary(&'a [u8]),
}

impl<'a> ClientMessage<'a> {
    /// Decodes a message.
    ///
    /// Version 1 is JSON in any kind of frame: some of its clients send binary frames.
    ///
    /// # Errors
    ///
    /// The data is not a message.
    pub(crate) fn decode(version: Version, received: &'a Received) -> Result<Self, Unreadable> {
        let (decode, text): (fn(&'a str) -> Option<Self>, _) = match (version, received) {
            (Version::V2, Received::Binary(frame)) => return binary::decode(frame),
            (Version::V2, Received::Text(text)) => (v2::decode, text),
            (Version::V1, Received::Text(text) | Received::Binary(text)) => (v1::decode, text),
        };
        let text = std::str::from_utf8(text).map_err(|_| Unreadable::NotUtf8)?;
        let message = decode(text).filter(|_| surrogates_are_paired(text));
        message.ok_or(Unreadable::NotAMessage)
    }

    /// The field that is longer than 255 bytes, and its length. The server keeps topic and join
    /// reference for as long as a channel lives, and sends them with every frame.
    pub(crate) fn too_long(&self) -> Option<(Field, usize)> {
        let fields = [
            (Field::JoinRef, &self.join_ref),
            (Field::Reference, &self.reference),
            (Field::Topic, &self.topic),
            (Field::Event, &self.event),
        ];
        let lengths = fields.into_iter().map(|(field, json)| (field, plain_length(json)));
        lengths.into_iter().find(|(_, length)| *length > LONGEST_NAME)
    }

    pub(crate) fn join_ref(&self) -> Ref {
        Ref::new(&self.join_ref)
    }

    pub(crate) fn reference(&self) -> Ref {
        Ref::new(&self.reference)
    }

    /// The topic; `None` if it is not a string, and so matches no channel.
    pub(crate) fn topic(&self) -> Option<Cow<'_, str>> {
        string(&self.topic)
    }

    /// The topic as JSON, to be sent back unchanged.
    pub(crate) fn topic_json(&self) -> &str {
        &self.topic
    }

    /// The event; `None` if it is not a string.
    pub(crate) fn event(&self) -> Option<Cow<'_, str>> {
        string(&self.event)
    }

    /// The payload, sharing the memory of the received data.
    pub(crate) fn payload(&self, received: &Received) -> Payload {
        let (Received::Text(whole) | Received::Binary(whole)) = received;
        match self.payload {
            Body::Json(json) => Payload::from_json(whole.slice_ref(json.as_bytes())),
            Body::Binary(bytes) => Payload::binary(whole.slice_ref(bytes)),
        }
    }
}

/// The address of a channel's message: the topic, the join that it belongs to, and the client's
/// version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) version: Version,
    pub(crate) join_ref: &'a Ref,
    /// The topic as JSON.
    pub(crate) topic: &'a str,
}

impl Address<'_> {
    /// The answer to a client's message.
    pub(crate) fn reply(
        self,
        reference: &Ref,
        status: &str,
        response: &Payload,
    ) -> Result<Frame, PayloadError> {
        if let Some(bytes) = response.as_binary() {
            self.has_binary()?;
            let (join_ref, reference) = (self.join_ref.plain(), reference.plain());
            return binary::reply(&join_ref, &reference, &self.plain_topic(), status, bytes);
        }
        self.text(reference, REPLY, |out| {
            out.extend_from_slice(b"{\"status\":");
            write_string(status, out);
            out.extend_from_slice(b",\"response\":");
            out.extend_from_slice(response.bytes());
            out.push(b'}');
            Ok(())
        })
    }

    /// The channel has ended normally.
    pub(crate) fn close(self) -> Frame {
        self.known(CLOSE, b"{}")
    }

    /// The channel has crashed.
    pub(crate) fn error(self) -> Frame {
        self.known(ERROR, br#"{"reason":"channel_crash"}"#)
    }

    /// A message from the server to this client alone.
    pub(crate) fn push(
        self,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<Frame, PayloadError> {
        if payload.is_binary() {
            self.has_binary()?;
            let payload = payload.into_payload()?;
            let join_ref = self.join_ref.plain();
            return binary::push(&join_ref, &self.plain_topic(), event, payload.bytes());
        }
        self.text(&Ref::NULL, event, |out| write_object(payload, out))
    }

    /// A message about a channel's end: both references are those of the join.
    fn known(self, event: &str, payload: &[u8]) -> Frame {
        let written: Result<Frame, std::convert::Infallible> =
            self.text(self.join_ref, event, |out| {
                out.extend_from_slice(payload);
                Ok(())
            });
        match written {
            Ok(frame) => frame,
        }
    }

    fn text<E>(
        self,
        reference: &Ref,
        event: &str,
        payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Frame, E> {
        match self.version {
            Version::V1 => v1::text(reference, self.topic, event, payload),
            Version::V2 => v2::text(self.join_ref, reference, self.topic, event, payload),
        }
    }

    fn has_binary(self) -> Result<(), PayloadError> {
        match self.version {
            Version::V1 => Err(PayloadError::NoBinary),
            Version::V2 => Ok(()),
        }
    }

    fn plain_topic(&self) -> Cow<'_, str> {
        string(self.topic).unwrap_or(Cow::Borrowed(self.topic))
    }
}

/// A broadcast, encoded once for each version: its frame has no join reference, so all subscribers
/// share it.
#[derive(Debug)]
pub(crate) struct Encoded {
    topic: Arc<str>,
    event: Box<str>,
    /// The offset of the payload in the frame's body.
    payload: usize,
    is_binary: bool,
    key: EventKey,
    v2: SharedFrame,
    /// Built when the first subscriber needs it; `None` if this version cannot express it.
    v1: OnceLock<Option<SharedFrame>>,
}

impl Encoded {
    /// Like [`new`](Self::new) for an application, which must not send the events of the protocol
    /// and of presences: it may take an event's name from a client.
    pub(crate) fn by_application(
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<Self, PayloadError> {
        if is_reserved(event) || PRESENCE.contains(&event) {
            return Err(PayloadError::Reserved { event: event.to_owned() });
        }
        Self::new(topic, event, payload)
    }

    pub(crate) fn new(
        topic: &str,
        event: &str,
        payload: impl IntoPayload,
    ) -> Result<Self, PayloadError> {
        let is_binary = payload.is_binary();
        let (start, v2) = if is_binary {
            let payload = payload.into_payload()?;
            let frame = binary::broadcast(topic, event, payload.bytes())?;
            (frame.body_len() - payload.bytes().len(), frame)
        } else {
            let mut start = 0;
            let frame = v2::text(&Ref::NULL, &Ref::NULL, &quoted(topic), event, |out| {
                start = out.len();
                write_object(payload, out)
            })?;
            (frame.in_body(start), frame)
        };
        let key = EventKey::new(topic, event);
        let (topic, event, v2) = (topic.into(), event.into(), SharedFrame::new(v2, key));
        Ok(Self { topic, event, payload: start, is_binary, key, v2, v1: OnceLock::new() })
    }

    /// Sets the times so far. With them, the time of the write to each socket is recorded.
    pub(crate) fn timed(self, timeline: Option<Timeline>) -> Self {
        Self { v2: self.v2.timed(timeline), v1: OnceLock::new(), ..self }
    }

    /// Sets the push that counts its copies, if the outcome is wanted.
    pub(crate) fn counted(self, push: Option<Arc<CountedPush>>) -> Self {
        Self { v2: self.v2.counted(push), v1: OnceLock::new(), ..self }
    }

    /// The push that counts its copies, if the outcome is wanted.
    pub(crate) fn push(&self) -> Option<&Arc<CountedPush>> {
        self.v2.push()
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn shared_topic(&self) -> &Arc<str> {
        &self.topic
    }

    pub(crate) fn event(&self) -> &str {
        &self.event
    }

    /// The payload, sharing the memory of the frame.
    pub(crate) fn payload(&self) -> Payload {
        let body = self.v2.frame().body();
        if self.is_binary {
            Payload::binary(body.slice(self.payload..))
        } else {
            // The payload is followed by the end of the array.
            Payload::from_json(body.slice(self.payload..body.len() - 1))
        }
    }

    /// The times of the push so far, if it is timed.
    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        self.v2.timeline()
    }

    /// The frame for clients of a version, or `None` if that version cannot express it.
    pub(crate) fn frame(&self, version: Version) -> Option<&SharedFrame> {
        match version {
            Version::V1 => self.v1.get_or_init(|| self.v1_frame()).as_ref(),
            Version::V2 => Some(&self.v2),
        }
    }

    fn v1_frame(&self) -> Option<SharedFrame> {
        let payload = self.payload();
        let json = payload.json()?;
        let written = v1::text(&Ref::NULL, &quoted(&self.topic), &self.event, |out| {
            out.extend_from_slice(json.as_bytes());
            Ok::<_, std::convert::Infallible>(())
        });
        let frame = SharedFrame::new(written.ok()?, self.key);
        Some(frame.timed(self.timeline().copied()).counted(self.push().cloned()))
    }
}

/// Whether an event is reserved for the protocol.
pub(crate) fn is_reserved(event: &str) -> bool {
    event.starts_with("phx_")
}

/// The length of a string's content, or of any other value's JSON.
fn plain_length(json: &str) -> usize {
    // A string that is short as JSON is also short without quotes and escapes.
    if json.len() <= LONGEST_NAME {
        return json.len();
    }
    string(json).map_or(json.len(), |text| text.len())
}

pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string is always JSON, and memory takes it");
}

/// Writes a payload that has to be an object, as in pushes and broadcasts.
fn write_object(payload: impl IntoPayload, out: &mut Vec<u8>) -> Result<(), PayloadError> {
    let start = out.len();
    payload.write(out)?;
    // A client's payload may begin with whitespace.
    let first = out[start..].iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') { Ok(()) } else { Err(PayloadError::NotAnObject) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(frame: &Frame) -> Value {
        serde_json::from_slice(&frame.body()).unwrap()
    }

    fn text(text: &str) -> Received {
        Received::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    const BOTH: [Version; 2] = [Version::V1, Version::V2];

    #[test]
    fn a_payload_shares_the_memory_of_its_message() {
        let received = text(r#"["1","2","t","e",{"a":1}]"#);
        let message = ClientMessage::decode(Version::V2, &received).unwrap();
        assert_eq!(message.payload(&received).json(), Some(r#"{"a":1}"#));
        let received = Received::Binary(Bytes::from_static(b"\x00\x01\x01\x01\x0112te\xfe"));
        let message = ClientMessage::decode(Version::V2, &received).unwrap();
        assert_eq!(message.payload(&received), Payload::binary(vec![0xfe]));
    }

    #[test]
    fn a_lone_surrogate_makes_a_message_invalid() {
        for message in [r#"[1,2,"t","e",{"lone":"\ud83d"}]"#, r#"["\ud83d",2,"t","e",{}]"#] {
            assert!(ClientMessage::decode(Version::V2, &text(message)).is_err(), "{message}");
        }
    }

    #[test]
    fn names_and_references_have_at_most_255_bytes() {
        let too_long = |fields: [&str; 4]| {
            let [join_ref, reference, topic, event] = fields;
            let text = text(&format!("[{join_ref},{reference},{topic},{event},{{}}]"));
            ClientMessage::decode(Version::V2, &text).unwrap().too_long()
        };
        let (fits, long) = (format!("\"{}\"", "x".repeat(255)), format!("\"{}\"", "x".repeat(256)));
        let escaped = format!("\"{}\"", r"\u0041".repeat(255));
        assert_eq!(too_long([&fits; 4]), None);
        assert_eq!(too_long([&escaped; 4]), None, "the decoded length counts");
        assert_eq!(too_long([&long, "1", "1", "1"]), Some((Field::JoinRef, 256)));
        assert_eq!(too_long(["1", &long, "1", "1"]), Some((Field::Reference, 256)));
        assert_eq!(too_long(["1", "1", &long, "1"]), Some((Field::Topic, 256)));
        assert_eq!(too_long(["1", "1", "1", &long]), Some((Field::Event, 256)));
        let number = "1".repeat(256);
        assert_eq!(too_long(["1", &number, "1", "1"]), Some((Field::Reference, 256)));
    }

    #[test]
    fn c_049_version_1_is_json_in_binary_frames_too() {
        let json = br#"{"topic":"room:lobby","event":"phx_join","payload":{},"ref":"1"}"#;
        let received = Received::Binary(Bytes::from_static(json));
        let message = ClientMessage::decode(Version::V1, &received).unwrap();
        assert_eq!(message.event().as_deref(), Some(JOIN));
        assert_eq!(message.payload(&received).json(), Some("{}"));

        let received = Received::Binary(Bytes::from_static(b"\x00\x01\x01\x01\x0112te"));
        let decoded = ClientMessage::decode(Version::V1, &received);
        assert_eq!(decoded.unwrap_err(), Unreadable::NotAMessage);
        assert!(ClientMessage::decode(Version::V2, &received).is_ok());
    }

    #[test]
    fn invalid_utf8_is_distinguished_from_other_invalid_messages() {
        for received in [Received::Text, Received::Binary] {
            let decoded = received(Bytes::from_static(b"\xe9"));
            let decoded = ClientMessage::decode(Version::V1, &decoded).unwrap_err();
            assert_eq!(decoded, Unreadable::NotUtf8);
        }
        let topic = Received::Binary(Bytes::from_static(b"\x00\x01\x01\x02\x0112\xe9te"));
        let decoded = ClientMessage::decode(Version::V2, &topic).unwrap_err();
        assert_eq!(decoded, Unreadable::NotUtf8);
    }

    #[test]
    fn frames_carry_the_references_of_their_kind() {
        let (join_ref, reference) = (Ref::new("\"1\""), Ref::new("7"));
        let topic = quoted("room:\"lobby\"");
        let [v1, v2] = BOTH.map(|version| Address { version, join_ref: &join_ref, topic: &topic });
        let response = Payload::new(&json!({"a": [1, null]})).unwrap();
        let answer = json!({"status": "ok", "response": {"a": [1, null]}});
        let replied =
            |address: Address<'_>| parsed(&address.reply(&reference, "ok", &response).unwrap());
        assert_eq!(replied(v2), json!(["1", 7, "room:\"lobby\"", "phx_reply", answer]));
        assert_eq!(
            replied(v1),
            json!({"topic": "room:\"lobby\"", "event": "phx_reply", "ref": 7, "payload": answer})
        );
        assert_eq!(parsed(&v2.close()), json!(["1", "1", "room:\"lobby\"", "phx_close", {}]));
        assert_eq!(
            parsed(&v1.close()),
            json!({"topic": "room:\"lobby\"", "event": "phx_close", "ref": "1", "payload": {}})
        );
        assert_eq!(
            parsed(&v2.error()),
            json!(["1", "1", "room:\"lobby\"", "phx_error", {"reason": "channel_crash"}])
        );
        assert_eq!(
            parsed(&v2.push("tick", json!({"i": 1})).unwrap()),
            json!(["1", null, "room:\"lobby\"", "tick", {"i": 1}])
        );
        assert_eq!(
            parsed(&v1.push("tick", json!({"i": 1})).unwrap()),
            json!({"topic": "room:\"lobby\"", "event": "tick", "ref": null, "payload": {"i": 1}})
        );
    }

    #[test]
    fn binary_frames_are_for_version_2() {
        let (join_ref, reference) = (Ref::new("\"1\""), Ref::new("7"));
        let [v1, v2] = BOTH.map(|version| Address { version, join_ref: &join_ref, topic: "\"t\"" });
        let bytes = Payload::binary(vec![9]);
        assert_eq!(v2.push("e", &bytes).unwrap().body()[..], *b"\x00\x01\x01\x011te\x09");
        let reply = v2.reply(&reference, "ok", &bytes).unwrap();
        assert_eq!(reply.body()[..], *b"\x01\x01\x01\x01\x0217tok\x09");
        assert!(matches!(v1.push("e", &bytes), Err(PayloadError::NoBinary)));
        assert!(matches!(v1.reply(&reference, "ok", &bytes), Err(PayloadError::NoBinary)));
    }

    #[test]
    fn a_broadcast_has_a_frame_for_each_version() {
        let broadcast = Encoded::new("room:1", "shouted", json!({"m": "é"})).unwrap();
        let frame = |version| parsed(broadcast.frame(version).unwrap().frame());
        assert_eq!(frame(Version::V2), json!([null, null, "room:1", "shouted", {"m": "é"}]));
        assert_eq!(
            frame(Version::V1),
            json!({"topic": "room:1", "event": "shouted", "ref": null, "payload": {"m": "é"}})
        );
        assert_eq!(broadcast.payload().json(), Some(r#"{"m":"é"}"#));

        let broadcast = Encoded::new("t", "e", Payload::binary(vec![9])).unwrap();
        assert_eq!(
            broadcast.frame(Version::V2).unwrap().frame().body()[..],
            *b"\x02\x01\x01te\x09"
        );
        assert!(broadcast.frame(Version::V1).is_none());
    }

    #[test]
    fn an_application_cannot_broadcast_the_events_of_the_protocol_and_of_presences() {
        for event in ["phx_close", "phx_error", "phx_reply", "phx_x", "presence_diff"] {
            let error = Encoded::by_application("t", event, json!({})).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the event {event:?} is reserved for the protocol")
            );
        }
        for event in ["phx", "presence", "message"] {
            assert!(Encoded::by_application("t", event, json!({})).is_ok());
        }
    }

    #[test]
    fn only_objects_are_pushed_and_broadcast() {
        let refused = |payload: Value| Encoded::new("t", "e", payload).unwrap_err();
        for payload in [json!([1]), json!("text"), json!(null), json!(7)] {
            assert!(matches!(refused(payload), PayloadError::NotAnObject));
        }
        let unspeakable = std::collections::HashMap::from([((1, 2), 3)]);
        let error = Encoded::new("t", "e", &unspeakable).unwrap_err();
        assert!(matches!(error, PayloadError::Encode(_)));
    }
}
