//! Untrusted text as a field of a log line or a span. Pure.
//!
//! A subscriber writes a string field in quotes, with quotes, newlines and control characters
//! escaped. A field recorded with `%` is written unchanged, so a client that chose the text could
//! forge log lines. So all text from outside is recorded as a string and truncated: data sent by a
//! client, and the errors of the program's own callbacks, which may quote it. `cargo xtask tidy`
//! rejects `%`.

use std::{
    error::Error,
    fmt::{self, Display, Write},
};

/// The maximum length of a logged text, in bytes. A log identifies a client and does not store its
/// data.
pub const LONGEST: usize = 512;

/// Text that may come from outside, such as a topic or a reason, truncated for the log.
#[must_use]
pub fn shown(what: impl Display) -> String {
    cut(|out| write!(out, "{what}"))
}

/// An error and its causes, truncated for the log. The text may quote data sent by a client.
#[must_use]
pub fn described(error: &(dyn Error + 'static)) -> String {
    with_causes(error, error.source())
}

/// A value and its causes, truncated for the log like [an error](described).
#[must_use]
pub fn with_causes(what: impl Display, mut cause: Option<&(dyn Error + 'static)>) -> String {
    let mut text = shown(what);
    while let Some(error) = cause {
        // Some errors display their cause themselves.
        let because = shown(error);
        if !text.contains(&because) {
            text = shown(format_args!("{text}: {because}"));
        }
        cause = error.source();
    }
    text
}

/// The output of `write`, truncated.
pub fn cut(write: impl FnOnce(&mut Cut) -> fmt::Result) -> String {
    let mut cut = Cut(String::new());
    if write(&mut cut).is_err() {
        cut.0.push('…');
    }
    cut.0
}

/// A text buffer of limited length.
#[derive(Debug)]
pub struct Cut(String);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let mut fits = room;
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        self.0.push_str(&text[..fits]);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, Error)]
    #[error("inner: {0}")]
    struct Inner(#[source] fmt::Error);

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(shown("room:lobby"), "room:lobby");
        assert_eq!(shown("x".repeat(LONGEST)), "x".repeat(LONGEST));
        let long = shown(format_args!("x{}", "é".repeat(1000)));
        assert!(long.len() <= LONGEST + '…'.len_utf8() && long.ends_with("é…"), "{long}");
    }

    #[test]
    fn an_error_is_described_with_its_causes_each_once() {
        let cause = fmt::Error;
        assert_eq!(described(&Outer(Inner(cause))), format!("outer: inner: {cause}"));
    }
}
