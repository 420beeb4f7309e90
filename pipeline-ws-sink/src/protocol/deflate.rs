//! permessage-deflate, RFC 7692: its negotiation, and the compression of messages.
//!
//! Every message is compressed separately, in both directions. So a broadcast is compressed once
//! for all sockets, and a quiet connection holds no memory for compression.

use std::{fmt, mem};

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress, Status};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{
        DecompressorOxide, decompress,
        inflate_flags::{
            TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
            TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
        },
    },
};
use thiserror::Error;

/// Payloads smaller than this, in bytes, are not compressed.
const WORTH_IT: usize = 100;

/// The end of every compressed message, which is not sent: an empty block.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// [`TAIL`], and an empty final block. A decompressor that was between two blocks finishes at its
/// end. One that was within a block takes these bytes as content, and normally needs more: then the
/// message was truncated. It may also finish within them, and then the truncation is not detected
/// here: the format has no length and no checksum.
const END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];

/// How many final blocks a message may have. Clients normally send no more than one, and each costs
/// a reset.
const MAX_STREAMS: usize = 8;

/// The maximum number of blocks that one step decompresses. Each block takes five to seven
/// microseconds besides its content, because tables are built for it.
const BLOCKS_A_STEP: usize = 16;

/// The minimum size of the output buffer.
const MIN_OUTPUT: usize = 256;

/// The maximum output of the first step: small enough to need no room in the inbox.
const FIRST_OUTPUT: usize = 8 << 10;

/// The maximum output of each later step. That takes at most a quarter of a millisecond.
const OUTPUT_A_STEP: usize = 32 << 10;

/// A message cannot be decompressed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum InflateError {
    #[error("invalid compressed data")]
    Invalid,
    #[error("larger than the size limit")]
    TooLarge,
}

/// Answers the offers in a client's `sec-websocket-extensions` headers: accepts the first
/// acceptable offer of permessage-deflate. `None` if there is none.
pub(crate) fn negotiate<'a>(headers: impl Iterator<Item = &'a str>) -> Option<String> {
    headers.flat_map(|header| split(header, ',')).find_map(accept)
}

/// The answer to one offer, if it is acceptable.
fn accept(offer: &str) -> Option<String> {
    let mut parts = split(offer, ';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start()))),
            None => (part, None),
        };
        let name = name.to_ascii_lowercase();
        match (name.as_str(), value) {
            ("server_no_context_takeover" | "client_no_context_takeover", None)
            // The server may set a window size here, but need not.
            | ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) if is_window(bits) => {}
            // The compressor supports only this window size.
            ("server_max_window_bits", Some("15")) => {
                answer = "permessage-deflate; server_no_context_takeover; \
                          client_no_context_takeover; server_max_window_bits=15";
            }
            _ => return None,
        }
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    Some(answer.to_owned())
}

/// Splits at separators outside of quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |char| {
        let separates = char == separator && !quoted;
        quoted ^= char == '"' && !escaped;
        escaped = char == '\\' && quoted && !escaped;
        separates
    })
}

fn unquote(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// Whether this is a window size of the RFC, as a base-2 logarithm.
fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

/// Appends a message's compressed payload. `None` if compression does not make it smaller; the
/// buffer may then contain partial output.
pub(crate) fn deflate(payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if payload.len() < WORTH_IT {
        return None;
    }
    let start = out.len();
    // Output that does not fit is not smaller. The tail is removed below.
    out.reserve_exact(payload.len() + TAIL.len());
    let mut compress = Compress::new(Compression::fast(), false);
    let status = compress.compress_vec(payload, out, FlushCompress::Sync).ok()?;
    let whole = status == Status::Ok && compress.total_in() == payload.len() as u64;
    if !whole || !out.ends_with(&TAIL) {
        return None;
    }
    out.truncate(out.len() - TAIL.len());
    (out.len() - start < payload.len()).then_some(())
}

/// A message that is being decompressed, to `limit` bytes at most.
///
/// One step is bounded in blocks and in bytes, because neither the compressed nor the decompressed
/// length tells the amount of work: an empty block of ten bits needs two tables to be built.
///
/// The output is one buffer that begins with the message. So a message that refers to earlier ones,
/// as those of a client that keeps its window do, is invalid; a window would contain zeros there.
pub(crate) struct Inflating {
    decompressor: DecompressorOxide,
    payload: BytesMut,
    /// How many bytes of the payload, or of [`END`] behind it, have been consumed.
    taken: usize,
    ending: bool,
    streams: usize,
    out: Vec<u8>,
    /// How many bytes of `out` have been written.
    length: usize,
    limit: usize,
    /// Whether `out` has to grow before the next output.
    is_full: bool,
}

/// The result of one decompression step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflateStep {
    /// The number of the client's blocks that ended in this step.
    pub(crate) blocks: usize,
    /// The number of compressed bytes that were consumed.
    pub(crate) taken: usize,
    /// Whether this was the last step.
    pub(crate) is_last: bool,
}

impl Inflating {
    pub(crate) fn new(payload: BytesMut, limit: usize) -> Box<Self> {
        let first = payload.len().saturating_mul(4).clamp(MIN_OUTPUT, FIRST_OUTPUT);
        Box::new(Self {
            decompressor: DecompressorOxide::default(),
            payload,
            taken: 0,
            ending: false,
            streams: 0,
            // One byte over the limit, to detect whether it is exceeded.
            out: vec![0; first.min(limit.saturating_add(1))],
            length: 0,
            limit,
            is_full: false,
        })
    }

    /// The bytes it holds: the remaining compressed ones and the output so far.
    pub(crate) fn held(&self) -> usize {
        self.payload.capacity() + self.out.capacity()
    }

    /// Decompresses the next part.
    ///
    /// # Errors
    ///
    /// The message exceeds the limit, or is not valid compressed data.
    pub(crate) fn step(&mut self) -> Result<InflateStep, InflateError> {
        const FLAGS: u32 = TINFL_FLAG_HAS_MORE_INPUT
            | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
            | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        if self.is_full {
            self.grow();
        }
        let mut step = InflateStep { blocks: 0, taken: 0, is_last: false };
        while step.blocks < BLOCKS_A_STEP {
            let all = if self.ending { &END[..] } else { &self.payload[..] };
            let input = &all[self.taken..];
            let (status, taken, written) =
                decompress(&mut self.decompressor, input, &mut self.out, self.length, FLAGS);
            let is_whole = self.ending && taken == input.len();
            self.taken += taken;
            self.length += written;
            if self.length > self.limit {
                return Err(InflateError::TooLarge);
            }
            let of_client = !self.ending;
            if of_client {
                step.taken += taken;
            }
            match status {
                TINFLStatus::BlockBoundary => step.blocks += usize::from(of_client),
                TINFLStatus::Done if is_whole => {
                    step.is_last = true;
                    break;
                }
                TINFLStatus::Done => {
                    step.blocks += usize::from(of_client);
                    self.streams += 1;
                    if self.streams > MAX_STREAMS {
                        return Err(InflateError::Invalid);
                    }
                    self.decompressor.init();
                }
                TINFLStatus::NeedsMoreInput if !self.ending => {
                    (self.payload, self.taken, self.ending) = (BytesMut::new(), 0, true);
                }
                TINFLStatus::HasMoreOutput => {
                    self.is_full = true;
                    break;
                }
                _ => return Err(InflateError::Invalid),
            }
        }
        Ok(step)
    }

    fn grow(&mut self) {
        let most = self.limit.saturating_add(1);
        let length = self.out.len().saturating_add(self.out.len().min(OUTPUT_A_STEP)).min(most);
        if length > self.out.capacity() {
            let capacity = self.out.capacity().saturating_mul(2).min(most).max(length);
            self.out.reserve_exact(capacity - self.out.len());
        }
        self.out.resize(length, 0);
        self.is_full = false;
    }

    /// The message, after the last step. It holds about as much memory as its length.
    pub(crate) fn finish(mut self: Box<Self>) -> Bytes {
        let mut out = mem::take(&mut self.out);
        out.truncate(self.length);
        if out.capacity() - out.len() > MIN_OUTPUT {
            out.shrink_to_fit();
        }
        out.into()
    }
}

impl fmt::Debug for Inflating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflating").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Decompresses a message of at most `limit` bytes in one call.
#[cfg(test)]
pub(crate) fn inflate(payload: &[u8], limit: usize) -> Result<Bytes, InflateError> {
    let mut inflating = Inflating::new(payload.into(), limit);
    while !inflating.step()?.is_last {}
    Ok(inflating.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn the_first_acceptable_offer_is_accepted() {
        let accepted = [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "Permessage-Deflate ;client_max_window_bits = 10",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "other; p=\"a, permessage-deflate; b\\\"\", permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ];
        for offer in accepted {
            assert_eq!(negotiate([offer].into_iter()).as_deref(), Some(PLAIN), "{offer}");
        }
        assert_eq!(negotiate(["other", "permessage-deflate"].into_iter()).as_deref(), Some(PLAIN));
        // A client that requests a window size has to receive it in the answer.
        for offer in [
            "permessage-deflate; server_max_window_bits=15",
            "permessage-deflate; server_max_window_bits=\"15\"",
        ] {
            let answer = negotiate([offer].into_iter()).unwrap();
            assert_eq!(answer, format!("{PLAIN}; server_max_window_bits=15"));
        }
    }

    #[test]
    fn an_unacceptable_offer_is_declined() {
        let declined = [
            "",
            ",;,",
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; unheard_of",
            "permessage-deflate;",
        ];
        for offer in declined {
            assert_eq!(negotiate([offer].into_iter()), None, "{offer}");
        }
        assert_eq!(negotiate(std::iter::empty()), None);
    }

    #[test]
    fn the_examples_of_the_rfc_are_decompressed() {
        let hello = [
            // 7.2.3.1, one block; 7.2.3.3, an uncompressed block.
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            // 7.2.3.4, a final block.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            // 7.2.3.5, two blocks.
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for (n, payload) in hello.into_iter().enumerate() {
            assert_eq!(inflate(payload, 5).unwrap(), "Hello", "example {n}");
            assert_eq!(inflate(payload, 4), Err(InflateError::TooLarge), "example {n}");
        }
        assert_eq!(inflate(&[0x00], 0).unwrap(), "", "7.2.3.6, the empty message");
    }

    #[test]
    fn a_message_that_refers_to_an_earlier_one_is_invalid() {
        // 7.2.3.2: the second "Hello" of a client that keeps its window.
        assert_eq!(inflate(&[0xf2, 0x00, 0x11, 0x00, 0x00], 1000), Err(InflateError::Invalid));
    }

    #[test]
    fn a_truncated_message_or_one_without_an_end_is_invalid() {
        let mut whole = vec![];
        deflate("abcdefgh".repeat(20).as_bytes(), &mut whole).unwrap();
        for length in 1..whole.len() {
            let cut = inflate(&whole[..length], 1000);
            // The last bits contain nothing.
            assert!(cut.is_err() || length == whole.len() - 1, "{length} of {}", whole.len());
        }
        // This number of empty final blocks.
        let last = |count| [&[0x03, 0x00].repeat(count)[..], &[0x00]].concat();
        assert_eq!(inflate(&last(MAX_STREAMS), 0).unwrap(), "");
        assert_eq!(inflate(&last(MAX_STREAMS + 1), 0), Err(InflateError::Invalid));
    }

    /// An empty block with fixed codes has ten bits, so four of them have five bytes.
    fn empty_blocks(count: usize) -> Vec<u8> {
        let four = (0..4).fold(0u64, |bits, n| bits | 0b10 << (10 * n));
        [&four.to_le_bytes()[..5].repeat(count / 4)[..], &[0x00]].concat()
    }

    #[test]
    fn empty_blocks_are_decompressed_a_few_per_step() {
        let mut inflating = Inflating::new(empty_blocks(10_000)[..].into(), 0);
        let (mut blocks, mut steps) = (0, 0);
        loop {
            let step = inflating.step().unwrap();
            assert!(step.blocks <= BLOCKS_A_STEP, "{} in a step", step.blocks);
            (blocks, steps) = (blocks + step.blocks, steps + 1);
            if step.is_last {
                break;
            }
        }
        assert!(steps >= 10_000 / BLOCKS_A_STEP, "{steps}");
        assert!((10_000..10_003).contains(&blocks), "{blocks}");
        assert_eq!(inflating.finish(), "");
    }

    #[test]
    fn steps_report_the_number_of_compressed_bytes() {
        let mut text = vec![];
        deflate(&vec![b'x'; 1 << 20], &mut text).unwrap();
        // Two uncompressed blocks.
        let plain = [&[0x00, 0xff, 0x7f, 0x00, 0x80][..], &[b'x'; 0x7fff]].concat();
        let plain = [&plain.repeat(2)[..], &[0x00]].concat();
        for payload in [text, plain, empty_blocks(1_000)] {
            let mut inflating = Inflating::new(payload[..].into(), 1 << 20);
            let mut taken = vec![];
            loop {
                let step = inflating.step().unwrap();
                taken.push(step.taken);
                if step.is_last {
                    break;
                }
            }
            assert!(taken.len() > 1, "{taken:?}");
            assert_eq!(taken.iter().sum::<usize>(), payload.len(), "{taken:?}");
        }
    }

    #[test]
    fn a_steps_memory_is_bounded_and_the_message_keeps_only_its_own() {
        let mut payload = vec![];
        deflate(&vec![b'x'; 1 << 20], &mut payload).unwrap();
        let mut inflating = Inflating::new(payload[..].into(), 1 << 20);
        let mut before = 0;
        loop {
            let step = inflating.step().unwrap();
            let written = inflating.length - before;
            assert!(written <= if before == 0 { FIRST_OUTPUT } else { OUTPUT_A_STEP });
            assert!(
                inflating.held() <= payload.capacity() + FIRST_OUTPUT.max(2 * inflating.length)
            );
            before = inflating.length;
            if step.is_last {
                break;
            }
        }
        assert_eq!(before, 1 << 20);
        inflating.out.reserve_exact(1 << 20);
        let message = inflating.finish().try_into_mut().unwrap();
        assert!(message.capacity() <= (1 << 20) + MIN_OUTPUT, "{}", message.capacity());
    }

    proptest! {
        #[test]
        fn compressed_messages_are_smaller_and_decompress_to_the_original(
            text in prop::collection::vec("(news|of|the|world|[a-z]{1,4}) ", 0..400)
        ) {
            let text = text.concat();
            let mut out = vec![7; 3];
            if deflate(text.as_bytes(), &mut out).is_some() {
                prop_assert!(out.len() - 3 < text.len());
                prop_assert_eq!(&inflate(&out[3..], text.len()).unwrap()[..], text.as_bytes());
                prop_assert_eq!(
                    inflate(&out[3..], text.len() - 1), Err(InflateError::TooLarge)
                );
            } else {
                prop_assert!(text.len() < 400);
            }
        }

        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 100..2000)) {
            let mut out = vec![];
            if deflate(&bytes, &mut out).is_some() {
                prop_assert_eq!(&inflate(&out, bytes.len()).unwrap()[..], &bytes[..]);
            }
        }
    }
}
