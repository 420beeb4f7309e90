//! The messages of the server: replies, pushes, broadcasts and a channel's end, in both versions, as a client
//! reads them.

use bytes::Bytes;
use pipeline_ws_sink::{
    Payload,
    fuzzing::{ServersMessage, encode_broadcast, encode_message},
};
use serde_json::{Value, json};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[b"phx_reply", b"room:1", b"\"", b"\\", b"\n", b"\xff"];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let is_v1 = input.flag();
    let join_ref = reference(&mut input);
    let topic = if input.below(8) == 0 {
        // Longer than a field of a binary frame.
        input.text(60).repeat(10)
    } else {
        input.text(60)
    };
    let (event, other_ref) = (input.text(30), reference(&mut input));
    let payload = match input.below(4) {
        0 => Payload::binary(input.bytes(255).to_vec()),
        1 => Payload::new(&input.json(3)).expect("it is JSON"),
        _ => Payload::new(&input.object(3)).expect("it is JSON"),
    };
    let server = Server { is_v1, join_ref, topic, event, other_ref, payload };
    server.broadcasts();
    server.pushes();
    server.replies();
    server.ends();
}

/// A reference as a client may have chosen it.
fn reference(input: &mut Input<'_>) -> Value {
    match input.below(4) {
        0 => Value::Null,
        1 => input.text(12).into(),
        2 => input.byte().to_string().into(),
        _ => match input.below(4) {
            0 => input.odd_number().into(),
            1 => input.flag().into(),
            2 => json!([input.text(5), null]),
            _ => json!({ "a": input.byte() }),
        },
    }
}

struct Server {
    is_v1: bool,
    join_ref: Value,
    topic: String,
    event: String,
    other_ref: Value,
    payload: Payload,
}

impl Server {
    fn send(&self, message: ServersMessage<'_>) -> Option<Received> {
        let topic = Value::from(&*self.topic).to_string();
        let frame = encode_message(self.is_v1, &self.join_ref.to_string(), &topic, message);
        frame.ok().map(|frame| received(&frame))
    }

    /// A text message with these fields, in this version.
    fn text(&self, join_ref: &Value, reference: &Value, event: &str, payload: &Value) -> Received {
        let topic = &self.topic;
        Received::Text(if self.is_v1 {
            json!({ "topic": topic, "event": event, "ref": reference, "payload": payload })
        } else {
            json!([join_ref, reference, topic, event, payload])
        })
    }

    fn value(&self) -> Option<Value> {
        self.payload.json().map(|json| serde_json::from_str(json).expect("it is JSON"))
    }

    fn pushes(&self) {
        let sent = self.send(ServersMessage::Push(&self.event, &self.payload));
        let expected = match (self.value(), self.payload.as_binary()) {
            (Some(value @ Value::Object(_)), _) => {
                Some(self.text(&self.join_ref, &Value::Null, &self.event, &value))
            }
            (None, Some(payload)) if !self.is_v1 => {
                binary(0, &[&plain(&self.join_ref), &self.topic, &self.event], payload)
            }
            _ => None,
        };
        assert_eq!(sent, expected, "a push");
    }

    fn replies(&self) {
        let reference = self.other_ref.to_string();
        let sent = self.send(ServersMessage::Reply(&reference, &self.event, &self.payload));
        let expected = match (self.value(), self.payload.as_binary()) {
            (Some(response), _) => {
                let payload = json!({ "status": self.event, "response": response });
                Some(self.text(&self.join_ref, &self.other_ref, "phx_reply", &payload))
            }
            (None, Some(payload)) if !self.is_v1 => {
                let refs = (plain(&self.join_ref), plain(&self.other_ref));
                binary(1, &[&refs.0, &refs.1, &self.topic, &self.event], payload)
            }
            _ => None,
        };
        assert_eq!(sent, expected, "a reply");
    }

    fn ends(&self) {
        let (join_ref, crash) = (&self.join_ref, json!({ "reason": "channel_crash" }));
        let closed = self.text(join_ref, join_ref, "phx_close", &json!({}));
        assert_eq!(self.send(ServersMessage::Close), Some(closed), "a close");
        let failed = self.text(join_ref, join_ref, "phx_error", &crash);
        assert_eq!(self.send(ServersMessage::Error), Some(failed), "an error");
    }

    fn broadcasts(&self) {
        let (topic, event) = (&self.topic, &self.event);
        let sent = encode_broadcast(topic, event, &self.payload).ok();
        let frames = sent.as_ref().map(|sent| (received(&sent.v2), sent.v1.as_ref().map(received)));
        let expected = match (self.value(), self.payload.as_binary()) {
            (Some(payload @ Value::Object(_)), _) => {
                let v2 = Received::Text(json!([null, null, topic, event, payload]));
                let v1 = json!({ "topic": topic, "event": event, "ref": null, "payload": payload });
                Some((v2, Some(Received::Text(v1))))
            }
            (None, Some(payload)) => binary(2, &[topic, event], payload).map(|v2| (v2, None)),
            _ => None,
        };
        assert_eq!(frames, expected, "a broadcast");
        if let Some(sent) = sent {
            assert_eq!(sent.payload, self.payload, "the payload of a broadcast");
        }
    }
}

/// A reference in a binary frame.
fn plain(reference: &Value) -> String {
    match reference {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A message as a client receives it.
#[derive(Debug, PartialEq)]
enum Received {
    Text(Value),
    Binary(u8, Vec<u8>),
}

/// A binary message, if its fields are short enough.
fn binary(kind: u8, fields: &[&str], payload: &[u8]) -> Option<Received> {
    let mut body: Vec<u8> = Vec::new();
    for field in fields {
        body.push(u8::try_from(field.len()).ok()?);
    }
    fields.iter().for_each(|field| body.extend_from_slice(field.as_bytes()));
    body.extend_from_slice(payload);
    Some(Received::Binary(kind, body))
}

/// The message in an unmasked frame.
fn received(frame: &Bytes) -> Received {
    let (header, length) = match frame[1] {
        126 => (4, u64::from(u16::from_be_bytes([frame[2], frame[3]]))),
        127 => (10, u64::from_be_bytes(frame[2..10].try_into().expect("eight bytes"))),
        short => (2, short.into()),
    };
    let body = &frame[header..];
    assert_eq!(body.len() as u64, length, "the frame's length");
    match (frame[0], body) {
        (0x81, text) => Received::Text(serde_json::from_slice(text).expect("a text is JSON")),
        (0x82, [kind, body @ ..]) => Received::Binary(*kind, body.to_vec()),
        (first, _) => unreachable!("a frame that begins with {first:#x}"),
    }
}
