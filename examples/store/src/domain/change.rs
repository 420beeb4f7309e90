//! A change of stock or of a product, with the revision that orders it. Pure.

use serde::{Deserialize, Serialize};

/// The new state of one row of the database. Nodes send it to each other as it is.
///
/// It carries the state and not what was done, so a copy that has missed some is right again with the next, and one that
/// is late or comes twice is known by its revision.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Change {
    /// The stock of an item.
    Item {
        /// The item.
        id: i64,
        /// How many there are.
        available_count: i64,
        /// The revision of the row.
        rev: i64,
    },
    /// Whether a product is released.
    Product {
        /// The product.
        id: i64,
        /// Whether it can be bought.
        released: bool,
        /// The revision of the row.
        rev: i64,
    },
}

/// The row that a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// An item's stock.
    Item(i64),
    /// A product.
    Product(i64),
}

impl Change {
    /// The row.
    #[must_use]
    pub fn row(&self) -> Row {
        match *self {
            Self::Item { id, .. } => Row::Item(id),
            Self::Product { id, .. } => Row::Product(id),
        }
    }

    /// The revision.
    #[must_use]
    pub fn rev(&self) -> i64 {
        match *self {
            Self::Item { rev, .. } | Self::Product { rev, .. } => rev,
        }
    }
}

/// The newest change of each row, in order of the rows: what is left of a batch in which one overtook another.
#[must_use]
pub fn newest(changes: impl IntoIterator<Item = Change>) -> Vec<Change> {
    let mut rows = std::collections::BTreeMap::<Row, Change>::new();
    for change in changes {
        let kept = rows.entry(change.row()).or_insert(change);
        if change.rev() > kept.rev() {
            *kept = change;
        }
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_written_as_the_specification_has_it() {
        let item = Change::Item { id: 7, available_count: 0, rev: 42 };
        let written = json!({ "kind": "item", "id": 7, "available_count": 0, "rev": 42 });
        assert_eq!(serde_json::to_value(item).unwrap(), written);
        let product = Change::Product { id: 1, released: true, rev: 3 };
        let written = json!({ "kind": "product", "id": 1, "released": true, "rev": 3 });
        assert_eq!(serde_json::from_value::<Change>(written).unwrap(), product);
    }

    #[test]
    fn of_a_batch_the_newest_change_of_each_row_is_left() {
        let item = |id, rev| Change::Item { id, available_count: rev, rev };
        let product = Change::Product { id: 7, released: true, rev: 1 };
        let batch = [item(7, 2), item(8, 5), item(7, 4), product, item(7, 3)];
        assert_eq!(newest(batch), [item(7, 4), item(8, 5), product]);
    }
}
