//! Products and their stock, as one value that is read and never changed. Pure.

use std::{collections::BTreeMap, sync::Arc};

use super::{change::Change, level::Level};

/// A product. Not it is sold, but its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// The id.
    pub id: i64,
    /// Its place on the page.
    pub position: i64,
    /// The stock-keeper's number.
    pub sku: String,
    /// The brand.
    pub brand: String,
    /// The name of the model.
    pub name: String,
    /// The colour.
    pub color: String,
    /// The price in US dollars.
    pub price_usd: i64,
    /// The address of the photograph.
    pub main_image_url: String,
    /// Whether it can be bought.
    pub released: bool,
    /// When it is to be released by itself, in milliseconds since 1970.
    pub release_at: Option<i64>,
    /// The revision of its row.
    pub rev: i64,
}

/// A product in one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The id.
    pub id: i64,
    /// Its product.
    pub product_id: i64,
    /// The stock-keeper's number.
    pub sku: String,
    /// The size.
    pub size: String,
    /// How many there are.
    pub available_count: i64,
    /// The revision of its stock.
    pub rev: i64,
}

impl Item {
    /// How much there is, as shoppers see it.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::of(self.available_count)
    }
}

/// All products and items. Cheap to clone, and to change one row of: the others are shared.
///
/// Two catalogues are equal if their rows are.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By position.
    products: Vec<Arc<Product>>,
    /// By id.
    items: Vec<Arc<Item>>,
    /// The revisions at which items came to their present level, of items whose level has changed here.
    crossed: Arc<BTreeMap<i64, i64>>,
}

impl PartialEq for Catalogue {
    fn eq(&self, other: &Self) -> bool {
        self.products == other.products && self.items == other.items
    }
}

impl Eq for Catalogue {}

/// What a change has done to a catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The stock of an item is another.
    Stock {
        /// The item.
        item: i64,
        /// Its product.
        product: i64,
        /// How many there were.
        before: i64,
        /// How many there are.
        after: i64,
    },
    /// A product is released, or no longer.
    Release {
        /// The product.
        product: i64,
        /// Whether it can be bought.
        released: bool,
    },
}

/// A change of a row that the catalogue does not have: it has to be loaded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a change of a row that is not known")]
pub struct UnknownRow;

impl Catalogue {
    /// A catalogue of these rows, in any order.
    #[must_use]
    pub fn new(products: Vec<Product>, items: Vec<Item>) -> Self {
        let mut products: Vec<_> = products.into_iter().map(Arc::new).collect();
        products.sort_by_key(|product| (product.position, product.id));
        let mut items: Vec<_> = items.into_iter().map(Arc::new).collect();
        items.sort_by_key(|item| item.id);
        Self { products, items, crossed: Arc::default() }
    }

    /// The products, in their order on the page.
    pub fn products(&self) -> impl Iterator<Item = &Arc<Product>> {
        self.products.iter()
    }

    /// The items, by id.
    pub fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.items.iter()
    }

    /// The items of a product, by id.
    pub fn items_of(&self, product: i64) -> impl Iterator<Item = &Arc<Item>> {
        self.items.iter().filter(move |item| item.product_id == product)
    }

    /// A product.
    #[must_use]
    pub fn product(&self, id: i64) -> Option<&Arc<Product>> {
        self.products.iter().find(|product| product.id == id)
    }

    /// An item.
    #[must_use]
    pub fn item(&self, id: i64) -> Option<&Arc<Item>> {
        let at = self.items.binary_search_by_key(&id, |item| item.id).ok()?;
        self.items.get(at)
    }

    /// The revision at which an item came to its present level; `None` if it has had this level since it was first loaded.
    ///
    /// A level that changes and changes back has another revision, so a reader who compares revisions misses neither.
    #[must_use]
    pub fn crossed_at(&self, id: i64) -> Option<i64> {
        self.crossed.get(&id).copied()
    }

    /// An item with its product.
    #[must_use]
    pub fn item_with_product(&self, id: i64) -> Option<(&Arc<Item>, &Arc<Product>)> {
        let item = self.item(id)?;
        Some((item, self.product(item.product_id)?))
    }

    /// Applies a change that is newer than the row. Returns what it has done, which may be nothing but a new revision.
    ///
    /// # Errors
    ///
    /// [`UnknownRow`] if there is no such row.
    pub fn apply(&mut self, change: &Change) -> Result<Option<Applied>, UnknownRow> {
        match *change {
            Change::Item { id, available_count, rev } => {
                let at = self.items.binary_search_by_key(&id, |item| item.id);
                let item = at.ok().and_then(|at| self.items.get_mut(at)).ok_or(UnknownRow)?;
                if rev <= item.rev {
                    return Ok(None);
                }
                let (product, before) = (item.product_id, item.available_count);
                *item = Arc::new(Item { available_count, rev, ..(**item).clone() });
                if Level::of(before) != Level::of(available_count) {
                    Arc::make_mut(&mut self.crossed).insert(id, rev);
                }
                let applied = Applied::Stock { item: id, product, before, after: available_count };
                Ok((before != available_count).then_some(applied))
            }
            Change::Product { id, released, rev } => {
                let product = self.products.iter_mut().find(|product| product.id == id);
                let product = product.ok_or(UnknownRow)?;
                if rev <= product.rev {
                    return Ok(None);
                }
                let was = product.released;
                *product = Arc::new(Product { released, rev, ..(**product).clone() });
                Ok((was != released).then_some(Applied::Release { product: id, released }))
            }
        }
    }

    /// Replaces it by what was loaded, except rows that have become newer than that meanwhile. Returns what is another.
    pub fn replace(&mut self, mut loaded: Self) -> Vec<Applied> {
        for old in &self.products {
            let newer = |new: &&mut Arc<Product>| new.id == old.id && new.rev < old.rev;
            if let Some(new) = loaded.products.iter_mut().find(newer) {
                *new = old.clone();
            }
        }
        for old in &self.items {
            let newer = |new: &&mut Arc<Item>| new.id == old.id && new.rev < old.rev;
            if let Some(new) = loaded.items.iter_mut().find(newer) {
                *new = old.clone();
            }
        }
        let releases = loaded.products.iter().filter_map(|new| {
            let was = self.product(new.id).is_some_and(|old| old.released);
            let applied = Applied::Release { product: new.id, released: new.released };
            (was != new.released).then_some(applied)
        });
        let stocks = loaded.items.iter().filter_map(|new| {
            let before = self.item(new.id)?.available_count;
            let (item, product, after) = (new.id, new.product_id, new.available_count);
            (before != after).then_some(Applied::Stock { item, product, before, after })
        });
        let applied = releases.chain(stocks).collect();
        loaded.crossed = self.crossed.clone();
        for new in &loaded.items {
            if self.item(new.id).is_some_and(|old| old.level() != new.level()) {
                Arc::make_mut(&mut loaded.crossed).insert(new.id, new.rev);
            }
        }
        *self = loaded;
        applied
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::change::newest;

    fn catalogue() -> Catalogue {
        let product = |id, position| Product {
            id,
            position,
            sku: format!("P{id}"),
            brand: "brand".to_owned(),
            name: format!("name {id}"),
            color: "ink".to_owned(),
            price_usd: 100,
            main_image_url: "/photos/runner-ink.svg".to_owned(),
            released: false,
            release_at: None,
            rev: 1,
        };
        let item = |id, product_id| Item {
            id,
            product_id,
            sku: format!("I{id}"),
            size: "6".to_owned(),
            available_count: 10,
            rev: 1,
        };
        Catalogue::new(vec![product(1, 2), product(2, 1)], vec![item(8, 2), item(7, 1)])
    }

    fn stock(id: i64, available_count: i64, rev: i64) -> Change {
        Change::Item { id, available_count, rev }
    }

    #[test]
    fn products_are_in_their_order_and_items_are_found_by_id() {
        let catalogue = catalogue();
        assert_eq!(catalogue.products().map(|product| product.id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(catalogue.items_of(2).map(|item| item.id).collect::<Vec<_>>(), [8]);
        let (item, product) = catalogue.item_with_product(7).unwrap();
        assert_eq!((item.id, product.id), (7, 1));
        assert!(catalogue.item(9).is_none());
    }

    #[test]
    fn a_029_a_change_with_a_lower_revision_is_not_applied() {
        let mut catalogue = catalogue();
        let applied = Applied::Stock { item: 7, product: 1, before: 10, after: 3 };
        assert_eq!(catalogue.apply(&stock(7, 3, 8)), Ok(Some(applied)));
        assert_eq!(catalogue.apply(&stock(7, 4, 7)), Ok(None));
        assert_eq!(catalogue.apply(&stock(7, 4, 8)), Ok(None), "the same revision again");
        assert_eq!(catalogue.item(7).unwrap().available_count, 3);
        assert_eq!(catalogue.apply(&stock(99, 4, 8)), Err(UnknownRow));
    }

    #[test]
    fn a_change_that_leaves_the_state_is_only_a_new_revision() {
        let mut catalogue = catalogue();
        assert_eq!(catalogue.apply(&stock(7, 10, 8)), Ok(None));
        assert_eq!(catalogue.item(7).unwrap().rev, 8);
    }

    #[test]
    fn what_was_loaded_replaces_all_but_newer_rows() {
        let mut copy = catalogue();
        let mut loaded = copy.clone();
        copy.apply(&stock(7, 3, 8)).unwrap();
        loaded.apply(&stock(7, 5, 6)).unwrap();
        loaded.apply(&stock(8, 0, 2)).unwrap();
        loaded.apply(&Change::Product { id: 2, released: true, rev: 2 }).unwrap();
        let applied = copy.replace(loaded);
        let sold_out = Applied::Stock { item: 8, product: 2, before: 10, after: 0 };
        assert_eq!(applied, [Applied::Release { product: 2, released: true }, sold_out]);
        assert_eq!(copy.item(7).unwrap().available_count, 3, "it is newer than what was loaded");
    }

    #[test]
    fn each_change_of_a_level_has_its_revision() {
        let mut copy = catalogue();
        assert_eq!(copy.crossed_at(7), None);
        copy.apply(&stock(7, 9, 2)).unwrap();
        assert_eq!(copy.crossed_at(7), None, "the level is the same");
        copy.apply(&stock(7, 200, 3)).unwrap();
        copy.apply(&stock(7, 5, 4)).unwrap();
        copy.apply(&stock(7, 4, 5)).unwrap();
        assert_eq!((copy.crossed_at(7), copy.crossed_at(8)), (Some(4), None));
        let mut loaded = catalogue();
        loaded.apply(&stock(8, 0, 6)).unwrap();
        copy.replace(loaded);
        assert_eq!((copy.crossed_at(7), copy.crossed_at(8)), (Some(4), Some(6)));
        assert_eq!(copy.item(7).unwrap().available_count, 4);
    }

    proptest! {
        /// Whatever the order of changes, and whichever come twice, the newest of each row is left.
        #[test]
        fn any_order_of_changes_ends_in_the_same_state(
            changes in prop::collection::vec((7..9_i64, 2..9_i64), 1..40),
            seed: u64,
        ) {
            // A revision has one state.
            let changes: Vec<_> = changes.into_iter().map(|(id, rev)| stock(id, rev * 7 % 5, rev)).collect();
            let mut shuffled = [&changes[..], &changes[..]].concat();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let (mut one, mut other) = (catalogue(), catalogue());
            for change in newest(changes) {
                one.apply(&change).unwrap();
            }
            for change in &shuffled {
                other.apply(change).unwrap();
            }
            prop_assert_eq!(one, other);
        }
    }
}
