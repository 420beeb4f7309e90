//! What the pages show.

use std::cmp::Ordering;

use serde::Serialize;

use crate::domain::level::Level;

/// What every shopper's page carries for its scripts.
#[derive(Clone, Debug)]
pub struct PageHead {
    /// The id of the cart, which is the topic of its channel.
    pub cart_id: String,
    /// The signed proof that this page may join the cart's channel.
    pub cart_token: String,
    /// The token that forms send back, as `csrf_token`.
    pub csrf: String,
    /// Which front end runs on the page.
    pub variant: Variant,
}

/// A front end of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The page's own script joins the products' channels.
    Plain,
    /// The server draws every change of the page, and sends it as a fragment.
    Drops,
    /// React.
    App,
}

/// A product with its sizes.
#[derive(Clone, Debug, Serialize)]
pub struct ProductView {
    /// The id.
    pub id: i64,
    /// The number of the stock-keeper.
    #[serde(skip)]
    pub sku: String,
    /// The brand.
    pub brand: String,
    /// The name of the model.
    pub name: String,
    /// The colour.
    pub color: String,
    /// The price in US dollars.
    pub price_usd: i64,
    /// The address of the photograph: see [`photograph`](super::photograph).
    pub main_image_url: String,
    /// Whether it can be bought.
    pub released: bool,
    /// Grows with every change of the product.
    pub rev: i64,
    /// Its sizes, in any order.
    pub items: Vec<ItemView>,
}

/// A product in one size.
#[derive(Clone, Debug, Serialize)]
pub struct ItemView {
    /// The id.
    pub id: i64,
    /// The size.
    pub size: String,
    /// How much is left, as shoppers see it.
    pub level: Level,
    /// Grows with every change of the count.
    pub rev: i64,
    /// How many are left. Only the admin's page shows it.
    #[serde(skip)]
    pub count: i64,
}

/// What the checkout shows.
#[derive(Clone, Debug, Default)]
pub struct CheckoutView {
    /// The cart's lines, by ascending id. Without any, the page says that the cart is empty.
    pub lines: Vec<CheckoutLine>,
    /// The signed cart, which the form sends as `serialized_cart`.
    pub serialized_cart: String,
    /// The key of this purchase, which the form sends as `key`. The same key buys once.
    pub key: String,
    /// Why the last try to buy failed.
    pub problem: Option<String>,
}

/// One line of the checkout.
#[derive(Clone, Debug)]
pub struct CheckoutLine {
    /// The id of the item.
    pub item_id: i64,
    /// The brand of its product.
    pub brand: String,
    /// The name of its product.
    pub name: String,
    /// The colour of its product.
    pub color: String,
    /// The size.
    pub size: String,
    /// The price in US dollars.
    pub price_usd: i64,
    /// The address of the photograph.
    pub main_image_url: String,
    /// Whether none is left.
    pub out_of_stock: bool,
}

/// What the dashboard shows before its channels have spoken.
#[derive(Clone, Debug)]
pub struct AdminView {
    /// The name of the admin.
    pub name: String,
    /// The token of the admin's socket.
    pub token: String,
    /// The token that forms send back, as `csrf_token`.
    pub csrf: String,
    /// All products.
    pub products: Vec<ProductView>,
}

impl Variant {
    /// How the page names it to its scripts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Drops => "drops",
            Self::App => "app",
        }
    }
}

impl ProductView {
    /// The items by size: numbers first, from the smallest.
    pub(crate) fn by_size(&self) -> Vec<&ItemView> {
        let mut items: Vec<&ItemView> = self.items.iter().collect();
        items.sort_by(|one, other| by_size(&one.size, &other.size));
        items
    }
}

impl CheckoutView {
    /// What all lines cost.
    pub(crate) fn total(&self) -> i64 {
        self.lines.iter().map(|line| line.price_usd).fold(0, i64::saturating_add)
    }

    /// Whether buying is offered: there is something in the cart, and all of it is there.
    pub(crate) fn can_buy(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(|line| !line.out_of_stock)
    }
}

/// Sizes that are numbers come in their order, all others after them, as text.
fn by_size(one: &str, other: &str) -> Ordering {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one.total_cmp(&other),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => one.cmp(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_ordered_as_numbers_and_not_as_text() {
        let mut sizes = ["10", "L", "6.5", "9", "6", "11", "K"];
        sizes.sort_by(|one, other| by_size(one, other));
        assert_eq!(sizes, ["6", "6.5", "9", "10", "11", "K", "L"]);
    }

    #[test]
    fn a_cart_can_be_bought_if_it_has_lines_and_all_are_there() {
        let line = |out_of_stock| CheckoutLine {
            item_id: 1,
            brand: String::new(),
            name: String::new(),
            color: String::new(),
            size: String::new(),
            price_usd: 120,
            main_image_url: String::new(),
            out_of_stock,
        };
        let view = |lines| CheckoutView { lines, ..CheckoutView::default() };
        assert!(!view(vec![]).can_buy());
        assert!(view(vec![line(false)]).can_buy());
        assert!(!view(vec![line(false), line(true)]).can_buy());
        assert_eq!(view(vec![line(false), line(true)]).total(), 240);
    }
}
