//! The messages of clients: both serializers, as text and as binary. Whatever is accepted says the same as
//! a JSON parser finds in it, and is the same when it is encoded and decoded again.
//!
//! The lowest bit of the first byte selects the version, the next one the kind of frame.

use std::fmt;

use bytes::Bytes;
use pipeline_ws_sink::{
    Payload,
    fuzzing::{ClientsMessage, ServersMessage, decode_message, encode_message},
};
use serde_json::{
    Value,
    de::Deserializer as JsonDeserializer,
};

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"[null,null,\"\",\"\",{}]",
    b"[\"1\",\"2\",\"room:1\",\"phx_join\",{}]",
    b"{\"topic\":\"t\",\"event\":\"e\",\"payload\":{},\"ref\":\"1\"}",
    b"\"join_ref\":",
    b"\"topic\":",
    b"\"event\":",
    b"\"payload\":",
    b"\"ref\":",
    b"phx_leave",
    b"heartbeat",
    b"phoenix",
    b"\\u0000",
    b"\\ud83d\\ude00",
    b"\\ud83d",
    b"\\udc00",
    b"1e999",
    b"-0.0",
    b"[[[[[[[[",
    b"]]]]]]]]",
    b"\x00\x01\x01\x01\x01",
    b"\xc3\xa9",
];

pub(crate) fn run(data: &[u8]) {
    let [flags, data @ ..] = data else { return };
    let (is_v1, is_binary) = (flags & 1 == 1, flags & 2 == 2);
    if !is_binary && std::str::from_utf8(data).is_err() {
        return; // refused by the connection
    }
    let message = decode_message(is_v1, is_binary, Bytes::copy_from_slice(data));
    if is_binary && !is_v1 {
        assert_eq!(message, binary(data), "a binary message");
        if let Some(message) = message {
            assert_eq!(decode_message(false, true, binary_again(&message).into()), Some(message));
        }
        return;
    }
    let text = std::str::from_utf8(data).unwrap_or_default();
    let parsed = if is_v1 { object(text) } else { array(text) };
    match (message, parsed) {
        (Some(message), parsed) => {
            if let Parsed::Message(parsed) = parsed {
                assert_eq!(Fields::of(&message), parsed, "the fields of the message");
            } else {
                assert_eq!(parsed, Parsed::Unknown, "accepted, but a parser finds no message in it");
            }
            text_again(is_v1, &message);
        }
        (None, parsed) => assert!(
            !matches!(parsed, Parsed::Message(_)) || std::str::from_utf8(data).is_err(),
            "refused, but a parser finds a message in it"
        ),
    }
}

/// A binary message, by the format's description.
fn binary(data: &[u8]) -> Option<ClientsMessage> {
    let (&[0, join_ref, reference, topic, event], mut rest) = data.split_first_chunk()? else {
        return None;
    };
    let mut field = |length: u8| {
        let (field, later) = rest.split_at_checked(length.into())?;
        rest = later;
        std::str::from_utf8(field).ok().map(str::to_owned)
    };
    let (join_ref, reference) = (field(join_ref)?, field(reference)?);
    let (topic, event) = (field(topic)?, field(event)?);
    let json = |text: &str| Value::from(text).to_string();
    Some(ClientsMessage {
        join_ref: json(&join_ref),
        reference: json(&reference),
        topic: json(&topic),
        plain_topic: Some(topic),
        plain_event: Some(event),
        payload: Payload::binary(rest.to_vec()),
        too_long: None,
    })
}

fn binary_again(message: &ClientsMessage) -> Vec<u8> {
    let plain = |json: &str| serde_json::from_str::<String>(json).expect("a string");
    let fields = [
        plain(&message.join_ref),
        plain(&message.reference),
        plain(&message.topic),
        message.plain_event.clone().expect("a string"),
    ];
    let mut data = vec![0];
    data.extend(fields.iter().map(|field| u8::try_from(field.len()).expect("it was one byte")));
    fields.iter().for_each(|field| data.extend_from_slice(field.as_bytes()));
    data.extend_from_slice(message.payload.as_binary().expect("a binary payload"));
    data
}

/// Encodes a message as the server does, and decodes it as a client's message.
fn text_again(is_v1: bool, message: &ClientsMessage) {
    let Some(event) = &message.plain_event else { return };
    let pushed = encode_message(
        is_v1,
        &message.join_ref,
        &message.topic,
        ServersMessage::Push(event, &message.payload),
    );
    let is_object = |json: &str| json.trim_start_matches([' ', '\n', '\r', '\t']).starts_with('{');
    let Ok(frame) = pushed else {
        assert!(!message.payload.json().is_some_and(is_object), "an object cannot be pushed");
        return;
    };
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let again = decode_message(is_v1, false, frame.slice(header..));
    let again = again.expect("an accepted message, encoded again, is accepted");
    assert_eq!(again.topic, message.topic);
    assert_eq!(again.plain_topic, message.plain_topic);
    assert_eq!(again.plain_event, message.plain_event);
    assert_eq!(again.payload, message.payload);
    if !is_v1 {
        assert_eq!(again.join_ref, message.join_ref);
    }
}

/// The fields of a text message as values.
#[derive(Debug, PartialEq)]
struct Fields {
    join_ref: Value,
    reference: Value,
    topic: Value,
    event: Option<String>,
    payload: Value,
}

impl Fields {
    fn of(message: &ClientsMessage) -> Self {
        let value = |json: &str| serde_json::from_str(json).expect("a part of JSON is JSON");
        Self {
            join_ref: value(&message.join_ref),
            reference: value(&message.reference),
            topic: value(&message.topic),
            event: message.plain_event.clone(),
            payload: value(message.payload.json().expect("a text has a JSON payload")),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Parsed {
    Message(Fields),
    /// JSON, but no message.
    Other,
    /// Not JSON, or JSON that only a lazy parser accepts: very deep, or with very large numbers.
    Unknown,
}

fn array(text: &str) -> Parsed {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(elements)) => match <[Value; 5]>::try_from(
            elements.into_iter().take(5).collect::<Vec<_>>(),
        ) {
            Ok([join_ref, reference, topic, event, payload]) => {
                let event = event.as_str().map(str::to_owned);
                Parsed::Message(Fields { join_ref, reference, topic, event, payload })
            }
            Err(_) => Parsed::Other,
        },
        Ok(_) => Parsed::Other,
        Err(error) => not_parsed(&error),
    }
}

fn object(text: &str) -> Parsed {
    if !text.trim_start_matches([' ', '\n', '\r', '\t']).starts_with('{') {
        return Parsed::Other;
    }
    let mut json = JsonDeserializer::from_str(text);
    let pairs = serde::Deserializer::deserialize_map(&mut json, Pairs)
        .and_then(|pairs| json.end().map(|()| pairs));
    let pairs = match pairs {
        Ok(pairs) => pairs,
        Err(error) => return not_parsed(&error),
    };
    let mut twice = false;
    let mut take = |name: &str| {
        let mut found = pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let value = found.next().cloned();
        twice |= found.next().is_some();
        value
    };
    let fields = (take("topic"), take("event"), take("payload"), take("ref"), take("join_ref"));
    match fields {
        (Some(topic), Some(event), Some(payload), Some(reference), join_ref) if !twice => {
            let event = event.as_str().map(str::to_owned);
            let join_ref = join_ref.unwrap_or_default();
            Parsed::Message(Fields { join_ref, reference, topic, event, payload })
        }
        _ => Parsed::Other,
    }
}

fn not_parsed(error: &serde_json::Error) -> Parsed {
    let text = error.to_string();
    let is_lazy = text.contains("recursion limit") || text.contains("number out of range");
    if is_lazy { Parsed::Unknown } else { Parsed::Other }
}

/// All pairs of an object, also those with the same key.
struct Pairs;

impl<'de> serde::de::Visitor<'de> for Pairs {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}
