//! The pages in a real browser, by shoppers and admins with several tabs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod app;
mod away;
mod driver;
mod looks;
mod server;
mod shopping;
mod wire;

use std::time::Duration;

use serde_json::json;
use store::clock::Clock;
use tokio::time::sleep;

use self::{driver::Browser, server::Server};

/// The front ends of the shop's page.
const FRONT_ENDS: [&str; 3] = ["/", "/drops", "/app/drops"];

/// The pages whose own script follows products: the plain one and that of React. What holds for the first holds for the second
/// too, which is A-135.
const PAGES: [&str; 2] = ["/", "/app/drops"];

/// Whether the page is connected, and its cart is there.
const CONNECTED: &str =
    "document.querySelector('#connection').hidden && localStorage.storedCart !== undefined";

/// Whether the page says that it is cut off.
const CUT_OFF: &str = "!document.querySelector('#connection').hidden";

/// What the card of a product says: that it comes soon, or its sizes with their levels.
fn card(product: i64) -> String {
    format!(
        "(card => card?.querySelector('.product-soon-{product}')?.textContent
            ?? [...card?.querySelectorAll('.size-container__entry') ?? []].map(it =>
                it.textContent + ' ' + it.className.match(/--level-([a-z]+)/)[1] + (it.disabled ? ' disabled' : ''))
        )(document.querySelector('.product-listing[data-product-id=\"{product}\"]'))"
    )
}

/// The sizes of a released product of the seed.
fn sizes() -> serde_json::Value {
    json!(["6 medium", "7 low", "8 high", "9 out disabled", "10 low", "11 high"])
}

fn soon() -> serde_json::Value {
    json!("coming soon...")
}

/// Also shows T-010, T-013 and A-038.
#[tokio::test]
async fn t_011_a_release_shows_the_sizes_of_its_product_alone() {
    let browser = Browser::start().await;
    for path in FRONT_ENDS {
        let server = Server::start().await;
        browser.open(&server.url(path)).await;
        assert_eq!(browser.client.title().await.unwrap(), "Sneakers23", "{path}");
        browser.becomes(&card(1), &soon()).await;
        browser.becomes(&card(2), &soon()).await;
        browser.until(CONNECTED).await;
        server.release(2).await;
        browser.becomes(&card(2), &sizes()).await;
        browser.becomes(&card(1), &soon()).await;
        browser
            .until("document.querySelector('[data-product-id=\"1\"] .size-container') === null")
            .await;
        browser
            .until("document.querySelector('[data-product-id=\"2\"] .product-soon') === null")
            .await;
        assert_eq!(browser.complaints().await, Vec::<String>::new(), "{path}");
        // A page that outlives its server says so in the console.
        browser.open("about:blank").await;
    }
    browser.close().await;
}

/// Also shows A-140.
#[tokio::test]
async fn t_012_a_size_that_sells_out_cannot_be_clicked_any_more() {
    let browser = Browser::start().await;
    for path in FRONT_ENDS {
        let server = Server::start().await;
        server.stock(7, 5).await;
        server.release(2).await;
        browser.open(&server.url(path)).await;
        let level = "(it => it && [it.className.includes('--level-low'), it.className.includes('--level-out'), it.disabled])
            (document.querySelector('button[value=\"7\"]'))";
        browser.becomes(level, &json!([true, false, false])).await;
        browser.until(CONNECTED).await;
        server.stock(7, 0).await;
        browser.becomes(level, &json!([false, true, true])).await;
        server.stock(7, 5).await;
        browser.becomes(level, &json!([true, false, false])).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new(), "{path}");
        // A page that outlives its server says so in the console.
        browser.open("about:blank").await;
    }
    browser.close().await;
}

#[tokio::test]
async fn a_040_every_place_of_a_product_gets_its_sizes_once_and_they_work_at_once() {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    browser
        .run(
            "const again = document.querySelector('.product-soon-1').cloneNode(true)
              document.querySelector('main').append(again)",
        )
        .await;
    server.release(1).await;
    let places = "[document.querySelectorAll('.product-soon-1').length, document.querySelectorAll('.size-container').length]";
    browser.becomes(places, &json!([0, 2])).await;
    browser.until("document.querySelectorAll('button[value=\"4\"]:disabled').length === 2").await;
    let colors = "new Set([1, 2, 3, 4].map(id => getComputedStyle(document.querySelector(`button[value=\"${id}\"]`)).borderColor
        + getComputedStyle(document.querySelector(`button[value=\"${id}\"]`), '::after').content)).size";
    browser.becomes(colors, &json!(4)).await;
    browser.click("button[value=\"1\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 1").await;
    // A second one finds no place. What it would draw is not on the page.
    server.say("product:1", "released", json!({"size_html": "<p id=\"twice\"></p>", "rev": 99}));
    server.say(
        "product:1",
        "stock_change",
        json!({"product_id": 1, "item_id": 2, "level": "out", "rev": 99}),
    );
    browser.until("document.querySelectorAll('button[value=\"2\"]:disabled').length === 2").await;
    browser.becomes(places, &json!([0, 2])).await;
    browser.until("document.getElementById('twice') === null").await;
    browser.close().await;
}

/// Also shows A-044.
#[tokio::test]
async fn a_043_a_level_changes_one_size_and_nothing_else_of_it() {
    let browser = Browser::start().await;
    for path in ["/", "/app/drops"] {
        let server = Server::start().await;
        server.release(1).await;
        browser.open(&server.url(path)).await;
        browser.until(CONNECTED).await;
        browser.becomes(&card(1), &sizes()).await;
        let level = |item: i64, level: &str, rev: i64| {
            server.say(
                "product:1",
                "stock_change",
                json!({"product_id": 1, "item_id": item, "level": level, "rev": rev}),
            );
        };
        let shows = |size_6: &str| {
            let mut sizes = sizes();
            sizes[0] = json!(format!("6 {size_6}"));
            sizes
        };
        browser.run("document.querySelector('button[value=\"1\"]').classList.add('mine')").await;
        level(1, "low", 10);
        browser.becomes(&card(1), &shows("low")).await;
        if path == "/" {
            browser
                .until("document.querySelector('button[value=\"1\"]').classList.contains('mine')")
                .await;
        }
        level(1, "out", 11);
        browser.becomes(&card(1), &shows("out disabled")).await;
        level(1, "high", 12);
        browser.becomes(&card(1), &shows("high")).await;
        // An older one changes nothing. The next one of another size shows that it has arrived.
        level(1, "out", 11);
        level(2, "out", 50);
        let mut late = shows("high");
        late[1] = json!("7 out disabled");
        browser.becomes(&card(1), &late).await;
    }
    browser.close().await;
}

/// Also shows. The page is cut off for a moment, and for 12 s, in which the client's
/// delays have become as long as they get.
#[tokio::test]
async fn t_019_a_page_that_was_cut_off_is_right_again_without_a_reload() {
    tokio::join!(is_cut_off(PAGES[0]), is_cut_off(PAGES[1]));
}

async fn is_cut_off(path: &str) {
    let server = Server::start().await;
    server.release(2).await;
    let browser = Browser::start().await;
    browser.open(&server.url(path)).await;
    browser.until(CONNECTED).await;
    browser.becomes(&card(1), &soon()).await;
    browser.run("window.stays = true").await;

    // For a moment. The release comes after the page is back.
    let stopped = server.stop().await;
    browser.until(CUT_OFF).await;
    browser.becomes(&card(1), &soon()).await;
    let server = stopped.start(Clock::wall()).await;
    browser.until(CONNECTED).await;
    server.stock(7, 600).await;
    let mut changed = sizes();
    changed[0] = json!("6 high");
    browser.becomes(&card(2), &changed).await;

    // For longer than a click waits for its answer. The release comes before the page is back.
    let stopped = server.stop().await;
    browser.until(CUT_OFF).await;
    browser.click("button[value=\"8\"]").await;
    browser.until("document.querySelector('.notice--error')?.textContent.includes('did not answer') ?? false").await;
    let server = stopped.start(Clock::wall()).await;
    server.release(1).await;
    server.stock(7, 0).await;
    browser.until(CONNECTED).await;
    browser.becomes(&card(1), &sizes()).await;
    changed[0] = json!("6 out disabled");
    browser.becomes(&card(2), &changed).await;
    // The click has ended with its error. A new one is one item.
    browser.until("document.querySelector('.cart-item') === null").await;
    browser.click("button[value=\"9\"]").await;
    let cart = "[...document.querySelectorAll('.cart-item__remove')].map(it => it.dataset.itemId)";
    browser.becomes(cart, &json!(["9"])).await;
    browser.until("window.stays").await;
    browser.close().await;
}

#[tokio::test]
async fn a_125_a_page_that_is_open_for_longer_than_its_token_joins_again_with_its_cart() {
    for path in PAGES {
        outlives_its_token(path).await;
    }
}

async fn outlives_its_token(path: &str) {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    browser.open(&server.url(path)).await;
    browser.until(CONNECTED).await;
    browser.click("button[value=\"1\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 1").await;
    browser.run("window.stays = true; window.first = localStorage.storedCart").await;
    let server = server.stop().await.start_after(Duration::from_secs(2 * 86_400)).await;
    // A cart is signed anew with each join.
    browser.until("localStorage.storedCart !== window.first").await;
    browser.click("button[value=\"2\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 2").await;
    browser.until("window.stays").await;
    drop(server);
    browser.close().await;
}

/// Also shows A-126. The events of a page that the browser has kept are sent by the test. The joins bring what has
/// changed, so the page is right without the header that forbids keeping it, too.
#[tokio::test]
async fn t_018_the_page_is_right_after_the_back_button() {
    for path in PAGES {
        goes_and_comes_back(path).await;
    }
}

async fn goes_and_comes_back(path: &str) {
    let (server, elsewhere) = (Server::start().await, Server::start().await);
    let browser = Browser::start().await;
    browser.open(&server.url(path)).await;
    browser.until(CONNECTED).await;
    server.release(1).await;
    browser.becomes(&card(1), &sizes()).await;
    browser.open(&elsewhere.url("/checkout/complete")).await;
    server.release(2).await;
    browser.client.back().await.unwrap();
    browser.becomes(&card(1), &sizes()).await;
    browser.becomes(&card(2), &sizes()).await;

    // A page that the browser has kept says so. It hears nothing while it is hidden.
    browser.until(CONNECTED).await;
    browser
        .run("window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
        .await;
    sleep(Duration::from_millis(50)).await;
    server.stock(1, 0).await;
    browser
        .run("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
        .await;
    let mut changed = sizes();
    changed[0] = json!("6 out disabled");
    browser.becomes(&card(1), &changed).await;
    browser.until(CONNECTED).await;
    browser.close().await;
}
