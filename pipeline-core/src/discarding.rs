//! When a log tells that events are discarded. Pure.

/// Whether something that is full discards what comes: the log tells when that begins and when it is
/// over, and no line for each event.
///
/// It is over when a good part of the room is free and nothing was discarded for a while. Room alone is
/// not enough, because a queue that is overloaded has room for a moment after every take.
#[derive(Debug, Default)]
pub(crate) struct Discarding {
    /// How many were discarded since it began; 0 while nothing is.
    count: usize,
    /// Whether any were since [`over`](Self::over) was last asked.
    lately: bool,
}

impl Discarding {
    /// Counts what is discarded, at least one. Whether it begins with this.
    pub(crate) fn add(&mut self, count: usize) -> bool {
        let begins = self.count == 0;
        self.count = self.count.saturating_add(count);
        self.lately = true;
        begins
    }

    /// Asked when something has left. If that ends the discarding, how many were discarded, else 0.
    pub(crate) fn over(&mut self, has_room: bool) -> usize {
        let quiet = !std::mem::take(&mut self.lately);
        if has_room && quiet { self.end() } else { 0 }
    }

    /// Nothing will be discarded any more. How many were.
    pub(crate) fn end(&mut self) -> usize {
        std::mem::take(&mut self.count)
    }
}

/// Says of things that happen again and again which ones to log: the first, the second, the fourth, the
/// eighth and so on.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    count: usize,
}

impl Seldom {
    /// Counts what has happened. How often it has, if that is to be logged now.
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
        assert_eq!(discarding.over(true), 0, "it has not begun");
        assert_eq!([discarding.add(1), discarding.add(2)], [true, false]);
        assert_eq!(discarding.over(true), 0, "it was a moment ago");
        assert!(!discarding.add(1));
        assert_eq!(discarding.over(true), 0);
        assert_eq!(discarding.over(false), 0, "there is no room");
        assert_eq!(discarding.over(true), 4);
        assert_eq!(discarding.over(true), 0, "it is told once");
        assert!(discarding.add(1));
        assert_eq!(discarding.end(), 1);
    }

    #[test]
    fn of_what_happens_often_few_are_logged() {
        let mut seldom = Seldom::default();
        let logged: Vec<usize> = (0..1000).filter_map(|_| seldom.log(1)).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!((seldom.log(10), seldom.log(14)), (None, Some(1024)));
        assert_eq!(seldom.log(0), None);
    }
}
