//! Splits standard input or a request's body into lines of pushes.

use std::{
    io::{self, BufRead},
    mem,
};

use pipeline::timed::Timed;

use crate::push::{Fault, MAX_BYTES, Push};

/// Reads pushes line by line. A line above the limit is skipped without being held in memory.
pub struct PushLines<R> {
    reader: R,
    cutter: LineCutter,
}

/// A line that is not blank: its number, from 1, and its push.
pub struct PushLine {
    pub number: usize,
    pub push: Result<Timed<Push>, Fault>,
}

/// Splits pieces of input into lines. It buffers one incomplete line, up to the maximum length of a
/// line.
#[derive(Default)]
pub struct LineCutter {
    /// The number of complete lines.
    ended: usize,
    line: Vec<u8>,
    too_long: bool,
}

impl LineCutter {
    /// The next line that is not blank and ends in this piece. Its bytes are removed from the piece.
    pub fn next(&mut self, piece: &mut &[u8]) -> Option<PushLine> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.add(&piece[..end]);
            *piece = &piece[end + 1..];
            let line = self.cut();
            if line.is_some() {
                return line;
            }
        }
        self.add(piece);
        *piece = &[];
        None
    }

    /// The last line, if it has no newline.
    pub fn end(&mut self) -> Option<PushLine> {
        self.cut()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.too_long |= self.line.len() + bytes.len() > MAX_BYTES;
        if self.too_long {
            self.line.clear();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn cut(&mut self) -> Option<PushLine> {
        self.ended += 1;
        let number = self.ended;
        let line = mem::take(&mut self.line);
        if mem::take(&mut self.too_long) {
            return Some(PushLine { number, push: Err(Fault::TooLong) });
        }
        let line = line.trim_ascii();
        (!line.is_empty()).then(|| PushLine { number, push: Push::parse(line) })
    }
}

impl<R: BufRead> PushLines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, cutter: LineCutter::default() }
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> io::Result<Option<PushLine>> {
        loop {
            let piece = self.reader.fill_buf()?;
            if piece.is_empty() {
                return Ok(self.cutter.end());
            }
            let mut rest = piece;
            let line = self.cutter.next(&mut rest);
            let taken = piece.len() - rest.len();
            self.reader.consume(taken);
            if line.is_some() {
                return Ok(line);
            }
        }
    }
}

impl<R: BufRead> Iterator for PushLines<R> {
    type Item = io::Result<PushLine>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str) -> Vec<(usize, Result<u64, Fault>)> {
        let lines = PushLines::new(io::BufReader::with_capacity(100, input.as_bytes()));
        let line = |line: io::Result<PushLine>| line.unwrap();
        lines.map(line).map(|line| (line.number, line.push.map(|push| push.user))).collect()
    }

    fn push(user: u64) -> String {
        format!(r#"{{"user_id":{user},"event":"e","data":{{}}}}"#)
    }

    #[test]
    fn a_bad_line_is_reported_with_its_number_and_affects_no_other() {
        let input = format!("{}\n\n  \nnonsense\r\n{}\r\n{}", push(1), push(2), push(3));
        let read = read(&input);
        assert_eq!(read[0], (1, Ok(1)));
        assert!(matches!(read[1], (4, Err(Fault::Json { .. }))), "{:?}", read[1]);
        assert_eq!(read[2..], [(5, Ok(2)), (6, Ok(3))], "the last line needs no newline");
    }

    #[test]
    fn a_line_above_the_limit_is_skipped_to_its_end() {
        let long = "x".repeat(3 * MAX_BYTES);
        let input = format!("{}\n{long}\n{}\n{long}", push(1), push(2));
        let too_long = || Err(Fault::TooLong);
        assert_eq!(read(&input), [(1, Ok(1)), (2, too_long()), (3, Ok(2)), (4, too_long())]);
        let barely = format!("{}{}\n{}", push(1), " ".repeat(MAX_BYTES - push(1).len()), push(2));
        assert_eq!(read(&barely), [(1, Ok(1)), (2, Ok(2))]);
    }
}
