//! What clients have been told last, and whether they have to be told again. Pure.

use std::collections::HashMap;

use super::level::Level;

/// Whether a level clients have to hear it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// Clients know it.
    NoChange,
    /// Clients have to know it.
    Broadcast(Level),
}

/// Compares the level that was told last with that of the present count. That there is none may be said twice, but must
/// not be missed.
#[must_use]
pub fn stock_change(told: Level, available_count: i64) -> Telling {
    let level = Level::of(available_count);
    if level == told && !level.is_out() { Telling::NoChange } else { Telling::Broadcast(level) }
}

/// What was told last of each item.
#[derive(Debug, Default)]
pub struct Told {
    levels: HashMap<i64, Level>,
    is_unknown: bool,
}

impl Told {
    /// Something may have been told, but what is not known: everything has to be told again.
    #[must_use]
    pub fn unknown() -> Self {
        Self { levels: HashMap::new(), is_unknown: true }
    }

    /// Notes the level of an item, which clients are about to hear. Returns whether it has to be.
    ///
    /// An item of which nothing was told has the level that clients got with the page, which is `before`.
    pub fn compare(&mut self, item: i64, before: Level, available_count: i64) -> Telling {
        let level = Level::of(available_count);
        match self.levels.insert(item, level) {
            None if self.is_unknown => Telling::Broadcast(level),
            told => stock_change(told.unwrap_or(before), available_count),
        }
    }

    /// Notes what a whole product's fragment says. A page that has its sizes already does not look at it, so what is not known
    /// stays so.
    pub fn set(&mut self, item: i64, level: Level) {
        if !self.is_unknown || self.levels.contains_key(&item) {
            self.levels.insert(item, level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_041_within_a_level_there_is_no_event() {
        assert_eq!(stock_change(Level::of(300), 299), Telling::NoChange);
    }

    #[test]
    fn t_003_the_same_item_before_and_after_is_no_change() {
        assert_eq!(stock_change(Level::of(10), 10), Telling::NoChange);
    }

    #[test]
    fn that_there_is_none_is_said_again() {
        assert_eq!(stock_change(Level::of(150), 149), Telling::Broadcast(Level::Low));
        assert_eq!(stock_change(Level::of(1), 0), Telling::Broadcast(Level::Out));
        assert_eq!(stock_change(Level::Out, 0), Telling::Broadcast(Level::Out));
    }

    #[test]
    fn the_last_level_that_was_said_is_compared() {
        let mut told = Told::default();
        assert_eq!(told.compare(7, Level::High, 499), Telling::Broadcast(Level::Medium));
        assert_eq!(told.compare(7, Level::High, 150), Telling::NoChange);
        told.set(7, Level::Low);
        assert_eq!(told.compare(7, Level::High, 150), Telling::Broadcast(Level::Medium));
    }

    #[test]
    fn what_was_told_is_unknown_and_each_level_is_news_once() {
        let mut told = Told::unknown();
        told.set(7, Level::Low);
        assert_eq!(told.compare(7, Level::Low, 5), Telling::Broadcast(Level::Low));
        assert_eq!(told.compare(7, Level::Low, 4), Telling::NoChange);
    }
}
