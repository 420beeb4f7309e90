//! The option that names a subscriber's partition.

use std::{
    any::{Any, type_name},
    fmt,
    hash::Hash,
};

use crate::subscription::{BadPartition, SubscribeOptions};

/// A partition as an option.
struct Key {
    key: Box<dyn Any + Send + Sync>,
    shown: String,
    type_name: &'static str,
}

impl SubscribeOptions {
    /// The partition to take events from, for a producer with a
    /// [`PartitionDispatcher`](crate::dispatcher::PartitionDispatcher); other dispatchers ignore
    /// it.
    ///
    /// It has to have the type that names the partitions. A bare number works for every integer
    /// type, although its type is `i32` to the compiler.
    ///
    /// ```
    /// use pipeline_core::subscription::SubscribeOptions;
    ///
    /// let first = SubscribeOptions::new().partition(0);
    /// let europe = SubscribeOptions::new().partition("eu");
    /// ```
    pub fn partition<K: fmt::Debug + Send + Sync + 'static>(self, key: K) -> Self {
        let shown = format!("{key:?}");
        self.extension(Key { key: Box::new(key), shown, type_name: type_name::<K>() })
    }
}

/// The partitions by name.
pub(super) struct Names<K> {
    places: Places<K>,
    /// The names as an error shows them, in order.
    shown: Vec<String>,
}

/// Maps names to places. It is searched for every event.
enum Places<K> {
    /// In order: with few names, comparing is faster than hashing.
    Few(Vec<K>),
    /// Keys may come from untrusted sources, but a lookup inserts nothing.
    Many(foldhash::HashMap<K, usize>),
}

/// The largest number of names for which comparing is used.
const FEW: usize = 8;

impl<K: Eq + Hash + fmt::Debug + 'static> Names<K> {
    /// A duplicate name counts once.
    pub(super) fn new(names: impl IntoIterator<Item = K>) -> Self {
        let (mut places, mut shown) = (foldhash::HashMap::default(), Vec::new());
        for name in names {
            let name_shown = format!("{name:?}");
            places.entry(name).or_insert_with(|| {
                shown.push(name_shown);
                shown.len() - 1
            });
        }
        if shown.len() > FEW {
            return Self { places: Places::Many(places), shown };
        }
        let mut few: Vec<(usize, K)> =
            places.into_iter().map(|(name, place)| (place, name)).collect();
        few.sort_by_key(|(place, _)| *place);
        Self { places: Places::Few(few.into_iter().map(|(_, name)| name).collect()), shown }
    }

    pub(super) fn len(&self) -> usize {
        self.shown.len()
    }

    /// The place of the partition of this name.
    pub(super) fn place(&self, name: &K) -> Option<usize> {
        match &self.places {
            Places::Few(names) => names.iter().position(|other| other == name),
            Places::Many(places) => places.get(name).copied(),
        }
    }

    /// The place of the partition that these options name.
    pub(super) fn place_in(&self, options: &SubscribeOptions) -> Result<usize, BadPartition> {
        let Some(Key { key, shown, type_name: given }) = options.get_extension() else {
            return Err(BadPartition::Missing { expected: self.all() });
        };
        let place = if let Some(name) = key.downcast_ref::<K>() {
            self.place(name)
        } else if let Some(name) = key.downcast_ref().and_then(|number| bare_number(*number)) {
            self.place(&name)
        } else {
            return Err(BadPartition::Type {
                given: shown.clone(),
                given_type: given,
                expected_type: type_name::<K>(),
            });
        };
        place.ok_or_else(|| BadPartition::Unknown { given: shown.clone(), expected: self.all() })
    }

    /// The error for a partition that is taken.
    pub(super) fn taken(&self, place: usize) -> BadPartition {
        BadPartition::Taken { given: self.shown[place].clone() }
    }

    /// The names for an error. A long list is truncated.
    fn all(&self) -> String {
        self.shown_of(0..self.len()).unwrap_or_default()
    }

    /// The names of these places, for an error or a warning, if there are any. A long list is truncated.
    pub(super) fn shown_of(&self, places: impl IntoIterator<Item = usize>) -> Option<String> {
        const MOST: usize = 8;
        let mut places = places.into_iter().map(|place| self.shown[place].as_str());
        let first: Vec<_> = places.by_ref().take(MOST).collect();
        let mut text = first.join(", ");
        let more = places.count();
        if more > 0 {
            text += &format!(" and {more} more");
        }
        (!first.is_empty()).then_some(text)
    }
}

/// A number as a `K`, if `K` is an integer type that it fits.
fn bare_number<K: 'static>(number: i32) -> Option<K> {
    macro_rules! of_each {
        ($($integer:ty),*) => {
            [$(<$integer>::try_from(number).ok().map(|it| Box::new(it) as Box<dyn Any>)),*]
        };
    }
    let numbers = of_each![u8, u16, u32, u64, u128, usize, i8, i16, i64, i128, isize];
    numbers.into_iter().flatten().find_map(|number| number.downcast().ok()).map(|number| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_all_partitions_but_not_a_hundred() {
        let expected = |names: i32| match Names::new(0..names).place_in(&SubscribeOptions::new()) {
            Err(BadPartition::Missing { expected }) => expected,
            other => panic!("unexpected error: {other:?}"),
        };
        assert_eq!(expected(8), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(expected(9), "0, 1, 2, 3, 4, 5, 6, 7 and 1 more");
        assert_eq!(expected(100), "0, 1, 2, 3, 4, 5, 6, 7 and 92 more");
    }

    #[test]
    fn a_bare_number_names_a_partition_of_any_integer_type_that_it_fits() {
        assert_eq!(Names::new([7u8, 9]).place_in(&SubscribeOptions::new().partition(9)), Ok(1));
        assert_eq!(Names::new([7i128, 9]).place_in(&SubscribeOptions::new().partition(7)), Ok(0));
        let error = Names::new([7u8, 9]).place_in(&SubscribeOptions::new().partition(300));
        assert_eq!(error.unwrap_err().to_string(), "partition 300 is of type i32, expected u8");
        // A number with an explicit type has that type.
        let error = Names::new([7u8, 9]).place_in(&SubscribeOptions::new().partition(9u16));
        assert!(matches!(error, Err(BadPartition::Type { given_type: "u16", .. })));
    }

    #[test]
    fn every_name_has_its_place_for_any_number_of_names() {
        for count in [1, FEW, FEW + 1, 1000] {
            let names = Names::new((0..count).rev());
            let expected: Vec<_> = (0..count).map(Some).collect();
            assert_eq!(
                (0..count).rev().map(|name| names.place(&name)).collect::<Vec<_>>(),
                expected
            );
            assert_eq!(names.place(&count), None);
        }
    }

    #[test]
    fn a_duplicate_name_counts_once() {
        let names = Names::new(["eu", "us", "eu", "jp"]);
        assert_eq!(names.len(), 3);
        assert_eq!(["eu", "us", "jp"].map(|name| names.place(&name)), [Some(0), Some(1), Some(2)]);
    }
}
