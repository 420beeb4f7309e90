//! Escaped surrogates in JSON text.

/// Whether every `\uD8xx` escape in a JSON text is half of a pair.
///
/// A raw value is passed on without being decoded, so a lone surrogate, which is not a character,
/// would be passed from one client to all the others.
///
/// The text is otherwise valid JSON: a backslash occurs only inside strings, before an escape.
pub(crate) fn surrogates_are_paired(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        let length = match code_unit(escape) {
            Some(0xD800..=0xDBFF) => match escape.get(6..).and_then(code_unit) {
                Some(0xDC00..=0xDFFF) => 12,
                _ => return false,
            },
            Some(0xDC00..=0xDFFF) => return false,
            Some(_) => 6,
            None => 2,
        };
        rest = escape.get(length..).unwrap_or_default();
    }
    true
}

/// The code unit of an escape like `\u00e9` at the beginning of a text.
fn code_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lone_surrogate_is_detected() {
        for paired in
            [r"", r#""é""#, r#""\u00e9""#, r#""\ud83d\ude00""#, r#""\\ud83d""#, r#""\n\"\\""#]
        {
            assert!(surrogates_are_paired(paired), "{paired}");
        }
        for lone in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\n""#,
            r#""\ud83d\ud83d\ude00""#,
            r#""\\\ud83d""#,
        ] {
            assert!(!surrogates_are_paired(lone), "{lone}");
        }
    }

    proptest! {
        /// The result is that of decoding the string.
        #[test]
        fn it_agrees_with_the_decoder(
            parts in prop::collection::vec(prop::sample::select(vec![
                r"\ud83d", r"\ude00", r"\u0041", r"\\", r"\n", "u", "d83d", "é"
            ]), 0..8)
        ) {
            let text = format!("\"{}\"", parts.concat());
            let decoded = serde_json::from_str::<String>(&text);
            prop_assert_eq!(surrogates_are_paired(&text), decoded.is_ok());
        }
    }
}
