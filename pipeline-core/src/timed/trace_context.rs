//! The trace of an item, in the format of W3C Trace Context.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    num::NonZeroU64,
    str::FromStr,
};

use thiserror::Error;

/// The trace of an item: its trace id and its parent id.
///
/// It is the value of the HTTP header `traceparent`, as defined by W3C's [Trace Context]. An item
/// carries it through a pipeline ([`Timed::with_trace`](crate::timed::Timed::with_trace)), so that
/// a push can be followed by one id from an HTTP request to the write to a socket: at the level
/// `trace`, the steps of the item are logged with the field `trace_id`.
///
/// [Trace Context]: https://www.w3.org/TR/trace-context/
///
/// ```
/// use pipeline_core::timed::TraceContext;
///
/// let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace: TraceContext = header.parse()?;
/// assert_eq!(trace.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), header);
/// # Ok::<(), pipeline_core::timed::TraceContextError>(())
/// ```
///
/// An invalid header should be ignored, and a new trace started:
///
/// ```
/// use pipeline_core::timed::TraceContext;
///
/// let trace: TraceContext = "nonsense".parse().unwrap_or_else(|_| TraceContext::random());
/// assert!(!trace.is_sampled());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: TraceId,
    parent_id: NonZeroU64,
    flags: u8,
}

/// The id of a trace: 16 bytes, not all zero. It is displayed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId {
    // Two halves, because a `u128` would have an alignment of 16 bytes.
    high: u64,
    low: u64,
}

/// Why a text is not a valid value of a `traceparent` header.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceContextError {
    /// The length is wrong for the version.
    #[error("a traceparent has 55 characters, got {0}")]
    Length(usize),
    /// A `-` is missing.
    #[error("byte {0} must be \"-\"")]
    Separator(usize),
    /// A lower-case hexadecimal digit is missing.
    #[error("byte {0} must be one of 0123456789abcdef")]
    Digit(usize),
    /// The version is `ff`, which is invalid.
    #[error("version ff is invalid")]
    Version,
    /// The trace id is zero.
    #[error("the trace id is zero")]
    NoTraceId,
    /// The parent id is zero.
    #[error("the parent id is zero")]
    NoParentId,
}

/// The caller may have recorded the trace.
const SAMPLED: u8 = 0b01;

/// The trace id was drawn at random.
const RANDOM: u8 = 0b10;

/// The length of version 00.
const LENGTH: usize = 55;

impl TraceContext {
    /// Starts a new trace, which has not been recorded yet.
    ///
    /// Its ids come from the random keys of the standard library's hash tables. They are unique but
    /// not secret: seeing some of them should not allow guessing others, but do not rely on it.
    #[must_use]
    pub fn random() -> Self {
        let [high, low, parent] = [draw(), draw(), draw()];
        Self {
            trace_id: TraceId { high: high.get(), low: low.get() },
            parent_id: parent,
            flags: RANDOM,
        }
    }

    /// The id of the trace.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// The id of the parent span in the trace. Never zero.
    #[must_use]
    pub fn parent_id(&self) -> u64 {
        self.parent_id.get()
    }

    /// Whether the caller may have recorded the trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// A random number other than zero. Each hash table has a different key.
fn draw() -> NonZeroU64 {
    loop {
        if let Some(number) = NonZeroU64::new(RandomState::new().build_hasher().finish()) {
            return number;
        }
    }
}

/// Formats version 00. It keeps the flags for sampling and for a random trace id; all others are
/// zero, as required.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, flags } = self;
        write!(f, "00-{trace_id}-{parent_id:016x}-{flags:02x}")
    }
}

/// Parses the value of a `traceparent` header. A future version may have more data behind the known
/// part, which is ignored.
impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let text = text.as_bytes();
        if text.len() < LENGTH {
            return Err(TraceContextError::Length(text.len()));
        }
        let version = number(text, 0, 2)?;
        if version == 0xff {
            return Err(TraceContextError::Version);
        }
        if version == 0 && text.len() > LENGTH {
            return Err(TraceContextError::Length(text.len()));
        }
        for at in [2, 35, 52, LENGTH] {
            if text.get(at).is_some_and(|byte| *byte != b'-') {
                return Err(TraceContextError::Separator(at));
            }
        }
        let trace_id = TraceId { high: number(text, 3, 16)?, low: number(text, 19, 16)? };
        let parent_id = number(text, 36, 16)?;
        let flags = number(text, 53, 2)?.to_be_bytes()[7] & (SAMPLED | RANDOM);
        if (trace_id.high, trace_id.low) == (0, 0) {
            return Err(TraceContextError::NoTraceId);
        }
        let parent_id = NonZeroU64::new(parent_id).ok_or(TraceContextError::NoParentId)?;
        Ok(Self { trace_id, parent_id, flags })
    }
}

/// Parses digits from an index.
fn number(text: &[u8], from: usize, digits: usize) -> Result<u64, TraceContextError> {
    let mut number = 0;
    for (at, byte) in text.iter().enumerate().skip(from).take(digits) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return Err(TraceContextError::Digit(at)),
        };
        number = number << 4 | u64::from(digit);
    }
    Ok(number)
}

impl TraceId {
    /// The bytes, in big-endian order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.high) << 64 | u128::from(self.low)).to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.high, self.low)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn fault(text: &str) -> TraceContextError {
        text.parse::<TraceContext>().unwrap_err()
    }

    /// The valid value, with another text from this index.
    fn with(at: usize, other: &str) -> String {
        format!("{}{other}{}", &VALID[..at], &VALID[at + other.len()..])
    }

    #[test]
    fn an_error_names_the_fault() {
        use TraceContextError::*;
        assert_eq!(fault(""), Length(0));
        assert_eq!(fault(&VALID[..54]), Length(54));
        assert_eq!(fault(&format!("{VALID}-")), Length(56));
        assert_eq!(fault(&format!(" {}", &VALID[..54])), Digit(0));
        assert_eq!(fault(&with(0, "ff")), Version);
        for at in [2, 35, 52] {
            assert_eq!(fault(&with(at, "_")), Separator(at));
        }
        for at in [0, 1, 3, 34, 36, 51, 53, 54] {
            assert_eq!(fault(&with(at, "A")), Digit(at), "upper case is invalid");
            assert_eq!(fault(&with(at, "g")), Digit(at));
        }
        assert_eq!(fault(&with(3, &"0".repeat(32))), NoTraceId);
        assert_eq!(fault(&with(36, &"0".repeat(16))), NoParentId);
        assert_eq!(fault(&"é".repeat(30)), Digit(0));
    }

    #[test]
    fn the_known_part_of_a_future_version_is_parsed() {
        let known: TraceContext = VALID.parse().unwrap();
        for text in [with(0, "01"), format!("{}-more", with(0, "cc")), with(0, "fe-")] {
            assert_eq!(text.parse(), Ok(known), "{text}");
        }
        assert_eq!(fault(&format!("{}.", with(0, "cc"))), TraceContextError::Separator(55));
        // All of its flags but two are unknown.
        let flags: TraceContext = with(53, "ff").parse().unwrap();
        assert_eq!(flags.to_string(), with(53, "03"));
    }

    #[test]
    fn new_traces_are_unique() {
        const MANY: usize = 10_000;
        let draw = || (0..MANY).map(|_| TraceContext::random()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw).join().unwrap();
        let all: Vec<_> = draw().into_iter().chain(other).collect();
        let ids: HashSet<_> = all.iter().map(TraceContext::trace_id).collect();
        let parents: HashSet<_> = all.iter().map(TraceContext::parent_id).collect();
        assert_eq!((ids.len(), parents.len()), (2 * MANY, 2 * MANY));
    }

    proptest! {
        #[test]
        fn formatted_contexts_are_parsed_again(
            id in 1u128.., parent_id in 1u64.., sampled: bool, random: bool
        ) {
            let flags = u8::from(sampled) | u8::from(random) << 1;
            let text = format!("00-{id:032x}-{parent_id:016x}-{flags:02x}");
            let trace: TraceContext = text.parse().unwrap();
            prop_assert_eq!(trace.to_string(), text);
            prop_assert_eq!(u128::from_be_bytes(trace.trace_id().to_bytes()), id);
            prop_assert_eq!((trace.parent_id(), trace.is_sampled()), (parent_id, sampled));
        }

        #[test]
        fn no_text_is_a_panic(text: String, at in 0usize..55, other: char) {
            let _ = text.parse::<TraceContext>();
            let damaged: String =
                VALID.chars().enumerate().map(|(n, c)| if n == at { other } else { c }).collect();
            if let Ok(trace) = damaged.parse::<TraceContext>() {
                prop_assert!(trace.to_string().len() == 55);
            }
        }
    }
}
