//! WebSocket frames: a connection's decoder against a naive one, with the bytes cut in any way.
//!
//! The first byte selects compression, the limits, and whether the rest are the bytes of the client or
//! a description of its frames. The second one selects the cuts, the third one where the server closes.

use bytes::Bytes;
use pipeline_ws_sink::fuzzing::{Decoded, FrameDecoder, NotInflated, deflate, inflate};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"\x81\x85\0\0\0\0hello",
    b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
    b"\x01\x83\0\0\0\0abc",
    b"\x00\x83\0\0\0\0abc",
    b"\x80\x80\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x89\x80\0\0\0\0",
    b"\x8a\x80\0\0\0\0",
    b"\x82\xfe\x00\x7e\0\0\0\0",
    b"\x82\xff\0\0\0\0\0\0\x10\x00",
    b"\xc1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\xc2\x86\0\0\0\0",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
];

/// The limits of a frame and of a message, in bytes.
const LIMITS: [(usize, usize); 4] = [(1 << 20, 1 << 20), (64, 100), (5_000, 9_000), (200, 150)];

pub(crate) fn run(data: &[u8]) {
    let [flags, cuts, close_at, data @ ..] = data else { return };
    let connection = Connection {
        limits: LIMITS[usize::from(flags >> 1 & 3)],
        inflates: flags & 1 == 1,
    };
    let built;
    let stream = if flags & 8 == 0 {
        data
    } else {
        built = described(Input::new(data));
        &built
    };

    let expected = connection.expected(stream);
    let whole = connection.decoded(&[stream], false);
    let pieces = cut(stream, *cuts);
    assert_eq!(connection.decoded(&pieces, false), whole, "the cuts matter");
    assert_eq!(connection.decoded(&[stream], true), whole, "the sizes of the reads matter");
    let is_step = |unit: &Decoded| matches!(unit, Decoded::Inflated { .. });
    let units: Vec<_> = whole.units.into_iter().filter(|unit| !is_step(unit)).collect();
    assert_eq!((units, whole.end), expected, "units, and how they end");

    let after = usize::from(*close_at);
    let skipped = connection.skipped(&[stream], after);
    assert_eq!(connection.skipped(&pieces, after), skipped, "the cuts matter after a close");
}

/// How the decoding ended: with the code of a close frame, or when there were no more bytes.
type End = Result<(), u16>;

#[derive(Debug, PartialEq)]
struct Units {
    units: Vec<Decoded>,
    end: End,
}

struct Connection {
    limits: (usize, usize),
    inflates: bool,
}

impl Connection {
    fn decoder(&self) -> FrameDecoder {
        FrameDecoder::new(self.limits.0, self.limits.1, self.inflates)
    }

    /// The units in these pieces. With `as_wanted`, each read is as large as the decoder wants, at most.
    fn decoded(&self, pieces: &[&[u8]], as_wanted: bool) -> Units {
        let (mut decoder, mut units) = (self.decoder(), Vec::new());
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let wanted = if as_wanted { decoder.wants() } else { usize::MAX };
                assert_ne!(wanted, 0, "the decoder wants no bytes, and has not returned a unit");
                let (read, later) = piece.split_at(wanted.min(piece.len()));
                piece = later;
                decoder.receive(read);
                loop {
                    match decoder.next_unit() {
                        Ok(Some(unit)) => {
                            let closes = unit == Decoded::Close;
                            units.push(unit);
                            if closes {
                                return Units { units, end: Ok(()) };
                            }
                        }
                        Ok(None) => break,
                        Err(code) => return Units { units, end: Err(code) },
                    }
                }
                if as_wanted {
                    let most = 2 * (self.limits.0 + self.limits.1) + (16 << 10);
                    assert!(decoder.held() <= most, "{} bytes are held", decoder.held());
                }
                decoder.release();
            }
        }
        Units { units, end: Ok(()) }
    }

    /// The frames that are skipped when the server closes after this many units, and how it ends.
    fn skipped(&self, pieces: &[&[u8]], after: usize) -> Option<(Vec<bool>, End)> {
        let (mut decoder, mut units) = (self.decoder(), 0);
        let mut pieces = pieces.iter();
        'units: while units < after {
            match decoder.next_unit() {
                Ok(Some(_)) => units += 1,
                Ok(None) => match pieces.next() {
                    Some(piece) => decoder.receive(piece),
                    None => break 'units,
                },
                Err(_) => return None,
            }
        }
        let (mut skipper, mut skipped) = (decoder.into_skipper(), Vec::new());
        loop {
            match skipper.next_frame() {
                Ok(Some(closes)) => skipped.push(closes),
                Err(code) => return Some((skipped, Err(code))),
                Ok(None) => match pieces.next() {
                    Some(piece) => skipper.receive(piece),
                    None => break,
                },
            }
        }
        assert!(skipper.held() <= 14, "{} bytes are held after a close", skipper.held());
        Some((skipped, Ok(())))
    }

    /// The units by a naive decoder.
    fn expected(&self, mut rest: &[u8]) -> (Vec<Decoded>, End) {
        let mut units = Vec::new();
        let mut message: Option<(bool, bool, Vec<u8>)> = None;
        loop {
            match self.next_naive(&mut rest, &mut message) {
                Ok(Some(Decoded::Close)) => {
                    units.push(Decoded::Close);
                    return (units, Ok(()));
                }
                Ok(Some(unit)) => units.push(unit),
                Ok(None) => return (units, Ok(())),
                Err(code) => return (units, Err(code)),
            }
        }
    }

    /// One unit. `message` has the fragments so far: whether it is text, whether it is compressed.
    fn next_naive(
        &self,
        rest: &mut &[u8],
        message: &mut Option<(bool, bool, Vec<u8>)>,
    ) -> Result<Option<Decoded>, u16> {
        let bytes = *rest;
        let [first, second, ..] = bytes else { return Ok(None) };
        let is_masked = second & 0x80 != 0;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let header = 2 + extended + if is_masked { 4 } else { 0 };
        if bytes.len() < header {
            return Ok(None);
        }
        let length = match extended {
            0 => u64::from(second & 0x7f),
            _ => bytes[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        let is_minimal = match extended {
            0 => true,
            2 => length >= 126,
            _ => length > 0xffff && length >> 63 == 0,
        };
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
        let is_control = opcode >= 8;
        let compressed = first & 0x40 != 0;
        let is_known = matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10);
        let may_be_compressed = self.inflates && matches!(opcode, 1 | 2);
        if !is_known
            || !is_minimal
            || !is_masked
            || first & 0x30 != 0
            || compressed && !may_be_compressed
            || is_control && (length > 125 || !is_final)
        {
            return Err(1002);
        }
        let begun = message.as_ref().map_or(0, |(.., begun)| begun.len());
        let whole = u128::from(length) + header as u128;
        if whole > self.limits.0 as u128
            || !is_control && u128::from(length) + begun as u128 > self.limits.1 as u128
        {
            return Err(1009);
        }
        let Some(payload) = bytes.get(header..).and_then(|body| body.get(..whole as usize - header))
        else {
            return Ok(None);
        };
        let mask = &bytes[header - 4..header];
        let payload: Vec<u8> =
            payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        *rest = &bytes[whole as usize..];
        match (opcode, message.take()) {
            (8, _) => return close(&payload).map(Some),
            (9, begun) => {
                *message = begun;
                return Ok(Some(Decoded::Ping(payload.into())));
            }
            (10, begun) => {
                *message = begun;
                return Ok(Some(Decoded::Pong));
            }
            (0, None) | (1 | 2, Some(_)) => return Err(1002),
            (0, Some((is_text, is_compressed, mut fragments))) => {
                fragments.extend_from_slice(&payload);
                *message = Some((is_text, is_compressed, fragments));
            }
            (kind, None) => *message = Some((kind == 1, compressed, payload.clone())),
            (_, Some(_)) => unreachable!("the opcode is known"),
        }
        if !is_final {
            return Ok(Some(Decoded::Part(payload.len())));
        }
        let (is_text, is_compressed, payload) = message.take().expect("it was just put there");
        let payload: Bytes = if is_compressed {
            inflate(&payload, self.limits.1, |_, _| ()).map_err(|error| match error {
                NotInflated::Invalid => 1002_u16,
                NotInflated::TooLarge => 1009,
            })?
        } else {
            payload.into()
        };
        if !is_text {
            Ok(Some(Decoded::Binary(payload)))
        } else if std::str::from_utf8(&payload).is_ok() {
            Ok(Some(Decoded::Text(payload)))
        } else {
            Err(1007)
        }
    }
}

fn close(payload: &[u8]) -> Result<Decoded, u16> {
    match payload {
        [] => Ok(Decoded::Close),
        [_] => Err(1002),
        [high, low, reason @ ..] => match u16::from_be_bytes([*high, *low]) {
            1000..=1003 | 1007..=1013 | 3000..=4999 if std::str::from_utf8(reason).is_ok() => {
                Ok(Decoded::Close)
            }
            1000..=1003 | 1007..=1013 | 3000..=4999 => Err(1007),
            _ => Err(1002),
        },
    }
}

/// The stream in pieces of sizes that depend on the seed.
fn cut(mut stream: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let most = [1, 3, 20, 300, 5_000][usize::from(seed % 5)];
    let mut pieces = Vec::new();
    while !stream.is_empty() {
        let (piece, later) = stream.split_at(random.usize(1..=most).min(stream.len()));
        pieces.push(piece);
        stream = later;
    }
    pieces
}

/// A stream of frames that are mostly valid.
fn described(mut input: Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() && stream.len() < 40_000 {
        let shape = input.byte();
        let opcode = match shape & 7 {
            0 | 1 => 0,
            2 | 3 => 1,
            4 => 2,
            5 => 8,
            6 => 9,
            _ => input.byte() & 0x0f,
        };
        let mut first = opcode | if shape & 8 == 0 { 0x80 } else { 0 };
        let mut payload = input.bytes(125).to_vec();
        if shape & 16 != 0 {
            payload = payload.repeat(input.below(100));
        }
        if shape & 32 != 0 {
            first |= 0x40;
            payload = deflate(&payload).unwrap_or(payload);
        }
        if opcode == 8 && shape & 64 == 0 {
            payload = 1000_u16.to_be_bytes().to_vec();
        }
        if shape & 128 != 0 && input.below(8) == 0 {
            first ^= input.byte();
        }
        let mask = [input.byte(), 0, shape, 7];
        stream.push(first);
        match payload.len() {
            length @ 0..=125 => stream.push(0x80 | u8::try_from(length).unwrap_or_default()),
            length @ 126..=0xffff => {
                stream.push(0xfe);
                stream.extend_from_slice(&u16::try_from(length).unwrap_or_default().to_be_bytes());
            }
            length => {
                stream.push(0xff);
                stream.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        stream.extend_from_slice(&mask);
        stream.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    }
    stream
}
