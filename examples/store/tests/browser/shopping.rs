//! Carts, the checkout and the dashboard.

use serde_json::{Value, json};
use store::{
    database::seed::seed,
    domain::{
        cart::Cart,
        catalogue::{Catalogue, Item, Product},
    },
};

use crate::{CONNECTED, FRONT_ENDS, driver::Browser, server::Server};

/// The items in the cart, by their "×".
const CART: &str =
    "[...document.querySelectorAll('.cart-item__remove')].map(it => Number(it.dataset.itemId))";

async fn has(browser: &Browser, items: Value) {
    browser.becomes(CART, &items).await;
}

async fn add(browser: &Browser, item: i64) {
    browser.click(&format!("button.size-container__entry[value=\"{item}\"]")).await;
}

async fn remove(browser: &Browser, item: i64) {
    browser.click(&format!(".cart-item__remove[data-item-id=\"{item}\"]")).await;
}

/// Also shows T-031, A-072 and A-128. The products' names are hostile, which shows A-011 for the cart.
#[tokio::test]
async fn t_029_a_cart_is_the_same_in_all_tabs_until_it_is_bought() {
    buys("/", "/drops").await;
    buys("/app/drops", "/app/cart").await;
}

/// Goes through the whole of it on one page, and comes back by another.
async fn buys(page: &str, other: &str) {
    let mut products: Vec<_> = seed(23).products().map(|product| Product::clone(product)).collect();
    let items = seed(23).items().map(|item| Item::clone(item)).collect();
    "<img src=x onerror=\"window.struck = true\">".clone_into(&mut products[1].name);
    let server = Server::with(Catalogue::new(products, items)).await;
    let browser = Browser::start().await;
    browser.open(&server.url(page)).await;
    browser.until(CONNECTED).await;
    if page == "/" {
        browser.until("document.getElementById('cart-container').hidden && document.getElementById('cart-container').innerHTML === ''").await;
    }
    browser.until("document.querySelector('.cart-item') === null").await;
    server.release(1).await;
    server.release(2).await;
    // Size 6 of the first, and size 10 of the second.
    add(&browser, 1).await;
    has(&browser, json!([1])).await;
    add(&browser, 11).await;
    has(&browser, json!([1, 11])).await;
    browser.until("document.querySelector('.cart').textContent.includes('<img src=x')").await;
    remove(&browser, 11).await;
    has(&browser, json!([1])).await;
    browser.open("about:blank").await;
    browser.open(&server.url(other)).await;
    has(&browser, json!([1])).await;
    if other == "/app/cart" {
        browser.open(&server.url(page)).await;
    }

    let first = browser.client.window().await.unwrap();
    browser.tab(&server.url(page)).await;
    let second = browser.client.window().await.unwrap();
    has(&browser, json!([1])).await;
    remove(&browser, 1).await;
    has(&browser, json!([])).await;
    browser.until("document.getElementById('cart-container').hidden").await;
    browser.look_at(&first).await;
    has(&browser, json!([])).await;
    browser.until(CONNECTED).await;
    for (item, cart) in
        [(1, json!([1])), (2, json!([1, 2])), (7, json!([1, 2, 7])), (8, json!([1, 2, 7, 8]))]
    {
        add(&browser, item).await;
        has(&browser, cart).await;
    }
    // One more is too many, and an item that is in the cart is not added again.
    add(&browser, 3).await;
    browser.until("document.querySelector('#notices').textContent.includes('cart is full')").await;
    add(&browser, 1).await;
    browser
        .until("document.querySelector('#notices').textContent.includes('in your cart already')")
        .await;

    // What is sold out is grey, and can be removed and replaced.
    server.stock(8, 0).await;
    let grey =
        "[...document.querySelectorAll('.cart-item--out')].map(it => Number(it.dataset.itemId))";
    browser.becomes(grey, &json!([8])).await;
    remove(&browser, 8).await;
    has(&browser, json!([1, 2, 7])).await;
    add(&browser, 9).await;
    has(&browser, json!([1, 2, 7, 9])).await;

    let before = [1, 2, 7, 9].map(|item| server.count(item));
    let checkout = browser.run("return document.querySelector('.cart__checkout').href").await;
    browser.open(checkout.as_str().unwrap()).await;
    let lines =
        "[...document.querySelectorAll('.checkout-line')].map(it => Number(it.dataset.itemId))";
    browser.becomes(lines, &json!([1, 2, 7, 9])).await;
    browser.until("document.querySelector('.checkout__total').textContent.includes('$700')").await;
    // The cart is on this page, too.
    has(&browser, json!([1, 2, 7, 9])).await;
    browser.run("document.querySelector('.checkout__form button').click()").await;
    browser.until("location.pathname === '/checkout/complete'").await;
    has(&browser, json!([])).await;
    assert_eq!([1, 2, 7, 9].map(|item| server.count(item)), before.map(|count| count - 1));
    browser.look_at(&second).await;
    has(&browser, json!([])).await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    has(&browser, json!([])).await;
    browser.until("window.struck === undefined").await;
    browser.close().await;
}

#[tokio::test]
async fn a_100_what_was_bought_is_in_no_tab_any_more() {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    let first = browser.client.window().await.unwrap();
    browser.tab(&server.url("/drops")).await;
    browser.until(CONNECTED).await;
    let second = browser.client.window().await.unwrap();
    browser.tab(&server.url("/app/cart")).await;
    browser.until(CONNECTED).await;
    let third = browser.client.window().await.unwrap();
    browser.look_at(&first).await;
    add(&browser, 1).await;
    add(&browser, 2).await;
    for tab in [&third, &second, &first] {
        browser.look_at(tab).await;
        has(&browser, json!([1, 2])).await;
    }
    let checkout = browser.run("return document.querySelector('.cart__checkout').href").await;
    browser.open(checkout.as_str().unwrap()).await;
    browser.click(".checkout__form button").await;
    browser.until("location.pathname === '/checkout/complete'").await;
    for tab in [&second, &third, &first] {
        browser.look_at(tab).await;
        has(&browser, json!([])).await;
    }
    // What is stored has no items, and a page that is loaded again gets none.
    let stored = browser.run("return localStorage.storedCart ?? ''").await;
    let shop = &server.shop;
    let cart = Cart::restore(stored.as_str(), &shop.rules, shop.clock.now(), |_| true);
    assert!(cart.is_empty(), "{cart:?}");
    for (tab, path) in [(&second, "/drops"), (&third, "/app/cart"), (&first, "/")] {
        browser.look_at(tab).await;
        browser.open(&server.url(path)).await;
        browser.until(CONNECTED).await;
        has(&browser, json!([])).await;
    }
    browser.close().await;
}

/// Also shows A-011: in a browser, and on the dashboard too.
#[tokio::test]
async fn hostile_texts_of_products_are_text_on_every_page() {
    const HOSTILE: &str = "<img src=x onerror=\"window.struck = true\">";
    let mut products: Vec<_> = seed(23).products().map(|product| Product::clone(product)).collect();
    let mut items: Vec<_> = seed(23).items().map(|item| Item::clone(item)).collect();
    for product in &mut products {
        for text in [&mut product.name, &mut product.brand, &mut product.color] {
            HOSTILE.clone_into(text);
        }
    }
    for item in &mut items {
        item.size = format!("{}{HOSTILE}", item.size);
    }
    let server = Server::with(Catalogue::new(products, items)).await;
    let (shopper, admin) = tokio::join!(Browser::start(), Browser::start());
    let is_text = "document.body.textContent.includes('<img src=x onerror=')
        && document.querySelector('img[src=\"x\"]') === null && window.struck === undefined";
    admin.open(&server.admin_url()).await;
    shopper.open(&server.url("/")).await;
    shopper.until(CONNECTED).await;
    server.release(1).await;
    for path in FRONT_ENDS {
        shopper.open(&server.url(path)).await;
        shopper.until(CONNECTED).await;
        shopper.until("document.querySelector('button[value=\"1\"]') !== null").await;
        shopper.until(is_text).await;
    }
    add(&shopper, 1).await;
    has(&shopper, json!([1])).await;
    shopper.until(is_text).await;
    admin.becomes(NUMBERS, &json!([1, {"/app/drops": 1}, {"1": 1}])).await;
    admin.until(is_text).await;
    let checkout = shopper.run("return document.querySelector('.cart__checkout').href").await;
    shopper.open(checkout.as_str().unwrap()).await;
    shopper.until("document.querySelector('.checkout-line') !== null").await;
    shopper.until(is_text).await;
    shopper.close().await;
    admin.close().await;
}

/// The numbers of the dashboard: shoppers, pages, and the items that are in carts.
pub(crate) const NUMBERS: &str = "[
    Number(document.getElementById('shopper-count').textContent),
    Object.fromEntries([...document.querySelectorAll('[data-page-count]')].map(it => [it.dataset.pageCount, Number(it.textContent)])),
    Object.fromEntries([...document.querySelectorAll('[data-item-count]')].filter(it => it.textContent !== '0').map(it => [it.dataset.itemCount, Number(it.textContent)])),
]";

/// Also shows A-117. Two nodes are in another test.
#[tokio::test]
async fn t_032_the_dashboard_shows_who_is_where_with_what() {
    let server = Server::start().await;
    server.release(1).await;
    let (admin, ada, ben) = tokio::join!(Browser::start(), Browser::start(), Browser::start());
    admin.open(&server.admin_url()).await;
    admin.becomes(NUMBERS, &json!([0, {}, {}])).await;

    ada.open(&server.url("/")).await;
    admin.becomes(NUMBERS, &json!([1, {"/": 1}, {}])).await;
    let first = ada.client.window().await.unwrap();
    ada.tab(&server.url("/drops")).await;
    admin.becomes(NUMBERS, &json!([1, {"/": 1, "/drops": 1}, {}])).await;
    ben.open(&server.url("/")).await;
    admin.becomes(NUMBERS, &json!([2, {"/": 2, "/drops": 1}, {}])).await;

    add(&ada, 1).await;
    admin.becomes(NUMBERS, &json!([2, {"/": 2, "/drops": 1}, {"1": 1}])).await;
    add(&ben, 1).await;
    add(&ben, 2).await;
    admin.becomes(NUMBERS, &json!([2, {"/": 2, "/drops": 1}, {"1": 2, "2": 1}])).await;
    let metas = "Object.values(window.presence.state).map(({metas}) => metas.map(meta =>
        [meta.page, meta.items.length, Number.isInteger(meta.page_loaded_at), typeof meta.phx_ref_prev]).sort()).sort()";
    let expected = json!([
        [["/", 1, true, "string"], ["/drops", 1, true, "string"]],
        [["/", 2, true, "string"]],
    ]);
    admin.becomes(metas, &expected).await;
    remove(&ben, 1).await;
    admin.becomes(NUMBERS, &json!([2, {"/": 2, "/drops": 1}, {"1": 1, "2": 1}])).await;
    // No key is a cart's id, which would open it.
    let id = ada.run("return window.cartId").await;
    let keys = admin.run("return Object.keys(window.presence.state)").await;
    assert!(!keys.as_array().unwrap().contains(&id));

    let checkout = ben.run("return document.querySelector('.cart__checkout').href").await;
    ben.open(checkout.as_str().unwrap()).await;
    admin
        .becomes(NUMBERS, &json!([2, {"/": 1, "/checkout": 1, "/drops": 1}, {"1": 1, "2": 1}]))
        .await;
    ada.client.close_window().await.unwrap();
    ada.look_at(&first).await;
    admin.becomes(NUMBERS, &json!([2, {"/": 1, "/checkout": 1}, {"1": 1, "2": 1}])).await;
    ada.close().await;
    admin.becomes(NUMBERS, &json!([1, {"/checkout": 1}, {"2": 1}])).await;

    // An item that the page has no place for changes nothing else.
    admin.run("document.querySelector('[data-item-count=\"1\"]').remove()").await;
    ben.open(&server.url("/")).await;
    add(&ben, 1).await;
    admin.becomes(NUMBERS, &json!([1, {"/": 1}, {"2": 1}])).await;
    ben.until("document.querySelectorAll('.cart-item').length === 2").await;
    remove(&ben, 2).await;
    admin.becomes(NUMBERS, &json!([1, {"/": 1}, {}])).await;
    ben.close().await;
    admin.becomes(NUMBERS, &json!([0, {}, {}])).await;

    // The button releases without a reload.
    admin.run("window.stays = true").await;
    admin.click("section[data-product-id=\"2\"] .admin-product__release button").await;
    admin
        .until("document.querySelectorAll('.admin-product__state').length === 2 && window.stays")
        .await;
    assert!(server.shop.inventory.snapshot().unwrap().product(2).unwrap().released);
    admin.close().await;
}
