//! The reading of a target's input as numbers, texts and choices.

use arbitrary::Unstructured;
use serde_json::{Map, Value};

/// An input that is read from its beginning. At its end, all numbers are 0 and all texts empty.
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// An input of which only the first bytes count, where each is a step and a longer one shows no more.
    pub(crate) fn steps(data: &'a [u8]) -> Self {
        Self::new(&data[..data.len().min(200)])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number less than `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number that is often small, and often close to a power of two.
    pub(crate) fn odd_number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.byte().into(),
            1 => self.number(),
            _ => {
                let power = 1_u64 << self.below(64);
                let offset = u64::from(self.byte() % 3);
                power.wrapping_sub(1).wrapping_add(offset)
            }
        }
    }

    pub(crate) fn float(&mut self) -> f64 {
        match self.below(4) {
            0 => f64::from_bits(self.number()),
            1 => f64::from(self.byte()) / 8.0,
            2 => -f64::from(self.byte()),
            _ => {
                let odd =
                    [0.0, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, f64::MAX, 1e-9, 1e21];
                odd[self.below(odd.len())]
            }
        }
    }

    pub(crate) fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Up to `most` bytes, which is at most 255.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = self.below(most + 1).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// A text of up to `most` bytes before invalid ones are replaced.
    pub(crate) fn text(&mut self, most: usize) -> String {
        String::from_utf8_lossy(self.bytes(most)).into_owned()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// A JSON value that nests at most `depth` deep.
    pub(crate) fn json(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => self.flag().into(),
            2 => self.odd_number().into(),
            3 => self.odd_number().cast_signed().into(),
            4 => serde_json::Number::from_f64(self.float()).map_or(Value::Null, Value::Number),
            5 => self.text(20).into(),
            6 => (0..self.below(4)).map(|_| self.json(depth - 1)).collect(),
            _ => self.object(depth - 1).into(),
        }
    }

    pub(crate) fn object(&mut self, depth: usize) -> Map<String, Value> {
        (0..self.below(4)).map(|_| (self.text(8), self.json(depth))).collect()
    }
}
