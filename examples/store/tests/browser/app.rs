//! Which sockets and channels the front ends open, and when.

use std::time::Duration;

use serde_json::json;

use crate::{CONNECTED, CUT_OFF, card, driver::Browser, server::Server, sizes, soon};

/// What was sent, without the cart's id. The joins of one moment come in any order.
const FRAMES: &str = "window.seen.frames.map(frame => frame.replace(/cart:.*/, 'cart')).sort()";

/// The items that the page shows in the cart.
const CART: &str =
    "[...document.querySelectorAll('.cart-item__remove')].map(it => Number(it.dataset.itemId))";

async fn go(browser: &Browser, path: &str) {
    browser.click(&format!(".app-nav a[href=\"{path}\"]")).await;
    browser.until(&format!("location.pathname === '{path}'")).await;
}

/// Forgets what was sent until now.
async fn forget(browser: &Browser) {
    browser.run("window.seen.frames = []").await;
}

/// Also shows.
#[tokio::test]
async fn a_129_a_socket_lives_as_long_as_the_routes_that_need_it() {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.record().await;
    browser.open(&server.url("/app")).await;
    browser.until("document.querySelector('.app-home') !== null").await;
    browser.becomes("window.seen.sockets", &json!(0)).await;

    go(&browser, "/app/drops").await;
    let joins = json!(["open", "phx_join cart", "phx_join product:1", "phx_join product:2"]);
    browser.becomes(FRAMES, &joins).await;
    browser.until(CONNECTED).await;
    forget(&browser).await;

    go(&browser, "/app/feed").await;
    server.release(1).await;
    server.stock(1, 0).await;
    browser.until("document.querySelectorAll('.feed__line--out').length === 1").await;
    go(&browser, "/app/count").await;
    server.stock(1, 5).await;
    browser.becomes("document.getElementById('message-count')?.textContent", &json!("1")).await;
    browser.becomes(FRAMES, &json!([])).await;

    go(&browser, "/app/drops").await;
    let mut changed = sizes();
    changed[0] = json!("6 low");
    browser.becomes(&card(1), &changed).await;
    browser.becomes(FRAMES, &json!([])).await;
    browser.click("button[value=\"2\"]").await;
    browser.becomes(CART, &json!([2])).await;
    forget(&browser).await;

    // The cart's channel stays joined, so nothing comes from the server that the page of the cart could show.
    go(&browser, "/app/cart").await;
    browser.becomes("document.querySelector('h1').textContent", &json!("Your cart")).await;
    browser.becomes(CART, &json!([2])).await;
    browser.becomes(FRAMES, &json!(["phx_leave product:1", "phx_leave product:2"])).await;
    forget(&browser).await;
    browser.click(".cart-item__remove").await;
    browser.becomes(CART, &json!([])).await;
    browser.becomes(FRAMES, &json!(["remove_item cart"])).await;
    browser.becomes("window.seen.sockets", &json!(1)).await;
    forget(&browser).await;
    go(&browser, "/app").await;
    browser.becomes(FRAMES, &json!(["close", "phx_leave cart"])).await;

    // A hundred rounds leave nothing. The first one shows what stays for as long as the page does.
    let rounds = "
        const [rounds, done] = arguments
        const wait = async (until) => { while (!until()) await new Promise(next => setTimeout(next, 1)) }
        const click = (path) => document.querySelector(`.app-nav a[href=\"${path}\"]`).click()
        const seen = window.seen
        const round = async () => {
            seen.frames = []
            click('/app/drops')
            await wait(() => seen.frames.filter(it => it.startsWith('phx_join')).length === 3)
            click('/app')
            await wait(() => seen.frames.includes('close'))
            return seen.frames.length
        }
        const all = async () => {
            let frames = 0
            for (let i = 0; i < rounds; i += 1) frames += await round()
            return frames
        }
        all().then(done)";
    let walk =
        async |count: u64| browser.client.execute_async(rounds, vec![json!(count)]).await.unwrap();
    let rest = "[window.seen.listeners, window.seen.timers.size]";
    assert_eq!(walk(1).await, json!(8));
    let mut before = browser.run(&format!("return {rest}")).await;
    // A timer of the client may still run when the round has ended.
    before[1] = json!(0);
    for _ in 0..20 {
        // One opened, three joined, three left, one closed. A short call, for a driver does not wait for long.
        assert_eq!(walk(5).await, json!(40));
    }
    browser.becomes(rest, &before).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn a_134_a_socket_at_the_root_is_open_on_every_route() {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.record().await;
    browser.open(&server.url("/app?socket=root")).await;
    browser.becomes(FRAMES, &json!(["open"])).await;
    for path in ["/app/drops", "/app/cart", "/app", "/app/count", "/app"] {
        go(&browser, path).await;
    }
    browser
        .until("window.seen.frames.filter(it => it.startsWith('phx_leave cart')).length === 2")
        .await;
    browser
        .becomes("[window.seen.sockets, window.seen.frames.includes('close')]", &json!([1, false]))
        .await;
    browser.close().await;
}

/// What holds for the plain page holds for `/app/drops`. The tests of rows go through both pages: A-038 in T-011, A-042 in T-012,
/// the cart of in T-029, A-046, A-047 and in T-019, A-125, and A-126
/// in T-018. Here is all of it in one go, with. What the server alone does, such as A-048, is the same for all
/// pages.
#[tokio::test]
async fn a_135_the_react_page_does_what_the_plain_one_does() {
    let server = Server::start().await;
    let browser = Browser::start().await;
    browser.open(&server.url("/app/drops")).await;
    browser.until(CONNECTED).await;
    browser.becomes(&card(1), &soon()).await;
    server.release(1).await;
    browser.becomes(&card(1), &sizes()).await;
    browser.becomes(&card(2), &soon()).await;

    // Two tabs of one cart are in step.
    browser.click("button[value=\"1\"]").await;
    browser.becomes(CART, &json!([1])).await;
    let first = browser.client.window().await.unwrap();
    browser.tab(&server.url("/app/drops")).await;
    browser.becomes(CART, &json!([1])).await;
    browser.until(CONNECTED).await;
    browser.click("button[value=\"2\"]").await;
    browser.becomes(CART, &json!([1, 2])).await;
    browser.look_at(&first).await;
    browser.becomes(CART, &json!([1, 2])).await;
    browser.click("button[value=\"1\"]").await;
    browser
        .until("document.querySelector('#notices').textContent.includes('in your cart already')")
        .await;
    // It takes no more than four, and gives them back.
    for (item, cart) in [(3, json!([1, 2, 3])), (5, json!([1, 2, 3, 5]))] {
        browser.click(&format!("button[value=\"{item}\"]")).await;
        browser.becomes(CART, &cart).await;
    }
    browser.click("button[value=\"6\"]").await;
    browser.until("document.querySelector('#notices').textContent.includes('cart is full')").await;
    for (item, cart) in [(5, json!([1, 2, 3])), (3, json!([1, 2]))] {
        browser.click(&format!(".cart-item__remove[data-item-id=\"{item}\"]")).await;
        browser.becomes(CART, &cart).await;
    }
    // Its channel crashes, by what no tab says, and comes back with the cart. A cart is signed anew with each join.
    browser.run("window.before = localStorage.storedCart").await;
    let id = browser.run("return window.cartId").await;
    let topic = format!("cart:{}", id.as_str().unwrap());
    server.say(&topic, "cart_updated", json!({ "added": "no list" }));
    browser.until("localStorage.storedCart !== window.before").await;
    browser.becomes(CART, &json!([1, 2])).await;
    // A second release finds the sizes there, and an older level is not shown.
    server.say("product:1", "released", json!({ "size_html": "<p id=\"twice\"></p>", "rev": 99 }));
    let level = |level: &str, rev: i64| {
        let change = json!({ "product_id": 1, "item_id": 6, "level": level, "rev": rev });
        server.say("product:1", "stock_change", change);
    };
    level("low", 50);
    level("out", 49);
    let mut seen = sizes();
    seen[5] = json!("11 low");
    browser.becomes(&card(1), &seen).await;
    browser.until("document.getElementById('twice') === null").await;
    level("high", 51);
    browser.becomes(&card(1), &sizes()).await;
    // An item of it is gone, and the line says so in both.
    server.stock(2, 0).await;
    let grey =
        "[...document.querySelectorAll('.cart-item--out')].map(it => Number(it.dataset.itemId))";
    browser.becomes(grey, &json!([2])).await;
    browser.click(".cart-item__remove[data-item-id=\"2\"]").await;
    browser.becomes(CART, &json!([1])).await;

    // Cut off over a release and a level, for longer than the token of the page is valid.
    browser.run("window.stays = true").await;
    let stopped = server.stop().await;
    browser.until(CUT_OFF).await;
    browser.click("button[value=\"3\"]").await;
    let error =
        "document.querySelector('.notice--error')?.textContent.includes('did not answer') ?? false";
    browser.until(error).await;
    let server = stopped.start_after(Duration::from_secs(2 * 86_400)).await;
    server.release(2).await;
    server.stock(1, 600).await;
    browser.becomes(&card(2), &sizes()).await;
    let mut changed = sizes();
    (changed[0], changed[1]) = (json!("6 high"), json!("7 out disabled"));
    browser.becomes(&card(1), &changed).await;
    browser.becomes(CART, &json!([1])).await;
    browser.click("button[value=\"3\"]").await;
    browser.becomes(CART, &json!([1, 3])).await;
    browser.until("window.stays").await;

    // Another site, and back.
    browser.open("about:blank").await;
    server.stock(1, 0).await;
    browser.client.back().await.unwrap();
    changed[0] = json!("6 out disabled");
    browser.becomes(&card(1), &changed).await;
    browser.becomes(CART, &json!([1, 3])).await;
    browser.close().await;
}

#[tokio::test]
async fn a_139_the_server_driven_page_joins_no_product_and_its_sizes_reach_the_cart() {
    let server = Server::start().await;
    server.release(1).await;
    let browser = Browser::start().await;
    browser.record().await;
    browser.open(&server.url("/drops")).await;
    browser.until(CONNECTED).await;
    browser.click("button[value=\"1\"]").await;
    browser.until("document.querySelectorAll('.cart-item').length === 1").await;
    let sent = json!(["add_item cart", "open", "phx_join cart", "phx_join page:drops"]);
    browser.becomes(FRAMES, &sent).await;
    browser.close().await;
}
