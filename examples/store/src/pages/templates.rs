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

/// The page after a purchase. `bought` is the signed order, which the page brings to the cart.
pub fn checkout_complete(head: &PageHead, bought: &str) -> Result<String, Error> {
    Complete { head, bought }.render()
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
    bought: &'a str,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::level::Level,
        pages::views::{CheckoutLine, Variant},
    };

    fn head() -> PageHead {
        PageHead {
            cart_id: "c".repeat(64),
            cart_token: "token".to_owned(),
            csrf: "csrf".to_owned(),
            variant: Variant::Plain,
        }
    }

    fn item(id: i64, size: &str, level: Level) -> ItemView {
        ItemView { id, size: size.to_owned(), level, rev: 3, count: 7 }
    }

    fn product(id: i64, released: bool) -> ProductView {
        ProductView {
            id,
            sku: format!("sku-{id}"),
            brand: "Brand".to_owned(),
            name: format!("Name {id}"),
            color: "Ember".to_owned(),
            price_usd: 160,
            main_image_url: "/photos/runner-ember.svg".to_owned(),
            released,
            rev: 5,
            items: vec![
                item(id * 10, "10", Level::Low),
                item(id * 10 + 1, "6", Level::High),
                item(id * 10 + 2, "9", Level::Out),
                item(id * 10 + 3, "7", Level::Medium),
            ],
        }
    }

    /// The opening tags of the buttons.
    fn buttons(html: &str) -> Vec<&str> {
        let parts = html.split("<button ").skip(1);
        parts.map(|part| part.split_once('>').map_or(part, |(tag, _)| tag)).collect()
    }

    #[test]
    fn a_001_a_card_shows_its_product_and_that_it_comes_soon() {
        let html = shop(&head(), &[product(2, false), product(1, false)]).unwrap();
        assert!(html.contains("<title>Sneakers23</title>"));
        assert!(html.contains(r#"<main class="product-list">"#));
        let (two, one) = (r#"data-product-id="2""#, r#"data-product-id="1""#);
        assert!(html.find(two).unwrap() < html.find(one).unwrap(), "in the order of the list");
        for shown in ["Brand", "Name 1", "Ember", "$160", "/photos/runner-ember.svg"] {
            assert!(html.contains(shown), "{shown}");
        }
        assert_eq!(html.matches("coming soon...").count(), 2);
        assert!(!html.contains("size-container"));
    }

    #[test]
    fn a_002_a_released_card_has_a_button_for_each_size_in_order() {
        let html = shop(&head(), &[product(1, true), product(2, false)]).unwrap();
        assert_eq!(html.matches("coming soon...").count(), 1);
        assert!(html.contains("product-soon-2") && !html.contains("product-soon-1"));
        let texts: Vec<&str> =
            html.split("</button>").filter_map(|part| part.rsplit('>').next()).collect();
        assert_eq!(texts[..4], ["6", "7", "9", "10"]);
        let values = buttons(&html);
        for (button, value) in values.iter().zip(["11", "13", "12", "10"]) {
            assert!(button.contains(r#"name="item_id""#), "{button}");
            assert!(button.contains(&format!(r#"value="{value}""#)), "{button}");
        }
    }

    #[test]
    fn a_004_a_button_has_one_level_and_is_disabled_if_there_is_none() {
        let html = size_selector(&product(1, true)).unwrap();
        let buttons = buttons(&html);
        assert_eq!(buttons.len(), 4);
        for (button, level) in buttons.iter().zip(["high", "medium", "out", "low"]) {
            assert_eq!(button.matches("size-container__entry--level-").count(), 1, "{button}");
            assert!(button.contains(&format!("size-container__entry--level-{level}")), "{button}");
            assert_eq!(button.contains(" disabled"), level == "out", "{button}");
        }
    }

    #[test]
    fn a_013_pages_of_shoppers_and_of_admins_share_no_script_and_no_cart() {
        let shopper = shop(&head(), &[]).unwrap();
        let view = AdminView {
            name: "ann".to_owned(),
            token: "token".to_owned(),
            csrf: "csrf".to_owned(),
            products: vec![product(1, true), product(2, false)],
        };
        let admin = admin(&view).unwrap();
        assert!(shopper.contains(r#"id="cart-container""#));
        assert!(!admin.contains("cart-container"));
        let loaded = |html: &str| -> Vec<String> {
            let parts = html.split("\"/assets/").skip(1);
            parts.filter_map(|part| part.split('"').next()).map(str::to_owned).collect()
        };
        assert_eq!(loaded(&shopper).len(), 2, "a style sheet and a script");
        assert!(loaded(&shopper).iter().all(|asset| !loaded(&admin).contains(asset)));
        // Only what is not released yet can be released.
        assert!(admin.contains("/admin/products/2/release"));
        assert!(!admin.contains("/admin/products/1/release"));
        assert_eq!(admin.matches(r#"data-item-count=""#).count(), 8);
    }

    #[test]
    fn a_011_texts_of_products_are_shown_as_text_everywhere() {
        let nasty = r#"<img src=x onerror="alert(1)">&'"#;
        let mut product = product(1, true);
        for text in [&mut product.name, &mut product.color, &mut product.brand, &mut product.sku] {
            nasty.clone_into(text);
        }
        product.main_image_url = format!("/photos/{nasty}");
        for item in &mut product.items {
            nasty.clone_into(&mut item.size);
        }
        let line = CheckoutLine {
            item_id: 1,
            brand: nasty.to_owned(),
            name: nasty.to_owned(),
            color: nasty.to_owned(),
            size: nasty.to_owned(),
            price_usd: 1,
            main_image_url: nasty.to_owned(),
            out_of_stock: false,
        };
        let bought = CheckoutView {
            lines: vec![line],
            serialized_cart: nasty.to_owned(),
            key: nasty.to_owned(),
            problem: Some(nasty.to_owned()),
        };
        let (products, head) = (vec![product.clone()], head());
        let view = AdminView {
            name: nasty.to_owned(),
            token: nasty.to_owned(),
            csrf: nasty.to_owned(),
            products: products.clone(),
        };
        let pages = [
            shop(&head, &products),
            drops(&head, &products),
            app(&head, &products),
            card(&product),
            size_selector(&product),
            entry(&product.items[0]),
            checkout(&head, &bought),
            admin(&view),
            unavailable(nasty),
        ];
        for page in pages {
            let page = page.unwrap();
            assert!(!page.contains("<img src=x"), "{page}");
            assert!(!page.contains(r#"onerror=""#), "{page}");
            assert!(page.contains("&#60;img src=x onerror="), "{page}");
        }
    }

    #[test]
    fn a_136_the_server_driven_page_has_the_same_main() {
        let products = [product(1, true), product(2, false)];
        let main = |html: &str| {
            let start = html.find("<main").unwrap();
            html[start..html.find("</main>").unwrap()].to_owned()
        };
        let plain = shop(&head(), &products).unwrap();
        let driven = drops(&PageHead { variant: Variant::Drops, ..head() }, &products).unwrap();
        assert_eq!(main(&plain), main(&driven));
        assert!(driven.contains(r#"name="variant" content="drops""#));
    }

    #[test]
    fn the_fragment_of_a_release_is_what_the_page_has() {
        let product = product(1, true);
        let html = shop(&head(), std::slice::from_ref(&product)).unwrap();
        assert!(html.contains(&size_selector(&product).unwrap()));
        assert!(html.contains(&card(&product).unwrap()));
        let selector = size_selector(&product).unwrap();
        assert!(selector.contains(&entry(&product.items[0]).unwrap()));
        assert!(
            entry(&product.items[0]).unwrap().len() * 10 < html.len(),
            "a level is a small part"
        );
    }

    #[test]
    fn the_app_carries_the_products_without_their_counts() {
        let html = app(&head(), &[product(1, true)]).unwrap();
        assert!(html.contains("&#34;level&#34;:&#34;low&#34;"));
        assert!(!html.contains("count"), "{html}");
        assert!(!html.contains("sku-1"));
    }
}
