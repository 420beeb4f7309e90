//! Strict percent decoding. Pure.

/// Decodes `%XX`, and with `plus` a `+` as a space. `None` if a `%` is not followed by two hex
/// digits, or if the result is not UTF-8.
pub(crate) fn decode(text: &str, plus: bool) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| value.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_encodings_are_decoded() {
        let cases = [
            ("", ""),
            ("plain", "plain"),
            ("x+y", "x y"),
            ("%2B%2b", "++"),
            ("%C3%BC%e2%82%ac", "ü€"),
            ("ü", "ü"),
            ("a%00b", "a\0b"),
        ];
        for (text, decoded) in cases {
            assert_eq!(decode(text, true).as_deref(), Some(decoded), "{text}");
        }
        assert_eq!(decode("x+y", false).as_deref(), Some("x+y"));
    }

    #[test]
    fn invalid_encodings_are_refused() {
        for text in ["%", "%2", "a%2", "%zz", "%2g", "%+1", "%-1", "%C3", "%ff", "%ü0", "%C3%28"] {
            assert_eq!(decode(text, true), None, "{text}");
        }
    }
}
