//! The receiving side of a WebSocket connection: bytes in, messages out.
//!
//! RFC 6455 on the server side: frames from the client are masked, control frames are short and not
//! fragmented, a message may come in fragments with control frames between them.

use std::{io::Cursor, mem};

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use super::{
    deflate::{InflateError, InflateStep, Inflating},
    message::Received,
};

/// The maximum payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// The maximum payload that a header can announce: the highest bit of a length is zero.
const MAX_LENGTH: u64 = u64::MAX >> 1;
/// How much is read at once, and the maximum size of a frame that is copied out of the read buffer.
/// A larger frame has a buffer of its own. So a message that is kept for long keeps only its own
/// memory.
pub(crate) const CHUNK: usize = 4096;

/// The maximum sizes of frames and messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLimits {
    /// Bytes of one frame, including header and mask.
    pub(crate) frame: usize,
    /// Bytes of one message: all its fragments together, after decompression.
    pub(crate) message: usize,
}

/// A decoded unit of the client's data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Message(Received),
    /// A fragment of an incomplete message, with its size in bytes.
    Part(usize),
    /// A part of a compressed message was decompressed. The message, or its next part, follows.
    Inflated(InflateStep),
    Ping(Bytes),
    Pong,
    Close,
}

impl Incoming {
    /// The number of bytes that were handled: for a message, after decompression.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Message(received) => received.len(),
            Self::Ping(bytes) => bytes.len(),
            Self::Part(bytes) => *bytes,
            Self::Inflated(_) | Self::Pong | Self::Close => 0,
        }
    }
}

/// The client's error that ends the connection.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    #[error("violated the WebSocket protocol")]
    Violation,
    #[error("sent text that is not valid UTF-8")]
    NotUtf8,
    #[error("sent a frame or message over the size limit")]
    TooLarge,
}

impl From<InflateError> for ProtocolError {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::Invalid => Self::Violation,
            InflateError::TooLarge => Self::TooLarge,
        }
    }
}

impl ProtocolError {
    /// The code of the resulting close frame.
    pub(crate) fn close_code(self) -> u16 {
        match self {
            Self::Violation => 1002,
            Self::NotUtf8 => 1007,
            Self::TooLarge => 1009,
        }
    }
}

/// Decodes received bytes into messages.
#[derive(Debug)]
pub(crate) struct Decoder {
    limits: FrameLimits,
    /// Whether messages may be compressed.
    inflates: bool,
    /// Received bytes that have not been decoded.
    buffer: BytesMut,
    /// The length of the frame at the start of the buffer, once known.
    whole: usize,
    message: Unfinished,
}

/// A message that is not complete.
#[derive(Debug)]
enum Unfinished {
    Nothing,
    /// Its first fragments.
    Fragments {
        kind: Data,
        compressed: bool,
        payload: BytesMut,
    },
    /// All of it, being decompressed.
    Inflating {
        kind: Data,
        is_done: bool,
        message: Box<Inflating>,
    },
}

impl Unfinished {
    /// The number of bytes of the fragments, if there are any.
    fn begun(&self) -> Option<usize> {
        match self {
            Self::Fragments { payload, .. } => Some(payload.len()),
            Self::Nothing | Self::Inflating { .. } => None,
        }
    }
}

impl Decoder {
    /// Starts with the bytes that the client sent along with its handshake.
    pub(crate) fn new(limits: FrameLimits, received: Bytes) -> Self {
        let buffer = BytesMut::from(received);
        Self { limits, inflates: false, buffer, whole: 0, message: Unfinished::Nothing }
    }

    /// Sets whether compression was negotiated with the client.
    pub(crate) fn inflating(self, inflates: bool) -> Self {
        Self { inflates, ..self }
    }

    /// The buffer for received bytes.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes to receive next, at most: for a large frame about as many as have arrived of it,
    /// since its header may announce anything, and none beyond it, so that the buffer becomes its payload.
    pub(crate) fn wants(&self) -> usize {
        if self.whole <= CHUNK {
            return CHUNK;
        }
        // Fractions of the whole frame, not of the received part: so the buffer ends at the frame's length.
        let (length, mut step) = (self.buffer.len(), self.whole);
        while step.div_ceil(2) >= length.saturating_add(CHUNK) {
            step = step.div_ceil(2);
        }
        step.saturating_sub(length).max(1)
    }

    /// The bytes held for an incomplete message, unless they are few.
    pub(crate) fn held(&self) -> usize {
        let unfinished = match &self.message {
            Unfinished::Nothing => 0,
            Unfinished::Fragments { payload, .. } => payload.len(),
            Unfinished::Inflating { message, .. } => message.held(),
        };
        let bytes = self.buffer.len() + unfinished;
        if bytes > CHUNK { bytes } else { 0 }
    }

    /// Whether a received message is still being decompressed.
    pub(crate) fn is_inflating(&self) -> bool {
        matches!(self.message, Unfinished::Inflating { is_done: false, .. })
    }

    /// Drops the received data, and skips further data. The memory of a large incomplete frame is
    /// freed at once.
    pub(crate) fn into_rest(self) -> Rest {
        let mut rest =
            Rest { inflates: self.inflates, buffer: self.buffer, left: 0, closes: false };
        // A control frame is never this large.
        if self.whole > CHUNK {
            rest.left = self.whole as u64;
            rest.pass_over();
        }
        rest
    }

    /// Frees the memory of an empty buffer, so that a quiet connection holds none.
    pub(crate) fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Decodes the next frame, or returns `None` when more bytes are needed. Each call takes one
    /// frame, or decompresses a part of one, so that the caller decides after how many of them to
    /// yield.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, ProtocolError> {
        if matches!(self.message, Unfinished::Inflating { .. }) {
            return self.inflate().map(Some);
        }
        match self.next_frame()? {
            Some((header, payload)) => self.accept(&header, payload).map(Some),
            None => Ok(None),
        }
    }

    /// The next complete frame, unmasked.
    fn next_frame(&mut self) -> Result<Option<(FrameHeader, BytesMut)>, ProtocolError> {
        let Some(Head { header, mask, length, bytes: header_length }) =
            head(&self.buffer, self.inflates)?
        else {
            return Ok(None);
        };
        let begun = match header.opcode {
            OpCode::Data(_) => self.message.begun().unwrap_or_default(),
            OpCode::Control(_) => 0,
        };
        let whole = usize::try_from(length)
            .ok()
            .filter(|length| {
                let message = begun.saturating_add(*length);
                matches!(header.opcode, OpCode::Control(_)) || message <= self.limits.message
            })
            .and_then(|length| length.checked_add(header_length))
            .filter(|&whole| whole <= self.limits.frame)
            .ok_or(ProtocolError::TooLarge)?;
        if self.buffer.len() < whole {
            self.whole = whole;
            return Ok(None);
        }
        self.whole = 0;
        let mut payload = if whole > CHUNK && whole == self.buffer.len() {
            mem::take(&mut self.buffer).split_off(header_length)
        } else {
            let payload = BytesMut::from(&self.buffer[header_length..whole]);
            self.buffer.advance(whole);
            payload
        };
        unmask(&mut payload, mask);
        Ok(Some((header, payload)))
    }

    /// Processes a frame. Returns a message if it completes one.
    fn accept(
        &mut self,
        header: &FrameHeader,
        payload: BytesMut,
    ) -> Result<Incoming, ProtocolError> {
        let bytes = payload.len();
        let (kind, compressed, payload) = match header.opcode {
            OpCode::Control(Control::Ping) => return Ok(Incoming::Ping(payload.freeze())),
            OpCode::Control(Control::Pong) => return Ok(Incoming::Pong),
            OpCode::Control(Control::Close) => return check_close(&payload),
            OpCode::Data(Data::Continue) => {
                let begun = mem::replace(&mut self.message, Unfinished::Nothing);
                let Unfinished::Fragments { kind, compressed, payload: mut message } = begun else {
                    return Err(ProtocolError::Violation);
                };
                message.extend_from_slice(&payload);
                (kind, compressed, message)
            }
            OpCode::Data(_) if self.message.begun().is_some() => {
                return Err(ProtocolError::Violation);
            }
            OpCode::Data(kind) => (kind, header.rsv1, payload),
            OpCode::Control(Control::Reserved(_)) => return Err(ProtocolError::Violation),
        };
        if !header.is_final {
            self.message = Unfinished::Fragments { kind, compressed, payload };
            return Ok(Incoming::Part(bytes));
        }
        if compressed {
            let message = Inflating::new(payload, self.limits.message);
            self.message = Unfinished::Inflating { kind, is_done: false, message };
            return self.inflate();
        }
        received(kind, compact(payload))
    }

    /// Decompresses a part of the received message, or returns the message when that is done.
    fn inflate(&mut self) -> Result<Incoming, ProtocolError> {
        match mem::replace(&mut self.message, Unfinished::Nothing) {
            Unfinished::Inflating { kind, is_done: true, message } => {
                received(kind, message.finish())
            }
            Unfinished::Inflating { kind, mut message, .. } => {
                let step = message.step()?;
                self.message = Unfinished::Inflating { kind, is_done: step.is_last, message };
                Ok(Incoming::Inflated(step))
            }
            Unfinished::Nothing | Unfinished::Fragments { .. } => Err(ProtocolError::Violation),
        }
    }
}

/// The header of a frame.
struct Head {
    header: FrameHeader,
    mask: [u8; 4],
    /// The announced length of the payload.
    length: u64,
    /// The length of the header itself.
    bytes: usize,
}

/// Parses the header at the start of the buffer, unless more bytes are needed.
fn head(buffer: &[u8], inflates: bool) -> Result<Option<Head>, ProtocolError> {
    let mut cursor = Cursor::new(buffer);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| ProtocolError::Violation)?;
    let Some((header, length)) = parsed else {
        return Ok(None);
    };
    // The length as written, which may be longer than the shortest form.
    let bytes = usize::try_from(cursor.position()).expect("it is within the buffer");
    if bytes != header.len(length) || length > MAX_LENGTH {
        return Err(ProtocolError::Violation);
    }
    let Some(mask) = header.mask else {
        return Err(ProtocolError::Violation);
    };
    // A message is compressed as a whole, and its first frame has the flag.
    let may_be_compressed =
        inflates && matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
    if (header.rsv1 && !may_be_compressed) || header.rsv2 || header.rsv3 {
        return Err(ProtocolError::Violation);
    }
    if matches!(header.opcode, OpCode::Control(_)) && (length > MAX_CONTROL || !header.is_final) {
        return Err(ProtocolError::Violation);
    }
    Ok(Some(Head { header, mask, length, bytes }))
}

/// Data that a client sends after the server has closed the connection. Its frames are parsed and
/// skipped: none is kept, unmasked or decompressed, so it costs little and holds no memory.
#[derive(Debug)]
pub(crate) struct Rest {
    inflates: bool,
    /// Received bytes that have not been skipped.
    buffer: BytesMut,
    /// The number of payload bytes of the current frame that are still to be skipped.
    left: u64,
    /// Whether the current frame is the client's close frame.
    closes: bool,
}

/// The result of skipping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    Frame,
    Close,
}

impl Rest {
    /// The buffer for received bytes.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Skips the next frame. `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Passed>, ProtocolError> {
        if self.left == 0 {
            let Some(Head { header, length, bytes, .. }) = head(&self.buffer, self.inflates)?
            else {
                return Ok(None);
            };
            self.buffer.advance(bytes);
            self.left = length;
            self.closes = header.opcode == OpCode::Control(Control::Close);
        }
        self.pass_over();
        Ok(match self.left {
            0 if self.closes => Some(Passed::Close),
            0 => Some(Passed::Frame),
            _ => None,
        })
    }

    fn pass_over(&mut self) {
        let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.buffer.len());
        self.buffer.advance(here);
        self.left -= here as u64;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

/// A complete message of this kind.
fn received(kind: Data, payload: Bytes) -> Result<Incoming, ProtocolError> {
    match kind {
        Data::Text if std::str::from_utf8(&payload).is_err() => Err(ProtocolError::NotUtf8),
        Data::Text => Ok(Incoming::Message(Received::Text(payload))),
        _ => Ok(Incoming::Message(Received::Binary(payload))),
    }
}

/// A payload that holds about as much memory as its length. The buffer of a fragmented message has
/// grown by doubling.
fn compact(payload: BytesMut) -> Bytes {
    if payload.capacity() - payload.len() > CHUNK.max(payload.len() / 8) {
        Bytes::copy_from_slice(&payload)
    } else {
        payload.freeze()
    }
}

/// Checks a close frame. Its code does not matter: the answer is always the same.
fn check_close(payload: &[u8]) -> Result<Incoming, ProtocolError> {
    match payload {
        [] => Ok(Incoming::Close),
        [high, low, reason @ ..] => {
            let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
            if !code.is_allowed() {
                Err(ProtocolError::Violation)
            } else if std::str::from_utf8(reason).is_err() {
                Err(ProtocolError::NotUtf8)
            } else {
                Ok(Incoming::Close)
            }
        }
        [_] => Err(ProtocolError::Violation),
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    // Whole words first: the compiler vectorizes this loop.
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::deflate::deflate;
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits { frame: 1024, message: 2048 };

    const TEXT: u8 = 1;
    const BINARY: u8 = 2;
    const CONTINUE: u8 = 0;
    const CLOSE: u8 = 8;
    const PING: u8 = 9;
    const PONG: u8 = 10;

    /// A frame as sent by a client.
    fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let header = FrameHeader {
            is_final: fin,
            opcode: OpCode::from(opcode),
            mask: Some(mask),
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        header.format(payload.len() as u64, &mut bytes).unwrap();
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    /// A frame with a longer form of its length: with 2 or 8 additional bytes.
    fn long_form(bytes: usize, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut long = frame(true, opcode, payload);
        let short = long[1] & 0x7f;
        assert!(short < 126);
        long[1] = 0x80 | if bytes == 2 { 126 } else { 127 };
        let mut length = vec![0; bytes];
        length[bytes - 1] = short;
        long.splice(2..2, length);
        long
    }

    /// Decodes these bytes, received piece by piece.
    fn decode(pieces: &[&[u8]]) -> Result<Vec<Incoming>, ProtocolError> {
        decode_by(Decoder::new(LIMITS, Bytes::new()), pieces)
    }

    fn decode_by(mut decoder: Decoder, pieces: &[&[u8]]) -> Result<Vec<Incoming>, ProtocolError> {
        let mut all = vec![];
        for piece in pieces {
            decoder.buffer().extend_from_slice(piece);
            while let Some(incoming) = decoder.next()? {
                if !matches!(incoming, Incoming::Part(_) | Incoming::Inflated(_)) {
                    all.push(incoming);
                }
            }
        }
        Ok(all)
    }

    fn text(text: &str) -> Incoming {
        Incoming::Message(Received::Text(Bytes::copy_from_slice(text.as_bytes())))
    }

    #[test]
    fn a_fragmented_message_is_one_message_with_control_frames_in_between() {
        let frames = [
            frame(false, TEXT, b"he"),
            frame(true, PING, b"now"),
            frame(false, CONTINUE, b"ll"),
            frame(true, PONG, b""),
            frame(true, CONTINUE, b"o"),
            frame(true, BINARY, b"\x00\xff"),
        ];
        let ping = Incoming::Ping(Bytes::from_static(b"now"));
        let binary = Incoming::Message(Received::Binary(Bytes::from_static(b"\x00\xff")));
        assert_eq!(
            decode(&[&frames.concat()]),
            Ok(vec![ping, Incoming::Pong, text("hello"), binary])
        );
    }

    #[test]
    fn a_close_frame_with_any_valid_code_is_a_close() {
        for payload in [&b""[..], b"\x03\xe8", b"\x0f\xa1bye"] {
            assert_eq!(decode(&[&frame(true, CLOSE, payload)]), Ok(vec![Incoming::Close]));
        }
    }

    #[test]
    fn protocol_violations_are_errors() {
        let unmasked = [0x81, 0x02, b'h', b'i'];
        let mut reserved_bit = frame(true, TEXT, b"hi");
        reserved_bit[0] |= 0x40;
        let mut reserved_opcode = frame(true, TEXT, b"hi");
        reserved_opcode[0] = 0x83;
        let cases: [&[u8]; 9] = [
            &unmasked,
            &reserved_bit,
            &reserved_opcode,
            &frame(true, CONTINUE, b"of what"),
            &[frame(false, TEXT, b"a"), frame(true, TEXT, b"b")].concat(),
            &frame(false, PING, b"in pieces"),
            &frame(true, PING, &[0; 126]),
            &frame(true, CLOSE, b"\x03"),
            &frame(true, CLOSE, b"\x03\xed"),
        ];
        for (n, case) in cases.into_iter().enumerate() {
            assert_eq!(decode(&[case]), Err(ProtocolError::Violation), "case {n}");
        }
        assert_eq!(decode(&[&frame(true, TEXT, b"\xff")]), Err(ProtocolError::NotUtf8));
        assert_eq!(decode(&[&frame(true, CLOSE, b"\x03\xe8\xff")]), Err(ProtocolError::NotUtf8));
    }

    #[test]
    fn a_length_that_is_not_in_its_shortest_form_is_an_error() {
        let mut four_bytes = frame(true, BINARY, &[0; 200]);
        // The length 200 in eight bytes, where two are enough.
        four_bytes[1] = 0x80 | 127;
        four_bytes.splice(2..2, [0; 6]);
        let cases: [&[u8]; 5] = [
            &long_form(2, TEXT, b"hello"),
            &long_form(8, TEXT, b"hello"),
            &long_form(2, PING, b"hello"),
            &long_form(2, TEXT, b""),
            &four_bytes,
        ];
        for (n, case) in cases.into_iter().enumerate() {
            assert_eq!(decode(&[case]), Err(ProtocolError::Violation), "case {n}");
            let bytewise: Vec<&[u8]> = case.chunks(1).collect();
            assert_eq!(decode(&bytewise), Err(ProtocolError::Violation), "case {n}, byte by byte");
        }
    }

    #[test]
    fn a_length_with_its_highest_bit_set_is_an_error() {
        let limits = FrameLimits { frame: usize::MAX, message: usize::MAX };
        let mut header = vec![0x82, 0x80 | 127];
        header.extend((1_u64 << 63).to_be_bytes());
        header.extend([0; 4]);
        let decoded = decode_by(Decoder::new(limits, Bytes::new()), &[&header]);
        assert_eq!(decoded, Err(ProtocolError::Violation));
    }

    #[test]
    fn a_message_keeps_only_its_own_memory() {
        let limits = FrameLimits { frame: usize::MAX, message: 1 << 20 };
        let mut decoder = Decoder::new(limits, Bytes::new());
        let large = frame(true, BINARY, &[7; 100_000]);
        // As in a transport, with another frame behind the large one.
        let mut sent = [&frame(true, TEXT, b"small")[..], &large, &frame(true, PING, b"")].concat();
        let mut said = vec![];
        while !sent.is_empty() {
            let count = decoder.wants().min(sent.len());
            let rest = sent.split_off(count);
            decoder.buffer().extend_from_slice(&mem::replace(&mut sent, rest));
            while let Some(incoming) = decoder.next().unwrap() {
                said.push(incoming);
            }
        }
        let payloads = said.into_iter().filter_map(|incoming| match incoming {
            Incoming::Message(Received::Text(bytes) | Received::Binary(bytes)) => Some(bytes),
            _ => None,
        });
        let spare: Vec<_> = payloads
            .map(|payload| {
                let length = payload.len();
                (length, payload.try_into_mut().unwrap().capacity() - length)
            })
            .collect();
        assert_eq!(spare.iter().map(|(length, _)| *length).collect::<Vec<_>>(), [5, 100_000]);
        assert!(spare.iter().all(|(_, spare)| *spare <= CHUNK), "{spare:?}");
    }

    #[test]
    fn each_call_takes_one_frame_even_without_a_message() {
        let mut decoder = Decoder::new(LIMITS, Bytes::new());
        decoder.buffer().extend(frame(false, TEXT, b"he"));
        (0..3).for_each(|_| decoder.buffer().extend(frame(false, CONTINUE, b"")));
        assert_eq!(decoder.next(), Ok(Some(Incoming::Part(2))));
        for _ in 0..3 {
            assert_eq!(decoder.next(), Ok(Some(Incoming::Part(0))));
        }
        assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn the_frame_limit_counts_header_and_mask() {
        // 2 + 2 bytes of header, 4 of mask.
        assert_eq!(decode(&[&frame(true, BINARY, &[0; 1016])]).unwrap().len(), 1);
        let too_large = frame(true, BINARY, &[0; 1017]);
        assert_eq!(decode(&[&too_large]), Err(ProtocolError::TooLarge));
        assert_eq!(
            decode(&[&too_large[..8]]),
            Err(ProtocolError::TooLarge),
            "detected in the header"
        );
    }

    #[test]
    fn the_message_limit_counts_all_fragments() {
        let first = frame(false, TEXT, &[b'x'; 1000]);
        let middle = frame(false, CONTINUE, &[b'x'; 1000]);
        let (fits, exceeds) =
            (frame(true, CONTINUE, &[b'x'; 48]), frame(true, CONTINUE, &[b'x'; 49]));
        assert_eq!(decode(&[&first, &middle, &fits]).unwrap().len(), 1);
        assert_eq!(decode(&[&first, &middle, &exceeds]), Err(ProtocolError::TooLarge));
    }

    #[test]
    fn a_frame_may_be_as_large_as_a_message() {
        let limits = FrameLimits { frame: usize::MAX, message: 1000 };
        let decode = |bytes: &[u8]| decode_by(Decoder::new(limits, Bytes::new()), &[bytes]);
        assert_eq!(decode(&frame(true, BINARY, &[0; 1000])).unwrap().len(), 1);
        let too_large = frame(true, BINARY, &[0; 1001]);
        assert_eq!(decode(&too_large[..8]), Err(ProtocolError::TooLarge), "detected in the header");
    }

    /// A frame that begins a compressed message.
    fn compressed(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(fin, opcode, payload);
        bytes[0] |= 0x40;
        bytes
    }

    /// "Hello", compressed as in section 7.2.3.1 of RFC 7692.
    const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

    fn inflating(pieces: &[&[u8]]) -> Result<Vec<Incoming>, ProtocolError> {
        decode_by(Decoder::new(LIMITS, Bytes::new()).inflating(true), pieces)
    }

    #[test]
    fn whole_fragmented_and_empty_compressed_messages_are_decompressed() {
        let pieces = [
            compressed(true, TEXT, &HELLO),
            compressed(false, TEXT, &HELLO[..3]),
            frame(true, PING, b"now"),
            frame(false, CONTINUE, b""),
            frame(true, CONTINUE, &HELLO[3..]),
            compressed(true, TEXT, b"\x00"),
            frame(true, TEXT, b"plain"),
        ];
        let ping = Incoming::Ping(Bytes::from_static(b"now"));
        let expected = vec![text("Hello"), ping, text("Hello"), text(""), text("plain")];
        assert_eq!(inflating(&[&pieces.concat()]), Ok(expected));
    }

    #[test]
    fn compression_in_the_wrong_place_is_a_violation() {
        let hello = compressed(true, TEXT, &HELLO);
        assert_eq!(decode(&[&hello]), Err(ProtocolError::Violation), "not negotiated");
        let cases: [&[u8]; 3] = [
            &[compressed(false, TEXT, &HELLO[..3]), compressed(true, CONTINUE, &HELLO[3..])]
                .concat(),
            &compressed(true, PING, b""),
            &compressed(true, TEXT, b"\xff\xff"),
        ];
        for (n, case) in cases.into_iter().enumerate() {
            assert_eq!(inflating(&[case]), Err(ProtocolError::Violation), "case {n}");
        }
    }

    #[test]
    fn a_client_that_keeps_its_window_violates_the_protocol() {
        // The second message of section 7.2.3.2 of RFC 7692: "Hello", as a reference to the first.
        let again = compressed(true, TEXT, &[0xf2, 0x00, 0x11, 0x00, 0x00]);
        let both = [compressed(true, TEXT, &HELLO), again].concat();
        assert_eq!(inflating(&[&both]), Err(ProtocolError::Violation));
    }

    #[test]
    fn a_compressed_message_counts_by_its_decompressed_size() {
        let zipped = |length: usize| {
            let mut out = vec![];
            deflate(&vec![b'x'; length], &mut out).unwrap();
            compressed(true, TEXT, &out)
        };
        assert_eq!(inflating(&[&zipped(2048)]).unwrap(), [text(&"x".repeat(2048))]);
        assert_eq!(inflating(&[&zipped(2049)]), Err(ProtocolError::TooLarge));
        let bomb = zipped(100_000);
        assert!(bomb.len() < 1024);
        assert_eq!(inflating(&[&bomb]), Err(ProtocolError::TooLarge));
    }

    #[test]
    fn memory_is_allocated_as_bytes_arrive_regardless_of_the_header() {
        let limits = FrameLimits { frame: usize::MAX, message: usize::MAX };
        for length in [MAX_LENGTH - 1, 64 << 20, 1 << 20, 100_000, 70_000] {
            let mut decoder = Decoder::new(limits, Bytes::new());
            decoder.buffer().extend([0x82, 0xff]);
            decoder.buffer().extend(length.to_be_bytes());
            decoder.buffer().extend([0; 4]);
            let whole = usize::try_from(length).unwrap() + 14;
            loop {
                match decoder.next() {
                    Ok(None) => {}
                    incoming => {
                        let Ok(Some(Incoming::Message(Received::Binary(payload)))) = incoming
                        else {
                            panic!("expected a message, got {incoming:?}");
                        };
                        assert_eq!(payload.len() + 14, whole);
                        let kept = payload.try_into_mut().unwrap().capacity();
                        assert!(kept <= whole + CHUNK, "{kept} of {whole}");
                        break;
                    }
                }
                let (come, wants) = (decoder.buffer().len(), decoder.wants());
                assert!(wants >= CHUNK.min(whole - come), "{wants} is too few");
                assert!(wants <= come + 2 * CHUNK, "{wants} when {come} of {whole} have arrived");
                if come > 2 << 20 {
                    break;
                }
                decoder.buffer().reserve(wants);
                assert!(decoder.buffer().capacity() <= 2 * (come + 2 * CHUNK));
                decoder.buffer().resize(come + wants, 0);
            }
        }
    }

    #[test]
    fn a_message_of_many_fragments_keeps_only_its_own_memory() {
        let limits = FrameLimits { frame: usize::MAX, message: 1 << 20 };
        let mut decoder = Decoder::new(limits, Bytes::new());
        decoder.buffer().extend(frame(false, BINARY, &[0; 40_000]));
        assert_eq!(decoder.next(), Ok(Some(Incoming::Part(40_000))));
        decoder.buffer().extend(frame(true, CONTINUE, &[0; 1]));
        let Ok(Some(Incoming::Message(Received::Binary(payload)))) = decoder.next() else {
            panic!("expected a message");
        };
        assert_eq!(payload.len(), 40_001);
        assert!(payload.try_into_mut().unwrap().capacity() <= 40_001 + 5000);
    }

    #[test]
    fn a_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 112, "{}", size_of::<Decoder>());
    }

    #[test]
    fn a_quiet_connection_holds_no_memory() {
        let mut decoder = Decoder::new(LIMITS, Bytes::new());
        decoder.buffer().reserve(4096);
        decoder.buffer().extend_from_slice(&frame(true, TEXT, b"hi"));
        assert_eq!(decoder.next(), Ok(Some(text("hi"))));
        decoder.release();
        assert_eq!(decoder.buffer().capacity(), 0);
    }

    #[test]
    fn remaining_frames_are_skipped_up_to_the_close() {
        let said = [
            frame(true, TEXT, &[0xff; 3]),
            frame(false, BINARY, &[0; 900]),
            frame(true, PING, b"p"),
            frame(true, CLOSE, &[3, 0xe8]),
        ];
        let passed = [Passed::Frame, Passed::Frame, Passed::Frame, Passed::Close];
        for piece in [1, 7, 5000] {
            let mut rest = Decoder::new(LIMITS, Bytes::new()).into_rest();
            let mut all = vec![];
            for piece in said.concat().chunks(piece) {
                rest.buffer().extend_from_slice(piece);
                while let Some(passed) = rest.next().unwrap() {
                    all.push(passed);
                }
            }
            assert_eq!(all, passed, "in pieces of {piece}");
            assert!(rest.buffer.is_empty());
        }
        let mut rest = Decoder::new(LIMITS, Bytes::from_static(b"nonsense")).into_rest();
        assert_eq!(rest.next(), Err(ProtocolError::Violation));
    }

    #[test]
    fn the_memory_of_a_large_incomplete_frame_is_freed_when_frames_are_skipped() {
        let limits = FrameLimits { frame: 1 << 20, message: 1 << 20 };
        let whole = [frame(true, TEXT, &[0; 100_000]), frame(true, CLOSE, &[])].concat();
        let mut decoder = Decoder::new(limits, Bytes::new());
        decoder.buffer().extend_from_slice(&whole[..60_000]);
        assert_eq!(decoder.next(), Ok(None));
        let mut rest = decoder.into_rest();
        assert_eq!(rest.buffer.capacity(), 0);
        rest.buffer().extend_from_slice(&whole[60_000..]);
        assert_eq!(rest.next(), Ok(Some(Passed::Frame)));
        assert_eq!(rest.next(), Ok(Some(Passed::Close)));
    }

    proptest! {
        /// The network may split the bytes anywhere; the messages are the same.
        #[test]
        fn the_splits_of_the_network_do_not_matter(
            messages in prop::collection::vec((any::<bool>(), "[a-zé]{0,200}"), 1..6),
            cuts in prop::collection::vec(1usize..40, 0..200)
        ) {
            let mut bytes = vec![];
            let mut expected = vec![];
            for (fragmented, message) in &messages {
                let (head, tail) = message.as_bytes().split_at(message.len() / 2);
                if *fragmented {
                    bytes.extend(frame(false, TEXT, head));
                    bytes.extend(frame(true, CONTINUE, tail));
                } else {
                    bytes.extend(frame(true, TEXT, message.as_bytes()));
                }
                expected.push(text(message));
            }
            let mut rest = &bytes[..];
            let mut pieces = vec![];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(decode(&pieces), Ok(expected));
        }

        /// Random bytes are an error or a message, never a panic.
        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&[&bytes]);
            let _ = inflating(&[&compressed(true, BINARY, &bytes)]);
        }
    }
}
