//! The templates, each a function of what it shows.

#![expect(
    clippy::missing_errors_doc,
    reason = "writing into a string does not fail, nor do these templates"
)]

use askama::{Error, Template};

use super::{
    assets::SCRIPTS_BUILT,
    views::{AdminView, CheckoutView, ItemView, PageHead, ProductView},
};

/// The shop: all products, and the cart.
pub fn shop(head: &PageHead, products: &[ProductView]) -> Result<String, Error> {
    Shop { head, products }.render()
}

/// The shop in the server-driven variant. What is in `main` is the same.
pub fn drops(head: &PageHead, products: &[ProductView]) -> Result<String, Error> {
    Shop { head, products }.render()
}

/// The card of a product, as the shop's page has it.
pub fn card(product: &ProductView) -> Result<String, Error> {
    Card { product }.render()
}

/// The size selector of a product, as its card has it once it is released: the fragment of `released`.
pub fn size_selector(product: &ProductView) -> Result<String, Error> {
    SizeSelector { product }.render()
}

/// The button of one size, as the size selector has it. It is the smallest part of the page that changes. The page
/// finds it by the selector `[data-key="item-{id}"]`.
pub fn entry(item: &ItemView) -> Result<String, Error> {
    Entry { item }.render()
}

/// The page of the React variant, which its script fills. It carries the products without their counts.
pub fn app(head: &PageHead, products: &[ProductView]) -> Result<String, Error> {
    let products_json = serde_json::to_string(products).map_err(Error::custom)?;
    App { head, products_json }.render()
}

/// The checkout of a cart.
pub fn checkout(head: &PageHead, view: &CheckoutView) -> Result<String, Error> {
    Checkout { head, view }.render()
}

/// The page after a purchase.
pub fn checkout_complete(head: &PageHead) -> Result<String, Error> {
    Complete { head }.render()
}

/// The admin's dashboard.
pub fn admin(view: &AdminView) -> Result<String, Error> {
    Admin { view }.render()
}

/// The page that is shown instead of a page that cannot be drawn. `why` is shown as text.
pub fn unavailable(why: &str) -> Result<String, Error> {
    Unavailable { why }.render()
}

#[derive(Template)]
#[template(path = "shop.html")]
struct Shop<'a> {
    head: &'a PageHead,
    products: &'a [ProductView],
}

#[derive(Template)]
#[template(path = "card.html")]
struct Card<'a> {
    product: &'a ProductView,
}

#[derive(Template)]
#[template(path = "size_selector.html")]
struct SizeSelector<'a> {
    product: &'a ProductView,
}

#[derive(Template)]
#[template(path = "entry.html")]
struct Entry<'a> {
    item: &'a ItemView,
}

#[derive(Template)]
#[template(path = "app.html")]
struct App<'a> {
    head: &'a PageHead,
    products_json: String,
}

#[derive(Template)]
#[template(path = "checkout.html")]
struct Checkout<'a> {
    head: &'a PageHead,
    view: &'a CheckoutView,
}

#[derive(Template)]
#[template(path = "complete.html")]
struct Complete<'a> {
    head: &'a PageHead,
}

#[derive(Template)]
#[template(path = "admin.html")]
struct Admin<'a> {
    view: &'a AdminView,
}

#[derive(Template)]
#[template(path = "unavailable.html")]
struct Unavailable<'a> {
    why: &'a str,
}
