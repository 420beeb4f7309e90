//! WebSocket frames that violate RFC 6455, or are at its limits.

use crate::{
    case::{
        Answer, Case,
        Expect::{Close, Ignored, Ok, Pong, ThenClose},
        Group, at, ws,
    },
    client::{
        BINARY, CLOSE, CONTINUE, FIN, PING, PONG, RSV1, RSV2, RSV3, TEXT, beaten, frame, head,
        head_of, heartbeat, masked, text,
    },
};

/// The path of a mount for frames of 1,024 bytes and messages of 4,096.
const SMALL: &str = "/small/websocket?vsn=2.0.0";

/// The default maximum of a message.
const MAX: usize = 1 << 20;

pub(crate) fn group() -> Group {
    let parts =
        [reserved(), opcodes(), control(), lengths(), masks(), fragments(), utf8(), closes()];
    Group {
        title: "Frames",
        bounded: "a frame is decoded from a buffer that grows as its bytes arrive, to the \
                  maximum size of a frame and a message; nothing of a refused frame is kept.",
        cases: parts.into_iter().flatten().collect(),
    }
}

/// The text of a heartbeat.
fn beat() -> &'static [u8] {
    br#"[null,"1","phoenix","heartbeat",{}]"#
}

/// A heartbeat of this many bytes.
fn long_beat(bytes: usize) -> Vec<u8> {
    let [before, after] = [&br#"[null,"1","phoenix","heartbeat",{"padding":""#[..], b"\"}]"];
    [before, &vec![b'x'; bytes - before.len() - after.len()], after].concat()
}

fn reserved() -> Vec<Case> {
    vec![
        ws(
            "K-001",
            "a text with RSV1, without compression",
            frame(FIN | RSV1 | TEXT, beat()),
            Close(1002),
        ),
        ws("K-002", "a text with RSV2", frame(FIN | RSV2 | TEXT, beat()), Close(1002)),
        ws("K-003", "a text with RSV3", frame(FIN | RSV3 | TEXT, beat()), Close(1002)),
        ws(
            "K-004",
            "a binary frame with RSV2 and RSV3",
            frame(FIN | RSV2 | RSV3 | BINARY, beat()),
            Close(1002),
        ),
        ws(
            "K-005",
            "a text with all reserved bits",
            frame(FIN | RSV1 | RSV2 | RSV3 | TEXT, beat()),
            Close(1002),
        ),
        ws(
            "K-006",
            "a continuation with RSV2",
            [frame(TEXT, beat()), frame(FIN | RSV2 | CONTINUE, b"")].concat(),
            Close(1002),
        ),
        ws("K-007", "a ping with RSV1", frame(FIN | RSV1 | PING, b""), Close(1002)),
        ws("K-008", "a pong with RSV2", frame(FIN | RSV2 | PONG, b""), Close(1002)),
        ws("K-009", "a close with RSV3", frame(FIN | RSV3 | CLOSE, &[3, 232]), Close(1002)),
    ]
}

fn opcodes() -> Vec<Case> {
    let reserved = |opcode: u8| frame(FIN | opcode, beat());
    vec![
        ws("K-010", "the reserved opcode 3", reserved(3), Close(1002)),
        ws("K-011", "the reserved opcode 4", reserved(4), Close(1002)),
        ws("K-012", "the reserved opcode 5", reserved(5), Close(1002)),
        ws("K-013", "the reserved opcode 6", reserved(6), Close(1002)),
        ws("K-014", "the reserved opcode 7", reserved(7), Close(1002)),
        ws("K-015", "the reserved control opcode 11", reserved(11), Close(1002)),
        ws("K-016", "the reserved control opcode 12", reserved(12), Close(1002)),
        ws("K-017", "the reserved control opcode 13", reserved(13), Close(1002)),
        ws("K-018", "the reserved control opcode 14", reserved(14), Close(1002)),
        ws("K-019", "the reserved control opcode 15", reserved(15), Close(1002)),
        ws(
            "K-020",
            "a reserved opcode between two fragments",
            [frame(TEXT, &beat()[..9]), frame(3, b""), frame(FIN | CONTINUE, &beat()[9..])]
                .concat(),
            Close(1002),
        ),
    ]
}

fn control() -> Vec<Case> {
    const FULL: &[u8] = &[b'x'; 125];
    let [before, after] = [frame(TEXT, &beat()[..9]), frame(FIN | CONTINUE, &beat()[9..])];
    let between = |inner: Vec<u8>| [before.clone(), inner, after.clone()].concat();
    vec![
        ws("K-021", "a ping of 126 bytes", frame(FIN | PING, &[0; 126]), Close(1002)),
        ws("K-022", "a pong of 126 bytes", frame(FIN | PONG, &[0; 126]), Close(1002)),
        ws("K-023", "a close of 126 bytes", frame(FIN | CLOSE, &[3; 126]), Close(1002)),
        ws("K-024", "the header of a ping of 2^62 bytes", head(FIN | PING, 1 << 62), Close(1002)),
        ws("K-025", "the first fragment of a ping", frame(PING, b"half"), Close(1002)),
        ws("K-026", "the first fragment of a pong", frame(PONG, b"half"), Close(1002)),
        ws("K-027", "the first fragment of a close", frame(CLOSE, &[3, 232]), Close(1002)),
        ws("K-028", "a ping of 125 bytes", frame(FIN | PING, FULL), Pong(FULL)),
        ws(
            "K-029",
            "a ping of bytes that are not UTF-8",
            frame(FIN | PING, b"\xff\xfe"),
            Pong(b"\xff\xfe"),
        ),
        ws("K-030", "a pong without a ping", frame(FIN | PONG, b"unasked"), Ignored),
        ws(
            "K-031",
            "a thousand pongs without a ping",
            frame(FIN | PONG, b"").repeat(1000),
            Ignored,
        ),
        ws(
            "K-032",
            "pongs between two fragments",
            between(frame(FIN | PONG, FULL).repeat(100)),
            Ok,
        ),
        ws("K-033", "a close between two fragments", between(frame(FIN | CLOSE, b"")), Close(1000)),
        ws(
            "K-034",
            "a ping of 126 bytes between two fragments",
            between(frame(FIN | PING, &[0; 126])),
            Close(1002),
        ),
        ws(
            "K-035",
            "the first fragment of a ping between two fragments",
            between(frame(PING, b"")),
            Close(1002),
        ),
    ]
}

fn lengths() -> Vec<Case> {
    let length = u8::try_from(beat().len()).unwrap();
    let form =
        |extended: &[u8], kind: u8| [head_of(FIN | TEXT, kind, extended), masked(beat())].concat();
    let long =
        |length: usize| [&[0; 6][..], &u16::try_from(length).unwrap().to_be_bytes()].concat();
    vec![
        ws("K-036", "a short length in the form of 16 bits", form(&[0, length], 126), Close(1002)),
        ws(
            "K-037",
            "a short length in the form of 64 bits",
            form(&long(beat().len()), 127),
            Close(1002),
        ),
        ws(
            "K-038",
            "a length of 126 in the form of 64 bits",
            head_of(FIN | TEXT, 127, &long(126)),
            Close(1002),
        ),
        ws(
            "K-039",
            "a length of 65,535 in the form of 64 bits",
            head_of(FIN | TEXT, 127, &long(65_535)),
            Close(1002),
        ),
        ws(
            "K-040",
            "a length of zero in the form of 16 bits",
            head_of(FIN | TEXT, 126, &[0, 0]),
            Close(1002),
        ),
        ws(
            "K-041",
            "a length of zero in the form of 64 bits",
            head_of(FIN | TEXT, 127, &[0; 8]),
            Close(1002),
        ),
        ws(
            "K-042",
            "a length with its highest bit set",
            head_of(FIN | TEXT, 127, &[0x80, 0, 0, 0, 0, 0, 0, 1]),
            Close(1002),
        ),
        ws("K-043", "a length of 2^64 - 1", head_of(FIN | TEXT, 127, &[0xff; 8]), Close(1002)),
        ws("K-044", "a length of 2^63 - 1", head(FIN | TEXT, u64::MAX >> 1), Close(1009)),
        ws("K-045", "a length of 4 GiB", head(FIN | BINARY, 1 << 32), Close(1009)),
        ws(
            "K-046",
            "the header of a message one byte over the maximum",
            head(FIN | TEXT, MAX as u64 + 1),
            Close(1009),
        ),
        ws("K-047", "a message one byte over the maximum", text(long_beat(MAX + 1)), Close(1009)),
        ws("K-048", "a message of the maximum size", text(long_beat(MAX)), Ok),
        at(SMALL, "K-049", "a frame of the maximum size of frames", text(long_beat(1024 - 8)), Ok),
        at(
            SMALL,
            "K-050",
            "a frame one byte over the maximum size of frames",
            text(long_beat(1025 - 8)),
            Close(1009),
        ),
    ]
}

fn masks() -> Vec<Case> {
    let plain = |first: u8, payload: &[u8]| {
        [&[first, u8::try_from(payload.len()).unwrap()], payload].concat()
    };
    let zero =
        [&[FIN | TEXT, 0x80 | u8::try_from(beat().len()).unwrap(), 0, 0, 0, 0], beat()].concat();
    vec![
        ws("K-051", "a text without a mask", plain(FIN | TEXT, beat()), Close(1002)),
        ws("K-052", "a ping without a mask", plain(FIN | PING, b"hello"), Close(1002)),
        ws("K-053", "a close without a mask", plain(FIN | CLOSE, &[3, 232]), Close(1002)),
        ws("K-054", "an empty text without a mask", plain(FIN | TEXT, b""), Close(1002)),
        ws(
            "K-055",
            "a continuation without a mask after a masked fragment",
            [frame(TEXT, &beat()[..9]), plain(FIN | CONTINUE, &beat()[9..])].concat(),
            Close(1002),
        ),
        ws("K-056", "a text whose mask is zero", zero, Ok),
    ]
}

/// A message in these pieces.
fn in_pieces(kind: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let last = pieces.len() - 1;
    let first = |n: usize| {
        let opcode = if n == 0 { kind } else { CONTINUE };
        if n == last { FIN | opcode } else { opcode }
    };
    let frames = pieces.iter().enumerate().map(|(n, piece)| frame(first(n), piece));
    frames.collect::<Vec<_>>().concat()
}

fn fragments() -> Vec<Case> {
    let [half, rest] = [&beat()[..9], &beat()[9..]];
    let bytes: Vec<&[u8]> = beat().chunks(1).collect();
    let empty: Vec<&[u8]> = [&[half][..], &[&b""[..]; 1000], &[rest], &[&b""[..]; 1000]].concat();
    let over = long_beat(MAX);
    let over: Vec<&[u8]> = over.chunks(1 << 16).chain([&b" "[..]]).collect();
    let (within, small) = (long_beat(4096), long_beat(4097));
    let small: Vec<&[u8]> = small.chunks(1000).collect();
    let within: Vec<&[u8]> = within.chunks(1000).collect();
    vec![
        ws(
            "K-057",
            "a continuation without a beginning",
            frame(FIN | CONTINUE, beat()),
            Close(1002),
        ),
        ws(
            "K-058",
            "a continuation that is not final, without a beginning",
            frame(CONTINUE, b""),
            Close(1002),
        ),
        ws(
            "K-059",
            "a continuation after a complete message",
            [heartbeat("1"), frame(FIN | CONTINUE, b"")].concat(),
            ThenClose(vec![Answer::Message(beaten("1"))], 1002),
        ),
        ws(
            "K-060",
            "a text within a fragmented text",
            [frame(TEXT, half), frame(FIN | TEXT, rest)].concat(),
            Close(1002),
        ),
        ws(
            "K-061",
            "a binary frame within a fragmented text",
            [frame(TEXT, half), frame(FIN | BINARY, rest)].concat(),
            Close(1002),
        ),
        ws(
            "K-062",
            "a fragment of a text within a fragmented binary message",
            [frame(BINARY, half), frame(TEXT, rest)].concat(),
            Close(1002),
        ),
        ws("K-063", "a message with one byte in each fragment", in_pieces(TEXT, &bytes), Ok),
        ws("K-064", "two thousand empty fragments in a message", in_pieces(TEXT, &empty), Ok),
        ws(
            "K-065",
            "fragments that exceed the maximum by their last byte",
            in_pieces(TEXT, &over),
            Close(1009),
        ),
        at(
            SMALL,
            "K-066",
            "small fragments of a message of the maximum size",
            in_pieces(TEXT, &within),
            Ok,
        ),
        at(
            SMALL,
            "K-067",
            "small fragments of a message over the maximum size",
            in_pieces(TEXT, &small),
            Close(1009),
        ),
        ws(
            "K-068",
            "a first fragment of the maximum size, and another byte",
            [frame(TEXT, &long_beat(MAX)), frame(CONTINUE, b" ")].concat(),
            Close(1009),
        ),
        ws(
            "K-069",
            "a first fragment, a ping, and another first fragment",
            [frame(TEXT, half), frame(FIN | PING, b"?"), frame(TEXT, half)].concat(),
            ThenClose(vec![Answer::Pong(b"?")], 1002),
        ),
    ]
}

fn utf8() -> Vec<Case> {
    let pair = |[first, second]: [&[u8]; 2]| in_pieces(TEXT, &[first, second]);
    let quoted = |bytes: &[u8]| {
        text([&b"[null,\"1\",\"phoenix\",\"heartbeat\",\""[..], bytes, b"\"]"].concat())
    };
    let letters = "[null,\"1\",\"phoenix\",\"heartbeat\",\"\u{e9}\u{20ac}\u{1f600}\"]";
    let letters: Vec<&[u8]> = letters.as_bytes().chunks(1).collect();
    vec![
        ws("K-070", "a text with the byte 0xff", quoted(b"\xff"), Close(1007)),
        ws("K-071", "a text with a lone continuation byte", quoted(b"\x80"), Close(1007)),
        ws("K-072", "a text with an overlong slash", quoted(b"\xc0\xaf"), Close(1007)),
        ws("K-073", "a text with an overlong NUL", quoted(b"\xc0\x80"), Close(1007)),
        ws("K-074", "a text with an encoded surrogate", quoted(b"\xed\xa0\x80"), Close(1007)),
        ws(
            "K-075",
            "a text with a code point above U+10FFFF",
            quoted(b"\xf4\x90\x80\x80"),
            Close(1007),
        ),
        ws(
            "K-076",
            "a text with a sequence of five bytes",
            quoted(b"\xf8\x88\x80\x80\x80"),
            Close(1007),
        ),
        ws("K-077", "a text that ends within a character", text(b"\"\xe2\x82"), Close(1007)),
        ws(
            "K-078",
            "a text whose fragments each have an invalid half",
            pair([b"\"\xe2", b"\xff\""]),
            Close(1007),
        ),
        ws(
            "K-079",
            "a fragmented text that ends within a character",
            pair([b"\"\xe2", b"\x82"]),
            Close(1007),
        ),
        ws("K-080", "a text whose characters are cut by fragments", in_pieces(TEXT, &letters), Ok),
        ws(
            "K-081",
            "a close whose reason is not UTF-8",
            frame(FIN | CLOSE, b"\x03\xe8\xff"),
            Close(1007),
        ),
        ws(
            "K-082",
            "a close whose reason ends within a character",
            frame(FIN | CLOSE, b"\x03\xe8\xe2\x82"),
            Close(1007),
        ),
        ws(
            "K-083",
            "a binary message whose topic is not UTF-8",
            frame(FIN | BINARY, b"\x00\x01\x01\x01\x0112\xffe"),
            Close(1007),
        ),
    ]
}

fn closes() -> Vec<Case> {
    let close = |code: u16| frame(FIN | CLOSE, &code.to_be_bytes());
    let reason = [&1000u16.to_be_bytes()[..], &[b'x'; 123]].concat();
    vec![
        ws("K-084", "a close of one byte", frame(FIN | CLOSE, &[3]), Close(1002)),
        ws("K-085", "a close with the code 0", close(0), Close(1002)),
        ws("K-086", "a close with the code 999", close(999), Close(1002)),
        ws("K-087", "a close with the reserved code 1004", close(1004), Close(1002)),
        ws("K-088", "a close with the code 1005, which is never sent", close(1005), Close(1002)),
        ws("K-089", "a close with the code 1006, which is never sent", close(1006), Close(1002)),
        ws("K-090", "a close with the code 1015, which is never sent", close(1015), Close(1002)),
        ws("K-091", "a close with the unassigned code 1016", close(1016), Close(1002)),
        ws("K-092", "a close with the unassigned code 2999", close(2999), Close(1002)),
        ws("K-093", "a close with the code 5000", close(5000), Close(1002)),
        ws("K-094", "a close with the code 65535", close(u16::MAX), Close(1002)),
        ws(
            "K-095",
            "a close with the code 1010, which servers do not send",
            close(1010),
            Close(1000),
        ),
        ws("K-096", "a close with the code 3000", close(3000), Close(1000)),
        ws("K-097", "a close with the code 4999", close(4999), Close(1000)),
        ws("K-098", "a close without a code", frame(FIN | CLOSE, b""), Close(1000)),
        ws("K-099", "a close with the longest reason", frame(FIN | CLOSE, &reason), Close(1000)),
        ws("K-100", "two closes", close(1000).repeat(2), Close(1000)),
        ws(
            "K-101",
            "a close, and a megabyte behind it",
            [close(1000), text(long_beat(MAX))].concat(),
            Close(1000),
        ),
        ws(
            "K-102",
            "an invalid frame, and a megabyte behind it",
            [frame(FIN | 3, b""), text(long_beat(MAX))].concat(),
            Close(1002),
        ),
        ws("K-103", "a thousand invalid frames", frame(FIN | 3, b"x").repeat(1000), Close(1002)),
    ]
}

#[test]
fn frames_are_refused_or_answered() {
    group().run();
}
