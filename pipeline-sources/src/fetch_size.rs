//! How many items a fetch asks for. Pure.

/// The most bytes that a fetch is to have, as far as earlier items tell how large the next ones are.
const BYTES: usize = 16 * 1024 * 1024;

/// Fewer items are asked for after a fetch that failed, since it may have been too long for the way from the broker,
/// and fewer large ones.
#[derive(Debug)]
pub(crate) struct FetchSize {
    most: usize,
    /// The usual length of an item.
    usual: usize,
}

impl FetchSize {
    pub(crate) const fn new() -> Self {
        Self { most: usize::MAX, usual: 0 }
    }

    /// How many of these items a fetch may ask for: at least one, if there is one.
    pub(crate) fn of(&self, wanted: usize) -> usize {
        let fitting = BYTES.checked_div(self.usual).unwrap_or(usize::MAX);
        wanted.min(self.most.min(fitting).max(1))
    }

    /// A fetch has returned items with so many bytes in all.
    pub(crate) fn succeeded(&mut self, items: usize, bytes: usize) {
        let Some(length) = bytes.checked_div(items) else { return };
        self.most = self.most.saturating_mul(2);
        // Larger ones count at once, smaller ones by and by.
        let eased = self.usual.saturating_sub(self.usual / 4);
        self.usual = length.max(eased.saturating_add(length / 4));
    }

    /// A fetch that has asked for so many was not answered.
    pub(crate) fn failed(&mut self, asked: usize) {
        self.most = (asked / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_that_fails_is_followed_by_smaller_ones_until_one_succeeds() {
        let mut size = FetchSize::new();
        let mut asked = Vec::new();
        for _ in 0..5 {
            let items = size.of(50);
            asked.push(items);
            size.failed(items);
        }
        assert_eq!(asked, [50, 25, 12, 6, 3]);
        for _ in 0..5 {
            size.failed(size.of(50));
        }
        assert_eq!(size.of(50), 1, "one is always asked for");
        for expected in [2, 4, 8, 16, 32, 50] {
            size.succeeded(1, 10);
            assert_eq!(size.of(50), expected);
        }
    }

    #[test]
    fn few_large_items_are_asked_for_at_once() {
        const MIB: usize = 1024 * 1024;
        let mut size = FetchSize::new();
        size.succeeded(10, 10 * 4 * MIB);
        assert_eq!(size.of(50), 4);
        size.succeeded(1, 100 * MIB);
        assert_eq!(size.of(50), 1, "an item that is too large for a fetch is fetched alone");
        let fetches = (0..).take_while(|_| {
            size.succeeded(1, 1_000);
            size.of(50) < 50
        });
        let fetches = fetches.count();
        assert!((5..50).contains(&fetches), "it is forgotten after {fetches} small ones");
    }

    #[test]
    fn an_empty_answer_says_nothing() {
        let mut size = FetchSize::new();
        size.failed(8);
        size.succeeded(0, 0);
        assert_eq!((size.of(0), size.of(9)), (0, 4));
    }
}
