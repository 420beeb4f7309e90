//! Packs lines into packets. Pure.

/// Lines separated by newlines, up to a maximum number of bytes.
#[derive(Debug)]
pub(crate) struct Packet {
    text: String,
    lines: u64,
    marks: u16,
    limit: usize,
}

/// The packet that has room for a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This packet.
    Here,
    /// The next one: this one has too little room.
    Next,
    /// None: the text is longer than a packet.
    Nowhere,
}

impl Packet {
    pub(crate) fn new(limit: usize) -> Self {
        Self { text: String::new(), lines: 0, marks: 0, limit }
    }

    /// Finds the packet for a line, or for several that must stay together.
    pub(crate) fn place_for(&self, text: &str) -> Place {
        if text.len() > self.limit {
            Place::Nowhere
        } else if self.text.is_empty() || self.text.len() + 1 + text.len() <= self.limit {
            Place::Here
        } else {
            Place::Next
        }
    }

    /// Adds a text that fits. Its marks are added to those of the packet.
    pub(crate) fn push(&mut self, text: &str, marks: u16) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(text);
        self.lines += lines(text);
        self.marks |= marks;
    }

    /// Empties the packet and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.lines = 0;
        self.marks = 0;
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    pub(crate) fn marks(&self) -> u16 {
        self.marks
    }
}

/// The number of lines in a text.
pub(crate) fn lines(text: &str) -> u64 {
    text.split('\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_goes_where_it_fits() {
        let mut packet = Packet::new(10);
        assert_eq!(packet.place_for("0123456789"), Place::Here);
        assert_eq!(packet.place_for("0123456789a"), Place::Nowhere);
        packet.push("01234", 0);
        assert_eq!(packet.place_for("6789"), Place::Here);
        assert_eq!(packet.place_for("6789a"), Place::Next, "the newline takes a byte");
        assert_eq!(packet.place_for("0123456789a"), Place::Nowhere);
        packet.push("6789", 0);
        assert_eq!((packet.text(), packet.lines()), ("01234\n6789", 2));
        packet.clear();
        assert_eq!((packet.text(), packet.lines()), ("", 0));
        assert_eq!(packet.place_for("0123456789"), Place::Here);
    }

    #[test]
    fn a_text_of_two_lines_counts_as_two_and_marks_add_up() {
        let mut packet = Packet::new(100);
        packet.push("a:0|g\na:-1|g", 0b01);
        packet.push("b:1|g", 0b10);
        assert_eq!((packet.lines(), packet.marks()), (3, 0b11));
        packet.clear();
        assert_eq!((packet.lines(), packet.marks()), (0, 0));
    }

    proptest! {
        #[test]
        fn packets_contain_whole_texts_in_order_within_the_limit(
            limit in 1..60_usize,
            texts in prop::collection::vec("[a-z]{1,12}(\n[a-z]{1,12})?", 0..40),
        ) {
            let mut packet = Packet::new(limit);
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            for text in &texts {
                match packet.place_for(text) {
                    Place::Nowhere => {
                        prop_assert!(text.len() > limit);
                        continue;
                    }
                    Place::Next => {
                        // A text that is not here did not fit.
                        prop_assert!(packet.text().len() + 1 + text.len() > limit);
                        sent.push(packet.text().to_owned());
                        packet.clear();
                    }
                    Place::Here => {}
                }
                packet.push(text, 0);
                expected.push(text.clone());
                prop_assert!(packet.text().len() <= limit);
                prop_assert!(packet.text().ends_with(text.as_str()));
            }
            sent.push(packet.text().to_owned());
            prop_assert_eq!(sent.join("\n"), expected.join("\n"));
        }
    }
}
