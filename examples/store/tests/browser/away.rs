//! Pages that are away for a while, and pages that never come.

use std::time::Duration;

use serde_json::json;
use store::{clock::Clock, database::seed::seed};
use tokio::time::{Instant, sleep};

use crate::{
    CONNECTED, CUT_OFF, PAGES, card, driver::Browser, server::Server, shopping::NUMBERS, sizes,
    soon,
};

/// Also shows A-127 and P-002. The machines of a shopper and an admin sleep until the server misses them. It starts again an
/// hour later, by its clock.
#[tokio::test]
async fn t_020_pages_that_slept_are_right_when_they_wake() {
    // The client says that it is there every 30 seconds.
    let server = Server::with_idle_timeout(seed(23), Duration::from_secs(35)).await;
    server.release(2).await;
    let (shopper, admin) = tokio::join!(Browser::start(), Browser::start());
    shopper.open(&server.url("/")).await;
    shopper.until(CONNECTED).await;
    shopper.click("button[value=\"7\"]").await;
    shopper.until("document.querySelectorAll('.cart-item').length === 1").await;
    admin.open(&server.admin_url()).await;
    admin.becomes(NUMBERS, &json!([1, {"/": 1}, {"7": 1}])).await;
    shopper.run("window.stays = true").await;
    admin.run("window.stays = true").await;

    shopper.freeze();
    admin.freeze();
    let frozen = Instant::now();
    while server.carts().await > 0 {
        assert!(frozen.elapsed() < Duration::from_secs(120), "the server does not miss the page");
        sleep(Duration::from_millis(100)).await;
    }
    let server = server.stop().await.start_after(Duration::from_secs(3600)).await;
    server.release(1).await;
    server.stock(7, 0).await;
    shopper.thaw();
    admin.thaw();

    shopper.becomes(&card(1), &sizes()).await;
    let mut changed = sizes();
    changed[0] = json!("6 out disabled");
    shopper.becomes(&card(2), &changed).await;
    shopper.until("document.querySelectorAll('.cart-item--out').length === 1").await;
    shopper.until(CONNECTED).await;
    shopper.until("window.stays").await;
    // The server has forgotten who was there, and the shopper is there again.
    admin.becomes(NUMBERS, &json!([1, {"/": 1}, {"7": 1}])).await;
    shopper.open("about:blank").await;
    admin.becomes(NUMBERS, &json!([0, {}, {}])).await;
    admin.until("window.stays").await;
    shopper.close().await;
    admin.close().await;
}

/// Also shows A-123 and T-019: cuts of 1, 5 and 30 seconds, side by side. The release comes before the page is back.
#[tokio::test]
async fn a_page_is_right_after_a_cut_of_any_length() {
    for path in PAGES {
        tokio::join!(cut(path, 1), cut(path, 5), cut(path, 30));
    }
}

async fn cut(path: &str, seconds: u64) {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.open(&server.url(path)).await;
    browser.until(CONNECTED).await;
    browser.becomes(&card(1), &soon()).await;
    browser.run("window.stays = true").await;
    let stopped = server.stop().await;
    browser.until(CUT_OFF).await;
    sleep(Duration::from_secs(seconds)).await;
    browser.becomes(&card(1), &soon()).await;
    let server = stopped.start(Clock::wall()).await;
    server.release(1).await;
    browser.becomes(&card(1), &sizes()).await;
    browser.until(CONNECTED).await;
    server.release(2).await;
    browser.becomes(&card(2), &sizes()).await;
    browser.until("window.stays").await;
    browser.close().await;
}

#[tokio::test]
async fn t_024_a_page_notices_nothing_of_stages_that_are_killed() {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.record().await;
    browser.open(&server.url("/")).await;
    browser.until(CONNECTED).await;
    browser.becomes(&card(1), &soon()).await;
    server.kill_stages().await;
    server.release(1).await;
    browser.becomes(&card(1), &sizes()).await;
    // While there is something to tell.
    server.stock(1, 0).await;
    server.kill_stages().await;
    let mut changed = sizes();
    changed[0] = json!("6 out disabled");
    browser.becomes(&card(1), &changed).await;
    browser
        .becomes("[window.seen.sockets, window.seen.frames.includes('close')]", &json!([1, false]))
        .await;
    browser.until("document.querySelector('#connection').hidden").await;
    browser.close().await;
}

/// A socket that never opens.
const NEVER: &str = "window.WebSocket = class { readyState = 0; close() {}; send() {} }";

#[tokio::test]
async fn a_138_a_page_that_is_not_connected_stays_as_it_is_until_it_is_loaded_again() {
    let browser = Browser::start().await;
    for is_off in [true, false] {
        let server = Server::start().await;
        if is_off {
            browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true})).await;
        } else {
            browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": false})).await;
            let source = json!({"source": NEVER});
            browser.devtools("Page.addScriptToEvaluateOnNewDocument", source).await;
        }
        browser.open(&server.url("/drops")).await;
        browser.becomes(&card(1), &soon()).await;
        // Another visitor, who is connected, has seen it.
        let other = Browser::start().await;
        other.open(&server.url("/drops")).await;
        other.until(CONNECTED).await;
        server.release(1).await;
        other.becomes(&card(1), &sizes()).await;
        browser.becomes(&card(1), &soon()).await;
        browser.open(&server.url("/drops")).await;
        browser.becomes(&card(1), &sizes()).await;
        other.close().await;
    }
    browser.close().await;
}
