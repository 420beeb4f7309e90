//! Compressed messages: bombs stay within the limit, broken streams are refused, and everything that was
//! compressed comes out again.

use flate2::{Compress, Compression, FlushCompress, Status};
use pipeline_ws_sink::fuzzing::{NotInflated, deflate, inflate};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"\x00\x00\x00\xff\xff",
    b"\x01\x00\x00\xff\xff",
    b"\x02\x00",
    b"\x03\x00",
    b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\x00\x05\x00\xfa\xffHello",
    b"\xed\xc0\x01\x0d\x00\x00\x00\xc2\xa0\xf7\x4f\x6d",
];

const LIMITS: [usize; 6] = [0, 1, 100, 4_000, 70_000, 1 << 20];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => {
            let limit = input.choice(&LIMITS);
            stream(input.rest(), limit);
        }
        1 => round_trip(input),
        2 => compressed_here(input),
        _ => broken(input),
    }
}

/// Any bytes. The output is bounded, and so is the memory; the limit decides nothing else.
fn stream(payload: &[u8], limit: usize) {
    let most = payload.len() + limit + 1;
    let check = |blocks: usize, held: usize| {
        assert!(blocks <= 16, "{blocks} blocks in one step");
        assert!(held <= most, "{held} bytes are held, of {} and up to {limit}", payload.len());
    };
    let Ok(message) = inflate(payload, limit, check) else { return };
    assert!(message.len() <= limit, "{} bytes, the limit is {limit}", message.len());
    let exactly = inflate(payload, message.len(), |_, _| ());
    assert_eq!(exactly, Ok(message.clone()), "with the message's length as the limit");
    if let Some(less) = message.len().checked_sub(1) {
        let result = inflate(payload, less, |_, _| ());
        assert_eq!(result, Err(NotInflated::TooLarge), "with a limit of one byte less");
    }
}

/// A client's compressor: any level, flushed in between, with final blocks or without.
fn round_trip(mut input: Input<'_>) {
    let (compressed, message) = by_client(&mut input);
    let inflated = inflate(&compressed, 1 << 20, |_, _| ());
    assert_eq!(inflated.as_deref(), Ok(&message[..]), "{compressed:?}");
}

fn compressed_here(mut input: Input<'_>) {
    let times = input.below(200);
    let message = input.rest().repeat(times);
    let Some(compressed) = deflate(&message) else { return };
    assert!(compressed.len() < message.len(), "compression does not make it smaller");
    let inflated = inflate(&compressed, message.len(), |_, _| ());
    assert_eq!(inflated.as_deref(), Ok(&message[..]));
}

/// A compressed message that is cut off or altered is any stream.
fn broken(mut input: Input<'_>) {
    let (missing, at, with) = (input.below(256), input.number(), input.byte());
    let limit = input.choice(&LIMITS);
    let (mut compressed, _) = by_client(&mut input);
    compressed.truncate(compressed.len().saturating_sub(missing));
    if let Some(at) = (at as usize).checked_rem(compressed.len()) {
        compressed[at] ^= with;
    }
    stream(&compressed, limit);
}

/// A compressed message, and the message.
fn by_client(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut compressed, mut message) = (Vec::new(), Vec::new());
    let mut compress = Compress::new(Compression::new(u32::from(input.byte() % 10)), false);
    let mut streams = 0;
    for _ in 0..input.below(5) {
        let flush = match input.below(8) {
            0 if streams < 4 => FlushCompress::Finish,
            1 => FlushCompress::Sync,
            2 => FlushCompress::Full,
            _ => FlushCompress::None,
        };
        let part = input.bytes(255);
        let part = part.repeat(input.below(40));
        message.extend_from_slice(&part);
        feed(&mut compress, &part, flush, &mut compressed);
        if matches!(flush, FlushCompress::Finish) {
            streams += 1;
            compress.reset();
        }
    }
    feed(&mut compress, &[], FlushCompress::Sync, &mut compressed);
    if compressed.ends_with(&[0, 0, 0xff, 0xff]) {
        compressed.truncate(compressed.len() - 4);
    }
    (compressed, message)
}

fn feed(compress: &mut Compress, mut part: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
    loop {
        out.reserve(part.len() + 64);
        let (before, length) = (compress.total_in(), out.len());
        let status = compress.compress_vec(part, out, flush).expect("it compresses");
        let taken = usize::try_from(compress.total_in() - before).unwrap_or_default();
        part = &part[taken..];
        let is_full = out.len() == out.capacity();
        let is_done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            _ => part.is_empty() && !is_full,
        };
        if is_done || (taken == 0 && out.len() == length && !is_full) {
            return;
        }
    }
}
