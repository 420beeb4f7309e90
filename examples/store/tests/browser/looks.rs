//! How the pages look: on phones, in the dark, and to readers with weak eyes.

use pipeline_test_support::FAINT_TEXTS;
use serde_json::json;

use crate::{CONNECTED, PAGES, driver::Browser, server::Server};

/// What is wrong for readers who do not see the page: pictures without a text, controls without a name, and more.
const UNREADABLE: &str = "[
    ...[...document.images].filter(it => !it.hasAttribute('alt')).map(it => it.src),
    ...[...document.querySelectorAll('button, a')].filter(it => it.checkVisibility() && !(it.getAttribute('aria-label') ?? it.textContent).trim()).map(it => it.outerHTML),
    ...(document.querySelectorAll('h1').length === 1 ? [] : ['one h1']),
    ...(document.querySelectorAll('main').length === 1 ? [] : ['one main']),
    ...(document.documentElement.lang ? [] : ['lang']),
]";

#[tokio::test]
async fn pages_fit_a_phone_and_can_be_read_in_light_and_dark() {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    browser.narrow(844).await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    browser.click("button[value=\"1\"]").await;
    browser.click("button[value=\"2\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 2").await;
    server.stock(2, 0).await;
    browser.until("document.querySelectorAll('.cart-item--out').length === 1").await;
    let checkout = browser.run("return document.querySelector('.cart__checkout').href").await;
    let checkout = checkout.as_str().unwrap().to_owned();
    let pages = [
        server.url("/"),
        server.url("/drops"),
        server.url("/app"),
        server.url("/app/drops"),
        server.url("/app/feed"),
        server.url("/app/cart"),
        checkout,
        server.admin_url(),
    ];
    for page in &pages {
        browser.open(page).await;
        browser
            .until("document.fonts.status === 'loaded' && document.querySelector('main') !== null")
            .await;
        browser.becomes("document.documentElement.scrollWidth <= innerWidth", &json!(true)).await;
        browser.becomes(UNREADABLE, &json!([])).await;
        for colors in ["light", "dark"] {
            browser.prefers(colors).await;
            browser.becomes(FAINT_TEXTS, &json!([])).await;
        }
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn a_cart_is_filled_and_emptied_with_the_keyboard() {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    let press = async |key: &str| {
        let active = browser.client.active_element().await.unwrap();
        active.send_keys(key).await.unwrap();
    };
    // The first stop is the way past the masthead.
    browser
        .client
        .find(fantoccini::Locator::Css("body"))
        .await
        .unwrap()
        .send_keys("\u{e004}")
        .await
        .unwrap();
    browser.until("document.activeElement.classList.contains('skip')").await;
    browser.run("document.querySelector('button[value=\"1\"]').focus()").await;
    press("\u{e007}").await;
    browser.until("document.querySelectorAll('.cart-item').length === 1").await;
    press("\u{e004}").await;
    browser.until("document.activeElement.value === '2'").await;
    press(" ").await;
    browser.until("document.querySelectorAll('.cart-item').length === 2").await;
    browser.until("document.querySelector('button[value=\"2\"]').getAttribute('aria-label') === 'Size 7, few left'").await;
    // Removing with the keyboard leaves the focus on the next line, and at the end on the page.
    browser.run("document.querySelector('.cart-item__remove').focus()").await;
    press("\u{e007}").await;
    browser.until("document.querySelectorAll('.cart-item').length === 1").await;
    browser.until("document.activeElement.classList.contains('cart-item__remove')").await;
    press("\u{e007}").await;
    browser.until("document.querySelectorAll('.cart-item').length === 0").await;
    browser.until("document.activeElement.id === 'content'").await;
    browser.close().await;
}

/// The line that has the focus is removed, or another one, in this tab or in another, which the server says as one event.
#[tokio::test]
async fn the_focus_stays_in_the_cart_whichever_tab_removes_a_line() {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    for path in PAGES {
        browser.open(&server.url(path)).await;
        browser.until(CONNECTED).await;
        for item in [1, 2, 3, 5] {
            browser.click(&format!("button[value=\"{item}\"]")).await;
            let is_in = format!("document.querySelector('[data-item-id=\"{item}\"]') !== null");
            browser.until(&is_in).await;
        }
        browser.until("document.querySelectorAll('.cart-item').length === 4").await;
        let id = browser.run("return window.cartId").await;
        let topic = format!("cart:{}", id.as_str().unwrap());
        let other_tab_removes = |item: i64| {
            let removed = json!({ "added": [], "removed": [item] });
            server.say(&topic, "cart_updated", removed);
        };
        let focused = "document.activeElement.closest('.cart-item')?.dataset.itemId
            ?? (document.activeElement.id || document.activeElement.className)";
        let lines = async |count: usize| {
            let shown = "document.querySelectorAll('.cart-item').length";
            browser.becomes(shown, &json!(count)).await;
        };
        let focus = async |selector: &str| {
            browser.run(&format!("document.querySelector('{selector}').focus()")).await;
        };
        // A line before it goes: it stays on its own.
        focus(".cart-item__remove[data-item-id=\"3\"]").await;
        browser.becomes(focused, &json!("3")).await;
        other_tab_removes(1);
        lines(3).await;
        browser.becomes(focused, &json!("3")).await;
        // Its own line goes: it is on the next one, and on the one before if there is none.
        other_tab_removes(3);
        lines(2).await;
        browser.becomes(focused, &json!("5")).await;
        browser.click(".cart-item__remove[data-item-id=\"5\"]").await;
        lines(1).await;
        browser.becomes(focused, &json!("2")).await;
        if path == "/" {
            focus(".cart__summary").await;
            server.stock(2, 0).await;
            browser.until("document.querySelectorAll('.cart-item--out').length === 1").await;
            browser.becomes(focused, &json!("cart__summary")).await;
            server.stock(2, 50).await;
        }
        other_tab_removes(2);
        lines(0).await;
        browser.becomes(focused, &json!("content")).await;
        // What is elsewhere stays there.
        browser.click("button[value=\"1\"]").await;
        lines(1).await;
        focus("button[value=\"2\"]").await;
        other_tab_removes(1);
        lines(0).await;
        browser.becomes("document.activeElement.value", &json!("2")).await;
    }
    browser.close().await;
}

/// Takes the pictures of the README, if an output folder is set.
#[tokio::test]
async fn pictures_of_the_pages_can_be_taken() {
    let server = Server::start().await;
    server.release(1).await;
    let (browser, admin) = tokio::join!(Browser::start(), Browser::start());
    let folder = std::env::var_os("STORE_PICTURES").map(std::path::PathBuf::from);
    let take = async |browser: &Browser, name: &str| {
        browser.until("document.fonts.status === 'loaded' && [...document.images].every(it => it.complete)").await;
        let picture = browser.client.screenshot().await.unwrap();
        assert!(picture.starts_with(b"\x89PNG"), "{name}");
        if let Some(folder) = &folder {
            std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
        }
    };
    for page in [&browser, &admin] {
        page.prefers("light").await;
    }
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    take(&browser, "drops-wide").await;
    browser.click("button[value=\"1\"]").await;
    browser.click("button[value=\"5\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 2").await;
    server.stock(5, 0).await;
    browser.until("document.querySelectorAll('.cart-item--out').length === 1").await;
    browser.prefers("dark").await;
    take(&browser, "cart-dark").await;
    browser.prefers("light").await;
    admin.open(&server.admin_url()).await;
    admin.until("document.getElementById('shopper-count').textContent === '1'").await;
    take(&admin, "dashboard").await;
    let checkout = browser.run("return document.querySelector('.cart__checkout').href").await;
    browser.narrow(844).await;
    browser.open(&server.url("/")).await;
    browser.until("document.querySelectorAll('.cart-item').length === 2").await;
    take(&browser, "drops-narrow").await;
    browser.run("document.querySelector('details').open = true").await;
    take(&browser, "cart-narrow").await;
    browser.open(checkout.as_str().unwrap()).await;
    browser.until(CONNECTED).await;
    take(&browser, "checkout-narrow").await;
    browser.close().await;
    admin.close().await;
}
