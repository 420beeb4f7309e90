//! Which version of the protocol a client wants.

/// Whether a `vsn` parameter asks for version 2 of the protocol.
///
/// The parameter is a semantic version and has to match `~> 2.0.0`: three numbers, the first two
/// 2 and 0, no pre-release.
pub(crate) fn is_v2(vsn: &str) -> bool {
    let (version, build) = vsn.split_once('+').map_or((vsn, None), |(v, b)| (v, Some(b)));
    let is_number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let is_identifier = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let parts: Vec<&str> = version.split('.').collect();
    matches!(parts[..], ["2", "0", patch] if is_number(patch))
        && build.is_none_or(|build| build.split('.').all(is_identifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_patches_of_2_0_are_version_2() {
        for yes in ["2.0.0", "2.0.7", "2.0.0+build", "2.0.0+build.1-x"] {
            assert!(is_v2(yes), "{yes}");
        }
        for no in [
            "",
            "2",
            "2.0",
            "abc",
            "1.0.0",
            "2.1.0",
            "3.0.0",
            "2.0.0-rc.1",
            "2.0.0.0",
            "02.0.0",
            "2.0.01",
            "2.0.x",
            "2.0.",
            "2.0.0+",
            "2.0.0+a..b",
            " 2.0.0",
        ] {
            assert!(!is_v2(no), "{no}");
        }
    }
}
