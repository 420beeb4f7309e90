//! Binary frames of version 2: a kind, the lengths of the fields, the fields, the payload.

use std::borrow::Cow;

use super::{
    frame::Frame,
    message::{Body, ClientMessage, Unreadable},
    reference::quoted,
};
use crate::payload::PayloadError;

const PUSH: u8 = 0;
const REPLY: u8 = 1;
const BROADCAST: u8 = 2;

/// Decodes a message. Clients send only pushes; theirs have a reference, and a server's have none.
pub(super) fn decode(frame: &[u8]) -> Result<ClientMessage<'_>, Unreadable> {
    let [PUSH, join_ref, reference, topic, event, rest @ ..] = frame else {
        return Err(Unreadable::NotAMessage);
    };
    let mut rest = rest;
    let mut field = |length: &u8| {
        let cut = rest.split_at_checked(usize::from(*length));
        let (field, after) = cut.ok_or(Unreadable::NotAMessage)?;
        rest = after;
        let text = std::str::from_utf8(field).map_err(|_| Unreadable::NotUtf8)?;
        Ok(Cow::Owned(quoted(text)))
    };
    let (join_ref, reference) = (field(join_ref)?, field(reference)?);
    let (topic, event) = (field(topic)?, field(event)?);
    Ok(ClientMessage { join_ref, reference, topic, event, payload: Body::Binary(rest) })
}

/// A message from the server to one client.
pub(super) fn push(
    join_ref: &str,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Result<Frame, PayloadError> {
    write(PUSH, &[("join_ref", join_ref), ("topic", topic), ("event", event)], payload)
}

/// The answer to a client's message.
pub(super) fn reply(
    join_ref: &str,
    reference: &str,
    topic: &str,
    status: &str,
    response: &[u8],
) -> Result<Frame, PayloadError> {
    let fields = [("join_ref", join_ref), ("ref", reference), ("topic", topic), ("status", status)];
    write(REPLY, &fields, response)
}

/// A message to all clients on a topic. It has no join reference, so all share it.
pub(super) fn broadcast(topic: &str, event: &str, payload: &[u8]) -> Result<Frame, PayloadError> {
    write(BROADCAST, &[("topic", topic), ("event", event)], payload)
}

fn write(kind: u8, fields: &[(&'static str, &str)], payload: &[u8]) -> Result<Frame, PayloadError> {
    Frame::binary(|out| {
        out.push(kind);
        for &(field, text) in fields {
            let length = text.len();
            out.push(u8::try_from(length).map_err(|_| PayloadError::TooLong { field, length })?);
        }
        for (_, text) in fields {
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(payload);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: &[u8] = &[1, 2, 3, 0xff];

    #[test]
    fn a_clients_push_has_both_references() {
        let message = decode(b"\x00\x01\x01\x0a\x0812room:lobbybin_echo\x01\x02\x03\xff").unwrap();
        assert_eq!((message.join_ref().json(), message.reference().json()), ("\"1\"", "\"2\""));
        assert_eq!(message.topic().as_deref(), Some("room:lobby"));
        assert_eq!(message.event().as_deref(), Some("bin_echo"));
        assert!(matches!(message.payload, Body::Binary(BYTES)));

        let empty = decode(&[0; 5]).unwrap();
        assert_eq!((empty.join_ref().json(), empty.reference().json()), ("\"\"", "\"\""));
    }

    #[test]
    fn server_messages_have_the_fields_of_their_kind() {
        let bytes = |frame: Result<Frame, PayloadError>| frame.unwrap().body().to_vec();
        assert_eq!(
            bytes(push("1", "room:lobby", "tick", BYTES)),
            b"\x00\x01\x0a\x041room:lobbytick\x01\x02\x03\xff"
        );
        assert_eq!(
            bytes(reply("1", "2", "room:lobby", "ok", BYTES)),
            b"\x01\x01\x01\x0a\x0212room:lobbyok\x01\x02\x03\xff"
        );
        assert_eq!(bytes(broadcast("t", "e", b"")), b"\x02\x01\x01te");
    }

    #[test]
    fn a_field_has_at_most_255_bytes() {
        let (fits, long) = ("é".repeat(127) + "x", "é".repeat(128));
        assert!(push("1", &fits, &fits, BYTES).is_ok());
        let error = reply("1", "2", "t", &long, BYTES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the status of a binary frame has 256 bytes: the maximum is 255"
        );
    }

    #[test]
    fn c_048_only_a_push_is_a_message() {
        let cases: [&[u8]; 6] = [
            b"",
            b"\x00\x01\x01\x01",
            b"\x01\x01\x01\x01\x01abcd",
            b"\x02\x01\x01te",
            b"\x09\x00\x00\x00\x00",
            b"\x00\x01\x01\x0a\x0812room:lobby",
        ];
        for case in cases {
            assert_eq!(decode(case).unwrap_err(), Unreadable::NotAMessage, "{case:?}");
        }
        let not_utf8 = decode(b"\x00\x01\x01\x01\x0112t\xff");
        assert_eq!(not_utf8.unwrap_err(), Unreadable::NotUtf8);
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
