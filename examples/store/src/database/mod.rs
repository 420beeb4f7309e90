//! The source of truth: products, stock and orders.

mod late;
#[cfg(feature = "postgres")]
mod postgres;
mod schema;
pub mod seed;
mod sqlite;
mod turns;

use futures::future::BoxFuture;
use thiserror::Error;

#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresDatabase, PostgresOptions};
pub use self::{
    late::LateDatabase,
    sqlite::{SqliteDatabase, SqliteOptions, mark_of},
};
use crate::domain::{
    cart::MAX_ORDERS,
    catalogue::Catalogue,
    change::{Change, Row},
};

/// The name of the durable queue of placed orders, which are to be confirmed to their carts.
pub const PLACED_ORDERS: &str = "placed_orders";

/// An answer of the database.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, DatabaseError>>;

/// The source of truth. It alone decides whether something may be sold.
///
/// Each call is one transaction. What it returns was committed, so it may be applied to copies and told.
pub trait Database: Send + Sync + 'static {
    /// Everything that is sold.
    fn load(&self) -> Answer<'_, Catalogue>;

    /// Releases a product, if it is not.
    fn release(&self, product: i64) -> Answer<'_, Release>;

    /// Sets when a product is to be released by itself. Returns whether there is such a product, not released yet.
    fn schedule(&self, product: i64, at_ms: i64) -> Answer<'_, bool>;

    /// Sells one of an item, if there is one.
    fn sell(&self, item: i64) -> Answer<'_, Sale>;

    /// Sets how many of an item there are: new stock, and what tests need. `None` if there is no such item.
    fn stock(&self, item: i64, available_count: i64) -> Answer<'_, Option<Change>>;

    /// Raises the revisions of rows above these, where they are not. Returns the rows that were raised, as they are. For a
    /// database that has lost its last commits: what copies and pages have of these rows has a higher revision.
    fn raise(&self, rows: Vec<(Row, i64)>) -> Answer<'_, Vec<Change>>;

    /// Sells one of each item, or nothing.
    fn check_out(&self, order: Order) -> Answer<'_, CheckOut>;

    /// All orders, oldest first.
    fn orders(&self) -> Answer<'_, Vec<PlacedOrder>>;
}

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The product is released now.
    Released(Change),
    /// The product was released before. Nothing has changed.
    AlreadyReleased,
    /// There is no such product.
    UnknownProduct,
}

/// What became of a sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sale {
    /// There was one.
    Sold(Change),
    /// There was none.
    OutOfStock,
    /// There is no such item.
    UnknownItem,
}

/// What a shopper wants to buy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The key of the form. The same key of the same cart buys once.
    pub key: String,
    /// The id of the cart.
    pub cart: String,
    /// The items, each once.
    pub items: Vec<i64>,
    /// When, in milliseconds since 1970.
    pub placed_at: i64,
    /// The keys of earlier orders that were taken out of the cart before this order was drawn.
    pub knows: Vec<String>,
}

impl Order {
    /// Its items, ascending, each once.
    #[must_use]
    pub fn distinct_items(&self) -> Vec<i64> {
        let mut items = self.items.clone();
        items.sort_unstable();
        items.dedup();
        items
    }

    /// Whether an earlier order of its cart has bought some of it, and the cart was drawn before that one was taken out of it.
    #[must_use]
    pub fn overlooks(&self, earlier: &BoughtBefore) -> bool {
        !self.knows.contains(&earlier.key)
            && earlier.items.iter().any(|item| self.items.contains(item))
    }
}

/// How many of a cart's last orders are compared with a new one. A cart remembers as many.
pub const COMPARED: usize = MAX_ORDERS;

/// An earlier order of the same cart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoughtBefore {
    /// The key.
    pub key: String,
    /// Its items, ascending.
    pub items: Vec<i64>,
}

/// What became of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOut {
    /// All of it was bought.
    Placed(Vec<Change>),
    /// The order was placed before, by the same key. Nothing has changed.
    Repeated,
    /// The key is that of another order of this cart, which has other items. Nothing was sold.
    OtherItems,
    /// These orders of the same cart have bought some of it, and this one was drawn before they were taken out of the cart: by
    /// another tab. Nothing was sold.
    BoughtBefore(Vec<BoughtBefore>),
    /// These items are gone. Nothing was sold.
    Gone(Vec<i64>),
    /// These items are not released, or not sold here. Nothing was sold.
    NotForSale(Vec<i64>),
}

/// An order with its items and the prices of its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedOrder {
    /// The number.
    pub id: i64,
    /// The key of the form.
    pub key: String,
    /// The id of the cart.
    pub cart: String,
    /// When, in milliseconds since 1970.
    pub placed_at: i64,
    /// Items and prices in US dollars, by item.
    pub items: Vec<(i64, i64)>,
}

/// The database has not done what was asked, and nothing of it, unless that is unknown.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// The database is not there.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database was lost while it stored: all of it is done, or nothing. The same call again finds out.
    #[error("whether the database has stored it is not known: {0}")]
    Unknown(String),
    /// Too many calls wait for it.
    #[error("too many calls wait for the database")]
    Crowded,
    /// The database refuses.
    #[error("the database has failed: {0}")]
    Failed(String),
}
