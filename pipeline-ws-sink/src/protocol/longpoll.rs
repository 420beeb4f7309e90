//! Long polling: the contents of requests and answers. Pure.
//!
//! Every answer is HTTP 200, so that a page of any origin may read it; the result of the request is
//! the `status` in its body.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use serde::Serialize;

use super::{frame::Frame, message::Received};

/// The header that carries a session's token, if the query does not.
pub(crate) const TOKEN_HEADER: &str = "x-phoenix-longpoll-token";

/// The header that carries the client's auth token.
pub(crate) const AUTH_HEADER: &str = "x-phoenix-authtoken";

/// The content type of a body with one message per line.
const BATCH: &str = "application/x-ndjson";

/// The result of a request, as in the body of its answer. The official client closes its connection
/// on an unknown number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// There are messages, or the sent messages were accepted.
    Ok,
    /// No message came while the client waited.
    Nothing,
    /// The sent messages cannot be decoded.
    Unreadable,
    /// The page or the client may not connect.
    Refused,
    /// The session did not accept the sent messages, or not in time.
    NotTaken,
    /// There is no such session; in the answer to a poll, that there is a new one.
    Gone,
}

impl Status {
    fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::Nothing => 204,
            Self::Unreadable => 400,
            Self::Refused => 403,
            Self::NotTaken => 408,
            Self::Gone => 410,
        }
    }
}

/// The body of an answer.
#[derive(Serialize)]
struct Envelope<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<&'a str>>,
}

impl Envelope<'_> {
    fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("numbers and strings are JSON").into()
    }
}

/// An answer that holds only the result.
pub(crate) fn result_body(status: Status) -> Bytes {
    Envelope { status: status.code(), token: None, messages: None }.encode()
}

/// The answer to a poll: the messages in these frames, each as a string. Binary frames are left
/// out; see [`unsendable`].
pub(crate) fn messages_body(status: Status, token: &str, frames: &[Frame]) -> Bytes {
    let messages = frames.iter().filter_map(Frame::as_text).collect();
    Envelope { status: status.code(), token: Some(token), messages: Some(messages) }.encode()
}

/// How many of these frames an answer cannot carry.
pub(crate) fn unsendable(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.as_text().is_none()).count()
}

/// A line is neither a text of version 2 nor base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadLine;

/// The messages in the body of a request, in order.
#[derive(Debug)]
pub(crate) enum Batch {
    /// The whole body is one text.
    Whole(Option<Bytes>),
    /// One message per line.
    Lines(Bytes),
}

impl Batch {
    /// Splits a body of this content type.
    pub(crate) fn new(content_type: Option<&str>, body: Bytes) -> Self {
        let essence = content_type.and_then(|name| name.split(';').next()).unwrap_or_default();
        if essence.trim().eq_ignore_ascii_case(BATCH) {
            Self::Lines(body)
        } else {
            Self::Whole(Some(body))
        }
    }
}

impl Iterator for Batch {
    type Item = Result<Received, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = match self {
            Self::Whole(body) => return body.take().map(|body| Ok(Received::Text(body))),
            Self::Lines(rest) => rest,
        };
        let mut left = &rest[..];
        let message = loop {
            let Some(first) = left.first() else { break None };
            if *first == b'\n' {
                left = &left[1..];
                continue;
            }
            let end = left.iter().position(|byte| *byte == b'\n');
            let (line, behind) = left.split_at(end.unwrap_or(left.len()));
            left = behind;
            match line.strip_suffix(b"\r").unwrap_or(line) {
                [] => {}
                // Copied, because a slice would keep the whole body alive while the line waits.
                text @ [b'[', ..] => break Some(Ok(Received::Text(Bytes::copy_from_slice(text)))),
                encoded => {
                    let decoded = STANDARD.decode(encoded).map_err(|_| BadLine);
                    break Some(decoded.map(|bytes| Received::Binary(bytes.into())));
                }
            }
        };
        let taken = rest.len() - left.len();
        rest.advance(taken);
        message
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn frame(text: &str) -> Frame {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(text.as_bytes());
            Ok::<_, ()>(())
        };
        Frame::text(write).unwrap()
    }

    fn binary(bytes: &[u8]) -> Frame {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(bytes);
            Ok::<_, ()>(())
        };
        Frame::binary(write).unwrap()
    }

    fn parsed(body: &Bytes) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    fn read(content_type: Option<&str>, body: &'static str) -> Vec<Result<Received, BadLine>> {
        Batch::new(content_type, Bytes::from_static(body.as_bytes())).collect()
    }

    fn text(text: &'static str) -> Result<Received, BadLine> {
        Ok(Received::Text(Bytes::from_static(text.as_bytes())))
    }

    fn bytes(bytes: &'static [u8]) -> Result<Received, BadLine> {
        Ok(Received::Binary(Bytes::from_static(bytes)))
    }

    #[test]
    fn answers_have_the_statuses_of_the_official_client() {
        let codes = [
            (Status::Ok, 200),
            (Status::Nothing, 204),
            (Status::Unreadable, 400),
            (Status::Refused, 403),
            (Status::NotTaken, 408),
            (Status::Gone, 410),
        ];
        for (status, code) in codes {
            assert_eq!(parsed(&result_body(status)), json!({ "status": code }));
        }
    }

    #[test]
    fn messages_are_strings_in_the_order_in_which_they_were_sent() {
        let frames = [frame(r#"["1","1","t","e",{"a":"é"}]"#), frame("second")];
        assert_eq!(
            parsed(&messages_body(Status::Ok, "abc", &frames)),
            json!({
                "status": 200,
                "token": "abc",
                "messages": [r#"["1","1","t","e",{"a":"é"}]"#, "second"],
            })
        );
        let nothing = json!({ "status": 204, "token": "abc", "messages": [] });
        assert_eq!(parsed(&messages_body(Status::Nothing, "abc", &[])), nothing);
    }

    #[test]
    fn binary_frames_are_left_out_and_others_still_arrive() {
        let frames = [frame("first"), binary(b"\xff\x00"), frame("second"), binary(b"ascii")];
        let answer = parsed(&messages_body(Status::Ok, "abc", &frames));
        assert_eq!(answer["messages"], json!(["first", "second"]));
        assert_eq!(unsendable(&frames), 2);
    }

    #[test]
    fn c_182_lines_of_text_and_base64_are_decoded_in_order() {
        let body = "[1]\nAAEC\n[2]";
        let read = read(Some(BATCH), body);
        assert_eq!(read, [text("[1]"), bytes(&[0, 1, 2]), text("[2]")]);
    }

    #[test]
    fn both_line_endings_are_accepted_and_empty_lines_ignored() {
        assert_eq!(read(Some(BATCH), "[1]\r\n\r\n\n[2]\n"), [text("[1]"), text("[2]")]);
        assert_eq!(read(Some(BATCH), ""), []);
        assert_eq!(read(Some(BATCH), "\n"), []);
    }

    #[test]
    fn a_line_keeps_only_its_own_memory() {
        let body = format!("[1]\n{}[2]", "\n".repeat(1 << 16));
        for line in Batch::new(Some(BATCH), body.into()) {
            let Ok(Received::Text(line)) = line else { panic!("expected a text, got {line:?}") };
            assert!(line.try_into_mut().unwrap().capacity() < 100);
        }
    }

    #[test]
    fn only_a_line_that_is_neither_text_nor_base64_is_bad() {
        for line in ["not json", "AAE", "{\"topic\":\"t\"}", " [1]", "-_-_"] {
            let mut batch = Batch::new(Some(BATCH), format!("[1]\n{line}\n[2]").into());
            assert_eq!(batch.next(), Some(text("[1]")));
            assert_eq!(batch.next(), Some(Err(BadLine)), "{line}");
            assert_eq!(batch.next(), Some(text("[2]")));
        }
    }

    #[test]
    fn more_than_a_hundred_lines_are_decoded() {
        let mut batch = Batch::new(Some(BATCH), "[1]\n".repeat(1000).into());
        assert_eq!(batch.by_ref().filter(Result::is_ok).count(), 1000);
    }

    #[test]
    fn a_body_of_any_other_type_is_one_text() {
        let body = "{\"topic\":\n\"t\"}";
        for content_type in [None, Some("application/json"), Some("text/plain"), Some("")] {
            assert_eq!(read(content_type, body), [text(body)], "{content_type:?}");
        }
    }

    #[test]
    fn the_type_of_a_batch_may_name_its_charset() {
        for content_type in [BATCH, "application/x-ndjson; charset=utf-8", "Application/X-NDJSON"] {
            assert_eq!(read(Some(content_type), "[1]\n[2]").len(), 2, "{content_type}");
        }
    }
}
