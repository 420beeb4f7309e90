//! Frames of a client of Phoenix Channels. Pure.

/// The opcode of a text.
pub const TEXT: u8 = 1;

/// The opcode of a frame that closes the connection.
pub const CLOSE: u8 = 8;

/// The opcode of a ping.
pub const PING: u8 = 9;

/// The opcode of the answer to a ping.
pub const PONG: u8 = 10;

/// A frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What kind of frame it is.
    pub opcode: u8,
    /// Its payload.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of the bytes, and its length. None if it is incomplete.
    #[must_use]
    pub fn first(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (head, length) = match bytes.get(1)? & 127 {
            126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
            short => (2, u64::from(short)),
        };
        let end = head + usize::try_from(length).ok()?;
        Some((Self { opcode: bytes[0] & 15, body: bytes.get(head..end)? }, end))
    }

    /// Whether the server closes the connection.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.opcode == CLOSE
    }

    /// Whether this is a reply with status `ok`.
    #[must_use]
    pub fn grants(&self) -> bool {
        contains(self.body, br#""status":"ok""#)
    }

    /// Whether this is the reply to a heartbeat.
    #[must_use]
    pub fn answers_heartbeat(&self) -> bool {
        self.body.starts_with(br#"[null,"h","phoenix","phx_reply""#)
    }

    /// Whether this is the reply to the join with this reference.
    #[must_use]
    pub fn answers_join(&self, reference: u32) -> bool {
        let joins = format!(r#"["{reference}","{reference}","#);
        self.body.starts_with(joins.as_bytes()) && contains(self.body, br#","phx_reply","#)
    }

    /// The number after this key. The last one if there are several.
    #[must_use]
    pub fn number(&self, key: &[u8]) -> Option<u64> {
        let at = self.body.windows(key.len()).rposition(|window| window == key)?;
        let digits = self.body[at + key.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
    }
}

/// The request that opens a WebSocket.
#[must_use]
pub fn upgrade(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The length of an HTTP response's head, if it is complete.
#[must_use]
pub fn head(bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    Some(bytes.windows(END.len()).position(|window| window == END)? + END.len())
}

/// The frame that joins a topic.
#[must_use]
pub fn join(topic: &str) -> Vec<u8> {
    join_as(topic, 1)
}

/// The frame that joins a topic, with this reference.
#[must_use]
pub fn join_as(topic: &str, reference: u32) -> Vec<u8> {
    let join = format!(r#"["{reference}","{reference}","{topic}","phx_join",{{}}]"#);
    client(TEXT, join.as_bytes())
}

/// A heartbeat.
#[must_use]
pub fn heartbeat() -> Vec<u8> {
    client(TEXT, br#"[null,"h","phoenix","heartbeat",{}]"#)
}

/// A frame of a client.
///
/// # Panics
///
/// If it has more than 65,535 bytes: clients of these measurements send short messages.
#[must_use]
pub fn client(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(body.len()) {
        Ok(short @ ..126) => frame.push(0x80 | short),
        _ => {
            let length = u16::try_from(body.len()).expect("a client sends short messages");
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    // A mask of zeros leaves the body unchanged.
    frame.extend([0; 4]);
    frame.extend(body);
    frame
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_separated_from_the_next() {
        let bytes = [&[0x81, 2, b'h', b'i', 0x81, 126, 1, 0][..], &[b'x'; 256], &[0x88]].concat();
        let (frame, length) = Frame::first(&bytes).unwrap();
        assert_eq!((frame.body, length), (&b"hi"[..], 4));
        let (frame, length) = Frame::first(&bytes[4..]).unwrap();
        assert_eq!((frame.body.len(), length, frame.closes()), (256, 260, false));
        assert!(Frame::first(&bytes[264..]).is_none());
    }

    #[test]
    fn an_incomplete_frame_is_none() {
        let long = [&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[b'x'; 65536]].concat();
        assert_eq!(Frame::first(&long).unwrap().1, long.len());
        for length in [0, 1, 2, 9, 10, long.len() - 1] {
            assert!(Frame::first(&long[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn numbers_are_found_after_their_keys() {
        let body = br#"{"n":7,"at_us":1700000000000000}"#;
        let frame = Frame { opcode: 1, body };
        assert_eq!(frame.number(br#""at_us":"#), Some(1_700_000_000_000_000));
        assert_eq!(frame.number(br#""n":"#), Some(7));
        assert_eq!(frame.number(br#""m":"#), None);
    }

    #[test]
    fn the_answer_to_a_join_has_its_reference() {
        let body = br#"["2","2","user:1","phx_reply",{"status":"ok","response":{}}]"#;
        let answer = Frame { opcode: TEXT, body };
        assert!(answer.answers_join(2) && !answer.answers_join(1) && !answer.answers_join(22));
        let closed = br#"["2","2","user:1","phx_close",{}]"#;
        assert!(!Frame { opcode: TEXT, body: closed }.answers_join(2));
    }

    #[test]
    fn joins_are_masked_frames() {
        let frame = join("room:1");
        let text = br#"["1","1","room:1","phx_join",{}]"#;
        assert_eq!(frame[..2], [0x81, 0x80 | u8::try_from(text.len()).unwrap()]);
        assert_eq!(&frame[6..], text);
        let again = join_as("room:1", 12);
        assert_eq!(&again[6..], br#"["12","12","room:1","phx_join",{}]"#);
        let long = join(&"x".repeat(200));
        assert_eq!((long[1], long.len()), (0x80 | 126, 8 + text.len() - 6 + 200));
    }
}
