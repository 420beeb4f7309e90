//! Messages that a test sends, and that it inspects. Pure.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    payload::Payload,
    protocol::{
        frame::Frame,
        message::{ClientMessage, Received},
        reference::{Ref, quoted},
        version::Version,
    },
    pubsub::broadcast::Broadcast,
};

/// A message on the wire, in version 2 of the protocol: see
/// [`TestSocket::frame`](super::TestSocket::frame).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireFrame {
    /// A text frame.
    Text(String),
    /// A binary frame.
    Binary(Bytes),
}

impl WireFrame {
    /// The JSON of a text frame; null for a binary frame.
    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Text(text) => serde_json::from_str(text).unwrap_or_default(),
            Self::Binary(_) => Value::Null,
        }
    }

    pub(super) fn of(frame: &Frame) -> Self {
        match frame.as_text() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Binary(frame.body()),
        }
    }

    pub(super) fn received(self) -> Received {
        match self {
            Self::Text(text) => Received::Text(text.into()),
            Self::Binary(bytes) => Received::Binary(bytes),
        }
    }
}

impl From<Value> for WireFrame {
    fn from(message: Value) -> Self {
        Self::Text(message.to_string())
    }
}

impl From<&str> for WireFrame {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A client's message, in the encoding of the official client.
pub(super) fn client_frame(
    join_ref: &Ref,
    reference: &Ref,
    topic: &str,
    event: &str,
    payload: &Payload,
) -> WireFrame {
    if let Some(json) = payload.json() {
        let (join_ref, reference) = (join_ref.json(), reference.json());
        let (topic, event) = (quoted(topic), quoted(event));
        return WireFrame::Text(format!("[{join_ref},{reference},{topic},{event},{json}]"));
    }
    let (join_ref, reference) = (join_ref.plain(), reference.plain());
    let fields = [&*join_ref, &*reference, topic, event];
    let mut frame = vec![0];
    let length = |field: &&str| u8::try_from(field.len()).expect("a field has 255 bytes at most");
    frame.extend(fields.iter().map(length));
    fields.iter().for_each(|field| frame.extend_from_slice(field.as_bytes()));
    frame.extend_from_slice(payload.bytes());
    WireFrame::Binary(frame.into())
}

/// A received message that no assertion has taken.
#[derive(Debug)]
pub(super) struct TestMessage {
    pub(super) to: Recipient,
    pub(super) topic: String,
    pub(super) join_ref: Ref,
    pub(super) content: Content,
    /// The frame, if a socket received it.
    pub(super) frame: Option<WireFrame>,
}

/// The recipient of a message, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Socket(u64),
    Listener(u64),
}

#[derive(Debug)]
pub(super) enum Content {
    Push { event: String, payload: Payload },
    Reply { reference: Ref, status: String, response: Payload },
    Broadcast { event: String, payload: Payload },
}

impl TestMessage {
    /// A message that a socket received.
    pub(super) fn to_socket(number: u64, frame: &Frame) -> Self {
        let (topic, join_ref, content) = text(frame)
            .or_else(|| binary(&frame.body()))
            .expect("a session sends messages of the protocol");
        let to = Recipient::Socket(number);
        Self { to, topic, join_ref, content, frame: Some(WireFrame::of(frame)) }
    }

    /// A message that a subscriber of a topic received.
    pub(super) fn to_listener(number: u64, broadcast: &Broadcast) -> Self {
        let (event, payload) = (broadcast.event().to_owned(), broadcast.payload().clone());
        Self {
            to: Recipient::Listener(number),
            topic: broadcast.topic().to_owned(),
            join_ref: Ref::NULL,
            content: Content::Broadcast { event, payload },
            frame: None,
        }
    }
}

fn text(frame: &Frame) -> Option<(String, Ref, Content)> {
    frame.as_text()?;
    let received = Received::Text(frame.body());
    let message = ClientMessage::decode(Version::V2, &received).ok()?;
    let topic = message.topic().unwrap_or_else(|| message.topic_json().into()).into_owned();
    let event = message.event()?.into_owned();
    let payload = message.payload(&received);
    let content = if event == "phx_reply" {
        #[derive(Deserialize)]
        struct Answer<'a> {
            status: String,
            #[serde(borrow)]
            response: &'a RawValue,
        }
        let Answer { status, response } = payload.parse().ok()?;
        let response = Payload::from_json(Bytes::copy_from_slice(response.get().as_bytes()));
        Content::Reply { reference: message.reference(), status, response }
    } else {
        Content::Push { event, payload }
    };
    Some((topic, message.join_ref(), content))
}

fn binary(frame: &Bytes) -> Option<(String, Ref, Content)> {
    let (kind, rest) = frame.split_first()?;
    // The number of fields of each kind.
    let count = match kind {
        0 => 3,
        1 => 4,
        _ => 2,
    };
    let (lengths, mut rest) = rest.split_at_checked(count)?;
    let mut fields = Vec::new();
    for length in lengths {
        let (field, after) = rest.split_at_checked(usize::from(*length))?;
        fields.push(String::from_utf8(field.to_vec()).ok()?);
        rest = after;
    }
    let payload = Payload::binary(frame.slice_ref(rest));
    let reference =
        |field: &str| if field.is_empty() { Ref::NULL } else { Ref::new(&quoted(field)) };
    Some(match <[String; 4]>::try_from(fields) {
        Ok([join_ref, to, topic, status]) => {
            let (reference, response) = (reference(&to), payload);
            let join_ref = Ref::new(&quoted(&join_ref));
            (topic, join_ref, Content::Reply { reference, status, response })
        }
        Err(mut fields) => {
            let (event, topic) = (fields.pop()?, fields.pop()?);
            let join_ref = reference(&fields.pop().unwrap_or_default());
            (topic, join_ref, Content::Push { event, payload })
        }
    })
}

impl fmt::Display for TestMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topic = &self.topic;
        match &self.content {
            Content::Push { event, payload } => {
                write!(f, "push of {event:?} on {topic}: {payload:?}")
            }
            Content::Reply { reference, status, response } => {
                write!(f, "reply {status:?} to {reference} on {topic}: {response:?}")
            }
            Content::Broadcast { event, payload } => {
                write!(f, "broadcast of {event:?} on {topic}: {payload:?}")
            }
        }
    }
}

/// The expectation of an assertion, except for the payload.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) to: Recipient,
    pub(super) topic: String,
    pub(super) kind: ExpectedKind,
}

#[derive(Clone, Debug)]
pub(super) enum ExpectedKind {
    Push { join_ref: Ref, event: String },
    Reply { reference: Ref, status: String },
    Broadcast { event: String },
}

impl Expected {
    /// The payload of a message, if it is of this kind.
    pub(super) fn of<'a>(&self, message: &'a TestMessage) -> Option<&'a Payload> {
        if self.to != message.to || self.topic != message.topic {
            return None;
        }
        let (matches, payload) = match (&self.kind, &message.content) {
            (ExpectedKind::Push { join_ref, event: wanted }, Content::Push { event, payload }) => {
                // A broadcast has no join reference. Messages of an earlier join are skipped.
                let own = message.join_ref.is_null() || message.join_ref == *join_ref;
                (own && event == wanted, payload)
            }
            (
                ExpectedKind::Reply { reference: to, status: wanted },
                Content::Reply { reference, status, response },
            ) => (reference == to && status == wanted, response),
            (ExpectedKind::Broadcast { event: wanted }, Content::Broadcast { event, payload }) => {
                (event == wanted, payload)
            }
            _ => return None,
        };
        matches.then_some(payload)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ExpectedKind::Push { event, .. } => write!(f, "push of {event:?}")?,
            ExpectedKind::Reply { reference, status } => {
                write!(f, "reply {status:?} to {reference}")?;
            }
            ExpectedKind::Broadcast { event } => write!(f, "broadcast of {event:?}")?,
        }
        write!(f, " on {}", self.topic)
    }
}
