//! The cases of the Autobahn test suite, sections 1 to 7, 9, 12 and 13, by its numbers.
//!
//! The suite's server echoes every message. This one speaks Phoenix, so a message is an event with
//! the suite's payload, as a JSON string or as the bytes of a binary event, and a channel replies
//! with the payload. The frames, their sizes, their fragments and the pieces in which they are sent
//! are those of the suite, of the whole message. Sizes above the maximum of a message, and counts
//! of messages, are scaled down.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    arena::Arena,
    case::ALONE,
    client::{
        BINARY, CLOSE, CONTINUE, Client, FIN, PING, PONG, RSV1, SOCKET, TEXT, TOPIC, deflated,
        frame, frames, inflated,
    },
    document::has_tables,
};

/// A case of the suite.
struct Autobahn {
    id: String,
    what: String,
    /// The offer of compression, if there is one, and whether the server accepts it.
    offer: Option<(&'static str, bool)>,
    /// Bytes, and the size of the pieces in which they are sent; 0 is all at once.
    sends: Vec<(Vec<u8>, usize)>,
    answers: Vec<Answer>,
    /// What the client sends right behind its own close.
    behind: Vec<u8>,
}

/// An expected frame of the server.
#[derive(Clone)]
enum Answer {
    /// The reply with this text.
    Text(Vec<u8>),
    /// The reply with these bytes.
    Bytes(Vec<u8>),
    Pong(Vec<u8>),
    /// A close with this code, after which nothing comes.
    Close(u16),
}

impl Autobahn {
    fn new(id: impl Into<String>, what: impl Into<String>) -> Self {
        let (id, what) = (format!("W-{}", id.into()), what.into());
        Self { id, what, offer: None, sends: vec![], answers: vec![], behind: vec![] }
    }

    fn sends(mut self, bytes: Vec<u8>) -> Self {
        self.sends.push((bytes, 0));
        self
    }

    /// Sends bytes in pieces of this size.
    fn chops(mut self, bytes: Vec<u8>, size: usize) -> Self {
        self.sends.push((bytes, size));
        self
    }

    /// Sends these bytes right behind the close with which the client ends.
    fn behind_the_close(mut self, bytes: Vec<u8>) -> Self {
        self.behind = bytes;
        self
    }

    fn answers(mut self, answer: Answer) -> Self {
        self.answers.push(answer);
        self
    }

    fn text(self, text: impl AsRef<[u8]>) -> Self {
        self.answers(Answer::Text(text.as_ref().to_vec()))
    }

    fn bytes(self, bytes: impl AsRef<[u8]>) -> Self {
        self.answers(Answer::Bytes(bytes.as_ref().to_vec()))
    }

    fn pong(self, bytes: impl AsRef<[u8]>) -> Self {
        self.answers(Answer::Pong(bytes.as_ref().to_vec()))
    }

    fn closed(self, code: u16) -> Self {
        self.answers(Answer::Close(code))
    }

    fn expected(&self) -> String {
        let name = |answer: &Answer| match answer {
            Answer::Text(text) => format!("a text of {} bytes", text.len()),
            Answer::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Answer::Pong(bytes) => format!("a pong of {} bytes", bytes.len()),
            Answer::Close(code) => format!("close {code}"),
        };
        let mut names: Vec<(String, usize)> = Vec::new();
        for answer in &self.answers {
            let name = name(answer);
            match names.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => names.push((name, 1)),
            }
        }
        let all = names.into_iter().map(|(name, count)| match count {
            1 => name,
            count => format!("{count} times {name}"),
        });
        let all: Vec<_> = all.collect();
        if all.is_empty() { "nothing, then a clean close".to_owned() } else { all.join(", ") }
    }

    fn run(&self, arena: &Arena) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let offer = self.offer.map(|(offer, _)| format!("Sec-WebSocket-Extensions: {offer}\r\n"));
        let mut client = Client::open(arena.address, SOCKET, &offer.unwrap_or_default());
        let client = client.as_mut().map_err(|error| error.to_string())?;
        let is_accepted = client.head.to_ascii_lowercase().contains("sec-websocket-extensions:");
        if is_accepted != self.offer.is_some_and(|(_, accepts)| accepts) {
            return Err(format!("its offer is answered: {}", client.head));
        }
        client.join()?;
        for (bytes, size) in &self.sends {
            for piece in bytes.chunks(if *size == 0 { bytes.len().max(1) } else { *size }) {
                // A server that has closed need not read the rest.
                let _ = client.send(piece);
            }
        }
        for answer in &self.answers {
            let frame = client.next().map_err(failed)?;
            let matches = match answer {
                Answer::Text(text) => {
                    let message = frame.message()?;
                    message[4]["response"].as_str().is_some_and(|it| it.as_bytes() == text)
                }
                Answer::Bytes(bytes) => {
                    frame.first == FIN | BINARY && replied(&frame.payload) == bytes
                }
                Answer::Pong(bytes) => frame.first == FIN | PONG && frame.payload == *bytes,
                Answer::Close(code) => {
                    let seen = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    frame.first == FIN | CLOSE && seen == Some(*code)
                }
            };
            if !matches {
                return Err(format!("{frame} came"));
            }
        }
        if !matches!(self.answers.last(), Some(Answer::Close(_))) {
            let close = frame(FIN | CLOSE, &1000u16.to_be_bytes());
            client.send(&[&close[..], &self.behind].concat()).map_err(failed)?;
            let frame = client.next().map_err(failed)?;
            if frame.first != FIN | CLOSE || frame.payload != 1000u16.to_be_bytes() {
                return Err(format!("{frame} came instead of a clean close"));
            }
        }
        // Either a frame was invalid or the client has sent a close: the server waits for nothing, and
        // ends the connection first.
        client.has_ended()
    }
}

/// What another client exchanges: steps that it can be told, without their bytes, which are appended to others.
pub(crate) struct Exchange {
    pub(crate) id: String,
    pub(crate) steps: Value,
    /// The other implementations that can be told all of them.
    pub(crate) by: Vec<Other>,
}

/// Another implementation of WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    Ws,
    Websockets,
}

impl Autobahn {
    /// The case as steps of a client that makes its frames itself, if it is one that sends nothing but what such a client
    /// sends: whole messages, their fragments with pings between them, pings, pongs, and one close at the end. The pieces
    /// in which the bytes are sent are the client's own.
    fn exchange(&self, blob: &mut Vec<u8>) -> Option<Exchange> {
        let bytes: Vec<u8> = self.sends.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut by = vec![Other::Ws, Other::Websockets];
        let mut keep = |bytes: &[u8]| {
            // Most messages are those before.
            if !blob.ends_with(bytes) {
                blob.extend_from_slice(bytes);
            }
            json!([blob.len() - bytes.len(), bytes.len()])
        };
        if !self.behind.is_empty() {
            return None;
        }
        let (mut steps, mut in_message, mut pings, mut compressed) =
            (Vec::new(), false, Vec::new(), None::<(usize, Vec<u8>)>);
        for (first, payload) in frames(&bytes)? {
            let (fin, rsv, opcode) = (first & FIN != 0, first & 0x70, first & 0x0f);
            if steps.last().is_some_and(|step: &Value| step["op"] == CLOSE) {
                return None;
            }
            let is_fine = match opcode {
                TEXT | BINARY => !in_message,
                CONTINUE => in_message,
                PING | PONG => fin && payload.len() <= 125,
                CLOSE => fin && !in_message && is_usual_close(&payload),
                _ => false,
            };
            let compresses = self.offer.is_some_and(|(_, accepts)| accepts);
            if !is_fine || (rsv != 0 && (rsv != RSV1 || !compresses)) {
                return None;
            }
            if opcode == PING {
                // It waits for each by its payload.
                if pings.contains(&payload) {
                    by.retain(|other| *other != Other::Websockets);
                }
                pings.push(payload.clone());
            }
            if opcode < CLOSE {
                in_message = !fin;
                if rsv == RSV1 || compressed.is_some() {
                    let (count, whole) = compressed.get_or_insert_default();
                    (*count, _) = (*count + 1, whole.extend(payload));
                    let Some((count, whole)) = fin.then(|| compressed.take()).flatten() else {
                        continue;
                    };
                    // The client compresses it by itself, in as many fragments.
                    let message = inflated(&whole);
                    let pieces: Vec<_> = message.chunks(message.len().div_ceil(count)).collect();
                    for (n, piece) in (1..).zip(&pieces) {
                        let op = if n == 1 { TEXT } else { CONTINUE };
                        let fin = n == pieces.len();
                        steps.push(json!({ "op": op, "fin": fin, "bytes": keep(piece) }));
                    }
                    continue;
                }
            }
            if opcode == CLOSE && payload.is_empty() {
                by.retain(|other| *other != Other::Websockets);
            }
            steps.push(json!({ "op": opcode, "fin": fin, "bytes": keep(&payload) }));
        }
        if in_message {
            return None;
        }
        if self.offer.is_some_and(|(offer, _)| offer.contains(',')) {
            by.retain(|other| *other != Other::Ws);
        }
        let answers = self.answers.iter().map(|answer| match answer {
            Answer::Text(text) => json!({ "op": TEXT, "bytes": keep(text) }),
            Answer::Bytes(bytes) => json!({ "op": BINARY, "bytes": keep(bytes) }),
            Answer::Pong(bytes) => json!({ "op": PONG, "bytes": keep(bytes) }),
            Answer::Close(code) => json!({ "op": CLOSE, "code": code }),
        });
        let answers: Vec<_> = answers.collect();
        let (offer, accepts) = self.offer.unzip();
        let steps = json!({
            "id": self.id, "offer": offer, "accepts": accepts, "steps": steps, "answers": answers,
        });
        Some(Exchange { id: self.id.clone(), steps, by })
    }
}

/// Whether a client can be told to send this close.
fn is_usual_close(payload: &[u8]) -> bool {
    let Some((code, reason)) = payload.split_first_chunk() else { return payload.is_empty() };
    let is_code = matches!(u16::from_be_bytes(*code), 1000..=1003 | 1007..=1011 | 3000..=4999);
    is_code && reason.len() <= 123 && std::str::from_utf8(reason).is_ok()
}

/// All cases that other clients exchange, and the bytes that they are about.
pub(crate) fn exchanges() -> (Vec<Exchange>, Vec<u8>) {
    let mut blob = Vec::new();
    let cases = sections().into_iter().flat_map(|(_, cases)| cases);
    let exchanges = cases.filter_map(|case| case.exchange(&mut blob)).collect();
    (exchanges, blob)
}

/// The payload of a binary reply, behind its names.
fn replied(payload: &[u8]) -> &[u8] {
    let [1, lengths @ ..] = payload else { return &[] };
    let names: usize = lengths.iter().take(4).map(|length| usize::from(*length)).sum();
    payload.get(5 + names..).unwrap_or_default()
}

/// An event with this text.
fn event(text: &[u8]) -> Vec<u8> {
    [format!(r#"["1","2","{TOPIC}","ask",""#).as_bytes(), text, b"\"]"].concat()
}

/// A binary event with these bytes.
fn binary(bytes: &[u8]) -> Vec<u8> {
    let length = char::from(u8::try_from(TOPIC.len()).unwrap());
    [format!("\0\x01\x01{length}\x0312{TOPIC}ask").as_bytes(), bytes].concat()
}

/// The text of which an event has this size; empty if the event is larger in any case.
fn filling(size: usize) -> Vec<u8> {
    vec![b'*'; size.saturating_sub(event(b"").len())]
}

/// The same of a binary event.
fn filling_binary(size: usize) -> Vec<u8> {
    vec![0xfe; size.saturating_sub(binary(b"").len())]
}

fn text_frame(text: &[u8]) -> Vec<u8> {
    frame(FIN | TEXT, &event(text))
}

fn binary_frame(bytes: &[u8]) -> Vec<u8> {
    frame(FIN | BINARY, &binary(bytes))
}

/// A message of these fragments.
fn fragments<'a>(kind: u8, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let pieces: Vec<_> = pieces.into_iter().collect();
    let last = pieces.len() - 1;
    let first = |n| {
        let opcode = if n == 0 { kind } else { CONTINUE };
        if n == last { FIN | opcode } else { opcode }
    };
    pieces.iter().enumerate().map(|(n, piece)| frame(first(n), piece)).collect()
}

/// Whether a character has to be escaped in JSON.
fn escaped(text: &str) -> Vec<u8> {
    let quoted = Value::from(text).to_string();
    quoted.as_bytes()[1..quoted.len() - 1].to_vec()
}

fn sizes() -> Vec<Autobahn> {
    const SIZES: [(usize, usize); 8] =
        [(0, 0), (125, 0), (126, 0), (127, 0), (128, 0), (65535, 0), (65536, 0), (65536, 997)];
    let mut cases = Vec::new();
    for (n, (size, chop)) in (1..).zip(SIZES) {
        let what = |kind: &str| match chop {
            0 => format!("a {kind} of {size} bytes"),
            chop => format!("a {kind} of {size} bytes in pieces of {chop}"),
        };
        let (text, bytes) = (filling(size), filling_binary(size));
        let case = Autobahn::new(format!("1.1.{n}"), what("text"));
        cases.push(case.chops(text_frame(&text), chop).text(text));
        let case = Autobahn::new(format!("1.2.{n}"), what("binary message"));
        cases.push(case.chops(binary_frame(&bytes), chop).bytes(bytes));
    }
    cases
}

fn pings() -> Vec<Autobahn> {
    let case = |id: &str, what: &str| Autobahn::new(id, what);
    let ping = |payload: &[u8]| frame(FIN | PING, payload);
    let binary = [0x00, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0x00, 0xff];
    let many: Vec<_> = (0..10).map(|n| format!("payload-{n}")).collect();
    let all: Vec<u8> = many.iter().flat_map(|payload| ping(payload.as_bytes())).collect();
    let pongs = |case: Autobahn| many.iter().fold(case, Autobahn::pong);
    vec![
        case("2.1", "a ping without a payload").sends(ping(b"")).pong(b""),
        case("2.2", "a ping with a text").sends(ping(b"Hello, world!")).pong(b"Hello, world!"),
        case("2.3", "a ping with bytes that are not UTF-8").sends(ping(&binary)).pong(binary),
        case("2.4", "a ping of 125 bytes").sends(ping(&[0xfe; 125])).pong([0xfe; 125]),
        case("2.5", "a ping of 126 bytes").sends(ping(&[0xfe; 126])).closed(1002),
        case("2.6", "a ping of 125 bytes in single bytes")
            .chops(ping(&[0xfe; 125]), 1)
            .pong([0xfe; 125]),
        case("2.7", "a pong without a payload").sends(frame(FIN | PONG, b"")),
        case("2.8", "a pong with a payload").sends(frame(FIN | PONG, b"unsolicited")),
        case("2.9", "a pong, then a ping")
            .sends(frame(FIN | PONG, b"unsolicited"))
            .sends(ping(b"ping"))
            .pong(b"ping"),
        pongs(case("2.10", "ten pings").sends(all.clone())),
        pongs(case("2.11", "ten pings in single bytes").chops(all, 1)),
    ]
}

fn reserved() -> Vec<Autobahn> {
    let case = |id: &str, what: &str| Autobahn::new(id, what);
    let small = b"Hello, world!";
    let with = |rsv: u8, opcode: u8| frame(FIN | rsv << 4 | opcode, &event(small));
    let mut cases = vec![
        case("3.1", "a text with RSV 1").sends(with(1, TEXT)).closed(1002),
        case("3.2", "a text with RSV 2, and a ping")
            .sends([with(2, TEXT), frame(FIN | PING, b"")].concat())
            .closed(1002),
        case("3.3", "a text with RSV 3 in single bytes").chops(with(3, TEXT), 1).closed(1002),
        case("3.4", "a text with RSV 4 in single bytes").chops(with(4, TEXT), 1).closed(1002),
        case("3.5", "a binary message with RSV 5")
            .sends(frame(FIN | 5 << 4 | BINARY, &binary(small)))
            .closed(1002),
        case("3.6", "a ping with RSV 6").sends(frame(FIN | 6 << 4 | PING, small)).closed(1002),
        case("3.7", "a close with RSV 7")
            .sends(frame(FIN | 7 << 4 | CLOSE, &1000u16.to_be_bytes()))
            .closed(1002),
    ];
    for (section, first) in [(1, 3), (2, 11)] {
        for n in 0..5 {
            let opcode = first + n;
            let payload: &[u8] = if n % 2 == 0 { b"" } else { small };
            let bytes = [frame(FIN | opcode, payload), frame(FIN | PING, b"")].concat();
            let what = format!("the reserved opcode {opcode}, and a ping");
            let case = Autobahn::new(format!("4.{section}.{}", n + 1), what);
            cases.push(if n == 4 { case.chops(bytes, 1) } else { case.sends(bytes) }.closed(1002));
        }
    }
    cases
}

fn fragmented() -> Vec<Autobahn> {
    let case = |id: &str, what: &str| Autobahn::new(id, what);
    let whole = event(b"fragment1fragment2");
    let (one, two) = whole.split_at(whole.len() - 11);
    let [first, last] = <[Vec<u8>; 2]>::try_from(fragments(TEXT, [one, two])).unwrap();
    let ping = frame(FIN | PING, b"ping");
    let text = b"fragment1fragment2";
    let stray = |fin: u8| frame(fin | CONTINUE, b"fragment");
    let both = [first.clone(), last.clone()].concat();
    let between = [first.clone(), ping.clone(), last.clone()].concat();
    let six = event(b"fragment1fragment2fragment3fragment4fragment5");
    let [a, b, c, d, e] =
        <[Vec<u8>; 5]>::try_from(fragments(TEXT, six.chunks(six.len().div_ceil(5)))).unwrap();
    let pinged = [a, ping.clone(), b, c, ping.clone(), d, e].concat();
    let five = b"fragment1fragment2fragment3fragment4fragment5";
    vec![
        case("5.1", "a fragmented ping")
            .sends(frame(PING, b"fragment1"))
            .sends(frame(FIN | CONTINUE, b"fragment2"))
            .closed(1002),
        case("5.2", "a fragmented pong")
            .sends(frame(PONG, b"fragment1"))
            .sends(frame(FIN | CONTINUE, b"fragment2"))
            .closed(1002),
        case("5.3", "a text in two fragments").sends(both.clone()).text(text),
        case("5.4", "a text in two fragments, sent one by one")
            .sends(first.clone())
            .sends(last.clone())
            .text(text),
        case("5.5", "a text in two fragments, in single bytes").chops(both, 1).text(text),
        case("5.6", "a ping between two fragments").sends(between.clone()).pong(b"ping").text(text),
        case("5.7", "a ping between two fragments, sent one by one")
            .sends(first.clone())
            .sends(ping.clone())
            .sends(last.clone())
            .pong(b"ping")
            .text(text),
        case("5.8", "a ping between two fragments, in single bytes")
            .chops(between, 1)
            .pong(b"ping")
            .text(text),
        case("5.9", "a final continuation without a beginning, and a text")
            .sends([stray(FIN), text_frame(text)].concat())
            .closed(1002),
        case("5.10", "the same, sent one by one")
            .sends(stray(FIN))
            .sends(text_frame(text))
            .closed(1002),
        case("5.11", "the same in single bytes")
            .chops([stray(FIN), text_frame(text)].concat(), 1)
            .closed(1002),
        case("5.12", "a continuation without a beginning, and a text")
            .sends([stray(0), text_frame(text)].concat())
            .closed(1002),
        case("5.13", "the same, sent one by one")
            .sends(stray(0))
            .sends(text_frame(text))
            .closed(1002),
        case("5.14", "the same in single bytes")
            .chops([stray(0), text_frame(text)].concat(), 1)
            .closed(1002),
        case("5.15", "a continuation after a ping, and a text")
            .sends([ping.clone(), stray(0), text_frame(text)].concat())
            .pong(b"ping")
            .closed(1002),
        case("5.16", "a continuation and a text, twice")
            .sends([stray(0), text_frame(text)].concat().repeat(2))
            .closed(1002),
        case("5.17", "a final continuation and a text, twice")
            .sends([stray(FIN), text_frame(text)].concat().repeat(2))
            .closed(1002),
        case("5.18", "two fragments that are both texts")
            .sends([first, frame(FIN | TEXT, two)].concat())
            .closed(1002),
        case("5.19", "five fragments and two pings")
            .sends(pinged.clone())
            .pong(b"ping")
            .pong(b"ping")
            .text(five),
        case("5.20", "five fragments and two pings, in single bytes")
            .chops(pinged, 1)
            .pong(b"ping")
            .pong(b"ping")
            .text(five),
    ]
}

fn utf8() -> Vec<Autobahn> {
    let case = |id: &str, what: &str| Autobahn::new(id, what);
    let greek = "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!";
    let other = "\u{3ba}\u{3cc}\u{3c3}\u{3bc}\u{3b5}";
    let by_byte = |text: &[u8]| fragments(TEXT, event(text).chunks(1)).concat();
    let (empty, whole) = (event(b""), event(greek.as_bytes()));
    let bad = [other.as_bytes(), b"\xed\xa0\x80edited"].concat();
    let cut = |at: usize| {
        let whole = event(&[other.as_bytes(), b"\xf4\x90\x80\x80edited"].concat());
        let start = whole.len() - 2 - 10;
        (whole[..start + at].to_vec(), whole[start + at..].to_vec())
    };
    let mut cases = vec![
        case("6.1.1", "an empty text").sends(text_frame(b"")).text(b""),
        case("6.1.2", "three fragments, of which the last two are empty")
            .sends(fragments(TEXT, [&empty[..], b"", b""]).concat())
            .text(b""),
        case("6.1.3", "three fragments, of which the outer ones are empty")
            .sends(fragments(TEXT, [b"", &empty[..], b""]).concat())
            .text(b""),
        case("6.2.1", "a valid text").sends(text_frame(greek.as_bytes())).text(greek),
        case("6.2.2", "a valid text in two fragments")
            .sends(fragments(TEXT, whole.chunks(whole.len() - 14)).concat())
            .text(greek),
        case("6.2.3", "a valid text in fragments of a byte")
            .sends(by_byte(greek.as_bytes()))
            .text(greek),
        case("6.2.4", "another valid text in fragments of a byte")
            .sends(by_byte(other.as_bytes()))
            .text(other),
        case("6.3.1", "an invalid text").sends(text_frame(&bad)).closed(1007),
        case("6.3.2", "an invalid text in fragments of a byte").sends(by_byte(&bad)).closed(1007),
    ];
    for (n, at) in (1..).zip([0, 1, 2, 3]) {
        let (first, last) = cut(at);
        let what =
            format!("an invalid text in two fragments, cut {at} bytes into the invalid character");
        let case = Autobahn::new(format!("6.4.{n}"), what);
        cases
            .push(case.sends(frame(TEXT, &first)).sends(frame(FIN | CONTINUE, &last)).closed(1007));
    }
    let prefixes: Vec<Vec<u8>> =
        (1..=11).map(|n| [other.as_bytes(), b"\xed"].concat()[..n].to_vec()).collect();
    let strings: [(u32, Vec<Vec<u8>>); 19] = [
        (
            5,
            vec![
                b"Hello".to_vec(),
                "\u{b5}@\u{df}".into(),
                greek.into(),
                other.into(),
                "\u{20ac}".into(),
            ],
        ),
        (6, prefixes),
        (7, of(&["00", "c280", "e0a080", "f0908080"])),
        (8, of(&["f888808080", "fc8480808080"])),
        (9, of(&["7f", "dfbf", "efbfbf", "f48fbfbf"])),
        (10, of(&["f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf"])),
        (11, of(&["ed9fbf", "ee8080", "efbfbd", "f48fbfbf", "f4908080"])),
        (
            12,
            of(&[
                "80",
                "bf",
                "80bf",
                "80bf80",
                "80bf80bf",
                "80bf80bf80",
                "80bf80bf80bf",
                "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbe",
            ]),
        ),
        (
            13,
            of(&[
                "c020c120c220c320",
                "e020e120e220e320",
                "f020f120f220f320",
                "f820f920fa20fb20",
                "fc20fd20",
            ]),
        ),
        (
            14,
            of(&[
                "c0",
                "e080",
                "f08080",
                "f8808080",
                "fc80808080",
                "df",
                "efbf",
                "f7bfbf",
                "fbbfbfbf",
                "fdbfbfbfbf",
            ]),
        ),
        (15, of(&["c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"])),
        (16, of(&["fe", "ff", "fefeffff"])),
        (17, of(&["c0af", "e080af", "f08080af", "f8808080af", "fc80808080af"])),
        (18, of(&["c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf"])),
        (19, of(&["c080", "e08080", "f0808080", "f880808080", "fc8080808080"])),
        (20, of(&["eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"])),
        (
            21,
            of(&[
                "eda080edb080",
                "eda080edbfbf",
                "edadbfedb080",
                "edadbfedbfbf",
                "edae80edb080",
                "edae80edbfbf",
                "edafbfedb080",
                "edafbfedbfbf",
            ]),
        ),
        (22, noncharacters()),
        (
            23,
            (0xfff9..=0xffff)
                .map(|n| char::from_u32(n).unwrap().to_string().into_bytes())
                .collect(),
        ),
    ];
    for (section, strings) in strings {
        for (n, bytes) in (1..).zip(strings) {
            let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let shown = if shown.len() > 40 { format!("{}...", &shown[..40]) } else { shown };
            let id = format!("6.{section}.{n}");
            cases.push(match std::str::from_utf8(&bytes) {
                Ok(text) => {
                    let case = Autobahn::new(id, format!("a text with the bytes {shown}"));
                    case.sends(text_frame(&escaped(text))).text(text)
                }
                Err(_) => {
                    let case = Autobahn::new(id, format!("a text with the invalid bytes {shown}"));
                    case.sends(text_frame(&bytes)).closed(1007)
                }
            });
        }
    }
    cases
}

/// Bytes in hexadecimal.
fn of(texts: &[&str]) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    texts.iter().map(|text| text.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// The last two code points of each plane, which are valid.
fn noncharacters() -> Vec<Vec<u8>> {
    let of = |n| char::from_u32(n).unwrap().to_string().into_bytes();
    (0..=16).flat_map(|plane| [of(plane << 16 | 0xfffe), of(plane << 16 | 0xffff)]).collect()
}

fn closes() -> Vec<Autobahn> {
    let case = |id: &str, what: &str| Autobahn::new(id, what);
    let close = |payload: &[u8]| frame(FIN | CLOSE, payload);
    let coded = |code: u16, reason: &[u8]| close(&[&code.to_be_bytes()[..], reason].concat());
    let whole = event(b"fragment1fragment2");
    let pieces = fragments(TEXT, whole.chunks(whole.len() - 11));
    let ping = frame(FIN | PING, b"");
    let large = filling(256 << 10);
    let mut cases = vec![
        case("7.1.1", "a text, and a close after its answer")
            .sends(text_frame(b"Hello World!"))
            .text(b"Hello World!"),
        case("7.1.2", "two closes").sends(coded(1000, b"").repeat(2)).closed(1000),
        case("7.1.3", "a close, and a ping")
            .sends([coded(1000, b""), ping.clone()].concat())
            .closed(1000),
        case("7.1.4", "a close, and a text")
            .sends([coded(1000, b""), text_frame(b"x")].concat())
            .closed(1000),
        case("7.1.5", "a close between two fragments")
            .sends([&pieces[0][..], &coded(1000, b""), &pieces[1]].concat())
            .closed(1000),
        case("7.1.6", "a text of 256 KiB; a close and a ping after its answer")
            .sends(text_frame(&large))
            .text(large)
            .behind_the_close(ping),
        case("7.3.1", "a close without a payload").sends(close(b"")).closed(1000),
        case("7.3.2", "a close of one byte").sends(close(b"a")).closed(1002),
        case("7.3.3", "a close with a code").sends(coded(1000, b"")).closed(1000),
        case("7.3.4", "a close with a code and a reason")
            .sends(coded(1000, b"Hello World!"))
            .closed(1000),
        case("7.3.5", "a close with a reason of 123 bytes")
            .sends(coded(1000, &[b'*'; 123]))
            .closed(1000),
        case("7.3.6", "a close with a reason of 124 bytes")
            .sends(coded(1000, &[b'*'; 124]))
            .closed(1002),
        case("7.5.1", "a close with a reason that is not UTF-8")
            .sends(coded(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"))
            .closed(1007),
    ];
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (n, code) in (1..).zip(valid) {
        let case = Autobahn::new(format!("7.7.{n}"), format!("a close with the code {code}"));
        cases.push(case.sends(coded(code, b"")).closed(1000));
    }
    let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
    for (n, code) in (1..).zip(invalid) {
        let case = Autobahn::new(format!("7.9.{n}"), format!("a close with the code {code}"));
        cases.push(case.sends(coded(code, b"")).closed(1002));
    }
    for (n, code) in (1..).zip([5000, 65535]) {
        let case = Autobahn::new(format!("7.13.{n}"), format!("a close with the code {code}"));
        cases.push(case.sends(coded(code, b"")).closed(1002));
    }
    cases
}

/// Builds the bytes of a message of this kind, and the size of the pieces in which they are sent.
type Build<'a> = &'a dyn Fn(u8, &[u8]) -> (Vec<u8>, usize);

fn limits() -> Vec<Autobahn> {
    const SIZES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20];
    const FRAGMENTS: [usize; 9] =
        [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10];
    const CHOPS: [usize; 6] = [64, 128, 256, 512, 1024, 2048];
    const SMALL: [usize; 6] = [0, 16, 64, 256, 1024, 4096];
    let mut cases = Vec::new();
    let mut both =
        |section: usize, n: usize, what: String, size: usize, build: Build<'_>, count: usize| {
            let (text, bytes) = (filling(size), filling_binary(size));
            let (sent, chop) = build(TEXT, &event(&text));
            let case = Autobahn::new(format!("9.{section}.{n}"), format!("a text of {what}"));
            let case = case.chops(sent.repeat(count), chop);
            cases.push((0..count).fold(case, |case, _| case.text(&text)));
            let (sent, chop) = build(BINARY, &binary(&bytes));
            let case = Autobahn::new(
                format!("9.{}.{n}", section + 1),
                format!("a binary message of {what}"),
            );
            let case = case.chops(sent.repeat(count), chop);
            cases.push((0..count).fold(case, |case, _| case.bytes(&bytes)));
        };
    for (n, size) in (1..).zip(SIZES) {
        both(1, n, format!("{size} bytes"), size, &|kind, whole| (frame(FIN | kind, whole), 0), 1);
    }
    for (n, piece) in (1..).zip(FRAGMENTS) {
        let what = format!("512 KiB in fragments of {piece} bytes");
        both(
            3,
            n,
            what,
            512 << 10,
            &|kind, whole| (fragments(kind, whole.chunks(piece)).concat(), 0),
            1,
        );
    }
    for (n, chop) in (1..).zip(CHOPS) {
        let what = format!("128 KiB in pieces of {chop} bytes");
        both(5, n, what, 128 << 10, &|kind, whole| (frame(FIN | kind, whole), chop), 1);
    }
    for (n, size) in (1..).zip(SMALL) {
        let what = format!("{size} bytes, a hundred times");
        both(7, n, what, size, &|kind, whole| (frame(FIN | kind, whole), 0), 100);
    }
    cases
}

/// Sizes of messages and of their fragments, in sections 12 and 13.
const COMPRESSED: [(usize, usize); 18] = [
    (16, 0),
    (64, 0),
    (256, 0),
    (1024, 0),
    (4096, 0),
    (8192, 0),
    (16384, 0),
    (32768, 0),
    (65536, 0),
    (131_072, 0),
    (8192, 256),
    (16384, 256),
    (32768, 256),
    (65536, 256),
    (131_072, 256),
    (131_072, 1024),
    (131_072, 4096),
    (131_072, 32768),
];

/// What a compressed message consists of.
#[derive(Clone, Copy)]
enum Data {
    Json,
    Noise,
    Prose,
    Letters,
    Zeros,
}

impl Data {
    /// This many bytes, as a text that needs no escapes.
    fn text(self, size: usize) -> Vec<u8> {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 40).unwrap()
        };
        let words: &[&str] = match self {
            Self::Json => &["{'id':17,", "'name':'x',", "'values':[1,2,3],", "'ok':true},"],
            Self::Prose => &[
                "the ",
                "demand ",
                "of ",
                "a ",
                "stage ",
                "is ",
                "kept ",
                "by ",
                "its ",
                "producer. ",
            ],
            Self::Letters => &["a", "b", "c", "d"],
            Self::Zeros => &["0"],
            Self::Noise => &[],
        };
        let mut text = Vec::with_capacity(size + 20);
        while text.len() < size {
            match words {
                [] => text.push(
                    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
                        [random() % 64],
                ),
                words => text.extend_from_slice(words[random() % words.len()].as_bytes()),
            }
        }
        text.truncate(size);
        text
    }
}

fn compressed() -> Vec<Autobahn> {
    const PLAIN: &str = "permessage-deflate";
    let data = [Data::Json, Data::Noise, Data::Prose, Data::Letters, Data::Zeros];
    let mut groups: Vec<(String, &'static str, Data, bool)> =
        (1..).zip(data).map(|(n, data)| (format!("12.{n}"), PLAIN, data, true)).collect();
    // The last field says whether the server accepts compression.
    let offers = [
        (PLAIN, true),
        ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", true),
        ("permessage-deflate; client_max_window_bits; server_max_window_bits=9", false),
        ("permessage-deflate; client_max_window_bits; server_max_window_bits=15", true),
        (
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=9",
            false,
        ),
        (
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=15",
            true,
        ),
        (
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9, permessage-deflate; server_no_context_takeover, permessage-deflate",
            true,
        ),
    ];
    groups.extend(
        (1..)
            .zip(offers)
            .map(|(n, (offer, accepts))| (format!("13.{n}"), offer, Data::Json, accepts)),
    );
    let mut cases = Vec::new();
    for (group, offer, data, accepts) in groups {
        for (n, (size, piece)) in (1..).zip(COMPRESSED) {
            let text = data.text(size);
            let (first, payload) = match accepts {
                true => (RSV1 | TEXT, deflated(&event(&text))),
                false => (TEXT, event(&text)),
            };
            let piece_size = if piece == 0 { payload.len() } else { piece };
            let sent = fragments(first, payload.chunks(piece_size)).concat();
            let of = if accepts { "compressed" } else { "uncompressed" };
            let pieces =
                if piece == 0 { String::new() } else { format!(", in fragments of {piece}") };
            let what = format!("`{offer}`: three {of} texts of {size} bytes{pieces}");
            let case = Autobahn::new(format!("{group}.{n}"), what).sends(sent.repeat(3));
            let case = Autobahn { offer: Some((offer, accepts)), ..case };
            cases.push(case.text(&text).text(&text).text(&text));
        }
    }
    cases
}

/// All sections, with their titles.
fn sections() -> Vec<(&'static str, Vec<Autobahn>)> {
    vec![
        ("1 Framing", sizes()),
        ("2 Pings and pongs", pings()),
        ("3 and 4 Reserved bits and opcodes", reserved()),
        ("5 Fragmentation", fragmented()),
        ("6 UTF-8", utf8()),
        ("7 Closes", closes()),
        ("9 Limits", limits()),
        ("12 and 13 Compression", compressed()),
    ]
}

#[test]
fn the_document_has_all_cases_once() {
    let (mut tables, mut ids) = (String::new(), BTreeSet::new());
    for (title, cases) in sections() {
        tables += &format!(
            "\n## {title}\n\n| case | the client sends | the server answers | also by |\n| --- | --- | --- | --- |\n"
        );
        for case in cases {
            let by = case.exchange(&mut Vec::new()).map(|exchange| exchange.by);
            let names = by.into_iter().flatten().map(|other| match other {
                Other::Ws => "`ws`",
                Other::Websockets => "`websockets`",
            });
            let (id, names) = (&case.id, names.collect::<Vec<_>>().join(", "));
            tables += &format!("| {id} | {} | {} | {names} |\n", case.what, case.expected());
            assert!(ids.insert(case.id.clone()), "{} is there twice", case.id);
        }
    }
    has_tables("websocket.md", &tables);
}

#[test]
fn the_cases_of_autobahn_pass() {
    let _together = ALONE.read();
    let mut failed = Vec::new();
    for workers in [1, 2] {
        let arena = Arena::start(workers);
        for case in sections().into_iter().flat_map(|(_, cases)| cases) {
            if let Err(seen) = case.run(&arena).and_then(|()| arena.is_at_rest()) {
                let (id, what, expected) = (&case.id, &case.what, case.expected());
                failed
                    .push(format!("{id} ({what}), {workers} workers: expected {expected}; {seen}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
