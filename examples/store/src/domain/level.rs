//! Stock levels. Pure.

use serde::{Deserialize, Serialize};

/// How much there is of an item, as shoppers see it. They see no counts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There is none.
    Out,
    /// There are fewer than 150.
    Low,
    /// There are fewer than 500.
    Medium,
    /// There are 500 or more.
    High,
}

impl Level {
    /// The level of a count. Nothing else knows these numbers.
    #[must_use]
    pub fn of(available_count: i64) -> Self {
        match available_count {
            ..=0 => Self::Out,
            1..150 => Self::Low,
            150..500 => Self::Medium,
            500.. => Self::High,
        }
    }

    /// The name of the level in payloads and classes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_out(self) -> bool {
        self == Self::Out
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_003_a_level_is_that_of_its_count() {
        let counts = [0, 1, 149, 150, 499, 500, 1_000_000];
        let levels = ["out", "low", "low", "medium", "medium", "high", "high"];
        assert_eq!(counts.map(|count| Level::of(count).as_str()), levels);
    }

    proptest! {
        #[test]
        fn fewer_is_never_a_higher_level(a: i64, b: i64) {
            prop_assert!(Level::of(a.min(b)) <= Level::of(a.max(b)));
        }
    }
}
