//! Why an item was given up, as a broker keeps it.

/// The longest reason that is kept, in bytes.
pub(crate) const LONGEST: usize = 2000;

/// The beginning of a reason, if it is longer than what is kept. An error may have a whole page in it.
pub(crate) fn cut(reason: &str) -> &str {
    cut_to(reason, LONGEST)
}

/// The beginning of a text, of this many bytes at most.
pub(crate) fn cut_to(text: &str, longest: usize) -> &str {
    let is_end = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=longest.min(text.len())).rev().find(is_end);
    &text[..end.unwrap_or_default()]
}

/// A reason of this many bytes at most, with a note.
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq", test))]
pub(crate) fn with_note(reason: &str, note: &str, longest: usize) -> String {
    let reason = cut_to(reason, longest.saturating_sub(note.len() + 3));
    format!("{reason} ({note})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(cut("it is bad"), "it is bad");
        assert_eq!(cut(&"a".repeat(3000)).len(), LONGEST);
        let odd = format!("a{}", "ж".repeat(2000));
        assert_eq!(cut(&odd).len(), LONGEST - 1);
        assert_eq!(cut_to("ж", 1), "");
    }

    #[test]
    fn the_note_of_a_reason_is_not_cut() {
        assert_eq!(with_note("it is bad", "and long", 100), "it is bad (and long)");
        assert_eq!(with_note("it is bad", "and long", 16), "it is (and long)");
    }
}
