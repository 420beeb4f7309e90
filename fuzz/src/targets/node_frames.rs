//! Broadcasts between nodes: exactly what is written is read, and other bytes are refused or are a frame that is
//! written as the same bytes.

use bytes::Bytes;
use pipeline_cluster::frame::{Frame, GROUP, LONGEST_NAME, frames};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"\x01\x00",
    b"\x01\x0f",
    b"\x02\x00\x00\x00\x04",
    b"\x04left",
    b"\x00\x06room:1",
    b"\x00\x04news",
    b"\x10\x00",
    b"\x10\x01",
    b"{\"a\":1}",
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"\xff",
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() {
        written(input);
    } else {
        read(input.rest());
    }
}

/// Any bytes.
fn read(bytes: &[u8]) {
    let message = Bytes::copy_from_slice(bytes);
    let read: Vec<_> = frames(&message).collect();
    let inside: usize = read.iter().flatten().map(|frame| 4 + frame.len()).sum();
    if bytes.first() == Some(&GROUP) {
        let is_whole = read.iter().all(Result::is_ok);
        let length = 1 + inside;
        assert!(length <= bytes.len() && is_whole == (length == bytes.len()));
    } else {
        assert_eq!(read, [Ok(message)]);
    }
    let Ok(frame) = Frame::decode(bytes) else { return };
    assert!(!frame.origin.is_empty());
    assert!(frame.topic.len() <= LONGEST_NAME && frame.event.len() <= LONGEST_NAME);
    assert_eq!(frame.encode().as_deref(), Ok(bytes));
}

/// Any frame; what is cut off before the payload is refused.
fn written(mut input: Input<'_>) {
    let [epoch, sequence, sent_at, age] = [0; 4].map(|_: u8| input.number());
    let (has_age, has_trace) = (input.flag(), input.flag());
    let (is_direct, is_binary) = (input.flag(), input.flag());
    let (origin, topic, event) = (input.text(300), input.text(40), input.text(40));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let frame = Frame {
        origin: &origin,
        epoch,
        sequence,
        sent_at,
        age: has_age.then_some(age),
        trace: has_trace.then_some(trace),
        is_direct,
        topic: &topic,
        event: &event,
        is_binary,
        payload: input.rest(),
    };
    let encoded = frame.encode();
    assert_eq!(encoded.is_ok(), (1..=255).contains(&origin.len()), "{} bytes", origin.len());
    let Ok(encoded) = encoded else { return };
    assert_eq!(Frame::decode(&encoded), Ok(frame));
    let head = encoded.len() - frame.payload.len();
    assert!(Frame::decode(&encoded[..head - 1]).is_err());
    assert!(Frame::decode(&encoded[..head / 2]).is_err());
}
