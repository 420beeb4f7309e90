//! The versions of the channel protocol.

/// A version of the channel protocol. It determines the encoding of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    /// Objects: `{"topic", "event", "payload", "ref"}`. The version of clients that name none.
    V1,
    /// Arrays, `[join_ref, ref, topic, event, payload]`, and binary frames.
    V2,
}

impl Version {
    /// The version of a `vsn` parameter, or `None` if it is not supported.
    ///
    /// The parameter is a semantic version and has to match `~> 1.0.0` or `~> 2.0.0`: three numbers,
    /// the second one 0, no pre-release.
    pub(crate) fn negotiate(vsn: Option<&str>) -> Option<Self> {
        let Some(vsn) = vsn else { return Some(Self::V1) };
        let (version, build) = vsn.split_once('+').map_or((vsn, None), |(v, b)| (v, Some(b)));
        if !build.is_none_or(|build| build.split('.').all(is_identifier)) {
            return None;
        }
        match version.split('.').collect::<Vec<_>>()[..] {
            ["1", "0", patch] if is_number(patch) => Some(Self::V1),
            ["2", "0", patch] if is_number(patch) => Some(Self::V2),
            _ => None,
        }
    }
}

fn is_number(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|byte| byte.is_ascii_digit())
        && (part == "0" || !part.starts_with('0'))
}

fn is_identifier(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(expected: Option<Version>, asked: &[&str]) {
        for vsn in asked {
            assert_eq!(Version::negotiate(Some(vsn)), expected, "{vsn}");
        }
    }

    #[test]
    fn c_002_without_a_version_it_is_version_1() {
        assert_eq!(Version::negotiate(None), Some(Version::V1));
    }

    #[test]
    fn c_003_the_patch_number_is_ignored() {
        all(Some(Version::V1), &["1.0.0", "1.0.9"]);
        all(Some(Version::V2), &["2.0.0", "2.0.7"]);
    }

    #[test]
    fn c_004_other_versions_are_not_supported() {
        all(None, &["3.0.0", "2.1.0", "1.1.0", "0.9.0"]);
    }

    #[test]
    fn c_005_a_version_has_three_numbers() {
        all(
            None,
            &["2", "2.0", "abc", "", "2.0.0.0", "02.0.0", "2.0.01", "2.0.x", "2.0.", " 2.0.0"],
        );
    }

    #[test]
    fn c_006_a_build_is_ignored_and_a_pre_release_never_matches() {
        all(Some(Version::V2), &["2.0.0+build", "2.0.0+build.1-x"]);
        all(None, &["2.0.0-rc.1", "2.0.0+", "2.0.0+a..b"]);
    }
}
