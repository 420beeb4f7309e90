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
pub struct Told(HashMap<i64, Level>);

impl Told {
    /// Notes the level of an item, which clients are about to hear. Returns whether it has to be.
    ///
    /// An item of which nothing was told has the level that clients got with the page, which is `before`.
    pub fn compare(&mut self, item: i64, before: Level, available_count: i64) -> Telling {
        let told = self.0.insert(item, Level::of(available_count)).unwrap_or(before);
        stock_change(told, available_count)
    }

    /// Notes what a whole product's fragment says.
    pub fn set(&mut self, item: i64, level: Level) {
        self.0.insert(item, level);
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
}
