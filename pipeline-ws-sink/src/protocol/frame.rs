//! Outgoing frames: built once, written unchanged to any number of sockets.

use bytes::{Buf, Bytes};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::deflate::deflate;

/// The maximum length of a frame's header from a server, which does not mask.
const HEADER: usize = 10;

/// The flag in a frame's first byte that marks a compressed message.
const RSV1: u8 = 0x40;

/// A complete WebSocket frame, including its header. Clones share the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    bytes: Bytes,
    /// The offset of the payload.
    body: usize,
    /// The capacity of the bytes' memory.
    held: usize,
}

impl Frame {
    /// A text frame. `write` appends the payload to its buffer.
    pub(crate) fn text<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        let mut buffer = Vec::with_capacity(256);
        buffer.resize(HEADER, 0);
        write(&mut buffer)?;
        Ok(Self::seal(OpCode::Data(Data::Text), buffer))
    }

    /// A binary frame. `write` appends the payload to its buffer.
    pub(crate) fn binary<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        let mut buffer = Vec::with_capacity(256);
        buffer.resize(HEADER, 0);
        write(&mut buffer)?;
        Ok(Self::seal(OpCode::Data(Data::Binary), buffer))
    }

    /// A close frame with a status code and no reason.
    #[cfg(test)]
    pub(crate) fn close(code: u16) -> Self {
        Self::close_because(code, "")
    }

    /// A close frame with a status code and a reason of at most 123 bytes.
    pub(crate) fn close_because(code: u16, reason: &str) -> Self {
        debug_assert!(reason.len() <= 123, "a control frame has at most 125 bytes of payload");
        Self::control(Control::Close, &[&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    /// The answer to a ping.
    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::control(Control::Pong, payload)
    }

    fn control(kind: Control, payload: &[u8]) -> Self {
        let mut buffer = vec![0; HEADER];
        buffer.extend_from_slice(payload);
        Self::seal(OpCode::Control(kind), buffer)
    }

    /// The same message compressed, for clients with permessage-deflate. `None` if that would not
    /// make it smaller, if it is not a message, or if it is compressed already.
    pub(crate) fn deflated(&self) -> Option<Self> {
        let first = self.bytes[0];
        let opcode = OpCode::from(first & 0x0f);
        if first & RSV1 != 0 || matches!(opcode, OpCode::Control(_)) {
            return None;
        }
        let mut buffer = vec![0; HEADER];
        deflate(&self.bytes[self.body..], &mut buffer)?;
        let header = FrameHeader { opcode, rsv1: true, ..FrameHeader::default() };
        Some(Self::seal_with(&header, buffer))
    }

    fn seal(opcode: OpCode, buffer: Vec<u8>) -> Self {
        Self::seal_with(&FrameHeader { opcode, ..FrameHeader::default() }, buffer)
    }

    /// Puts the header right before the payload, which begins at [`HEADER`].
    fn seal_with(header: &FrameHeader, mut buffer: Vec<u8>) -> Self {
        let length = (buffer.len() - HEADER) as u64;
        let (start, held) = (HEADER - header.len(length), buffer.capacity());
        let mut space = &mut buffer[start..HEADER];
        header.format(length, &mut space).expect("the header has exactly this length");
        let mut bytes = Bytes::from(buffer);
        bytes.advance(start);
        Self { bytes, body: HEADER - start, held }
    }

    /// The frame's bytes as written to the socket.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload.
    pub(crate) fn body(&self) -> Bytes {
        self.bytes.slice(self.body..)
    }

    /// The payload as text, if it is an uncompressed text frame.
    pub(crate) fn as_text(&self) -> Option<&str> {
        let is_plain_text = OpCode::from(self.bytes[0] & 0x0f) == OpCode::Data(Data::Text)
            && self.bytes[0] & RSV1 == 0;
        let body = is_plain_text.then(|| &self.bytes[self.body..])?;
        std::str::from_utf8(body).ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of memory that the frame takes, which may be more than its length.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn body_len(&self) -> usize {
        self.bytes.len() - self.body
    }

    /// Converts an offset in the buffer, at the time of writing, to an offset in the payload.
    pub(crate) fn in_body(&self, written: usize) -> usize {
        written - HEADER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::deflate::inflate;

    fn text(payload: &str) -> Frame {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(payload.as_bytes());
            Ok::<_, ()>(())
        };
        Frame::text(write).unwrap()
    }

    #[test]
    fn the_length_of_the_header_follows_the_payload() {
        assert_eq!(text("hi").bytes()[..], *b"\x81\x02hi");
        assert_eq!(text(&"x".repeat(125)).bytes()[..2], *b"\x81\x7d");
        assert_eq!(text(&"x".repeat(126)).bytes()[..4], *b"\x81\x7e\x00\x7e");
        let long = text(&"x".repeat(65_536));
        assert_eq!(long.bytes()[..10], *b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00");
        assert_eq!((long.len(), long.body().len()), (65_546, 65_536));
    }

    #[test]
    fn a_message_is_compressed_once_and_only_if_that_makes_it_smaller() {
        let long = text(&"news ".repeat(100));
        let deflated = long.deflated().unwrap();
        assert!(deflated.len() < 100);
        assert_eq!(deflated.bytes()[0], 0xc1, "a complete text, compressed");
        assert_eq!(inflate(&deflated.body(), 1000).unwrap(), long.body());
        assert!(deflated.deflated().is_none(), "compressed already");
        assert_eq!((deflated.as_text(), text("news").as_text()), (None, Some("news")));
        assert!(text("news").deflated().is_none(), "too small");
        assert!(Frame::pong(&[b'x'; 125]).deflated().is_none(), "not a message");
    }

    #[test]
    fn control_frames_carry_their_payload() {
        assert_eq!(Frame::close(1012).bytes()[..], *b"\x88\x02\x03\xf4");
        assert_eq!(Frame::pong(b"hello").bytes()[..], *b"\x8a\x05hello");
    }
}
