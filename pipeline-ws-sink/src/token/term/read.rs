//! Bytes to terms. Pure.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Term, VERSION, tag};

/// How deep lists and maps may be nested.
const MAX_DEPTH: usize = 64;

/// The maximum size of a compressed term after decompression, in bytes. Tokens come in URLs and
/// headers.
const MAX_INFLATED: usize = 64 * 1024;

/// Decodes exactly one term. `None` also for types that do not occur in tokens: functions,
/// processes, ports, references.
pub(super) fn decode(bytes: &[u8]) -> Option<Term> {
    let (&VERSION, rest) = bytes.split_first()? else {
        return None;
    };
    match rest {
        [tag::COMPRESSED, compressed @ ..] => only(&inflate(compressed)?),
        _ => only(rest),
    }
}

fn only(bytes: &[u8]) -> Option<Term> {
    let mut reader = Reader { rest: bytes };
    let term = reader.term(0)?;
    reader.rest.is_empty().then_some(term)
}

/// Decompresses a length and a zlib stream, if the length is right.
fn inflate(bytes: &[u8]) -> Option<Vec<u8>> {
    let (length, stream) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if length > MAX_INFLATED {
        return None;
    }
    let mut inflated = vec![0; length];
    let mut zlib = Decompress::new(true);
    let status = zlib.decompress(stream, &mut inflated, FlushDecompress::Finish).ok()?;
    let all = zlib.total_in() == stream.len() as u64 && zlib.total_out() == length as u64;
    (status == Status::StreamEnd && all).then_some(inflated)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn term(&mut self, depth: usize) -> Option<Term> {
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match self.byte()? {
            tag::SMALL_INTEGER => Term::Integer(self.byte()?.into()),
            tag::INTEGER => Term::Integer(i32::from_be_bytes(self.array()?).into()),
            tag::SMALL_BIG => {
                let length = self.byte()?.into();
                self.big(length)?
            }
            tag::LARGE_BIG => {
                let length = self.length()?;
                self.big(length)?
            }
            tag::NEW_FLOAT => Term::Float(f64::from_be_bytes(self.array()?)),
            tag::BINARY => {
                let length = self.length()?;
                Term::Binary(self.take(length)?.to_vec())
            }
            tag::STRING => {
                let length = self.short()?;
                let bytes = self.take(length)?;
                Term::List(bytes.iter().map(|&byte| Term::Integer(byte.into())).collect())
            }
            tag::NIL => Term::List(Vec::new()),
            tag::LIST => {
                let length = self.length()?;
                let mut elements = self.terms(length, depth)?;
                // A list whose tail is a list is one list.
                let Term::List(tail) = self.term(depth + 1)? else {
                    return None;
                };
                elements.extend(tail);
                Term::List(elements)
            }
            tag::SMALL_TUPLE => {
                let length = self.byte()?.into();
                Term::Tuple(self.terms(length, depth)?)
            }
            tag::LARGE_TUPLE => {
                let length = self.length()?;
                Term::Tuple(self.terms(length, depth)?)
            }
            tag::MAP => {
                let length = self.length()?;
                let mut pairs = Vec::new();
                for _ in 0..length {
                    pairs.push((self.term(depth + 1)?, self.term(depth + 1)?));
                }
                Term::Map(pairs)
            }
            tag::ATOM => {
                let length = self.short()?;
                Term::Atom(self.take(length)?.iter().map(|&byte| char::from(byte)).collect())
            }
            tag::SMALL_ATOM => {
                let length = self.byte()?.into();
                Term::Atom(self.take(length)?.iter().map(|&byte| char::from(byte)).collect())
            }
            tag::ATOM_UTF8 => {
                let length = self.short()?;
                Term::Atom(std::str::from_utf8(self.take(length)?).ok()?.to_owned())
            }
            tag::SMALL_ATOM_UTF8 => {
                let length = self.byte()?.into();
                Term::Atom(std::str::from_utf8(self.take(length)?).ok()?.to_owned())
            }
            _ => return None,
        })
    }

    fn terms(&mut self, count: usize, depth: usize) -> Option<Vec<Term>> {
        // Grows with the input: nothing is reserved for the count, which may be false.
        let mut terms = Vec::new();
        for _ in 0..count {
            terms.push(self.term(depth + 1)?);
        }
        Some(terms)
    }

    /// An integer of any length: a sign, and little-endian bytes.
    fn big(&mut self, length: usize) -> Option<Term> {
        let negative = self.byte()? != 0;
        let bytes = self.take(length)?;
        let significant = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let mut digits = [0; 16];
        let Some(low) = digits.get_mut(..significant) else {
            return Some(Term::Huge);
        };
        low.copy_from_slice(&bytes[..significant]);
        let magnitude = i128::try_from(u128::from_le_bytes(digits));
        let signed = |magnitude: i128| if negative { -magnitude } else { magnitude };
        Some(magnitude.map_or(Term::Huge, |magnitude| Term::Integer(signed(magnitude))))
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Option<usize> {
        Some(u16::from_be_bytes(self.array()?).into())
    }

    fn length(&mut self) -> Option<usize> {
        u32::from_be_bytes(self.array()?).try_into().ok()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}
