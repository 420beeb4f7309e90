//! Pure: the bytes that a server sends, in which the headers of messages are checked before the client library reads
//! them.
//!
//! The library reads a table in a table by recursion, so a message with some hundred of them would overflow its stack and
//! end the process. It ends the connection at properties that it cannot read, and the server would deliver the message
//! again. A message of either kind gets properties that say why it cannot be read, and is given up as others are that
//! cannot be read. A message whose routing key is not UTF-8 gets another one, which nothing reads. All else passes
//! unchanged.

use std::{
    fmt,
    mem::{replace, take},
    str::from_utf8,
};

use super::format::{DEAD_ID, UNREADABLE};

/// How many tables or lists may be in each other in the headers of a message.
pub(super) const MOST_NESTED: usize = 32;

/// The largest properties of a message with their frame, in bytes. Frames are smaller, 128 KiB, unless a server is
/// configured otherwise.
const LARGEST: usize = 1024 * 1024;

/// The largest method with which a message is delivered, in bytes, and a little more. Larger ones are not checked.
const LARGEST_DELIVERY: usize = 1024;

/// The type, the channel and the size of a frame.
const HEAD: usize = 7;

/// The class, the weight and the size of the body, with which a content header begins.
const CLASS_TO_SIZE: usize = 12;

/// The last byte of a frame.
const END: u8 = 0xce;

/// The types of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The flag of the headers among the properties.
const HEADERS_FLAG: u16 = 1 << 13;

/// The bytes that a server sends, checked as they arrive.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// How much of a frame that has begun passes unchanged, and whether that is of the body of a message.
    passing: usize,
    is_body: bool,
    /// How many bytes of bodies have arrived.
    bodies: usize,
    /// The beginning of a frame that is not complete. Of a content header that is too large, it stays until the end.
    held: Vec<u8>,
    /// How much of a content header that is too large is still to come.
    skipping: usize,
    /// What arrives is not AMQP, or of a version that nothing is known of.
    is_unknown: bool,
}

/// What becomes of the first bytes, at least one.
enum Step {
    /// So many pass unchanged.
    Pass(usize),
    /// These bytes are passed on instead of so many, or nothing yet.
    Instead(usize, Vec<u8>),
}

impl Filter {
    /// Checks bytes that have arrived. The first ones pass as they are, as many as it returns. What follows them is
    /// added to `ready`, which has to be empty before, or is held until more has arrived.
    pub(super) fn check(&mut self, arrived: &[u8], ready: &mut Vec<u8>) -> usize {
        let (mut passed, mut at) = (0, 0);
        while let Some(rest) = arrived.get(at..).filter(|rest| !rest.is_empty()) {
            match self.step(rest) {
                Step::Pass(count) => {
                    if passed == at {
                        passed += count;
                    } else {
                        ready.extend_from_slice(&rest[..count]);
                    }
                    at += count;
                }
                Step::Instead(count, frame) => {
                    ready.extend_from_slice(&frame);
                    at += count;
                }
            }
        }
        passed
    }

    /// How many bytes of the bodies of messages have arrived since the last call.
    pub(super) fn take_bodies(&mut self) -> usize {
        take(&mut self.bodies)
    }

    fn step(&mut self, arrived: &[u8]) -> Step {
        if self.is_unknown {
            return Step::Pass(arrived.len());
        }
        if self.skipping > 0 {
            return self.skip(arrived);
        }
        if !self.held.is_empty() {
            return self.complete(arrived);
        }
        let mut at = self.passing.min(arrived.len());
        self.passing -= at;
        self.bodies += if self.is_body { at } else { 0 };
        while let Some(head) = Head::of(&arrived[at..]) {
            let there = arrived.len() - at;
            if head.is_checked() {
                let Some(frame) = arrived[at..].get(..head.held()) else { break };
                if head.is_too_large() || mended(frame).is_some() {
                    break;
                }
                at += frame.len();
            } else {
                self.is_unknown = head.is_unknown();
                let passing = if self.is_unknown { there } else { head.size.min(there) };
                self.passing = head.size - passing.min(head.size);
                self.is_body = head.kind == BODY;
                self.bodies += if self.is_body { passing - HEAD } else { 0 };
                at += passing;
            }
        }
        if at > 0 { Step::Pass(at) } else { self.complete(arrived) }
    }

    /// Adds what has arrived to a frame that is not complete.
    fn complete(&mut self, arrived: &[u8]) -> Step {
        let mut taken = 0;
        loop {
            let wanted = Head::of(&self.held).map_or(HEAD, |head| head.held());
            let more = wanted.saturating_sub(self.held.len()).min(arrived.len() - taken);
            self.held.extend_from_slice(&arrived[taken..taken + more]);
            taken += more;
            if self.held.len() < wanted {
                return Step::Instead(taken, Vec::new());
            }
            if more == 0 {
                break;
            }
        }
        let Some(head) = Head::of(&self.held) else { return Step::Instead(taken, Vec::new()) };
        if head.is_too_large() {
            self.skipping = head.size - self.held.len();
            return Step::Instead(taken, Vec::new());
        }
        let frame = take(&mut self.held);
        if head.is_checked() {
            return Step::Instead(taken, mended(&frame).unwrap_or(frame));
        }
        self.is_unknown = head.is_unknown();
        self.is_body = head.kind == BODY;
        self.passing = head.size - HEAD;
        Step::Instead(taken, frame)
    }

    /// Leaves out a content header that is too large.
    fn skip(&mut self, arrived: &[u8]) -> Step {
        let count = self.skipping.min(arrived.len());
        self.skipping -= count;
        let frame = match (self.skipping, arrived[..count].last()) {
            (0, Some(end)) => {
                let held = take(&mut self.held);
                let size = Head::of(&held).map_or(0, |head| head.size);
                instead(&held, &Wrong::TooLarge(size), *end)
            }
            _ => Vec::new(),
        };
        Step::Instead(count, frame)
    }
}

/// The head of a frame.
struct Head {
    kind: u8,
    /// The size of the whole frame.
    size: usize,
}

impl Head {
    fn of(frame: &[u8]) -> Option<Self> {
        let &[kind, _, _, a, b, c, d] = frame.first_chunk::<HEAD>()?;
        let payload = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        Some(Self { kind, size: payload.saturating_add(HEAD + 1) })
    }

    const fn is_unknown(&self) -> bool {
        !matches!(self.kind, METHOD | HEADER | BODY | HEARTBEAT)
    }

    const fn is_checked(&self) -> bool {
        self.kind == HEADER || self.kind == METHOD && self.size <= LARGEST_DELIVERY
    }

    /// Whether it is that of a content header that is left out.
    const fn is_too_large(&self) -> bool {
        self.kind == HEADER && self.size > LARGEST
    }

    /// How much of the frame is held until all of that has arrived.
    const fn held(&self) -> usize {
        if self.is_too_large() {
            HEAD + CLASS_TO_SIZE
        } else if self.is_checked() {
            self.size
        } else {
            HEAD
        }
    }
}

/// Why the properties of a message cannot be read.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Nested,
    TooLarge(usize),
    Property(&'static str),
    Name,
    Type(u8),
    Short,
    Long(usize),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested => write!(f, "its headers are nested deeper than {MOST_NESTED} tables"),
            Self::TooLarge(size) => {
                write!(f, "its properties have {size} bytes, more than {LARGEST}")
            }
            Self::Property(name) => write!(f, "its property {name} is not UTF-8"),
            Self::Name => f.write_str("the name of one of its headers is not UTF-8"),
            Self::Type(it) => {
                write!(f, "one of its headers has the type 0x{it:02x}, which is not known")
            }
            Self::Short => f.write_str("its properties are shorter than they say"),
            Self::Long(count) => {
                write!(f, "its properties are longer than they say, by {count} bytes")
            }
        }
    }
}

/// What is passed on instead of a whole frame, if the library cannot read it.
fn mended(frame: &[u8]) -> Option<Vec<u8>> {
    // What has no end is refused by the library before it reads any table.
    let (&END, whole) = frame.split_last()? else { return None };
    if whole.first() == Some(&METHOD) {
        return texts_of_a_delivery(frame, whole.get(HEAD..)?);
    }
    // What is shorter is not of a message.
    let why = properties(whole.get(HEAD + CLASS_TO_SIZE..)?).err()?;
    Some(instead(frame, &why, END))
}

/// The method of a delivery, in which texts that are not UTF-8 have other bytes.
fn texts_of_a_delivery(frame: &[u8], mut left: &[u8]) -> Option<Vec<u8>> {
    let left = &mut left;
    let method = number::<4>(left).ok()?;
    let (_, arguments) = DELIVERIES.iter().find(|(of, _)| *of == method)?;
    let mut mended: Option<Vec<u8>> = None;
    for kind in *arguments {
        let text = match kind {
            Kind::Text => short(left).ok()?,
            Kind::Table => long(left).ok().map(|_| &[][..])?,
            Kind::Number(size) => bytes(left, *size).ok().map(|_| &[][..])?,
        };
        if from_utf8(text).is_ok() {
            continue;
        }
        // Behind it are what is left and the end of the frame.
        let mut at = frame.len() - 1 - left.len() - text.len();
        let mended = mended.get_or_insert_with(|| frame.to_vec());
        for chunk in text.utf8_chunks() {
            at += chunk.valid().len();
            let count = chunk.invalid().len();
            mended[at..at + count].fill(b'?');
            at += count;
        }
    }
    mended
}

/// The content header of a message whose own cannot be read, with the same channel and the same size of the body.
fn instead(frame: &[u8], why: &Wrong, end: u8) -> Vec<u8> {
    // It is the same on each channel.
    let id = format!("unreadable-{:016x}", hash(&frame[HEAD..]));
    let mut table = Vec::new();
    for (name, value) in [(UNREADABLE, &*why.to_string()), (DEAD_ID, &*id)] {
        // Both are short.
        table.push(u8::try_from(name.len()).unwrap_or_default());
        table.extend_from_slice(name.as_bytes());
        table.push(b'S');
        table.extend_from_slice(&length(value.len()));
        table.extend_from_slice(value.as_bytes());
    }
    let mut instead = Vec::with_capacity(HEAD + CLASS_TO_SIZE + table.len() + 7);
    instead.extend_from_slice(&frame[..3]);
    instead.extend_from_slice(&length(CLASS_TO_SIZE + 6 + table.len()));
    instead.extend_from_slice(&frame[HEAD..HEAD + CLASS_TO_SIZE]);
    instead.extend_from_slice(&HEADERS_FLAG.to_be_bytes());
    instead.extend_from_slice(&length(table.len()));
    instead.extend_from_slice(&table);
    instead.push(end);
    instead
}

fn length(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap_or(u32::MAX).to_be_bytes()
}

/// A hash that is the same in each process (FNV-1a).
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a property is, or an argument of a method.
enum Kind {
    Text,
    Table,
    /// A number of so many bytes.
    Number(usize),
}

/// The properties, in the order of their flags, from the highest one on.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content-type", Kind::Text),
    ("content-encoding", Kind::Text),
    ("headers", Kind::Table),
    ("delivery-mode", Kind::Number(1)),
    ("priority", Kind::Number(1)),
    ("correlation-id", Kind::Text),
    ("reply-to", Kind::Text),
    ("expiration", Kind::Text),
    ("message-id", Kind::Text),
    ("timestamp", Kind::Number(8)),
    ("type", Kind::Text),
    ("user-id", Kind::Text),
    ("app-id", Kind::Text),
    ("cluster-id", Kind::Text),
];

/// The methods that tell of a message, with their class, and what they say of it: that it is delivered, that it was
/// taken, and that it has come back.
const DELIVERIES: [([u8; 4], &[Kind]); 3] = [
    ([0, 60, 0, 60], &[Kind::Text, Kind::Number(9), Kind::Text, Kind::Text]),
    ([0, 60, 0, 71], &[Kind::Number(9), Kind::Text, Kind::Text]),
    ([0, 60, 0, 50], &[Kind::Number(2), Kind::Text, Kind::Text, Kind::Text]),
];

fn properties(mut left: &[u8]) -> Result<(), Wrong> {
    let left = &mut left;
    let mut flags = number::<2>(left).map(u16::from_be_bytes)?;
    for (name, kind) in &PROPERTIES {
        if flags & 1 << 15 != 0 {
            match kind {
                Kind::Text => {
                    from_utf8(short(left)?).map_err(|_| Wrong::Property(name))?;
                }
                Kind::Table => table(long(left)?)?,
                Kind::Number(size) => {
                    bytes(left, *size)?;
                }
            }
        }
        flags <<= 1;
    }
    if left.is_empty() { Ok(()) } else { Err(Wrong::Long(left.len())) }
}

/// A table or a list, as far as it is not read.
struct Open<'a> {
    left: &'a [u8],
    is_table: bool,
}

/// Checks a table and all that are in it, without recursion.
fn table(whole: &[u8]) -> Result<(), Wrong> {
    // Those around the innermost one.
    let mut around = Vec::new();
    let mut open = Open { left: whole, is_table: true };
    loop {
        if open.left.is_empty() {
            match around.pop() {
                Some(outer) => open = outer,
                None => return Ok(()),
            }
            continue;
        }
        let left = &mut open.left;
        if open.is_table {
            from_utf8(short(left)?).map_err(|_| Wrong::Name)?;
        }
        let [kind] = number(left)?;
        let size = match kind {
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' => {
                long(left)?;
                0
            }
            b'F' | b'A' => {
                let inner = Open { left: long(left)?, is_table: kind == b'F' };
                if around.len() == MOST_NESTED {
                    return Err(Wrong::Nested);
                }
                around.push(replace(&mut open, inner));
                continue;
            }
            other => return Err(Wrong::Type(other)),
        };
        bytes(left, size)?;
    }
}

fn bytes<'a>(left: &mut &'a [u8], count: usize) -> Result<&'a [u8], Wrong> {
    let (taken, rest) = left.split_at_checked(count).ok_or(Wrong::Short)?;
    *left = rest;
    Ok(taken)
}

fn number<const SIZE: usize>(left: &mut &[u8]) -> Result<[u8; SIZE], Wrong> {
    let (taken, rest) = left.split_first_chunk().ok_or(Wrong::Short)?;
    *left = rest;
    Ok(*taken)
}

/// Bytes after their length in one byte.
fn short<'a>(left: &mut &'a [u8]) -> Result<&'a [u8], Wrong> {
    let [size] = number(left)?;
    bytes(left, size.into())
}

/// Bytes after their length in four bytes.
fn long<'a>(left: &mut &'a [u8]) -> Result<&'a [u8], Wrong> {
    let size = u32::from_be_bytes(number(left)?);
    bytes(left, usize::try_from(size).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use lapin::{BasicProperties, protocol::basic::parse_properties};
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::rabbitmq::format;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 7];
        frame.extend(length(payload.len()));
        frame.extend(payload);
        frame.push(END);
        frame
    }

    /// The content header of a message with a body of five bytes.
    fn header(properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], properties].concat())
    }

    fn text(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&length(bytes.len()), bytes].concat()
    }

    /// The properties of which only the headers are there.
    fn only(table: &[u8]) -> Vec<u8> {
        [&[0x20, 0], &*sized(table)].concat()
    }

    /// Tables or lists in each other, so many below the first table.
    fn nested(kind: u8, levels: usize) -> Vec<u8> {
        let name: &[u8] = if kind == b'F' { b"\x01n" } else { b"" };
        let mut size = 0;
        let sizes = (0..levels).map(|_| {
            let inner = size;
            size += name.len() + 5;
            inner
        });
        let mut sizes: Vec<_> = sizes.collect();
        sizes.reverse();
        let mut table = if kind == b'F' { Vec::new() } else { b"\x01n".to_vec() };
        for size in sizes {
            table.extend([name, &[kind], &length(size)].concat());
        }
        table
    }

    /// The method of a delivery with this routing key.
    fn delivery(key: &[u8]) -> Vec<u8> {
        let texts = [text(b"a consumer"), vec![1; 9], text(b"\xff\xfeexchange"), text(key)];
        frame(METHOD, &[&[0, 60, 0, 60], &*texts.concat()].concat())
    }

    fn cut_at<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
        let mut places: Vec<_> = places.iter().map(|it| it.index(bytes.len() + 1)).collect();
        places.sort_unstable();
        let mut from = 0;
        let mut chunks: Vec<_> =
            places.iter().map(|to| &bytes[replace(&mut from, *to)..*to]).collect();
        chunks.push(&bytes[from..]);
        chunks
    }

    fn filtered<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let (mut filter, mut out) = (Filter::default(), Vec::new());
        for chunk in chunks {
            let mut ready = Vec::new();
            let passed = filter.check(chunk, &mut ready);
            out.extend_from_slice(&chunk[..passed]);
            out.append(&mut ready);
        }
        out
    }

    /// How many bytes of bodies have arrived after all of these.
    fn bodies<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> usize {
        let mut filter = Filter::default();
        chunks.into_iter().for_each(|chunk| {
            filter.check(chunk, &mut Vec::new());
        });
        filter.take_bodies()
    }

    /// What the library reads of a content header, if it can read it.
    fn read(frame: &[u8]) -> Option<BasicProperties> {
        let properties = &frame[HEAD + CLASS_TO_SIZE..frame.len() - 1];
        match parse_properties(properties) {
            Ok(([], properties)) => Some(properties),
            _ => None,
        }
    }

    /// Why an item with these properties is malformed.
    fn why(properties: &[u8]) -> Option<String> {
        let filtered = filtered([&*header(properties)]);
        let told = format::told(&read(&filtered).unwrap(), "x".into(), false);
        told.malformed.map(|why| why.to_string())
    }

    #[test]
    fn headers_that_cannot_be_read_become_an_item_that_says_why() {
        let value = |kind: u8| only(&[b"\x01n", &[kind] as &[u8]].concat());
        let table = [
            (only(&nested(b'F', 33)), "its headers are nested deeper than 32 tables"),
            (only(&nested(b'A', 33)), "its headers are nested deeper than 32 tables"),
            (only(b"\x01\xffV"), "the name of one of its headers is not UTF-8"),
            (value(b'z'), "one of its headers has the type 0x7a, which is not known"),
            (value(b'S'), "its properties are shorter than they say"),
            (vec![0], "its properties are shorter than they say"),
            (vec![0, 0, 1], "its properties are longer than they say, by 1 bytes"),
            ([&[0x80, 0], &*text(b"\xff")].concat(), "its property content-type is not UTF-8"),
            ([&[0, 0x80], &*text(b"\xff")].concat(), "its property message-id is not UTF-8"),
        ];
        for (properties, expected) in table {
            assert_eq!(why(&properties).as_deref(), Some(expected));
        }
        assert_eq!(why(&only(&nested(b'F', 32))), None);
        assert_eq!(why(&only(&nested(b'A', 32))), None);
    }

    #[test]
    fn a_dead_letter_that_cannot_be_read_says_why_and_has_an_id_of_its_own() {
        let dead = |name: &[u8], channel| {
            let mut frame = header(&only(&[&text(name), &b"V"[..]].concat()));
            frame[2] = channel;
            let properties = read(&filtered([&*frame])).unwrap();
            let id = format::dead_id(&properties, b"x");
            format::dead_letter(id, &properties, "x".into())
        };
        let (one, other) = (dead(b"\xff", 1), dead(b"\xfe", 1));
        assert_eq!(&*one.reason, "the name of one of its headers is not UTF-8");
        assert!(one.id.starts_with("unreadable-") && one.id == dead(b"\xff", 2).id);
        assert_ne!(one.id, other.id);
    }

    #[test]
    fn very_deep_headers_are_refused_with_a_small_stack() {
        for kind in [b'F', b'A'] {
            let deep = header(&only(&nested(kind, 18_000)));
            let small = thread::Builder::new().stack_size(64 * 1024);
            let checked = small.spawn(move || filtered([&*deep])).unwrap().join().unwrap();
            assert!(read(&checked).unwrap().headers().is_some() && checked.len() < 300);
        }
    }

    #[test]
    fn headers_that_are_too_large_are_left_out_and_not_kept() {
        let large = header(&only(&[b"\x01nS" as &[u8], &sized(&[0; LARGEST])].concat()));
        let (mut filter, mut ready) = (Filter::default(), Vec::new());
        for chunk in large.chunks(1000) {
            assert_eq!(filter.check(chunk, &mut ready), 0);
            assert!(filter.held.capacity() < 100);
        }
        let told = format::told(&read(&ready).unwrap(), "x".into(), false);
        let why = told.malformed.unwrap_or_default();
        assert!(why.starts_with("its properties have 1048") && why.ends_with("than 1048576"));
        let body = frame(BODY, b"hello");
        assert_eq!(filter.check(&body, &mut Vec::new()), body.len());
    }

    #[test]
    fn a_routing_key_that_is_not_text_gets_another_one() {
        let mended = filtered([&*delivery(b"a\xff\xffb\xc3")]);
        assert_eq!(mended.len(), delivery(b"a\xff\xffb\xc3").len());
        let end = [&text(b"??exchange")[..], &text(b"a??b?"), &[END]].concat();
        assert!(mended.ends_with(&end), "{}", mended.escape_ascii());
        assert!(mended.starts_with(&delivery(b"a\xff\xffb\xc3")[..HEAD + 24]));
    }

    #[test]
    fn another_protocol_and_a_frame_without_an_end_pass_unchanged() {
        let mut endless = header(&only(&nested(b'F', 33)));
        *endless.last_mut().unwrap() = 0;
        for bytes in [b"AMQP\0\0\x09\x01".to_vec(), endless, frame(b'x', &[2; 100])] {
            assert_eq!(filtered([&*bytes]), bytes);
            assert_eq!(filtered(bytes.chunks(1)), bytes);
        }
    }

    #[test]
    fn it_does_not_matter_where_the_bytes_are_cut() {
        let good = only(b"\x01nS\0\0\0\x01x\x01mF\0\0\0\x03\x01kV");
        let frames = [
            frame(HEARTBEAT, b""),
            delivery(b"k"),
            header(&good),
            frame(BODY, b"hello"),
            delivery(b"\xff"),
            header(&only(b"\x01\xffV")),
            frame(BODY, b"hello"),
            header(&only(&nested(b'A', 40))),
            frame(BODY, b""),
            header(&[0, 0]),
            frame(METHOD, &[0; 2 * LARGEST_DELIVERY]),
            header(&[]),
        ];
        let bytes = frames.concat();
        let whole = filtered([&*bytes]);
        assert_ne!(whole, bytes);
        assert_eq!(filtered(bytes.chunks(1)), whole);
        // The texts, and the ends of the frames.
        let of_bodies = 2 * "hello".len() + 3;
        assert_eq!(bodies(bytes.chunks(1)), of_bodies);
        for at in 0..=bytes.len() {
            let cut = [&bytes[..at], &bytes[at..]];
            assert_eq!(filtered(cut), whole, "cut at {at}");
            assert_eq!(bodies(cut), of_bodies, "cut at {at}");
        }
    }

    /// A value of a table, with its type.
    fn any_value() -> impl Strategy<Value = Vec<u8>> {
        let fixed = [
            (b't', 1),
            (b'b', 1),
            (b'B', 1),
            (b's', 2),
            (b'U', 2),
            (b'u', 2),
            (b'I', 4),
            (b'i', 4),
            (b'f', 4),
            (b'D', 5),
            (b'L', 8),
            (b'l', 8),
            (b'd', 8),
            (b'T', 8),
            (b'V', 0),
        ];
        let fixed = (prop::sample::select(fixed.to_vec()), vec(any::<u8>(), 8))
            .prop_map(|((kind, size), bytes)| [&[kind], &bytes[..size]].concat());
        let long = (prop::sample::select(vec![b'S', b'x']), vec(any::<u8>(), 0..20))
            .prop_map(|(kind, bytes)| [&[kind], &*sized(&bytes)].concat());
        prop_oneof![fixed, long].prop_recursive(4, 20, 4, |inner| {
            let list = vec(inner.clone(), 0..4)
                .prop_map(|values| [&b"A"[..], &sized(&values.concat())].concat());
            let table = any_table(inner).prop_map(|it| [&b"F"[..], &sized(&it)].concat());
            prop_oneof![list, table]
        })
    }

    fn any_table(value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let entry = (".{0,8}", value).prop_map(|(name, it)| [text(name.as_bytes()), it].concat());
        vec(entry, 0..4).prop_map(|entries| entries.concat())
    }

    /// Properties that the library can read.
    fn any_properties() -> impl Strategy<Value = Vec<u8>> {
        let of = (any::<u16>(), vec((".{0,8}", vec(any::<u8>(), 8)), 14), any_table(any_value()));
        of.prop_map(|(flags, values, table)| {
            let mut all = flags.to_be_bytes().to_vec();
            for (at, ((_, kind), (name, number))) in PROPERTIES.iter().zip(values).enumerate() {
                if flags << at & 1 << 15 != 0 {
                    match kind {
                        Kind::Text => all.extend(text(name.as_bytes())),
                        Kind::Table => all.extend(sized(&table)),
                        Kind::Number(size) => all.extend(&number[..*size]),
                    }
                }
            }
            all
        })
    }

    proptest! {
        #[test]
        fn what_can_be_read_passes_unchanged_wherever_it_is_cut(
            messages in vec((any_properties(), vec(any::<u8>(), 0..40)), 1..4),
            places in vec(any::<Index>(), 0..6),
        ) {
            let mut bytes = Vec::new();
            for (properties, body) in &messages {
                prop_assert!(read(&header(properties)).is_some());
                bytes.extend(header(properties));
                bytes.extend(frame(BODY, body));
            }
            prop_assert_eq!(filtered(cut_at(&bytes, &places)), bytes);
        }

        #[test]
        fn what_passes_can_be_read_and_what_can_be_read_passes(
            properties in any_properties(),
            changes in vec((any::<Index>(), any::<u8>()), 0..4),
            shorter in prop::option::of(any::<Index>()),
        ) {
            let mut changed = properties;
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            if let Some(size) = shorter {
                changed.truncate(size.index(changed.len()));
            }
            let before = header(&changed);
            let after = filtered([&*before]);
            prop_assert!(read(&after).is_some());
            prop_assert_eq!(read(&before).is_some(), before == after);
        }

        #[test]
        fn any_bytes_are_taken_and_give_the_same_wherever_they_are_cut(
            kinds in vec((prop::sample::select(vec![1, 2, 2, 3, 8, 9]), vec(any::<u8>(), 0..60)), 0..4),
            rest in vec(any::<u8>(), 0..60),
            places in vec(any::<Index>(), 0..6),
        ) {
            let mut bytes: Vec<u8> =
                kinds.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            bytes.extend(rest);
            prop_assert_eq!(filtered(cut_at(&bytes, &places)), filtered([&*bytes]));
        }
    }
}
