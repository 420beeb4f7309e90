//! Pure: for how long messages are known whose own times cannot be right.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    time::Duration,
};

use tokio::time::Instant;

/// The most messages that are remembered.
const MOST: usize = 100_000;

/// The shortest time between two looks for messages that can be forgotten.
const BETWEEN: Duration = Duration::from_secs(1);

/// When messages were seen first, by their hashes.
#[derive(Debug, Default)]
pub(super) struct FirstSeen {
    seen: HashMap<u64, Instant>,
    hasher: RandomState,
    tidied: Option<Instant>,
}

impl FirstSeen {
    /// The time since a message was seen first, if it is remembered.
    pub(super) fn known(&self, message: impl Hash, now: Instant) -> Option<Duration> {
        if self.seen.is_empty() {
            return None;
        }
        let first = self.seen.get(&self.hasher.hash_one(message))?;
        Some(now.saturating_duration_since(*first))
    }

    /// The time since a message was seen first. `None` if there are too many to remember another one. When there are, those
    /// that are known for so long are forgotten.
    pub(super) fn age(
        &mut self,
        message: impl Hash,
        now: Instant,
        forget_after: Duration,
    ) -> Option<Duration> {
        let hash = self.hasher.hash_one(message);
        if let Some(first) = self.seen.get(&hash) {
            return Some(now.saturating_duration_since(*first));
        }
        if self.seen.len() >= MOST {
            let is_too_early = |at| now.saturating_duration_since(at) < BETWEEN;
            if self.tidied.is_some_and(is_too_early) {
                return None;
            }
            self.tidied = Some(now);
            self.seen.retain(|_, first| now.saturating_duration_since(*first) < forget_after);
            if self.seen.len() >= MOST {
                return None;
            }
        }
        self.seen.insert(hash, now);
        Some(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_messages_are_remembered_and_the_oldest_are_forgotten_for_others() {
        const HOUR: Duration = Duration::from_secs(3600);
        let begun = Instant::now();
        let mut first = FirstSeen::default();
        for n in 0..MOST {
            assert_eq!(first.age(n, begun, HOUR), Some(Duration::ZERO));
        }
        let later = begun + HOUR / 2;
        assert_eq!(first.age(0_usize, later, HOUR), Some(HOUR / 2));
        assert_eq!(first.age("another", later, HOUR), None, "there is no room");
        assert_eq!(first.known(0_usize, later), Some(HOUR / 2));
        assert_eq!(first.known("another", later), None);
        assert_eq!(first.age("another", begun + HOUR, HOUR), Some(Duration::ZERO));
        assert_eq!(first.age("another", begun + HOUR * 2, HOUR), Some(HOUR));
        assert_eq!(first.seen.len(), 1);
    }
}
