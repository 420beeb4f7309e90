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

/// What was told last of each item.
#[derive(Debug, Default)]
pub struct Told {
    /// The revisions at which the items came to the levels that were told.
    crossed: HashMap<i64, Option<i64>>,
    is_unknown: bool,
}

impl Told {
    /// Something may have been told, but what is not known: everything has to be told again.
    #[must_use]
    pub fn unknown() -> Self {
        Self { crossed: HashMap::new(), is_unknown: true }
    }

    /// Notes the level of an item, which clients are about to hear. Returns whether it has to be. That there is none may be
    /// said twice, but must not be missed.
    ///
    /// A page that came meanwhile may know any level that the copy had since the last telling. So every change of the level
    /// is news, also one that was taken back: `crossed_at` is the revision at which the item came to its level, see
    /// [`Catalogue::crossed_at`](super::catalogue::Catalogue::crossed_at).
    pub fn compare(&mut self, item: i64, level: Level, crossed_at: Option<i64>) -> Telling {
        let is_known = match self.crossed.insert(item, crossed_at) {
            Some(told) => told == crossed_at,
            None => crossed_at.is_none() && !self.is_unknown,
        };
        if is_known && !level.is_out() { Telling::NoChange } else { Telling::Broadcast(level) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        database::seed::seed,
        domain::{catalogue::Catalogue, change::Change},
    };

    /// A catalogue whose item 1 has this stock from the beginning.
    fn with(available_count: i64) -> Catalogue {
        let items = seed(1).items().map(|item| (**item).clone()).collect::<Vec<_>>();
        let products = seed(1).products().map(|product| (**product).clone()).collect();
        let items = items.into_iter().map(|mut item| {
            if item.id == 1 {
                item.available_count = available_count;
            }
            item
        });
        Catalogue::new(products, items.collect())
    }

    fn sell_to(catalogue: &mut Catalogue, available_count: i64) {
        let rev = catalogue.item(1).unwrap().rev + 1;
        catalogue.apply(&Change::Item { id: 1, available_count, rev }).unwrap();
    }

    fn tell(told: &mut Told, catalogue: &Catalogue) -> Telling {
        told.compare(1, catalogue.item(1).unwrap().level(), catalogue.crossed_at(1))
    }

    #[test]
    fn a_041_within_a_level_there_is_no_event() {
        let (mut told, mut catalogue) = (Told::default(), with(300));
        sell_to(&mut catalogue, 299);
        assert_eq!(tell(&mut told, &catalogue), Telling::NoChange);
    }

    #[test]
    fn t_003_the_same_item_before_and_after_is_no_change() {
        let (mut told, catalogue) = (Told::default(), with(10));
        assert_eq!(tell(&mut told, &catalogue), Telling::NoChange);
        assert_eq!(tell(&mut told, &catalogue), Telling::NoChange);
    }

    #[test]
    fn that_there_is_none_is_said_again() {
        let (mut told, mut catalogue) = (Told::default(), with(150));
        sell_to(&mut catalogue, 149);
        assert_eq!(tell(&mut told, &catalogue), Telling::Broadcast(Level::Low));
        sell_to(&mut catalogue, 0);
        assert_eq!(tell(&mut told, &catalogue), Telling::Broadcast(Level::Out));
        assert_eq!(tell(&mut told, &catalogue), Telling::Broadcast(Level::Out));
    }

    #[test]
    fn a_level_that_was_taken_back_is_news_and_is_so_once() {
        let (mut told, mut catalogue) = (Told::default(), with(150));
        for available_count in [149, 150, 151] {
            sell_to(&mut catalogue, available_count);
        }
        assert_eq!(tell(&mut told, &catalogue), Telling::Broadcast(Level::Medium));
        sell_to(&mut catalogue, 152);
        assert_eq!(tell(&mut told, &catalogue), Telling::NoChange);
    }

    #[test]
    fn what_was_told_is_unknown_and_each_level_is_news_once() {
        let (mut told, mut catalogue) = (Told::unknown(), with(5));
        assert_eq!(tell(&mut told, &catalogue), Telling::Broadcast(Level::Low));
        sell_to(&mut catalogue, 4);
        assert_eq!(tell(&mut told, &catalogue), Telling::NoChange);
    }
}
