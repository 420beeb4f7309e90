//! Frames on their way out: built once, written as they are to any number of sockets.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

/// The longest header of a frame from a server, which does not mask.
const HEADER: usize = 10;

/// A complete WebSocket frame, header and all. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    bytes: Bytes,
    /// Where the payload begins.
    body: usize,
}

impl Frame {
    /// A text frame whose payload `write` appends to the buffer that it is given.
    pub(crate) fn text<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        let mut buffer = Vec::with_capacity(256);
        buffer.resize(HEADER, 0);
        write(&mut buffer)?;
        Ok(Self::seal(OpCode::Data(Data::Text), buffer))
    }

    /// The same for a binary frame.
    pub(crate) fn binary<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        let mut buffer = Vec::with_capacity(256);
        buffer.resize(HEADER, 0);
        write(&mut buffer)?;
        Ok(Self::seal(OpCode::Data(Data::Binary), buffer))
    }

    /// A close frame with a status code and no reason.
    pub(crate) fn close(code: u16) -> Self {
        Self::control(Control::Close, &code.to_be_bytes())
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

    /// Puts the header right before the payload, which begins at [`HEADER`].
    fn seal(opcode: OpCode, mut buffer: Vec<u8>) -> Self {
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        let length = (buffer.len() - HEADER) as u64;
        let start = HEADER - header.len(length);
        let mut space = &mut buffer[start..HEADER];
        header.format(length, &mut space).expect("the header has exactly this length");
        let bytes = Bytes::from(buffer).slice(start..);
        Self { bytes, body: HEADER - start }
    }

    /// The frame as it is written.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload alone.
    pub(crate) fn body(&self) -> Bytes {
        self.bytes.slice(self.body..)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &str) -> Frame {
        let write = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(payload.as_bytes());
            Ok::<_, ()>(())
        };
        Frame::text(write).unwrap()
    }

    #[test]
    fn the_header_is_as_long_as_the_payload_needs() {
        assert_eq!(text("hi").bytes()[..], *b"\x81\x02hi");
        assert_eq!(text(&"x".repeat(125)).bytes()[..2], *b"\x81\x7d");
        assert_eq!(text(&"x".repeat(126)).bytes()[..4], *b"\x81\x7e\x00\x7e");
        let long = text(&"x".repeat(65_536));
        assert_eq!(long.bytes()[..10], *b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00");
        assert_eq!((long.len(), long.body().len()), (65_546, 65_536));
    }

    #[test]
    fn control_frames_carry_their_payload() {
        assert_eq!(Frame::close(1012).bytes()[..], *b"\x88\x02\x03\xf4");
        assert_eq!(Frame::pong(b"hello").bytes()[..], *b"\x8a\x05hello");
    }
}
