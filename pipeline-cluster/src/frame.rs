//! The form of a broadcast between nodes. Pure.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | the version, 1 |
//! | 1 | flags: 1 binary payload, 2 for one node, 4 has an age, 8 has a trace |
//! | 8 | the epoch of the origin |
//! | 8 | the sequence number in the channel, or 0 |
//! | 8 | when the origin sent it, in microseconds since 1970 |
//! | 1 + n | the name of the origin |
//! | 8 | with an age: the microseconds from the enqueue of the item to the broadcast |
//! | 55 | with a trace: its `traceparent` |
//! | 2 + n | the topic |
//! | 2 + n | the event |
//! | n | the payload: JSON text, or bytes |
//!
//! A message of the server is a frame, or a group of frames of one channel:
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | 2, where a frame has its version |
//! | 4 + n | the first frame, after its length |
//! | 4 + n | the second, and so on |
//!
//! Numbers are unsigned, with the most significant byte first.
#![cfg_attr(not(feature = "fuzzing"), allow(unreachable_pub, reason = "fuzz targets reach it"))]

use bytes::Bytes;
use thiserror::Error;

/// The version of this form.
pub const VERSION: u8 = 1;

/// The first byte of a group.
pub const GROUP: u8 = 2;

/// The longest frame, in bytes. Redis ends the connection of each subscriber for which more than 32 MiB
/// wait (`client-output-buffer-limit pubsub`), so a longer one would cut off all nodes.
pub const LONGEST_FRAME: usize = 24 << 20;

/// The longest group that is read, in bytes. Those that are sent are far shorter.
const LONGEST_GROUP: usize = 1 << 20;

/// The longest topic, and the longest event, in bytes.
pub const LONGEST_NAME: usize = 4096;

/// The longest name of a node, in bytes.
pub const LONGEST_NODE: usize = 255;

const BINARY: u8 = 1;
const DIRECT: u8 = 2;
const AGE: u8 = 4;
const TRACE: u8 = 8;
const KNOWN_FLAGS: u8 = BINARY | DIRECT | AGE | TRACE;

/// The length of a `traceparent` of version 00.
const TRACE_LENGTH: usize = 55;

/// Where the sequence number is. It is known only once the frame has its place in the queue.
const SEQUENCE: std::ops::Range<usize> = 10..18;

/// A broadcast between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The node that sends it.
    pub origin: &'a str,
    /// The start of that node: a later one has a greater epoch.
    pub epoch: u64,
    /// The number of the broadcast among those of the origin in its channel, from 1. 0 if it has none.
    pub sequence: u64,
    /// When it was sent, in microseconds since 1970.
    pub sent_at: u64,
    /// The microseconds from the enqueue of its item to the broadcast, if it is timed.
    pub age: Option<u64>,
    /// The `traceparent` of its item, if it has one.
    pub trace: Option<&'a str>,
    /// Whether it is for one node.
    pub is_direct: bool,
    /// The topic of the broadcast.
    pub topic: &'a str,
    /// The event.
    pub event: &'a str,
    /// Whether the payload is binary rather than JSON text.
    pub is_binary: bool,
    /// The payload.
    pub payload: &'a [u8],
}

/// Why bytes are not a frame, or a broadcast cannot be one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes end within a field.
    #[error("the frame is cut off")]
    CutOff,
    /// The frame has a version that this program does not know.
    #[error("the frame has the version {0}, which is not known")]
    Version(u8),
    /// The frame has flags that this program does not know.
    #[error("the frame has the flags {0:#04x}, which are not known")]
    Flags(u8),
    /// A name or a trace is not UTF-8.
    #[error("the {0} of the frame is not UTF-8")]
    NotUtf8(&'static str),
    /// A field or the frame is too long, or a node has no name.
    #[error("the {0} of the frame has {1} bytes, which is not allowed")]
    Length(&'static str, usize),
}

impl<'a> Frame<'a> {
    /// Encodes the frame.
    ///
    /// # Errors
    ///
    /// [`FrameError::Length`] if a field does not fit.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        if self.origin.is_empty() || self.origin.len() > LONGEST_NODE {
            return Err(FrameError::Length("origin", self.origin.len()));
        }
        for (field, text) in [("topic", self.topic), ("event", self.event)] {
            if text.len() > LONGEST_NAME {
                return Err(FrameError::Length(field, text.len()));
            }
        }
        let trace = self.trace.unwrap_or_default();
        if self.trace.is_some() && trace.len() != TRACE_LENGTH {
            return Err(FrameError::Length("trace", trace.len()));
        }
        let names = self.origin.len() + self.topic.len() + self.event.len();
        // Exact, because a buffer with room to spare is allocated once more when it is shared.
        let options = self.age.map_or(0, |_| 8) + trace.len();
        let length = 31 + options + names + self.payload.len();
        if length > LONGEST_FRAME {
            return Err(FrameError::Length("payload", self.payload.len()));
        }
        let mut out = Vec::with_capacity(length);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.is_binary, BINARY)
            | flag(self.is_direct, DIRECT)
            | flag(self.age.is_some(), AGE)
            | flag(self.trace.is_some(), TRACE);
        out.extend([VERSION, flags]);
        out.extend(self.epoch.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.sent_at.to_be_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "the length was checked")]
        out.push(self.origin.len() as u8);
        out.extend(self.origin.as_bytes());
        out.extend(self.age.map(u64::to_be_bytes).into_iter().flatten());
        out.extend(trace.as_bytes());
        for text in [self.topic, self.event] {
            #[expect(clippy::cast_possible_truncation, reason = "the length was checked")]
            out.extend((text.len() as u16).to_be_bytes());
            out.extend(text.as_bytes());
        }
        out.extend(self.payload);
        debug_assert_eq!(out.len(), length);
        Ok(out)
    }

    /// Decodes a frame.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the bytes are not one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() > LONGEST_FRAME {
            return Err(FrameError::Length("payload", bytes.len()));
        }
        let mut rest = Reader(bytes);
        let [version] = rest.array()?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let [flags] = rest.array()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(FrameError::Flags(flags));
        }
        let has = |flag| flags & flag != 0;
        let (epoch, sequence, sent_at) = (rest.number()?, rest.number()?, rest.number()?);
        let [length] = rest.array()?;
        if length == 0 {
            return Err(FrameError::Length("origin", 0));
        }
        let origin = rest.text("origin", usize::from(length))?;
        let age = if has(AGE) { Some(rest.number()?) } else { None };
        let trace = if has(TRACE) { Some(rest.text("trace", TRACE_LENGTH)?) } else { None };
        let (topic, event) = (rest.name("topic")?, rest.name("event")?);
        let (is_direct, is_binary) = (has(DIRECT), has(BINARY));
        let payload = rest.0;
        Ok(Self {
            origin,
            epoch,
            sequence,
            sent_at,
            age,
            trace,
            is_direct,
            topic,
            event,
            is_binary,
            payload,
        })
    }
}

/// The frames of a message. What cannot be read ends them.
pub fn frames(message: &Bytes) -> impl Iterator<Item = Result<Bytes, FrameError>> {
    let group = (message.first() == Some(&GROUP)).then(|| message.slice(1..));
    let (mut one, mut rest) = (group.is_none().then(|| message.clone()), group.unwrap_or_default());
    let mut too_long = (rest.len() > LONGEST_GROUP).then_some(rest.len());
    std::iter::from_fn(move || {
        if let Some(length) = too_long.take() {
            rest.clear();
            return Some(Err(FrameError::Length("group", length)));
        }
        if let Some(frame) = one.take() {
            return Some(Ok(frame));
        }
        if rest.is_empty() {
            return None;
        }
        let frame = next_of_group(&mut rest);
        if frame.is_none() {
            rest.clear();
        }
        Some(frame.ok_or(FrameError::CutOff))
    })
}

fn next_of_group(rest: &mut Bytes) -> Option<Bytes> {
    let (length, _) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let end = length.checked_add(4).filter(|end| *end <= rest.len())?;
    let frame = rest.split_to(end);
    Some(frame.slice(4..))
}

/// Adds a frame to a group.
pub(crate) fn append_to_group(group: &mut Vec<u8>, frame: &[u8]) {
    // A group is far shorter.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    group.extend(length.to_be_bytes());
    group.extend(frame);
}

/// Sets the sequence number of an encoded frame.
pub(crate) fn set_sequence(frame: &mut [u8], sequence: u64) {
    if let Some(place) = frame.get_mut(SEQUENCE) {
        place.copy_from_slice(&sequence.to_be_bytes());
    }
}

/// The bytes that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(FrameError::CutOff)?;
        self.0 = rest;
        Ok(*array)
    }

    fn number(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        if length > LONGEST_NAME {
            return Err(FrameError::Length(field, length));
        }
        self.text(field, length)
    }

    fn text(&mut self, field: &'static str, length: usize) -> Result<&'a str, FrameError> {
        let (text, rest) = self.0.split_at_checked(length).ok_or(FrameError::CutOff)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| FrameError::NotUtf8(field))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn frame() -> Frame<'static> {
        Frame {
            origin: "left",
            epoch: 1,
            sequence: 2,
            sent_at: 3,
            age: Some(4),
            trace: Some(TRACEPARENT),
            is_direct: true,
            topic: "room:1",
            event: "news",
            is_binary: false,
            payload: br#"{"a":1}"#,
        }
    }

    #[test]
    fn a_frame_has_the_described_form() {
        let plain = Frame { age: None, trace: None, is_direct: false, ..frame() };
        let expected = [
            &[1, 0][..],
            &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3],
            b"\x04left\x00\x06room:1\x00\x04news{\"a\":1}",
        ];
        assert_eq!(plain.encode().unwrap(), expected.concat());
        let mut encoded = frame().encode().unwrap();
        set_sequence(&mut encoded, 77);
        assert_eq!(Frame::decode(&encoded), Ok(Frame { sequence: 77, ..frame() }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (name, node) = ("x".repeat(LONGEST_NAME + 1), "x".repeat(LONGEST_NODE + 1));
        let huge = vec![b'x'; LONGEST_FRAME];
        for wrong in [
            Frame { topic: &name, ..frame() },
            Frame { event: &name, ..frame() },
            Frame { origin: &node, ..frame() },
            Frame { origin: "", ..frame() },
            Frame { trace: Some("00"), ..frame() },
            Frame { payload: &huge, ..frame() },
        ] {
            assert!(matches!(wrong.encode(), Err(FrameError::Length(..))));
        }
        let fits = Frame { topic: &name[1..], origin: &node[1..], ..frame() };
        assert_eq!(Frame::decode(&fits.encode().unwrap()), Ok(fits));
    }

    #[test]
    fn bytes_that_are_no_frame_are_refused() {
        let encoded = frame().encode().unwrap();
        let changed = |at: usize, byte: u8| {
            let mut encoded = encoded.clone();
            encoded[at] = byte;
            Frame::decode(&encoded).map(|_| ()).unwrap_err()
        };
        assert_eq!(changed(0, 2), FrameError::Version(2));
        assert_eq!(changed(1, 16), FrameError::Flags(16));
        assert_eq!(changed(26, 0), FrameError::Length("origin", 0));
        assert_eq!(changed(27, 0xff), FrameError::NotUtf8("origin"));
        let topic = 31 + 8 + TRACE_LENGTH;
        assert_eq!(changed(topic, 0xff), FrameError::Length("topic", 0xff06));
        let payload = encoded.len() - frame().payload.len();
        for length in 0..payload {
            let cut = Frame::decode(&encoded[..length]);
            assert_eq!(cut, Err(FrameError::CutOff), "{length} bytes");
        }
    }

    #[test]
    fn a_group_that_is_cut_off_has_the_frames_before() {
        let mut group = vec![GROUP];
        append_to_group(&mut group, b"one");
        append_to_group(&mut group, b"three");
        let group = Bytes::from(group);
        let read = |length: usize| frames(&group.slice(..length)).collect::<Vec<_>>();
        let (one, three) = (Ok(Bytes::from_static(b"one")), Ok(Bytes::from_static(b"three")));
        assert_eq!(read(group.len()), [one.clone(), three]);
        for length in 9..group.len() {
            assert_eq!(read(length), [one.clone(), Err(FrameError::CutOff)], "{length} bytes");
        }
        assert_eq!(read(8), [one]);
        assert_eq!(read(1), [], "it is empty");
        let long =
            frames(&[vec![GROUP], vec![0; LONGEST_GROUP + 1]].concat().into()).collect::<Vec<_>>();
        assert_eq!(long, [Err(FrameError::Length("group", LONGEST_GROUP + 1))]);
    }

    proptest! {
        #[test]
        fn a_frame_arrives_as_it_was(
            (origin, topic, event) in (".{1,20}", ".{0,40}", ".{0,40}"),
            numbers in prop::array::uniform3(any::<u64>()),
            age in any::<Option<u64>>(),
            has_trace in any::<bool>(),
            (is_direct, is_binary) in any::<(bool, bool)>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let [epoch, sequence, sent_at] = numbers;
            let frame = Frame {
                origin: &origin,
                epoch,
                sequence,
                sent_at,
                age,
                trace: has_trace.then_some(TRACEPARENT),
                is_direct,
                topic: &topic,
                event: &event,
                is_binary,
                payload: &payload,
            };
            let encoded = frame.encode().unwrap();
            prop_assert_eq!(Frame::decode(&encoded), Ok(frame));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode().unwrap(), bytes.clone());
            }
            let read: usize = frames(&bytes.clone().into()).flatten().map(|it| it.len()).sum();
            prop_assert!(read <= bytes.len());
        }
    }
}
