//! Decides when discarded events are logged. Pure.

/// Tracks whether a full buffer is discarding events, so that the log has one line when it begins
/// and one when it ends, not one per event.
///
/// It ends when a good part of the room is free and nothing was discarded for a while. Room alone
/// is not enough, because an overloaded queue has room for a moment after every take.
#[derive(Debug, Default)]
pub(crate) struct Discarding {
    /// The number of events discarded since it began; 0 while nothing is discarded.
    count: usize,
    /// Whether any were discarded since [`over`](Self::over) was last called.
    lately: bool,
}

impl Discarding {
    /// Counts discarded events, at least one. Returns whether discarding begins with them.
    pub(crate) fn add(&mut self, count: usize) -> bool {
        let begins = self.count == 0;
        self.count = self.count.saturating_add(count);
        self.lately = true;
        begins
    }

    /// Called when something has left. Returns how many events were discarded if that ends it, else
    /// 0.
    pub(crate) fn over(&mut self, has_room: bool) -> usize {
        let quiet = !std::mem::take(&mut self.lately);
        if has_room && quiet { self.end() } else { 0 }
    }

    /// Ends the discarding for good. Returns how many events were discarded.
    pub(crate) fn end(&mut self) -> usize {
        std::mem::take(&mut self.count)
    }
}

/// Selects which of many repeated events are logged: the first, the second, the fourth, the eighth
/// and so on.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    count: usize,
}

impl Seldom {
    /// Counts occurrences. Returns the total if it is to be logged now.
    pub(crate) fn log(&mut self, count: usize) -> Option<usize> {
        let before = self.count;
        self.count = before.saturating_add(count);
        (self.count.checked_ilog2() > before.checked_ilog2()).then_some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarding_begins_once_and_is_over_when_there_is_room_and_nothing_more_was_discarded() {
        let mut discarding = Discarding::default();
        assert_eq!(discarding.over(true), 0, "not begun");
        assert_eq!([discarding.add(1), discarding.add(2)], [true, false]);
        assert_eq!(discarding.over(true), 0, "discarded a moment ago");
        assert!(!discarding.add(1));
        assert_eq!(discarding.over(true), 0);
        assert_eq!(discarding.over(false), 0, "no room");
        assert_eq!(discarding.over(true), 4);
        assert_eq!(discarding.over(true), 0, "reported once");
        assert!(discarding.add(1));
        assert_eq!(discarding.end(), 1);
    }

    #[test]
    fn repeated_events_are_logged_rarely() {
        let mut seldom = Seldom::default();
        let logged: Vec<usize> = (0..1000).filter_map(|_| seldom.log(1)).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!((seldom.log(10), seldom.log(14)), (None, Some(1024)));
        assert_eq!(seldom.log(0), None);
    }
}
