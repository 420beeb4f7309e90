//! Lines of pushes, from standard input or from the body of a request.

use std::{
    io::{self, BufRead},
    mem,
};

use pipeline::Timed;

use crate::push::{Fault, MAX_BYTES, Push};

/// Reads pushes line by line. A line that is too long is skipped without being held in memory.
pub struct PushLines<R> {
    reader: R,
    cutter: LineCutter,
}

/// A line with something in it: its number, from 1, and what it says.
pub struct PushLine {
    pub number: usize,
    pub push: Result<Timed<Push>, Fault>,
}

/// Cuts what arrives in pieces into lines. It holds the beginning of one line, and no more of it than a
/// line may have.
#[derive(Default)]
pub struct LineCutter {
    /// How many lines have ended.
    ended: usize,
    line: Vec<u8>,
    too_long: bool,
}

impl LineCutter {
    /// The next line that is not blank, and ends in this piece. What belongs to it is taken off the piece.
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

    /// The last line, if it has no end of its own.
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
    fn one_bad_line_harms_no_other_and_is_named() {
        let input = format!("{}\n\n  \nnonsense\r\n{}\r\n{}", push(1), push(2), push(3));
        let read = read(&input);
        assert_eq!(read[0], (1, Ok(1)));
        assert!(matches!(read[1], (4, Err(Fault::Json { .. }))), "{:?}", read[1]);
        assert_eq!(read[2..], [(5, Ok(2)), (6, Ok(3))], "the last line needs no end");
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_to_its_end() {
        let long = "x".repeat(3 * MAX_BYTES);
        let input = format!("{}\n{long}\n{}\n{long}", push(1), push(2));
        let too_long = || Err(Fault::TooLong);
        assert_eq!(read(&input), [(1, Ok(1)), (2, too_long()), (3, Ok(2)), (4, too_long())]);
        let barely = format!("{}{}\n{}", push(1), " ".repeat(MAX_BYTES - push(1).len()), push(2));
        assert_eq!(read(&barely), [(1, Ok(1)), (2, Ok(2))]);
    }
}
